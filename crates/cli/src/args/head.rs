//! How a head is trained.

use std::fmt::Display;
use std::str::FromStr;

use clap::{ArgGroup, Args, ValueEnum};
use runtime::Task;
use runtime::device::Precision;
use runtime::engine::Device;
use runtime::job::{HeadRecipe, Method, Regularisation};
use runtime::solve::{ClassWeights, SolverConfig};
use runtime::train::{
    Activation, Best, Curve, EarlyStopping, Halving, Init, Norm, Optimiser, Schedule, SweepConfig, SweepHead,
    TrainerConfig, Unit,
};

use crate::usage::UsageError;

/// Without --optimizer or --preset a linear head is fitted to the optimum, which needs no learning rate.
#[derive(Debug, Args)]
#[command(next_help_heading = "Head", group = ArgGroup::new("descent").multiple(true), group = ArgGroup::new("steps").multiple(true))]
pub(crate) struct HeadArgs {
    /// What the outputs mean: one class a row, each class by itself, or numbers
    #[arg(long, value_name = "TASK", value_enum, default_value_t = TaskArg::SingleLabel)]
    pub(crate) task: TaskArg,
    /// Regularisation: scikit-learn's C, auto to choose it on held-out training rows, or values to choose from
    #[arg(
        long,
        value_name = "VALUE|auto|A,B,...",
        default_value = "auto",
        conflicts_with = "descent"
    )]
    c: CArg,
    /// Choose C by this many folds [default: a fifth of the rows; 5 folds below 2,000]
    #[arg(long, value_name = "K", conflicts_with = "descent")]
    folds: Option<usize>,
    /// What a class counts: none, balanced, or a number for each class in order
    #[arg(long, value_name = "none|balanced|W,W,...", default_value = "none")]
    class_weight: WeightsArg,
    /// How much of each target goes to all classes alike, in 0..1
    #[arg(long, value_name = "S", default_value_t = 0.0)]
    label_smoothing: f64,
    /// Bring each feature to mean 0 and variance 1 first; the saved head takes them as given
    #[arg(long)]
    standardize: bool,
    /// Put the temperature that the validation rows ask for into the head, so that its probabilities mean what they say
    #[arg(long)]
    calibrate: bool,
    /// Compare with simpler heads, and list training rows whose label looks wrong
    #[arg(long)]
    baselines: bool,
    #[command(flatten)]
    descent: DescentArgs,
}

