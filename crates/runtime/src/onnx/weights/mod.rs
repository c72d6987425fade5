//! A checkpoint's tensors into a graph's initialisers, as `load_state_dict` puts them into a model.
//!
//! Names are what the exporter kept: they may differ from the checkpoint's by a prefix, stand for several tensors, or be
//! gone. `resolve` finds where each tensor belongs, `fold` makes what an exporter made of a convolution and its batch
//! normalisation, `write` makes the graph. What cannot be placed is an error by name, never a guess.

mod fold;
mod from;
mod module_path;
mod names;
mod parameters;
mod resolve;
mod write;

use std::collections::{HashMap, HashSet};

use serde::Serialize;
use surgery::{LazyStateDict, Pattern};

pub use self::from::WeightsFrom;
use self::names::{Names, Prefix, is_a_name, parent};
pub(super) use self::parameters::floats;
pub use self::parameters::{ClassifierLayer, Parameter};
use self::resolve::{AddedBias, Place, Resolved, Use, resolve};
use super::cut::nearest;
use super::graph::Model;
use super::tensor::{is_float, type_name};
use crate::error::Error;

/// What PyTorch's batch normalisations have where nothing else is said.
pub const DEFAULT_BATCH_NORM_EPS: f64 = 1e-5;

/// How a checkpoint is put into a graph.
#[derive(Debug, Clone)]
pub struct WeightsOptions<'o> {
    /// What stands in front of these tensors must be filled; behind them what fits is put in and the rest is left. All of
    /// the graph, where there are none.
    pub boundaries: &'o [&'o str],
    /// Initialisers that keep the graph's own values.
    pub keep: &'o [Pattern],
    /// The epsilon of batch normalisations that were folded at export, where the graph does not tell.
    pub batch_norm_eps: f64,
}

impl Default for WeightsOptions<'_> {
    fn default() -> Self {
        WeightsOptions {
            boundaries: &[],
            keep: &[],
            batch_norm_eps: DEFAULT_BATCH_NORM_EPS,
        }
    }
}

/// What was put where. Names are the checkpoint's but where it says so.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct WeightsReport {
    /// Tensors that were put in.
    pub placed: Vec<String>,
    /// In front of the checkpoint's names and not of the graph's.
    pub prefix_in_checkpoint: String,
    /// In front of the graph's names and not of the checkpoint's.
    pub prefix_in_graph: String,
    /// Tensors whose numbers were rounded or widened to the graph's type, with both types.
    pub converted: Vec<String>,
    /// Matrices that the graph holds transposed.
    pub transposed: Vec<String>,
    /// Batch normalisations that were folded into the convolution in front of them.
    pub folded: Vec<FoldedNorm>,
    /// Tensors that belong behind the boundaries and do not fit there.
    pub left: Vec<String>,
    /// Tensors without the prefix that the others have.
    pub outside: Vec<String>,
    /// The graph's floating-point tensors, in front of the boundaries, that kept their values.
    pub kept: Vec<String>,
}

/// A batch normalisation that is part of a convolution in the graph.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FoldedNorm {
    /// The convolution's module.
    pub conv: String,
    /// The normalisation's module.
    pub norm: String,
    /// Added to the variance.
    pub eps: f64,
    /// Whether the graph told epsilon; else it is the one of the options.
    pub is_eps_known: bool,
}

impl Model {
    /// The graph with the values of a checkpoint. See the module for how names are matched.
    ///
    /// # Errors
    /// [`Error::Weights`] with all that does not fit, in the words of `load_state_dict`: tensors that are missing,
    /// unexpected, or of another shape or type; initialisers that lost their names and whose module does not tell them;
    /// batch normalisations that were folded and cannot be told. What reading the checkpoint gives.
    pub fn with_weights(
        &self,
        weights: &LazyStateDict,
        options: &WeightsOptions<'_>,
    ) -> Result<(Model, WeightsReport), Error> {
        let refuse = |faults: Vec<String>| Error::Weights {
            path: self.path.clone(),
            faults,
        };
        let outputs: Vec<&str> = self.outputs.iter().map(String::as_str).collect();
        let boundaries = if options.boundaries.is_empty() {
            outputs.as_slice()
        } else {
            options.boundaries
        };
        let needed = self.ancestors(boundaries);
        let uses = Use::all(self);
        let wanted: HashSet<String> = uses.iter().flat_map(|at| at.wanted(self)).collect();
        let names = Names::new(weights, &wanted).map_err(|reason| refuse(vec![reason]))?;
        let mut resolved = resolve(self, &uses, &names, options.batch_norm_eps)
            .map_err(|reason| refuse(vec![reason, RE_EXPORT.to_owned()]))?;
        for (at, place) in uses.iter().zip(&mut resolved.places) {
            if options.keep.iter().any(|pattern| pattern.matches(at.operand)) {
                *place = Place::Nothing;
            }
        }
        let mut judged = Judged::default();
        for (at, place) in uses.iter().zip(&mut resolved.places) {
            judged.judge(self, at, place, needed[at.node_idx], &names, options.keep);
        }
        resolved.biases.retain(|bias| judged.judge_bias(bias, &names));
        judged.unexpected(self, &uses, &needed, &names);
        let faults = judged.faults(&names);
        if !faults.is_empty() {
            return Err(refuse(faults));
        }
        let model = write::write(self, &uses, &resolved, &names)?;
        Ok((model, judged.report(&names, &resolved)))
    }
}

