//! What kind of difference it is, in a word.

use std::fmt;

use super::Depth;
use super::elements::Sums;
use super::report::{CastProof, Diff};

/// The kind of a difference; `Display` is one line.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Verdict {
    /// Nothing differs.
    Identical,
    /// So many tensors differ, all within the tolerance.
    WithinTolerance {
        /// How many.
        n_tensors: usize,
    },
    /// Names, shapes, types and marks are the same; values were not read.
    SameHeaders,
    /// They are not; values were not read.
    OtherHeaders,
    /// The tensors are the same; these differ: `marks`, `metadata`, `ties`.
    OnlyBeside(Vec<&'static str>),
    /// The same values under other names, in other types, with other shapes.
    SameValues {
        /// Tensors under other names.
        n_renamed: usize,
        /// Transposed matrices.
        n_transposed: usize,
        /// Other shapes with the same elements.
        n_reshaped: usize,
        /// Types before and after with the number of tensors, and whether it is A that is the conversion.
        casts: Vec<CastKind>,
    },
    /// No name and no tensor is in both.
    NothingInCommon,
    /// Values are the same where both have them.
    OnlyNames {
        /// In B only.
        n_added: usize,
        /// In A only.
        n_removed: usize,
    },
    /// All that differs is in one small module.
    OneModule {
        /// Its name.
        module: String,
        /// Whether it is called as heads are, or is the last.
        is_head: bool,
        /// How many of its tensors differ.
        n_tensors: usize,
        /// Part of all elements that these tensors have.
        share: f64,
    },
    /// All that differs are statistics of normalisation layers and their counters.
    OnlyBuffers {
        /// How many.
        n_tensors: usize,
    },
    /// Matrices to which others of low rank were added.
    LowRank {
        /// The highest rank.
        rank: usize,
        /// How many matrices.
        n_matrices: usize,
    },
    /// Other values that lie near.
    FineTune {
        /// `‖b - a‖ / ‖a‖` over all floating tensors that both have in one shape, without statistics.
        rel: f64,
        /// Their cosine.
        cos: f64,
    },
    /// Other values that have nothing to do with each other.
    Unrelated {
        /// The cosine over all floating tensors that both have in one shape, of two dimensions and more where there are such.
        cos: f64,
    },
    /// Any other change: of integers, records, shapes.
    Other {
        /// How many tensors.
        n_tensors: usize,
    },
}

/// Tensors that were converted alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CastKind {
    /// Type in A.
    pub from: String,
    /// Type in B.
    pub to: String,
    /// Whose values they are.
    pub proof: CastProof,
    /// How many.
    pub n_tensors: usize,
}

/// What the comparison knows beyond the lists.
pub(super) struct Facts {
    pub(super) depth: Depth,
    /// Floating tensors without statistics: squares of A and B, products, squares of the differences.
    pub(super) weights: Products,
    /// Of these, the ones of two dimensions and more.
    pub(super) matrices: Products,
    /// The sums of each changed tensor, in the order of the list.
    pub(super) of_changed: Vec<Products>,
    /// The module that holds all that differs, if it is small.
    pub(super) module: Option<(String, bool, f64)>,
}

/// Sums over tensors.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Products {
    pub(super) aa: f64,
    pub(super) bb: f64,
    pub(super) ab: f64,
    pub(super) dd: f64,
}

impl Products {
    pub(super) fn of(sums: &Sums) -> Products {
        Products {
            aa: sums.aa(),
            bb: sums.bb(),
            ab: sums.ab(),
            dd: sums.dd(),
        }
    }

    pub(super) fn add(&mut self, other: Products) {
        self.aa += other.aa;
        self.bb += other.bb;
        self.ab += other.ab;
        self.dd += other.dd;
    }

    /// `‖b - a‖ / ‖a‖`; none where A is zero.
    pub(super) fn rel(&self) -> Option<f64> {
        (self.aa > 0.0).then(|| (self.dd / self.aa).sqrt())
    }

    /// None where one is zero.
    pub(super) fn cos(&self) -> Option<f64> {
        let product = self.aa.sqrt() * self.bb.sqrt();
        (product > 0.0).then(|| (self.ab / product).clamp(-1.0, 1.0))
    }
}

