//! The learning rate as a function of the step: stages that follow each other, each a curve to its final rate.
//!
//! WSD (K2: warm-up, stable, decay, annealing; report section 2.5) and cosine are such lists, and so is Moonlight's
//! cooldown, which warms up a second time.

use serde::{Deserialize, Serialize};

/// The curve between two rates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// A straight line.
    Linear,
    /// Half a cosine wave.
    Cosine,
}

/// A part of the run: from the rate at which the stage before it ended to its own final rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// How many optimizer steps.
    pub steps: u64,
    /// The rate of its last step.
    #[serde(rename = "final")]
    pub final_rate: f64,
    /// The curve to it.
    pub shape: Shape,
}

/// Stages, starting from rate 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// In order; those of zero steps only set the rate from which the next one starts.
    pub stages: Vec<Stage>,
}

impl Schedule {
    /// Warm-up (linear), `stable_steps` at `peak`, then the decay and, if any, the annealing.
    pub fn wsd(peak: f64, warmup_steps: u64, stable_steps: u64, decay: Stage, anneal: Option<Stage>) -> Self {
        let to_peak = |steps| Stage { steps, final_rate: peak, shape: Shape::Linear };
        Self { stages: [to_peak(warmup_steps), to_peak(stable_steps), decay].into_iter().chain(anneal).collect() }
    }

    /// Warm-up (linear), then one cosine to `final_rate`, which the last of `total_steps` has.
    pub fn cosine(peak: f64, warmup_steps: u64, total_steps: u64, final_rate: f64) -> Self {
        assert!(warmup_steps <= total_steps, "{warmup_steps} steps of warm-up in a run of {total_steps}");
        let decay = Stage { steps: total_steps - warmup_steps, final_rate, shape: Shape::Cosine };
        Self::wsd(peak, warmup_steps, 0, decay, None)
    }

    /// K2's at 67,108,864 tokens per step: 10T tokens to the end of the stable stage, 5.5T of decay, 400B of
    /// annealing. The report does not give the annealing's `shape`, nor whether those 400B are part of the 15.5T;
    /// here they come on top.
    pub fn kimi_k2(shape: Shape) -> Self {
        let decay = Stage { steps: 81_956, final_rate: 2e-5, shape: Shape::Cosine };
        let anneal = Stage { steps: 5_960, final_rate: 7e-6, shape };
        Self::wsd(2e-4, 500, 149_012 - 500, decay, Some(anneal))
    }

    /// Steps of all stages.
    pub fn total_steps(&self) -> u64 {
        self.stages.iter().map(|stage| stage.steps).sum()
    }

    /// The rate of the step before which `step` steps were taken. The last step of a stage has exactly its final
    /// rate, so the first of all has a share of the peak rather than 0; after the last stage its rate stays.
    pub fn lr(&self, step: u64) -> f64 {
        let (mut start, mut rate) = (0, 0.0);
        for stage in &self.stages {
            let taken = step - start + 1;
            if taken < stage.steps {
                return rate + (stage.final_rate - rate) * stage.shape.at(taken as f64 / stage.steps as f64);
            }
            if taken == stage.steps {
                return stage.final_rate;
            }
            (start, rate) = (start + stage.steps, stage.final_rate);
        }
        rate
    }
}

impl Shape {
    /// Share of the way that is made after a share `x` of the steps.
    fn at(self, x: f64) -> f64 {
        match self {
            Self::Linear => x,
            Self::Cosine => (1.0 - (std::f64::consts::PI * x).cos()) / 2.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(schedule: &Schedule, table: &[(u64, f64)]) {
        for &(step, expected) in table {
            let lr = schedule.lr(step);
            assert!((lr - expected).abs() <= 1e-12 * expected, "step {step}: {lr:e}, expected {expected:e}");
        }
    }

    #[test]
    fn kimi_k2_has_the_published_rates() {
        let schedule = Schedule::kimi_k2(Shape::Linear);
        assert_eq!(schedule.total_steps(), 236_928);
        let halfway = (2e-4 + 2e-5) / 2.0;
        check(&schedule, &[(0, 4e-7), (249, 1e-4), (498, 499.0 * 4e-7), (499, 2e-4), (500, 2e-4), (149_011, 2e-4)]);
        check(&schedule, &[(149_011 + 40_978, halfway), (230_967, 2e-5), (230_967 + 2_980, 1.35e-5)]);
        check(&schedule, &[(236_927, 7e-6), (236_928, 7e-6), (u64::MAX - 1, 7e-6)]);
        assert!(schedule.lr(149_012) < 2e-4 && schedule.lr(149_012) > 1.999_999e-4, "a cosine starts flat");
        let cosine = Schedule::kimi_k2(Shape::Cosine);
        check(&cosine, &[(230_967 + 2_980, 1.35e-5), (236_927, 7e-6)]);
        assert!(cosine.lr(231_500) > schedule.lr(231_500));
    }

    #[test]
    fn cosine_is_warm_up_and_half_a_wave() {
        let schedule = Schedule::cosine(1.0, 4, 12, 0.1);
        let quarter = 1.0 - 0.9 * (1.0 - 0.5f64.sqrt()) / 2.0;
        check(&schedule, &[(0, 0.25), (3, 1.0), (5, quarter), (7, 0.55), (11, 0.1), (12, 0.1)]);
        assert_eq!(schedule.total_steps(), 12);
    }

    #[test]
    fn stages_may_be_empty_and_may_rise_again() {
        let constant = Schedule::wsd(0.5, 0, 0, Stage { steps: 0, final_rate: 0.5, shape: Shape::Linear }, None);
        check(&constant, &[(0, 0.5), (100, 0.5)]);
        assert_eq!(Schedule { stages: Vec::new() }.lr(3), 0.0);
        // Moonlight: after a decay to 4.2e-5 up to 1e-4 in 100 steps, then down to 0.
        let stage = |steps, final_rate| Stage { steps, final_rate, shape: Shape::Linear };
        let moonlight = Schedule { stages: vec![stage(0, 4.2e-5), stage(100, 1e-4), stage(1000, 0.0)] };
        check(&moonlight, &[(49, 7.1e-5), (99, 1e-4), (599, 5e-5), (1099, 0.0)]);
    }
}
