//! Pods with every kind of container, all of which tell what they do in one file, and what must hold of what they told.
//!
//! Each line is one `write(2)` to the end of the file, so the order of the lines is the order of what happened:
//! `pod version sandbox container instance act`. The sandbox is its network namespace, the instance the birth of the
//! container's first process, which hooks and probes see too. The test adds lines of its own, which begin with `!`.

use crate::manifest::{pod, sh};
use crate::marks::{Dice, copy_flock};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// How a pod ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It runs until it is removed.
    Service,
    /// Its work ends; what fails is run again.
    Job,
    /// Its work ends; nothing but a sidecar is run twice.
    Once,
}

/// Regular containers.
const REGULAR: [&str; 2] = ["work", "more"];
/// Sidecars, in the order of the spec.
const SIDECARS: [&str; 2] = ["side", "slow"];

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// What a container did.
    Act(Act),
    /// What the test did, without the `!`.
    Test(String),
}

/// What a container did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Act {
    /// The pod's name.
    pub pod: String,
    /// Which pod of that name.
    pub version: u32,
    /// The sandbox's network namespace.
    pub sandbox: String,
    /// The container.
    pub container: String,
    /// When its first process was born, in hundredths of a second since the machine's start.
    pub instance: u64,
    /// `begin`, `done`, …
    pub what: String,
}

/// A directory of the host in which such pods write.
#[derive(Debug)]
pub struct Acts(PathBuf);

impl Acts {
    /// Makes the directory below `dir`.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(dir: &Path) -> Self {
        let path = dir.join("acts");
        fs::create_dir_all(path.join("bin")).unwrap();
        copy_flock(&path.join("bin"));
        Self(path)
    }

    /// Adds a line of the test's own.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn note(&self, what: &str) {
        let mut file = File::options().create(true).append(true).open(self.0.join("log")).unwrap();
        file.write_all(format!("! {what}\n").as_bytes()).unwrap();
    }

    /// All lines so far.
    ///
    /// # Panics
    /// When one cannot be read.
    pub fn lines(&self) -> Vec<Line> {
        let text = fs::read_to_string(self.0.join("log")).unwrap_or_default();
        text.lines()
            .map(|line| parse(line).unwrap_or_else(|| panic!("not a line of ours: {line:?}")))
            .collect()
    }

    /// A container of that name beside which no other one of its pod's name runs, and what it does.
    fn container(&self, name: &str, version: u32, container: &str, then: &str) -> Value {
        // Backquotes: `$(…)` would be a variable of the manifest's.
        let script = format!(
            "{}\nexec 9>/acts/{name}-{container}.lock\n\
             cd /acts/bin && ./loader --library-path . ./flock -n 9 || {{ tell beside-another; exit 1; }}\n\
             trap 'tell end; exit 0' TERM\ntell begin\n{then}",
            teller(name, version, container)
        );
        let mut c = sh(container, &script);
        c["volumeMounts"] =
            json!([{ "name": "acts", "mountPath": "/acts" }, { "name": "scratch", "mountPath": "/scratch" }]);
        c
    }

    /// Version `version` of the pod `name`: two init containers, a sidecar before each of them's successor, two regular
    /// containers, hooks that run commands. How long everything takes is the dice's.
    pub fn pod(&self, name: &str, version: u32, kind: Kind, dice: &mut Dice) -> Value {
        let mut nap = |most: u64| format!("sleep 0.{:02} & wait $!", dice.roll(most));
        let forever = "while :; do sleep 3600 & wait $!; done";
        // A child that is waited for, so that the stop signal is obeyed at once.
        let first = format!("{}; tell done; exit 0", nap(40));
        let second = format!("{}; tell done; exit 0", nap(40));
        let slow = format!("{}; tell started; touch /tmp/started; {forever}", nap(90));
        let ends = |how: String| match kind {
            Kind::Service => forever.to_owned(),
            Kind::Job | Kind::Once => format!("{how}; {how}; {how}; tell finish; exit 0"),
        };
        let (work, more) = (ends(nap(99)), ends(nap(99)));
        let act = |container: &str, script: String| {
            let script = format!("{}\n{script}", teller(name, version, container));
            json!({ "exec": { "command": ["/bin/sh", "-c", script] } })
        };
        let mut hooks = |container: &str| {
            json!({
                "postStart": act(container, format!("tell post-start; {}", nap(30))),
                "preStop": act(container, format!("tell pre-stop; {}; tell pre-stopped", nap(50))),
            })
        };
        let mut sidecar = self.container(name, version, SIDECARS[0], forever);
        sidecar["restartPolicy"] = "Always".into();
        let mut probed = self.container(name, version, SIDECARS[1], &slow);
        probed["restartPolicy"] = "Always".into();
        probed["lifecycle"] = json!({ "preStop": hooks(SIDECARS[1])["preStop"] });
        let seen = act(SIDECARS[1], "[ -e /tmp/started ] && tell probed".to_owned());
        // A probe that is late on a busy machine is no failure; only an answer is.
        probed["startupProbe"] = json!({ "exec": seen["exec"], "periodSeconds": 1, "timeoutSeconds": 60, "failureThreshold": 1000 });
        let mut working = self.container(name, version, REGULAR[0], &work);
        working["lifecycle"] = hooks(REGULAR[0]);
        let mut p = pod(name, [working, self.container(name, version, REGULAR[1], &more)]);
        p["metadata"]["uid"] = Self::uid(name, version).into();
        p["spec"]["initContainers"] = json!([
            self.container(name, version, "first", &first),
            sidecar,
            self.container(name, version, "second", &second),
            probed,
        ]);
        p["spec"]["restartPolicy"] = match kind {
            Kind::Service => "Always",
            Kind::Job => "OnFailure",
            Kind::Once => "Never",
        }
        .into();
        // Nothing here takes as long: whoever is killed at its end was not told to stop before.
        p["spec"]["terminationGracePeriodSeconds"] = 120.into();
        p["spec"]["volumes"] = json!([
            { "name": "acts", "hostPath": { "path": self.0, "type": "Directory" } },
            { "name": "scratch", "emptyDir": { "medium": "Memory" } },
        ]);
        p
    }

    /// The UID of that pod.
    pub fn uid(name: &str, version: u32) -> String {
        format!("{name}-v{version}")
    }
}

