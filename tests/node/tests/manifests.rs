//! Manifests that are none, while a good pod runs beside them.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use node_e2e::manifest::{FOREVER, pod, sh};
use node_e2e::wait::eventually;
use node_e2e::{Node, status};
use serde_json::json;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;

/// Waits for a line of the agent's log that names the file and holds all of `words`.
async fn reported(node: &Node, file: &str, words: &[&str]) {
    let path = node.dir.join("manifests").join(file).display().to_string();
    eventually(&format!("the agent reports {file} with {words:?}"), async || {
        let log = node.log();
        let of_file: Vec<&str> = log.lines().filter(|l| l.contains(&path)).collect();
        if of_file.iter().any(|l| words.iter().all(|w| l.contains(w))) {
            Ok(())
        } else {
            Err(of_file.join("\n"))
        }
    })
    .await;
}

/// Writes a file of the manifest directory by a rename.
fn write(node: &Node, file: &str, bytes: &[u8]) {
    let temporary = node.dir.join("new");
    fs::write(&temporary, bytes).unwrap();
    fs::rename(temporary, node.dir.join("manifests").join(file)).unwrap();
}

#[tokio::test]
async fn what_is_no_manifest_is_reported_with_file_and_field_and_the_rest_runs_on() {
    let Some(mut node) = Node::start().await else { return };
    node.put("good", pod("good", [sh("c", FOREVER)]));
    let before = node.wait_ready("good").await;
    let good = serde_json::to_string(&pod("other", [sh("c", FOREVER)])).unwrap();
    let dir = node.dir.join("manifests");

    write(&node, "empty", b"");
    write(&node, "truncated.json", &good.as_bytes()[..good.len() / 2]);
    write(&node, "prose.yaml", b"just some text");
    write(&node, "broken.yaml", b"a: b: [c");
    write(&node, "kind.yaml", b"apiVersion: v1\nkind: Deployment\nmetadata: {name: x}\n");
    write(&node, "two.yaml", format!("{good}\n---\n{good}\n").as_bytes());
    write(&node, "binary", &[0x7f, b'E', b'L', b'F', 0, 0xff, 0xfe]);
    let mut big = good.clone().into_bytes();
    big.resize(11 << 20, b' ');
    write(&node, "huge.json", &big);
    let mut port = pod("port", [sh("c", FOREVER)]);
    port["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 70000 }]);
    write(&node, "port.json", port.to_string().as_bytes());
    let mut number = pod("number", [sh("c", FOREVER)]);
    number["spec"]["terminationGracePeriodSeconds"] = "soon".into();
    write(&node, "number.json", number.to_string().as_bytes());
    let nameless = good.replace("\"other\"", "\"\"");
    write(&node, "nameless.json", nameless.as_bytes());
    fs::create_dir(dir.join("directory.yaml")).unwrap();
    symlink("/nonexistent/target", dir.join("dangling.yaml")).unwrap();
    write(&node, "twice.json", pod("good", [sh("c", "sleep 1")]).to_string().as_bytes());

    reported(&node, "empty", &["empty"]).await;
    reported(&node, "truncated.json", &["ERROR"]).await;
    reported(&node, "prose.yaml", &["ERROR", "expected a mapping"]).await;
    reported(&node, "broken.yaml", &["ERROR", "not YAML"]).await;
    reported(&node, "kind.yaml", &["ERROR", "kind", "Deployment"]).await;
    reported(&node, "two.yaml", &["ERROR", "2 documents"]).await;
    reported(&node, "binary", &["ERROR", "not text"]).await;
    reported(&node, "huge.json", &["ERROR", "larger than the limit"]).await;
    reported(&node, "port.json", &["ERROR", "spec.containers[0].ports[0].containerPort", "70000"]).await;
    reported(&node, "number.json", &["ERROR", "spec.terminationGracePeriodSeconds", "soon"]).await;
    reported(&node, "nameless.json", &["ERROR", "metadata.name"]).await;
    reported(&node, "directory.yaml", &["ERROR", "directory"]).await;
    reported(&node, "dangling.yaml", &["ERROR", "/nonexistent/target"]).await;
    reported(&node, "twice.json", &["ERROR", "metadata.name", "already defined"]).await;

    let pods = node.pods().await.unwrap();
    assert_eq!(pods.iter().map(status::name).collect::<Vec<_>>(), [node.full("good")]);
    let after = node.wait_ready("good").await;
    assert_eq!(status::container(&before, "c"), status::container(&after, "c"));

    // A mended file is a pod like any other, without a restart of anything.
    write(&node, "truncated.json", good.as_bytes());
    node.wait_ready("other").await;
    node.remove("good");
    // The second definition takes over when the first has gone.
    node.wait("good", "the other definition", |p| status::uid(p) != status::uid(&before)).await;
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { fs::remove_dir(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
    node.finish().await;
}

#[tokio::test]
async fn unknown_fields_warn_and_the_pod_runs() {
    let Some(mut node) = Node::start().await else { return };
    let mut p = pod("odd", [sh("c", FOREVER)]);
    p["spec"]["containers"][0]["imagePullPolice"] = "Never".into();
    p["spec"]["frobnicate"] = json!({ "deeply": 1 });
    node.put("odd", p);
    node.wait_ready("odd").await;
    reported(&node, "odd.yaml", &["WARN", "frobnicate"]).await;
    reported(&node, "odd.yaml", &["WARN", "spec.containers[0]", "imagePullPolice"]).await;
    node.finish().await;
}

#[tokio::test]
async fn a_manifest_written_in_place_is_not_read_half() {
    let Some(mut node) = Node::start().await else { return };
    node.put("good", pod("good", [sh("c", FOREVER)]));
    let before = node.wait_ready("good").await;
    let text = serde_json::to_vec_pretty(&pod("good", [sh("renamed", FOREVER)])).unwrap();
    let path = node.manifest("good");
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(&text[..text.len() / 2]).unwrap();
    file.sync_all().unwrap();
    // Another pod's arrival shows that the agent has looked meanwhile.
    node.put("witness", pod("witness", [sh("c", FOREVER)]));
    node.wait_ready("witness").await;
    assert_eq!(node.pod("good").await.unwrap().metadata.uid, before.metadata.uid);
    file.write_all(&text[text.len() / 2..]).unwrap();
    drop(file);
    node.wait("good", "the new one", |p| status::running(p, "renamed") && status::is(p, "Ready")).await;
    assert!(!node.log().contains("manifest refused"), "half a manifest was read");
    // One that becomes bad keeps what ran before.
    let running = node.wait_ready("good").await;
    node.put_bytes("good", b"{ no longer");
    reported(&node, "good.yaml", &["ERROR", "still_running"]).await;
    assert_eq!(
        status::container(&node.pod("good").await.unwrap(), "renamed"),
        status::container(&running, "renamed")
    );
    node.finish().await;
}

#[tokio::test]
async fn a_manifest_that_cannot_be_read_is_reported() {
    let Some(mut node) = Node::start().await else { return };
    // Root reads whatever has a mode; a file of another process's memory it does not.
    let Ok(target) = fs::canonicalize("/proc/self/mem") else {
        node_e2e::skip("no /proc/self/mem to stand for an unreadable file");
        return node.finish().await;
    };
    symlink(target, node.dir.join("manifests/unreadable.yaml")).unwrap();
    node.put("good", pod("good", [sh("c", FOREVER)]));
    node.wait_ready("good").await;
    reported(&node, "unreadable.yaml", &["ERROR"]).await;
    fs::remove_file(node.dir.join("manifests/unreadable.yaml")).unwrap();
    node.finish().await;
}
