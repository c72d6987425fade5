//! What a pickled `nn.Module` does not say itself, because its class says it.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use crate::error::TensorFault;
use crate::objects;
use crate::pickle::{Arena, NodeId};

/// torchvision's classes of version 2.
const TORCHVISION: [&str; 10] = [
    "_DenseBlock",
    "FeaturePyramidNetwork",
    "IntermediateLayerGetter",
    "MLPBlock",
    "MNASNet",
    "MaskRCNNHeads",
    "QuantizableSqueezeExcitation",
    "RPNHead",
    "RetinaNetClassificationHead",
    "RetinaNetRegressionHead",
];

/// `_version` of torch's and torchvision's classes, where it is not 1. [torch/nn/modules/batchnorm.py, torch/ao/nn]
pub(crate) fn version(arena: &Arena<'_>, node: NodeId) -> i64 {
    let Some((module, class)) = arena.callee_name(node) else {
        return 1;
    };
    if module.starts_with("torchvision.") && TORCHVISION.contains(&class) {
        return 2;
    }
    if !module.starts_with("torch.") {
        return 1;
    }
    let is_quantized = module.contains("quantized");
    let is_dynamic = module.contains("dynamic");
    match class {
        "BatchNorm1d" | "BatchNorm2d" | "BatchNorm3d" | "SyncBatchNorm" if !is_quantized => 2,
        "LazyBatchNorm1d" | "LazyBatchNorm2d" | "LazyBatchNorm3d" => 2,
        // Without running statistics of its own making it keeps the first version.
        "InstanceNorm1d" | "InstanceNorm2d" | "InstanceNorm3d" if !is_quantized => 2,
        "Linear" if is_quantized && is_dynamic => 4,
        "Linear" | "LinearPackedParams" if is_quantized => 3,
        "LSTM" | "GRU" | "RNNCell" | "LSTMCell" | "GRUCell" | "PackedParameter"
            if is_quantized && is_dynamic =>
        {
            2
        }
        _ => 1,
    }
}

/// State dict hooks are code of the class: what they would rename or leave out cannot be known.
pub(crate) fn caveat(arena: &Arena<'_>, node: NodeId) -> Option<TensorFault> {
    let attributes = objects::attributes(arena, node)?;
    let hooks = objects::get(arena, &attributes, "_state_dict_hooks")?;
    let has_hooks = objects::mapping(arena, hooks).is_some_and(|hooks| !hooks.is_empty());
    has_hooks.then(|| {
        TensorFault::Unsupported(
            "hooks of its class change what its state dict holds, and hooks are code".to_owned(),
        )
    })
}
