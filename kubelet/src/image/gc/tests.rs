//! The task on a runtime of the tests' own, in paused time.

use super::*;
use crate::image::tests::{Bench, Fake, bench_with};
use crate::image::{ImageConfig, PullConfig};
use policy::Usage;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// A room whose disk has 10000 bytes, each image 1000 (the rest is something else's), and whose garbage is collected.
fn bench(images: &[&str], available: u64) -> Bench {
    let fake = Fake::new(images, Ok(()));
    for image in fake.present.lock().unwrap().values_mut() {
        image.size = 1000;
    }
    *fake.usage.lock().unwrap() = Usage { capacity: 10_000, available };
    let pulls = PullConfig { serialize: false, ..PullConfig::default() };
    let config = GcConfig { min_age: Duration::ZERO, ..GcConfig::default() };
    bench_with(fake, ImageConfig { pulls, gc: Some(config), ..ImageConfig::default() })
}

fn here(b: &Bench) -> Vec<String> {
    b.fake.present.lock().unwrap().keys().cloned().collect()
}

fn node_events(b: &mut Bench) -> Vec<(String, String)> {
    let all = std::iter::from_fn(|| b.events.try_recv().ok());
    all.filter(|e| e.pod.is_none()).map(|e| (e.reason.to_string(), e.message)).collect()
}

#[tokio::test(start_paused = true)]
async fn over_the_high_threshold_unused_images_go_until_the_low_one() {
    let mut b = bench(&["a:1", "b:1", "c:1", "used:1", "mounted:1"], 1000);
    b.fake.used.lock().unwrap().insert("used:1".into());
    b.fake.mounted.lock().unwrap().insert("mounted:1".into());
    let task = tokio::spawn(b.images.clone().collect_garbage());
    tokio::time::sleep(SECOND).await;
    assert_eq!(here(&b).len(), 5, "the first look removes nothing");
    tokio::time::sleep(300 * SECOND).await;
    // 90 % is used; 80 % is wanted: one image is enough.
    assert_eq!(here(&b), ["b:1", "c:1", "mounted:1", "used:1"]);
    assert_eq!(b.metrics.image_garbage_collected.with(["space"]).get(), 1);
    // The disk fills again: the next look is at most five minutes away.
    b.fake.usage.lock().unwrap().available = 0;
    tokio::time::sleep(300 * SECOND).await;
    assert_eq!(here(&b), ["mounted:1", "used:1"]);
    assert_eq!(node_events(&mut b), []);
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_pull_makes_it_look_at_once() {
    let b = bench(&["a:1"], 5000);
    let task = tokio::spawn(b.images.clone().collect_garbage());
    tokio::time::sleep(SECOND).await;
    assert_eq!(here(&b), ["a:1"]);
    b.fake.usage.lock().unwrap().available = 1500;
    let pulled = b.ensure("u", "new:1", "").await.unwrap();
    tokio::time::sleep(SECOND).await;
    assert_eq!(here(&b), ["new:1"], "what was pulled is held until a container is made of it");
    drop(pulled);
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_stays_full_is_told_at_once_and_again_as_a_failure() {
    let mut b = bench(&["used:1"], 500);
    b.fake.used.lock().unwrap().insert("used:1".into());
    let task = tokio::spawn(b.images.clone().collect_garbage());
    tokio::time::sleep(301 * SECOND).await;
    let first = node_events(&mut b);
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].0, "FreeDiskSpaceFailed");
    assert!(
        first[0].1.contains("(95% of 9.8 KiB used)") && first[0].1.contains("(freed 0 bytes)"),
        "{first:?}"
    );
    tokio::time::sleep(300 * SECOND).await;
    let reasons: Vec<_> = node_events(&mut b).into_iter().map(|(reason, _)| reason).collect();
    assert_eq!(reasons, ["FreeDiskSpaceFailed", "ImageGCFailed"]);
    // Room, and all is well.
    b.fake.usage.lock().unwrap().available = 9000;
    tokio::time::sleep(600 * SECOND).await;
    assert_eq!(node_events(&mut b), []);
    *b.fake.usage.lock().unwrap() = Usage::default();
    tokio::time::sleep(300 * SECOND).await;
    assert_eq!(
        node_events(&mut b),
        [("InvalidDiskCapacity".to_owned(), "invalid capacity 0 on image filesystem".to_owned())]
    );
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn an_image_that_cannot_be_removed_costs_no_other() {
    let mut b = bench(&["a:1", "b:1"], 0);
    b.fake.stuck.lock().unwrap().insert("sha256:a:1".into());
    let task = tokio::spawn(b.images.clone().collect_garbage());
    tokio::time::sleep(601 * SECOND).await;
    assert_eq!(here(&b), ["a:1"]);
    let events = node_events(&mut b);
    let failed = events.iter().find(|(reason, _)| reason == "ImageGCFailed").unwrap();
    assert!(failed.1.contains("with errors in image deletion: device busy"), "{events:?}");
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn who_wants_an_image_while_it_goes_gets_it_pulled_again() {
    let b = bench(&["a:1"], 0);
    b.fake.removal.forget_permits(1000);
    let task = tokio::spawn(b.images.clone().collect_garbage());
    tokio::time::sleep(301 * SECOND).await;
    let wanted = b.ensure("u", "a:1", "IfNotPresent");
    tokio::pin!(wanted);
    assert!(tokio::time::timeout(SECOND, &mut wanted).await.is_err(), "it waits for the removal");
    b.fake.removal.add_permits(1);
    assert!(wanted.await.is_ok());
    assert_eq!((here(&b), b.fake.pulls()), (vec!["a:1".to_owned()], 1));
    task.abort();
}
