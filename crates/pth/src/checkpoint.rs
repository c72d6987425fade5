//! The facade: open a file, find the state dict in it, account for everything else.

use std::path::Path;

use crate::container::{self, Contents, Format};
use crate::error::TensorFault;
use crate::pickle::{Node, NodeId, render};
use crate::rebuild::Rebuilder;
use crate::walk::{self, Find, Found};
use crate::{Error, FileMap, ModuleVersion, StateDict, Tensor, objects};

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
#[derive(Debug)]
pub struct Checkpoint {
    format: Format,
    state_dict: StateDict,
    wrapper: String,
    others: Vec<Other>,
    other_tensors: StateDict,
    problems: Vec<Problem>,
}

/// Something in the file that is no tensor of the state dict.
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
        Checkpoint::read(FileMap::open(path)?)
    }

    /// As [`open`](Checkpoint::open), of a file that is mapped already.
    ///
    /// # Errors
    /// As [`open`](Checkpoint::open).
    pub fn read(map: FileMap) -> Result<Checkpoint, Error> {
        let contents = container::open(map)?;
        let mut checkpoint = Checkpoint {
            format: contents.format,
            state_dict: StateDict::new(),
            wrapper: String::new(),
            others: Vec::new(),
            other_tensors: StateDict::new(),
            problems: Vec::new(),
        };
        checkpoint.fill(&contents)?;
        Ok(checkpoint)
    }

    fn fill(&mut self, contents: &Contents) -> Result<(), Error> {
        let arena = &contents.arena;
        let mut rebuilder = Rebuilder::new(contents);
        let (node, siblings) = self.find_state_dict(contents);
        for find in walk::walk(arena, &mut rebuilder, node, "", true)? {
            self.take(contents, find);
        }
        let metadata = metadata(contents, node);
        self.state_dict = std::mem::take(&mut self.state_dict).with_metadata(metadata);
        for (name, node) in siblings {
            if rebuilder.tensor(node).is_none() {
                self.others.push(Other {
                    name: name.clone(),
                    value: render::render(arena, node),
                });
            }
            for find in walk::walk(arena, &mut rebuilder, node, &name, false)? {
                // Plain values are summed up by the line above.
                if !matches!(find.found, Found::Value(_)) {
                    self.take(contents, find);
                }
            }
        }
        Ok(())
    }

    /// Goes down through wrappers; returns the state dict's node and what lies beside the way.
    fn find_state_dict(&mut self, contents: &Contents) -> (NodeId, Vec<(String, NodeId)>) {
        let arena = &contents.arena;
        let mut node = arena.root();
        let mut siblings = Vec::new();
        for _ in 0..MAX_WRAPPERS {
            let Some(entries) = objects::mapping(arena, node) else {
                break;
            };
            let inner = WRAPPERS.iter().find_map(|key| {
                let value = objects::get(arena, &entries, key)?;
                let fits = objects::is_module(arena, value) || objects::mapping(arena, value).is_some();
                (fits && walk::any_tensor(arena, vec![value])).then_some((*key, value))
            });
            let Some((key, value)) = inner else {
                break;
            };
            for (other_key, other) in entries {
                if other != value {
                    siblings.push((
                        walk::join(&self.wrapper, &walk::key_text(arena, other_key)),
                        other,
                    ));
                }
            }
            self.wrapper = walk::join(&self.wrapper, key);
            node = value;
        }
        (node, siblings)
    }

    fn take(&mut self, contents: &Contents, find: Find) {
        let Find {
            mut name,
            found,
            in_state_dict,
        } = find;
        if name.is_empty() {
            // A bare tensor as the whole file.
            "tensor".clone_into(&mut name);
        }
        let fault = match found {
            Found::Tensor(tensor) => {
                let tensors = if in_state_dict {
                    &mut self.state_dict
                } else {
                    &mut self.other_tensors
                };
                if !tensors.contains(&name) {
                    tensors.insert(name, tensor);
                    return;
                }
                TensorFault::DuplicateName
            }
            Found::Fault(fault) => fault,
            Found::Value(node) => {
                let arena = &contents.arena;
                if in_state_dict && let Some((module, function)) = unread_object(contents, node) {
                    TensorFault::Unsupported(format!("needs {module}.{function}"))
                } else {
                    self.others.push(Other {
                        name,
                        value: render::render(arena, node),
                    });
                    return;
                }
            }
        };
        self.problems.push(Problem {
            name,
            fault,
            in_state_dict,
        });
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

    /// Everything beside the state dict: `epoch`, `arch`, the optimizer.
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

    /// What could not be read, by name and with the reason.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

/// The callee of an object that might have become a tensor or hold one, had its class been known.
fn unread_object(contents: &Contents, node: NodeId) -> Option<(String, String)> {
    match contents.arena.node(node) {
        Node::Call { .. } | Node::CallEx { .. } => {
            let (module, name) = contents
                .arena
                .callee_name(node)
                .unwrap_or(("", "an unnamed class"));
            let plain = matches!(module, "builtins" | "__builtin__" | "_codecs" | "collections")
                || (module == "torch" && matches!(name, "Size" | "device"));
            (!plain).then(|| (module.to_owned(), name.to_owned()))
        }
        _ => None,
    }
}

/// `_metadata` of a state dict.
fn metadata(contents: &Contents, node: NodeId) -> Vec<ModuleVersion> {
    let arena = &contents.arena;
    let entries = objects::attributes(arena, node)
        .and_then(|attributes| objects::get(arena, &attributes, "_metadata"))
        .and_then(|metadata| objects::mapping(arena, metadata));
    let version = |value: NodeId| {
        let entries = objects::mapping(arena, value)?;
        arena.int(objects::get(arena, &entries, "version")?)
    };
    entries
        .unwrap_or_default()
        .into_iter()
        .map(|(key, value)| ModuleVersion {
            module: walk::key_text(arena, key),
            version: version(value),
        })
        .collect()
}
