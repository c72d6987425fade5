//! What a pickle says, as nodes that refer to each other by id.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use std::borrow::Cow;
use std::collections::HashMap;

use crate::Storage;

/// A node's place in its arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct NodeId(u32);

/// A run of the arena's child list or of its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) len: u32,
}

/// One value of the pickle. At most 16 bytes: there is one for almost every opcode.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bits, little-endian two's complement.
    BigInt(Span),
    Float(f64),
    /// UTF-8, perhaps with lone surrogates.
    Str(Span),
    Bytes(Span),
    Tuple(Span),
    /// Items in [`Arena::items`], which may still grow while the pickle is read; so for the next three.
    List,
    /// Keys and values alternate.
    Dict,
    Set,
    FrozenSet,
    Global {
        module: TextId,
        name: TextId,
    },
    Persistent(NodeId),
    /// `callee(*args)`: REDUCE, NEWOBJ, OBJ, INST. Items and state that were given later are in the arena.
    Call {
        callee: NodeId,
        args: NodeId,
    },
    /// `callee(*args, **kwargs)`: NEWOBJ_EX. `args` is the tuple `(args, kwargs)`.
    CallEx {
        callee: NodeId,
        args: NodeId,
    },
}

/// An index into the arena's table of texts of globals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TextId(pub(crate) u32);

/// All nodes of one pickle, and the bytes that their texts lie in.
pub(crate) struct Arena {
    nodes: Vec<Node>,
    children: Vec<NodeId>,
    /// Items of lists and sets; keys and values of dicts and of objects that had items set.
    items: HashMap<NodeId, Vec<NodeId>, Quick>,
    /// What was appended or added to objects.
    appended: HashMap<NodeId, Vec<NodeId>, Quick>,
    /// What BUILD gave, in order.
    states: HashMap<NodeId, Vec<NodeId>, Quick>,
    source: Storage,
    /// Texts that do not occur in the source as they are: unescaped ones. Addressed after the source's end.
    scratch: Vec<u8>,
    texts: Vec<Span>,
    root: Option<NodeId>,
}

/// Ids are small and dense, made here and not by the file: multiplication spreads them well enough.
#[derive(Default, Clone, Copy)]
pub(crate) struct Quick;

impl std::hash::BuildHasher for Quick {
    type Hasher = QuickHasher;

    fn build_hasher(&self) -> QuickHasher {
        QuickHasher(0)
    }
}

pub(crate) struct QuickHasher(u64);

impl std::hash::Hasher for QuickHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }

    fn write_u32(&mut self, value: u32) {
        // 2^64 / golden ratio, as in Fibonacci hashing.
        self.0 = (self.0 ^ u64::from(value))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29);
    }
}

impl Arena {
    pub(crate) fn new(source: Storage) -> Arena {
        Arena {
            nodes: Vec::new(),
            children: Vec::new(),
            items: HashMap::default(),
            appended: HashMap::default(),
            states: HashMap::default(),
            source,
            scratch: Vec::new(),
            texts: Vec::new(),
            root: None,
        }
    }

    pub(crate) fn source(&self) -> &[u8] {
        self.source.as_bytes()
    }

    pub(crate) fn root(&self) -> NodeId {
        self.root.expect("an arena is handed out with its root set")
    }

