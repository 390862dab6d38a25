//! What probes and hooks met in the recording, acted out: a [`Prober`] that answers as the containers did, when they did.
//!
//! The stock agent begins to probe at a moment of its own (its timer runs from the pod's creation); ours as soon as the
//! container runs. So that containers fail when they did, a question waits for the moment at which the recorded one of
//! the same number was put, and for ever when none was. Commands are in the recorded calls; what was asked over the
//! network shows in events and in when containers were stopped for it.

use crate::case::Case;
use base64::Engine as _;
use cri::fake::FakeRuntime;
use futures::future::BoxFuture;
use kubelet::probe::http::{Get, GetError};
use kubelet::probe::{Answer, Kind, Prober, Question};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// A container is stopped so soon after the answer that it is stopped for, in seconds.
const BEFORE_STOP: f64 = 0.05;
/// Exit code of what was killed.
const KILLED: i64 = 137;

/// When it was given, and what.
type Given = (f64, Answer);

/// Answers as recorded.
pub struct Recorded {
    fake: FakeRuntime,
    began: Instant,
    script: Arc<Script>,
    /// How often each instance was asked each of its probes.
    asked: Mutex<BTreeMap<(String, Kind), usize>>,
}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorded")
    }
}

impl Recorded {
    /// For `case`, which begins now.
    pub fn new(case: &Case, fake: &FakeRuntime) -> Self {
        Self {
            fake: fake.clone(),
            began: Instant::now(),
            script: Arc::new(Script::of(case)),
            asked: Mutex::default(),
        }
    }
}

impl Prober for Recorded {
    /// Every hook of the recordings that asked got an answer.
    fn get(&self, _: Get) -> BoxFuture<'static, Result<(), GetError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn ask(&self, question: Question) -> BoxFuture<'static, Answer> {
        let meta = self.fake.containers().into_iter().find(|c| c.id == question.instance);
        let meta = meta.and_then(|c| c.metadata).unwrap_or_default();
        let instance = format!("ctr-{}-{}", meta.name, meta.attempt);
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = asked.entry((instance.clone(), question.kind)).or_default();
        let given = self.script.answer(&question, &meta.name, &instance, *turn);
        *turn += 1;
        let began = self.began;
        Box::pin(async move {
            match given {
                Some((at, answer)) => {
                    tokio::time::sleep_until(began + Duration::from_secs_f64(at.max(0.0))).await;
                    answer
                }
                None => std::future::pending().await,
            }
        })
    }
}

/// What was recorded. Pure.
#[derive(Debug)]
struct Script {
    /// By instance and command: the answers in order.
    commands: BTreeMap<(String, Vec<String>), Vec<Given>>,
    /// By container and probe: what it said over the network.
    network: BTreeMap<(String, String), Answer>,
    /// When each instance was stopped while nobody had deleted the pod.
    stops: BTreeMap<String, f64>,
}

impl Script {
    fn of(case: &Case) -> Self {
        let stops: BTreeMap<String, f64> =
            case.calls_of("StopContainer").map(|c| (c.text("container_id").to_owned(), c.at)).collect();
        let mut commands: BTreeMap<_, Vec<Given>> = BTreeMap::new();
        for call in case.calls_of("ExecSync") {
            let instance = call.text("container_id").to_owned();
            let timeout = call.text("timeout").parse::<f64>().unwrap_or(0.0);
            let ended = call.at + call.took.unwrap_or(0.0);
            let words = call.request["cmd"].as_array().into_iter().flatten();
            let command: Vec<String> = words.filter_map(Value::as_str).map(str::to_owned).collect();
            let answer = match &call.error {
                None => {
                    let code = call.response["exit_code"].as_i64().unwrap_or(0);
                    let printed = ["stdout", "stderr"].map(|f| text(&call.response[f])).concat();
                    if code == 0 { Answer::Success } else { Answer::Failure(printed) }
                }
                Some((code, _)) if code == "DeadlineExceeded" => Answer::Failure(format!(
                    "command timed out: {:?} timed out after {timeout}s",
                    command.join(" ")
                )),
                Some((code, message)) => {
                    Answer::Unknown(format!("rpc error: code = {code} desc = {message}"))
                }
            };
            // What was begun when the container was being stopped, or was killed with it, has no answer that matters.
            let killed = call.error.is_some() || call.response["exit_code"] == KILLED;
            let stop = stops.get(&instance).copied().unwrap_or(f64::INFINITY);
            if call.at < stop && !(killed && ended >= stop) || call.at <= stop && !killed {
                let at = ended.min(stop - BEFORE_STOP);
                commands.entry((instance, command)).or_default().push((at, answer));
            }
        }
        let rows = case.pods.iter().flat_map(|p| &p.rows);
        let deleted = rows.filter(|r| r.deletion_grace.is_some()).map(|r| r.at).fold(f64::INFINITY, f64::min);
        let stops = stops.into_iter().filter(|(_, at)| *at < deleted).collect();
        Self { commands, network: network(case), stops }
    }

