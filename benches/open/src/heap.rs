//! The peak of the heap, counted in front of the system's allocator, and only when asked: timed runs pay one flag.
//!
//! A block that grows counts its growth, as `realloc` may move pages without copying; the mappings of files are not heap.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering::Relaxed};

static IS_COUNTING: AtomicBool = AtomicBool::new(false);
static HELD_BYTES: AtomicIsize = AtomicIsize::new(0);
static PEAK_BYTES: AtomicIsize = AtomicIsize::new(0);

/// Counts from here on.
pub(crate) fn start_counting() {
    IS_COUNTING.store(true, Relaxed);
}

/// The most bytes held at once since [`start_counting`], or `None` if nobody counted.
pub(crate) fn peak_bytes() -> Option<isize> {
    IS_COUNTING.load(Relaxed).then(|| PEAK_BYTES.load(Relaxed))
}

/// The system's allocator with a counter.
pub(crate) struct CountingAllocator;

impl CountingAllocator {
    /// Notes that `old` bytes became `new` ones; no size exceeds `isize::MAX`, so neither conversion wraps.
    fn note(old: usize, new: usize) {
        if IS_COUNTING.load(Relaxed) {
            let change = new as isize - old as isize;
            let held = HELD_BYTES.fetch_add(change, Relaxed) + change;
            PEAK_BYTES.fetch_max(held, Relaxed);
        }
    }
}

// SAFETY: every call goes on to `System` unchanged, whose promises these are; counting touches atomics alone.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::note(0, layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::note(0, layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        Self::note(layout.size(), 0);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, n_bytes: usize) -> *mut u8 {
        Self::note(layout.size(), n_bytes);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(block, layout, n_bytes) }
    }
}
