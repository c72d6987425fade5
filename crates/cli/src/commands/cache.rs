//! `graftwork cache`: looks after a folder of cached features.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use runtime::data::{Dataset, Unlabelled};
use runtime::exchange::{ClipRetrievalWriter, Modality, Precision, WriteOptions};
use runtime::features::{
    DEFAULT_BLOCK_ROWS, EntryInfo, ExtractConfig, FeatureType, GarbageOptions, Key, KeyState, Manifest,
    Recipe, RowId, Store, collect_garbage, explain, keys, list_entries, verify_cache,
};

use super::extract::RecipeArgs;
use crate::args::{CacheArg, age, size};
use crate::errors::code;
use crate::text;
use crate::usage::UsageError;

#[derive(Debug, Args)]
pub(crate) struct CacheArgs {
    #[command(subcommand)]
    verb: CacheVerb,
}

#[derive(Debug, Subcommand)]
enum CacheVerb {
    /// The entries, the last used first
    Ls(LsArgs),
    /// Reads every byte of every file and compares it with the digests; exit code 1 where something is wrong
    Verify(VerifyArgs),
    /// Removes leftovers of killed writers, and entries by age or size
    Gc(GcArgs),
    /// Writes an entry's rows in clip-retrieval's layout: img_emb/*.npy beside metadata/*.parquet
    Export(ExportArgs),
    /// Whether an entry is there for a backbone and its settings, and if not, which settings differ
    Explain(Box<ExplainArgs>),
}

