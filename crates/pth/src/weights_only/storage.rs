//! Persistent ids: storages, as torch's readers of the two containers take them.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use std::collections::HashMap;

use super::machine::Machine;
use super::value::{DType, Function, Global, Id, Value};
use super::{Fault, Place, allowed, fault};

/// The storages that were referred to, by key.
#[derive(Default)]
pub(super) struct Storages<'t> {
    loaded: Vec<Loaded>,
    by_key: HashMap<Key<'t>, usize>,
    /// So that a key that is memoised is hashed once.
    by_id: HashMap<Id, usize>,
}

#[derive(Clone, Copy)]
struct Loaded {
    dtype: DType,
    /// None if it grows as needed.
    n_bytes: Option<i64>,
}

/// What makes keys equal; of others only that they are the same value.
#[derive(PartialEq, Eq, Hash)]
enum Key<'t> {
    Str(&'t [u8]),
    Bytes(&'t [u8]),
    Int(i64),
    Other(Id),
}

impl<'t> Machine<'t> {
    pub(super) fn persistent(&mut self, id: Id) -> Result<Value<'t>, Fault> {
        let Value::Tuple(run) = self.heap.get(id) else {
            return fault(format!(
                "a persistent id is {}, expected a tuple",
                self.heap.class_name(id)
            ));
        };
        self.heap.spend(run.len)?;
        let fields = self.heap.run(run).to_vec();
        let Some((&word, fields)) = fields.split_first() else {
            return fault("a persistent id is an empty tuple");
        };
        if !matches!(
            self.heap.get(word),
            Value::Str(b"storage") | Value::Bytes(b"storage")
        ) {
            return fault("a persistent id does not begin with `storage`");
        }
        match (self.place, fields) {
            (Place::Bare, _) => fault("a persistent id outside the container that it refers to"),
            (Place::Zip, &[class, key, location, numel]) => self.zip_storage(class, key, location, numel),
            (Place::Legacy, &[class, key, location, numel, view]) => {
                self.legacy_storage([class, key, location, numel], view)
            }
            (place, fields) => fault(format!(
                "a persistent id has {} fields, expected {}",
                fields.len().saturating_add(1),
                if place == Place::Zip { 5 } else { 6 },
            )),
        }
    }

    fn zip_storage(&mut self, class: Id, key: Id, location: Id, numel: Id) -> Result<Value<'t>, Fault> {
        let dtype = match self.heap.get(class) {
            Value::Global(Global::Function(Function::UntypedStorage)) => allowed::BYTE,
            _ => self.dtype_of(class)?,
        };
        let n_bytes = self.n_bytes(numel, dtype)?;
        let Some(place) = self.find(key)? else {
            let is_meta = self.location(location)?;
            self.load(
                key,
                Loaded {
                    dtype,
                    n_bytes: (!is_meta).then_some(n_bytes),
                },
            );
            return Ok(Value::Storage(dtype, (!is_meta).then_some(n_bytes)));
        };
        let Some(&loaded) = self.storages.loaded.get(place) else {
            return fault("a storage is lost");
        };
        if loaded.dtype == dtype {
            return Ok(Value::Storage(dtype, loaded.n_bytes));
        }
        // The record is read again, and cannot have both sizes.
        if loaded.n_bytes.is_some_and(|known| known != n_bytes) {
            return fault("two references to a storage disagree on its size");
        }
        Ok(Value::Storage(dtype, loaded.n_bytes))
    }

    fn legacy_storage(&mut self, root: [Id; 4], view: Id) -> Result<Value<'t>, Fault> {
        let [class, key, location, numel] = root;
        let is_meta = self.location(location);
        let dtype = self.dtype_of(class)?;
        let n_bytes = self.n_bytes(numel, dtype)?;
        let storage = match self.find(key)? {
            None => {
                let loaded = Loaded {
                    dtype,
                    n_bytes: (!is_meta?).then_some(n_bytes),
                };
                self.load(key, loaded);
                loaded
            }
            Some(place) => {
                let loaded = self.storages.loaded.get(place).copied();
                let known = loaded.map(|loaded| (loaded.dtype, loaded.n_bytes));
                match known {
                    Some((known, n_bytes)) if known == dtype => Loaded { dtype, n_bytes },
                    Some((_, Some(known))) if known != n_bytes => Loaded {
                        dtype,
                        n_bytes: Some(0),
                    },
                    _ => Loaded {
                        dtype,
                        n_bytes: Some(n_bytes),
                    },
                }
            }
        };
        if matches!(self.heap.get(view), Value::None) {
            return Ok(Value::Storage(storage.dtype, storage.n_bytes));
        }
        let fields = self.heap.sequence(view)?;
        let &[key, offset, len] = fields.as_slice() else {
            return fault(format!(
                "the view of a storage has {} fields, expected 3",
                fields.len()
            ));
        };
        let start = self
            .heap
            .int(offset, "the offset of a view")?
            .checked_mul(dtype.size);
        let len = self.heap.int(len, "the size of a view")?.checked_mul(dtype.size);
        let (Some(start), Some(len)) = (start, len) else {
            return fault("the view of a storage is too large");
        };
        if let Some(place) = self.find(key)? {
            let loaded = self.storages.loaded.get(place).copied();
            return Ok(loaded.map_or(Value::None, |view| Value::Storage(view.dtype, view.n_bytes)));
        }
        // As Python slices: both ends are clamped.
        let n_bytes = storage.n_bytes.map(|n_bytes| {
            let clamp = |at: i64| {
                if at < 0 {
                    at.saturating_add(n_bytes).max(0)
                } else {
                    at.min(n_bytes)
                }
            };
            clamp(start.saturating_add(len))
                .saturating_sub(clamp(start))
                .max(0)
        });
        self.load(key, Loaded { dtype, n_bytes });
        Ok(Value::Storage(dtype, n_bytes))
    }

    /// What its attribute `dtype` is.
    fn dtype_of(&self, id: Id) -> Result<DType, Fault> {
        match self.heap.get(id) {
            Value::Global(
                Global::StorageType(dtype)
                | Global::Function(Function::TensorOf(dtype) | Function::SparseTensorOf(dtype)),
            )
            | Value::Storage(dtype, _) => Ok(dtype),
            Value::Tensor(tensor) => Ok(tensor.dtype),
            other => fault(format!(
                "the class of a storage is {} without a dtype",
                other.class_name()
            )),
        }
    }

    fn n_bytes(&self, numel: Id, dtype: DType) -> Result<i64, Fault> {
        let numel = match self.heap.get(numel) {
            Value::Bool(value) => i64::from(value),
            _ => self.heap.int(numel, "the size of a storage")?,
        };
        match numel.checked_mul(dtype.size) {
            Some(n_bytes) if n_bytes >= 0 => Ok(n_bytes),
            _ => fault(format!("a storage of {numel} elements")),
        }
    }

    /// Checks a location that torch restores. Returns whether it is one without data.
    fn location(&mut self, id: Id) -> Result<bool, Fault> {
        let (Value::Str(name) | Value::Bytes(name)) = self.heap.get(id) else {
            return fault(format!(
                "the location of a storage is {}",
                self.heap.class_name(id)
            ));
        };
        self.heap.spend(name.len())?;
        let device = super::call::device(name);
        let is_known = name.starts_with(b"mps")
            || name == b"cpu"
            || name == b"meta"
            || matches!(
                device,
                Some(("cuda" | "privateuseone" | "hpu" | "xpu" | "mtia", _))
            );
        if !is_known {
            return fault(format!(
                "the location `{}` of a storage is unknown",
                String::from_utf8_lossy(name.get(..name.len().min(40)).unwrap_or_default()),
            ));
        }
        Ok(name == b"meta")
    }

    fn find(&mut self, key: Id) -> Result<Option<usize>, Fault> {
        self.heap.check_hashable(key)?;
        if let Some(&place) = self.storages.by_id.get(&key) {
            return Ok(Some(place));
        }
        let place = self.storages.by_key.get(&self.key(key)).copied();
        if let Some(place) = place {
            self.storages.by_id.insert(key, place);
        }
        Ok(place)
    }

    fn load(&mut self, key: Id, loaded: Loaded) {
        let place = self.storages.loaded.len();
        self.storages.loaded.push(loaded);
        self.storages.by_id.insert(key, place);
        let content = self.key(key);
        self.storages.by_key.insert(content, place);
    }

    fn key(&self, id: Id) -> Key<'t> {
        match self.heap.get(id) {
            Value::Str(text) => Key::Str(text),
            Value::Bytes(bytes) => Key::Bytes(bytes),
            Value::Int(value) => Key::Int(value),
            Value::Bool(value) => Key::Int(i64::from(value)),
            _ => Key::Other(id),
        }
    }
}
