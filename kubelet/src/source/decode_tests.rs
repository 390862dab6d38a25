//! Bad input, good input, and what is read over.

use super::*;

const GOOD: &str =
    "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: i}]}\n";

fn error(text: &str) -> String {
    manifest(text.as_bytes()).unwrap_err().to_string()
}

fn with_spec(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec: {spec}\n")
}

#[test]
fn bad_texts_are_refused_by_name() {
    for (text, want) in [
        ("", "empty"),
        (" \n\t\n", "empty"),
        ("---\n", "empty"),
        ("# nothing but a comment\n", "empty"),
        ("just words\n", "not an object: expected a mapping, found a string"),
        ("- a\n- b\n", "not an object: expected a mapping, found a list"),
        ("42", "not an object: expected a mapping, found a number"),
        ("a: [1, 2", "not YAML: "),
        ("{\"apiVersion\": \"v1\", \"ki", "not YAML: "),
        ("a: b: c\n", "not YAML: "),
        ("\u{1}\u{2}", "not text: byte 0x01 at offset 0"),
        ("kind: Pod\nmetadata: {name: a}\n", "apiVersion: expected \"v1\", found nothing"),
        ("apiVersion: v1\nmetadata: {name: a}\n", "kind: expected \"Pod\", found nothing"),
        ("apiVersion: v1\nkind: PodList\nitems: []\n", "kind: expected \"Pod\", found \"PodList\""),
        ("apiVersion: apps/v1\nkind: Deployment\n", "apiVersion: expected \"v1\", found \"apps/v1\""),
        ("apiVersion: 1\nkind: Pod\n", "apiVersion: expected \"v1\", found 1"),
        ("apiVersion: v1\nkind: [Pod]\n", "kind: expected \"Pod\", found a list"),
    ] {
        let got = error(text);
        assert!(got.starts_with(want), "{text:?}: {got}");
        assert!(!got.contains('\n'), "one line: {got:?}");
    }
    assert!(matches!(manifest(&[0xff, 0xfe, 0x00]), Err(DecodeError::NotText { byte: 0xff, offset: 0 })));
    assert!(
        matches!(manifest(b"\x7fELF\x02\x01\x01\x00"), Err(DecodeError::NotText { byte: 0x7f, .. })) || {
            // DEL is no control character to YAML; the version byte after it is.
            matches!(manifest(b"\x7fELF\x02\x01\x01\x00"), Err(DecodeError::NotText { byte: 2, offset: 4 }))
        }
    );
    assert!(matches!(manifest(&vec![b'a'; MAX_BYTES + 1]), Err(DecodeError::TooLarge)));
}

#[test]
fn every_truncation_of_a_manifest_is_refused_or_a_pod_without_panic() {
    for end in 0..GOOD.len() {
        let _ = manifest(&GOOD.as_bytes()[..end]);
    }
    assert!(manifest(GOOD.as_bytes()).is_ok());
}

#[test]
fn one_document_is_a_pod_and_two_are_refused() {
    assert!(matches!(manifest(format!("{GOOD}---\n{GOOD}").as_bytes()), Err(DecodeError::Documents(2))));
    for text in
        [format!("---\n{GOOD}"), format!("{GOOD}---\n"), format!("{GOOD}...\n"), format!("---\n---\n{GOOD}")]
    {
        assert!(manifest(text.as_bytes()).is_ok(), "{text}");
    }
}

#[test]
fn a_wrong_type_names_its_field_and_what_was_found() {
    for (spec, want) in [
        ("{containers: x}", "spec.containers: invalid type: string \"x\""),
        (
            "{containers: [{name: c, ports: [{containerPort: '80'}]}]}",
            "spec.containers[0].ports[0].containerPort: invalid type: string \"80\", expected i32",
        ),
        ("{containers: [{name: 5}]}", "spec.containers[0].name: invalid type: integer `5`"),
        (
            "{containers: [{name: c, env: [{name: A, value: true}]}]}",
            "spec.containers[0].env[0].value: invalid type: boolean `true`",
        ),
        ("{hostNetwork: 'true', containers: []}", "spec.hostNetwork: invalid type: string \"true\""),
        ("[a]", "spec: invalid type: sequence"),
    ] {
        let got = error(&with_spec(spec));
        assert!(got.starts_with(want), "{got}");
    }
}

