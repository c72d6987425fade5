//! What kind of layer a module is, by the names and shapes of its tensors.
//!
//! A guess where classes have the same tensors: a transposed convolution is taken for a convolution, GroupNorm for LayerNorm, a norm
//! with running statistics for BatchNorm. Stride, padding, groups and heads cannot be known.

use std::collections::HashMap;
use std::fmt;

use serde::{Serialize, Serializer};

use super::Row;
use super::tree::{Node, Tree};

/// A torch class as far as its tensors tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each variant is the torch class of the same name")]
pub enum Kind {
    Conv1d,
    Conv2d,
    Conv3d,
    Linear,
    /// The output projection of [`MultiheadAttention`](Kind::MultiheadAttention).
    NonDynamicallyQuantizableLinear,
    Embedding,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    /// One of the three, where no neighbour tells which.
    BatchNorm,
    LayerNorm,
    /// A scale without a shift in a module that is called a norm.
    RMSNorm,
    Lstm,
    Gru,
    Rnn,
    LstmCell,
    GruCell,
    RnnCell,
    MultiheadAttention,
    ParameterList,
    /// A container of numbered modules, which `ModuleList` is too.
    Sequential,
    /// Anything else.
    Module,
}

impl Kind {
    /// The class's name in torch.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Conv1d => "Conv1d",
            Kind::Conv2d => "Conv2d",
            Kind::Conv3d => "Conv3d",
            Kind::Linear => "Linear",
            Kind::NonDynamicallyQuantizableLinear => "NonDynamicallyQuantizableLinear",
            Kind::Embedding => "Embedding",
            Kind::BatchNorm1d => "BatchNorm1d",
            Kind::BatchNorm2d => "BatchNorm2d",
            Kind::BatchNorm3d => "BatchNorm3d",
            Kind::BatchNorm => "BatchNorm",
            Kind::LayerNorm => "LayerNorm",
            Kind::RMSNorm => "RMSNorm",
            Kind::Lstm => "LSTM",
            Kind::Gru => "GRU",
            Kind::Rnn => "RNN",
            Kind::LstmCell => "LSTMCell",
            Kind::GruCell => "GRUCell",
            Kind::RnnCell => "RNNCell",
            Kind::MultiheadAttention => "MultiheadAttention",
            Kind::ParameterList => "ParameterList",
            Kind::Sequential => "Sequential",
            Kind::Module => "Module",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// The rows of the table, without their parameters.
pub(super) fn rows(tree: &Tree<'_>) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::with_capacity(tree.nodes.len());
    let mut n_of_depth: Vec<usize> = Vec::new();
    for (at, node) in tree.nodes.iter().enumerate() {
        if n_of_depth.len() <= node.depth {
            n_of_depth.resize(node.depth + 1, 0);
        }
        n_of_depth[node.depth] += 1;
        let holder = node.parent.map(|parent| rows[parent].kind);
        let (kind, kernel) = infer(tree, at, holder);
        rows.push(Row {
            depth: node.depth,
            depth_idx: if node.depth == 0 {
                0
            } else {
                n_of_depth[node.depth]
            },
            var_name: node.var_name.to_owned(),
            kind,
            kernel: kernel.to_vec(),
            params: Vec::new(),
            n_own: 0,
            n_params: 0,
            n_trainable: 0,
            is_recursive: false,
            n_below: node.n_below,
        });
    }
    settle_batch_norms(tree, &mut rows);
    rows
}

/// The kind of the module at `at`, held by one of kind `holder`, and the kernel if it is a convolution.
fn infer<'d>(tree: &Tree<'d>, at: usize, holder: Option<Kind>) -> (Kind, &'d [usize]) {
    let node = &tree.nodes[at];
    let has = |name: &str| node.shape_of(name).is_some();
    if has("in_proj_weight") || (has("q_proj_weight") && has("k_proj_weight")) {
        return (Kind::MultiheadAttention, &[]);
    }
    if let Some(kind) = recurrent(node) {
        return (kind, &[]);
    }
    if has("running_mean") || has("num_batches_tracked") {
        return (Kind::BatchNorm, &[]);
    }
    // As it is, as weight norm splits it, as pruning and spectral norm keep it.
    let weight = ["weight", "weight_v", "weight_orig"]
        .iter()
        .find_map(|name| node.shape_of(name));
    match weight {
        Some([_, _, kernel @ ..]) if !kernel.is_empty() => match kernel.len() {
            1 => (Kind::Conv1d, kernel),
            2 => (Kind::Conv2d, kernel),
            3 => (Kind::Conv3d, kernel),
            _ => (Kind::Module, &[]),
        },
        Some([_, _]) if node.var_name == "out_proj" && holder == Some(Kind::MultiheadAttention) => {
            (Kind::NonDynamicallyQuantizableLinear, &[])
        }
        Some([_, _]) if !has("bias") && is_embedding_name(node.var_name) => (Kind::Embedding, &[]),
        Some([_, _]) => (Kind::Linear, &[]),
        Some([_]) if has("bias") => (Kind::LayerNorm, &[]),
        Some([_]) if is_norm_name(node.var_name) => (Kind::RMSNorm, &[]),
        _ => (container(tree, at), &[]),
    }
}

