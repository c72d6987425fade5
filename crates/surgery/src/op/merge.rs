//! Averages of state dicts: `merge linear self:.6 other.pth:.4`, uniform soups, exponential moving averages.
//!
//! Linear: sum of w_i W_i, divided by the sum of w_i unless `normalize=false`. Uniform (model soups, SWA): the mean. EMA over inputs in
//! their order, as `torch.optim.swa_utils`: average <- decay * average + (1 - decay) * next, from the first input on.
//! Terms are added in float64 and rounded once, whatever the inputs' types.

use std::collections::HashMap;
use std::sync::Arc;

use pth::DType;

use crate::Error;
use crate::lazy::{Identity, LazyStateDict, LazyTensor, LazyValue, NanPolicy, is_convertible};
use crate::plan::args::{Args, At, one_of, parse_dtype};
use crate::plan::{Effect, Fault, Operation, Workspace};

/// How inputs are weighted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MergeMethod {
    /// By given weights.
    Linear {
        /// Whether weights are divided by their sum.
        normalize: bool,
    },
    /// All alike.
    Uniform,
    /// Later inputs more than earlier ones.
    Ema {
        /// What stays of the average at each input.
        decay: f64,
    },
}

/// What becomes of integers and booleans, such as `num_batches_tracked`, of which weights make no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntegerPolicy {
    /// Those of the first input.
    First,
    /// Those of the last input.
    Last,
    /// The largest of each.
    Max,
    /// The unweighted mean, rounded down.
    Mean,
}

/// What becomes of a tensor that an input lacks, or has in another shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OddPolicy {
    /// Nothing is merged.
    Error,
    /// It is left out.
    Skip,
    /// It is taken from the first input that has it.
    First,
    /// It is merged of the inputs that have it; for tensors that an input lacks only.
    Available,
}

/// How state dicts are averaged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MergeOptions {
    /// How inputs are weighted.
    pub method: MergeMethod,
    /// What becomes of integers.
    pub integers: IntegerPolicy,
    /// What becomes of tensors that an input lacks.
    pub missing: OddPolicy,
    /// What becomes of tensors whose shapes disagree.
    pub mismatch: OddPolicy,
    /// The floating results' type; none for that of the first input.
    pub dtype: Option<DType>,
    /// Whether NaN may be in an input.
    pub allow_nan: bool,
}

impl MergeOptions {
    /// The strict ones: every tensor in every input, in one shape, without NaN.
    pub fn new(method: MergeMethod) -> MergeOptions {
        MergeOptions {
            method,
            integers: match method {
                // An average over time goes on where the last input is.
                MergeMethod::Ema { .. } => IntegerPolicy::Last,
                _ => IntegerPolicy::First,
            },
            missing: OddPolicy::Error,
            mismatch: OddPolicy::Error,
            dtype: None,
            allow_nan: false,
        }
    }
}

/// One of the state dicts that are merged.
#[derive(Debug, Clone)]
pub struct MergeInput {
    /// What it is called in errors: its path.
    pub name: String,
    /// Its weight, which [`MergeMethod::Linear`] alone asks for.
    pub weight: f64,
    /// Its tensors.
    pub tensors: LazyStateDict,
}

/// What a merge does, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MergeReport {
    /// Tensors that are averages.
    pub n_merged: usize,
    /// Integers, by policy.
    pub n_integers: usize,
    /// Tensors that are taken from one input, since others lack them or disagree.
    pub n_taken: usize,
    /// Tensors that are left out.
    pub n_skipped: usize,
}

impl std::fmt::Display for MergeReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} averaged", self.n_merged)?;
        for (n, what) in [
            (self.n_integers, "integers by policy"),
            (self.n_taken, "taken from one input"),
            (self.n_skipped, "left out"),
        ] {
            if n > 0 {
                write!(f, ", {n} {what}")?;
            }
        }
        Ok(())
    }
}

