//! From rows in the source's order to a listing: which rows serve which split, which labels become classes.

use std::path::Path;

use super::labels::Labels;
use super::left_out::LeftOuts;
use super::listing::{Folders, Listing, Place};
use super::options::{DataOptions, Unlabelled};
use super::split::{Split, SplitRule, Tag, held_out};
use super::{Request, bad};
use crate::error::Error;

/// What rows that are left out are called when they are only counted.
pub(super) const BROKEN: &str = "rows that cannot be read";
const NO_LABEL: &str = "samples without a label";
const NO_SPLIT: &str = "samples without a split";

/// Takes rows one by one.
#[derive(Debug)]
pub(super) struct Gather<'r> {
    source: &'r Path,
    options: &'r DataOptions,
    judged: Option<&'r [String]>,
    pub(super) listing: Listing,
    pub(super) folders: Folders,
    pub(super) labels: Labels,
    pub(super) left_out: LeftOuts,
    /// What the source says each sample is for.
    tags: Vec<Tag>,
    /// Names of splits beyond the three.
    others: Vec<String>,
}

/// What is made of all rows.
#[derive(Debug)]
pub(super) struct Gathered {
    pub(super) classes: Vec<String>,
    pub(super) listing: Listing,
    pub(super) left_out: LeftOuts,
    pub(super) set_aside: Vec<(String, usize)>,
    /// Which rows were kept, where not all were.
    pub(super) kept: Option<Vec<bool>>,
}

