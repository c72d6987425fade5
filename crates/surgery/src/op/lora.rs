//! `lora`: what fine-tuning has changed as an adapter of low rank, in the names and shapes of PEFT.
//!
//! A matrix `X.weight` that has changed becomes `base_model.model.X.lora_A.weight` `[r, in]` and `…lora_B.weight` `[out, r]`, of
//! which `alpha / r · B A` is the best approximation of the change. Convolutions have `[r, in, h, w]` and `[out, r, 1, 1]`,
//! embeddings `X.lora_embedding_A` `[r, rows]` and `X.lora_embedding_B` `[dim, r]`, of which B A is the change transposed.
//! What else has changed goes in whole: biases of modules with factors as `…X.base_layer.bias`, which PEFT loads where `bias` is
//! `lora_only`; modules without factors with all that is in them, without which PEFT does not load `modules_to_save`. What
//! `adapter_config.json` is to say comes into the metadata, and the writer puts it beside the tensors. Layers that keep their weights transposed (`Conv1D` of GPT-2, `fan_in_fan_out`) are not told from others by a state
//! dict: their factors are those of the weight as it is stored, which `fold lora` reads back.

mod factors;

use std::collections::HashSet;
use std::sync::Mutex;

use pth::DType;
use serde_json::{Map, Value, json};

use super::fold::{LoraConfig, required};
use super::matching::{must_match, record_error};
use super::matrix::Columns;
use super::svd::{Rows, truncate};
use crate::format::adapter::CONFIG_KEY;
use crate::lazy::{LazyEntry, LazyStateDict, LazyTensor, is_convertible};
use crate::plan::args::{Args, At, one_of};
use crate::plan::{Effect, Fault, Operation, Workspace};
use crate::{Error, Pattern};
use factors::{Delta, Factors};

/// What PEFT puts in front of a model's own names.
const PREFIX: &str = "base_model.model.";

#[derive(Debug)]
enum Lora {
    Extract {
        base: At<String>,
        rank: usize,
        alpha: f64,
        keep: Vec<At<Pattern>>,
    },
    Resize {
        rank: usize,
    },
}

pub(crate) fn parse_lora(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    let what = args.word("`extract` or `resize`")?;
    let is_extract = one_of(&what, &[("extract", true), ("resize", false)])?;
    let rank = args
        .option("rank")
        .ok_or_else(|| Fault::new("`rank=` is missing").at(&what.span))?;
    let rank = match rank.value.parse() {
        Ok(number) if number > 0 => number,
        _ => return Err(Fault::new(format!("`{}` is not a rank", rank.value)).at(&rank.span)),
    };
    if !is_extract {
        return Ok(Box::new(Lora::Resize { rank }));
    }
    let base = args
        .option("base")
        .ok_or_else(|| Fault::new("`base=` is missing: the file that training began with").at(&what.span))?;
    let alpha = match args.option("alpha") {
        None => rank as f64,
        Some(text) => match text.value.parse() {
            Ok(alpha) if alpha > 0.0 && f64::is_finite(alpha) => alpha,
            _ => return Err(Fault::new(format!("`{}` is not an alpha", text.value)).at(&text.span)),
        },
    };
    let mut keep = Vec::new();
    if let Some(text) = args.option("keep") {
        for pattern in text.value.split(',') {
            let value = Pattern::parse(pattern).map_err(|error| Fault::new(error.reason).at(&text.span))?;
            let span = text.span.clone();
            keep.push(At { value, span });
        }
    }
    Ok(Box::new(Lora::Extract {
        base,
        rank,
        alpha,
        keep,
    }))
}

impl Operation for Lora {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        match self {
            Lora::Extract {
                base,
                rank,
                alpha,
                keep,
            } => {
                let before = work.source(base)?.clone();
                check_alike(&work.tensors, &before, &base.value)
                    .map_err(|error| Fault::from(error).at(&base.span))?;
                for pattern in keep {
                    must_match(&work.tensors, pattern, false)?;
                }
                let is_kept = |name: &str| keep.iter().any(|pattern| pattern.value.matches(name));
                let (adapter, effect) = extract(&work.tensors, &before, *rank, *alpha, &is_kept)?;
                work.tensors = adapter;
                Ok(effect)
            }
            Lora::Resize { rank } => resize(&mut work.tensors, *rank),
        }
    }
}

