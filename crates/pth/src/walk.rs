//! From nodes to names: every tensor under its dotted name, whole modules as `state_dict()` would name them.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;

use crate::error::TensorFault;
use crate::pickle::arena::Quick;
use crate::pickle::{Arena, Node, NodeId, render};
use crate::rebuild::{Made, Rebuilder};
use crate::{Error, ModuleVersion, Record, Tensor, limits, module, objects};

/// What a walk comes across.
pub(crate) enum Found {
    Tensor(Tensor),
    Record(Box<Record>),
    Fault(TensorFault),
    /// A value that is no tensor and holds none.
    Value(NodeId),
}

/// Takes what is found: its name, itself, and whether `state_dict()` would hold it; a module's plain attributes are not in it.
pub(crate) type Sink<'s> = &'s mut dyn FnMut(&str, Found, bool) -> Result<(), Error>;

/// How a value is reached from the one that holds it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Segment {
    Key(NodeId),
    Index(usize),
    Name(&'static str),
}

/// A value inside another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Child {
    pub(crate) segment: Segment,
    pub(crate) node: NodeId,
    pub(crate) in_state_dict: bool,
    /// Inside an object whose plain values are of no interest one by one.
    pub(crate) in_object: bool,
}

enum Children<'a> {
    /// Keys and values as they alternate in a dict, of which there may be very many.
    Pairs(&'a [NodeId]),
    List(Vec<Child>),
}

struct Frame<'a> {
    node: NodeId,
    children: Children<'a>,
    next: usize,
    name_len: usize,
    in_state_dict: bool,
    in_object: bool,
}

impl Frame<'_> {
    fn next(&mut self) -> Option<Child> {
        let at = self.next;
        self.next = at.saturating_add(1);
        match &self.children {
            Children::Pairs(flat) => {
                let (pairs, _) = flat.as_chunks::<2>();
                pairs.get(at).map(|&[key, node]| Child {
                    segment: Segment::Key(key),
                    node,
                    in_state_dict: self.in_state_dict,
                    in_object: self.in_object,
                })
            }
            Children::List(children) => children.get(at).copied(),
        }
    }
}

/// One way through a pickle's values.
pub(crate) struct Walk<'a, 'r> {
    arena: &'a Arena<'a>,
    rebuilder: &'r mut Rebuilder<'a>,
    last_wins: bool,
    /// Values that are known to hold no tensor.
    empty: HashSet<NodeId, Quick>,
    n_visits: usize,
    /// The modules of the state dict, in torch's order, where it was made of pickled ones.
    pub(crate) modules: Vec<ModuleVersion>,
}

impl<'a, 'r> Walk<'a, 'r> {
    pub(crate) fn new(
        arena: &'a Arena<'a>,
        rebuilder: &'r mut Rebuilder<'a>,
        last_wins: bool,
    ) -> Walk<'a, 'r> {
        Walk {
            arena,
            rebuilder,
            last_wins,
            empty: HashSet::default(),
            n_visits: 0,
            modules: Vec::new(),
        }
    }

    /// Walks everything below `root`, whose own name is `name` (empty for none).
    pub(crate) fn run(
        &mut self,
        root: NodeId,
        name: &str,
        in_state_dict: bool,
        sink: Sink<'_>,
    ) -> Result<(), Error> {
        let mut name = name.to_owned();
        let mut path: HashSet<NodeId, Quick> = HashSet::default();
        let mut frames: Vec<Frame<'a>> = Vec::new();
        let root = Child {
            segment: Segment::Name(""),
            node: root,
            in_state_dict,
            in_object: false,
        };
        self.visit(root, &mut name, &mut path, &mut frames, sink)?;
        while let Some(frame) = frames.last_mut() {
            name.truncate(frame.name_len);
            match frame.next() {
                None => {
                    path.remove(&frame.node);
                    frames.pop();
                }
                Some(child) => self.visit(child, &mut name, &mut path, &mut frames, sink)?,
            }
        }
        Ok(())
    }

