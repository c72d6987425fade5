//! A linear layer in training: weights in panels, and beside each what the optimiser keeps.
//!
//! Biases are weights of an input that is always one, so that every row of inputs is followed by a 1 and by zeros up to a
//! multiple of sixteen, and nothing below knows of biases.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::kernel::{Dot, LANES, Matrix, OUTER_HEIGHT, OUTER_PANELS, Outer};
use super::optimiser::{Rule, Scalars, State};
use super::parts::{GATHERED_PANELS, Grid, Part, Spans};
use crate::awake;
use crate::panels::{Place, Product};
use crate::scratch::{self, AlignedVec};

/// Outputs of a head below which lanes are filled by its inputs instead: sixteen lanes for two classes would be mostly idle.
pub(super) const NARROW: usize = 13;

/// Numbers from one row to the next where a row has `n` and a one.
pub(super) fn stride(n: usize) -> usize {
    (n + 1).next_multiple_of(LANES)
}

/// Which of the arrays beside each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Array {
    Weights,
    FirstMoment,
    SecondMoment,
    Ema,
}

impl Array {
    pub(super) const ALL: [Array; 4] = [
        Array::Weights,
        Array::FirstMoment,
        Array::SecondMoment,
        Array::Ema,
    ];
}

#[derive(Debug, Clone)]
pub(super) struct Dense {
    pub(super) n_in: usize,
    pub(super) n_out: usize,
    /// Panels over the inputs, `[stride / 16, n_out, 16]`; else over the outputs, `[⌈n_out / 16⌉, stride, 16]`.
    is_narrow: bool,
    m: usize,
    n_panels: usize,
    arrays: [AlignedVec; 4],
    /// Where it must be known whole before the update.
    gradient: AlignedVec,
    /// Panels over the inputs of a layer that is not narrow: `[stride / 16, n_out, 16]`.
    transposed: AlignedVec,
}

/// What one call learns from.
#[derive(Clone, Copy)]
pub(super) struct Lesson<'l> {
    pub(super) arch: Arch,
    pub(super) is_parallel: bool,
    pub(super) rule: &'l Rule,
    /// One for all, or one per panel (per head of a narrow layer).
    pub(super) scalars: &'l [Scalars],
    /// Outputs of each head.
    pub(super) n_outputs: usize,
}

impl Dense {
    /// All zero; `is_narrow` where the lanes are inputs.
    pub(super) fn new(n_in: usize, n_out: usize, is_narrow: bool, n_moments: usize, has_ema: bool) -> Dense {
        let k = stride(n_in);
        let (m, n_panels) = if is_narrow {
            (n_out, k / LANES)
        } else {
            (k, n_out.div_ceil(LANES))
        };
        let array = |is_there: bool| AlignedVec::zeros(if is_there { m * n_panels * LANES } else { 0 });
        Dense {
            n_in,
            n_out,
            is_narrow,
            m,
            n_panels,
            arrays: [
                array(true),
                array(n_moments > 0),
                array(n_moments > 1),
                array(has_ema),
            ],
            gradient: AlignedVec::default(),
            transposed: AlignedVec::default(),
        }
    }

    /// Whether the lanes of its panels are inputs.
    pub(super) fn is_narrow(&self) -> bool {
        self.is_narrow
    }

    /// Whether it takes rows without a one behind them.
    pub(super) fn takes_rows_apart(&self) -> bool {
        self.is_narrow && self.n_in.is_multiple_of(LANES)
    }

    /// Panels of sixteen outputs, or of sixteen inputs where it is narrow.
    pub(super) fn n_panels(&self) -> usize {
        self.n_panels
    }

    fn at(&self, output: usize, input: usize) -> usize {
        if self.is_narrow {
            ((input / LANES) * self.m + output) * LANES + input % LANES
        } else {
            ((output / LANES) * self.m + input) * LANES + output % LANES
        }
    }

    /// Whether the optimiser or the average keeps this.
    pub(super) fn has(&self, array: Array) -> bool {
        !self.arrays[array as usize].is_empty()
    }

