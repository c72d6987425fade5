//! A fine-tuning from a backbone and pictures to a run folder.

use std::time::Instant;

use serde_json::{Value, json};

use super::cached::{pool, pretty};
use super::fit::{self, ExtractSummary, FitConfig, FitReport, settings_of};
use super::frozen::{FrozenFeatures, Recompute};
use super::page::Page;
use super::run_folder::{Results, RunFolder};
use super::settings;
use super::train::{Descent, Trained, Way, scalars, train_in};
use crate::data::{Dataset, Split};
use crate::engine::{Device, Engine};
use crate::error::Error;
use crate::export::{Classifier as Exported, Expected, Runner, Verified, reduction_at, verify};
use crate::features::{Features, Labelled};
use crate::grad::Tail;
use crate::head::Head;
use crate::history::EpochScalars;
use crate::metrics::{Marks, Temperature};
use crate::monitor::Monitor;
use crate::onnx::Model;
use crate::report::Thumbnail;
use crate::targets::Task;
use crate::train::SweepHead;
use crate::tune::{
    Boundary, Classifier, LoadReport, Loaded, Network, NetworkOptions, Origin, Rows, Run, Source, Stage,
    TuneConfig, TuneEpoch, Tuned, Written, written,
};

/// The exported model is compared with the trainer on this many pictures at most, spread over the validation split.
const MAX_VERIFIED: usize = 64;

/// A fine-tuning.
#[derive(Debug, Clone)]
pub struct TuneJob {
    /// The main job's settings; `cut` is where the classifier stands, and `head` the solver's settings for
    /// [`head_first`](TuneConfig::head_first).
    pub fit: FitConfig,
    /// What is trained, and how.
    pub tune: TuneConfig,
    /// The checkpoint that the backbone's weights came from, whose names the results have then.
    pub origin: Option<Origin>,
    /// Whether features of the frozen part are computed again in each epoch. What comes of it is the same.
    pub recompute: Recompute,
}