/// The shell's `tell`, of this container.
fn teller(name: &str, version: u32, container: &str) -> String {
    format!(
        "tell() {{ echo \"{name} {version} `readlink /proc/1/ns/net` {container} `cut -d ' ' -f 22 /proc/1/stat` $1\" >> /acts/log; }}"
    )
}

fn parse(line: &str) -> Option<Line> {
    if let Some(own) = line.strip_prefix("! ") {
        return Some(Line::Test(own.to_owned()));
    }
    let words: Vec<&str> = line.split(' ').collect();
    let [pod, version, sandbox, container, instance, what] = words[..] else { return None };
    let text = |s: &str| s.to_owned();
    Some(Line::Act(Act {
        pod: text(pod),
        version: version.parse().ok()?,
        sandbox: text(sandbox),
        container: text(container),
        instance: instance.parse().ok()?,
        what: text(what),
    }))
}

/// How often something was killed so far.
#[derive(Clone, Copy, Debug, Default)]
struct Deaths {
    agent: usize,
    runtime: usize,
}

impl Deaths {
    fn any(self) -> usize {
        self.agent + self.runtime
    }
}

/// What the lines say of one pod.
#[derive(Debug, Default)]
struct Story<'a> {
    acts: Vec<(&'a Act, Deaths)>,
    /// How many acts and deaths there were when the pod was first seen to be as it should be.
    settled: Option<(usize, Deaths)>,
    /// The agent that ended it knew nothing of its spec: one that began after the pod was to go.
    orphaned: bool,
    removed: bool,
}