    fn answer(&self, question: &Question, name: &str, instance: &str, turn: usize) -> Option<Given> {
        let (_, probe) = question.probe()?;
        if let Some(command) = probe.exec.as_ref().map(|e| e.command.clone().unwrap_or_default()) {
            return self.commands.get(&(instance.to_owned(), command))?.get(turn).cloned();
        }
        let said = self.network.get(&(name.to_owned(), question.kind.to_string()));
        match (question.kind, said) {
            (_, None) => Some((0.0, Answer::Success)),
            (Kind::Readiness, Some(answer)) | (_, Some(answer @ Answer::Warning(_))) => {
                Some((0.0, answer.clone()))
            }
            // It was stopped for this answer.
            (_, Some(answer)) => Some((self.stops.get(instance)? - BEFORE_STOP, answer.clone())),
        }
    }
}

/// What events tell: of several messages of one probe the most frequent, as the others are of a container that was being
/// stopped.
fn network(case: &Case) -> BTreeMap<(String, String), Answer> {
    let mut said: BTreeMap<(String, String), (u64, Answer)> = BTreeMap::new();
    for event in case.pods.iter().flat_map(|p| &p.events) {
        let message = event["message"].as_str().unwrap_or_default();
        let path = event["fieldPath"].as_str().unwrap_or_default();
        let name = path.split(['{', '}']).nth(1).unwrap_or_default().to_owned();
        let count = event["count"].as_u64().unwrap_or(1);
        let parsed = [" probe failed: ", " probe warning: "].into_iter().find_map(|middle| {
            let (kind, text) = message.split_once(middle)?;
            let warning = middle.contains("warning");
            let answer =
                if warning { Answer::Warning(text.to_owned()) } else { Answer::Failure(text.to_owned()) };
            Some((kind.to_lowercase(), answer))
        });
        let Some((kind, answer)) = parsed else { continue };
        let known = said.entry((name, kind)).or_insert((0, Answer::Success));
        if count > known.0 {
            *known = (count, answer);
        }
    }
    said.into_iter().map(|(key, (_, answer))| (key, answer)).collect()
}

fn text(base64: &Value) -> String {
    let bytes = base64::engine::general_purpose::STANDARD.decode(base64.as_str().unwrap_or_default());
    String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
}

/// Unhealthy events of probes that were put to a container while it was being stopped: the stock agent asks once more
/// whenever it looks at the pod, ours when the probe's time has come. Messages as the recording has them.
pub fn while_stopping(case: &Case, message: &str) -> bool {
    let failed = |text: &str| message.ends_with(&format!(" probe failed: {text}"));
    let errored =
        |text: &str| message.ends_with(&format!(" probe errored and resulted in unknown state: {text}"));
    let commands = case.calls_of("ExecSync").any(|call| {
        let timeout = call.text("timeout").parse::<f64>().unwrap_or(0.0);
        let stopped =
            case.calls_of("StopContainer").find(|s| s.text("container_id") == call.text("container_id"));
        let late = stopped.is_some_and(|s| call.at + timeout >= s.at);
        late && match &call.error {
            None => failed(&["stdout", "stderr"].map(|f| text(&call.response[f])).concat()),
            Some((code, message)) => errored(&format!("rpc error: code = {code} desc = {message}")),
        }
    });
    // A server that was killed while it was asked.
    commands || message.contains("error reading from server") && message.contains("connection reset by peer")
}
