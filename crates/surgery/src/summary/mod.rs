//! What a model is made of, as torchinfo prints it, from the names and shapes of its state dict.
//!
//! What needs a graph is absent: output sizes, multiply-adds, memory of activations, and layers without tensors (ReLU, pooling, dropout),
//! which therefore have no number among the depth indices either. A container's class is not known: one whose children are numbered
//! is called `Sequential`, any other `Module`. A tensor that several modules hold is counted once, in the first of them, where torchinfo
//! (1.8) counts it in each.

mod kind;
mod print;

use std::collections::{HashMap, HashSet};

use indexmap::IndexMap;

pub use print::{SummaryColumns, SummaryStyle};

use crate::lazy::{Identity, LazyEntry, LazyStateDict};
use crate::marks;

/// Modules are at most this deep; what lies deeper is part of the last one's names. Names come from files.
const MAX_DEPTH: usize = 256;

/// A model's modules in the order of its state dict, and what they add up to.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Modules, each in front of what it holds; the first is the model itself.
    pub rows: Vec<SummaryRow>,
    /// Distinct parameters.
    pub n_params: usize,
    /// Those that training would change.
    pub n_trainable: usize,
    /// Bytes of the parameters.
    pub param_bytes: usize,
    /// Tensors that are no parameters, and their bytes.
    pub buffers: (usize, usize),
    /// Element types with how many tensors, elements and bytes have them, the largest share first.
    pub dtypes: Vec<(String, usize, usize, usize)>,
    /// Names of one tensor.
    pub ties: Vec<Vec<String>>,
    /// The largest tensor and its bytes.
    pub largest: Option<(String, usize)>,
}

/// A module.
#[derive(Debug, Clone, PartialEq)]
pub struct SummaryRow {
    /// How deep it lies; 0 for the model.
    pub depth: usize,
    /// Its number among all modules of that depth, from 1; 0 for the model.
    pub depth_index: usize,
    /// Its name within the module that holds it.
    pub var_name: String,
    /// Its class, by the rules of torch's own layers' names and shapes.
    pub kind: String,
    /// The kernel of a convolution.
    pub kernel: Option<Vec<usize>>,
    /// Distinct parameters in it and in what it holds.
    pub n_params: usize,
    /// Those that training would change.
    pub n_trainable: usize,
    /// Those of its own, not of modules in it.
    pub n_own: usize,
    /// Whether it holds no modules.
    pub is_leaf: bool,
    /// Whether all its parameters are counted in a module before it.
    pub is_recursive: bool,
    /// Its own parameters: name, shape, elements.
    pub params: Vec<(String, Vec<usize>, usize)>,
    /// The row of the module that holds it.
    pub parent: Option<usize>,
    /// What is equal for modules that are made alike.
    signature: u64,
}

impl Summary {
    /// Looks at names, shapes, types and marks. A state dict without marks counts as trainable, as a model of PyTorch is.
    pub fn of(tensors: &LazyStateDict) -> Summary {
        let is_marked = tensors.is_marked();
        let mut rows = vec![SummaryRow::new(0, String::new(), None)];
        let mut by_path: HashMap<&str, usize> = HashMap::from([("", 0)]);
        let mut held: Vec<IndexMap<&str, &LazyEntry>> = vec![IndexMap::new()];
        for (name, entry) in tensors.iter() {
            let mut row = 0;
            let mut start = 0;
            for (depth, (at, _)) in name.match_indices('.').enumerate().take(MAX_DEPTH) {
                let path = &name[..at];
                row = *by_path.entry(path).or_insert_with(|| {
                    rows.push(SummaryRow::new(depth + 1, name[start..at].to_owned(), Some(row)));
                    held.push(IndexMap::new());
                    rows.len() - 1
                });
                rows[row]
                    .parent
                    .into_iter()
                    .for_each(|parent| rows[parent].is_leaf = false);
                start = at + 1;
            }
            held[row].insert(&name[start..], entry);
        }
        let mut summary = Summary {
            rows,
            n_params: 0,
            n_trainable: 0,
            param_bytes: 0,
            buffers: (0, 0),
            dtypes: Vec::new(),
            ties: tensors
                .ties()
                .iter()
                .map(|names| names.iter().map(|name| (*name).to_owned()).collect())
                .collect(),
            largest: None,
        };
        summary.count(tensors, &held, is_marked);
        summary.name_kinds(&held);
        summary.order();
        summary
    }

