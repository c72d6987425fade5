//! `graftwork merge METHOD -o OUT A[:w] B[:w] …`: averages of state dicts.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::ValueEnum;
use pth::{DType, Profile};
use surgery::{
    Effect, INTEGER_POLICIES, IntegerPolicy, MISSING_POLICIES, MergeInput, MergeMethod, MergeOptions,
    OddPolicy, StepReport, merge, open_whole, split_weight,
};

use crate::args::OpenArgs;
use crate::usage::UsageError;
use crate::writing::{Job, WriteArgs, float_type, format_of};

/// Arguments of `merge`.
#[derive(Debug, clap::Args)]
pub(crate) struct MergeArgs {
    /// How inputs are weighted
    #[arg(value_enum)]
    method: Method,
    /// The inputs in order, each with its weight: `a.safetensors:0.6`
    #[arg(value_name = "IN[:WEIGHT]", required = true)]
    inputs: Vec<String>,
    /// The file to write; its extension says the format
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Do not divide the weights by their sum
    #[arg(long)]
    no_normalize: bool,
    /// What stays of an exponential moving average at each input
    #[arg(long, value_name = "D", default_value_t = 0.999)]
    decay: f64,
    /// What becomes of integers: first, last, max, mean [default: first; last for ema]
    #[arg(long, value_name = "POLICY", value_parser = integers)]
    ints: Option<IntegerPolicy>,
    /// What becomes of tensors that an input lacks: error, skip, first, available
    #[arg(long, value_name = "POLICY", value_parser = odd, default_value = "error")]
    missing: OddPolicy,
    /// What becomes of tensors whose shapes disagree: error, skip, first
    #[arg(long, value_name = "POLICY", value_parser = mismatch, default_value = "error")]
    mismatch: OddPolicy,
    /// The type of the floating results: float32, float16, bfloat16, float64 [default: that of the first input]
    #[arg(long, value_name = "TYPE", value_parser = float_type)]
    dtype: Option<DType>,
    /// Merge inputs that hold NaN
    #[arg(long)]
    allow_nan: bool,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    open: OpenArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Method {
    /// By the weights of the inputs
    Linear,
    /// All alike: a model soup, stochastic weight averaging
    Uniform,
    /// Exponential moving average over the inputs in their order
    Ema,
}

fn integers(text: &str) -> Result<IntegerPolicy, String> {
    of(&INTEGER_POLICIES, text)
}

fn odd(text: &str) -> Result<OddPolicy, String> {
    of(&MISSING_POLICIES, text)
}

/// No average is made of what disagrees.
fn mismatch(text: &str) -> Result<OddPolicy, String> {
    of(&MISSING_POLICIES[..3], text)
}

fn of<T: Copy>(words: &[(&str, T)], text: &str) -> Result<T, String> {
    let names = || words.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let found = words.iter().find(|(name, _)| *name == text);
    found
        .map(|(_, value)| *value)
        .ok_or_else(|| format!("one of {}", names()))
}

/// Runs the verb; returns the exit code.
pub(crate) fn run(args: &MergeArgs) -> Result<u8> {
    let format = format_of(&args.output)?;
    let method = match args.method {
        Method::Linear => MergeMethod::Linear {
            normalize: !args.no_normalize,
        },
        Method::Uniform => MergeMethod::Uniform,
        Method::Ema => MergeMethod::Ema { decay: args.decay },
    };
    let mut options = MergeOptions::new(method);
    options.integers = args.ints.unwrap_or(options.integers);
    options.missing = args.missing;
    options.mismatch = args.mismatch;
    options.dtype = args.dtype;
    options.allow_nan = args.allow_nan;
    let mut inputs = Vec::with_capacity(args.inputs.len());
    let mut paths = Vec::with_capacity(args.inputs.len());
    for text in &args.inputs {
        // A file that is called so is meant before a weight.
        let (name, weight) = if Path::new(text).exists() {
            (text.as_str(), None)
        } else {
            split_weight(text)
        };
        if weight.is_some() && !matches!(args.method, Method::Linear) {
            return Err(UsageError::new(format!("`{text}`: only linear takes weights")).into());
        }
        paths.push(PathBuf::from(name));
        inputs.push(MergeInput {
            name: name.to_owned(),
            weight: weight.unwrap_or(1.0),
            tensors: open_whole(Path::new(name), &args.open.options())?,
        });
    }
    let (tensors, report) = merge(&inputs, &options)?;
    let method = args
        .method
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned());
    let steps = [StepReport {
        step: format!("merge {method} {}", args.inputs.join(" ")),
        effect: Effect {
            summary: report.to_string(),
            is_lossy: true,
            notes: Vec::new(),
        },
    }];
    Job {
        tensors: &tensors,
        output: &args.output,
        format,
        profile: Profile::Torch,
        inputs: &paths,
        steps: &steps,
        args: &args.write,
    }
    .run()
}
