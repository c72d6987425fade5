//! Arithmetic of two tensors, either of which may be repeated along axes (ONNX's multidirectional broadcasting).

use rayon::prelude::*;

use super::{Backward, Kept, Op, Part, Run, Sink, put_totals, totals};
use crate::grad::shape::Dim;
use crate::panels::{sum_of, vectorised};
use crate::scratch;

/// Which arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::grad) enum BinaryKind {
    Add,
    Sub,
    Mul,
    Div,
}

/// Arithmetic of two inputs of as many axes as the result.
#[derive(Debug)]
pub(in crate::grad) struct Binary {
    pub(in crate::grad) kind: BinaryKind,
    pub(in crate::grad) shape: Vec<Dim>,
    /// Whether each input has each axis; else it is repeated along it.
    pub(in crate::grad) has: [Vec<bool>; 2],
}

/// The axes of a result with both inputs' strides, neighbours joined where both inputs allow it.
#[derive(Debug, Clone)]
struct Axes {
    outer: Vec<(usize, [usize; 2])>,
    inner: (usize, [usize; 2]),
    n_outer: usize,
}

impl Axes {
    /// Where in the inputs an outer row begins.
    fn at(&self, mut row: usize) -> [usize; 2] {
        let mut at = [0, 0];
        for (size, strides) in self.outer.iter().rev() {
            let index = row % size;
            row /= size;
            at[0] += index * strides[0];
            at[1] += index * strides[1];
        }
        at
    }
}

vectorised! {
    fn row(kind: BinaryKind, a: &'a [f32], b: &'a [f32], out: &'a mut [f32]) {
        match (kind, a, b) {
            (BinaryKind::Add, a, b) => {
                if let ([b], true) = (b, a.len() > 1) {
                    out.iter_mut().zip(a).for_each(|(out, a)| *out = a + b);
                } else if let [a] = a {
                    out.iter_mut().zip(b).for_each(|(out, b)| *out = a + b);
                } else {
                    out.iter_mut().zip(a).zip(b).for_each(|((out, a), b)| *out = a + b);
                }
            }
            (BinaryKind::Sub, a, b) => {
                if let ([b], true) = (b, a.len() > 1) {
                    out.iter_mut().zip(a).for_each(|(out, a)| *out = a - b);
                } else if let [a] = a {
                    out.iter_mut().zip(b).for_each(|(out, b)| *out = a - b);
                } else {
                    out.iter_mut().zip(a).zip(b).for_each(|((out, a), b)| *out = a - b);
                }
            }
            (BinaryKind::Mul, a, b) => {
                if let ([b], true) = (b, a.len() > 1) {
                    out.iter_mut().zip(a).for_each(|(out, a)| *out = a * b);
                } else if let [a] = a {
                    out.iter_mut().zip(b).for_each(|(out, b)| *out = a * b);
                } else {
                    out.iter_mut().zip(a).zip(b).for_each(|((out, a), b)| *out = a * b);
                }
            }
            (BinaryKind::Div, a, b) => {
                if let ([b], true) = (b, a.len() > 1) {
                    out.iter_mut().zip(a).for_each(|(out, a)| *out = a / b);
                } else if let [a] = a {
                    out.iter_mut().zip(b).for_each(|(out, b)| *out = a / b);
                } else {
                    out.iter_mut().zip(a).zip(b).for_each(|((out, a), b)| *out = a / b);
                }
            }
        }
    }
}

vectorised! {
    /// The derivative by one side of a row, element by element.
    fn d_row(kind: BinaryKind, side: usize, a: &'a [f32], b: &'a [f32], d_out: &'a [f32], to: &'a mut [f32]) {
        match (kind, side) {
            (BinaryKind::Add, _) | (BinaryKind::Sub, 0) => to.copy_from_slice(d_out),
            (BinaryKind::Sub, _) => to.iter_mut().zip(d_out).for_each(|(to, d)| *to = -d),
            (BinaryKind::Mul, side) => match if side == 0 { b } else { a } {
                [other] => to.iter_mut().zip(d_out).for_each(|(to, d)| *to = d * other),
                other => to.iter_mut().zip(d_out).zip(other).for_each(|((to, d), other)| *to = d * other),
            },
            (BinaryKind::Div, 0) => match b {
                [b] => to.iter_mut().zip(d_out).for_each(|(to, d)| *to = d / b),
                b => to.iter_mut().zip(d_out).zip(b).for_each(|((to, d), b)| *to = d / b),
            },
            (BinaryKind::Div, _) => match (a, b) {
                (a, [b]) if a.len() > 1 => to.iter_mut().zip(d_out).zip(a).for_each(|((to, d), a)| *to = -d * a / (b * b)),
                ([a], b) => to.iter_mut().zip(d_out).zip(b).for_each(|((to, d), b)| *to = -d * a / (b * b)),
                (a, b) => to.iter_mut().zip(d_out).zip(a).zip(b).for_each(|(((to, d), a), b)| *to = -d * a / (b * b)),
            },
        }
    }
}

vectorised! {
    fn add_to(to: &'a mut [f32], from: &'a [f32]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
    }
}

vectorised! {
    fn total(values: &'a [f32]) -> f32 {
        sum_of([values], |[x]| x)
    }
}

