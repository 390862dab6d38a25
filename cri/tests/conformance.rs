//! Our own conformance suite: the same checks on the fake and, where `CRI_SOCKET` names one, on a real runtime.
//!
//! `CRI_TEST_IMAGE` names an image with a `sh` that the real runtime has; `localhost/stevedore/demo:latest` unless told.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]
#![allow(clippy::print_stdout, reason = "each check has a line in the test's output")]

use std::path::Path;

use cri::conformance::{CHECKS, Subject, script};
use cri::fake::{FakeRuntime, Profile};
use cri::{Client, Connector};
use rstest::rstest;

fn subject(connector: Connector, image: &str, logs: &Path) -> Subject {
    let client = Client::builder(connector.clone()).build();
    Subject { connector, client, image: image.to_owned(), logs: logs.to_owned() }
}

/// Runs every check and prints a line for each; fails with the names of those that do not hold.
async fn conforms(subject: &Subject) {
    println!("{:?}", subject.client.connected().await);
    let mut failed = Vec::new();
    for check in CHECKS {
        match check.run(subject).await {
            Ok(()) => println!("holds: {}", check.name),
            Err(why) => {
                println!("FAILS: {}: {why}", check.name);
                failed.push(check.name);
            }
        }
    }
    assert!(failed.is_empty(), "{} of {} checks fail: {failed:?}", failed.len(), CHECKS.len());
}

#[rstest]
#[tokio::test(start_paused = true)]
async fn the_fake_runtime_conforms(
    #[values(
        Profile::Containerd16,
        Profile::Containerd17,
        Profile::Containerd21,
        Profile::CriO130,
        Profile::Everything
    )]
    profile: Profile,
) {
    let logs = tempfile::tempdir().unwrap();
    let fake = FakeRuntime::builder().profile(profile).any_image().write_logs().build();
    script(&fake);
    conforms(&subject(fake.connector(), "demo", logs.path())).await;
    assert_eq!((fake.sandboxes().len(), fake.containers().len()), (0, 0), "the checks leave nothing behind");
}

#[tokio::test]
async fn the_fake_runtime_conforms_over_a_real_socket() {
    let directory = tempfile::tempdir().unwrap();
    let fake = FakeRuntime::builder().any_image().write_logs().build();
    script(&fake);
    let served = fake.serve(directory.path().join("cri.sock")).await.unwrap();
    let connector = Connector::unix(served.path());
    conforms(&subject(connector, "demo", directory.path())).await;
}

#[tokio::test]
async fn the_runtime_at_cri_socket_conforms() {
    let Ok(socket) = std::env::var("CRI_SOCKET") else {
        // Past the test harness, which would keep it to itself.
        let skipped = b"skipped: the_runtime_at_cri_socket_conforms: CRI_SOCKET names no runtime\n";
        std::io::Write::write_all(&mut std::io::stderr(), skipped).unwrap();
        return;
    };
    let image =
        std::env::var("CRI_TEST_IMAGE").unwrap_or_else(|_| "localhost/stevedore/demo:latest".to_owned());
    let logs = tempfile::tempdir().unwrap();
    let connector = Connector::parse(&socket).unwrap();
    conforms(&subject(connector, &image, logs.path())).await;
}
