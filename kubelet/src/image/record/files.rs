//! Records as files: `ImagePullIntent` and `ImagePulledRecord` of `kubelet.config.k8s.io`, one file each, named by the SHA-256
//! of the image's name or reference.
//!
//! They are written as `v1beta1`, beside the file and then renamed over it; `v1alpha1`, which agents before 1.35 wrote,
//! is read too. What is not exactly such an object is an error, never half a record.

use super::access::Access;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

const VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const OLD_VERSION: &str = "kubelet.config.k8s.io/v1alpha1";
const PREFIX: &str = "sha256-";
const TEMPORARY: &str = ".tmp";
/// A record of a hundred names with a hundred secrets each stays below.
const LIMIT: u64 = 4 << 20;

/// `ImagePullIntent`: a pull was under way.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PullIntent {
    kind: String,
    api_version: String,
    image: String,
}

/// `ImagePulledRecord`: an image that an agent pulled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PulledRecord {
    kind: String,
    api_version: String,
    /// RFC 3339, in whole seconds.
    #[serde(default)]
    pub last_updated_time: String,
    /// The runtime's.
    pub image_ref: String,
    /// By full name without tag and digest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub credential_mapping: BTreeMap<String, Access>,
}

impl PulledRecord {
    /// One that says nothing of anybody.
    pub fn of(image_ref: &str) -> Self {
        Self {
            kind: Self::KIND.to_owned(),
            api_version: VERSION.to_owned(),
            last_updated_time: String::new(),
            image_ref: image_ref.to_owned(),
            credential_mapping: BTreeMap::new(),
        }
    }
}

trait Record: Serialize + DeserializeOwned {
    const KIND: &'static str;
    fn kind(&self) -> &str;
    fn version(&mut self) -> &mut String;
    /// What its file is named by.
    fn key(&self) -> &str;
}

impl Record for PullIntent {
    const KIND: &'static str = "ImagePullIntent";
    fn kind(&self) -> &str {
        &self.kind
    }
    fn version(&mut self) -> &mut String {
        &mut self.api_version
    }
    fn key(&self) -> &str {
        &self.image
    }
}

impl Record for PulledRecord {
    const KIND: &'static str = "ImagePulledRecord";
    fn kind(&self) -> &str {
        &self.kind
    }
    fn version(&mut self) -> &mut String {
        &mut self.api_version
    }
    fn key(&self) -> &str {
        &self.image_ref
    }
}

/// The file name for an image name or reference.
pub fn name_of(key: &str) -> String {
    format!("{PREFIX}{}", super::super::sha256_hex(key))
}

/// A directory of records of one kind. It is made when the first is written.
#[derive(Debug)]
pub struct Dir {
    path: PathBuf,
}

impl Dir {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub fn write_intent(&self, image: &str) -> io::Result<()> {
        let (kind, api_version) = (PullIntent::KIND.to_owned(), VERSION.to_owned());
        self.write(&PullIntent { kind, api_version, image: image.to_owned() })
    }

    pub fn has_intent(&self, image: &str) -> io::Result<bool> {
        Ok(self.read::<PullIntent>(&name_of(image))?.is_some_and(|i| i.image == image))
    }

    /// The images of all intents, and what could not be read.
    pub fn intents(&self) -> (Vec<String>, Vec<String>) {
        let (records, problems) = self.all::<PullIntent>();
        (records.into_iter().map(|i| i.image).collect(), problems)
    }

    pub fn read_pulled(&self, image_ref: &str) -> io::Result<Option<PulledRecord>> {
        Ok(self.read::<PulledRecord>(&name_of(image_ref))?.filter(|r| r.image_ref == image_ref))
    }

    pub fn write_pulled(&self, record: &PulledRecord) -> io::Result<()> {
        self.write(record)
    }

    /// Takes a record away; none is no error.
    pub fn remove(&self, key: &str) -> io::Result<()> {
        absent_is_fine(fs::remove_file(self.path.join(name_of(key))))
    }

