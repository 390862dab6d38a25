//! The node the cases were recorded on, what the other rooms of the agent and the API server contribute to a request,
//! and the requests that the translation makes of it all.

use crate::case::{self, Case, POD_IP};
use cri::v1::Mount;
use golden::protojson::to_json;
use k8s_openapi::api::core::v1::{Container, Pod};
use kubelet::api::{Qos, spec};
use kubelet::event::ContainerList;
use kubelet::pod::translate::limits::container_resources;
use kubelet::pod::translate::{
    Allocatable, ContainerInput, EnvSources, ImageUser, NodeFacts, ResolvConf, RuntimeFeatures, SourceError,
    as_container, container_config, qos_class,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What the node resolves names with.
pub fn resolv_conf() -> ResolvConf {
    ResolvConf::parse(
        "nameserver 192.0.2.53\nnameserver 192.0.2.54\nsearch corp.example.test lab.example.test\n\
         options ndots:1 timeout:2\n",
    )
    .unwrap()
}

pub fn facts() -> NodeFacts {
    NodeFacts {
        node_name: case::NODE.into(),
        hostname: case::NODE.into(),
        node_ips: vec!["192.0.2.10".parse().unwrap()],
        cluster_domain: "cluster.local".into(),
        cluster_dns: vec!["10.96.0.10".parse().unwrap()],
        root_dir: "/var/lib/kubelet".into(),
        pod_logs_dir: "/var/log/pods".into(),
        cpu_cfs_quota: true,
        cfs_period_us: 100_000,
        pod_pids_limit: -1,
        allocatable: Allocatable {
            cpu_milli: 2000,
            memory_bytes: (24_684_096 << 10) - (100 << 20),
            // 99 % of the file system: the eviction threshold of the recorded node.
            ephemeral_bytes: 267_847_642_337,
        },
        capacity_memory: 24_684_096 << 10,
        hugepage_sizes: vec![2 << 20, 1 << 30],
        swap_accounting: true,
        runtime: RuntimeFeatures { supplemental_groups_policy: true, user_namespaces: false },
        ..NodeFacts::default()
    }
}

/// ConfigMaps and Secrets of the case's manifests, and the env files its init containers write.
struct Objects<'a>(&'a Case);

impl Objects<'_> {
    fn find(
        &self,
        kind: &str,
        lower: &'static str,
        name: &str,
    ) -> Result<BTreeMap<String, Vec<u8>>, SourceError> {
        let object = self.0.objects(kind).find(|o| o["metadata"]["name"] == name);
        let object = object.ok_or_else(|| SourceError::NotFound { kind: lower, name: name.to_owned() })?;
        let entries = |field: &str| {
            let map = object[field].as_object().cloned().unwrap_or_default();
            map.into_iter().map(|(k, v)| (k, v.as_str().unwrap_or_default().to_owned()))
        };
        let mut data: BTreeMap<_, _> = entries("stringData").map(|(k, v)| (k, v.into_bytes())).collect();
        for (key, value) in entries("data") {
            use base64::Engine as _;
            let value = match kind {
                "Secret" => base64::engine::general_purpose::STANDARD.decode(value).unwrap(),
                _ => value.into_bytes(),
            };
            data.insert(key, value);
        }
        Ok(data)
    }
}

impl EnvSources for Objects<'_> {
    fn config_map(&self, _: &str, name: &str) -> Result<BTreeMap<String, Vec<u8>>, SourceError> {
        self.find("ConfigMap", "configmap", name)
    }
    fn secret(&self, _: &str, name: &str) -> Result<BTreeMap<String, Vec<u8>>, SourceError> {
        self.find("Secret", "secret", name)
    }
    fn file(&self, _: &Pod, _: &str, _: &str) -> Result<Vec<u8>, SourceError> {
        Ok(match self.0.name.as_str() {
            "env-filekeyref" => b"KEY1='val 1'\nKEY2='x'\n".to_vec(),
            _ => b"KEY1=plain value\n".to_vec(),
        })
    }
}

/// The user of the image with this id: `nonroot` is the only one that names one.
fn image_user(image: &str) -> ImageUser {
    let uid = image.starts_with("sha256:b9721aa8").then_some(1234);
    ImageUser { uid, username: None }
}

pub fn cgroup_parent(pod: &Pod) -> String {
    let level = match qos_class(pod) {
        Qos::Guaranteed => "",
        Qos::Burstable => "/burstable",
        Qos::BestEffort => "/besteffort",
    };
    format!("/golden/kubepods{level}/pod{}", pod.metadata.uid.as_deref().unwrap_or_default())
}

