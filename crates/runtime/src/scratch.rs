//! Room that threads keep between steps, and memory that vectors lie well in.

use std::cell::RefCell;

thread_local! {
    static FREE: RefCell<Vec<Aligned>> = const { RefCell::new(Vec::new()) };
}

/// A line of the cache, in bytes.
const LINE: usize = 64;

/// Numbers that begin with a line of the cache, so that no vector of them lies in two.
#[derive(Debug, Default)]
pub(crate) struct Aligned {
    values: Vec<f32>,
    start: usize,
}

impl Aligned {
    /// The first `n` numbers, which are kept where there are as many already; others are of no meaning.
    pub(crate) fn of(&mut self, n: usize) -> &mut [f32] {
        if self.values.len() < self.start + n {
            self.values = vec![0.0; n + LINE / size_of::<f32>()];
            // Where alignment cannot be had, anywhere is right.
            self.start = self
                .values
                .as_ptr()
                .align_offset(LINE)
                .min(LINE / size_of::<f32>());
        }
        &mut self.values[self.start..self.start + n]
    }

    /// The first `n` numbers of as many.
    pub(crate) fn get(&self, n: usize) -> &[f32] {
        &self.values[self.start..self.start + n]
    }
}

/// So many numbers, of which the first begins a line of the cache.
#[derive(Debug, Default)]
pub(crate) struct AlignedVec {
    values: Aligned,
    n: usize,
}

impl AlignedVec {
    /// `n` zeros.
    pub(crate) fn zeros(n: usize) -> AlignedVec {
        let mut lines = AlignedVec::default();
        lines.resize(n);
        lines
    }

    /// Makes them `n`, of no meaning where there were others.
    pub(crate) fn resize(&mut self, n: usize) {
        self.values.of(n);
        self.n = n;
    }
}

impl std::ops::Deref for AlignedVec {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.values.get(self.n)
    }
}

impl std::ops::DerefMut for AlignedVec {
    fn deref_mut(&mut self) -> &mut [f32] {
        self.values.of(self.n)
    }
}

impl Clone for AlignedVec {
    fn clone(&self) -> AlignedVec {
        let mut copy = AlignedVec::zeros(self.n);
        copy.copy_from_slice(self);
        copy
    }
}

/// Numbers of no meaning, which go back to the thread when they are dropped.
pub(crate) struct Room {
    values: Aligned,
    n: usize,
}

impl Room {
    pub(crate) fn as_ref(&self) -> &[f32] {
        self.values.get(self.n)
    }

    pub(crate) fn as_mut(&mut self) -> &mut [f32] {
        self.values.of(self.n)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        // A thread that is ending has no place for them.
        let _ = FREE.try_with(|free| free.borrow_mut().push(values));
    }
}

/// `n` numbers of no meaning. In loops for vectors this, not [`with`], whose closure would not be compiled for them.
pub(crate) fn take(n: usize) -> Room {
    let mut values = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
    values.of(n);
    Room { values, n }
}

/// Runs `work` with `n` numbers of no meaning. May be nested.
pub(crate) fn with<T>(n: usize, work: impl FnOnce(&mut [f32]) -> T) -> T {
    work(take(n).as_mut())
}
