//! What is known of each sample: names in one text with the folders' names shared, and numbers beside.
//!
//! A sample costs its own name, 8 bytes for where that ends, 4 for its folder, 4 for its label, 1 for its split, and 16
//! for its place where it is not a file of its own: ten million pictures are listed in well under a gigabyte.

use std::collections::HashMap;

use super::split::Split;

/// Stands for no label.
const UNLABELLED: u32 = u32::MAX;

/// Many names, each a folder's and its own.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    /// The names within their folders, one after another.
    text: String,
    /// Where each ends in the text.
    ends: Vec<u64>,
    /// The folder of each.
    folders: Vec<u32>,
    /// The folders' names, with what separates them from their samples at the end.
    prefixes: Vec<Box<str>>,
}

impl Names {
    /// A folder for the names that follow; `prefix` ends with the separator.
    pub(super) fn folder(&mut self, prefix: &str) -> u32 {
        self.prefixes.push(prefix.into());
        u32::try_from(self.prefixes.len() - 1).expect("fewer folders than 2^32")
    }

    pub(super) fn push(&mut self, folder: u32, name: &str) {
        self.text.push_str(name);
        self.ends.push(self.text.len() as u64);
        self.folders.push(folder);
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The folder's prefix and the name within it.
    pub(super) fn parts(&self, idx: usize) -> (&str, &str) {
        let start = idx.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        let name = &self.text[start..self.ends[idx] as usize];
        (&self.prefixes[self.folders[idx] as usize], name)
    }

    /// The number of the sample's folder.
    pub(super) fn folder_of(&self, idx: usize) -> u32 {
        self.folders[idx]
    }

    /// Keeps those that `keep` says, in place.
    pub(super) fn retain(&mut self, keep: impl Fn(usize) -> bool) {
        let mut text = std::mem::take(&mut self.text).into_bytes();
        let (mut start, mut written, mut n_kept) = (0, 0, 0);
        for idx in 0..self.ends.len() {
            let end = self.ends[idx] as usize;
            if keep(idx) {
                text.copy_within(start..end, written);
                written += end - start;
                self.ends[n_kept] = written as u64;
                self.folders[n_kept] = self.folders[idx];
                n_kept += 1;
            }
            start = end;
        }
        text.truncate(written);
        self.text = String::from_utf8(text).expect("whole names were moved");
        self.ends.truncate(n_kept);
        self.folders.truncate(n_kept);
    }

    fn shrink(&mut self) {
        self.text.shrink_to_fit();
        self.ends.shrink_to_fit();
        self.folders.shrink_to_fit();
    }
}

/// Finds folders again by their names, for sources that do not list folder by folder.
#[derive(Debug, Default)]
pub(super) struct Folders {
    known: HashMap<Box<str>, u32>,
    last: Option<(Box<str>, u32)>,
}

impl Folders {
    /// Beyond this many, names are no longer shared: a folder per sample must not cost more than its name.
    const MAX_KNOWN: usize = 1 << 16;

    /// The folder of this prefix.
    pub(super) fn folder(&mut self, names: &mut Names, prefix: &str) -> u32 {
        match self.known.get(prefix) {
            Some(&folder) => folder,
            None => {
                let folder = names.folder(prefix);
                self.known.insert(prefix.into(), folder);
                folder
            }
        }
    }

    /// Adds a name, its folder split off at the last slash.
    pub(super) fn push(&mut self, names: &mut Names, name: &str) {
        let (prefix, leaf) = name.split_at(name.rfind('/').map_or(0, |at| at + 1));
        let folder = match &self.last {
            Some((last, folder)) if **last == *prefix => *folder,
            _ => match self.known.get(prefix) {
                Some(&folder) => folder,
                None if self.known.len() >= Self::MAX_KNOWN && !prefix.is_empty() => {
                    return self.push_whole(names, name);
                }
                None => {
                    let folder = names.folder(prefix);
                    self.known.insert(prefix.into(), folder);
                    folder
                }
            },
        };
        self.last = Some((prefix.into(), folder));
        names.push(folder, leaf);
    }

    fn push_whole(&mut self, names: &mut Names, name: &str) {
        let folder = self.folder(names, "");
        names.push(folder, name);
    }
}

/// Where a sample's bytes lie in a file of many; what the two numbers mean is the source's affair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Offset in bytes, or a row.
    pub(super) at: u64,
    /// Length in bytes, or a line.
    pub(super) len: u64,
}

