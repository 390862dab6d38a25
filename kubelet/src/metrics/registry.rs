//! The registry: what families there are, and the page they make.

use super::value::Metric;
use super::{Counter, Gauge, Histogram, Kind, Writer};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

/// A family with `N` labels. Cloning is cheap; all clones share the series.
///
/// Series are capped: past [`MAX_SERIES`] new label values feed one series that is not shown, so that names from
/// outside cannot grow the agent without bound.
#[derive(Clone)]
pub struct Family<M: Shaped, const N: usize>(Arc<FamilyCell<M, N>>);

/// How many label combinations one family keeps.
pub const MAX_SERIES: usize = 2000;

/// The kinds of metric a family can hold: [`Counter`], [`Gauge`], [`Histogram`].
#[expect(private_bounds, reason = "seals the trait: the kinds of metric are fixed by the format")]
pub trait Shaped: Metric {}
impl Shaped for Counter {}
impl Shaped for Gauge {}
impl Shaped for Histogram {}

struct FamilyCell<M: Metric, const N: usize> {
    labels: [&'static str; N],
    shape: M::Shape,
    /// Sorted by label values, so that a look-up needs no allocation and the page is in order.
    series: RwLock<Vec<Series<M, N>>>,
    overflow: M,
}

type Series<M, const N: usize> = ([Box<str>; N], M);

impl<M: Shaped, const N: usize> Family<M, N> {
    fn new(labels: [&'static str; N], shape: M::Shape) -> Self {
        let overflow = M::make(shape);
        Self(Arc::new(FamilyCell { labels, shape, series: RwLock::default(), overflow }))
    }

    /// The metric for these label values, in the order the labels were declared; made when it is not there.
    pub fn with(&self, values: [&str; N]) -> M {
        let find = |series: &Vec<Series<M, N>>| {
            series.binary_search_by(|(have, _)| have.iter().map(AsRef::as_ref).cmp(values.iter().copied()))
        };
        {
            let series = self.0.series.read().unwrap_or_else(PoisonError::into_inner);
            if let Ok(at) = find(&series) {
                return series[at].1.clone();
            }
        }
        let mut series = self.0.series.write().unwrap_or_else(PoisonError::into_inner);
        match find(&series) {
            Ok(at) => series[at].1.clone(),
            Err(_) if series.len() >= MAX_SERIES => self.0.overflow.clone(),
            Err(at) => {
                let metric = M::make(self.0.shape);
                series.insert(at, (values.map(Box::from), metric.clone()));
                metric
            }
        }
    }

    /// Forgets the series of these label values.
    pub fn remove(&self, values: [&str; N]) {
        let mut series = self.0.series.write().unwrap_or_else(PoisonError::into_inner);
        series.retain(|(have, _)| !have.iter().map(AsRef::as_ref).eq(values.iter().copied()));
    }

    /// Forgets every series (a family whose label values are a snapshot, such as names of what exists now).
    pub fn clear(&self) {
        self.0.series.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl<M: Shaped, const N: usize> fmt::Debug for Family<M, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Family").field("labels", &self.0.labels).finish_non_exhaustive()
    }
}

/// Something that writes samples of its family or families.
trait Collect: Send + Sync {
    fn collect(&self, w: &mut Writer);
}

struct Plain<M> {
    name: &'static str,
    help: &'static str,
    metric: M,
}

impl<M: Metric> Collect for Plain<M> {
    fn collect(&self, w: &mut Writer) {
        if self.metric.fed() {
            w.family(self.name, self.help, M::KIND);
            self.metric.write(self.name, &[], w);
        }
    }
}

struct Labelled<M: Shaped, const N: usize> {
    name: &'static str,
    help: &'static str,
    family: Family<M, N>,
}

impl<M: Shaped, const N: usize> Collect for Labelled<M, N> {
    fn collect(&self, w: &mut Writer) {
        w.family(self.name, self.help, M::KIND);
        let cell = &self.family.0;
        for (values, metric) in cell.series.read().unwrap_or_else(PoisonError::into_inner).iter() {
            let mut labels = [("", ""); N];
            for (at, slot) in labels.iter_mut().enumerate() {
                *slot = (cell.labels[at], values[at].as_ref());
            }
            metric.write(self.name, &labels, w);
        }
    }
}

impl<F: Fn(&mut Writer) + Send + Sync> Collect for F {
    fn collect(&self, w: &mut Writer) {
        self(w);
    }
}

/// All families of the agent. Cloning is cheap.
#[derive(Clone, Default)]
pub struct Registry(Arc<RwLock<BTreeMap<&'static str, Arc<dyn Collect>>>>);

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.0.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_list().entries(names.keys()).finish()
    }
}

impl Registry {
    /// Adds a counter without labels.
    pub fn counter(&self, name: &'static str, help: &'static str) -> Counter {
        self.plain(name, help, ())
    }
    /// Adds a gauge without labels.
    pub fn gauge(&self, name: &'static str, help: &'static str) -> Gauge {
        self.plain(name, help, ())
    }
    /// Adds a histogram without labels over `bounds` (ascending, without infinity).
    pub fn histogram(&self, name: &'static str, help: &'static str, bounds: &'static [f64]) -> Histogram {
        self.plain(name, help, bounds)
    }
    /// Adds a counter with labels; `labels` in alphabetical order, as the page shows them.
    pub fn counters<const N: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
    ) -> Family<Counter, N> {
        self.labelled(name, help, labels, ())
    }
    /// Adds a gauge with labels; `labels` in alphabetical order.
    pub fn gauges<const N: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
    ) -> Family<Gauge, N> {
        self.labelled(name, help, labels, ())
    }
    /// Adds a histogram with labels; `labels` in alphabetical order.
    pub fn histograms<const N: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
        bounds: &'static [f64],
    ) -> Family<Histogram, N> {
        self.labelled(name, help, labels, bounds)
    }
    /// Adds a gauge that is asked for its value when the page is made. `value` must not block.
    pub fn gauge_fn(
        &self,
        name: &'static str,
        help: &'static str,
        value: impl Fn() -> f64 + Send + Sync + 'static,
    ) {
        self.collector(name, move |w| {
            w.family(name, help, Kind::Gauge);
            w.sample(name, "", &[], value());
        });
    }
    /// Adds a collector that writes whole families when the page is made; `first` is the first family's name, which
    /// orders it on the page and keeps it from being added twice.
    pub fn collector(&self, first: &'static str, collect: impl Fn(&mut Writer) + Send + Sync + 'static) {
        self.add(first, Arc::new(collect));
    }

    /// The whole page.
    pub fn render(&self) -> String {
        self.chunks(usize::MAX).collect()
    }

    /// The page in pieces of about `size` bytes, each made when it is asked for: a slow reader holds one piece and
    /// the list of families, not the page.
    pub fn chunks(&self, size: usize) -> impl Iterator<Item = String> + Send + use<> {
        let families: Vec<Arc<dyn Collect>> =
            self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let mut families = families.into_iter();
        std::iter::from_fn(move || {
            let mut w = Writer::default();
            for family in families.by_ref() {
                family.collect(&mut w);
                if w.len() >= size {
                    break;
                }
            }
            (!w.is_empty()).then(|| w.take())
        })
    }

    fn plain<M: Metric>(&self, name: &'static str, help: &'static str, shape: M::Shape) -> M {
        let metric = M::make(shape);
        self.add(name, Arc::new(Plain { name, help, metric: metric.clone() }));
        metric
    }

    fn labelled<M: Shaped, const N: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
        shape: M::Shape,
    ) -> Family<M, N> {
        debug_assert!(labels.is_sorted(), "labels of {name} are not in alphabetical order");
        let family = Family::new(labels, shape);
        self.add(name, Arc::new(Labelled { name, help, family: family.clone() }));
        family
    }

    fn add(&self, name: &'static str, collect: Arc<dyn Collect>) {
        let before = self.0.write().unwrap_or_else(PoisonError::into_inner).insert(name, collect);
        debug_assert!(before.is_none(), "metric {name} registered twice");
        if before.is_some() {
            tracing::error!(metric = name, "metric registered twice, the first one is no longer shown");
        }
    }
}