    /// Copies outputs `outputs` in torch's layout: `weight [n, D]`, then `bias [n]`.
    pub(super) fn export(&self, array: Array, outputs: Range<usize>) -> Vec<f32> {
        let values = &self.arrays[array as usize];
        let mut out = Vec::with_capacity(outputs.len() * (self.n_in + 1));
        for output in outputs.clone() {
            out.extend((0..self.n_in).map(|input| values[self.at(output, input)]));
        }
        out.extend(outputs.map(|output| values[self.at(output, self.n_in)]));
        out
    }

    /// The other way round.
    pub(super) fn import(&mut self, array: Array, outputs: Range<usize>, from: &[f32]) {
        let (weight, bias) = from.split_at(outputs.len() * self.n_in);
        for (row, output) in outputs.enumerate() {
            for input in 0..self.n_in {
                let at = self.at(output, input);
                self.arrays[array as usize][at] = weight[row * self.n_in + input];
            }
            let at = self.at(output, self.n_in);
            self.arrays[array as usize][at] = bias[row];
        }
    }

    /// `out[b, :n_out]` for the rows of `x`; behind that, up to the next multiple of sixteen, zeros where it is not narrow.
    pub(super) fn forward(&self, arch: Arch, x: Matrix<'_>, out: &mut [f32], out_stride: usize) {
        if self.is_narrow {
            for span in 0..self.n_spans() {
                arch.dispatch(self.dot(x, span, out, out_stride, span > 0));
            }
        } else {
            arch.dispatch(product(x, &self.arrays[0], self.m, out, out_stride));
        }
    }

    /// What one span of the inputs of a narrow layer adds to [`forward`](Dense::forward).
    pub(super) fn forward_span(
        &self,
        arch: Arch,
        x: Matrix<'_>,
        span: usize,
        out: &mut [f32],
        out_stride: usize,
    ) {
        arch.dispatch(self.dot(x, span, out, out_stride, false));
    }

