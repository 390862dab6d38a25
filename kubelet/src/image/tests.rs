//! The handle on a runtime of the test's own, in paused time; words and order against the recorded cases.

use super::*;
use cri::v1::AuthConfig;
use futures::future::BoxFuture;
use gc::policy::Usage;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::broadcast::Receiver;
use tokio::sync::{Semaphore, watch};

/// A runtime that has what it is told to have, pulls when it is let, and counts.
#[derive(Debug)]
pub(super) struct Fake {
    pub(super) present: Mutex<BTreeMap<String, Image>>,
    /// What a pull answers; `Ok` also makes the image present.
    pub(super) answer: Mutex<Result<(), String>>,
    pub(super) inspect_error: Mutex<Option<String>>,
    /// Pulls wait for a permit each.
    pub(super) gate: Semaphore,
    pub(super) calls: Mutex<Vec<(&'static str, ImageSpec)>>,
    /// Users that pulls came with; an empty one for an anonymous pull.
    pub(super) users: Mutex<Vec<String>>,
    /// The only user who may pull, if only one may.
    pub(super) only: Mutex<Option<String>>,
    pub(super) running: AtomicUsize,
    pub(super) most: AtomicUsize,
    pub(super) finished: watch::Sender<usize>,
    /// What keeps images: containers, and what they have mounted.
    pub(super) used: Mutex<HashSet<String>>,
    pub(super) mounted: Mutex<HashSet<String>>,
    pub(super) usage: Mutex<Usage>,
    /// Ids that cannot be removed.
    pub(super) stuck: Mutex<HashSet<String>>,
    /// Removals wait for a permit each.
    pub(super) removal: Semaphore,
    /// How often images cannot be listed yet.
    pub(super) lists_fail: AtomicUsize,
}

impl Fake {
    pub(super) fn new(present: &[&str], answer: Result<(), &str>) -> Arc<Self> {
        let image = |name: &&str| ((*name).to_owned(), Self::image(name));
        Arc::new(Self {
            present: Mutex::new(present.iter().map(image).collect()),
            answer: Mutex::new(answer.map_err(str::to_owned)),
            inspect_error: Mutex::default(),
            gate: Semaphore::new(1000),
            calls: Mutex::default(),
            users: Mutex::default(),
            only: Mutex::default(),
            used: Mutex::default(),
            mounted: Mutex::default(),
            usage: Mutex::new(Usage { capacity: 100, available: 100 }),
            stuck: Mutex::default(),
            removal: Semaphore::new(1000),
            lists_fail: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            finished: watch::Sender::new(0),
        })
    }
    fn image(name: &str) -> Image {
        let uid = Some(cri::v1::Int64Value { value: 1000 });
        Image { id: format!("sha256:{name}"), size: 1234, uid, ..Image::default() }
    }
    fn calls(&self) -> Vec<&'static str> {
        self.calls.lock().unwrap().iter().map(|(name, _)| *name).collect()
    }
    pub(super) fn pulls(&self) -> usize {
        self.calls().iter().filter(|c| **c == "PullImage").count()
    }
}

fn failure(call: &'static str, message: String) -> cri::Error {
    let (kind, code) = (cri::Kind::Other, cri::Code::Unknown);
    cri::Error { call, object: String::new(), kind, code, message }
}

