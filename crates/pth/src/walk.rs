//! From nodes to names: every tensor under its dotted name, whole modules as `state_dict()` would name them.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use std::collections::HashSet;

use crate::error::TensorFault;
use crate::pickle::{Arena, Node, NodeId, render};
use crate::rebuild::Rebuilder;
use crate::{Error, Tensor, limits, objects};

/// What a walk comes across.
pub(crate) enum Found {
    Tensor(Tensor),
    Fault(TensorFault),
    /// A value that is no tensor and holds none.
    Value(NodeId),
}

/// One find, under its name.
pub(crate) struct Find {
    pub(crate) name: String,
    pub(crate) found: Found,
    /// Whether `state_dict()` would hold it; a module's plain attributes are not in it.
    pub(crate) in_state_dict: bool,
}

enum Step {
    Visit {
        node: NodeId,
        name: String,
        in_state_dict: bool,
        /// Inside an object whose plain values are of no interest one by one.
        in_object: bool,
    },
    Leave(NodeId),
}

impl Step {
    fn is_storage(&self, arena: &Arena) -> bool {
        matches!(self, Step::Visit { node, .. } if matches!(arena.node(*node), Node::Persistent(_)))
    }
}

/// Walks everything below `root`, whose own name is `name` (empty for none).
pub(crate) fn walk(
    arena: &Arena,
    rebuilder: &mut Rebuilder<'_>,
    root: NodeId,
    name: &str,
    in_state_dict: bool,
) -> Result<Vec<Find>, Error> {
    let mut finds = Vec::new();
    let mut path: HashSet<NodeId> = HashSet::new();
    let mut visits = 0_usize;
    let mut steps = vec![Step::Visit {
        node: root,
        name: name.to_owned(),
        in_state_dict,
        in_object: false,
    }];
    while let Some(step) = steps.pop() {
        let (node, name, in_state_dict, in_object) = match step {
            Step::Leave(node) => {
                path.remove(&node);
                continue;
            }
            Step::Visit {
                node,
                name,
                in_state_dict,
                in_object,
            } => (node, name, in_state_dict, in_object),
        };
        visits = visits.saturating_add(1);
        let limit = limits::max_visits(arena.len());
        if visits > limit || path.len() > limits::MAX_DEPTH {
            let limit = u64::try_from(limit.min(limits::MAX_DEPTH)).unwrap_or(u64::MAX);
            return Err(Error::Limit {
                what: "naming the values of the pickle, which repeat or nest beyond all measure,".to_owned(),
                needed: limit.saturating_add(1),
                limit,
            });
        }
        let mut is_unread = false;
        if let Some(tensor) = rebuilder.tensor(node) {
            is_unread = matches!(tensor, Err(TensorFault::Unsupported(_)));
            finds.push(Find {
                name: name.clone(),
                found: tensor.map_or_else(Found::Fault, Found::Tensor),
                in_state_dict,
            });
            if !is_unread {
                continue;
            }
        }
        // A value inside itself was named where it was entered.
        if path.contains(&node) {
            continue;
        }
        match children(arena, node, &name, in_state_dict, in_object) {
            None if in_object || is_unread => {}
            None => finds.push(Find {
                name,
                found: Found::Value(node),
                in_state_dict,
            }),
            Some(mut children) => {
                if is_unread {
                    // Tensors that it is made of may be readable; its bare storage says nothing more.
                    children.retain(|step| !step.is_storage(arena));
                }
                path.insert(node);
                steps.push(Step::Leave(node));
                steps.extend(children.into_iter().rev());
            }
        }
    }
    Ok(finds)
}

/// The values inside `node`, with their names; none if it is a plain value.
fn children(
    arena: &Arena,
    node: NodeId,
    name: &str,
    in_state_dict: bool,
    in_object: bool,
) -> Option<Vec<Step>> {
    let visit = |node, child: &str, in_state_dict, in_object| Step::Visit {
        node,
        name: join(name, child),
        in_state_dict,
        in_object,
    };
    if objects::is_module(arena, node) {
        return Some(module(arena, node, in_state_dict, &visit));
    }
    if let Some(entries) = objects::mapping(arena, node) {
        let mut steps: Vec<Step> = entries
            .iter()
            .map(|&(key, value)| visit(value, &key_text(arena, key), in_state_dict, in_object))
            .collect();
        // Attributes of an OrderedDict: `_metadata` holds numbers only.
        if let Some(attributes) = objects::attributes(arena, node) {
            for (key, value) in attributes {
                let key = key_text(arena, key);
                if key != "_metadata" {
                    steps.push(visit(value, &key, false, true));
                }
            }
        }
        return Some(steps);
    }
    if let Some(items) = objects::sequence(arena, node) {
        let steps = items.iter().enumerate();
        return Some(
            steps
                .map(|(i, &item)| visit(item, &i.to_string(), in_state_dict, in_object))
                .collect(),
        );
    }
    match arena.node(node) {
        Node::Call { .. } | Node::CallEx { .. } => {
            let mut steps: Vec<Step> = Vec::new();
            for (i, &arg) in arena.args(node).iter().enumerate() {
                steps.push(visit(arg, &i.to_string(), in_state_dict, true));
            }
            for &state in arena.states(node) {
                match objects::attributes(arena, node) {
                    Some(attributes) => {
                        for (key, value) in attributes {
                            steps.push(visit(value, &key_text(arena, key), in_state_dict, true));
                        }
                    }
                    None => steps.push(visit(state, "state", in_state_dict, true)),
                }
            }
            // The object itself is a value to be reported, unless it is inside of another.
            (in_object && !steps.is_empty() || holds_tensor(arena, &steps)).then_some(steps)
        }
        _ => None,
    }
}