    fn dot<'d>(
        &'d self,
        a: Matrix<'d>,
        span: usize,
        out: &'d mut [f32],
        out_stride: usize,
        is_added: bool,
    ) -> Dot<'d> {
        let spans = Spans::new(self.n_panels);
        let panels = spans.begin(span)..spans.begin(span + 1);
        let size = self.m * LANES;
        Dot {
            a,
            first: panels.start,
            panels: &self.arrays[0][panels.start * size..panels.end * size],
            is_added,
            m: self.m,
            out,
            out_stride,
        }
    }

    /// Spans of the inputs of a narrow layer, whose sums are added in this order.
    pub(super) fn n_spans(&self) -> usize {
        Spans::new(self.n_panels).n
    }

    /// `out[b, :n_in] = r · weight` for residuals `r [b, n_out]`; behind that up to the stride are numbers without meaning.
    pub(super) fn backward(&self, arch: Arch, r: Matrix<'_>, out: &mut [f32], out_stride: usize) {
        let panels = if self.is_narrow {
            &self.arrays[0][..]
        } else {
            &self.transposed[..]
        };
        arch.dispatch(product(r, panels, self.n_out, out, out_stride));
    }

    /// Makes what [`backward`](Dense::backward) reads; needed after each change of the weights.
    pub(super) fn transpose(&mut self) {
        if self.is_narrow {
            return;
        }
        let k = stride(self.n_in);
        if self.transposed.is_empty() {
            self.transposed = AlignedVec::zeros(k * self.n_out);
        }
        let weights = &self.arrays[0];
        for (panel, out) in self.transposed.chunks_exact_mut(self.n_out * LANES).enumerate() {
            for (output, out) in out.chunks_exact_mut(LANES).enumerate() {
                let from = &weights[((output / LANES) * k + panel * LANES) * LANES + output % LANES..];
                out.iter_mut()
                    .zip(from.iter().step_by(LANES))
                    .for_each(|(to, from)| *to = *from);
            }
        }
    }

    fn state(&mut self) -> State<'_> {
        let [weights, first, second, ema] = &mut self.arrays;
        State {
            weights,
            moments: [first, second],
            ema,
        }
    }

    /// Updates the weights by the gradient of `pairs` (inputs and residuals), which is never written down.
    pub(super) fn learn<'m, I>(&mut self, lesson: Lesson<'_>, pairs: I)
    where
        I: Iterator<Item = (Matrix<'m>, Matrix<'m>)> + Clone + Sync,
    {
        let grid = self.grid(lesson.is_parallel);
        let strips = Strips::new(grid, pairs.clone());
        grid.walk(self.state(), &|part| {
            lesson.arch.dispatch(Learn {
                part,
                pairs: pairs.clone(),
                strips: strips.as_ref(),
                lesson: Some(lesson),
            });
        });
    }

    /// Writes the gradient of `pairs` down.
    pub(super) fn differentiate<'m, I>(&mut self, arch: Arch, is_parallel: bool, pairs: I)
    where
        I: Iterator<Item = (Matrix<'m>, Matrix<'m>)> + Clone + Sync,
    {
        let grid = self.grid(is_parallel);
        if self.gradient.is_empty() {
            self.gradient = AlignedVec::zeros(self.arrays[0].len());
        }
        let strips = Strips::new(grid, pairs.clone());
        let state = State {
            weights: &mut self.gradient,
            ..State::nothing()
        };
        grid.walk(state, &|part| {
            arch.dispatch(Learn {
                part,
                pairs: pairs.clone(),
                strips: strips.as_ref(),
                lesson: None,
            });
        });
    }

    /// Updates the weights by the gradient that was written down.
    pub(super) fn apply(&mut self, lesson: Lesson<'_>) {
        let grid = self.grid(lesson.is_parallel);
        let gradient = std::mem::take(&mut self.gradient);
        grid.walk(self.state(), &|part| {
            lesson.arch.dispatch(Apply {
                part,
                gradient: &gradient,
                lesson,
            });
        });
        self.gradient = gradient;
    }

    /// Per output the sum of the squares of the gradient that was written down.
    pub(super) fn squares(&self) -> Vec<f64> {
        let mut sums = vec![0.0; self.n_out];
        for (panel, rows) in self.gradient.chunks_exact(self.m * LANES).enumerate() {
            for (row, lanes) in rows.chunks_exact(LANES).enumerate() {
                let squares = lanes.iter().map(|g| f64::from(*g) * f64::from(*g));
                if self.is_narrow {
                    sums[row] += squares.sum::<f64>();
                } else {
                    let outputs = sums[panel * LANES..].iter_mut();
                    outputs.zip(squares).for_each(|(sum, square)| *sum += square);
                }
            }
        }
        sums
    }

    /// Forgets the gradient of some outputs.
    pub(super) fn forget(&mut self, outputs: Range<usize>) {
        for output in outputs {
            for input in 0..=self.n_in {
                let at = self.at(output, input);
                self.gradient[at] = 0.0;
            }
        }
    }

    fn grid(&self, is_parallel: bool) -> Grid {
        Grid {
            m: self.m,
            n_panels: self.n_panels,
            is_narrow: self.is_narrow,
            is_parallel,
        }
    }
}

/// `out[b, :] = x[b, :depth] · panels`, sixteen columns a panel.
fn product<'p>(
    x: Matrix<'p>,
    panels: &'p [f32],
    depth: usize,
    out: &'p mut [f32],
    out_stride: usize,
) -> Product<'p> {
    let (a, a_row) = x.as_even().expect("only narrow layers take rows that lie apart");
    Product {
        a,
        a_row,
        a_panel: LANES,
        n_rows: x.n,
        depth,
        b: panels,
        b_panel: depth * LANES,
        out,
        place: Place {
            row: out_stride,
            panel: LANES,
            n_columns: panels.len() / depth,
            is_added: false,
        },
    }
}

impl Part<'_> {
    /// Updates `height` rows of a panel.
    #[inline(always)]
    fn update<S: Simd>(&mut self, simd: S, lesson: Lesson<'_>, panel: usize, row: usize, gradient: &[f32]) {
        let at = self.at(panel, row);
        let mut state = self.state.part(at, gradient.len());
        match lesson.scalars {
            [one] => lesson.rule.update(simd, |_| one, &mut state, gradient),
            all if self.grid.is_narrow => {
                let n = lesson.n_outputs as u32;
                let of_row = |i: usize| &all[((row + i) as u32 / n) as usize];
                lesson.rule.update(simd, of_row, &mut state, gradient);
            }
            all => lesson.rule.update(simd, |_| &all[panel], &mut state, gradient),
        }
    }
}

/// The inputs' side of pairs (of a narrow layer the residuals'), sixteen columns after the other: `[⌈m / 16⌉, n, 16]`.
/// Where several parts read it, it is worth being brought together.
struct Strips {
    room: scratch::Room,
    n: usize,
}

