//! Texts on stdin, one per line, to vectors on stdout, one JSON array per line: a text encoder in forty lines.
//!
//! `cargo run --example embed -- MODEL.onnx [FOLDER] < texts.txt`; with `JSON` set in the environment, each line of stdin
//! is a JSON string, so that texts may hold line breaks.
#![expect(clippy::print_stdout, reason = "an example shows what it makes")]

use std::io::Read;
use std::path::Path;

use runtime::Error;
use runtime::engine::{Device, Engine, SessionOptions};
use runtime::onnx::Model;
use runtime::text::{Buckets, TextBatch, TextEncoder, TextGraph, TextOptions, utf8};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let model = Model::open(Path::new(args.first().ok_or("MODEL.onnx [FOLDER] < texts")?))?;
    let options = TextOptions::default();
    let encoder = match args.get(1) {
        Some(folder) => TextEncoder::new(Path::new(folder), &options)?,
        None => TextEncoder::beside(model.path(), &options)?,
    };
    let graph = TextGraph::new(&model)?;
    let mut session = Engine::open(None)?.session(
        &model,
        SessionOptions {
            intra_threads: 1,
            device: Device::Cpu,
        },
    )?;

    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes)?;
    let lines: Vec<&str> = utf8(&bytes)?.lines().collect();
    let mut rows: Vec<Option<Vec<f32>>> = vec![None; lines.len()];
    let mut run = |batch: TextBatch<usize>| -> Result<(), Error> {
        let pooled = session.run_with(&graph.inputs(&batch), |outputs| {
            encoder.pool(&outputs[0].shape, &outputs[0].values, &batch)
        })?;
        let all = pooled.map_err(Error::Usage)?;
        for (&idx, row) in batch
            .keys
            .iter()
            .zip(all.chunks_exact(all.len() / batch.keys.len()))
        {
            rows[idx] = Some(row.to_vec());
        }
        Ok(())
    };
    let mut buckets = Buckets::new(&encoder, &graph, 8)?;
    for (idx, line) in lines.iter().enumerate() {
        let text = match std::env::var_os("JSON") {
            Some(_) => serde_json::from_str(line)?,
            None => (*line).to_owned(),
        };
        if let Some(batch) = buckets.push(idx, encoder.encode(&text)?) {
            run(batch)?;
        }
    }
    while let Some(batch) = buckets.drain() {
        run(batch)?;
    }
    for row in rows.into_iter().flatten() {
        println!("{}", serde_json::to_string(&row)?);
    }
    Ok(())
}
