//! One step of a network: forward, back and on; and its losses on rows that it does not learn from.

use super::batch::{BLOCK_ROWS, Batch, Block, HiddenRows, wanted_class};
use super::config::{Norm, Optimiser};
use super::dense::{self, Lesson};
use super::hidden::{Dropout, Norms, Rows};
use super::kernel::{LANES, Matrix};
use super::loss::{Loss, Outputs, RowLoss};
use super::network::{Hidden, Network};
use super::optimiser::{HeadStep, Rule, Scalars, Update};
use crate::awake;
use crate::scratch;
use crate::targets::Targets;

/// A gradient of which one number could be larger is taken for one that is not finite: its square would overflow in Adam's
/// second moment, and its product with a learning rate in the weights.
const LARGEST: f32 = 1e18;

/// Work of a step from which on threads are worth it, also where their caches are far from each other: multiplications, and what
/// else takes as long.
const PARALLEL_FROM: usize = 3 << 20;

/// What a step is made with.
pub(super) struct Step<'s> {
    /// From 0 over all epochs.
    pub(super) step: usize,
    pub(super) loss: &'s Loss,
    pub(super) optimiser: Optimiser,
    pub(super) momentum: Option<f64>,
    pub(super) ema: Option<f64>,
    pub(super) clip_norm: Option<f64>,
    /// Learning rate and decay of each head; a head whose rate is none stands still.
    pub(super) heads: &'s [Option<(f64, f64)>],
}

/// What a step or an evaluation found, per head.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Totals {
    pub(super) losses: Vec<f64>,
    pub(super) n_right: Vec<u64>,
    /// What the losses are divided by.
    pub(super) denominator: f64,
}

/// Why a head cannot take a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotFinite {
    pub(super) head: usize,
    pub(super) what: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Train { step: u64 },
    Evaluate,
}

impl Totals {
    pub(super) fn new(heads: usize) -> Totals {
        Totals {
            losses: vec![0.0; heads],
            n_right: vec![0; heads],
            denominator: 0.0,
        }
    }

    /// Adds what a batch gave, row by row.
    fn add(&mut self, blocks: &[Block], heads: usize) {
        for block in blocks {
            for row in block.losses[..block.n * heads].chunks_exact(heads) {
                for (head, RowLoss { loss, n_right }) in row.iter().enumerate() {
                    self.losses[head] += loss;
                    self.n_right[head] += u64::from(*n_right);
                }
            }
        }
    }
}

impl Network {
    fn work(&self, n: usize) -> usize {
        /// Multiplications in the time that fetching a feature takes.
        const FETCH: usize = 16;
        let hidden = self
            .hidden
            .iter()
            .map(|hidden| hidden.dense.n_in * hidden.dense.n_out);
        let weights = hidden.sum::<usize>() + self.output.n_in * self.output.n_out;
        n * (2 * weights + FETCH * self.n_features())
    }

    fn n_features(&self) -> usize {
        let first = self.hidden.first().map_or(&self.output, |hidden| &hidden.dense);
        first.n_in
    }

    /// Whether a step with `n` rows is worth several threads.
    pub(super) fn is_parallel(&self, n: usize) -> bool {
        self.work(n) >= PARALLEL_FROM && rayon::current_num_threads() > 1
    }

    /// Rows of a block: as many as stay in the second cache from one product to the next, unless the weights are so many that
    /// they had better be read for more rows at once.
    fn block_rows(&self, apart: bool, is_parallel: bool) -> usize {
        /// What is read where it lies.
        const SHARED: usize = 32;
        const NEAR: usize = 1 << 15;
        const MANY_WEIGHTS: usize = 1 << 16;
        const LEAST: usize = 12;
        let width = dense::stride(self.output.n_in);
        if apart && is_parallel {
            SHARED
        } else if apart || !self.hidden.is_empty() || self.output.n_out * width > MANY_WEIGHTS {
            BLOCK_ROWS
        } else {
            (NEAR / width).clamp(LEAST, BLOCK_ROWS) / 2 * 2
        }
    }

