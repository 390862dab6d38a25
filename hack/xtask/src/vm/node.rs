//! One running node: a process of this machine that is a kernel, and the command that it boots to run.
//!
//! ```text
//!  boot ──▶ kernel ──▶ systemd ──▶ stevedore-node.service ──▶ job ──▶ status ──▶ power off
//!             │                                                │
//!             └─ dies, or the limit passes: killed ◀───────────┘
//! ```
//!
//! The node's folder on this machine holds `disk` (what it writes over the image; it removes the name itself once it is up),
//! `job`, `status` and `console`. The kernel is killed when the thread that started it ends, and takes with it the processes
//! of this machine that run its programs; the folder goes with [`Node`].

use std::fmt::{self, Write as _};
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{image, kernel, scratch};
use crate::proc::ProcId;
use crate::{cmd, tree};

/// What a node is and what it does.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Its host name.
    pub name: String,
    /// Which of the cores that we may use it runs on, counted round and round from 0. It must keep to one: where its kernel's
    /// threads wander, a system call takes four times as long.
    pub core: usize,
    /// How many processors it sees.
    pub processors: u32,
    /// Its memory in MiB. Only what it touches is taken from this machine.
    pub memory_mib: u32,
    /// Folders of this machine that it sees at their own paths; what it writes there stays in it. The tree's root.
    pub folders: Vec<PathBuf>,
    /// Variables of the command.
    pub environment: Vec<(String, String)>,
    /// Where the command runs: the tree's root.
    pub directory: PathBuf,
    /// The command and its arguments, run as root in a service of its own.
    pub command: Vec<String>,
    /// When it is killed, whatever it does.
    pub limit: Duration,
}

impl Spec {
    /// A small node that sees the tree and does nothing.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            core: 0,
            processors: 1,
            memory_mib: 1024,
            folders: vec![tree::root()],
            environment: Vec::new(),
            directory: tree::root(),
            command: vec!["true".to_owned()],
            limit: Duration::from_secs(600),
        }
    }
}

/// How a node ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It ran its command, which left with this status, and powered off.
    Ended(i32),
    /// It still ran at its limit, and was killed.
    TimedOut(Duration),
    /// Its kernel ended before its command did. The end of what the kernel said.
    Died(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(status) => write!(f, "the node's command ended with status {status}"),
            Self::TimedOut(limit) => {
                write!(f, "the node still ran after {} s and was killed", limit.as_secs())
            }
            Self::Died(said) => write!(f, "the node ended before its command did: {said}"),
        }
    }
}

/// A running node. Dropped, it is killed.
#[derive(Debug)]
pub struct Node {
    kernel: Child,
    limit: Duration,
    /// Gone when the kernel is.
    dir: TempDir,
}

impl Node {
    /// Starts it; what its command prints, both kinds, goes to `output` as it comes.
    ///
    /// # Errors
    /// Also when there can be no node here: the message is then the reason of a skip.
    pub fn boot(spec: &Spec, output: Stdio) -> Result<Self> {
        let (kernel, image) = (kernel::find()?, image::find_or_build()?);
        let dir = scratch::create(spec.memory_mib)?;
        fs::write(dir.path().join("job"), job(spec)?)?;
        let console = File::create(dir.path().join("console"))?;
        // Dies with this thread, however that ends. Its own process group: Ctrl-C reaches us first.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).process_group(0);
        command.args(["taskset", "--cpu-list", &core(spec.core)?.to_string()]);
        command.arg(kernel).args(arguments(spec, &image, dir.path())?);
        // Its memory is a file without a name in this folder.
        command.env("TMPDIR", dir.path()).stdin(Stdio::null()).stdout(output).stderr(console);
        let kernel = command.spawn().with_context(|| format!("start `{}`", cmd::line_of(&command)))?;
        Ok(Self { kernel, limit: spec.limit, dir })
    }

    /// What its command prints, where [`Node::boot`] was given a pipe for it. Once.
    pub fn output(&mut self) -> Option<ChildStdout> {
        self.kernel.stdout.take()
    }

