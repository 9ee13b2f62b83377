//! Right operands in panels: the columns that a micro-kernel takes at once, step by step.

#![expect(unsafe_code, reason = "threads fill disjoint panels of one buffer")]

use std::ops::Range;

use super::micro::Micro;
use super::words::{LINES, Lines, Operand, Order, Target};
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
        // Tasks take a few panels of one matrix: rows of memory across them are then read in long pieces.
        let grain = ((GRAIN * panels * matrices.len()).div_ceil(total.max(1))).clamp(1, panels.max(1));
        let parts = panels.div_ceil(grain);
        pool::for_each(parts * matrices.len(), &|task| {
            let (m, first) = (task / parts, task % parts * grain);
            let some = first..(first + grain).min(panels);
            let at = words.at(starts[m] + first * steps[m] * micro.width);
            // SAFETY: these panels' words, which no other task touches.
            unsafe { pack_panels(isa, micro, &matrices[m], steps[m], some, columns, at) };
        });
        Self { words: buffer, starts }
    }

    /// The panels of one matrix.
    pub fn of(&self, matrix: usize) -> &[u32] {
        &self.words.slice::<u32>()[self.starts[matrix]..self.starts[matrix + 1]]
    }
}

/// Packs some panels of one matrix, each `steps * width` words, from `to` on.
unsafe fn pack_panels(
    isa: Isa,
    micro: &Micro,
    matrix: &Matrix,
    steps: usize,
    panels: Range<usize>,
    columns: usize,
    to: *mut u32,
) {
    let (width, depth) = (micro.width, (0, matrix.depth));
    let end = (panels.end * width).min(columns);
    // SAFETY: the caller's promise on the words of these panels.
    unsafe {
        if end < panels.end * width {
            // Subnormal leftovers in columns that do not exist would be multiplied slowly.
            let last = to.add((panels.len() - 1) * steps * width);
            std::slice::from_raw_parts_mut(last, steps * width).fill(0);
        }
        match matrix.operand.order {
            Order::ByLines => {
                for (i, panel) in panels.enumerate() {
                    let lines = (panel * width, width.min(columns - panel * width));
                    let target = Target { at: to.add(i * steps * width), stride: width, word: micro.right };
                    matrix.operand.pack(isa, lines, depth, (width, steps), target);
                }
            }
            Order::BySteps => {
                let first = panels.start * width;
                let group = |line: usize| {
                    let (panel, inside) = ((line - first) / width, (line - first) % width);
                    Lines { first: line, count: LINES.min(end - line), at: to.add(panel * steps * width + inside) }
                };
                let groups: Vec<_> = (first..end).step_by(LINES).map(group).collect();
                matrix.operand.pack_across(isa, &groups, depth, width, micro.right);
            }
        }
    }
}
