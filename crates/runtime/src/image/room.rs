//! Room for pictures that are held whole, shared by all threads: a hundred threads must not hold a hundred of the largest
//! pictures at once.

use std::sync::{Condvar, Mutex, PoisonError};

/// Bytes that are taken, and those who wait.
pub(super) struct Room {
    limit: usize,
    /// What needs less than this is not counted.
    counted_from: usize,
    taken: Mutex<usize>,
    changed: Condvar,
}

/// For all pictures of this process.
pub(super) static ROOM: Room = Room::new(1 << 30, 4 << 20);

/// Room that is given back when this goes.
pub(super) struct Taken<'r>(&'r Room, usize);

impl Room {
    const fn new(limit: usize, counted_from: usize) -> Room {
        Room {
            limit,
            counted_from,
            taken: Mutex::new(0),
            changed: Condvar::new(),
        }
    }

    /// Waits until there are `n_bytes`. What needs more than there are in all gets them when nobody else holds any.
    /// A thread that holds some must not ask for more.
    pub(super) fn take(&self, n_bytes: usize) -> Option<Taken<'_>> {
        if n_bytes < self.counted_from {
            return None;
        }
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = |taken: &mut usize| *taken > 0 && n_bytes > self.limit.saturating_sub(*taken);
        let mut taken = self
            .changed
            .wait_while(taken, is_full)
            .unwrap_or_else(PoisonError::into_inner);
        *taken += n_bytes;
        Some(Taken(self, n_bytes))
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) -= self.1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn no_more_is_held_at_once_than_there_is() {
        let room = Room::new(100, 10);
        let (held, most, alone) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for thread in 0..8usize {
                let (room, held, most, alone) = (&room, &held, &most, &alone);
                scope.spawn(move || {
                    for turn in 0..40 {
                        // Up to three times what there is in all.
                        let n_bytes = 10 + (thread * 53 + turn * 31) % 290;
                        let _taken = room.take(n_bytes);
                        let now = held.fetch_add(n_bytes, Ordering::SeqCst) + n_bytes;
                        if n_bytes > 100 {
                            assert_eq!(now, n_bytes, "more than there is, and not alone");
                            alone.fetch_add(1, Ordering::SeqCst);
                        } else {
                            most.fetch_max(now, Ordering::SeqCst);
                        }
                        std::thread::yield_now();
                        held.fetch_sub(n_bytes, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(most.into_inner() <= 100);
        assert!(alone.into_inner() > 100);
        assert_eq!(*room.taken.lock().unwrap(), 0);
        assert!(room.take(9).is_none());
    }
}