    /// Sees that there are enough blocks for `n` rows in parts of `rows`.
    fn make_room(&mut self, n: usize, rows: usize) -> Vec<Block> {
        let mut blocks = std::mem::take(&mut self.blocks);
        let room = blocks
            .first()
            .map_or(0, |block| block.inputs.len() / block.input_stride);
        if room < rows || blocks.len() < n.div_ceil(rows) {
            let widths: Vec<usize> = self.hidden.iter().map(|hidden| hidden.dense.n_out).collect();
            let block = Block::new(rows, self.n_features(), &widths, self.n_outputs, self.heads);
            blocks = vec![block; n.div_ceil(rows)];
        }
        blocks
    }

    /// The rows of a batch where they lie, if the first layer takes them like that.
    fn rows_apart<'b>(&self, batch: &Batch<'b>) -> Vec<&'b [f32]> {
        let first = self.hidden.first().map_or(&self.output, |hidden| &hidden.dense);
        if first.takes_rows_apart() {
            batch.apart()
        } else {
            Vec::new()
        }
    }

    /// Makes a step with a batch. Nothing has changed where it gives an error.
    ///
    /// # Errors
    /// The first head whose loss or gradient is not finite.
    pub(super) fn step(
        &mut self,
        batch: &Batch<'_>,
        step: &Step<'_>,
        totals: &mut Totals,
    ) -> Result<(), NotFinite> {
        let n = batch.rows.len();
        let is_parallel = self.is_parallel(n);
        // Blocks only decide who computes what: numbers of different rows never meet but in sums in the rows' order.
        let threads = if is_parallel {
            rayon::current_num_threads()
        } else {
            1
        };
        let of_thread = n.div_ceil(threads);
        let apart = self.rows_apart(batch);
        let parts = of_thread.div_ceil(self.block_rows(!apart.is_empty(), is_parallel));
        let rows = of_thread.div_ceil(parts).next_multiple_of(4).min(BLOCK_ROWS);
        let mut buffer = self.make_room(n, rows);
        let blocks = &mut buffer[..n.div_ceil(rows)];
        let denominator = self.denominator(batch, step.loss);
        let mode = Mode::Train {
            step: step.step as u64,
        };
        self.forward(
            blocks,
            batch,
            &apart,
            rows,
            is_parallel,
            mode,
            step,
            (1.0 / denominator) as f32,
        );
        let checked = self.check_losses(blocks, step.heads);
        let outcome = checked.and_then(|()| {
            self.backward(blocks, is_parallel, step.step as u64);
            self.learn(blocks, &apart, is_parallel, step)
        });
        if outcome.is_ok() {
            totals.add(blocks, self.heads);
            totals.denominator += denominator;
        }
        self.blocks = buffer;
        outcome
    }

    /// The loss and what is right of all rows of a batch, which may be any number.
    pub(super) fn evaluate(&mut self, batch: &Batch<'_>, loss: &Loss) -> Totals {
        let mut totals = Totals::new(self.heads);
        let mut recalled = std::mem::take(&mut self.hidden);
        recalled
            .iter_mut()
            .filter_map(|hidden| hidden.norms.as_mut())
            .for_each(Norms::recall);
        self.hidden = recalled;
        let is_parallel = self.is_parallel(batch.rows.len());
        let step = Step {
            step: 0,
            loss,
            optimiser: Optimiser::sgd(0.0),
            momentum: None,
            ema: None,
            clip_norm: None,
            heads: &vec![Some((0.0, 0.0)); self.heads],
        };
        let at_once = BLOCK_ROWS * rayon::current_num_threads().max(1) * 2;
        for rows in batch.rows.chunks(at_once) {
            let part = Batch { rows, ..*batch };
            let mut buffer = self.make_room(rows.len(), BLOCK_ROWS.min(batch.rows.len()));
            let size = buffer[0].inputs.len() / buffer[0].input_stride;
            let blocks = &mut buffer[..rows.len().div_ceil(size)];
            let apart = self.rows_apart(&part);
            self.forward(
                blocks,
                &part,
                &apart,
                size,
                is_parallel,
                Mode::Evaluate,
                &step,
                1.0,
            );
            totals.add(blocks, self.heads);
            self.blocks = buffer;
        }
        // Row by row, so that threads do not show.
        totals.denominator += self.denominator(batch, loss);
        totals
    }

    fn denominator(&self, batch: &Batch<'_>, loss: &Loss) -> f64 {
        let mut numbers = Vec::new();
        let rows = batch.rows.iter().enumerate();
        rows.map(|(at, row)| loss.denominator(batch.source.wanted(*row, batch.mixed(at), &mut numbers)))
            .sum()
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a step, each used once")]
    fn forward(
        &mut self,
        blocks: &mut [Block],
        batch: &Batch<'_>,
        apart: &[&[f32]],
        rows: usize,
        is_parallel: bool,
        mode: Mode,
        step: &Step<'_>,
        scale: f32,
    ) {
        let n = batch.rows.len();
        let is_linear = self.hidden.is_empty();
        let n_spans = self.output.n_spans();
        if is_linear && is_parallel && !apart.is_empty() && n_spans > 1 {
            return self.forward_in_spans(blocks, batch, apart, rows, mode, step, scale);
        }
        each(blocks, is_parallel, |at, block| {
            let first = at * rows;
            block.fill(self.arch, batch, apart, first, rows.min(n - first));
            if is_linear {
                self.finish(block, batch, apart, step, scale, mode);
            }
        });
        for layer in 0..self.hidden.len() {
            each(blocks, is_parallel, |_, block| {
                let mut inner = std::mem::take(&mut block.hidden[layer].inner);
                let stride = block.hidden[layer].stride;
                self.hidden[layer]
                    .dense
                    .forward(self.arch, block.input_of(layer, apart), &mut inner, stride);
                block.hidden[layer].inner = inner;
            });
            if let (Mode::Train { .. }, Some(norms)) = (mode, &mut self.hidden[layer].norms)
                && norms.kind == Norm::Batch
            {
                let rows = blocks.iter().flat_map(|block| {
                    let rows = &block.hidden[layer];
                    rows.inner.chunks_exact(rows.stride).take(block.n)
                });
                norms.see(rows);
            }
            each(blocks, is_parallel, |_, block| {
                let (first, n, rows) = (block.first as u32, block.n, &mut block.hidden[layer]);
                let mut outer = std::mem::take(&mut rows.outer);
                self.view(rows, &mut outer, layer, first, n, mode).forward();
                rows.outer = outer;
                if layer + 1 == self.hidden.len() {
                    self.finish(block, batch, apart, step, scale, mode);
                }
            });
        }
    }

    /// As [`forward`](Network::forward) of a linear head: a thread takes some columns of the features and the weights, which
    /// it meets again in [`learn`](Network::learn), where other threads would have to fetch them from its cache.
    #[expect(clippy::too_many_arguments, reason = "the parts of a step, each used once")]
    fn forward_in_spans(
        &self,
        blocks: &mut [Block],
        batch: &Batch<'_>,
        apart: &[&[f32]],
        rows: usize,
        mode: Mode,
        step: &Step<'_>,
        scale: f32,
    ) {
        let (n, n_blocks, stride) = (batch.rows.len(), blocks.len(), blocks[0].output_stride);
        let size = rows * stride;
        // `[n_spans, n_blocks, rows, stride]`
        let mut sums = scratch::take(self.output.n_spans() * n_blocks * size);
        let items = sums.as_mut().chunks_exact_mut(size).enumerate();
        awake::for_each(items, |(at, out)| {
            let (span, first) = (at / n_blocks, at % n_blocks * rows);
            let x = Matrix::apart(&apart[first..n.min(first + rows)]);
            self.output.forward_span(self.arch, x, span, out, stride);
        });
        let sums = sums.as_ref();
        each(blocks, true, |at, block| {
            let first = at * rows;
            block.fill(self.arch, batch, apart, first, rows.min(n - first));
            for (span, sums) in sums.chunks_exact(n_blocks * size).enumerate() {
                let sums = sums[at * size..].chunks_exact(stride);
                for (out, sums) in block.outputs.chunks_exact_mut(stride).zip(sums).take(block.n) {
                    let pairs = out[..self.output.n_out].iter_mut().zip(sums);
                    if span == 0 {
                        pairs.for_each(|(out, sum)| *out = *sum);
                    } else {
                        pairs.for_each(|(out, sum)| *out += sum);
                    }
                }
            }
            self.judge(block, batch, step, scale, mode);
        });
    }

    fn view<'r>(
        &'r self,
        rows: &'r mut HiddenRows,
        outer: &'r mut [f32],
        layer: usize,
        first: u32,
        n: usize,
        mode: Mode,
    ) -> Rows<'r> {
        let Hidden { dense, norms } = &self.hidden[layer];
        let dropout = match (self.dropout, mode) {
            (Some((p, counter)), Mode::Train { step }) => Some(Dropout {
                counter,
                p,
                step,
                layer: layer as u32,
            }),
            _ => None,
        };
        Rows {
            arch: self.arch,
            norms: norms.as_ref(),
            activation: self.activation,
            dropout,
            n: dense.n_out,
            stride: rows.stride,
            first,
            inner: &mut rows.inner[..n * rows.stride],
            inverse: &mut rows.inverse,
            outer: &mut outer[..n * rows.stride],
        }
    }

    /// Logits, and from them losses and residuals.
    fn finish(
        &self,
        block: &mut Block,
        batch: &Batch<'_>,
        apart: &[&[f32]],
        step: &Step<'_>,
        scale: f32,
        mode: Mode,
    ) {
        let mut outputs = std::mem::take(&mut block.outputs);
        self.output.forward(
            self.arch,
            block.input_of(self.hidden.len(), apart),
            &mut outputs,
            block.output_stride,
        );
        block.outputs = outputs;
        self.judge(block, batch, step, scale, mode);
    }

    /// From logits to losses and residuals.
    fn judge(&self, block: &mut Block, batch: &Batch<'_>, step: &Step<'_>, scale: f32, mode: Mode) {
        self.arch.dispatch(Judge {
            network: self,
            block,
            batch,
            step,
            scale,
        });
        if mode != Mode::Evaluate && self.hidden.is_empty() {
            block.measure(self.arch);
        }
    }

    /// Sees that all losses are finite.
    fn check_losses(&self, blocks: &[Block], heads: &[Option<(f64, f64)>]) -> Result<(), NotFinite> {
        for block in blocks {
            for row in block.losses[..block.n * self.heads].chunks_exact(self.heads) {
                let mut losses = row.iter().zip(heads);
                let found = losses.position(|(row, head)| head.is_some() && !row.loss.is_finite());
                if let Some(head) = found {
                    return Err(NotFinite { head, what: "loss" });
                }
            }
        }
        Ok(())
    }

    /// From the residuals of the outputs to those of all layers.
    fn backward(&mut self, blocks: &mut [Block], is_parallel: bool, step: u64) {
        let mode = Mode::Train { step };
        for layer in (0..self.hidden.len()).rev() {
            each(blocks, is_parallel, |_, block| {
                let mut gradient = std::mem::take(&mut block.hidden[layer].gradient);
                let stride = block.hidden[layer].stride;
                let next = self
                    .hidden
                    .get(layer + 1)
                    .map_or(&self.output, |hidden| &hidden.dense);
                next.backward(self.arch, block.residual_of(layer + 1), &mut gradient, stride);
                let (first, n, rows) = (block.first as u32, block.n, &mut block.hidden[layer]);
                self.view(rows, &mut gradient, layer, first, n, mode).backward();
                rows.gradient = gradient;
            });
            if let Some(norms) = &mut self.hidden[layer].norms {
                let pairs = blocks.iter().flat_map(|block| {
                    let rows = &block.hidden[layer];
                    let gradients = rows.gradient.chunks_exact(rows.stride).take(block.n);
                    gradients.zip(rows.inner.chunks_exact(rows.stride))
                });
                norms.sum_up(pairs);
                each(blocks, is_parallel, |_, block| {
                    let (first, n, rows) = (block.first as u32, block.n, &mut block.hidden[layer]);
                    let mut gradient = std::mem::take(&mut rows.gradient);
                    self.view(rows, &mut gradient, layer, first, n, mode)
                        .backward_norm();
                    rows.gradient = gradient;
                });
            }
        }
        if !self.hidden.is_empty() {
            each(blocks, is_parallel, |_, block| block.measure(self.arch));
        }
    }

    /// Updates all weights.
    fn learn(
        &mut self,
        blocks: &[Block],
        apart: &[&[f32]],
        is_parallel: bool,
        step: &Step<'_>,
    ) -> Result<(), NotFinite> {
        let arch = self.arch;
        let rule = Rule::new(step.optimiser, step.momentum, step.step, step.ema);
        let n_rows = blocks.iter().map(|block| block.n).sum::<usize>() as f32;
        // No sum can be too large where even all its terms at their largest were not.
        let mut largest = blocks.iter().flat_map(|block| &block.largest);
        let is_safe = largest.all(|x| x * n_rows < LARGEST) && self.norms_are_small();
        let n_hidden = self.hidden.len();
        let pairs = |layer: usize| {
            blocks
                .iter()
                .map(move |block| (block.input_of(layer, apart), block.residual_of(layer)))
        };
        let mut clips = vec![1.0; if step.clip_norm.is_some() { self.heads } else { 0 }];
        let is_written = step.clip_norm.is_some() || !is_safe;
        if is_written {
            for layer in 0..n_hidden {
                self.hidden[layer]
                    .dense
                    .differentiate(arch, is_parallel, pairs(layer));
            }
            self.output.differentiate(arch, is_parallel, pairs(n_hidden));
            let squares = self.squares();
            for (head, square) in squares.iter().enumerate() {
                let is_small = square.sqrt() < f64::from(LARGEST);
                if !is_small && step.heads[head].is_some() {
                    return Err(NotFinite {
                        head,
                        what: "gradient",
                    });
                }
                if let Some(most) = step.clip_norm {
                    clips[head] = (most / (square.sqrt() + 1e-6)).min(1.0);
                }
                if step.heads[head].is_none() {
                    self.output
                        .forget(head * self.n_outputs..(head + 1) * self.n_outputs);
                }
            }
        }
        let of_head = |head: usize| {
            let (lr, weight_decay) = step.heads.get(head).copied().flatten().unwrap_or((0.0, 0.0));
            HeadStep {
                lr,
                weight_decay,
                clip: clips.get(head).copied().unwrap_or(1.0),
            }
        };
        self.prepare_scalars(step, &of_head);
        let one = [Rule::scalars(
            step.optimiser,
            step.momentum,
            step.step,
            of_head(0),
        )];
        let lesson = |scalars| Lesson {
            arch,
            is_parallel,
            rule: &rule,
            scalars,
            n_outputs: self.n_outputs,
        };
        for layer in 0..n_hidden {
            let Hidden { dense, norms } = &mut self.hidden[layer];
            if is_written {
                dense.apply(lesson(&one));
            } else {
                dense.learn(lesson(&one), pairs(layer));
            }
            if let Some(norms) = norms {
                let (state, gradient) = norms.state();
                arch.dispatch(Update {
                    rule: &rule,
                    scalars: &one[0],
                    state,
                    gradient,
                });
                if norms.kind == Norm::Batch {
                    norms.remember();
                }
            }
        }
        if is_written {
            self.output.apply(lesson(&self.scalars));
        } else {
            self.output.learn(lesson(&self.scalars), pairs(n_hidden));
        }
        self.transpose();
        Ok(())
    }

    /// One for all where there is one head, else one per head or panel.
    fn prepare_scalars(&mut self, step: &Step<'_>, of_head: &impl Fn(usize) -> HeadStep) {
        let of_heads: Vec<Scalars> = (0..self.heads)
            .map(|head| Rule::scalars(step.optimiser, step.momentum, step.step, of_head(head)))
            .collect();
        let (n, is_narrow) = (self.n_outputs, self.output.is_narrow());
        self.scalars.clear();
        match of_heads.as_slice() {
            [one] => self.scalars.push(*one),
            // A row of a narrow layer is one output.
            heads if is_narrow => self.scalars.extend_from_slice(heads),
            heads => {
                // Lanes behind the last output are of no head.
                let of_panel = |panel: usize| Scalars::of_lanes(|lane| heads.get((panel * LANES + lane) / n));
                self.scalars.extend((0..self.output.n_panels()).map(of_panel));
            }
        }
    }

    fn norms_are_small(&self) -> bool {
        let norms = self.hidden.iter().filter_map(|hidden| hidden.norms.as_ref());
        norms.flat_map(|norms| &norms.gradient).all(|g| g.abs() < LARGEST)
    }

    /// The squared norm of each head's gradient.
    fn squares(&self) -> Vec<f64> {
        let mut heads: Vec<f64> = self
            .output
            .squares()
            .chunks(self.n_outputs)
            .map(|outputs| outputs.iter().sum())
            .collect();
        for hidden in &self.hidden {
            let norms = hidden.norms.iter().flat_map(|norms| &norms.gradient);
            let norms: f64 = norms.map(|g| f64::from(*g) * f64::from(*g)).sum();
            heads[0] += hidden.dense.squares().iter().sum::<f64>() + norms;
        }
        heads
    }
}

