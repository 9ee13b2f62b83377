//! How kernels split tensors among tasks: pieces of fixed size, each with its own part of the output.

use std::sync::Mutex;

use crate::device::Device;
use crate::dtype::DType;
use crate::kernels::simd::Isa;
use crate::pool;
use crate::tensor::Tensor;

/// Elements per task of memory-bound work: some ten microseconds. Never depends on the number of threads.
pub const GRAIN: usize = 1 << 15;

/// Calls `task(index, item)` for every item, each on any thread.
///
/// The items carry the mutable pieces of the outputs (`chunks_mut`, zipped), so that no two tasks share any.
pub fn for_each_item<T: Send>(items: impl Iterator<Item = T>, task: impl Fn(usize, T) + Sync) {
    let items: Vec<_> = items.map(|item| Mutex::new(Some(item))).collect();
    pool::for_each(items.len(), &|i| {
        let item = items[i].lock().expect("each lock is taken once").take().expect("each task runs once");
        task(i, item);
    });
}

/// Rows of `width` elements that make up one task.
pub fn rows_per_task(width: usize) -> usize {
    (GRAIN / width.max(1)).max(1)
}

/// A tensor on the kernel set of `isa` whose elements the caller writes.
pub fn empty(isa: Isa, dtype: DType, shape: &[usize]) -> Tensor {
    Tensor::empty(Device::cpu_with(isa).expect("a kernel set exists only where its instructions do"), dtype, shape)
}
