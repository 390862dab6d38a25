//! Back-off of image pulls, per pod and image. Pure: the time is a parameter.
//!
//! The stock agent's rule: 10 s after the first failure, doubling up to 300 s; forgotten once twice the cap has passed
//! without another failure. A success does not shorten it.

use crate::api::PodUid;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// After the first failure.
pub const FIRST: Duration = Duration::from_secs(10);
/// At most.
pub const CAP: Duration = Duration::from_secs(300);

#[derive(Debug)]
struct Entry {
    wait: Duration,
    failed_at: Instant,
    /// Reason and text of the last failure.
    why: String,
}

/// Failed pulls not long ago.
#[derive(Debug, Default)]
pub struct Backoffs {
    entries: HashMap<(PodUid, String), Entry>,
}

impl Backoffs {
    /// The end of the wait and the last failure, while `pod` must not pull `image`.
    pub fn waiting(&self, pod: &PodUid, image: &str, now: Instant) -> Option<(Instant, &str)> {
        let entry = self.entries.get(&(pod.clone(), image.to_owned()))?;
        let end = entry.failed_at + entry.wait;
        (now < end).then_some((end, entry.why.as_str()))
    }

    /// A pull has failed. Forgets what is old, so that the table stays as small as the trouble is recent.
    pub fn failed(&mut self, pod: &PodUid, image: &str, why: String, now: Instant) {
        self.forget_old(now);
        let wait = match self.entries.get(&(pod.clone(), image.to_owned())) {
            Some(entry) => (entry.wait * 2).min(CAP),
            None => FIRST,
        };
        self.entries.insert((pod.clone(), image.to_owned()), Entry { wait, failed_at: now, why });
    }

    /// Drops entries nobody failed on for twice the cap.
    pub fn forget_old(&mut self, now: Instant) {
        self.entries.retain(|_, e| now.saturating_duration_since(e.failed_at) <= CAP * 2);
    }

    /// The pod is gone.
    pub fn forget(&mut self, pod: &PodUid) {
        self.entries.retain(|(uid, _), _| uid != pod);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_the_cap_and_start_over_after_twice_the_cap() {
        let (pod, mut b, mut now) = (PodUid::new("u"), Backoffs::default(), Instant::now());
        for want in [10, 20, 40, 80, 160, 300, 300] {
            b.failed(&pod, "i", format!("{want}"), now);
            let just_before = now + Duration::from_secs(want) - Duration::from_millis(1);
            let (end, why) = b.waiting(&pod, "i", just_before).expect("still waiting");
            assert_eq!((end - now, why), (Duration::from_secs(want), want.to_string().as_str()));
            now = end;
            assert!(b.waiting(&pod, "i", now).is_none());
        }
        now += Duration::from_secs(601);
        b.failed(&pod, "i", String::new(), now);
        assert_eq!(b.waiting(&pod, "i", now).map(|(end, _)| end - now), Some(FIRST));
    }

    #[test]
    fn pods_and_images_wait_each_for_itself_and_are_forgotten_with_the_pod() {
        let (one, two, now) = (PodUid::new("1"), PodUid::new("2"), Instant::now());
        let mut b = Backoffs::default();
        b.failed(&one, "i", String::new(), now);
        assert!(b.waiting(&two, "i", now).is_none() && b.waiting(&one, "j", now).is_none());
        b.failed(&two, "i", String::new(), now);
        b.forget(&one);
        assert!(b.waiting(&one, "i", now).is_none() && b.waiting(&two, "i", now).is_some());
        b.forget_old(now + CAP * 3);
        assert!(b.entries.is_empty());
    }
}
