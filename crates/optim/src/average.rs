//! Averages of weights over the steps of a run, which often evaluate better than the last weights.
//!
//! The mean of the last k snapshots, or an exponential moving average: both are
//! `average += share * (weight - average)` and differ in the share alone.

use std::collections::BTreeMap;

use tensor::{ParamId, Tensor, Weight};

/// A running average of some weights' master copies.
#[derive(Clone, Default)]
pub struct WeightAverage {
    snapshots: u64,
    averages: BTreeMap<ParamId, Tensor>,
}

impl WeightAverage {
    /// Averages nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in a snapshot so that all taken in so far weigh the same: for the last k, start anew k snapshots before
    /// the end.
    pub fn add_to_mean<'a>(&mut self, weights: impl IntoIterator<Item = &'a Weight>) {
        self.add(weights, 1.0 / (self.snapshots + 1) as f64);
    }

    /// Takes in a snapshot so that older ones are multiplied by `decay`. The first snapshot is the first average.
    pub fn add_to_moving_average<'a>(&mut self, weights: impl IntoIterator<Item = &'a Weight>, decay: f64) {
        assert!((0.0..1.0).contains(&decay), "a moving average with decay {decay}");
        let share = if self.snapshots == 0 { 1.0 } else { 1.0 - decay };
        self.add(weights, share);
    }

    /// Number of snapshots taken in.
    pub fn snapshots(&self) -> u64 {
        self.snapshots
    }

    /// The average of one weight.
    pub fn get(&self, id: ParamId) -> Option<&Tensor> {
        self.averages.get(&id)
    }

    /// The weight with its master copy replaced by the average. Panics if it was never taken in.
    pub fn averaged(&self, weight: &Weight) -> Weight {
        let average = self.get(weight.id()).expect("a weight of which no average was kept");
        Weight::new(weight.id(), average.clone(), weight.compute())
    }

    fn add<'a>(&mut self, weights: impl IntoIterator<Item = &'a Weight>, share: f64) {
        self.snapshots += 1;
        for weight in weights {
            let master = weight.master();
            match self.averages.get_mut(&weight.id()) {
                Some(average) => master.device().kernels().decay_and_step(average, master, 1.0 - share, -share),
                None => {
                    assert_eq!(self.snapshots, 1, "a weight that was not in the first snapshot");
                    self.averages.insert(weight.id(), master.clone());
                }
            }
        }
    }
}