/// The average of `inputs`, under the names of the first, in its order, with its marks and metadata.
///
/// # Errors
/// Names or shapes that disagree where the policy does not say what then; weights that cancel out; types without numbers.
pub fn merge(inputs: &[MergeInput], options: &MergeOptions) -> Result<(LazyStateDict, MergeReport), Error> {
    let Some(first) = inputs.first() else {
        return Err(Error::Merge("there is nothing to merge".to_owned()));
    };
    let weights = weights(inputs, options.method)?;
    let input_names: Arc<[String]> = inputs.iter().map(|input| input.name.clone()).collect();
    let mut report = MergeReport::default();
    let mut made: HashMap<Vec<Identity>, LazyTensor> = HashMap::new();
    let mut merged = first.tensors.emptied();
    for name in all_names(inputs, options.missing)? {
        let having: Vec<usize> = (0..inputs.len())
            .filter(|&i| inputs[i].tensors.contains(&name))
            .collect();
        let entry = inputs[having[0]]
            .tensors
            .get(&name)
            .expect("an input that has it");
        if having.len() < inputs.len() {
            match options.missing {
                OddPolicy::Error => {
                    let without = inputs.iter().find(|input| !input.tensors.contains(&name));
                    return Err(Error::MissingInInput {
                        name,
                        has: inputs[having[0]].name.clone(),
                        lacks: without.map(|input| input.name.clone()).unwrap_or_default(),
                    });
                }
                OddPolicy::Skip => {
                    report.n_skipped += 1;
                    continue;
                }
                OddPolicy::First => {
                    report.n_taken += 1;
                    merged.insert(name, ungrouped(entry, having[0]));
                    continue;
                }
                OddPolicy::Available => {}
            }
        }
        let LazyValue::Tensor(tensor) = &entry.value else {
            report.n_taken += 1;
            merged.insert(name, entry.clone());
            continue;
        };
        let mut terms: Vec<(f64, LazyTensor)> = Vec::with_capacity(having.len());
        let mut odd = None;
        for &i in &having {
            let other = inputs[i].tensors.get(&name).expect("an input that has it");
            match other.tensor() {
                Some(other) if other.shape() == tensor.shape() => terms.push((weights[i], other.clone())),
                _ => odd = odd.or(Some((i, other))),
            }
        }
        if let Some((i, other)) = odd {
            match options.mismatch {
                OddPolicy::Skip => {
                    report.n_skipped += 1;
                    continue;
                }
                OddPolicy::First | OddPolicy::Available => {
                    report.n_taken += 1;
                    merged.insert(name, entry.clone());
                    continue;
                }
                OddPolicy::Error => {
                    return Err(Error::Disagree {
                        first: format!("{name}` of `{}", inputs[having[0]].name),
                        first_is: format!("{:?}", tensor.shape()),
                        second: format!("{name}` of `{}", inputs[i].name),
                        second_is: format!("{:?}", other.shape()),
                    });
                }
            }
        }
        let sums_to_one = !matches!(options.method, MergeMethod::Linear { normalize: false });
        if having.len() < inputs.len() && sums_to_one {
            renormalize(&mut terms);
        }
        let identities: Vec<Identity> = terms.iter().map(|(_, term)| term.identity()).collect();
        let average = match made.get(&identities) {
            Some(average) => average.clone(),
            None => {
                let average = average(&name, tensor, terms, &input_names, options, &mut report)?;
                made.insert(identities, average.clone());
                average
            }
        };
        merged.insert(name, entry.with_tensor(average));
    }
    Ok((merged, report))
}

/// An entry of the input of that number: groups are those of the first.
fn ungrouped(entry: &crate::LazyEntry, input: usize) -> crate::LazyEntry {
    crate::LazyEntry {
        group: entry.group.filter(|_| input == 0),
        ..entry.clone()
    }
}

fn weights(inputs: &[MergeInput], method: MergeMethod) -> Result<Vec<f64>, Error> {
    let n = inputs.len();
    if let Some(input) = inputs.iter().find(|input| !input.weight.is_finite()) {
        return Err(Error::Merge(format!(
            "the weight of `{}` is no number",
            input.name
        )));
    }
    match method {
        MergeMethod::Uniform => Ok(vec![1.0 / n as f64; n]),
        MergeMethod::Ema { decay } if (0.0..=1.0).contains(&decay) => {
            let later = |i: usize| decay.powi(i32::try_from(n - 1 - i).unwrap_or(i32::MAX));
            Ok((0..n)
                .map(|i| {
                    if i == 0 {
                        later(0)
                    } else {
                        (1.0 - decay) * later(i)
                    }
                })
                .collect())
        }
        MergeMethod::Ema { decay } => Err(Error::Merge(format!("a decay of {decay} is not between 0 and 1"))),
        MergeMethod::Linear { normalize } => {
            let sum: f64 = inputs.iter().map(|input| input.weight).sum();
            if normalize && sum == 0.0 {
                return Err(Error::Merge(
                    "the weights add up to 0, by which nothing can be divided".to_owned(),
                ));
            }
            let divisor = if normalize { sum } else { 1.0 };
            Ok(inputs.iter().map(|input| input.weight / divisor).collect())
        }
    }
}

/// Weights that add up to 1 again.
fn renormalize(terms: &mut [(f64, LazyTensor)]) {
    let sum: f64 = terms.iter().map(|(weight, _)| weight).sum();
    if sum != 0.0 {
        terms.iter_mut().for_each(|(weight, _)| *weight /= sum);
    }
}

/// The first input's names in order, then those that only others have.
fn all_names(inputs: &[MergeInput], missing: OddPolicy) -> Result<Vec<String>, Error> {
    let first = &inputs[0];
    let mut names: Vec<String> = first.tensors.names().map(str::to_owned).collect();
    let mut seen: std::collections::HashSet<String> = names.iter().cloned().collect();
    for input in &inputs[1..] {
        for name in input.tensors.names() {
            if seen.insert(name.to_owned()) {
                if missing == OddPolicy::Error {
                    return Err(Error::MissingInInput {
                        name: name.to_owned(),
                        has: input.name.clone(),
                        lacks: first.name.clone(),
                    });
                }
                names.push(name.to_owned());
            }
        }
    }
    Ok(names)
}

