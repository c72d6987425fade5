//! `fold`: weights that a network applies one after the other, as one.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use pth::DType;

use super::init::fresh;
use super::matching::{no_match, target_name};
use crate::Error;
use crate::format::adapter;
use crate::lazy::{LazyEntry, LazyStateDict, LazyTensor, RowWise};
use crate::pattern::Target;
use crate::plan::args::{Args, At, Pair, Patterns};
use crate::plan::{Effect, Fault, Operation, Workspace};

#[derive(Debug)]
enum Fold {
    /// `fold bn bn{n} -> conv{n}`, as `torch.nn.utils.fusion.fuse_conv_bn_weights`.
    BatchNorm { pairs: Vec<Pair>, eps: f64 },
    /// `fold weight_norm **`, as `torch.nn.utils.remove_weight_norm`.
    WeightNorm { patterns: Patterns },
    /// `fold layerscale blocks.{i}.ls1.gamma -> blocks.{i}.attn.proj`
    LayerScale { pairs: Vec<Pair> },
    /// `fold lora FOLDER`, as peft's `merge_and_unload`.
    Lora { folder: At<String> },
}

pub(crate) fn parse_fold(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    let what = args.word("`bn`, `weight_norm`, `layerscale` or `lora`")?;
    let kinds = [("bn", 0), ("weight_norm", 1), ("layerscale", 2), ("lora", 3)];
    Ok(Box::new(match crate::plan::args::one_of(&what, &kinds)? {
        0 => Fold::BatchNorm {
            eps: args.parsed("eps", "a number")?.unwrap_or(1e-5),
            pairs: args.pairs(Target::One)?,
        },
        1 => Fold::WeightNorm {
            patterns: args.patterns(0)?,
        },
        2 => Fold::LayerScale {
            pairs: args.pairs(Target::One)?,
        },
        _ => Fold::Lora {
            folder: args.word("an adapter's folder")?,
        },
    }))
}

impl Operation for Fold {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let n = match self {
            Fold::BatchNorm { pairs, eps } => batch_norm(&mut work.tensors, pairs, *eps)?,
            Fold::WeightNorm { patterns } => weight_norm(&mut work.tensors, patterns)?,
            Fold::LayerScale { pairs } => layer_scale(&mut work.tensors, pairs)?,
            Fold::Lora { folder } => lora(work, folder)?,
        };
        Ok(Effect::lossy(format!("{n} folded")))
    }
}

/// Names of all modules that have tensors of their own, in order.
fn modules(tensors: &LazyStateDict) -> Vec<String> {
    let mut seen = HashSet::new();
    let module = |name: &str| name.rsplit_once('.').map(|(module, _)| module.to_owned());
    tensors
        .names()
        .filter_map(module)
        .filter(|module| seen.insert(module.clone()))
        .collect()
}

/// `(module, target)` for each module that a pair matches and that `is_one` accepts.
fn module_pairs(
    tensors: &LazyStateDict,
    pairs: &[Pair],
    candidates: Vec<String>,
) -> Result<Vec<(String, String)>, Fault> {
    let mut found = Vec::new();
    for pair in pairs {
        let before = found.len();
        for name in &candidates {
            if let Some(captures) = pair.source.value.captures(name) {
                found.push((name.clone(), target_name(pair, name, &captures, 0)?));
            }
        }
        if found.len() == before {
            return Err(no_match(tensors, &pair.source));
        }
    }
    Ok(found)
}

pub(super) fn required<'t>(tensors: &'t LazyStateDict, name: &str) -> Result<&'t LazyTensor, Fault> {
    let rule = || {
        Fault::from(Error::NoMatch {
            rule: format!("is `{name}`"),
        })
    };
    tensors.tensor(name).ok_or_else(rule)
}

/// Row i of the first input times element i of the second.
struct ScaleRows {
    row_len: usize,
}

impl RowWise for ScaleRows {
    fn apply(&self, first: usize, rows: &mut [f64], others: &[Vec<f64>]) -> Result<(), Error> {
        for (row, scale) in rows.chunks_mut(self.row_len).zip(&others[0][first..]) {
            row.iter_mut().for_each(|value| *value *= scale);
        }
        Ok(())
    }
}

