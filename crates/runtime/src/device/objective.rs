//! The loss of a linear head over all rows and its gradient, and the Gram matrix of the features: what a second-order
//! solver asks of every pass, on a GPU.
//!
//! With half-width features, weights and residuals go through the products as two numbers each, the nearest and 4096 times
//! what it lacks, so that they keep 22 bits; the features themselves are what they are.

use super::backend::{Arg, Backend, Kind, Operand, Product, Shape, count, download, maybe, upload};
use super::cuda::{Buffer, Cuda};
use super::rows::Rows;
use crate::error::Error;
use crate::features::Features;
use crate::targets::{Targets, Task};

/// Rows that are in the works at once: 64 MiB of logits of 1000 classes.
const CHUNK: usize = 16_384;
/// Rows whose residuals one block adds up.
const COLUMN_ROWS: usize = 1024;
/// What the second number of a pair is multiplied by.
const LOW: f32 = 1.0 / 4096.0;

/// Features and targets on a GPU, and room for a pass over them.
pub struct Objective<'g> {
    gpu: &'g Cuda,
    rows: Rows<Cuda>,
    task: Task,
    n_outputs: usize,
    smoothing: f32,
    class_weights: Option<Buffer>,
    chunk: usize,
    /// `[chunk, stride]` float32, and with half-width features its two numbers.
    logits: Buffer,
    pair: Option<[Buffer; 2]>,
    stride: usize,
    weight_pair: Option<[Buffer; 2]>,
    stats: Buffer,
    totals: Buffer,
    /// `[K, padded D]`, and `[segments, K]` of the bias.
    gradient: Buffer,
    partial: Buffer,
    cursor: Buffer,
}

/// A loss and its gradient.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// The sum over all rows, each by its weight.
    pub loss: f64,
    /// `[K, D]`: what the sum's gradient by the weights is.
    pub weight: Vec<f32>,
    /// `[K]`: by the biases.
    pub bias: Vec<f32>,
}

/// Sums over rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Gram {
    /// `[D, D]`: XᵀX.
    pub products: Vec<f32>,
    /// `[D]`: Xᵀ1.
    pub sums: Vec<f32>,
}

impl std::fmt::Debug for Objective<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Objective")
            .field("gpu", self.gpu)
            .field("n_rows", &self.rows.n_rows)
            .finish_non_exhaustive()
    }
}

