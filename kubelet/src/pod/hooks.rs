//! Lifecycle hooks: what a container wants done once it was started and before it is stopped. One run of one hook; when
//! it is run, and what a failure costs, the steps decide.
//!
//! A hook is at rest nowhere: it lives as long as the step that awaits it, and is cut off by dropping it. The runtime
//! kills the process of a command whose call was dropped.

use crate::api::{Container, PodRef};
use crate::event::{Event, Kind, Recorder};
use crate::gotext;
use crate::metrics::Metrics;
use crate::probe::Prober;
use crate::probe::http::{Agent, Get, GetError, Scheme};
use k8s_openapi::api::core::v1::{HTTPGetAction, LifecycleHandler};
use std::net::IpAddr;
use std::time::Duration;

/// So many bytes of a command's output go into a status. Upstream has no bound.
const OUTPUT: usize = 4096;

/// The container whose hook it is.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The runtime.
    pub runtime: &'a cri::Client,
    /// Asks over the network.
    pub prober: &'a dyn Prober,
    /// Where events go.
    pub recorder: &'a Recorder,
    /// What is measured.
    pub metrics: &'a Metrics,
    /// The pod.
    pub pod: &'a PodRef,
    /// The pod's address, if it has one.
    pub ip: Option<IpAddr>,
    /// The container; its name and ports count.
    pub container: &'a Container,
    /// The runtime's id.
    pub id: &'a str,
}

/// Runs `hook` to its end.
///
/// # Errors
/// Upstream's text for the container's status.
pub async fn run(target: &Target<'_>, hook: &LifecycleHandler) -> Result<(), String> {
    let failed = |kind: &str, what: String, error: String| {
        format!(
            "{kind} lifecycle hook ({what}) for Container \"{}\" in Pod \"{}\" failed - error: {error}",
            target.container.name, target.pod
        )
    };
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        let shown = format!("[{}]", command.join(" "));
        return exec_in(target, command).await.map_err(|(error, output)| {
            failed("Exec", shown, format!("{error}, message: {}", gotext::quote(head(&output))))
        });
    }
    if let Some(action) = &hook.http_get {
        let path = action.path.clone().unwrap_or_default();
        return ask(target, action).await.map_err(|error| failed("HTTP", path, error));
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.try_into().unwrap_or(0))).await;
        return Ok(());
    }
    // The API takes a tcpSocket, and says that such a hook fails.
    Err("Cannot run handler: invalid handler: only exec, httpGet and sleep can be run".to_owned())
}

/// Whatever is answered is fine, as for the stock agent: only a request that gets no answer fails.
async fn ask(target: &Target<'_>, action: &HTTPGetAction) -> Result<(), String> {
    let own_host = action.host.as_ref().is_some_and(|h| !h.is_empty());
    let ip = match target.ip {
        Some(ip) => ip.to_string(),
        None if own_host => String::new(),
        None => return Err("failed to find networking container: the pod has no address".to_owned()),
    };
    let mut request =
        Get::of(action, target.container, &ip, Agent::Lifecycle).map_err(|error| error.to_string())?;
    let Err(error) = target.prober.get(request.clone()).await else { return Ok(()) };
    if !matches!(error, GetError::Tls { plain: true, .. }) {
        return Err(error.to_string());
    }
    // Upstream's favour to hooks from the days when the scheme was not looked at. A secret is not sent in the clear.
    request.scheme = Scheme::Http;
    request.headers.remove("authorization");
    let at = authority(&request);
    if target.prober.get(request).await.is_err() {
        return Err(error.to_string());
    }
    target.metrics.lifecycle_handler_http_fallbacks.inc();
    target.recorder.record(Event {
        pod: Some(target.pod.clone()),
        field_path: None,
        kind: Kind::Warning,
        reason: "LifecycleHTTPFallback".into(),
        message: format!("request to HTTPS lifecycle hook {at} got HTTP response, retry with HTTP succeeded"),
        annotations: Default::default(),
    });
    Ok(())
}

