//! A stand-in for systemd's manager, for tests: it makes and removes plain directories and remembers what it was told.

use crate::cgroup::layout;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use zbus::connection::Builder;
use zbus::object_server::SignalEmitter;
use zbus::zvariant::{OwnedObjectPath, OwnedValue};

/// What it was told and how it answers.
#[derive(Debug, Default)]
pub struct State {
    /// Units by name, with their properties in words.
    pub units: BTreeMap<String, BTreeMap<String, String>>,
    /// The calls, as `Method unit`.
    pub calls: Vec<String>,
    /// How jobs end, where not with `done`.
    pub jobs_end: Option<String>,
    next_job: u32,
}

/// The manager while it answers.
#[derive(Debug)]
pub struct Fake {
    pub state: Arc<Mutex<State>>,
    tree: PathBuf,
    task: JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    /// Answers on `socket` and makes cgroups in `tree`; knows what an earlier one knew.
    pub fn start(socket: &Path, tree: &Path, state: Arc<Mutex<State>>) -> Self {
        // One that was killed leaves it.
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let manager = Manager { tree: tree.to_owned(), state: state.clone() };
        let task = tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                let served = Builder::unix_stream(stream)
                    .server(zbus::Guid::generate())
                    .unwrap()
                    .p2p()
                    .serve_at("/org/freedesktop/systemd1", manager.clone())
                    .unwrap()
                    .serve_at("/org/freedesktop/DBus", Bus)
                    .unwrap()
                    .build();
                // Dropped with this task, so that its clients see it end.
                open.extend(served.await.ok());
            }
        });
        Self { state, tree: tree.to_owned(), task }
    }

    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().calls)
    }

    /// The names of the properties a unit was given.
    pub fn properties(&self, unit: &str) -> Vec<String> {
        self.state.lock().unwrap().units[unit].keys().cloned().collect()
    }

    pub fn property(&self, unit: &str, name: &str) -> String {
        self.state.lock().unwrap().units[unit][name].clone()
    }

    pub fn dir(&self, unit: &str) -> PathBuf {
        self.tree.join(&layout::slice_path(unit)[1..])
    }
}

/// A cgroup of plain files, as far as this room reads them.
pub fn plain_cgroup(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    for (file, text) in [("cgroup.subtree_control", ""), ("cpuset.cpus.effective", "0-1\n")] {
        if !dir.join(file).exists() {
            std::fs::write(dir.join(file), text).unwrap();
        }
    }
}

#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.freedesktop.systemd1")]
enum Refusal {
    #[zbus(error)]
    Bus(zbus::Error),
    UnitExists(String),
    NoSuchUnit(String),
}

#[derive(Clone, Debug)]
struct Manager {
    tree: PathBuf,
    state: Arc<Mutex<State>>,
}

impl Manager {
    fn make(&self, unit: &str) {
        let path = layout::slice_path(unit);
        for (end, _) in path.match_indices('/').skip(1) {
            plain_cgroup(&self.tree.join(&path[1..end]));
        }
        plain_cgroup(&self.tree.join(&path[1..]));
    }

    fn told(&self, method: &str, unit: &str) {
        self.state.lock().unwrap().calls.push(format!("{method} {unit}"));
    }

    /// The end of a job is told before the job's caller knows it by name.
    async fn job(&self, emitter: &SignalEmitter<'_>, unit: &str) -> OwnedObjectPath {
        let (id, how) = {
            let mut state = self.state.lock().unwrap();
            state.next_job += 1;
            (state.next_job, state.jobs_end.clone().unwrap_or_else(|| "done".to_owned()))
        };
        let job = OwnedObjectPath::try_from(format!("/org/freedesktop/systemd1/job/{id}")).unwrap();
        let other = OwnedObjectPath::try_from("/org/freedesktop/systemd1/job/0").unwrap();
        Self::job_removed(emitter, 0, other, unit, "canceled").await.unwrap();
        Self::job_removed(emitter, id, job.clone(), unit, &how).await.unwrap();
        job
    }
}

/// The bus, as far as one client needs it.
struct Bus;

#[zbus::interface(name = "org.freedesktop.DBus")]
impl Bus {
    async fn hello(&self) -> String {
        ":1.1".to_owned()
    }

    async fn add_match(&self, _rule: &str) {}
}

fn in_words(properties: Vec<(String, OwnedValue)>) -> BTreeMap<String, String> {
    let words = |value: OwnedValue| value.to_string().trim_start_matches("uint64 ").to_owned();
    properties.into_iter().map(|(name, value)| (name, words(value))).collect()
}

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    async fn subscribe(&self) {}

    async fn start_transient_unit(
        &self,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
        name: &str,
        _mode: &str,
        properties: Vec<(String, OwnedValue)>,
        _others: Vec<(String, Vec<(String, OwnedValue)>)>,
    ) -> Result<OwnedObjectPath, Refusal> {
        self.told("StartTransientUnit", name);
        let refused = self.state.lock().unwrap().jobs_end.is_some();
        if self.state.lock().unwrap().units.contains_key(name) {
            return Err(Refusal::UnitExists(format!(
                "Unit {name} was already loaded or has a fragment file."
            )));
        }
        if !refused {
            self.state.lock().unwrap().units.insert(name.to_owned(), in_words(properties));
            self.make(name);
        }
        Ok(self.job(&emitter, name).await)
    }

    async fn set_unit_properties(
        &self,
        name: &str,
        _runtime: bool,
        properties: Vec<(String, OwnedValue)>,
    ) -> Result<(), Refusal> {
        self.told("SetUnitProperties", name);
        let mut state = self.state.lock().unwrap();
        let unit = state.units.get_mut(name).ok_or_else(|| Refusal::NoSuchUnit(name.to_owned()))?;
        unit.extend(in_words(properties));
        Ok(())
    }

    async fn start_unit(
        &self,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
        name: &str,
        _mode: &str,
    ) -> Result<OwnedObjectPath, Refusal> {
        self.told("StartUnit", name);
        self.make(name);
        Ok(self.job(&emitter, name).await)
    }

    async fn stop_unit(
        &self,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
        name: &str,
        _mode: &str,
    ) -> Result<OwnedObjectPath, Refusal> {
        self.told("StopUnit", name);
        if self.state.lock().unwrap().units.remove(name).is_none() {
            return Err(Refusal::NoSuchUnit(format!("Unit {name} not loaded.")));
        }
        std::fs::remove_dir_all(self.tree.join(&layout::slice_path(name)[1..])).unwrap();
        Ok(self.job(&emitter, name).await)
    }

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: OwnedObjectPath,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()>;
}
