//! The two products that convolutions and linear layers are made of, on matrices in panels of sixteen columns.
//!
//! A matrix `[rows, columns]` in panels is `[⌈columns / 16⌉, rows, 16]` with zeros behind the last column. Each number that
//! comes out is made of chains of fused multiply-adds whose order the sizes decide, so that neither vectors nor threads
//! show.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use crate::scratch;

/// Columns of a panel.
pub(crate) const LANES: usize = 16;

/// About how many terms of a sum of products are added up by themselves: shorter chains round less.
const CHAIN: usize = 128;

/// Rows of a product that meet all panels before the next ones' turn, with [`DEPTH`] of their terms: they stay in the second
/// cache.
const ROWS: usize = 112;

/// See [`ROWS`]; whole chains, so that what comes out is written seldom.
const DEPTH: usize = 4 * CHAIN;

/// Rows of an outer product whose terms are added up by themselves.
const OUTER_ROWS: usize = 224;

/// Panels from which on rows are worth being brought together, tile by tile.
const WORTH: usize = 8;

/// Panels of an outer product whose sums stay in the second cache while all rows pass.
const BLOCK: usize = 16;

/// Numbers of a matrix in panels.
pub(crate) fn panels_len(n_rows: usize, n_columns: usize) -> usize {
    n_rows * n_columns.next_multiple_of(LANES)
}

/// How many of `n` a task takes: at most `at_most`, and so many that threads have equally many tasks, as far as `n` goes.
pub(crate) fn fair(n: usize, at_most: usize) -> usize {
    let n_tasks = n.div_ceil(at_most).next_multiple_of(rayon::current_num_threads());
    n.div_ceil(n_tasks.max(1)).max(1)
}

/// Declares a function whose loops are compiled for the widest vectors of the machine.
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block) => {
        $crate::panels::vectorised! { $(#[$meta])* $vis fn $name($($arg: $type),*) -> () $body }
    };
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) -> $out:ty $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "a loop over plain arrays")]
        $vis fn $name<'a>($($arg: $type),*) -> $out {
            struct Op<'a> {
                $($arg: $type,)*
                marker: std::marker::PhantomData<&'a ()>,
            }
            impl<'a> pulp::WithSimd for Op<'a> {
                type Output = $out;
                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, _: S) -> $out {
                    let Op { $($arg,)* marker: _ } = self;
                    $body
                }
            }
            pulp::Arch::new().dispatch(Op { $($arg,)* marker: std::marker::PhantomData })
        }
    };
}
pub(crate) use vectorised;

/// The sum of a function of arrays of equal length, in sixteen interleaved chains: a fixed order that vectorises. For
/// bodies of [`vectorised`] functions.
#[inline(always)]
pub(crate) fn sum_of<const N: usize>(arrays: [&[f32]; N], f: impl Fn([f32; N]) -> f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let chunks = arrays.map(|array| array.as_chunks::<LANES>().0);
    for i in 0..chunks[0].len() {
        let rows = chunks.map(|chunks| &chunks[i]);
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += f(rows.map(|row| row[lane]));
        }
    }
    for (lane, i) in (chunks[0].len() * LANES..arrays[0].len()).enumerate() {
        sums[lane] += f(arrays.map(|array| array[i]));
    }
    sums.iter().sum()
}

/// Where a product puts a row and a panel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// From one row to the next.
    pub(crate) row: usize,
    /// From one panel to the next.
    pub(crate) panel: usize,
    /// Columns that are written; those behind are only computed.
    pub(crate) n_columns: usize,
    /// Whether what is there is added to.
    pub(crate) is_added: bool,
}

