//! One call of a plugin: `CredentialProviderRequest` on its standard input, `CredentialProviderResponse` from its standard
//! output. Bounded in time and size; a plugin that takes too long is killed with its children.

use super::super::Credential;
use super::config::ProviderConfig;
use crate::config::duration::GoDuration;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// How long a plugin may take.
pub const TIMEOUT: Duration = Duration::from_secs(60);
/// The longest answer taken.
const MAX_ANSWER: u64 = 1 << 20;
/// What of its complaints goes into the log.
const MAX_COMPLAINT: u64 = 4 << 10;

/// For what an answer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
pub enum CacheKeyType {
    /// This very image.
    Image,
    /// All of its registry (host and port).
    Registry,
    /// Every image the plugin is asked for.
    Global,
}

/// A plugin's answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// For what it holds.
    pub key_type: CacheKeyType,
    /// How long; `None` leaves that to the configuration, zero is not at all.
    pub held: Option<Duration>,
    /// By place.
    pub auth: BTreeMap<String, Credential>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    api_version: String,
    cache_key_type: CacheKeyType,
    cache_duration: Option<String>,
    auth: Option<BTreeMap<String, Auth>>,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

/// Asks the plugin about `image`.
///
/// # Errors
/// It cannot be run, fails, takes too long, or its answer is none; the text tells no secret.
pub async fn ask(config: &ProviderConfig, image: &str) -> Result<Answer, String> {
    let request = serde_json::json!({
        "apiVersion": config.api_version,
        "kind": "CredentialProviderRequest",
        "image": image,
    });
    let mut command = Command::new(&config.program);
    command.args(&config.args).envs(config.env.iter().map(|(n, v)| (n, v)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A group of its own, so that its children end with it.
    command.kill_on_drop(true).process_group(0);
    let child = command.spawn().map_err(|e| format!("cannot run {}: {e}", config.program.display()))?;
    let group = Group(child.id());
    let output = match tokio::time::timeout(TIMEOUT, talk(child, request.to_string())).await {
        Ok(output) => output?,
        Err(_) => return Err(format!("no answer within {} s", TIMEOUT.as_secs())),
    };
    drop(group);
    parse(&output, &config.api_version)
}

/// Kills what is left of the plugin's process group.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // Nothing left is as wanted.
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}

async fn talk(mut child: Child, request: String) -> Result<Vec<u8>, String> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // A plugin need not read what it is asked.
            let _ = stdin.write_all(request.as_bytes()).await;
        }
    };
    let ((), answer, complaint) = tokio::join!(write, read(stdout, MAX_ANSWER), read(stderr, MAX_COMPLAINT));
    let (answer, whole) = answer;
    if !whole {
        return Err(format!("its answer is longer than {MAX_ANSWER} bytes"));
    }
    let status = child.wait().await.map_err(|e| e.to_string())?;
    if !status.success() {
        let complaint = String::from_utf8_lossy(&complaint.0).trim().to_owned();
        return Err(format!("{status}: {complaint}"));
    }
    Ok(answer)
}

/// What comes, up to `limit`, and whether that was all. What comes after an answer that is too long is not read; of
/// complaints it is read and dropped, so that the plugin goes on.
async fn read(from: Option<impl AsyncRead + Unpin>, limit: u64) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    let Some(mut from) = from else { return (bytes, true) };
    // An error is an end; what it means shows in the exit status.
    let _ = (&mut from).take(limit + 1).read_to_end(&mut bytes).await;
    let whole = bytes.len() as u64 <= limit;
    if !whole && limit == MAX_COMPLAINT {
        let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    }
    bytes.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    (bytes, whole)
}

