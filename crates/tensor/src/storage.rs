//! Aligned host memory that is recycled instead of returned to the system.
//!
//! A training step allocates the same sizes again and again; fresh pages would cost more time than
//! the cheap operations that fill them. Freed blocks wait here for the next request of their size class.

#![expect(unsafe_code, reason = "raw aligned allocation; every block is zeroed when it is first made")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::dtype::Element;

/// One cache line, and one AVX-512 register.
const ALIGNMENT: usize = 64;
/// Idle blocks beyond this many bytes, and beyond what is in use, go back to the system.
const IDLE_BYTES_MIN: usize = 256 << 20;

static IDLE: Mutex<Idle> = Mutex::new(Idle { blocks: BTreeMap::new(), bytes: 0 });
static LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);
static PEAK_BYTES: AtomicUsize = AtomicUsize::new(0);

struct Idle {
    blocks: BTreeMap<usize, Vec<Block>>,
    bytes: usize,
}

struct Block(NonNull<u8>);
// SAFETY: a block in the idle list has no owner; whoever takes it out becomes the only one.
unsafe impl Send for Block {}

/// Bytes that tensors hold now.
pub fn live_bytes() -> usize {
    LIVE_BYTES.load(Relaxed)
}

/// The most bytes that tensors held at once since [`reset_peak_bytes`].
pub fn peak_bytes() -> usize {
    PEAK_BYTES.load(Relaxed)
}

/// Starts a new measurement of [`peak_bytes`].
pub fn reset_peak_bytes() {
    PEAK_BYTES.store(live_bytes(), Relaxed);
}

/// An owned block of initialised bytes, aligned to a cache line.
pub(crate) struct Buffer {
    pointer: NonNull<u8>,
    bytes: usize,
}
// SAFETY: a buffer owns its block like a `Vec<u8>` does.
unsafe impl Send for Buffer {}
// SAFETY: shared access is read-only.
unsafe impl Sync for Buffer {}

/// Eight classes per power of two: at most an eighth is wasted.
fn size_class(bytes: usize) -> usize {
    let bytes = bytes.max(ALIGNMENT);
    let step = (bytes.next_power_of_two() / 8).max(ALIGNMENT);
    bytes.div_ceil(step) * step
}

fn layout(class: usize) -> Layout {
    Layout::from_size_align(class, ALIGNMENT).expect("a tensor's size fits the address space")
}

impl Buffer {
    /// A block whose contents are arbitrary (but initialised) bytes.
    pub fn recycled(bytes: usize) -> Self {
        let class = size_class(bytes);
        let idle = IDLE.lock().expect("no panic while the list is held").take(class);
        let pointer = idle.unwrap_or_else(|| {
            // SAFETY: the layout's size is at least one cache line.
            NonNull::new(unsafe { alloc_zeroed(layout(class)) }).unwrap_or_else(|| handle_alloc_error(layout(class)))
        });
        let live = LIVE_BYTES.fetch_add(class, Relaxed) + class;
        PEAK_BYTES.fetch_max(live, Relaxed);
        Self { pointer, bytes }
    }

    pub fn slice<T: Element>(&self) -> &[T] {
        // SAFETY: the block is initialised, aligned for every element type, and every bit pattern is valid.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr().cast(), self.bytes / size_of::<T>()) }
    }

    pub fn slice_mut<T: Element>(&mut self) -> &mut [T] {
        // SAFETY: as for `slice`, and `&mut self` makes the access unique.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr().cast(), self.bytes / size_of::<T>()) }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let class = size_class(self.bytes);
        let live = LIVE_BYTES.fetch_sub(class, Relaxed) - class;
        if let Ok(mut idle) = IDLE.lock() {
            idle.put(class, self.pointer, live.max(IDLE_BYTES_MIN));
        }
    }
}

impl Idle {
    fn take(&mut self, class: usize) -> Option<NonNull<u8>> {
        let block = self.blocks.get_mut(&class)?.pop()?;
        self.bytes -= class;
        Some(block.0)
    }

    fn put(&mut self, class: usize, pointer: NonNull<u8>, bytes_max: usize) {
        self.blocks.entry(class).or_default().push(Block(pointer));
        self.bytes += class;
        // The largest class goes first: it frees the most and is the likeliest leftover of a passed peak.
        while self.bytes > bytes_max {
            let Some((&largest, blocks)) = self.blocks.iter_mut().next_back() else {
                break;
            };
            match blocks.pop() {
                // SAFETY: the block was made with this class's layout and has no owner.
                Some(block) => unsafe {
                    dealloc(block.0.as_ptr(), layout(largest));
                    self.bytes -= largest;
                },
                None => drop(self.blocks.remove(&largest)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_waste_little_and_hold_what_they_are_asked_for() {
        for bytes in [0, 1, 63, 64, 65, 1000, 4097, 1 << 20, (1 << 20) + 1] {
            let class = size_class(bytes);
            assert!(class >= bytes && class.is_multiple_of(ALIGNMENT));
            assert!(class <= bytes + bytes / 4 + ALIGNMENT, "{bytes} -> {class}");
            assert_eq!(size_class(class), class);
        }
    }

    #[test]
    fn a_buffer_is_writable_over_its_whole_length() {
        let mut buffer = Buffer::recycled(1001);
        buffer.slice_mut::<u8>().fill(7);
        assert!(buffer.slice::<u8>().iter().all(|&byte| byte == 7));
        assert_eq!(buffer.slice::<u8>().len(), 1001);
    }
}
