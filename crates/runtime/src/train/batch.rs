//! Rows of features on their way into a head, and what a block of them leaves on its way through.

use pulp::Arch;

use super::counter::{AT_ONCE, Counter};
use super::dense::stride;
use super::kernel::Matrix;
use super::loss::{RowLoss, Wanted};
use crate::features::{Features, max_abs};
use crate::scratch::AlignedVec;
use crate::targets::Targets;

/// Rows that a thread takes at once, at most: enough for the products' tiles, few enough for its caches.
pub(super) const BLOCK_ROWS: usize = 64;

/// Features and targets, and how features are brought to one scale.
#[derive(Clone, Copy)]
pub(super) struct Source<'s> {
    pub(super) features: &'s Features,
    pub(super) targets: &'s Targets,
    pub(super) scale: Option<&'s Scale>,
}

/// `x · factor + shift` has mean 0 and variance 1 in every column.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scale {
    pub(super) factor: Vec<f32>,
    pub(super) shift: Vec<f32>,
}

/// Rows of a source in some order.
#[derive(Clone, Copy)]
pub(super) struct Batch<'b> {
    pub(super) source: Source<'b>,
    pub(super) rows: &'b [usize],
    pub(super) changes: Option<Changes<'b>>,
}

/// What happens to features in training.
#[derive(Clone, Copy)]
pub(super) struct Changes<'b> {
    pub(super) step: u64,
    /// Standard deviation and numbers of the noise, added to what mixup made.
    pub(super) noise: Option<(f32, Counter)>,
    /// λ, and for each row of the batch another of its rows.
    pub(super) mixup: Option<(f32, &'b [usize])>,
}

impl Scale {
    /// Column means and standard deviations over all rows, as scikit-learn's `StandardScaler` has them: of a constant
    /// column only the mean is taken away.
    pub(super) fn new(features: &Features) -> Scale {
        /// A column that varies less against its mean is constant but for its rounding.
        const LEAST: f64 = 1e-7;
        const CHUNK_ROWS: usize = 256;
        let (n, d) = (features.n_rows(), features.n_features());
        let mut scratch = Vec::new();
        let mut sums_of = |f: &dyn Fn(f64, usize) -> f64| {
            let mut sums = vec![0.0f64; d];
            for start in (0..n).step_by(CHUNK_ROWS) {
                let rows = features.rows(start..(start + CHUNK_ROWS).min(n), &mut scratch);
                for row in rows.chunks_exact(d) {
                    for (column, (sum, x)) in sums.iter_mut().zip(row).enumerate() {
                        *sum += f(f64::from(*x), column);
                    }
                }
            }
            sums.iter_mut().for_each(|sum| *sum /= n as f64);
            sums
        };
        let mean = sums_of(&|x, _| x);
        let variance = sums_of(&|x, column| (x - mean[column]) * (x - mean[column]));
        let factors = mean.iter().zip(&variance).map(|(mean, variance)| {
            let deviation = variance.sqrt();
            if deviation > LEAST * mean.abs() {
                1.0 / deviation
            } else {
                1.0
            }
        });
        let factors: Vec<f64> = factors.collect();
        Scale {
            shift: mean
                .iter()
                .zip(&factors)
                .map(|(mean, factor)| (-mean * factor) as f32)
                .collect(),
            factor: factors.iter().map(|factor| *factor as f32).collect(),
        }
    }

    /// Makes a layer on scaled features (`weight [n, D]`) one on the features as given.
    pub(super) fn fold(&self, weight: &mut [f32], bias: &mut [f32]) {
        for (weight, bias) in weight.chunks_exact_mut(self.factor.len()).zip(bias) {
            let shift = weight
                .iter()
                .zip(&self.shift)
                .map(|(w, shift)| f64::from(*w) * f64::from(*shift));
            *bias = (f64::from(*bias) + shift.sum::<f64>()) as f32;
            weight
                .iter_mut()
                .zip(&self.factor)
                .for_each(|(w, factor)| *w *= factor);
        }
    }

