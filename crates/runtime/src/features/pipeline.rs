//! Samples to batches to the network, on all cores at once.
//!
//! Every thread prepares samples into a batch of its own. A full batch is taken by whoever is free first when a session
//! is: with a session per thread (a CPU) that is the thread that filled it, and no core ever waits; with one session (a
//! GPU) one thread feeds it while the others prepare. Batches are a fixed number of buffers, so that a slow network holds
//! preparation back instead of filling memory.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use super::runner::{Plan, Runner};
use crate::engine::{Device, Engine, OutputView, Session, SessionOptions};
use crate::error::Error;
use crate::onnx::Model;

/// What is run, and how.
#[derive(Debug)]
pub(crate) struct Pipeline<'p> {
    pub(crate) engine: &'p Engine,
    pub(crate) model: &'p Model,
    pub(crate) options: SessionOptions,
    /// Whether the crate's own kernels may run the network, where they are faster.
    pub(crate) may_be_own: bool,
    /// Sessions at most; each of ONNX Runtime's holds its own copy of the weights.
    pub(crate) n_sessions: usize,
    /// Threads that prepare samples.
    pub(crate) n_threads: usize,
    /// `[N, ...]`: the input of one run. The batch is fixed, so that a row's value does not depend on its neighbours.
    pub(crate) shape: Vec<usize>,
}

/// What stays from one run of a pipeline to the next: how the network is run, and what runs it. Nothing at first.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    plan: OnceLock<Plan>,
    sessions: Mutex<Vec<Runner>>,
}

/// Time that threads spent in each part, in nanoseconds, and what sessions told.
#[derive(Debug, Default)]
pub(crate) struct Spent {
    pub(crate) preparing: AtomicU64,
    pub(crate) running: AtomicU64,
    /// Whether a session for a GPU leaves some operators to the processor.
    pub(crate) partly_on_cpu: AtomicBool,
    /// The outputs that the crate's own kernels compute; known when the network first runs.
    pub(crate) own: OnceLock<Vec<String>>,
}

impl Kept {
    fn lock(&self) -> MutexGuard<'_, Vec<Runner>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spent {
    pub(super) fn saw(&self, session: &Session) {
        self.partly_on_cpu
            .fetch_or(session.partly_on_cpu(), Ordering::Relaxed);
    }