/// Everything in `lines` that must not be, in words; `kinds` by the pods' names.
pub fn wrongs(lines: &[Line], kinds: &BTreeMap<String, Kind>) -> Vec<String> {
    let mut stories: BTreeMap<(&str, u32), Story<'_>> = BTreeMap::new();
    let mut wrongs = Vec::new();
    let mut newest: BTreeMap<&str, u32> = BTreeMap::new();
    let (mut deaths, mut agent_knows) = (Deaths::default(), true);
    for line in lines {
        let what = match line {
            Line::Act(act) => {
                let newest = newest.entry(&act.pod).or_insert(act.version);
                if act.version < *newest {
                    wrongs.push(format!("{act:?} after version {newest} had begun"));
                }
                *newest = act.version.max(*newest);
                stories.entry((&act.pod, act.version)).or_default().acts.push((act, deaths));
                continue;
            }
            Line::Test(what) => what,
        };
        match what.split(' ').collect::<Vec<_>>()[..] {
            [what @ ("remove" | "settled"), pod, version] => {
                let story = stories.entry((pod, version.parse().expect("a version"))).or_default();
                if what == "remove" {
                    (story.removed, story.orphaned) = (true, !agent_knows);
                } else {
                    story.settled = story.settled.or(Some((story.acts.len(), deaths)));
                }
            }
            ["kill", "agent"] => deaths.agent += 1,
            ["kill", "runtime"] => deaths.runtime += 1,
            ["launch", "agent"] => {
                agent_knows = false;
                stories.values_mut().filter(|s| s.removed).for_each(|s| s.orphaned = true);
            }
            ["agent", "knows"] => agent_knows = true,
            _ => panic!("the test does not say such things: {what}"),
        }
    }
    for ((pod, version), story) in &stories {
        let kind = kinds.get(*pod).copied().unwrap_or(Kind::Service);
        wrongs.extend(story.wrongs(kind).into_iter().map(|w| format!("{pod} version {version}: {w}")));
    }
    wrongs
}

impl Story<'_> {
    fn wrongs(&self, kind: Kind) -> Vec<String> {
        let mut wrongs = Vec::new();
        for (at, (act, _)) in self.acts.iter().enumerate() {
            match act.what.as_str() {
                "begin" => {
                    wrongs.extend(self.out_of_order(at));
                    wrongs.extend(self.again(at, kind));
                    if self.settled.is_some_and(|(n, _)| at >= n) {
                        wrongs.push(format!("{} began when all was as it should be", act.container));
                    }
                }
                "end" => wrongs.extend(self.without_hook(at)),
                "beside-another" => wrongs.push(format!("{} ran twice at once", act.container)),
                _ => {}
            }
        }
        wrongs.extend(self.without_post_start());
        // Nobody tells in which order what runs now was meant to end, so an orphan's containers end all at once.
        let order = if self.orphaned { Vec::new() } else { self.order_of_the_end() };
        wrongs.into_iter().chain(order).collect()
    }

    /// What had to be through before the container began, and was not.
    fn out_of_order(&self, at: usize) -> Vec<String> {
        let (act, before) = (self.acts[at].0, &self.acts[..at]);
        let name = act.container.as_str();
        let here = |container: &str, what: &str| {
            before.iter().any(|(a, _)| a.container == container && a.what == what && a.sandbox == act.sandbox)
        };
        let needs: &[(&str, &str)] = match name {
            "first" => &[],
            "side" | "second" => &[("first", "done")],
            "slow" => &[("first", "done"), ("second", "done")],
            _ => &[("first", "done"), ("second", "done"), ("slow", "started")],
        };
        let missing = needs.iter().filter(|(c, w)| !here(c, w));
        missing.map(|(c, w)| format!("{name} began before {c} was {w} in its sandbox")).collect()
    }

    /// What must not run again and does. A death may cut off a start, or cost the runtime the exit code of what ended by itself
    /// meanwhile: both count as failures. A runtime that died in a start does not know whether the container ran, so that
    /// even one that is never restarted may be started again.
    fn again(&self, at: usize, kind: Kind) -> Vec<String> {
        let (act, now) = self.acts[at];
        let (name, before) = (act.container.as_str(), &self.acts[..at]);
        let mut wrongs = Vec::new();
        if before.iter().any(|(a, _)| a.sandbox != act.sandbox && PROOFS.contains(&a.what.as_str())) {
            wrongs.push(format!("{name} began in another sandbox than what had run before"));
        }
        let Some(last) = before.iter().rposition(|(a, _)| a.container == name && a.what == "begin") else {
            return wrongs;
        };
        let told = |what: &str| before[last..].iter().find(|(a, _)| a.container == name && a.what == what);
        // Its success was seen: what comes after it was begun.
        let passed =
            before[last..].iter().find(|(a, _)| INITS.contains(&name) && is_behind(name, &a.container));
        wrongs.extend(passed.map(|(a, _)| format!("{name} began again after {} had begun", a.container)));
        let ended_by_itself = told("done").or(told("finish")).is_some();
        let proof = PROOFS.iter().find(|p| told(p).is_some() && !(ended_by_itself && CUTTABLE.contains(p)));
        wrongs.extend(proof.map(|p| format!("{name} began again after its {p}")));
        let since = last.checked_sub(1).map_or(Deaths::default(), |n| before[n].1);
        let (died, runtime_died) = (now.any() > since.any(), now.runtime > since.runtime);
        if !died || ended_by_itself && !runtime_died {
            wrongs.push(format!("{name} began again, and nothing had died"));
        }
        if kind == Kind::Once && !SIDECARS.contains(&name) && !runtime_died {
            wrongs.push(format!("{name} ran twice, which it never may"));
        }
        wrongs
    }

    /// An end by the stop signal without the preStop hook before it.
    fn without_hook(&self, at: usize) -> Option<String> {
        let act = self.acts[at].0;
        let with_hook = [REGULAR[0], SIDECARS[1]].contains(&act.container.as_str());
        let same = |a: &Act| a.instance == act.instance && a.container == act.container;
        let hook = self.acts[..at].iter().any(|(a, _)| same(a) && a.what == "pre-stop");
        (with_hook && !hook).then(|| format!("{} was stopped without its preStop hook", act.container))
    }

    /// The postStart hook is forgotten only with the agent that was to run it.
    fn without_post_start(&self) -> Option<String> {
        let (count, then) = self.settled?;
        let acts = &self.acts[..count];
        let began = acts.iter().rposition(|(a, _)| a.container == REGULAR[0] && a.what == "begin")?;
        let agent_lived = then.agent == acts[began.checked_sub(1)?].1.agent;
        let hook = acts[began..].iter().any(|(a, _)| a.container == REGULAR[0] && a.what == "post-start");
        let runs_on = !acts.iter().any(|(a, _)| a.container == REGULAR[0] && a.what == "finish");
        (agent_lived && runs_on && !hook)
            .then(|| format!("{} runs and its postStart hook never ran", REGULAR[0]))
    }

    /// Sidecars outlive the regular containers, and each those behind it.
    fn order_of_the_end(&self) -> Vec<String> {
        let mut wrongs = Vec::new();
        for (at, (act, _)) in self.acts.iter().enumerate().filter(|(_, (a, _))| a.what == "end") {
            let Some(place) = SIDECARS.iter().position(|s| *s == act.container) else { continue };
            let may_need_it = REGULAR.iter().chain(&SIDECARS[place + 1..]);
            for needy in may_need_it {
                let ended = |a: &Act| a.container == *needy && ["end", "finish"].contains(&a.what.as_str());
                if self.acts[at..].iter().any(|(a, _)| ended(a)) {
                    wrongs.push(format!("{} ended before {needy}", act.container));
                }
            }
        }
        wrongs
    }
}