    /// The other way round: a layer on the features as given to one on scaled ones.
    pub(super) fn unfold(&self, weight: &mut [f32], bias: &mut [f32]) {
        for (weight, bias) in weight.chunks_exact_mut(self.factor.len()).zip(bias) {
            weight
                .iter_mut()
                .zip(&self.factor)
                .for_each(|(w, factor)| *w /= factor);
            let shift = weight
                .iter()
                .zip(&self.shift)
                .map(|(w, shift)| f64::from(*w) * f64::from(*shift));
            *bias = (f64::from(*bias) - shift.sum::<f64>()) as f32;
        }
    }
}

impl Source<'_> {
    #[inline(always)]
    fn write(&self, row: usize, scratch: &mut Vec<f32>, out: &mut [f32]) {
        let values = self.features.rows(row..row + 1, scratch);
        match self.scale {
            None => out.copy_from_slice(values),
            Some(scale) => {
                let columns = values.iter().zip(scale.factor.iter().zip(&scale.shift));
                for (out, (x, (factor, shift))) in out.iter_mut().zip(columns) {
                    *out = x.mul_add(*factor, *shift);
                }
            }
        }
    }

    /// What row `first` is to be, with mixup's second row.
    pub(super) fn wanted<'w>(
        &'w self,
        first: usize,
        mixed: Option<(f32, usize)>,
        numbers: &'w mut Vec<f32>,
    ) -> Wanted<'w> {
        match self.targets {
            Targets::Classes(labels) => wanted_class(labels, first, mixed),
            Targets::Dense { values, n_outputs: k } => {
                let of = |row: usize| &values[row * k..(row + 1) * k];
                match mixed {
                    None => Wanted::Numbers(of(first)),
                    Some((share, second)) => {
                        numbers.clear();
                        let pairs = of(first).iter().zip(of(second));
                        numbers.extend(pairs.map(|(a, b)| share.mul_add(a - b, *b)));
                        Wanted::Numbers(numbers)
                    }
                }
            }
        }
    }
}

/// The class that row `first` is to have, and with mixup's second row that one's with what is left of 1.
pub(super) fn wanted_class(labels: &[u32], first: usize, mixed: Option<(f32, usize)>) -> Wanted<'static> {
    let (share, second) = mixed.unwrap_or((1.0, first));
    Wanted::Class {
        first: labels[first],
        second: labels[second],
        share,
    }
}

impl<'b> Batch<'b> {
    /// Its rows where they lie; none where one of them is to be changed or converted.
    pub(super) fn apart(&self) -> Vec<&'b [f32]> {
        if self.changes.is_some() || self.source.scale.is_some() {
            return Vec::new();
        }
        let features = self.source.features;
        let rows = self.rows.iter().map(|&row| features.row(row));
        rows.collect::<Option<_>>().unwrap_or_default()
    }

    /// The partner of a row of the batch, with λ.
    pub(super) fn mixed(&self, at: usize) -> Option<(f32, usize)> {
        let (share, partners) = self.changes?.mixup?;
        Some((share, self.rows[partners[at]]))
    }
}