fn scale_rows(weight: &LazyTensor, scale: LazyTensor) -> LazyTensor {
    let row_len = weight.shape()[1..].iter().product::<usize>().max(1);
    LazyTensor::row_wise(vec![weight.clone(), scale], Arc::new(ScaleRows { row_len }))
}

fn check_rows(name: &str, weight: &LazyTensor, n: usize, of: &str) -> Result<(), Fault> {
    if weight.shape().first() == Some(&n) && weight.shape().len() >= 2 {
        return Ok(());
    }
    Err(Fault::new(format!(
        "`{name}` {:?} has not the {n} outputs that `{of}` has",
        weight.shape()
    )))
}

fn batch_norm(tensors: &mut LazyStateDict, pairs: &[Pair], eps: f64) -> Result<usize, Fault> {
    let is_norm = |module: &String| tensors.contains(&format!("{module}.running_var"));
    let candidates = modules(tensors).into_iter().filter(is_norm).collect();
    let found = module_pairs(tensors, pairs, candidates)?;
    for (norm, conv) in &found {
        let weight_name = format!("{conv}.weight");
        let weight = required(tensors, &weight_name)?.clone();
        let (mean, var) = (
            required(tensors, &format!("{norm}.running_mean"))?.clone(),
            required(tensors, &format!("{norm}.running_var"))?.clone(),
        );
        let n = var.numel();
        check_rows(&weight_name, &weight, n, norm)?;
        let or = |name: String, value: f64| {
            let there = tensors.tensor(&name).cloned();
            there.unwrap_or_else(|| LazyTensor::filled(DType::Float32, &[n], value))
        };
        let (gamma, beta) = (or(format!("{norm}.weight"), 1.0), or(format!("{norm}.bias"), 0.0));
        let old_bias = or(format!("{conv}.bias"), 0.0);
        for part in [&mean, &var, &gamma, &beta, &old_bias] {
            if part.numel() != n {
                return Err(Fault::new(format!(
                    "`{norm}` and `{conv}` do not fit: {:?} beside {n} outputs",
                    part.shape()
                )));
            }
        }
        let scale = LazyTensor::computed(DType::Float64, &[n], vec![gamma, var], move |inputs| {
            let pairs = inputs[0].iter().zip(&inputs[1]);
            Ok(pairs.map(|(gamma, var)| gamma / (var + eps).sqrt()).collect())
        });
        let inputs = vec![old_bias, mean, scale.clone(), beta];
        let bias = LazyTensor::computed(weight.dtype(), &[n], inputs, |inputs| {
            let (bias, mean, scale, beta) = (&inputs[0], &inputs[1], &inputs[2], &inputs[3]);
            Ok((0..bias.len())
                .map(|i| (bias[i] - mean[i]) * scale[i] + beta[i])
                .collect())
        });
        let folded = scale_rows(&weight, scale);
        replace(tensors, &weight_name, folded);
        put_after(tensors, &weight_name, &format!("{conv}.bias"), bias)?;
        let prefix = format!("{norm}.");
        tensors.retain(|name, _| !name.starts_with(&prefix));
    }
    Ok(found.len())
}

fn replace(tensors: &mut LazyStateDict, name: &str, tensor: LazyTensor) {
    tensors.replace_tensor(name, &tensor);
}

/// Replaces the entry called `name`, or puts it behind `after`, with its marks.
fn put_after(tensors: &mut LazyStateDict, after: &str, name: &str, tensor: LazyTensor) -> Result<(), Fault> {
    if tensors.contains(name) {
        replace(tensors, name, tensor);
        return Ok(());
    }
    let new = match tensors.get(after) {
        Some(entry) => entry.with_tensor(tensor),
        None => fresh(tensors, name, tensor),
    };
    let mut all: Vec<(String, String, LazyEntry)> = Vec::with_capacity(tensors.len() + 1);
    for (old, entry) in tensors.iter() {
        all.push((old.to_owned(), old.to_owned(), entry.clone()));
        if old == after {
            all.push((name.to_owned(), name.to_owned(), new.clone()));
        }
    }
    tensors.replace_entries(all)?;
    Ok(())
}