impl ImageRuntime for Fake {
    fn image_status(&self, image: ImageSpec) -> BoxFuture<'_, cri::Result<Option<Image>>> {
        let found = self.present.lock().unwrap().get(&image.image).cloned();
        self.calls.lock().unwrap().push(("ImageStatus", image));
        let error = self.inspect_error.lock().unwrap().clone();
        Box::pin(async move { error.map_or(Ok(found), |e| Err(failure("ImageStatus", e))) })
    }
    fn pull_image(
        &self,
        image: ImageSpec,
        auth: Option<AuthConfig>,
        _: PodSandboxConfig,
    ) -> BoxFuture<'_, cri::Result<String>> {
        Box::pin(async move {
            let user = auth.map(|a| a.username).unwrap_or_default();
            self.users.lock().unwrap().push(user.clone());
            self.calls.lock().unwrap().push(("PullImage", image.clone()));
            let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(running, Ordering::SeqCst);
            self.gate.acquire().await.unwrap().forget();
            tokio::time::sleep(Duration::from_millis(1500)).await;
            self.running.fetch_sub(1, Ordering::SeqCst);
            self.finished.send_modify(|n| *n += 1);
            self.answer.lock().unwrap().clone().map_err(|e| failure("PullImage", e))?;
            if self.only.lock().unwrap().as_ref().is_some_and(|only| *only != user) {
                return Err(failure("PullImage", format!("401 for {user:?}")));
            }
            let here = Self::image(&image.image);
            let id = here.id.clone();
            self.present.lock().unwrap().insert(image.image, here);
            Ok(id)
        })
    }
    fn list_images(&self) -> BoxFuture<'_, cri::Result<Vec<Image>>> {
        let named =
            |(name, image): (&String, &Image)| Image { repo_tags: vec![name.clone()], ..image.clone() };
        let all = self.present.lock().unwrap().iter().map(named).collect();
        let left = self.lists_fail.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        Box::pin(async move {
            match left {
                Ok(_) => Err(failure("ListImages", "not yet".to_owned())),
                Err(_) => Ok(all),
            }
        })
    }
    fn remove_image<'a>(&'a self, id: &'a str) -> BoxFuture<'a, cri::Result<()>> {
        Box::pin(async move {
            self.removal.acquire().await.unwrap().forget();
            if self.stuck.lock().unwrap().contains(id) {
                return Err(failure("RemoveImage", "device busy".to_owned()));
            }
            let mut present = self.present.lock().unwrap();
            let sizes = present.values().filter(|i| i.id == id).map(|i| i.size);
            self.usage.lock().unwrap().available += sizes.sum::<u64>();
            present.retain(|_, i| i.id != id);
            Ok(())
        })
    }
    fn images_in_use(&self, all: bool) -> BoxFuture<'_, cri::Result<HashSet<String>>> {
        let mut used = self.used.lock().unwrap().clone();
        used.extend(self.mounted.lock().unwrap().iter().filter(|_| all).cloned());
        Box::pin(async move { Ok(used) })
    }
    fn image_fs(&self) -> BoxFuture<'_, cri::Result<Usage>> {
        let usage = *self.usage.lock().unwrap();
        Box::pin(async move { Ok(usage) })
    }
}

pub(super) struct Bench {
    pub(super) fake: Arc<Fake>,
    pub(super) images: Images,
    pub(super) events: Receiver<Event>,
    pub(super) metrics: Metrics,
    /// Where what was pulled is recorded.
    pub(super) dir: Option<tempfile::TempDir>,
}

fn bench(fake: Arc<Fake>, pulls: PullConfig) -> Bench {
    // The recorded words are those of the gate being on.
    let dir = tempfile::tempdir().unwrap();
    let records = RecordConfig {
        dir: dir.path().join("image_manager"),
        policy: VerificationPolicy::default(),
        clock: crate::clock::Clock::System,
    };
    let mut bench = bench_with(fake, ImageConfig { pulls, records: Some(records), ..ImageConfig::default() });
    bench.dir = Some(dir);
    bench
}

pub(super) fn bench_with(fake: Arc<Fake>, config: ImageConfig) -> Bench {
    let recorder = Recorder::new(1000);
    let events = recorder.subscribe();
    let metrics = Metrics::default();
    let images = Images::new(fake.clone(), config, recorder, metrics.clone());
    Bench { images, fake, events, metrics, dir: None }
}

pub(super) fn pod(uid: &str) -> PodRef {
    PodRef { uid: PodUid::new(uid), namespace: "demo".into(), name: "p".into() }
}

impl Bench {
    pub(super) async fn ensure(&self, uid: &str, image: &str, policy: &str) -> Result<ImageRef, ImageError> {
        let annotations = [("case".to_owned(), "x".to_owned())].into();
        let wish = EnsureImage {
            pod: &pod(uid),
            pod_annotations: Some(&annotations),
            field_path: "spec.containers{c}",
            image,
            policy: (!policy.is_empty()).then_some(policy),
            secrets: &[],
            sandbox_config: &PodSandboxConfig::default(),
            runtime_handler: "",
        };
        self.images.ensure(wish).await
    }

    fn events(&mut self) -> Vec<(String, String, String)> {
        std::iter::from_fn(|| self.events.try_recv().ok())
            .map(|e| {
                assert_eq!(e.field_path.as_deref(), Some("spec.containers{c}"));
                (format!("{:?}", e.kind), e.reason.to_string(), e.message)
            })
            .collect()
    }
}

/// The recorded cases; `None`, said aloud, where they are not.
fn golden(test: &str) -> Option<PathBuf> {
    let beside = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/golden"));
    let dir = std::env::var_os("GOLDEN_DIR").map_or(beside, PathBuf::from);
    if !dir.join("cases").is_dir() {
        eprintln!("SKIP {test}: no recorded cases at {}", dir.display());
        return None;
    }
    Some(dir.join("cases"))
}

