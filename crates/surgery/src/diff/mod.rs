//! What differs between two state dicts, and what kind of difference that is.
//!
//! Every tensor is read once, piece by piece, on both sides at the same time. Tensors whose name only one side has are hashed on the way
//! if the other side has one of that shape, so that renames are known. Absent: tensors beside the state dict (an optimizer's) are not
//! compared.

mod beside;
mod compare;
mod elements;
mod fold;
mod module;
mod options;
mod rank;
mod rename;
mod report;
mod sides;
mod verdict;
mod work;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use pth::{DType, Entry, Tensor};

pub use fold::{Fold, fold};
pub use options::{Depth, DiffOptions, FAIL_KINDS, FailKind, FailOn, TOLERANCES, Tolerance};
pub use report::{
    CastProof, Census, Changed, Counts, Diff, FailOnReport, Health, MarkChange, MetadataChange, OnDisk,
    OneSided, Recast, Renamed, Reshaped, Side, TieChange, Transposed,
};
pub use verdict::{CastKind, Verdict, percent};

use crate::{Error, Opened, Pattern};
use compare::Hashed;
use rename::Lone;
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
    lone(&names_a, &names_b, options, &mut diff)?;

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

fn note_health(diff: &mut Diff, name: &str, a: Option<Census>, b: Option<Census>) {
    let is_remarkable = |census: Option<Census>| census.is_some_and(|census| census != Census::default());
    if is_remarkable(a) || is_remarkable(b) {
        diff.health.push(Health {
            name: name.to_owned(),
            a,
            b,
        });
    }
}

/// A tensor whose name one side has only.
struct Candidate<'o> {
    name: &'o str,
    entry: &'o Entry,
    side: Side,
    /// Whether the other side has one of that shape and type, which may be it.
    is_hashed: bool,
}

impl<'o> Candidate<'o> {
    fn tensor(&self) -> Option<&'o Tensor> {
        self.entry.tensor()
    }

    fn survey(&self, hashed: Option<Hashed>) -> Result<(Option<Census>, Option<blake3::Hash>), Error> {
        let Some(tensor) = self.tensor() else {
            return Ok((None, None));
        };
        let survey = compare::survey(tensor, hashed);
        let (tally, hash) = survey.map_err(|source| Error::Tensor {
            name: self.name.to_owned(),
            source,
        })?;
        Ok((Some(work::census(tensor, tally)), hash))
    }
}

/// What only one side has: renamed, added, removed.
fn lone(a: &Names<'_>, b: &Names<'_>, options: &DiffOptions, diff: &mut Diff) -> Result<(), Error> {
    let of = |here: &Names<'_>, there: &Names<'_>| -> HashSet<(Vec<usize>, DType)> {
        let names = here
            .entries
            .iter()
            .filter(|(name, _)| !there.entries.contains_key(*name));
        let tensors = names.filter_map(|(_, entry)| entry.tensor());
        tensors
            .map(|tensor| (tensor.shape().to_vec(), tensor.dtype()))
            .collect()
    };
    let (kinds_a, kinds_b) = (of(a, b), of(b, a));
    let mut candidates = Vec::new();
    for (here, there, side, kinds) in [(a, b, Side::A, &kinds_b), (b, a, Side::B, &kinds_a)] {
        for (name, entry) in &here.entries {
            if there.entries.contains_key(name) {
                continue;
            }
            let tensor = entry.tensor();
            let is_hashed =
                tensor.is_some_and(|tensor| kinds.contains(&(tensor.shape().to_vec(), tensor.dtype())));
            candidates.push(Candidate {
                name,
                entry,
                side,
                is_hashed,
            });
        }
    }
    let mut partner: HashMap<&str, &str> = HashMap::new();
    if options.depth == Depth::Values {
        let size = |candidate: &Candidate<'_>| sides::n_bytes(candidate.entry);
        let surveys = work::in_threads(&candidates, options.n_threads, size, |candidate| {
            candidate.survey(candidate.is_hashed.then_some(Hashed::Bytes))
        })?;
        let hashed: Vec<(usize, blake3::Hash)> = surveys
            .iter()
            .enumerate()
            .filter_map(|(i, (_, hash))| Some((i, (*hash)?)))
            .collect();
        for (candidate, (census, _)) in candidates.iter().zip(&surveys) {
            match candidate.side {
                Side::A => note_health(diff, candidate.name, *census, None),
                Side::B => note_health(diff, candidate.name, None, *census),
            }
        }
        match_hashes(&candidates, &hashed, &mut partner);
        let casts = hash_casts(&candidates, &partner, options)?;
        match_hashes(&candidates, &casts, &mut partner);
    }
    let (first_a, first_b) = (beside::first_names(a), beside::first_names(b));
    for candidate in &candidates {
        let (name, entry) = (candidate.name, candidate.entry);
        let tied_to = match candidate.side {
            Side::A => first_a.get(name),
            Side::B => first_b.get(name),
        };
        let one_sided = || OneSided {
            name: name.to_owned(),
            shape: sides::shape(entry).to_vec(),
            dtype: sides::dtype(entry).to_owned(),
            n_bytes: sides::n_bytes(entry),
            tied_to: tied_to.map(|first| (*first).to_owned()),
        };
        match (candidate.side, partner.get(name)) {
            (Side::A, Some(to)) => diff.renamed.push(Renamed {
                from: name.to_owned(),
                to: (*to).to_owned(),
                shape: sides::shape(entry).to_vec(),
                dtype_a: sides::dtype(entry).to_owned(),
                dtype_b: sides::dtype(b.entries[to]).to_owned(),
            }),
            (Side::A, None) => diff.removed.push(one_sided()),
            (Side::B, None) => diff.added.push(one_sided()),
            (Side::B, Some(_)) => {}
        }
    }
    Ok(())
}

