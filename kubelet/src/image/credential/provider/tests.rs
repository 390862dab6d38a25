//! The cache by its rules, and the whole way with plugins that are shell scripts.

use super::*;
use std::path::Path;

fn ring(user: &str) -> Arc<Keyring> {
    let mut ring = Keyring::default();
    ring.add("*.test", Credential::basic(user, "p")).unwrap();
    Arc::new(ring)
}

#[test]
fn answers_hold_for_what_and_as_long_as_they_say() {
    let (now, hour) = (Instant::now(), Duration::from_secs(3600));
    for (kind, same, registry, other) in [
        (CacheKeyType::Image, true, false, false),
        (CacheKeyType::Registry, true, true, false),
        (CacheKeyType::Global, true, true, true),
    ] {
        let mut cache = Cache::default();
        cache.put("a.test:5000/x", kind, hour, ring("u"), now);
        let has = |image: &str, at| cache.get(image, at).is_some();
        assert_eq!(has("a.test:5000/x", now), same, "{kind:?}");
        assert_eq!(has("a.test:5000/y", now), registry, "{kind:?}");
        assert_eq!(has("a.test/x", now), other, "{kind:?}");
        assert!(
            has("a.test:5000/x", now + hour) && !has("a.test:5000/x", now + hour + Duration::from_nanos(1))
        );
    }
    let mut cache = Cache::default();
    cache.put("a.test/x", CacheKeyType::Global, Duration::ZERO, ring("u"), now);
    assert!(cache.get("a.test/x", now).is_none(), "nothing held is not kept");
    cache.put("a.test/x", CacheKeyType::Global, Duration::MAX, ring("u"), now);
    assert!(cache.get("a.test/x", now + hour).is_some(), "for ever");
}

#[test]
fn the_most_particular_answer_counts_and_old_ones_go() {
    let (now, hour) = (Instant::now(), Duration::from_secs(3600));
    let mut cache = Cache::default();
    for (kind, user) in
        [(CacheKeyType::Global, "all"), (CacheKeyType::Registry, "registry"), (CacheKeyType::Image, "image")]
    {
        cache.put("a.test/x", kind, hour, ring(user), now);
    }
    let user = |image: &str| cache.get(image, now).unwrap().lookup("a.test/x")[0].username.clone();
    assert_eq!(
        (user("a.test/x"), user("a.test/y"), user("b.test/x")),
        ("image".into(), "registry".into(), "all".into())
    );
    cache.put("b.test/x", CacheKeyType::Image, hour, ring("new"), now + hour * 2);
    assert_eq!(cache.kept.len(), 1);
}

/// A plugin that counts its calls in `calls` and answers with `rest`.
fn plugin(dir: &Path, name: &str, rest: &str) -> ProviderConfig {
    let script = format!(
        "echo call >> '{}/{name}.calls'\ncat > /dev/null\ncat <<'END'\n{{\"kind\": \"CredentialProviderResponse\", \
         \"apiVersion\": \"credentialprovider.kubelet.k8s.io/v1\", {rest}}}\nEND\n",
        dir.display()
    );
    ProviderConfig {
        name: name.to_owned(),
        program: "/bin/sh".into(),
        match_images: vec!["*.test".to_owned()],
        default_cache_duration: Duration::from_secs(60),
        api_version: "credentialprovider.kubelet.k8s.io/v1".to_owned(),
        args: vec!["-c".to_owned(), script],
        env: Vec::new(),
    }
}

fn calls(dir: &Path, name: &str) -> usize {
    std::fs::read_to_string(dir.join(format!("{name}.calls"))).unwrap_or_default().lines().count()
}

fn auth(user: &str) -> String {
    format!("\"auth\": {{\"*.test\": {{\"username\": \"{user}\", \"password\": \"p\"}}}}")
}

#[tokio::test]
async fn plugins_are_asked_in_order_once_for_all_who_wait_and_only_for_their_images() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let providers = Arc::new(Providers::new(
        ProvidersConfig {
            providers: vec![
                plugin(dir, "one", &format!("\"cacheKeyType\": \"Registry\", {}", auth("first"))),
                plugin(
                    dir,
                    "two",
                    &format!("\"cacheKeyType\": \"Image\", \"cacheDuration\": \"0s\", {}", auth("second")),
                ),
                plugin(dir, "bad", "\"cacheKeyType\": \"Never\""),
            ],
        },
        Metrics::default(),
    ));
    let users = async |image: &str| -> Vec<String> {
        providers.for_image(image).await.into_iter().map(|c| c.username).collect()
    };
    let (a, b) = tokio::join!(users("a.test/x"), users("a.test/x"));
    assert_eq!((a, b), (vec!["first".into(), "second".into()], vec!["first".to_owned(), "second".into()]));
    assert_eq!((calls(dir, "one"), calls(dir, "two")), (1, 1), "both who waited share a call");
    users("a.test/y").await;
    assert_eq!((calls(dir, "one"), calls(dir, "two")), (1, 2), "of one registry; not kept");
    assert_eq!(users("elsewhere.example/x").await, [""; 0]);
    assert_eq!(calls(dir, "one"), 1);
    let metrics = &providers.all[2].metrics;
    assert_eq!(metrics.credential_provider_errors.with(["bad"]).get(), 2);
    assert_eq!(metrics.credential_provider_duration.with(["one"]).count(), 1);
}
