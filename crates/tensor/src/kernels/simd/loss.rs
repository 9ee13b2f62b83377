//! Cross-entropy over rows of logits.

use super::isa::multiversion;
use super::lanes::{max, sum};
use super::math::{exp_nonpositive, log};
use super::parallel::{empty, for_each_item, rows_per_task};
use crate::dtype::DType;
use crate::kernels::simd::Isa;
use crate::tensor::Tensor;

/// The sum over a row is a sum of such strips, in both functions below.
const STRIP: usize = 1024;

// Loops rather than iterators' closures: those may be compiled apart, without this set's instructions.
multiversion! {
    /// Negative log-probability of the target; the row becomes the exponentials' multiple that is the gradient.
    fn loss_and_grad(row: &mut [f32], target: usize, factor: f32) -> f32 {
        let (max, target_logit) = (max(row), row[target]);
        let mut total = 0.0;
        for strip in row.chunks_mut(STRIP) {
            for x in &mut *strip {
                *x = exp_nonpositive(*x - max);
            }
            total += sum(strip);
        }
        let scale = factor / total;
        for x in &mut *row {
            *x *= scale;
        }
        row[target] -= factor;
        log(total) + (max - target_logit)
    }
}

multiversion! {
    fn loss_alone(row: &[f32], target: usize) -> f32 {
        let max = max(row);
        let mut exponentials = [0.0; STRIP];
        let mut total = 0.0;
        for strip in row.chunks(STRIP) {
            for (e, x) in exponentials.iter_mut().zip(strip) {
                *e = exp_nonpositive(*x - max);
            }
            total += sum(&exponentials[..strip.len()]);
        }
        log(total) + (max - row[target])
    }
}

/// See [`crate::kernels::Kernels::cross_entropy`].
pub fn cross_entropy(isa: Isa, logits_CV: &mut Tensor, targets_C: &Tensor, factors_C: &Tensor, grad: bool) -> Tensor {
    let [rows, width] = logits_CV.dims();
    let (targets, factors) = (targets_C.host::<u32>(), factors_C.host::<f32>());
    assert_eq!((targets.len(), factors.len()), (rows, rows), "cross_entropy: targets and factors of {logits_CV:?}");
    let mut losses = empty(isa, DType::F32, &[rows]);
    let task_rows = rows_per_task(4 * width);
    let numbers = targets.chunks(task_rows).zip(factors.chunks(task_rows));
    let outputs = losses.host_mut::<f32>().chunks_mut(task_rows).zip(numbers);
    let piece = task_rows * width.max(1);
    if grad {
        for_each_item(logits_CV.host_mut::<f32>().chunks_mut(piece).zip(outputs), |_, (logits, (losses, numbers))| {
            let rows = logits.chunks_exact_mut(width).zip(losses).zip(numbers.0.iter().zip(numbers.1));
            for ((row, loss), (&target, &factor)) in rows {
                *loss = 0.0;
                if factor == 0.0 {
                    row.fill(0.0);
                } else {
                    *loss = loss_and_grad(isa, row, target as usize, factor);
                }
            }
        });
    } else {
        for_each_item(logits_CV.host::<f32>().chunks(piece).zip(outputs), |_, (logits, (losses, numbers))| {
            let rows = logits.chunks_exact(width).zip(losses).zip(numbers.0.iter().zip(numbers.1));
            for ((row, loss), (&target, &factor)) in rows {
                *loss = if factor == 0.0 { 0.0 } else { loss_alone(isa, row, target as usize) };
            }
        });
    }
    losses
}
