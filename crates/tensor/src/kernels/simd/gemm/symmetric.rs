//! Products for Newton-Schulz: of a matrix with its own transpose, and blended with another matrix.
//!
//! X·Xᵀ is symmetric bit for bit, because each product of two numbers is: half of it is computed, then mirrored.

#![expect(unsafe_code, reason = "results are written by disjoint tasks")]

use super::elements;
use super::micro::Micro;
use super::panels::{Matrix, Panels};
use super::product::{Add, Left, Out, Product, compute};
use super::words::{Numbers, Operand, Order};
use crate::kernels::simd::isa::Isa;
use crate::kernels::simd::lanes::{Real, real};
use crate::pool;
use crate::tensor::Tensor;

/// Rows and columns of a square that is mirrored at once.
const SQUARE: usize = 32;

/// `factors.0 * base + factors.1 * product`; bases have the type of the result.
pub type Blend<'a> = Option<(&'a Tensor, [f64; 2])>;

/// `y = x · xᵀ` for rows as lines, `xᵀ · x` for columns as lines, blended.
pub fn gram(isa: Isa, x_NK: &Tensor, lines: Order, blend: Blend, y: &mut Tensor) {
    let ([n, k], micro) = (x_NK.dims(), Micro::of(isa, x_NK.dtype()));
    let (side, depth) = if lines == Order::ByLines { (n, k) } else { (k, n) };
    assert_eq!(y.shape(), [side, side], "gram of {x_NK:?}");
    let operand = Operand { numbers: Numbers::of(x_NK), stride: k, order: lines };
    let right = Panels::right(isa, &micro, &[Matrix { operand, depth }], side);
    let packed;
    let left = match lines {
        Order::ByLines => Left::Rows(operand),
        Order::BySteps => {
            packed = Panels::left(isa, &micro, &[Matrix { operand, depth }], side);
            Left::Packed(packed.of(0))
        }
    };
    let out = out(blend, y);
    let product = Product { left, rows: side, depth, columns: side, panels: right.of(0), out, lower: true };
    // SAFETY: `y` is borrowed here alone.
    unsafe { compute(isa, &micro, &[product]) };
    mirror(y, side);
}

/// `y = a · b`, blended; `b_lines` says whether b's columns are its memory's rows (it is symmetric) or not.
pub fn product(isa: Isa, a_NM: &Tensor, b: &Tensor, b_lines: Order, blend: Blend, y: &mut Tensor) {
    let ([n, depth], [b_rows, b_columns], micro) = (a_NM.dims(), b.dims(), Micro::of(isa, a_NM.dtype()));
    let columns = if b_lines == Order::ByLines { b_rows } else { b_columns };
    assert_eq!(y.shape(), [n, columns], "product of {a_NM:?} and {b:?}");
    let operand = Operand { numbers: Numbers::of(b), stride: b_columns, order: b_lines };
    let right = Panels::right(isa, &micro, &[Matrix { operand, depth }], columns);
    let rows = Operand { numbers: Numbers::of(a_NM), stride: depth, order: Order::ByLines };
    let out = out(blend, y);
    let product = Product { left: Left::Rows(rows), rows: n, depth, columns, panels: right.of(0), out, lower: false };
    // SAFETY: `y` is borrowed here alone.
    unsafe { compute(isa, &micro, &[product]) };
}

fn out<'a>(blend: Blend<'a>, y: &mut Tensor) -> Out<'a> {
    let Some((base, [base_factor, factor])) = blend else {
        return Out { at: elements(y), add: Add::Nothing };
    };
    assert_eq!((base.shape(), base.dtype()), (y.shape(), y.dtype()), "blend: base and result differ");
    let factors = (base_factor as f32, factor as f32);
    Out { at: elements(y), add: Add::Blend { base: Numbers::of(base), factors } }
}

/// A matrix whose squares are mirrored by different tasks.
struct Shared<T>(*mut T);
// SAFETY: tasks write disjoint squares above the diagonal, and read squares that nobody writes.
unsafe impl<T> Sync for Shared<T> {}
impl<T> Shared<T> {
    fn at(&self, row: usize, column: usize, side: usize) -> *mut T {
        self.0.wrapping_add(row * side + column)
    }
}

/// Copies the lower triangle of `[side, side]` above the diagonal.
fn mirror(y: &mut Tensor, side: usize) {
    real!(y.dtype(), T => {
        let y = Shared(y.host_mut::<T>().as_mut_ptr());
        pool::for_each(side.div_ceil(SQUARE), &|band| {
            let rows = band * SQUARE..((band + 1) * SQUARE).min(side);
            for first in (rows.start..side).step_by(SQUARE) {
                // SAFETY: the squares right of the diagonal in this band of rows belong to this task.
                unsafe { mirror_square(&y, rows.clone(), first, side) };
            }
        });
    });
}

/// Fills the elements right of the diagonal in `rows` and the columns from `first` on, a square of them.
unsafe fn mirror_square<T: Real>(y: &Shared<T>, rows: std::ops::Range<usize>, first: usize, side: usize) {
    for row in rows {
        for column in first.max(row + 1)..(first + SQUARE).min(side) {
            // SAFETY: both lie inside the matrix.
            unsafe { *y.at(row, column, side) = *y.at(column, row, side) };
        }
    }
}
