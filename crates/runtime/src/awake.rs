//! Pools whose threads do not fall asleep between the parts of a step.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rayon::{ThreadPool, Yield};

/// How often a thread looks for work before it lets others have the processor.
const LOOKS: usize = 64;
/// How long a thread waits awake where nothing comes. A step's parts follow each other in less.
const PATIENCE: Duration = Duration::from_millis(2);
/// How long it waits at most, whatever comes: that may be others' work.
const LONGEST: Duration = Duration::from_secs(2);

/// Says that all is done, also when the work panics: the others must not look for more for ever.
struct Done(Arc<AtomicBool>);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Who waits awake in a pool, or in whichever it is called: one caller at a time. Threads of two would keep each other from
/// their work.
#[derive(Debug)]
pub(crate) struct Awake(AtomicBool);

impl Awake {
    /// Of a pool in which nobody waits awake.
    pub(crate) const fn new() -> Awake {
        Awake(AtomicBool::new(false))
    }

    /// Runs `work` in a pool whose other threads look for parts of it until it returns. A step of a network has hundreds of
    /// parts, some of them so short that a thread that sleeps would come too late. Where another caller is doing the same, they
    /// sleep as usual.
    pub(crate) fn run<T: Send>(&self, threads: &ThreadPool, work: impl FnOnce() -> T + Send) -> T {
        threads.install(|| self.run_here(work))
    }

    /// As [`run`](Awake::run), in the pool that the calling thread is of, or else in the global one.
    pub(crate) fn run_here<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        rayon::scope(|_| {
            if rayon::current_num_threads() == 1 || self.0.swap(true, Ordering::Acquire) {
                return work();
            }
            let _free = Free(&self.0);
            with_others(work)
        })
    }
}

/// Calls `f` with each item on the threads of the pool that have nothing else to do, in any order. A thread begins with its
/// own share of them, the same in every round, so that it has near what it had before; then it helps the others. The caller
/// waits for the others' last items without falling asleep: where items take microseconds, what wakes it would take longer.
pub(crate) fn for_each<T: Send>(items: impl Iterator<Item = T>, f: impl Fn(T) + Sync) {
    /// How often the caller looks whether all is done before it lets others have the processor.
    const LOOKS: usize = 1024;
    let items: Vec<Mutex<Option<T>>> = items.map(|item| Mutex::new(Some(item))).collect();
    let n_shares = rayon::current_num_threads().min(items.len());
    let begin = |share: usize| share * items.len() / n_shares;
    let next: Vec<AtomicUsize> = (0..n_shares)
        .map(|share| AtomicUsize::new(begin(share)))
        .collect();
    let n_busy = AtomicUsize::new(0);
    let work = || {
        // Before the first item is taken, so that whoever finds none left sees who has one.
        n_busy.fetch_add(1, Ordering::Relaxed);
        let _busy = Busy(&n_busy);
        let own = rayon::current_thread_index().unwrap_or(0) % n_shares.max(1);
        for share in (own..n_shares).chain(0..own) {
            let end = begin(share + 1);
            loop {
                let at = next[share].fetch_add(1, Ordering::Relaxed);
                if at >= end {
                    break;
                }
                let item = items[at].lock().unwrap_or_else(PoisonError::into_inner).take();
                item.into_iter().for_each(&f);
            }
        }
    };
    rayon::in_place_scope(|scope| {
        for _ in 1..n_shares {
            scope.spawn(|_| work());
        }
        work();
        // Others' work is not done meanwhile: it may take longer than what is waited for.
        while n_busy.load(Ordering::Acquire) > 0 {
            for _ in 0..LOOKS {
                if n_busy.load(Ordering::Acquire) == 0 {
                    return;
                }
                std::hint::spin_loop();
            }
            std::thread::yield_now();
        }
    });
}

/// Who is at an item, also when that panics.
struct Busy<'b>(&'b AtomicUsize);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
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
    let done = Done(Arc::default());
    let (own, is_done) = (rayon::current_thread_index(), done.0.clone());
    // Not waited for: a thread that is busy with something else comes when all is over, and sees that.
    rayon::spawn_broadcast(move |context| {
        if Some(context.index()) != own {
            wait_awake(&is_done);
        }
    });
    work()
}

