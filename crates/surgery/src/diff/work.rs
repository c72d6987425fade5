//! Tensors by name on both sides, compared by several threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use pth::{Entry, Record, Tensor};

use super::compare::{self, Comparison};
use super::elements::{Numbers, Tally};
use super::options::{Depth, Tolerance};
use super::report::{CastProof, Census, Changed, Recast, Reshaped, Transposed};
use super::sides::{dtype, shape};
use super::verdict::Products;
use crate::Error;

/// What both have under one name.
pub(super) struct Pair<'o> {
    pub(super) name: &'o str,
    pub(super) a: &'o Entry,
    pub(super) b: &'o Entry,
}

/// What came of it.
pub(super) struct Outcome {
    pub(super) what: Found,
    /// Sums over the elements; zero but for floats and complex numbers, side by side in one shape.
    pub(super) products: Products,
    /// A's values and B's.
    pub(super) census: Option<[Census; 2]>,
}

/// How two tensors of one name are to each other.
pub(super) enum Found {
    Same,
    WithinTolerance,
    Changed(Changed),
    Cast(Recast),
    Reshaped(Reshaped),
    Transposed(Transposed),
}

impl From<Found> for Outcome {
    fn from(what: Found) -> Outcome {
        Outcome {
            what,
            products: Products::default(),
            census: None,
        }
    }
}

impl Pair<'_> {
    pub(super) fn compare(&self, depth: Depth, tolerance: Tolerance) -> Result<Outcome, pth::Error> {
        let (a, b) = match (self.a, self.b) {
            (Entry::Tensor(a), Entry::Tensor(b)) => (a, b),
            (Entry::Record(a), Entry::Record(b)) => return self.records(a, b, depth),
            (Entry::Tensor(_), Entry::Record(record)) => {
                return Ok(self.noted(format!("a tensor in A, {} in B", record.kind.as_str())));
            }
            (Entry::Record(record), Entry::Tensor(_)) => {
                return Ok(self.noted(format!("{} in A, a tensor in B", record.kind.as_str())));
            }
        };
        match depth {
            Depth::Headers => Ok(self.headers(a, b)),
            Depth::Values if a.shape() != b.shape() => self.reshaped(a, b),
            Depth::Values if !compare::are_comparable(a.dtype(), b.dtype()) => {
                let what = Found::Changed(self.changed());
                Ok(Outcome {
                    census: Some([whole_census(a)?, whole_census(b)?]),
                    ..Outcome::from(what)
                })
            }
            Depth::Values => self.values(a, b, tolerance),
        }
    }

    /// A change of which no more is known.
    fn changed(&self) -> Changed {
        Changed {
            name: self.name.to_owned(),
            shape: shape(self.b).to_vec(),
            dtype_a: dtype(self.a).to_owned(),
            dtype_b: dtype(self.b).to_owned(),
            share_changed: None,
            max_abs: None,
            rel: None,
            cos: None,
            max_ulp: None,
            rank: None,
            note: None,
        }
    }

    fn noted(&self, note: String) -> Outcome {
        let mut changed = self.changed();
        changed.note = Some(note);
        Found::Changed(changed).into()
    }

    fn recast(&self, proof: CastProof) -> Found {
        Found::Cast(Recast {
            name: self.name.to_owned(),
            shape: shape(self.a).to_vec(),
            from: dtype(self.a).to_owned(),
            to: dtype(self.b).to_owned(),
            proof,
        })
    }

    fn headers(&self, a: &Tensor, b: &Tensor) -> Outcome {
        if a.shape() != b.shape() {
            return self.other_shape(false).into();
        }
        if a.dtype() != b.dtype() {
            return self.recast(CastProof::Unread).into();
        }
        Found::Same.into()
    }

    fn other_shape(&self, is_view: bool) -> Found {
        Found::Reshaped(Reshaped {
            name: self.name.to_owned(),
            dtype_a: dtype(self.a).to_owned(),
            dtype_b: dtype(self.b).to_owned(),
            from: shape(self.a).to_vec(),
            to: shape(self.b).to_vec(),
            is_view,
        })
    }

    fn transposed(&self, a: &Tensor, b: &Tensor) -> Result<Option<Found>, pth::Error> {
        let may_be = matches!((a.shape(), b.shape()), (&[m, n], &[n_b, m_b]) if (m, n) == (m_b, n_b) && m > 1 && n > 1);
        if !may_be || !compare::same_bytes(&a.permute(&[1, 0])?, b)? {
            return Ok(None);
        }
        Ok(Some(Found::Transposed(Transposed {
            name: self.name.to_owned(),
            dtype: dtype(self.a).to_owned(),
            shape: a.shape().to_vec(),
        })))
    }

    fn reshaped(&self, a: &Tensor, b: &Tensor) -> Result<Outcome, pth::Error> {
        let what = match self.transposed(a, b)? {
            Some(transposed) => transposed,
            None => self.other_shape(compare::same_bytes(a, b)?),
        };
        Ok(Outcome {
            census: Some([whole_census(a)?, whole_census(b)?]),
            ..Outcome::from(what)
        })
    }

    fn values(&self, a: &Tensor, b: &Tensor, tolerance: Tolerance) -> Result<Outcome, pth::Error> {
        let comparison = compare::compare(a, b, tolerance)?;
        let sums = &comparison.sums;
        let numbers = (Numbers::of(a.dtype()), Numbers::of(b.dtype()));
        let what = if a.dtype() != b.dtype() {
            if comparison.is_cast {
                self.recast(CastProof::OfA)
            } else if comparison.is_cast_back {
                self.recast(CastProof::OfB)
            } else {
                Found::Changed(self.measured(&comparison, numbers))
            }
        } else if sums.n_different == 0 {
            Found::Same
        } else if sums.n_beyond == 0 {
            Found::WithinTolerance
        } else if let Some(transposed) = self.transposed(a, b)? {
            transposed
        } else {
            Found::Changed(self.measured(&comparison, numbers))
        };
        let has_fractions = |numbers| matches!(numbers, Numbers::Float | Numbers::Complex(_));
        let is_summed = has_fractions(numbers.0) && has_fractions(numbers.1);
        Ok(Outcome {
            census: is_summed.then(|| [census(a, sums.a), census(b, sums.b)]),
            // A transpose is no distance.
            products: if is_summed && !matches!(what, Found::Transposed(_)) {
                Products::of(sums)
            } else {
                Products::default()
            },
            what,
        })
    }

    fn measured(&self, comparison: &Comparison, numbers: (Numbers, Numbers)) -> Changed {
        let sums = &comparison.sums;
        let mut changed = self.changed();
        changed.share_changed = (sums.n > 0).then(|| sums.n_beyond as f64 / sums.n as f64);
        let is_number = |numbers| numbers != Numbers::Bits;
        if is_number(numbers.0) && is_number(numbers.1) {
            changed.max_abs = Some(sums.max_abs);
        }
        let has_fractions = |numbers| matches!(numbers, Numbers::Float | Numbers::Complex(_));
        if has_fractions(numbers.0) || has_fractions(numbers.1) {
            let products = Products::of(sums);
            changed.rel = products.rel();
            changed.cos = products.cos();
            changed.max_ulp = (self.same_type()).then_some(sums.max_ulp);
        }
        changed
    }

    fn same_type(&self) -> bool {
        dtype(self.a) == dtype(self.b)
    }

    /// Composed tensors: kind, facts, shape, then the parts.
    fn records(&self, a: &Record, b: &Record, depth: Depth) -> Result<Outcome, pth::Error> {
        if a.kind.as_str() != b.kind.as_str() {
            let note = format!("{} in A, {} in B", a.kind.as_str(), b.kind.as_str());
            return Ok(self.noted(note));
        }
        if a.shape != b.shape {
            return Ok(self.other_shape(false).into());
        }
        if a.dtype != b.dtype {
            return Ok(self.noted("another type".to_owned()));
        }
        let (facts_a, facts_b) = (a.kind.facts(), b.kind.facts());
        if let Some((name, _)) = facts_a.iter().find(|fact| !facts_b.contains(fact)) {
            return Ok(self.noted(format!("`{name}` is another")));
        }
        if facts_a.len() != facts_b.len() || a.parts.len() != b.parts.len() {
            return Ok(self.noted("made of other parts".to_owned()));
        }
        for (name, x) in &a.parts {
            let is_same = match b.part(name) {
                Some(y) if x.dtype() != y.dtype() || x.shape() != y.shape() => false,
                Some(y) => depth == Depth::Headers || compare::same_bytes(x, y)?,
                None => false,
            };
            if !is_same {
                return Ok(self.noted(format!("part `{name}` is another")));
            }
        }
        Ok(Found::Same.into())
    }
}