/// Some rows of a batch on their way: each layer's rows, with a one behind each.
#[derive(Debug, Clone, Default)]
pub(super) struct Block {
    /// The first row's place in the batch.
    pub(super) first: usize,
    pub(super) n: usize,
    pub(super) inputs: AlignedVec,
    pub(super) input_stride: usize,
    pub(super) hidden: Vec<HiddenRows>,
    /// Logits of all heads, and then residuals.
    pub(super) outputs: AlignedVec,
    pub(super) output_stride: usize,
    /// `[n, heads]`.
    pub(super) losses: Vec<RowLoss>,
    /// The largest products that can come up in a gradient: per layer the largest input times the largest residual.
    pub(super) largest: Vec<f32>,
    /// The largest input.
    largest_input: f32,
    scratch: Vec<f32>,
    other: Vec<f32>,
    pub(super) numbers: Vec<f32>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct HiddenRows {
    pub(super) stride: usize,
    /// What the linear layer gave; normalised, where there is a norm.
    pub(super) inner: AlignedVec,
    pub(super) inverse: Vec<f32>,
    /// What the next layer takes.
    pub(super) outer: AlignedVec,
    pub(super) gradient: AlignedVec,
}

impl Block {
    /// Room for `n_rows` of `n_features`, hidden layers of these widths and `heads · n_outputs` outputs.
    pub(super) fn new(
        n_rows: usize,
        n_features: usize,
        hidden: &[usize],
        n_outputs: usize,
        heads: usize,
    ) -> Block {
        let room = |n: usize| AlignedVec::zeros(n_rows * stride(n));
        let hidden = hidden.iter().map(|&width| HiddenRows {
            stride: stride(width),
            inner: room(width),
            inverse: vec![0.0; n_rows],
            outer: room(width),
            gradient: room(width),
        });
        Block {
            inputs: room(n_features),
            input_stride: stride(n_features),
            hidden: hidden.collect(),
            outputs: room(n_outputs * heads),
            output_stride: stride(n_outputs * heads),
            losses: vec![RowLoss::default(); n_rows * heads],
            ..Block::default()
        }
    }

    /// What layer `layer` takes; `apart` are the batch's rows where they were not copied.
    pub(super) fn input_of<'b>(&'b self, layer: usize, apart: &'b [&'b [f32]]) -> Matrix<'b> {
        match layer.checked_sub(1) {
            None if !apart.is_empty() => Matrix::apart(&apart[self.first..][..self.n]),
            None => Matrix::even(&self.inputs, self.input_stride, self.n),
            Some(before) => {
                let rows = &self.hidden[before];
                Matrix::even(&rows.outer, rows.stride, self.n)
            }
        }
    }

    /// The gradient by what layer `layer` gives.
    pub(super) fn residual_of(&self, layer: usize) -> Matrix<'_> {
        match self.hidden.get(layer) {
            None => Matrix::even(&self.outputs, self.output_stride, self.n),
            Some(rows) => Matrix::even(&rows.gradient, rows.stride, self.n),
        }
    }

    /// Takes rows `first..first + n` of a batch, and copies them where they are not read where they lie.
    pub(super) fn fill(&mut self, arch: Arch, batch: &Batch<'_>, apart: &[&[f32]], first: usize, n: usize) {
        (self.first, self.n) = (first, n);
        if apart.is_empty() {
            arch.dispatch(Fill { block: self, batch });
        } else {
            self.largest_input = batch.source.features.largest().max(1.0);
        }
    }

    /// Notes how large the products of a layer's gradient can be.
    pub(super) fn measure(&mut self, arch: Arch) {
        let mut largest = std::mem::take(&mut self.largest);
        largest.clear();
        let of = |matrix: Matrix<'_>| {
            let (values, stride) = matrix.as_even().expect("in this block");
            arch.dispatch(MaxAbs(&values[..matrix.n * stride]))
        };
        for layer in 0..=self.hidden.len() {
            let input = if layer == 0 {
                self.largest_input
            } else {
                of(self.input_of(layer, &[]))
            };
            largest.push(input * of(self.residual_of(layer)));
        }
        self.largest = largest;
    }
}

struct MaxAbs<'m>(&'m [f32]);

impl pulp::NullaryFnOnce for MaxAbs<'_> {
    type Output = f32;

    #[inline(always)]
    fn call(self) -> f32 {
        max_abs(self.0)
    }
}

struct Fill<'f> {
    block: &'f mut Block,
    batch: &'f Batch<'f>,
}

