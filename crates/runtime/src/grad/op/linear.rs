//! Rows times a matrix of weights: linear layers, and convolutions of one pixel.

use rayon::prelude::*;

use super::after::After;
use super::{Backward, Kept, Op, Part, Run, Sink, alone, put_totals, totals};
use crate::panels::{LANES, Outer, Place, Product, fair, pack, pack_transposed, panels_len, vectorised};
use crate::scratch;

/// Rows that a task takes a multiple of, so that tiles are whole, and the most of such.
const TILE: usize = 14;
const TILES: usize = 16;

/// Panels that one task takes at most.
const PANELS: usize = 8;

/// `out[r, k] = Σ_c x[r, c] · w[k, c] + b[k]`; inputs are `x`, `w` and, where there is one, `b`.
#[derive(Debug)]
pub(in crate::grad) struct Linear {
    pub(in crate::grad) n_in: usize,
    pub(in crate::grad) n_out: usize,
    /// Whether the weights are stored `[n_in, n_out]`, not `[n_out, n_in]`.
    pub(in crate::grad) is_transposed: bool,
}

vectorised! {
    /// `out += Σ rows`, in order.
    pub(super) fn sum_rows(rows: &'a [f32], out: &'a mut [f32]) {
        for row in rows.chunks_exact(out.len()) {
            for (out, value) in out.iter_mut().zip(row) {
                *out += value;
            }
        }
    }
}

/// The sum of all rows of `n` columns: in parts of 64 rows, which are then added up in order.
pub(super) fn column_sums(rows: &[f32], n: usize, sink: &mut Sink<'_>) {
    let n_parts = rows.len().div_ceil(64 * n);
    scratch::with(n_parts * n, |parts| {
        parts
            .par_chunks_mut(n)
            .zip(rows.par_chunks(64 * n))
            .for_each(|(out, rows)| {
                out.fill(0.0);
                sum_rows(rows, out);
            });
        put_totals(sink, &totals(parts, n));
    });
}

impl Linear {
    /// Weights `[n, depth]` (or, `is_transposed`, `[depth, n]`) as panels over `n`.
    pub(super) fn panels(weights: &[f32], n: usize, depth: usize, is_transposed: bool, out: &mut [f32]) {
        let panels = out
            .par_chunks_mut(depth * LANES)
            .with_min_len(alone(depth * LANES))
            .enumerate();
        panels.for_each(|(panel, out)| {
            let width = (n - panel * LANES).min(LANES);
            if is_transposed {
                pack(&weights[panel * LANES..], n, depth, width, out);
            } else {
                let rows = &weights[panel * LANES * depth..];
                pack_transposed(rows, depth, depth, width, out);
            }
        });
    }

    /// `out[r, n] (+)= rows[r, depth] · panels`, and what follows.
    pub(super) fn multiply(
        rows: &[f32],
        depth: usize,
        panels: &[f32],
        n: usize,
        out: &mut [f32],
        is_added: bool,
        after: After<'_>,
    ) {
        let at_once = TILE * fair((out.len() / n).div_ceil(TILE), TILES);
        let tasks = out
            .par_chunks_mut(at_once * n)
            .zip(rows.par_chunks(at_once * depth));
        tasks.enumerate().for_each(|(idx, (out, rows))| {
            Product {
                a: rows,
                a_row: depth,
                a_panel: LANES,
                n_rows: out.len() / n,
                depth,
                b: panels,
                b_panel: depth * LANES,
                out,
                place: Place {
                    row: n,
                    panel: LANES,
                    n_columns: n,
                    is_added,
                },
            }
            .run();
            after.from(idx * at_once * n).finish(out, n);
        });
    }
}

/// `out[a, b] (+)= Σ_r x[r, a] · y[r, b]` for rows of `n_a` and `n_b` numbers.
pub(super) fn outer(x: &[f32], n_a: usize, y: &[f32], n_b: usize, sink: &mut Sink<'_>) {
    let n_rows = x.len() / n_a;
    // Whole panels are read where they lie.
    let is_whole = n_a.is_multiple_of(LANES);
    let a_len = if is_whole { 0 } else { panels_len(n_rows, n_a) };
    scratch::with(a_len + panels_len(n_rows, n_b), |room| {
        let (a, b) = room.split_at_mut(a_len);
        for (rows, n, out) in [(x, n_a, &mut *a), (y, n_b, &mut *b)] {
            let panels = out.par_chunks_mut(PANELS * n_rows * LANES).enumerate();
            panels.for_each(|(task, out)| {
                let first = task * PANELS * LANES;
                pack(&rows[first..], n, n_rows, (n - first).min(PANELS * LANES), out);
            });
        }
        let (a, b) = (&*a, &*b);
        let is_added = sink.is_added;
        let at_once = fair(n_a.div_ceil(LANES), PANELS);
        let tasks = sink.values.par_chunks_mut(at_once * LANES * n_b).enumerate();
        tasks.for_each(|(task, out)| {
            let first = task * at_once;
            let (a, a_row, a_panel) = if is_whole {
                (&x[first * LANES..], n_a, LANES)
            } else {
                (&a[first * n_rows * LANES..], LANES, n_rows * LANES)
            };
            Outer {
                a,
                a_row,
                a_panel,
                n_a: out.len() / n_b,
                b,
                b_panel: n_rows * LANES,
                n_rows,
                out,
                place: Place {
                    row: n_b,
                    panel: LANES,
                    n_columns: n_b,
                    is_added,
                },
            }
            .run();
        });
    });
}

impl Op for Linear {
    fn forward(&self, _: Run, inputs: &[&[f32]], out: &mut [f32], kept: &mut Kept) {
        let &Linear { n_in, n_out, .. } = self;
        let [panels] = kept.arrays([panels_len(n_in, n_out)]);
        Linear::panels(inputs[1], n_out, n_in, self.is_transposed, panels);
        let after = After::bias(inputs.get(2).copied());
        Linear::multiply(inputs[0], n_in, panels, n_out, out, false, after);
    }

    fn part(&self) -> Part<'_> {
        Part::Linear(self)
    }

    fn backward(&self, _: Run, pass: Backward<'_>, sinks: &mut [Option<Sink<'_>>], kept: &mut Kept) {
        let &Linear { n_in, n_out, .. } = self;
        if let Some(sink) = &mut sinks[0] {
            let [_, panels] = kept.arrays([0, panels_len(n_out, n_in)]);
            Linear::panels(pass.inputs[1], n_in, n_out, !self.is_transposed, panels);
            let (to, is_added) = (&mut *sink.values, sink.is_added);
            Linear::multiply(pass.d_out, n_out, panels, n_in, to, is_added, After::default());
        }
        if let Some(sink) = &mut sinks[1] {
            if self.is_transposed {
                outer(pass.inputs[0], n_in, pass.d_out, n_out, sink);
            } else {
                outer(pass.d_out, n_out, pass.inputs[0], n_in, sink);
            }
        }
        if let Some(Some(sink)) = sinks.get_mut(2) {
            column_sums(pass.d_out, n_out, sink);
        }
    }
}
