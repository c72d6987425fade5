//! Batch normalisation of the innermost axis (`torch.nn.BatchNorm2d`), with what usually follows it.

use rayon::prelude::*;

use super::after::bounded;
use super::{Backward, Kept, Op, Part, Run, Sink, totals};
use crate::grad::plan::NormMode;
use crate::panels::vectorised;

/// Rows whose sums are made in float32 before they are added up in float64.
const ROWS: usize = 64;

/// `out = clamp((x - mean) / √(var + eps) · scale + shift (+ residual))`; inputs are `x`, `scale`, `shift`, the running
/// `mean` and `var`, and the residual where there is one.
#[derive(Debug)]
pub(in crate::grad) struct BatchNorm {
    pub(in crate::grad) n_channels: usize,
    pub(in crate::grad) eps: f32,
    /// How much a step's statistics count in the running ones.
    pub(in crate::grad) momentum: f64,
    /// Bounds of the activation behind it; none where there is none.
    pub(in crate::grad) clamp: Option<[f32; 2]>,
}

vectorised! {
    /// Mean and sum of squared deviations of each column of a few rows.
    fn moments(rows: &'a [f32], mean: &'a mut [f32], deviations: &'a mut [f32]) {
        let c = mean.len();
        let n = (rows.len() / c) as f32;
        mean.fill(0.0);
        deviations.fill(0.0);
        for row in rows.chunks_exact(c) {
            for (mean, x) in mean.iter_mut().zip(row) {
                *mean += x;
            }
        }
        for mean in mean.iter_mut() {
            *mean /= n;
        }
        for row in rows.chunks_exact(c) {
            for ((sum, x), mean) in deviations.iter_mut().zip(row).zip(&*mean) {
                let d = x - mean;
                *sum = d.mul_add(d, *sum);
            }
        }
    }
}

vectorised! {
    /// Means and sums of squared deviations of all rows, from those of parts (Chan, Golub and LeVeque 1983).
    fn put_together(parts: &'a [f32], n_rows: usize, mean: &'a mut [f64], squares: &'a mut [f64]) {
        let c = mean.len();
        for (idx, part) in parts.chunks_exact(2 * c).enumerate() {
            let (before, rows) = ((idx * ROWS) as f64, ROWS.min(n_rows - idx * ROWS) as f64);
            let share = rows / (before + rows);
            let (part_mean, part_squares) = part.split_at(c);
            for i in 0..c {
                let delta = f64::from(part_mean[i]) - mean[i];
                squares[i] += f64::from(part_squares[i]) + delta * delta * (before * share);
                mean[i] += delta * share;
            }
        }
    }
}

vectorised! {
    fn apply(x: &'a [f32], factor: &'a [f32], offset: &'a [f32], residual: Option<&'a [f32]>, clamp: [f32; 2], out: &'a mut [f32]) {
        let c = factor.len();
        match residual {
            None => {
                for (out, x) in out.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
                    for (((out, x), factor), offset) in out.iter_mut().zip(x).zip(factor).zip(offset) {
                        *out = bounded(x.mul_add(*factor, *offset), clamp);
                    }
                }
            }
            Some(residual) => {
                for ((out, x), r) in out.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(residual.chunks_exact(c)) {
                    for ((((out, x), factor), offset), r) in out.iter_mut().zip(x).zip(factor).zip(offset).zip(r) {
                        *out = bounded(x.mul_add(*factor, *offset) + r, clamp);
                    }
                }
            }
        }
    }
}

vectorised! {
    /// `Σ g` and `Σ g · (x - mean)` of each column, for `g` the derivative before the activation.
    fn sums(x: &'a [f32], out: &'a [f32], d_out: &'a [f32], mean: &'a [f32], clamp: [f32; 2], of_g: &'a mut [f32], of_gx: &'a mut [f32]) {
        let c = mean.len();
        of_g.fill(0.0);
        of_gx.fill(0.0);
        for ((x, out), d_out) in x.chunks_exact(c).zip(out.chunks_exact(c)).zip(d_out.chunks_exact(c)) {
            for i in 0..c {
                let g = if out[i] > clamp[0] && out[i] < clamp[1] { d_out[i] } else { 0.0 };
                of_g[i] += g;
                of_gx[i] = g.mul_add(x[i] - mean[i], of_gx[i]);
            }
        }
    }
}

