//! Pillow's resize, bit for bit, for the part of the picture that the crop keeps, row by row.
//!
//! Source of the arithmetic: Pillow's `Resample.c`. Coefficients are computed in f64, normalised, and rounded to 22
//! fractional bits; the horizontal pass comes first and rounds to bytes; then the vertical one. Rows come in from the
//! top, and of the rows that the horizontal pass makes only those are held that the next output row reads.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod taps;

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
    /// Rows after the horizontal pass.
    narrow: Vec<u8>,
    /// One finished row.
    line: Vec<u8>,
    /// A copy of a row that vector loads would leave.
    tail: Vec<u8>,
}

impl Buffers {
    /// Gives back what an unusually large picture took.
    pub(super) fn trim(&mut self, limit: usize) {
        for buffer in [&mut self.narrow, &mut self.line, &mut self.tail] {
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
    /// The source row that `narrow` begins with.
    held_from: usize,
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
        buffers.narrow.clear();
        buffers.line.resize(window.width * PIXEL, 0);
        Resampler {
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

    /// Takes the next source row, which begins with column `first_column`, and hands out the rows of the window that
    /// are ready by then.
    pub(super) fn push(&mut self, row: &[u8], first_column: usize, sink: &mut impl FnMut(usize, &[u8])) {
        let row_bytes = self.plan.window.width * PIXEL;
        let buffers = &mut *self.buffers;
        let narrow = match &self.rows {
            None => buffers.line.as_mut_slice(),
            Some(_) => {
                let held = buffers.narrow.len();
                buffers.narrow.resize(held + row_bytes, 0);
                &mut buffers.narrow[held..]
            }
        };
        // The row from its first wanted column.
        let row = &row[(self.first_wanted - first_column) * PIXEL..];
        match &self.columns {
            None => narrow.copy_from_slice(&row[..row_bytes]),
            Some(taps) => {
                let base = self.first_wanted - self.plan.region.left;
                horizontal(row, base, taps, narrow, &mut buffers.tail);
            }
        }
        let Some(rows) = &self.rows else {
            sink(self.next_out, &buffers.line);
            self.next_out += 1;
            return;
        };
        self.next_in += 1;
        let top = self.plan.region.top;
        while let Some((start, n_taps)) = rows.windows.get(self.next_out)
            && start + n_taps + top <= self.next_in
        {
            let from = &buffers.narrow[(start + top - self.held_from) * row_bytes..];
            column_sums(from, row_bytes, rows.weights_of(self.next_out), &mut buffers.line);
            sink(self.next_out, &buffers.line);
            self.next_out += 1;
        }
        // Rows that nothing reads any more go, once they are more than those that stay.
        if let Some((start, _)) = rows.windows.get(self.next_out) {
            let (n_gone, n_held) = (start + top - self.held_from, self.next_in - self.held_from);
            if n_gone > 16 && n_gone * 2 > n_held {
                buffers.narrow.drain(..n_gone.min(n_held) * row_bytes);
                self.held_from += n_gone.min(n_held);
            }
        }
    }
}

/// Filters one row along x into one pixel per output sample. `row` begins with sample `base` of the region.
fn horizontal(row: &[u8], base: usize, taps: &Taps, out: &mut [u8], tail: &mut Vec<u8>) {
    #[cfg(target_arch = "x86_64")]
    if avx2::is_available() {
        let n_bytes = (taps.span().end - base + taps.reach()) * PIXEL;
        if row.len() >= n_bytes {
            avx2::horizontal(row, base, taps, out);
        } else {
            tail.clear();
            tail.extend_from_slice(row);
            tail.resize(n_bytes, 0);
            avx2::horizontal(tail, base, taps, out);
        }
        return;
    }
    let _ = tail;
    horizontal_scalar(row, base, taps, out);
}

/// One output row as the weighted sum of `weights.len()` rows of `out.len()` bytes.
fn column_sums(source: &[u8], row_bytes: usize, weights: &[i32], out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if avx2::is_available() {
        avx2::column_sums(source, row_bytes, weights, out);
        return;
    }
    column_sums_scalar(source, row_bytes, weights, out);
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
