//! Trains the tail of a graph on one batch by SGD with momentum, for `tools/parity_tail.py` and `benches/tail.py`.
//!
//! `tail steps MODEL BOUNDARY OUTPUT SIZES BATCH LABELS NORM LR STEPS OUT` writes each step's loss, logits, gradients and
//! running statistics as `OUT/step-N.safetensors`; `tail bench MODEL BOUNDARY OUTPUT SIZES BATCH LABELS NORM LR THREADS`
//! makes a step for each line of its input and answers with the milliseconds it took.
//!
//! `SIZES` are those of a sample (`128,28,28`), `BATCH` and `LABELS` files of little-endian float32 and int64, `NORM` is
//! `batch` or `frozen`.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use rayon::prelude::*;
use runtime::grad::{Gradients, NormMode, Plan, Tail, TailOptions, Weights};
use runtime::onnx::Model;

/// Weights that a task takes.
const CHUNK: usize = 1 << 14;

type Failure = Box<dyn std::error::Error>;

/// Mean cross-entropy, and its derivative by the logits.
fn cross_entropy(logits: &[f32], labels: &[usize], derivative: &mut [f32]) -> f64 {
    let width = logits.len() / labels.len();
    let n = labels.len() as f64;
    let mut loss = 0.0;
    let rows = logits.chunks_exact(width).zip(derivative.chunks_exact_mut(width));
    for ((row, derivative), label) in rows.zip(labels) {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f64 = row.iter().map(|x| f64::from(x - largest).exp()).sum();
        loss += total.ln() - f64::from(row[*label] - largest);
        for (class, (x, to)) in row.iter().zip(derivative).enumerate() {
            let target = f64::from(u8::from(class == *label));
            *to = ((f64::from(x - largest).exp() / total - target) / n) as f32;
        }
    }
    loss / n
}

struct Trainer {
    tail: Tail,
    plan: Plan,
    weights: Weights,
    gradients: Gradients,
    velocity: Gradients,
    batch: Vec<f32>,
    labels: Vec<usize>,
    logits: Vec<f32>,
    lr: f32,
}

impl Trainer {
    fn new(args: &[String], threads: usize) -> Result<Trainer, Failure> {
        let [model, boundary, output, sizes, batch, labels, norm, lr] = args else {
            return Err("see the head of this file for the arguments".into());
        };
        let sizes = sizes
            .split(',')
            .map(str::parse)
            .collect::<Result<Vec<usize>, _>>()?;
        let options = TailOptions {
            boundary,
            output,
            input_shape: &sizes,
            threads,
        };
        let tail = Tail::new(&Model::open(Path::new(model))?, &options)?;
        let norm = match norm.as_str() {
            "batch" => NormMode::Batch,
            "frozen" => NormMode::Frozen,
            other => return Err(format!("no norm `{other}`").into()),
        };
        let plan = tail.plan(&|_| true, &|_| norm)?;
        let batch = std::fs::read(batch)?;
        let labels = std::fs::read(labels)?;
        Ok(Trainer {
            weights: tail.weights(),
            gradients: plan.gradients(),
            velocity: plan.gradients(),
            batch: batch
                .as_chunks()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect(),
            labels: labels
                .as_chunks()
                .0
                .iter()
                .map(|b| usize::try_from(i64::from_le_bytes(*b)))
                .collect::<Result<_, _>>()?,
            logits: Vec::new(),
            lr: lr.parse()?,
            tail,
            plan,
        })
    }

    fn step(&mut self) -> Result<f64, Failure> {
        let (labels, logits) = (&self.labels, &mut self.logits);
        let mut loss = |output: &[f32], derivative: &mut [f32]| {
            logits.clear();
            logits.extend_from_slice(output);
            cross_entropy(output, labels, derivative)
        };
        let n = labels.len();
        let value = self.tail.step(
            &self.plan,
            &mut self.weights,
            &self.batch,
            n,
            &mut loss,
            &mut self.gradients,
        )?;
        for ((name, velocity), (_, gradient)) in self.velocity.iter_mut().zip(self.gradients.iter()) {
            let weights = self.weights.get_mut(name).ok_or("a gradient without a weight")?;
            let lr = self.lr;
            let update = |((weights, velocity), gradient): ((&mut [f32], &mut [f32]), &[f32])| {
                for ((w, v), g) in weights.iter_mut().zip(velocity).zip(gradient) {
                    *v = 0.9 * *v + g;
                    *w -= lr * *v;
                }
            };
            // Waking another thread takes as long as a few thousand weights.
            if weights.len() < CHUNK {
                update(((weights, velocity), gradient));
            } else {
                let parts = weights.par_chunks_mut(CHUNK).zip(velocity.par_chunks_mut(CHUNK));
                parts.zip(gradient.par_chunks(CHUNK)).for_each(update);
            }
        }
        Ok(value)
    }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn steps(args: &[String], n: usize, out: &Path) -> Result<(), Failure> {
    let mut trainer = Trainer::new(args, 2)?;
    let mut evaluated = Vec::new();
    for step in 0..n {
        let value = trainer.step()?;
        let mut all: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for (name, gradient) in trainer.gradients.iter() {
            all.insert(format!("gradient {name}"), bytes(gradient));
        }
        for (name, weight) in trainer.weights.iter() {
            all.insert(format!("weight {name}"), bytes(weight));
        }
        all.insert("logits".to_owned(), bytes(&trainer.logits));
        all.insert("loss".to_owned(), bytes(&[value as f32]));
        if step + 1 == n {
            let (tail, weights, labels) = (&trainer.tail, &trainer.weights, &trainer.labels);
            tail.forward(weights, &trainer.batch, labels.len(), &mut evaluated)?;
            all.insert("evaluated".to_owned(), bytes(&evaluated));
        }
        let views = all
            .iter()
            .map(|(name, data)| {
                let view =
                    safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![data.len() / 4], data);
                view.map(|view| (name.as_str(), view))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let file = safetensors::serialize(views, None)?;
        std::fs::File::create(out.join(format!("step-{step}.safetensors")))?.write_all(&file)?;
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut out = std::io::stdout().lock();
    match args.split_first() {
        Some((mode, rest)) if mode == "steps" && rest.len() == 10 => {
            steps(&rest[..8], rest[8].parse()?, Path::new(&rest[9]))
        }
        Some((mode, rest)) if mode == "bench" && rest.len() == 9 => {
            let threads = rest[8].parse()?;
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build_global()?;
            let mut trainer = Trainer::new(&rest[..8], threads)?;
            for line in std::io::stdin().lock().lines() {
                line?;
                let start = Instant::now();
                let loss = trainer.step()?;
                writeln!(out, "{} {loss}", start.elapsed().as_secs_f64() * 1e3)?;
                out.flush()?;
            }
            Ok(())
        }
        _ => Err("see the head of this file for the arguments".into()),
    }
}