/// Whether a tensor is anywhere below, looked for without names.
fn holds_tensor(arena: &Arena, steps: &[Step]) -> bool {
    let nodes = steps.iter().filter_map(|step| match step {
        Step::Visit { node, .. } => Some(*node),
        Step::Leave(_) => None,
    });
    any_tensor(arena, nodes.collect())
}

/// Whether a storage is referred to anywhere below `todo`.
pub(crate) fn any_tensor(arena: &Arena, mut todo: Vec<NodeId>) -> bool {
    let mut seen: HashSet<NodeId> = HashSet::new();
    while let Some(node) = todo.pop() {
        if !seen.insert(node) {
            continue;
        }
        match arena.node(node) {
            Node::Persistent(_) => return true,
            Node::Call { .. } | Node::CallEx { .. } => {
                todo.extend(arena.appended(node));
                todo.extend(arena.items(node));
                todo.extend(arena.states(node).iter().rev());
                todo.extend(arena.args(node).iter().rev());
            }
            _ => todo.extend(arena.items(node).iter().rev()),
        }
    }
    false
}

/// A module's entries as `state_dict()` orders them: parameters, persistent buffers, then submodules; after them what it leaves out.
fn module(
    arena: &Arena,
    node: NodeId,
    in_state_dict: bool,
    visit: &impl Fn(NodeId, &str, bool, bool) -> Step,
) -> Vec<Step> {
    /// Bookkeeping of every module, without tensors.
    const HOOKS: &str = "hooks";
    let attributes = objects::attributes(arena, node).unwrap_or_default();
    let entries = |key: &str| {
        objects::get(arena, &attributes, key)
            .and_then(|value| objects::mapping(arena, value))
            .unwrap_or_default()
    };
    let is_none = |value: NodeId| arena.node(value) == Node::None;
    let transient: HashSet<String> = objects::get(arena, &attributes, "_non_persistent_buffers_set")
        .and_then(|set| objects::sequence(arena, set))
        .unwrap_or_default()
        .iter()
        .filter_map(|&name| arena.str(name).map(std::borrow::Cow::into_owned))
        .collect();
    let mut steps = Vec::new();
    let mut after = Vec::new();
    for (key, value) in entries("_parameters") {
        if !is_none(value) {
            steps.push(visit(value, &key_text(arena, key), in_state_dict, true));
        }
    }
    for (key, value) in entries("_buffers") {
        if !is_none(value) {
            let key = key_text(arena, key);
            let persistent = !transient.contains(&key);
            if persistent { &mut steps } else { &mut after }.push(visit(
                value,
                &key,
                in_state_dict && persistent,
                true,
            ));
        }
    }
    for (key, value) in entries("_modules") {
        if !is_none(value) {
            steps.push(visit(value, &key_text(arena, key), in_state_dict, true));
        }
    }
    for &(key, value) in &attributes {
        let key = key_text(arena, key);
        let known = matches!(
            key.as_str(),
            "_parameters" | "_buffers" | "_modules" | "_non_persistent_buffers_set"
        );
        // `_flat_weights` of recurrent layers repeats their parameters.
        if !known && !key.ends_with(HOOKS) && key != "_flat_weights" && any_tensor(arena, vec![value]) {
            after.push(visit(value, &key, false, true));
        }
    }
    steps.extend(after);
    steps
}

/// A dictionary's key as part of a name.
pub(crate) fn key_text(arena: &Arena, key: NodeId) -> String {
    match arena.node(key) {
        Node::Str(span) => arena.text(span).into_owned(),
        _ => render::render(arena, key),
    }
}

pub(crate) fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() {
        name.to_owned()
    } else {
        format!("{prefix}.{name}")
    }
}