/// What to do about weights that an exporter changed.
const RE_EXPORT: &str = "exported with training=TrainingMode.PRESERVE and do_constant_folding=False a graph keeps all \
                         weights under their names";

/// What was seen of all uses.
#[derive(Debug, Default)]
struct Judged {
    consumed: HashSet<String>,
    placed: Vec<String>,
    converted: Vec<String>,
    left: Vec<String>,
    kept: Vec<String>,
    missing: Vec<String>,
    lost: Vec<String>,
    unexpected: Vec<String>,
    mismatches: Vec<String>,
    seen: HashSet<String>,
}

impl Judged {
    /// Books a use; what cannot be put in becomes [`Place::Nothing`].
    fn judge(
        &mut self,
        model: &Model,
        at: &Use<'_>,
        place: &mut Place,
        is_needed: bool,
        names: &Names<'_>,
        keep: &[Pattern],
    ) {
        let parts: Vec<String> = match &*place {
            Place::Same(name) | Place::Transposed(name) | Place::Mismatch(name) => vec![name.clone()],
            Place::FoldedKernel(norm) | Place::FoldedBias(norm) => norm.parts(names),
            Place::Nothing => Vec::new(),
        };
        let dtype = at.initializer.dtype;
        let fault = match &*place {
            Place::Mismatch(name) => Some(mismatch(name, at, names)),
            Place::Nothing => None,
            _ => parts.iter().find_map(|name| self.check_type(name, dtype, names)),
        };
        if let Some(fault) = fault {
            *place = Place::Nothing;
            if is_needed {
                push_new(&mut self.mismatches, fault);
            } else {
                self.left.extend(
                    parts
                        .iter()
                        .filter(|name| self.consumed.insert((*name).clone()))
                        .cloned(),
                );
            }
            self.consumed.extend(parts);
            return;
        }
        for name in parts {
            if self.seen.insert(name.clone()) {
                self.placed.push(name.clone());
            }
            self.consumed.insert(name);
        }
        if *place != Place::Nothing || !is_needed || !is_float(at.initializer.dtype) {
            return;
        }
        let node = &model.nodes[at.node_idx];
        let is_kept = keep.iter().any(|pattern| pattern.matches(at.operand));
        if is_kept {
            push_new(&mut self.kept, at.operand.to_owned());
        } else if is_a_name(at.operand) {
            push_new(&mut self.missing, at.operand.to_owned());
        } else if at.is_weight_of(node) {
            push_new(
                &mut self.lost,
                format!("`{}` {:?} of {}", at.operand, at.initializer.shape, node.title()),
            );
        } else if at.initializer.numel() > 1 {
            push_new(&mut self.kept, at.operand.to_owned());
        }
    }

    /// Books a bias that the graph lacks; false for one that is in the graph elsewhere, or cannot be put in.
    fn judge_bias(&mut self, bias: &AddedBias, names: &Names<'_>) -> bool {
        let parts = match &bias.place {
            Place::Same(name) if self.consumed.contains(name) => return false,
            Place::Same(name) => vec![name.clone()],
            Place::FoldedBias(norm) => norm.parts(names),
            _ => return false,
        };
        if parts
            .iter()
            .any(|name| self.check_type(name, bias.dtype, names).is_some())
        {
            return false;
        }
        for name in parts {
            if self.seen.insert(name.clone()) {
                self.placed.push(name.clone());
            }
            self.consumed.insert(name);
        }
        true
    }

    /// Why a tensor's numbers cannot become the initialiser's.
    fn check_type(&mut self, name: &str, dtype: i64, names: &Names<'_>) -> Option<String> {
        let Some(tensor) = names.tensor(name) else {
            return Some(format!("{name} is no plain array in the checkpoint"));
        };
        let (from, to) = (tensor.dtype().as_str(), type_name(dtype));
        let is_float_too = tensor.dtype().is_float() && is_float(dtype);
        if from != to && !(is_float_too && pth::DType::from_name(to).is_some()) {
            return Some(format!(
                "type mismatch for {name}: {from} in the checkpoint, {to} in the graph"
            ));
        }
        if from != to {
            push_new(&mut self.converted, format!("{name}: {from} -> {to}"));
        }
        None
    }

