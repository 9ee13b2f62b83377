//! Gradient accumulation: micro-batches are summed as one binary tree over their index, whatever computes them, and
//! nothing depends on the number of threads.

mod support;

use chogori_train::Trainer;
use data::{Batch, IGNORE};
use optim::Algorithm;
use support::*;
use tensor::saved::Policy;
use tensor::{Balance, DType, Device, Gradients, Segment, Tape, Tensor};

/// The gradient of one micro-batch, by hand: its share of the mean over `targets` and of the balance loss over
/// `tokens`.
fn gradient(trainer: &Trainer, batch: &Batch, targets: usize, tokens: usize) -> Gradients {
    let (model, device) = (&trainer.model, Device::cpu());
    let vector = |values: &[u32]| Tensor::from_slice(device, &[values.len()], values);
    let factors: Vec<f32> =
        batch.targets.iter().map(|&t| if t == IGNORE { 0.0 } else { 1.0 / targets as f32 }).collect();
    let next: Vec<u32> = batch.targets.iter().map(|&t| if t == IGNORE { 0 } else { t }).collect();
    let alpha = step_config().sequence_balance_loss / tokens as f64;
    let balance = Balance { alpha, lengths: vec![batch.sequence_length; batch.rows] };
    let segments = Segment::from_lengths(&batch.segments);
    let (tokens_T, positions_T) = (vector(&batch.tokens), vector(&batch.positions));
    let input = model::Input {
        tokens_T: &tokens_T,
        positions_T: &positions_T,
        segments: &segments,
        balance: Some(&balance),
        cache: None,
    };
    let tape = Tape::recording(Policy::default());
    let hidden_TD = model.forward(&tape, input).hidden_TD;
    let factors = Tensor::from_slice(device, &[factors.len()], &factors);
    let loss = tape.cross_entropy(&hidden_TD, model.head(), &vector(&next), &factors);
    drop(hidden_TD);
    let mut gradients = Gradients::default();
    tape.backward(&loss.root, loss.losses_T.clone(), &mut gradients, None);
    gradients
}

fn add(mut left: Gradients, right: Gradients) -> Gradients {
    left.add_all(right);
    left
}

/// The trainer's gradient of a step: what its moments are after the first one.
fn accumulated(micro_batches: &[Batch]) -> Vec<(String, Vec<f32>)> {
    let mut trainer = trainer(optimizer_that_keeps_gradients(), DType::Bf16);
    trainer.step(micro_batches, 0.0);
    let (_, tensors) = trainer.export(None, 0.0);
    let names = tensors.into_iter().filter_map(|(name, tensor)| {
        let parameter = name.strip_suffix(".momentum").or_else(|| name.strip_suffix(".adam_m"))?;
        Some((parameter.to_owned(), tensor.to_vec_f32()))
    });
    names.collect()
}

fn by_name(trainer: &Trainer, gradients: &Gradients) -> Vec<(String, Vec<f32>)> {
    let of = |(spec, weight): (&model::ParameterSpec, &tensor::Weight)| {
        Some((spec.name.clone(), gradients.get(weight.id())?.to_vec_f32()))
    };
    trainer.model.parameters().filter_map(of).collect()
}

#[test]
fn micro_batches_are_summed_as_a_tree() {
    let trainer = trainer(optimizer_that_keeps_gradients(), DType::Bf16);
    for count in 1..=5 {
        let micro_batches = batches(0, count);
        let targets = micro_batches.iter().map(Batch::len_targets).sum();
        let tokens = micro_batches.iter().map(|batch| batch.tokens.len()).sum();
        let one = |at: usize| gradient(&trainer, &micro_batches[at], targets, tokens);
        let pair = |at: usize| add(one(at), one(at + 1));
        let expected = match count {
            1 => one(0),
            2 => pair(0),
            3 => add(pair(0), one(2)),
            4 => add(pair(0), pair(2)),
            _ => add(add(pair(0), pair(2)), one(4)),
        };
        let (expected, found) = (by_name(&trainer, &expected), accumulated(&micro_batches));
        assert_eq!(expected.len(), found.len());
        for (name, gradient) in &expected {
            let (_, accumulated) = found.iter().find(|(found, _)| found == name).expect("every parameter has moments");
            assert_eq!(gradient, accumulated, "{name} with {count} micro-batches");
        }
        if count == 4 {
            let in_order = (1..4).fold(one(0), |sum, at| add(sum, one(at)));
            assert_ne!(by_name(&trainer, &in_order), expected, "the order should matter to the last bits");
        }
    }
}

#[test]
fn an_aligned_half_is_a_step_of_its_own() {
    // Each half is the mean over half as many targets: twice the share, exactly.
    let micro_batches = batches(0, 4);
    let (all, first) = (accumulated(&micro_batches), accumulated(&micro_batches[..2]));
    let second = accumulated(&micro_batches[2..]);
    for ((name, whole), ((_, first), (_, second))) in all.iter().zip(first.iter().zip(&second)) {
        let halves: Vec<f32> = first.iter().zip(second).map(|(a, b)| (a + b) / 2.0).collect();
        assert_eq!(*whole, halves, "{name}");
    }
}

/// Batch and experts are large enough for kernels to divide their work.
#[test]
fn threads_change_no_bit() {
    let _alone = alone();
    for compute in [DType::Bf16, DType::F32] {
        for algorithm in [Algorithm::MuonClip, Algorithm::AdamW] {
            let run = |threads: usize| {
                tensor::pool::set_threads(threads);
                let mut trainer = trainer_of(config_with(40), optimizer(algorithm), compute);
                let step = |step: u64| trainer.step(&[large_batch(6 * step..6 * step + 6)], 3e-3).loss;
                let losses: Vec<f64> = (0..3).map(step).collect();
                (losses, bits(&trainer))
            };
            let (losses, weights) = run(1);
            for threads in [2, 3] {
                let (other_losses, other_weights) = run(threads);
                assert_eq!(losses, other_losses, "{algorithm:?} in {compute:?} on {threads} threads");
                assert_eq!(differences(&weights, &other_weights), [""; 0], "{algorithm:?} in {compute:?}");
            }
        }
    }
    tensor::pool::set_threads(0);
}
