//! The handle with records, on a runtime of the tests' own, in paused time.

use super::*;
use crate::image::credential::{Object, PullSecret, SearchPlaces};
use crate::image::tests::{Bench, Fake, bench_with, pod};
use crate::image::{CredentialConfig, EnsureImage, GcConfig, ImageConfig, ImageError, PullConfig};
use cri::v1::PodSandboxConfig;
use policy::Allowlist;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const IMAGE: &str = "r.test/a:1";
/// By which the fake runtime knows it.
const ID: &str = "sha256:r.test/a:1";

fn bench(fake: Arc<Fake>, dir: &Path, policy: Policy) -> Bench {
    let places = SearchPlaces { config: vec![dir.to_owned()], legacy: Vec::new() };
    bench_with(
        fake,
        ImageConfig {
            pulls: PullConfig { serialize: false, ..PullConfig::default() },
            credentials: CredentialConfig { places, ..CredentialConfig::default() },
            gc: Some(GcConfig { min_age: Duration::ZERO, ..GcConfig::default() }),
            records: Some(RecordConfig { dir: dir.join("image_manager"), policy, clock: Clock::System }),
        },
    )
}

fn secret(name: &str, user: &str) -> PullSecret {
    let object = Object { namespace: "demo".to_owned(), name: name.to_owned(), uid: format!("uid-{name}") };
    let auths = serde_json::json!({ "auths": { "r.test": { "username": user, "password": "p" } } });
    PullSecret::docker_config_json(object, auths.to_string().as_bytes()).unwrap().0
}

async fn ensure(b: &Bench, uid: &str, policy: &str, secrets: &[PullSecret]) -> Result<String, ImageError> {
    ensure_named(b, uid, IMAGE, policy, secrets).await
}

async fn ensure_named(
    b: &Bench,
    uid: &str,
    image: &str,
    policy: &str,
    secrets: &[PullSecret],
) -> Result<String, ImageError> {
    let wish = EnsureImage {
        pod: &pod(uid),
        pod_annotations: None,
        field_path: "spec.containers{c}",
        image,
        policy: Some(policy),
        secrets,
        sandbox_config: &PodSandboxConfig::default(),
        runtime_handler: "",
    };
    b.images.ensure(wish).await.map(|found| found.id)
}

fn files(dir: &Path, kind: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir.join("image_manager").join(kind))
        .map(|all| all.map(|e| e.unwrap().file_name().into_string().unwrap()).collect())
        .unwrap_or_default();
    names.sort();
    names
}

fn record(dir: &Path, image_ref: &str) -> Option<PulledRecord> {
    Dir::new(dir.join("image_manager/pulled")).read_pulled(image_ref).unwrap()
}

fn checks(b: &Bench, result: &str) -> u64 {
    b.metrics.image_must_pull_checks.with([result]).get()
}

