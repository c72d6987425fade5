//! What the nodes of a pickle stand for in Python: mappings, sequences, attributes. Read, never run.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use crate::limits;
use crate::pickle::{Arena, Node, NodeId};
use crate::rebuild::StorageClass;

/// A flat list of keys and values as pairs.
pub(crate) fn pairs(flat: &[NodeId]) -> Vec<(NodeId, NodeId)> {
    flat.as_chunks::<2>()
        .0
        .iter()
        .map(|&[key, value]| (key, value))
        .collect()
}

/// Keys and values of a dict as they alternate in the arena, where nothing is to be added to them.
pub(crate) fn plain_mapping<'a>(arena: &'a Arena<'_>, node: NodeId) -> Option<&'a [NodeId]> {
    match arena.node(node) {
        Node::Dict => Some(arena.items(node)),
        Node::Call { .. } => {
            let ("collections" | "_collections", "OrderedDict") = arena.callee_name(node)? else {
                return None;
            };
            let is_metadata = |&(key, _): &(NodeId, NodeId)| arena.str_bytes(key) == Some(b"_metadata");
            let has_attributes = attributes(arena, node).is_some_and(|all| !all.iter().all(is_metadata));
            (arena.args(node).is_empty() && !has_attributes).then(|| arena.items(node))
        }
        _ => None,
    }
}

/// The entries of a dict or of one of its relatives, in insertion order; none for anything else.
pub(crate) fn mapping(arena: &Arena<'_>, node: NodeId) -> Option<Vec<(NodeId, NodeId)>> {
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
                    // The factory of a defaultdict.
                    if name.1 == "defaultdict" && matches!(arena.node(arg), Node::Global | Node::None) {
                        continue;
                    }
                    entries.extend(given_entries(arena, arg)?);
                }
            }
            entries.extend(pairs(arena.items(node)));
            Some(entries)
        }
        _ => None,
    }
}

/// The entries in the argument of `OrderedDict(...)`: a dict, or a list of pairs as Python 2 wrote it; none for anything else.
fn given_entries(arena: &Arena<'_>, arg: NodeId) -> Option<Vec<(NodeId, NodeId)>> {
    match arena.node(arg) {
        Node::Dict => Some(pairs(arena.items(arg))),
        Node::List | Node::Tuple => arena
            .items(arg)
            .iter()
            .map(|&pair| match (arena.node(pair), arena.items(pair)) {
                (Node::List | Node::Tuple, &[key, value]) => Some((key, value)),
                _ => None,
            })
            .collect(),
        _ => None,
    }
}

/// Whether a container's arguments are its content, and not something beside it.
pub(crate) fn args_are_content(arena: &Arena<'_>, node: NodeId) -> bool {
    matches!(
        arena.callee_name(node),
        Some(
            (
                "collections" | "_collections",
                "OrderedDict" | "defaultdict" | "Counter"
            ) | (
                "builtins" | "__builtin__",
                "dict" | "set" | "frozenset" | "list" | "tuple"
            ) | ("torch", "Size")
        )
    )
}

/// The items of a list, tuple or set, or of an object that was appended to.
pub(crate) fn sequence<'a>(arena: &'a Arena<'_>, node: NodeId) -> Option<&'a [NodeId]> {
    match arena.node(node) {
        Node::List | Node::Tuple | Node::Set | Node::FrozenSet => Some(arena.items(node)),
        Node::Call { .. } | Node::CallEx { .. } => match arena.callee_name(node)? {
            ("torch", "Size") | ("builtins" | "__builtin__", "set" | "frozenset" | "list" | "tuple") => {
                match arena.args(node) {
                    [] => Some(&[]),
                    &[items] => match arena.node(items) {
                        Node::List | Node::Tuple | Node::Set | Node::FrozenSet => Some(arena.items(items)),
                        _ => None,
                    },
                    _ => None,
                }
            }
            _ if !arena.appended(node).is_empty() => Some(arena.appended(node)),
            _ => None,
        },
        _ => None,
    }
}