    /// Takes away all records but those with these file names; what could not be removed is told.
    pub fn remove_all_but(&self, names: &HashSet<String>) -> io::Result<Vec<String>> {
        let gone = self.names()?.into_iter().filter(|n| !names.contains(n)).map(|n| self.path.join(n));
        let failed = |path: PathBuf| {
            absent_is_fine(fs::remove_file(&path)).err().map(|e| format!("{}: {e}", path.display()))
        };
        Ok(gone.filter_map(failed).collect())
    }

    /// Writes intents of the old version anew; tells what could not be.
    pub fn migrate_intents(&self) -> impl Iterator<Item = String> + use<> {
        self.migrate::<PullIntent>()
    }

    /// Writes pulled records of the old version anew; tells what could not be.
    pub fn migrate_pulled(&self) -> impl Iterator<Item = String> + use<> {
        self.migrate::<PulledRecord>()
    }

    /// How many there are, for metrics.
    pub fn count(&self) -> usize {
        self.names().map_or(0, |names| names.len())
    }

    fn migrate<R: Record>(&self) -> std::vec::IntoIter<String> {
        let (records, mut problems) = self.all::<R>();
        for mut record in records {
            if record.version() == OLD_VERSION {
                VERSION.clone_into(record.version());
                problems.extend(self.write(&record).err().map(|e| e.to_string()));
            }
        }
        problems.into_iter()
    }

    fn all<R: Record>(&self) -> (Vec<R>, Vec<String>) {
        let names = match self.names() {
            Ok(names) => names,
            Err(e) => return (Vec::new(), vec![format!("{}: {e}", self.path.display())]),
        };
        let (mut records, mut problems) = (Vec::new(), Vec::new());
        for name in names {
            match self.read(&name) {
                Ok(record) => records.extend(record),
                Err(e) => problems.push(e.to_string()),
            }
        }
        (records, problems)
    }

    /// Names of files that can be records.
    fn names(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let is_record = |name: &str| name.starts_with(PREFIX) && !name.ends_with(TEMPORARY);
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_str().map(str::to_owned);
            names.extend(name.filter(|n| is_record(n) && entry.file_type().is_ok_and(|t| !t.is_dir())));
        }
        Ok(names)
    }

    fn read<R: Record>(&self, name: &str) -> io::Result<Option<R>> {
        let path = self.path.join(name);
        let told = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        let bytes = match bytes(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(told)?,
        };
        decode(&bytes).map(Some).map_err(|e| told(io::Error::other(e)))
    }

    fn write(&self, record: &impl Record) -> io::Result<()> {
        let path = self.path.join(name_of(record.key()));
        let write = || -> io::Result<()> {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.path)?;
            let mut text = serde_json::to_vec(record)?;
            text.push(b'\n');
            let temporary = path.with_extension(OsStr::new(&TEMPORARY[1..]));
            let mut file =
                File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&text)?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
    }
}

fn decode<R: Record>(bytes: &[u8]) -> Result<R, String> {
    let mut record: R = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if record.kind() != R::KIND {
        return Err(format!("kind is {:?}, not {}", record.kind(), R::KIND));
    }
    match record.version().as_str() {
        VERSION | OLD_VERSION => Ok(record),
        other => Err(format!("apiVersion is {other:?}, not {VERSION}")),
    }
}