#[test]
fn unknown_fields_and_repeated_keys_are_warnings_that_name_them() {
    let text = with_spec(
        "{containers: [{name: c, image: i, bogus: 1, env: []}], nope: {a: 1}, volumes: null, \
         nodeSelector: {any: thing}}",
    );
    let decoded = manifest(text.as_bytes()).unwrap();
    let warned: Vec<_> = decoded.warnings.iter().map(|w| w.field.as_str()).collect();
    assert_eq!(warned, ["spec.containers[0].bogus", "spec.nope"]);

    let decoded = manifest(GOOD.replace("{name: a}", "{name: a, name: b}").as_bytes()).unwrap();
    assert_eq!(decoded.object.metadata.name.as_deref(), Some("b"), "the last one wins, as upstream");
    assert_eq!(decoded.warnings.len(), 1);
    assert_eq!(decoded.warnings[0].field, "name");

    let json =
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","name":"b"},"spec":{"containers":[]}}"#;
    let decoded = manifest(json.as_bytes()).unwrap();
    assert_eq!((decoded.object.metadata.name.as_deref(), decoded.warnings.len()), (Some("b"), 1));
}

#[test]
fn scalars_are_read_as_upstream_reads_them() {
    let text = with_spec(
        "{hostNetwork: yes, hostPID: True, hostIPC: off, hostname: y, nodeSelector: {on: no}, volumes: [{name: v, configMap: {name: c, defaultMode: 0644}}], \
         containers: [{name: c, resources: {limits: {cpu: 0.5, memory: 64Mi, x.io/y: 3}}}]}",
    );
    let spec = manifest(text.as_bytes()).unwrap().object.spec.unwrap();
    assert_eq!((spec.host_network, spec.host_pid, spec.host_ipc), (Some(true), Some(true), Some(false)));
    assert_eq!((spec.hostname.as_deref(), spec.node_selector.unwrap()["on"].as_str()), (Some("y"), "no"));
    assert_eq!(spec.volumes.unwrap()[0].config_map.as_ref().unwrap().default_mode, Some(0o644));
    let limits = spec.containers[0].resources.as_ref().unwrap().limits.as_ref().unwrap();
    assert_eq!((limits["cpu"].0.as_str(), limits["x.io/y"].0.as_str()), ("0.5", "3"));
}

#[test]
fn json_with_tabs_is_read() {
    let json =
        "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Pod\",\n\t\"metadata\": {\"name\": \"a\\u00e9\"}\n}";
    assert_eq!(manifest(json.as_bytes()).unwrap().object.metadata.name.as_deref(), Some("aé"));
}

#[test]
fn an_alias_bomb_and_deep_nesting_are_refused_quickly() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        let refs = vec![format!("*a{}", i - 1); 10].join(", ");
        bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
    }
    assert!(matches!(manifest(bomb.as_bytes()), Err(DecodeError::Syntax(_))));
    assert!(matches!(manifest("[".repeat(100_000).as_bytes()), Err(DecodeError::Syntax(_))));
    assert!(matches!(manifest("{\"a\":".repeat(100_000).as_bytes()), Err(DecodeError::Syntax(_))));
}

#[test]
fn a_syntax_error_says_where_and_shows_nothing_of_the_file() {
    let got = error("kind: Pod\npassword: hunter2\nspec: [a, b\n");
    assert!(got.contains("line") && !got.contains("hunter2"), "{got}");
}

