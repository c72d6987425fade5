//! A bar on a terminal, a line now and then elsewhere; and Ctrl-C as a flag.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use runtime::{Monitor, Progress, Stage};

use crate::text::{is_watched, remark};

/// Set by Ctrl-C or SIGTERM.
static CANCEL: AtomicBool = AtomicBool::new(false);
/// Between two lines where no terminal is.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The first Ctrl-C asks the job to stop at its next step, a second ends the process at once.
fn on_interrupt() {
    // Installing it twice in a process fails, and the first one serves.
    let _ = ctrlc::set_handler(|| {
        if CANCEL.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(crate::errors::code::RUN_AGAIN));
        }
    });
}

/// Watches bytes go by.
pub(crate) struct Bytes {
    what: &'static str,
    bar: ProgressBar,
    since: Instant,
    last_line: Mutex<Instant>,
}

impl Bytes {
    pub(crate) fn new(what: &'static str) -> Bytes {
        on_interrupt();
        Bytes {
            what,
            bar: ProgressBar::hidden(),
            since: Instant::now(),
            last_line: Mutex::new(Instant::now()),
        }
    }

    /// The flag that Ctrl-C sets.
    pub(crate) fn cancelled(&self) -> &'static AtomicBool {
        &CANCEL
    }

    /// `total` bytes are to come.
    pub(crate) fn begin(&self, total: u64) {
        self.bar.set_length(total);
        if is_watched() {
            let template = "{msg:>18} [{bar:30}] {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left";
            let style =
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            self.bar.set_style(style.progress_chars("=> "));
            self.bar.set_message(self.what);
            self.bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        }
    }

    /// `done` bytes have gone by.
    pub(crate) fn advance(&self, done: u64) {
        if !self.bar.is_hidden() {
            return self.bar.set_position(done);
        }
        let Ok(mut last) = self.last_line.try_lock() else {
            return;
        };
        if last.elapsed() >= LINE_EVERY {
            *last = Instant::now();
            let megabytes = done as f64 / 1e6;
            let rate = megabytes / self.since.elapsed().as_secs_f64();
            let total = self.bar.length().unwrap_or(0) as f64 / 1e6;
            remark(&format!(
                "{} {megabytes:.0}/{total:.0} MB  {rate:.0} MB/s",
                self.what
            ));
        }
    }

    pub(crate) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// Watches one job.
pub(crate) struct Watch {
    state: Mutex<State>,
    is_quiet: bool,
}

struct State {
    stage: Option<Stage>,
    bar: Option<ProgressBar>,
    since: Instant,
    last_line: Instant,
}

impl Watch {
    /// Heeds Ctrl-C from here on.
    pub(crate) fn new() -> Watch {
        on_interrupt();
        let now = Instant::now();
        Watch {
            state: Mutex::new(State {
                stage: None,
                bar: None,
                since: now,
                last_line: now,
            }),
            is_quiet: false,
        }
    }

    /// As [`Watch::new`], for a job whose results on stdout come as it goes: on a terminal they show how far it is, and a
    /// bar would stand among them.
    pub(crate) fn beside_results() -> Watch {
        Watch {
            is_quiet: std::io::stdout().is_terminal() && is_watched(),
            ..Watch::new()
        }
    }

    /// Runs a job under watch.
    pub(crate) fn run<T>(&self, job: impl FnOnce(Monitor<'_>) -> T) -> T {
        let result = job(Monitor {
            cancel: &CANCEL,
            report: &|progress| self.report(progress),
        });
        if let Ok(mut state) = self.state.lock() {
            state.close();
        }
        result
    }

    /// Writes a remark above the bar, where there is one.
    pub(crate) fn line(&self, text: &str) {
        let state = self.state.lock();
        match state.as_ref().ok().and_then(|state| state.bar.as_ref()) {
            Some(bar) => bar.suspend(|| remark(text)),
            None => remark(text),
        }
    }

    fn report(&self, progress: Progress) {
        if self.is_quiet {
            return;
        }
        let Ok(mut state) = self.state.lock() else { return };
        let name = match progress.stage {
            Stage::Extract => "features",
            Stage::Select => "choosing C",
            Stage::Train => "fitting",
            Stage::Verify => "running the model",
            Stage::Fetch => "download",
        };
        if state.stage != Some(progress.stage) {
            state.close();
            state.stage = Some(progress.stage);
            state.since = Instant::now();
            state.last_line = Instant::now();
            if is_watched() {
                let template = if progress.total > 0 {
                    "{msg:>18} [{bar:30}] {pos}/{len}  {per_sec}  {eta} left"
                } else {
                    "{msg:>18} {spinner} {elapsed}"
                };
                let style =
                    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
                let bar = ProgressBar::new(progress.total as u64).with_style(style.progress_chars("=> "));
                bar.set_message(name);
                state.bar = Some(bar);
            }
        }
        match &state.bar {
            // Workers report out of order: the bar only moves forward.
            Some(bar) => bar.set_position(bar.position().max(progress.done as u64)),
            None if state.last_line.elapsed() >= LINE_EVERY => {
                state.last_line = Instant::now();
                let rate = progress.done as f64 / state.since.elapsed().as_secs_f64();
                remark(&format!(
                    "{name} {}/{}  {rate:.0}/s",
                    progress.done, progress.total
                ));
            }
            None => {}
        }
    }
}

impl State {
    fn close(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
