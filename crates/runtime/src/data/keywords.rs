//! Image folders whose splits have other names than torchvision's examples: `training` and `testing`, `train2017` and
//! `val2017`, as Hugging Face's `datasets` finds them.
//!
//! A class is the name of the folder that a picture is in, if all pictures lie equally deep and there is more than one;
//! else nothing is known of the labels.

use std::fs;
use std::path::{Path, PathBuf};

use pth::FileError;

use super::folder::is_picture;
use super::gather::Gather;
use super::listing::Place;
use super::split::{SplitRule, Tag};
use super::walk::walk;
use super::{Backing, Parts, Request};
use crate::error::Error;

/// Lists the folder, if its folders have names of splits for training and for validation or testing and it has no `train`.
pub(super) fn open(root: &Path, request: &Request<'_>) -> Result<Option<Parts>, Error> {
    if root.join("train").is_dir() || matches!(request.options.split, SplitRule::Fraction { .. }) {
        return Ok(None);
    }
    // Where nobody asks for splits, a class must not be taken for one: `test-tube` and `train-station` are classes.
    let must_be_said = request.judged.is_none() && request.options.split == SplitRule::Folders;
    let tag_of = |name: &str| match must_be_said {
        true => Tag::of_folder(name),
        false => Tag::of_name(name.trim_end_matches(|c: char| c.is_ascii_digit() || "-._ ".contains(c))),
    };
    let mut folders: Vec<(String, Tag)> = Vec::new();
    for entry in fs::read_dir(root).map_err(FileError::at("read", root))? {
        let entry = entry.map_err(FileError::at("read", root))?;
        if let Some(name) = entry.file_name().to_str()
            && entry.path().is_dir()
            && let Some(tag) = tag_of(name)
        {
            folders.push((format!("{name}/"), tag));
        }
    }
    folders.sort_by(|a, b| a.0.cmp(&b.0));
    let has = |wanted: &[Tag]| folders.iter().any(|(_, tag)| wanted.contains(tag));
    if !has(&[Tag::Train]) || !has(&[Tag::Val, Tag::Test]) {
        return Ok(None);
    }
    let mut gather = Gather::new(root, request);
    let mut ends = Vec::new();
    for (prefix, tag) in folders {
        walk(
            root,
            &prefix,
            &is_picture,
            &mut gather.listing.names,
            &mut gather.left_out,
        )?;
        ends.push((gather.listing.names.len(), tag));
    }
    let has_labels = are_classes(&gather);
    let mut idx = 0;
    for (end, tag) in ends {
        while idx < end {
            let (prefix, _) = gather.listing.names.parts(idx);
            let label = class_of(prefix).filter(|_| has_labels).map(str::to_owned);
            gather.add_rest(label.as_deref(), tag, Place { at: 0, len: 0 })?;
            idx += 1;
        }
    }
    let gathered = gather.finish()?;
    Ok(Some(Parts::new(gathered, Backing::Files(PathBuf::from(root)))))
}

/// The folder that a picture is in, below that of its split.
fn class_of(prefix: &str) -> Option<&str> {
    let (folders, class) = prefix.trim_end_matches('/').rsplit_once('/')?;
    (!folders.is_empty()).then_some(class)
}

/// Whether the pictures' folders are classes.
fn are_classes(gather: &Gather<'_>) -> bool {
    let names = &gather.listing.names;
    let (mut depth, mut class, mut several) = (None, None, false);
    for idx in 0..names.len() {
        let (prefix, _) = names.parts(idx);
        let Some(found) = class_of(prefix) else {
            return false;
        };
        let slashes = prefix.bytes().filter(|byte| *byte == b'/').count();
        if *depth.get_or_insert(slashes) != slashes {
            return false;
        }
        several |= *class.get_or_insert(found) != found;
    }
    several
}