impl Strips {
    fn new<'m>(
        grid: Grid,
        pairs: impl Iterator<Item = (Matrix<'m>, Matrix<'m>)> + Clone + Sync,
    ) -> Option<Strips> {
        let n = pairs.clone().map(|(x, _)| x.n).sum::<usize>();
        if grid.n_panels <= GATHERED_PANELS || grid.m <= 2 * OUTER_HEIGHT || n < OUTER_HEIGHT {
            return None;
        }
        let mut room = scratch::take(n * grid.m);
        let strip = |(idx, out): (usize, &mut [f32])| {
            let sides = pairs.clone().map(|(x, r)| if grid.is_narrow { r } else { x });
            gather(sides, idx * OUTER_HEIGHT, out.len() / n, out);
        };
        let size = n * OUTER_HEIGHT;
        if grid.is_parallel {
            awake::for_each(room.as_mut().chunks_mut(size).enumerate(), strip);
        } else {
            room.as_mut().chunks_mut(size).enumerate().for_each(strip);
        }
        Some(Strips { room, n })
    }

    /// The strip that begins with a row of the grid.
    fn of(&self, row: usize, height: usize) -> Matrix<'_> {
        let values = &self.room.as_ref()[row * self.n..][..height * self.n];
        Matrix::even(values, height, self.n)
    }
}

/// Columns from `at` on of matrices, one row after the other: what lies a row apart is read once and then lies together.
fn gather<'m>(matrices: impl Iterator<Item = Matrix<'m>>, at: usize, n_columns: usize, out: &mut [f32]) {
    let mut out = out.chunks_exact_mut(n_columns);
    for matrix in matrices {
        for row in 0..matrix.n {
            let from = &matrix.row(row)[at..][..n_columns];
            let to = out.next().expect("as many rows");
            let ((from, from_rest), (to, to_rest)) = (from.as_chunks::<LANES>(), to.as_chunks_mut());
            to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            to_rest.copy_from_slice(from_rest);
        }
    }
}

/// Room for what one [`Outer`] gives.
type Gradient = [f32; OUTER_PANELS * OUTER_HEIGHT * LANES];

/// Gradients of a part, a few rows at a time; without a lesson they take the weights' place.
struct Learn<'l, I> {
    part: Part<'l>,
    pairs: I,
    strips: Option<&'l Strips>,
    lesson: Option<Lesson<'l>>,
}

impl<'m, I: Iterator<Item = (Matrix<'m>, Matrix<'m>)> + Clone> WithSimd for Learn<'_, I> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Learn {
            mut part,
            pairs,
            strips,
            lesson,
        } = self;
        let is_narrow = part.grid.is_narrow;
        let mut gradient: Gradient = [0.0; _];
        let pairs = pairs.map(|(x, r)| if is_narrow { (r, x) } else { (x, r) });
        // What is behind rows that lie apart is the last panel of a narrow layer.
        let is_apart = pairs.clone().any(|(_, b)| b.is_apart());
        let end = part.grid.n_panels - usize::from(is_apart);
        let all = part.panels.clone();
        for (panels, is_behind) in [
            (all.start..all.end.min(end), false),
            (all.start.max(end)..all.end, true),
        ] {
            let pairs = pairs
                .clone()
                .map(|(a, b)| if is_behind { (a, Matrix::ones(b.n)) } else { (a, b) });
            let first = if is_behind { panels.start } else { 0 };
            let Some(strips) = strips else {
                // A strip is small and is used for all panels before the next one's turn.
                for row in part.rows.clone().step_by(OUTER_HEIGHT) {
                    for panel in panels.clone().step_by(OUTER_PANELS) {
                        part.strip(
                            simd,
                            lesson,
                            pairs.clone(),
                            (row, panel..panels.end.min(panel + OUTER_PANELS)),
                            [row, (panel - first) * LANES],
                            &mut gradient,
                        );
                    }
                }
                continue;
            };
            let n = strips.n;
            let mut room = scratch::take(n * GATHERED_PANELS * LANES);
            for panel in panels.clone().step_by(GATHERED_PANELS) {
                let panels = panel..panels.end.min(panel + GATHERED_PANELS);
                let width = panels.len() * LANES;
                let b = &mut room.as_mut()[..n * width];
                gather(pairs.clone().map(|(_, b)| b), (panel - first) * LANES, width, b);
                let b = Matrix::even(b, width, n);
                // Rows of a panel lie one after the other, and so do their weights and moments.
                for row in part.rows.clone().step_by(OUTER_HEIGHT) {
                    let a = strips.of(row, OUTER_HEIGHT.min(part.grid.m - row));
                    part.strip(
                        simd,
                        lesson,
                        std::iter::once((a, b)),
                        (row, panels.clone()),
                        [0, 0],
                        &mut gradient,
                    );
                }
            }
        }
    }
}

