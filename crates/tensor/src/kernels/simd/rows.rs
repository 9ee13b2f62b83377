//! Moving rows and columns: slices, concatenation, gather and its transpose.

use super::isa::multiversion;
use super::lanes::{Real, real};
use super::parallel::{empty, for_each_item, rows_per_task};
use crate::dtype::{DType, Element};
use crate::kernels::simd::Isa;
use crate::tensor::Tensor;

/// Parts into which the rows of a scatter's target are split; each reads all ids and takes its own.
const SCATTER_PARTS: usize = 32;

/// Binds a type name to an element type of the dtype's size, for kernels that only move elements.
macro_rules! element {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            DType::U32 => {
                type $T = u32;
                $body
            }
            DType::U8 => {
                type $T = u8;
                $body
            }
            real => real!(real, $T => $body),
        }
    };
}

multiversion! {
    fn accumulate<A: Real>(sum: &mut [f32], x: &[A]) {
        for (sum, x) in sum.iter_mut().zip(x) {
            *sum += x.get();
        }
    }
}

/// Calls `write(row, out)` for each row of a new `[rows, width]` tensor.
fn each_row<T: Element>(out: &mut Tensor, write: impl Fn(usize, &mut [T]) + Sync) {
    let [_, width] = out.dims();
    if out.is_empty() {
        return;
    }
    let task_rows = rows_per_task(width);
    for_each_item(out.host_mut::<T>().chunks_mut(task_rows * width), |task, out| {
        let rows = out.chunks_exact_mut(width).enumerate();
        rows.for_each(|(row, out)| write(task * task_rows + row, out));
    });
}

/// See [`crate::kernels::Kernels::columns`].
pub fn columns(isa: Isa, x_TC: &Tensor, start: usize, width: usize) -> Tensor {
    let [rows, all] = x_TC.dims();
    assert!(start + width <= all, "columns {start}+{width} of {all}");
    let mut out = empty(isa, x_TC.dtype(), &[rows, width]);
    element!(x_TC.dtype(), T => {
        let x = x_TC.host::<T>();
        each_row(&mut out, |row, out: &mut [T]| out.copy_from_slice(&x[row * all + start..][..width]));
    });
    out
}

/// See [`crate::kernels::Kernels::concat_columns`].
pub fn concat_columns(isa: Isa, parts: &[&Tensor]) -> Tensor {
    let (rows, dtype) = (parts[0].shape()[0], parts[0].dtype());
    for part in parts {
        assert_eq!((part.shape()[0], part.dtype()), (rows, dtype), "concat_columns: {part:?} beside {:?}", parts[0]);
    }
    let widths: Vec<_> = parts.iter().map(|part| part.dims::<2>()[1]).collect();
    let mut out = empty(isa, dtype, &[rows, widths.iter().sum()]);
    element!(dtype, T => {
        let parts: Vec<_> = parts.iter().map(|part| part.host::<T>()).zip(widths).collect();
        each_row(&mut out, |row, mut out: &mut [T]| {
            for (x, width) in &parts {
                let (target, rest) = out.split_at_mut(*width);
                target.copy_from_slice(&x[row * width..][..*width]);
                out = rest;
            }
        });
    });
    out
}

/// See [`crate::kernels::Kernels::gather_rows`].
pub fn gather_rows(isa: Isa, x_TC: &Tensor, rows_R: &Tensor, divisor: usize) -> Tensor {
    let [_, width] = x_TC.dims();
    let rows = rows_R.host::<u32>();
    let mut out = empty(isa, x_TC.dtype(), &[rows.len(), width]);
    element!(x_TC.dtype(), T => {
        let x = x_TC.host::<T>();
        each_row(&mut out, |row, out: &mut [T]| {
            out.copy_from_slice(&x[rows[row] as usize / divisor * width..][..width]);
        });
    });
    out
}

/// See [`crate::kernels::Kernels::scatter_add_rows`].
pub fn scatter_add_rows(isa: Isa, dy_TD: &Tensor, ids_T: &Tensor, into_VD: &mut Tensor) {
    let ([tokens, width], [vocabulary, into_width]) = (dy_TD.dims(), into_VD.dims());
    let ids = ids_T.host::<u32>();
    assert_eq!((tokens, width), (ids.len(), into_width), "scatter_add_rows: {dy_TD:?} into {into_VD:?}");
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
        panic!("scatter_add_rows: row {id} of {vocabulary}");
    }
    if width == 0 || tokens == 0 {
        return;
    }
    let part_rows = vocabulary.div_ceil(SCATTER_PARTS);
    real!(dy_TD.dtype(), A => {
        let dy = dy_TD.host::<A>();
        for_each_item(into_VD.host_mut::<f32>().chunks_mut(part_rows * width), |part, into| {
            let mine = part * part_rows..(part + 1) * part_rows;
            for (id, dy) in ids.iter().map(|&id| id as usize).zip(dy.chunks_exact(width)) {
                if mine.contains(&id) {
                    accumulate(isa, &mut into[(id - mine.start) * width..][..width], dy);
                }
            }
        });
    });
}
