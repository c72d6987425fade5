//! Panics of other people's code that become errors here.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Whether a panic of this thread would become an error of a sample or a file, so that a panic hook has nothing to tell.
/// The hook is the process's, and so it is for the program to ask this in one.
pub fn is_contained() -> bool {
    DEPTH.get() > 0
}

/// Calls code that may panic. What it was lent must be thrown away, or only have been read, where it did.
///
/// # Errors
/// What it panicked with.
pub(crate) fn contain<T>(work: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    DEPTH.set(DEPTH.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(work));
    DEPTH.set(DEPTH.get() - 1);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_can_tell_panics_apart() {
        assert!(!is_contained());
        let caught = contain(|| {
            let inner = contain(|| -> () { panic!("within {}", is_contained()) });
            assert_eq!(
                inner.unwrap_err().downcast_ref::<String>().unwrap(),
                "within true"
            );
            assert!(is_contained());
            7
        });
        assert_eq!(caught.unwrap(), 7);
        assert!(!is_contained());
    }
}
