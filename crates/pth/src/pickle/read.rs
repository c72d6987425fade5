//! One pass over the opcodes. Costs O(bytes) in time and memory whatever the bytes are.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::arena::{Arena, Node, NodeId, Span};
use super::{op, safety};
use crate::error::PickleFault;
use crate::{Error, Storage};

/// Reads the pickle at the start of `source`. Returns its nodes and how many bytes it took.
///
/// `record` names it in errors. `source` must not be longer than `limits::MAX_PICKLE_BYTES`.
pub(crate) fn read(source: Storage, record: &str) -> Result<(Arena, usize), Error> {
    let mut machine = Machine {
        arena: Arena::new(source),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
        common: Common::default(),
        at: 0,
        op_start: 0,
    };
    match machine.run() {
        Ok(root) => {
            machine.arena.set_root(root);
            Ok((machine.arena, machine.at))
        }
        Err(Stop::Fault(kind)) => Err(Error::Format {
            record: record.to_owned(),
            offset: machine.op_start,
            kind,
        }),
        Err(Stop::Unsafe(global)) => Err(Error::Unsafe {
            record: record.to_owned(),
            offset: machine.op_start,
            global,
        }),
    }
}

struct Machine {
    arena: Arena,
    stack: Vec<NodeId>,
    /// Heights of the stack at each MARK.
    marks: Vec<usize>,
    memo: Vec<Option<NodeId>>,
    common: Common,
    at: usize,
    op_start: usize,
}

/// Immutable values that occur once per tensor or more, made once.
#[derive(Default)]
struct Common {
    none: Option<NodeId>,
    bools: [Option<NodeId>; 2],
    empty_tuple: Option<NodeId>,
    small_ints: Vec<Option<NodeId>>,
}

enum Stop {
    Fault(PickleFault),
    Unsafe(String),
}

impl From<PickleFault> for Stop {
    fn from(fault: PickleFault) -> Stop {
        Stop::Fault(fault)
    }
}

impl Machine {
    fn run(&mut self) -> Result<NodeId, Stop> {
        loop {
            self.op_start = self.at;
            let Some(&opcode) = self.arena.source().get(self.at) else {
                return Err(PickleFault::NoStop.into());
            };
            self.at = self.at.saturating_add(1);
            if opcode == op::STOP {
                let root = self.pop()?;
                if !self.stack.is_empty() || !self.marks.is_empty() {
                    return Err(PickleFault::LeftOver(self.stack.len().saturating_add(1)).into());
                }
                return Ok(root);
            }
            self.step(opcode)?;
        }
    }