fn average(
    name: &str,
    like: &LazyTensor,
    terms: Vec<(f64, LazyTensor)>,
    inputs: &Arc<[String]>,
    options: &MergeOptions,
    report: &mut MergeReport,
) -> Result<LazyTensor, Error> {
    let all_float = terms.iter().all(|(_, term)| term.dtype().is_float());
    let to = options.dtype.filter(|_| all_float).unwrap_or(like.dtype());
    if let Some((_, term)) = terms.iter().find(|(_, term)| !is_convertible(term.dtype())) {
        return Err(Error::Cast {
            name: name.to_owned(),
            from: term.dtype(),
            to,
        });
    }
    if all_float {
        report.n_merged += 1;
        let nan = if options.allow_nan {
            NanPolicy::Allow
        } else {
            NanPolicy::Refuse {
                name: name.to_owned(),
                inputs: Arc::clone(inputs),
            }
        };
        return Ok(LazyTensor::sum(to, terms, nan));
    }
    report.n_integers += 1;
    let tensors: Vec<LazyTensor> = terms.into_iter().map(|(_, term)| term).collect();
    let reduce: fn(&[f64]) -> f64 = match options.integers {
        IntegerPolicy::First => return Ok(tensors[0].cast(like.dtype())),
        IntegerPolicy::Last => return Ok(tensors[tensors.len() - 1].cast(like.dtype())),
        IntegerPolicy::Max => |values| values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        IntegerPolicy::Mean => |values| (values.iter().sum::<f64>() / values.len() as f64).floor(),
    };
    let shape = like.shape().to_vec();
    Ok(LazyTensor::computed(
        like.dtype(),
        &shape,
        tensors,
        move |inputs| {
            let column = |i: usize| inputs.iter().map(|input| input[i]).collect::<Vec<_>>();
            Ok((0..inputs[0].len()).map(|i| reduce(&column(i))).collect())
        },
    ))
}

/// `merge linear self:.6 other.pth:.4`
#[derive(Debug)]
struct Merge {
    inputs: Vec<(At<String>, f64)>,
    options: MergeOptions,
}

/// The words for an [`IntegerPolicy`].
pub const INTEGER_POLICIES: [(&str, IntegerPolicy); 4] = [
    ("first", IntegerPolicy::First),
    ("last", IntegerPolicy::Last),
    ("max", IntegerPolicy::Max),
    ("mean", IntegerPolicy::Mean),
];

/// The words for an [`OddPolicy`] of tensors that an input lacks.
pub const MISSING_POLICIES: [(&str, OddPolicy); 4] = [
    ("error", OddPolicy::Error),
    ("skip", OddPolicy::Skip),
    ("first", OddPolicy::First),
    ("available", OddPolicy::Available),
];

pub(crate) fn parse_merge(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    let normalize = args.flag("normalize", true)?;
    let decay = args.parsed("decay", "a factor such as 0.999")?.unwrap_or(0.999);
    let method = args.word("a method")?;
    let method = one_of(
        &method,
        &[
            ("linear", MergeMethod::Linear { normalize }),
            ("uniform", MergeMethod::Uniform),
            ("swa", MergeMethod::Uniform),
            ("ema", MergeMethod::Ema { decay }),
        ],
    )?;
    let mut options = MergeOptions::new(method);
    if let Some(text) = args.option("ints") {
        options.integers = one_of(&text, &INTEGER_POLICIES)?;
    }
    if let Some(text) = args.option("missing") {
        options.missing = one_of(&text, &MISSING_POLICIES)?;
    }
    if let Some(text) = args.option("mismatch") {
        options.mismatch = one_of(&text, &MISSING_POLICIES[..3])?;
    }
    options.dtype = args.option("dtype").map(|text| parse_dtype(&text)).transpose()?;
    options.allow_nan = args.flag("allow_nan", false)?;
    let mut inputs = Vec::new();
    while inputs.is_empty() || !args.is_empty() {
        let word = args.word("an input as in `other.pth:0.4`")?;
        let (name, weight) = split_weight(&word.value);
        let name = At {
            span: word.span.start..word.span.start + name.len(),
            value: name.to_owned(),
        };
        inputs.push((name, weight.unwrap_or(1.0)));
    }
    Ok(Box::new(Merge { inputs, options }))
}

/// `a.pth:0.6` to the path and the weight, where it has one.
pub fn split_weight(text: &str) -> (&str, Option<f64>) {
    match text.rsplit_once(':') {
        Some((path, weight)) if !path.is_empty() => match weight.parse() {
            Ok(weight) => (path, Some(weight)),
            Err(_) => (text, None),
        },
        _ => (text, None),
    }
}

impl Operation for Merge {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let mut inputs = Vec::with_capacity(self.inputs.len());
        for (name, weight) in &self.inputs {
            inputs.push(MergeInput {
                name: name.value.clone(),
                weight: *weight,
                tensors: work.source(name)?.clone(),
            });
        }
        let (merged, report) = merge(&inputs, &self.options)?;
        work.tensors = merged;
        Ok(Effect::lossy(report.to_string()))
    }
}