    pub(super) fn add(counter: &AtomicU64, since: Instant) {
        let nanoseconds = since.elapsed().as_nanos();
        counter.fetch_add(u64::try_from(nanoseconds).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// Samples on their way to the network: `tags[i]` says what the i-th is.
struct Batch<T> {
    tags: Vec<T>,
    values: Vec<f32>,
}

struct Hall<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    batch_size: usize,
    numel: usize,
}

struct State<T> {
    free: Vec<Batch<T>>,
    ready: VecDeque<Batch<T>>,
    sessions: Vec<Runner>,
    /// Sessions that may still be made.
    n_unmade: usize,
    /// Threads that may still fill batches.
    n_filling: usize,
    /// What the threads that are through had not filled.
    rest: Option<Batch<T>>,
    stopped: bool,
}

/// A full batch and what runs it; a session that is none yet is made by its thread.
struct Run<T> {
    batch: Batch<T>,
    session: Option<Runner>,
}

enum Next<T> {
    Fill(Batch<T>),
    Run(Box<Run<T>>),
    Nothing,
}

impl<T> Hall<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A batch to run where there is one and a session, else an empty one where `fills`, else waits for either.
    fn next(&self, fills: bool) -> Next<T> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return Next::Nothing;
            }
            if !state.ready.is_empty() && (!state.sessions.is_empty() || state.n_unmade > 0) {
                let session = state.sessions.pop();
                if session.is_none() {
                    state.n_unmade -= 1;
                }
                let batch = state.ready.pop_front().expect("looked at above");
                return Next::Run(Box::new(Run { batch, session }));
            }
            if fills && let Some(batch) = state.free.pop() {
                return Next::Fill(batch);
            }
            if !fills && state.ready.is_empty() && state.n_filling == 0 {
                return Next::Nothing;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn push_ready(&self, batch: Batch<T>) {
        self.lock().ready.push_back(batch);
        self.changed.notify_all();
    }

    fn give_back(&self, mut batch: Batch<T>, session: Runner) {
        batch.tags.clear();
        let mut state = self.lock();
        state.free.push(batch);
        state.sessions.push(session);
        drop(state);
        self.changed.notify_all();
    }

    fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    /// A thread has no more samples: its unfilled batch is joined with the others', and the last to come runs the rest.
    fn finish(&self, mut open: Batch<T>) {
        let mut state = self.lock();
        if let Some(mut rest) = state.rest.take() {
            while rest.tags.len() < self.batch_size
                && let Some(tag) = open.tags.pop()
            {
                let (from, to) = (open.tags.len() * self.numel, rest.tags.len() * self.numel);
                rest.values[to..to + self.numel].copy_from_slice(&open.values[from..from + self.numel]);
                rest.tags.push(tag);
            }
            if rest.tags.len() == self.batch_size {
                state.ready.push_back(rest);
                state.rest = Some(open);
            } else {
                state.free.push(open);
                state.rest = Some(rest);
            }
        } else {
            state.rest = Some(open);
        }
        state.n_filling -= 1;
        if state.n_filling == 0
            && let Some(rest) = state.rest.take()
            && !rest.tags.is_empty()
        {
            state.ready.push_back(rest);
        }
        drop(state);
        self.changed.notify_all();
    }
}

/// Where a thread puts the samples it has prepared.
pub(crate) struct Filler<'f, T> {
    hall: &'f Hall<T>,
    run: &'f dyn Fn(Run<T>) -> Result<(), Error>,
    spent: &'f Spent,
    open: Option<Batch<T>>,
}

impl<T> Filler<'_, T> {
    /// Does a part of the preparation, and counts its time.
    pub(crate) fn prepare<R>(&self, part: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let done = part();
        Spent::add(&self.spent.preparing, start);
        done
    }

    /// Lets `write` put a sample into the next free place; where it fails, the place is free again and its error is
    /// returned inside. May run the network before it returns.
    ///
    /// # Errors
    /// The network's. `None` where another thread has failed and there is no more to do.
    pub(crate) fn fill<E>(
        &mut self,
        tag: T,
        write: impl FnOnce(&mut [f32]) -> Result<(), E>,
    ) -> Result<Option<Result<(), E>>, Error> {
        let Some(open) = &mut self.open else {
            return Ok(None);
        };
        let at = open.tags.len() * self.hall.numel;
        let start = Instant::now();
        let written = write(&mut open.values[at..at + self.hall.numel]);
        Spent::add(&self.spent.preparing, start);
        if written.is_ok() {
            open.tags.push(tag);
            if open.tags.len() == self.hall.batch_size {
                let full = self.open.take().expect("filled above");
                self.hall.push_ready(full);
                loop {
                    match self.hall.next(true) {
                        Next::Fill(batch) => break self.open = Some(batch),
                        Next::Run(run) => (self.run)(*run)?,
                        Next::Nothing => return Ok(None),
                    }
                }
            }
        }
        Ok(Some(written))
    }
}

/// The others must not wait for a thread that is gone.
struct StopOnPanic<'h, T>(&'h Hall<T>);

impl<T> Drop for StopOnPanic<'_, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop();
        }
    }
}

