//! The values of one pickle, by id, so that aliases stay aliases and nothing is copied.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use std::collections::HashMap;

use super::value::{Chain, Id, Run, Value};
use super::{Fault, fault};

struct Link {
    /// The same as the value, except in a dict.
    key: Id,
    value: Id,
    next: Option<usize>,
}

pub(super) struct Heap<'t> {
    values: Vec<Value<'t>>,
    hashable: Vec<bool>,
    items: Vec<Id>,
    links: Vec<Link>,
    /// The ids of bytes and of ASCII characters, which come in great numbers where a text is unpacked.
    bytes: HashMap<u8, Id>,
    characters: HashMap<u8, Id>,
    /// How many more items may be walked over. What is memoised can be used again and again for a few bytes each time.
    budget: usize,
}

impl<'t> Heap<'t> {
    /// Room for a pickle of so many bytes.
    pub(super) fn new(n_bytes: usize) -> Heap<'t> {
        Heap {
            values: Vec::new(),
            hashable: Vec::new(),
            items: Vec::new(),
            links: Vec::new(),
            bytes: HashMap::new(),
            characters: HashMap::new(),
            // An honest pickle walks over each byte or item about once. What is walked over may be kept, so this bounds memory as well.
            budget: n_bytes.saturating_mul(2).saturating_add(8192),
        }
    }

    pub(super) fn push(&mut self, value: Value<'t>) -> Id {
        let hashable = match value {
            Value::List(_) | Value::Dict(..) | Value::Set(_) | Value::ByteArray(_) => false,
            Value::Tuple(run) => self.run(run).iter().all(|&item| self.is_hashable(item)),
            _ => true,
        };
        self.values.push(value);
        self.hashable.push(hashable);
        self.values.len().saturating_sub(1)
    }

    pub(super) fn tuple(&mut self, items: &[Id]) -> Id {
        let run = self.keep(items);
        self.push(Value::Tuple(run))
    }

    pub(super) fn keep(&mut self, items: &[Id]) -> Run {
        let start = self.items.len();
        self.items.extend_from_slice(items);
        Run {
            start,
            len: items.len(),
        }
    }

    pub(super) fn get(&self, id: Id) -> Value<'t> {
        // Ids come from `push` alone.
        self.values.get(id).copied().unwrap_or(Value::None)
    }

    pub(super) fn set(&mut self, id: Id, value: Value<'t>) {
        if let Some(place) = self.values.get_mut(id) {
            *place = value;
        }
    }

    pub(super) fn is_hashable(&self, id: Id) -> bool {
        self.hashable.get(id).copied().unwrap_or(true)
    }

    pub(super) fn check_hashable(&self, id: Id) -> Result<(), Fault> {
        if self.is_hashable(id) {
            return Ok(());
        }
        fault(format!("{} is not hashable", self.get(id).class_name()))
    }

    pub(super) fn class_name(&self, id: Id) -> &'static str {
        self.get(id).class_name()
    }

    pub(super) fn link(&mut self, chain: &mut Chain, key: Id, value: Id) {
        let place = self.links.len();
        self.links.push(Link {
            key,
            value,
            next: None,
        });
        let first = match chain.ends {
            Some((first, last)) => {
                if let Some(last) = self.links.get_mut(last) {
                    last.next = Some(place);
                }
                first
            }
            None => place,
        };
        chain.ends = Some((first, place));
        chain.len = chain.len.saturating_add(1);
    }

    pub(super) fn spend(&mut self, n: usize) -> Result<(), Fault> {
        match self.budget.checked_sub(n) {
            Some(left) => {
                self.budget = left;
                Ok(())
            }
            None => fault("it repeats more than its size warrants"),
        }
    }

    pub(super) fn run(&self, run: Run) -> &[Id] {
        run.start
            .checked_add(run.len)
            .and_then(|end| self.items.get(run.start..end))
            .unwrap_or_default()
    }

    /// Keys and values of a dict, in the order of their assignment.
    pub(super) fn pairs(&mut self, chain: Chain) -> Result<Vec<(Id, Id)>, Fault> {
        self.spend(chain.len)?;
        let mut pairs = Vec::with_capacity(chain.len);
        let mut next = chain.ends.map(|(first, _)| first);
        while let Some(link) = next.and_then(|place| self.links.get(place)) {
            pairs.push((link.key, link.value));
            next = link.next;
        }
        Ok(pairs)
    }

    /// What `*value` or `iter(value)` gives.
    pub(super) fn sequence(&mut self, id: Id) -> Result<Vec<Id>, Fault> {
        match self.get(id) {
            Value::Tuple(run) | Value::Size(run) => {
                self.spend(run.len)?;
                Ok(self.run(run).to_vec())
            }
            Value::List(chain) | Value::Dict(_, chain) | Value::Set(chain) => {
                Ok(self.pairs(chain)?.into_iter().map(|(key, _)| key).collect())
            }
            Value::Bytes(bytes) => {
                self.spend(bytes.len())?;
                Ok(bytes
                    .iter()
                    .map(|&byte| match self.bytes.get(&byte) {
                        Some(&id) => id,
                        None => {
                            let id = self.push(Value::Int(i64::from(byte)));
                            self.bytes.insert(byte, id);
                            id
                        }
                    })
                    .collect())
            }
            Value::Str(text) => {
                self.spend(text.len())?;
                Ok(characters(text)
                    .map(|character| self.character(character))
                    .collect())
            }
            other => fault(format!("{} cannot be unpacked", other.class_name())),
        }
    }

    fn character(&mut self, character: &'t [u8]) -> Id {
        let &[ascii] = character else {
            return self.push(Value::Str(character));
        };
        match self.characters.get(&ascii) {
            Some(&id) => id,
            None => {
                let id = self.push(Value::Str(character));
                self.characters.insert(ascii, id);
                id
            }
        }
    }

    /// As `bool(value)`.
    pub(super) fn is_true(&self, id: Id) -> Result<bool, Fault> {
        Ok(match self.get(id) {
            Value::None => false,
            Value::Bool(value) => value,
            Value::Int(value) => value != 0,
            Value::Float(value) => value != 0.0,
            Value::Str(text) | Value::Bytes(text) => !text.is_empty(),
            Value::Tuple(run) | Value::Size(run) => run.len > 0,
            Value::List(chain) | Value::Dict(_, chain) | Value::Set(chain) => chain.len > 0,
            Value::ByteArray(is_empty) => !is_empty,
            Value::Storage(_, n_bytes) | Value::UntypedStorage(n_bytes) => n_bytes != Some(0),
            Value::Tensor(tensor) if tensor.numel != Some(1) => {
                return fault("a tensor is neither true nor false");
            }
            _ => true,
        })
    }

    pub(super) fn int(&self, id: Id, what: &'static str) -> Result<i64, Fault> {
        match self.get(id) {
            Value::Int(value) => Ok(value),
            Value::BigInt => fault(format!("{what} is beyond 64 bits")),
            other => fault(format!("{what} is {}, expected an int", other.class_name())),
        }
    }

    /// The numbers of a shape.
    pub(super) fn ints(&mut self, id: Id, what: &'static str) -> Result<Vec<i64>, Fault> {
        if !matches!(self.get(id), Value::Tuple(_) | Value::List(_) | Value::Size(_)) {
            return fault(format!(
                "{what} is {}, expected a tuple of ints",
                self.class_name(id)
            ));
        }
        let items = self.sequence(id)?;
        items.into_iter().map(|item| self.int(item, what)).collect()
    }
}

/// The characters of UTF-8 that was checked, lone surrogates among them.
fn characters(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.chunk_by(|_, &next| next & 0xc0 == 0x80)
}
