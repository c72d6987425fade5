//! Whether `torch.load(weights_only=True)` would take a pickle, found without making anything.
//!
//! This follows torch's own unpickler opcode by opcode, with facts about values in their place: which class, whether hashable, of what dtype.
//! Deliberately absent: records (whether a storage exists and is as long as it should be), the numbers in storages (indices of sparse tensors), and
//! what depends on the machine: a device that torch could have counts as present. [torch/_weights_only_unpickler.py of torch 2.15]

mod allowed;
mod build;
mod call;
mod heap;
mod machine;
mod rebuild;
mod storage;
#[cfg(test)]
mod tests;
mod value;

use std::borrow::Cow;

use value::Global;

/// Where a pickle is, which decides what its persistent ids are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// `data.pkl` of a zip: storages, of five fields.
    Zip,
    /// The object of a legacy file: storages, of six fields.
    Legacy,
    /// Any other pickle, such as the first three of a legacy file: none are known.
    Bare,
}

/// Why torch would refuse a pickle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Of the opcode within the pickle.
    pub(crate) offset: usize,
    /// A lower-case phrase.
    pub(crate) reason: String,
}

/// What torch's unpickler does at the mention of a global.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GlobalRule {
    Allowed,
    /// Of a module that it never takes, even if the user allows the name.
    Blocked,
    /// Refused unless the user allows it.
    Unknown,
}

/// Why torch's `weights_only` unpickler would refuse the pickle at the start of `text`; none if it takes it.
pub(crate) fn refusal(text: &[u8], place: Place) -> Option<Refusal> {
    machine::Machine::new(text, place).run().err()
}

/// What is done about the global `name` of `module`, both as they stand in the pickle.
pub(crate) fn is_allowed(module: &str, name: &str) -> GlobalRule {
    find_global(module, name).0
}

/// The rule, the name that it is about, and the global if it is allowed.
fn find_global(module: &str, name: &str) -> (GlobalRule, String, Option<Global>) {
    let (module, name) = python3_name(module, name);
    // A name that is split elsewhere is found too, and so is torch's: it looks up the joined name.
    let path = format!("{module}.{name}");
    if allowed::BLOCKED_MODULES.contains(&module) {
        return (GlobalRule::Blocked, path, None);
    }
    let found = allowed::ALLOWED
        .binary_search_by(|(known, _)| (*known).cmp(path.as_str()))
        .ok()
        .and_then(|place| allowed::ALLOWED.get(place));
    match found {
        Some((_, global)) => (GlobalRule::Allowed, path, Some(*global)),
        None => (GlobalRule::Unknown, path, None),
    }
}

fn python3_name<'n>(module: &'n str, name: &'n str) -> (&'n str, &'n str) {
    for [old_module, old_name, new_module, new_name] in allowed::NAME_MAPPING {
        if (old_module, old_name) == (module, name) {
            return (new_module, new_name);
        }
    }
    let moved = allowed::IMPORT_MAPPING.iter().find(|[old, _]| *old == module);
    (moved.map_or(module, |[_, new]| *new), name)
}

/// A fault is a reason without its offset.
type Fault = Cow<'static, str>;

fn fault<T>(reason: impl Into<Fault>) -> Result<T, Fault> {
    Err(reason.into())
}
