//! Which entries a step means, and the rule that it must mean some.

use crate::lazy::{Identity, LazyStateDict, LazyTensor, LazyValue, Map};
use crate::pattern::Captures;
use crate::plan::Fault;
use crate::plan::args::{At, Pair, Patterns};
use crate::{Error, Pattern};

/// The places of the entries that any pattern matches and no exception does, in order. Every pattern must match something, unless
/// `is_optional`.
pub(crate) fn matched(
    tensors: &LazyStateDict,
    patterns: &Patterns,
    is_optional: bool,
) -> Result<Vec<usize>, Fault> {
    for pattern in patterns.any.iter().chain(&patterns.except) {
        must_match(tensors, pattern, is_optional)?;
    }
    let is_meant = |name: &str| {
        patterns.any.iter().any(|pattern| pattern.value.matches(name))
            && !patterns.except.iter().any(|pattern| pattern.value.matches(name))
    };
    Ok(tensors
        .names()
        .enumerate()
        .filter(|(_, name)| is_meant(name))
        .map(|(place, _)| place)
        .collect())
}

/// The names at `places`.
pub(crate) fn names_at(tensors: &LazyStateDict, places: &[usize]) -> Vec<String> {
    places
        .iter()
        .filter_map(|&place| Some(tensors.at(place)?.0.to_owned()))
        .collect()
}

/// A rule that matches nothing is most likely a typing mistake.
pub(crate) fn must_match(
    tensors: &LazyStateDict,
    pattern: &At<Pattern>,
    is_optional: bool,
) -> Result<(), Fault> {
    if is_optional || tensors.names().any(|name| pattern.value.matches(name)) {
        return Ok(());
    }
    Err(no_match(tensors, pattern))
}

/// What to write where nothing need match.
pub(crate) const MAY_MATCH_NOTHING: &str = "a `?` behind the verb allows a step to match nothing";

/// The error of a pattern that matches nothing, with a name that is near to it.
pub(crate) fn no_match(tensors: &LazyStateDict, pattern: &At<Pattern>) -> Fault {
    let text = pattern.value.as_str();
    let fault = Fault::from(Error::NoMatch {
        rule: format!("matches `{text}`"),
    })
    .at(&pattern.span);
    let is_plain = !text.contains(['*', '{', '/']);
    // Nothing is near to a pattern, and distances to a hundred thousand names cost seconds.
    let names = tensors.names().filter(|_| is_plain);
    let near = names.min_by_key(|name| crate::edit_distance(name, text));
    match near.filter(|near| crate::edit_distance(near, text) <= 2.max(text.len() / 3)) {
        Some(near) => fault.hint(format!(
            "did you mean `{near}`? a `?` behind the verb allows a step to match nothing"
        )),
        None => fault.hint(MAY_MATCH_NOTHING),
    }
}

/// For each entry that a pair matches: its name, the pair, what the pair's pattern has captured. The first pair that matches counts.
pub(crate) fn pairs_of<'p>(
    tensors: &LazyStateDict,
    pairs: &'p [Pair],
    is_optional: bool,
) -> Result<Vec<(String, &'p Pair, Captures)>, Fault> {
    let mut found = Vec::new();
    let mut is_used = vec![false; pairs.len()];
    for name in tensors.names() {
        let matching = pairs.iter().zip(&mut is_used).filter_map(|(pair, is_used)| {
            let captures = pair.source.value.captures(name)?;
            *is_used = true;
            Some((pair, captures))
        });
        // All are asked, so that each knows whether it matches something.
        if let Some((pair, captures)) = matching.reduce(|first, _| first) {
            found.push((name.to_owned(), pair, captures));
        }
    }
    match pairs.iter().zip(is_used).find(|(_, is_used)| !is_used) {
        Some((pair, _)) if !is_optional => Err(no_match(tensors, &pair.source)),
        _ => Ok(found),
    }
}

/// The name that a pair makes of `name`.
pub(crate) fn target_name(
    pair: &Pair,
    name: &str,
    captures: &Captures,
    part: usize,
) -> Result<String, Fault> {
    pair.target
        .fill(&pair.source.value, name, captures, part)
        .ok_or_else(|| {
            Fault::new(format!("`{}` makes no name of `{name}`", pair.target.as_str())).at(&pair.source.span)
        })
}

/// Changes the tensors at `places`. What is one tensor under several names stays one, also under names that no place is of.
/// Records are refused.
pub(crate) fn map_tensors(
    tensors: &mut LazyStateDict,
    places: &[usize],
    mut change: impl FnMut(&str, &LazyTensor) -> Result<LazyTensor, Fault>,
) -> Result<(), Fault> {
    // With the old ones, so that no new one gets the address that an old one is known by.
    let mut made: Map<Identity, (LazyTensor, LazyTensor)> = Map::default();
    made.reserve(places.len());
    for &place in places {
        let (name, entry) = tensors.at_mut(place).expect("places are those of entries");
        let LazyValue::Tensor(tensor) = &mut entry.value else {
            return Err(Fault::from(record_error(name, entry)));
        };
        if let Some((_, changed)) = made.get(&tensor.identity()) {
            *tensor = changed.clone();
            continue;
        }
        let changed = change(name, tensor)?;
        check_size(name, &changed)?;
        let old = std::mem::replace(tensor, changed.clone());
        made.insert(old.identity(), (old, changed));
    }
    if places.len() < tensors.len() {
        for (_, entry) in tensors.iter_mut() {
            if let LazyValue::Tensor(tensor) = &mut entry.value
                && let Some((_, changed)) = made.get(&tensor.identity())
            {
                *tensor = changed.clone();
            }
        }
    }
    Ok(())
}

/// Refuses a tensor that no disk could hold: a mistyped size, or a file that lies.
pub(crate) fn check_size(name: &str, tensor: &LazyTensor) -> Result<(), Fault> {
    const MOST_BYTES: usize = 1 << 50;
    let size = tensor.dtype().size();
    let n_bytes = tensor.shape().iter().try_fold(size, |n, &len| n.checked_mul(len));
    if n_bytes.is_some_and(|n| n <= MOST_BYTES) {
        return Ok(());
    }
    Err(Fault::new(format!(
        "`{name}` {:?} would be larger than a petabyte",
        tensor.shape()
    )))
}

/// The error of a verb that needs one array.
pub(crate) fn record_error(name: &str, entry: &crate::lazy::LazyEntry) -> Error {
    let kind = match &entry.value {
        LazyValue::Record(record) => record.kind.as_str(),
        LazyValue::Tensor(_) => "a tensor",
    };
    Error::NotOneArray {
        name: name.to_owned(),
        kind,
    }
}
