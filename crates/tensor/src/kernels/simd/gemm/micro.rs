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
#[cfg(target_arch = "x86_64")]
use crate::kernels::simd::amx;
use crate::kernels::simd::isa::Isa;

/// Most steps that a left operand packed along memory may have: so many that a panel's slice takes 32 KiB.
pub const SLICE_STEPS: usize = 256;
/// Words between two rows of a left operand packed along memory: a cache line more than needed, so that the rows
/// of a tile do not compete for the same few places in the cache.
pub const ALONG: usize = SLICE_STEPS + 16;
/// The same for rows that were widened.
pub const ALONG_WIDENED: usize = 2 * SLICE_STEPS + 16;

/// `c[row, column] (+)= sum over steps of a[step, row] · b[step, column]`.
///
/// Arguments: rows, steps, a, b (`step * width + column`), c, elements between rows of c, and whether the sums
/// start from what c holds.
pub type Run = unsafe fn(usize, usize, *const u32, *const u32, *mut f32, usize, bool);

/// [`Run`] of a matrix unit: the left operand's rows lie along memory, any number of words apart.
pub type RunUnit = unsafe fn(usize, usize, (*const u32, usize), *const u32, *mut f32, usize, bool);

/// One micro-kernel and the layout of its operands.
#[derive(Clone, Copy)]
pub struct Micro {
    /// Rows of a full tile; the kernel takes any number from one to this.
    pub rows: usize,
    /// Rows that the kernel loads and stores together: a result of other numbers of rows goes through scratch.
    pub row_unit: usize,
    /// Columns of a tile, always all of them.
    pub width: usize,
    /// Multiply-adds per cycle, roughly: how long a task takes.
    pub rate: usize,
    /// Steps that the kernel takes at once.
    pub step_unit: usize,
    /// Words between two steps of a left operand that is packed by steps.
    pub left_stride: usize,
    /// What a word of the left operand holds.
    pub left: Word,
    /// What a word of the right operand holds; with pairs against singles, two left steps meet one right one.
    pub right: Word,
    /// Words between two rows of a left operand that is packed along memory.
    pub along_stride: usize,
    /// The kernel for left words at `step * left_stride + row`.
    pub run: Run,
    /// The kernel for left words at `row * along_stride + step`.
    pub run_along: Run,
    /// The kernel of a matrix unit, which then does all products; the others are left to small blocks.
    pub run_unit: Option<RunUnit>,
}

impl Micro {
    /// The kernel for operands of `dtype` on `isa`.
    pub fn of(isa: Isa, dtype: DType) -> Self {
        let is_bf16 = match dtype {
            DType::F32 => false,
            DType::Bf16 => true,
            other => panic!("products on this device take f32 or bf16, got {other:?}; cast first"),
        };
        #[cfg(target_arch = "x86_64")]
        match (isa, is_bf16) {
            (Isa::Portable, _) => {}
            (Isa::Avx2, false) => return avx2::F32,
            (Isa::Avx2, true) => return avx2::WIDENED,
            (_, false) => return avx512::F32,
            (Isa::Avx512, true) => return avx512::WIDENED,
            (Isa::Avx512Bf16, true) => return avx512::PAIRS,
            (Isa::Amx, true) => return amx::micro(avx512::PAIRS, amx::run),
        }
        let _ = isa;
        if is_bf16 { portable::WIDENED } else { portable::F32 }
    }

    /// Right steps of a sum over `depth` numbers, in whole units.
    pub fn steps(&self, depth: usize) -> usize {
        self.right.steps(depth).next_multiple_of(self.step_unit)
    }

    /// Left steps that meet one right step.
    pub fn left_steps(&self) -> usize {
        if self.left == self.right { 1 } else { 2 }
    }
}

/// Defines `$steps` and `$along`, which call `$kernel::<rows, is_along>` with `rows` turned into a constant.
macro_rules! by_rows {
    ($(#[$meta:meta])* $steps:ident, $along:ident, $kernel:ident, [$($n:literal)*]) => {
        $(#[$meta])*
        ///
        /// # Safety
        /// The CPU has the kernel's instructions, and the operands are as [`super::micro::Run`] says.
        pub unsafe fn $steps(rows: usize, steps: usize, a: *const u32, b: *const u32, c: *mut f32, ldc: usize, load: bool) {
            match rows {
                // SAFETY: the caller's promise, passed on.
                $($n => unsafe { $kernel::<$n, false>(steps, a, b, c, ldc, load) },)*
                other => unreachable!("a tile of {other} rows"),
            }
        }

        $(#[$meta])*
        /// Rows lie along memory, as far apart as [`super::micro::Micro::along_stride`] says.
        ///
        /// # Safety
        /// The CPU has the kernel's instructions, and the operands are as [`super::micro::Run`] says.
        pub unsafe fn $along(rows: usize, steps: usize, a: *const u32, b: *const u32, c: *mut f32, ldc: usize, load: bool) {
            match rows {
                // SAFETY: the caller's promise, passed on.
                $($n => unsafe { $kernel::<$n, true>(steps, a, b, c, ldc, load) },)*
                other => unreachable!("a tile of {other} rows"),
            }
        }
    };
}
pub(super) use by_rows;
