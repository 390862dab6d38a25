//! The commands beside ADD: DEL again and again, CHECK, GC, STATUS, VERSION; versions; errors as runtimes see them.

use cni::runtime::ValidAttachment;
use cni::{CniError, CniResult, Version};
use serde_json::{Value, json};

use crate::lab::{Lab, ports};

fn error(out: &std::process::Output) -> CniError {
    assert!(!out.status.success(), "{out:?}");
    serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"))
}

#[test]
fn del_succeeds_however_often_and_whatever_is_gone() {
    let Some(lab) = Lab::new("del_succeeds_however_often_and_whatever_is_gone") else { return };
    let pod = lab.pod(ports(&[(8080, 80, "tcp")]));
    lab.del(&pod);
    lab.assert_nothing_is_left();
    lab.del(&pod);
    // Before any ADD, with a namespace that is gone, without a result.
    let mut other = lab.pod(ports(&[(8080, 80, "tcp")]));
    other.ns.remove();
    lab.call(async |r| r.del(&lab.list, &other.at, None).await).unwrap();
    lab.assert_nothing_is_left();
    other.at.netns = None;
    lab.call(async |r| r.del(&lab.list, &other.at, None).await).unwrap();
    lab.node.ip("link del stvd0");
    lab.del(&other);
}

#[test]
fn del_cleans_up_even_with_a_configuration_that_became_wrong() {
    let Some(lab) = Lab::new("del_cleans_up_even_with_a_configuration_that_became_wrong") else { return };
    let pod = lab.pod(json!([]));
    let mut stdin = lab.bridge_stdin();
    stdin["mtu"] = json!("wide");
    stdin["ipam"]["ranges"] = json!([]);
    let out = lab.plugin("bridge", "DEL", &pod.at, &stdin);
    assert!(out.status.success(), "{out:?}");
    lab.assert_nothing_is_left();
}

