//! What only one side has by name: renamed tensors are found by the hashes of their bytes, the rest is added or removed.

use std::collections::{HashMap, HashSet};

use pth::{DType, Entry, Tensor};

use super::compare::{self, Hashed};
use super::options::{Depth, DiffOptions};
use super::rename::{self, Lone};
use super::report::{Census, Diff, OneSided, Renamed, Side};
use super::sides::{self, Names};
use super::{beside, elements, note_health, work};
use crate::Error;

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
pub(super) fn compare(
    a: &Names<'_>,
    b: &Names<'_>,
    options: &DiffOptions,
    diff: &mut Diff,
) -> Result<(), Error> {
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