    fn step(&mut self, opcode: u8) -> Result<(), Stop> {
        match opcode {
            op::PROTO => {
                let [version] = self.take_array::<1>()?;
                if version > 5 {
                    return Err(PickleFault::Protocol(version).into());
                }
            }
            op::FRAME => {
                let len = u64::from_le_bytes(self.take_array()?);
                let left = self.left();
                if len > u64::try_from(left).unwrap_or(u64::MAX) {
                    return Err(PickleFault::Frame { len, left }.into());
                }
            }

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
                self.pop_mark()?;
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
            op::MEMOIZE => self.memoize(u64::try_from(self.memo.len()).unwrap_or(u64::MAX))?,
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

            // Plain values.
            op::NONE => {
                let none = *self.common.none.get_or_insert_with(|| self.arena.add(Node::None));
                self.stack.push(none);
            }
            op::NEWTRUE => self.push_bool(true),
            op::NEWFALSE => self.push_bool(false),
            op::BININT => {
                let value = i32::from_le_bytes(self.take_array()?);
                self.push_int(i64::from(value));
            }
            op::BININT1 => {
                let [value] = self.take_array::<1>()?;
                self.push_int(i64::from(value));
            }
            op::BININT2 => {
                let value = u16::from_le_bytes(self.take_array()?);
                self.push_int(i64::from(value));
            }
            op::INT => self.text_int()?,
            op::LONG => self.text_long()?,
            op::LONG1 => {
                let [len] = self.take_array::<1>()?;
                let span = self.take(usize::from(len))?;
                self.push_long(span);
            }
            op::LONG4 => {
                let span = self.take_sized::<4>()?;
                self.push_long(span);
            }
            op::FLOAT => {
                let line = self.line()?;
                let value = self
                    .arena
                    .text(line)
                    .trim()
                    .parse()
                    .map_err(|_| PickleFault::BadText("a float"))?;
                self.push(Node::Float(value));
            }
            op::BINFLOAT => {
                let value = f64::from_be_bytes(self.take_array()?);
                self.push(Node::Float(value));
            }
            op::STRING => {
                let line = self.line()?;
                let text = unquote(self.arena.bytes(line)).ok_or(PickleFault::BadText("a quoted string"))?;
                let span = self.arena.add_text(&text);
                self.push(Node::Str(span));
            }
            op::UNICODE => {
                let line = self.line()?;
                let text = unescape_unicode(self.arena.bytes(line));
                let span = self.arena.add_text(&text);
                self.push(Node::Str(span));
            }
            op::SHORT_BINUNICODE | op::SHORT_BINSTRING => {
                let span = self.take_sized::<1>()?;
                self.push(Node::Str(span));
            }
            op::BINUNICODE | op::BINSTRING => {
                let span = self.take_sized::<4>()?;
                self.push(Node::Str(span));
            }
            op::BINUNICODE8 => {
                let span = self.take_sized::<8>()?;
                self.push(Node::Str(span));
            }
            op::SHORT_BINBYTES => {
                let span = self.take_sized::<1>()?;
                self.push(Node::Bytes(span));
            }
            op::BINBYTES => {
                let span = self.take_sized::<4>()?;
                self.push(Node::Bytes(span));
            }
            op::BINBYTES8 | op::BYTEARRAY8 => {
                let span = self.take_sized::<8>()?;
                self.push(Node::Bytes(span));
            }

            // Collections.
            op::EMPTY_TUPLE => {
                let empty = *self
                    .common
                    .empty_tuple
                    .get_or_insert_with(|| self.arena.tuple(&[]));
                self.stack.push(empty);
            }
            op::TUPLE1 => self.tuple_of(1)?,
            op::TUPLE2 => self.tuple_of(2)?,
            op::TUPLE3 => self.tuple_of(3)?,
            op::TUPLE => {
                let items = self.pop_mark()?;
                let tuple = self.arena.tuple(&items);
                self.stack.push(tuple);
            }
            op::EMPTY_LIST => self.push(Node::List),
            op::EMPTY_DICT => self.push(Node::Dict),
            op::EMPTY_SET => self.push(Node::Set),
            op::LIST => self.filled(Node::List)?,
            op::FROZENSET => self.filled(Node::FrozenSet)?,
            op::DICT => {
                self.filled(Node::Dict)?;
                let top = self.peek()?;
                if !self.arena.items(top).len().is_multiple_of(2) {
                    return Err(PickleFault::OddItems.into());
                }
            }
            op::APPEND => {
                let item = self.pop()?;
                self.extend(opcode, &[item])?;
            }
            op::APPENDS | op::ADDITEMS | op::SETITEMS => {
                let items = self.pop_mark()?;
                self.extend(opcode, &items)?;
            }
            op::SETITEM => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.extend(opcode, &[key, value])?;
            }

            // What would be code.
            op::GLOBAL => {
                let module = self.line()?;
                let name = self.line()?;
                self.push_global(module, name)?;
            }
            op::STACK_GLOBAL => {
                let name = self.pop()?;
                let module = self.pop()?;
                match (self.arena.node(module), self.arena.node(name)) {
                    (Node::Str(module), Node::Str(name)) => self.push_global(module, name)?,
                    (_, other) => {
                        return Err(PickleFault::BadTarget {
                            opcode: op::name(opcode),
                            found: kind(other),
                        }
                        .into());
                    }
                }
            }
            op::INST => {
                let module = self.line()?;
                let name = self.line()?;
                let args = self.pop_mark()?;
                self.push_global(module, name)?;
                let callee = self.pop()?;
                let args = self.arena.tuple(&args);
                self.call(callee, args)?;
            }
            op::OBJ => {
                let items = self.pop_mark()?;
                let (&callee, args) = items.split_first().ok_or(PickleFault::StackUnderflow)?;
                let args = self.arena.tuple(args);
                self.call(callee, args)?;
            }
            op::REDUCE | op::NEWOBJ => {
                let args = self.pop()?;
                let callee = self.pop()?;
                if !matches!(self.arena.node(args), Node::Tuple(_)) {
                    return Err(self.bad_target(opcode, args));
                }
                self.call(callee, args)?;
            }
            op::NEWOBJ_EX => {
                let kwargs = self.pop()?;
                let args = self.pop()?;
                let callee = self.pop()?;
                if !matches!(self.arena.node(args), Node::Tuple(_)) {
                    return Err(self.bad_target(opcode, args));
                }
                self.check_call(callee)?;
                let args = self.arena.tuple(&[args, kwargs]);
                self.push(Node::CallEx { callee, args });
            }
            op::BUILD => {
                let state = self.pop()?;
                let target = self.peek()?;
                match self.arena.node(target) {
                    Node::Call { .. } | Node::CallEx { .. } => self.arena.push_state(target, state),
                    _ => return Err(self.bad_target(opcode, target)),
                }
            }
            op::PERSID => {
                let line = self.line()?;
                let id = self.arena.add(Node::Str(line));
                self.push(Node::Persistent(id));
            }
            op::BINPERSID => {
                let id = self.pop()?;
                self.push(Node::Persistent(id));
            }
            op::EXT1 | op::EXT2 | op::EXT4 => {
                return Err(PickleFault::Unsupported("a copyreg extension code").into());
            }
            op::NEXT_BUFFER | op::READONLY_BUFFER => {
                return Err(PickleFault::Unsupported("an out-of-band buffer").into());
            }
            other => return Err(PickleFault::UnknownOpcode(other).into()),
        }
        Ok(())
    }

    fn push(&mut self, node: Node) {
        let id = self.arena.add(node);
        self.stack.push(id);
    }

    fn push_bool(&mut self, value: bool) {
        let [no, yes] = &mut self.common.bools;
        let slot = if value { yes } else { no };
        let id = *slot.get_or_insert_with(|| self.arena.add(Node::Bool(value)));
        self.stack.push(id);
    }

    fn push_int(&mut self, value: i64) {
        // Sizes and strides are mostly small.
        const N_SMALL: usize = 4096;
        let small = usize::try_from(value).ok().filter(|&small| small < N_SMALL);
        let Some(small) = small else {
            return self.push(Node::Int(value));
        };
        if self.common.small_ints.is_empty() {
            self.common.small_ints.resize(N_SMALL, None);
        }
        let slot = self
            .common
            .small_ints
            .get_mut(small)
            .expect("it is smaller than the table");
        let id = *slot.get_or_insert_with(|| self.arena.add(Node::Int(value)));
        self.stack.push(id);
    }

    fn push_long(&mut self, span: Span) {
        let bytes = self.arena.bytes(span);
        let Some(&last) = bytes.last() else {
            return self.push_int(0);
        };
        if bytes.len() > 8 {
            return self.push(Node::BigInt(span));
        }
        let sign = if last < 0x80 { 0 } else { 0xff };
        let mut wide = [sign; 8];
        for (to, from) in wide.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.push_int(i64::from_le_bytes(wide));
    }

    fn text_int(&mut self) -> Result<(), Stop> {
        let line = self.line()?;
        match self.arena.bytes(line) {
            b"00" => self.push_bool(false),
            b"01" => self.push_bool(true),
            _ => self.push_decimal(line)?,
        }
        Ok(())
    }

    fn text_long(&mut self) -> Result<(), Stop> {
        let mut line = self.line()?;
        if self.arena.bytes(line).last() == Some(&b'L') {
            line.len = line.len.saturating_sub(1);
        }
        self.push_decimal(line)
    }

    fn push_decimal(&mut self, line: Span) -> Result<(), Stop> {
        let text = self.arena.text(line);
        let text = text.trim();
        if let Ok(value) = text.parse::<i64>() {
            self.push_int(value);
        } else if let Ok(value) = text.parse::<i128>() {
            let span = self.arena.add_text(&value.to_le_bytes());
            self.push(Node::BigInt(span));
        } else {
            return Err(PickleFault::BadText("an integer").into());
        }
        Ok(())
    }

    fn push_global(&mut self, module: Span, name: Span) -> Result<(), Stop> {
        let id = self.arena.global(module, name);
        let (module, name) = self
            .arena
            .global_name(id)
            .ok_or(PickleFault::BadText("the name of a global"))?;
        if safety::is_unsafe(module, name) {
            return Err(Stop::Unsafe(format!("{module}.{name}")));
        }
        self.stack.push(id);
        Ok(())
    }

    fn call(&mut self, callee: NodeId, args: NodeId) -> Result<(), Stop> {
        self.check_call(callee)?;
        self.push(Node::Call { callee, args });
        Ok(())
    }

    fn check_call(&self, callee: NodeId) -> Result<(), Stop> {
        match self.arena.global_name(callee) {
            Some((module, name)) if safety::is_unsafe_call(module, name) => {
                Err(Stop::Unsafe(format!("{module}.{name}")))
            }
            _ => Ok(()),
        }
    }

    fn filled(&mut self, node: Node) -> Result<(), Stop> {
        let items = self.pop_mark()?;
        let id = self.arena.add(node);
        self.arena.push_items(id, &items);
        self.stack.push(id);
        Ok(())
    }

    /// APPEND(S), ADDITEMS and SETITEM(S), each on its own kind of collection or on an object of some class.
    fn extend(&mut self, opcode: u8, items: &[NodeId]) -> Result<(), Stop> {
        let target = self.peek()?;
        let keyed = matches!(opcode, op::SETITEM | op::SETITEMS);
        if keyed && !items.len().is_multiple_of(2) {
            return Err(PickleFault::OddItems.into());
        }
        match (opcode, self.arena.node(target)) {
            (op::APPEND | op::APPENDS, Node::List)
            | (op::ADDITEMS, Node::Set)
            | (op::SETITEM | op::SETITEMS, Node::Dict) => self.arena.push_items(target, items),
            (_, Node::Call { .. } | Node::CallEx { .. }) if keyed => self.arena.push_items(target, items),
            (_, Node::Call { .. } | Node::CallEx { .. }) => self.arena.push_appended(target, items),
            _ => return Err(self.bad_target(opcode, target)),
        }
        Ok(())
    }

    fn bad_target(&self, opcode: u8, target: NodeId) -> Stop {
        PickleFault::BadTarget {
            opcode: op::name(opcode),
            found: kind(self.arena.node(target)),
        }
        .into()
    }

    fn tuple_of(&mut self, n: usize) -> Result<(), Stop> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let start = self.stack.len().checked_sub(n).filter(|&start| start >= floor);
        let start = start.ok_or(PickleFault::StackUnderflow)?;
        let tuple = self.arena.tuple(self.stack.get(start..).unwrap_or_default());
        self.stack.truncate(start);
        self.stack.push(tuple);
        Ok(())
    }

    /// The top of the stack, above the last mark.
    fn peek(&self) -> Result<NodeId, Stop> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(&top) if self.stack.len() > floor => Ok(top),
            _ => Err(PickleFault::StackUnderflow.into()),
        }
    }

    fn pop(&mut self) -> Result<NodeId, Stop> {
        let top = self.peek()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_mark(&mut self) -> Result<Vec<NodeId>, Stop> {
        let mark = self.marks.pop().ok_or(PickleFault::NoMark)?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn memoize(&mut self, index: u64) -> Result<(), Stop> {
        let top = self.peek()?;
        // An honest memo is numbered without gaps and each entry has cost the pickle a byte at least.
        let Some(slot) = usize::try_from(index).ok().filter(|&slot| slot < self.at) else {
            return Err(PickleFault::MemoIndex(index).into());
        };
        if slot >= self.memo.len() {
            self.memo.resize(slot.saturating_add(1), None);
        }
        if let Some(slot) = self.memo.get_mut(slot) {
            *slot = Some(top);
        }
        Ok(())
    }

    fn recall(&mut self, index: u64) -> Result<(), Stop> {
        let entry = usize::try_from(index)
            .ok()
            .and_then(|index| self.memo.get(index).copied().flatten());
        let id = entry.ok_or(PickleFault::MissingMemo(index))?;
        self.stack.push(id);
        Ok(())
    }

    fn decimal_index(&mut self) -> Result<u64, Stop> {
        let line = self.line()?;
        let text = self.arena.text(line);
        Ok(text
            .trim()
            .parse()
            .map_err(|_| PickleFault::BadText("a memo index"))?)
    }

    fn left(&self) -> usize {
        self.arena.source().len().saturating_sub(self.at)
    }

    fn take(&mut self, needed: usize) -> Result<Span, Stop> {
        let left = self.left();
        if needed > left {
            return Err(PickleFault::Truncated { needed, left }.into());
        }
        let span = |n: usize| u32::try_from(n).expect("the pickle is at most 1 GiB");
        let taken = Span {
            start: span(self.at),
            len: span(needed),
        };
        self.at = self.at.saturating_add(needed);
        Ok(taken)
    }

    fn take_array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let span = self.take(N)?;
        Ok(*self
            .arena
            .bytes(span)
            .first_chunk()
            .expect("as many as were taken"))
    }

    /// An operand behind its length of `N` bytes.
    fn take_sized<const N: usize>(&mut self) -> Result<Span, Stop> {
        let len: [u8; N] = self.take_array()?;
        let mut wide = [0; 8];
        for (to, from) in wide.iter_mut().zip(len) {
            *to = from;
        }
        let len = usize::try_from(u64::from_le_bytes(wide)).unwrap_or(usize::MAX);
        self.take(len)
    }

    /// Text up to the next newline, which is taken too.
    fn line(&mut self) -> Result<Span, Stop> {
        let rest = self.arena.source().get(self.at..).unwrap_or_default();
        let Some(len) = rest.iter().position(|&byte| byte == b'\n') else {
            return Err(PickleFault::BadText("a line without end").into());
        };
        let mut span = self.take(len)?;
        self.at = self.at.saturating_add(1);
        if self.arena.bytes(span).last() == Some(&b'\r') {
            span.len = span.len.saturating_sub(1);
        }
        Ok(span)
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
        Node::Tuple(_) => "a tuple",
        Node::List => "a list",
        Node::Dict => "a dict",
        Node::Set => "a set",
        Node::FrozenSet => "a frozenset",
        Node::Global { .. } => "a global",
        Node::Persistent(_) => "a persistent id",
        Node::Call { .. } | Node::CallEx { .. } => "an object",
    }
}

