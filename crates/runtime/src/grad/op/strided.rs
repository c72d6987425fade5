//! Elements in another order, some of them, or some of them repeatedly: transposes, slices, expansions.

use rayon::prelude::*;

use super::{Backward, Kept, Op, Run, Sink};
use crate::grad::shape::Dim;

/// An axis of the result: element `i` is element `start + step · i` of an axis of the input whose elements are `stride`
/// apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::grad) struct Axis {
    pub(in crate::grad) size: Dim,
    pub(in crate::grad) start: usize,
    pub(in crate::grad) step: isize,
    /// Of size zero where an element is repeated.
    pub(in crate::grad) stride: Dim,
}

/// A view of the input, copied.
#[derive(Debug)]
pub(in crate::grad) struct Strided(pub(in crate::grad) Vec<Axis>);

/// Sizes and strides for one number of samples, neighbours joined where they can be.
#[derive(Debug, Clone)]
struct Layout {
    offset: usize,
    axes: Vec<(usize, isize)>,
}

impl Layout {
    fn new(axes: &[Axis], n: usize) -> Layout {
        let mut joined: Vec<(usize, isize)> = Vec::new();
        let mut offset = 0;
        for axis in axes.iter().rev() {
            let (size, stride) = (axis.size.at(n), axis.stride.at(n));
            offset += axis.start * stride;
            let stride = axis.step * stride.cast_signed();
            if size == 1 {
                continue;
            }
            match joined.last_mut() {
                Some((inner, inner_stride)) if stride == *inner_stride * inner.cast_signed() => {
                    *inner *= size;
                }
                _ => joined.push((size, stride)),
            }
        }
        joined.reverse();
        Layout { offset, axes: joined }
    }

    /// The layout that puts a permutation's elements back; none where this is no permutation of `len` elements.
    fn inverse(&self, len: usize) -> Option<Layout> {
        let numel: usize = self.axes.iter().map(|(size, _)| size).product();
        if numel != len || self.offset != 0 || self.axes.iter().any(|(_, stride)| *stride <= 0) {
            return None;
        }
        let mut own = 1;
        let mut axes = Vec::with_capacity(self.axes.len());
        for (size, stride) in self.axes.iter().rev() {
            axes.push((*stride, *size, own));
            own *= size.cast_signed();
        }
        axes.sort_unstable_by_key(|axis| std::cmp::Reverse(axis.0));
        let axes = axes.into_iter().map(|(_, size, own)| (size, own)).collect();
        Some(Layout { offset: 0, axes })
    }

    /// The two innermost axes as rows and columns.
    fn plane(&self) -> [(usize, isize); 2] {
        match self.axes.as_slice() {
            [] => [(1, 1), (1, 1)],
            [columns] => [(1, 1), *columns],
            [.., rows, columns] => [*rows, *columns],
        }
    }

    /// Where in the input a plane begins.
    fn at(&self, mut plane: usize) -> isize {
        let mut at = self.offset.cast_signed();
        for (size, stride) in self.axes[..self.axes.len().saturating_sub(2)].iter().rev() {
            at += (plane % size).cast_signed() * stride;
            plane /= size;
        }
        at
    }

    /// `visit(index in the result, index in the input)` of some rows of a plane, in blocks where the rows are what is
    /// contiguous in the input.
    #[inline(always)]
    fn copy(&self, from: &[f32], to: &mut [f32], is_added: bool) {
        let [(rows, row_stride), (columns, column_stride)] = self.plane();
        let put = |to: &mut f32, value: f32| *to = if is_added { *to + value } else { value };
        to.par_chunks_mut(rows * columns)
            .enumerate()
            .for_each(|(plane, to)| {
                let at = self.at(plane);
                if column_stride == 1 {
                    for (row, to) in to.chunks_exact_mut(columns).enumerate() {
                        let start = (at + row.cast_signed() * row_stride).cast_unsigned();
                        let from = &from[start..][..columns];
                        if is_added {
                            super::add_part(to, from);
                        } else {
                            to.copy_from_slice(from);
                        }
                    }
                    return;
                }
                let block = if row_stride == 1 { 16 } else { rows.max(1) };
                for start in (0..rows).step_by(block) {
                    for column in 0..columns {
                        let at = at + column.cast_signed() * column_stride;
                        for row in start..(start + block).min(rows) {
                            let from = from[(at + row.cast_signed() * row_stride).cast_unsigned()];
                            put(&mut to[row * columns + column], from);
                        }
                    }
                }
            });
    }

    /// The adjoint of [`copy`](Layout::copy), for elements that may be meant repeatedly; on one thread.
    fn scatter(&self, from: &[f32], to: &mut [f32]) {
        let [(rows, row_stride), (columns, column_stride)] = self.plane();
        for (plane, from) in from.chunks_exact(rows * columns).enumerate() {
            let at = self.at(plane);
            for (row, from) in from.chunks_exact(columns).enumerate() {
                let at = at + row.cast_signed() * row_stride;
                if column_stride == 1 {
                    super::add_part(&mut to[at.cast_unsigned()..][..columns], from);
                } else {
                    for (column, value) in from.iter().enumerate() {
                        to[(at + column.cast_signed() * column_stride).cast_unsigned()] += value;
                    }
                }
            }
        }
    }
}

impl Op for Strided {
    fn is_by_sample(&self) -> bool {
        let is_first = |axis: &Axis| axis.size == Dim::batched(1) && axis.start == 0 && axis.step == 1;
        self.0.first().is_some_and(is_first)
            && self.0[1..].iter().all(|axis| !axis.size.is_batched)
            && self.0.iter().all(|axis| !axis.stride.is_batched)
    }

    fn forward(&self, run: Run, inputs: &[&[f32]], out: &mut [f32], _: &mut Kept) {
        Layout::new(&self.0, run.n).copy(inputs[0], out, false);
    }

    fn backward(&self, run: Run, pass: Backward<'_>, sinks: &mut [Option<Sink<'_>>], _: &mut Kept) {
        let Some(sink) = &mut sinks[0] else { return };
        let layout = Layout::new(&self.0, run.n);
        if let Some(inverse) = layout.inverse(sink.values.len()) {
            inverse.copy(pass.d_out, sink.values, sink.is_added);
            return;
        }
        sink.zero();
        layout.scatter(pass.d_out, sink.values);
    }
}