fn authority(request: &Get) -> String {
    let (host, port) = (&request.host, request.port);
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The error and what the command had printed.
async fn exec_in(target: &Target<'_>, command: Vec<String>) -> Result<(), (String, Vec<u8>)> {
    let shown = command.join(" ");
    // As upstream, a hook has no time limit of its own: the pod's end and the grace period are its limits.
    // One that the runtime's death cut off is run again: nobody can know how far it came, and it must have run.
    let (runtime, id) = (target.runtime, target.id);
    let answer = runtime.through_outages(|| runtime.exec_sync(id, command.clone(), Duration::ZERO)).await;
    let answer = answer.map_err(|e| (e.rpc_text(), Vec::new()))?;
    if answer.exit_code == 0 {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(head(&answer.stderr));
    let error = format!("command '{shown}' exited with {}: {stderr}", answer.exit_code);
    Err((error, [answer.stdout.as_slice(), answer.stderr.as_slice()].concat()))
}

fn head(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(OUTPUT)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::PodUid;
    use crate::probe::Live;
    use cri::fake::{ExecAnswer, FakeRuntime};
    use cri::v1;
    use serde_json::json;

    #[test]
    fn not_all_of_an_output_is_told() {
        assert_eq!(head(&[b'x'; 3 * OUTPUT]).len(), OUTPUT);
    }

    async fn outcome(answer: ExecAnswer, hook: serde_json::Value) -> Result<(), String> {
        let fake = FakeRuntime::builder().any_image().build();
        fake.exec("c", move |_| answer.clone());
        let (client, pod) =
            (fake.client(), PodRef { uid: PodUid::new("u"), namespace: "ns".into(), name: "p".into() });
        let meta =
            v1::PodSandboxMetadata { name: "p".into(), uid: "u".into(), namespace: "ns".into(), attempt: 0 };
        let sandbox = v1::PodSandboxConfig { metadata: Some(meta), ..Default::default() };
        let config = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: "c".into(), attempt: 0 }),
            image: Some(v1::ImageSpec { image: "reg.test/app:1".into(), ..Default::default() }),
            ..Default::default()
        };
        let in_sandbox = client.run_pod_sandbox(sandbox.clone(), "").await.unwrap();
        let id = client.create_container(&in_sandbox, config, sandbox).await.unwrap();
        client.start_container(&id).await.unwrap();
        let container = Container { name: "c".into(), ..Default::default() };
        let (recorder, metrics) = (Recorder::new(8), Metrics::default());
        let target = Target {
            runtime: &client,
            prober: &Live::new(client.clone()),
            recorder: &recorder,
            metrics: &metrics,
            pod: &pod,
            ip: Some(IpAddr::from([127, 0, 0, 1])),
            container: &container,
            id: &id,
        };
        run(&target, &serde_json::from_value(hook).unwrap()).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_reads_as_upstreams() {
        let exec = || json!({"exec": {"command": ["sh", "-c", "x y"]}});
        assert_eq!(outcome(ExecAnswer::exits(0).stdout("fine"), exec()).await, Ok(()));
        let failed = outcome(ExecAnswer::exits(4).stdout("bad\n").stderr("worse"), exec()).await;
        assert_eq!(
            failed.unwrap_err(),
            "Exec lifecycle hook ([sh -c x y]) for Container \"c\" in Pod \"p_ns(u)\" failed - error: command 'sh -c x y' \
             exited with 4: worse, message: \"bad\\nworse\""
        );
        let broken = outcome(ExecAnswer::error(cri::Code::Unknown, "no such file"), exec()).await;
        assert!(
            broken
                .unwrap_err()
                .ends_with("error: rpc error: code = Unknown desc = no such file, message: \"\"")
        );
        let socket = outcome(ExecAnswer::exits(0), json!({"tcpSocket": {"port": 80}})).await;
        assert!(socket.unwrap_err().starts_with("Cannot run handler: invalid handler"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleep_sleeps() {
        let began = tokio::time::Instant::now();
        assert_eq!(outcome(ExecAnswer::exits(1), json!({"sleep": {"seconds": 7}})).await, Ok(()));
        assert!(began.elapsed() >= Duration::from_secs(7));
        let began = tokio::time::Instant::now();
        assert_eq!(outcome(ExecAnswer::exits(1), json!({"sleep": {"seconds": -7}})).await, Ok(()));
        assert!(began.elapsed() < Duration::from_secs(1));
    }

    /// Answers everything that comes with `answer`, and gives what was asked first.
    async fn listener(answer: &'static str) -> (u16, tokio::task::JoinHandle<String>) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = socket.accept().await.unwrap();
                let mut asked = vec![0; 4096];
                let n = stream.read(&mut asked).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
                // What begins like TLS is answered and forgotten.
                if asked[0] != 0x16 {
                    return String::from_utf8_lossy(&asked[..n]).into_owned();
                }
            }
        });
        (port, task)
    }

    async fn asks(hook: serde_json::Value, ip: Option<IpAddr>) -> (Result<(), String>, Vec<String>) {
        let client = FakeRuntime::default().client();
        let pod = PodRef { uid: PodUid::new("u"), namespace: "ns".into(), name: "p".into() };
        let ports = json!({"name": "c", "ports": [{"name": "admin", "containerPort": 1}]});
        let container: Container = serde_json::from_value(ports).unwrap();
        let (recorder, metrics) = (Recorder::new(8), Metrics::default());
        let mut events = recorder.subscribe();
        let target = Target {
            runtime: &client,
            prober: &Live::new(client.clone()),
            recorder: &recorder,
            metrics: &metrics,
            pod: &pod,
            ip,
            container: &container,
            id: "c-0",
        };
        let done = run(&target, &serde_json::from_value(hook).unwrap()).await;
        let mut told = Vec::new();
        while let Ok(event) = events.try_recv() {
            told.push(format!("{}: {}", event.reason, event.message));
        }
        (done, told)
    }

    const REFUSED: &str = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n";

    #[tokio::test]
    async fn an_http_hook_asks_the_pod_and_takes_any_answer() {
        let (port, asked) = listener(REFUSED).await;
        let hook = json!({"httpGet": {"path": "/prestop?x=1", "port": port, "httpHeaders": [{"name": "X-A", "value": "b"}]}});
        assert_eq!(asks(hook, Some(IpAddr::from([127, 0, 0, 1]))).await, (Ok(()), vec![]));
        let asked = asked.await.unwrap();
        assert!(asked.starts_with("GET /prestop?x=1 HTTP/1.1\r\n"), "{asked}");
        assert!(
            asked.contains("User-Agent: kube-lifecycle/1.36\r\n") && asked.contains("X-A: b\r\n"),
            "{asked}"
        );
    }

    #[tokio::test]
    async fn an_https_hook_falls_back_to_http_without_its_secret() {
        let (port, asked) = listener(REFUSED).await;
        let hook = json!({"httpGet": {"path": "/", "port": port, "scheme": "HTTPS", "host": "127.0.0.1",
            "httpHeaders": [{"name": "Authorization", "value": "Bearer secret"}]}});
        let (done, told) = asks(hook, None).await;
        assert_eq!(done, Ok(()));
        let want = format!(
            "LifecycleHTTPFallback: request to HTTPS lifecycle hook 127.0.0.1:{port} got HTTP response, retry with HTTP succeeded"
        );
        assert_eq!(told, [want]);
        assert!(!asked.await.unwrap().contains("secret"));
    }

    #[tokio::test]
    async fn an_http_hook_that_reaches_nobody_fails() {
        let (port, asked) = listener(REFUSED).await;
        asked.abort();
        let _ = asked.await;
        let hook = json!({"httpGet": {"path": "/x", "port": port}});
        let (done, _) = asks(hook.clone(), Some(IpAddr::from([127, 0, 0, 1]))).await;
        let error = done.unwrap_err();
        let begin = "HTTP lifecycle hook (/x) for Container \"c\" in Pod \"p_ns(u)\" failed - error: Get ";
        assert!(error.starts_with(begin) && error.contains("connection refused"), "{error}");
        assert!(asks(hook, None).await.0.unwrap_err().contains("failed to find networking container"));
        let named = json!({"httpGet": {"path": "/x", "port": "nobody"}});
        assert!(asks(named, Some(IpAddr::from([127, 0, 0, 1]))).await.0.is_err());
    }
}
