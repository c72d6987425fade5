//! The facade: open a file, find the state dict in it, account for everything else.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use std::path::Path;

use crate::container::{self, Container, Format, ModuleSource, OpenOptions};
use crate::error::TensorFault;
use crate::finding::refuse_high;
use crate::pickle::{Arena, Node, NodeId, render};
use crate::rebuild::Rebuilder;
use crate::walk::{self, Found, Walk};
use crate::{
    Entry, Error, ModuleVersion, Record, Source, StateDict, Tensor, Value, diagnose, numpy, objects, value,
};

/// Keys under which training scripts keep the state dict, the likelier first.
const WRAPPERS: &[&str] = &[
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "params_ema",
    "params",
    "weights",
    "ema_state_dict",
    "model_ema",
    "ema",
    "generator",
    "student",
    "teacher",
];

/// Wrappers in wrappers: `{'model': {'state_dict': ...}}`. More have not been seen.
const MAX_WRAPPERS: usize = 4;

/// An open checkpoint. Nothing of it was executed, and no tensor's bytes have been read yet.
///
/// ```no_run
/// let checkpoint = pth::Checkpoint::open("resnet18.pth".as_ref())?;
/// for (name, tensor) in checkpoint.state_dict().iter() {
///     println!("{name} {} {:?}", tensor.dtype(), tensor.shape());
/// }
/// # Ok::<(), pth::Error>(())
/// ```
#[derive(Debug)]
pub struct Checkpoint {
    source: Source,
    options: OpenOptions,
    format: Format,
    state_dict: StateDict,
    wrapper: String,
    others: Vec<Other>,
    other_tensors: StateDict,
    problems: Vec<Problem>,
    sources: Vec<ModuleSource>,
}

/// Something in the file that is no tensor and holds none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    /// Its dotted name from the root.
    pub name: String,
    /// Its value on one line, in Python's spelling, cut where it is long.
    pub value: String,
}

/// Something that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Its name: within the state dict if it belongs there, else from the root.
    pub name: String,
    /// Why not.
    pub fault: TensorFault,
    /// Whether the state dict lacks it.
    pub in_state_dict: bool,
}

impl Checkpoint {
    /// Opens the checkpoint at `path`, by its content and never by its name.
    ///
    /// # Errors
    /// The file cannot be read, is something else, is broken, or names what could run code.
    /// A single tensor that cannot be read is no error: see [`problems`](Checkpoint::problems).
    pub fn open(path: &Path) -> Result<Checkpoint, Error> {
        Checkpoint::open_with(path, &OpenOptions::default())
    }

    /// As [`open`](Checkpoint::open), in another way than the default.
    ///
    /// # Errors
    /// As [`open`](Checkpoint::open), as far as `options` do not allow it.
    pub fn open_with(path: &Path, options: &OpenOptions) -> Result<Checkpoint, Error> {
        if let Some(found) = diagnose::folder(path) {
            return Err(Error::not_a_checkpoint(found));
        }
        Checkpoint::from_source(Source::open(path, options.backing)?, options)
    }

    /// As [`open_with`](Checkpoint::open_with), of bytes that are open already; their backing is what it is.
    ///
    /// # Errors
    /// As [`open`](Checkpoint::open).
    pub fn from_source(source: Source, options: &OpenOptions) -> Result<Checkpoint, Error> {
        let container = container::open(&source, options, &mut refuse_high)?;
        let mut checkpoint = Checkpoint {
            format: container.format,
            options: options.clone(),
            state_dict: StateDict::new(),
            wrapper: String::new(),
            others: Vec::new(),
            other_tensors: StateDict::new(),
            problems: Vec::new(),
            sources: container.sources.clone(),
            source: source.clone(),
        };
        checkpoint.fill(&container)?;
        drop(container);
        if !source.is_unchanged() {
            return Err(Error::Changed {
                path: source.path().map(Into::into).unwrap_or_default(),
            });
        }
        Ok(checkpoint)
    }

