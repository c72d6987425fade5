//! What of the network itself is trained.

use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum};
use runtime::job::Recompute;
use runtime::train::EarlyStopping;
use runtime::tune::{NormPolicy, Rates, TuneConfig, Unfreeze};

use super::HeadArgs;
use crate::usage::UsageError;

/// Epochs without progress after which the next group is unfrozen, where --patience does not say.
const PATIENCE: usize = 2;

/// Fine-tuning: the network behind a boundary is trained, and not a head alone.
#[derive(Debug, Args)]
#[command(next_help_heading = "Fine-tuning", group = ArgGroup::new("tune").multiple(true))]
pub(crate) struct TuneArgs {
    /// Train these parameters of the network and a new classifier: 'layer4.**', '** except conv1.**'; '**' for all
    #[arg(long, value_name = "PATTERNS", groups = ["tune", "steps"])]
    train: Vec<String>,
    /// Groups of parameters in order, the one next to the output first: 'fc.** ; layer4.** ; layer3.**'
    #[arg(long, value_name = "PATTERNS;...", groups = ["tune", "steps"])]
    groups: Option<String>,
    /// When groups begin to train: all at once, the next when validation gets no better for --patience epochs, or one more
    /// with each epoch [default: at-once]
    #[arg(long, value_name = "WHEN", value_enum, requires = "groups")]
    unfreeze: Option<UnfreezeArg>,
    /// Each group's learning rate is the one above it divided by this [default: 10 on-plateau, 2.6 each-epoch, else 1]
    #[arg(long, value_name = "F", requires = "groups", conflicts_with_all = ["layer_decay", "lrs"])]
    lr_decay: Option<f64>,
    /// Each group's learning rate is the one above it times this
    #[arg(long, value_name = "F", requires = "groups", conflicts_with = "lrs")]
    layer_decay: Option<f64>,
    /// A learning rate for each group
    #[arg(
        long,
        value_name = "LR,...",
        value_delimiter = ',',
        requires = "groups",
        conflicts_with = "lr"
    )]
    lrs: Vec<f64>,
    /// Draw these parameters anew, as torch's layers do
    #[arg(long, value_name = "PATTERNS", requires = "tune")]
    fresh: Vec<String>,
    /// Batch normalisations: by the batch where they train (auto), by their running statistics, or all by the batch
    #[arg(long, value_name = "HOW", value_enum, default_value_t = NormArg::Auto, requires = "tune")]
    batch_norm: NormArg,
    /// Begin with the network's own classifier where it has as many classes, or with a random one, and not with the one that
    /// the solver fits on the frozen features
    #[arg(long, requires = "tune")]
    no_head_first: bool,
    /// Compute features of the frozen part in each epoch instead of caching them: where the cache has no room for them or a
    /// probe finds it faster (auto), always, or never; the results are the same
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = RecomputeArg::Auto, requires = "tune")]
    recompute: RecomputeArg,
    /// Put what fits of this checkpoint into the network first, load_state_dict(strict=False)
    #[arg(long, value_name = "CKPT", requires = "tune")]
    load: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum UnfreezeArg {
    AtOnce,
    OnPlateau,
    EachEpoch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum NormArg {
    Auto,
    Frozen,
    Batch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RecomputeArg {
    Auto,
    Always,
    Never,
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

impl TuneArgs {
    /// Whether features of the frozen part are cached.
    pub(crate) fn recompute(&self) -> Recompute {
        match self.recompute {
            RecomputeArg::Auto => Recompute::Auto,
            RecomputeArg::Always => Recompute::Always,
            RecomputeArg::Never => Recompute::Never,
        }
    }

    /// The settings, where a fine-tuning is asked for.
    pub(crate) fn config(&self, head: &HeadArgs, seed: u64) -> Result<Option<TuneConfig>, UsageError> {
        if self.train.is_empty() && self.groups.is_none() {
            return Ok(None);
        }
        let groups: Vec<Vec<String>> = match &self.groups {
            None => Vec::new(),
            Some(text) => text.split(';').map(words).collect(),
        };
        if groups.iter().any(Vec::is_empty) {
            return Err(UsageError::new("--groups has a group without a pattern")
                .with_hint("--groups 'fc.** ; layer4.** ; layer3.**'"));
        }
        let unfreeze = match self.unfreeze {
            None | Some(UnfreezeArg::AtOnce) => Unfreeze::AtOnce,
            Some(UnfreezeArg::OnPlateau) => Unfreeze::OnPlateau,
            Some(UnfreezeArg::EachEpoch) => Unfreeze::EachEpoch,
        };
        let rates = match (self.lr_decay, self.layer_decay, unfreeze) {
            _ if !self.lrs.is_empty() => Rates::Given(self.lrs.clone()),
            (Some(by), _, _) => Rates::Divided(by),
            (None, Some(decay), _) => Rates::Divided(1.0 / decay),
            (None, None, Unfreeze::OnPlateau) => Rates::Divided(10.0),
            (None, None, Unfreeze::EachEpoch) => Rates::Divided(2.6),
            (None, None, Unfreeze::AtOnce) => Rates::Divided(1.0),
        };
        let mut trainer = head.trainer(seed)?;
        if unfreeze == Unfreeze::OnPlateau && trainer.early_stopping.is_none() {
            trainer.early_stopping = Some(EarlyStopping {
                patience: PATIENCE,
                min_delta: head.min_delta(),
            });
        }
        Ok(Some(TuneConfig {
            train: self.train.iter().flat_map(|text| words(text)).collect(),
            groups,
            rates,
            unfreeze,
            fresh: self.fresh.iter().flat_map(|text| words(text)).collect(),
            batch_norm: match self.batch_norm {
                NormArg::Auto => NormPolicy::Auto,
                NormArg::Frozen => NormPolicy::Frozen,
                NormArg::Batch => NormPolicy::Batch,
            },
            head_first: !self.no_head_first,
            load: self.load.clone(),
            trainer,
        }))
    }
}