/// Each case asks twice in a row, as the stock agent did when it came round again at once: the events, their order and
/// the two waiting states are those recorded.
#[tokio::test(start_paused = true)]
async fn events_and_waiting_states_are_those_recorded() {
    let Some(cases) = golden("events_and_waiting_states_are_those_recorded") else { return };
    for (case, container, image, policy, present) in [
        ("image-bad", "c", "registry.invalid.test/nope:v1", "IfNotPresent", false),
        ("image-no-tag", "c", "docker.io/library/nosuch", "", false),
        ("image-always-present", "c", "registry.k8s.io/e2e-test-images/nonewprivs:1.4", "Always", true),
        (
            "image-always-then-ifnotpresent",
            "a",
            "registry.k8s.io/e2e-test-images/busybox:1.36.1-1",
            "Always",
            true,
        ),
        ("image-always-then-ifnotpresent", "b", "registry.k8s.io/e2e-test-images/busybox:1.36.1-1", "", true),
        ("image-never-absent", "c", "registry.k8s.io/nope:v1", "Never", false),
        ("image-invalid-name", "c", "Bad@@Name", "", false),
    ] {
        let json = |file: &str| -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(cases.join(case).join(file)).unwrap()).unwrap()
        };
        let calls = std::fs::read_to_string(cases.join(case).join("cri.jsonl")).unwrap();
        let calls: Vec<serde_json::Value> = calls.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let pull = calls.iter().find(|c| c["method"] == "PullImage");
        let answer = pull.map_or("", |c| c["error"]["message"].as_str().unwrap());
        let here = [image];
        let here = if present { &here[..] } else { &[] };
        let mut b = bench(Fake::new(here, Err(answer)), PullConfig::default());
        let mut got = Vec::new();
        for _ in 0..2 {
            if let Err(e) = b.ensure("u", image, policy).await {
                got.push((e.reason.to_string(), e.message));
            }
        }

        let path = format!("spec.containers{{{container}}}");
        let want: Vec<_> = json("events.json")
            .as_array()
            .unwrap()
            .iter()
            .filter(|e| e["fieldPath"] == path.as_str())
            .map(|e| ["type", "reason", "message"].map(|k| e[k].as_str().unwrap().to_owned()))
            .filter(|[_, reason, text]| {
                !text.starts_with("Error: ") && !["Created", "Started", "Killing"].contains(&reason.as_str())
            })
            .collect();
        let mut events: Vec<_> = b.events().into_iter().map(|(k, r, m)| [k, r, m]).collect();
        events.dedup();
        assert_eq!(events, want, "{case} {container}");

        let statuses = json("status.json");
        let mut states: Vec<(String, String)> = Vec::new();
        for s in statuses.as_array().unwrap() {
            let s = s.get("status").unwrap_or(s);
            for c in
                s["containerStatuses"].as_array().into_iter().flatten().filter(|c| c["name"] == container)
            {
                let w = &c["state"]["waiting"];
                if let (Some(reason), Some(message)) = (w["reason"].as_str(), w["message"].as_str()) {
                    states.push((reason.to_owned(), message.to_owned()));
                }
            }
        }
        for state in states {
            assert!(got.contains(&state), "{case} {container}: {state:?} is not among {got:?}");
        }
        if let Some(pull) = pull.filter(|_| container != "b") {
            let sent = b.fake.calls.lock().unwrap();
            let spec =
                sent.iter().find(|(call, _)| *call == "PullImage").map(|(_, spec)| spec.image.as_str());
            assert_eq!(spec, pull["request"]["image"]["image"].as_str(), "{case}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_here_is_used_and_one_that_is_not_is_pulled_once() {
    let mut b = bench(Fake::new(&["a:1"], Ok(())), PullConfig::default());
    let user = ImageUser { uid: Some(1000), username: None };
    for policy in ["", "Never"] {
        let found = b.ensure("u", "a:1", policy).await.unwrap();
        assert_eq!((found.id.as_str(), &found.user), ("sha256:a:1", &user));
    }
    assert_eq!(b.fake.calls(), ["ImageStatus", "ImageStatus"]);
    assert!(b.events().iter().all(|(_, reason, _)| reason == "Pulled"));

    let pulled = b.ensure("u", "b", "IfNotPresent").await.unwrap();
    assert_eq!((pulled.id.as_str(), pulled.user), ("sha256:b:latest", user));
    assert_eq!(b.fake.calls()[2..], ["ImageStatus", "PullImage", "ImageStatus"]);
    let spec = b.fake.calls.lock().unwrap()[3].1.clone();
    assert_eq!(
        (spec.image.as_str(), spec.annotations.get("case").map(String::as_str)),
        ("b:latest", Some("x"))
    );
    let events = b.events();
    assert_eq!(events[0].2, "Pulling image \"b\"");
    assert_eq!(
        events[1].2,
        "Successfully pulled image \"b\" in 1.5s (1.5s including waiting). Image size: 1234 bytes."
    );
    assert_eq!(b.metrics.image_pull_duration.with(["0-10MB"]).count(), 1);
    assert_eq!(b.metrics.ensure_image_requests.with(["false", "ifnotpresent", "true"]).get(), 1);
}

#[tokio::test(start_paused = true)]
async fn after_a_failure_nothing_is_pulled_until_the_time_that_is_told() {
    let b = bench(Fake::new(&[], Err("boom")), PullConfig::default());
    let first = b.ensure("u", "a:1", "").await.unwrap_err();
    assert_eq!((first.reason, first.message.as_str(), first.retry_at), ("ErrImagePull", "boom", None));
    let mut waits = Vec::new();
    for _ in 0..3 {
        let now = Instant::now();
        let e = b.ensure("u", "a:1", "").await.unwrap_err();
        assert_eq!(e.reason.to_string(), "ImagePullBackOff");
        assert_eq!(e.message, "Back-off pulling image \"a:1\": ErrImagePull: boom");
        let at = e.retry_at.unwrap();
        waits.push((at - now).as_secs());
        tokio::time::sleep_until(at).await;
        assert_eq!(b.ensure("u", "a:1", "").await.unwrap_err().reason, "ErrImagePull");
    }
    assert_eq!(waits, [10, 20, 40]);
    assert_eq!(b.fake.pulls(), 4);
    // Another pod is not held back; a pod that comes back under the same UID is not either.
    assert_eq!(b.ensure("v", "a:1", "").await.unwrap_err().reason, "ErrImagePull");
    b.images.forget(&PodUid::new("u"));
    assert_eq!(b.ensure("u", "a:1", "").await.unwrap_err().reason, "ErrImagePull");
    // What is here by now is used at once, whatever failed before.
    b.fake.present.lock().unwrap().insert("a:1".into(), Fake::image("a:1"));
    assert!(b.ensure("u", "a:1", "").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_pull_goes_on_when_who_waits_leaves_and_others_share_it() {
    let b = Arc::new(bench(Fake::new(&[], Ok(())), PullConfig::default()));
    b.fake.gate.forget_permits(1000);
    let left = tokio::time::timeout(Duration::from_secs(1), b.ensure("u", "a:1", "Always")).await;
    assert!(left.is_err(), "gave up waiting");
    assert_eq!(b.fake.pulls(), 1);
    let others: Vec<_> = (0..3)
        .map(|n| {
            let b = b.clone();
            tokio::spawn(async move { b.ensure(&format!("v{n}"), "a:1", "Always").await })
        })
        .collect();
    tokio::task::yield_now().await;
    b.fake.gate.add_permits(1);
    for other in others {
        assert_eq!(other.await.unwrap().unwrap().id, "sha256:a:1");
    }
    assert_eq!((b.fake.pulls(), *b.fake.finished.borrow()), (1, 1));
    // The next one is a new pull.
    b.fake.gate.add_permits(1);
    b.ensure("u", "a:1", "Always").await.unwrap();
    assert_eq!(b.fake.pulls(), 2);
}

#[tokio::test(start_paused = true)]
async fn as_many_pulls_run_at_once_as_configured() {
    for (config, want) in [
        (PullConfig::default(), 1),
        (PullConfig { serialize: false, max_parallel: Some(3), ..PullConfig::default() }, 3),
        (PullConfig { serialize: false, max_parallel: None, ..PullConfig::default() }, 6),
    ] {
        let b = Arc::new(bench(Fake::new(&[], Ok(())), config));
        let all: Vec<_> = (0..6)
            .map(|n| {
                let b = b.clone();
                tokio::spawn(async move { b.ensure("u", &format!("a:{n}"), "").await })
            })
            .collect();
        for one in all {
            one.await.unwrap().unwrap();
        }
        assert_eq!(b.fake.most.load(Ordering::SeqCst), want, "{config:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn more_pulls_than_the_registry_rate_allows_are_refused_and_backed_off() {
    let config = PullConfig { serialize: false, registry_qps: 1, registry_burst: 2, ..PullConfig::default() };
    let b = Arc::new(bench(Fake::new(&[], Ok(())), config));
    let all = futures::future::join_all((0..3).map(|n| {
        let b = b.clone();
        async move { b.ensure("u", &format!("a:{n}"), "").await }
    }))
    .await;
    let refused: Vec<_> = all.into_iter().filter_map(Result::err).collect();
    assert_eq!(refused.len(), 1);
    assert_eq!((refused[0].reason, refused[0].message.as_str()), ("ErrImagePull", "pull QPS exceeded"));
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_cannot_look_and_a_policy_that_is_none_are_said_so() {
    let mut b = bench(Fake::new(&["a:1"], Ok(())), PullConfig::default());
    *b.fake.inspect_error.lock().unwrap() = Some("connection refused".into());
    let e = b.ensure("u", "a:1", "").await.unwrap_err();
    assert_eq!(
        (e.reason, e.message.as_str()),
        ("ImageInspectError", "Failed to inspect image \"a:1\": connection refused")
    );
    assert_eq!(b.events()[0].1, "InspectFailed");
    let e = b.ensure("u", "a:1", "Sometimes").await.unwrap_err();
    assert!(e.message.contains("imagePullPolicy \"Sometimes\""), "{e}");
}

/// A bench whose node has a docker configuration file with those users, all for `r.test`.
fn with_credentials(fake: Arc<Fake>, dir: &std::path::Path, entries: &[(&str, &str)]) -> Bench {
    write_credentials(dir, entries);
    let places = credential::SearchPlaces { config: vec![dir.to_owned()], legacy: Vec::new() };
    let credentials = CredentialConfig { places, ..CredentialConfig::default() };
    let pulls = PullConfig { serialize: false, ..PullConfig::default() };
    bench_with(fake, ImageConfig { pulls, credentials, ..ImageConfig::default() })
}

fn write_credentials(dir: &std::path::Path, entries: &[(&str, &str)]) {
    let auths: serde_json::Map<_, _> = entries
        .iter()
        .map(|(place, user)| ((*place).to_owned(), serde_json::json!({ "username": user, "password": "p" })))
        .collect();
    let text = serde_json::json!({ "auths": auths }).to_string();
    std::fs::write(dir.join("config.json"), text).unwrap();
}

#[tokio::test(start_paused = true)]
async fn credentials_are_tried_in_turn_until_one_works() {
    let dir = tempfile::tempdir().unwrap();
    let entries = [("r.test", "host"), ("r.test/priv", "path"), ("other.test", "other")];
    let b = with_credentials(Fake::new(&[], Ok(())), dir.path(), &entries);
    *b.fake.only.lock().unwrap() = Some("host".into());
    b.ensure("u", "r.test/priv/x:v1", "").await.unwrap();
    assert_eq!(b.fake.users.lock().unwrap().split_off(0), ["path", "host"]);
    // Nothing fits: an anonymous pull.
    assert_eq!(b.ensure("u", "s.test/x:v1", "").await.unwrap_err().message, "401 for \"\"");
    // All fail: all is told, what is the same once, as golden case image-pullsecrets has it.
    *b.fake.only.lock().unwrap() = Some("nobody".into());
    let e = b.ensure("v", "r.test/priv/y:v1", "").await.unwrap_err();
    assert_eq!((e.reason, e.message.as_str()), ("ErrImagePull", "[401 for \"path\", 401 for \"host\"]"));
    *b.fake.answer.lock().unwrap() = Err("no such host".into());
    assert_eq!(b.ensure("w", "r.test/priv/z:v1", "").await.unwrap_err().message, "no such host");
}

#[tokio::test(start_paused = true)]
async fn a_pull_is_not_shared_across_credentials_and_a_changed_file_counts_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let b = Arc::new(with_credentials(Fake::new(&[], Ok(())), dir.path(), &[("r.test", "old")]));
    b.fake.gate.forget_permits(1000);
    let ask = |uid: &'static str| {
        let b = b.clone();
        tokio::spawn(async move { b.ensure(uid, "r.test/x:v1", "Always").await })
    };
    let (first, second) = (ask("1"), ask("2"));
    tokio::task::yield_now().await;
    write_credentials(dir.path(), &[("r.test", "newer")]);
    let third = ask("3");
    tokio::task::yield_now().await;
    b.fake.gate.add_permits(2);
    for asked in [first, second, third] {
        asked.await.unwrap().unwrap();
    }
    let mut users = b.fake.users.lock().unwrap().split_off(0);
    users.sort();
    assert_eq!(users, ["newer", "old"]);
}