    fn fill(&mut self, container: &Container<'_>) -> Result<(), Error> {
        let arena = &container.arena;
        let mut rebuilder = Rebuilder::new(container);
        let mut walk = Walk::new(arena, &mut rebuilder, self.options.last_wins);
        let place = find_state_dict(arena, &mut walk)?;
        self.wrapper = place.wrapper;
        let n_entries = objects::plain_mapping(arena, place.node).map_or(0, |flat| flat.len() / 2);
        self.state_dict.reserve(n_entries);
        walk.run(place.node, "", true, &mut |name, found, in_state_dict| {
            self.take(arena, name, found, in_state_dict)
        })?;
        let mut metadata = metadata(arena, place.node);
        if metadata.is_empty() {
            metadata = std::mem::take(&mut walk.modules);
        }
        self.state_dict = std::mem::take(&mut self.state_dict).with_metadata(metadata);
        for (name, node) in place.siblings {
            if !walk.is_tensor(node) {
                self.others.push(Other {
                    name: name.clone(),
                    value: render::render(arena, node),
                });
            }
            walk.run(node, &name, false, &mut |name, found, in_state_dict| {
                // Plain values are summed up by the line above.
                match found {
                    Found::Value(_) => Ok(()),
                    found => self.take(arena, name, found, in_state_dict),
                }
            })?;
        }
        // Where the last of equal keys wins, the others are meant to be lost.
        let n_unseen = rebuilder.n_unseen();
        if n_unseen > 0 && !self.options.last_wins {
            self.problems.push(Problem {
                name: "(unnamed)".to_owned(),
                fault: TensorFault::Unsupported(format!(
                    "{n_unseen} tensors lie where no name leads: attributes of other tensors, or values that nothing refers to"
                )),
                in_state_dict: false,
            });
        }
        if let Some((at, n_bytes)) = container.trailing {
            self.problems.push(Problem {
                name: "(behind the checkpoint)".to_owned(),
                fault: TensorFault::Unsupported(format!(
                    "{n_bytes} bytes follow from byte {at} on; only the first checkpoint of a file is read"
                )),
                in_state_dict: false,
            });
        }
        Ok(())
    }

    fn take(
        &mut self,
        arena: &Arena<'_>,
        name: &str,
        found: Found,
        in_state_dict: bool,
    ) -> Result<(), Error> {
        // A bare tensor as the whole file.
        let name = if name.is_empty() { "tensor" } else { name };
        let entry = match found {
            Found::Tensor(tensor) => Ok(Entry::Tensor(tensor)),
            Found::Record(record) => Ok(Entry::Record(record)),
            Found::Fault(fault) if fault.condemns_the_file() => {
                let name = name.to_owned();
                return Err(Error::Tensor { name, fault });
            }
            Found::Fault(fault) => Err(fault),
            Found::Value(node) => match unread_object(arena, node).filter(|_| in_state_dict) {
                Some((module, function)) => {
                    Err(TensorFault::Unsupported(format!("needs {module}.{function}")))
                }
                None => {
                    self.others.push(Other {
                        name: name.to_owned(),
                        value: render::render(arena, node),
                    });
                    return Ok(());
                }
            },
        };
        let entries = if in_state_dict {
            &mut self.state_dict
        } else {
            &mut self.other_tensors
        };
        let fault = match entry {
            Ok(entry) => {
                if entries.insert_new(name, entry) {
                    return Ok(());
                }
                TensorFault::DuplicateName
            }
            Err(fault) => fault,
        };
        self.problems.push(Problem {
            name: name.to_owned(),
            fault,
            in_state_dict,
        });
        Ok(())
    }

    /// The container that the file is.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The state dict: the root itself, or what a training script wrapped, or what a pickled module's `state_dict()` would return.
    pub fn state_dict(&self) -> &StateDict {
        &self.state_dict
    }

    /// The state dict by value.
    pub fn into_state_dict(self) -> StateDict {
        self.state_dict
    }

    /// The dotted name under which the state dict lies in the file (`state_dict`); empty when it is the root.
    pub fn wrapper(&self) -> &str {
        &self.wrapper
    }

    /// Everything beside the tensors: `epoch`, `arch`, hyper-parameters.
    pub fn others(&self) -> &[Other] {
        &self.others
    }

    /// Tensors beside the state dict, named from the root: `optimizer.state.0.momentum_buffer`.
    pub fn other_tensors(&self) -> &StateDict {
        &self.other_tensors
    }

