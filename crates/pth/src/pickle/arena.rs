//! What a pickle says, as nodes that refer to each other by id.
//!
//! A plain value is not stored at all: its id is where its opcode stands in the pickle, and it is decoded when it is looked at.
//! So a checkpoint's names, sizes and keys cost no memory beyond the pickle's own.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use std::borrow::Cow;
use std::collections::HashMap;

use super::op;

/// A node's place: in the pickle for a plain value, else in the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeId(u32);

/// Set in the ids of nodes that the arena stores.
const STORED: u32 = 1 << 31;

impl NodeId {
    /// No node: there are never so many.
    pub(super) const NONE: NodeId = NodeId(u32::MAX);

    /// The plain value whose opcode stands at `offset` of the pickle.
    pub(crate) fn plain(offset: usize) -> NodeId {
        NodeId(u32::try_from(offset).expect("a pickle is at most 1 GiB"))
    }

    /// Whether the node can hold others.
    pub(crate) fn is_stored(self) -> bool {
        self.0 & STORED != 0
    }

    /// The place of a stored node among all of them.
    pub(crate) fn place(self) -> usize {
        self.slot()
    }

    fn slot(self) -> usize {
        usize::try_from(self.0 & !STORED).expect("at least 32-bit addresses")
    }
}

/// A run of the arena's child list or of its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) len: u32,
}

impl Span {
    pub(crate) fn new(start: usize, len: usize) -> Span {
        let small = |n: usize| {
            u32::try_from(n).expect("a pickle, its children and its unescaped texts are below 4 Gi")
        };
        Span {
            start: small(start),
            len: small(len),
        }
    }

    fn range(self) -> std::ops::Range<usize> {
        let wide = |n: u32| usize::try_from(n).expect("at least 32-bit addresses");
        wide(self.start)..wide(self.start).saturating_add(wide(self.len))
    }
}

/// One value of the pickle.
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
    Tuple,
    /// Items in [`Arena::items`]; so for the next four.
    List,
    /// Keys and values alternate.
    Dict,
    Set,
    FrozenSet,
    Global,
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

/// A node that is kept, in 12 bytes: there are seven of them for each tensor.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stored {
    Bool(bool),
    Int([u8; 8]),
    BigInt(Span),
    Float([u8; 8]),
    Str(Span),
    Tuple(Span),
    List,
    Dict,
    Set,
    FrozenSet,
    Global(u32),
    Persistent(NodeId),
    Call { callee: NodeId, args: NodeId },
    CallEx { callee: NodeId, args: NodeId },
}

/// What the machine builds; together with the pickle's text it is an [`Arena`].
#[derive(Default)]
pub(super) struct Nodes {
    nodes: Vec<Stored>,
    /// How deep values are nested in each node.
    depths: Vec<u16>,
    /// The greatest of them.
    deepest: u16,
    children: Vec<NodeId>,
    /// Items of lists and sets; keys and values of dicts and of objects that had items set.
    items: HashMap<NodeId, Vec<NodeId>, Quick>,
    /// What was appended or added to objects.
    appended: HashMap<NodeId, Vec<NodeId>, Quick>,
    /// What BUILD gave, in order.
    states: HashMap<NodeId, Vec<NodeId>, Quick>,
    /// Texts that do not occur in the pickle as they are: unescaped ones. Addressed after the pickle's end.
    scratch: Vec<u8>,
    globals: Vec<Named>,
}

/// A global's names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Named {
    pub(super) module: Span,
    pub(super) name: Span,
    /// Whether a call of it, though not its mention, could run code.
    pub(super) is_unsafe_to_call: bool,
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
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        // 2^64 / golden ratio, as in Fibonacci hashing.
        self.0 = (self.0 ^ value)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29);
    }
}

impl Nodes {
    /// Each opcode adds two nodes at most and the pickle is at most 1 GiB, so ids fit.
    pub(super) fn add(&mut self, node: Stored) -> NodeId {
        let depth = match node {
            Stored::Persistent(id) => self.depth_around(&[id]),
            Stored::Call { args, .. } | Stored::CallEx { args, .. } => self.depth_around(&[args]),
            _ => 1,
        };
        self.add_of_depth(node, depth)
    }

