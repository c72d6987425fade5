//! The proof of a model where no pictures are at hand: a test pattern goes through it, and through its parts.

use std::path::PathBuf;

use super::model::{About, assemble};
use super::verify::largest_difference;
use crate::engine::{Device, Engine, Input, Output, SessionOptions};
use crate::error::Error;
use crate::features::{Features, Pool, check_input};
use crate::head::Head;
use crate::image::Preprocess;
use crate::metrics::{Judged, sigmoid};
use crate::onnx::{Model, Outputs, Reduction};
use crate::targets::Task;

/// Probabilities may be off by this; they are computed in float32 on either side.
const MAX_PROBABILITY_DIFF: f64 = 1e-5;

/// What runs models.
#[derive(Debug, Clone, Copy)]
pub struct Runner<'r> {
    /// ONNX Runtime.
    pub engine: &'r Engine,
    /// What runs the network.
    pub device: Device,
    /// Threads of a session.
    pub threads: usize,
}

/// How a graph is to pool at `boundary`. Which axes are positions shows only when the network runs: once, where it matters.
///
/// # Errors
/// As [`Model::cut`] and [`Engine::session`].
pub fn reduction_at(
    model: &Model,
    boundary: &str,
    pool: Pool,
    preprocess: &Preprocess,
    runner: Runner<'_>,
) -> Result<Reduction, Error> {
    let n_axes = match pool {
        Pool::None | Pool::Cls => 0,
        Pool::Avg => runner.at_boundary(model, boundary, preprocess)?.shape.len(),
    };
    Ok(reduction_of(pool, n_axes))
}

/// `n_axes` of a sample at the boundary.
fn reduction_of(pool: Pool, n_axes: usize) -> Reduction {
    match (pool, n_axes) {
        (Pool::Cls, _) => Reduction::FirstToken,
        (Pool::Avg, 2) => Reduction::MeanOfTokens,
        (Pool::Avg, 3) => Reduction::MeanOfPositions,
        (Pool::Avg | Pool::None, _) => Reduction::None,
    }
}

/// As [`assemble`], with the pooling found out, and proven: what the model says of a test pattern is what the head says of
/// the backbone's features of it. Returns by how much a logit differs at most, too.
///
/// # Errors
/// As [`assemble`] and [`Engine::session`]; [`Error::Features`] where the head takes another number of features than the
/// boundary gives; [`Error::ExportMismatch`].
pub fn assemble_proven(
    backbone: &Model,
    boundary: &str,
    pool: Pool,
    head: &Head,
    outputs: Outputs,
    preprocess: &Preprocess,
    runner: Runner<'_>,
) -> Result<(Model, f32), Error> {
    let sample = runner.at_boundary(backbone, boundary, preprocess)?;
    let unfit = |reason: String| Error::Usage(format!("`{boundary}` cannot be pooled so: {reason}"));
    let n_features = pool.row_shape(&sample.shape).map_err(unfit)?.iter().product();
    let mut row = Vec::new();
    pool.append(&sample.shape, &sample.values, &mut row);
    let expected = head.logits(&Features::new(row, n_features)?)?;
    let reduction = reduction_of(pool, sample.shape.len());
    let model = assemble(backbone, boundary, reduction, head, outputs, preprocess)?;
    let diff = runner.check(&model, preprocess, head.task(), &expected)?;
    Ok((model, diff))
}

/// An exported model that gives only logits with `probabilities` of them beside, and the proof: of a test pattern it gives
/// the same logits, and the probabilities that these mean. A model that has them already is returned as it is.
///
/// # Errors
/// As [`About::of`]; [`Error::Usage`] for a regression, which has none; [`Error::ExportMismatch`].
pub fn with_probabilities(model: &Model, runner: Runner<'_>) -> Result<Model, Error> {
    let about = About::of(model)?;
    if about.task == Task::Regression {
        let text = format!(
            "`{}` is a regression, and has no probabilities",
            model.path().display()
        );
        return Err(Error::Usage(text));
    }
    if model.outputs().len() > 1 {
        return Ok(model.clone());
    }
    let wider = model.with_probabilities(about.task, about.classes.len())?;
    let before = runner.run(model, &about.preprocess)?;
    let expected = &before[0].values;
    if expected.len() != about.classes.len() {
        return Err(Error::BadFile {
            path: model.path().to_owned(),
            reason: format!(
                "it gives {} logits for {} classes",
                expected.len(),
                about.classes.len()
            ),
        });
    }
    runner.check(&wider, &about.preprocess, about.task, expected)?;
    Ok(wider)
}

