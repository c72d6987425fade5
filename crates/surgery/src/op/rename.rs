//! Names by prefix. All or nothing: a collision leaves the state dict as it was.

use std::collections::HashMap;

use pth::{ModuleVersion, StateDict};

use crate::Error;

/// Takes `prefix` off every name that starts with it; returns how many.
///
/// # Errors
/// No name starts with it, or two tensors would get one name.
pub fn strip_prefix(tensors: &mut StateDict, prefix: &str) -> Result<usize, Error> {
    rename_prefix(tensors, prefix, "")
}

/// Puts `new` in the place of the prefix `old` of every name that starts with it; returns how many.
///
/// # Errors
/// No name starts with `old`, or two tensors would get one name.
pub fn rename_prefix(tensors: &mut StateDict, old: &str, new: &str) -> Result<usize, Error> {
    let renamed = |name: &str| name.strip_prefix(old).map(|rest| format!("{new}{rest}"));
    let mut n_renamed = 0;
    let mut sources: HashMap<String, &str> = HashMap::with_capacity(tensors.len());
    let mut names = Vec::with_capacity(tensors.len());
    for name in tensors.names() {
        let target = renamed(name);
        n_renamed += usize::from(target.is_some());
        let target = target.unwrap_or_else(|| name.to_owned());
        if let Some(first) = sources.insert(target.clone(), name) {
            return Err(Error::Collision {
                first: first.to_owned(),
                second: name.to_owned(),
                name: target,
            });
        }
        names.push(target);
    }
    if n_renamed == 0 {
        return Err(Error::NoMatch {
            rule: format!("starts with `{old}`"),
        });
    }
    // torch keys `_metadata` by the module's name without the dot.
    let metadata = tensors.metadata().iter().filter_map(|entry| {
        let dotted = format!("{}.", entry.module);
        let module = match renamed(&dotted) {
            Some(renamed) => renamed.trim_end_matches('.').to_owned(),
            None if entry.module.is_empty() || !old.starts_with(&dotted) => entry.module.clone(),
            // A module that only held what was renamed out of it.
            None => return None,
        };
        Some(ModuleVersion {
            module,
            version: entry.version,
        })
    });
    let mut seen = std::collections::HashSet::new();
    let metadata: Vec<ModuleVersion> = metadata
        .filter(|entry| seen.insert(entry.module.clone()))
        .collect();
    let all = std::mem::take(tensors);
    *tensors = names
        .into_iter()
        .zip(all)
        .map(|(name, (_, tensor))| (name, tensor))
        .collect::<StateDict>()
        .with_metadata(metadata);
    Ok(n_renamed)
}

#[cfg(test)]
mod tests {
    use pth::{DType, Tensor};

    use super::*;

    fn named(names: &[&str]) -> StateDict {
        let tensor = Tensor::from_bytes(DType::Uint8, &[], vec![0]).unwrap();
        names
            .iter()
            .map(|name| ((*name).to_owned(), tensor.clone()))
            .collect()
    }

    #[test]
    fn prefixes_go_and_the_order_stays() {
        let mut tensors = named(&["module.b", "head.w", "module.a"]);
        assert_eq!(strip_prefix(&mut tensors, "module.").unwrap(), 2);
        assert!(tensors.names().eq(["b", "head.w", "a"]));
        assert_eq!(rename_prefix(&mut tensors, "head.", "fc.").unwrap(), 1);
        assert!(tensors.names().eq(["b", "fc.w", "a"]));
    }

    #[test]
    fn a_rule_without_a_match_and_a_collision_change_nothing() {
        let mut tensors = named(&["fc.w", "head.w"]);
        let error = strip_prefix(&mut tensors, "module.").unwrap_err();
        assert_eq!(error.to_string(), "no tensor name starts with `module.`");
        let error = rename_prefix(&mut tensors, "head.", "fc.").unwrap_err();
        assert_eq!(
            error.to_string(),
            "`fc.w` and `head.w` would both be called `fc.w`"
        );
        assert!(tensors.names().eq(["fc.w", "head.w"]));
    }
}