    fn add_of_depth(&mut self, node: Stored, depth: u16) -> NodeId {
        let slot = u32::try_from(self.nodes.len()).expect("at most two nodes per byte of at most 1 GiB");
        self.deepest = self.deepest.max(depth);
        self.nodes.push(node);
        self.depths.push(depth);
        NodeId(slot | STORED)
    }

    /// How deep a value is nested that holds `items`.
    fn depth_around(&self, items: &[NodeId]) -> u16 {
        let depth = |item: &NodeId| match item.is_stored() {
            true => self.depths.get(item.slot()).copied().unwrap_or(0),
            false => 0,
        };
        items.iter().map(depth).max().unwrap_or(0).saturating_add(1)
    }

    fn deepen(&mut self, target: NodeId, items: &[NodeId]) {
        let depth = self.depth_around(items);
        self.deepest = self.deepest.max(depth);
        if let Some(slot) = self.depths.get_mut(target.slot()) {
            *slot = depth.max(*slot);
        }
    }

    /// How deep values are nested, each as deep as it was when it was put into another.
    pub(super) fn deepest(&self) -> usize {
        usize::from(self.deepest)
    }

    pub(super) fn stored(&self, id: NodeId) -> Option<Stored> {
        id.is_stored().then(|| {
            *self
                .nodes
                .get(id.slot())
                .expect("ids are made by this arena only")
        })
    }

    /// Stores `items` as a tuple's; they cannot change.
    pub(super) fn tuple(&mut self, items: &[NodeId]) -> NodeId {
        let span = Span::new(self.children.len(), items.len());
        self.children.extend_from_slice(items);
        let depth = self.depth_around(items);
        self.add_of_depth(Stored::Tuple(span), depth)
    }

    /// Keeps `text`, which the pickle of `text_len` bytes does not hold as it is.
    pub(super) fn add_text(&mut self, text_len: usize, text: &[u8]) -> Span {
        let span = Span::new(text_len.saturating_add(self.scratch.len()), text.len());
        self.scratch.extend_from_slice(text);
        span
    }

    pub(super) fn global(&mut self, named: Named) -> NodeId {
        let at = u32::try_from(self.globals.len()).expect("fewer globals than bytes of the pickle");
        self.globals.push(named);
        self.add(Stored::Global(at))
    }

    pub(super) fn named(&self, at: u32) -> Option<Named> {
        self.globals.get(usize::try_from(at).ok()?).copied()
    }

    pub(super) fn push_items(&mut self, target: NodeId, items: &[NodeId]) {
        self.items.entry(target).or_default().extend_from_slice(items);
        self.deepen(target, items);
    }

    pub(super) fn push_appended(&mut self, target: NodeId, items: &[NodeId]) {
        self.appended.entry(target).or_default().extend_from_slice(items);
        self.deepen(target, items);
    }

    pub(super) fn push_state(&mut self, target: NodeId, state: NodeId) {
        self.states.entry(target).or_default().push(state);
        self.deepen(target, &[state]);
    }

    pub(super) fn n_items(&self, id: NodeId) -> usize {
        self.items.get(&id).map_or(0, Vec::len)
    }

    pub(super) fn text<'a>(&'a self, text: &'a [u8], span: Span) -> &'a [u8] {
        let range = span.range();
        match range.start.checked_sub(text.len()) {
            None => text.get(range),
            Some(start) => self.scratch.get(start..start.saturating_add(range.len())),
        }
        .unwrap_or_default()
    }
}

/// All nodes of one pickle, and its text.
pub(crate) struct Arena<'t> {
    text: Cow<'t, [u8]>,
    nodes: Nodes,
    root: NodeId,
    /// How much of the text the pickle takes.
    n_bytes: usize,
}

