//! What differs between two state dicts, and what kind of difference that is.
//!
//! Every tensor is read once, piece by piece, on both sides at the same time. Tensors whose name only one side has are hashed on the way
//! if the other side has one of that shape, so that renames are known. Read again are tensors that may be a conversion under another name
//! or a transpose, the latter up to the first difference, and a few rows of matrices that may have got something of low rank added.
//!
//! Absent: tensors beside the state dict (an optimizer's) are not compared.

mod beside;
mod compare;
mod elements;
mod fold;
mod lone;
mod module;
mod options;
mod rank;
mod rename;
mod report;
mod sides;
mod verdict;
mod work;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use pth::Tensor;

pub use fold::{Fold, fold};
pub use module::HEADS;
pub use options::{Depth, DiffOptions, FAIL_KINDS, FailKind, FailOn, TOLERANCES, Tolerance};
pub use report::{
    CastProof, Census, Changed, Counts, Diff, FailOnReport, Health, MarkChange, MetadataChange, OnDisk,
    OneSided, Recast, Renamed, Reshaped, Side, TieChange, Transposed,
};
pub use verdict::{CastKind, Verdict, percent};

use crate::{Error, Opened, Pattern};
use sides::Names;
use verdict::{Facts, Products};
use work::{Found, Pair};

/// Compares the state dicts of two open files: from `a` to `b`.
///
/// # Errors
/// A tensor cannot be read; a pattern of the options matches no name on either side.
pub fn diff(a: &Opened, b: &Opened, options: &DiffOptions) -> Result<Diff, Error> {
    check_patterns(a, b, options)?;
    let (names_a, names_b) = (Names::of(a, options), Names::of(b, options));
    let (marks, unmarked) = beside::marks(&names_a, &names_b);
    let mut diff = Diff {
        verdict: Verdict::Identical,
        is_identical: true,
        counts: Counts::default(),
        changed: Vec::new(),
        added: Vec::new(),
        removed: Vec::new(),
        renamed: Vec::new(),
        cast: Vec::new(),
        reshaped: Vec::new(),
        transposed: Vec::new(),
        ties: beside::ties(&names_a, &names_b),
        marks,
        unmarked,
        metadata: beside::metadata((a, &names_a), (b, &names_b)),
        layout: beside::layout((a, &names_a), (b, &names_b)),
        health: Vec::new(),
        fail_on: Vec::new(),
    };
    let mut facts = Facts {
        depth: options.depth,
        weights: Products::default(),
        matrices: Products::default(),
        module: None,
        of_changed: Vec::new(),
    };
    pairs(&names_a, &names_b, options, &mut diff, &mut facts)?;
    lone::compare(&names_a, &names_b, options, &mut diff)?;

    diff.counts = Counts {
        changed: diff.changed.len(),
        added: diff.added.len(),
        removed: diff.removed.len(),
        renamed: diff.renamed.len(),
        cast: diff.cast.len(),
        reshaped: diff.reshaped.len(),
        transposed: diff.transposed.len(),
        ties: diff.ties.len(),
        marks: diff.marks.len(),
        ..diff.counts
    };
    facts.module = module::of_all_differences(&diff, &names_a, &names_b);
    if facts.module.is_none() {
        find_ranks(&names_a, &names_b, options, &mut diff, &facts.of_changed)?;
    }
    diff.verdict = verdict::judge(&diff, &facts);
    diff.is_identical = diff.verdict.is_same();
    diff.fail_on = options
        .fail_on
        .iter()
        .map(|asked| fail_on(&diff, asked, &names_a, &names_b))
        .collect::<Result<_, _>>()?;
    Ok(diff)
}

/// A pattern that no name obeys is most likely a typing mistake.
fn check_patterns(a: &Opened, b: &Opened, options: &DiffOptions) -> Result<(), Error> {
    let everything = DiffOptions::default();
    let (a, b) = (Names::of(a, &everything), Names::of(b, &everything));
    for pattern in options.only.iter().chain(&options.skip) {
        let mut names = a.entries.keys().chain(b.entries.keys());
        if !names.any(|name| pattern.matches(name)) {
            return Err(no_match(pattern));
        }
    }
    Ok(())
}

fn no_match(pattern: &Pattern) -> Error {
    Error::NoMatch {
        rule: format!("matches `{}`", pattern.as_str()),
    }
}

/// Compares what both have under one name.
fn pairs(
    a: &Names<'_>,
    b: &Names<'_>,
    options: &DiffOptions,
    diff: &mut Diff,
    facts: &mut Facts,
) -> Result<(), Error> {
    let pairs: Vec<Pair<'_>> = a
        .entries
        .iter()
        .filter_map(|(name, x)| {
            Some(Pair {
                name,
                a: x,
                b: b.entries.get(name)?,
            })
        })
        .collect();
    let sizes = |pair: &Pair<'_>| sides::n_bytes(pair.a) + sides::n_bytes(pair.b);
    let found = work::in_threads(&pairs, options.n_threads, sizes, |pair| {
        pair.compare(options.depth, options.tolerance)
            .map_err(|source| Error::Tensor {
                name: pair.name.to_owned(),
                source,
            })
    })?;
    for (pair, found) in pairs.iter().zip(found) {
        if !crate::is_buffer_name(pair.name) {
            facts.weights.add(found.products);
            if sides::shape(pair.a).len() > 1 {
                facts.matrices.add(found.products);
            }
        }
        if let Some([x, y]) = found.census {
            note_health(diff, pair.name, Some(x), Some(y));
        }
        match found.what {
            Found::Same => diff.counts.same += 1,
            Found::WithinTolerance => {
                diff.counts.same += 1;
                diff.counts.within_tolerance += 1;
            }
            Found::Changed(changed) => {
                diff.changed.push(changed);
                facts.of_changed.push(found.products);
            }
            Found::Cast(cast) => diff.cast.push(cast),
            Found::Reshaped(reshaped) => diff.reshaped.push(reshaped),
            Found::Transposed(transposed) => diff.transposed.push(transposed),
        }
    }
    Ok(())
}

