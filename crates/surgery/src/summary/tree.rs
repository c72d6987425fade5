//! Names to a tree of modules, without recursion: a file may nest names as deep as it likes.

use std::collections::HashMap;

use pth::{DType, Entry, Record, StateDict, Tensor};

use crate::marks;

/// Modules nest no deeper than this; further dots belong to the tensor's name. Each module costs memory, and a name of a hundred
/// thousand dots is not a model's.
const MAX_LEVELS: usize = 256;

/// Modules in the order of the table: each is followed by all that it holds.
pub(super) struct Tree<'d> {
    pub(super) nodes: Vec<Node<'d>>,
    /// Whether the state dict says which tensors are parameters or train.
    pub(super) is_marked: bool,
}

/// One module.
pub(super) struct Node<'d> {
    pub(super) var_name: &'d str,
    pub(super) depth: usize,
    /// None for the model.
    pub(super) parent: Option<usize>,
    /// How many nodes after this one are in it.
    pub(super) n_below: usize,
    pub(super) items: Vec<Item<'d>>,
}

/// One tensor or record.
pub(super) struct Item<'d> {
    /// The name in the state dict.
    pub(super) full_name: &'d str,
    /// The name in the module.
    pub(super) name: &'d str,
    pub(super) shape: &'d [usize],
    pub(super) dtype: &'d str,
    pub(super) numel: usize,
    pub(super) nbytes: usize,
    pub(super) is_parameter: bool,
    pub(super) trains: bool,
    /// None where nothing could be shared: an empty tensor, a record.
    pub(super) identity: Option<Identity<'d>>,
}

/// What makes two tensors one: storage, offset, type, shape and stride.
pub(super) type Identity<'d> = ((usize, u32), usize, DType, &'d [usize], &'d [usize]);

/// Which of a state dict's marks can be believed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Marks {
    /// None: names and types decide, and everything trains.
    None,
    /// Some entries ask for gradients, but none is a `Parameter`: names and types decide what is one.
    Gradients,
    /// There are `Parameter`s, and they are all.
    Parameters,
}

impl<'d> Tree<'d> {
    pub(super) fn of(tensors: &'d StateDict) -> Tree<'d> {
        let marks = Marks::of(tensors);
        let mut nodes = vec![Node::new("", 0, None)];
        let mut children: Vec<Vec<usize>> = vec![Vec::new()];
        let mut places: HashMap<(usize, &str), usize> = HashMap::new();
        for (full_name, entry) in tensors.entries() {
            let (mut at, mut rest) = (0, full_name);
            for depth in 1..MAX_LEVELS {
                let Some((first, after)) = rest.split_once('.') else {
                    break;
                };
                rest = after;
                at = *places.entry((at, first)).or_insert_with(|| {
                    nodes.push(Node::new(first, depth, Some(at)));
                    children.push(Vec::new());
                    children[at].push(nodes.len() - 1);
                    nodes.len() - 1
                });
            }
            nodes[at].items.push(Item::new(full_name, rest, entry, marks));
        }
        Tree {
            nodes: in_table_order(nodes, &children),
            is_marked: marks != Marks::None,
        }
    }

    /// The modules right below that of index `at`.
    pub(super) fn children(&self, at: usize) -> impl Iterator<Item = &Node<'d>> {
        let end = at + self.nodes[at].n_below;
        let mut next = at + 1;
        std::iter::from_fn(move || {
            let child = (next <= end).then(|| &self.nodes[next])?;
            next += 1 + child.n_below;
            Some(child)
        })
    }
}

/// Depth first, children in the order in which the state dict first names them.
fn in_table_order<'d>(nodes: Vec<Node<'d>>, children: &[Vec<usize>]) -> Vec<Node<'d>> {
    let mut new_places = vec![0; nodes.len()];
    let mut old: Vec<Option<Node<'d>>> = nodes.into_iter().map(Some).collect();
    let mut ordered: Vec<Node<'d>> = Vec::with_capacity(old.len());
    let mut stack = vec![0];
    while let Some(at) = stack.pop() {
        let mut node = old[at].take().expect("every module is the child of one other");
        new_places[at] = ordered.len();
        // The holder was placed before what it holds.
        node.parent = node.parent.map(|parent| new_places[parent]);
        ordered.push(node);
        stack.extend(children[at].iter().rev());
    }
    for at in (1..ordered.len()).rev() {
        let n = 1 + ordered[at].n_below;
        let parent = ordered[at].parent.expect("only the model has no holder");
        ordered[parent].n_below += n;
    }
    ordered
}