/// Every name on both sides, in one shape.
fn check_alike(after: &LazyStateDict, before: &LazyStateDict, base: &str) -> Result<(), Error> {
    let here = "the state dict at hand";
    let missing = |name: &str, has: &str, lacks: &str| Error::MissingInInput {
        name: name.to_owned(),
        has: has.to_owned(),
        lacks: lacks.to_owned(),
    };
    if let Some(name) = before.names().find(|name| !after.contains(name)) {
        return Err(missing(name, base, here));
    }
    for (name, entry) in after.iter() {
        let other = before.get(name).ok_or_else(|| missing(name, here, base))?;
        for (name, entry) in [(name, entry), (name, other)] {
            if entry
                .tensor()
                .is_none_or(|tensor| !is_convertible(tensor.dtype()))
            {
                return Err(record_error(name, entry));
            }
        }
        if entry.shape() != other.shape() {
            return Err(Error::Disagree {
                first: format!("{name}` of `{here}"),
                first_is: format!("{:?}", entry.shape()),
                second: format!("{name}` of `{base}"),
                second_is: format!("{:?}", other.shape()),
            });
        }
    }
    Ok(())
}

fn extract(
    after: &LazyStateDict,
    before: &LazyStateDict,
    rank: usize,
    alpha: f64,
    is_kept: &dyn Fn(&str) -> bool,
) -> Result<(LazyStateDict, Effect), Fault> {
    let mut changes = Vec::with_capacity(after.len());
    for name in after.names() {
        let delta = Delta::of(name, required(after, name)?, required(before, name)?);
        // What training has changed is what the result is made of, so that it must be known now.
        let has_changed = delta.is_there().map_err(|error| error.of_tensor(name))?;
        let module = name.strip_suffix(".weight");
        let module = module.filter(|_| is_matrix(&delta.new) && !is_kept(name));
        let change = match module {
            _ if !has_changed => Change::None,
            Some(module) => Change::Factors(module),
            None => Change::Whole,
        };
        changes.push((name, delta, change));
    }
    let names = changes.iter().map(|(name, _, change)| (*name, *change));
    let saved = Saved::of(&names.collect::<Vec<_>>());
    let mut adapter = LazyStateDict::default();
    let mut ranks = Vec::new();
    let (mut n_whole, mut n_unchanged) = (0, 0);
    for (name, delta, change) in changes {
        let Change::Factors(module) = change else {
            n_unchanged += usize::from(matches!(change, Change::None));
            n_whole += usize::from(matches!(change, Change::Whole));
            if matches!(change, Change::Whole) || saved.covers(name) {
                adapter.insert(saved.name_of(name), LazyEntry::unmarked(delta.new));
            }
            continue;
        };
        let size = delta.size();
        let r = rank.min(size.0).min(size.1);
        let shape = delta.new.shape().to_vec();
        let dtype = match delta.new.dtype() {
            DType::Float64 => DType::Float64,
            // PEFT computes with adapters in float32 whatever the model is.
            _ => DType::Float32,
        };
        let is_swapped = is_embedding(module) && shape.len() == 2;
        let (mut a_shape, mut b_shape) = (vec![r], vec![size.0, r]);
        a_shape.extend_from_slice(&shape[1..]);
        b_shape.resize(shape.len(), 1);
        let ends = if is_swapped {
            (a_shape, b_shape) = (vec![r, size.0], vec![size.1, r]);
            ["lora_embedding_A", "lora_embedding_B"]
        } else {
            ["lora_A.weight", "lora_B.weight"]
        };
        let inputs = vec![delta.new.clone(), delta.old.clone()];
        let tensor_name = name.to_owned();
        let factors = Factors {
            is_swapped,
            scale: r as f64 / alpha,
            ready: Mutex::default(),
            make: Box::new(move |inputs| Delta::of(&tensor_name, &inputs[0], &inputs[1]).approximate(r)),
        };
        let (a, b) = factors.tensors(dtype, &a_shape, &b_shape, inputs, Delta::held_bytes(size, r));
        for (end, factor) in ends.into_iter().zip([a, b]) {
            adapter.insert(format!("{PREFIX}{module}.{end}"), LazyEntry::unmarked(factor));
        }
        ranks.push((module.to_owned(), r));
    }
    if adapter.is_empty() {
        return Err(Fault::new(
            "nothing has changed, of which an adapter could be made",
        ));
    }
    adapter
        .metadata
        .insert(CONFIG_KEY.to_owned(), config(&saved, &ranks, rank, alpha));
    let mut effect = Effect::lossy(format!(
        "{} of rank {rank}, {n_whole} whole, {n_unchanged} unchanged",
        ranks.len()
    ));
    effect.notes = saved.notes();
    Ok((adapter, effect))
}

/// What becomes of a tensor.
#[derive(Debug, Clone, Copy)]
enum Change<'n> {
    None,
    /// Two factors, of that module.
    Factors(&'n str),
    Whole,
}

/// What PEFT's `modules_to_save` can say: modules with all that is in them, and every other module whose name ends so.
struct Saved<'n> {
    modules: HashSet<&'n str>,
    targets: HashSet<&'n str>,
    listed: Vec<&'n str>,
    /// Those that are listed and those whose names end so.
    covered: HashSet<&'n str>,
    /// Whether a module with factors has changed elsewhere: in its bias.
    has_biases: bool,
    /// Parameters of no module, or of one in which others have factors.
    orphans: Vec<&'n str>,
}