fn parse(bytes: &[u8], api_version: &str) -> Result<Answer, String> {
    if bytes.is_empty() {
        return Err("empty output from the plugin".to_owned());
    }
    // The parser's own words may quote a value, and values are secrets here.
    let response: Response = serde_json::from_slice(bytes).map_err(|e| {
        format!("its answer is no CredentialProviderResponse (line {}, column {})", e.line(), e.column())
    })?;
    if response.kind != "CredentialProviderResponse" {
        return Err(format!("kind: {:?} is not CredentialProviderResponse", response.kind));
    }
    if response.api_version != api_version {
        return Err(format!("apiVersion: {:?} is not {api_version}, as asked", response.api_version));
    }
    let held = match response.cache_duration {
        None => None,
        Some(text) => {
            let held =
                text.parse::<GoDuration>().map_err(|_| format!("cacheDuration: {text:?} is no duration"))?;
            // Less than no time is none: such an answer is not kept.
            Some(held.to_std())
        }
    };
    let auth = response.auth.unwrap_or_default().into_iter();
    let auth = auth.map(|(place, a)| (place, Credential::basic(&a.username, &a.password))).collect();
    Ok(Answer { key_type: response.cache_key_type, held, auth })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "credentialprovider.kubelet.k8s.io/v1";

    fn answer(rest: &str) -> String {
        format!(
            r#"{{"kind": "CredentialProviderResponse", "apiVersion": "{V1}", "cacheKeyType": "Image"{rest}}}"#
        )
    }

    #[test]
    fn answers_are_read_and_what_is_none_is_named_without_its_secrets() {
        let held = |rest: &str| parse(answer(rest).as_bytes(), V1).map(|a| a.held.map(|d| d.as_secs()));
        assert_eq!(held(""), Ok(None));
        assert_eq!(held(r#", "cacheDuration": "1h""#), Ok(Some(3600)));
        assert_eq!(held(r#", "cacheDuration": "0s""#), Ok(Some(0)));
        assert_eq!(held(r#", "cacheDuration": "-5s""#), Ok(Some(0)));
        assert!(held(r#", "cacheDuration": "long""#).is_err());
        let a = parse(answer(r#", "auth": {"r.test": {"username": "u", "password": "p"}}"#).as_bytes(), V1)
            .unwrap();
        assert_eq!(a.auth["r.test"], Credential::basic("u", "p"));
        assert_eq!(parse(b"", V1).unwrap_err(), "empty output from the plugin");
        assert!(
            parse(answer("").replace("Response", "Request").as_bytes(), V1).unwrap_err().starts_with("kind")
        );
        assert!(parse(answer("").as_bytes(), "other").unwrap_err().starts_with("apiVersion"));
        assert!(parse(answer("").replace("Image", "Moon").as_bytes(), V1).is_err());
        let secret = parse(answer(r#", "auth": "hunter2""#).as_bytes(), V1).unwrap_err();
        assert!(!secret.contains("hunter2"), "{secret}");
        assert!(!format!("{a:?}").contains("\"p\""));
    }

    /// Not a file of the test's own: one that was just written may be busy.
    fn plugin(script: &str) -> ProviderConfig {
        ProviderConfig {
            name: "plugin".into(),
            program: "/bin/sh".into(),
            match_images: vec!["*.test".into()],
            default_cache_duration: Duration::ZERO,
            api_version: V1.into(),
            args: ["-c", script, "plugin", "one"].map(str::to_owned).to_vec(),
            env: vec![("WHO".into(), "me".into())],
        }
    }

    #[tokio::test]
    async fn a_plugin_is_asked_over_its_standard_streams() {
        let auth =
            r#", \"auth\": {\"r.test\": {\"username\": \"$WHO\", \"password\": \"$1 $(cat | tr -d '\"')\"}}"#;
        let text = answer("AUTH").replace('"', "\\\"").replace("AUTH", auth);
        let got = ask(&plugin(&format!("echo \"{text}\"")), "r.test/x").await.unwrap();
        let credential = &got.auth["r.test"];
        assert_eq!(credential.username, "me");
        assert!(credential.password.starts_with("one {"), "{}", credential.password);
        assert!(credential.password.contains("image:r.test/x"), "{}", credential.password);
    }

    #[tokio::test]
    async fn failures_say_what_the_plugin_said_and_floods_are_cut() {
        let failed = ask(&plugin("echo no way >&2; exit 3"), "r.test/x").await.unwrap_err();
        assert!(failed.contains("exit status: 3: no way"), "{failed}");
        let flood = ask(&plugin("exec cat /dev/zero"), "r.test/x").await.unwrap_err();
        assert!(flood.contains("longer than"), "{flood}");
        let noisy = "head -c 1000000 /dev/zero >&2; exit 1";
        assert!(ask(&plugin(noisy), "r.test/x").await.is_err());
        let mut absent = plugin("");
        absent.program = "/nonexistent/plugin".into();
        assert!(ask(&absent, "r.test/x").await.unwrap_err().contains("cannot run"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_plugin_that_hangs_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // The child holds the pipe's other end open as long as it lives.
        let config = plugin(&format!("sleep 1000 9>'{}' & wait", fifo.display()));
        let opened = tokio::task::spawn_blocking({
            let fifo = fifo.clone();
            move || std::fs::File::open(fifo).unwrap()
        });
        let (asked, mut file) = tokio::join!(ask(&config, "r.test/x"), async { opened.await.unwrap() });
        assert_eq!(asked.unwrap_err(), "no answer within 60 s");
        let ended = tokio::task::spawn_blocking(move || std::io::Read::read(&mut file, &mut [0; 1]).unwrap());
        assert_eq!(ended.await.unwrap(), 0, "the child is gone");
    }
}