impl<'t> Arena<'t> {
    pub(super) fn new(text: Cow<'t, [u8]>, nodes: Nodes, root: NodeId, n_bytes: usize) -> Arena<'t> {
        Arena {
            text,
            nodes,
            root,
            n_bytes,
        }
    }

    pub(crate) fn root(&self) -> NodeId {
        self.root
    }

    /// Size of the pickle in bytes.
    pub(crate) fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// How many nodes can hold others.
    pub(crate) fn n_stored(&self) -> usize {
        self.nodes.nodes.len()
    }

    /// Every node that can hold others.
    pub(crate) fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        let n = u32::try_from(self.nodes.nodes.len()).expect("ids fit, as `add` has seen");
        (0..n).map(|slot| NodeId(slot | STORED))
    }

    pub(crate) fn node(&self, id: NodeId) -> Node {
        decode(&self.text, &self.nodes, id)
    }

    /// The children of a tuple; the items of anything else, flat: keys and values alternate where there are keys.
    pub(crate) fn items(&self, id: NodeId) -> &[NodeId] {
        match self.nodes.stored(id) {
            Some(Stored::Tuple(span)) => self.nodes.children.get(span.range()).unwrap_or_default(),
            Some(_) => self.nodes.items.get(&id).map_or(&[], Vec::as_slice),
            None => &[],
        }
    }

    /// What was appended or added to an object.
    pub(crate) fn appended(&self, id: NodeId) -> &[NodeId] {
        self.nodes.appended.get(&id).map_or(&[], Vec::as_slice)
    }

    /// What BUILD gave to `id`.
    pub(crate) fn states(&self, id: NodeId) -> &[NodeId] {
        self.nodes.states.get(&id).map_or(&[], Vec::as_slice)
    }

    /// Whether anything was set in an object, appended to it or built onto it.
    pub(crate) fn is_changed_later(&self, id: NodeId) -> bool {
        let nodes = &self.nodes;
        nodes.states.contains_key(&id) || nodes.items.contains_key(&id) || nodes.appended.contains_key(&id)
    }

    pub(crate) fn bytes(&self, span: Span) -> &[u8] {
        self.nodes.text(&self.text, span)
    }

