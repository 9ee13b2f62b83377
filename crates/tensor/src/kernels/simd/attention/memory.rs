//! What tasks of attention write to: working memory of their own, and columns of the results.

#![expect(unsafe_code, reason = "heads write interleaved columns")]

use crate::dtype::{Bf16, DType, Element};
use crate::kernels::simd::Isa;
use crate::kernels::simd::isa::multiversion;
use crate::storage::Buffer;
use crate::tensor::Tensor;

/// Working memory of a task, handed out piece by piece; contents are arbitrary.
pub struct Scratch(Buffer);

impl Scratch {
    /// Memory for pieces of these sizes, in words.
    pub fn new(pieces: &[usize]) -> Self {
        let words: usize = pieces.iter().map(|piece| piece.next_multiple_of(16)).sum();
        Self(Buffer::recycled(words * size_of::<u32>()))
    }

    /// The pieces as integers (packed operands) or floats.
    pub fn split<T: Element, const N: usize>(&mut self, pieces: [usize; N]) -> [&mut [T]; N] {
        let mut rest = self.0.slice_mut::<T>();
        pieces.map(|piece| {
            let (mine, others) = std::mem::take(&mut rest).split_at_mut(piece.next_multiple_of(16));
            rest = others;
            &mut mine[..piece]
        })
    }
}

/// A matrix whose rows are shared by tasks, each of which writes columns of its own.
pub struct Columns {
    at: Start,
    rows: usize,
    width: usize,
}

/// First element of a matrix.
enum Start {
    F32(*mut f32),
    Bf16(*mut Bf16),
}
// SAFETY: tasks write disjoint parts (see `write`).
unsafe impl Sync for Columns {}

impl Columns {
    /// The matrix `x`, which the caller keeps alive and leaves alone meanwhile.
    pub fn of(x: &mut Tensor) -> Self {
        let [rows, width] = x.dims();
        let at = match x.dtype() {
            DType::F32 => Start::F32(x.host_mut::<f32>().as_mut_ptr()),
            DType::Bf16 => Start::Bf16(x.host_mut::<Bf16>().as_mut_ptr()),
            other => panic!("attention on this device gives f32 or bf16, not {other:?}"),
        };
        Self { at, rows, width }
    }

    /// Rounds `values` into columns of a row.
    ///
    /// # Safety
    /// The matrix is alive, and no two threads write the same element.
    pub unsafe fn write(&self, isa: Isa, row: usize, column: usize, values: &[f32]) {
        assert!(row < self.rows && column + values.len() <= self.width);
        let start = row * self.width + column;
        // SAFETY: inside the matrix, and the caller's promise.
        unsafe {
            match self.at {
                Start::F32(at) => std::slice::from_raw_parts_mut(at.add(start), values.len()).copy_from_slice(values),
                Start::Bf16(at) => round(isa, values, std::slice::from_raw_parts_mut(at.add(start), values.len())),
            }
        }
    }
}

multiversion! {
    fn round(x: &[f32], out: &mut [Bf16]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = Bf16::from_f32(*x);
        }
    }
}
