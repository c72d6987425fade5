//! Writes and reads clip-retrieval's layout, for comparison with its own readers:
//! `clip_layout write FOLDER f16|f32 PARTITION_ROWS N_ROWS < rows.jsonl`, `clip_layout read FOLDER images|texts`.

#![expect(clippy::print_stdout, reason = "an example for the terminal")]

use std::error::Error;
use std::path::Path;

use pth::Existing;
use runtime::exchange::{ClipRetrievalWriter, Modality, Precision, WriteOptions, read_clip_retrieval};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["write", folder, precision, partition_rows, n_rows] => {
            let rows: Vec<serde_json::Value> = std::io::stdin()
                .lines()
                .map(|line| Ok(serde_json::from_str(&line?)?))
                .collect::<Result<_, Box<dyn Error>>>()?;
            let row = |value: &serde_json::Value| -> Option<Vec<f32>> {
                let numbers = value["row"].as_array()?;
                numbers
                    .iter()
                    .map(|number| Some(number.as_f64()? as f32))
                    .collect()
            };
            let mut writer = None;
            for value in &rows {
                let row = row(value).ok_or("a row is a list of numbers")?;
                let writer = match &mut writer {
                    Some(writer) => writer,
                    empty => empty.insert(ClipRetrievalWriter::create(
                        Path::new(folder),
                        WriteOptions {
                            modality: Modality::Images,
                            precision: if precision == "f16" {
                                Precision::F16
                            } else {
                                Precision::F32
                            },
                            n_features: row.len(),
                            n_rows: n_rows.parse()?,
                            partition_rows: partition_rows.parse()?,
                            existing: Existing::Refuse,
                        },
                    )?),
                };
                writer.push(
                    value["name"].as_str().unwrap_or_default(),
                    value["label"].as_str(),
                    &row,
                )?;
            }
            if let Some(writer) = writer {
                writer.finish()?;
            }
        }
        ["read", folder, modality] => {
            let modality = if modality == "texts" {
                Modality::Texts
            } else {
                Modality::Images
            };
            let read = read_clip_retrieval(Path::new(folder), modality)?;
            for row in 0..read.features.n_rows() {
                println!(
                    "{}",
                    serde_json::json!({ "name": read.names.get(row), "row": read.features.rows(row..row + 1, &mut Vec::new()) })
                );
            }
        }
        _ => return Err("write or read, and what?".into()),
    }
    Ok(())
}
