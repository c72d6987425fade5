//! What the nodes of a pickle stand for in Python: mappings, sequences, attributes. Read, never run.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use crate::pickle::{Arena, Node, NodeId};

/// A flat list of keys and values as pairs.
pub(crate) fn pairs(flat: &[NodeId]) -> Vec<(NodeId, NodeId)> {
    flat.as_chunks::<2>()
        .0
        .iter()
        .map(|&[key, value]| (key, value))
        .collect()
}

/// The entries of a dict or of one of its relatives, in insertion order; none for anything else.
pub(crate) fn mapping(arena: &Arena, node: NodeId) -> Option<Vec<(NodeId, NodeId)>> {
    match arena.node(node) {
        Node::Dict => Some(pairs(arena.items(node))),
        Node::Call { .. } | Node::CallEx { .. } => {
            let name = arena.callee_name(node)?;
            let known = matches!(
                name,
                ("collections", "OrderedDict" | "defaultdict" | "Counter")
                    | ("builtins" | "__builtin__", "dict")
                    | ("_collections", "OrderedDict")
            );
            // A class of the user's that had items set is a mapping too.
            if !known && (arena.items(node).is_empty() || is_module(arena, node)) {
                return None;
            }
            let mut entries = Vec::new();
            if known {
                for &arg in arena.args(node) {
                    entries.extend(given_entries(arena, arg));
                }
            }
            entries.extend(pairs(arena.items(node)));
            Some(entries)
        }
        _ => None,
    }
}

/// The entries in the argument of `OrderedDict(...)`: a dict, or a list of pairs as Python 2 wrote it.
fn given_entries(arena: &Arena, arg: NodeId) -> Vec<(NodeId, NodeId)> {
    match arena.node(arg) {
        Node::Dict => pairs(arena.items(arg)),
        Node::List | Node::Tuple(_) => arena
            .items(arg)
            .iter()
            .filter_map(|&pair| match arena.items(pair) {
                &[key, value] => Some((key, value)),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// The items of a list, tuple or set, or of an object that was appended to.
pub(crate) fn sequence(arena: &Arena, node: NodeId) -> Option<&[NodeId]> {
    match arena.node(node) {
        Node::List | Node::Tuple(_) | Node::Set | Node::FrozenSet => Some(arena.items(node)),
        Node::Call { .. } | Node::CallEx { .. } => match arena.callee_name(node)? {
            ("torch", "Size") | ("builtins" | "__builtin__", "set" | "frozenset" | "list" | "tuple") => {
                Some(arena.args(node).first().map_or(&[], |&items| arena.items(items)))
            }
            _ if !arena.appended(node).is_empty() => Some(arena.appended(node)),
            _ => None,
        },
        _ => None,
    }
}

/// The attributes that BUILD gave an object: of a dict, or of `(dict, slots)`.
pub(crate) fn attributes(arena: &Arena, node: NodeId) -> Option<Vec<(NodeId, NodeId)>> {
    let mut all = Vec::new();
    for &state in arena.states(node) {
        match arena.node(state) {
            Node::Tuple(_) => {
                for &part in arena.items(state) {
                    all.extend(mapping(arena, part).unwrap_or_default());
                }
            }
            _ => all.extend(mapping(arena, state).unwrap_or_default()),
        }
    }
    (!all.is_empty()).then_some(all)
}

/// The value of the last entry whose key is the text `key`: a later one replaces an earlier one.
pub(crate) fn get(arena: &Arena, entries: &[(NodeId, NodeId)], key: &str) -> Option<NodeId> {
    entries
        .iter()
        .rev()
        .find(|(k, _)| matches!(arena.node(*k), Node::Str(_)) && arena.str(*k).is_some_and(|k| k == key))
        .map(|&(_, value)| value)
}

/// Whether the object is a pickled `nn.Module`, by its shape and not by its class.
pub(crate) fn is_module(arena: &Arena, node: NodeId) -> bool {
    if arena.states(node).is_empty() {
        return false;
    }
    attributes(arena, node).is_some_and(|attributes| {
        ["_parameters", "_buffers", "_modules"]
            .iter()
            .all(|key| get(arena, &attributes, key).is_some_and(|value| mapping(arena, value).is_some()))
    })
}

/// A tuple, list or `torch.Size` of sizes.
pub(crate) fn sizes(arena: &Arena, node: NodeId) -> Option<Vec<usize>> {
    sequence(arena, node)?
        .iter()
        .map(|&size| usize::try_from(arena.int(size)?).ok())
        .collect()
}

/// Shape and element type of a plain tensor, for a line of text.
pub(crate) fn tensor_summary(arena: &Arena, node: NodeId) -> Option<(Vec<usize>, String)> {
    let mut node = node;
    // Parameters around parameters do not occur; two layers are generous.
    for _ in 0..3 {
        match arena.callee_name(node)? {
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                node = *arena.args(node).first()?;
            }
            ("torch._utils", name @ ("_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3")) => {
                let args = arena.args(node);
                let shape = sizes(arena, *args.get(2)?)?;
                let dtype = if name == "_rebuild_tensor_v3" {
                    arena.global_name(*args.get(6)?)?.1.to_owned()
                } else {
                    let Node::Persistent(id) = arena.node(*args.first()?) else {
                        return None;
                    };
                    let class = arena.global_name(*arena.items(id).get(1)?)?;
                    crate::rebuild::class_dtype(class)?.to_string()
                };
                return Some((shape, dtype));
            }
            _ => return None,
        }
    }
    None
}
