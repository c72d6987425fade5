//! What counts as a difference, what is looked at, and what must not have happened.

use crate::Pattern;

/// How two state dicts are compared.
#[derive(Debug, Clone)]
pub struct DiffOptions {
    /// Which values count as the same.
    pub tolerance: Tolerance,
    /// Only names that match one of these; all if there is none.
    pub only: Vec<Pattern>,
    /// Names that are left out.
    pub skip: Vec<Pattern>,
    /// How much is read.
    pub depth: Depth,
    /// What must not have happened.
    pub fail_on: Vec<FailOn>,
    /// Tensors that are read at once. The result does not depend on it.
    pub n_threads: usize,
}

impl Default for DiffOptions {
    /// Every bit of every tensor, by two threads.
    fn default() -> DiffOptions {
        DiffOptions {
            tolerance: Tolerance::Exact,
            only: Vec::new(),
            skip: Vec::new(),
            depth: Depth::Values,
            fail_on: Vec::new(),
            n_threads: 2,
        }
    }
}

/// How much of the files is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Names, shapes, types and marks.
    Headers,
    /// The values too.
    Values,
}

/// Which values of floating and complex tensors count as the same; integers are always compared exactly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Tolerance {
    /// The same bits.
    Exact,
    /// `|b - a| <= absolute + relative * |a|`, as `torch.testing.assert_close` has it with A as what is expected.
    Close {
        /// `rtol`.
        relative: f64,
        /// `atol`.
        absolute: f64,
    },
    /// So many steps between neighbouring numbers of the type. Numbers of different types are compared exactly.
    Ulp(u64),
}

/// Tolerances that have a name: those that `torch.testing.assert_close` takes for tensors of that type.
pub const TOLERANCES: [(&str, Tolerance); 5] = [
    ("exact", Tolerance::Exact),
    ("f16", close(1e-3, 1e-5)),
    ("bf16", close(1.6e-2, 1e-5)),
    ("f32", close(1.3e-6, 1e-5)),
    ("f64", close(1e-7, 1e-7)),
];

const fn close(relative: f64, absolute: f64) -> Tolerance {
    Tolerance::Close { relative, absolute }
}

impl Tolerance {
    /// Reads `exact`, `f16`, `bf16`, `f32`, `f64`, `ulp=N` or `RTOL,ATOL`; none for any other text.
    pub fn parse(text: &str) -> Option<Tolerance> {
        if let Some((_, tolerance)) = TOLERANCES.iter().find(|(name, _)| *name == text) {
            return Some(*tolerance);
        }
        if let Some(n) = text.strip_prefix("ulp=") {
            return n.parse().ok().map(Tolerance::Ulp);
        }
        let (relative, absolute) = text.split_once(',')?;
        let number = |text: &str| {
            let number: f64 = text.trim().parse().ok()?;
            (number >= 0.0 && number.is_finite()).then_some(number)
        };
        Some(close(number(relative)?, number(absolute)?))
    }
}

/// A difference that must not be there: the proof that what was frozen stayed as it was.
#[derive(Debug, Clone)]
pub struct FailOn {
    /// What kind of difference.
    pub kind: FailKind,
    /// Of which tensors.
    pub pattern: Pattern,
}

/// Kinds of differences that [`FailOn`] asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailKind {
    /// B does not have the values of A in the same shape and type: changed, cast, reshaped, transposed or removed.
    ///
    /// A tensor that has the same bytes under another name is not changed.
    Changed,
    /// In B only.
    Added,
    /// In A only.
    Removed,
    /// Frozen in one and trainable in the other, or marked in one only.
    Marks,
    /// All of these, and renamed.
    Any,
}

/// The words for the kinds.
pub const FAIL_KINDS: [(&str, FailKind); 5] = [
    ("changed", FailKind::Changed),
    ("added", FailKind::Added),
    ("removed", FailKind::Removed),
    ("marks", FailKind::Marks),
    ("any", FailKind::Any),
];

impl FailKind {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        FAIL_KINDS
            .iter()
            .find(|(_, kind)| *kind == self)
            .map_or("", |(word, _)| word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerances_are_read() {
        for (text, expected) in [
            ("exact", Some(Tolerance::Exact)),
            ("bf16", Some(close(1.6e-2, 1e-5))),
            ("ulp=4", Some(Tolerance::Ulp(4))),
            ("1e-3,0", Some(close(1e-3, 0.0))),
            ("1e-3, 1e-8", Some(close(1e-3, 1e-8))),
            ("ulp=", None),
            ("ulp=-1", None),
            ("1e-3", None),
            ("nan,0", None),
            ("-1,0", None),
            ("fp32", None),
        ] {
            assert_eq!(Tolerance::parse(text), expected, "{text}");
        }
    }
}
