//! Pillow's resize, bit for bit, for the part of the picture that the crop keeps, row by row.
//!
//! Source of the arithmetic: Pillow's `Resample.c`. Coefficients are computed in f64, normalised, and rounded to 22
//! fractional bits; the first pass rounds to bytes, then comes the second one. The horizontal pass is the first, unless
//! the height shrinks much more than the width (see [`vertical_first`]). Rows come in from the top, and only those are
//! held that the next output row reads.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod taps;
#[cfg(target_arch = "x86_64")]
mod vnni;

pub(super) use taps::{Axis, TapsCache};

use std::ops::Range;
use std::sync::Arc;

use super::filter::Interpolation;
use super::geometry::Plan;
use taps::{PRECISION_BITS, Taps};

/// Bytes of a pixel: red, green, blue, and one that makes it a 32-bit lane.
pub(super) const PIXEL: usize = 4;

/// Buffers and tables that outlive a picture.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    taps: TapsCache,
    /// Rows that wait for the vertical pass.
    held: Vec<u8>,
    /// One row behind the vertical pass.
    line: Vec<u8>,
    /// One row behind both.
    finished: Vec<u8>,
    /// A copy of a row that vector loads would leave.
    tail: Vec<u8>,
}

impl Buffers {
    /// Gives back what an unusually large picture took.
    pub(super) fn trim(&mut self, limit: usize) {
        for buffer in [&mut self.held, &mut self.line, &mut self.finished, &mut self.tail] {
            if buffer.capacity() > limit {
                *buffer = Vec::new();
            }
        }
    }
}

/// One picture on its way through both passes.
pub(super) struct Resampler<'b> {
    plan: Plan,
    /// An axis that keeps its size is not filtered: its rows or columns are copied.
    columns: Option<Arc<Taps>>,
    rows: Option<Arc<Taps>>,
    buffers: &'b mut Buffers,
    /// Source rows that are wanted, in the picture's own numbers.
    wanted: Range<usize>,
    /// The first source column that is wanted.
    first_wanted: usize,
    /// The next source row.
    next_in: usize,
    /// The next row of the window.
    next_out: usize,
    /// The source row that `held` begins with.
    held_from: usize,
    vertical_first: bool,
}

/// Whether the vertical pass comes before the horizontal one, as in Pillow since 13 (its pull request 9549): where the
/// height loses more than twice as many samples as the width does. Found by asking Pillow about 5,000 sizes.
fn vertical_first(plan: &Plan) -> bool {
    let lost_rows = plan.region.height.saturating_sub(plan.height);
    lost_rows > 0 && (plan.region.width <= plan.width || lost_rows > 2 * (plan.region.width - plan.width))
}