/// Below this cosine two models have nothing to do with each other: of two independent ones it is near zero, and training that starts
/// from a model leaves it near one.
const UNRELATED_COS: f64 = 0.3;

/// Judges a comparison whose lists are complete.
pub(super) fn judge(diff: &Diff, facts: &Facts) -> Verdict {
    let counts = diff.counts;
    let n_values = counts.changed + counts.reshaped + counts.transposed + counts.cast + counts.renamed;
    let mut beside = Vec::new();
    if counts.marks > 0 || diff.unmarked.is_some() {
        beside.push("marks");
    }
    if !diff.metadata.is_empty() {
        beside.push("metadata");
    }
    if counts.ties > 0 {
        beside.push("ties");
    }
    if n_values + counts.added + counts.removed == 0 {
        return match (beside.is_empty(), facts.depth) {
            (false, _) => Verdict::OnlyBeside(beside),
            (true, Depth::Headers) => Verdict::SameHeaders,
            (true, Depth::Values) if counts.within_tolerance > 0 => Verdict::WithinTolerance {
                n_tensors: counts.within_tolerance,
            },
            (true, Depth::Values) => Verdict::Identical,
        };
    }
    if facts.depth == Depth::Headers {
        return Verdict::OtherHeaders;
    }
    if counts.same + n_values == 0 {
        return Verdict::NothingInCommon;
    }
    let n_views = diff.reshaped.iter().filter(|tensor| tensor.is_view).count();
    if counts.changed + counts.added + counts.removed == 0 && n_views == counts.reshaped {
        return Verdict::SameValues {
            n_renamed: counts.renamed,
            n_transposed: counts.transposed,
            n_reshaped: counts.reshaped,
            casts: casts(diff),
        };
    }
    if let Some((module, is_head, share)) = &facts.module {
        return Verdict::OneModule {
            module: module.clone(),
            is_head: *is_head,
            n_tensors: n_values + counts.added + counts.removed,
            share: *share,
        };
    }
    if counts.changed + counts.reshaped == 0 {
        return if counts.added + counts.removed > 0 {
            Verdict::OnlyNames {
                n_added: counts.added,
                n_removed: counts.removed,
            }
        } else {
            Verdict::Other { n_tensors: n_values }
        };
    }
    if diff
        .changed
        .iter()
        .all(|tensor| crate::is_buffer_name(&tensor.name))
        && counts.reshaped == 0
    {
        return Verdict::OnlyBuffers {
            n_tensors: counts.changed,
        };
    }
    // Either all have a rank or none has.
    if let Some(rank) = diff.changed.iter().filter_map(|tensor| tensor.rank).max() {
        return Verdict::LowRank {
            rank,
            n_matrices: counts.changed,
        };
    }
    let related = if facts.matrices.aa > 0.0 {
        facts.matrices.cos()
    } else {
        facts.weights.cos()
    };
    match (related, facts.weights.rel(), facts.weights.cos()) {
        (Some(cos), _, _) if cos < UNRELATED_COS => Verdict::Unrelated { cos },
        (Some(_), Some(rel), Some(cos)) if facts.weights.dd > 0.0 => Verdict::FineTune { rel, cos },
        _ => Verdict::Other { n_tensors: n_values },
    }
}

/// Conversions by their types, the most frequent first; renamed tensors too.
fn casts(diff: &Diff) -> Vec<CastKind> {
    let mut kinds: Vec<CastKind> = Vec::new();
    let mut count = |from: &str, to: &str, proof: CastProof| {
        let known = kinds
            .iter_mut()
            .find(|kind| kind.from == from && kind.to == to && kind.proof == proof);
        match known {
            Some(kind) => kind.n_tensors += 1,
            None => kinds.push(CastKind {
                from: from.to_owned(),
                to: to.to_owned(),
                proof,
                n_tensors: 1,
            }),
        }
    };
    for tensor in &diff.cast {
        count(&tensor.from, &tensor.to, tensor.proof);
    }
    for tensor in diff
        .renamed
        .iter()
        .filter(|tensor| tensor.dtype_a != tensor.dtype_b)
    {
        count(&tensor.dtype_a, &tensor.dtype_b, CastProof::OfA);
    }
    kinds.sort_by_key(|kind| std::cmp::Reverse(kind.n_tensors));
    kinds
}