#[tokio::test(start_paused = true)]
async fn what_one_pods_secret_pulled_another_pod_must_pull_itself() {
    let dir = tempfile::tempdir().unwrap();
    let b = bench(Fake::new(&[], Ok(())), dir.path(), Policy::default());
    *b.fake.only.lock().unwrap() = Some("alice".to_owned());
    assert_eq!(ensure(&b, "u1", "IfNotPresent", &[secret("a", "alice")]).await.unwrap(), ID);
    let access = record(dir.path(), ID).unwrap().credential_mapping.remove("r.test/a").unwrap();
    assert!(!access.node_pods_accessible);
    let known = &access.kubernetes_secrets[0];
    assert_eq!((known.namespace.as_str(), known.name.as_str(), known.uid.as_str()), ("demo", "a", "uid-a"));
    // `{"username":"alice","password":"p"}`, as the stock agent hashes it.
    assert_eq!(known.credential_hash, "b9a395b05da1ac64a1df291d22356502a6bff43068deb5806c6b16079457f603");
    assert_eq!(files(dir.path(), "pulling"), [""; 0], "no pull is under way");

    // The same secret, and another that says the same: no pull.
    ensure(&b, "u2", "IfNotPresent", &[secret("a", "alice")]).await.unwrap();
    ensure(&b, "u3", "Never", &[secret("copy", "alice")]).await.unwrap();
    assert_eq!(b.fake.pulls(), 1);
    let names = |dir: &Path| -> Vec<String> {
        let access = record(dir, ID).unwrap().credential_mapping.remove("r.test/a").unwrap();
        access.kubernetes_secrets.into_iter().map(|s| s.name).collect()
    };
    assert_eq!(names(dir.path()), ["a", "copy"], "it is recorded too");

    // Nobody's pod, and one with a secret of its own that does not open the registry.
    let e = ensure(&b, "u4", "IfNotPresent", &[]).await.unwrap_err();
    assert_eq!((e.reason, e.message.as_str()), ("ErrImagePull", "401 for \"\""));
    let e = ensure(&b, "u5", "IfNotPresent", &[secret("m", "mallory")]).await.unwrap_err();
    assert_eq!((e.reason, e.message.as_str()), ("ErrImagePull", "401 for \"mallory\""));
    assert_eq!(
        ensure(&b, "u5", "IfNotPresent", &[secret("m", "mallory")]).await.unwrap_err().reason,
        "ImagePullBackOff"
    );
    // Who may not pull is not even told that it is here.
    let e = ensure(&b, "u6", "Never", &[]).await.unwrap_err();
    assert_eq!(
        (e.reason, e.message.as_str()),
        ("ErrImageNeverPull", "Container image \"r.test/a:1\" is not present with pull policy of Never")
    );
    assert_eq!(names(dir.path()), ["a", "copy"], "failures record nobody");
    assert_eq!((checks(&b, "credentialRecordFound"), checks(&b, "mustAuthenticate")), (2, 4));

    // The registry lets the node itself in: from then on everybody may have it.
    *b.fake.only.lock().unwrap() = None;
    ensure(&b, "u7", "IfNotPresent", &[]).await.unwrap();
    ensure(&b, "u8", "Never", &[]).await.unwrap();
    assert!(record(dir.path(), ID).unwrap().credential_mapping["r.test/a"].node_pods_accessible);
}

