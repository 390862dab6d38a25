//! Container logs over the wire.

use super::*;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

const LOG: &str = "/containerLogs/demo/facts-a/c2";
const SOON: Duration = Duration::from_secs(20);

/// The next piece of a streamed body, or its end.
async fn piece(body: &mut Incoming) -> Option<String> {
    loop {
        let frame = timeout(SOON, body.frame()).await.expect("nothing came")?;
        let data = frame.unwrap().into_data().unwrap();
        // HTTP/2 may end a body with an empty frame.
        if !data.is_empty() {
            return Some(String::from_utf8(data.to_vec()).unwrap());
        }
    }
}

async fn over_both_protocols(test: impl AsyncFn(&Running, Client)) {
    for alpn in ["http/1.1", "h2"] {
        let running = Running::new().await;
        let mut tls = client::trusting(running.dir.path());
        tls.alpn_protocols = vec![alpn.into()];
        let client = Client::tls(running.handle.secure.unwrap(), tls).await.unwrap();
        assert_eq!(matches!(client, Client::Two(_)), alpn == "h2");
        test(&running, client).await;
    }
}

#[tokio::test]
async fn a_followed_log_streams_until_the_container_exits() {
    over_both_protocols(async |running, mut client| {
        let response = client.send("GET", &format!("{LOG}?follow=true&tailLines=1")).await.unwrap();
        assert_eq!(response.status(), 200);
        let mut body = response.into_body();
        assert_eq!(piece(&mut body).await.unwrap(), "l2\n");
        running.node.write("more");
        assert_eq!(piece(&mut body).await.unwrap(), "more\n");
        std::fs::rename(&running.node.log, running.node.log.with_extension("log.1")).unwrap();
        std::fs::write(&running.node.log, "").unwrap();
        running.node.write("rotated");
        assert_eq!(piece(&mut body).await.unwrap(), "rotated\n");
        running.node.write("last");
        running.node.running.send_replace(false);
        assert_eq!(piece(&mut body).await.unwrap(), "last\n");
        assert_eq!(piece(&mut body).await, None);
    })
    .await;
}

#[tokio::test]
async fn a_follower_that_leaves_is_let_go() {
    over_both_protocols(async |running, mut client| {
        let response = client.send("GET", &format!("{LOG}?follow=true")).await.unwrap();
        let mut body = response.into_body();
        piece(&mut body).await;
        let inflight = running.metrics.http_inflight.with(["false", "GET", "containerLogs", "readwrite"]);
        assert_eq!(inflight.get(), 1.0);
        drop((body, client));
        // The server sees the connection close; the container is quiet and goes on.
        timeout(SOON, async {
            while inflight.get() > 0.0 || running.node.running.receiver_count() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("the follower is still there");
    })
    .await;
}

#[tokio::test]
async fn parts_of_a_log_are_chosen() {
    let running = Running::with(|c| c.split_log_streams = true).await;
    let mut client = running.secure().await;
    for (query, want) in [
        ("", "l1\nl2\n"),
        ("?tailLines=1", "l2\n"),
        ("?tail=all", "l1\nl2\n"),
        ("?limitBytes=4", "l1\nl"),
        ("?sinceTime=2026-01-01T00:00:01Z", "l2\n"),
        ("?stream=Stdout", "l1\n"),
        ("?stream=Stderr&timestamps=true", "2026-01-01T00:00:01.000000000Z l2\n"),
        ("?container=ignored", "l1\nl2\n"),
    ] {
        let answer = client.get(&format!("{LOG}{query}")).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, want), "{query}");
    }
    let invalid = client.get(&format!("{LOG}?tailLines=-1")).await;
    assert_eq!((invalid.status, invalid.body.as_str()), (422, r#"{"message": "Invalid request."}"#));
    std::fs::remove_file(&running.node.log).unwrap();
    let gone = client.get(LOG).await;
    assert_eq!(gone.status, 400);
    assert!(gone.body.starts_with("failed to try resolving symlinks in path "), "{}", gone.body);
}

#[tokio::test]
async fn more_logs_than_can_be_served_are_refused_and_served_later() {
    over_both_protocols(async |running, mut client| {
        if matches!(client, Client::One(_)) {
            return; // One log at a time on such a connection.
        }
        let path = format!("{LOG}?follow=true");
        let mut held = Vec::new();
        // One connection has 250 places; the rest come over another.
        let mut second = {
            let mut tls = client::trusting(running.dir.path());
            tls.alpn_protocols = vec!["h2".into()];
            Client::tls(running.handle.secure.unwrap(), tls).await.unwrap()
        };
        for n in 0..256 {
            let client = if n < 128 { &mut client } else { &mut second };
            let response = client.send("GET", &path).await.unwrap();
            assert_eq!(response.status(), 200, "log {n}");
            held.push(response);
        }
        assert_eq!(client.get(&path).await.status, 503);
        assert_eq!(client.get("/healthz").await.status, 200, "other requests are served");
        running.node.running.send_replace(false);
        for response in held {
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "l1\nl2\n");
        }
        assert_eq!(client.get(&path).await.status, 200);
    })
    .await;
}
