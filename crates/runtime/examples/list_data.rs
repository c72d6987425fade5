//! Lists a data set as JSON lines, for comparison with what Python's readers make of the same files:
//! `list_data SOURCE [--loose] [--fraction F] [--keep] [--texts] [--names] [--threads N] [--label-col NAME] [--path-col NAME] …`.

#![expect(clippy::print_stdout, reason = "an example for the terminal")]

use std::error::Error;
use std::path::PathBuf;

use runtime::data::{Content, DataOptions, Dataset, SplitRule, Unlabelled, Wanted};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let source = PathBuf::from(args.next().ok_or("which source?")?);
    let mut options = DataOptions::new(SplitRule::Folders);
    let (mut n_threads, mut names_only) = (1, false);
    while let Some(flag) = args.next() {
        let mut value = || args.next().ok_or("this flag takes a value");
        match flag.as_str() {
            "--loose" => options.split = SplitRule::Loose,
            "--fraction" => {
                options.split = SplitRule::Fraction {
                    fraction: value()?.parse()?,
                    seed: 0,
                }
            }
            "--names" => names_only = true,
            "--keep" => options.unlabelled = Unlabelled::Keep,
            "--texts" => options.wanted = Wanted::Texts,
            "--threads" => n_threads = value()?.parse()?,
            "--path-col" => options.columns.path = Some(value()?),
            "--label-col" => options.columns.label = Some(value()?),
            "--text-col" => options.columns.text = Some(value()?),
            "--split-col" => options.columns.split = Some(value()?),
            "--id-col" => options.columns.id = Some(value()?),
            other => return Err(format!("`{other}` is no flag of this example").into()),
        }
    }
    let data = Dataset::open(&source, &options)?;
    if names_only {
        println!(
            "{} samples, digest {}",
            data.len(),
            data.listing_digest().to_hex()
        );
        return Ok(());
    }
    for line in rows(&data, n_threads) {
        println!("{line}");
    }
    println!(
        "{}",
        serde_json::json!({
            "classes": data.classes(),
            "left_out": data.left_out(),
            "n_left_out": data.n_left_out(),
            "set_aside": data.set_aside(),
            "digest": data.listing_digest().to_hex().as_str(),
        })
    );
    Ok(())
}

/// One object per sample, in order; the threads take turns by eight, as workers do with batches.
fn rows(data: &Dataset, n_threads: usize) -> Vec<serde_json::Value> {
    let mut rows = vec![serde_json::Value::Null; data.len()];
    let next = std::sync::atomic::AtomicUsize::new(0);
    let parts: Vec<Vec<(usize, serde_json::Value)>> = std::thread::scope(|scope| {
        let work = || {
            let mut reader = data.reader();
            let mut done = Vec::new();
            loop {
                let first = next.fetch_add(8, std::sync::atomic::Ordering::Relaxed);
                if first >= data.len() {
                    return done;
                }
                for idx in first..(first + 8).min(data.len()) {
                    let content = reader.read(idx);
                    let mut row = serde_json::json!({
                        "name": data.name(idx),
                        "label": data.label(idx).map(|label| &data.classes()[label as usize]),
                        "split": data.split(idx),
                    });
                    match content {
                        Ok(content) => {
                            row["id"] = blake3::Hash::from(content.id()).to_hex().as_str().into();
                            match content {
                                Content::Encoded(bytes) => row["bytes"] = bytes.len().into(),
                                Content::Pixels { width, height, rgb } => {
                                    row["pixels"] = serde_json::json!([width, height]);
                                    row["rgb"] = blake3::hash(&rgb).to_hex().as_str().into();
                                }
                                Content::Text(text) => row["text"] = text.into(),
                            }
                        }
                        Err(reason) => row["error"] = reason.into(),
                    }
                    done.push((idx, row));
                }
            }
        };
        let threads: Vec<_> = (0..n_threads).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("readers do not panic"))
            .collect()
    });
    for (idx, row) in parts.into_iter().flatten() {
        rows[idx] = row;
    }
    rows
}