    /// Tells of one value, or begins with what is inside it.
    fn visit(
        &mut self,
        child: Child,
        name: &mut String,
        path: &mut HashSet<NodeId, Quick>,
        frames: &mut Vec<Frame<'a>>,
        sink: Sink<'_>,
    ) -> Result<(), Error> {
        let Child {
            segment,
            node,
            in_state_dict,
            in_object,
        } = child;
        push_segment(self.arena, name, segment);
        let n_text_bytes = self.arena.str_bytes(node).map_or(0, <[u8]>::len);
        self.spend_on(name.len().saturating_add(n_text_bytes))?;
        let mut is_unread = false;
        match self.rebuilder.tensor(node) {
            Some(Ok(Made::Tensor(tensor))) => return sink(name, Found::Tensor(tensor), in_state_dict),
            Some(Ok(Made::Record(record))) => return sink(name, Found::Record(record), in_state_dict),
            Some(Err(fault)) => {
                is_unread = matches!(fault, TensorFault::Unsupported(_));
                sink(name, Found::Fault(fault), in_state_dict)?;
                if !is_unread {
                    return Ok(());
                }
            }
            None => {}
        }
        // A value inside itself was named where it was entered.
        if path.contains(&node) {
            return Ok(());
        }
        // A module without tensors still has a version in `_metadata`.
        let is_wanted =
            frames.is_empty() || in_state_dict && in_object && objects::is_module(self.arena, node);
        let children = match node.is_stored() && (is_wanted || self.holds_tensor(node)?) {
            true => self.children(node, name, in_state_dict, in_object, sink)?,
            false => None,
        };
        match children {
            None if in_object || is_unread => {}
            None => sink(name, Found::Value(node), in_state_dict)?,
            Some(mut children) => {
                if let (true, Children::List(children)) = (is_unread, &mut children) {
                    // Tensors that it is made of may be readable; its bare storage says nothing more.
                    children.retain(|child| !matches!(self.arena.node(child.node), Node::Persistent(_)));
                }
                if frames.len() >= limits::MAX_DEPTH {
                    return Err(beyond_measure(limits::MAX_DEPTH));
                }
                path.insert(node);
                frames.push(Frame {
                    node,
                    children,
                    next: 0,
                    name_len: name.len(),
                    in_state_dict,
                    in_object,
                });
            }
        }
        Ok(())
    }

    /// The entries of a mapping without repeated keys, or the refusal of them.
    pub(crate) fn unique(
        &self,
        entries: Vec<(NodeId, NodeId)>,
        name: &str,
    ) -> Result<Vec<(NodeId, NodeId)>, Error> {
        let arena = self.arena;
        match repeated_key(arena, entries.iter().map(|&(key, _)| key)) {
            None => Ok(entries),
            Some(_) if self.last_wins => Ok(last_of_equals(arena, &entries)),
            Some(key) => {
                let mut name = name.to_owned();
                push_segment(arena, &mut name, Segment::Key(key));
                let fault = TensorFault::DuplicateKey;
                Err(Error::Tensor { name, fault })
            }
        }
    }

    fn spend(&mut self) -> Result<(), Error> {
        self.spend_on(0)
    }

    /// Pays for one visit, and for text that an alias of two bytes may repeat.
    fn spend_on(&mut self, n_text_bytes: usize) -> Result<(), Error> {
        self.n_visits = self.n_visits.saturating_add(limits::visits_for(n_text_bytes));
        let limit = limits::max_visits(self.arena.n_bytes());
        if self.n_visits > limit {
            return Err(beyond_measure(limit));
        }
        Ok(())
    }

