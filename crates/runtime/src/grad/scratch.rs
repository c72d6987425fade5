//! Room that threads keep between steps.

use std::cell::RefCell;

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Runs `work` with `n` numbers of no meaning. May be nested.
pub(super) fn with<T>(n: usize, work: impl FnOnce(&mut [f32]) -> T) -> T {
    let mut room = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
    if room.len() < n {
        room.resize(n, 0.0);
    }
    let result = work(&mut room[..n]);
    FREE.with_borrow_mut(|free| free.push(room));
    result
}
