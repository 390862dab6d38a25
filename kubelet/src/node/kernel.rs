//! Kernel settings that a node of pods should have, for `protectKernelDefaults`. Reads only.

use std::path::Path;

/// The settings, below `/proc/sys`, and their values; upstream's.
const WANTED: [(&str, i64); 6] = [
    ("vm/overcommit_memory", 1),
    ("vm/panic_on_oom", 0),
    ("kernel/panic", 10),
    ("kernel/panic_on_oops", 1),
    ("kernel/keys/root_maxkeys", 1_000_000),
    ("kernel/keys/root_maxbytes", 25_000_000),
];

/// What is otherwise than it should be, in upstream's words. `sys` is `/proc/sys`.
pub fn kernel_differences(sys: &Path) -> Vec<String> {
    let differs = |(setting, want): &(&str, i64)| {
        let text = std::fs::read_to_string(sys.join(setting));
        let actual = text.as_deref().map(str::trim).unwrap_or("none");
        (actual.parse() != Ok(*want)).then(|| {
            format!("invalid kernel flag: {setting}, expected value: {want}, actual value: {actual}")
        })
    };
    WANTED.iter().filter_map(differs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_that_differs_is_named_with_both_values() {
        let dir = tempfile::tempdir().unwrap();
        for (setting, value) in WANTED {
            let path = dir.path().join(setting);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("{value}\n")).unwrap();
        }
        assert!(kernel_differences(dir.path()).is_empty());
        std::fs::write(dir.path().join("kernel/panic"), "0\n").unwrap();
        std::fs::remove_file(dir.path().join("vm/panic_on_oom")).unwrap();
        assert_eq!(
            kernel_differences(dir.path()),
            [
                "invalid kernel flag: vm/panic_on_oom, expected value: 0, actual value: none",
                "invalid kernel flag: kernel/panic, expected value: 10, actual value: 0",
            ]
        );
    }
}