impl Part<'_> {
    /// The gradient of some rows of some panels, and what comes of it; `at` is where they stand in the pairs.
    #[inline(always)]
    fn strip<'m, S: Simd>(
        &mut self,
        simd: S,
        lesson: Option<Lesson<'_>>,
        pairs: impl Iterator<Item = (Matrix<'m>, Matrix<'m>)> + Clone,
        (row, panels): (usize, Range<usize>),
        [a_at, b_at]: [usize; 2],
        room: &mut Gradient,
    ) {
        let height = OUTER_HEIGHT.min(self.rows.end - row);
        let n_panels = panels.len();
        let out = &mut room[..n_panels * height * LANES];
        Outer {
            pairs,
            a_at,
            b_at,
            height,
            n_panels,
            out: &mut *out,
        }
        .with_simd(simd);
        for (panel, gradient) in panels.zip(out.chunks_exact(height * LANES)) {
            match lesson {
                Some(lesson) => self.update(simd, lesson, panel, row, gradient),
                None => {
                    let at = self.at(panel, row);
                    self.state.weights[at..at + gradient.len()].copy_from_slice(gradient);
                }
            }
        }
    }
}

struct Apply<'l> {
    part: Part<'l>,
    gradient: &'l [f32],
    lesson: Lesson<'l>,
}

impl WithSimd for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Apply {
            mut part,
            gradient,
            lesson,
        } = self;
        let (first, n) = (part.rows.start, part.rows.len());
        for panel in part.panels.clone() {
            let at = (panel * part.grid.m + first) * LANES;
            part.update(simd, lesson, panel, first, &gradient[at..at + n * LANES]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_do_not_depend_on_how_their_inputs_are_brought_together() {
        // Inputs of many outputs are gathered into strips, those of a few outputs are read where they lie.
        let (n, n_in, n_out) = (37, 70, 5 * LANES + 7);
        let (k, stride_out) = (stride(n_in), n_out.next_multiple_of(LANES));
        let numbers = |n: usize, seed: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * seed) % 1009) as f32 / 504.5 - 1.0).collect()
        };
        let (x, r) = (numbers(n * k, 31), numbers(n * stride_out, 57));
        fn matrix(values: &[f32], stride: usize, n: usize) -> Matrix<'_> {
            Matrix::even(values, stride, n)
        }
        let gradient = |first: usize, n_out: usize, is_parallel: bool| {
            let mut dense = Dense::new(n_in, n_out, false, 0, false);
            let pair = |rows: Range<usize>| {
                let part = |values: &[f32], stride: usize, at: usize| -> Vec<f32> {
                    let rows = values.chunks_exact(stride).skip(rows.start).take(rows.len());
                    rows.flat_map(|row| row[at..].iter().copied()).collect()
                };
                (part(&x, k, 0), part(&r, stride_out, first), rows.len())
            };
            // As two blocks of rows.
            let blocks = [pair(0..20), pair(20..n)];
            let pairs = blocks
                .iter()
                .map(|(x, r, n)| (matrix(&x[..], k, *n), matrix(&r[..], stride_out - first, *n)));
            dense.differentiate(Arch::new(), is_parallel, pairs);
            dense.gradient.to_vec()
        };
        let whole = gradient(0, n_out, false);
        assert_eq!(whole, gradient(0, n_out, true));
        for panel in 0..n_out.div_ceil(LANES) {
            let n_out = LANES.min(n_out - panel * LANES);
            let alone = gradient(panel * LANES, n_out, false);
            assert_eq!(alone, whole[panel * k * LANES..][..k * LANES], "panel {panel}");
        }
    }
}