/// The samples in order.
#[derive(Debug, Clone, Default)]
pub(super) struct Listing {
    pub(super) names: Names,
    labels: Vec<u32>,
    splits: Vec<Split>,
    /// One per sample, or none at all.
    places: Vec<Place>,
}

impl Listing {
    pub(super) fn push(&mut self, folder: u32, name: &str, label: Option<u32>, split: Split) {
        self.names.push(folder, name);
        self.push_rest(label, split);
    }

    /// Adds what belongs to the name that was added last.
    pub(super) fn push_rest(&mut self, label: Option<u32>, split: Split) {
        self.labels.push(label.unwrap_or(UNLABELLED));
        self.splits.push(split);
    }

    pub(super) fn push_place(&mut self, place: Place) {
        self.places.push(place);
    }

    pub(super) fn len(&self) -> usize {
        self.labels.len()
    }

    pub(super) fn label(&self, idx: usize) -> Option<u32> {
        Some(self.labels[idx]).filter(|label| *label != UNLABELLED)
    }

    pub(super) fn split(&self, idx: usize) -> Split {
        self.splits[idx]
    }

    pub(super) fn set_split(&mut self, idx: usize, split: Split) {
        self.splits[idx] = split;
    }

    /// Gives each label the number that `new` has for it.
    pub(super) fn relabel(&mut self, new: &[u32]) {
        for label in &mut self.labels {
            if let Some(new) = new.get(*label as usize) {
                *label = *new;
            }
        }
    }

    /// Keeps those samples that `keep` says, in their order.
    pub(super) fn retain(&mut self, keep: impl Fn(usize) -> bool) {
        self.names.retain(&keep);
        retain(&mut self.labels, &keep);
        retain(&mut self.splits, &keep);
        retain(&mut self.places, &keep);
    }

    pub(super) fn place(&self, idx: usize) -> Option<Place> {
        self.places.get(idx).copied()
    }

    /// Gives back the room that growing left.
    pub(super) fn shrink(&mut self) {
        self.names.shrink();
        self.labels.shrink_to_fit();
        self.splits.shrink_to_fit();
        self.places.shrink_to_fit();
    }
}

fn retain<T>(all: &mut Vec<T>, keep: impl Fn(usize) -> bool) {
    let mut idx = 0;
    all.retain(|_| {
        idx += 1;
        keep(idx - 1)
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_share_their_folders() {
        let (mut names, mut folders) = (Names::default(), Folders::default());
        for name in ["a/1", "b/2", "a/3", "4", "", "a/b/ü"] {
            folders.push(&mut names, name);
        }
        let seen: Vec<_> = (0..names.len()).map(|idx| names.parts(idx)).collect();
        assert_eq!(
            seen,
            [
                ("a/", "1"),
                ("b/", "2"),
                ("a/", "3"),
                ("", "4"),
                ("", ""),
                ("a/b/", "ü")
            ]
        );
        assert_eq!(names.prefixes.len(), 4);
        assert_eq!(names.folder_of(2), names.folder_of(0));
    }

    #[test]
    fn folders_beyond_the_most_are_not_kept() {
        let (mut names, mut folders) = (Names::default(), Folders::default());
        for n in 0..Folders::MAX_KNOWN + 10 {
            folders.push(&mut names, &format!("{n}/x"));
        }
        let last = names.len() - 1;
        let (prefix, name) = names.parts(last);
        assert_eq!(format!("{prefix}{name}"), format!("{last}/x"));
        assert!(names.prefixes.len() <= Folders::MAX_KNOWN + 1);
    }

    #[test]
    fn some_are_kept_in_their_order() {
        let (mut listing, mut folders) = (Listing::default(), Folders::default());
        for (n, name) in ["a/one", "b/two", "a/three", "four"].into_iter().enumerate() {
            folders.push(&mut listing.names, name);
            listing.push_rest(Some(n as u32), Split::Train);
        }
        listing.retain(|idx| idx % 2 == 0);
        assert_eq!((listing.len(), listing.names.len()), (2, 2));
        assert_eq!(listing.names.parts(0), ("a/", "one"));
        assert_eq!(listing.names.parts(1), ("a/", "three"));
        assert_eq!(listing.label(1), Some(2));
    }

    #[test]
    fn a_sample_is_cheap() {
        assert!(8 + 4 + 4 + size_of::<Split>() + size_of::<Place>() <= 40);
    }
}