impl Verdict {
    /// Whether nothing differs: exit code 0.
    pub fn is_same(&self) -> bool {
        matches!(
            self,
            Verdict::Identical | Verdict::WithinTolerance { .. } | Verdict::SameHeaders
        )
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Identical => f.write_str("identical"),
            Verdict::WithinTolerance { n_tensors } => {
                write!(f, "same within the tolerance ({n_tensors} with other bits)")
            }
            Verdict::SameHeaders => f.write_str("same names, shapes and types (values not read)"),
            Verdict::OtherHeaders => f.write_str("other names, shapes or types (values not read)"),
            Verdict::OnlyBeside(what) => match what.as_slice() {
                [only] if only.ends_with('s') => write!(f, "only {only} differ"),
                [only] => write!(f, "only {only} differs"),
                [first @ .., last] => write!(f, "only {} and {last} differ", first.join(", ")),
                [] => f.write_str("identical"),
            },
            Verdict::SameValues {
                n_renamed,
                n_transposed,
                n_reshaped,
                casts,
            } => {
                let is_back = casts.iter().any(|kind| kind.proof == CastProof::OfB);
                let back = if is_back { " (A is rounded from B)" } else { "" };
                let casts: Vec<String> = casts
                    .iter()
                    .map(|kind| format!("{} -> {}", kind.from, kind.to))
                    .collect();
                let mut parts = Vec::new();
                for (n, what) in [
                    (*n_renamed, "renamed"),
                    (*n_transposed, "transposed"),
                    (*n_reshaped, "reshaped"),
                ] {
                    if n > 0 {
                        parts.push(format!("{what} ({n})"));
                    }
                }
                if parts.is_empty() {
                    write!(f, "cast {} only", casts.join(", "))?;
                    return f.write_str(back);
                }
                if !casts.is_empty() {
                    parts.push(format!("cast {}", casts.join(", ")));
                }
                write!(f, "same values, {}{back}", parts.join(", "))
            }
            Verdict::NothingInCommon => f.write_str("nothing in common"),
            Verdict::OnlyNames { n_added, n_removed } => write!(
                f,
                "same values where both have them ({n_added} added, {n_removed} removed)"
            ),
            Verdict::OneModule {
                module,
                is_head,
                n_tensors,
                share,
            } => {
                let what = if *is_head { "head only" } else { "one module only" };
                let tensors = if *n_tensors == 1 { "tensor" } else { "tensors" };
                let share = percent(*share);
                write!(
                    f,
                    "{what}: `{module}` ({n_tensors} {tensors}, {share} of the values)"
                )
            }
            Verdict::OnlyBuffers { n_tensors } => {
                write!(f, "only normalisation statistics differ ({n_tensors})")
            }
            Verdict::LowRank { rank, n_matrices } => {
                let matrices = if *n_matrices == 1 { "matrix" } else { "matrices" };
                write!(f, "LoRA-like, rank <= {rank} in {n_matrices} {matrices}")
            }
            Verdict::FineTune { rel, cos } => {
                write!(f, "fine-tune, dW/W {}", percent(*rel))?;
                if *cos < 0.99 {
                    write!(f, ", cos {cos:.2}")?;
                }
                Ok(())
            }
            Verdict::Unrelated { cos } => write!(f, "unrelated (cos {cos:.2})"),
            Verdict::Other { n_tensors } => write!(f, "changed ({n_tensors})"),
        }
    }
}

/// Two significant digits: `2.1 %`, `93 %`, `0.00031 %`.
pub fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    if percent == 0.0 || !percent.is_finite() {
        return format!("{percent} %");
    }
    let magnitude = percent.abs().log10().floor();
    if magnitude < -4.0 {
        return format!("{percent:.1e} %");
    }
    let digits = (1.0 - magnitude).max(0.0) as usize;
    let text = format!("{percent:.digits$}");
    // All but a few elements are not all.
    match (text.as_str(), share < 1.0) {
        ("100", true) => format!("{percent:.2} %").replace("100.00", ">99.99"),
        _ => format!("{text} %"),
    }
}
