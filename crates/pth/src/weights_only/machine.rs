//! torch's unpickler, opcode by opcode.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use std::collections::HashMap;

use super::heap::Heap;
use super::storage::Storages;
use super::value::{Chain, DictKind, Global, Id, Value};
use super::{Fault, GlobalRule, Place, Refusal, fault, find_global};
use crate::pickle::op;

pub(super) struct Machine<'t> {
    text: &'t [u8],
    at: usize,
    pub(super) place: Place,
    pub(super) heap: Heap<'t>,
    stack: Vec<Id>,
    /// Heights of the stack at each MARK. torch begins a new stack there, and sees nothing of the old one until the mark is popped.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    pub(super) storages: Storages<'t>,
}

impl<'t> Machine<'t> {
    pub(super) fn new(text: &'t [u8], place: Place) -> Machine<'t> {
        Machine {
            text,
            at: 0,
            place,
            heap: Heap::new(text.len()),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            storages: Storages::default(),
        }
    }

    pub(super) fn run(mut self) -> Result<(), Refusal> {
        loop {
            let offset = self.at;
            match self.step() {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(reason) => {
                    return Err(Refusal {
                        offset,
                        reason: reason.into_owned(),
                    });
                }
            }
        }
    }

    /// Does one opcode. Returns whether it was the last.
    fn step(&mut self) -> Result<bool, Fault> {
        let [opcode] = self.take_array()?;
        match opcode {
            op::STOP => {
                self.pop()?;
                return Ok(true);
            }
            // Any number will do.
            op::PROTO => {
                self.take(1)?;
            }

            op::GLOBAL => self.global()?,
            op::NEWOBJ => {
                let args = self.pop()?;
                let class = self.pop()?;
                let made = self.new_object(class, args)?;
                self.push(made);
            }
            op::REDUCE => {
                let args = self.pop()?;
                let function = self.top()?;
                let made = self.reduce(function, args)?;
                self.pop()?;
                self.push(made);
            }
            op::BUILD => {
                let state = self.pop()?;
                let object = self.top()?;
                self.build(object, state)?;
            }
            op::BINPERSID => {
                let id = self.pop()?;
                let storage = self.persistent(id)?;
                self.push(storage);
            }

            op::APPEND => {
                let item = self.pop()?;
                self.append("APPEND", &[item])?;
            }
            op::APPENDS => {
                let items = self.pop_mark()?;
                self.append("APPENDS", &items)?;
            }
            op::SETITEM => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items("SETITEM", &[key, value])?;
            }
            op::SETITEMS => {
                let items = self.pop_mark()?;
                self.set_items("SETITEMS", &items)?;
            }

            op::MARK => self.marks.push(self.stack.len()),
            op::TUPLE => {
                let items = self.pop_mark()?;
                self.tuple(&items);
            }
            op::TUPLE1 => {
                let first = self.pop()?;
                self.tuple(&[first]);
            }
            op::TUPLE2 => {
                let (second, first) = (self.pop()?, self.pop()?);
                self.tuple(&[first, second]);
            }
            op::TUPLE3 => {
                let (third, second, first) = (self.pop()?, self.pop()?, self.pop()?);
                self.tuple(&[first, second, third]);
            }

            op::NONE => self.push(Value::None),
            op::NEWTRUE => self.push(Value::Bool(true)),
            op::NEWFALSE => self.push(Value::Bool(false)),
            op::EMPTY_TUPLE => self.tuple(&[]),
            op::EMPTY_LIST => self.push(Value::List(Chain::default())),
            op::EMPTY_DICT => self.push(Value::Dict(DictKind::Plain, Chain::default())),
            op::EMPTY_SET => self.push(Value::Set(Chain::default())),
            op::BININT => {
                let value = i32::from_le_bytes(self.take_array()?);
                self.push(Value::Int(i64::from(value)));
            }
            op::BININT1 => {
                let [value] = self.take_array()?;
                self.push(Value::Int(i64::from(value)));
            }
            op::BININT2 => {
                let value = u16::from_le_bytes(self.take_array()?);
                self.push(Value::Int(i64::from(value)));
            }
            op::LONG1 => {
                let [len] = self.take_array()?;
                let bytes = self.take(usize::from(len))?;
                self.push(long(bytes));
            }
            op::BINFLOAT => {
                let value = f64::from_be_bytes(self.take_array()?);
                self.push(Value::Float(value));
            }
            op::BINUNICODE => {
                let len = u32::from_le_bytes(self.take_array()?);
                // A length beyond the address space is beyond the text as well.
                let text = self.take(usize::try_from(len).unwrap_or(usize::MAX))?;
                if !is_text(text) {
                    return fault("a text is not UTF-8");
                }
                self.push(Value::Str(text));
            }
            op::SHORT_BINSTRING => {
                let [len] = self.take_array()?;
                let text = self.take(usize::from(len))?;
                if std::str::from_utf8(text).is_err() {
                    return fault("a text of Python 2 is not UTF-8");
                }
                self.push(Value::Str(text));
            }

            op::BINGET => {
                let [index] = self.take_array()?;
                self.recall(u32::from(index))?;
            }
            op::LONG_BINGET => {
                let index = u32::from_le_bytes(self.take_array()?);
                self.recall(index)?;
            }
            op::BINPUT => {
                let [index] = self.take_array()?;
                let top = self.top()?;
                self.memo.insert(u32::from(index), top);
            }
            op::LONG_BINPUT => {
                let index = u32::from_le_bytes(self.take_array()?);
                let top = self.top()?;
                self.memo.insert(index, top);
            }

            other => {
                return fault(format!(
                    "opcode {} ({other}) is not one it knows",
                    op::name(other)
                ));
            }
        }
        Ok(false)
    }

