//! Static pods on a real runtime: manifests that change faster than their pods can, files that are renamed, images that
//! change under a pod that stays, and stop signals.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use node_e2e::manifest::{FOREVER, pod, sh};
use node_e2e::marks::Marks;
use node_e2e::wait::eventually;
use node_e2e::{Node, Options, status};
use serde_json::{Value, json};
use std::fs;
use std::time::Duration;
use xtask::image::Image;

/// A marked pod that takes its time to stop.
fn slow(marks: &Marks, version: u32) -> Value {
    let mut p = marks.pod("web", version);
    let script = p["spec"]["containers"][0]["command"][2].as_str().unwrap();
    let slower = script.replace("trap '", "trap 'sleep 1; ");
    assert_ne!(script, slower);
    p["spec"]["containers"][0]["command"][2] = slower.into();
    p["spec"]["terminationGracePeriodSeconds"] = 20.into();
    p
}

#[tokio::test]
async fn dozens_of_changes_to_a_manifest_never_run_two_pods_at_once_and_end_with_the_last() {
    let Some(mut node) = Node::start().await else { return };
    let marks = Marks::new(&node.dir);
    node.put("web", slow(&marks, 0));
    node.wait_ready("web").await;
    let last = 48;
    for n in 1..=last {
        match n % 6 {
            // Away, and back as it was.
            2 => node.remove("web"),
            3 => node.put("web", slow(&marks, n - 2)),
            _ => node.put("web", slow(&marks, n)),
        }
        if n % 12 == 0 {
            // From time to time one gets so far as to run, and the next change finds it doing so.
            let uid = Marks::uid("web", n);
            node.wait("web", "the newest", |p| status::uid(p) == uid && status::is(p, "Ready")).await;
        } else if n % 4 == 0 {
            // Others are met while they are made or stopped, wherever that has come to.
            tokio::time::sleep(Duration::from_millis(u64::from(n) * 7)).await;
        }
    }
    let pod = node.wait_ready("web").await;
    assert_eq!(status::uid(&pod), Marks::uid("web", last));
    node.wait_clean().await;
    eventually("the last one has begun", async || {
        let history = marks.history("web");
        if history.last() == Some(&format!("start {last}")) { Ok(()) } else { Err(format!("{history:?}")) }
    })
    .await;
    marks.none_ran_twice_at_once();
    node.finish().await;
}

#[tokio::test]
async fn a_renamed_file_leaves_a_pod_alone_whose_uid_it_gives_and_replaces_any_other() {
    let Some(mut node) = Node::start().await else { return };
    let mut own = pod("given", [sh("c", FOREVER)]);
    own["metadata"]["uid"] = format!("given-{}", node.name).into();
    node.put("given", &own);
    node.put("derived", pod("derived", [sh("c", FOREVER)]));
    let given = node.wait_ready("given").await;
    let derived = node.wait_ready("derived").await;
    for name in ["given", "derived"] {
        fs::rename(node.manifest(name), node.manifest(&format!("{name}-renamed"))).unwrap();
    }
    let replaced = |p: &kubelet::api::Pod| status::uid(p) != status::uid(&derived) && status::is(p, "Ready");
    node.wait("derived", "another pod", replaced).await;
    let now = node.wait_ready("given").await;
    assert_eq!((status::uid(&now), status::id(&now, "c")), (status::uid(&given), status::id(&given, "c")));
    node.wait_clean().await;
    for name in ["given", "derived"] {
        fs::rename(node.manifest(&format!("{name}-renamed")), node.manifest(name)).unwrap();
    }
    node.finish().await;
}

#[tokio::test]
async fn another_image_restarts_the_container_in_place_under_a_given_uid() {
    let Some(mut node) = Node::start().await else { return };
    let mut p = pod("web", [sh("c", FOREVER), sh("beside", FOREVER)]);
    p["metadata"]["uid"] = format!("web-{}", node.name).into();
    node.put("web", &p);
    let before = node.wait_ready("web").await;
    p["spec"]["containers"][0]["image"] = Image::Entrypoint.reference().into();
    node.put("web", &p);
    let restarted = |p: &kubelet::api::Pod| status::restarts(p, "c") == 1 && status::is(p, "Ready");
    let after = node.wait("web", "restarted", restarted).await;
    assert_eq!(status::ip(&before), status::ip(&after), "the sandbox stays");
    assert_eq!(status::container(&before, "beside"), status::container(&after, "beside"));
    let image = |p| status::container(p, "c").unwrap().image_id.clone();
    assert_ne!(image(&before), image(&after));
    assert!(node.log().contains("Container c definition changed, will be restarted"));
    // What the image brings is there: the new one sets a variable.
    assert_eq!(node.exec(&after, "c", "echo $IMAGE_ENV").await.trim(), "set");
    node.finish().await;
}

#[tokio::test]
async fn a_stop_signal_of_its_own_reaches_the_container_and_its_status() {
    let config = json!({ "featureGates": { "ContainerStopSignals": true } });
    let options = Options { config: Some(config), ..Options::default() };
    let Some(mut node) = Node::start_with(options).await else { return };
    let told = node.dir.join("told");
    fs::create_dir(&told).unwrap();
    let script = "trap 'echo usr1 > /told/end; exit 0' USR1; trap 'echo term > /told/end; exit 0' TERM; \
                  echo > /told/begun; while :; do sleep 3600 & wait $!; done";
    let mut p = pod("web", [sh("c", script)]);
    p["spec"]["os"] = json!({ "name": "linux" });
    p["spec"]["terminationGracePeriodSeconds"] = 30.into();
    p["spec"]["containers"][0]["lifecycle"] = json!({ "stopSignal": "SIGUSR1" });
    p["spec"]["volumes"] = json!([{ "name": "told", "hostPath": { "path": told, "type": "Directory" } }]);
    p["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "told", "mountPath": "/told" }]);
    node.put("web", &p);
    let web = node.wait_ready("web").await;
    let seen =
        node.cri.container_status(status::id(&web, "c").unwrap(), false).await.unwrap().status.unwrap();
    // A runtime older than CRI of Kubernetes 1.33 knows the image's signal only.
    let known = seen.stop_signal() != cri::v1::Signal::RuntimeDefault;
    let (signal, trapped) = if known { (Some("SIGUSR1"), "usr1\n") } else { (None, "term\n") };
    assert_eq!(status::container(&web, "c").unwrap().stop_signal.as_deref(), signal);
    let begun = told.join("begun");
    eventually("the traps are set", async || if begun.exists() { Ok(()) } else { Err("not yet".to_owned()) })
        .await;
    node.remove("web");
    node.wait_gone("web").await;
    assert_eq!(fs::read_to_string(told.join("end")).unwrap(), trapped);
    if !known {
        node_e2e::skip("stop signals of containers: the runtime knows the image's only");
    }
    node.finish().await;
}