/// What a fine-tuning tells as it goes.
#[derive(Debug)]
pub enum TuneEvent<'e> {
    /// What was taken from another checkpoint.
    Loaded(&'e LoadReport),
    /// What will be trained.
    Planned {
        /// Names of the groups, their learning rates before the schedule, and their parameters in numbers.
        groups: Vec<(String, f64, usize)>,
        /// Where each stage's trained part begins.
        boundaries: Vec<String>,
        /// Parameters of the network, in numbers.
        n_parameters: usize,
    },
    /// Features are not cached, but computed in each epoch.
    Recomputes {
        /// Of this tensor.
        boundary: &'e str,
        /// Why.
        reason: &'e str,
    },
    /// Features are there.
    Extracted(&'e ExtractSummary),
    /// The solver's classifier on the frozen features, with its accuracy on the validation rows.
    HeadFirst(f64),
    /// An epoch is over.
    Epoch(&'e TuneEpoch),
}

/// What everything below needs.
pub(super) struct Context<'c> {
    pub(super) config: &'c FitConfig,
    pub(super) tune: &'c TuneConfig,
    pub(super) recompute: Recompute,
    pub(super) data: &'c Dataset,
    pub(super) engine: &'c Engine,
    pub(super) monitor: Monitor<'c>,
}

/// Trains a network behind a boundary, evaluates, exports, verifies, and writes the run folder: `model.onnx`, the whole state
/// dict as `model.safetensors` and `model.pth` by the best epoch's weights, `last.safetensors` by the last ones, figures and
/// report. Interrupted, it goes on from its last epoch when it is started again, and ends in the same bytes.
///
/// A loss that is no number ends the run before the update: then the folder holds the best weights so far, and the error is
/// the second of what is returned.
///
/// # Errors
/// As its parts; [`Error::NoParameter`] for a pattern that matches nothing; [`Error::Untrainable`] for an operator without a
/// derivative; [`Error::Usage`] for a GPU, which trains heads only.
pub fn fine_tune(
    job: &TuneJob,
    on_event: &mut (dyn FnMut(&TuneEvent<'_>) + Send),
    monitor: Monitor<'_>,
) -> Result<(FitReport, Option<Error>), Error> {
    let TuneJob {
        fit: config,
        tune,
        origin,
        recompute,
    } = job;
    tune.check()?;
    config.head.check()?;
    let wrong = |text: &str| Err(Error::Usage(text.to_owned()));
    if config.device != Device::Cpu {
        return wrong("a network is fine-tuned on the CPU; a GPU trains heads");
    }
    if config.head.calibrate || config.head.baselines {
        return wrong("a temperature and baselines are of heads, and not of a network that is fine-tuned");
    }
    config.model.check_opset()?;
    let cut = match &config.cut {
        Some(name) => name.clone(),
        None => config.model.default_boundary()?,
    };
    let mut text = settings_of(config, &cut)?;
    text.push_str("\n[tune]\n");
    settings::flatten("tune", &json!(tune), &mut text);
    let folder = RunFolder::open(&config.run, &text, config.existing)?;
    let keep = folder.unfinished(&text)?;
    let data = Dataset::open(&config.data, &config.data_options)?;
    let engine = Engine::open(config.ort_lib.as_deref())?;
    engine.check(config.device)?;
    let context = Context {
        config,
        tune,
        recompute: *recompute,
        data: &data,
        engine: &engine,
        monitor,
    };
    let (mut network, shapes) = context.network(&cut)?;
    if let Some(report) = &network.loaded {
        on_event(&TuneEvent::Loaded(report));
    }
    on_event(&planned(&network));
    let checkpoint = keep.checkpoint();
    let pool = pool(config.threads)?;
    // An operator that cannot be trained is said before an hour of work.
    let last = network.stages.len() - 1;
    let tail = Run::tail_of(&network, &shapes, last, config.threads)?;
    if !checkpoint.exists() {
        let n_numbers = shapes[last].iter().product();
        context.check_tail(&network, (&network.stages[last], n_numbers), &tail)?;
    }
    drop(tail);

    let mut frozen = FrozenFeatures::new(&context, &cut, on_event);
    let is_head_first = tune.head_first && tune.fresh.is_empty() && network.classifier != Classifier::Loaded;
    let head_first = if is_head_first {
        let rows = frozen.rows_of_head(&network.model, &network.stages[0], &shapes[0])?;
        let accuracy = context.solve_head(&pool, &mut network, rows)?;
        frozen.say(&TuneEvent::HeadFirst(accuracy));
        Some(accuracy)
    } else {
        None
    };
    let mut lines = keep.history();
    // Both are told of things by the run.
    let frozen = std::cell::RefCell::new(frozen);
    let mut rows_of = |at: usize| {
        let stage = &network.stages[at];
        frozen.borrow_mut().rows(&network.model, stage, &shapes[at])
    };
    let mut on_epoch = |epoch: &TuneEpoch| {
        lines.append(scalars_of(epoch));
        frozen.borrow_mut().say(&TuneEvent::Epoch(epoch));
    };
    let trained_at = Instant::now();
    let run = Run {
        network: &network,
        config: tune,
        n_classes: data.classes().len(),
        threads: config.threads,
        pool: &pool,
        checkpoint: &checkpoint,
        shapes: &shapes,
    };
    let (tuned, loaded) = run.run(&mut rows_of, &mut on_epoch, monitor)?;
    let seconds = trained_at.elapsed().as_secs_f64();
    lines.finish()?;
    let FrozenFeatures {
        summaries, ledger, ..
    } = frozen.into_inner();

    let best = written(&network, &tuned.best, origin.as_ref())?;
    let last = match tuned.last.weights == tuned.best.weights {
        true => None,
        false => Some(written(&network, &tuned.last, origin.as_ref())?),
    };
    let stage = loaded.stage;
    let n_numbers = shapes[stage].iter().product();
    let verified = context.verify(
        &network,
        (&network.stages[stage], n_numbers),
        best.model.clone(),
        MAX_VERIFIED,
        &mut |features| loaded.logits(&Source::Stored(features), &tuned.best.weights, monitor),
    )?;
    let trained = context.judge(&network, &loaded, &tuned, &best, seconds)?;
    let extraction = sum(&summaries)?;
    let metrics = metrics_of(
        &context,
        &network,
        &extraction,
        &trained,
        &verified,
        &tuned,
        head_first,
        &best,
    );
    let files = context.files(&metrics, &trained, &loaded, text, ledger);
    let mut state_dicts = vec![("model.safetensors", &best.tensors), ("model.pth", &best.tensors)];
    state_dicts.extend(last.as_ref().map(|last| ("last.safetensors", &last.tensors)));
    let results = Results {
        head: None,
        model: Some(&best.model),
        state_dicts,
        files,
    };
    folder.write(results, Some(keep))?;
    let report = FitReport {
        extraction,
        trained,
        verified,
        engine: engine.clone(),
        metrics,
    };
    Ok((report, tuned.failure))
}

impl<'c> Context<'c> {
    fn runner(&self) -> Runner<'_> {
        Runner {
            engine: self.engine,
            device: self.config.device,
            threads: self.config.threads,
        }
    }

    /// The network, and the sizes of a row at each stage's boundary.
    fn network(&self, cut: &str) -> Result<(Network, Vec<Vec<usize>>), Error> {
        let (config, runner) = (self.config, self.runner());
        let model = &config.model;
        let sample = runner.shape_at(model, cut, &config.preprocess)?;
        let unfit = |reason: String| Error::Usage(format!("`{cut}` cannot be pooled so: {reason}"));
        let n_features = config.pool.row_shape(&sample).map_err(unfit)?.iter().product();
        let options = NetworkOptions {
            model,
            cut,
            reduction: reduction_at(model, cut, config.pool, &config.preprocess, runner)?,
            n_features,
            classes: self.data.classes(),
            preprocess: &config.preprocess,
        };
        let network = Network::new(&options, self.tune)?;
        let shapes = network.stages.iter().map(|stage| match &stage.boundary {
            Boundary::Input(_) => Ok(config.preprocess.shape().to_vec()),
            Boundary::Tensor(name) | Boundary::Rows(name) => {
                runner.shape_at(&network.model, name, &config.preprocess)
            }
        });
        let shapes = shapes.collect::<Result<_, Error>>()?;
        Ok((network, shapes))
    }

    /// Fits the classifier on training rows; its accuracy on the validation rows.
    fn solve_head(
        &self,
        pool: &rayon::ThreadPool,
        network: &mut Network,
        (train, val): (Labelled, Labelled),
    ) -> Result<f64, Error> {
        if val.targets.is_empty() {
            return Err(self.nothing_to_judge());
        }
        let (classes, recipe) = (self.data.classes(), &self.config.head);
        let trained = pool.install(|| {
            train_in(
                None,
                &train,
                Some(&val),
                classes,
                recipe,
                &mut |_, _| {},
                self.monitor,
            )
        })?;
        let linear = trained.head.as_linear().expect("the solver's heads are linear");
        network.set_classifier(linear)?;
        Ok(trained.val.as_ref().map_or(f64::NAN, |marks| marks.headline().1))
    }

    /// Runs pictures of the validation split through a model, and through the part in front of a boundary and then the
    /// trainer: what `logits` makes of rows at the boundary.
    fn verify(
        &self,
        network: &Network,
        (stage, n_numbers): (&Stage, usize),
        model: Model,
        n_most: usize,
        logits: &mut dyn FnMut(Features) -> Result<Vec<f32>, Error>,
    ) -> Result<Verified, Error> {
        let (config, data) = (self.config, self.data);
        let (cut, tensor) = self.in_front(&network.model, &stage.boundary)?;
        let front = Exported::of_tensor(
            cut.with_weights_outside()?.cut(&[&tensor])?,
            n_numbers,
            &config.preprocess,
            self.engine.clone(),
            config.threads,
        )?;
        let is_val = |&sample: &usize| data.split(sample) == Split::Val && data.label(sample).is_some();
        let samples: Vec<usize> = (0..data.len()).filter(is_val).collect();
        let n = samples.len().min(n_most);
        let spread: Vec<usize> = (0..n).map(|i| samples[i * samples.len() / n]).collect();
        let (mut readable, mut rows) = (Vec::new(), Vec::new());
        for (sample, answer) in spread.iter().zip(front.classify(data, &spread, self.monitor)?) {
            // What cannot be read, or gives what is no number, is said when features are computed.
            if let Ok(row) = answer
                && row.iter().all(|value| value.is_finite())
            {
                readable.push(*sample);
                rows.extend(row);
            }
        }
        let logits = logits(Features::new(rows, n_numbers)?)?;
        let expected = Expected {
            samples: readable,
            slack: vec![0.0; logits.len()],
            logits,
        };
        let classifier = Exported::new(model, self.engine.clone(), config.device, config.threads)?;
        verify(&classifier, data, &expected, self.monitor)
    }

    /// Sees that the trainer computes what ONNX Runtime does, before there is anything to lose.
    fn check_tail(&self, network: &Network, stage: (&Stage, usize), tail: &Tail) -> Result<(), Error> {
        const N_CHECKED: usize = 4;
        let mut is_finite = true;
        let checked = self.verify(
            network,
            stage,
            network.model.clone(),
            N_CHECKED,
            &mut |features| {
                let (mut scratch, mut logits) = (Vec::new(), Vec::new());
                let n = features.n_rows();
                if n > 0 {
                    tail.forward(&tail.weights(), features.rows(0..n, &mut scratch), n, &mut logits)?;
                }
                is_finite = logits.iter().all(|logit| logit.is_finite());
                Ok(logits)
            },
        );
        match checked {
            // The loss says so, and what to do.
            Err(Error::ExportMismatch { .. }) if !is_finite => Ok(()),
            other => other.map(drop),
        }
    }

    /// Marks of the best weights, in the form of a head's.
    fn judge(
        &self,
        network: &Network,
        loaded: &Loaded,
        tuned: &Tuned,
        best: &Written,
        seconds: f64,
    ) -> Result<Trained, Error> {
        let (classes, weights) = (self.data.classes(), &tuned.best.weights);
        let Rows { train, val } = loaded.rows();
        let train_logits = loaded.logits(&train.features, weights, self.monitor)?;
        let val_logits = loaded.logits(&val.features, weights, self.monitor)?;
        let value = |leaf: &str| {
            best.model
                .values(&format!("{}.{leaf}", network.module))
                .unwrap_or_default()
        };
        let task = Task::SingleLabel;
        let trainer = &self.tune.trainer;
        let descent = Descent {
            settings: SweepHead {
                lr: trainer.lr,
                weight_decay: trainer.weight_decay,
                init_seed: trainer.init_seed,
            },
            epochs: tuned.history.len(),
            best_epoch: tuned.best.epoch,
            outcome: tuned.outcome,
            best: tuned.best.epoch.checked_sub(1).map(|at| tuned.history[at]),
            history: tuned.history.clone(),
        };
        Ok(Trained {
            head: Head::linear(task, classes.to_vec(), value("weight"), value("bias"))?,
            way: Way::Descended {
                heads: vec![descent],
                chosen: 0,
                ran_on: "the CPU".to_owned(),
            },
            train: Marks::new(task, &train_logits, &train.targets, classes)?,
            val: Some(Marks::new(task, &val_logits, &val.targets, classes)?),
            temperature: Some(Temperature::fit(task, &val_logits, &val.targets, classes.len())?),
            val_logits,
            baselines: Vec::new(),
            suspects: Vec::new(),
            seconds,
        })
    }

    fn files(
        &self,
        metrics: &Value,
        trained: &Trained,
        loaded: &Loaded,
        settings: String,
        ledger: String,
    ) -> Vec<(String, Vec<u8>)> {
        let data = self.data;
        let Rows { train, val } = loaded.rows();
        // Rows of a split are the samples that have features, in order; names tell which.
        let samples: std::collections::HashMap<String, usize> = (0..data.len())
            .filter(|&sample| data.split(sample) == Split::Val)
            .map(|sample| (data.name(sample).into_owned(), sample))
            .collect();
        let picture = |row: usize| {
            let sample = *samples.get(val.names.get(row)?)?;
            Thumbnail::of(&data.reader().read(sample).ok()?)
        };
        let page = Page {
            title: &format!("graftwork fit of {}", self.config.data.display()),
            metrics,
            said: &[
                ("trained behind", "/boundary"),
                ("trained parameters", "/tune/n_trained"),
                ("frozen parameters", "/tune/n_frozen"),
                (
                    "validation accuracy of the solver's classifier on frozen features",
                    "/tune/head_first/val_accuracy",
                ),
                (
                    "validation accuracy before the first step",
                    "/tune/start/val_accuracy",
                ),
                ("pictures left out", "/left_out"),
                (
                    "largest difference of a logit, exported model against trainer",
                    "/export/max_abs_logit_diff",
                ),
            ],
            train: train.into(),
            val: Some(val.into()),
            train_picture: None,
            val_picture: Some(&picture),
        };
        vec![
            ("config.toml".to_owned(), settings.into_bytes()),
            ("report.html".to_owned(), page.html(trained).into_bytes()),
            ("ledger.jsonl".to_owned(), ledger.into_bytes()),
            ("metrics.json".to_owned(), pretty(metrics)),
        ]
    }
}

/// Numbers in a group's parameters, or in those at `members`.
fn n_numbers<'m>(network: &Network, members: impl Iterator<Item = &'m usize>) -> usize {
    members
        .map(|&at| network.parameters[at].shape.iter().product::<usize>())
        .sum()
}

fn planned(network: &Network) -> TuneEvent<'static> {
    let groups = network.groups.iter();
    let groups = groups.map(|group| {
        (
            group.name.clone(),
            group.lr,
            n_numbers(network, group.members.iter()),
        )
    });
    let all: Vec<usize> = (0..network.parameters.len())
        .filter(|&at| !network.parameters[at].is_buffer)
        .collect();
    TuneEvent::Planned {
        groups: groups.collect(),
        boundaries: network
            .stages
            .iter()
            .map(|stage| stage.boundary.name().to_owned())
            .collect(),
        n_parameters: n_numbers(network, all.iter()),
    }
}