/// The container of a name, from whichever list.
fn container(pod: &Pod, name: &str) -> Option<(ContainerList, Container, Option<String>)> {
    let spec = spec(pod);
    let in_list = |list: &[Container]| list.iter().find(|c| c.name == name).cloned();
    if let Some(c) = in_list(&spec.containers) {
        return Some((ContainerList::Regular, c, None));
    }
    if let Some(c) = in_list(spec.init_containers.as_deref().unwrap_or_default()) {
        return Some((ContainerList::Init, c, None));
    }
    let ephemeral = spec.ephemeral_containers.iter().flatten().find(|c| c.name == name)?;
    Some((ContainerList::Ephemeral, as_container(ephemeral), ephemeral.target_container_name.clone()))
}

/// What the volume room, the image room and the API server contribute, read off the recorded request.
pub struct Recorded {
    image: String,
    volumes: Vec<Mount>,
    termination_log: Option<String>,
    etc_hosts: Option<String>,
    services: Vec<(String, String)>,
}

impl Recorded {
    pub fn of(config: &Value) -> Self {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let mut out = Self {
            image: text(&config["image"]["image"]),
            volumes: Vec::new(),
            termination_log: None,
            etc_hosts: None,
            services: Vec::new(),
        };
        for mount in config["mounts"].as_array().into_iter().flatten() {
            let (path, host) = (text(&mount["container_path"]), text(&mount["host_path"]));
            if path == "/etc/hosts" && host.ends_with("/etc-hosts") {
                out.etc_hosts = Some(host);
            } else if host.starts_with("/var/lib/kubelet/pods/") && host.contains("/containers/") {
                out.termination_log = Some(host);
            } else {
                out.volumes.push(volume_mount(mount));
            }
        }
        for env in config["envs"].as_array().into_iter().flatten() {
            let name = text(&env["key"]);
            if ["KUBERNETES_", "MY_SVC_", "ONE_"].iter().any(|p| name.starts_with(p)) {
                out.services.push((name, text(&env["value"])));
            }
        }
        out
    }
}

fn volume_mount(mount: &Value) -> Mount {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let flag = |name: &str| mount[name].as_bool().unwrap_or(false);
    let propagation =
        cri::v1::MountPropagation::from_str_name(&text(&mount["propagation"])).unwrap_or_default();
    let image = mount["image"].as_object().map(|image| cri::v1::ImageSpec {
        image: text(&image["image"]),
        user_specified_image: text(&image["user_specified_image"]),
        annotations: serde_json::from_value(image["annotations"].clone()).unwrap_or_default(),
        ..Default::default()
    });
    Mount {
        container_path: text(&mount["container_path"]),
        host_path: text(&mount["host_path"]),
        readonly: flag("readonly"),
        recursive_read_only: flag("recursive_read_only"),
        propagation: propagation.into(),
        image,
        image_sub_path: text(&mount["image_sub_path"]),
        ..Mount::default()
    }
}

fn pod_ips(pod: &Pod, facts: &NodeFacts) -> Vec<IpAddr> {
    match spec(pod).host_network {
        Some(true) => facts.node_ips.clone(),
        _ => vec![POD_IP.parse().unwrap()],
    }
}

pub fn build_container(
    case: &Case,
    pod: &Pod,
    name: &str,
    attempt: u32,
    recorded: &Recorded,
) -> Result<Value, String> {
    let facts = facts();
    let (list, container, target) =
        container(pod, name).ok_or_else(|| format!("no container {name} in the manifest"))?;
    let target_id = target.map(|t| format!("ctr-{t}-0"));
    let config = container_config(&ContainerInput {
        pod,
        list,
        container: &container,
        restart_count: attempt,
        image_ref: &recorded.image,
        image: &image_user(&recorded.image),
        pod_ips: &pod_ips(pod, &facts),
        mounts: &recorded.volumes,
        termination_log_host_path: recorded.termination_log.as_deref(),
        etc_hosts_host_path: recorded.etc_hosts.as_deref(),
        service_env: &recorded.services,
        env_sources: &Objects(case),
        target_id: target_id.as_deref(),
        facts: &facts,
    });
    to_json("ContainerConfig", &config.map_err(|e| e.to_string())?).map_err(|e| e.to_string())
}

/// `linux.resources` of one container.
pub fn build_resources(pod: &Pod, name: &str, facts: &NodeFacts) -> Value {
    let (_, container, _) = container(pod, name).unwrap();
    let ours = container_resources(pod, &container, facts);
    to_json("LinuxContainerResources", &ours).unwrap()
}
