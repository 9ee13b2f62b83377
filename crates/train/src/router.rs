//! Load of the experts, and the selection bias that evens it out (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).

use tensor::{DType, Tensor};

/// Choices of each expert in one step, by MoE layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExpertLoad {
    /// `(layer, choices of each expert)`.
    pub layers: Vec<(usize, Vec<u64>)>,
}

impl ExpertLoad {
    /// Counts one micro-batch's choices `[T, K]` of layer `layer`.
    pub fn record(&mut self, layer: usize, experts_TK: &Tensor, experts: usize) {
        let at = self.layers.iter().position(|(known, _)| *known == layer).unwrap_or_else(|| {
            self.layers.push((layer, vec![0; experts]));
            self.layers.len() - 1
        });
        for expert in experts_TK.to_vec::<u32>() {
            self.layers[at].1[expert as usize] += 1;
        }
    }

    /// MaxVio of each layer: how far the busiest expert is above the mean, as a share of the mean.
    pub fn max_violation(&self) -> Vec<f64> {
        let violation = |(_, loads): &(usize, Vec<u64>)| {
            let mean = loads.iter().sum::<u64>() as f64 / loads.len() as f64;
            let max = loads.iter().copied().max().unwrap_or(0) as f64;
            if mean > 0.0 { max / mean - 1.0 } else { 0.0 }
        };
        self.layers.iter().map(violation).collect()
    }
}

/// Moves a bias by `speed` towards experts below the mean load. With `recentre` the mean of all moves is taken off,
/// which keeps the bias from drifting and changes no choice (Moonlight, arXiv 2502.16982, appendix C).
pub fn balance_bias(bias_E: &mut Tensor, loads: &[u64], speed: f64, recentre: bool) {
    let mean = loads.iter().sum::<u64>() as f64 / loads.len() as f64;
    let sign = |&load: &u64| {
        let missing = mean - load as f64;
        if missing == 0.0 { 0.0 } else { missing.signum() }
    };
    let signs: Vec<f64> = loads.iter().map(sign).collect();
    let drift = if recentre { signs.iter().sum::<f64>() / signs.len() as f64 } else { 0.0 };
    let next: Vec<f64> =
        bias_E.to_vec_f64().iter().zip(&signs).map(|(bias, sign)| bias + speed * (sign - drift)).collect();
    *bias_E = Tensor::from_f64(bias_E.device(), DType::F32, bias_E.shape(), &next);
}

#[cfg(test)]
mod tests {
    use tensor::Device;

    use super::*;

    #[test]
    fn busy_experts_lose_and_idle_ones_gain() {
        let mut bias = Tensor::zeros(Device::cpu(), DType::F32, &[4]);
        balance_bias(&mut bias, &[10, 0, 5, 5], 0.1, false);
        assert_eq!(bias.to_vec_f32(), [-0.1, 0.1, 0.0, 0.0]);
    }

    #[test]
    fn a_recentred_bias_keeps_its_sum() {
        let mut bias = Tensor::zeros(Device::cpu(), DType::F32, &[4]);
        balance_bias(&mut bias, &[17, 1, 1, 1], 0.1, true);
        assert!(bias.to_vec_f32().iter().sum::<f32>().abs() < 1e-6);
        assert!((bias.to_vec_f32()[1] - 0.05).abs() < 1e-6);
    }

    #[test]
    fn load_is_counted_over_micro_batches() {
        let mut load = ExpertLoad::default();
        let chosen = Tensor::from_slice(Device::cpu(), &[3, 2], &[0u32, 1, 0, 2, 0, 3]);
        load.record(2, &chosen, 4);
        load.record(2, &chosen, 4);
        assert_eq!(load.layers, [(2, vec![6, 2, 2, 2])]);
        assert_eq!(load.max_violation(), [1.0]);
    }
}