/// `out[p, k] = Σ_c a[p, c] · b[c, k]`: `a` in panels over `c` or in rows, `b` in panels over `k` of `depth` rows. A number does
/// not depend on how many rows and columns there are beside it.
pub(crate) struct Product<'a> {
    pub(crate) a: &'a [f32],
    /// From one row of `a` to the next.
    pub(crate) a_row: usize,
    /// From sixteen columns of `a` to the next.
    pub(crate) a_panel: usize,
    pub(crate) n_rows: usize,
    pub(crate) depth: usize,
    pub(crate) b: &'a [f32],
    /// From one panel of `b` to the next.
    pub(crate) b_panel: usize,
    pub(crate) out: &'a mut [f32],
    pub(crate) place: Place,
}

impl Product<'_> {
    pub(crate) fn run(self) {
        pulp::Arch::new().dispatch(self);
    }
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        match S::F32_LANES {
            16 => self.blocks::<S, 14, 2, 1>(simd),
            8 => self.blocks::<S, 6, 1, 2>(simd),
            4 => self.blocks::<S, 3, 1, 4>(simd),
            _ => self.blocks::<S, 1, 1, 16>(simd),
        }
    }
}

/// The part of a product that stays in the second cache: some rows, and as much of their depth.
struct Block<'t> {
    rows: Range<usize>,
    depth: Range<usize>,
    /// Rows of `a`, tile after tile, each `[depth, R]`: as many as were worth being brought together.
    tiles: &'t [f32],
}