/// The value of a Python 2 `repr` of a str.
fn unquote(line: &[u8]) -> Option<Vec<u8>> {
    let line = line.trim_ascii();
    let (&quote, rest) = line.split_first()?;
    let (&end, inner) = rest.split_last()?;
    if quote != end || !matches!(quote, b'\'' | b'"') {
        return None;
    }
    let mut out = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        match bytes.next()? {
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'x' => {
                let digits = [bytes.next()?, bytes.next()?];
                let digits = std::str::from_utf8(&digits).ok()?;
                out.push(u8::from_str_radix(digits, 16).ok()?);
            }
            other => out.push(other),
        }
    }
    Some(out)
}

/// raw-unicode-escape: Latin-1 with `\uXXXX` and `\UXXXXXXXX`, to UTF-8. A lone surrogate becomes the replacement character.
fn unescape_unicode(line: &[u8]) -> Vec<u8> {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((&byte, after)) = rest.split_first() {
        let n_digits = match after.first() {
            Some(b'u') if byte == b'\\' => 4_usize,
            Some(b'U') if byte == b'\\' => 8,
            _ => 0,
        };
        let digits = (n_digits > 0)
            .then(|| after.get(1..n_digits.saturating_add(1)))
            .flatten();
        let code = digits.and_then(|digits| u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match code {
            Some(code) => {
                out.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                rest = after.get(n_digits.saturating_add(1)..).unwrap_or_default();
            }
            None => {
                out.push(char::from(byte));
                rest = after;
            }
        }
    }
    out.into_bytes()
}
