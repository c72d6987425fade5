//! Texts to vectors, equal to sentence-transformers', whatever else is in the batch.
#![expect(
    clippy::unwrap_used,
    reason = "in helpers of tests, too, a panic is the answer"
)]

use std::fs;

use harness::fixture;
use runtime::engine::{Device, Engine, Session, SessionOptions};
use runtime::onnx::Model;
use runtime::text::{Buckets, Pooling, TextBatch, TextEncoder, TextGraph, TextOptions};

struct Encoder {
    encoder: TextEncoder,
    graph: TextGraph,
    session: Session,
}

impl Encoder {
    fn new(pooling: Option<Pooling>) -> Encoder {
        let model = Model::open(&fixture("text/model.onnx")).unwrap();
        let options = TextOptions {
            pooling: pooling.map(|pooling| vec![pooling]),
            ..TextOptions::default()
        };
        Encoder {
            encoder: TextEncoder::beside(model.path(), &options).unwrap(),
            graph: TextGraph::new(&model).unwrap(),
            session: Engine::open(Some(harness::onnx_runtime()))
                .unwrap()
                .session(
                    &model,
                    SessionOptions {
                        intra_threads: 1,
                        device: Device::Cpu,
                    },
                )
                .unwrap(),
        }
    }

    /// A row per text, in their order, in batches of at most `max_texts`.
    fn rows(&mut self, texts: &[&str], max_texts: usize) -> Vec<Vec<f32>> {
        let mut rows = vec![Vec::new(); texts.len()];
        let mut run = |batch: TextBatch<usize>| {
            let pooled = self
                .session
                .run_with(&self.graph.inputs(&batch), |outputs| {
                    self.encoder.pool(&outputs[0].shape, &outputs[0].values, &batch)
                })
                .unwrap()
                .unwrap();
            let row_len = pooled.len() / batch.keys.len();
            for (&idx, row) in batch.keys.iter().zip(pooled.chunks_exact(row_len)) {
                rows[idx] = row.to_vec();
            }
        };
        let mut buckets = Buckets::new(&self.encoder, &self.graph, max_texts).unwrap();
        for (idx, text) in texts.iter().enumerate() {
            if let Some(batch) = buckets.push(idx, self.encoder.encode(text).unwrap()) {
                run(batch);
            }
        }
        while let Some(batch) = buckets.drain() {
            run(batch);
        }
        rows
    }
}

fn expected() -> serde_json::Value {
    serde_json::from_slice(&fs::read(fixture("text/expected.json")).unwrap()).unwrap()
}

fn texts(expected: &serde_json::Value) -> Vec<&str> {
    expected["texts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|text| text.as_str().unwrap())
        .collect()
}

#[test]
fn vectors_are_those_of_sentence_transformers() {
    let expected = expected();
    let texts = texts(&expected);
    for (name, vectors) in expected["vectors"].as_object().unwrap() {
        let pooling: Pooling = name.parse().unwrap();
        let rows = Encoder::new(Some(pooling)).rows(&texts, 4);
        for ((row, vector), text) in rows.iter().zip(vectors.as_array().unwrap()).zip(&texts) {
            let vector: Vec<f64> = serde_json::from_value(vector.clone()).unwrap();
            let scale = vector.iter().fold(0f64, |top, value| top.max(value.abs()));
            assert_eq!(row.len(), vector.len());
            for (got, wanted) in row.iter().zip(&vector) {
                let diff = (f64::from(*got) - wanted).abs();
                assert!(diff <= 1e-5 * scale, "{name}, {text:?}: {got} {wanted}");
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    let expected = expected();
    let texts = texts(&expected);
    let mut encoder = Encoder::new(None);
    let together = encoder.rows(&texts, 4);
    let turned: Vec<&str> = texts.iter().rev().copied().collect();
    let mut backwards = encoder.rows(&turned, 4);
    backwards.reverse();
    let alone: Vec<Vec<f32>> = texts
        .iter()
        .map(|text| encoder.rows(&[text], 4).remove(0))
        .collect();
    let bits = |rows: &[Vec<f32>]| -> Vec<Vec<u32>> {
        rows.iter()
            .map(|row| row.iter().map(|value| value.to_bits()).collect())
            .collect()
    };
    assert_eq!(bits(&together), bits(&backwards));
    assert_eq!(bits(&together), bits(&alone));
}
