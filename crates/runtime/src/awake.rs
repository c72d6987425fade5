//! Pools whose threads do not fall asleep between the parts of a step.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::{ThreadPool, Yield};

/// How often a thread looks for work before it lets others have the processor.
const LOOKS: usize = 64;

/// Says that all is done, also when the work panics: the others must not look for more for ever.
struct Done<'d>(&'d AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `work` in a pool whose other threads look for parts of it until it returns. A thread that sleeps is woken in some 50 us
/// on a virtual machine, and a step of a network has hundreds of parts that take little longer.
pub(crate) fn awake<T: Send>(threads: &ThreadPool, work: impl FnOnce() -> T + Send) -> T {
    if threads.current_num_threads() == 1 {
        return threads.install(work);
    }
    let is_done = AtomicBool::new(false);
    threads.in_place_scope(|scope| {
        threads.install(|| {
            let own = rayon::current_thread_index();
            let is_done = &is_done;
            scope.spawn_broadcast(move |_, context| {
                if Some(context.index()) == own {
                    return;
                }
                while !is_done.load(Ordering::Relaxed) {
                    for _ in 0..LOOKS {
                        if rayon::yield_now() != Some(Yield::Executed) {
                            std::hint::spin_loop();
                        }
                    }
                    std::thread::yield_now();
                }
            });
            let _done = Done(is_done);
            work()
        })
    })
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;

    fn pool(n: usize) -> ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap()
    }

    #[test]
    fn work_is_done_on_all_threads_and_what_it_says_comes_back() {
        for n in [1, 2, 5] {
            let pool = pool(n);
            for round in 0..50u64 {
                let sum = awake(&pool, || {
                    let parts = (0..1000u64).into_par_iter().map(|i| i * round);
                    parts.sum::<u64>() + rayon::current_num_threads() as u64
                });
                assert_eq!(sum, 499_500 * round + n as u64);
            }
        }
    }

    #[test]
    fn a_panic_lets_the_others_go() {
        let pool = pool(3);
        let outcome = std::panic::catch_unwind(|| awake(&pool, || panic!("on purpose")));
        assert!(outcome.is_err());
        assert_eq!(awake(&pool, || 7), 7);
    }
}