pub(super) fn note_health(diff: &mut Diff, name: &str, a: Option<Census>, b: Option<Census>) {
    let is_remarkable = |census: Option<Census>| census.is_some_and(|census| census != Census::default());
    if is_remarkable(a) || is_remarkable(b) {
        diff.health.push(Health {
            name: name.to_owned(),
            a,
            b,
        });
    }
}

/// Looks for low ranks, where all that differs are matrices.
fn find_ranks(
    a: &Names<'_>,
    b: &Names<'_>,
    options: &DiffOptions,
    diff: &mut Diff,
    products: &[Products],
) -> Result<(), Error> {
    let others = diff.counts.reshaped + diff.counts.transposed + diff.counts.cast + diff.counts.removed;
    let tensors = |changed: &Changed| {
        let name = changed.name.as_str();
        let pair = (a.entries.get(name)?.tensor()?, b.entries.get(name)?.tensor()?);
        rank::is_candidate(pair.0, pair.1).then_some(pair)
    };
    let matrices: Option<Vec<(&Tensor, &Tensor)>> = diff.changed.iter().map(tensors).collect();
    let Some(matrices) = matrices.filter(|_| others == 0) else {
        return Ok(());
    };
    let changes = diff.changed.iter().zip(products);
    let jobs: Vec<_> = changes.zip(matrices).collect();
    // A fine-tune is told by its first matrix.
    let is_low = AtomicBool::new(true);
    let ranks = work::in_threads(
        &jobs,
        options.n_threads,
        |_| 1,
        |((changed, products), (x, y))| {
            if !is_low.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let rank = rank::low_rank(x, y, **products).map_err(|source| Error::Tensor {
                name: changed.name.clone(),
                source,
            })?;
            if rank.is_none() {
                is_low.store(false, Ordering::Relaxed);
            }
            Ok(rank)
        },
    )?;
    // All or none, so that nothing depends on which thread was first.
    if ranks.iter().all(Option::is_some) {
        for (changed, rank) in diff.changed.iter_mut().zip(ranks) {
            changed.rank = rank;
        }
    }
    Ok(())
}

fn fail_on(diff: &Diff, asked: &FailOn, a: &Names<'_>, b: &Names<'_>) -> Result<FailOnReport, Error> {
    let mut all: HashSet<&str> = a.entries.keys().copied().collect();
    all.extend(b.entries.keys());
    let n_matched = all.iter().filter(|name| asked.pattern.matches(name)).count();
    if n_matched == 0 {
        return Err(no_match(&asked.pattern));
    }
    let is_asked = |kinds: &[FailKind]| asked.kind == FailKind::Any || kinds.contains(&asked.kind);
    let mut found: Vec<&str> = Vec::new();
    if is_asked(&[FailKind::Changed]) {
        found.extend(diff.changed.iter().map(|tensor| tensor.name.as_str()));
        found.extend(diff.cast.iter().map(|tensor| tensor.name.as_str()));
        found.extend(diff.reshaped.iter().map(|tensor| tensor.name.as_str()));
        found.extend(diff.transposed.iter().map(|tensor| tensor.name.as_str()));
        let other_type = diff
            .renamed
            .iter()
            .filter(|tensor| tensor.dtype_a != tensor.dtype_b);
        found.extend(other_type.map(|tensor| tensor.from.as_str()));
    }
    if is_asked(&[FailKind::Changed, FailKind::Removed]) {
        found.extend(diff.removed.iter().map(|tensor| tensor.name.as_str()));
    }
    if is_asked(&[FailKind::Added]) {
        found.extend(diff.added.iter().map(|tensor| tensor.name.as_str()));
    }
    if is_asked(&[FailKind::Marks]) {
        found.extend(diff.marks.iter().map(|change| change.name.as_str()));
        if let Some(side) = diff.unmarked {
            let marked = match side {
                Side::A => b,
                Side::B => a,
            };
            found.extend(marked.entries.keys());
        }
    }
    if asked.kind == FailKind::Any {
        let renamed = diff.renamed.iter();
        found.extend(renamed.flat_map(|tensor| [tensor.from.as_str(), tensor.to.as_str()]));
    }
    let mut seen = HashSet::new();
    let found = found
        .into_iter()
        .filter(|name| asked.pattern.matches(name) && seen.insert(*name));
    Ok(FailOnReport {
        asked: asked.clone(),
        n_matched,
        found: found.map(str::to_owned).collect(),
    })
}

#[cfg(test)]
mod tests;
