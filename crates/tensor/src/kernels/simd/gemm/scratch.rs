//! Working memory of a thread, kept between products so that its pages are touched once.

use std::cell::Cell;

/// A cache line, which every piece of scratch starts on.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line {
    _words: [u32; 16],
}

thread_local! {
    static LINES: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Calls `work` with `words` words of arbitrary content. A nested call gets memory of its own.
pub fn with_scratch<R>(words: usize, work: impl FnOnce(*mut u32) -> R) -> R {
    let mut lines = LINES.take();
    let needed = words.div_ceil(16);
    if lines.len() < needed {
        lines.resize(needed, Line { _words: [0; 16] });
    }
    let result = work(lines.as_mut_ptr().cast());
    LINES.set(lines);
    result
}