/// Pairs candidates of equal shape, type and hash. A candidate may come with several hashes, as itself and as converted.
fn match_hashes<'o>(
    candidates: &[Candidate<'o>],
    hashes: &[(usize, blake3::Hash)],
    partner: &mut HashMap<&'o str, &'o str>,
) {
    let of = |side: Side| -> Vec<Lone<'o, (&[usize], [u8; 32])>> {
        let own = hashes.iter().filter(|(i, _)| candidates[*i].side == side);
        own.map(|(i, hash)| Lone {
            name: candidates[*i].name,
            key: (sides::shape(candidates[*i].entry), *hash.as_bytes()),
        })
        .collect()
    };
    let (a, b) = (of(Side::A), of(Side::B));
    for (i, j) in rename::pair(&a, &b) {
        if !partner.contains_key(a[i].name) && !partner.contains_key(b[j].name) {
            partner.insert(a[i].name, b[j].name);
            partner.insert(b[j].name, a[i].name);
        }
    }
}

/// Hashes of what is left of A, converted to the types of what is left of B in the same shape, and of the latter.
fn hash_casts(
    candidates: &[Candidate<'_>],
    partner: &HashMap<&str, &str>,
    options: &DiffOptions,
) -> Result<Vec<(usize, blake3::Hash)>, Error> {
    let mut jobs: Vec<(usize, DType)> = Vec::new();
    let is_left = |candidate: &&Candidate<'_>| !partner.contains_key(candidate.name);
    let mut types_b: HashMap<&[usize], Vec<DType>> = HashMap::new();
    let is_float = |tensor: &&Tensor| elements::Numbers::of(tensor.dtype()) == elements::Numbers::Float;
    for candidate in candidates
        .iter()
        .filter(|candidate| candidate.side == Side::B)
        .filter(is_left)
    {
        if let Some(tensor) = candidate.tensor().filter(is_float) {
            let types = types_b.entry(tensor.shape()).or_default();
            if !types.contains(&tensor.dtype()) {
                types.push(tensor.dtype());
            }
        }
    }
    let mut wanted: HashSet<(&[usize], DType)> = HashSet::new();
    for (i, candidate) in candidates.iter().enumerate() {
        let Some(tensor) = candidate
            .tensor()
            .filter(is_float)
            .filter(|_| is_left(&candidate))
        else {
            continue;
        };
        if candidate.side == Side::A {
            for to in types_b.get(tensor.shape()).into_iter().flatten() {
                if *to != tensor.dtype() {
                    wanted.insert((tensor.shape(), *to));
                    jobs.push((i, *to));
                }
            }
        } else if wanted.contains(&(tensor.shape(), tensor.dtype())) {
            jobs.push((i, tensor.dtype()));
        }
    }
    let size = |(i, _): &(usize, DType)| sides::n_bytes(candidates[*i].entry);
    let surveys = work::in_threads(&jobs, options.n_threads, size, |(i, to)| {
        candidates[*i].survey(Some(Hashed::Converted(*to)))
    })?;
    let hashes = jobs.iter().zip(surveys);
    Ok(hashes
        .filter_map(|((i, _), (_, hash))| Some((*i, hash?)))
        .collect())
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
    let jobs: Vec<((&Changed, &Products), (&Tensor, &Tensor))> = changes.zip(matrices).collect();
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