    /// All tensors: those of the state dict, then the others.
    pub fn all_tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.state_dict.iter().chain(self.other_tensors.iter())
    }

    /// All records: those of the state dict, then the others.
    pub fn records(&self) -> impl Iterator<Item = (&str, &Record)> {
        self.state_dict.records().chain(self.other_tensors.records())
    }

    /// What could not be read, by name and with the reason.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Python source texts in a legacy file of a whole model; never run.
    pub fn sources(&self) -> &[ModuleSource] {
        &self.sources
    }

    /// Everything in the file as typed values: the way to an epoch number, an optimizer's state, hyper-parameters.
    ///
    /// Reads the pickle anew; tensors are views of the file, as everywhere.
    ///
    /// # Errors
    /// A value that holds itself, values nested more than 200 deep, or a tensor that cannot be read.
    pub fn value(&self) -> Result<Value, Error> {
        let container = container::open(&self.source, &self.options, &mut refuse_high)?;
        value::read(&container)
    }
}

/// Where the state dict is, and what lies beside the way to it.
struct Place {
    node: NodeId,
    wrapper: String,
    siblings: Vec<(String, NodeId)>,
}

/// Goes down through wrappers.
fn find_state_dict(arena: &Arena<'_>, walk: &mut Walk<'_, '_>) -> Result<Place, Error> {
    let mut place = Place {
        node: arena.root(),
        wrapper: String::new(),
        siblings: Vec::new(),
    };
    for _ in 0..MAX_WRAPPERS {
        let Some(entries) = objects::mapping(arena, place.node) else {
            break;
        };
        let entries = walk.unique(entries, &place.wrapper)?;
        // One look at each key: there may be a hundred thousand, and they are not wrappers then.
        let mut found: Vec<(usize, NodeId)> = Vec::new();
        for &(key, value) in &entries {
            let key = arena.str_bytes(key).unwrap_or_default();
            if let Some(rank) = WRAPPERS.iter().position(|wrapper| wrapper.as_bytes() == key) {
                found.push((rank, value));
            }
        }
        found.sort_by_key(|&(rank, _)| rank);
        let mut inner = None;
        for (rank, value) in found {
            let fits = objects::is_module(arena, value) || objects::mapping(arena, value).is_some();
            if fits && walk.holds_tensor(value)? {
                inner = WRAPPERS.get(rank).map(|key| (*key, value));
                break;
            }
        }
        let Some((key, value)) = inner else {
            break;
        };
        for (other_key, other) in entries {
            if other != value {
                let name = walk::join(&place.wrapper, &walk::key_text(arena, other_key));
                place.siblings.push((name, other));
            }
        }
        place.wrapper = walk::join(&place.wrapper, key);
        place.node = value;
    }
    Ok(place)
}

/// The callee of an object that might have become a tensor or hold one, had its class been known.
fn unread_object(arena: &Arena<'_>, node: NodeId) -> Option<(String, String)> {
    arena.callee(node)?;
    // Attributes without a tensor among them: a Namespace, a data class.
    if objects::attributes(arena, node).is_some() || numpy::array(arena, node).is_some() {
        return None;
    }
    let (module, name) = arena.callee_name(node).unwrap_or(("", "an unnamed class"));
    let plain = matches!(
        module,
        "builtins"
            | "__builtin__"
            | "_io"
            | "_codecs"
            | "collections"
            | "datetime"
            | "pathlib"
            | "decimal"
            | "fractions"
            | "uuid"
    ) || (module == "torch" && matches!(name, "Size" | "device"))
        || (module == "numpy" && name == "dtype");
    (!plain).then(|| (module.to_owned(), name.to_owned()))
}

/// `_metadata` of a state dict.
pub(crate) fn metadata(arena: &Arena<'_>, node: NodeId) -> Vec<ModuleVersion> {
    let entries = objects::attributes(arena, node)
        .and_then(|attributes| objects::get(arena, &attributes, "_metadata"))
        .and_then(|metadata| objects::mapping(arena, metadata));
    let version = |value: NodeId| {
        let entries = objects::mapping(arena, value)?;
        match arena.node(objects::get(arena, &entries, "version")?) {
            Node::Int(version) => Some(version),
            _ => None,
        }
    };
    entries
        .unwrap_or_default()
        .into_iter()
        .map(|(key, value)| ModuleVersion {
            module: walk::key_text(arena, key).into_owned(),
            version: version(value),
        })
        .collect()
}
