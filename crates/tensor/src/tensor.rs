//! The one tensor type: contiguous, row-major, with shape, dtype and device known at run time.
//!
//! Cloning shares the storage; writing to shared storage copies it first.

use std::ops::Range;
use std::sync::Arc;

use crate::device::Device;
use crate::dtype::{Bf16, DType, Element};
use crate::storage::Buffer;

/// An n-dimensional array. Only kernels look at its memory; others go through `from_*` and `to_*`.
#[derive(Clone)]
pub struct Tensor {
    shape: Vec<usize>,
    dtype: DType,
    device: Device,
    storage: Arc<Storage>,
    /// First element of a view, counted in elements.
    start: usize,
}

/// The memory behind a tensor. A GPU kernel set adds its own kind.
enum Storage {
    Host(Buffer),
}

impl Tensor {
    /// A tensor whose elements are arbitrary until a kernel writes them.
    pub fn empty(device: Device, dtype: DType, shape: &[usize]) -> Self {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        let storage = Arc::new(Storage::Host(Buffer::recycled(bytes)));
        Self { shape: shape.to_vec(), dtype, device, storage, start: 0 }
    }

    /// All zeros.
    pub fn zeros(device: Device, dtype: DType, shape: &[usize]) -> Self {
        let mut tensor = Self::empty(device, dtype, shape);
        tensor.bytes_mut().fill(0);
        tensor
    }

    /// Copies little-endian bytes. Panics if their number does not fit the shape.
    pub fn from_bytes(device: Device, dtype: DType, shape: &[usize], bytes: &[u8]) -> Self {
        let mut tensor = Self::empty(device, dtype, shape);
        let target = tensor.bytes_mut();
        assert_eq!(target.len(), bytes.len(), "{dtype:?}{shape:?} needs {} bytes", target.len());
        target.copy_from_slice(bytes);
        tensor
    }

    /// Copies elements of the type that `T` stands for.
    pub fn from_slice<T: Element>(device: Device, shape: &[usize], values: &[T]) -> Self {
        let mut tensor = Self::empty(device, T::DTYPE, shape);
        let target = tensor.host_mut::<T>();
        assert_eq!(target.len(), values.len(), "{shape:?} needs {} elements", target.len());
        target.copy_from_slice(values);
        tensor
    }

    /// Rounds `values` to `dtype`.
    pub fn from_f64(device: Device, dtype: DType, shape: &[usize], values: &[f64]) -> Self {
        match dtype {
            DType::F64 => Self::from_slice(device, shape, values),
            DType::F32 => Self::from_slice(device, shape, &values.iter().map(|&x| x as f32).collect::<Vec<_>>()),
            DType::Bf16 => {
                let rounded: Vec<_> = values.iter().map(|&x| Bf16::from_f32(x as f32)).collect();
                Self::from_slice(device, shape, &rounded)
            }
            DType::U32 | DType::U8 => panic!("from_f64: {dtype:?} is not a real dtype"),
        }
    }

