//! `align like target.safetensors by suffix`: names of another state dict for the tensors at hand.

use std::collections::HashMap;

use crate::lazy::{LazyEntry, LazyStateDict};
use crate::plan::args::{Args, At, one_of};
use crate::plan::{Effect, Fault, Operation, Workspace};

#[derive(Debug)]
struct Align {
    target: At<String>,
    by: By,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// The longest run of last segments that both names have.
    Suffix,
    /// The n-th for the n-th; shapes may differ where the elements are as many.
    Order,
    /// The next of the same shape.
    Shape,
}

pub(crate) fn parse_align(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    if !args.take("like") {
        return Err(Fault::new("`like TARGET` is missing").at(&args.verb_span()));
    }
    let target = args.word("a file or an input's name")?;
    let by = if args.take("by") {
        let word = args.word("`suffix`, `order` or `shape`")?;
        one_of(
            &word,
            &[("suffix", By::Suffix), ("order", By::Order), ("shape", By::Shape)],
        )?
    } else {
        By::Suffix
    };
    Ok(Box::new(Align { target, by }))
}

impl Operation for Align {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let target = work.source(&self.target)?.clone();
        let found = match self.by {
            By::Suffix => by_suffix(&work.tensors, &target),
            By::Order => by_order(&work.tensors, &target),
            By::Shape => by_shape(&work.tensors, &target),
        };
        let found = found.map_err(|reason| Fault::new(reason).at(&self.target.span))?;
        let n = work.tensors.len();
        let n_matched = found.len();
        let mut all = Vec::with_capacity(n);
        for (name, entry) in work.tensors.iter() {
            match found.get(name) {
                Some(new) => all.push((name.to_owned(), new.clone(), reshaped(entry, &target, new))),
                None => all.push((name.to_owned(), name.to_owned(), entry.clone())),
            }
        }
        work.tensors.replace_entries(all)?;
        let n_open = target.names().filter(|name| !work.tensors.contains(name)).count();
        let mut effect = Effect::exact(format!(
            "{n_matched} of {n} named, {n_open} names of `{}` open",
            self.target.value
        ));
        let unmatched: Vec<&str> = work
            .tensors
            .names()
            .filter(|name| !target.contains(name))
            .take(5)
            .collect();
        if !unmatched.is_empty() {
            effect.notes.push(format!(
                "not named: {}{}",
                unmatched.join(", "),
                if n - n_matched > 5 { ", ..." } else { "" }
            ));
        }
        Ok(effect)
    }
}

/// The entry in the target's shape, where the elements are as many.
fn reshaped(entry: &LazyEntry, target: &LazyStateDict, name: &str) -> LazyEntry {
    match (entry.tensor(), target.tensor(name)) {
        (Some(tensor), Some(like)) if tensor.numel() == like.numel() => {
            entry.with_tensor(tensor.reshape(like.shape()))
        }
        _ => entry.clone(),
    }
}

fn by_suffix(tensors: &LazyStateDict, target: &LazyStateDict) -> Result<HashMap<String, String>, String> {
    // The tensors at hand by each of their suffixes, so that no name is compared with all others.
    let mut by_suffix: HashMap<&str, Vec<&str>> = HashMap::new();
    for name in tensors.names() {
        for suffix in suffixes(name) {
            by_suffix.entry(suffix).or_default().push(name);
        }
    }
    let mut found: HashMap<String, String> = HashMap::new();
    for name in target.names() {
        // The whole of the target's name at an end of theirs, or else the longest end of it that is the whole of one of theirs.
        let longer = by_suffix.get(name).map_or(&[][..], Vec::as_slice);
        let candidates = if longer.is_empty() {
            let whole = suffixes(name).find(|suffix| tensors.contains(suffix));
            whole.into_iter().collect()
        } else if longer.contains(&name) {
            vec![name]
        } else {
            longer.to_vec()
        };
        let (source, rival) = match candidates.as_slice() {
            [] => continue,
            [source] => (*source, None),
            [source, rival, ..] => (*source, Some(*rival)),
        };
        if let Some(rival) = rival {
            return Err(format!("`{name}` could be `{source}` and `{rival}`"));
        }
        if let Some(other) = found.insert(source.to_owned(), name.to_owned()) {
            return Err(format!("`{source}` could be `{other}` and `{name}`"));
        }
    }
    Ok(found)
}

/// `a.b.c`, `b.c`, `c`
fn suffixes(name: &str) -> impl Iterator<Item = &str> {
    std::iter::once(name).chain(name.match_indices('.').map(|(at, _)| &name[at + 1..]))
}

fn by_order(tensors: &LazyStateDict, target: &LazyStateDict) -> Result<HashMap<String, String>, String> {
    if tensors.len() != target.len() {
        return Err(format!(
            "there are {} tensors here and {} there",
            tensors.len(),
            target.len()
        ));
    }
    let pairs = tensors.iter().zip(target.iter());
    pairs
        .map(|((name, entry), (new, like))| {
            let numel = |entry: &LazyEntry| entry.shape().iter().product::<usize>();
            if numel(entry) != numel(like) {
                return Err(format!(
                    "`{name}` {:?} has not as many elements as `{new}` {:?}",
                    entry.shape(),
                    like.shape()
                ));
            }
            Ok((name.to_owned(), new.to_owned()))
        })
        .collect()
}

fn by_shape(tensors: &LazyStateDict, target: &LazyStateDict) -> Result<HashMap<String, String>, String> {
    let mut by_shape: HashMap<&[usize], std::collections::VecDeque<&str>> = HashMap::new();
    for (name, entry) in tensors.iter() {
        by_shape.entry(entry.shape()).or_default().push_back(name);
    }
    let mut found = HashMap::new();
    for (name, entry) in target.iter() {
        let next = by_shape
            .get_mut(entry.shape())
            .and_then(std::collections::VecDeque::pop_front);
        let source =
            next.ok_or_else(|| format!("no tensor of shape {:?} is left for `{name}`", entry.shape()))?;
        found.insert(source.to_owned(), name.to_owned());
    }
    Ok(found)
}
