//! The three kinds of metric: handles that are cheap to clone and safe to feed from any thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A number that only grows.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<CounterCell>);

#[derive(Debug, Default)]
struct CounterCell {
    value: AtomicU64,
    fed: AtomicBool,
}

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.inc_by(1);
    }
    /// Adds `n`; adding 0 makes the counter visible.
    pub fn inc_by(&self, n: u64) {
        self.0.value.fetch_add(n, Relaxed);
        self.0.fed.store(true, Relaxed);
    }
    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.value.load(Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<GaugeCell>);

#[derive(Debug, Default)]
struct GaugeCell {
    bits: AtomicU64,
    fed: AtomicBool,
}

impl Gauge {
    /// Sets the value.
    pub fn set(&self, value: f64) {
        self.0.bits.store(value.to_bits(), Relaxed);
        self.0.fed.store(true, Relaxed);
    }
    /// Adds `delta`, which may be negative.
    pub fn add(&self, delta: f64) {
        add_f64(&self.0.bits, delta);
        self.0.fed.store(true, Relaxed);
    }
    /// Sets the gauge to now, in seconds since the epoch (the `*_last_seen_seconds` gauges).
    pub fn set_to_now(&self) {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        self.set(now.as_secs_f64());
    }
    /// The value.
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.bits.load(Relaxed))
    }
}

/// Counts of observations by upper bound, with their sum.
#[derive(Clone, Debug)]
pub struct Histogram(Arc<HistogramCell>);

#[derive(Debug)]
struct HistogramCell {
    bounds: &'static [f64],
    /// One count per bound and one above the last; not cumulative, so that an observation touches one cell.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
    fed: AtomicBool,
}

impl Histogram {
    /// A histogram over `bounds`, ascending, without the infinite one.
    pub fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(HistogramCell { bounds, counts, sum: AtomicU64::new(0), fed: AtomicBool::new(false) }))
    }
    /// Records `value`; a bound holds the values up to and including itself. NaN is dropped.
    pub fn observe(&self, value: f64) {
        if value.is_nan() {
            return;
        }
        let at = self.0.bounds.partition_point(|bound| *bound < value);
        self.0.counts[at].fetch_add(1, Relaxed);
        add_f64(&self.0.sum, value);
        self.0.fed.store(true, Relaxed);
    }
    /// Records a duration in seconds.
    pub fn observe_duration(&self, took: Duration) {
        self.observe(took.as_secs_f64());
    }
    /// How many observations there were.
    pub fn count(&self) -> u64 {
        self.0.counts.iter().map(|c| c.load(Relaxed)).sum()
    }
    /// The sum of the observations.
    pub fn sum(&self) -> f64 {
        f64::from_bits(self.0.sum.load(Relaxed))
    }
}

/// Adds to a float that lives in an integer cell.
fn add_f64(cell: &AtomicU64, delta: f64) {
    // The closure always gives Some, so the update cannot fail.
    let _ = cell.fetch_update(Relaxed, Relaxed, |bits| Some((f64::from_bits(bits) + delta).to_bits()));
}

/// What a registry needs of a metric: how it is made and how it prints its samples.
pub(super) trait Metric: Clone + Send + Sync + 'static {
    /// What is fixed at registration: bucket bounds for histograms, nothing for the others.
    type Shape: Copy + Send + Sync + std::fmt::Debug + 'static;
    const KIND: super::Kind;
    fn make(shape: Self::Shape) -> Self;
    fn fed(&self) -> bool;
    fn write(&self, name: &str, labels: &[(&str, &str)], w: &mut super::Writer);
}

impl Metric for Counter {
    type Shape = ();
    const KIND: super::Kind = super::Kind::Counter;
    fn make((): ()) -> Self {
        Self::default()
    }
    fn fed(&self) -> bool {
        self.0.fed.load(Relaxed)
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "the format has only floats; counts past 2^53 do not occur"
    )]
    fn write(&self, name: &str, labels: &[(&str, &str)], w: &mut super::Writer) {
        w.sample(name, "", labels, self.get() as f64);
    }
}

impl Metric for Gauge {
    type Shape = ();
    const KIND: super::Kind = super::Kind::Gauge;
    fn make((): ()) -> Self {
        Self::default()
    }
    fn fed(&self) -> bool {
        self.0.fed.load(Relaxed)
    }
    fn write(&self, name: &str, labels: &[(&str, &str)], w: &mut super::Writer) {
        w.sample(name, "", labels, self.get());
    }
}

impl Metric for Histogram {
    type Shape = &'static [f64];
    const KIND: super::Kind = super::Kind::Histogram;
    fn make(bounds: &'static [f64]) -> Self {
        Self::new(bounds)
    }
    fn fed(&self) -> bool {
        self.0.fed.load(Relaxed)
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "the format has only floats; counts past 2^53 do not occur"
    )]
    fn write(&self, name: &str, labels: &[(&str, &str)], w: &mut super::Writer) {
        let mut total = 0;
        for (i, count) in self.0.counts.iter().enumerate() {
            // The count line repeats this total, so the page is consistent in itself while being fed.
            total += count.load(Relaxed);
            let le = super::float(self.0.bounds.get(i).copied().unwrap_or(f64::INFINITY));
            w.bucket(name, labels, &le, total as f64);
        }
        w.sample(name, "_sum", labels, self.sum());
        w.sample(name, "_count", labels, total as f64);
    }
}