impl Product<'_> {
    #[inline(always)]
    fn blocks<S: Simd, const R: usize, const Q: usize, const V: usize>(&mut self, simd: S) {
        let n_panels = self.place.n_columns.div_ceil(LANES);
        let n_at_once = if n_panels < WORTH {
            0
        } else {
            ROWS.min(self.n_rows) / R * R
        };
        let mut room = scratch::take(n_at_once * DEPTH.min(self.depth));
        for first in (0..self.depth).step_by(DEPTH) {
            let depth = first..(first + DEPTH).min(self.depth);
            for start in (0..self.n_rows).step_by(ROWS / R * R) {
                let rows = start..(start + ROWS / R * R).min(self.n_rows);
                let n_tiled = n_at_once.min(rows.len() / R * R);
                let tiles = &mut room.as_mut()[..n_tiled * depth.len()];
                for (tile, out) in tiles.chunks_exact_mut(R * depth.len()).enumerate() {
                    self.bring_together::<R>(start + tile * R, depth.clone(), out);
                }
                let block = Block {
                    rows,
                    depth: depth.clone(),
                    tiles,
                };
                let mut panel = 0;
                while panel + Q <= n_panels {
                    self.chains::<S, R, Q, V>(simd, &block, panel);
                    panel += Q;
                }
                while panel < n_panels {
                    self.chains::<S, R, 1, V>(simd, &block, panel);
                    panel += 1;
                }
            }
        }
    }

    /// `R` rows as `[depth, R]`.
    #[inline(always)]
    fn bring_together<const R: usize>(&self, row: usize, depth: Range<usize>, out: &mut [f32]) {
        let (whole, rest) = out.as_chunks_mut::<R>().0.as_chunks_mut::<LANES>();
        let from = |at: usize, r: usize| {
            &self.a[(depth.start / LANES + at) * self.a_panel + (row + r) * self.a_row..]
        };
        for (at, out) in whole.iter_mut().enumerate() {
            for r in 0..R {
                for (out, from) in out.iter_mut().zip(&from(at, r)[..LANES]) {
                    out[r] = *from;
                }
            }
        }
        for r in 0..if rest.is_empty() { 0 } else { R } {
            for (out, from) in rest.iter_mut().zip(from(whole.len(), r)) {
                out[r] = *from;
            }
        }
    }

    /// Some panels, chain by chain: what a chain takes of `b` stays in the innermost cache for all rows.
    #[inline(always)]
    fn chains<S: Simd, const R: usize, const Q: usize, const V: usize>(
        &mut self,
        simd: S,
        block: &Block<'_>,
        panel: usize,
    ) {
        let depth = block.depth.clone();
        // Equal chains, so that none is too short to be worth its writing.
        let n_chains = ((depth.len() + CHAIN / 2) / CHAIN).max(1);
        let chain = depth.len().div_ceil(n_chains).next_multiple_of(LANES);
        for start in depth.clone().step_by(chain) {
            let part = start..(start + chain).min(depth.end);
            let mut row = block.rows.start;
            for tile in block.tiles.chunks_exact(R * depth.len()) {
                let a = &tile[(part.start - depth.start) * R..(part.end - depth.start) * R];
                self.tile_of::<S, R, Q, V>(simd, a.as_chunks::<R>().0, row, panel, part.clone());
                row += R;
            }
            while row + R <= block.rows.end {
                self.tile::<S, R, Q, V>(simd, row, panel, part.clone());
                row += R;
            }
            // What is left of them: a few tiles of lower height.
            if R > 8 && row + 8 <= block.rows.end {
                self.tile::<S, 8, Q, V>(simd, row, panel, part.clone());
                row += 8;
            }
            while row + 4 <= block.rows.end {
                self.tile::<S, 4, Q, V>(simd, row, panel, part.clone());
                row += 4;
            }
            while row + 2 <= block.rows.end {
                self.tile::<S, 2, Q, V>(simd, row, panel, part.clone());
                row += 2;
            }
            if row < block.rows.end {
                self.tile::<S, 1, Q, V>(simd, row, panel, part);
            }
        }
    }

    /// Of rows that were brought together.
    #[inline(always)]
    fn tile_of<S: Simd, const R: usize, const Q: usize, const V: usize>(
        &mut self,
        simd: S,
        a: &[[f32; R]],
        row: usize,
        panel: usize,
        part: Range<usize>,
    ) {
        let mut sums = [[[simd.splat_f32s(0.0); V]; Q]; R];
        let mut b = [&[[0.0f32; LANES]; 0][..]; Q];
        for (q, b) in b.iter_mut().enumerate() {
            *b = self.b[(panel + q) * self.b_panel..][part.start * LANES..part.end * LANES]
                .as_chunks::<LANES>()
                .0;
        }
        for (c, a) in a.iter().enumerate() {
            let mut factors = [[simd.splat_f32s(0.0); V]; Q];
            for q in 0..Q {
                let (vectors, _) = S::as_simd_f32s(&b[q][c]);
                factors[q][..V].copy_from_slice(&vectors[..V]);
            }
            for r in 0..R {
                let factor = simd.splat_f32s(a[r]);
                for q in 0..Q {
                    for v in 0..V {
                        sums[r][q][v] = simd.mul_add_f32s(factor, factors[q][v], sums[r][q][v]);
                    }
                }
            }
        }
        self.put(simd, in_memory::<S, R, Q, V>(sums), row, panel, part.start);
    }

    /// Writes a tile's sums over the part of the depth that begins at `start`.
    #[inline(always)]
    fn put<S: Simd, const R: usize, const Q: usize>(
        &mut self,
        simd: S,
        done: [[[f32; LANES]; Q]; R],
        row: usize,
        panel: usize,
        start: usize,
    ) {
        let place = Place {
            is_added: self.place.is_added || start > 0,
            ..self.place
        };
        for (r, panels) in done.iter().enumerate() {
            for (q, sums) in panels.iter().enumerate() {
                let at = (row + r) * place.row;
                store(simd, self.out, place, at, panel + q, sums);
            }
        }
    }

    #[inline(always)]
    #[expect(
        clippy::needless_range_loop,
        reason = "the sums stay in registers only where plain numbers index them"
    )]
    fn tile<S: Simd, const R: usize, const Q: usize, const V: usize>(
        &mut self,
        simd: S,
        row: usize,
        panel: usize,
        part: Range<usize>,
    ) {
        let mut sums = [[[simd.splat_f32s(0.0); V]; Q]; R];
        let mut b = [&self.b[..0]; Q];
        for (q, b) in b.iter_mut().enumerate() {
            *b = &self.b[(panel + q) * self.b_panel..][part.start * LANES..part.end * LANES];
        }
        let mut rows = [&self.a[..0]; R];
        for r in 0..R {
            rows[r] = &self.a[part.start / LANES * self.a_panel + (row + r) * self.a_row..];
        }
        for at in 0..part.len() / LANES {
            let mut a = [&[0.0f32; LANES]; R];
            for r in 0..R {
                a[r] = &rows[r][at * self.a_panel..].as_chunks::<LANES>().0[0];
            }
            let mut factors = [[simd.splat_f32s(0.0); V]; Q];
            let mut blocks = [&[[0.0f32; LANES]; 0][..]; Q];
            for q in 0..Q {
                blocks[q] = b[q][at * LANES * LANES..][..LANES * LANES].as_chunks::<LANES>().0;
            }
            for c in 0..LANES {
                for q in 0..Q {
                    let (vectors, _) = S::as_simd_f32s(&blocks[q][c]);
                    factors[q][..V].copy_from_slice(&vectors[..V]);
                }
                for r in 0..R {
                    let factor = simd.splat_f32s(a[r][c]);
                    for q in 0..Q {
                        for v in 0..V {
                            sums[r][q][v] = simd.mul_add_f32s(factor, factors[q][v], sums[r][q][v]);
                        }
                    }
                }
            }
        }
        let rest = part.len() % LANES;
        if rest > 0 {
            let at = part.len() / LANES;
            let mut a = [[0.0f32; LANES]; R];
            for r in 0..R {
                a[r][..rest].copy_from_slice(&rows[r][at * self.a_panel..][..rest]);
            }
            for c in 0..rest {
                for r in 0..R {
                    let factor = simd.splat_f32s(a[r][c]);
                    for q in 0..Q {
                        let (factors, _) = S::as_simd_f32s(&b[q][(at * LANES + c) * LANES..][..LANES]);
                        for v in 0..V {
                            sums[r][q][v] = simd.mul_add_f32s(factor, factors[v], sums[r][q][v]);
                        }
                    }
                }
            }
        }
        self.put(simd, in_memory::<S, R, Q, V>(sums), row, panel, part.start);
    }
}