/// Losses and residuals of a block.
struct Judge<'f> {
    network: &'f Network,
    block: &'f mut Block,
    batch: &'f Batch<'f>,
    step: &'f Step<'f>,
    scale: f32,
}

impl pulp::NullaryFnOnce for Judge<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Judge {
            network,
            block,
            batch,
            step,
            scale,
        } = self;
        let (heads, stride) = (network.heads, block.output_stride);
        let width = heads * network.n_outputs;
        for outputs in block.outputs.chunks_exact_mut(stride).take(block.n) {
            outputs[width..].fill(0.0);
        }
        let losses = &mut block.losses[..block.n * heads];
        let learns = |head: usize| step.heads[head].is_some();
        if let Targets::Classes(labels) = batch.source.targets {
            let outputs = Outputs {
                values: &mut block.outputs,
                stride,
                heads,
                losses,
            };
            let wanted = |row: usize| {
                let at = block.first + row;
                wanted_class(labels, batch.rows[at], batch.mixed(at))
            };
            step.loss.rows(outputs, scale, wanted, learns);
            return;
        }
        let rows = block
            .outputs
            .chunks_exact_mut(stride)
            .zip(losses.chunks_exact_mut(heads));
        for (at, (outputs, losses)) in (block.first..).zip(rows) {
            let wanted = batch
                .source
                .wanted(batch.rows[at], batch.mixed(at), &mut block.numbers);
            let heads = outputs[..width].chunks_exact_mut(network.n_outputs).zip(losses);
            for (head, (outputs, loss)) in heads.enumerate() {
                if learns(head) {
                    *loss = step.loss.row(outputs, wanted, scale);
                } else {
                    outputs.fill(0.0);
                    *loss = RowLoss::default();
                }
            }
        }
    }
}

/// Does something with each block and its place, on many threads where that is worth it.
fn each(blocks: &mut [Block], is_parallel: bool, f: impl Fn(usize, &mut Block) + Sync) {
    if is_parallel && blocks.len() > 1 {
        awake::for_each(blocks.iter_mut().enumerate(), |(at, block)| f(at, block));
    } else {
        blocks.iter_mut().enumerate().for_each(|(at, block)| f(at, block));
    }
}
