//! `load like TARGET`: the state dict at hand into a model, as `torch.nn.Module.load_state_dict` does, and with what it refuses said by
//! pattern: tensors of another shape left out, cropped, padded, interpolated or initialised.

use std::collections::HashSet;

use super::init::Method;
use super::interpolation::Kernel;
use super::matching::must_match;
use super::resample::interp;
use crate::lazy::{LazyEntry, LazyStateDict, LazyTensor};
use crate::plan::args::{Args, At};
use crate::plan::{Effect, Fault, Operation, Workspace};
use crate::{Error, Pattern};

#[derive(Debug)]
struct Load {
    target: At<String>,
    is_strict: bool,
    /// Whether values keep their type instead of taking the target's.
    assigns: bool,
    class: String,
    policies: Vec<(Policy, At<Pattern>)>,
}

/// What becomes of a tensor whose shape is not the target's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    /// The target keeps its own.
    Skip,
    /// The leading part is taken.
    Crop,
    /// It becomes the leading part; the rest is the target's own.
    Pad,
    /// Linear, along each dimension that differs.
    Interpolate,
    /// What the target's layer would draw.
    Init,
}

const POLICIES: [(&str, Policy); 5] = [
    ("skip", Policy::Skip),
    ("crop", Policy::Crop),
    ("pad", Policy::Pad),
    ("interpolate", Policy::Interpolate),
    ("init", Policy::Init),
];

pub(crate) fn parse_load(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    let is_strict = args.flag("strict", true)?;
    let assigns = args.flag("assign", false)?;
    let class = args
        .option("class")
        .map_or_else(|| "Module".to_owned(), |text| text.value);
    let mut policies = Vec::new();
    for (word, policy) in POLICIES {
        while let Some(text) = args.option(word) {
            for item in text.value.split(',') {
                let value = Pattern::parse(item).map_err(|error| Fault::new(error.reason).at(&text.span))?;
                policies.push((
                    policy,
                    At {
                        value,
                        span: text.span.clone(),
                    },
                ));
            }
        }
    }
    if !args.take("like") {
        return Err(Fault::new("`like TARGET` is missing").at(&args.verb_span()));
    }
    Ok(Box::new(Load {
        target: args.word("a file or an input's name")?,
        is_strict,
        assigns,
        class,
        policies,
    }))
}

impl Operation for Load {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let target = work.source(&self.target)?.clone();
        for (_, pattern) in &self.policies {
            must_match(&target, pattern, false)?;
        }
        let source = &work.tensors;
        let mut loaded = target.clone();
        let mut mismatches = Vec::new();
        let mut notes = Vec::new();
        let mut n_loaded = 0;
        for (name, entry) in target.iter() {
            let Some(given) = source.get(name) else { continue };
            let value = match (given.tensor(), entry.tensor()) {
                (Some(tensor), Some(like)) => match self.fit(name, tensor, like, &target) {
                    Fit::As(tensor) => {
                        let tensor = if self.assigns {
                            tensor
                        } else {
                            super::cast::cast(name, &tensor, like.dtype())?
                        };
                        entry.with_tensor(tensor)
                    }
                    Fit::Adapted(tensor, how) => {
                        notes.push(format!(
                            "{name}: {:?} -> {:?} ({how})",
                            given.shape(),
                            entry.shape()
                        ));
                        let tensor = super::cast::cast(name, &tensor, like.dtype())?;
                        entry.with_tensor(tensor)
                    }
                    Fit::Kept => {
                        notes.push(format!(
                            "{name}: {:?} left out, {:?} kept",
                            given.shape(),
                            entry.shape()
                        ));
                        continue;
                    }
                    Fit::Not => {
                        mismatches.push(mismatch(name, given, entry));
                        continue;
                    }
                },
                // A record for a record: only whole can it be taken over.
                _ if given.shape() == entry.shape() => LazyEntry {
                    value: given.value.clone(),
                    ..entry.clone()
                },
                _ => {
                    mismatches.push(mismatch(name, given, entry));
                    continue;
                }
            };
            loaded.insert(name, value);
            n_loaded += 1;
        }
        let missing: Vec<&str> = target
            .names()
            .filter(|name| !source.contains(name) && !fills_in(source, name))
            .collect();
        let unexpected = unexpected(source, &target);
        let mut parts = Vec::new();
        if self.is_strict && !missing.is_empty() {
            parts.push(format!("Missing key(s) in state_dict: {}. ", quoted(&missing)));
        }
        if self.is_strict && !unexpected.is_empty() {
            parts.push(format!(
                "Unexpected key(s) in state_dict: {}. ",
                quoted(&unexpected)
            ));
        }
        parts.append(&mut mismatches);
        if !parts.is_empty() {
            let text = format!(
                "Error(s) in loading state_dict for {}:\n\t{}",
                self.class,
                parts.join("\n\t")
            );
            return Err(Fault::from(Error::Load(text)).at(&self.target.span).hint(
                "strict=false goes on without missing and unexpected keys; skip=, crop=, pad=, interpolate=, init= PATTERN say what becomes of other shapes",
            ));
        }
        if !missing.is_empty() {
            notes.push(format!("missing, the target's own kept: {}", missing.join(", ")));
        }
        if !unexpected.is_empty() {
            notes.push(format!("unexpected, left out: {}", unexpected.join(", ")));
        }
        let summary = format!(
            "{n_loaded} of {} loaded, {} missing, {} unexpected",
            target.len(),
            missing.len(),
            unexpected.len()
        );
        work.tensors = loaded;
        Ok(Effect {
            notes,
            ..Effect::lossy(summary)
        })
    }
}