    /// The values inside `node`; none if it is a plain value.
    fn children(
        &mut self,
        node: NodeId,
        name: &str,
        in_state_dict: bool,
        in_object: bool,
        sink: Sink<'_>,
    ) -> Result<Option<Children<'a>>, Error> {
        let arena = self.arena;
        let child = |segment, node, in_state_dict, in_object| Child {
            segment,
            node,
            in_state_dict,
            in_object,
        };
        if objects::is_module(arena, node) {
            if in_state_dict {
                self.modules.push(ModuleVersion {
                    module: name.to_owned(),
                    version: Some(module::version(arena, node)),
                });
            }
            if let Some(fault) = module::caveat(arena, node) {
                sink(name, Found::Fault(fault), false)?;
            }
            return Ok(Some(Children::List(self.module(node, in_state_dict)?)));
        }
        if let Some(flat) = objects::plain_mapping(arena, node)
            && repeated_key(arena, flat.as_chunks::<2>().0.iter().map(|&[key, _]| key)).is_none()
        {
            return Ok(Some(Children::Pairs(flat)));
        }
        let is_call = arena.callee(node).is_some();
        let mut children: Vec<Child> = Vec::new();
        let mut is_container = true;
        if let Some(entries) = objects::mapping(arena, node) {
            let entries = self.unique(entries, name)?;
            let visit = |(key, value)| child(Segment::Key(key), value, in_state_dict, in_object);
            children.extend(entries.into_iter().map(visit));
        } else if let Some(items) = objects::sequence(arena, node) {
            let visit = |(i, &item)| child(Segment::Index(i), item, in_state_dict, in_object);
            children.extend(items.iter().enumerate().map(visit));
        } else if is_call {
            is_container = false;
        } else {
            return Ok(None);
        }
        if !is_call {
            return Ok(Some(Children::List(children)));
        }
        // An object may hold something in each of these places.
        let beside = in_state_dict && !is_container;
        if !is_container || !objects::args_are_content(arena, node) {
            for (i, &arg) in arena.args(node).iter().enumerate() {
                children.push(child(Segment::Index(i), arg, beside, true));
            }
        }
        if !is_container {
            for &(key, value) in &objects::pairs(arena.items(node)) {
                children.push(child(Segment::Key(key), value, beside, true));
            }
        }
        if objects::sequence(arena, node) != Some(arena.appended(node)) {
            for (i, &item) in arena.appended(node).iter().enumerate() {
                children.push(child(Segment::Index(i), item, beside, true));
            }
        }
        for (key, value) in objects::attributes(arena, node).unwrap_or_default() {
            // The attribute of an OrderedDict that holds numbers only.
            if !is_container || arena.str_bytes(key) != Some(b"_metadata") {
                children.push(child(Segment::Key(key), value, beside, true));
            }
        }
        for state in objects::opaque_states(arena, node) {
            children.push(child(Segment::Name("state"), state, beside, true));
        }
        // The object itself is a value to be reported, unless a tensor is inside of it.
        let is_descended = is_container || in_object && !children.is_empty() || self.holds_tensor(node)?;
        Ok(is_descended.then_some(Children::List(children)))
    }

    /// Whether `node` itself is a tensor, readable or not.
    pub(crate) fn is_tensor(&mut self, node: NodeId) -> bool {
        self.rebuilder.tensor(node).is_some()
    }

    /// Whether a tensor is anywhere at or below `node`.
    pub(crate) fn holds_tensor(&mut self, node: NodeId) -> Result<bool, Error> {
        let mut seen: HashSet<NodeId, Quick> = HashSet::default();
        let mut todo = vec![node];
        let arena = self.arena;
        while let Some(node) = todo.pop() {
            if !node.is_stored() || self.empty.contains(&node) || !seen.insert(node) {
                continue;
            }
            self.spend()?;
            match arena.node(node) {
                Node::Persistent(_) => return Ok(true),
                Node::Call { .. } | Node::CallEx { .. } => {
                    if self.rebuilder.makes_tensor(node) {
                        return Ok(true);
                    }
                    todo.extend(arena.appended(node));
                    todo.extend(arena.items(node));
                    todo.extend(arena.states(node).iter().rev());
                    todo.extend(arena.args(node).iter().rev());
                }
                _ => todo.extend(arena.items(node).iter().rev()),
            }
        }
        // All of it was seen, so that none of it need be looked at again.
        self.empty.extend(seen);
        Ok(false)
    }

    /// A module's entries as `state_dict()` orders them: parameters, persistent buffers, then submodules; after them what it leaves out.
    fn module(&mut self, node: NodeId, in_state_dict: bool) -> Result<Vec<Child>, Error> {
        /// Bookkeeping of every module, without tensors.
        const HOOKS: &[u8] = b"hooks";
        let arena = self.arena;
        let attributes = objects::attributes(arena, node).unwrap_or_default();
        let entries = |key: &str| {
            objects::get(arena, &attributes, key)
                .and_then(|value| objects::mapping(arena, value))
                .unwrap_or_default()
        };
        let child = |key, node, in_state_dict| Child {
            segment: Segment::Key(key),
            node,
            in_state_dict,
            in_object: true,
        };
        let is_none = |value: NodeId| arena.node(value) == Node::None;
        let transient: HashSet<&[u8]> = objects::get(arena, &attributes, "_non_persistent_buffers_set")
            .and_then(|set| objects::sequence(arena, set))
            .unwrap_or_default()
            .iter()
            .filter_map(|&name| arena.str_bytes(name))
            .collect();
        let mut children = Vec::new();
        let mut after = Vec::new();
        // Entries that are None are not visited, and are paid for here.
        let n_entries = ["_parameters", "_buffers", "_modules"].map(|key| entries(key).len());
        self.spend_on(
            n_entries
                .iter()
                .fold(attributes.len(), |sum, &n| sum.saturating_add(n))
                .saturating_mul(16),
        )?;
        for (key, value) in entries("_parameters") {
            if !is_none(value) {
                children.push(child(key, value, in_state_dict));
            }
        }
        for (key, value) in entries("_buffers") {
            if !is_none(value) {
                let persistent = arena.str_bytes(key).is_none_or(|key| !transient.contains(key));
                let list = if persistent { &mut children } else { &mut after };
                list.push(child(key, value, in_state_dict && persistent));
            }
        }
        for (key, value) in entries("_modules") {
            if !is_none(value) {
                children.push(child(key, value, in_state_dict));
            }
        }
        for &(key, value) in &attributes {
            let text = arena.str_bytes(key).unwrap_or_default();
            // `_flat_weights` of recurrent layers repeats their parameters.
            let known: [&[u8]; 5] = [
                b"_parameters",
                b"_buffers",
                b"_modules",
                b"_non_persistent_buffers_set",
                b"_flat_weights",
            ];
            if !known.contains(&text) && !text.ends_with(HOOKS) && self.holds_tensor(value)? {
                after.push(child(key, value, false));
            }
        }
        children.extend(after);
        Ok(children)
    }
}