impl<'g> Objective<'g> {
    /// Copies rows to a GPU as `precision`. `class_weights` are `[K]`, for several labels presences and then absences
    /// `[2, K]`; a regression has none.
    ///
    /// # Errors
    /// [`Error::Features`]: targets that do not fit, a number that float16 cannot hold. [`Error::GpuMemory`].
    #[expect(
        clippy::too_many_arguments,
        reason = "rows, what is wanted of them, and how they lie"
    )]
    pub fn new(
        gpu: &'g Cuda,
        features: &Features,
        targets: &Targets,
        task: Task,
        n_outputs: usize,
        class_weights: Option<&[f32]>,
        smoothing: f32,
        precision: Kind,
    ) -> Result<Objective<'g>, Error> {
        targets.check(task, features.n_rows(), n_outputs)?;
        let rows = Rows::new(gpu, features, targets, None, precision)?;
        Objective::of(gpu, rows, task, n_outputs, class_weights, smoothing, CHUNK)
    }

    fn of(
        gpu: &'g Cuda,
        rows: Rows<Cuda>,
        task: Task,
        n_outputs: usize,
        class_weights: Option<&[f32]>,
        smoothing: f32,
        chunk: usize,
    ) -> Result<Objective<'g>, Error> {
        let (kind, chunk) = (rows.kind, chunk.min(rows.n_rows));
        let stride = kind.pad(n_outputs);
        let two = |n: usize| -> Result<Option<[Buffer; 2]>, Error> {
            if kind == Kind::F32 {
                Ok(None)
            } else {
                Ok(Some([gpu.zeros(n * 2)?, gpu.zeros(n * 2)?]))
            }
        };
        let n_parts = rows.n_rows.div_ceil(chunk) * chunk.div_ceil(COLUMN_ROWS);
        Ok(Objective {
            gpu,
            task,
            n_outputs,
            smoothing,
            class_weights: class_weights.map(|weights| upload(gpu, weights)).transpose()?,
            chunk,
            logits: gpu.zeros(chunk * stride * 4)?,
            pair: two(chunk * stride)?,
            stride,
            weight_pair: two(n_outputs * rows.stride())?,
            stats: gpu.zeros(chunk * 16)?,
            totals: gpu.zeros(32)?,
            gradient: gpu.zeros(n_outputs * rows.stride() * 4)?,
            partial: gpu.zeros(n_parts * n_outputs.max(rows.n_features) * 4)?,
            cursor: gpu.zeros(24)?,
            rows,
        })
    }

    /// The loss of `weight [K, D]` and `bias [K]`.
    ///
    /// # Errors
    /// [`Error::Gpu`].
    ///
    /// # Panics
    /// Where the lengths are others.
    pub fn evaluate(&self, weight: &[f32], bias: &[f32]) -> Result<Evaluation, Error> {
        let (gpu, k, d, padded) = (self.gpu, self.n_outputs, self.rows.n_features, self.rows.stride());
        assert_eq!(
            (weight.len(), bias.len()),
            (k * d, k),
            "a weight of [{k}, {d}] and its bias"
        );
        let mut wide = vec![0f32; k * padded];
        let rows = wide.chunks_exact_mut(padded).zip(weight.chunks_exact(d));
        rows.for_each(|(to, from)| to[..d].copy_from_slice(from));
        let (weight, bias) = (upload(gpu, &wide)?, upload(gpu, bias)?);
        if let Some(pair) = &self.weight_pair {
            self.split(pair, &weight, k * padded)?;
        }
        gpu.clear(&self.gradient)?;
        gpu.clear(&self.totals)?;
        let mut n_parts = 0;
        for first in (0..self.rows.n_rows).step_by(self.chunk) {
            let n = self.chunk.min(self.rows.n_rows - first);
            for (weight, alpha, beta) in numbers(&weight, self.weight_pair.as_ref()) {
                gpu.multiply(&Product {
                    kind: self.rows.kind,
                    out_kind: Kind::F32,
                    m: n,
                    n: k,
                    k: padded,
                    a: Operand::rows(&self.rows.features, first * padded, padded),
                    b: Operand::rows(weight, 0, padded),
                    out: &self.logits,
                    out_offset: 0,
                    out_stride: self.stride,
                    n_segments: 1,
                    alpha,
                    beta,
                })?;
            }
            self.loss(&bias, first, n)?;
            n_parts += self.column_sums(&self.logits, 0, Kind::F32, k, self.stride, n_parts, n)?;
            if let Some(pair) = &self.pair {
                self.split(pair, &self.logits, n * self.stride)?;
            }
            for (residual, alpha, _) in numbers(&self.logits, self.pair.as_ref()) {
                gpu.multiply(&Product {
                    kind: self.rows.kind,
                    out_kind: Kind::F32,
                    m: k,
                    n: padded,
                    k: n,
                    a: Operand::columns(residual, 0, self.stride),
                    b: Operand::columns(&self.rows.features, first * padded, padded),
                    out: &self.gradient,
                    out_offset: 0,
                    out_stride: padded,
                    n_segments: 1,
                    alpha,
                    beta: 1.0,
                })?;
            }
        }
        let bias = self.sum_parts(n_parts, k)?;
        let gradient: Vec<f32> = download(gpu, &self.gradient, k * padded)?;
        let totals: Vec<f64> = download(gpu, &self.totals, 4)?;
        Ok(Evaluation {
            loss: totals[0],
            weight: gradient
                .chunks_exact(padded)
                .flat_map(|row| &row[..d])
                .copied()
                .collect(),
            bias,
        })
    }

    /// XᵀX and Xᵀ1, in float32.
    ///
    /// # Errors
    /// [`Error::GpuMemory`]; [`Error::Gpu`].
    pub fn gram(&self) -> Result<Gram, Error> {
        let (gpu, d, padded) = (self.gpu, self.rows.n_features, self.rows.stride());
        let out = gpu.zeros(d * padded * 4)?;
        let mut n_parts = 0;
        for first in (0..self.rows.n_rows).step_by(self.chunk) {
            let n = self.chunk.min(self.rows.n_rows - first);
            let rows = || Operand::columns(&self.rows.features, first * padded, padded);
            gpu.multiply(&Product {
                kind: self.rows.kind,
                out_kind: Kind::F32,
                m: d,
                n: d,
                k: n,
                a: rows(),
                b: rows(),
                out: &out,
                out_offset: 0,
                out_stride: padded,
                n_segments: 1,
                alpha: 1.0,
                beta: 1.0,
            })?;
            let at = first * padded * self.rows.kind.n_bytes();
            n_parts += self.column_sums(&self.rows.features, at, self.rows.kind, d, padded, n_parts, n)?;
        }
        let products: Vec<f32> = download(gpu, &out, d * padded)?;
        Ok(Gram {
            products: products
                .chunks_exact(padded)
                .flat_map(|row| &row[..d])
                .copied()
                .collect(),
            sums: self.sum_parts(n_parts, d)?,
        })
    }

    /// Cuts float32 numbers in two.
    fn split(&self, [high, low]: &[Buffer; 2], from: &Buffer, n: usize) -> Result<(), Error> {
        let name = format!("split_{}", self.rows.kind.suffix());
        let args = [Arg::Buffer(high), Arg::Buffer(low), Arg::Buffer(from), count(n)];
        self.gpu.launch(&name, Shape::each(n), &args)
    }

    /// Turns logits into residuals and adds their loss.
    fn loss(&self, bias: &Buffer, first: usize, n: usize) -> Result<(), Error> {
        let name = match self.task {
            Task::SingleLabel => "softmax_ce_f32",
            Task::MultiLabel => "sigmoid_bce_f32",
            Task::Regression => "squared_error_f32",
        };
        let width = self.n_outputs.next_power_of_two().clamp(4, 32);
        let args = [
            Arg::Buffer(&self.logits),
            Arg::Buffer(&self.logits),
            Arg::Buffer(bias),
            Arg::Buffer(&self.stats),
            Arg::Buffer(&self.rows.targets),
            Arg::Buffer(&self.rows.identity),
            Arg::Buffer(&self.cursor),
            count(first),
            count(n),
            count(1),
            count(self.n_outputs),
            count(self.stride),
            Arg::I32(width as i32),
            maybe(self.class_weights.as_ref()),
            Arg::F32(self.smoothing),
            Arg::Null,
            Arg::Null,
        ];
        self.gpu.launch(name, Shape::each(n * width), &args)?;
        let args = [
            Arg::Buffer(&self.totals),
            Arg::Null,
            Arg::Null,
            Arg::Buffer(&self.stats),
            count(n),
            count(1),
            Arg::Buffer(&self.cursor),
            count(0),
        ];
        let shape = Shape {
            grid: [1, 1, 1],
            block: [256, 1],
        };
        self.gpu.launch("batch_stats", shape, &args)
    }

    /// Sums of columns of `n` rows that begin at byte `at`, as parts behind the first `n_parts`; how many.
    #[expect(clippy::too_many_arguments, reason = "a matrix in memory")]
    fn column_sums(
        &self,
        from: &Buffer,
        at: usize,
        kind: Kind,
        width: usize,
        stride: usize,
        n_parts: usize,
        n: usize,
    ) -> Result<usize, Error> {
        let parts = n.div_ceil(COLUMN_ROWS);
        let args = [
            Arg::At(&self.partial, n_parts * width * 4),
            Arg::At(from, at),
            count(n),
            count(width),
            count(stride),
            count(COLUMN_ROWS),
        ];
        let shape = Shape {
            grid: [width.div_ceil(32), parts, 1],
            block: [32, 8],
        };
        self.gpu
            .launch(&format!("column_sums_{}", kind.suffix()), shape, &args)?;
        Ok(parts)
    }

    fn sum_parts(&self, n_parts: usize, width: usize) -> Result<Vec<f32>, Error> {
        let out = self.gpu.zeros(width * 4)?;
        let args = [
            Arg::Buffer(&out),
            Arg::Buffer(&self.partial),
            count(width),
            count(n_parts),
            Arg::Null,
            Arg::Null,
            count(0),
            count(width),
        ];
        self.gpu.launch("sum_segments", Shape::each(width), &args)?;
        download(self.gpu, &out, width)
    }
}