    pub(crate) fn set_root(&mut self, root: NodeId) {
        self.root = Some(root);
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..u32::try_from(self.nodes.len()).unwrap_or(u32::MAX)).map(NodeId)
    }

    pub(crate) fn index(id: NodeId) -> usize {
        usize::try_from(id.0).expect("at least 32-bit addresses")
    }

    /// Each opcode adds two nodes at most and the source is at most 1 GiB, so ids fit.
    pub(crate) fn add(&mut self, node: Node) -> NodeId {
        let id =
            NodeId(u32::try_from(self.nodes.len()).expect("at most two nodes per byte of at most 1 GiB"));
        self.nodes.push(node);
        id
    }

    pub(crate) fn node(&self, id: NodeId) -> Node {
        *self
            .nodes
            .get(Arena::index(id))
            .expect("ids are made by this arena only")
    }

    /// Stores `items` as a tuple's; they cannot change.
    pub(crate) fn tuple(&mut self, items: &[NodeId]) -> NodeId {
        let start = u32::try_from(self.children.len()).expect("each child cost the pickle a byte");
        let len = u32::try_from(items.len()).expect("each child cost the pickle a byte");
        self.children.extend_from_slice(items);
        self.add(Node::Tuple(Span { start, len }))
    }

    pub(crate) fn add_text(&mut self, text: &[u8]) -> Span {
        let start = self.source().len().saturating_add(self.scratch.len());
        self.scratch.extend_from_slice(text);
        Span {
            start: u32::try_from(start)
                .expect("unescaped texts are at most twice the source, which is at most 1 GiB"),
            len: u32::try_from(text.len())
                .expect("unescaped texts are at most twice the source, which is at most 1 GiB"),
        }
    }

    pub(crate) fn global(&mut self, module: Span, name: Span) -> NodeId {
        let at = |n: usize| TextId(u32::try_from(n).expect("fewer globals than bytes of the pickle"));
        let (module_at, name_at) = (at(self.texts.len()), at(self.texts.len().saturating_add(1)));
        self.texts.extend([module, name]);
        self.add(Node::Global {
            module: module_at,
            name: name_at,
        })
    }

    pub(crate) fn push_items(&mut self, target: NodeId, items: &[NodeId]) {
        self.items.entry(target).or_default().extend_from_slice(items);
    }

    pub(crate) fn push_appended(&mut self, target: NodeId, items: &[NodeId]) {
        self.appended.entry(target).or_default().extend_from_slice(items);
    }

    pub(crate) fn push_state(&mut self, target: NodeId, state: NodeId) {
        self.states.entry(target).or_default().push(state);
    }

    /// The children of a tuple; the items of anything else, flat: keys and values alternate where there are keys.
    pub(crate) fn items(&self, id: NodeId) -> &[NodeId] {
        match self.node(id) {
            Node::Tuple(span) => self.children.get(range(span)).unwrap_or_default(),
            _ => self.items.get(&id).map_or(&[], Vec::as_slice),
        }
    }

    /// What was appended or added to an object.
    pub(crate) fn appended(&self, id: NodeId) -> &[NodeId] {
        self.appended.get(&id).map_or(&[], Vec::as_slice)
    }

    /// What BUILD gave to `id`.
    pub(crate) fn states(&self, id: NodeId) -> &[NodeId] {
        self.states.get(&id).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn bytes(&self, span: Span) -> &[u8] {
        let range = range(span);
        let source = self.source();
        match range.start.checked_sub(source.len()) {
            None => source.get(range),
            Some(start) => self.scratch.get(start..start.saturating_add(range.len())),
        }
        .unwrap_or_default()
    }

    pub(crate) fn text(&self, span: Span) -> Cow<'_, str> {
        String::from_utf8_lossy(self.bytes(span))
    }

    /// The text of a string, or of a Python 2 one, which pickles as bytes.
    pub(crate) fn str(&self, id: NodeId) -> Option<Cow<'_, str>> {
        match self.node(id) {
            Node::Str(span) | Node::Bytes(span) => Some(self.text(span)),
            _ => None,
        }
    }

    pub(crate) fn int(&self, id: NodeId) -> Option<i64> {
        match self.node(id) {
            Node::Int(value) => Some(value),
            Node::Bool(value) => Some(i64::from(value)),
            _ => None,
        }
    }

    /// `(module, name)` of a global.
    pub(crate) fn global_name(&self, id: NodeId) -> Option<(&str, &str)> {
        match self.node(id) {
            Node::Global { module, name } => {
                let text = |at: TextId| {
                    let span = self.texts.get(usize::try_from(at.0).ok()?)?;
                    std::str::from_utf8(self.bytes(*span)).ok()
                };
                Some((text(module)?, text(name)?))
            }
            _ => None,
        }
    }

    /// `(module, name)` of what a call calls.
    pub(crate) fn callee_name(&self, id: NodeId) -> Option<(&str, &str)> {
        match self.node(id) {
            Node::Call { callee, .. } | Node::CallEx { callee, .. } => self.global_name(callee),
            _ => None,
        }
    }

    /// The positional arguments of a call.
    pub(crate) fn args(&self, id: NodeId) -> &[NodeId] {
        match self.node(id) {
            Node::Call { args, .. } => self.items(args),
            Node::CallEx { args, .. } => self.items(args).first().map_or(&[], |&args| self.items(args)),
            _ => &[],
        }
    }
}

fn range(span: Span) -> std::ops::Range<usize> {
    let start = usize::try_from(span.start).expect("at least 32-bit addresses");
    let len = usize::try_from(span.len).expect("at least 32-bit addresses");
    start..start.saturating_add(len)
}