/// Does what there is to do until all is done, or nothing has come for a while: a thread may have been sent here from within
/// a part of the work, which must go on then.
fn wait_awake(is_done: &AtomicBool) {
    let begin = Instant::now();
    let mut since = begin;
    loop {
        for _ in 0..LOOKS {
            if is_done.load(Ordering::Relaxed) {
                return;
            }
            if rayon::yield_now() == Some(Yield::Executed) {
                since = Instant::now();
            } else {
                std::hint::spin_loop();
            }
        }
        if since.elapsed() > PATIENCE || begin.elapsed() > LONGEST {
            return;
        }
        std::thread::yield_now();
    }
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
                let sum = Awake::new().run(&pool, || {
                    let parts = (0..1000u64).into_par_iter().map(|i| i * round);
                    parts.sum::<u64>() + rayon::current_num_threads() as u64
                });
                assert_eq!(sum, 499_500 * round + n as u64);
            }
        }
    }

    #[test]
    fn each_item_is_done_once_and_all_are_done_at_the_end() {
        for n_threads in [1, 2, 5] {
            for n in [0, 1, 2, 3, 100] {
                let mut counts = vec![0; n];
                let work = || {
                    // Within an item as well.
                    for_each(counts.chunks_mut(7), |counts| {
                        for_each(counts.iter_mut(), |count| *count += 1);
                    });
                };
                Awake::new().run(&pool(n_threads), work);
                assert_eq!(counts, vec![1; n]);
            }
        }
    }

    #[test]
    fn items_are_done_by_more_than_one_thread() {
        let (pool, here) = (pool(2), AtomicUsize::new(0));
        Awake::new().run(&pool, || {
            for_each(0..2, |_| {
                // Each waits for the other.
                here.fetch_add(1, Ordering::Relaxed);
                while here.load(Ordering::Relaxed) < 2 {
                    std::thread::yield_now();
                }
            });
        });
    }

    #[test]
    fn a_panic_of_an_item_is_the_callers() {
        for culprit in 0..40 {
            let outcome = std::panic::catch_unwind(|| {
                pool(3).install(|| for_each(0..40, |item| assert_ne!(item, culprit, "on purpose")));
            });
            assert!(outcome.is_err());
        }
    }

    #[test]
    fn a_panic_lets_the_others_go() {
        let (pool, awake) = (pool(3), Awake::new());
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            awake.run(&pool, || panic!("on purpose"));
        }));
        assert!(outcome.is_err());
        assert!(!awake.0.load(Ordering::Relaxed), "the next one may wait awake");
        assert_eq!(awake.run(&pool, || 7), 7);
    }

    #[test]
    fn a_thread_that_is_busy_is_not_waited_for() {
        let (pool, awake) = (pool(2), Awake::new());
        let (started, release) = (std::sync::Barrier::new(2), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                pool.install(|| {
                    started.wait();
                    while !release.load(Ordering::Acquire) {
                        std::thread::yield_now();
                    }
                });
            });
            started.wait();
            assert_eq!(awake.run(&pool, || 7), 7);
            release.store(true, Ordering::Release);
        });
    }

    #[test]
    fn a_part_that_waits_awake_for_the_work_it_is_of_goes_on() {
        let (is_done, begin) = (AtomicBool::new(false), Instant::now());
        pool(2).install(|| {
            rayon::join(|| {}, || wait_awake(&is_done));
            is_done.store(true, Ordering::Relaxed);
        });
        assert!(
            (PATIENCE..LONGEST).contains(&begin.elapsed()),
            "{:?}",
            begin.elapsed()
        );
    }

    /// Work that is followed by work until it is told to stop.
    fn go_on(stop: Arc<AtomicBool>) {
        if !stop.load(Ordering::Relaxed) {
            rayon::spawn(|| go_on(stop));
        }
    }

    #[test]
    fn others_work_does_not_hold_it_for_ever() {
        let (stop, begin) = (Arc::new(AtomicBool::new(false)), Instant::now());
        pool(1).install(|| {
            go_on(Arc::clone(&stop));
            wait_awake(&AtomicBool::new(false));
            stop.store(true, Ordering::Relaxed);
        });
        assert!(begin.elapsed() >= LONGEST, "there was always work");
    }

    #[test]
    fn callers_of_one_pool_do_not_wait_for_each_other() {
        let (pool, awake) = (pool(4), Awake::new());
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
