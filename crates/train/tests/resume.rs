//! A run that was stopped and resumed is the run that was never stopped, bit for bit.

mod support;

use chogori_train::state::TrainingState;
use optim::{Algorithm, OptimizerConfig};
use support::*;
use tensor::{DType, Tensor};

const STEPS: u64 = 7;
const MICRO_BATCHES: u64 = 3;
const LR: f64 = 3e-3;

/// Named as in a checkpoint.
type Tensors = Vec<(String, Tensor)>;

/// A cap on attention logits that this little model reaches, so that clipping is part of the state.
fn low_cap(algorithm: Algorithm) -> OptimizerConfig {
    OptimizerConfig { qk_clip_tau: 0.3, ..optimizer(algorithm) }
}

/// What a checkpoint keeps of a trainer: one document as text, and tensors as bytes.
fn through_the_disk(state: &TrainingState, tensors: Tensors) -> (TrainingState, Tensors) {
    let document = serde_json::to_string(state).unwrap();
    let copy = |(name, tensor): (String, Tensor)| {
        let (device, dtype) = (tensor.device(), tensor.dtype());
        (name, Tensor::from_bytes(device, dtype, tensor.shape(), &tensor.to_bytes()))
    };
    (serde_json::from_str(&document).unwrap(), tensors.into_iter().map(copy).collect())
}

#[test]
fn stopping_after_any_step_on_any_number_of_threads_changes_no_bit() {
    let _alone = alone();
    for algorithm in [Algorithm::MuonClip, Algorithm::AdamW] {
        let mut whole = trainer(low_cap(algorithm), DType::Bf16);
        let losses: Vec<f64> = train(&mut whole, STEPS, MICRO_BATCHES, LR).iter().map(|outcome| outcome.loss).collect();
        assert_eq!(whole.share_ever_clipped() > 0.0, algorithm == Algorithm::MuonClip);
        for (stop, threads) in [(1, [1, 3]), (4, [2, 1]), (STEPS - 1, [3, 2])] {
            tensor::pool::set_threads(threads[0]);
            let mut first = trainer(low_cap(algorithm), DType::Bf16);
            let mut outcomes = train(&mut first, stop, MICRO_BATCHES, LR);
            let (state, tensors) = first.export(Some(STEPS), 1.5);
            let (state, tensors) = through_the_disk(&state, tensors);
            tensor::pool::set_threads(threads[1]);
            let mut second = trainer(low_cap(algorithm), DType::Bf16);
            second.restore(state, tensors).unwrap();
            outcomes.extend(train(&mut second, STEPS, MICRO_BATCHES, LR));
            let resumed: Vec<f64> = outcomes.iter().map(|outcome| outcome.loss).collect();
            assert_eq!(losses, resumed, "{algorithm:?} stopped after step {stop}");
            assert_eq!(differences(&bits(&whole), &bits(&second)), [""; 0], "{algorithm:?} stopped after step {stop}");
            assert_eq!(whole.export(None, 0.0).0, second.export(None, 0.0).0);
        }
    }
    tensor::pool::set_threads(0);
}

#[test]
fn a_state_that_does_not_fit_is_refused_and_changes_nothing() {
    let [mut trained, mut longer] = [(); 2].map(|()| trainer(low_cap(Algorithm::MuonClip), DType::Bf16));
    train(&mut trained, 1, 1, LR);
    train(&mut longer, 2, 1, LR);
    let before = bits(&trained);
    let mut check = |message: &str, change: fn(&mut TrainingState, &mut Tensors)| {
        let (mut state, mut tensors) = longer.export(None, 0.0);
        change(&mut state, &mut tensors);
        let error = trained.restore(state, tensors).expect_err(message).to_string();
        assert!(error.contains(message), "{error}");
        assert_eq!(differences(&before, &bits(&trained)), [""; 0], "{message}");
        assert_eq!(trained.step, 1);
    };
    check("lacks model.norm.weight:", |_, tensors| tensors.retain(|(name, _)| name != "model.norm.weight"));
    check("model.norm.weight.adam_v", |_, tensors| tensors.retain(|(name, _)| name != "model.norm.weight.adam_v"));
    check("keep the algorithm", |state, _| state.optimizer.algorithm = Algorithm::AdamW);
    check("has model.norm.weight as F32[1, 48]", |_, tensors| {
        let (_, norm) = tensors.iter_mut().find(|(name, _)| name == "model.norm.weight").unwrap();
        *norm = norm.reshape(&[1, 48]);
    });
    check("of_another_model", |_, tensors| tensors.push(("of_another_model".into(), tensors[0].1.clone())));
}