    pub(crate) fn text(&self, span: Span) -> Cow<'_, str> {
        let bytes = self.bytes(span);
        // Almost always it is text, which is seen faster than what is not.
        std::str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)
    }

    /// The text of a string, or of a Python 2 one, which pickles as bytes.
    pub(crate) fn str(&self, id: NodeId) -> Option<Cow<'_, str>> {
        self.str_bytes(id).map(String::from_utf8_lossy)
    }

    /// As [`str`](Arena::str), as it is in the file.
    pub(crate) fn str_bytes(&self, id: NodeId) -> Option<&[u8]> {
        match self.node(id) {
            Node::Str(span) | Node::Bytes(span) => Some(self.bytes(span)),
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

    /// `(module, name)` of a global, or of the class that a legacy file tells the source text of.
    pub(crate) fn global_name(&self, id: NodeId) -> Option<(&str, &str)> {
        match self.nodes.stored(id)? {
            Stored::Global(at) => {
                let named = self.nodes.named(at)?;
                let text = |span| std::str::from_utf8(self.bytes(span)).ok();
                Some((text(named.module)?, text(named.name)?))
            }
            // ('module', class, source file, source text)
            Stored::Persistent(pid) => match self.items(pid) {
                &[tag, class, _, _] if self.str_bytes(tag) == Some(b"module") && class.is_stored() => {
                    match self.nodes.stored(class)? {
                        Stored::Global(_) => self.global_name(class),
                        _ => None,
                    }
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// `(module, name)` of what a call calls.
    pub(crate) fn callee_name(&self, id: NodeId) -> Option<(&str, &str)> {
        self.global_name(self.callee(id)?)
    }

    /// What a call calls.
    pub(crate) fn callee(&self, id: NodeId) -> Option<NodeId> {
        match self.nodes.stored(id)? {
            Stored::Call { callee, .. } | Stored::CallEx { callee, .. } => Some(callee),
            _ => None,
        }
    }

    /// The positional arguments of a call.
    pub(crate) fn args(&self, id: NodeId) -> &[NodeId] {
        match self.nodes.stored(id) {
            Some(Stored::Call { args, .. }) => self.items(args),
            Some(Stored::CallEx { args, .. }) => {
                self.items(args).first().map_or(&[], |&args| self.items(args))
            }
            _ => &[],
        }
    }
}

/// The value of a node.
pub(super) fn decode(text: &[u8], nodes: &Nodes, id: NodeId) -> Node {
    let Some(stored) = nodes.stored(id) else {
        // What the machine has read decodes again; in a file that was changed meanwhile it may not, which `Source` notices.
        return plain(text, id.slot()).unwrap_or(Node::None);
    };
    match stored {
        Stored::Bool(value) => Node::Bool(value),
        Stored::Int(value) => Node::Int(i64::from_le_bytes(value)),
        Stored::Float(value) => Node::Float(f64::from_le_bytes(value)),
        Stored::BigInt(span) => Node::BigInt(span),
        Stored::Str(span) => Node::Str(span),
        Stored::Tuple(_) => Node::Tuple,
        Stored::List => Node::List,
        Stored::Dict => Node::Dict,
        Stored::Set => Node::Set,
        Stored::FrozenSet => Node::FrozenSet,
        Stored::Global(_) => Node::Global,
        Stored::Persistent(id) => Node::Persistent(id),
        Stored::Call { callee, args } => Node::Call { callee, args },
        Stored::CallEx { callee, args } => Node::CallEx { callee, args },
    }
}

/// The plain value whose opcode stands at `offset` of a pickle.
fn plain(text: &[u8], offset: usize) -> Option<Node> {
    let (&opcode, operand) = text.get(offset..)?.split_first()?;
    let sized = |n_bytes: usize| {
        let len = operand.get(..n_bytes)?;
        let mut wide = [0; 8];
        wide.get_mut(..n_bytes)?.copy_from_slice(len);
        let len = usize::try_from(u64::from_le_bytes(wide)).ok()?;
        Some(Span::new(offset.checked_add(1)?.checked_add(n_bytes)?, len))
    };
    let long = |span: Span| {
        let bytes = text.get(span.range())?;
        Some(small_long(bytes).map_or(Node::BigInt(span), Node::Int))
    };
    Some(match opcode {
        op::NONE => Node::None,
        op::NEWTRUE => Node::Bool(true),
        op::NEWFALSE => Node::Bool(false),
        op::EMPTY_TUPLE => Node::Tuple,
        op::BININT => Node::Int(i64::from(i32::from_le_bytes(*operand.first_chunk()?))),
        op::BININT1 => Node::Int(i64::from(*operand.first()?)),
        op::BININT2 => Node::Int(i64::from(u16::from_le_bytes(*operand.first_chunk()?))),
        op::LONG1 => long(sized(1)?)?,
        op::LONG4 => long(sized(4)?)?,
        op::BINFLOAT => Node::Float(f64::from_be_bytes(*operand.first_chunk()?)),
        op::SHORT_BINUNICODE | op::SHORT_BINSTRING => Node::Str(sized(1)?),
        op::BINUNICODE | op::BINSTRING => Node::Str(sized(4)?),
        op::BINUNICODE8 => Node::Str(sized(8)?),
        op::SHORT_BINBYTES => Node::Bytes(sized(1)?),
        op::BINBYTES => Node::Bytes(sized(4)?),
        op::BINBYTES8 | op::BYTEARRAY8 => Node::Bytes(sized(8)?),
        _ => return None,
    })
}

/// A little-endian two's complement number, if it fits.
pub(super) fn small_long(bytes: &[u8]) -> Option<i64> {
    let Some(&last) = bytes.last() else {
        return Some(0);
    };
    let sign = if last < 0x80 { 0 } else { 0xff };
    let mut wide = [sign; 8];
    let (low, high) = bytes.split_at(bytes.len().min(8));
    for (to, from) in wide.iter_mut().zip(low) {
        *to = *from;
    }
    let value = i64::from_le_bytes(wide);
    // Bytes beyond the eighth may only repeat the sign.
    let fits = high.iter().all(|&byte| byte == sign) && (high.is_empty() || (value < 0) == (sign == 0xff));
    fits.then_some(value)
}