/// The attributes that BUILD gave an object: of a dict, or of `(dict, slots)`.
pub(crate) fn attributes(arena: &Arena<'_>, node: NodeId) -> Option<Vec<(NodeId, NodeId)>> {
    let states = arena.states(node);
    if states.len() > limits::MAX_STATES {
        return None;
    }
    let all: Vec<_> = states
        .iter()
        .filter_map(|&state| state_entries(arena, state))
        .flatten()
        .collect();
    (!all.is_empty()).then_some(all)
}

/// The states of an object that are no attributes.
pub(crate) fn opaque_states<'a>(arena: &'a Arena<'_>, node: NodeId) -> impl Iterator<Item = NodeId> + 'a {
    let states = arena.states(node);
    let is_opaque =
        move |state: &NodeId| states.len() > limits::MAX_STATES || state_entries(arena, *state).is_none();
    states.iter().copied().filter(is_opaque)
}

/// The attributes in a state: a dict, or `(dict, slots)`; none in anything else.
pub(crate) fn state_entries(arena: &Arena<'_>, state: NodeId) -> Option<Vec<(NodeId, NodeId)>> {
    if arena.node(state) != Node::Tuple {
        return mapping(arena, state);
    }
    let &[attributes, slots] = arena.items(state) else {
        return None;
    };
    let mut entries = Vec::new();
    for part in [attributes, slots] {
        if arena.node(part) != Node::None {
            entries.extend(mapping(arena, part)?);
        }
    }
    Some(entries)
}

/// Class and state of a tensor subclass that is made of its attributes.
pub(crate) fn wrapped_subclass(arena: &Arena<'_>, node: NodeId) -> Option<(NodeId, Option<NodeId>)> {
    let ("torch._tensor", "_rebuild_from_type_v2") = arena.callee_name(node)? else {
        return None;
    };
    let &[function, class, _, ref state @ ..] = arena.args(node) else {
        return None;
    };
    let is_wrapper = arena.global_name(function)? == ("torch._utils", "_rebuild_wrapper_subclass");
    is_wrapper.then(|| (class, state.first().copied()))
}

/// The value of the last entry whose key is the text `key`: a later one replaces an earlier one.
pub(crate) fn get(arena: &Arena<'_>, entries: &[(NodeId, NodeId)], key: &str) -> Option<NodeId> {
    entries
        .iter()
        .rev()
        .find(|(k, _)| arena.str_bytes(*k) == Some(key.as_bytes()))
        .map(|&(_, value)| value)
}

/// Whether the object is a pickled `nn.Module`, by its shape and not by its class.
pub(crate) fn is_module(arena: &Arena<'_>, node: NodeId) -> bool {
    if arena.states(node).is_empty() {
        return false;
    }
    attributes(arena, node).is_some_and(|attributes| {
        ["_parameters", "_buffers", "_modules"]
            .iter()
            .all(|key| get(arena, &attributes, key).is_some_and(|value| mapping(arena, value).is_some()))
    })
}

/// Reads a tuple, list or `torch.Size` of sizes into `out`.
pub(crate) fn sizes_into(arena: &Arena<'_>, node: NodeId, out: &mut Vec<usize>) -> Option<()> {
    out.clear();
    for &size in sequence(arena, node)? {
        out.push(usize::try_from(arena.int(size)?).ok()?);
    }
    Some(())
}

/// As [`sizes_into`], in a list of its own.
pub(crate) fn sizes(arena: &Arena<'_>, node: NodeId) -> Option<Vec<usize>> {
    let mut sizes = Vec::new();
    sizes_into(arena, node, &mut sizes)?;
    Some(sizes)
}

/// Shape and element type of a plain tensor, for a line of text.
pub(crate) fn tensor_summary(arena: &Arena<'_>, node: NodeId) -> Option<(Vec<usize>, String)> {
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
                    let (module, class) = arena.global_name(*arena.items(id).get(1)?)?;
                    StorageClass::new(module, class)?.dtype?.to_string()
                };
                return Some((shape, dtype));
            }
            _ => return None,
        }
    }
    None
}