/// `"a", "b"` as torch writes lists of keys.
fn quoted(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    quoted.join(", ")
}

fn mismatch(name: &str, given: &LazyEntry, entry: &LazyEntry) -> String {
    format!(
        "size mismatch for {name}: copying a param with shape {} from checkpoint, the shape in current model is {}.",
        torch_size(given.shape()),
        torch_size(entry.shape())
    )
}

fn torch_size(shape: &[usize]) -> String {
    format!("torch.Size({shape:?})")
}

/// BatchNorm of before version 2 had no `num_batches_tracked`; torch fills it in for a state dict that does not say otherwise.
fn fills_in(source: &LazyStateDict, name: &str) -> bool {
    let Some(module) = name.strip_suffix("num_batches_tracked") else {
        return false;
    };
    let module = module.trim_end_matches('.');
    let version = source.versions.iter().find(|version| version.module == module);
    version
        .and_then(|version| version.version)
        .is_none_or(|version| version < 2)
}

/// The names that the target lacks, in the order in which torch's modules come upon them: each module tells of those that begin with
/// its own name and go on with none of its children's, before its children do.
fn unexpected<'s>(source: &'s LazyStateDict, target: &LazyStateDict) -> Vec<&'s str> {
    let mut order: Vec<&str> = vec![""];
    let mut modules: HashSet<&str> = HashSet::from([""]);
    for name in target.names() {
        for (at, _) in name.match_indices('.') {
            if modules.insert(&name[..at]) {
                order.push(&name[..at]);
            }
        }
    }
    let place = |name: &str| {
        let last = name
            .match_indices('.')
            .map(|(at, _)| &name[..at])
            .take_while(|module| modules.contains(module))
            .last();
        order.iter().position(|module| *module == last.unwrap_or(""))
    };
    let mut unexpected: Vec<(Option<usize>, &str)> = source
        .names()
        .filter(|name| !target.contains(name))
        .map(|name| (place(name), name))
        .collect();
    unexpected.sort_by_key(|(place, _)| *place);
    unexpected.into_iter().map(|(_, name)| name).collect()
}

enum Fit {
    /// In its own shape.
    As(LazyTensor),
    /// In the target's, and how.
    Adapted(LazyTensor, &'static str),
    /// Not at all, by policy.
    Kept,
    /// Not at all.
    Not,
}

impl Load {
    fn fit(&self, name: &str, tensor: &LazyTensor, like: &LazyTensor, target: &LazyStateDict) -> Fit {
        let (from, to) = (tensor.shape(), like.shape());
        if from == to {
            return Fit::As(tensor.clone());
        }
        // torch reads what version 0.3 wrote as one element for a number.
        if to.is_empty() && from.len() == 1 && from[0] >= 1 {
            return Fit::As(tensor.slice(0, 0, 1, 1).reshape(&[]));
        }
        for (policy, pattern) in &self.policies {
            if !pattern.value.matches(name) {
                continue;
            }
            match policy {
                Policy::Skip => return Fit::Kept,
                Policy::Init => {
                    if let Ok(filled) = Method::Default.fill(target, name, like.dtype(), to, 0) {
                        return Fit::Adapted(filled, "initialised");
                    }
                }
                _ if from.len() != to.len() => {}
                Policy::Crop | Policy::Pad => {
                    // Both may be said of one tensor: what is larger is cropped, what is smaller padded.
                    let crops = self.has(Policy::Crop, name);
                    let pads = self.has(Policy::Pad, name);
                    let fits = from
                        .iter()
                        .zip(to)
                        .all(|(from, to)| from == to || (if from > to { crops } else { pads }));
                    if fits {
                        let how = if crops && pads {
                            "cropped and padded"
                        } else if crops {
                            "cropped"
                        } else {
                            "padded"
                        };
                        return Fit::Adapted(leading(tensor, like), how);
                    }
                }
                Policy::Interpolate => {
                    let mut fitted = tensor.clone();
                    for (dim, &n) in to.iter().enumerate() {
                        fitted = interp(&fitted, dim, n, Kernel::Linear);
                    }
                    return Fit::Adapted(fitted, "interpolated");
                }
            }
        }
        Fit::Not
    }

    fn has(&self, policy: Policy, name: &str) -> bool {
        self.policies
            .iter()
            .any(|(other, pattern)| *other == policy && pattern.value.matches(name))
    }
}

/// `tensor` in the leading corner of `like`'s shape; what it does not reach is `like`'s own.
fn leading(tensor: &LazyTensor, like: &LazyTensor) -> LazyTensor {
    let mut part = tensor.cast(like.dtype());
    for (dim, &n) in like.shape().iter().enumerate() {
        part = part.slice(dim, 0, n.min(part.shape()[dim]), 1);
    }
    for dim in (0..like.shape().len()).rev() {
        let (have, want) = (part.shape()[dim], like.shape()[dim]);
        if have < want {
            // The rest of the target, in the part's size along the dimensions that are still to be filled.
            let mut rest = like.slice(dim, have, want - have, 1);
            for (other, &n) in part.shape().iter().enumerate().take(dim) {
                rest = rest.slice(other, 0, n, 1);
            }
            part = LazyTensor::joined(dim, vec![part, rest]);
        }
    }
    part
}
