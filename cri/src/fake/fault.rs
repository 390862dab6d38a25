//! Faults to order: calls that are slow, hang, fail, lose their answer or tell something wrong.
//!
//! A test hands a [`Fault`] to [`crate::fake::FakeRuntime::fault`] and keeps the [`FaultHandle`]. Each fault has a call, an
//! object if it is for one only, and a number of times. The fake asks [`Faults`] at two points of every call: before the
//! effect and after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tonic::{Code, Status};

/// A fault to order.
#[derive(Debug, Clone)]
pub struct Fault {
    call: &'static str,
    object: Option<String>,
    left: Option<u32>,
    pub(super) effect: Effect,
}

/// What a fault does.
#[derive(Debug, Clone)]
pub(super) enum Effect {
    Delay(Duration),
    Hang,
    Fail(Status),
    LoseAnswer,
    HangAnswer,
    UnknownState,
    Hide,
}

/// When in a call a fault acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Point {
    Before,
    After,
    /// Not by itself: asked for by the answers that it falsifies.
    Answer,
}

impl Fault {
    fn new(call: &'static str, effect: Effect) -> Self {
        Self { call, object: None, left: None, effect }
    }

    /// The call takes so much longer.
    #[must_use]
    pub fn delay(call: &'static str, by: Duration) -> Self {
        Self::new(call, Effect::Delay(by))
    }

    /// The call hangs, before it has any effect, until the handle releases it (or the caller gives up).
    #[must_use]
    pub fn hang(call: &'static str) -> Self {
        Self::new(call, Effect::Hang)
    }

    /// The call takes effect, and only its answer hangs until the handle releases it.
    #[must_use]
    pub fn hang_answer(call: &'static str) -> Self {
        Self::new(call, Effect::HangAnswer)
    }

    /// The call fails without an effect.
    #[must_use]
    pub fn fail(call: &'static str, code: Code, text: impl Into<String>) -> Self {
        Self::new(call, Effect::Fail(Status::new(code, text)))
    }

    /// The call takes effect, and its answer is lost: `Unavailable`, as when the connection breaks.
    #[must_use]
    pub fn lose_answer(call: &'static str) -> Self {
        Self::new(call, Effect::LoseAnswer)
    }

    /// ContainerStatus or ListContainers says `CONTAINER_UNKNOWN`.
    #[must_use]
    pub fn unknown_state(call: &'static str) -> Self {
        Self::new(call, Effect::UnknownState)
    }

    /// ListContainers or ListPodSandbox leaves the object out.
    #[must_use]
    pub fn hide(call: &'static str) -> Self {
        Self::new(call, Effect::Hide)
    }

    /// Only for this object: a sandbox's or container's id, a container's name, a pod's name or `namespace/name`, an
    /// image reference as it is in the call.
    #[must_use]
    pub fn object(mut self, object: impl Into<String>) -> Self {
        self.object = Some(object.into());
        self
    }

    /// Only so many times. Without it: until it is cancelled.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.left = Some(times);
        self
    }

    /// [`Fault::times`] of one.
    #[must_use]
    pub fn once(self) -> Self {
        self.times(1)
    }

    fn point(&self) -> Point {
        match self.effect {
            Effect::Delay(_) | Effect::Hang | Effect::Fail(_) => Point::Before,
            Effect::LoseAnswer | Effect::HangAnswer => Point::After,
            Effect::UnknownState | Effect::Hide => Point::Answer,
        }
    }
}

/// An ordered fault.
#[derive(Debug, Clone)]
pub struct FaultHandle {
    hits: Arc<AtomicU32>,
    released: Arc<watch::Sender<bool>>,
}

impl FaultHandle {
    /// How many calls it has struck.
    #[must_use]
    pub fn hits(&self) -> u32 {
        self.hits.load(Ordering::Relaxed)
    }

    /// Lets hanging calls go on, and strikes no further call.
    pub fn release(&self) {
        self.released.send_replace(true);
    }

    /// Waits until the fault has been released.
    pub(super) async fn released(&self) {
        // The sender is held by `self`, so this cannot fail before it is true.
        let _ = self.released.subscribe().wait_for(|released| *released).await;
    }
}

/// All ordered faults.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<(Fault, FaultHandle)>);

impl Faults {
    pub(super) fn order(&mut self, fault: Fault) -> FaultHandle {
        let handle = FaultHandle { hits: Arc::default(), released: Arc::new(watch::channel(false).0) };
        self.0.push((fault, handle.clone()));
        handle
    }

    /// The faults that strike a call at a point; each counts as having struck.
    pub(super) fn strike(
        &mut self,
        call: &str,
        names: &[String],
        point: Point,
    ) -> Vec<(Effect, FaultHandle)> {
        self.0.retain(|(fault, handle)| fault.left != Some(0) && !*handle.released.borrow());
        let mut struck = Vec::new();
        for (fault, handle) in &mut self.0 {
            let meant = fault.object.as_ref().is_none_or(|object| names.contains(object));
            if fault.call == call && fault.point() == point && meant {
                handle.hits.fetch_add(1, Ordering::Relaxed);
                fault.left = fault.left.map(|n| n - 1);
                struck.push((fault.effect.clone(), handle.clone()));
            }
        }
        struck
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_its_call_and_object_so_many_times() {
        let mut faults = Faults::default();
        let handle = faults.order(Fault::lose_answer("StartContainer").object("web").times(2));
        let names = ["id1".to_owned(), "web".to_owned()];
        assert!(faults.strike("StartContainer", &names, Point::Before).is_empty());
        assert!(faults.strike("StopContainer", &names, Point::After).is_empty());
        assert!(faults.strike("StartContainer", &["db".to_owned()], Point::After).is_empty());
        assert_eq!(faults.strike("StartContainer", &names, Point::After).len(), 1);
        assert_eq!(faults.strike("StartContainer", &names, Point::After).len(), 1);
        assert!(faults.strike("StartContainer", &names, Point::After).is_empty());
        assert_eq!(handle.hits(), 2);
    }

    #[test]
    fn a_released_fault_strikes_no_more() {
        let mut faults = Faults::default();
        let handle = faults.order(Fault::hang("Status"));
        assert_eq!(faults.strike("Status", &[], Point::Before).len(), 1);
        handle.release();
        assert!(faults.strike("Status", &[], Point::Before).is_empty());
    }
}
