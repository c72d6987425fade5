//! What could not be listed.

use serde::Serialize;

/// A sample, or a part of the source, that the listing does not have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// What it is called, as [`Dataset::name`](super::Dataset::name) would.
    pub name: String,
    /// Why, in one sentence.
    pub reason: String,
}

/// Collects what is left out, names the first of each kind, and counts the rest: a source of ten million broken rows
/// must not cost more memory than one of ten million good ones.
#[derive(Debug, Default)]
pub(super) struct LeftOuts {
    named: Vec<LeftOut>,
    /// Beyond those that are named: per kind, how many.
    counted: Vec<(&'static str, usize)>,
    /// Beyond the first of those that share a name.
    n_unnamed: usize,
}

/// That many are named.
const MAX_NAMED: usize = 10_000;

impl LeftOuts {
    /// `kind` says what such things are called when they are only counted, such as `rows without a label`.
    pub(super) fn push(&mut self, kind: &'static str, name: impl Into<String>, reason: impl Into<String>) {
        if self.named.len() < MAX_NAMED {
            self.named.push(LeftOut {
                name: name.into(),
                reason: reason.into(),
            });
            return;
        }
        match self.counted.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, n)) => *n += 1,
            None => self.counted.push((kind, 1)),
        }
    }

    /// Leaves out `n` at once under one name.
    pub(super) fn push_many(
        &mut self,
        kind: &'static str,
        name: impl Into<String>,
        reason: impl Into<String>,
        n: usize,
    ) {
        self.push(kind, name, reason);
        self.n_unnamed += n.saturating_sub(1);
    }

    /// Takes over what another has.
    pub(super) fn append(&mut self, other: LeftOuts) {
        for left_out in other.named {
            self.push("files or folders", left_out.name, left_out.reason);
        }
        for (kind, n) in other.counted {
            self.counted.push((kind, n));
        }
        self.n_unnamed += other.n_unnamed;
    }

    /// The first.
    pub(super) fn first(&self) -> Option<&LeftOut> {
        self.named.first()
    }

    /// All of them, each named or within a count.
    pub(super) fn len(&self) -> usize {
        self.named.len() + self.n_unnamed + self.counted.iter().map(|(_, n)| n).sum::<usize>()
    }

    /// Those that are named, then one entry per kind that says how many more there are of `source`.
    pub(super) fn finish(self, source: &str) -> (Vec<LeftOut>, usize) {
        let n = self.len();
        let mut all = self.named;
        all.extend(self.counted.into_iter().map(|(kind, n)| LeftOut {
            name: source.to_owned(),
            reason: format!("and {n} more {kind}"),
        }));
        (all, n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_are_named_and_the_rest_counted() {
        let mut left_out = LeftOuts::default();
        for n in 0..MAX_NAMED + 3 {
            left_out.push("rows without a label", format!("row {n}"), "it has no label");
        }
        let (all, n) = left_out.finish("x.csv");
        assert_eq!((all.len(), n), (MAX_NAMED + 1, MAX_NAMED + 3));
        assert_eq!(all[MAX_NAMED].name, "x.csv");
        assert_eq!(all[MAX_NAMED].reason, "and 3 more rows without a label");
    }
}
