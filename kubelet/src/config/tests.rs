//! The room as a whole: what `load` makes of a command line and files.

use super::testing::golden;
use super::*;
use std::fs;
use tempfile::TempDir;

/// A start with a configuration file of this text (its head added) and these flags.
struct Start {
    dir: TempDir,
    args: Vec<String>,
}

impl Start {
    fn with(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.yaml");
        fs::write(&file, format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{text}")).unwrap();
        Self { dir, args: vec![format!("--config={}", file.display())] }
    }
    fn flags(mut self, flags: &[&str]) -> Self {
        self.args.extend(flags.iter().map(ToString::to_string));
        self
    }
    fn load(self) -> Result<Loaded, Vec<String>> {
        let Start { dir: _dir, args } = self;
        run(args)
    }
}

fn run(args: Vec<String>) -> Result<Loaded, Vec<String>> {
    match load(args) {
        Ok(Command::Run(loaded)) => Ok(*loaded),
        Ok(Command::Print(text)) => panic!("printed {text}"),
        Err(errors) => Err(errors.iter().map(ToString::to_string).collect()),
    }
}

fn flags(flags: &[&str]) -> Result<Loaded, Vec<String>> {
    run(flags.iter().map(ToString::to_string).collect())
}

#[test]
fn the_served_configuration_is_the_stock_kubelets() {
    let Some(golden) = golden("kubelet/configz.json") else { return };
    let mut loaded = Start::with(
        "failCgroupV1: false\ncgroupRoot: /golden\ncgroupDriver: cgroupfs\n\
         authentication: {x509: {clientCAFile: /CA.crt}}\ncontainerRuntimeEndpoint: unix:///CRI.sock\n",
    )
    .flags(&["--v=2"])
    .load()
    .unwrap();
    // The server fills these in once it has made its certificate.
    loaded.config.tls_cert_file = "/var/lib/kubelet/pki/kubelet.crt".into();
    loaded.config.tls_private_key_file = "/var/lib/kubelet/pki/kubelet.key".into();
    let served = serde_json::to_value(&loaded.config).unwrap();
    let want = &golden["kubeletconfig"];
    for (field, value) in want.as_object().unwrap() {
        assert_eq!(served.get(field), Some(value), "{field}");
    }
    assert_eq!(&served, want, "fields that the stock kubelet does not show");
}

#[test]
fn every_served_field_is_accepted_back() {
    let Some(golden) = golden("kubelet/configz.json") else { return };
    let want = golden["kubeletconfig"].clone();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    let mut again = want.clone();
    // Asking for these needs an API server.
    again["authentication"]["webhook"].as_object_mut().unwrap().remove("enabled");
    again["authorization"].as_object_mut().unwrap().remove("mode");
    fs::write(&file, again.to_string()).unwrap();
    let loaded = run(vec![format!("--config={}", file.display())]).unwrap();
    assert_eq!(serde_json::to_value(&loaded.config).unwrap(), want);
}

#[test]
fn without_a_file_the_legacy_defaults_hold() {
    let loaded = flags(&[]).unwrap();
    assert_eq!(loaded.config.read_only_port, 10255);
    assert_eq!(loaded.access, Access { anonymous: true, client_ca_file: None });
    assert!(loaded.config.eviction_hard.is_empty());
    assert_eq!(loaded.warnings, [""; 0]);
}

#[test]
fn with_a_file_nobody_is_let_in_who_was_not_named() {
    let loaded = Start::with("").load().unwrap();
    assert_eq!(loaded.config.read_only_port, 0);
    assert!(!loaded.access.anonymous);
    assert!(
        loaded.warnings.iter().any(|w| w.starts_with("nobody can use the HTTPS API")),
        "{:?}",
        loaded.warnings
    );
    let loaded = Start::with("authentication: {anonymous: {enabled: true}}").load().unwrap();
    assert!(loaded.access.anonymous);
    assert_eq!(loaded.warnings, [""; 0]);
}

#[test]
fn asking_an_api_server_that_is_not_there_is_refused() {
    assert_eq!(
        Start::with("authentication: {webhook: {enabled: true}}")
            .flags(&["--authorization-mode=Webhook"])
            .load()
            .unwrap_err(),
        [
            "not supported yet: authentication.webhook.enabled (--authentication-token-webhook): true: without an \
             API server there is nobody to ask; only false is accepted",
            "not supported yet: authorization.mode (--authorization-mode): \"Webhook\": without an API server there \
             is nobody to ask; only \"AlwaysAllow\" is accepted",
        ]
    );
    assert_eq!(
        flags(&["--kubeconfig=/k", "--bootstrap-kubeconfig=/b"]).unwrap_err(),
        [
            "not supported yet: --bootstrap-kubeconfig: \"/b\": joining a cluster is not supported yet; only nothing is accepted",
            "not supported yet: --kubeconfig: \"/k\": joining a cluster is not supported yet; only nothing is accepted",
        ]
    );
}

#[test]
fn what_is_not_supported_yet_is_refused_by_name_with_what_is_accepted() {
    assert_eq!(
        Start::with(
            "cpuManagerPolicy: static\n\
             shutdownGracePeriod: 30s\nfeatureGates: {CRIListStreaming: true, WatchList: false}\n"
        )
        .flags(&["--lock-file=/l", "--housekeeping-interval=1s", "--storage-driver-user=x"])
        .load()
        .unwrap_err(),
        [
            "not supported yet: cpuManagerPolicy (--cpu-manager-policy): \"static\": CPUs are not assigned to containers yet; only \"none\" is accepted",
            "not supported yet: shutdownGracePeriod: \"30s\": node shutdown is not handled yet; only \"0s\" is accepted",
            "not supported yet: --housekeeping-interval: \"1s\": the agent has no such statistics library; only \"10s\" is accepted",
            "not supported yet: --lock-file: \"/l\": the agent takes no lock file yet; only nothing is accepted",
            "not supported yet: --storage-driver-user: \"x\": the agent has no such statistics library; only \"root\" is accepted",
            "not supported yet: featureGates.CRIListStreaming (--feature-gates): true: the agent cannot switch this feature; only false is accepted",
        ]
    );
}

#[test]
fn every_flag_may_be_given_with_its_default() {
    let args: Vec<String> = super::flags::FLAGS
        .iter()
        .filter(|f| !matches!(f.name, "help" | "version" | "config" | "config-dir"))
        .filter_map(|f| {
            let text = super::flags::default_text(f);
            let text = text.trim_matches(['"', '[', ']']);
            (!text.is_empty()).then(|| format!("--{}={text}", f.name))
        })
        .collect();
    assert!(args.len() > 70, "{}", args.len());
    let loaded = run(args).unwrap();
    assert_eq!(loaded.config, flags(&[]).unwrap().config);
    assert!(loaded.warnings.iter().all(|w| w.contains("deprecated")), "{:?}", loaded.warnings);
}

#[test]
fn flags_win_over_drop_ins_and_those_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| {
        fs::write(dir.path().join(name), format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{text}")).unwrap();
    };
    put("10.conf", "maxPods: 2\npodPidsLimit: 2\nfeatureGates: {WatchList: false, EventedPLEG: true}");
    let loaded =
        Start::with("maxPods: 1\npodPidsLimit: 1\npodsPerCore: 1\nsystemReserved: {cpu: 1, memory: 1Gi}")
            .flags(&[&format!("--config-dir={}", dir.path().display())])
            .load();
    assert!(loaded.is_err(), "a number where text is due");
    let loaded =
        Start::with("maxPods: 1\npodPidsLimit: 1\npodsPerCore: 1\nsystemReserved: {cpu: '1', memory: 1Gi}")
            .flags(&[
                &format!("--config-dir={}", dir.path().display()),
                "--max-pods=3",
                "--system-reserved=cpu=2",
                "--feature-gates=EventedPLEG=false",
            ])
            .load()
            .unwrap();
    let c = &loaded.config;
    assert_eq!((c.max_pods, c.pod_pids_limit, c.pods_per_core), (3, 2, 1));
    assert_eq!(c.system_reserved.get("cpu").map(String::as_str), Some("2"));
    assert_eq!(c.system_reserved.len(), 1, "a flag replaces the mapping");
    assert!(!loaded.gates.enabled("WatchList"), "feature gates add up");
    assert!(!loaded.gates.enabled("EventedPLEG"));
    assert!(loaded.warnings.iter().any(|w| {
        w == "Flag --max-pods has been deprecated, set maxPods in the file given by --config instead"
    }));
}

#[test]
fn defaults_follow_other_fields_of_the_file_but_not_flags() {
    let loaded = Start::with("nodeStatusUpdateFrequency: 20s\nmaxParallelImagePulls: 3").load().unwrap();
    assert_eq!(loaded.config.node_status_report_frequency.to_string(), "20s");
    assert!(!loaded.config.serialize_image_pulls);
    let loaded = Start::with("").flags(&["--node-status-update-frequency=20s"]).load().unwrap();
    assert_eq!(loaded.config.node_status_report_frequency.to_string(), "5m0s");
    let loaded = Start::with(
        "port: 0\nhealthzPort: 0\nenforceNodeAllocatable: []\npodPidsLimit: -7\nsyncFrequency: 0s",
    )
    .load()
    .unwrap();
    let c = &loaded.config;
    assert_eq!((c.port, c.healthz_port, c.pod_pids_limit), (10250, 0, -1));
    assert_eq!(c.enforce_node_allocatable, [""; 0]);
    assert_eq!(c.sync_frequency.to_string(), "1m0s");
}

#[test]
fn eviction_thresholds_are_replaced_or_merged_as_asked() {
    let text = "evictionHard: {memory.available: 1Gi}\n";
    let loaded = Start::with(text).load().unwrap();
    assert_eq!(loaded.config.eviction_hard.len(), 1);
    let loaded = Start::with(&format!("{text}mergeDefaultEvictionSettings: true")).load().unwrap();
    assert_eq!(loaded.config.eviction_hard.len(), 5);
    assert_eq!(loaded.config.eviction_hard["memory.available"], "1Gi");
}

#[test]
fn help_and_version_print_and_start_nothing() {
    let printed = |args: &[&str]| match load(args.iter().map(ToString::to_string)) {
        Ok(Command::Print(text)) => text,
        other => panic!("{other:?}"),
    };
    assert!(printed(&["-h"]).contains("--root-dir string"));
    assert_eq!(printed(&["--version"]), "Kubernetes v1.36.2\n");
    assert!(printed(&["--version=raw"]).starts_with("version.Info{Major:\"1\""));
    assert!(flags(&["--version=false"]).is_ok());
}

#[test]
fn directories_become_absolute() {
    let here = std::env::current_dir().unwrap();
    let loaded = flags(&["--root-dir=a/b", "--cert-dir=/c"]).unwrap();
    assert_eq!(loaded.flags.root_dir, here.join("a/b").display().to_string());
    assert_eq!(loaded.flags.cert_dir, "/c");
}

proptest::proptest! {
    #[test]
    fn no_command_line_makes_the_parser_panic(args in proptest::collection::vec(
        "(-|--)?(v|port|vmodule|register-with-taints|reserved-memory|cluster-dns|eviction-hard|x)?=?[-a-z0-9:=,<\";é%. ]{0,12}", 0..5,
    )) {
        // Without files: what the words would name is not to be read.
        let _ = super::flags::parse(args, &mut Vec::new());
    }

    #[test]
    fn no_document_makes_the_decoder_panic(text in "([a-zA-Z]{1,3}|port|clusterDNS|authentication|logging|: |- |[0-9.e]{1,5}|[\\[\\]{},\\n\"'&*!é])*") {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c");
        fs::write(&file, text).unwrap();
        super::file::read(Some(&file), None, &mut Vec::new());
    }
}
