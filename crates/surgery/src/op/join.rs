//! Verbs that make one tensor of several, or several of one.

use indexmap::IndexMap;

use super::matching::{no_match, record_error, target_name};
use super::pairs_of;
use crate::Error;
use crate::lazy::{LazyEntry, LazyTensor, resolve_dim};
use crate::pattern::{Captures, Target};
use crate::plan::args::{Args, Pair, list};
use crate::plan::{Effect, Fault, Operation, Workspace};

/// `cat 0 {q|k|v}_proj.* -> qkv.*`, `stack experts.{e}.w1 -> experts.w1`
#[derive(Debug)]
struct Join {
    dim: i64,
    pairs: Vec<Pair>,
    is_optional: bool,
    how: How,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// Along a dimension that is there; per head where heads are given.
    Along { heads: Option<usize> },
    /// Along a new dimension.
    New,
}

/// `split 0 in_proj_* -> {q|k|v}_proj.*`, `unstack experts.w1 -> experts.{e}.w1`
#[derive(Debug)]
struct Part {
    dim: i64,
    pairs: Vec<Pair>,
    is_optional: bool,
    how: How,
    sizes: Option<Vec<usize>>,
    n_parts: Option<usize>,
}

/// The dimension, where the first word is one.
fn leading_dim(args: &mut Args) -> Result<Option<i64>, Fault> {
    let is_number = |text: &str| text.parse::<i64>().is_ok();
    match args.word_if(is_number) {
        Some(word) => crate::plan::args::parse(&word, "a dimension").map(Some),
        None => Ok(None),
    }
}

/// `by heads=16`
fn heads(args: &mut Args) -> Result<Option<usize>, Fault> {
    let heads: Option<std::num::NonZeroUsize> = args.parsed("heads", "a number of heads")?;
    Ok(heads.map(usize::from))
}

pub(crate) fn parse_cat(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    let heads = heads(args)?;
    let dim = args.value("a dimension")?;
    let pairs = args.pairs(Target::One)?;
    args.take("by");
    Ok(Box::new(Join {
        dim,
        pairs,
        is_optional: args.is_optional,
        how: How::Along { heads },
    }))
}

pub(crate) fn parse_stack(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    Ok(Box::new(Join {
        dim: leading_dim(args)?.unwrap_or(0),
        pairs: args.pairs(Target::One)?,
        is_optional: args.is_optional,
        how: How::New,
    }))
}

pub(crate) fn parse_split(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    let heads = heads(args)?;
    let sizes = args.option("sizes");
    let mut sizes = sizes
        .map(|text| list(&text, ',', "a list of sizes such as `4096,1024,1024`"))
        .transpose()?;
    let n_parts: Option<std::num::NonZeroUsize> = args.parsed("parts", "a number of parts")?;
    let dim = args.value("a dimension")?;
    if args.take("sizes") {
        let word = args.word("sizes as in `4096,1024,1024`")?;
        sizes = Some(list(&word, ',', "a list of sizes such as `4096,1024,1024`")?);
    }
    let pairs = args.pairs(Target::Several)?;
    args.take("by");
    Ok(Box::new(Part {
        dim,
        pairs,
        is_optional: args.is_optional,
        how: How::Along { heads },
        sizes,
        n_parts: n_parts.map(usize::from),
    }))
}

pub(crate) fn parse_unstack(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    Ok(Box::new(Part {
        dim: leading_dim(args)?.unwrap_or(0),
        pairs: args.pairs(Target::Several)?,
        is_optional: args.is_optional,
        how: How::New,
        sizes: None,
        n_parts: None,
    }))
}

/// The place of a part among those that are joined, by what the target leaves out: words by their place, integers by value.
fn rank_of(pair: &Pair, captures: &Captures, place: usize) -> Vec<u64> {
    let (integers, choices, n_stars) = pair.target.uses();
    let wide = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    let words = captures
        .choices
        .iter()
        .enumerate()
        .filter(|(i, _)| !choices.contains(i))
        .map(|(_, &word)| wide(word));
    let numbers = captures
        .integers
        .iter()
        .enumerate()
        .filter(|(i, _)| !integers.contains(i))
        .map(|(_, n)| *n);
    // Of stars that are left out, the order of the state dict decides.
    let star = (captures.stars.len() > n_stars).then(|| wide(place));
    numbers.chain(words).chain(star).collect()
}

/// One of the parts: its place among them, and its name.
type Member = (Vec<u64>, String);

/// The first number that is missing among parts that one number tells apart.
fn gap(members: &[Member]) -> Option<u64> {
    let mut numbers: Vec<u64> = Vec::with_capacity(members.len());
    for (rank, _) in members {
        match rank.as_slice() {
            &[number] => numbers.push(number),
            _ => return None,
        }
    }
    numbers.sort_unstable();
    let first = *numbers.first()?;
    (first..)
        .zip(&numbers)
        .find(|(expected, number)| expected != *number)
        .map(|(expected, _)| expected)
}