    /// The elements as little-endian bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.bytes().to_vec()
    }

    /// The elements, copied. Panics unless `T` matches the dtype.
    pub fn to_vec<T: Element>(&self) -> Vec<T> {
        self.host::<T>().to_vec()
    }

    /// The elements as f32, whatever the real dtype.
    pub fn to_vec_f32(&self) -> Vec<f32> {
        match self.dtype {
            DType::F32 => self.to_vec(),
            DType::F64 => self.host::<f64>().iter().map(|&x| x as f32).collect(),
            DType::Bf16 => self.host::<Bf16>().iter().map(|x| x.to_f32()).collect(),
            DType::U32 | DType::U8 => panic!("to_vec_f32: {:?} is not a real dtype", self.dtype),
        }
    }

    /// The elements as f64, whatever the real dtype.
    pub fn to_vec_f64(&self) -> Vec<f64> {
        match self.dtype {
            DType::F64 => self.to_vec(),
            _ => self.to_vec_f32().into_iter().map(f64::from).collect(),
        }
    }

    /// The shape, outermost axis first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The shape as an array; panics on another number of axes.
    pub fn dims<const N: usize>(&self) -> [usize; N] {
        self.shape.as_slice().try_into().unwrap_or_else(|_| panic!("expected {N} axes, got shape {:?}", self.shape))
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The kernel set that computes on it.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size of the elements in bytes.
    pub fn size_bytes(&self) -> usize {
        self.len() * self.dtype.size()
    }

    /// The same elements under another shape.
    pub fn reshape(&self, shape: &[usize]) -> Self {
        assert_eq!(self.len(), shape.iter().product(), "reshape {:?} -> {shape:?}", self.shape);
        Self { shape: shape.to_vec(), ..self.clone() }
    }

    /// A view of some entries of the first axis; shares the storage.
    pub fn rows(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.shape[0], "rows {range:?} of {:?}", self.shape);
        let row: usize = self.shape[1..].iter().product();
        let mut view = self.clone();
        view.shape[0] = range.len();
        view.start += range.start * row;
        view
    }

    /// The parts below each other along the first axis; shapes and dtypes otherwise alike.
    pub fn concat_rows(parts: &[Self]) -> Self {
        let first = parts.first().expect("concat_rows of nothing");
        let mut shape = first.shape.clone();
        shape[0] = parts.iter().map(|part| part.shape[0]).sum();
        let mut all = Self::empty(first.device, first.dtype, &shape);
        let mut rest = all.bytes_mut();
        for part in parts {
            assert_eq!((&part.shape[1..], part.dtype), (&first.shape[1..], first.dtype), "concat_rows: parts differ");
            let (target, tail) = rest.split_at_mut(part.size_bytes());
            target.copy_from_slice(part.bytes());
            rest = tail;
        }
        all
    }

    /// Copies `source` over the rows from `start` on.
    pub fn write_rows(&mut self, start: usize, source: &Self) {
        assert_eq!((&self.shape[1..], self.dtype), (&source.shape[1..], source.dtype), "write_rows: rows differ");
        let row = self.shape[1..].iter().product::<usize>() * self.dtype.size();
        self.bytes_mut()[start * row..][..source.size_bytes()].copy_from_slice(source.bytes());
    }

    /// The same numbers in another dtype, rounded to nearest; shares the storage if nothing changes.
    pub fn to_dtype(&self, dtype: DType) -> Self {
        if dtype == self.dtype { self.clone() } else { self.device.kernels().cast(self, dtype) }
    }

    /// The same numbers on another device; shares the storage where both read host memory.
    pub fn to_device(&self, device: Device) -> Self {
        Self { device, ..self.clone() }
    }

    /// The elements in host memory. For kernels that run on the host.
    pub(crate) fn host<T: Element>(&self) -> &[T] {
        assert_eq!(self.dtype, T::DTYPE, "a {:?} tensor was read as {:?}", self.dtype, T::DTYPE);
        let Storage::Host(buffer) = &*self.storage;
        &buffer.slice::<T>()[self.start..self.start + self.len()]
    }

    /// The elements in host memory, for writing; storage that is shared is copied first.
    pub(crate) fn host_mut<T: Element>(&mut self) -> &mut [T] {
        assert_eq!(self.dtype, T::DTYPE, "a {:?} tensor was written as {:?}", self.dtype, T::DTYPE);
        self.make_unique();
        let (start, len) = (self.start, self.len());
        let Storage::Host(buffer) = Arc::get_mut(&mut self.storage).expect("just made unique");
        &mut buffer.slice_mut::<T>()[start..start + len]
    }

    fn bytes(&self) -> &[u8] {
        let Storage::Host(buffer) = &*self.storage;
        let start = self.start * self.dtype.size();
        &buffer.slice::<u8>()[start..start + self.size_bytes()]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.make_unique();
        let (start, size) = (self.start * self.dtype.size(), self.size_bytes());
        let Storage::Host(buffer) = Arc::get_mut(&mut self.storage).expect("just made unique");
        &mut buffer.slice_mut::<u8>()[start..start + size]
    }

    fn make_unique(&mut self) {
        if Arc::get_mut(&mut self.storage).is_none() {
            let mut buffer = Buffer::recycled(self.size_bytes());
            buffer.slice_mut::<u8>().copy_from_slice(self.bytes());
            debug_assert_eq!(buffer.bytes(), self.size_bytes());
            self.storage = Arc::new(Storage::Host(buffer));
            self.start = 0;
        }
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}{:?} on {}", self.dtype, self.shape, self.device.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_to_a_shared_tensor_leaves_the_other_alone() {
        let a = Tensor::from_slice(Device::reference(), &[2, 2], &[1.0f32, 2.0, 3.0, 4.0]);
        let mut b = a.rows(1..2);
        b.host_mut::<f32>()[0] = 9.0;
        assert_eq!(a.to_vec_f32(), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(b.to_vec_f32(), [9.0, 4.0]);
    }

    #[test]
    fn bytes_round_trip() {
        let bytes: Vec<u8> = (0..24).collect();
        let tensor = Tensor::from_bytes(Device::reference(), DType::Bf16, &[3, 4], &bytes);
        assert_eq!(tensor.to_bytes(), bytes);
        assert_eq!(tensor.rows(1..3).to_bytes(), bytes[8..]);
    }
}