/// Sums out of their registers. What is done with them afterwards takes loops that are not unrolled, and an array that those
/// index would be kept in memory all the time.
#[inline(always)]
pub(crate) fn in_memory<S: Simd, const R: usize, const Q: usize, const V: usize>(
    sums: [[[S::f32s; V]; Q]; R],
) -> [[[f32; LANES]; Q]; R] {
    let mut done = [[[0.0; LANES]; Q]; R];
    for r in 0..R {
        for q in 0..Q {
            let (vectors, _) = S::as_mut_simd_f32s(&mut done[r][q]);
            vectors[..V].copy_from_slice(&sums[r][q]);
        }
    }
    done
}

/// Writes one row of a panel at `at` plus the panel's own offset.
#[inline(always)]
fn store<S: Simd>(simd: S, out: &mut [f32], place: Place, at: usize, panel: usize, sums: &[f32; LANES]) {
    let n = (place.n_columns - panel * LANES).min(LANES);
    let out = &mut out[at + panel * place.panel..][..n];
    if n == LANES {
        let (out, sums) = (S::as_mut_simd_f32s(out).0, S::as_simd_f32s(sums).0);
        for (out, sums) in out.iter_mut().zip(sums) {
            *out = if place.is_added {
                simd.add_f32s(*out, *sums)
            } else {
                *sums
            };
        }
        return;
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = if place.is_added { *out + sum } else { *sum };
    }
}