/// An epoch by TensorBoard's names, with each group's rate.
fn scalars_of(epoch: &TuneEpoch) -> EpochScalars {
    let mut scalars = scalars(&epoch.metrics);
    scalars.scalars.push(("groups".to_owned(), epoch.n_groups as f64));
    let rates = epoch
        .rates
        .iter()
        .map(|(name, lr)| (format!("lr of {name}"), *lr));
    scalars.scalars.extend(rates);
    scalars
}

/// All extractions of a run as one; the boundary is the last one's.
fn sum(summaries: &[ExtractSummary]) -> Result<ExtractSummary, Error> {
    let Some(last) = summaries.last() else {
        return Err(Error::Features("there are none".to_owned()));
    };
    let mut all = last.clone();
    all.hits = summaries.iter().map(|summary| summary.hits).sum();
    all.misses = summaries.iter().map(|summary| summary.misses).sum();
    all.elapsed = summaries.iter().map(|summary| summary.elapsed).sum();
    Ok(all)
}

#[expect(clippy::too_many_arguments, reason = "what a run gathered, each once")]
fn metrics_of(
    context: &Context<'_>,
    network: &Network,
    extraction: &ExtractSummary,
    trained: &Trained,
    verified: &Verified,
    tuned: &Tuned,
    head_first: Option<f64>,
    best: &Written,
) -> Value {
    let stage = &network.stages[tuned.best.stage];
    let trained_groups = &network.groups[..stage.n_groups];
    let n_trained = n_numbers(network, trained_groups.iter().flat_map(|group| &group.members));
    let all: Vec<usize> = (0..network.parameters.len())
        .filter(|&at| !network.parameters[at].is_buffer)
        .collect();
    let is_gradual = network.stages.len() > 1;
    let groups = network.groups.iter().enumerate().map(|(at, group)| {
        let begins = |stage: &usize| network.stages[*stage].n_groups > at;
        let first = tuned.stages.iter().position(begins);
        json!({
            "name": group.name,
            "lr": group.lr,
            "n": n_numbers(network, group.members.iter()),
            "from_epoch": first.map(|epoch| epoch + 1),
        })
    });
    let boundary = network.stages[tuned.stages.last().copied().unwrap_or(0)]
        .boundary
        .name();
    let mut metrics = fit::metrics_of(extraction, trained, verified, context.engine);
    // Of the stage that trained last.
    metrics["boundary"] = boundary.into();
    metrics["tune"] = json!({
        "groups": groups.collect::<Vec<Value>>(),
        "boundaries": network.stages.iter().map(|stage| stage.boundary.name()).collect::<Vec<&str>>(),
        "is_gradual": is_gradual,
        "classifier": network.classifier,
        "head_first": head_first.map(|accuracy| json!({ "val_accuracy": accuracy })),
        "start": { "val_loss": tuned.start.val_loss, "val_accuracy": tuned.start.val_accuracy },
        "best_epoch": tuned.best.epoch,
        "n_trained": n_trained,
        "n_frozen": n_numbers(network, all.iter()) - n_trained,
        "loaded": network.loaded,
        "names_of_checkpoint": best.is_as_origin,
    });
    metrics
}
