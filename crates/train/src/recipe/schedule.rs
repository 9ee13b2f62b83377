//! The learning-rate section of a recipe: WSD or cosine, in steps or in shares of the run.
//!
//! K2 (report, section 2.5): 500 steps of warm-up to 2e-4, constant until 10T tokens, a cosine to 2e-5 over
//! 5.5T, then annealing to 7e-6. [`Schedule::phases`] turns the section into whole steps once the length
//! of the run is known, [`Schedule::build`] into the function of the step that the optimizer asks.

use std::fmt;

use optim::{Shape, Stage};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::RecipeError;

/// A length of training: `500` steps, or `"5%"` of the steps of the run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Span {
    /// That many steps.
    Steps(u64),
    /// That many hundredths of the run.
    Percent(f64),
}

impl Span {
    /// In steps of a run of `total` steps; shares round to the nearest step.
    pub fn steps(self, total: u64) -> u64 {
        match self {
            Span::Steps(steps) => steps,
            Span::Percent(percent) => (total as f64 * percent / 100.0).round() as u64,
        }
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Span::Steps(steps) => serializer.serialize_u64(*steps),
            Span::Percent(percent) => serializer.serialize_str(&format!("{percent}%")),
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SpanVisitor)
    }
}

struct SpanVisitor;

impl Visitor<'_> for SpanVisitor {
    type Value = Span;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a number of steps such as 500, or a share of the run such as \"5%\"")
    }

    fn visit_i64<E: de::Error>(self, steps: i64) -> Result<Span, E> {
        let steps = u64::try_from(steps).map_err(|_| E::invalid_value(de::Unexpected::Signed(steps), &self))?;
        Ok(Span::Steps(steps))
    }

    fn visit_u64<E: de::Error>(self, steps: u64) -> Result<Span, E> {
        Ok(Span::Steps(steps))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
        let percent = text.strip_suffix('%').map(|number| number.trim().parse());
        match percent {
            Some(Ok(percent)) if (0.0..=100.0).contains(&percent) => Ok(Span::Percent(percent)),
            _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
        }
    }
}

/// How the rate moves between the end of warm-up and the end of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Warm-up, stable at the peak, decay (K2).
    Wsd,
    /// Warm-up, then one cosine over all the rest; `decay_steps` must be left out.
    Cosine,
}

/// `[schedule]`: the learning rate over the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// `wsd` or `cosine`.
    pub kind: ScheduleKind,
    /// Highest rate; K2: 2e-4.
    pub peak: f64,
    /// Rate at the end of the decay; K2: 2e-5.
    #[serde(rename = "final")]
    pub final_rate: f64,
    /// Linear from 0 to the peak; K2: 500 steps.
    pub warmup_steps: Span,
    /// WSD only: the decay from peak to final. What lies between warm-up and decay is the stable phase.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay_steps: Option<Span>,
    /// Curve of that decay; K2: cosine, the default.
    #[serde(default = "cosine")]
    pub decay_shape: Shape,
    /// A last stage after the decay, from `final` down to its own final rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anneal: Option<Anneal>,
}

fn cosine() -> Shape {
    Shape::Cosine
}

/// `[schedule.anneal]`: the last steps of the run (they count in `run.steps`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Anneal {
    /// How long.
    pub steps: Span,
    /// Rate at the end of the run; K2: 7e-6.
    #[serde(rename = "final")]
    pub final_rate: f64,
    /// The curve; the K2 report does not say.
    pub shape: Shape,
}

/// A schedule in whole steps; the four phases follow each other and sum to the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phases {
    /// Steps from 0 to the peak.
    pub warmup: u64,
    /// Steps at the peak.
    pub stable: u64,
    /// Steps from peak to final.
    pub decay: u64,
    /// Steps from final to the annealing's final.
    pub anneal: u64,
}

impl Schedule {
    /// The phases of a run of `total` steps; refused where they do not fit into it.
    pub fn phases(&self, total: u64) -> Result<Phases, RecipeError> {
        let warmup = self.warmup_steps.steps(total);
        let anneal = self.anneal.as_ref().map_or(0, |a| a.steps.steps(total));
        let room = total.saturating_sub(warmup).saturating_sub(anneal);
        let decay = match self.kind {
            ScheduleKind::Wsd => self.decay_steps.map_or(0, |span| span.steps(total)),
            ScheduleKind::Cosine => room,
        };
        if warmup + anneal + decay > total {
            let problem = format!(
                "{warmup} steps of warm-up, {decay} of decay and {anneal} of annealing do not fit into a run of \
                 {total} steps: shorten them or raise run.steps"
            );
            return Err(RecipeError::invalid("schedule", problem));
        }
        let stable = room - decay;
        Ok(Phases { warmup, stable, decay, anneal })
    }

    /// The rate as a function of the step, for a run of `total` steps.
    pub fn build(&self, total: u64) -> Result<optim::Schedule, RecipeError> {
        let phases = self.phases(total)?;
        let decay = Stage { steps: phases.decay, final_rate: self.final_rate, shape: self.decay_shape };
        let anneal = self.anneal.as_ref().map(|anneal| Stage {
            steps: phases.anneal,
            final_rate: anneal.final_rate,
            shape: anneal.shape,
        });
        Ok(optim::Schedule::wsd(self.peak, phases.warmup, phases.stable, decay, anneal))
    }

    pub(super) fn check(&self) -> Result<(), RecipeError> {
        let rate = |key: &str, value: f64| match value.is_finite() && value >= 0.0 {
            true => Ok(()),
            false => Err(RecipeError::invalid(key, "a rate is finite and not negative")),
        };
        rate("schedule.peak", self.peak)?;
        rate("schedule.final", self.final_rate)?;
        if self.final_rate > self.peak {
            let problem = format!("{} is above schedule.peak = {}", self.final_rate, self.peak);
            return Err(RecipeError::invalid("schedule.final", problem));
        }
        if let Some(anneal) = &self.anneal {
            rate("schedule.anneal.final", anneal.final_rate)?;
        }
        match (self.kind, self.decay_steps) {
            (ScheduleKind::Wsd, None) => Err(RecipeError::Missing { key: "schedule.decay_steps".into() }),
            (ScheduleKind::Cosine, None) if self.decay_shape != Shape::Cosine => Err(RecipeError::invalid(
                "schedule.decay_shape",
                "a cosine schedule decays along a cosine: remove this key, or set kind = \"wsd\"",
            )),
            (ScheduleKind::Cosine, Some(_)) => Err(RecipeError::invalid(
                "schedule.decay_steps",
                "a cosine schedule decays over the whole run after warm-up: remove this key, or set kind = \"wsd\"",
            )),
            _ => Ok(()),
        }
    }
}