/// Row v of the first input to g v / |v|, with element g of the second.
struct NormRows {
    row_len: usize,
}

impl RowWise for NormRows {
    fn apply(&self, first: usize, rows: &mut [f64], others: &[Vec<f64>]) -> Result<(), Error> {
        for (row, g) in rows.chunks_mut(self.row_len).zip(&others[0][first..]) {
            let norm = row.iter().map(|value| value * value).sum::<f64>().sqrt();
            row.iter_mut().for_each(|value| *value *= g / norm);
        }
        Ok(())
    }
}

/// g v / |v|, with the norm over the dimensions in which g has one element: all but one for `weight_norm(dim=…)`, all for `dim=None`.
fn normed(v: &LazyTensor, g: &LazyTensor) -> Option<LazyTensor> {
    let shape = v.shape();
    let kept: Vec<usize> = match g.shape() {
        [] => Vec::new(),
        sizes if sizes.len() == shape.len() => (0..shape.len()).filter(|&dim| sizes[dim] != 1).collect(),
        _ => return None,
    };
    if kept.iter().any(|&dim| g.shape()[dim] != shape[dim]) {
        return None;
    }
    if g.numel() == shape.first().copied().unwrap_or(1) && kept.iter().all(|&dim| dim == 0) {
        let row_len = shape
            .get(1..)
            .unwrap_or_default()
            .iter()
            .product::<usize>()
            .max(1);
        return Some(LazyTensor::row_wise(
            vec![v.clone(), g.clone()],
            Arc::new(NormRows { row_len }),
        ));
    }
    // Element i of v belongs to one element of g: that of its indices in the kept dimensions.
    let (sizes, kept) = (shape.to_vec(), kept);
    let owner = move |mut i: usize| {
        let (mut at, mut step) = (0, 1);
        for dim in (0..sizes.len()).rev() {
            if kept.contains(&dim) {
                at += i % sizes[dim] * step;
                step *= sizes[dim];
            }
            i /= sizes[dim];
        }
        at
    };
    Some(LazyTensor::computed(
        v.dtype(),
        shape,
        vec![v.clone(), g.clone()],
        move |inputs| {
            let (v, g) = (&inputs[0], &inputs[1]);
            let mut squares = vec![0.0; g.len()];
            v.iter()
                .enumerate()
                .for_each(|(i, value)| squares[owner(i)] += value * value);
            Ok(v.iter()
                .enumerate()
                .map(|(i, value)| value * g[owner(i)] / squares[owner(i)].sqrt())
                .collect())
        },
    ))
}

fn weight_norm(tensors: &mut LazyStateDict, patterns: &Patterns) -> Result<usize, Fault> {
    // (module, name of g, name of v), of the old and of the new kind.
    let kinds = [
        ("weight_g", "weight_v"),
        (
            "parametrizations.weight.original0",
            "parametrizations.weight.original1",
        ),
    ];
    let mut found = Vec::new();
    for name in tensors.names() {
        for (g, v) in kinds {
            let module = name
                .strip_suffix(g)
                .filter(|module| module.is_empty() || module.ends_with('.'));
            if let Some(module) = module.filter(|module| tensors.contains(&format!("{module}{v}"))) {
                found.push((module.to_owned(), name.to_owned(), format!("{module}{v}")));
            }
        }
    }
    let is_meant = |module: &str| {
        let module = module.trim_end_matches('.');
        let is_in = |list: &[At<crate::Pattern>]| list.iter().any(|pattern| pattern.value.matches(module));
        is_in(&patterns.any) && !is_in(&patterns.except)
    };
    found.retain(|(module, ..)| is_meant(module));
    if found.is_empty() {
        return Err(
            Fault::new("no module that matches has `weight_g` and `weight_v`").at(&patterns.any[0].span)
        );
    }
    for (module, g_name, v_name) in &found {
        let (g, v) = (
            required(tensors, g_name)?.clone(),
            required(tensors, v_name)?.clone(),
        );
        let weight = normed(&v, &g).ok_or_else(|| {
            Fault::new(format!(
                "`{g_name}` {:?} is no norm of `{v_name}` {:?}",
                g.shape(),
                v.shape()
            ))
        })?;
        let target = format!("{module}weight");
        put_after(tensors, v_name, &target, weight)?;
        tensors.retain(|name, _| name != g_name && name != v_name);
    }
    Ok(found.len())
}