impl Pipeline<'_> {
    fn plan(&self, spent: &Spent) -> Plan {
        let plan = if self.may_be_own && self.options.device == Device::Cpu {
            Plan::new(self.model, &self.shape[1..])
        } else {
            Plan::without_own(self.model)
        };
        spent.own.get_or_init(|| plan.own());
        plan
    }

    fn check_rows(&self, output: &OutputView<'_>) -> Result<(), Error> {
        if output.shape.first() == Some(&self.shape[0]) && output.row_len() > 0 {
            return Ok(());
        }
        Err(Error::Backbone {
            path: self.model.path().to_owned(),
            reason: format!(
                "`{}` has shape {:?} for {} samples",
                output.name, output.shape, self.shape[0]
            ),
        })
    }

    /// Calls `work` on every thread to fill batches until it returns, and `sink` with each batch's tags and outputs, from
    /// any thread. A short batch is padded with zeros, which `sink` does not see: there are as many rows as tags or more.
    ///
    /// # Errors
    /// The first error of a session, `work` or `sink`; all threads stop then.
    pub(crate) fn run<T: Send>(
        &self,
        kept: &Kept,
        spent: &Spent,
        work: impl Fn(&mut Filler<'_, T>) -> Result<(), Error> + Sync,
        sink: impl Fn(&[T], &[OutputView<'_>]) -> Result<(), Error> + Sync,
    ) -> Result<(), Error> {
        let (batch_size, numel) = (self.shape[0], self.shape[1..].iter().product::<usize>());
        let n_batches = self.n_threads
            + if self.n_sessions < self.n_threads {
                self.n_sessions + 1
            } else {
                0
            };
        let sessions = std::mem::take(&mut *kept.lock());
        let hall = Hall {
            state: Mutex::new(State {
                free: (0..n_batches)
                    .map(|_| Batch {
                        tags: Vec::new(),
                        values: vec![0.0; batch_size * numel],
                    })
                    .collect(),
                ready: VecDeque::new(),
                n_unmade: self.n_sessions.saturating_sub(sessions.len()),
                sessions,
                n_filling: self.n_threads,
                rest: None,
                stopped: false,
            }),
            changed: Condvar::new(),
            batch_size,
            numel,
        };
        let run = |run: Run<T>| -> Result<(), Error> {
            let Run { mut batch, session } = run;
            // Made when there is something to run: often all is cached.
            let plan = kept.plan.get_or_init(|| self.plan(spent));
            let mut session = match session {
                Some(session) => session,
                None => {
                    let session = Runner::new(plan, self.engine, self.options)?;
                    session
                        .session()
                        .into_iter()
                        .for_each(|session| spent.saw(session));
                    session
                }
            };
            let start = Instant::now();
            batch.values[batch.tags.len() * numel..].fill(0.0);
            session.run_with(plan, &self.shape, &batch.values, |outputs| {
                Spent::add(&spent.running, start);
                for output in &outputs {
                    self.check_rows(output)?;
                }
                sink(&batch.tags, &outputs)
            })??;
            hall.give_back(batch, session);
            Ok(())
        };
        let thread = || -> Result<(), Error> {
            let _guard = StopOnPanic(&hall);
            let open = loop {
                match hall.next(true) {
                    Next::Fill(batch) => break batch,
                    // Another thread was faster.
                    Next::Run(next) => run(*next)?,
                    Next::Nothing => return Ok(()),
                }
            };
            let mut filler = Filler {
                hall: &hall,
                run: &run,
                spent,
                open: Some(open),
            };
            work(&mut filler)?;
            let Some(open) = filler.open.take() else {
                return Ok(());
            };
            hall.finish(open);
            while let Next::Run(next) = hall.next(false) {
                run(*next)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.n_threads)
                .map(|_| {
                    scope.spawn(|| {
                        let result = thread();
                        if result.is_err() {
                            hall.stop();
                        }
                        result
                    })
                })
                .collect();
            let mut outcome = Ok(());
            for thread in threads {
                let result = thread.join().expect("threads of the pipeline do not panic");
                outcome = outcome.and(result);
            }
            outcome
        })?;
        *kept.lock() = std::mem::take(&mut hall.lock().sessions);
        Ok(())
    }
}