impl<'n> Saved<'n> {
    fn of(changes: &[(&'n str, Change<'n>)]) -> Saved<'n> {
        let targets = changes.iter().filter_map(|(_, change)| match change {
            Change::Factors(module) => Some(*module),
            _ => None,
        });
        let mut saved = Saved {
            modules: changes.iter().flat_map(|(name, _)| ancestors(name)).collect(),
            targets: targets.collect(),
            listed: Vec::new(),
            covered: HashSet::new(),
            has_biases: false,
            orphans: Vec::new(),
        };
        let holders: HashSet<&str> = saved
            .targets
            .iter()
            .flat_map(|target| ancestors(target).chain([*target]))
            .collect();
        let whole = changes
            .iter()
            .filter(|(_, change)| matches!(change, Change::Whole));
        for (name, _) in whole {
            match name.rsplit_once('.') {
                Some((module, _)) if saved.targets.contains(module) => saved.has_biases = true,
                Some((module, _)) if saved.covered.contains(module) => {}
                Some((module, _)) => {
                    let alike: Vec<&str> = saved
                        .modules
                        .iter()
                        .copied()
                        .filter(|other| other.ends_with(module))
                        .collect();
                    if alike.iter().any(|other| holders.contains(other)) {
                        saved.orphans.push(name);
                    } else {
                        saved.listed.push(module);
                        saved.covered.extend(alike);
                    }
                }
                None => saved.orphans.push(name),
            }
        }
        saved
    }

    fn covers(&self, name: &str) -> bool {
        ancestors(name).any(|module| self.covered.contains(module))
    }

    /// What the adapter calls a tensor that is in whole. A module with factors is a layer of PEFT's own, with the old one in it.
    fn name_of(&self, name: &str) -> String {
        match name.rsplit_once('.') {
            Some((module, last)) if self.targets.contains(module) => {
                format!("{PREFIX}{module}.base_layer.{last}")
            }
            _ => format!("{PREFIX}{name}"),
        }
    }

    fn notes(&self) -> Vec<String> {
        if self.orphans.is_empty() {
            return Vec::new();
        }
        vec![format!(
            "note: PEFT saves whole modules and will not load what is in none without factors: `{}`",
            self.orphans.join("`, `")
        )]
    }
}

/// The modules that `name` is in.
fn ancestors(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('.').map(|(at, _)| &name[..at])
}

/// What has rows that stand for outputs. Filters of one channel are those of a depthwise convolution, in which no filter shares
/// anything with another.
fn is_matrix(tensor: &LazyTensor) -> bool {
    let shape = tensor.shape();
    let is_depthwise = shape.len() > 2 && shape[1] == 1;
    tensor.dtype().is_float() && shape.len() >= 2 && !is_depthwise
}

/// By its name, as embeddings are commonly called: `embed_tokens`, `word_embeddings`, `wte`, T5's `shared`.
fn is_embedding(module: &str) -> bool {
    let last = module.rsplit('.').next().unwrap_or(module);
    let mut parts = last.split('_');
    matches!(last, "wte" | "wpe" | "shared")
        || last.starts_with("embed_")
        || parts.next_back().is_some_and(|part| part.starts_with("emb"))
}

/// `adapter_config.json`
fn config(saved: &Saved<'_>, ranks: &[(String, usize)], rank: usize, alpha: f64) -> String {
    // A list means every module whose name ends so. Where that would be others too, a regular expression says which.
    let is_tail = |(target, _): &&(String, usize)| {
        let tail = format!(".{target}");
        let mut others = saved.modules.difference(&saved.targets);
        others.any(|module| module.ends_with(&tail))
    };
    let names = ranks.iter().map(|(module, _)| module.as_str());
    let target_modules = match ranks.iter().find(is_tail) {
        None => json!(names.collect::<Vec<_>>()),
        Some(_) => {
            let escaped: Vec<String> = names.map(regex_lite::escape).collect();
            json!(format!("^(?:{})$", escaped.join("|")))
        }
    };
    let other = ranks.iter().filter(|(_, r)| *r != rank);
    let rank_pattern: Map<String, Value> = other.map(|(module, r)| (only(module), json!(r))).collect();
    pretty(&json!({
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": number(alpha),
        "lora_dropout": 0.0,
        "bias": if saved.has_biases { "lora_only" } else { "none" },
        "fan_in_fan_out": false,
        "inference_mode": true,
        "target_modules": target_modules,
        "modules_to_save": if saved.listed.is_empty() { Value::Null } else { json!(saved.listed) },
        "rank_pattern": rank_pattern,
    }))
}

