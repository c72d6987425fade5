//! Room that threads keep between steps.

use std::cell::RefCell;

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Numbers of no meaning, which go back to the thread when they are dropped.
pub(crate) struct Room {
    values: Vec<f32>,
    n: usize,
}

impl Room {
    pub(crate) fn as_ref(&self) -> &[f32] {
        &self.values[..self.n]
    }

    pub(crate) fn as_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.n]
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
    if values.len() < n {
        values.resize(n, 0.0);
    }
    Room { values, n }
}

/// Runs `work` with `n` numbers of no meaning. May be nested.
pub(crate) fn with<T>(n: usize, work: impl FnOnce(&mut [f32]) -> T) -> T {
    work(take(n).as_mut())
}