/// By how many times as many rows as the hidden state has: four gates, three or one. [torch.nn.LSTM, GRU, RNN]
fn recurrent(node: &Node<'_>) -> Option<Kind> {
    let kinds = |ih: &str, hh: &str, kinds: [Kind; 3]| {
        let n_rows = node.shape_of(ih)?.first()?;
        // With a projection the recurrent weight's columns are the projection's, which only an LSTM has.
        if node.shape_of("weight_hr_l0").is_some() {
            return Some(kinds[0]);
        }
        let hidden = node.shape_of(hh)?.get(1)?;
        match n_rows.checked_div(*hidden)? {
            4 => Some(kinds[0]),
            3 => Some(kinds[1]),
            1 => Some(kinds[2]),
            _ => None,
        }
    };
    kinds("weight_ih_l0", "weight_hh_l0", [Kind::Lstm, Kind::Gru, Kind::Rnn]).or_else(|| {
        kinds(
            "weight_ih",
            "weight_hh",
            [Kind::LstmCell, Kind::GruCell, Kind::RnnCell],
        )
    })
}

fn container(tree: &Tree<'_>, at: usize) -> Kind {
    let is_number = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
    let items = &tree.nodes[at].items;
    let is_leaf = tree.nodes[at].n_below == 0;
    if is_leaf && !items.is_empty() && items.iter().all(|item| is_number(item.name)) {
        return Kind::ParameterList;
    }
    if !is_leaf && items.is_empty() && tree.children(at).all(|child| is_number(child.var_name)) {
        return Kind::Sequential;
    }
    Kind::Module
}

fn is_embedding_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let is_word = |word: &str| name.starts_with(word) || name.ends_with(word);
    name.contains("embed") || is_word("emb") || is_word("tok") || name == "wte" || name == "wpe"
}

fn is_norm_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.contains("norm") || name.starts_with("ln")
}

/// Gives each BatchNorm the rank of the layer that feeds it: the last convolution or linear layer above with as many outputs as it
/// has channels, else the last of any width, else the first one below.
fn settle_batch_norms(tree: &Tree<'_>, rows: &mut [Row]) {
    let rank = |kind: Kind| match kind {
        Kind::Conv1d | Kind::Linear => Some(Kind::BatchNorm1d),
        Kind::Conv2d => Some(Kind::BatchNorm2d),
        Kind::Conv3d => Some(Kind::BatchNorm3d),
        _ => None,
    };
    let first = rows.iter().find_map(|row| rank(row.kind));
    let mut last = None;
    let mut last_of_width: HashMap<usize, Kind> = HashMap::new();
    for (row, node) in rows.iter_mut().zip(&tree.nodes) {
        if let Some(norm) = rank(row.kind) {
            last = Some(norm);
            if let Some(&[width, ..]) = node.shape_of("weight") {
                last_of_width.insert(width, norm);
            }
        } else if row.kind == Kind::BatchNorm {
            let width = node.shape_of("running_mean").and_then(|shape| shape.first());
            let fed = width.and_then(|width| last_of_width.get(width).copied());
            row.kind = fed.or(last).or(first).unwrap_or(Kind::BatchNorm);
        }
    }
}
