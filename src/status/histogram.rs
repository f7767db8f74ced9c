//! How often a measured value was how large: what a mean hides.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bounds are upper ones, in base units, as Prometheus has them; what is above the last is
/// counted apart.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    bounds: [f64; N],
    counts: [AtomicU64; N],
    above: AtomicU64,
    /// Millionths of the unit.
    sum: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    pub fn new(bounds: [f64; N]) -> Self {
        debug_assert!(bounds.is_sorted());
        let counts = [const { AtomicU64::new(0) }; N];
        Histogram { bounds, counts, above: AtomicU64::new(0), sum: AtomicU64::new(0) }
    }

    /// What is below zero (clocks apart) counts as zero.
    pub fn observe(&self, value: f64) {
        let place = self.bounds.partition_point(|bound| *bound < value);
        self.counts.get(place).unwrap_or(&self.above).fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add((value.max(0.0) * 1e6) as u64, Ordering::Relaxed);
    }

    /// Bound and how many were at most that large; then how many there were.
    pub fn cumulative(&self) -> (Vec<(f64, u64)>, u64) {
        let mut sum = 0;
        let buckets = self.bounds.iter().zip(&self.counts).map(|(bound, count)| {
            sum += count.load(Ordering::Relaxed);
            (*bound, sum)
        });
        let buckets = buckets.collect();
        (buckets, sum + self.above.load(Ordering::Relaxed))
    }

    pub fn count(&self) -> u64 {
        self.cumulative().1
    }

    pub fn sum(&self) -> f64 {
        self.sum.load(Ordering::Relaxed) as f64 / 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket_and_what_is_above_all_is_counted() {
        let histogram = Histogram::new([0.1, 1.0]);

        [-2.0, 0.1, 0.5, 1.0, 7.0].into_iter().for_each(|value| histogram.observe(value));

        assert_eq!(histogram.cumulative(), (vec![(0.1, 2), (1.0, 4)], 5));
        assert!((histogram.sum() - 8.6).abs() < 1e-9);
    }
}