impl Runner<'_> {
    /// What the backbone gives for a test pattern at the boundary; the shape is of the sample.
    fn at_boundary(self, model: &Model, boundary: &str, preprocess: &Preprocess) -> Result<Output, Error> {
        let cut = model.with_weights_outside()?.cut(&[boundary])?;
        Ok(self.run(&cut, preprocess)?.swap_remove(0))
    }

    /// The sizes of a tensor for one sample.
    ///
    /// # Errors
    /// As [`Model::cut`] and [`Engine::session`].
    pub(crate) fn shape_at(
        self,
        model: &Model,
        tensor: &str,
        preprocess: &Preprocess,
    ) -> Result<Vec<usize>, Error> {
        Ok(self.at_boundary(model, tensor, preprocess)?.shape)
    }

    /// What a model gives for a test pattern, one sample of each output; the shapes are without the batch's axis.
    fn run(self, model: &Model, preprocess: &Preprocess) -> Result<Vec<Output>, Error> {
        let batch_size = check_input(model, preprocess, 1)?;
        let [channels, height, width] = preprocess.shape();
        let options = SessionOptions {
            intra_threads: self.threads,
            device: self.device,
        };
        let input = Input::F32 {
            shape: &[batch_size, channels, height, width],
            values: &pattern(batch_size * preprocess.numel()),
        };
        let outputs = self
            .engine
            .session(model, options)?
            .run_rows(&[input], batch_size)?;
        let first = |output: Output| Output {
            values: output.values[..output.row_len()].to_vec(),
            shape: output.shape[1..].to_vec(),
        };
        Ok(outputs.into_iter().map(first).collect())
    }

    /// Runs an exported model on a test pattern and compares: its logits with those expected, its probabilities (where it
    /// gives any) with what its logits mean. The largest difference of a logit.
    fn check(
        self,
        model: &Model,
        preprocess: &Preprocess,
        task: Task,
        expected: &[f32],
    ) -> Result<f32, Error> {
        let outputs = self.run(&model.with_weights_outside()?, preprocess)?;
        let mismatch = |what: &str, (exported, trained): (f32, f32)| Error::ExportMismatch {
            path: PathBuf::from(what),
            exported,
            trained,
        };
        let logits = &outputs[0].values;
        if logits.len() != expected.len() {
            let reason = format!("it gives {} logits, not {}", logits.len(), expected.len());
            return Err(Error::Backbone {
                path: model.path().to_owned(),
                reason,
            });
        }
        let diff = largest_difference(expected, logits, &vec![0.0; logits.len()])
            .map_err(|pair| mismatch("a test pattern", pair))?;
        let judged = Judged::new(logits);
        let of_class = |class: usize| match task {
            Task::SingleLabel => judged.probability(class),
            Task::MultiLabel | Task::Regression => sigmoid(f64::from(logits[class])),
        };
        for (class, &probability) in outputs
            .get(1)
            .into_iter()
            .flat_map(|output| output.values.iter().enumerate())
        {
            let wanted = of_class(class);
            let is_near = (f64::from(probability) - wanted).abs() <= MAX_PROBABILITY_DIFF;
            if !is_near {
                return Err(mismatch(
                    "the probabilities of a test pattern",
                    (probability, wanted as f32),
                ));
            }
        }
        Ok(diff)
    }
}

/// Numbers between -2 and 2, as normalised pixels are, no two neighbours alike.
fn pattern(n: usize) -> Vec<f32> {
    // 7919 is a prime with 4001 steps between the ends.
    (0..n)
        .map(|at| (at * 7919 % 4001) as f32 / 1000.0 - 2.0)
        .collect()
}