impl pulp::NullaryFnOnce for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Fill { block, batch } = self;
        let d = batch.source.features.n_features();
        block.largest_input = 0.0;
        let rows = block.inputs.chunks_exact_mut(block.input_stride);
        for (i, to) in rows.take(block.n).enumerate() {
            let at = block.first + i;
            batch
                .source
                .write(batch.rows[at], &mut block.scratch, &mut to[..d]);
            if let Some((share, partner)) = batch.mixed(at) {
                block.other.resize(d, 0.0);
                batch.source.write(partner, &mut block.scratch, &mut block.other);
                for (x, other) in to.iter_mut().zip(&block.other) {
                    *x = share.mul_add(*x - other, *other);
                }
            }
            if let Some(Changes {
                step,
                noise: Some((deviation, counter)),
                ..
            }) = batch.changes
            {
                for (place, x) in to[..d].chunks_mut(AT_ONCE).enumerate() {
                    let normal = counter.normal(step, at as u32, place as u32);
                    for (x, normal) in x.iter_mut().zip(normal) {
                        *x = deviation.mul_add(normal, *x);
                    }
                }
            }
            to[d] = 1.0;
            // While the row is at hand; one that is not a number stays the largest.
            block.largest_input = max_abs(&[block.largest_input, max_abs(to)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_is_standard_and_folds() {
        let features = Features::new(vec![1.0, 5.0, -2.0, 3.0, 5.0, 4.0, 8.0, 5.0, 1.0], 3).unwrap();
        let scale = Scale::new(&features);
        let targets = Targets::Classes(vec![0, 1, 0]);
        let source = Source {
            features: &features,
            targets: &targets,
            scale: Some(&scale),
        };
        let mut out = [[0.0f32; 3]; 3];
        (0..3).for_each(|row| source.write(row, &mut Vec::new(), &mut out[row]));
        for column in [0, 2] {
            let values = [0, 1, 2].map(|row| out[row][column]);
            assert!(values.iter().sum::<f32>().abs() < 1e-6);
            assert!((values.iter().map(|v| v * v).sum::<f32>() - 3.0).abs() < 1e-5);
        }
        assert_eq!([0, 1, 2].map(|row| out[row][1]), [0.0; 3]);
        let (mut weight, mut bias) = (vec![0.5, -1.0, 2.0], vec![0.25]);
        let scaled: f32 = out[2].iter().zip(&weight).map(|(x, w)| x * w).sum::<f32>() + bias[0];
        scale.fold(&mut weight, &mut bias);
        let given = [8.0, 5.0, 1.0]
            .iter()
            .zip(&weight)
            .map(|(x, w)| x * w)
            .sum::<f32>()
            + bias[0];
        assert!((given - scaled).abs() < 1e-5);
        scale.unfold(&mut weight, &mut bias);
        assert!((weight[2] - 2.0).abs() < 1e-6 && (bias[0] - 0.25).abs() < 1e-5);
    }

    #[test]
    fn mixed_rows_and_their_targets_agree() {
        let features = Features::new(vec![1.0, 2.0, 3.0, 4.0], 1).unwrap();
        let targets = Targets::dense(vec![1.0, 2.0, 3.0, 4.0], 1).unwrap();
        let source = Source {
            features: &features,
            targets: &targets,
            scale: None,
        };
        let changes = Changes {
            step: 0,
            noise: None,
            mixup: Some((0.25, &[1, 0])),
        };
        let batch = Batch {
            source,
            rows: &[3, 1],
            changes: Some(changes),
        };
        let mut block = Block::new(2, 1, &[], 1, 1);
        block.fill(Arch::new(), &batch, &[], 0, 2);
        for at in 0..2 {
            let mut numbers = Vec::new();
            let Wanted::Numbers(wanted) = source.wanted(batch.rows[at], batch.mixed(at), &mut numbers) else {
                unreachable!("dense targets")
            };
            assert_eq!(wanted[0], block.inputs[at * 16]);
            assert_eq!(block.inputs[at * 16 + 1], 1.0);
        }
        assert_eq!(block.inputs[0], 2.5);
    }
}