    /// Books the checkpoint's tensors that no use has taken.
    fn unexpected(&mut self, model: &Model, uses: &[Use<'_>], needed: &[bool], names: &Names<'_>) {
        let modules = |is_needed: bool| -> HashSet<String> {
            let some = uses.iter().filter(|at| needed[at.node_idx] == is_needed);
            some.flat_map(|at| at.wanted(model))
                .map(|name| parent(&name).to_owned())
                .collect()
        };
        let (front, behind) = (modules(true), modules(false));
        for (name, _) in names.iter().filter(|(name, _)| !self.consumed.contains(*name)) {
            let module = parent(name);
            if name.ends_with("num_batches_tracked") {
                continue;
            }
            if behind.contains(module) && !front.contains(module) {
                self.left.push(name.to_owned());
            } else {
                self.unexpected.push(name.to_owned());
            }
        }
    }

    /// All that does not fit, as `load_state_dict` says it.
    fn faults(&self, names: &Names<'_>) -> Vec<String> {
        let in_checkpoint = |name: &String| {
            names
                .get(name)
                .map_or(name.as_str(), |given| given.name)
                .to_owned()
        };
        let unexpected: Vec<String> = self.unexpected.iter().map(in_checkpoint).collect();
        let mut faults = Vec::new();
        if !self.missing.is_empty() {
            faults.push(format!(
                "Missing key(s) in state_dict: {}. ",
                quoted(&self.missing)
            ));
        }
        if !unexpected.is_empty() {
            faults.push(format!(
                "Unexpected key(s) in state_dict: {}. ",
                quoted(&unexpected)
            ));
        }
        faults.extend(self.mismatches.iter().cloned());
        let near: Vec<String> = self
            .missing
            .iter()
            .filter(|_| !unexpected.is_empty())
            .take(5)
            .flat_map(|name| {
                let near = nearest(name, unexpected.iter().map(String::as_str), 1);
                near.into_iter()
                    .map(move |near| format!("\"{near}\" for \"{name}\""))
            })
            .collect();
        if !near.is_empty() {
            faults.push(format!("nearest are {}", near.join(", ")));
        }
        if !self.lost.is_empty() {
            let shown: Vec<&str> = self.lost.iter().take(8).map(String::as_str).collect();
            let more = match self.lost.len() - shown.len() {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            faults.push(format!(
                "weights that lost their names at export, and whose modules do not tell them, cannot be replaced: {}{more}",
                shown.join(", ")
            ));
        }
        let is_norm = |name: &String| name.ends_with("running_mean") || name.ends_with("running_var");
        if !self.lost.is_empty() || self.unexpected.iter().any(is_norm) {
            faults.push(RE_EXPORT.to_owned());
        }
        faults
    }

    fn report(self, names: &Names<'_>, resolved: &Resolved) -> WeightsReport {
        let places = &resolved.places;
        let in_checkpoint = |name: String| match names.get(&name) {
            Some(given) => given.name.to_owned(),
            None => name,
        };
        let (prefix_in_checkpoint, prefix_in_graph) = match &names.prefix {
            Prefix::None => (String::new(), String::new()),
            Prefix::InCheckpoint(prefix) => (prefix.clone(), String::new()),
            Prefix::InGraph(prefix) => (String::new(), prefix.clone()),
        };
        let transposed = places.iter().filter_map(|place| match place {
            Place::Transposed(name) => Some(in_checkpoint(name.clone())),
            _ => None,
        });
        let folded = places.iter().filter_map(|place| match place {
            Place::FoldedKernel(norm) => Some(FoldedNorm {
                conv: norm.conv.clone(),
                norm: norm.norm.clone(),
                eps: norm.eps,
                is_eps_known: norm.is_eps_known,
            }),
            _ => None,
        });
        WeightsReport {
            prefix_in_checkpoint,
            prefix_in_graph,
            transposed: transposed.collect(),
            folded: folded.collect(),
            placed: self.placed.into_iter().map(in_checkpoint).collect(),
            converted: self.converted,
            left: self.left.into_iter().map(in_checkpoint).collect(),
            outside: names.outside.iter().map(|&name| name.to_owned()).collect(),
            kept: self.kept,
        }
    }
}

fn mismatch(name: &str, at: &Use<'_>, names: &Names<'_>) -> String {
    let sizes = |shape: &[usize]| {
        let sizes: Vec<String> = shape.iter().map(ToString::to_string).collect();
        format!("torch.Size([{}])", sizes.join(", "))
    };
    match names.shape(name) {
        Some(given) => format!(
            "size mismatch for {name}: copying a param with shape {} from checkpoint, the shape in current model is {}.",
            sizes(given),
            sizes(&at.initializer.shape)
        ),
        None => format!("{name} is no plain array in the checkpoint"),
    }
}

fn quoted(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    quoted.join(", ")
}

fn push_new(into: &mut Vec<String>, text: String) {
    if !into.contains(&text) {
        into.push(text);
    }
}

/// Uses that read the same operand, in the order of the first.
fn by_operand<'m>(uses: &[Use<'m>]) -> Vec<(&'m str, Vec<usize>)> {
    let mut groups: Vec<(&str, Vec<usize>)> = Vec::new();
    let mut of: HashMap<&str, usize> = HashMap::new();
    for (use_idx, at) in uses.iter().enumerate() {
        let group_idx = *of.entry(at.operand).or_insert_with(|| {
            groups.push((at.operand, Vec::new()));
            groups.len() - 1
        });
        groups[group_idx].1.push(use_idx);
    }
    groups
}