fn layer_scale(tensors: &mut LazyStateDict, pairs: &[Pair]) -> Result<usize, Fault> {
    let candidates = tensors.names().map(str::to_owned).collect();
    let found = module_pairs(tensors, pairs, candidates)?;
    for (gamma_name, linear) in &found {
        let gamma = required(tensors, gamma_name)?.clone();
        let (weight_name, bias_name) = (format!("{linear}.weight"), format!("{linear}.bias"));
        let weight = required(tensors, &weight_name)?.clone();
        check_rows(&weight_name, &weight, gamma.numel(), gamma_name)?;
        replace(tensors, &weight_name, scale_rows(&weight, gamma.clone()));
        if let Some(bias) = tensors.tensor(&bias_name).cloned() {
            if bias.numel() != gamma.numel() {
                return Err(Fault::new(format!(
                    "`{bias_name}` {:?} does not fit `{gamma_name}`",
                    bias.shape()
                )));
            }
            let folded =
                LazyTensor::computed(bias.dtype(), bias.shape(), vec![bias.clone(), gamma], |inputs| {
                    Ok(inputs[0]
                        .iter()
                        .zip(&inputs[1])
                        .map(|(bias, gamma)| bias * gamma)
                        .collect())
                });
            replace(tensors, &bias_name, folded);
        }
        tensors.retain(|name, _| name != gamma_name);
    }
    Ok(found.len())
}

/// Row i of the first input plus `scale` times row i of B A, which are the other inputs.
struct AddLowRank {
    row_len: usize,
    rank: usize,
    scale: f64,
    /// Whether rows of the weight are columns of B A (`fan_in_fan_out`, embeddings).
    is_transposed: bool,
    n_rows: usize,
}

impl RowWise for AddLowRank {
    fn apply(&self, first: usize, rows: &mut [f64], others: &[Vec<f64>]) -> Result<(), Error> {
        // A is [rank, inputs], B is [outputs, rank].
        let (a, b) = (&others[0], &others[1]);
        for (i, row) in rows.chunks_mut(self.row_len).enumerate() {
            let i = first + i;
            for r in 0..self.rank {
                if self.is_transposed {
                    let factor = self.scale * a[r * self.n_rows + i];
                    row.iter_mut()
                        .enumerate()
                        .for_each(|(j, value)| *value += factor * b[j * self.rank + r]);
                } else {
                    let factor = self.scale * b[i * self.rank + r];
                    let a = &a[r * self.row_len..][..self.row_len];
                    row.iter_mut().zip(a).for_each(|(value, a)| *value += factor * a);
                }
            }
        }
        Ok(())
    }
}

/// What `adapter_config.json` says of scales.
#[derive(serde::Deserialize)]
pub(super) struct LoraConfig {
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    pub(super) use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    rank_pattern: std::collections::BTreeMap<String, usize>,
    #[serde(default)]
    alpha_pattern: std::collections::BTreeMap<String, f64>,
}

impl LoraConfig {
    /// The value for a module: peft's patterns match a name's end behind a dot.
    fn of<T: Copy>(patterns: &std::collections::BTreeMap<String, T>, module: &str, default: T) -> T {
        let matches = |pattern: &str| {
            regex_lite::Regex::new(&format!(r"^(.*\.)?({pattern})$"))
                .is_ok_and(|regex| regex.is_match(module))
        };
        patterns
            .iter()
            .find(|(pattern, _)| matches(pattern))
            .map_or(default, |(_, value)| *value)
    }