/// `out[c, k] = Σ_p a[p, c] · b[p, k]` over `n_rows` rows of both; rows of `out` are columns of `a`. `b` is in panels, `a` too or,
/// where it has whole panels of columns, in rows.
pub(crate) struct Outer<'a> {
    pub(crate) a: &'a [f32],
    /// From one row of `a` to the next.
    pub(crate) a_row: usize,
    /// From sixteen columns of `a` to the next.
    pub(crate) a_panel: usize,
    /// Columns of `a` that are rows of `out`.
    pub(crate) n_a: usize,
    pub(crate) b: &'a [f32],
    /// From one panel of `b` to the next.
    pub(crate) b_panel: usize,
    pub(crate) n_rows: usize,
    pub(crate) out: &'a mut [f32],
    pub(crate) place: Place,
}

impl Outer<'_> {
    pub(crate) fn run(self) {
        pulp::Arch::new().dispatch(self);
    }
}

impl WithSimd for Outer<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let n_panels = self.place.n_columns.div_ceil(LANES);
        for block in (0..n_panels).step_by(BLOCK) {
            let panels = block..(block + BLOCK).min(n_panels);
            for start in (0..self.n_rows).step_by(OUTER_ROWS) {
                let rows = start..(start + OUTER_ROWS).min(self.n_rows);
                match S::F32_LANES {
                    16 => self.pairs(simd, rows, panels.clone()),
                    8 => self.singles::<S, 4, 2>(simd, rows, panels.clone()),
                    4 => self.singles::<S, 2, 4>(simd, rows, panels.clone()),
                    _ => self.singles::<S, 1, 16>(simd, rows, panels.clone()),
                }
            }
        }
    }
}