    fn take(&mut self, n: usize) -> Result<&'t [u8], Fault> {
        let end = self.at.saturating_add(n);
        let Some(bytes) = self.text.get(self.at..end) else {
            return fault("the pickle ends before STOP");
        };
        self.at = end;
        Ok(bytes)
    }

    fn take_array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let bytes = self.take(N)?;
        bytes.try_into().or_else(|_| fault("the pickle ends before STOP"))
    }

    /// A line without its newline; carriage returns stay.
    fn take_line(&mut self) -> Result<&'t str, Fault> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let Some(len) = rest.iter().position(|&byte| byte == b'\n') else {
            return fault("the pickle ends before STOP");
        };
        let line = self.take(len)?;
        self.take(1)?;
        std::str::from_utf8(line).or_else(|_| fault("the name of a global is not UTF-8"))
    }

    fn global(&mut self) -> Result<(), Fault> {
        let module = self.take_line()?;
        let name = self.take_line()?;
        match find_global(module, name) {
            (_, _, Some(global)) => {
                self.push(Value::Global(global));
                Ok(())
            }
            (GlobalRule::Blocked, path, None) => {
                fault(format!("global `{path}` is of a module that torch blocks"))
            }
            (_, path, None) => fault(format!("global `{path}` is not on torch's list")),
        }
    }

    pub(super) fn push(&mut self, value: Value<'t>) {
        let id = self.heap.push(value);
        self.stack.push(id);
    }

    fn tuple(&mut self, items: &[Id]) {
        let id = self.heap.tuple(items);
        self.stack.push(id);
    }

    fn bottom(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Id, Fault> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn top(&self) -> Result<Id, Fault> {
        match self.stack.get(self.bottom()..).and_then(<[Id]>::last) {
            Some(&top) => Ok(top),
            None => fault("the stack is empty"),
        }
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, Fault> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark.min(self.stack.len()))),
            None => fault("no mark is on the stack"),
        }
    }

    fn recall(&mut self, index: u32) -> Result<(), Fault> {
        let Some(&id) = self.memo.get(&index) else {
            return fault(format!("memo {index} was never stored"));
        };
        self.stack.push(id);
        Ok(())
    }

    fn append(&mut self, opcode: &'static str, items: &[Id]) -> Result<(), Fault> {
        let target = self.top()?;
        let Value::List(mut chain) = self.heap.get(target) else {
            return fault(format!("{opcode} on {}", self.heap.class_name(target)));
        };
        for &item in items {
            self.heap.link(&mut chain, item, item);
        }
        self.heap.set(target, Value::List(chain));
        Ok(())
    }

    fn set_items(&mut self, opcode: &'static str, items: &[Id]) -> Result<(), Fault> {
        let target = self.top()?;
        let Value::Dict(kind, mut chain) = self.heap.get(target) else {
            return fault(format!("{opcode} on {}", self.heap.class_name(target)));
        };
        for pair in items.chunks(2) {
            let &[key, value] = pair else {
                return fault("a key without a value");
            };
            self.heap.check_hashable(key)?;
            self.heap.link(&mut chain, key, value);
        }
        self.heap.set(target, Value::Dict(kind, chain));
        Ok(())
    }

    /// `cls.__new__(cls, *args)` of an allowed class.
    fn new_object(&mut self, class: Id, args: Id) -> Result<Value<'t>, Fault> {
        match self.heap.get(class) {
            Value::Global(Global::Function(function)) if function.is_class() => {
                let args = self.heap.sequence(args)?;
                self.make(function, &args)
            }
            other => fault(format!("NEWOBJ of {}", other.class_name())),
        }
    }

    /// `function(*args)` of an allowed function.
    fn reduce(&mut self, function: Id, args: Id) -> Result<Value<'t>, Fault> {
        match self.heap.get(function) {
            Value::Global(Global::Function(function)) => {
                let args = self.heap.sequence(args)?;
                self.call(function, &args)
            }
            other => fault(format!("{} is called", other.class_name())),
        }
    }
}

/// A little-endian number in two's complement.
fn long(bytes: &[u8]) -> Value<'static> {
    let sign = match bytes.last() {
        Some(last) if last & 0x80 != 0 => 0xff,
        _ => 0,
    };
    let mut wide = [sign; 8];
    for (to, from) in wide.iter_mut().zip(bytes) {
        *to = *from;
    }
    let value = i64::from_le_bytes(wide);
    // Bytes beyond the eighth may only repeat the sign.
    let is_small = bytes.iter().skip(8).all(|&byte| byte == sign) && (value < 0) == (sign == 0xff);
    if is_small {
        Value::Int(value)
    } else {
        Value::BigInt
    }
}

/// Whether the bytes are UTF-8, in which lone surrogates may be encoded.
fn is_text(mut bytes: &[u8]) -> bool {
    loop {
        let Err(error) = std::str::from_utf8(bytes) else {
            return true;
        };
        match bytes.get(error.valid_up_to()..) {
            Some([0xed, 0xa0..=0xbf, 0x80..=0xbf, rest @ ..]) => bytes = rest,
            _ => return false,
        }
    }
}
