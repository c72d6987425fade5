//! One pass over the opcodes. Costs O(bytes) in time and memory whatever the bytes are.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use std::borrow::Cow;

use indexmap::IndexMap;

use super::arena::{Arena, Named, Node, NodeId, Nodes, Span, Stored, small_long};
use super::{op, safety, text};
use crate::error::PickleFault;
use crate::{Error, limits};

/// The text of the fault that more bytes may mend.
pub(crate) const ENDLESS_LINE: &str = "a line without end";

/// What a pickle that names code is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// Nothing: it is refused.
    Refuse,
    /// Its values are read, as inert as all others.
    Read,
}

/// A global, where it is mentioned first, and whether any mention is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mention {
    pub(crate) module: String,
    pub(crate) name: String,
    pub(crate) offset: usize,
    pub(crate) is_called: bool,
}

/// Why a pickle was not read to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) offset: usize,
    pub(crate) kind: PickleFault,
}

impl Broken {
    pub(crate) fn into_error(self, record: &str) -> Error {
        Error::Format {
            record: record.to_owned(),
            offset: self.offset,
            kind: self.kind,
        }
    }
}

/// Reads the pickle at the start of `text`, of at most `limits::MAX_PICKLE_BYTES`. Returns its nodes and how many bytes it took.
///
/// `record` names it in errors.
pub(crate) fn read<'t>(
    text: Cow<'t, [u8]>,
    record: &str,
    policy: Policy,
) -> Result<(Arena<'t>, usize), Error> {
    let mut machine = Machine::new(&text);
    let end = machine.run();
    let fault_at = end.as_ref().err().map_or(machine.at, |broken| broken.offset);
    if let (Policy::Refuse, Some((offset, global))) = (policy, machine.first_unsafe.take())
        && offset <= fault_at
    {
        return Err(Error::Unsafe {
            record: record.to_owned(),
            offset,
            global,
        });
    }
    let root = end.map_err(|broken| broken.into_error(record))?;
    let (nodes, taken) = (machine.nodes, machine.at);
    Ok((Arena::new(text, nodes, root, taken), taken))
}

/// Reads as far as it goes, for a report: every global mentioned, how far the pickle reaches, and what broke it.
pub(crate) fn survey(text: &[u8]) -> (Vec<Mention>, usize, Option<Broken>) {
    let mut machine = Machine::new(text);
    machine.mentions = Some(Vec::new());
    let broken = machine.run().err();
    let mut found = IndexMap::new();
    for (at, &(offset, is_called)) in machine.mentions.iter().flatten().enumerate() {
        let named = u32::try_from(at).ok().and_then(|at| machine.nodes.named(at));
        if let Some(Named { module, name, .. }) = named {
            let key = (machine.nodes.text(text, module), machine.nodes.text(text, name));
            found.entry(key).or_insert((offset, false)).1 |= is_called;
        }
    }
    let text_of = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let mention = |((module, name), (offset, is_called))| Mention {
        module: text_of(module),
        name: text_of(name),
        offset,
        is_called,
    };
    (found.into_iter().map(mention).collect(), machine.at, broken)
}

/// Every text or run of bytes of a sound pickle that is long enough to be a pickle itself.
pub(crate) fn long_texts(text: &[u8]) -> Vec<&[u8]> {
    const LEAST_BYTES: usize = 8;
    let mut machine = Machine::new(text);
    machine.texts = Some(Vec::new());
    // A fault was told of when the pickle was surveyed.
    let _ = machine.run();
    let texts = machine.texts.unwrap_or_default();
    texts
        .into_iter()
        .filter(|text| text.len() >= LEAST_BYTES)
        .collect()
}

struct Machine<'t> {
    text: &'t [u8],
    nodes: Nodes,
    stack: Vec<NodeId>,
    /// Heights of the stack at each MARK.
    marks: Vec<usize>,
    /// [`NodeId::NONE`] where nothing was stored.
    memo: Vec<NodeId>,
    n_memo: usize,
    at: usize,
    op_start: usize,
    /// Where the current frame ends.
    frame_end: usize,
    first_unsafe: Option<(usize, String)>,
    /// Where each global is mentioned, and whether it is called; only kept for a survey.
    mentions: Option<Vec<(usize, bool)>>,
    /// Only kept for a search.
    texts: Option<Vec<&'t [u8]>>,
}

