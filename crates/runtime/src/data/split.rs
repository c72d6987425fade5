//! What a sample is for, and who says so.

use crate::error::Error;
use crate::random::Random;

/// What a sample is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// The head is fitted on it.
    Train,
    /// The head is judged on it.
    Val,
}

/// Where validation samples come from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SplitRule {
    /// The source says it (by folders, a column or names of files) and must have samples for both.
    Folders,
    /// This share of each class, chosen by a seed.
    Fraction {
        /// Between 0 and 1, both excluded.
        fraction: f64,
        /// The same seed and names give the same choice.
        seed: u64,
    },
    /// The source says it where it does; without a word of it, all samples are for training.
    Loose,
}

impl SplitRule {
    /// # Errors
    /// A share that is not between 0 and 1.
    pub(super) fn check(&self) -> Result<(), Error> {
        match self {
            SplitRule::Fraction { fraction, .. } if !(*fraction > 0.0 && *fraction < 1.0) => Err(
                Error::Usage(format!("a validation share of {fraction} is not between 0 and 1")),
            ),
            _ => Ok(()),
        }
    }
}

/// Which of the `n` samples of a class, in order of names, are for validation: at least one, and never all.
pub(super) fn held_out(n: usize, fraction: f64, seed: u64, class: &str) -> Vec<bool> {
    let n_val = ((n as f64 * fraction).round() as usize).clamp(1, n.saturating_sub(1).max(1));
    let mut order: Vec<usize> = (0..n).collect();
    // A stream per class: adding a class does not reshuffle the others.
    Random::new(seed, class).shuffle(&mut order);
    let mut is_val = vec![false; n];
    order.iter().take(n_val).for_each(|&idx| is_val[idx] = true);
    is_val
}

/// What a source says a sample is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tag {
    /// Nothing.
    Unsaid,
    Train,
    Val,
    Test,
    /// A split that is none of these, by number.
    Other(u8),
}

/// The names that splits have in Hugging Face's `datasets` (`SPLIT_KEYWORDS` in its `data_files.py`).
const KEYWORDS: [(Tag, &[&str]); 3] = [
    (Tag::Train, &["train", "training"]),
    (Tag::Val, &["validation", "valid", "dev", "val"]),
    (Tag::Test, &["test", "testing", "eval", "evaluation"]),
];

/// What may stand beside a keyword in a longer name (`NON_WORDS_CHARS` there).
const SEPARATORS: [char; 14] = [
    '-', '.', '_', ' ', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9',
];

impl Tag {
    /// A split by one of its names, in any case.
    pub(crate) fn of_name(name: &str) -> Option<Tag> {
        let is_one = |words: &[&str]| words.iter().any(|word| word.eq_ignore_ascii_case(name));
        KEYWORDS
            .iter()
            .find(|(_, words)| is_one(words))
            .map(|(tag, _)| *tag)
    }

    /// A split by a keyword in a folder's name, parted from the rest by separators: `train`, `train2017`, `my-val`.
    pub(super) fn of_folder(name: &str) -> Option<Tag> {
        KEYWORDS
            .iter()
            .find(|(_, words)| words.iter().any(|word| contains_word(name, word, true)))
            .map(|(tag, _)| *tag)
    }

    /// A split by a keyword in a file's name, which has to be followed by a separator: `train-00000.tar`, `x_val.csv`.
    pub(super) fn of_file(name: &str) -> Option<Tag> {
        KEYWORDS
            .iter()
            .find(|(_, words)| words.iter().any(|word| contains_word(name, word, false)))
            .map(|(tag, _)| *tag)
    }

    pub(super) fn name(self, others: &[String]) -> &str {
        match self {
            Tag::Unsaid => "without a split",
            Tag::Train => "train",
            Tag::Val => "validation",
            Tag::Test => "test",
            Tag::Other(number) => others.get(usize::from(number)).map_or("another", String::as_str),
        }
    }
}

fn contains_word(name: &str, word: &str, may_end: bool) -> bool {
    name.match_indices(word).any(|(at, _)| {
        let before = name[..at].chars().next_back();
        let after = name[at + word.len()..].chars().next();
        before.is_none_or(|c| SEPARATORS.contains(&c)) && after.map_or(may_end, |c| SEPARATORS.contains(&c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_are_found_in_names_as_datasets_finds_them() {
        for (name, tag) in [
            ("train", Some(Tag::Train)),
            ("Training", Some(Tag::Train)),
            ("dev", Some(Tag::Val)),
            ("evaluation", Some(Tag::Test)),
            ("trains", None),
        ] {
            assert_eq!(Tag::of_name(name), tag, "{name}");
        }
        for (name, tag) in [
            ("train2017", Some(Tag::Train)),
            ("my-val", Some(Tag::Val)),
            ("imagenet_test.v2", Some(Tag::Test)),
            ("contest", None),
            ("trainer", None),
        ] {
            assert_eq!(Tag::of_folder(name), tag, "{name}");
        }
        assert_eq!(Tag::of_file("train-00000-of-00001.parquet"), Some(Tag::Train));
        assert_eq!(Tag::of_file("x_dev.tar"), Some(Tag::Val));
        assert_eq!(Tag::of_file("latest.tar"), None);
    }
}
