//! Logs on a real runtime: no line is lost or doubled while they are rotated.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use kubelet::log::{Decoder, Filter};
use node_e2e::manifest::{pod, sh, then_forever};
use node_e2e::marks::number;
use node_e2e::wait::eventually;
use node_e2e::{Node, Options, http};
use serde_json::json;
use std::io::Read;
use std::path::Path;

/// Lines that the container writes; each is about 55 bytes of log. A million, or `STEVEDORE_LOG_LINES`.
fn lines() -> u64 {
    number("STEVEDORE_LOG_LINES", 1_000_000)
}

/// Rotates at 1 MiB and keeps everything.
async fn node() -> Option<Node> {
    let config = json!({ "containerLogMaxSize": "1Mi", "containerLogMaxFiles": 10_000 });
    Node::start_with(Options { config: Some(config), ..Options::default() }).await
}

/// A pod that writes the numbers once it finds `/go`, and `/done` after them.
fn numbers() -> serde_json::Value {
    let script = format!("until [ -e /go ]; do sleep 0.05; done; seq 1 {}; touch /done", lines());
    pod("numbers", [sh("c", &then_forever(&script))])
}

/// Every number once, in order.
fn check(what: &str, text: &[u8]) {
    let mut expected = 1u64;
    for line in text.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        let line = String::from_utf8_lossy(line);
        assert_eq!(line, expected.to_string(), "{what}");
        expected += 1;
    }
    assert_eq!(expected, lines() + 1, "{what} ends early");
}

/// What the container wrote, put together from its log files, and how many were rotated and compressed.
fn on_disk(node: &Node, uid: &str) -> (Vec<u8>, usize, usize) {
    let dir = node.places.logs.join(format!("default_{}_{uid}", node.full("numbers"))).join("c");
    // What is compressed between the list and the reading is there under another name.
    loop {
        let mut names: Vec<String> =
            std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|n| !n.ends_with(".tmp"));
        names.sort();
        // Just compressed, and the original is about to go.
        names.dedup_by(|next, this| *next == format!("{this}.gz"));
        let log = names.remove(0);
        let files: Option<Vec<Vec<u8>>> = names.iter().chain([&log]).map(|n| read(&dir.join(n))).collect();
        let Some(files) = files.filter(|_| log == "0.log") else { continue };
        let compressed = names.iter().filter(|n| n.ends_with(".gz")).count();
        let (mut decoder, mut text) = (Decoder::new(Filter::default()), Vec::new());
        files.iter().for_each(|file| decoder.push(file, &mut text));
        assert_eq!(decoder.invalid(), 0, "records that are none");
        return (text, names.len(), compressed);
    }
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let (mut file, mut bytes) = (std::fs::File::open(path).ok()?, Vec::new());
    if path.extension().is_some_and(|e| e == "gz") {
        flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    } else {
        file.read_to_end(&mut bytes).unwrap();
    }
    Some(bytes)
}

async fn done(node: &Node, running: &kubelet::api::Pod) {
    eventually("all is written", async || {
        let there = node.exec(running, "c", "[ -e /done ] && echo yes || echo no").await;
        if there == "yes\n" { Ok(()) } else { Err(there) }
    })
    .await;
}

#[tokio::test]
async fn every_line_is_read_once_and_in_order_while_logs_are_rotated_at_full_speed() {
    let Some(mut node) = node().await else { return };
    node.put("numbers", numbers());
    let running = node.wait_ready("numbers").await;
    let path = node.log_path("numbers", "c", "follow=true");
    let mut follow = http::open_tls(node.port, &node.dir.join("pki"), &node.name, &path).await.unwrap();
    node.exec(&running, "c", "touch /go").await;
    let (mut followed, last) = (Vec::new(), format!("\n{}\n", lines()));
    while !followed.ends_with(last.as_bytes()) {
        followed.extend_from_slice(http::piece(&mut follow).await.expect("the log goes on").as_bytes());
    }
    check("what the follower saw", &followed);
    done(&node, &running).await;
    let (text, rotated, _) = on_disk(&node, node_e2e::status::uid(&running));
    check("what is in the files", &text);
    assert!(rotated > 3, "only {rotated} rotations");
    eventually("all but the newest are compressed", async || {
        let (_, rotated, compressed) = on_disk(&node, node_e2e::status::uid(&running));
        if compressed + 1 == rotated { Ok(()) } else { Err(format!("{compressed} of {rotated}")) }
    })
    .await;
    node.remove("numbers");
    node.wait_gone("numbers").await;
    node.wait_clean().await;
    node.finish().await;
}

#[tokio::test]
async fn an_agent_that_is_killed_while_it_rotates_loses_no_line() {
    let Some(mut node) = node().await else { return };
    node.put("numbers", numbers());
    let running = node.wait_ready("numbers").await;
    node.exec(&running, "c", "touch /go").await;
    for _ in 0..6 {
        node.kill9();
        node.launch().await;
        node.wait_healthy().await;
    }
    done(&node, &running).await;
    let uid = node_e2e::status::uid(&running);
    eventually("there is a log", async || {
        let dir = node.places.logs.join(format!("default_{}_{uid}", node.full("numbers")));
        if dir.join("c/0.log").exists() { Ok(()) } else { Err("none".to_owned()) }
    })
    .await;
    check("what is in the files", &on_disk(&node, uid).0);
    node.finish().await;
}