impl<'t> Machine<'t> {
    fn new(text: &'t [u8]) -> Machine<'t> {
        Machine {
            text,
            nodes: Nodes::default(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Vec::new(),
            n_memo: 0,
            at: 0,
            op_start: 0,
            frame_end: 0,
            first_unsafe: None,
            mentions: None,
            texts: None,
        }
    }

    fn run(&mut self) -> Result<NodeId, Broken> {
        let broken = |machine: &Machine<'_>, kind| Broken {
            offset: machine.op_start,
            kind,
        };
        loop {
            self.op_start = self.at;
            let Some(&opcode) = self.text.get(self.at) else {
                return Err(broken(self, PickleFault::NoStop));
            };
            self.at = self.at.saturating_add(1);
            if opcode == op::STOP {
                let root = self.pop().map_err(|kind| broken(self, kind))?;
                if !self.stack.is_empty() || !self.marks.is_empty() {
                    let left = self.stack.len().saturating_add(1);
                    return Err(broken(self, PickleFault::LeftOver(left)));
                }
                if self.at < self.frame_end {
                    return Err(broken(self, PickleFault::FrameCrossed));
                }
                return Ok(root);
            }
            self.step(opcode).map_err(|kind| broken(self, kind))?;
            if self.nodes.deepest() > limits::MAX_DEPTH {
                return Err(broken(self, PickleFault::TooDeep));
            }
        }
    }

    fn step(&mut self, opcode: u8) -> Result<(), PickleFault> {
        match opcode {
            op::PROTO => {
                let [version] = self.take_array::<1>()?;
                if version > 5 {
                    return Err(PickleFault::Protocol(version));
                }
            }
            op::FRAME => self.frame()?,

            // The stack and the memo.
            op::MARK => self.marks.push(self.stack.len()),
            op::POP => {
                // As in CPython, a mark is popped when it is on top.
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop()?;
                }
            }
            op::POP_MARK => {
                let mark = self.pop_mark()?;
                self.stack.truncate(mark);
            }
            op::DUP => {
                let top = self.peek()?;
                self.stack.push(top);
            }
            op::PUT => {
                let index = self.decimal_index()?;
                self.memoize(index)?;
            }
            op::BINPUT => {
                let [index] = self.take_array::<1>()?;
                self.memoize(u64::from(index))?;
            }
            op::LONG_BINPUT => {
                let index = u32::from_le_bytes(self.take_array()?);
                self.memoize(u64::from(index))?;
            }
            op::MEMOIZE => self.memoize(u64::try_from(self.n_memo).unwrap_or(u64::MAX))?,
            op::GET => {
                let index = self.decimal_index()?;
                self.recall(index)?;
            }
            op::BINGET => {
                let [index] = self.take_array::<1>()?;
                self.recall(u64::from(index))?;
            }
            op::LONG_BINGET => {
                let index = u32::from_le_bytes(self.take_array()?);
                self.recall(u64::from(index))?;
            }

            // Plain values, which are where they stand.
            op::NONE | op::NEWTRUE | op::NEWFALSE | op::EMPTY_TUPLE => self.push_plain(),
            op::BININT1 => self.plain_of(1)?,
            op::BININT2 => self.plain_of(2)?,
            op::BININT => self.plain_of(4)?,
            op::BINFLOAT => self.plain_of(8)?,
            op::LONG1 | op::SHORT_BINUNICODE | op::SHORT_BINSTRING | op::SHORT_BINBYTES => {
                self.sized_plain::<1>()?;
            }
            op::LONG4 | op::BINUNICODE | op::BINSTRING | op::BINBYTES => self.sized_plain::<4>()?,
            op::BINUNICODE8 | op::BINBYTES8 | op::BYTEARRAY8 => self.sized_plain::<8>()?,
            op::INT | op::LONG | op::FLOAT | op::STRING | op::UNICODE => self.text_value(opcode)?,

            // Collections.
            op::TUPLE1 => self.tuple_of(1)?,
            op::TUPLE2 => self.tuple_of(2)?,
            op::TUPLE3 => self.tuple_of(3)?,
            op::TUPLE => {
                let mark = self.pop_mark()?;
                self.tuple_from(mark);
            }
            op::EMPTY_LIST => self.push(Stored::List),
            op::EMPTY_DICT => self.push(Stored::Dict),
            op::EMPTY_SET => self.push(Stored::Set),
            op::LIST => self.filled(Stored::List)?,
            op::FROZENSET => self.filled(Stored::FrozenSet)?,
            op::DICT => {
                self.filled(Stored::Dict)?;
                let top = self.peek()?;
                if !self.nodes.n_items(top).is_multiple_of(2) {
                    return Err(PickleFault::OddItems);
                }
            }
            op::APPEND => {
                let item = self.pop()?;
                self.extend(opcode, &[item])?;
            }
            op::SETITEM => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.extend(opcode, &[key, value])?;
            }
            op::APPENDS | op::ADDITEMS | op::SETITEMS => {
                let mark = self.pop_mark()?;
                let items = self.stack.split_off(mark);
                self.extend(opcode, &items)?;
            }

            // What would be code.
            op::GLOBAL => {
                let module = self.line()?;
                let name = self.line()?;
                let id = self.global(module, name)?;
                self.stack.push(id);
            }
            op::STACK_GLOBAL => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.node(module), self.node(name)) {
                    (Node::Str(module), Node::Str(name)) => {
                        let id = self.global(module, name)?;
                        self.stack.push(id);
                    }
                    (_, other) => return Err(bad_target(opcode, other)),
                }
            }
            op::EXT1 => self.extension::<1>()?,
            op::EXT2 => self.extension::<2>()?,
            op::EXT4 => self.extension::<4>()?,
            op::INST => {
                let module = self.line()?;
                let name = self.line()?;
                let mark = self.pop_mark()?;
                let callee = self.global(module, name)?;
                self.tuple_from(mark);
                let args = self.pop()?;
                self.call(callee, Stored::Call { callee, args });
            }
            op::OBJ => {
                let mark = self.pop_mark()?;
                let callee = *self.stack.get(mark).ok_or(PickleFault::StackUnderflow)?;
                self.tuple_from(mark.saturating_add(1));
                let args = self.pop()?;
                self.stack.truncate(mark);
                self.call(callee, Stored::Call { callee, args });
            }
            op::REDUCE | op::NEWOBJ => {
                let (args, callee) = (self.pop()?, self.pop()?);
                self.check_args(opcode, args)?;
                self.call(callee, Stored::Call { callee, args });
            }
            op::NEWOBJ_EX => {
                let (kwargs, args, callee) = (self.pop()?, self.pop()?, self.pop()?);
                self.check_args(opcode, args)?;
                let args = self.nodes.tuple(&[args, kwargs]);
                self.call(callee, Stored::CallEx { callee, args });
            }
            op::BUILD => {
                let state = self.pop()?;
                let target = self.peek()?;
                match self.nodes.stored(target) {
                    Some(Stored::Call { callee, .. } | Stored::CallEx { callee, .. }) => {
                        self.note_call(callee);
                        self.nodes.push_state(target, state);
                    }
                    _ => return Err(bad_target(opcode, self.node(target))),
                }
            }
            op::PERSID => {
                let line = self.line()?;
                let id = self.nodes.add(Stored::Str(line));
                self.push(Stored::Persistent(id));
            }
            op::BINPERSID => {
                let id = self.pop()?;
                self.push(Stored::Persistent(id));
            }
            op::NEXT_BUFFER | op::READONLY_BUFFER => {
                return Err(PickleFault::Unsupported("an out-of-band buffer"));
            }
            other => return Err(PickleFault::UnknownOpcode(other)),
        }
        Ok(())
    }

    fn frame(&mut self) -> Result<(), PickleFault> {
        let len = u64::from_le_bytes(self.take_array()?);
        let left = self.left();
        if self.at < self.frame_end {
            return Err(PickleFault::FrameInFrame);
        }
        match usize::try_from(len).ok().filter(|&len| len <= left) {
            Some(len) => self.frame_end = self.at.saturating_add(len),
            None => return Err(PickleFault::Frame { len, left }),
        }
        Ok(())
    }

    fn push(&mut self, node: Stored) {
        let id = self.nodes.add(node);
        self.stack.push(id);
    }

    fn push_plain(&mut self) {
        self.stack.push(NodeId::plain(self.op_start));
    }

    fn plain_of(&mut self, n_bytes: usize) -> Result<(), PickleFault> {
        self.take(n_bytes)?;
        self.push_plain();
        Ok(())
    }

    /// A plain value behind its length of `N` bytes.
    fn sized_plain<const N: usize>(&mut self) -> Result<(), PickleFault> {
        let len: [u8; N] = self.take_array()?;
        let mut wide = [0; 8];
        for (to, from) in wide.iter_mut().zip(len) {
            *to = from;
        }
        let len = usize::try_from(u64::from_le_bytes(wide)).unwrap_or(usize::MAX);
        let text = self.take(len)?;
        if let Some(texts) = &mut self.texts {
            texts.push(text);
        }
        self.push_plain();
        Ok(())
    }

    /// The values that protocol 0 spells as lines.
    fn text_value(&mut self, opcode: u8) -> Result<(), PickleFault> {
        let line = self.line()?;
        let bytes = self.nodes.text(self.text, line);
        let node = match opcode {
            op::INT if bytes == b"00" => Stored::Bool(false),
            op::INT if bytes == b"01" => Stored::Bool(true),
            op::INT | op::LONG => {
                let digits = bytes.strip_suffix(b"L").unwrap_or(bytes);
                let value = std::str::from_utf8(digits)
                    .ok()
                    .and_then(|text| text.trim().parse::<i128>().ok());
                let value = value.ok_or(PickleFault::BadText("an integer"))?.to_le_bytes();
                match small_long(&value) {
                    Some(small) => Stored::Int(small.to_le_bytes()),
                    None => Stored::BigInt(self.nodes.add_text(self.text.len(), &value)),
                }
            }
            op::FLOAT => {
                let value = std::str::from_utf8(bytes)
                    .ok()
                    .and_then(|text| text.trim().parse::<f64>().ok());
                Stored::Float(value.ok_or(PickleFault::BadText("a float"))?.to_le_bytes())
            }
            op::STRING => {
                let unquoted = text::unquote(bytes).ok_or(PickleFault::BadText("a quoted string"))?;
                Stored::Str(self.nodes.add_text(self.text.len(), &unquoted))
            }
            _ => {
                let unescaped = text::unescape_unicode(bytes);
                Stored::Str(self.nodes.add_text(self.text.len(), &unescaped))
            }
        };
        self.push(node);
        Ok(())
    }

    fn global(&mut self, module: Span, name: Span) -> Result<NodeId, PickleFault> {
        let as_text = |span| std::str::from_utf8(self.nodes.text(self.text, span));
        let (Ok(module_text), Ok(name_text)) = (as_text(module), as_text(name)) else {
            return Err(PickleFault::BadText("the name of a global"));
        };
        if module_text.len().max(name_text.len()) > limits::MAX_GLOBAL_BYTES {
            return Err(PickleFault::BadText("the name of a global"));
        }
        if self.first_unsafe.is_none() && safety::is_unsafe(module_text, name_text) {
            self.first_unsafe = Some((self.op_start, format!("{module_text}.{name_text}")));
        }
        if let Some(mentions) = &mut self.mentions {
            mentions.push((self.op_start, false));
        }
        let is_unsafe_to_call = safety::is_unsafe_call(module_text, name_text);
        Ok(self.nodes.global(Named {
            module,
            name,
            is_unsafe_to_call,
        }))
    }

    /// A global by its number in the registry of a Python that is not here: it stays a number.
    fn extension<const N: usize>(&mut self) -> Result<(), PickleFault> {
        let code: [u8; N] = self.take_array()?;
        let mut wide = [0; 8];
        for (to, from) in wide.iter_mut().zip(code) {
            *to = from;
        }
        let name = format!("extension {}", u64::from_le_bytes(wide));
        let module = self.nodes.add_text(self.text.len(), b"copyreg");
        let name = self.nodes.add_text(self.text.len(), name.as_bytes());
        let id = self.global(module, name)?;
        self.stack.push(id);
        Ok(())
    }

    fn check_args(&self, opcode: u8, args: NodeId) -> Result<(), PickleFault> {
        match self.node(args) {
            Node::Tuple => Ok(()),
            other => Err(bad_target(opcode, other)),
        }
    }

    fn call(&mut self, callee: NodeId, call: Stored) {
        self.note_call(callee);
        self.push(call);
    }

    /// Marks a mention as called, and notes what is only harmless while it is not.
    fn note_call(&mut self, callee: NodeId) {
        let Some(Stored::Global(at)) = self.nodes.stored(callee) else {
            return;
        };
        let Some(named) = self.nodes.named(at) else {
            return;
        };
        if named.is_unsafe_to_call && self.first_unsafe.is_none() {
            let text = |span| String::from_utf8_lossy(self.nodes.text(self.text, span));
            let global = format!("{}.{}", text(named.module), text(named.name));
            self.first_unsafe = Some((self.op_start, global));
        }
        if let Some(mentions) = &mut self.mentions
            && let Some(mention) = usize::try_from(at).ok().and_then(|at| mentions.get_mut(at))
        {
            mention.1 = true;
        }
    }

    fn filled(&mut self, node: Stored) -> Result<(), PickleFault> {
        let mark = self.pop_mark()?;
        let id = self.nodes.add(node);
        let items = self.stack.split_off(mark);
        self.nodes.push_items(id, &items);
        self.stack.push(id);
        Ok(())
    }

    /// APPEND(S), ADDITEMS and SETITEM(S), each on its own kind of collection or on an object of some class.
    fn extend(&mut self, opcode: u8, items: &[NodeId]) -> Result<(), PickleFault> {
        let target = self.peek()?;
        let keyed = matches!(opcode, op::SETITEM | op::SETITEMS);
        if keyed && !items.len().is_multiple_of(2) {
            return Err(PickleFault::OddItems);
        }
        match (opcode, self.nodes.stored(target)) {
            (op::APPEND | op::APPENDS, Some(Stored::List))
            | (op::ADDITEMS, Some(Stored::Set))
            | (op::SETITEM | op::SETITEMS, Some(Stored::Dict)) => self.nodes.push_items(target, items),
            (_, Some(Stored::Call { .. } | Stored::CallEx { .. })) if keyed => {
                self.nodes.push_items(target, items);
            }
            (_, Some(Stored::Call { .. } | Stored::CallEx { .. })) => self.nodes.push_appended(target, items),
            _ => return Err(bad_target(opcode, self.node(target))),
        }
        Ok(())
    }

    fn tuple_of(&mut self, n: usize) -> Result<(), PickleFault> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let start = self.stack.len().checked_sub(n).filter(|&start| start >= floor);
        self.tuple_from(start.ok_or(PickleFault::StackUnderflow)?);
        Ok(())
    }

    /// Puts a tuple in the place of all values from `start` on.
    fn tuple_from(&mut self, start: usize) {
        let tuple = self.nodes.tuple(self.stack.get(start..).unwrap_or_default());
        self.stack.truncate(start);
        self.stack.push(tuple);
    }

    /// The top of the stack, above the last mark.
    fn peek(&self) -> Result<NodeId, PickleFault> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(&top) if self.stack.len() > floor => Ok(top),
            _ => Err(PickleFault::StackUnderflow),
        }
    }

    fn pop(&mut self) -> Result<NodeId, PickleFault> {
        let top = self.peek()?;
        self.stack.pop();
        Ok(top)
    }

    /// The height of the stack at the last mark, which is taken off.
    fn pop_mark(&mut self) -> Result<usize, PickleFault> {
        let mark = self.marks.pop().ok_or(PickleFault::NoMark)?;
        Ok(mark.min(self.stack.len()))
    }

    fn memoize(&mut self, index: u64) -> Result<(), PickleFault> {
        let top = self.peek()?;
        // An honest memo is numbered without gaps and each entry has cost the pickle a byte at least.
        let Some(slot) = usize::try_from(index).ok().filter(|&slot| slot < self.at) else {
            return Err(PickleFault::MemoIndex(index));
        };
        if slot == self.memo.len() {
            self.memo.push(top);
            self.n_memo = self.n_memo.saturating_add(1);
            return Ok(());
        }
        if slot > self.memo.len() {
            self.memo.resize(slot.saturating_add(1), NodeId::NONE);
        }
        if let Some(slot) = self.memo.get_mut(slot) {
            self.n_memo = self.n_memo.saturating_add(usize::from(*slot == NodeId::NONE));
            *slot = top;
        }
        Ok(())
    }

    fn recall(&mut self, index: u64) -> Result<(), PickleFault> {
        let entry = usize::try_from(index)
            .ok()
            .and_then(|index| self.memo.get(index).copied())
            .filter(|&id| id != NodeId::NONE);
        self.stack.push(entry.ok_or(PickleFault::MissingMemo(index))?);
        Ok(())
    }

    fn decimal_index(&mut self) -> Result<u64, PickleFault> {
        let line = self.line()?;
        std::str::from_utf8(self.nodes.text(self.text, line))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .ok_or(PickleFault::BadText("a memo index"))
    }

    fn node(&self, id: NodeId) -> Node {
        super::arena::decode(self.text, &self.nodes, id)
    }

    fn left(&self) -> usize {
        self.text.len().saturating_sub(self.at)
    }

    fn take(&mut self, needed: usize) -> Result<&'t [u8], PickleFault> {
        let end = self.at.saturating_add(needed);
        let Some(taken) = self.text.get(self.at..end) else {
            let left = self.left();
            return Err(PickleFault::Truncated { needed, left });
        };
        if end > self.frame_end && self.op_start < self.frame_end {
            return Err(PickleFault::FrameCrossed);
        }
        self.at = end;
        Ok(taken)
    }

    fn take_array<const N: usize>(&mut self) -> Result<[u8; N], PickleFault> {
        Ok(*self.take(N)?.first_chunk().expect("as many as were taken"))
    }

    /// Text up to the next newline, which is taken too.
    fn line(&mut self) -> Result<Span, PickleFault> {
        let start = self.at;
        let rest = self.text.get(start..).unwrap_or_default();
        let Some(len) = rest.iter().position(|&byte| byte == b'\n') else {
            return Err(PickleFault::BadText(ENDLESS_LINE));
        };
        let line = self.take(len.saturating_add(1))?;
        // Python 2 on Windows wrote text files.
        let ends_in_return = line.strip_suffix(b"\r\n").is_some();
        Ok(Span::new(start, len.saturating_sub(usize::from(ends_in_return))))
    }
}

fn bad_target(opcode: u8, found: Node) -> PickleFault {
    PickleFault::BadTarget {
        opcode: op::name(opcode),
        found: kind(found),
    }
}

pub(crate) fn kind(node: Node) -> &'static str {
    match node {
        Node::None => "None",
        Node::Bool(_) => "a bool",
        Node::Int(_) | Node::BigInt(_) => "an int",
        Node::Float(_) => "a float",
        Node::Str(_) => "a str",
        Node::Bytes(_) => "bytes",
        Node::Tuple => "a tuple",
        Node::List => "a list",
        Node::Dict => "a dict",
        Node::Set => "a set",
        Node::FrozenSet => "a frozenset",
        Node::Global => "a global",
        Node::Persistent(_) => "a persistent id",
        Node::Call { .. } | Node::CallEx { .. } => "an object",
    }
}