/// What products read of a matrix: itself, or its two numbers, with their factor and that of what is there.
fn numbers<'b>(whole: &'b Buffer, pair: Option<&'b [Buffer; 2]>) -> Vec<(&'b Buffer, f32, f32)> {
    match pair {
        None => vec![(whole, 1.0, 0.0)],
        Some([high, low]) => vec![(high, 1.0, 0.0), (low, LOW, 1.0)],
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::super::emulator::gpu;
    use super::*;

    /// By the definition, in float64: loss, gradient by weights and biases, Gram and sums.
    fn plain(
        x: &[f32],
        labels: &[u32],
        w: &[f32],
        b: &[f32],
        class: &[f32],
    ) -> (f64, Vec<f64>, Vec<f64>, Vec<f64>) {
        let (k, d) = (b.len(), w.len() / b.len());
        let (mut loss, mut gradient, mut bias, mut gram) =
            (0.0, vec![0.0; k * d], vec![0.0; k], vec![0.0; d * d]);
        for (x, label) in x.chunks_exact(d).zip(labels) {
            let dot =
                |w: &[f32]| -> f64 { w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum() };
            let z: Vec<f64> = w
                .chunks_exact(d)
                .zip(b)
                .map(|(w, b)| dot(w) + f64::from(*b))
                .collect();
            let total: f64 = z.iter().map(|z| z.exp()).sum();
            let weight = f64::from(class[*label as usize]);
            loss += weight * (total.ln() - z[*label as usize]);
            for c in 0..k {
                let r = weight * (z[c].exp() / total - f64::from(u8::from(*label as usize == c)));
                bias[c] += r;
                x.iter()
                    .enumerate()
                    .for_each(|(i, x)| gradient[c * d + i] += r * f64::from(*x));
            }
            for (i, a) in x.iter().enumerate() {
                x.iter()
                    .enumerate()
                    .for_each(|(j, b)| gram[i * d + j] += f64::from(*a) * f64::from(*b));
            }
        }
        (loss, gradient, bias, gram)
    }

    #[test]
    fn loss_and_gradient_are_their_definition() {
        let (n, d, k) = (90, 13, 5);
        let wave = |n: usize, step: f32| (0..n).map(|i| (i as f32 * step).sin()).collect::<Vec<f32>>();
        // Numbers that float16 holds, so that the features are the same in every kind but bfloat16.
        let x: Vec<f32> = wave(n * d, 1.7)
            .iter()
            .map(|x| f16::from_f32(*x).to_f32())
            .collect();
        let labels: Vec<u32> = (0..n as u32).map(|i| i * i % k as u32 % 5).collect();
        let (w, b, class) = (wave(k * d, 0.9), wave(k, 0.4), [1.0, 2.0, 0.5, 1.0, 1.5]);
        let (loss, gradient, bias, gram) = plain(&x, &labels, &w, &b, &class);
        let features = Features::new(x, d).unwrap();
        let targets = Targets::Classes(labels);
        for with_blas in [false, true] {
            let Some(gpu) = gpu(with_blas) else { return };
            for kind in [Kind::F32, Kind::F16] {
                let rows = Rows::new(&gpu, &features, &targets, None, kind).unwrap();
                // Three chunks, the last of which is not full.
                let objective =
                    Objective::of(&gpu, rows, Task::SingleLabel, k, Some(&class), 0.0, 40).unwrap();
                let got = objective.evaluate(&w, &b).unwrap();
                assert!(
                    (got.loss - loss).abs() < 2e-6 * loss,
                    "{kind:?}: {} {loss}",
                    got.loss
                );
                let near = |got: &[f32], want: &[f64]| {
                    got.iter()
                        .zip(want)
                        .all(|(a, b)| (f64::from(*a) - b).abs() < 2e-5 * b.abs().max(1.0))
                };
                assert!(near(&got.weight, &gradient) && near(&got.bias, &bias), "{kind:?}");
                assert_eq!(objective.evaluate(&w, &b).unwrap(), got);
                let sums = objective.gram().unwrap();
                assert!(near(&sums.products, &gram));
                let columns: Vec<f64> = (0..d).map(|c| features_column(&features, c)).collect();
                assert!(near(&sums.sums, &columns));
            }
        }
    }

    fn features_column(features: &Features, column: usize) -> f64 {
        let mut scratch = Vec::new();
        let rows = features.rows(0..features.n_rows(), &mut scratch);
        rows.iter()
            .skip(column)
            .step_by(features.n_features())
            .map(|x| f64::from(*x))
            .sum()
    }
}