/// Training by mini-batches, with PyTorch's names and meanings.
#[derive(Debug, Args)]
#[command(next_help_heading = "Mini-batches (with --optimizer, --preset or --train)")]
struct DescentArgs {
    /// Train by steps on mini-batches, by torch.optim's rules
    #[arg(long, value_name = "RULE", value_enum, groups = ["descent", "steps"])]
    optimizer: Option<OptimizerArg>,
    /// Settings to begin with: the transfer-learning notebook's (SGD, lr 0.001, momentum 0.9, StepLR(7, 0.1), 25 epochs,
    /// batches of 4), or DINOv2's linear evaluation (13 learning rates at once)
    #[arg(long, value_name = "NAME", value_enum, groups = ["descent", "steps"])]
    preset: Option<PresetArg>,
    /// Learning rate; several make a sweep of heads trained at once, of which the best is kept [default: 0.001]
    #[arg(long, value_name = "LR,...", value_delimiter = ',', requires = "steps")]
    lr: Vec<f64>,
    /// Weight decay; several make a sweep [default: 0, of adamw 0.01]
    #[arg(long, value_name = "WD,...", value_delimiter = ',', requires = "steps")]
    weight_decay: Vec<f64>,
    /// Seed of the first weights; several make a sweep [default: 0]
    #[arg(long, value_name = "N,...", value_delimiter = ',', requires = "steps")]
    init_seed: Vec<u64>,
    /// In a sweep: after FIRST epochs, and each time FACTOR as many have passed, the best 1/FACTOR of the heads go on
    #[arg(long, value_name = "FIRST:FACTOR", requires = "steps")]
    halving: Option<HalvingArg>,
    /// Of SGD [default: 0]
    #[arg(long, value_name = "M", requires = "steps")]
    momentum: Option<f64>,
    /// Nesterov's momentum
    #[arg(long, requires = "steps")]
    nesterov: bool,
    /// Of Adam and AdamW [default: 0.9,0.999]
    #[arg(long, value_name = "B1,B2", requires = "steps")]
    betas: Option<PairArg>,
    /// Of Adam and AdamW [default: 1e-8]
    #[arg(long, value_name = "EPS", requires = "steps")]
    eps: Option<f64>,
    /// The learning rate over time, by torch.optim.lr_scheduler [default: constant]
    #[arg(long, value_name = "FORM", value_enum, requires = "steps")]
    schedule: Option<ScheduleArg>,
    /// Of --schedule step: epochs between two falls [default: 7]
    #[arg(long, value_name = "N", requires = "steps")]
    step_size: Option<usize>,
    /// Of --schedule step: factor of each fall [default: 0.1]
    #[arg(long, value_name = "F", requires = "steps")]
    gamma: Option<f64>,
    /// Of --schedule cosine: the rate at the end [default: 0]
    #[arg(long, value_name = "LR", requires = "steps")]
    min_lr: Option<f64>,
    /// Whether the schedule and --warmup count epochs or steps [default: epoch]
    #[arg(long, value_name = "UNIT", value_enum, requires = "steps")]
    schedule_unit: Option<UnitArg>,
    /// Epochs (or steps) in which the rate rises from a third to all of it
    #[arg(long, value_name = "N", requires = "steps")]
    warmup: Option<usize>,
    /// Passes over the training rows [default: 25]
    #[arg(long, value_name = "N", requires = "steps")]
    epochs: Option<usize>,
    /// Rows of a step [default: 64]
    #[arg(long, value_name = "N", requires = "steps")]
    train_batch_size: Option<usize>,
    /// Leave out the last batch of an epoch where it is not full
    #[arg(long, requires = "steps")]
    drop_last: bool,
    /// Widths of hidden layers
    #[arg(long, value_name = "WIDTH,...", value_delimiter = ',', requires = "steps")]
    hidden: Vec<usize>,
    /// After each hidden layer and its norm [default: relu]
    #[arg(long, value_name = "NAME", value_enum, requires = "hidden")]
    activation: Option<ActivationArg>,
    /// Between a hidden layer and its activation [default: none]
    #[arg(long, value_name = "NAME", value_enum, requires = "hidden")]
    norm: Option<NormArg>,
    /// The probability that an output of a hidden layer is dropped in training
    #[arg(long, value_name = "P", requires = "hidden")]
    dropout: Option<f32>,
    /// Mix rows with others of the batch, by shares from Beta(ALPHA, ALPHA)
    #[arg(long, value_name = "ALPHA", requires = "steps")]
    mixup: Option<f64>,
    /// Standard deviation of Gaussian noise on the features
    #[arg(long, value_name = "S", requires = "steps")]
    noise: Option<f32>,
    /// The largest norm of a step's gradient, torch.nn.utils.clip_grad_norm_
    #[arg(long, value_name = "NORM", requires = "steps")]
    clip_grad_norm: Option<f64>,
    /// Stop after this many epochs in which the validation loss has not fallen; in a fine-tuning, in which what --best looks
    /// at got no better
    #[arg(long, value_name = "EPOCHS", requires = "steps")]
    patience: Option<usize>,
    /// By how much it has to fall
    #[arg(long, value_name = "LOSS", default_value_t = 0.0, requires = "patience")]
    min_delta: f64,
    /// Which epoch's weights are kept [default: accuracy]
    #[arg(long, value_name = "BY", value_enum, requires = "steps")]
    best: Option<BestArg>,
    /// Keep the moving average of the weights with this decay at the end, instead of an epoch's
    #[arg(long, value_name = "DECAY", requires = "steps", conflicts_with = "best")]
    ema: Option<f64>,
    /// How a GPU keeps the features
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = PrecisionArg::F32, requires = "steps")]
    precision: PrecisionArg,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum TaskArg {
    SingleLabel,
    MultiLabel,
    Regression,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OptimizerArg {
    Sgd,
    Adam,
    Adamw,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PresetArg {
    Notebook,
    Dinov2,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ScheduleArg {
    Constant,
    Step,
    Cosine,
    OneCycle,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum UnitArg {
    Epoch,
    Step,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ActivationArg {
    Relu,
    Gelu,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum NormArg {
    None,
    Batch,
    Layer,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum BestArg {
    Accuracy,
    Loss,
    Last,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PrecisionArg {
    F32,
    F16,
    Bf16,
}

/// `VALUE|auto|A,B,…`.
#[derive(Debug, Clone)]
struct CArg(Regularisation);

/// `none|balanced|W,W,…`.
#[derive(Debug, Clone)]
struct WeightsArg(ClassWeights);

/// `FIRST:FACTOR`.
#[derive(Debug, Clone, Copy)]
struct HalvingArg(Halving);

/// `B1,B2`.
#[derive(Debug, Clone, Copy)]
struct PairArg(f64, f64);

/// Numbers with commas between them.
fn numbers<T: FromStr>(text: &str) -> Option<Vec<T>>
where
    T::Err: Display,
{
    text.split(',').map(|number| number.trim().parse().ok()).collect()
}

impl FromStr for CArg {
    type Err = String;

    fn from_str(text: &str) -> Result<CArg, String> {
        if text == "auto" {
            return Ok(CArg(Regularisation::Auto));
        }
        let wrong = || "C is a positive number, several with commas between them, or auto".to_owned();
        let values: Vec<f64> = numbers(text).ok_or_else(wrong)?;
        match values.as_slice() {
            values if !values.iter().all(|c| *c > 0.0 && c.is_finite()) => Err(wrong()),
            [c] => Ok(CArg(Regularisation::C(*c))),
            values => Ok(CArg(Regularisation::Among(values.to_vec()))),
        }
    }
}

impl FromStr for WeightsArg {
    type Err = String;

    fn from_str(text: &str) -> Result<WeightsArg, String> {
        let weights = match text {
            "none" => ClassWeights::None,
            "balanced" => ClassWeights::Balanced,
            _ => {
                ClassWeights::Given(numbers(text).ok_or("it is none, balanced, or a number for each class")?)
            }
        };
        Ok(WeightsArg(weights))
    }
}

impl FromStr for HalvingArg {
    type Err = String;

    fn from_str(text: &str) -> Result<HalvingArg, String> {
        let parts = text.split_once(':');
        let parts = parts.and_then(|(first, factor)| Some((first.parse().ok()?, factor.parse().ok()?)));
        let (first, factor) = parts.ok_or("it is FIRST:FACTOR, such as 2:3")?;
        Ok(HalvingArg(Halving { first, factor }))
    }
}

impl FromStr for PairArg {
    type Err = String;

    fn from_str(text: &str) -> Result<PairArg, String> {
        match numbers(text).as_deref() {
            Some([first, second]) => Ok(PairArg(*first, *second)),
            _ => Err("it is two numbers with a comma between them".to_owned()),
        }
    }
}

impl TaskArg {
    pub(crate) fn task(self) -> Task {
        match self {
            TaskArg::SingleLabel => Task::SingleLabel,
            TaskArg::MultiLabel => Task::MultiLabel,
            TaskArg::Regression => Task::Regression,
        }
    }
}

impl HeadArgs {
    /// The recipe; `seed` is of all that is drawn, and `device` is what trains by mini-batches.
    pub(crate) fn recipe(&self, seed: u64, device: Device) -> Result<HeadRecipe, UsageError> {
        let descent = &self.descent;
        let method = match (descent.preset, descent.optimizer) {
            (None, None) => self.solver(seed),
            _ => {
                let plain = TrainerConfig {
                    schedule: Schedule::constant(),
                    batch_size: 64,
                    optimiser: Optimiser::sgd(0.0),
                    ..TrainerConfig::notebook(self.task.task())
                };
                self.descend(seed, plain)?
            }
        };
        Ok(self.recipe_of(method, device))
    }

    /// The solver's recipe whatever else is said: a classifier to begin a fine-tuning with.
    pub(crate) fn solver_recipe(&self, seed: u64) -> HeadRecipe {
        self.recipe_of(self.solver(seed), Device::Cpu)
    }

    /// Settings of steps that train a network; what is not said is SGD's with lr 0.01 and momentum 0.9, batches of 32, 25
    /// epochs.
    pub(crate) fn trainer(&self, seed: u64) -> Result<TrainerConfig, UsageError> {
        let plain = TrainerConfig {
            schedule: Schedule::constant(),
            batch_size: 32,
            lr: 0.01,
            ..TrainerConfig::notebook(self.task.task())
        };
        match self.descend(seed, plain)? {
            Method::MiniBatch(config) => Ok(config),
            Method::Sweep(_) | Method::Solver { .. } => Err(UsageError::new(
                "a sweep trains heads; a network is fine-tuned at one setting",
            )),
        }
    }

    /// How much the validation loss has to fall to count as progress.
    pub(crate) fn min_delta(&self) -> f64 {
        self.descent.min_delta
    }

    fn solver(&self, seed: u64) -> Method {
        Method::Solver {
            config: SolverConfig {
                class_weights: self.class_weight.0.clone(),
                label_smoothing: self.label_smoothing,
                standardise: self.standardize,
                ..SolverConfig::new(self.task.task())
            },
            regularisation: self.c.0.clone(),
            n_folds: self.folds,
            seed,
        }
    }

    fn recipe_of(&self, method: Method, device: Device) -> HeadRecipe {
        HeadRecipe {
            method,
            calibrate: self.calibrate,
            baselines: self.baselines,
            device,
            precision: match self.descent.precision {
                PrecisionArg::F32 => Precision::F32,
                PrecisionArg::F16 => Precision::F16,
                PrecisionArg::Bf16 => Precision::Bf16,
            },
        }
    }

    /// One head by mini-batches, or a sweep where something has several values; `plain` is what holds without a preset.
    fn descend(&self, seed: u64, plain: TrainerConfig) -> Result<Method, UsageError> {
        let (task, args) = (self.task.task(), &self.descent);
        let notebook = TrainerConfig::notebook(task);
        let epochs = args.epochs.unwrap_or(plain.epochs);
        let batch_size = args.train_batch_size;
        let (base, mut heads) = match args.preset {
            Some(PresetArg::Dinov2) => {
                let sweep = SweepConfig::dinov2(task, batch_size.unwrap_or(128), epochs);
                (sweep.base, sweep.heads)
            }
            Some(PresetArg::Notebook) => (notebook, Vec::new()),
            None => (plain, Vec::new()),
        };
        let mut config = TrainerConfig {
            optimiser: self.optimiser(base.optimiser)?,
            schedule: args.schedule(base.schedule)?,
            epochs,
            batch_size: batch_size.unwrap_or(base.batch_size),
            class_weights: self.class_weight.0.clone(),
            label_smoothing: self.label_smoothing as f32,
            standardise: self.standardize,
            drop_last: args.drop_last,
            clip_norm: args.clip_grad_norm,
            mixup: args.mixup,
            noise: args.noise.unwrap_or(0.0),
            hidden: args.hidden.clone(),
            dropout: args.dropout.unwrap_or(0.0),
            activation: match args.activation {
                None | Some(ActivationArg::Relu) => Activation::Relu,
                Some(ActivationArg::Gelu) => Activation::Gelu,
            },
            norm: match args.norm {
                None | Some(NormArg::None) => Norm::None,
                Some(NormArg::Batch) => Norm::Batch,
                Some(NormArg::Layer) => Norm::Layer,
            },
            early_stopping: args.patience.map(|patience| EarlyStopping {
                patience,
                min_delta: args.min_delta,
            }),
            best: match args.best {
                None => base.best,
                Some(BestArg::Accuracy) => Best::Accuracy,
                Some(BestArg::Loss) => Best::Loss,
                Some(BestArg::Last) => Best::Last,
            },
            ema: args.ema,
            // DINOv2's first weights are a linear head's; hidden layers begin as torch's.
            init: if args.hidden.is_empty() {
                base.init
            } else {
                Init::Uniform
            },
            seed,
            ..base
        };
        let decay = match config.optimiser {
            Optimiser::AdamW { .. } => 0.01,
            Optimiser::Sgd { .. } | Optimiser::Adam { .. } => 0.0,
        };
        let one_of = |values: &[f64], default: f64| match values {
            [] => vec![default],
            values => values.to_vec(),
        };
        if heads.is_empty() || !args.lr.is_empty() {
            heads = one_of(&args.lr, config.lr)
                .into_iter()
                .map(|lr| SweepHead {
                    lr,
                    weight_decay: decay,
                    init_seed: 0,
                })
                .collect();
        }
        let decays: &[f64] = &args.weight_decay;
        let seeds: &[u64] = &args.init_seed;
        let heads: Vec<SweepHead> = heads
            .into_iter()
            .flat_map(|head| {
                let decays = one_of(decays, head.weight_decay).into_iter();
                decays.map(move |weight_decay| SweepHead { weight_decay, ..head })
            })
            .flat_map(|head| {
                let seeds = if seeds.is_empty() {
                    vec![head.init_seed]
                } else {
                    seeds.to_vec()
                };
                seeds
                    .into_iter()
                    .map(move |init_seed| SweepHead { init_seed, ..head })
            })
            .collect();
        if let ([head], None) = (heads.as_slice(), args.halving) {
            (config.lr, config.weight_decay, config.init_seed) = (head.lr, head.weight_decay, head.init_seed);
            return Ok(Method::MiniBatch(config));
        }
        Ok(Method::Sweep(SweepConfig {
            base: config,
            heads,
            halving: args.halving.map(|halving| halving.0),
        }))
    }

    fn optimiser(&self, preset: Optimiser) -> Result<Optimiser, UsageError> {
        let args = &self.descent;
        let (betas, eps) = (
            args.betas.unwrap_or(PairArg(0.9, 0.999)),
            args.eps.unwrap_or(1e-8),
        );
        let betas = (betas.0, betas.1);
        let optimiser = match args.optimizer {
            Some(OptimizerArg::Adam) => Optimiser::Adam { betas, eps },
            Some(OptimizerArg::Adamw) => Optimiser::AdamW { betas, eps },
            Some(OptimizerArg::Sgd) | None => {
                let default = match (args.optimizer, preset) {
                    (None, Optimiser::Sgd { momentum, .. }) => momentum,
                    _ => 0.0,
                };
                Optimiser::Sgd {
                    momentum: args.momentum.unwrap_or(default),
                    dampening: 0.0,
                    nesterov: args.nesterov,
                }
            }
        };
        let is_sgd = matches!(optimiser, Optimiser::Sgd { .. });
        if is_sgd && (args.betas.is_some() || args.eps.is_some()) {
            return Err(UsageError::new("--betas and --eps are of adam and adamw"));
        }
        if !is_sgd && (args.momentum.is_some() || args.nesterov) {
            return Err(UsageError::new("--momentum and --nesterov are of sgd"));
        }
        Ok(optimiser)
    }
}

impl DescentArgs {
    fn schedule(&self, preset: Schedule) -> Result<Schedule, UsageError> {
        let (form, is_step, is_cosine) = match (self.schedule, preset.curve) {
            (Some(form), _) => {
                let is = |other| std::mem::discriminant(&form) == std::mem::discriminant(&other);
                (Some(form), is(ScheduleArg::Step), is(ScheduleArg::Cosine))
            }
            (None, curve) => (
                None,
                matches!(curve, Curve::Step { .. }),
                matches!(curve, Curve::Cosine { .. }),
            ),
        };
        if !is_step && (self.step_size.is_some() || self.gamma.is_some()) {
            return Err(UsageError::new("--step-size and --gamma are of --schedule step"));
        }
        if !is_cosine && self.min_lr.is_some() {
            return Err(UsageError::new("--min-lr is of --schedule cosine"));
        }
        let mut schedule = match form {
            None => preset,
            Some(ScheduleArg::Constant) => Schedule::constant(),
            Some(ScheduleArg::Step) => Schedule::step(7, 0.1),
            Some(ScheduleArg::Cosine) => Schedule::cosine(Unit::Epoch),
            Some(ScheduleArg::OneCycle) => Schedule::one_cycle(),
        };
        match &mut schedule.curve {
            Curve::Step { step_size, gamma } => {
                *step_size = self.step_size.unwrap_or(*step_size);
                *gamma = self.gamma.unwrap_or(*gamma);
            }
            Curve::Cosine { min_lr } => *min_lr = self.min_lr.unwrap_or(*min_lr),
            Curve::Constant | Curve::OneCycle { .. } => {}
        }
        match self.schedule_unit {
            None => {}
            Some(UnitArg::Epoch) => schedule.unit = Unit::Epoch,
            Some(UnitArg::Step) => schedule.unit = Unit::Step,
        }
        schedule.warmup = self.warmup.unwrap_or(schedule.warmup);
        Ok(schedule)
    }
}