#[tokio::test(start_paused = true)]
async fn an_image_that_was_always_here_is_everybodys_only_by_default() {
    let listed = Policy::NeverVerifyAllowlistedImages(Allowlist::parse(&["r.test/a"]).unwrap());
    let not_listed = Policy::NeverVerifyAllowlistedImages(Allowlist::parse(&["r.test/b"]).unwrap());
    for (policy, free) in [
        (Policy::NeverVerify, true),
        (Policy::NeverVerifyPreloadedImages, true),
        (listed, true),
        (not_listed, false),
        (Policy::AlwaysVerify, false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let b = bench(Fake::new(&[IMAGE], Err("no such host")), dir.path(), policy.clone());
        let got = ensure(&b, "u", "IfNotPresent", &[]).await;
        assert_eq!((got.is_ok(), b.fake.pulls()), (free, usize::from(!free)), "{policy:?}");
        let never = ensure(&b, "v", "Never", &[]).await;
        assert_eq!(never.map_err(|e| e.reason).err(), (!free).then_some("ErrImageNeverPull"), "{policy:?}");
        let result = if free { "credentialPolicyAllowed" } else { "mustAuthenticate" };
        assert_eq!(checks(&b, result), 2, "{policy:?}");
        if free {
            continue;
        }
        // Once it could be pulled, it is the node's.
        *b.fake.answer.lock().unwrap() = Ok(());
        ensure(&b, "w", "IfNotPresent", &[]).await.unwrap();
        ensure(&b, "v", "Never", &[]).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn the_same_image_under_another_name_is_another_matter() {
    let dir = tempfile::tempdir().unwrap();
    let b = bench(Fake::new(&[], Ok(())), dir.path(), Policy::default());
    ensure(&b, "u", "IfNotPresent", &[]).await.unwrap();
    // A tag of another repository on the same content.
    let here = b.fake.present.lock().unwrap()[IMAGE].clone();
    b.fake.present.lock().unwrap().insert("s.test/b:1".to_owned(), here);
    assert_eq!(
        ensure_named(&b, "u", "s.test/b:1", "Never", &[]).await.unwrap_err().reason,
        "ErrImageNeverPull"
    );
    // Another tag of the same repository.
    let here = b.fake.present.lock().unwrap()[IMAGE].clone();
    b.fake.present.lock().unwrap().insert("r.test/a:2".to_owned(), here);
    assert!(ensure_named(&b, "u", "r.test/a:2", "Never", &[]).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn while_it_is_being_pulled_a_present_image_is_not_taken_for_a_preloaded_one() {
    let dir = tempfile::tempdir().unwrap();
    let b = Arc::new(bench(Fake::new(&[IMAGE], Ok(())), dir.path(), Policy::default()));
    b.fake.gate.forget_permits(1000);
    let pulling = tokio::spawn({
        let b = b.clone();
        async move { ensure(&b, "u", "Always", &[]).await }
    });
    while b.fake.pulls() == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(files(dir.path(), "pulling"), [files::name_of(IMAGE)]);
    assert_eq!(b.metrics.pull_intents_on_disk.get(), 1.0);
    assert_eq!(ensure(&b, "v", "Never", &[]).await.unwrap_err().reason, "ErrImageNeverPull");
    b.fake.gate.add_permits(1);
    pulling.await.unwrap().unwrap();
    assert_eq!(files(dir.path(), "pulling"), [""; 0]);
    assert_eq!((b.metrics.pull_intents_on_disk.get(), b.metrics.pulled_records_on_disk.get()), (0.0, 1.0));
    ensure(&b, "v", "Never", &[]).await.unwrap();
}

/// Agents that died while they pulled, and what the next one makes of that.
#[tokio::test(start_paused = true)]
async fn a_pull_whose_end_nobody_saw_counts_as_pulled_by_nobody_known() {
    let dir = tempfile::tempdir().unwrap();
    let pulling = Dir::new(dir.path().join("image_manager/pulling"));
    for image in [IMAGE, "busybox", "r.test/gone:1"] {
        pulling.write_intent(image).unwrap();
    }
    std::fs::write(dir.path().join("image_manager/pulling/sha256-broken"), "{").unwrap();
    let present = [IMAGE, "docker.io/library/busybox:latest"];
    let b = bench(Fake::new(&present, Err("no such host")), dir.path(), Policy::default());
    // Before anything is settled already.
    assert_eq!(ensure(&b, "u", "Never", &[]).await.unwrap_err().reason, "ErrImageNeverPull");
    let task = tokio::spawn(b.images.clone().collect_garbage());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let left = [files::name_of("r.test/gone:1"), "sha256-broken".to_owned()];
    let mut left = left.to_vec();
    left.sort();
    assert_eq!(files(dir.path(), "pulling"), left, "one that came never is still to be told");
    for id in [ID, "sha256:docker.io/library/busybox:latest"] {
        assert_eq!(record(dir.path(), id).unwrap().credential_mapping.len(), 0, "{id}");
    }
    assert_eq!(ensure(&b, "v", "Never", &[]).await.unwrap_err().reason, "ErrImageNeverPull");
    assert_eq!(ensure(&b, "v", "IfNotPresent", &[]).await.unwrap_err().reason, "ErrImagePull");
    *b.fake.answer.lock().unwrap() = Ok(());
    ensure(&b, "w", "IfNotPresent", &[]).await.unwrap();
    ensure(&b, "v", "Never", &[]).await.unwrap();
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_costs_a_pull_and_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let b = bench(Fake::new(&[], Ok(())), dir.path(), Policy::default());
    ensure(&b, "u", "IfNotPresent", &[]).await.unwrap();
    let path = dir.path().join("image_manager/pulled").join(files::name_of(ID));
    let whole = std::fs::read(&path).unwrap();
    for broken in [&whole[..whole.len() / 2], b""] {
        std::fs::write(&path, broken).unwrap();
        let errors = checks(&b, "error");
        assert_eq!(ensure(&b, "u", "Never", &[]).await.unwrap_err().reason, "ErrImageNeverPull");
        assert_eq!(checks(&b, "error"), errors + 1);
        ensure(&b, "u", "IfNotPresent", &[]).await.unwrap();
        assert!(record(dir.path(), ID).is_some());
        ensure(&b, "u", "Never", &[]).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_pulled_that_cannot_be_recorded() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("image_manager"), "in the way").unwrap();
    let b = bench(Fake::new(&[], Ok(())), dir.path(), Policy::default());
    let e = ensure(&b, "u", "IfNotPresent", &[]).await.unwrap_err();
    assert_eq!((e.reason, b.fake.pulls()), ("ErrImagePull", 0));
    let want = "Failed to record image pull intent for container image \"r.test/a:1\": ";
    assert!(e.message.starts_with(want), "{e}");
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_could_not_be_recorded_is_no_longer_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let b = bench(Fake::new(&[], Ok(())), dir.path(), Policy::default());
    let (manager, pulled) = (dir.path().join("image_manager"), dir.path().join("image_manager/pulled"));
    std::fs::create_dir_all(&manager).unwrap();
    std::fs::write(&pulled, "in the way").unwrap();
    ensure(&b, "u", "IfNotPresent", &[]).await.unwrap();
    assert_eq!(files(dir.path(), "pulling"), [files::name_of(IMAGE)], "it is known as pulled");
    assert_eq!(ensure(&b, "u", "Never", &[]).await.unwrap_err().reason, "ErrImageNeverPull");
    // The next pull of it is the only one, and ends it.
    std::fs::remove_file(&pulled).unwrap();
    ensure(&b, "u", "IfNotPresent", &[]).await.unwrap();
    assert_eq!(files(dir.path(), "pulling"), [""; 0]);
    ensure(&b, "v", "Never", &[]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn records_are_settled_as_soon_as_the_runtime_lists_its_images() {
    let dir = tempfile::tempdir().unwrap();
    Dir::new(dir.path().join("image_manager/pulling")).write_intent(IMAGE).unwrap();
    let fake = Fake::new(&[IMAGE], Err("no such host"));
    fake.lists_fail.store(4, std::sync::atomic::Ordering::Relaxed);
    let b = bench(fake, dir.path(), Policy::default());
    let task = tokio::spawn(b.images.clone().collect_garbage());
    while record(dir.path(), ID).is_none() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(b.fake.lists_fail.load(std::sync::atomic::Ordering::Relaxed), 0);
    assert_eq!(files(dir.path(), "pulling"), [""; 0]);
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn records_go_with_their_images_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let b = bench(Fake::new(&[], Ok(())), dir.path(), Policy::default());
    ensure(&b, "u", "IfNotPresent", &[]).await.unwrap();
    ensure_named(&b, "u", "r.test/b:1", "IfNotPresent", &[]).await.unwrap();
    let task = tokio::spawn(b.images.clone().collect_garbage());
    tokio::time::sleep(Duration::from_secs(301)).await;
    assert_eq!(files(dir.path(), "pulled").len(), 2, "both are here");
    // One is removed by somebody else, the other for want of room.
    b.fake.present.lock().unwrap().remove(IMAGE);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(files(dir.path(), "pulled"), [files::name_of("sha256:r.test/b:1")]);
    b.fake.usage.lock().unwrap().available = 0;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(b.fake.present.lock().unwrap().len(), 0);
    assert_eq!(files(dir.path(), "pulled"), [""; 0]);
    assert_eq!(b.metrics.pulled_records_on_disk.get(), 0.0);
    task.abort();
}

#[test]
fn what_is_recorded_while_a_round_looks_is_not_pruned_by_it() {
    let dir = tempfile::tempdir().unwrap();
    let config = RecordConfig {
        dir: dir.path().join("image_manager"),
        policy: Policy::default(),
        clock: Clock::System,
    };
    let records = Records::new(config, Metrics::default());
    records.pulled("r.test/old:1", "old", &Source::Node, "");
    records.begin_round();
    records.pulled("r.test/new:1", "new", &Source::Node, "");
    records.prune(["other"].into_iter());
    assert_eq!(files(dir.path(), "pulled"), [files::name_of("new")]);
    records.begin_round();
    records.prune(["other"].into_iter());
    assert_eq!(files(dir.path(), "pulled"), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn with_the_gate_off_nothing_is_recorded_and_the_event_says_less() {
    let dir = tempfile::tempdir().unwrap();
    let mut b = bench_with(Fake::new(&[IMAGE], Ok(())), ImageConfig::default());
    ensure(&b, "u", "Never", &[]).await.unwrap();
    ensure_named(&b, "u", "r.test/b:1", "Always", &[secret("a", "alice")]).await.unwrap();
    ensure_named(&b, "v", "r.test/b:1", "Never", &[]).await.unwrap();
    let first = b.events.try_recv().unwrap();
    assert_eq!(first.message, "Container image \"r.test/a:1\" already present on machine");
    assert_eq!(files(dir.path(), "pulled"), [""; 0]);
}