/// The ordinary init containers.
const INITS: [&str; 2] = ["first", "second"];

fn is_behind(init: &str, other: &str) -> bool {
    let place = |name: &str| ["first", "side", "second", "slow"].iter().position(|n| *n == name).unwrap_or(4);
    place(other) > place(init)
}

/// Acts that only a container does that the runtime has told to run.
const PROOFS: [&str; 4] = ["post-start", "probed", "pre-stop", "end"];

/// Those that say nothing against an end whose exit code was lost.
const CUTTABLE: [&str; 2] = ["post-start", "probed"];

/// What was told last before something was killed, and how often.
pub fn hit(lines: &[Line]) -> BTreeMap<String, usize> {
    let mut hits = BTreeMap::new();
    let mut last = None;
    for line in lines {
        match line {
            Line::Act(act) => last = Some(act),
            Line::Test(what) if what.starts_with("kill ") => {
                let at = last.map_or_else(String::new, |a| format!("{} {}", a.container, a.what));
                *hits.entry(at).or_default() += 1;
            }
            Line::Test(_) => {}
        }
    }
    hits
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `container act`, with `@sandbox` and `#instance` where they matter; lines of the test with `!`.
    fn told(kind: Kind, lines: &[&str]) -> Vec<String> {
        let lines: Vec<Line> = lines
            .iter()
            .map(|line| match line.strip_prefix("! ") {
                Some(own) => Line::Test(own.to_owned()),
                None => {
                    let mut words = line.split(' ');
                    let (container, what) = (words.next().unwrap().into(), words.next().unwrap().into());
                    let mut act = Act {
                        pod: "p".into(),
                        version: 1,
                        sandbox: "s".into(),
                        container,
                        instance: 1,
                        what,
                    };
                    for word in words {
                        match word.split_at(1) {
                            ("@", sandbox) => act.sandbox = sandbox.into(),
                            ("#", instance) => act.instance = instance.parse().unwrap(),
                            _ => act.version = word.parse().unwrap(),
                        }
                    }
                    Line::Act(act)
                }
            })
            .collect();
        wrongs(&lines, &BTreeMap::from([("p".to_owned(), kind)]))
    }

    const START: [&str; 11] = [
        "first begin",
        "first done",
        "side begin",
        "second begin",
        "second done",
        "slow begin",
        "slow started",
        "slow probed",
        "work begin",
        "work post-start",
        "more begin",
    ];

    fn after_start(kind: Kind, more: &[&str]) -> Vec<String> {
        told(kind, &[&START[..], more].concat())
    }

    #[test]
    fn a_pod_that_does_as_it_should_is_not_blamed() {
        let none = Vec::<String>::new();
        let end = [
            "! remove p 1",
            "work pre-stop",
            "slow pre-stop",
            "work end",
            "more end",
            "slow end",
            "side end",
        ];
        assert_eq!(after_start(Kind::Service, &end), none);
        assert_eq!(after_start(Kind::Service, &[&end[..], &["first begin 2"]].concat()), none);
        // Cut off in its start, before anybody was told of it.
        assert_eq!(
            told(Kind::Job, &["first begin", "! kill agent", "first begin #2", "first done #2"]),
            none
        );
        assert_eq!(told(Kind::Service, &["first begin @old", "! kill runtime", "first begin"]), none);
        assert_eq!(told(Kind::Once, &["! kill runtime", "first begin", "first begin #2"]), none);
        // Its exit code was lost.
        assert_eq!(after_start(Kind::Job, &["! kill runtime", "work finish", "work begin #2"]), none);
        // The next agent knows nothing of the order.
        let orphaned = ["! remove p 1", "! launch agent", "slow pre-stop", "slow end", "more end"];
        assert_eq!(after_start(Kind::Service, &orphaned), none);
    }

    #[test]
    fn whatever_must_not_be_is_found() {
        for (kind, more, wrong) in [
            (Kind::Job, &["work finish", "! kill agent", "work begin #2"][..], "and nothing had died"),
            (Kind::Job, &["more begin #2"], "and nothing had died"),
            (
                Kind::Service,
                &["! launch agent", "! agent knows", "! remove p 1", "side end", "more end"],
                "side ended before more",
            ),
            (Kind::Once, &["! kill agent", "more begin #2"], "more ran twice, which"),
            (
                Kind::Service,
                &["more begin #2", "more end #2", "more begin #3"][..],
                "more began again after its end",
            ),
            (Kind::Service, &["work begin #2"], "work began again after its post-start"),
            (Kind::Service, &["slow begin #2"], "slow began again after its probed"),
            (
                Kind::Job,
                &["more finish", "! settled p 1", "more begin #2"],
                "more began when all was as it should be",
            ),
            (Kind::Once, &["more begin #2"], "more ran twice"),
            (Kind::Service, &["first begin #2"], "first began again after side had begun"),
            (Kind::Service, &["side begin @t"], "in another sandbox"),
            (Kind::Service, &["work end"], "work was stopped without its preStop hook"),
            (Kind::Service, &["side end", "more end"], "side ended before more"),
            (Kind::Job, &["side end", "more finish"], "side ended before more"),
            (Kind::Service, &["side end", "slow pre-stop", "slow end"], "side ended before slow"),
            (Kind::Service, &["more beside-another"], "more ran twice at once"),
            (Kind::Service, &["first begin 2", "more pre-stop"], "after version 2 had begun"),
        ] {
            let found = after_start(kind, more);
            assert!(found.iter().any(|w| w.contains(wrong)), "{wrong}: {found:?}");
        }
        let mut without = START.to_vec();
        without.remove(9);
        without.extend(["! kill runtime", "! settled p 1"]);
        let found = told(Kind::Service, &without);
        assert!(found.iter().any(|w| w.contains("its postStart hook never ran")), "{found:?}");
        for (at, wrong) in [
            (1, "second began before first was done"),
            (4, "slow began before second was done"),
            (6, "work began before slow was started"),
        ] {
            let mut short = START.to_vec();
            short.remove(at);
            let found = told(Kind::Service, &short);
            assert!(found.iter().any(|w| w.contains(wrong)), "{wrong}: {found:?}");
        }
    }
}