#[test]
fn check_sees_what_somebody_changed() {
    let Some(lab) = Lab::new("check_sees_what_somebody_changed") else { return };
    let check = |pod: &crate::lab::Pod| {
        lab.call(async |r| r.check(&lab.list, &pod.at, Some(&pod.result)).await).map_err(|e| e.to_string())
    };
    type Damage<'a> = &'a dyn Fn(&crate::lab::Pod);
    let breakages: [(&str, Damage<'_>); 6] = [
        ("address", &|p| drop(p.ns.ip(&format!("addr del {}/24 dev eth0", p.ip4)))),
        ("route", &|p| drop(p.ns.ip("-6 route del default"))),
        ("down", &|p| drop(p.ns.ip("link set eth0 down"))),
        ("no port", &|p| drop(lab.node.ip(&format!("link set {} nomaster", p.result.interfaces[1].name)))),
        ("masquerading of 10.88.0.0/24", &|_| {
            let chain = "masq-10.88.0.0/24";
            let args =
                ["netns", "exec", &lab.node.name, "nft", "delete", "chain", "inet", "stevedore_cni", chain];
            assert!(std::process::Command::new("ip").args(args).status().unwrap().success());
        }),
        ("8080", &|_| {
            let args =
                ["netns", "exec", &lab.node.name, "nft", "flush", "map", "inet", "stevedore_cni", "ports4"];
            assert!(std::process::Command::new("ip").args(args).status().unwrap().success());
        }),
    ];
    for (word, damage) in breakages {
        let pod = lab.pod(ports(&[(8080, 80, "tcp")]));
        check(&pod).unwrap();
        damage(&pod);
        let err = check(&pod).unwrap_err();
        assert!(err.contains(word), "{word}: {err}");
        lab.del(&pod);
    }
    lab.assert_nothing_is_left();
}

#[test]
fn gc_removes_what_no_valid_attachment_owns_and_nothing_else() {
    let Some(mut lab) = Lab::new("gc_removes_what_no_valid_attachment_owns_and_nothing_else") else { return };
    lab.list.version = Version::V1_1_0;
    let keep = lab.pod(ports(&[(8080, 80, "tcp")]));
    keep.ns.serve("0.0.0.0:80");
    let _lost = [lab.pod(ports(&[(8081, 80, "tcp")])), lab.pod(ports(&[(8082, 80, "udp")]))];
    let valid =
        [ValidAttachment { container_id: keep.at.container_id.clone(), ifname: keep.at.ifname.clone() }];
    lab.call(async |r| r.gc(&lab.list, &valid).await).unwrap();
    assert_eq!(lab.pod_links(), [keep.result.interfaces[1].name.clone()]);
    assert_eq!(lab.leases().len(), 2);
    assert!(lab.elements().iter().all(|(_, e)| e.comment.starts_with(&keep.at.container_id)));
    lab.outside.ask(&format!("{}:8080", crate::lab::NODE4)).unwrap();
    lab.call(async |r| r.gc(&lab.list, &[]).await).unwrap();
    lab.assert_nothing_is_left();
}

#[test]
fn gc_without_a_list_is_refused_rather_than_removing_everything() {
    let Some(mut lab) = Lab::new("gc_without_a_list_is_refused_rather_than_removing_everything") else {
        return;
    };
    lab.list.version = Version::V1_1_0;
    let pod = lab.pod(json!([]));
    let err = error(&lab.plugin("bridge", "GC", &pod.at, &lab.bridge_stdin()));
    assert!(err.msg.contains("cni.dev/valid-attachments"), "{err}");
    assert_eq!(lab.leases().len(), 2);
}

#[test]
fn status_and_version_answer_every_plugin() {
    let Some(mut lab) = Lab::new("status_and_version_answer_every_plugin") else { return };
    lab.list.version = Version::V1_1_0;
    lab.call(async |r| r.status(&lab.list).await).unwrap();
    for plugin in &lab.list.plugins {
        let versions = lab.call(async |r| r.versions(&lab.list, plugin).await).unwrap();
        assert_eq!(versions, ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    }
}

#[test]
fn every_version_of_the_specification_works_through_the_chain() {
    let Some(mut lab) = Lab::new("every_version_of_the_specification_works_through_the_chain") else {
        return;
    };
    for version in Version::ALL {
        lab.list.version = version;
        let pod = lab.pod(ports(&[(8080, 80, "tcp")]));
        assert_eq!(pod.result.ips.len(), 2, "{version}");
        let out = lab.plugin("bridge", "DEL", &pod.at, &lab.bridge_stdin());
        assert!(out.status.success(), "{out:?}");
        lab.del(&pod);
    }
    lab.assert_nothing_is_left();
}

#[test]
fn host_local_works_as_a_plugin_of_its_own_and_says_when_nothing_is_free() {
    let Some(lab) = Lab::new("host_local_works_as_a_plugin_of_its_own_and_says_when_nothing_is_free") else {
        return;
    };
    let pod = lab.pod(json!([]));
    let conf = |ip: &str| {
        json!({"cniVersion": "1.0.0", "name": "small", "type": "x", "args": {"cni": {"ips": [ip]}},
            "ipam": {"type": "host-local", "dataDir": lab.dir.path().join("leases"), "subnet": "10.5.0.0/29"}})
    };
    let add = |id: &str, ip: &str| {
        let at = cni::Attachment { container_id: id.into(), ..pod.at.clone() };
        let mut conf = conf(ip);
        if ip.is_empty() {
            conf.as_object_mut().unwrap().remove("args");
        }
        lab.plugin("host-local", "ADD", &at, &conf)
    };
    let result = |out: std::process::Output| {
        let value: Value = serde_json::from_slice(&out.stdout).unwrap();
        CniResult::from_value(&value, Version::V1_0_0, "result").unwrap().ips[0].address.to_string()
    };
    assert_eq!(result(add("a", "10.5.0.4")), "10.5.0.4/29");
    assert_eq!(error(&add("b", "10.5.0.4")).code, cni::code::CONFLICT);
    assert_eq!(error(&add("b", "10.6.0.4")).code, cni::code::INVALID_NETWORK_CONFIG);
    for id in ["b", "c", "d", "e"] {
        assert!(add(id, "").status.success());
    }
    let err = error(&add("f", ""));
    assert!(err.code == cni::code::TRY_AGAIN_LATER && err.msg.contains("10.5.0.1-10.5.0.6"), "{err}");
}

#[test]
fn errors_reach_the_runtime_with_code_and_words() {
    let Some(lab) = Lab::new("errors_reach_the_runtime_with_code_and_words") else { return };
    let pod = lab.pod(json!([]));
    let stdin = lab.bridge_stdin();
    let with = |change: &dyn Fn(&mut cni::Attachment, &mut Value)| {
        let (mut at, mut stdin) = (pod.at.clone(), stdin.clone());
        change(&mut at, &mut stdin);
        error(&lab.plugin("bridge", "ADD", &at, &stdin))
    };
    let again = with(&|_, _| {});
    assert!(again.code == cni::code::CONFLICT && again.msg.contains("eth0 exists already"), "{again}");
    assert_eq!(with(&|_, s| s["cniVersion"] = json!("9.0.0")).code, cni::code::INCOMPATIBLE_VERSION);
    assert_eq!(with(&|_, s| *s = json!([])).code, cni::code::DECODING_FAILURE);
    assert_eq!(with(&|a, _| a.netns = None).code, cni::code::INVALID_ENVIRONMENT);
    assert_eq!(with(&|a, _| a.container_id = "../x".into()).code, cni::code::INVALID_ENVIRONMENT);
    assert_eq!(with(&|a, _| a.ifname = "sixteen-bytes-xx".into()).code, cni::code::INVALID_ENVIRONMENT);
    assert_eq!(with(&|a, _| a.netns = Some("/nowhere".into())).code, cni::code::UNKNOWN_CONTAINER);
    assert_eq!(with(&|a, _| a.netns = Some(lab.node.path())).code, cni::code::INVALID_ENVIRONMENT);
    assert_eq!(with(&|_, s| s["vlan"] = json!(3)).code, cni::code::UNSUPPORTED_FIELD);
    // None of this took anything from the pod that is there.
    pod.ns.serve(&format!("{}:80", pod.ip4));
    lab.node.ask(&format!("{}:80", pod.ip4)).unwrap();
    assert_eq!((lab.leases().len(), lab.pod_links().len()), (2, 1));
    lab.del(&pod);
    lab.assert_nothing_is_left();
}

#[test]
fn purge_removes_the_bridge_the_leases_and_the_table() {
    let Some(lab) = Lab::new("purge_removes_the_bridge_the_leases_and_the_table") else { return };
    let _pods = [lab.pod(ports(&[(8080, 80, "tcp")])), lab.pod(json!([]))];
    let file = lab.dir.path().join("net.conflist");
    for _ in 0..2 {
        let mut run = std::process::Command::new(crate::lab::BINARY);
        run.arg("purge").arg(&file);
        let out = lab.node.net.run(|| run.output()).unwrap().unwrap();
        assert!(out.status.success(), "{out:?}");
        lab.assert_nothing_is_left();
        assert!(!lab.dir.path().join("leases").join(&lab.network).exists());
        assert!(!lab.node.ip("link show").contains("stvd0"));
        let tables = std::process::Command::new("ip")
            .args(["netns", "exec", &lab.node.name, "nft", "list", "tables"])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&tables.stdout), "");
    }
}