    /// Counts parameters into every module that holds them.
    fn count(&mut self, tensors: &LazyStateDict, held: &[IndexMap<&str, &LazyEntry>], is_marked: bool) {
        let tied: HashSet<&str> = self.ties.iter().flatten().map(String::as_str).collect();
        let mut seen: HashMap<Identity, HashSet<usize>> = HashMap::new();
        let mut dtypes: IndexMap<String, (usize, usize, usize)> = IndexMap::new();
        let mut distinct: HashSet<Identity> = HashSet::new();
        for (name, entry) in tensors.iter() {
            let numel = entry
                .shape()
                .iter()
                .fold(1_usize, |n, &size| n.saturating_mul(size));
            let n_bytes = entry.nbytes();
            let is_again = tied.contains(name)
                && entry
                    .tensor()
                    .is_some_and(|tensor| !distinct.insert(tensor.identity()));
            if !is_again {
                let dtype = entry
                    .dtype_of()
                    .map_or_else(|| "other".to_owned(), |dtype| dtype.to_string());
                let (n, elements, bytes) = dtypes.entry(dtype).or_default();
                (*n, *elements, *bytes) = (
                    *n + 1,
                    elements.saturating_add(numel),
                    bytes.saturating_add(n_bytes),
                );
                if self.largest.as_ref().is_none_or(|(_, most)| n_bytes > *most) {
                    self.largest = Some((name.to_owned(), n_bytes));
                }
                if !is_param(name, entry) {
                    self.buffers = (self.buffers.0 + 1, self.buffers.1.saturating_add(n_bytes));
                }
            }
        }
        self.dtypes = dtypes
            .into_iter()
            .map(|(dtype, (n, elements, bytes))| (dtype, n, elements, bytes))
            .collect();
        self.dtypes
            .sort_by_key(|(_, _, _, bytes)| std::cmp::Reverse(*bytes));
        for (row, held) in held.iter().enumerate() {
            let mut is_all_again = None;
            for (leaf, entry) in held.iter().filter(|(leaf, entry)| is_param(leaf, entry)) {
                let Some(tensor) = entry.tensor() else { continue };
                let numel = tensor
                    .shape()
                    .iter()
                    .fold(1_usize, |n, &size| n.saturating_mul(size));
                let trains = !is_marked || entry.requires_grad;
                self.rows[row]
                    .params
                    .push(((*leaf).to_owned(), tensor.shape().to_vec(), numel));
                let counted = seen.entry(tensor.identity()).or_default();
                let is_again = !counted.is_empty();
                is_all_again = Some(is_all_again.unwrap_or(true) && is_again);
                let mut at = Some(row);
                while let Some(here) = at {
                    let it = &mut self.rows[here];
                    // Once in each module, however many names it has in there.
                    if counted.insert(here) {
                        it.n_params = it.n_params.saturating_add(numel);
                        it.n_trainable = it.n_trainable.saturating_add(if trains { numel } else { 0 });
                        it.n_own = it.n_own.saturating_add(if here == row { numel } else { 0 });
                        if here == 0 {
                            self.param_bytes = self.param_bytes.saturating_add(tensor.nbytes());
                        }
                    }
                    at = it.parent;
                }
            }
            self.rows[row].is_recursive = is_all_again == Some(true) && self.rows[row].is_leaf;
        }
        (self.n_params, self.n_trainable) = (self.rows[0].n_params, self.rows[0].n_trainable);
    }

