//! Right operands in panels: the columns that a micro-kernel takes at once, step by step.

#![expect(unsafe_code, reason = "threads fill disjoint panels of one buffer")]

use super::micro::Micro;
use super::words::{Operand, Target};
use crate::kernels::simd::isa::Isa;
use crate::pool;
use crate::storage::Buffer;

/// Words that a task packs at least.
const GRAIN: usize = 32 << 10;

/// A matrix to be packed: its columns are the operand's lines.
pub struct Matrix<'a> {
    /// Where the numbers are.
    pub operand: Operand<'a>,
    /// Length of the sums.
    pub depth: usize,
}

/// Packed matrices, all with the same number of columns.
pub struct Panels {
    words: Buffer,
    /// First word of each matrix, then the end.
    starts: Vec<usize>,
}

struct Words(*mut u32);
// SAFETY: tasks write disjoint panels.
unsafe impl Sync for Words {}
impl Words {
    fn at(&self, offset: usize) -> *mut u32 {
        self.0.wrapping_add(offset)
    }
}

impl Panels {
    /// Packs `matrices` with `columns` columns each, rounding to the kernel's operands.
    pub fn new(isa: Isa, micro: &Micro, matrices: &[Matrix], columns: usize) -> Self {
        let panels = columns.div_ceil(micro.width);
        let steps: Vec<_> = matrices.iter().map(|m| micro.right.steps(m.depth)).collect();
        let mut starts = vec![0];
        for steps in &steps {
            starts.push(starts[starts.len() - 1] + steps * panels * micro.width);
        }
        let total = starts[matrices.len()];
        let mut buffer = Buffer::recycled(total * size_of::<u32>());
        let words = Words(buffer.slice_mut::<u32>().as_mut_ptr());
        let count = panels * matrices.len();
        let grain = (GRAIN * count).div_ceil(total.max(1));
        pool::for_each_range(count, grain, |first, last| {
            for (m, panel) in (first..last).map(|i| (i / panels, i % panels)) {
                let lines = (panel * micro.width, micro.width.min(columns - panel * micro.width));
                let at = words.at(starts[m] + panel * steps[m] * micro.width);
                let target = Target { at, stride: micro.width, word: micro.right };
                // SAFETY: this panel's words, which no other task touches.
                unsafe {
                    if lines.1 < micro.width {
                        // Subnormal leftovers would be multiplied slowly.
                        std::slice::from_raw_parts_mut(at, steps[m] * micro.width).fill(0);
                    }
                    matrices[m].operand.pack(isa, lines, (0, matrices[m].depth), (micro.width, steps[m]), target);
                }
            }
        });
        Self { words: buffer, starts }
    }

    /// The panels of one matrix.
    pub fn of(&self, matrix: usize) -> &[u32] {
        &self.words.slice::<u32>()[self.starts[matrix]..self.starts[matrix + 1]]
    }
}
