//! Micro-kernels: a tile of the product, held in registers while its sums run.
//!
//! Every element of a tile is one chain of fused multiply-adds over ascending depth (bf16 dot products go two
//! by two), whatever the number of rows in the tile. So tiles can be cut anywhere without a change in a bit,
//! and f32 gives the same bits on every instruction set.

use super::portable;
use super::words::Word;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::dtype::DType;
use crate::kernels::simd::isa::Isa;

/// `c[row, column] (+)= sum over steps of a[step, row] · b[step, column]`.
///
/// Arguments: rows, steps, a (`step * left_stride + row`), b (`step * width + column`), c, elements between
/// rows of c, and whether the sums start from what c holds.
pub type Run = unsafe fn(usize, usize, *const u32, *const u32, *mut f32, usize, bool);

/// One micro-kernel and the layout of its operands.
#[derive(Clone, Copy)]
pub struct Micro {
    /// Rows of a full tile; the kernel takes any number from one to this.
    pub rows: usize,
    /// Columns of a tile, always all of them.
    pub width: usize,
    /// Words between two steps of the left operand.
    pub left_stride: usize,
    /// What a word of the left operand holds.
    pub left: Word,
    /// What a word of the right operand holds; with pairs against singles, two left steps meet one right one.
    pub right: Word,
    /// The kernel.
    pub run: Run,
}

impl Micro {
    /// The kernel for operands of `dtype` on `isa`.
    pub fn of(isa: Isa, dtype: DType) -> Self {
        let bf16 = match dtype {
            DType::F32 => false,
            DType::Bf16 => true,
            other => panic!("products on this device take f32 or bf16, got {other:?}; cast first"),
        };
        let right = if bf16 { Word::Pair } else { Word::Single };
        let single = |rows, width, left_stride, run| Self { rows, width, left_stride, left: Word::Single, right, run };
        #[cfg(target_arch = "x86_64")]
        match (isa, bf16) {
            (Isa::Portable, _) => {}
            (Isa::Avx2, false) => return single(6, 16, 8, avx2::f32 as Run),
            (Isa::Avx2, true) => return single(6, 16, 8, avx2::widened as Run),
            (Isa::Avx512Bf16 | Isa::Amx, true) => {
                return Self { rows: 14, width: 32, left_stride: 16, left: Word::Pair, right, run: avx512::pairs };
            }
            (_, false) => return single(14, 32, 16, avx512::f32 as Run),
            (_, true) => return single(14, 32, 16, avx512::widened as Run),
        }
        let _ = isa;
        if bf16 { single(4, 16, 8, portable::widened as Run) } else { single(4, 16, 8, portable::f32 as Run) }
    }

    /// Left steps that meet one right step.
    pub fn left_steps(&self) -> usize {
        if self.left == self.right { 1 } else { 2 }
    }
}

/// Defines `$name`, which calls `$kernel::<rows>` with `rows` turned into a constant.
macro_rules! by_rows {
    ($(#[$meta:meta])* $name:ident, $kernel:ident, [$($n:literal)*]) => {
        $(#[$meta])*
        ///
        /// # Safety
        /// The CPU has the kernel's instructions, and the panels and the tile are as [`super::micro::Run`] says.
        pub unsafe fn $name(rows: usize, steps: usize, a: *const u32, b: *const u32, c: *mut f32, ldc: usize, load: bool) {
            match rows {
                // SAFETY: the caller's promise, passed on.
                $($n => unsafe { $kernel::<$n>(steps, a, b, c, ldc, load) },)*
                other => unreachable!("a tile of {other} rows"),
            }
        }
    };
}
pub(super) use by_rows;