impl<'b> Resampler<'b> {
    pub(super) fn new(plan: Plan, filter: Interpolation, buffers: &'b mut Buffers) -> Resampler<'b> {
        let mut axis = |n_in, n_out, first, count| {
            (n_in != n_out).then(|| {
                buffers.taps.get(Axis {
                    filter,
                    n_in,
                    n_out,
                    first,
                    count,
                })
            })
        };
        let window = plan.window;
        let columns = axis(plan.region.width, plan.width, window.left, window.width);
        let rows = axis(plan.region.height, plan.height, window.top, window.height);
        let span = match &rows {
            None => window.top..window.top + window.height,
            Some(taps) => taps.span(),
        };
        let wanted = span.start + plan.region.top..span.end + plan.region.top;
        let first_column = match &columns {
            None => window.left,
            Some(taps) => taps.span().start,
        };
        buffers.held.clear();
        buffers.finished.resize(window.width * PIXEL, 0);
        Resampler {
            vertical_first: vertical_first(&plan) && columns.is_some(),
            plan,
            columns,
            rows,
            buffers,
            first_wanted: first_column + plan.region.left,
            next_in: wanted.start,
            held_from: wanted.start,
            wanted,
            next_out: 0,
        }
    }

    /// Source rows that must be given, in order.
    pub(super) fn wanted_rows(&self) -> Range<usize> {
        self.wanted.clone()
    }

    /// Source columns that are read.
    pub(super) fn wanted_columns(&self) -> Range<usize> {
        let window = self.plan.window;
        let span = match &self.columns {
            None => window.left..window.left + window.width,
            Some(taps) => taps.span(),
        };
        span.start + self.plan.region.left..span.end + self.plan.region.left
    }

    /// Bytes that a row should have beyond its last wanted column, lest it be copied.
    pub(super) fn slack(&self) -> usize {
        self.columns.as_ref().map_or(0, |taps| taps.reach() * PIXEL)
    }

    /// Takes the next `n_rows` source rows, `stride` bytes apart, which begin with column `first_column`, and hands out
    /// the rows of the window that are ready by then.
    pub(super) fn push(
        &mut self,
        source: &[u8],
        stride: usize,
        n_rows: usize,
        first_column: usize,
        sink: &mut impl FnMut(usize, &[u8]),
    ) {
        // Rows from their first wanted column.
        let source = &source[(self.first_wanted - first_column) * PIXEL..];
        let base = self.first_wanted - self.plan.region.left;
        let columns = self.columns.as_deref();
        let Some(rows) = self.rows.clone() else {
            for row in 0..n_rows {
                let buffers = &mut *self.buffers;
                filter_or_copy(
                    columns,
                    &source[row * stride..],
                    base,
                    &mut buffers.finished,
                    &mut buffers.tail,
                );
                sink(self.next_out, &buffers.finished);
                self.next_out += 1;
            }
            return;
        };
        let buffers = &mut *self.buffers;
        let row_bytes = match columns {
            Some(taps) if self.vertical_first => taps.span().len() * PIXEL,
            _ => self.plan.window.width * PIXEL,
        };
        let n_held = buffers.held.len();
        match columns {
            Some(taps) if !self.vertical_first => {
                buffers.held.resize(n_held + n_rows * row_bytes, 0);
                horizontal(
                    source,
                    stride,
                    n_rows,
                    base,
                    taps,
                    &mut buffers.held[n_held..],
                    &mut buffers.tail,
                );
            }
            _ => {
                for row in 0..n_rows {
                    buffers
                        .held
                        .extend_from_slice(&source[row * stride..][..row_bytes]);
                }
            }
        }
        self.next_in += n_rows;
        let top = self.plan.region.top;
        while let Some((start, n_taps)) = rows.windows.get(self.next_out)
            && start + n_taps + top <= self.next_in
        {
            let from = &buffers.held[(start + top - self.held_from) * row_bytes..];
            if self.vertical_first {
                // Behind the row there is room for what vector loads read beside it.
                let slack = columns.map_or(0, |taps| taps.reach() * PIXEL);
                buffers.line.resize(row_bytes + slack, 0);
                column_sums(
                    from,
                    row_bytes,
                    &rows,
                    self.next_out,
                    &mut buffers.line[..row_bytes],
                );
                filter_or_copy(
                    columns,
                    &buffers.line,
                    base,
                    &mut buffers.finished,
                    &mut buffers.tail,
                );
            } else {
                column_sums(from, row_bytes, &rows, self.next_out, &mut buffers.finished);
            }
            sink(self.next_out, &buffers.finished);
            self.next_out += 1;
        }
        // Rows that nothing reads any more go, once they are more than those that stay.
        if let Some((start, _)) = rows.windows.get(self.next_out) {
            let (n_gone, n_held) = (start + top - self.held_from, self.next_in - self.held_from);
            if n_gone > 16 && n_gone * 2 > n_held {
                buffers.held.drain(..n_gone.min(n_held) * row_bytes);
                self.held_from += n_gone.min(n_held);
            }
        }
    }
}

/// The horizontal pass of one row, or its absence.
fn filter_or_copy(columns: Option<&Taps>, row: &[u8], base: usize, out: &mut [u8], tail: &mut Vec<u8>) {
    match columns {
        None => out.copy_from_slice(&row[..out.len()]),
        Some(taps) => horizontal(row, row.len(), 1, base, taps, out, tail),
    }
}

/// Filters `n_rows` rows along x into rows of one pixel per output sample. Rows begin with sample `base` of the region.
fn horizontal(
    source: &[u8],
    stride: usize,
    n_rows: usize,
    base: usize,
    taps: &Taps,
    out: &mut [u8],
    tail: &mut Vec<u8>,
) {
    let out_bytes = taps.windows.len() * PIXEL;
    #[cfg(target_arch = "x86_64")]
    if avx2::is_available() {
        let n_bytes = (taps.span().end - base + taps.reach()) * PIXEL;
        // Rows that vector loads do not leave; the last of a picture may be too near to its end.
        let n_safe = (0..n_rows)
            .take_while(|row| row * stride + n_bytes <= source.len())
            .count();
        let mut row = 0;
        while vnni::is_available() && taps.has_digits && row + 1 < n_safe {
            let count = (n_safe - row).min(vnni::ROWS);
            let rows: [&[u8]; vnni::ROWS] =
                std::array::from_fn(|offset| &source[(row + offset.min(count - 1)) * stride..]);
            vnni::horizontal(&rows[..count], base, taps, &mut out[row * out_bytes..], out_bytes);
            row += count;
        }
        for row in row..n_rows {
            let out = &mut out[row * out_bytes..][..out_bytes];
            let row = &source[row * stride..];
            if row.len() >= n_bytes {
                avx2::horizontal(row, base, taps, out);
            } else {
                tail.clear();
                tail.extend_from_slice(row);
                tail.resize(n_bytes, 0);
                avx2::horizontal(tail, base, taps, out);
            }
        }
        return;
    }
    let _ = tail;
    for row in 0..n_rows {
        horizontal_scalar(
            &source[row * stride..],
            base,
            taps,
            &mut out[row * out_bytes..][..out_bytes],
        );
    }
}

/// Output row `out_idx` as the weighted sum of the rows of its window, which `source` begins with.
fn column_sums(source: &[u8], row_bytes: usize, taps: &Taps, out_idx: usize, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if vnni::is_available() && taps.has_digits {
        let n_rows = taps.windows[out_idx].1;
        vnni::column_sums(source, row_bytes, taps.digits_of(out_idx), n_rows, out);
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if avx2::is_available() {
        avx2::column_sums(source, row_bytes, taps.weights_of(out_idx), out);
        return;
    }
    column_sums_scalar(source, row_bytes, taps.weights_of(out_idx), out);
}

fn horizontal_scalar(row: &[u8], base: usize, taps: &Taps, out: &mut [u8]) {
    for (out_idx, pixel) in out.chunks_exact_mut(PIXEL).enumerate() {
        let (start, n_taps) = taps.windows[out_idx];
        let mut sums = [1i32 << (PRECISION_BITS - 1); PIXEL];
        let samples = row[(start - base) * PIXEL..(start - base + n_taps) * PIXEL].chunks_exact(PIXEL);
        for (sample, &weight) in samples.zip(taps.weights_of(out_idx)) {
            for (sum, &value) in sums.iter_mut().zip(sample) {
                *sum += i32::from(value) * weight;
            }
        }
        for (byte, sum) in pixel.iter_mut().zip(sums) {
            *byte = (sum >> PRECISION_BITS).clamp(0, 255) as u8;
        }
    }
}

fn column_sums_scalar(source: &[u8], row_bytes: usize, weights: &[i32], out: &mut [u8]) {
    for (x, byte) in out.iter_mut().enumerate() {
        let mut sum = 1i32 << (PRECISION_BITS - 1);
        for (row, &weight) in weights.iter().enumerate() {
            sum += i32::from(source[row * row_bytes + x]) * weight;
        }
        *byte = (sum >> PRECISION_BITS).clamp(0, 255) as u8;
    }
}

#[cfg(test)]
mod tests;