#[derive(Debug, Args)]
struct LsArgs {
    #[command(flatten)]
    cache: CacheArg,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct VerifyArgs {
    #[command(flatten)]
    cache: CacheArg,
    /// Remove what is damaged; the next extraction computes those rows again
    #[arg(long)]
    repair: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct GcArgs {
    #[command(flatten)]
    cache: CacheArg,
    /// Remove the least recently used entries until the cache is at most this large, as in 50GB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_size: Option<u64>,
    /// Remove entries that no job has opened for this long, as in 36h or 30d
    #[arg(long, value_name = "AGE", value_parser = age)]
    unused_for: Option<Duration>,
    /// Say what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ExportArgs {
    /// The entry's folder, as extract prints it
    entry: PathBuf,
    /// The folder to write
    #[arg(short, long, value_name = "FOLDER")]
    output: PathBuf,
    /// One of the entry's label manifests [default: its newest]
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Rows in a partition
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    partition_rows: usize,
    /// Replace partitions that are there
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
struct ExplainArgs {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Count how many of these samples have a row
    #[arg(long, value_name = "D")]
    data: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &CacheArgs) -> anyhow::Result<u8> {
    match &args.verb {
        CacheVerb::Ls(args) => ls(args),
        CacheVerb::Verify(args) => verify(args),
        CacheVerb::Gc(args) => gc(args),
        CacheVerb::Export(args) => export(args),
        CacheVerb::Explain(args) => explain_miss(args),
    }
}

fn ls(args: &LsArgs) -> anyhow::Result<u8> {
    let cache = args.cache.existing()?;
    let entries = list_entries(&cache)?;
    if args.json {
        text::json(&entries)?;
        return Ok(0);
    }
    let n_bytes: u64 = entries.iter().map(|entry| entry.n_bytes).sum();
    for entry in &entries {
        text::print(&line(entry))?;
    }
    text::remark(&format!(
        "{} entries, {} in `{}`",
        entries.len(),
        bytes(n_bytes),
        cache.display()
    ));
    Ok(0)
}

fn line(entry: &EntryInfo) -> String {
    let age = SystemTime::now()
        .duration_since(entry.last_used)
        .unwrap_or_default();
    let what = match &entry.key {
        KeyState::Key(key) => key.summary(),
        KeyState::Problem(problem) => format!("unreadable: {problem}"),
    };
    format!(
        "{}  {:>10} rows  {:>10}  {:>9}  used {} ago  {}\n",
        entry.name,
        text::grouped(entry.n_rows),
        shape(&entry.row_shape),
        bytes(entry.n_bytes),
        ago(age),
        text::plain(&what)
    )
}

fn shape(shape: &[usize]) -> String {
    let sizes: Vec<String> = shape.iter().map(usize::to_string).collect();
    if sizes.is_empty() {
        "-".to_owned()
    } else {
        sizes.join(" x ")
    }
}

fn ago(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..=119 => format!("{seconds} s"),
        seconds @ 120..=7199 => format!("{} min", seconds / 60),
        seconds @ 7200..=172_799 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

fn bytes(n_bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = n_bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{n_bytes} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

fn verify(args: &VerifyArgs) -> anyhow::Result<u8> {
    let cache = args.cache.existing()?;
    let seen = verify_cache(&cache)?;
    let removed = if args.repair && !seen.problems.is_empty() {
        let options = GarbageOptions {
            damaged: true,
            ..GarbageOptions::default()
        };
        collect_garbage(&cache, options)?
    } else {
        Vec::new()
    };
    if args.json {
        let mut value = serde_json::to_value(&seen)?;
        value["removed"] = serde_json::to_value(&removed)?;
        text::json(&value)?;
    } else {
        for problem in &seen.problems {
            text::print(&format!(
                "{}: {}\n",
                text::plain(&problem.path.to_string_lossy()),
                text::plain(&problem.reason)
            ))?;
        }
        if seen.n_disagreeing > 0 {
            text::remark(&format!(
                "{} rows are there twice with other last digits, computed on another machine or in another batch; the first is used",
                text::grouped(seen.n_disagreeing)
            ));
        }
        text::remark(&format!(
            "{} entries, {} files, {} rows (and {} of them again): {}",
            seen.n_entries,
            seen.n_files,
            text::grouped(seen.n_rows),
            text::grouped(seen.n_duplicates),
            match (seen.problems.len(), removed.len()) {
                (0, _) => "sound".to_owned(),
                (n, 0) => format!(
                    "{n} damaged; --repair removes what is, and the next extraction computes it again"
                ),
                (n, n_removed) => format!("{n} damaged, {n_removed} removed"),
            }
        ));
    }
    Ok(if seen.problems.is_empty() { 0 } else { code::NO })
}

fn gc(args: &GcArgs) -> anyhow::Result<u8> {
    let cache = args.cache.existing()?;
    let removed = collect_garbage(
        &cache,
        GarbageOptions {
            max_bytes: args.max_size,
            unused_for: args.unused_for,
            damaged: false,
            dry_run: args.dry_run,
        },
    )?;
    if args.json {
        text::json(&removed)?;
        return Ok(0);
    }
    for gone in &removed {
        text::print(&format!(
            "{}  {}  {}\n",
            text::plain(&gone.path.to_string_lossy()),
            bytes(gone.n_bytes),
            gone.reason
        ))?;
    }
    let n_bytes: u64 = removed.iter().map(|gone| gone.n_bytes).sum();
    let verb = if args.dry_run {
        "would be removed"
    } else {
        "removed"
    };
    text::remark(&format!("{} things, {} {verb}", removed.len(), bytes(n_bytes)));
    Ok(0)
}

fn export(args: &ExportArgs) -> anyhow::Result<u8> {
    let store = Store::open_entry(&args.entry)?;
    let path = match &args.labels {
        Some(path) => path.clone(),
        None => Manifest::list(&args.entry)?.into_iter().next().ok_or_else(|| {
            UsageError::new(format!("`{}` holds no labels", args.entry.display()))
                .with_hint("graftwork extract writes them")
        })?,
    };
    let manifest = Manifest::open(&path)?;
    let key = Key::open(&args.entry)?;
    let lines = || manifest.lines().filter(|line| line.id.is_some());
    let mut writer = ClipRetrievalWriter::create(
        &args.output,
        WriteOptions {
            modality: match key.recipe() {
                Recipe::Picture(_) => Modality::Images,
                Recipe::Text(_) => Modality::Texts,
            },
            precision: match store.dtype() {
                FeatureType::Float16 => Precision::F16,
                FeatureType::Float32 => Precision::F32,
            },
            n_features: store.n_features().unwrap_or(1),
            n_rows: lines().count(),
            partition_rows: args.partition_rows,
            existing: if args.force {
                pth::Existing::Replace
            } else {
                pth::Existing::Refuse
            },
        },
    )?;
    let (ids, names): (Vec<RowId>, Vec<String>) = lines()
        .map(|line| (line.id.unwrap_or_default(), line.name.into_owned()))
        .unzip();
    let features = store.features(&ids, |row| format!("`{}`", names[row]))?;
    let (mut scratch, n_rows) = (Vec::new(), ids.len());
    for (row, line) in lines().enumerate() {
        let class = line
            .label
            .and_then(|label| manifest.header.classes.get(label as usize));
        let values = features.rows(row..row + 1, &mut scratch);
        writer.push(&line.name, class.map(String::as_str), values)?;
    }
    let n_partitions = writer.finish()?;
    text::remark(&format!(
        "wrote {} rows in {n_partitions} partitions to `{}`",
        text::grouped(n_rows),
        args.output.display()
    ));
    Ok(0)
}

fn explain_miss(args: &ExplainArgs) -> anyhow::Result<u8> {
    /// Entries that are named beside the one that is looked for.
    const N_NAMED: usize = 3;
    let cache = args.recipe.cache.folder()?;
    let checked = args.recipe.checked()?;
    let config = ExtractConfig {
        cache: &cache,
        taps: &checked.taps,
        input: checked.input.preparation(),
        views: checked.views.as_ref(),
        dtype: args.recipe.keep.dtype(),
        device: args.recipe.engine.device()?,
        batch_size: 1,
        threads: 1,
        block_rows: DEFAULT_BLOCK_ROWS,
        max_cache_bytes: None,
        shard: None,
    };
    let data = match &args.data {
        None => None,
        Some(path) => {
            let mut options = runtime::data::DataOptions::new(runtime::data::SplitRule::Loose);
            options.unlabelled = Unlabelled::Keep;
            options.wanted = checked.input.wanted();
            Some(Dataset::open(path, &options)?)
        }
    };
    let mut all_there = true;
    let mut answers = Vec::new();
    for key in keys(&checked.model, &config)?.iter().flatten() {
        let answer = answer(&cache, key, data.as_ref(), N_NAMED)?;
        all_there &= answer["hit"] == true;
        answers.push(answer);
    }
    if args.json {
        text::json(&answers)?;
    } else {
        for answer in &answers {
            text::print(&said(answer))?;
        }
    }
    Ok(if all_there { 0 } else { code::NO })
}

/// Whether there is an entry of `key`; the nearest where there is none.
fn answer(
    cache: &std::path::Path,
    key: &Key,
    data: Option<&Dataset>,
    n_named: usize,
) -> anyhow::Result<serde_json::Value> {
    let name = key.digest();
    let folder = cache.join(&name);
    let mut answer = serde_json::json!({ "entry": name, "hit": false });
    let store = match folder.join("key.json").exists() {
        true => Some(Store::open_entry(&folder)?),
        false => None,
    };
    if let Some(store) = store.filter(|store| store.n_rows() > 0) {
        answer["hit"] = true.into();
        answer["rows"] = store.n_rows().into();
        if let Some(data) = data {
            let mut reader = data.reader();
            let there = (0..data.len())
                .filter(|&sample| {
                    reader
                        .read(sample)
                        .is_ok_and(|content| store.contains(&content.id()))
                })
                .count();
            answer["samples"] = serde_json::json!({ "n": data.len(), "hits": there });
        }
        return Ok(answer);
    }
    let near: Vec<_> = explain(cache, key)?
        .into_iter()
        .take(n_named)
        .map(|(entry, differences)| serde_json::json!({ "entry": entry, "differences": differences }))
        .collect();
    answer["nearest"] = near.into();
    Ok(answer)
}

fn said(answer: &serde_json::Value) -> String {
    let text_of = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let entry = text_of(&answer["entry"]);
    if answer["hit"] == true {
        let samples = match &answer["samples"] {
            serde_json::Value::Null => String::new(),
            samples => format!("; {} of {} samples have a row", samples["hits"], samples["n"]),
        };
        return format!("hit: {entry} with {} rows{samples}\n", answer["rows"]);
    }
    let mut said = format!("miss: no entry {entry}\n");
    let near = answer["nearest"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    for near in near {
        said.push_str(&format!("  {} differs in\n", text_of(&near["entry"])));
        for difference in near["differences"].as_array().into_iter().flatten() {
            said.push_str(&format!(
                "    {}: {} here, {} there\n",
                text_of(&difference["field"]),
                text::plain(&text_of(&difference["wanted"])),
                text::plain(&text_of(&difference["found"]))
            ));
        }
    }
    if near.is_empty() {
        said.push_str("  there are no other entries\n");
    }
    said
}