vectorised! {
    /// `dx = g · of_g + x · of_x + constant`, column by column.
    fn spread(x: &'a [f32], out: &'a [f32], d_out: &'a [f32], factors: [&'a [f32]; 3], clamp: [f32; 2], to: &'a mut [f32], is_added: bool) {
        let [of_g, of_x, constant] = factors;
        let c = of_g.len();
        for (((to, x), out), d_out) in to.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(out.chunks_exact(c)).zip(d_out.chunks_exact(c)) {
            let (of_g, of_x, constant) = (&of_g[..c], &of_x[..c], &constant[..c]);
            for i in 0..c {
                let g = if out[i] > clamp[0] && out[i] < clamp[1] { d_out[i] } else { 0.0 };
                let value = g.mul_add(of_g[i], x[i].mul_add(of_x[i], constant[i]));
                to[i] = if is_added { to[i] + value } else { value };
            }
        }
    }
}

vectorised! {
    /// `g` itself.
    fn mask(out: &'a [f32], d_out: &'a [f32], clamp: [f32; 2], to: &'a mut [f32], is_added: bool) {
        for ((to, out), d_out) in to.iter_mut().zip(out).zip(d_out) {
            let g = if *out > clamp[0] && *out < clamp[1] { *d_out } else { 0.0 };
            *to = if is_added { *to + g } else { g };
        }
    }
}

fn inverse(var: f32, eps: f32) -> f32 {
    1.0 / (var + eps).sqrt()
}

/// Factor and offset of a channel.
fn affine([scale, shift, mean, inverse]: [f32; 4]) -> (f32, f32) {
    let factor = scale * inverse;
    (factor, (-mean).mul_add(factor, shift))
}

impl BatchNorm {
    /// What a channel is multiplied with and added under running statistics.
    pub(in crate::grad) fn frozen(&self, [scale, shift, mean, var]: [f32; 4]) -> (f32, f32) {
        affine([scale, shift, mean, inverse(var, self.eps)])
    }

    fn bounds(&self) -> [f32; 2] {
        self.clamp.unwrap_or([f32::NEG_INFINITY, f32::INFINITY])
    }

    /// Elements of a task.
    fn part(&self) -> usize {
        ROWS * self.n_channels
    }
}

