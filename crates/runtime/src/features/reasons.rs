//! Why samples have no row: each reason once, however many samples share it.

use indexmap::IndexSet;

/// Samples that were left out, by number, with the reason of each.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Reasons {
    /// Sample, and which reason; in the order of samples once [`sort`](Reasons::sort) was called.
    samples: Vec<(usize, u32)>,
    texts: IndexSet<Box<str>>,
}

impl Reasons {
    pub(super) fn push(&mut self, sample: usize, reason: &str) {
        let text = match self.texts.get_index_of(reason) {
            Some(text) => text,
            None => self.texts.insert_full(reason.into()).0,
        };
        let text = u32::try_from(text).expect("fewer reasons than 2^32");
        self.samples.push((sample, text));
    }

    /// Samples come in any order from threads.
    pub(super) fn sort(&mut self) {
        self.samples.sort_unstable();
        self.samples.shrink_to_fit();
    }

    /// Samples that were left out.
    pub(super) fn len(&self) -> usize {
        self.samples.len()
    }

    /// Why a sample was left out; needs the order of [`sort`](Reasons::sort).
    pub(super) fn get(&self, sample: usize) -> Option<&str> {
        let at = self.samples.binary_search_by_key(&sample, |&(sample, _)| sample);
        at.ok().map(|at| self.text(self.samples[at].1))
    }

    /// All of them, in the order of samples once that was made.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &str)> {
        self.samples
            .iter()
            .map(|&(sample, text)| (sample, self.text(text)))
    }

    fn text(&self, text: u32) -> &str {
        &self.texts[text as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_kept_once() {
        let mut reasons = Reasons::default();
        for sample in [4, 1, 9, 3] {
            reasons.push(sample, if sample == 3 { "empty" } else { "truncated" });
        }
        reasons.sort();
        assert_eq!((reasons.len(), reasons.texts.len()), (4, 2));
        assert_eq!(
            (reasons.get(3), reasons.get(9), reasons.get(2)),
            (Some("empty"), Some("truncated"), None)
        );
        let samples: Vec<usize> = reasons.iter().map(|(sample, _)| sample).collect();
        assert_eq!(samples, [1, 3, 4, 9]);
    }
}