/// A plain file, following no link and waiting for no writer of a pipe.
fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a plain file"));
    }
    let mut bytes = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LIMIT { Err(io::Error::other("it is too long")) } else { Ok(bytes) }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_the_stock_agents_names_and_shape() {
        let at = tempfile::tempdir().unwrap();
        let dir = Dir::new(at.path().join("image_manager/pulling"));
        dir.write_intent("docker.io/testing/test:something").unwrap();
        // The name under which the stock agent files the same image.
        let name = "sha256-f24acc752be18b93b0504c86312bbaf482c9efb0c45e925bbccb0a591cebd7af";
        let text = fs::read_to_string(dir.path.join(name)).unwrap();
        assert_eq!(
            text,
            "{\"kind\":\"ImagePullIntent\",\"apiVersion\":\"kubelet.config.k8s.io/v1beta1\",\
             \"image\":\"docker.io/testing/test:something\"}\n"
        );
        assert!(dir.has_intent("docker.io/testing/test:something").unwrap());
        assert!(!dir.has_intent("docker.io/testing/test:other").unwrap());
        use std::os::unix::fs::PermissionsExt as _;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir.path), mode(&dir.path.join(name))), (0o700, 0o600));
    }

    #[test]
    fn a_stock_agents_record_is_read_and_an_old_one_written_anew() {
        let at = tempfile::tempdir().unwrap();
        let dir = Dir::new(at.path().to_owned());
        let text = r#"{"kind":"ImagePulledRecord","apiVersion":"kubelet.config.k8s.io/v1alpha1",
            "lastUpdatedTime":"2026-03-01T12:00:00Z","imageRef":"sha256:1","credentialMapping":{
            "r.test/a":{"nodePodsAccessible":true},
            "r.test/b":{"kubernetesSecrets":[{"uid":"u","namespace":"n","name":"s","credentialHash":"h"}]},
            "r.test/c":{"kubernetesServiceAccounts":[{"uid":"u","namespace":"n","name":"a"}]}}}"#;
        let path = at.path().join(name_of("sha256:1"));
        fs::write(&path, text).unwrap();
        let record = dir.read_pulled("sha256:1").unwrap().unwrap();
        assert!(record.credential_mapping["r.test/a"].node_pods_accessible);
        assert_eq!(record.credential_mapping["r.test/b"].kubernetes_secrets[0].credential_hash, "h");
        assert_eq!(record.credential_mapping["r.test/c"].kubernetes_service_accounts[0].name, "a");
        assert_eq!(dir.migrate_pulled().next(), None);
        let now = fs::read_to_string(&path).unwrap();
        assert!(now.contains("v1beta1") && now.contains("2026-03-01T12:00:00Z"), "{now}");
        let mut again = dir.read_pulled("sha256:1").unwrap().unwrap();
        OLD_VERSION.clone_into(&mut again.api_version);
        assert_eq!(again, record, "nothing else has changed");
    }

    #[test]
    fn what_is_no_record_is_an_error_and_not_half_of_one() {
        let at = tempfile::tempdir().unwrap();
        let dir = Dir::new(at.path().to_owned());
        let path = at.path().join(name_of("x"));
        let good =
            r#"{"kind":"ImagePulledRecord","apiVersion":"kubelet.config.k8s.io/v1beta1","imageRef":"x"}"#;
        fs::write(&path, good).unwrap();
        assert!(dir.read_pulled("x").unwrap().is_some());
        for bad in [
            "".to_owned(),
            good[..40].to_owned(),
            "[]".to_owned(),
            good.replace("v1beta1", "v9"),
            good.replace("ImagePulledRecord", "ImagePullIntent"),
            good.replace("imageRef", "imageref"),
            format!("{}{}", &good[..good.len() - 1], r#","more":1}"#),
        ] {
            fs::write(&path, &bad).unwrap();
            let error = dir.read_pulled("x").unwrap_err().to_string();
            assert!(error.contains(path.to_str().unwrap()), "{error}");
        }
        fs::write(&path, good.replace("\"x\"", "\"y\"")).unwrap();
        assert_eq!(dir.read_pulled("x").unwrap(), None, "another image's");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(dir.read_pulled("x").is_err(), "a link");
        fs::remove_file(&path).unwrap();
        fs::write(at.path().join(format!("{}.tmp", name_of("x"))), "cut").unwrap();
        fs::write(at.path().join("notes"), "by hand").unwrap();
        assert_eq!(
            (dir.count(), dir.intents()),
            (0, (vec![], vec![])),
            "neither leftovers nor others' files"
        );
    }
}
