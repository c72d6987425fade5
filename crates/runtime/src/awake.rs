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

/// Who waits awake in a pool: one caller at a time. Two would wait for each other, each on a thread that the other needs.
#[derive(Debug, Default)]
pub(crate) struct Awake(AtomicBool);

impl Awake {
    /// Runs `work` in a pool whose other threads look for parts of it until it returns. A step of a network has hundreds of
    /// parts, some of them so short that a thread that sleeps would come too late. Where another caller is doing the same, they
    /// sleep as usual.
    pub(crate) fn run<T: Send>(&self, threads: &ThreadPool, work: impl FnOnce() -> T + Send) -> T {
        if threads.current_num_threads() == 1 || self.0.swap(true, Ordering::Acquire) {
            return threads.install(work);
        }
        let _free = Free(&self.0);
        threads.install(|| with_others(work))
    }
}

/// The next caller may wait awake.
struct Free<'f>(&'f AtomicBool);

impl Drop for Free<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

fn with_others<T>(work: impl FnOnce() -> T) -> T {
    let is_done = AtomicBool::new(false);
    rayon::in_place_scope(|scope| {
        let (own, is_done) = (rayon::current_thread_index(), &is_done);
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
                let sum = Awake::default().run(&pool, || {
                    let parts = (0..1000u64).into_par_iter().map(|i| i * round);
                    parts.sum::<u64>() + rayon::current_num_threads() as u64
                });
                assert_eq!(sum, 499_500 * round + n as u64);
            }
        }
    }

    #[test]
    fn a_panic_lets_the_others_go() {
        let (pool, awake) = (pool(3), Awake::default());
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            awake.run(&pool, || panic!("on purpose"));
        }));
        assert!(outcome.is_err());
        assert!(!awake.0.load(Ordering::Relaxed), "the next one may wait awake");
        assert_eq!(awake.run(&pool, || 7), 7);
    }

    #[test]
    fn callers_of_one_pool_do_not_wait_for_each_other() {
        let (pool, awake) = (pool(4), Awake::default());
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for round in 0..200u64 {
                        let sum = awake.run(&pool, || {
                            (0..64u64).into_par_iter().map(|i| i * round).sum::<u64>()
                        });
                        assert_eq!(sum, 2016 * round);
                    }
                });
            }
        });
    }
}
