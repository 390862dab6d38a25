//! Rules about the source tree that the compiler does not check. The tables at the top are the rules; each
//! exception in them has its reason beside it.

#![allow(clippy::unwrap_used, reason = "the helpers of a test fail by panicking, as the test does")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Which workspace crates a crate may depend on. "Crates depend downwards only": a crate that is missing
/// here has no rule yet, and that fails too.
const CRATES: &[(&str, &[&str])] = &[
    ("cri", &[]),
    ("cni", &[]),
    ("cni-plugins", &["cni"]),
    ("kubelet", &["cri", "cni"]),
    ("xtask", &["cri", "cni", "kubelet"]),
    ("node-e2e", &["cri", "cni", "kubelet", "xtask"]),
    ("golden", &["cri", "cni", "kubelet", "xtask"]),
];

/// Development dependencies may go upwards only where a test needs the real thing.
const DEV_EXCEPTIONS: &[(&str, &str)] = &[
    // The conformance suite runs against a private containerd.
    ("cri", "xtask"),
    // So do the tests of the plugins under a runtime.
    ("cni-plugins", "xtask"),
    ("kubelet", "xtask"),
];

/// Rooms of the kubelet beside the flow: asked, or publishing facts, but never calling back into it.
const BESIDE_THE_FLOW: &[&str] = &[
    "allocation",
    "cgroup",
    "config",
    "evict",
    "image",
    "log",
    "metrics",
    "node",
    "objects",
    "probe",
    "resource",
    "server",
    "source",
    "stats",
    "trace",
    "userns",
    "volume",
];

/// The parts of the flow that those must not know.
const THE_FLOW: &[&str] = &["world", "pod", "pleg", "status", "assemble"];

/// `(room, part)` that may know each other after all.
const FLOW_EXCEPTIONS: &[(&str, &str)] = &[];

/// No file is longer; past this it is two files.
const MAX_LINES: usize = 800;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_path_buf()
}

/// Every Rust file of the tree, without what is built.
fn rust_files() -> Vec<PathBuf> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if name.starts_with('.') || name == "target" {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                walk(&path, found);
            } else if name.ends_with(".rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), &mut found);
    assert!(found.len() > 50, "the walk found only {} files", found.len());
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

fn assert_none(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn every_module_opens_by_saying_what_it_is_for() {
    let opens = |path: &PathBuf| fs::read_to_string(path).unwrap().starts_with("//!");
    assert_none(
        rust_files().iter().filter(|p| !opens(p)).map(|p| format!("{}: no `//!`", shown(p))).collect(),
    );
}

#[test]
fn no_file_is_too_long_to_answer_one_question() {
    let mut problems = Vec::new();
    for path in rust_files() {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        if lines > MAX_LINES {
            problems.push(format!("{}: {lines} lines, {MAX_LINES} at most", shown(&path)));
        }
    }
    assert_none(problems);
}

#[test]
fn no_lint_is_silenced_without_a_reason() {
    let mut problems = Vec::new();
    for path in rust_files() {
        let text = fs::read_to_string(&path).unwrap();
        for marker in [concat!("#[", "allow("), concat!("#![", "allow("), concat!("#[", "expect(")] {
            for (at, _) in text.match_indices(marker) {
                let attribute = text[at..].split_once(")]").map_or("", |(head, _)| head);
                if !attribute.contains("reason") {
                    problems.push(format!(
                        "{}: {}",
                        shown(&path),
                        attribute.lines().next().unwrap_or_default()
                    ));
                }
            }
        }
    }
    assert_none(problems);
}

#[test]
fn crates_depend_downwards_only() {
    let text = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&text.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let names: BTreeSet<&str> = packages.iter().map(|p| p["name"].as_str().unwrap()).collect();
    let mut problems = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let Some((_, allowed)) = CRATES.iter().find(|(n, _)| *n == name) else {
            problems.push(format!("crate {name} is not in the table of tests/tidy.rs"));
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap() {
            let on = dependency["name"].as_str().unwrap();
            let excepted =
                dependency["kind"] == "dev" && (on == name || DEV_EXCEPTIONS.contains(&(name, on)));
            if names.contains(on) && !allowed.contains(&on) && !excepted {
                problems.push(format!("crate {name} must not depend on {on}"));
            }
        }
    }
    assert_none(problems);
}

#[test]
fn rooms_beside_the_flow_never_call_back_into_it() {
    let rooms = root().join("kubelet/src");
    let mut problems = Vec::new();
    for path in rust_files() {
        let Ok(inside) = path.strip_prefix(&rooms) else { continue };
        let room = inside.iter().next().unwrap().to_string_lossy();
        let room = room.trim_end_matches(".rs");
        if !BESIDE_THE_FLOW.contains(&room) {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for part in THE_FLOW {
                if code.contains(&format!("crate::{part}::")) && !FLOW_EXCEPTIONS.contains(&(room, *part)) {
                    problems.push(format!(
                        "{}:{}: {room} must not use crate::{part}",
                        shown(&path),
                        number + 1
                    ));
                }
            }
        }
    }
    assert_none(problems);
}

#[test]
fn only_assemble_knows_every_room() {
    let rooms = root().join("kubelet/src");
    let mut problems = Vec::new();
    for path in rust_files() {
        let Ok(inside) = path.strip_prefix(&rooms) else { continue };
        if inside == Path::new("assemble.rs")
            || inside.starts_with("assemble")
            || inside == Path::new("lib.rs")
        {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let known = BESIDE_THE_FLOW.iter().filter(|room| text.contains(&format!("crate::{room}::")));
        let (known, present) =
            (known.count(), BESIDE_THE_FLOW.iter().filter(|r| rooms.join(r).exists()).count());
        if known + 1 >= present {
            problems.push(format!("{}: knows {known} of {present} rooms", shown(&path)));
        }
    }
    assert_none(problems);
}