fn beyond_measure(limit: usize) -> Error {
    let limit = u64::try_from(limit).unwrap_or(u64::MAX);
    Error::Limit {
        what: "naming the values of the pickle, which repeat or nest beyond all measure,".to_owned(),
        needed: limit.saturating_add(1),
        limit,
    }
}

/// Text and integers are compared; no other keys name tensors.
#[derive(PartialEq, Eq, Hash)]
enum Key<'a> {
    Text(&'a [u8]),
    Int(i64),
}

fn comparable<'a>(arena: &'a Arena<'_>, key: NodeId) -> Option<Key<'a>> {
    match arena.node(key) {
        Node::Str(span) => Some(Key::Text(arena.bytes(span))),
        Node::Int(value) => Some(Key::Int(value)),
        _ => None,
    }
}

/// The first key that a dict was given twice.
fn repeated_key(arena: &Arena<'_>, mut keys: impl Iterator<Item = NodeId> + Clone) -> Option<NodeId> {
    /// Below, comparing all with all is faster than hashing.
    const FEW: usize = 8;
    let n_keys = keys.clone().count();
    if n_keys <= FEW {
        let few: Vec<_> = keys.clone().filter_map(|key| comparable(arena, key)).collect();
        let is_unique = few
            .iter()
            .enumerate()
            .all(|(i, key)| !few.iter().take(i).any(|earlier| earlier == key));
        if is_unique {
            return None;
        }
    }
    // Hashes alone take a third of the memory of keys; only where two are equal the keys themselves are looked at.
    let hasher = foldhash::fast::RandomState::default();
    let mut hashes: HashSet<u64, Quick> = HashSet::with_capacity_and_hasher(n_keys, Quick);
    let mut all = keys.clone().filter_map(|key| comparable(arena, key));
    if all.all(|key| hashes.insert(hasher.hash_one(key))) {
        return None;
    }
    let mut seen = HashSet::with_capacity_and_hasher(n_keys, hasher);
    keys.find(|&key| comparable(arena, key).is_some_and(|key| !seen.insert(key)))
}

/// As a Python dict: of equal keys the last value, at the place of the first.
fn last_of_equals(arena: &Arena<'_>, entries: &[(NodeId, NodeId)]) -> Vec<(NodeId, NodeId)> {
    let mut kept: Vec<(NodeId, NodeId)> = Vec::with_capacity(entries.len());
    let mut places: HashMap<Key<'_>, usize> = HashMap::new();
    for &(key, value) in entries {
        match comparable(arena, key).map(|key| places.entry(key)) {
            Some(Entry::Occupied(place)) => {
                if let Some(entry) = kept.get_mut(*place.get()) {
                    entry.1 = value;
                }
            }
            Some(Entry::Vacant(place)) => {
                place.insert(kept.len());
                kept.push((key, value));
            }
            None => kept.push((key, value)),
        }
    }
    kept
}

/// A dictionary's key as part of a name.
pub(crate) fn key_text<'a>(arena: &'a Arena<'_>, key: NodeId) -> Cow<'a, str> {
    match arena.node(key) {
        Node::Str(span) => arena.text(span),
        _ => render::render(arena, key).into(),
    }
}

fn push_segment(arena: &Arena<'_>, name: &mut String, segment: Segment) {
    let text = match segment {
        // The root itself.
        Segment::Name("") => return,
        Segment::Name(text) => Cow::Borrowed(text),
        Segment::Index(index) => index.to_string().into(),
        Segment::Key(key) => key_text(arena, key),
    };
    if !name.is_empty() {
        name.push('.');
    }
    name.push_str(&text);
}

pub(crate) fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() {
        name.to_owned()
    } else {
        format!("{prefix}.{name}")
    }
}
