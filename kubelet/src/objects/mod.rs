//! ConfigMaps and Secrets: what pods refer to and do not hold themselves.
//!
//! Pod actors ask for the environment of a container, the volume room for the files of a volume; both wait here for an
//! object to appear or to change. Where objects come from is a [`Source`]: a directory (`file`, `--standalone-objects`),
//! later the API server. The room knows nothing of pods and never calls back.
//!
//! ```text
//!   source ──watch<State> per object──▶ Objects ──get──▶ who needs it now
//!                                               ──changed──▶ who waits for it or shows it
//! ```
//!
//! An object that is not known yet (the directory has not been read) is waited for: only a source that has told all says
//! that something is not there.

mod decode;
pub mod file;
pub mod shelf;

pub use decode::object;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use tokio::sync::watch;

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `ConfigMap`
    ConfigMap,
    /// `Secret`
    Secret,
}

impl Kind {
    /// The API's text.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::ConfigMap => "ConfigMap",
            Kind::Secret => "Secret",
        }
    }
    /// As messages about a missing one have it.
    pub fn lower_case(self) -> &'static str {
        match self {
            Kind::ConfigMap => "configmap",
            Kind::Secret => "secret",
        }
    }
}

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// `kind`
    pub kind: Kind,
    /// `metadata.namespace`
    pub namespace: Arc<str>,
    /// `metadata.name`
    pub name: Arc<str>,
}

impl Key {
    /// Of its parts.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind.as_str(), self.namespace, self.name)
    }
}

/// A ConfigMap or Secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Object {
    /// Which.
    pub key: Key,
    /// `data`; of a Secret decoded, with `stringData` laid over it.
    pub data: BTreeMap<String, Arc<[u8]>>,
    /// `binaryData` of a ConfigMap, decoded: for volumes only.
    pub binary: BTreeMap<String, Arc<[u8]>>,
    /// `type` of a Secret.
    pub type_: String,
    /// `immutable`: it never changes, so nobody need wait for that.
    pub immutable: bool,
    /// `metadata.uid`; empty where the object has none.
    pub uid: String,
}

/// Without what it holds: that may be secret.
impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object").field("key", &self.key).finish_non_exhaustive()
    }
}

impl Object {
    /// What is under `key`, text or not.
    pub fn get(&self, key: &str) -> Option<&Arc<[u8]>> {
        self.data.get(key).or_else(|| self.binary.get(key))
    }

    /// Everything it holds.
    pub fn entries(&self) -> impl Iterator<Item = (&String, &Arc<[u8]>)> {
        self.data.iter().chain(&self.binary)
    }
}

/// What a source knows of one object.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Tells what follows from every other content the object has or had; zero when it is not there.
    pub version: u64,
    /// `None`: not known yet. `Some(None)`: it is not there.
    pub object: Option<Option<Arc<Object>>>,
}

/// Where objects come from. A source for the API server would begin to watch an object with its first subscriber and
/// stop with the last.
pub trait Source: fmt::Debug + Send + Sync {
    /// The object as it is and will be.
    fn subscribe(&self, key: &Key) -> watch::Receiver<State>;
}

/// An object as it was found, to be told from what it becomes.
#[derive(Clone, Debug)]
pub struct Found {
    /// It; `None` when it is not there.
    pub object: Option<Arc<Object>>,
    /// Of the state it was found in.
    pub version: u64,
}

/// What somebody saw of an object, and whose change he waits for.
pub type Known = (Key, u64);

/// What was found, for whoever waits for another state of it.
pub fn known<'a>(found: impl IntoIterator<Item = (&'a Key, &'a Found)>) -> Vec<Known> {
    found.into_iter().map(|(key, found)| (key.clone(), found.version)).collect()
}

/// The room's handle. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Objects(Arc<dyn Source>);

impl Objects {
    /// The objects of `source`.
    pub fn new(source: Arc<dyn Source>) -> Self {
        Self(source)
    }

    /// A node without objects: none is there, ever.
    pub fn none() -> Self {
        Self::new(Arc::new(Nothing))
    }

    /// The object, once it is known whether there is one. Cancel-safe.
    pub async fn get(&self, key: &Key) -> Found {
        let mut state = self.0.subscribe(key);
        let known = state.wait_for(|s| s.object.is_some()).await.map(|s| s.clone());
        match known {
            Ok(State { object, version }) => Found { object: object.flatten(), version },
            // The agent is stopping: nothing more is to be known.
            Err(_) => std::future::pending().await,
        }
    }

    /// All of these, once it is known which of them there are. Cancel-safe.
    pub async fn find(&self, keys: impl IntoIterator<Item = Key>) -> BTreeMap<Key, Found> {
        let mut found = BTreeMap::new();
        for key in keys {
            let object = self.get(&key).await;
            found.insert(key, object);
        }
        found
    }

    /// Resolves when one of `known` is no longer what it was; never for none. Cancel-safe.
    pub async fn changed(&self, known: &[Known]) {
        let each = known.iter().map(|(key, version)| {
            let mut state = self.0.subscribe(key);
            Box::pin(async move {
                let ended = state.wait_for(|s| s.version != *version).await.is_err();
                if ended {
                    std::future::pending::<()>().await;
                }
            })
        });
        let each: Vec<_> = each.collect();
        if each.is_empty() {
            std::future::pending::<()>().await;
        }
        futures::future::select_all(each).await;
    }
}

/// The source of a node that has none.
#[derive(Debug)]
struct Nothing;

impl Source for Nothing {
    fn subscribe(&self, _: &Key) -> watch::Receiver<State> {
        static NEVER: std::sync::LazyLock<watch::Sender<State>> =
            std::sync::LazyLock::new(|| watch::Sender::new(State { version: 0, object: Some(None) }));
        NEVER.subscribe()
    }
}
