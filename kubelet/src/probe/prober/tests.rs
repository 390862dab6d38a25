//! The real prober on the fake runtime and on sockets of this machine.

use super::*;
use cri::fake::{ExecAnswer, FakeRuntime};
use cri::v1;
use serde_json::json;

async fn container(fake: &FakeRuntime) -> (cri::Client, String) {
    let client = fake.client();
    client.connected().await;
    let meta =
        v1::PodSandboxMetadata { name: "p".into(), uid: "u".into(), namespace: "n".into(), attempt: 0 };
    let sandbox = v1::PodSandboxConfig { metadata: Some(meta), ..Default::default() };
    let sandbox_id = client.run_pod_sandbox(sandbox.clone(), "").await.unwrap();
    let config = v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "c".into(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: "i".into(), ..Default::default() }),
        ..Default::default()
    };
    let id = client.create_container(&sandbox_id, config, sandbox).await.unwrap();
    client.start_container(&id).await.unwrap();
    (client, id)
}

async fn ask(client: &cri::Client, instance: &str, ip: Option<&str>, probe: serde_json::Value) -> Answer {
    let pod = json!({"spec": {"containers": [{"name": "c", "livenessProbe": probe}]}});
    let question = Question {
        pod: Arc::new(serde_json::from_value(pod).unwrap()),
        list: ContainerList::Regular,
        index: 0,
        kind: Kind::Liveness,
        instance: instance.to_owned(),
        ip: ip.map(|ip| ip.parse().unwrap()),
    };
    Live::new(client.clone()).ask(question).await
}

#[tokio::test(start_paused = true)]
async fn a_commands_exit_code_decides_and_its_output_is_told_bounded() {
    let fake = FakeRuntime::builder().any_image().build();
    let (client, id) = container(&fake).await;
    let long = "x".repeat(20_000);
    fake.exec("c", move |command| match command[0].as_str() {
        "ok" => ExecAnswer::exits(0),
        "long" => ExecAnswer::exits(1).stdout(long.as_str()),
        "broken" => ExecAnswer::error(cri::Code::Unknown, "cannot exec in a stopped state"),
        _ => ExecAnswer::exits(1).stdout("why\n"),
    });
    let run = async |command: &str| ask(&client, &id, None, json!({"exec": {"command": [command]}})).await;
    assert_eq!(run("ok").await, Answer::Success);
    assert_eq!(run("bad").await, Answer::Failure("why\n".into()));
    assert_eq!(run("long").await, Answer::Failure("x".repeat(OUTPUT_LIMIT)));
    let broken = "rpc error: code = Unknown desc = cannot exec in a stopped state";
    assert_eq!(run("broken").await, Answer::Unknown(broken.into()));
}

#[tokio::test(start_paused = true)]
async fn a_command_that_hangs_fails_at_its_timeout_even_if_the_runtime_hangs_with_it() {
    let fake = FakeRuntime::builder().any_image().build();
    let (client, id) = container(&fake).await;
    fake.exec("c", |_| ExecAnswer::exits(0).takes(Duration::from_secs(600)));
    let probe = json!({"exec": {"command": ["sh", "-c", "sleep 20"]}, "timeoutSeconds": 2});
    let want = Answer::Failure("command timed out: \"sh -c sleep 20\" timed out after 2s".into());
    assert_eq!(ask(&client, &id, None, probe.clone()).await, want);
    let began = tokio::time::Instant::now();
    fake.fault(cri::fake::Fault::delay("ExecSync", Duration::from_secs(100)));
    assert_eq!(ask(&client, &id, None, probe).await, want);
    assert_eq!(began.elapsed().as_secs(), 3, "the timeout, and the runtime's slack");
}

#[tokio::test]
async fn a_port_that_takes_connections_is_well_and_one_that_refuses_is_not() {
    let fake = FakeRuntime::builder().any_image().build();
    let client = fake.client();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let probe = json!({"tcpSocket": {"port": address.port()}});
    assert_eq!(ask(&client, "", Some("127.0.0.1"), probe.clone()).await, Answer::Success);
    drop(listener);
    let refused = format!("dial tcp {address}: connect: connection refused");
    assert_eq!(ask(&client, "", Some("127.0.0.1"), probe).await, Answer::Failure(refused));
    let named = json!({"tcpSocket": {"port": "nobody"}});
    let want = Answer::Unknown("strconv.Atoi: parsing \"nobody\": invalid syntax".into());
    assert_eq!(ask(&client, "", Some("127.0.0.1"), named).await, want);
}

#[tokio::test]
async fn a_header_that_cannot_be_sent_is_a_failure() {
    let client = FakeRuntime::builder().any_image().build().client();
    let probe = json!({"httpGet": {"port": 80, "httpHeaders": [{"name": "X", "value": "a\nb"}]}});
    let want = "Get \"http://127.0.0.1:80/\": net/http: invalid header field value for \"X\"";
    assert_eq!(ask(&client, "", Some("127.0.0.1"), probe).await, Answer::Failure(want.into()));
}

#[tokio::test]
async fn an_http_status_decides() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let client = FakeRuntime::builder().any_image().build().client();
    for (status, want) in [
        ("200 OK", Answer::Success),
        ("399 Odd", Answer::Warning("Probe terminated redirects, Response body: b".into())),
        ("500 Broken", Answer::Failure("HTTP probe failed with statuscode: 500".into())),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await.unwrap();
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 1\r\n\r\nb");
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let probe = json!({"httpGet": {"port": port, "path": "/"}});
        assert_eq!(ask(&client, "", Some("127.0.0.1"), probe).await, want);
        server.await.unwrap();
    }
}