/// What this thread has computed: other than the clock on the wall it does not depend on who else does.
fn cpu_seconds() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    let (_, after_name) = stat.rsplit_once(')').unwrap();
    let ticks = after_name.split_whitespace().skip(11).take(2).map(|t| t.parse::<u64>().unwrap());
    ticks.sum::<u64>() / 100
}

#[test]
fn a_flood_of_errors_is_bounded_in_size_and_time() {
    let mounts = r#"{"name":"n","mountPath":"/a"},"#.repeat(100_000);
    let volumes: String = (0..100_000).map(|i| format!(r#"{{"name":"V{i}"}},"#)).collect();
    let json = format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"a"}},"spec":{{"containers":[{{"name":"c","x":1,
        "image":"i","volumeMounts":[{}]}}],"volumes":[{}]}}}}"#,
        mounts.trim_end_matches(','),
        volumes.trim_end_matches(',')
    );
    let started = cpu_seconds();
    let text = decode_pod(json.as_bytes()).unwrap_err().to_string();
    assert!(text.len() < 20_000, "{}", text.len());
    assert!(cpu_seconds() - started < 30);

    let booleans: String =
        (0..20_000).map(|i| format!("  - {{name: c{i}, image: i, stdin: yes}}\n")).collect();
    let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  containers:\n{booleans}");
    assert!(matches!(manifest(text.as_bytes()), Err(DecodeError::Type(_))));
    assert!(cpu_seconds() - started < 60);
}

mod properties {
    use crate::source::static_pod;
    use proptest::prelude::*;

    const RICH: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: a, labels: {a: b}, annotations: {c: 'd'}}
spec:
  hostNetwork: yes
  volumes: [{name: v, emptyDir: {sizeLimit: 1Mi}}, {name: h, hostPath: {path: /x}}]
  containers:
  - name: c
    image: i
    ports: [{containerPort: 80, hostPort: 80}]
    env: [{name: A, value: '1'}, {name: B, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}]
    resources: {limits: {cpu: 500m, memory: 1.5Gi}}
    volumeMounts: [{name: v, mountPath: /v, subPath: a/b}]
    livenessProbe: {httpGet: {port: web, path: /}, periodSeconds: 3}
    lifecycle: {preStop: {sleep: {seconds: 3}}}
";

    proptest! {
        /// Whatever is done to a manifest's bytes, it is a pod or an error, never a panic.
        #[test]
        fn no_change_to_a_manifest_makes_it_panic(
            edits in prop::collection::vec((0..RICH.len(), prop::collection::vec(any::<u8>(), 0..6), 0..12usize), 1..6)
        ) {
            let mut bytes = RICH.as_bytes().to_vec();
            for (at, insert, cut) in edits {
                let at = at.min(bytes.len());
                let end = (at + cut).min(bytes.len());
                bytes.splice(at..end, insert);
            }
            let _ = static_pod(&bytes, "/m/a", "n").map_err(|e| e.to_string());
        }

        /// The same with scalars that a field of numbers, amounts or names might stumble over.
        #[test]
        fn no_scalar_makes_a_manifest_panic(line in 4..15usize, scalar in "[-+]?[0-9.]{0,45}[a-zA-Z'/\\[:]{0,3}[0-9]{0,3}") {
            let lines: Vec<String> = RICH
                .lines()
                .enumerate()
                .map(|(i, l)| match l.rsplit_once(": ") {
                    Some((head, tail)) if i == line => {
                        let close: String = tail.chars().skip_while(|c| !matches!(c, '}' | ']')).collect();
                        format!("{head}: {scalar}{close}")
                    }
                    _ => l.to_owned(),
                })
                .collect();
            let _ = static_pod(lines.join("\n").as_bytes(), "/m/a", "n").map_err(|e| e.to_string());
        }
    }

    #[test]
    fn the_manifest_they_start_from_is_valid() {
        let mended = RICH.replace("containerPort: 80, hostPort: 80", "containerPort: 80");
        assert!(static_pod(mended.as_bytes(), "/m/a", "n").is_ok());
    }
}
