//! Sidecars on a real runtime: the order in which their processes begin and end, as they themselves tell it.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use node_e2e::manifest::{pod, sh};
use node_e2e::wait::eventually;
use node_e2e::{Node, status};
use serde_json::{Value, json};
use std::path::Path;

/// A container that takes down in `/told/log` when it begins and when it is told to end.
fn telling(name: &str, work: &str) -> Value {
    let mut c = sh(
        name,
        &format!(
            "echo {name} begins >> /told/log\ntrap 'echo {name} ends >> /told/log; exit 0' TERM\n{work}\n\
             while :; do sleep 3600 & wait $!; done"
        ),
    );
    c["volumeMounts"] = json!([{ "name": "told", "mountPath": "/told" }]);
    c
}

/// One that ends itself, once, when there is a file `/told/crash-NAME`. (`$$` would be an escaped `$` in a manifest.)
fn sidecar(name: &str) -> Value {
    let crash = format!("/told/crash-{name}");
    let mut c =
        telling(name, &format!("(until [ -e {crash} ]; do sleep 0.1; done; rm {crash}; kill -TERM 1) &"));
    c["restartPolicy"] = "Always".into();
    c
}

/// A pod of two sidecars with an ordinary init container between them, and `main`.
fn with_sidecars(name: &str, told: &Path, main: Value) -> Value {
    let mut p = pod(name, [main]);
    let mut once = sh("once", "echo once >> /told/log");
    once["volumeMounts"] = json!([{ "name": "told", "mountPath": "/told" }]);
    p["spec"]["initContainers"] = json!([sidecar("first"), once, sidecar("second")]);
    p["spec"]["volumes"] = json!([{ "name": "told", "hostPath": { "path": told, "type": "Directory" } }]);
    p["spec"]["terminationGracePeriodSeconds"] = 30.into();
    p
}

fn read(told: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(told.join("log")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn sidecars_begin_in_order_and_end_after_the_rest_in_reverse() {
    let Some(mut node) = Node::start().await else { return };
    let told = tempfile::tempdir().unwrap();
    node.put("web", with_sidecars("web", told.path(), telling("main", "")));
    let web = node.wait_ready("web").await;
    assert!(status::is(&web, "Initialized"));
    let begun = ["first begins", "once", "second begins", "main begins"];
    assert_eq!(read(told.path()), begun);
    node.remove("web");
    node.wait_gone("web").await;
    node.wait_clean().await;
    assert_eq!(read(told.path())[begun.len()..], ["main ends", "second ends", "first ends"]);
    node.finish().await;
}

#[tokio::test]
async fn a_job_ends_its_sidecars_when_its_work_is_done_and_restarts_those_that_fail() {
    let Some(mut node) = Node::start().await else { return };
    let told = tempfile::tempdir().unwrap();
    let work = "until [ -e /told/done ]; do sleep 0.1; done; echo main done >> /told/log; exit 0";
    let mut job = with_sidecars("job", told.path(), telling("main", work));
    job["spec"]["restartPolicy"] = "Never".into();
    node.put("job", job);
    node.wait_ready("job").await;
    std::fs::write(told.path().join("crash-first"), "").unwrap();
    let again = node.wait("job", "the sidecar runs again", |p| {
        status::restarts(p, "first") == 1 && status::is(p, "Ready")
    });
    assert_eq!(status::phase(&again.await), "Running");
    std::fs::write(told.path().join("done"), "").unwrap();
    let done = node.wait_phase("job", "Succeeded").await;
    assert_eq!(status::exit_code(&done, "main"), Some(0));
    eventually("all of it has ended in order", async || {
        let log = read(told.path());
        if log.ends_with(&["main done".into(), "second ends".into(), "first ends".into()]) {
            Ok(())
        } else {
            Err(log.join(", "))
        }
    })
    .await;
    node.finish().await;
}
