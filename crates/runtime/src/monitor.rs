//! How a long job is watched and stopped: a flag to set and a function to call. Libraries print nothing themselves.

use std::sync::atomic::{AtomicBool, Ordering};

/// A part of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Reading pictures, and computing the features that the cache does not hold.
    Extract,
    /// Trying regularisation strengths.
    Select,
    /// Fitting the head.
    Train,
    /// Running the exported model against the trained head.
    Verify,
    /// Bytes of a file from the network.
    Fetch,
}

/// How far a stage is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Which.
    pub stage: Stage,
    /// Units done: pictures, fits, passes or bytes.
    pub done: usize,
    /// Units in all, zero where that is not known before.
    pub total: usize,
}

/// Watches and stops a job; shared by all its threads.
#[derive(Clone, Copy)]
pub struct Monitor<'m> {
    /// Set to stop at the next step; what is finished is kept.
    pub cancel: &'m AtomicBool,
    /// Called after each step, from any thread.
    pub report: &'m (dyn Fn(Progress) + Sync),
}

impl Monitor<'_> {
    /// Never cancels and reports to no one.
    pub fn none() -> Monitor<'static> {
        static NEVER: AtomicBool = AtomicBool::new(false);
        Monitor {
            cancel: &NEVER,
            report: &|_| {},
        }
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    pub(crate) fn at(&self, stage: Stage, done: usize, total: usize) {
        (self.report)(Progress { stage, done, total });
    }
}
