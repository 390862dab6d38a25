//! Containers that tell on the agent: each holds a lock for its pod's name, so that two at once are noticed.

use crate::manifest::{pod, sh};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A directory of the host in which marked pods write.
#[derive(Debug)]
pub struct Marks(PathBuf);

impl Marks {
    /// Makes the directory below `dir`.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(dir: &Path) -> Self {
        let path = dir.join("marks");
        fs::create_dir_all(path.join("bin")).unwrap();
        copy_flock(&path.join("bin"));
        Self(path)
    }

    /// A pod that runs until it is told to end. `version` makes another pod of the same name; its UID is `name-vVERSION`.
    pub fn pod(&self, name: &str, version: u32) -> Value {
        let script = format!(
            "exec 9>/marks/{name}.lock\n\
             cd /marks/bin && ./loader --library-path . ./flock -n 9 || {{ echo {name} version {version} ran beside another one >> /marks/violations; exit 1; }}\n\
             trap 'echo stop {version} >> /marks/{name}.log; exit 0' TERM\n\
             echo start {version} >> /marks/{name}.log\n\
             while :; do sleep 3600 & wait $!; done"
        );
        let mut p = pod(name, [sh("c", &script)]);
        p["metadata"]["uid"] = Self::uid(name, version).into();
        p["spec"]["volumes"] = json!([
            { "name": "marks", "hostPath": { "path": self.0, "type": "Directory" } },
            { "name": "scratch", "emptyDir": { "medium": "Memory" } },
        ]);
        p["spec"]["containers"][0]["volumeMounts"] = json!([
            { "name": "marks", "mountPath": "/marks" },
            { "name": "scratch", "mountPath": "/scratch" },
        ]);
        p
    }

    /// The UID of that pod.
    pub fn uid(name: &str, version: u32) -> String {
        format!("{name}-v{version}")
    }

    /// Panics when two instances of one pod's name ran at once.
    ///
    /// # Panics
    /// Then.
    pub fn none_ran_twice_at_once(&self) {
        let violations = fs::read_to_string(self.0.join("violations")).unwrap_or_default();
        assert_eq!(violations, "", "containers ran beside each other");
    }

    /// What the pods of that name have done, in order.
    pub fn history(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.0.join(format!("{name}.log"))).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// Debian's busybox has no flock: the host's, with the libraries and the loader it was linked for.
pub(crate) fn copy_flock(into: &Path) {
    let flock = Path::new("/usr/bin/flock");
    let said = std::process::Command::new("ldd").arg(flock).output().expect("ldd runs");
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, and for the loader `/lib64/ld-linux-x86-64.so.2 (0x…)`.
    for file in said.split_whitespace().filter(|word| word.starts_with('/')) {
        let file = Path::new(file);
        let name = file.file_name().unwrap().to_string_lossy();
        let name = if name.starts_with("ld-") { "loader".into() } else { name };
        fs::copy(file, into.join(&*name)).expect("a library is copied");
    }
    fs::copy(flock, into.join("flock")).expect("flock is copied");
    assert!(into.join("loader").exists(), "ldd {} names no loader: {said}", flock.display());
}

/// The running containers of the runtime: by the UID of their pod, the ids.
pub async fn running(runtime: &cri::Client) -> Result<HashMap<String, HashSet<String>>, String> {
    let mut all: HashMap<String, HashSet<String>> = HashMap::new();
    for c in runtime.list_containers(None).await.map_err(|e| e.to_string())? {
        if c.state() == cri::v1::ContainerState::ContainerRunning {
            let uid = c.labels.get("io.kubernetes.pod.uid").cloned().unwrap_or_default();
            all.entry(uid).or_default().insert(c.id);
        }
    }
    Ok(all)
}

/// Numbers that look random and are the same for the same seed (xorshift64*).
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// The seed of `STEVEDORE_SEED`, else one of the clock; it is printed, so that a failure can be repeated.
    ///
    /// # Panics
    /// When the variable is no number.
    pub fn from_env() -> Self {
        let given =
            std::env::var("STEVEDORE_SEED").ok().map(|s| s.parse().expect("STEVEDORE_SEED is a number"));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seed = given.unwrap_or_else(|| now.map_or(1, |d| d.as_nanos() as u64 % 1_000_000_007) | 1);
        eprintln!("STEVEDORE_SEED={seed}");
        Self(seed)
    }

    /// From 0 to `below`, without it.
    pub fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below
    }
}

/// A number from the environment.
pub fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
