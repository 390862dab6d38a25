//! The kernel's log, for processes that it killed because the whole node had run out of memory: event `SystemOOM`.
//!
//! What a container's own limit kills is told by the container's status. [`watch`] reads `/dev/kmsg` from its end on: bounded
//! memory, no thread, nothing to do while the kernel is silent. Records that were overwritten before they were read are
//! lost, and that is said.

use crate::api::{PodRef, PodUid};
use crate::event::{Event, Kind, Recorder};
use crate::sys;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The kernel's log.
pub const KMSG: &str = "/dev/kmsg";

/// No record is longer.
const RECORD: usize = 8 << 10;

/// A process that the kernel killed because the node had no memory left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victim {
    /// Its name, as the kernel has it.
    pub process: String,
    /// Its id.
    pub pid: u32,
    /// The pod in whose cgroup it was.
    pub pod: Option<PodUid>,
}

impl Victim {
    /// What a record of the kernel's log tells of a victim; `None` for any other record, and for a victim of a limit.
    pub fn of(record: &str) -> Option<Self> {
        // `priority,sequence,time,flags;text`, continued by lines that begin with a space.
        let text = record.split_once(';')?.1.lines().next()?;
        let text = text.strip_prefix("oom-kill:constraint=")?;
        if !text.contains(",global_oom,") {
            return None;
        }
        // The name is the victim's to choose: what stands around it is found from the ends.
        let (_, after) = text.split_once(",task_memcg=")?;
        let (cgroup, rest) = after.split_once(",task=")?;
        let (rest, _uid) = rest.rsplit_once(",uid=")?;
        let (process, pid) = rest.rsplit_once(",pid=")?;
        Some(Self { process: process.to_owned(), pid: pid.parse().ok()?, pod: pod_of(cgroup) })
    }

    /// The event's message: upstream's, and the pod's name behind it.
    pub fn message(&self, pod: Option<&PodRef>) -> String {
        let Self { process, pid, .. } = self;
        let of = pod.map(|pod| format!(", pod: {pod}")).unwrap_or_default();
        format!("System OOM encountered, victim process: {process}, pid: {pid}{of}")
    }
}

/// The pod whose cgroup that is or is in: `…/pod<uid>/…`, or `…-pod<uid with _>.slice`.
fn pod_of(cgroup: &str) -> Option<PodUid> {
    cgroup.split('/').find_map(|part| {
        if let Some(uid) = part.strip_prefix("pod") {
            return Some(PodUid::new(uid));
        }
        let slice = part.strip_suffix(".slice")?;
        let (_, uid) = slice.rsplit_once("-pod")?;
        Some(PodUid::new(&uid.replace('_', "-")))
    })
}

/// Tells `recorder` of every victim from now on, by the pod's name where `pods` knows it. Returns only when the log cannot be
/// read.
pub async fn watch(kmsg: &Path, recorder: Recorder, pods: impl Fn(&PodUid) -> Option<PodRef>) {
    let error = match open(kmsg) {
        Ok(file) => follow(&file, &recorder, &pods).await,
        Err(error) => error,
    };
    tracing::warn!(path = %kmsg.display(), %error, "cannot read the kernel's log: nobody is told of processes it kills");
}

fn open(kmsg: &Path) -> io::Result<AsyncFd<File>> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(kmsg)?;
    // What happened before the agent began is old news.
    file.seek(SeekFrom::End(0))?;
    sys::watched(file, Interest::READABLE)
}

async fn follow(
    file: &AsyncFd<File>,
    recorder: &Recorder,
    pods: &impl Fn(&PodUid) -> Option<PodRef>,
) -> io::Error {
    let mut buffer = vec![0; RECORD];
    loop {
        let mut guard = match file.readable().await {
            Ok(guard) => guard,
            Err(error) => return error,
        };
        let read = match guard.try_io(|file| file.get_ref().read(&mut buffer)) {
            // Nothing more for now.
            Err(_would_block) => continue,
            Ok(read) => read,
        };
        match read {
            Ok(0) => return io::ErrorKind::UnexpectedEof.into(),
            Ok(n) => {
                if let Some(victim) = Victim::of(&String::from_utf8_lossy(&buffer[..n])) {
                    tell(&victim, recorder, pods);
                }
            }
            // The next read goes on with the oldest that is left.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {
                tracing::warn!("the kernel's log was overwritten before it was read");
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // One record that does not fit is passed over by the kernel.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return error,
        }
    }
}

