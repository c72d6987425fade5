//! Verbs that change how many channels or rows a tensor has: `in_chans`, `rows`.

use super::{map_tensors, matched};
use crate::lazy::{Distribution, Draw, LazyTensor, NanPolicy};
use crate::plan::args::{Args, At, Patterns, one_of};
use crate::plan::{Effect, Fault, Operation, Workspace};

/// `in_chans conv1.weight 1`
#[derive(Debug)]
struct InChans {
    patterns: Patterns,
    is_optional: bool,
    n: usize,
    mode: Mode,
    span: std::ops::Range<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// timm's `adapt_input_conv`: to one channel the sum, else repeated and scaled.
    Timm,
    /// Every channel is the mean of all.
    Mean,
    /// Further channels are zero.
    Zero,
}

pub(crate) fn parse_in_chans(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    let mode = match args.option("mode") {
        Some(text) => one_of(
            &text,
            &[("timm", Mode::Timm), ("mean", Mode::Mean), ("zero", Mode::Zero)],
        )?,
        None => Mode::Timm,
    };
    let patterns = args.patterns(1)?;
    let n: std::num::NonZeroUsize = args.value("a number of channels")?;
    Ok(Box::new(InChans {
        patterns,
        is_optional: args.is_optional,
        n: n.into(),
        mode,
        span: args.verb_span(),
    }))
}

impl Operation for InChans {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let names = matched(&work.tensors, &self.patterns, self.is_optional)?;
        let mut summary = String::new();
        map_tensors(&mut work.tensors, &names, |name, tensor| {
            let changed = in_chans(tensor, self.n, self.mode).map_err(|reason| {
                Fault::new(format!("`{name}` {:?}: {reason}", tensor.shape())).at(&self.span)
            })?;
            summary = format!("{:?} -> {:?}", tensor.shape(), changed.shape());
            Ok(changed)
        })?;
        Ok(Effect::lossy(summary))
    }
}

/// A convolution's weight `[O, I, ...]` as `[O, n, ...]`.
fn in_chans(weight: &LazyTensor, n: usize, mode: Mode) -> Result<LazyTensor, String> {
    if weight.shape().len() < 3 || !weight.dtype().is_float() {
        return Err("it is not the weight of a convolution".to_owned());
    }
    let inputs = weight.shape()[1];
    let channel = |i: usize| weight.slice(1, i, 1, 1);
    let sum = |terms: Vec<(f64, LazyTensor)>| LazyTensor::sum(weight.dtype(), terms, NanPolicy::Allow);
    if inputs == n {
        return Ok(weight.clone());
    }
    match mode {
        Mode::Timm if n == 1 && inputs > 3 => {
            // A space-to-depth stem keeps its blocks of pixels: the sum is over the three colours of each.
            if !inputs.is_multiple_of(3) {
                return Err("its channels are not whole groups of 3 colours".to_owned());
            }
            let colour = |colour: usize| weight.slice(1, colour, inputs / 3, 3);
            Ok(sum((0..3).map(|i| (1.0, colour(i))).collect()))
        }
        Mode::Timm if n == 1 => Ok(sum((0..inputs).map(|i| (1.0, channel(i))).collect())),
        // As timm, which leaves a weight of 3 channels as it is and has no rule for others.
        Mode::Timm if inputs != 3 => Err("only 3 channels are repeated to other numbers".to_owned()),
        Mode::Timm => {
            let scale = 3.0 / n as f64;
            let repeated = (0..n).map(|i| channel(i % 3)).collect();
            Ok(sum(vec![(scale, LazyTensor::joined(1, repeated))]))
        }
        Mode::Mean => {
            let mean = sum((0..inputs).map(|i| (1.0 / inputs as f64, channel(i))).collect());
            Ok(LazyTensor::joined(1, vec![mean; n]))
        }
        Mode::Zero if n < inputs => Ok(weight.slice(1, 0, n, 1)),
        Mode::Zero => {
            let mut shape = weight.shape().to_vec();
            shape[1] = n - inputs;
            let zeros = LazyTensor::filled(weight.dtype(), &shape, 0.0);
            Ok(LazyTensor::joined(1, vec![weight.clone(), zeros]))
        }
    }
}

/// `rows embed.weight 50304 fill=mean`
#[derive(Debug)]
struct Rows {
    patterns: Patterns,
    is_optional: bool,
    n: usize,
    fill: Fill,
    seed: u64,
}

