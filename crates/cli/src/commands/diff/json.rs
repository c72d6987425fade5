//! A comparison as one JSON object.

use std::path::PathBuf;

use serde_json::{Map, Value, json};
use surgery::{CastProof, Census, Diff, Health, OneSided, Side};

/// Numbers that JSON does not have become null.
pub(super) fn of(diff: &Diff, paths: [&PathBuf; 2]) -> Value {
    let counts = &diff.counts;
    let changed = diff.changed.iter().map(|tensor| {
        let mut row = json!({
            "name": tensor.name,
            "shape": tensor.shape,
            "dtype": tensor.dtype_b,
            "dtype_a": tensor.dtype_a,
            "share_changed": tensor.share_changed,
            "max_abs": tensor.max_abs,
            "rel": tensor.rel,
            "cos": tensor.cos,
            "max_ulp": tensor.max_ulp,
        });
        if let Some(rank) = tensor.rank {
            row["rank"] = rank.into();
        }
        if let Some(note) = &tensor.note {
            row["note"] = note.as_str().into();
        }
        row
    });
    let renamed = diff.renamed.iter().map(|tensor| {
        json!({
            "from": tensor.from,
            "to": tensor.to,
            "shape": tensor.shape,
            "dtype": tensor.dtype_b,
            "dtype_a": tensor.dtype_a,
        })
    });
    let cast = diff.cast.iter().map(|tensor| {
        let proof = match tensor.proof {
            CastProof::OfA => "of_a",
            CastProof::OfB => "of_b",
            CastProof::Unread => "unread",
        };
        json!({
            "name": tensor.name,
            "shape": tensor.shape,
            "from": tensor.from,
            "to": tensor.to,
            "proof": proof,
        })
    });
    let reshaped = diff.reshaped.iter().map(|tensor| {
        json!({
            "name": tensor.name,
            "from": tensor.from,
            "to": tensor.to,
            "dtype": tensor.dtype_b,
            "dtype_a": tensor.dtype_a,
            "same_values": tensor.is_view,
        })
    });
    let transposed = diff
        .transposed
        .iter()
        .map(|tensor| json!({ "name": tensor.name, "dtype": tensor.dtype, "from": tensor.shape }));
    let ties = diff
        .ties
        .iter()
        .map(|tie| json!({ "names": tie.names, "tied_in": side(tie.tied_in) }));
    let marks = diff
        .marks
        .iter()
        .map(|change| json!({ "name": change.name, "trainable_in": side(change.trainable_in) }));
    let metadata: Map<String, Value> = diff
        .metadata
        .iter()
        .map(|change| (change.key.clone(), json!({ "a": change.a, "b": change.b })))
        .collect();
    let fail_on = diff.fail_on.iter().map(|report| {
        json!({
            "kind": report.asked.kind.as_str(),
            "pattern": report.asked.pattern.as_str(),
            "matched": report.n_matched,
            "failed": !report.found.is_empty(),
            "names": report.found,
        })
    });
    let on_disk = |i: usize| {
        json!({
            "file": paths[i].display().to_string(),
            "format": diff.layout.format[i],
            "wrapper": diff.layout.wrapper[i],
            "nbytes": diff.layout.n_bytes[i],
        })
    };
    json!({
        "verdict": diff.verdict.to_string(),
        "identical": diff.is_identical,
        "counts": {
            "same": counts.same,
            "within_tolerance": counts.within_tolerance,
            "changed": counts.changed,
            "added": counts.added,
            "removed": counts.removed,
            "renamed": counts.renamed,
            "cast": counts.cast,
            "reshaped": counts.reshaped,
            "transposed": counts.transposed,
            "ties": counts.ties,
            "marks": counts.marks,
        },
        "changed": changed.collect::<Vec<_>>(),
        "added": diff.added.iter().map(one_sided).collect::<Vec<_>>(),
        "removed": diff.removed.iter().map(one_sided).collect::<Vec<_>>(),
        "renamed": renamed.collect::<Vec<_>>(),
        "cast": cast.collect::<Vec<_>>(),
        "reshaped": reshaped.collect::<Vec<_>>(),
        "transposed": transposed.collect::<Vec<_>>(),
        "ties": ties.collect::<Vec<_>>(),
        "marks": marks.collect::<Vec<_>>(),
        "unmarked": diff.unmarked.map(side),
        "metadata": metadata,
        "layout": { "a": on_disk(0), "b": on_disk(1) },
        "health": diff.health.iter().map(health).collect::<Vec<_>>(),
        "fail_on": fail_on.collect::<Vec<_>>(),
    })
}

fn side(side: Side) -> &'static str {
    match side {
        Side::A => "a",
        Side::B => "b",
    }
}

fn one_sided(tensor: &OneSided) -> Value {
    json!({
        "name": tensor.name,
        "shape": tensor.shape,
        "dtype": tensor.dtype,
        "nbytes": tensor.n_bytes,
        "tied_to": tensor.tied_to,
    })
}

fn health(health: &Health) -> Value {
    let census =
        |census: Census| json!({ "nan": census.n_nan, "inf": census.n_inf, "all_zero": census.is_zero });
    json!({ "name": health.name, "a": health.a.map(census), "b": health.b.map(census) })
}
