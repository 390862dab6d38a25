//! Sampling, the queue and the endpoint; what a whole pod's trace looks like is in `tests/agent/traces.rs`.

use super::*;
use crate::api::{PodRef, PodUid};
use crate::metrics::Metrics;
use std::time::{Duration, Instant};

fn pod() -> PodRef {
    PodRef { uid: PodUid::new("u"), namespace: "ns".into(), name: "p".into() }
}

fn tracer(per_million: u32, metrics: &Metrics) -> (Tracer, Flush) {
    let target = Target::Unix("/nonexistent/collector".to_owned());
    Tracer::start(ExportConfig { target, per_million, node: "n".to_owned() }, metrics)
}

#[tokio::test]
async fn so_many_of_a_million_are_sampled() {
    let metrics = Metrics::default();
    let sampled = |per_million| {
        let (tracer, _flush) = tracer(per_million, &metrics);
        let starts = (0..2000).map(|_| PodStart::new(&tracer, &metrics, Instant::now()));
        starts.filter(|s| s.carried().unwrap().span.is_some()).count()
    };
    assert_eq!((sampled(0), sampled(1_000_000)), (0, 2000));
    let half = sampled(500_000);
    assert!((800..1200).contains(&half), "{half}");
    assert!(PodStart::new(&Tracer::default(), &metrics, Instant::now()).carried().unwrap().span.is_none());
}

#[tokio::test(start_paused = true)]
async fn phases_are_measured_whether_or_not_they_are_traced() {
    let metrics = Metrics::default();
    let mut start = PodStart::new(&Tracer::default(), &metrics, Instant::now());
    let work = async {
        let work = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Err::<(), _>("no".to_owned())
        };
        phase(Phase::Image, "c", work, String::clone).await
    };
    assert_eq!(within(start.carried(), work).await, Err("no".to_owned()));
    start.running();
    start.end(&pod(), End::Ready);
    // Over: nothing more is of it.
    assert!(start.carried().is_none());
    phase(Phase::Create, "c", async { Ok::<_, String>(()) }, String::clone).await.unwrap();
    let page = metrics.registry().render();
    for want in [
        r#"stevedore_pod_start_phase_duration_seconds_sum{phase="image"} 2"#,
        r#"stevedore_pod_start_phase_duration_seconds_count{phase="admission"} 1"#,
        r#"stevedore_pod_start_phase_duration_seconds_count{phase="observe"} 1"#,
        r#"stevedore_pod_start_phase_duration_seconds_count{phase="ready"} 1"#,
    ] {
        assert!(page.contains(want), "{want} in\n{page}");
    }
    assert!(!page.contains(r#"phase="create""#));
}

#[tokio::test]
async fn a_full_queue_drops_what_comes_and_counts_it() {
    let metrics = Metrics::default();
    let (tracer, flush) = tracer(1_000_000, &metrics);
    // Three spans each: the admission, the whole, and that it became ready. Nobody else runs meanwhile.
    for _ in 0..2000 {
        PodStart::new(&tracer, &metrics, Instant::now()).end(&pod(), End::Ready);
    }
    let sent = metrics.trace_spans_dropped.with(["queue_full"]).get();
    assert_eq!(sent, 2000 * 3 - 2048);
    // A collector that is not there costs the rest, and no more than one attempt at the end.
    flush.within(Duration::from_secs(20)).await;
    assert_eq!(metrics.trace_spans_dropped.with(["export_failed"]).get(), 2048);
}

#[rstest::rstest]
#[case("", Target::Tcp("localhost:4317".into()))]
#[case("collector:4317", Target::Tcp("collector:4317".into()))]
#[case("[::1]:4317", Target::Tcp("[::1]:4317".into()))]
#[case("dns:collector:4317", Target::Tcp("collector:4317".into()))]
#[case("dns:///collector:4317", Target::Tcp("collector:4317".into()))]
#[case("dns://8.8.8.8/collector:4317", Target::Tcp("collector:4317".into()))]
#[case("unix:/run/otel.sock", Target::Unix("/run/otel.sock".into()))]
#[case("unix:///run/otel.sock", Target::Unix("/run/otel.sock".into()))]
#[case("unix-abstract:otel", Target::Abstract("otel".into()))]
fn an_endpoint_is_read(#[case] text: &str, #[case] want: Target) {
    assert_eq!(Target::parse(text), want);
}