impl Binary {
    fn axes(&self, n: usize) -> Axes {
        let mut joined: Vec<(usize, [usize; 2])> = Vec::new();
        let mut strides = [1, 1];
        for axis in (0..self.shape.len()).rev() {
            let size = self.shape[axis].at(n);
            let own = [0, 1].map(|side| if self.has[side][axis] { strides[side] } else { 0 });
            for side in [0, 1] {
                if self.has[side][axis] {
                    strides[side] *= size;
                }
            }
            if size == 1 {
                continue;
            }
            match joined.last_mut() {
                Some((inner, inner_strides))
                    if [0, 1].into_iter().all(|side| {
                        own[side] == inner_strides[side] * *inner
                            && (own[side] == 0) == (inner_strides[side] == 0)
                    }) =>
                {
                    *inner *= size;
                }
                _ => joined.push((size, own)),
            }
        }
        joined.reverse();
        let inner = joined.pop().unwrap_or((1, [1, 1]));
        Axes {
            n_outer: joined.iter().map(|(size, _)| size).product(),
            outer: joined,
            inner,
        }
    }

    /// A row of an input: one number where it is repeated.
    fn part<'i>(axes: &Axes, input: &'i [f32], side: usize, at: usize) -> &'i [f32] {
        let n = if axes.inner.1[side] == 0 { 1 } else { axes.inner.0 };
        &input[at..][..n]
    }

    /// Rows of a task.
    fn at_once(axes: &Axes) -> usize {
        (super::CHUNK / axes.inner.0).max(1)
    }
}

impl Op for Binary {
    fn is_by_sample(&self) -> bool {
        self.shape.iter().skip(1).all(|size| !size.is_batched)
    }

    fn part(&self) -> Part<'_> {
        let is_whole = self.has.iter().flatten().all(|has| *has);
        if self.kind == BinaryKind::Add && is_whole {
            Part::Sum
        } else {
            Part::Other
        }
    }

    fn forward(&self, run: Run, inputs: &[&[f32]], out: &mut [f32], _: &mut Kept) {
        let axes = self.axes(run.n);
        let (inner, at_once) = (axes.inner.0, Binary::at_once(&axes));
        if axes.outer.is_empty() {
            // Long rows are dealt out too.
            out.par_chunks_mut(super::CHUNK)
                .enumerate()
                .for_each(|(idx, out)| {
                    let [a, b] = [0, 1].map(|side| {
                        let all = Binary::part(&axes, inputs[side], side, 0);
                        if all.len() == 1 {
                            all
                        } else {
                            &all[idx * super::CHUNK..][..out.len()]
                        }
                    });
                    row(self.kind, a, b, out);
                });
            return;
        }
        out.par_chunks_mut(at_once * inner)
            .enumerate()
            .for_each(|(task, out)| {
                for (i, out) in out.chunks_exact_mut(inner).enumerate() {
                    let at = axes.at(task * at_once + i);
                    let [a, b] = [0, 1].map(|side| Binary::part(&axes, inputs[side], side, at[side]));
                    row(self.kind, a, b, out);
                }
            });
    }

    fn backward(&self, run: Run, pass: Backward<'_>, sinks: &mut [Option<Sink<'_>>], _: &mut Kept) {
        let axes = self.axes(run.n);
        let inner = axes.inner.0;
        for side in [0, 1] {
            let Some(sink) = &mut sinks[side] else { continue };
            let is_whole = self.has[side]
                .iter()
                .zip(&self.shape)
                .all(|(has, dim)| *has || dim.at(run.n) == 1);
            let of_row = |idx: usize, to: &mut [f32]| {
                let at = axes.at(idx);
                let [a, b] = [0, 1].map(|side| Binary::part(&axes, pass.inputs[side], side, at[side]));
                d_row(self.kind, side, a, b, &pass.d_out[idx * inner..][..inner], to);
                at[side]
            };
            if is_whole {
                // Then rows of the sink are rows of the result, in order.
                let at_once = Binary::at_once(&axes);
                let is_added = sink.is_added;
                sink.values
                    .par_chunks_mut(at_once * inner)
                    .enumerate()
                    .for_each(|(task, to)| {
                        scratch::with(inner, |room| {
                            for (i, to) in to.chunks_exact_mut(inner).enumerate() {
                                if is_added {
                                    of_row(task * at_once + i, room);
                                    add_to(to, room);
                                } else {
                                    of_row(task * at_once + i, to);
                                }
                            }
                        });
                    });
                continue;
            }
            // Parts of the rows, each with sums of its own, which are then added up in order.
            let len = sink.values.len();
            let n_parts = (axes.n_outer.min(64)).min(((1 << 22) / len).max(1));
            let per_part = axes.n_outer.div_ceil(n_parts);
            scratch::with(n_parts * len, |parts| {
                parts.par_chunks_mut(len).enumerate().for_each(|(part, sums)| {
                    sums.fill(0.0);
                    let rows = part * per_part..((part + 1) * per_part).min(axes.n_outer);
                    scratch::with(inner, |room| {
                        for idx in rows {
                            let at = of_row(idx, room);
                            if axes.inner.1[side] == 0 {
                                sums[at] += total(room);
                            } else {
                                add_to(&mut sums[at..][..inner], room);
                            }
                        }
                    });
                });
                put_totals(sink, &totals(parts, len));
            });
        }
    }
}