impl<'d> Node<'d> {
    fn new(var_name: &'d str, depth: usize, parent: Option<usize>) -> Node<'d> {
        Node {
            var_name,
            depth,
            parent,
            n_below: 0,
            items: Vec::new(),
        }
    }

    /// The shape of its own tensor called `name`.
    pub(super) fn shape_of(&self, name: &str) -> Option<&'d [usize]> {
        Some(self.items.iter().find(|item| item.name == name)?.shape)
    }
}

impl<'d> Item<'d> {
    fn new(full_name: &'d str, name: &'d str, entry: &'d Entry, marks: Marks) -> Item<'d> {
        let item = match entry {
            Entry::Tensor(tensor) => Item::of_tensor(tensor),
            Entry::Record(record) => Item::of_record(record),
        };
        let can_be_parameter = match entry {
            Entry::Tensor(tensor) => marks::can_train(tensor),
            Entry::Record(record) => record.dtype.is_empty() || is_floating(&record.dtype),
        };
        let is_parameter = match marks {
            Marks::Parameters => item.is_parameter,
            Marks::None | Marks::Gradients => can_be_parameter && !is_buffer_name(name),
        };
        Item {
            full_name,
            name,
            is_parameter,
            trains: is_parameter && (marks == Marks::None || item.trains),
            ..item
        }
    }

    fn of_tensor(tensor: &'d Tensor) -> Item<'d> {
        let (shape, numel) = (tensor.shape(), tensor.numel());
        let (storage, offset) = (tensor.storage().id(), tensor.storage_offset());
        let identity = (storage, offset, tensor.dtype(), shape, tensor.stride());
        Item {
            full_name: "",
            name: "",
            shape,
            dtype: tensor.dtype().as_str(),
            numel,
            nbytes: tensor.nbytes(),
            is_parameter: tensor.is_parameter(),
            trains: tensor.requires_grad(),
            identity: (numel > 0).then_some(identity),
        }
    }

    fn of_record(record: &'d Record) -> Item<'d> {
        let saturating = |sum: usize, (_, part): &(String, Tensor)| sum.saturating_add(part.nbytes());
        Item {
            full_name: "",
            name: "",
            shape: &record.shape,
            dtype: &record.dtype,
            numel: record
                .shape
                .iter()
                .fold(1, |n: usize, &size| n.saturating_mul(size)),
            nbytes: record.parts.iter().fold(0, saturating),
            is_parameter: record.is_parameter,
            trains: record.requires_grad,
            identity: None,
        }
    }
}

impl Marks {
    fn of(tensors: &StateDict) -> Marks {
        let mut found = Marks::None;
        for (_, entry) in tensors.entries() {
            let (is_parameter, trains) = match entry {
                Entry::Tensor(tensor) => (tensor.is_parameter(), tensor.requires_grad()),
                Entry::Record(record) => (record.is_parameter, record.requires_grad),
            };
            if is_parameter {
                return Marks::Parameters;
            }
            if trains {
                found = Marks::Gradients;
            }
        }
        found
    }
}

/// Whether torch gives gradients to a type of this name, or keeps such numbers in a smaller form (`qint8`).
fn is_floating(dtype: &str) -> bool {
    dtype.starts_with('q')
        || DType::from_name(dtype).is_some_and(|dtype| dtype.is_float() || dtype.is_complex())
}

/// Whether a tensor of this name is a buffer wherever a model is known to have one.
fn is_buffer_name(name: &str) -> bool {
    /// Rotary embeddings, position numbers, Swin's tables, CLIP's and GPT-2's masks, pruning's masks.
    const BUFFERS: [&str; 7] = [
        "inv_freq",
        "position_ids",
        "token_type_ids",
        "relative_position_index",
        "relative_coords_table",
        "attn_mask",
        "masked_bias",
    ];
    let last = name.rsplit('.').next().unwrap_or(name);
    marks::is_buffer_name(name) || BUFFERS.contains(&last) || last.ends_with("weight_mask")
}