    fn name_kinds(&mut self, held: &[IndexMap<&str, &LazyEntry>]) {
        let mut children: Vec<Vec<usize>> = vec![Vec::new(); self.rows.len()];
        for (row, it) in self.rows.iter().enumerate() {
            it.parent
                .into_iter()
                .for_each(|parent| children[parent].push(row));
        }
        for row in (0..self.rows.len()).rev() {
            let names = children[row]
                .iter()
                .map(|&child| self.rows[child].var_name.as_str());
            let siblings = self.rows[row]
                .parent
                .map(|parent| children[parent].as_slice())
                .unwrap_or_default();
            let rank = kind::rank_nearby(siblings.iter().map(|&sibling| &held[sibling]));
            let (kind, kernel) = kind::of(&self.rows[row].var_name, &held[row], names, rank);
            let mut hasher = blake3::Hasher::new();
            hasher.update(kind.as_bytes());
            for (leaf, entry) in &held[row] {
                let dtype = entry.dtype_of().map_or("other", pth::DType::as_str);
                hasher.update(
                    format!("\n{leaf} {dtype} {:?} {}", entry.shape(), entry.requires_grad).as_bytes(),
                );
            }
            for &child in &children[row] {
                hasher.update(
                    format!("\n{} {}", self.rows[child].var_name, self.rows[child].signature).as_bytes(),
                );
            }
            let digest = *hasher.finalize().as_bytes();
            let it = &mut self.rows[row];
            it.signature = digest[..8]
                .iter()
                .fold(0, |value, &byte| value << 8 | u64::from(byte));
            (it.kind, it.kernel) = (kind, kernel);
        }
    }

    /// Rows in front of what they hold, whatever the order of names in the file, and numbered.
    fn order(&mut self) {
        let mut children: Vec<Vec<usize>> = vec![Vec::new(); self.rows.len()];
        for (row, it) in self.rows.iter().enumerate() {
            it.parent
                .into_iter()
                .for_each(|parent| children[parent].push(row));
        }
        let mut order = Vec::with_capacity(self.rows.len());
        let mut stack = vec![0];
        while let Some(row) = stack.pop() {
            order.push(row);
            stack.extend(children[row].iter().rev());
        }
        let mut place = vec![0; order.len()];
        order.iter().enumerate().for_each(|(to, &from)| place[from] = to);
        let mut counts: HashMap<usize, usize> = HashMap::new();
        self.rows = order
            .iter()
            .map(|&from| {
                let mut row = self.rows[from].clone();
                row.parent = row.parent.map(|parent| place[parent]);
                if row.depth > 0 {
                    let count = counts.entry(row.depth).or_default();
                    *count += 1;
                    row.depth_index = *count;
                }
                row
            })
            .collect();
    }
}

impl SummaryRow {
    fn new(depth: usize, var_name: String, parent: Option<usize>) -> SummaryRow {
        SummaryRow {
            depth,
            depth_index: 0,
            var_name,
            kind: String::new(),
            kernel: None,
            n_params: 0,
            n_trainable: 0,
            n_own: 0,
            is_leaf: true,
            is_recursive: false,
            params: Vec::new(),
            parent,
            signature: 0,
        }
    }

    /// `True`, `False`, `Partial`, or `--` where there are no parameters.
    pub fn trainable(&self) -> &'static str {
        match self.n_trainable {
            _ if self.n_params == 0 => "--",
            0 => "False",
            n if n == self.n_params => "True",
            _ => "Partial",
        }
    }
}

/// Whether an entry is a parameter and no buffer, by its type and the end of its name.
fn is_param(name: &str, entry: &LazyEntry) -> bool {
    const BUFFERS: [&str; 6] = [
        "inv_freq",
        "position_ids",
        "relative_position_index",
        "relative_coords_table",
        "attn_mask",
        "num_batches_tracked",
    ];
    let last = name.rsplit('.').next().unwrap_or(name);
    LazyStateDict::can_train(name, entry) && !BUFFERS.contains(&last) && !marks::is_buffer_name(name)
}

#[cfg(test)]
mod tests;