impl<'r> Gather<'r> {
    pub(super) fn new(source: &'r Path, request: &Request<'r>) -> Gather<'r> {
        Gather {
            source,
            options: request.options,
            judged: request.judged,
            listing: Listing::default(),
            folders: Folders::default(),
            labels: Labels::default(),
            left_out: LeftOuts::default(),
            tags: Vec::new(),
            others: Vec::new(),
        }
    }

    /// Adds what belongs to the name that the caller has added; an empty label is none.
    ///
    /// # Errors
    /// More labels than there can be classes: the column is another's.
    pub(super) fn add_rest(&mut self, label: Option<&str>, tag: Tag, place: Place) -> Result<(), Error> {
        let label = match label.filter(|label| !label.is_empty()) {
            None => None,
            Some(label) => Some(
                self.labels
                    .number(label)
                    .map_err(|reason| bad(self.source, reason))?,
            ),
        };
        self.listing.push_rest(label, Split::Train);
        self.listing.push_place(place);
        self.tags.push(tag);
        Ok(())
    }

    /// What a split's name means.
    ///
    /// # Errors
    /// More names than there can be splits.
    pub(super) fn tag(&mut self, split: Option<&str>) -> Result<Tag, Error> {
        let Some(name) = split.map(str::trim).filter(|name| !name.is_empty()) else {
            return Ok(Tag::Unsaid);
        };
        if let Some(tag) = Tag::of_name(name) {
            return Ok(tag);
        }
        let known = self.others.iter().position(|other| other == name);
        let number = known.unwrap_or(self.others.len());
        match u8::try_from(number) {
            Ok(number) => {
                if known.is_none() {
                    self.others.push(name.to_owned());
                }
                Ok(Tag::Other(number))
            }
            Err(_) => Err(bad(
                self.source,
                "there are more than 256 different splits; is this the column of the splits?",
            )),
        }
    }

    /// Leaves a row out by name.
    pub(super) fn leave_out(&mut self, name: impl Into<String>, reason: impl Into<String>) {
        self.left_out.push(BROKEN, name, reason);
    }

    /// Deals the rows out to the splits and makes classes of the labels.
    ///
    /// # Errors
    /// [`Error::NoSplit`] and [`Error::Usage`] where the source and the rule do not agree on who says the split;
    /// [`Error::Data`] where a split is empty or a class is only in validation.
    pub(super) fn finish(mut self) -> Result<Gathered, Error> {
        if self.tags.is_empty() {
            let reason = match self.left_out.first() {
                Some(first) => format!(
                    "no sample in it can be used; the first, `{}`: {}",
                    first.name, first.reason
                ),
                None => "there are no samples in it".to_owned(),
            };
            return Err(bad(self.source, reason));
        }
        let count = |tag: Tag| self.tags.iter().filter(|known| **known == tag).count();
        let (n_train, n_val, n_test) = (count(Tag::Train), count(Tag::Val), count(Tag::Test));
        let n_unsaid = count(Tag::Unsaid);
        // Validation samples are the test's where there are no others.
        let val = if n_val > 0 || n_test == 0 {
            Tag::Val
        } else {
            Tag::Test
        };
        let has_val = n_val + n_test > 0;
        let is_said = n_unsaid < self.tags.len();
        let to_split: Box<dyn Fn(Tag) -> Option<Split>> = match (self.judged, self.options.split) {
            (Some(_), _) if n_train > 0 && !has_val => {
                return Err(bad(
                    self.source,
                    "there are training samples in it and none for validation",
                ));
            }
            (Some(_), _) if n_train > 0 => Box::new(move |tag| (tag == val).then_some(Split::Val)),
            (Some(_), _) => Box::new(|_| Some(Split::Val)),
            (None, SplitRule::Fraction { .. }) if is_said && n_train + n_unsaid < self.tags.len() => {
                return Err(Error::Usage(format!(
                    "`{}` says itself which samples are for validation: --val-fraction is for sources that do not",
                    self.source.display()
                )));
            }
            (None, SplitRule::Fraction { .. }) => Box::new(|_| Some(Split::Train)),
            (None, SplitRule::Folders) if n_train == 0 || !has_val => {
                let reason = match (n_train > 0, has_val) {
                    (true, _) => {
                        "it has training samples and none for validation; say which share is for validation"
                    }
                    (false, true) => "it has validation samples and none for training",
                    (false, false) => "it does not say which samples are for validation; say which share is",
                };
                return Err(Error::NoSplit {
                    path: self.source.to_owned(),
                    reason,
                });
            }
            (None, SplitRule::Loose) if !is_said || (n_train == 0 && !has_val) => {
                Box::new(|_| Some(Split::Train))
            }
            (None, SplitRule::Folders | SplitRule::Loose) => Box::new(move |tag| match tag {
                Tag::Train => Some(Split::Train),
                tag if tag == val => Some(Split::Val),
                _ => None,
            }),
        };
        let is_unsaid_left_out =
            is_said && self.judged.is_none() && !matches!(self.options.split, SplitRule::Fraction { .. });
        let mut set_aside: Vec<(Tag, usize)> = Vec::new();
        let mut keep = vec![true; self.tags.len()];
        for (idx, &tag) in self.tags.iter().enumerate() {
            match to_split(tag) {
                Some(split) => {
                    self.listing.set_split(idx, split);
                    if self.listing.label(idx).is_none() && self.options.unlabelled == Unlabelled::LeaveOut {
                        keep[idx] = false;
                        self.left_out
                            .push(NO_LABEL, name_of(&self.listing, idx), "it has no label");
                    }
                }
                None if tag == Tag::Unsaid && is_unsaid_left_out => {
                    keep[idx] = false;
                    self.left_out.push(
                        NO_SPLIT,
                        name_of(&self.listing, idx),
                        "it has no split, and other samples have one",
                    );
                }
                None => {
                    keep[idx] = false;
                    match set_aside.iter_mut().find(|(known, _)| *known == tag) {
                        Some((_, n)) => *n += 1,
                        None => set_aside.push((tag, 1)),
                    }
                }
            }
        }
        let set_aside = set_aside
            .into_iter()
            .map(|(tag, n)| (tag.name(&self.others).to_owned(), n))
            .collect();
        let kept = keep.contains(&false).then_some(keep);
        if let Some(keep) = &kept {
            self.listing.retain(|idx| keep[idx]);
        }
        if self.listing.len() == 0 {
            return Err(bad(self.source, "no sample in it has a label"));
        }
        let classes = self.name_classes()?;
        if let (None, SplitRule::Fraction { fraction, seed }) = (self.judged, self.options.split) {
            self.deal(fraction, seed, &classes)?;
        }
        Ok(Gathered {
            classes,
            listing: self.listing,
            left_out: self.left_out,
            set_aside,
            kept,
        })
    }

    /// Classes from the labels that are left, and the labels renumbered.
    fn name_classes(&mut self) -> Result<Vec<String>, Error> {
        let labels = std::mem::take(&mut self.labels);
        let mut in_train = vec![false; labels.names().len()];
        let mut seen: Vec<Option<usize>> = vec![None; labels.names().len()];
        for idx in 0..self.listing.len() {
            if let Some(label) = self.listing.label(idx) {
                in_train[label as usize] |= self.listing.split(idx) == Split::Train;
                seen[label as usize].get_or_insert(idx);
            }
        }
        let unknown = |label: usize| {
            let (prefix, name) = self.listing.names.parts(seen[label].unwrap_or(0));
            let class = &labels.names()[label];
            let reason = format!("class `{class}` of `{prefix}{name}` is not among those trained on");
            bad(self.source, reason)
        };
        if let Some(judged) = self.judged {
            let mut numbers = vec![u32::MAX; labels.names().len()];
            for (label, class) in labels.names().iter().enumerate() {
                match judged.iter().position(|known| known == class) {
                    Some(number) => numbers[label] = u32::try_from(number).expect("fewer classes than 2^32"),
                    None if seen[label].is_some() => return Err(unknown(label)),
                    None => {}
                }
            }
            self.listing.relabel(&numbers);
            return Ok(judged.to_vec());
        }
        if self.options.split == SplitRule::Folders && !labels.is_fixed() {
            let only_val = (0..seen.len()).find(|&label| seen[label].is_some() && !in_train[label]);
            if let Some(label) = only_val {
                return Err(unknown(label));
            }
        }
        let (classes, numbers) = labels.classes(|label| seen[label].is_some());
        self.listing.relabel(&numbers);
        Ok(classes)
    }

    /// A share of each class for validation.
    fn deal(&mut self, fraction: f64, seed: u64, classes: &[String]) -> Result<(), Error> {
        let mut members: Vec<Vec<usize>> = vec![Vec::new(); classes.len()];
        for idx in 0..self.listing.len() {
            // What has no label stays in training; only an extraction keeps it.
            if let Some(label) = self.listing.label(idx) {
                members[label as usize].push(idx);
            }
        }
        for (class, members) in classes.iter().zip(members) {
            match members.len() {
                0 => {}
                1 => {
                    return Err(bad(
                        self.source,
                        format!(
                            "class `{class}` has one sample, which cannot be split into training and validation"
                        ),
                    ));
                }
                n => {
                    for (idx, is_val) in members.into_iter().zip(held_out(n, fraction, seed, class)) {
                        if is_val {
                            self.listing.set_split(idx, Split::Val);
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

fn name_of(listing: &Listing, idx: usize) -> String {
    let (prefix, name) = listing.names.parts(idx);
    format!("{prefix}{name}")
}