    /// The factor of B A in a module, of that rank or of the one that is said of it.
    pub(super) fn scale(&self, module: &str, rank: Option<usize>) -> f64 {
        let r = rank.unwrap_or_else(|| LoraConfig::of(&self.rank_pattern, module, self.r)) as f64;
        let alpha = LoraConfig::of(&self.alpha_pattern, module, self.lora_alpha);
        if self.use_rslora {
            alpha / r.sqrt()
        } else {
            alpha / r
        }
    }
}

fn lora(work: &mut Workspace, folder: &At<String>) -> Result<usize, Fault> {
    let path = Path::new(&folder.value);
    let config_path = path.join(adapter::CONFIG_FILE);
    let read = pth::FileError::at("read", &config_path);
    let text = std::fs::read(&config_path)
        .map_err(|error| Fault::from(Error::File(read(error))).at(&folder.span))?;
    let config: LoraConfig = serde_json::from_slice(&text)
        .map_err(|error| Fault::new(format!("`{}`: {error}", config_path.display())).at(&folder.span))?;
    if config.use_dora {
        return Err(Fault::new("adapters with DoRA magnitudes are not folded").at(&folder.span));
    }
    let file = adapter::MODEL_FILES.map(|name| path.join(name));
    let file = file.iter().find(|path| path.is_file()).unwrap_or(&file[0]);
    let at = At {
        value: file.to_string_lossy().into_owned(),
        span: folder.span.clone(),
    };
    let adapter = work.source(&at)?.clone();
    let base_name = |name: &str| {
        let name = name.strip_prefix("base_model.model.").unwrap_or(name);
        // Biases that were trained beside factors are those of the layer that PEFT's own has in it.
        name.replace(".base_layer.", ".")
    };
    let mut n_folded = 0;
    let mut used = HashSet::new();
    for (name, _) in adapter.iter() {
        let (module, b_name, is_embedding) = if let Some(module) = name.strip_suffix(".lora_A.weight") {
            (module, format!("{module}.lora_B.weight"), false)
        } else if let Some(module) = name.strip_suffix(".lora_embedding_A") {
            (module, format!("{module}.lora_embedding_B"), true)
        } else {
            continue;
        };
        let (a, b) = (
            required(&adapter, name)?.clone(),
            required(&adapter, &b_name)?.clone(),
        );
        used.extend([name.to_owned(), b_name.clone()]);
        let target = format!("{}.weight", base_name(module));
        let weight = required(&work.tensors, &target)
            .map_err(|fault| fault.at(&folder.span))?
            .clone();
        let rank = a.shape().first().copied().unwrap_or(0);
        let (n_rows, row_len) = match weight.shape() {
            [rows, rest @ ..] => (*rows, rest.iter().product::<usize>()),
            [] => (0, 0),
        };
        let is_transposed = is_embedding || config.fan_in_fan_out;
        let (inputs, outputs) = if is_transposed {
            (n_rows, row_len)
        } else {
            (row_len, n_rows)
        };
        if rank == 0 || a.numel() != rank * inputs || b.numel() != outputs * rank {
            let shapes = format!(
                "{:?} and {:?} do not fit `{target}` {:?}",
                a.shape(),
                b.shape(),
                weight.shape()
            );
            return Err(Fault::new(format!("the adapter's factors {shapes}")).at(&folder.span));
        }
        let module = base_name(module);
        let scale = config.scale(&module, None);
        let rows = AddLowRank {
            row_len,
            rank,
            scale,
            is_transposed,
            n_rows,
        };
        replace(
            &mut work.tensors,
            &target,
            LazyTensor::row_wise(vec![weight, a, b], Arc::new(rows)),
        );
        n_folded += 1;
    }
    // `modules_to_save` are whole.
    for (name, entry) in adapter.iter().filter(|(name, _)| !used.contains(*name)) {
        let target = base_name(name);
        match work.tensors.get(&target) {
            Some(old) if old.shape() == entry.shape() => {
                let tensor = entry.tensor().cloned();
                if let Some(tensor) = tensor {
                    replace(&mut work.tensors, &target, tensor);
                }
                n_folded += 1;
            }
            _ => {
                return Err(
                    Fault::new(format!("the adapter's `{name}` has no place in the state dict"))
                        .at(&folder.span),
                );
            }
        }
    }
    Ok(n_folded)
}