fn tell(victim: &Victim, recorder: &Recorder, pods: &impl Fn(&PodUid) -> Option<PodRef>) {
    let pod = victim.pod.as_ref().and_then(pods);
    recorder.record(Event {
        pod: None,
        field_path: None,
        kind: Kind::Warning,
        reason: "SystemOOM".into(),
        message: victim.message(pod.as_ref()),
        annotations: BTreeMap::new(),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(text: &str) -> String {
        format!("4,1203,88123456,-;{text}\n SUBSYSTEM=memory\n")
    }

    const GLOBAL: &str =
        "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,";

    #[test]
    fn a_victim_of_the_node_is_told_with_its_pod() {
        for (cgroup, pod) in [
            ("/", None),
            ("/system.slice/sshd.service", None),
            ("/kubepods/burstable/podf00d-1/abc", Some("f00d-1")),
            ("/kubepods/podf00d-1/abc", Some("f00d-1")),
            (
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podf00d_1.slice/cri-x.scope",
                Some("f00d-1"),
            ),
        ] {
            let of = Victim::of(&record(&format!("{GLOBAL}task_memcg={cgroup},task=stress,pid=4711,uid=0")));
            let want = Victim { process: "stress".into(), pid: 4711, pod: pod.map(PodUid::new) };
            assert_eq!(of, Some(want), "{cgroup}");
        }
    }

    #[test]
    fn a_victim_of_a_limit_and_all_else_is_no_news() {
        for text in [
            "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,\
             oom_memcg=/kubepods/podx,task_memcg=/kubepods/podx/c,task=dd,pid=12,uid=0",
            "Out of memory: Killed process 4711 (stress) total-vm:1kB",
            "usb 1-1: new device",
            "oom-kill:constraint=CONSTRAINT_NONE,global_oom,task_memcg=/,task=x,pid=many,uid=0",
            "",
        ] {
            assert_eq!(Victim::of(&record(text)), None, "{text}");
        }
        assert_eq!(Victim::of("no record"), None);
    }

    #[test]
    fn a_process_may_be_called_what_it_likes() {
        let of =
            Victim::of(&record(&format!("{GLOBAL}task_memcg=/,task=a,pid=1,uid=2,pid=77,uid=0"))).unwrap();
        assert_eq!((of.process.as_str(), of.pid), ("a,pid=1,uid=2", 77));
    }

    #[test]
    fn the_message_is_upstreams_and_names_the_pod() {
        let victim = Victim { process: "stress".into(), pid: 4711, pod: None };
        assert_eq!(victim.message(None), "System OOM encountered, victim process: stress, pid: 4711");
        let pod = PodRef { uid: PodUid::new("u"), namespace: "ns".into(), name: "web".into() };
        assert_eq!(
            victim.message(Some(&pod)),
            "System OOM encountered, victim process: stress, pid: 4711, pod: web_ns(u)"
        );
    }

    proptest! {
        #[test]
        fn no_record_makes_the_reader_fall(text in "\\PC{0,200}") {
            Victim::of(&text);
            Victim::of(&record(&text));
            Victim::of(&record(&format!("{GLOBAL}{text}")));
        }
    }

    #[tokio::test]
    async fn the_log_is_read_from_its_end_on_and_a_log_that_ends_is_said_to() {
        // A pipe in place of the log: what is written is read as it comes, and its end is the log's.
        let recorder = Recorder::new(8);
        let mut events = recorder.subscribe();
        let (reader, mut writer) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let file = sys::watched(File::from(std::os::fd::OwnedFd::from(reader)), Interest::READABLE).unwrap();
        let pod = PodRef { uid: PodUid::new("u"), namespace: "ns".into(), name: "web".into() };
        let known = move |uid: &PodUid| (uid.as_str() == "u").then(|| pod.clone());
        let followed = tokio::spawn(async move { follow(&file, &recorder, &known).await.kind() });
        let line = record(&format!("{GLOBAL}task_memcg=/kubepods/podu/c,task=dd,pid=9,uid=0"));
        io::Write::write_all(&mut writer, line.as_bytes()).unwrap();
        let event = events.recv().await.unwrap();
        assert_eq!(event.reason, "SystemOOM");
        assert_eq!(event.message, "System OOM encountered, victim process: dd, pid: 9, pod: web_ns(u)");
        drop(writer);
        assert_eq!(followed.await.unwrap(), io::ErrorKind::UnexpectedEof);
    }
}