    /// Blocks until it has powered off, or kills it at its limit.
    pub fn wait(mut self) -> Result<Outcome> {
        let process = i32::try_from(self.kernel.id()).ok().and_then(ProcId::of);
        if process.is_some_and(|process| !process.wait_gone(self.limit)) {
            return Ok(Outcome::TimedOut(self.limit));
        }
        self.kernel.wait().context("wait for a node")?;
        let status = fs::read_to_string(self.dir.path().join("status")).unwrap_or_default();
        if let Ok(status) = status.trim().parse() {
            return Ok(Outcome::Ended(status));
        }
        let console = fs::read(self.dir.path().join("console")).unwrap_or_default();
        Ok(Outcome::Died(cmd::tail(&console, 8)))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _gone = self.kernel.kill();
        let _reaped = self.kernel.wait();
    }
}

/// The number of a core.
fn core(nth: usize) -> Result<usize> {
    let set = sched_getaffinity(Pid::from_raw(0)).context("ask which cores we may use")?;
    let ours: Vec<usize> = (0..CpuSet::count()).filter(|core| set.is_set(*core) == Ok(true)).collect();
    ours.get(nth % ours.len().max(1)).copied().context("we may use no core")
}

/// The kernel's command line.
fn arguments(spec: &Spec, image: &Path, dir: &Path) -> Result<Vec<String>> {
    let (image, dir) = (image.display(), dir.display());
    for path in [image.to_string(), dir.to_string()] {
        let plain = !path.contains(|c: char| c.is_whitespace() || c == ',');
        ensure!(plain, "a kernel's command line cannot hold the path {path:?}");
    }
    Ok(vec![
        format!("umid={}", spec.name),
        format!("uml_dir={dir}/"),
        format!("mem={}M", spec.memory_mib),
        format!("ncpus={}", spec.processors),
        // Programs run under seccomp: several times as quick as under ptrace.
        "seccomp=on".to_owned(),
        format!("ubd0={dir}/disk,{image}"),
        "root=/dev/ubda".to_owned(),
        "rw".to_owned(),
        // The kernel's console is our standard error, the second one, which the job writes to, our standard output.
        "con=null".to_owned(),
        "con0=null,fd:2".to_owned(),
        "con1=null,fd:1".to_owned(),
        "audit=0".to_owned(),
        "quiet".to_owned(),
        "systemd.show_status=0".to_owned(),
        format!("systemd.hostname={}", spec.name),
        format!("stevedore.share={dir}"),
    ])
}

/// The script that the node runs.
fn job(spec: &Spec) -> Result<String> {
    let text = |path: &Path| path.to_str().map(quote).with_context(|| format!("{path:?} is no text"));
    let mut script = "set -e\n".to_owned();
    for (number, folder) in spec.folders.iter().enumerate() {
        let (at, lower) = (text(folder)?, format!("/run/stevedore/lower{number}"));
        let upper = format!("/var/lib/stevedore-node/upper{number}");
        let work = format!("/var/lib/stevedore-node/work{number}");
        write!(
            script,
            "mkdir -p {at} {lower} {upper} {work}\n\
             mount -t hostfs -o hostfs={at} none {lower}\n\
             mount -t overlay -o lowerdir={lower},upperdir={upper},workdir={work} none {at}\n"
        )?;
    }
    writeln!(script, "cd {}", text(&spec.directory)?)?;
    for (name, value) in &spec.environment {
        writeln!(script, "export {name}={}", quote(value))?;
    }
    let command: Vec<String> = spec.command.iter().map(|word| quote(word)).collect();
    writeln!(script, "exec {}", command.join(" "))?;
    Ok(script)
}

/// A word of a shell script.
pub(super) fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_with_quotes_and_blanks_reach_the_command_whole() {
        let mut spec = Spec::new("n");
        spec.folders.clear();
        spec.directory = "/".into();
        spec.environment = vec![("WORDS".to_owned(), "it's $HOME".to_owned())];
        spec.command = ["printf", "%s|", "a b", "", "it's", "$WORDS", "\\"].map(str::to_owned).to_vec();
        let output = Command::new("bash").arg("-c").arg(job(&spec).unwrap()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "a b||it's|$WORDS|\\|");
        spec.command = ["printenv", "WORDS"].map(str::to_owned).to_vec();
        let output = Command::new("bash").arg("-c").arg(job(&spec).unwrap()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "it's $HOME\n");
    }

    #[test]
    fn a_path_that_the_kernels_command_line_cannot_hold_is_named() {
        for image in ["/a b/node.ext4", "/a,b/node.ext4"] {
            let error = arguments(&Spec::new("n"), Path::new(image), Path::new("/dev/shm/x")).unwrap_err();
            assert!(error.to_string().contains(image), "{error}");
        }
    }
}