/// What is remarkable about a tensor's values.
pub(super) fn census(tensor: &Tensor, tally: Tally) -> Census {
    let is_tallied = matches!(Numbers::of(tensor.dtype()), Numbers::Float | Numbers::Complex(_));
    Census {
        n_nan: tally.n_nan,
        n_inf: tally.n_inf,
        // Zero is the usual value of an integer: a counter that has not begun.
        is_zero: is_tallied && tally.n_nonzero == 0 && tensor.numel() > 0,
    }
}

fn whole_census(tensor: &Tensor) -> Result<Census, pth::Error> {
    let (tally, _) = compare::survey(tensor, None)?;
    Ok(census(tensor, tally))
}

/// Does all jobs, the largest first, and returns what came of them in their order; of several errors that of the first job.
pub(super) fn in_threads<J: Sync, T: Send>(
    jobs: &[J],
    n_threads: usize,
    size: impl Fn(&J) -> usize,
    work: impl Fn(&J) -> Result<T, Error> + Sync,
) -> Result<Vec<T>, Error> {
    let mut order: Vec<usize> = (0..jobs.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(size(&jobs[i])));
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(jobs.len()));
    let run = || {
        let mut own = Vec::new();
        while let Some(&i) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = work(&jobs[i]);
            let has_failed = result.is_err();
            own.push((i, result));
            if has_failed {
                // Nothing more is begun; what is under way ends.
                next.store(order.len(), Ordering::Relaxed);
            }
        }
        done.lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .extend(own);
    };
    std::thread::scope(|scope| {
        for _ in 1..n_threads.min(jobs.len()) {
            scope.spawn(run);
        }
        run();
    });
    let mut done = done
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, result)| result).collect()
}
