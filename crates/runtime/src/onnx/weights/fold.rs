//! Batch normalisations that an exporter folded into the convolution in front of them.
//!
//! Both exporters do so unless they are told not to: what is then in the graph is `w·γ/√(σ²+ε)` and
//! `(b-μ)·γ/√(σ²+ε)+β`, and the normalisation is gone, its epsilon with it. The tracing exporter leaves the
//! normalisation's name and arguments in the node's metadata, and the kernel's name although its values are others. The
//! one for TorchScript leaves the convolution's path only; there the normalisation is the one whose name follows
//! (`conv1` and `bn1`, `0` and `1`), or that comes next in the checkpoint.

use std::collections::{HashMap, HashSet};

use surgery::LazyTensor;

use super::module_path::last_number;
use super::names::{Names, child, parent};
use super::resolve::{Convolution, Place, Use, batch_norms, convolutions};
use crate::error::Error;
use crate::onnx::graph::Model;

/// A convolution and the batch normalisation that was folded into it, by module.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct BatchNorm {
    pub(super) conv: String,
    pub(super) norm: String,
    pub(super) eps: f64,
    /// Whether the graph told epsilon.
    pub(super) is_eps_known: bool,
}

/// Kernels and biases that come from a convolution and a normalisation together.
#[derive(Debug, Default)]
pub(super) struct Folded {
    /// Uses and where they get their values from.
    pub(super) places: Vec<(usize, Place)>,
    /// Convolutions without a bias that get one: the node, and the use of its kernel. The tracing exporter leaves a bias
    /// out that was zero, as that of a normalisation is before any training.
    pub(super) added: Vec<(usize, usize, Place)>,
}