/// How many parts the lists of words that the target leaves out promise.
fn n_promised(pair: &Pair) -> usize {
    let (_, choices, _) = pair.target.uses();
    let lists = pair.source.value.parts().iter().filter_map(|part| match part {
        crate::pattern::Part::OneOf(words) => Some(words.len()),
        _ => None,
    });
    lists
        .enumerate()
        .filter(|(i, _)| !choices.contains(i))
        .map(|(_, n)| n)
        .product()
}

impl Operation for Join {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let found = pairs_of(&work.tensors, &self.pairs, self.is_optional)?;
        let mut groups: IndexMap<String, (&Pair, Vec<Member>)> = IndexMap::new();
        for (place, (name, pair, captures)) in found.iter().enumerate() {
            let target = target_name(pair, name, captures, 0)?;
            let rank = rank_of(pair, captures, place);
            groups
                .entry(target)
                .or_insert_with(|| (pair, Vec::new()))
                .1
                .push((rank, name.clone()));
        }
        let mut made: IndexMap<String, (String, LazyEntry)> = IndexMap::new();
        let mut gone = std::collections::HashSet::new();
        for (target, (pair, mut members)) in groups {
            members.sort();
            let gap = gap(&members);
            let names: Vec<String> = members.into_iter().map(|(_, name)| name).collect();
            if self.how == How::New
                && let Some(gap) = gap
            {
                return Err(Fault::new(format!(
                    "`{target}` would be made of parts with a gap: number {gap} is missing"
                ))
                .at(&pair.source.span));
            }
            let promised = n_promised(pair);
            if !names.len().is_multiple_of(promised) {
                return Err(Fault::new(format!(
                    "`{target}` would be made of {} parts and not of {promised}: {}",
                    names.len(),
                    names.join(", ")
                ))
                .at(&pair.source.span));
            }
            let joined = self
                .join(work, &names)
                .map_err(|fault| fault.at(&pair.source.span))?;
            let entry = work.tensors.get(&names[0]).expect("a name of the state dict");
            let entry = LazyEntry {
                // What is made of something trainable is trainable.
                requires_grad: names
                    .iter()
                    .any(|name| work.tensors.get(name).is_some_and(|entry| entry.requires_grad)),
                ..entry.with_tensor(joined)
            };
            made.insert(names[0].clone(), (target, entry));
            gone.extend(names);
        }
        let n_made = made.len();
        let all: Vec<_> = work
            .tensors
            .iter()
            .filter_map(|(name, entry)| match made.get(name) {
                Some((target, joined)) => Some((name.to_owned(), target.clone(), joined.clone())),
                None if gone.contains(name) => None,
                None => Some((name.to_owned(), name.to_owned(), entry.clone())),
            })
            .collect();
        work.tensors.replace_entries(all)?;
        Ok(Effect::exact(format!(
            "{} tensors joined to {n_made}",
            gone.len()
        )))
    }
}

impl Join {
    fn join(&self, work: &Workspace, names: &[String]) -> Result<LazyTensor, Fault> {
        let mut parts = Vec::with_capacity(names.len());
        for name in names {
            let entry = work.tensors.get(name).expect("a name of the state dict");
            let tensor = entry
                .tensor()
                .ok_or_else(|| Fault::from(record_error(name, entry)))?;
            parts.push(tensor.clone());
        }
        let first = &parts[0];
        let rank = first.shape().len() + usize::from(self.how == How::New);
        let dim = resolve_dim(self.dim, rank).ok_or_else(|| {
            Fault::new(format!(
                "`{}` {:?} has no dimension {}",
                names[0],
                first.shape(),
                self.dim
            ))
        })?;
        for (part, name) in parts.iter().zip(names) {
            let mut sizes = part.shape().to_vec();
            if self.how != How::New && sizes.len() == first.shape().len() {
                sizes[dim] = first.shape()[dim];
            }
            if sizes != first.shape() || part.dtype() != first.dtype() {
                return Err(Fault::from(Error::Disagree {
                    first: names[0].clone(),
                    first_is: format!("{} {:?}", first.dtype(), first.shape()),
                    second: name.clone(),
                    second_is: format!("{} {:?}", part.dtype(), part.shape()),
                }));
            }
        }
        match self.how {
            How::New => {
                let parts = parts.iter().map(|part| unsqueeze(part, dim)).collect();
                Ok(LazyTensor::joined(dim, parts))
            }
            How::Along { heads: None } => Ok(LazyTensor::joined(dim, parts)),
            How::Along { heads: Some(heads) } => {
                let split = |(part, name): (&LazyTensor, &String)| by_heads(part, dim, heads, name);
                let parts: Vec<LazyTensor> = parts.iter().zip(names).map(split).collect::<Result<_, _>>()?;
                let joined = LazyTensor::joined(dim + 1, parts);
                let mut shape = joined.shape().to_vec();
                let size = shape.remove(dim + 1);
                shape[dim] *= size;
                Ok(joined.reshape(&shape))
            }
        }
    }
}

