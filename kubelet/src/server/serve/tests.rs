//! The end of an idle HTTP/2 connection, over a wire that takes its time, in paused time.

use super::*;
use crate::server::body::Body;
use crate::server::tests::node::Fake;
use http_body_util::BodyExt;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

/// How long the server's bytes travel.
const WAY: Duration = Duration::from_secs(5);

/// Passes bytes on, each piece so much later.
async fn later(mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>) {
    let (tx, mut rx) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    tokio::spawn(async move {
        while let Some((at, piece)) = rx.recv().await {
            sleep_until(at).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    });
    let mut piece = vec![0; BUFFER];
    while let Ok(n @ 1..) = from.read(&mut piece).await {
        let _ = tx.send((Instant::now() + WAY, piece[..n].to_vec()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_crosses_the_farewell_is_served_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let node = Arc::new(Fake::new(dir.path()));
    let switches = Switches {
        debugging: true,
        system_logs: true,
        profiling: true,
        debug_flags: true,
        checkpoints: true,
    };
    let answerer = Answerer {
        site: Site::Secure(switches),
        door: watch::channel(Door { anonymous: true, ca: None }).1,
        node: node.clone(),
        metrics: Metrics::default(),
        logs: Arc::new(logs::Logs::new(false)),
    };
    let (ours, server) = tokio::io::duplex(1 << 20);
    let (client, theirs) = tokio::io::duplex(1 << 20);
    let ((from_server, mut to_server), (mut from_client, to_client)) =
        (tokio::io::split(ours), tokio::io::split(theirs));
    tokio::spawn(later(from_server, to_client));
    tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
    let shared = Shared::new(Duration::from_secs(60));
    let served = tokio::spawn(shared.http2(server, Arc::new(answerer), Arc::default()));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(client)).await.unwrap();
    tokio::spawn(connection);
    let mut ask = |path: &str| {
        let request = http::Request::get(format!("https://node-1{path}")).body(Body::whole("")).unwrap();
        sender.send_request(request)
    };
    let health = ask("/healthz").await.unwrap();
    let answered = Instant::now();
    assert_eq!(health.status(), 200);
    drop(health);
    // The server said farewell some seconds ago; it is still on its way.
    sleep_until(answered + HEADER - WAY + Duration::from_secs(2)).await;
    let following = ask("/containerLogs/demo/facts-a/c2?follow=true").await.unwrap();
    tokio::time::sleep(10 * HANDSHAKE).await;
    assert!(!served.is_finished(), "the connection was cut");
    node.running.send_replace(false);
    let log = following.into_body().collect().await.expect("to its end").to_bytes();
    assert_eq!(log, "l1\nl2\n");
    // Nothing more is asked of it.
    served.await.unwrap();
}