/// What new rows hold.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fill {
    Zeros,
    Mean,
    Normal(f64),
    Copy(usize),
}

pub(crate) fn parse_rows(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    let fill = args.option("fill").map(|text| parse_fill(&text)).transpose()?;
    let multiple: Option<std::num::NonZeroUsize> = args.parsed("multiple", "a number of rows")?;
    let seed = args.parsed("seed", "a whole number")?.unwrap_or(0);
    let patterns = args.patterns(1)?;
    let n: usize = args.value("a number of rows")?;
    Ok(Box::new(Rows {
        patterns,
        is_optional: args.is_optional,
        n: n.checked_next_multiple_of(multiple.map_or(1, usize::from))
            .ok_or_else(|| Fault::new(format!("`{n}` is no number of rows")).at(&args.verb_span()))?,
        fill: fill.unwrap_or(Fill::Zeros),
        seed,
    }))
}

fn parse_fill(text: &At<String>) -> Result<Fill, Fault> {
    let (name, number) = text.value.split_once(':').unwrap_or((&text.value, ""));
    let wrong = || {
        Fault::new(format!(
            "`{}` is none of zeros, mean, normal:STD, copy:ROW",
            text.value
        ))
        .at(&text.span)
    };
    match (name, number) {
        ("zeros", "") => Ok(Fill::Zeros),
        ("mean", "") => Ok(Fill::Mean),
        ("normal", "") => Ok(Fill::Normal(0.02)),
        ("normal", std) => std.parse().map(Fill::Normal).map_err(|_| wrong()),
        ("copy", row) => row.parse().map(Fill::Copy).map_err(|_| wrong()),
        _ => Err(wrong()),
    }
}

impl Operation for Rows {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let names = matched(&work.tensors, &self.patterns, self.is_optional)?;
        let mut summary = String::new();
        let mut is_lossy = false;
        map_tensors(&mut work.tensors, &names, |name, tensor| {
            let Some(&old) = tensor.shape().first() else {
                return Err(Fault::new(format!("`{name}` has no rows")));
            };
            is_lossy |= self.n < old;
            summary = format!("{old} -> {} rows", self.n);
            self.of(name, tensor, old)
        })?;
        Ok(if is_lossy {
            Effect::lossy(summary)
        } else {
            Effect::exact(summary)
        })
    }
}

impl Rows {
    fn of(&self, name: &str, tensor: &LazyTensor, old: usize) -> Result<LazyTensor, Fault> {
        if self.n <= old {
            return Ok(tensor.slice(0, 0, self.n, 1));
        }
        let mut shape = tensor.shape().to_vec();
        shape[0] = self.n - old;
        let new = match self.fill {
            Fill::Zeros => LazyTensor::filled(tensor.dtype(), &shape, 0.0),
            Fill::Normal(std) => {
                let draw = Draw::new(Distribution::Normal { mean: 0.0, std }, self.seed, name);
                LazyTensor::drawn(tensor.dtype(), &shape, draw)
            }
            Fill::Copy(row) if row < old => tensor.slice(0, row, 1, 1).expand(&shape),
            Fill::Copy(row) => return Err(Fault::new(format!("`{name}` has no row {row}"))),
            Fill::Mean if old == 0 || !tensor.dtype().is_float() => {
                return Err(Fault::new(format!("`{name}` has no mean row")));
            }
            Fill::Mean => mean_row(tensor).expand(&shape),
        };
        Ok(LazyTensor::joined(0, vec![tensor.clone(), new]))
    }
}

/// The mean of all rows as one row, read in blocks of rows.
fn mean_row(tensor: &LazyTensor) -> LazyTensor {
    let mut shape = tensor.shape().to_vec();
    let n_rows = shape[0];
    shape[0] = 1;
    let row_len: usize = shape.iter().product();
    let n_block = ((1 << 18) / row_len.max(1)).clamp(1, n_rows);
    let held = n_block * row_len * 16;
    LazyTensor::reduced(
        tensor.dtype(),
        &shape,
        vec![tensor.clone()],
        held,
        move |inputs| {
            let mut mean = vec![0.0; row_len];
            let mut reader = inputs[0].reader_at(0)?;
            let mut left = n_rows;
            while left > 0 {
                let n = left.min(n_block);
                let rows = reader.read_f64(n * row_len)?;
                for row in rows.chunks(row_len) {
                    mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
                }
                left -= n;
            }
            mean.iter_mut().for_each(|value| *value /= n_rows as f64);
            Ok(mean)
        },
    )
}