impl Outer<'_> {
    #[inline(always)]
    fn pairs<S: Simd>(&mut self, simd: S, rows: Range<usize>, panels: Range<usize>) {
        let mut panel = panels.start;
        while panel + 2 <= panels.end {
            self.columns::<S, 8, 2, 1>(simd, rows.clone(), panel);
            panel += 2;
        }
        if panel < panels.end {
            self.columns::<S, 16, 1, 1>(simd, rows, panel);
        }
    }

    #[inline(always)]
    fn singles<S: Simd, const R: usize, const V: usize>(
        &mut self,
        simd: S,
        rows: Range<usize>,
        panels: Range<usize>,
    ) {
        for panel in panels {
            self.columns::<S, R, 1, V>(simd, rows.clone(), panel);
        }
    }

    #[inline(always)]
    fn columns<S: Simd, const R: usize, const Q: usize, const V: usize>(
        &mut self,
        simd: S,
        rows: Range<usize>,
        panel: usize,
    ) {
        for column in (0..self.n_a).step_by(R) {
            self.tile::<S, R, Q, V>(simd, rows.clone(), column, panel);
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const R: usize, const Q: usize, const V: usize>(
        &mut self,
        simd: S,
        rows: Range<usize>,
        column: usize,
        panel: usize,
    ) {
        let mut sums = [[[simd.splat_f32s(0.0); V]; Q]; R];
        let part = rows.start * LANES..rows.end * LANES;
        let first = column / LANES * self.a_panel + column % LANES + rows.start * self.a_row;
        let a = self.a[first..].chunks(self.a_row).take(rows.len());
        let mut b = [&[[0.0f32; LANES]; 0][..]; Q];
        for (q, b) in b.iter_mut().enumerate() {
            *b = self.b[(panel + q) * self.b_panel..][part.clone()]
                .as_chunks::<LANES>()
                .0;
        }
        for (p, a) in a.enumerate() {
            let a = &a[..R];
            let mut factors = [[simd.splat_f32s(0.0); V]; Q];
            for q in 0..Q {
                let (vectors, _) = S::as_simd_f32s(&b[q][p]);
                factors[q][..V].copy_from_slice(&vectors[..V]);
            }
            for r in 0..R {
                let factor = simd.splat_f32s(a[r]);
                for q in 0..Q {
                    for v in 0..V {
                        sums[r][q][v] = simd.mul_add_f32s(factor, factors[q][v], sums[r][q][v]);
                    }
                }
            }
        }
        let done = in_memory::<S, R, Q, V>(sums);
        let place = Place {
            is_added: self.place.is_added || rows.start > 0,
            ..self.place
        };
        for (r, panels) in done.iter().enumerate().take(self.n_a - column) {
            for (q, sums) in panels.iter().enumerate() {
                let at = (column + r) * place.row;
                store(simd, self.out, place, at, panel + q, sums);
            }
        }
    }
}

/// Rows that lie `stride` apart into panels.
pub(crate) fn pack(rows: &[f32], stride: usize, n_rows: usize, n_columns: usize, out: &mut [f32]) {
    /// Panels that are filled side by side, since what lies side by side is read at once.
    const AT_ONCE: usize = 8;
    for (idx, out) in out.chunks_mut(AT_ONCE * n_rows * LANES).enumerate() {
        let first = idx * AT_ONCE * LANES;
        for row in 0..n_rows {
            let from = &rows[row * stride + first..];
            let from = from[..(n_columns - first).min(AT_ONCE * LANES)].chunks(LANES);
            for (panel, from) in from.enumerate() {
                let out = &mut out[(panel * n_rows + row) * LANES..][..LANES];
                match <&[f32; LANES]>::try_from(from) {
                    Ok(from) => out.copy_from_slice(from),
                    Err(_) => {
                        out[..from.len()].copy_from_slice(from);
                        out[from.len()..].fill(0.0);
                    }
                }
            }
        }
    }
}

/// The transpose of rows `[n_columns, n_rows]` that lie `stride` apart into panels of `n_rows` rows.
pub(crate) fn pack_transposed(rows: &[f32], stride: usize, n_rows: usize, n_columns: usize, out: &mut [f32]) {
    for (panel, out) in out.chunks_exact_mut(n_rows * LANES).enumerate() {
        let n = (n_columns - panel * LANES).min(LANES);
        let (out, _) = out.as_chunks_mut::<LANES>();
        if n < LANES {
            out.as_flattened_mut().fill(0.0);
        }
        // A few columns at a time, so that the lines that are written stay near.
        for start in (0..n_rows).step_by(LANES) {
            let end = (start + LANES).min(n_rows);
            for lane in 0..n {
                let from = &rows[(panel * LANES + lane) * stride..][start..end];
                for (out, from) in out[start..end].iter_mut().zip(from) {
                    out[lane] = *from;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small whole numbers: every sum is exact in any order.
    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * seed) % 13) as f32 - 6.0).collect()
    }

    /// `[rows, columns]` as panels, which are to have `depth` rows.
    fn panels(values: &[f32], n_columns: usize, depth: usize) -> Vec<f32> {
        let mut out = vec![0.0; panels_len(depth, n_columns)];
        for (i, value) in values.iter().enumerate() {
            let (row, column) = (i / n_columns, i % n_columns);
            out[(column / LANES * depth + row) * LANES + column % LANES] = *value;
        }
        out
    }

    fn place(n_columns: usize) -> Place {
        Place {
            row: n_columns,
            panel: LANES,
            n_columns,
            is_added: true,
        }
    }

    #[test]
    fn packed_rows_are_panels() {
        for (n_rows, n_columns) in [(1, 1), (3, 16), (5, 150), (2, 263)] {
            let values = numbers(n_rows * n_columns, 7);
            let mut out = vec![9.0; panels_len(n_rows, n_columns)];
            pack(&values, n_columns, n_rows, n_columns, &mut out);
            assert_eq!(out, panels(&values, n_columns, n_rows));
        }
    }

    #[test]
    fn products_are_their_definition_beyond_their_blocks() {
        for (n_rows, depth, n_columns) in [
            (1, 16, 5),
            (19, 32, 48),
            (23, 41, 48),
            (31, 7, 200),
            (2 * ROWS + 23, DEPTH + CHAIN + 16, 40),
            (ROWS + 23, CHAIN + 16, (WORTH + 1) * LANES + 3),
        ] {
            let (a, b) = (numbers(n_rows * depth, 5), numbers(depth * n_columns, 11));
            let sum = |row: usize, column: usize| -> f32 {
                (0..depth)
                    .map(|c| a[row * depth + c] * b[c * n_columns + column])
                    .sum()
            };
            let expected: Vec<f32> = (0..n_rows * n_columns)
                .map(|i| 1.0 + sum(i / n_columns, i % n_columns))
                .collect();
            let in_panels = panels(&a, depth, n_rows);
            for (a, a_row, a_panel) in [(&in_panels, LANES, n_rows * LANES), (&a, depth, LANES)] {
                let mut out = vec![1.0; n_rows * n_columns];
                Product {
                    a,
                    a_row,
                    a_panel,
                    n_rows,
                    depth,
                    b: &panels(&b, n_columns, depth),
                    b_panel: depth * LANES,
                    out: &mut out,
                    place: place(n_columns),
                }
                .run();
                assert_eq!(out, expected, "{n_rows} x {depth} x {n_columns}");
            }
        }
    }

    #[test]
    fn products_are_the_same_to_the_bit_without_vectors_and_for_fewer_rows() {
        for (n_rows, depth, n_panels) in [
            (1, 16, 1),
            (15, 41, 3),
            (29, 300, 2),
            (ROWS + 9, DEPTH + 30, WORTH + 1),
        ] {
            let a: Vec<f32> = (0..n_rows * depth)
                .map(|i| (i * 7919 % 1013) as f32 / 506.5 - 1.0)
                .collect();
            let b: Vec<f32> = (0..depth * n_panels * LANES)
                .map(|i| (i * 6007 % 1009) as f32 / 504.5 - 1.0)
                .collect();
            let product = |rows: Range<usize>, panels: usize, has_vectors: bool| {
                let mut out = vec![0.0f32; rows.len() * panels * LANES];
                let product = Product {
                    a: &a[rows.start * depth..],
                    a_row: depth,
                    a_panel: LANES,
                    n_rows: rows.len(),
                    depth,
                    b: &b,
                    b_panel: depth * LANES,
                    out: &mut out,
                    place: Place {
                        is_added: false,
                        ..place(panels * LANES)
                    },
                };
                if has_vectors {
                    product.run();
                } else {
                    product.with_simd(pulp::Scalar);
                }
                out.iter().map(|v| v.to_bits()).collect::<Vec<u32>>()
            };
            let whole = product(0..n_rows, n_panels, true);
            assert_eq!(
                whole,
                product(0..n_rows, n_panels, false),
                "{n_rows} x {depth} x {n_panels}"
            );
            for row in [0, n_rows - 1] {
                let alone = product(row..row + 1, 1, true);
                assert_eq!(
                    alone,
                    whole[row * n_panels * LANES..][..LANES],
                    "row {row} of {n_rows}"
                );
            }
        }
    }

    #[test]
    fn outer_products_are_their_definition_beyond_their_blocks() {
        for (n_rows, n_a, n_b) in [
            (1, 3, 5),
            (9, 16, 33),
            (OUTER_ROWS + 23, 37, (BLOCK + 1) * LANES + 4),
        ] {
            let (a, b) = (numbers(n_rows * n_a, 5), numbers(n_rows * n_b, 11));
            let sum = |i: usize, j: usize| -> f32 {
                (0..n_rows).map(|row| a[row * n_a + i] * b[row * n_b + j]).sum()
            };
            let mut out = vec![1.0; n_a * n_b];
            Outer {
                a: &panels(&a, n_a, n_rows),
                a_row: LANES,
                a_panel: n_rows * LANES,
                n_a,
                b: &panels(&b, n_b, n_rows),
                b_panel: n_rows * LANES,
                n_rows,
                out: &mut out,
                place: place(n_b),
            }
            .run();
            let expected: Vec<f32> = (0..n_a * n_b).map(|i| 1.0 + sum(i / n_b, i % n_b)).collect();
            assert_eq!(out, expected, "{n_rows} x {n_a} x {n_b}");
        }
    }
}
