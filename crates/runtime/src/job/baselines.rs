//! What simpler ways make of the same features: a head that does not beat them is not worth its training.

use std::time::Instant;

use crate::error::Error;
use crate::features::Labelled;
use crate::head::Head;
use crate::metrics::Marks;
use crate::monitor::Monitor;
use crate::report::Baseline;
use crate::solve::{KnnConfig, MAX_DENSE, Metric, Suspect, Vote, knn, lda, leave_one_out, nearest_mean};
use crate::targets::{Targets, Task};

/// Neighbours of DINO's evaluation, and the temperature of their vote.
const N_NEIGHBOURS: usize = 20;
const TEMPERATURE: f32 = 0.07;
/// How far the covariance of the discriminant analysis is moved to a multiple of the identity: what keeps it regular
/// where there are more features than rows.
const SHRINKAGE: f64 = 0.1;

/// Simpler heads judged on the validation rows, and training rows whose label the others contradict.
pub(super) struct Compared {
    pub(super) baselines: Vec<Baseline>,
    pub(super) suspects: Vec<Suspect>,
}

/// Fits the baselines of a task. Closed forms are left out beyond [`MAX_DENSE`] features, which they are not for.
///
/// # Errors
/// As their functions; [`Error::Cancelled`] between two of them.
pub(super) fn compare(
    task: Task,
    train: &Labelled,
    val: Option<&Labelled>,
    outputs: &[String],
    monitor: Monitor<'_>,
) -> Result<Compared, Error> {
    let mut table = Table {
        task,
        val,
        outputs,
        monitor,
        baselines: Vec::new(),
    };
    let has_closed_forms = train.features.n_features() <= MAX_DENSE;
    if let Targets::Classes(labels) = &train.targets {
        table.linear("nearest class mean", || {
            let closed = nearest_mean(&train.features, labels, outputs.len())?;
            Ok((closed.weight, closed.bias))
        })?;
        if has_closed_forms {
            table.linear(
                &format!("linear discriminant analysis, shrinkage {SHRINKAGE}"),
                || {
                    let closed = lda(&train.features, labels, outputs.len(), SHRINKAGE)?;
                    Ok((closed.weight, closed.bias))
                },
            )?;
        }
        table.neighbours(train, labels)?;
    }
    let mut suspects = Vec::new();
    if has_closed_forms {
        // Decades around 1, which is where features of networks lie.
        let alphas: Vec<f64> = (-4..=6).map(|power| 10f64.powi(power)).collect();
        table.linear("ridge regression, penalty by leave-one-out", || {
            let ridge = leave_one_out(&train.features, &train.targets, outputs.len(), &alphas)?;
            suspects = ridge.suspects;
            Ok((ridge.fitted.weight, ridge.fitted.bias))
        })?;
    }
    Ok(Compared {
        baselines: table.baselines,
        suspects,
    })
}

struct Table<'t> {
    task: Task,
    val: Option<&'t Labelled>,
    outputs: &'t [String],
    monitor: Monitor<'t>,
    baselines: Vec<Baseline>,
}

impl Table<'_> {
    /// Fits a linear head and judges it; the time is that of the fit.
    fn linear(
        &mut self,
        name: &str,
        fit: impl FnOnce() -> Result<(Vec<f32>, Vec<f32>), Error>,
    ) -> Result<(), Error> {
        if self.monitor.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let start = Instant::now();
        let (weight, bias) = fit()?;
        let seconds = start.elapsed().as_secs_f64();
        if let Some(val) = self.val {
            let head = Head::linear(self.task, self.outputs.to_vec(), weight, bias)?;
            let logits = head.logits(&val.features)?;
            let marks = Marks::new(self.task, &logits, &val.targets, self.outputs)?;
            self.push(name.to_owned(), marks.headline().1, seconds);
        }
        Ok(())
    }

    fn neighbours(&mut self, train: &Labelled, labels: &[u32]) -> Result<(), Error> {
        let Some((val, wanted)) = self.val.and_then(|val| Some((val, val.targets.classes()?))) else {
            return Ok(());
        };
        if self.monitor.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let start = Instant::now();
        let k = N_NEIGHBOURS.min(train.features.n_rows());
        let neighbours = knn(
            (&train.features, labels),
            (&val.features, wanted),
            self.outputs.len(),
            KnnConfig {
                k,
                metric: Metric::Cosine,
                vote: Vote::Weighted {
                    temperature: TEMPERATURE,
                },
            },
        )?;
        let seconds = start.elapsed().as_secs_f64();
        self.push(
            format!("{k} nearest neighbours, cosine"),
            neighbours.accuracy,
            seconds,
        );
        Ok(())
    }

    fn push(&mut self, name: String, figure: f64, seconds: f64) {
        self.baselines.push(Baseline {
            name,
            figure,
            seconds: Some(seconds),
        });
    }
}