impl Op for BatchNorm {
    fn part(&self) -> Part<'_> {
        Part::Norm(self)
    }

    fn forward(&self, run: Run, inputs: &[&[f32]], out: &mut [f32], kept: &mut Kept) {
        let (c, part) = (self.n_channels, self.part());
        let &[x, scale, shift, running_mean, running_var, ..] = inputs else {
            unreachable!("a batch normalisation has five inputs")
        };
        let n_rows = x.len() / c;
        let n_parts = n_rows.div_ceil(ROWS);
        let [statistics, batch, parts] = kept.arrays([4 * c, 5 * c, n_parts * 2 * c]);
        let (mean, rest) = statistics.split_at_mut(c);
        let (inverse, rest) = rest.split_at_mut(c);
        let (factor, offset) = rest.split_at_mut(c);
        match run.norm {
            NormMode::Frozen => {
                mean.copy_from_slice(running_mean);
                for (inverse, var) in inverse.iter_mut().zip(running_var) {
                    *inverse = self::inverse(*var, self.eps);
                }
            }
            NormMode::Batch => {
                parts
                    .par_chunks_mut(2 * c)
                    .zip(x.par_chunks(part))
                    .for_each(|(to, rows)| {
                        let (mean, deviations) = to.split_at_mut(c);
                        moments(rows, mean, deviations);
                    });
                let (batch_mean, batch_var) = batch[..2 * c].split_at_mut(c);
                let n = n_rows as f64;
                let mut whole = vec![0.0; 2 * c];
                let (m, squares) = whole.split_at_mut(c);
                put_together(parts, n_rows, m, squares);
                for i in 0..c {
                    mean[i] = m[i] as f32;
                    inverse[i] = (1.0 / (squares[i] / n + f64::from(self.eps)).sqrt()) as f32;
                    batch_mean[i] = m[i] as f32;
                    batch_var[i] = (squares[i] / (n - 1.0)) as f32;
                }
            }
        }
        for i in 0..c {
            (factor[i], offset[i]) = affine([scale[i], shift[i], mean[i], inverse[i]]);
        }
        let (factor, offset) = (&*factor, &*offset);
        let residual = inputs.get(5);
        out.par_chunks_mut(part)
            .zip(x.par_chunks(part))
            .enumerate()
            .for_each(|(idx, (out, x))| {
                let residual = residual.map(|residual| &residual[idx * part..][..out.len()]);
                apply(x, factor, offset, residual, self.bounds(), out);
            });
    }

    fn backward(&self, run: Run, pass: Backward<'_>, sinks: &mut [Option<Sink<'_>>], kept: &mut Kept) {
        let (c, part, bounds) = (self.n_channels, self.part(), self.bounds());
        let x = pass.inputs[0];
        let n_rows = x.len() / c;
        let n_parts = n_rows.div_ceil(ROWS);
        let [statistics, whole, parts] = kept.arrays([4 * c, 5 * c, n_parts * 2 * c]);
        let (mean, rest) = statistics.split_at(c);
        let (inverse, factor) = (&rest[..c], &rest[c..2 * c]);
        // The first two fifths are the batch's statistics, which the running ones are still to be updated with.
        let (sum_g, rest) = whole[2 * c..].split_at_mut(c);
        let (sum_gx, constant) = rest.split_at_mut(c);
        let is_batch = run.norm == NormMode::Batch;
        if is_batch || sinks[1].is_some() || sinks[2].is_some() {
            parts
                .par_chunks_mut(2 * c)
                .zip(x.par_chunks(part))
                .zip(pass.out.par_chunks(part).zip(pass.d_out.par_chunks(part)))
                .for_each(|((to, x), (out, d_out))| {
                    let (of_g, of_gx) = to.split_at_mut(c);
                    sums(x, out, d_out, mean, bounds, of_g, of_gx);
                });
            let sums = totals(parts, 2 * c);
            for i in 0..c {
                sum_g[i] = sums[i] as f32;
                sum_gx[i] = sums[c + i] as f32 * inverse[i];
            }
            for (sink, from) in [(1, &*sum_gx), (2, &*sum_g)] {
                if let Some(sink) = &mut sinks[sink] {
                    super::put(sink, from);
                }
            }
        }
        if let Some(sink) = &mut sinks[0] {
            // dx = factor · (g - Σg/n - x̂ · Σgx̂/n), with x̂ = (x - mean) · inverse
            let n = if is_batch { n_rows as f32 } else { f32::INFINITY };
            for i in 0..c {
                let of_x = if is_batch {
                    -factor[i] * sum_gx[i] / n * inverse[i]
                } else {
                    0.0
                };
                constant[i] = if is_batch {
                    -factor[i] * sum_g[i] / n - of_x * mean[i]
                } else {
                    0.0
                };
                sum_gx[i] = of_x;
            }
            let factors = [factor, &*sum_gx, &*constant];
            let is_added = sink.is_added;
            sink.values
                .par_chunks_mut(part)
                .zip(x.par_chunks(part))
                .zip(pass.out.par_chunks(part).zip(pass.d_out.par_chunks(part)))
                .for_each(|((to, x), (out, d_out))| spread(x, out, d_out, factors, bounds, to, is_added));
        }
        if let Some(Some(sink)) = sinks.get_mut(5) {
            let is_added = sink.is_added;
            sink.values
                .par_chunks_mut(part)
                .zip(pass.out.par_chunks(part).zip(pass.d_out.par_chunks(part)))
                .for_each(|(to, (out, d_out))| mask(out, d_out, bounds, to, is_added));
        }
    }

    fn update_running(&self, kept: &Kept, mean: &mut [f32], var: &mut [f32]) {
        let batch = kept.arrays[1][..2 * self.n_channels].split_at(self.n_channels);
        for (running, batch) in [(mean, batch.0), (var, batch.1)] {
            for (running, batch) in running.iter_mut().zip(batch) {
                let value = (1.0 - self.momentum) * f64::from(*running) + self.momentum * f64::from(*batch);
                *running = value as f32;
            }
        }
    }
}
