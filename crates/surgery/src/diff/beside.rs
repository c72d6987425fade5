//! What differs beside the values: marks, metadata, ties.

use std::collections::{BTreeMap, HashMap};

use super::report::{MarkChange, MetadataChange, OnDisk, Side, TieChange};
use super::sides::{Names, trains};
use crate::{Format, Opened, marks};

/// Frozen in one and trainable in the other; or the side that has no mark at all.
pub(super) fn marks(a: &Names<'_>, b: &Names<'_>) -> (Vec<MarkChange>, Option<Side>) {
    match (a.is_marked, b.is_marked) {
        (false, false) => return (Vec::new(), None),
        (false, true) => return (Vec::new(), Some(Side::A)),
        (true, false) => return (Vec::new(), Some(Side::B)),
        (true, true) => {}
    }
    let both = a
        .entries
        .iter()
        .filter_map(|(name, x)| Some((*name, *x, *b.entries.get(name)?)));
    let changes = both.filter(|(_, x, y)| trains(x) != trains(y));
    let changes = changes.map(|(name, x, _)| MarkChange {
        name: name.to_owned(),
        trainable_in: if trains(x) { Side::A } else { Side::B },
    });
    (changes.collect(), None)
}

/// Names that both have, and that are one tensor in one of both only.
pub(super) fn ties(a: &Names<'_>, b: &Names<'_>) -> Vec<TieChange> {
    let mut changes = Vec::new();
    for (here, there, side) in [(a, b, Side::A), (b, a, Side::B)] {
        let groups = there.ties();
        let mut group_of = HashMap::new();
        for (i, names) in groups.iter().enumerate() {
            group_of.extend(names.iter().map(|name| (*name, i)));
        }
        for mut names in here.ties() {
            names.retain(|name| there.entries.contains_key(name));
            let Some(first) = names.first() else { continue };
            let group = group_of.get(first);
            let is_tied = group.is_some() && names.iter().all(|name| group_of.get(name) == group);
            if names.len() > 1 && !is_tied {
                changes.push(TieChange {
                    names: names.into_iter().map(str::to_owned).collect(),
                    tied_in: side,
                });
            }
        }
    }
    changes
}

/// For each name that is not the first of its tensor, the first.
pub(super) fn first_names<'o>(names: &Names<'o>) -> HashMap<&'o str, &'o str> {
    let mut first_of = HashMap::new();
    for group in names.ties() {
        first_of.extend(group[1..].iter().map(|name| (*name, group[0])));
    }
    first_of
}

/// Values that are no tensors, as far as both formats have a place for them.
pub(super) fn metadata(a: (&Opened, &Names<'_>), b: (&Opened, &Names<'_>)) -> Vec<MetadataChange> {
    let is_pth = |opened: &Opened| matches!(opened.format, Format::Pth(_) | Format::ShardedPth { .. });
    let mut changes = Vec::new();
    match (is_pth(a.0), is_pth(b.0)) {
        (true, true) => {
            let others = |opened: &Opened| -> BTreeMap<String, String> {
                let others = opened.others.iter();
                others
                    .map(|other| (other.name.clone(), other.value.clone()))
                    .collect()
            };
            compare(&others(a.0), &others(b.0), "", &mut changes);
        }
        // What a checkpoint says beside its tensors has no place in safetensors, and the other way round.
        (false, true) | (true, false) => return changes,
        (false, false) => {
            let said = |side: (&Opened, &Names<'_>)| -> BTreeMap<String, String> {
                let pairs = side.0.metadata.iter();
                // Marks and ties are compared as such, and the writer's `format` says nothing of the tensors.
                let own = pairs.filter(|(key, _)| {
                    !side.1.aliases.contains(key.as_str()) && *key != marks::KEY && *key != "format"
                });
                own.map(|(key, value)| (key.clone(), value.clone())).collect()
            };
            compare(&said(a), &said(b), "__metadata__.", &mut changes);
        }
    }
    let versions = |opened: &Opened| -> BTreeMap<String, String> {
        let versions = opened.state_dict.metadata().iter();
        let text =
            |version: Option<i64>| version.map_or_else(|| "none".to_owned(), |version| version.to_string());
        versions
            .map(|module| (format!("{}.version", module.module), text(module.version)))
            .collect()
    };
    let (versions_a, versions_b) = (versions(a.0), versions(b.0));
    if !versions_a.is_empty() && !versions_b.is_empty() {
        compare(&versions_a, &versions_b, "_metadata.", &mut changes);
    }
    changes
}

fn compare(
    a: &BTreeMap<String, String>,
    b: &BTreeMap<String, String>,
    prefix: &str,
    changes: &mut Vec<MetadataChange>,
) {
    let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
    keys.sort();
    keys.dedup();
    for key in keys {
        let (x, y) = (a.get(key), b.get(key));
        if x != y {
            changes.push(MetadataChange {
                key: format!("{prefix}{key}"),
                a: x.cloned(),
                b: y.cloned(),
            });
        }
    }
}

/// How both lie on disk.
pub(super) fn layout(a: (&Opened, &Names<'_>), b: (&Opened, &Names<'_>)) -> OnDisk {
    OnDisk {
        format: [a.0.format.to_string(), b.0.format.to_string()],
        wrapper: [a.0.wrapper.clone(), b.0.wrapper.clone()],
        n_bytes: [a.1.n_bytes(), b.1.n_bytes()],
    }
}