/// A pattern of PEFT's that means that module and no other.
fn only(module: &str) -> String {
    format!("^{}", regex_lite::escape(module))
}

/// Whole where it is, as most alphas are.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        json!(value as i64)
    } else {
        json!(value)
    }
}

fn pretty(config: &Value) -> String {
    let mut text = serde_json::to_string_pretty(config).expect("strings and numbers make JSON");
    text.push('\n');
    text
}

fn resize(tensors: &mut LazyStateDict, rank: usize) -> Result<Effect, Fault> {
    let Some(text) = tensors.metadata.get(CONFIG_KEY) else {
        return Err(Fault::new(
            "the adapter's `adapter_config.json` is not known, which says what its factors are scaled by",
        )
        .hint("open the adapter's folder, or its `adapter_model.safetensors` beside that file"));
    };
    let not_config = |error| Fault::new(format!("`adapter_config.json`: {error}"));
    let config: LoraConfig = serde_json::from_str(text).map_err(not_config)?;
    let mut all: Map<String, Value> = serde_json::from_str(text).map_err(not_config)?;
    if config.use_dora {
        return Err(Fault::new("adapters with DoRA magnitudes are not resized"));
    }
    let old = tensors.clone();
    let mut resized = tensors.emptied();
    let mut rank_pattern = Map::new();
    let (mut n_smaller, mut n_factors) = (0, 0);
    for (name, entry) in old.iter() {
        let ends = [
            (".lora_A.weight", ".lora_B.weight"),
            (".lora_embedding_A", ".lora_embedding_B"),
        ];
        let is_b = |(a, b): &(&str, &str)| {
            name.strip_suffix(b)
                .is_some_and(|module| old.contains(&format!("{module}{a}")))
        };
        if ends.iter().any(is_b) {
            continue;
        }
        let factor = ends.iter().find_map(|(a, b)| Some((name.strip_suffix(a)?, *b)));
        let Some((module, b_end)) = factor else {
            resized.insert(name, entry.clone());
            continue;
        };
        let b_name = format!("{module}{b_end}");
        let (a, b) = (required(&old, name)?, required(&old, &b_name)?);
        let (n_out, r) = match (a.shape(), b.shape()) {
            ([r, ..], [out, width, rest @ ..]) if r == width && rest.iter().all(|size| *size == 1) => {
                (*out, *r)
            }
            (a, b) => {
                return Err(Fault::new(format!(
                    "`{name}` {a:?} and `{b_name}` {b:?} are no factors of one matrix"
                )));
            }
        };
        n_factors += 1;
        let model_name = module.strip_prefix(PREFIX).unwrap_or(module);
        let new_rank = rank.min(r);
        if new_rank != rank {
            rank_pattern.insert(only(model_name), json!(new_rank));
        }
        // Alphas stay, so that a lower rank alone would raise the factor.
        let scale = config.scale(model_name, None) / config.scale(model_name, Some(new_rank));
        if new_rank == r && scale == 1.0 {
            resized.insert(name, entry.clone());
            resized.insert(
                b_name.clone(),
                old.get(&b_name).expect("a factor that is there").clone(),
            );
            continue;
        }
        n_smaller += 1;
        let n_in = a.numel().checked_div(r).unwrap_or(0);
        let factors = Factors {
            is_swapped: false,
            scale,
            ready: Mutex::default(),
            make: Box::new(move |inputs| {
                let right = Columns {
                    n_rows: n_in,
                    n_cols: r,
                    values: inputs[0].to_f64()?,
                };
                let left = Columns::of_rows(n_out, r, &inputs[1].to_f64()?);
                Ok(truncate(left, right, new_rank))
            }),
        };
        let (mut a_shape, mut b_shape) = (a.shape().to_vec(), b.shape().to_vec());
        (a_shape[0], b_shape[1]) = (new_rank, new_rank);
        let inputs = vec![a.clone(), b.clone()];
        let held = (n_in + n_out) * r * 32;
        let (a, b) = factors.tensors(a.dtype(), &a_shape, &b_shape, inputs, held);
        resized.insert(name, entry.with_tensor(a));
        resized.insert(b_name, entry.with_tensor(b));
    }
    if n_factors == 0 {
        return Err(Fault::new(
            "no name ends in `.lora_A.weight` or `.lora_embedding_A`: this is no adapter of PEFT's",
        ));
    }
    all.insert("r".to_owned(), json!(rank));
    all.insert("rank_pattern".to_owned(), Value::Object(rank_pattern));
    resized
        .metadata
        .insert(CONFIG_KEY.to_owned(), pretty(&Value::Object(all)));
    *tensors = resized;
    Ok(Effect::lossy(format!(
        "{n_smaller} of {n_factors} to rank {rank}"
    )))
}

#[cfg(test)]
mod tests;
