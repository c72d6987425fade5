//! `graftwork fit --train`: the network behind a boundary is trained.

use runtime::job::{TuneEvent, TuneJob, fine_tune};
use runtime::train::EpochMetrics;
use runtime::tune::{LoadReport, TuneEpoch};

use crate::progress::Watch;
use crate::text;

pub(crate) fn run(job: &TuneJob, json: bool) -> anyhow::Result<u8> {
    let watch = Watch::new();
    let n_epochs = job.tune.trainer.epochs;
    let (report, failure) =
        watch.run(|monitor| fine_tune(job, &mut |event| show(&watch, event, n_epochs), monitor))?;
    text::remark(&format!("ran on {}", report.engine.describe(job.fit.device)?));
    text::remark(
        "the best epoch is chosen on the validation pictures, so that its figures of them flatter a little",
    );
    super::fit::show_trained(&report, &job.fit, json)?;
    match failure {
        None => Ok(0),
        Some(error) => Err(error.into()),
    }
}

fn show(watch: &Watch, event: &TuneEvent<'_>, n_epochs: usize) {
    match event {
        TuneEvent::Loaded(report) => loaded(watch, report),
        TuneEvent::Planned {
            groups,
            boundaries,
            n_parameters,
        } => {
            for (at, (name, lr, n)) in groups.iter().enumerate() {
                watch.line(&format!(
                    "group {}: {} parameters at lr {lr:.3e}: {}",
                    at + 1,
                    text::grouped(*n),
                    text::plain(name)
                ));
            }
            let trained: usize = groups.iter().map(|(_, _, n)| n).sum();
            watch.line(&format!(
                "of {} parameters {} stay frozen; trained behind {}",
                text::grouped(*n_parameters),
                text::grouped(n_parameters.saturating_sub(trained)),
                boundaries
                    .iter()
                    .map(|name| format!("`{name}`"))
                    .collect::<Vec<_>>()
                    .join(", then ")
            ));
        }
        TuneEvent::Recomputes { boundary, reason } => watch.line(&format!(
            "features at `{}` are computed in each epoch and not cached: {reason}",
            text::plain(boundary)
        )),
        TuneEvent::Extracted(summary) => super::extract::report(summary),
        TuneEvent::HeadFirst(accuracy) => {
            watch.line(&format!(
                "the solver's classifier on frozen features: val accuracy {:.2} %",
                accuracy * 100.0
            ));
        }
        TuneEvent::Epoch(epoch) => watch.line(&line(epoch, n_epochs)),
    }
}

fn line(epoch: &TuneEpoch, n_epochs: usize) -> String {
    let EpochMetrics {
        epoch: n,
        train_loss,
        train_accuracy,
        val_loss,
        val_accuracy,
        ..
    } = epoch.metrics;
    let percent = |share: Option<f64>| {
        share.map_or_else(String::new, |share| format!(" accuracy {:.2} %", share * 100.0))
    };
    let rates: Vec<String> = epoch.rates.iter().map(|(_, lr)| format!("{lr:.1e}")).collect();
    let unfreezes = if epoch.unfreezes {
        "  unfreezing the next group"
    } else {
        ""
    };
    format!(
        "epoch {n}/{n_epochs}  train loss {train_loss:.4}{}  val loss {:.4}{}  lr {}{unfreezes}",
        percent(train_accuracy),
        val_loss.unwrap_or(f64::NAN),
        percent(val_accuracy),
        rates.join(" ")
    )
}

/// As `load_state_dict` returns it.
fn loaded(watch: &Watch, report: &LoadReport) {
    const MAX_NAMED: usize = 6;
    watch.line(&format!("loaded {} tensors", report.loaded.len()));
    for (what, names) in [
        ("missing keys", &report.missing),
        ("unexpected keys", &report.unexpected),
    ] {
        if names.is_empty() {
            continue;
        }
        let shown: Vec<String> = names
            .iter()
            .take(MAX_NAMED)
            .map(|name| text::plain(name))
            .collect();
        let more = match names.len() - shown.len() {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        watch.line(&format!("{what}: {}{more}", shown.join(", ")));
    }
}
