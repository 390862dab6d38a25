//! How long each kind of call may take: pure policy, used by the client for every call it makes.
//!
//! The rules are those seen on the wire from the stock kubelet (`../shared/golden/cases/*/cri.jsonl`, `deadline_s`):
//! `runtimeRequestTimeout` for most calls, twice that for RunPodSandbox, the call's own seconds on top where it has some.

use std::time::Duration;

/// No call has longer, whatever it asks for: neither clocks nor gRPC's header can count every `Duration`.
pub(crate) const LONGEST: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// The deadlines of one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// `runtimeRequestTimeout` of the kubelet's configuration; 120 s unless told.
    pub base: Duration,
    /// Upper bound of a pull, whose progress CRI does not show; runtimes give up on pulls that stand still by
    /// themselves. 24 h unless told.
    pub pull: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { base: Duration::from_secs(120), pull: Duration::from_secs(24 * 60 * 60) }
    }
}

impl Deadlines {
    /// All but the calls below.
    #[must_use]
    pub fn plain(&self) -> Duration {
        self.base
    }

    /// RunPodSandbox, which may set up networking and pull the pause image: twice the base.
    #[must_use]
    pub fn run_pod_sandbox(&self) -> Duration {
        self.base.saturating_mul(2)
    }

    /// StopContainer and CheckpointContainer: their own seconds, then the base. Negative seconds count as none.
    #[must_use]
    pub fn on_top(&self, seconds: i64) -> Duration {
        self.base.saturating_add(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
    }

    /// ExecSync: the command's time-out and the base; none for a command that may run for ever.
    #[must_use]
    pub fn exec_sync(&self, timeout: Duration) -> Option<Duration> {
        (!timeout.is_zero()).then(|| self.base.saturating_add(timeout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_those_the_stock_kubelet_was_seen_to_use() {
        let d = Deadlines::default();
        let s = Duration::from_secs;
        assert_eq!(d.plain(), s(120));
        assert_eq!(d.run_pod_sandbox(), s(240));
        assert_eq!(d.on_top(30), s(150));
        assert_eq!(d.on_top(-1), s(120));
        assert_eq!(d.exec_sync(s(1)), Some(s(121)));
        assert_eq!(d.exec_sync(Duration::ZERO), None);
    }
}
