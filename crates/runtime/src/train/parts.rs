//! How the weights of a layer and what is kept beside them are dealt out to threads.

use std::ops::Range;

use super::kernel::{LANES, OUTER_PANELS};
use super::optimiser::State;
use crate::awake;

/// Panels whose side is gathered at once: it stays in the innermost cache while all strips meet it.
pub(super) const GATHERED_PANELS: usize = 4;

/// Panels over the inputs of a narrow layer in spans of about the same size, which only their number decides. A thread that
/// has a span's features and weights for a product of the way forward has them near for the one of the way back.
#[derive(Clone, Copy)]
pub(super) struct Spans {
    pub(super) n: usize,
    n_panels: usize,
}

impl Spans {
    pub(super) fn new(n_panels: usize) -> Spans {
        /// 1,024 features.
        const PANELS: usize = 64;
        Spans {
            n: ((n_panels + PANELS / 2) / PANELS).max(1),
            n_panels,
        }
    }

    /// The first panel of a span, or what is behind the last one.
    pub(super) fn begin(self, span: usize) -> usize {
        if span == self.n {
            self.n_panels
        } else {
            span * self.n_panels / self.n / OUTER_PANELS * OUTER_PANELS
        }
    }
}

/// Panels and their rows, and how they are dealt out.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    pub(super) m: usize,
    pub(super) n_panels: usize,
    pub(super) is_narrow: bool,
    pub(super) is_parallel: bool,
}

/// Some panels with all their rows, or some rows of one.
pub(super) struct Part<'s> {
    pub(super) grid: Grid,
    pub(super) panels: Range<usize>,
    pub(super) rows: Range<usize>,
    pub(super) state: State<'s>,
}

impl Part<'_> {
    /// Where in the part's state rows of a panel begin.
    #[inline]
    pub(super) fn at(&self, panel: usize, row: usize) -> usize {
        ((panel - self.panels.start) * self.rows.len() + row - self.rows.start) * LANES
    }
}

impl Grid {
    /// Rows of sixteen weights that are worth a thread's while.
    const ROWS: usize = 128;

    /// Calls `leaf` with all parts.
    pub(super) fn walk(&self, state: State<'_>, leaf: &(impl Fn(Part<'_>) + Sync)) {
        if self.is_parallel {
            awake::for_each(Parts::new(*self, state), leaf);
        } else {
            leaf(Part {
                grid: *self,
                panels: 0..self.n_panels,
                rows: 0..self.m,
                state,
            });
        }
    }
}

/// What is left to be dealt out.
struct Parts<'s> {
    grid: Grid,
    /// Panels of a part, at most, and rows of them.
    size: [usize; 2],
    /// Where parts end in any case.
    spans: Spans,
    /// Where the next part begins.
    panel: usize,
    row: usize,
    state: State<'s>,
}

impl<'s> Parts<'s> {
    fn new(grid: Grid, state: State<'s>) -> Parts<'s> {
        /// Parts for each thread: one that comes late gets fewer.
        const PER_THREAD: usize = 4;
        let n_parts = PER_THREAD * rayon::current_num_threads();
        let size = if grid.n_panels < OUTER_PANELS {
            [1, Grid::ROWS]
        } else if grid.m > Grid::ROWS {
            [GATHERED_PANELS, grid.m]
        } else {
            [
                grid.n_panels.div_ceil(n_parts).next_multiple_of(OUTER_PANELS),
                grid.m,
            ]
        };
        let spans = if grid.is_narrow {
            Spans::new(grid.n_panels)
        } else {
            Spans {
                n: 1,
                n_panels: grid.n_panels,
            }
        };
        Parts {
            grid,
            size,
            spans,
            panel: 0,
            row: 0,
            state,
        }
    }
}

impl<'s> Iterator for Parts<'s> {
    type Item = Part<'s>;

    fn next(&mut self) -> Option<Part<'s>> {
        let Parts {
            grid,
            size: [n_panels, n_rows],
            spans,
            panel,
            row,
            ..
        } = *self;
        let end = (1..=spans.n)
            .map(|span| spans.begin(span))
            .find(|end| *end > panel)?;
        let panels = panel..(panel + n_panels).min(end);
        let rows = row..(row + n_rows).min(grid.m);
        let rest = std::mem::replace(&mut self.state, State::nothing());
        let (state, rest) = rest.split(panels.len() * rows.len() * LANES);
        self.state = rest;
        self.row = rows.end % grid.m;
        if self.row == 0 {
            self.panel = panels.end;
        }
        Some(Part {
            grid,
            panels,
            rows,
            state,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_all_there_is() {
        for (m, n_panels) in [
            (2, 129),
            (10, 49),
            (104, 49),
            (520, 49),
            (2064, 1),
            (500, 7),
            (3, 8),
        ] {
            let grid = Grid {
                m,
                n_panels,
                is_narrow: true,
                is_parallel: true,
            };
            let mut weights = vec![0.0f32; m * n_panels * LANES];
            let state = State {
                weights: &mut weights,
                ..State::nothing()
            };
            let (mut n_parts, spans) = (0, Spans::new(n_panels));
            for part in Parts::new(grid, state) {
                n_parts += 1;
                for begin in (0..spans.n).map(|span| spans.begin(span)) {
                    assert!(begin <= part.panels.start || begin >= part.panels.end);
                }
                assert_eq!(
                    part.state.weights.len(),
                    part.panels.len() * part.rows.len() * LANES
                );
                let at = (part.panels.start * m + part.rows.start) * LANES;
                for (i, weight) in part.state.weights.iter_mut().enumerate() {
                    *weight += (at + i) as f32;
                }
            }
            assert!(n_parts > 1 || m * n_panels <= Grid::ROWS, "{m} {n_panels}");
            assert!(weights.iter().enumerate().all(|(i, weight)| *weight == i as f32));
        }
    }
}