fn unsqueeze(tensor: &LazyTensor, dim: usize) -> LazyTensor {
    let shape = tensor.shape();
    tensor.reshape(&[&shape[..dim], &[1], &shape[dim..]].concat())
}

/// `[…, N, …]` as `[…, heads, N / heads, …]`.
fn by_heads(tensor: &LazyTensor, dim: usize, heads: usize, name: &str) -> Result<LazyTensor, Fault> {
    let shape = tensor.shape();
    if !shape[dim].is_multiple_of(heads) {
        return Err(Fault::new(format!(
            "`{name}` {shape:?} has no {heads} heads in dimension {dim}"
        )));
    }
    Ok(tensor.reshape(&[&shape[..dim], &[heads, shape[dim] / heads], &shape[dim + 1..]].concat()))
}

impl Operation for Part {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let found = pairs_of(&work.tensors, &self.pairs, self.is_optional)?;
        let mut made: IndexMap<String, Vec<(String, LazyEntry)>> = IndexMap::new();
        for (name, pair, captures) in &found {
            let entry = work.tensors.get(name).expect("a name of the state dict");
            let tensor = entry
                .tensor()
                .ok_or_else(|| Fault::from(record_error(name, entry)))?;
            let n_words = pair.target.free_words().map(<[String]>::len);
            let parts = self
                .parts(tensor, name, n_words)
                .map_err(|fault| fault.at(&pair.source.span))?;
            let mut entries = Vec::with_capacity(parts.len());
            for (i, part) in parts.into_iter().enumerate() {
                entries.push((target_name(pair, name, captures, i)?, entry.with_tensor(part)));
            }
            made.insert(name.clone(), entries);
        }
        if found.is_empty() && !self.is_optional {
            return Err(no_match(&work.tensors, &self.pairs[0].source));
        }
        let n_made: usize = made.values().map(Vec::len).sum();
        let all: Vec<_> = work
            .tensors
            .iter()
            .flat_map(|(name, entry)| match made.get(name) {
                Some(parts) => {
                    let part = |(target, part): &(String, LazyEntry)| {
                        (name.to_owned(), target.clone(), part.clone())
                    };
                    parts.iter().map(part).collect()
                }
                None => vec![(name.to_owned(), name.to_owned(), entry.clone())],
            })
            .collect();
        work.tensors.replace_entries(all)?;
        Ok(Effect::exact(format!(
            "{} tensors parted into {n_made}",
            made.len()
        )))
    }
}

impl Part {
    fn parts(
        &self,
        tensor: &LazyTensor,
        name: &str,
        n_words: Option<usize>,
    ) -> Result<Vec<LazyTensor>, Fault> {
        let shape = tensor.shape();
        let dim = resolve_dim(self.dim, shape.len())
            .ok_or_else(|| Fault::new(format!("`{name}` {shape:?} has no dimension {}", self.dim)))?;
        let size = shape[dim];
        if self.how == How::New {
            if n_words.is_some_and(|n| n != size) {
                return Err(Fault::new(format!(
                    "`{name}` {shape:?} has {size} indices in dimension {dim}"
                )));
            }
            let squeezed = [&shape[..dim], &shape[dim + 1..]].concat();
            return Ok((0..size)
                .map(|i| tensor.slice(dim, i, 1, 1).reshape(&squeezed))
                .collect());
        }
        let heads = match self.how {
            How::Along { heads } => heads.unwrap_or(1),
            How::New => 1,
        };
        let sizes = match (&self.sizes, self.n_parts.or(n_words)) {
            (Some(sizes), _) => sizes.clone(),
            (None, Some(n)) if size.is_multiple_of(n) && n <= 1 << 20 => vec![size / n; n],
            (None, Some(n)) => {
                return Err(Fault::new(format!(
                    "`{name}` {shape:?} is not parted into {n} equal parts"
                )));
            }
            (None, None) => {
                return Err(Fault::new(
                    "how many parts there are is said by `parts=N` or `sizes=A,B`",
                ));
            }
        };
        if sizes.iter().try_fold(0_usize, |sum, &part| sum.checked_add(part)) != Some(size)
            || n_words.is_some_and(|n| n != sizes.len())
        {
            return Err(Fault::new(format!(
                "sizes {sizes:?} are not the parts of {size} in `{name}` {shape:?}"
            )));
        }
        if sizes.iter().any(|size| !size.is_multiple_of(heads)) {
            return Err(Fault::new(format!(
                "`{name}` {shape:?} has no {heads} heads in dimension {dim}"
            )));
        }
        let seen = by_heads(tensor, dim, heads, name)?;
        let mut at = 0;
        let parts = sizes.iter().map(|&size| {
            let part = seen.slice(dim + 1, at, size / heads, 1);
            at += size / heads;
            part.reshape(&[&shape[..dim], &[size], &shape[dim + 1..]].concat())
        });
        Ok(parts.collect())
    }
}
