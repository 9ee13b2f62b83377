//! The choice of a token's experts: the highest scores, the lower number first among equals.

use super::isa::multiversion;
use crate::kernels::RouterShape;
use crate::kernels::simd::Isa;

/// Chooses experts for one row after the other; holds the scratch that takes.
pub struct Chooser<'a> {
    isa: Isa,
    shape: &'a RouterShape,
    keys: Vec<i64>,
    group_scores: Vec<f32>,
    group_keys: Vec<i64>,
}

impl<'a> Chooser<'a> {
    /// For routers of this shape.
    pub fn new(isa: Isa, shape: &'a RouterShape) -> Self {
        let RouterShape { experts, groups, .. } = *shape;
        Self { isa, shape, keys: vec![0; experts], group_scores: vec![0.0; groups], group_keys: vec![0; groups] }
    }

    /// Writes the experts with the highest biased scores among the best groups, best first.
    pub fn choose(&mut self, biased: &[f32], chosen: &mut [u32]) {
        keys_of(self.isa, biased, &mut self.keys);
        if self.shape.top_groups < self.shape.groups {
            self.exclude_groups(biased);
        }
        largest(self.isa, &self.keys, chosen);
    }

    /// A group is judged by the sum of its best scores; experts of all but the best groups drop out.
    fn exclude_groups(&mut self, biased: &[f32]) {
        let RouterShape { experts, groups, top_groups, group_best, .. } = *self.shape;
        let size = experts / groups;
        let mut best = vec![0; group_best.min(size).max(top_groups)];
        for (keys, score) in self.keys.chunks_exact(size).zip(&mut self.group_scores) {
            let best = &mut best[..group_best.min(size)];
            largest(self.isa, keys, best);
            *score = best.iter().map(|&e| biased[e as usize]).sum();
        }
        keys_of(self.isa, &self.group_scores, &mut self.group_keys);
        largest(self.isa, &self.group_keys, &mut best[..top_groups]);
        for (group, keys) in self.keys.chunks_exact_mut(size).enumerate() {
            if !best[..top_groups].contains(&(group as u32)) {
                keys.fill(i64::MIN);
            }
        }
    }
}

/// An integer in the order of `f32::total_cmp`.
#[inline(always)]
fn order(x: f32) -> i32 {
    let bits = x.to_bits() as i32;
    bits ^ ((bits >> 31) as u32 >> 1) as i32
}

multiversion! {
    /// Keys that order values, and equal ones by their place, the lower first.
    fn keys_of(values: &[f32], keys: &mut [i64]) {
        for (place, (key, value)) in keys.iter_mut().zip(values).enumerate() {
            *key = i64::from(order(*value)) << 32 | i64::from(!(place as u32));
        }
    }
}

multiversion! {
    /// The places of the largest keys, largest first.
    fn largest(keys: &[i64], chosen: &mut [u32]) {
        let mut last = i64::MAX;
        for chosen in chosen {
            // Looking for the largest below the last one needs no marks, for whose writing the reads would wait.
            let mut largest = i64::MIN;
            for key in keys {
                largest = largest.max(if *key < last { *key } else { i64::MIN });
            }
            last = largest;
            *chosen = !(largest as u32);
        }
    }
}