/// Finds what was folded.
pub(super) fn find(
    model: &Model,
    uses: &[Use<'_>],
    places: &[Place],
    names: &Names<'_>,
    default_eps: f64,
) -> Result<Folded, String> {
    let mut taken = batch_norms(model, uses, places);
    let mut found = Folded::default();
    let mut untold: Vec<(Convolution<'_>, String)> = Vec::new();
    for conv in convolutions(model, uses) {
        let Some(module) = module_of(&conv, places, names) else {
            continue;
        };
        let n_channels = conv.kernel.shape.first().copied().unwrap_or(0);
        let scope = conv
            .modules
            .iter()
            .find(|scope| names.is_batch_norm(scope, n_channels));
        match scope.filter(|scope| **scope != module && !taken.contains(*scope)) {
            Some(norm) => {
                let eps = last_number(model, &model.nodes[conv.node_idx]);
                taken.insert(norm.clone());
                put(&mut found, &conv, module, norm.clone(), eps, default_eps);
            }
            None => {
                // A bias that the checkpoint has by name was not made up by folding.
                let bias = conv.bias_idx.map(|bias_idx| uses[bias_idx].operand);
                if bias.is_some_and(|bias| names.get(bias).is_none()) {
                    untold.push((conv, module));
                }
            }
        }
    }
    let norms = partners(&untold, &taken, names)?;
    for ((conv, module), norm) in untold.iter().zip(norms) {
        if let Some(norm) = norm {
            put(&mut found, conv, module.clone(), norm, None, default_eps);
        }
    }
    Ok(found)
}

fn put(
    found: &mut Folded,
    conv: &Convolution<'_>,
    module: String,
    norm: String,
    eps: Option<f64>,
    default_eps: f64,
) {
    let folded = BatchNorm {
        conv: module,
        norm,
        eps: eps.unwrap_or(default_eps),
        is_eps_known: eps.is_some(),
    };
    found
        .places
        .push((conv.kernel_idx, Place::FoldedKernel(folded.clone())));
    let bias = Place::FoldedBias(folded);
    match conv.bias_idx {
        Some(bias_idx) => found.places.push((bias_idx, bias)),
        None => found.added.push((conv.node_idx, conv.kernel_idx, bias)),
    }
}

/// The module whose kernel it is: by the kernel's name, or by the node's path.
fn module_of(conv: &Convolution<'_>, places: &[Place], names: &Names<'_>) -> Option<String> {
    if let Place::Same(name) = &places[conv.kernel_idx] {
        return Some(parent(name).to_owned());
    }
    let is_kernel =
        |module: &&String| names.shape(&child(module, "weight")) == Some(conv.kernel.shape.as_slice());
    conv.modules.iter().find(is_kernel).cloned()
}

/// The normalisation behind each convolution, where there is one that nothing else uses.
fn partners(
    convs: &[(Convolution<'_>, String)],
    taken: &HashSet<String>,
    names: &Names<'_>,
) -> Result<Vec<Option<String>>, String> {
    let numbered = by_number(convs, taken, names);
    let mut found: Vec<Option<String>> = Vec::with_capacity(convs.len());
    let mut used: HashMap<String, &str> = HashMap::new();
    for (idx, (conv, module)) in convs.iter().enumerate() {
        let n_channels = conv.kernel.shape.first().copied().unwrap_or(0);
        let is_free = |norm: &str| names.is_batch_norm(norm, n_channels) && !taken.contains(norm);
        let named: Vec<String> = names_behind(module)
            .into_iter()
            .filter(|norm| is_free(norm))
            .collect();
        let next = names.module_behind(module).filter(|norm| is_free(norm));
        let norm = match (named.as_slice(), next) {
            ([name], None) => Some(name.clone()),
            ([name], Some(next)) if name == next => Some(name.clone()),
            ([], Some(next)) => Some(next.to_owned()),
            ([], None) => numbered[idx].clone(),
            (several, next) => {
                let mut all: Vec<&str> = several.iter().map(String::as_str).chain(next).collect();
                all.dedup();
                return Err(format!(
                    "which batch normalisation was folded into `{module}` cannot be told: {}",
                    all.iter()
                        .map(|name| format!("`{name}`"))
                        .collect::<Vec<_>>()
                        .join(" or ")
                ));
            }
        };
        if let Some(norm) = &norm
            && let Some(other) = used.insert(norm.clone(), module)
            && other != module
        {
            return Err(format!(
                "`{norm}` would be folded into both `{other}` and `{module}`"
            ));
        }
        found.push(norm);
    }
    Ok(found)
}

/// Names by which a normalisation follows a convolution.
fn names_behind(conv: &str) -> Vec<String> {
    let (module, leaf) = (parent(conv), conv.rsplit('.').next().unwrap_or(conv));
    if let Ok(number) = leaf.parse::<u64>() {
        return vec![child(module, &(number + 1).to_string())];
    }
    ["bn", "norm", "batchnorm", "batch_norm"]
        .into_iter()
        .filter(|_| leaf.contains("conv"))
        .map(|norm| child(module, &leaf.replacen("conv", norm, 1)))
        .collect()
}

/// Where a module has as many free numbered normalisations (`bn1`, `bn2`) as convolutions: in the order they run.
fn by_number(
    convs: &[(Convolution<'_>, String)],
    taken: &HashSet<String>,
    names: &Names<'_>,
) -> Vec<Option<String>> {
    let mut found = vec![None; convs.len()];
    let mut of_module: HashMap<&str, Vec<usize>> = HashMap::new();
    for (idx, (_, module)) in convs.iter().enumerate() {
        of_module.entry(parent(module)).or_default().push(idx);
    }
    for (module, idxs) in of_module {
        let mut norms: Vec<(u64, &str, &str)> = names
            .iter()
            .filter_map(|(name, _)| {
                let norm = name.strip_suffix(".running_mean")?;
                let leaf = norm.rsplit('.').next()?;
                let stem = leaf.trim_end_matches(|c: char| c.is_ascii_digit());
                let number = leaf[stem.len()..].parse().ok()?;
                (parent(norm) == module && !taken.contains(norm)).then_some((number, stem, norm))
            })
            .collect();
        norms.sort_unstable();
        let one_stem = norms
            .windows(2)
            .all(|pair| pair[0].1 == pair[1].1 && pair[0].0 != pair[1].0);
        let fit = |(idx, norm): (&usize, &(u64, &str, &str))| {
            let n_channels = convs[*idx].0.kernel.shape.first().copied().unwrap_or(0);
            names.is_batch_norm(norm.2, n_channels)
        };
        if one_stem && norms.len() == idxs.len() && idxs.iter().zip(&norms).all(fit) {
            for (idx, norm) in idxs.into_iter().zip(norms) {
                found[idx] = Some(norm.2.to_owned());
            }
        }
    }
    found
}

impl BatchNorm {
    /// Names of the checkpoint's tensors that it is made of.
    pub(super) fn parts(&self, names: &Names<'_>) -> Vec<String> {
        let of_conv = ["weight", "bias"].map(|leaf| child(&self.conv, leaf));
        let of_norm = ["weight", "bias", "running_mean", "running_var"].map(|leaf| child(&self.norm, leaf));
        let all = of_conv.into_iter().chain(of_norm);
        all.filter(|name| names.get(name).is_some()).collect()
    }

    /// `γ/√(σ²+ε)` per channel.
    fn scale(&self, names: &Names<'_>, n_channels: usize) -> Result<Vec<f64>, Error> {
        let gamma = self.vector(names, &self.norm, "weight", n_channels, 1.0)?;
        let var = self.vector(names, &self.norm, "running_var", n_channels, 1.0)?;
        Ok(gamma
            .iter()
            .zip(&var)
            .map(|(gamma, var)| gamma / (var + self.eps).sqrt())
            .collect())
    }

    /// The kernel, as `torch.nn.utils.fusion.fuse_conv_bn_weights` would make it in float64.
    pub(super) fn kernel(&self, names: &Names<'_>) -> Result<Vec<f64>, Error> {
        let Some(weight) = names.tensor(&child(&self.conv, "weight")) else {
            return Ok(Vec::new());
        };
        let mut kernel = to_f64(weight)?;
        let n_channels = weight.shape().first().copied().unwrap_or(0);
        let per_channel = kernel.len() / n_channels.max(1);
        let scale = self.scale(names, n_channels)?;
        for (channel, scale) in kernel.chunks_mut(per_channel.max(1)).zip(scale) {
            channel.iter_mut().for_each(|value| *value *= scale);
        }
        Ok(kernel)
    }

    /// What is added per channel.
    pub(super) fn bias(&self, names: &Names<'_>, n_channels: usize) -> Result<Vec<f64>, Error> {
        let scale = self.scale(names, n_channels)?;
        let bias = self.vector(names, &self.conv, "bias", n_channels, 0.0)?;
        let mean = self.vector(names, &self.norm, "running_mean", n_channels, 0.0)?;
        let beta = self.vector(names, &self.norm, "bias", n_channels, 0.0)?;
        let channels = bias.iter().zip(&mean).zip(&scale).zip(&beta);
        Ok(channels
            .map(|(((bias, mean), scale), beta)| (bias - mean) * scale + beta)
            .collect())
    }

    /// A tensor of one value per channel; `absent` for each where the module has none.
    fn vector(
        &self,
        names: &Names<'_>,
        module: &str,
        leaf: &str,
        n_channels: usize,
        absent: f64,
    ) -> Result<Vec<f64>, Error> {
        match names.tensor(&child(module, leaf)) {
            Some(tensor) if tensor.shape() == [n_channels] => to_f64(tensor),
            _ => Ok(vec![absent; n_channels]),
        }
    }
}

pub(super) fn to_f64(tensor: &LazyTensor) -> Result<Vec<f64>, Error> {
    let bytes = tensor.cast(pth::DType::Float64).to_bytes()?;
    Ok(bytes
        .chunks_exact(8)
        .map(|bytes| f64::from_le_bytes(bytes.try_into().expect("eight bytes")))
        .collect())
}
