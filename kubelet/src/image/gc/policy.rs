//! Which images may go, in which order, and how many. Pure: times are parameters.
//!
//! The stock agent's rules: what a container uses, what is pinned and what is too young stays. Images go least recently used
//! first, then the longest known. Over the high threshold so many go that usage falls to the low one; those unused for
//! longer than the maximum age go in any case, once the agent has run for so long itself. What was there before the agent
//! began counts as old.

use cri::v1::Image;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// When images go.
#[derive(Clone, Copy, Debug)]
pub struct GcConfig {
    /// `imageGCHighThresholdPercent`; 100 is never.
    pub high_percent: u8,
    /// `imageGCLowThresholdPercent`
    pub low_percent: u8,
    /// `imageMinimumGCAge`
    pub min_age: Duration,
    /// `imageMaximumGCAge`; zero is never.
    pub max_age: Duration,
    /// How often the agent looks when no pull makes it look.
    pub net: Duration,
}

impl Default for GcConfig {
    /// The configuration's defaults.
    fn default() -> Self {
        let (min_age, max_age, net) = (Duration::from_secs(120), Duration::ZERO, Duration::from_secs(300));
        Self { high_percent: 85, low_percent: 80, min_age, max_age, net }
    }
}

impl GcConfig {
    /// Whether anything can ever go.
    pub fn is_on(&self) -> bool {
        self.high_percent < 100 || !self.max_age.is_zero()
    }
}

/// The image filesystem, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// All of it.
    pub capacity: u64,
    /// What is free for all.
    pub available: u64,
}

/// A filesystem of no size.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid capacity 0 on image filesystem")]
pub struct NoCapacity;

impl Usage {
    /// Percent in use, rounded as upstream rounds it.
    ///
    /// # Errors
    /// The filesystem has no size.
    pub fn percent(self) -> Result<u8, NoCapacity> {
        if self.capacity == 0 {
            return Err(NoCapacity);
        }
        let free = u128::from(self.available.min(self.capacity)) * 100 / u128::from(self.capacity);
        Ok(100 - u8::try_from(free).unwrap_or(100))
    }

    /// How many bytes must go, if the high threshold is reached.
    ///
    /// # Errors
    /// The filesystem has no size.
    pub fn to_free(self, config: &GcConfig) -> Result<Option<u64>, NoCapacity> {
        if self.percent()? < config.high_percent || config.high_percent >= 100 {
            return Ok(None);
        }
        let wanted = u128::from(self.capacity) * u128::from(100 - config.low_percent.min(100)) / 100;
        let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
        Ok(Some(wanted.saturating_sub(self.available.min(self.capacity))))
    }
}

/// What is known of an image.
#[derive(Clone, Copy, Debug)]
struct Record {
    /// `None`: it was there when the agent began.
    first_seen: Option<Instant>,
    /// `None`: never since the agent began.
    last_used: Option<Instant>,
}

/// An image that nothing keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub id: String,
    /// All it goes by, the id among it.
    pub names: Vec<String>,
    /// Bytes that its removal frees.
    pub size: u64,
    first_seen: Option<Instant>,
    last_used: Option<Instant>,
}

/// Since when images are known and used, in memory. Bounded by the images that are here.
#[derive(Debug)]
pub struct Records {
    began: Instant,
    /// A first look has been taken.
    looked: bool,
    by_id: HashMap<String, Record>,
}

impl Records {
    pub fn new(now: Instant) -> Self {
        Self { began: now, looked: false, by_id: HashMap::new() }
    }

    /// An image is being used now.
    pub fn touch(&mut self, id: &str, now: Instant) {
        if let Some(record) = self.by_id.get_mut(id) {
            record.last_used = Some(now);
        }
    }

    /// Takes down what is here and `used` (by any of its names), forgets what is not here, and answers what could go, in
    /// order.
    pub fn look(&mut self, images: &[Image], used: &HashSet<String>, now: Instant) -> Vec<Candidate> {
        let first_seen = self.looked.then_some(now);
        self.looked = true;
        let here: HashSet<&str> = images.iter().map(|i| i.id.as_str()).collect();
        self.by_id.retain(|id, _| here.contains(id.as_str()));
        let mut candidates = Vec::new();
        for image in images {
            let fresh = Record { first_seen, last_used: None };
            let record = self.by_id.entry(image.id.clone()).or_insert(fresh);
            let names: Vec<String> = names(image).map(str::to_owned).collect();
            if names.iter().any(|name| used.contains(name)) {
                record.last_used = Some(now);
            } else if !image.pinned {
                let Record { first_seen, last_used } = *record;
                let (id, size) = (image.id.clone(), image.size);
                candidates.push(Candidate { id, names, size, first_seen, last_used });
            }
        }
        candidates
            .sort_by(|a, b| (a.last_used, a.first_seen, &a.id).cmp(&(b.last_used, b.first_seen, &b.id)));
        candidates
    }

    /// Those of `candidates` that have been unused for too long; the others stay in it.
    pub fn take_old(
        &self,
        candidates: &mut Vec<Candidate>,
        config: &GcConfig,
        now: Instant,
    ) -> Vec<Candidate> {
        let run = now.saturating_duration_since(self.began);
        if config.max_age.is_zero() || run <= config.max_age {
            return Vec::new();
        }
        let old = |c: &Candidate| {
            // One that was never used has been unused for as long as it is known.
            let since = c.last_used.max(c.first_seen).unwrap_or(self.began);
            now.saturating_duration_since(since) > config.max_age
        };
        let (old, rest) = std::mem::take(candidates).into_iter().partition(old);
        *candidates = rest;
        old
    }
}

/// All that an image goes by.
pub fn names(image: &Image) -> impl Iterator<Item = &str> {
    let others = image.repo_tags.iter().chain(&image.repo_digests).map(String::as_str);
    std::iter::once(image.id.as_str()).chain(others)
}

/// Removals until enough is free: asks for one after the other and is told what came of each.
#[derive(Debug)]
pub struct Freeing {
    rest: VecDeque<Candidate>,
    wanted: u64,
    /// Bytes freed so far.
    pub freed: u64,
}

impl Freeing {
    /// `candidates` in order; those that are too young are left out.
    pub fn new(candidates: Vec<Candidate>, wanted: u64, config: &GcConfig, now: Instant) -> Self {
        let of_age = |c: &Candidate| {
            c.first_seen.is_none_or(|seen| now.saturating_duration_since(seen) >= config.min_age)
        };
        Self { rest: candidates.into_iter().filter(of_age).collect(), wanted, freed: 0 }
    }

    /// What to remove next, as long as there is need.
    pub fn next(&mut self) -> Option<Candidate> {
        if self.freed >= self.wanted { None } else { self.rest.pop_front() }
    }

    /// What was asked for is gone.
    pub fn removed(&mut self, size: u64) {
        self.freed = self.freed.saturating_add(size);
    }

    /// Whether enough is free.
    pub fn enough(&self) -> bool {
        self.freed >= self.wanted
    }
}

/// Upstream's words for a disk that stays full.
pub fn not_enough(percent: u8, capacity: u64, freed: u64) -> String {
    format!(
        "Insufficient free disk space on the node's image filesystem ({percent}% of {} used). Failed to free sufficient \
         space by deleting unused images (freed {freed} bytes). Investigate disk usage, as it could be used by active \
         images, logs, volumes, or other data.",
        human(capacity)
    )
}

fn human(bytes: u64) -> String {
    let units = [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(size, _)| bytes >= *size) {
        Some((size, unit)) => format!("{:.1} {unit}", bytes as f64 / *size as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
