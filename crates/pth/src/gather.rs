//! Part of a strided view into contiguous memory, without its beginning having been gathered.
//!
//! Where neighbours in the source are far apart in the result (a transposed matrix), it goes tile by tile, so that each cache line
//! of the source is read once and each of the result written once.

/// Items of a tile per side: 16 numbers of 4 bytes are a cache line.
const TILE: usize = 16;

/// A neighbour in the source that is nearer than this shares its cache line.
const LINE_BYTES: usize = 64;

/// A strided view in bytes.
#[derive(Debug)]
pub(crate) struct Strided {
    /// Bytes of an element.
    element: usize,
    /// Sizes and steps in bytes, outermost first; without dimensions of one element, and merged where two are one.
    dims: Vec<Dim>,
}

/// Size, and step in bytes.
type Dim = (usize, usize);

impl Strided {
    /// `stride` in elements, `element` in bytes. The caller has proven the extent.
    pub(crate) fn new(shape: &[usize], stride: &[usize], element: usize) -> Strided {
        let mut dims: Vec<Dim> = Vec::with_capacity(shape.len());
        for (&size, &step) in shape.iter().zip(stride).filter(|(size, _)| **size != 1) {
            // An empty view has strides that prove nothing.
            let step = step.saturating_mul(element);
            match dims.last_mut() {
                Some(outer) if Some(outer.1) == step.checked_mul(size) => {
                    *outer = (outer.0 * size, step);
                }
                _ => dims.push((size, step)),
            }
        }
        Strided { element, dims }
    }

    /// Fills `out`, whole elements, with the view's elements from `first` on. The view begins at byte `base` of `source`.
    pub(crate) fn fill(&self, source: &[u8], base: usize, first: usize, out: &mut [u8]) {
        let end = first + out.len() / self.element;
        self.part(&self.dims, source, base, first..end, out);
    }

    /// The elements `range` of the view of `dims`, in row-major order.
    fn part(&self, dims: &[Dim], source: &[u8], base: usize, range: std::ops::Range<usize>, out: &mut [u8]) {
        if range.is_empty() {
            return;
        }
        let Some((&(_, step), inner)) = dims.split_first() else {
            out.copy_from_slice(&source[base..base + self.element]);
            return;
        };
        let row: usize = inner.iter().map(|dim| dim.0).product();
        let (mut first, last) = (range.start / row, (range.end - 1) / row);
        if first == last {
            let range = range.start - first * row..range.end - first * row;
            return self.part(inner, source, base + first * step, range, out);
        }
        let mut out = out;
        let head = range.start % row;
        if head > 0 {
            let (now, later) = out.split_at_mut((row - head) * self.element);
            self.part(inner, source, base + first * step, head..row, now);
            out = later;
            first += 1;
        }
        let whole_end = range.end / row;
        let (now, out) = out.split_at_mut((whole_end - first) * row * self.element);
        if whole_end > first {
            let mut whole = vec![(whole_end - first, step)];
            whole.extend_from_slice(inner);
            whole.retain(|dim| dim.0 != 1);
            self.whole(&whole, source, base + first * step, now);
        }
        let tail = range.end % row;
        self.part(inner, source, base + whole_end * step, 0..tail, out);
    }

    /// All elements of the view of `dims`.
    fn whole(&self, dims: &[Dim], source: &[u8], base: usize, out: &mut [u8]) {
        // The dense innermost dimension is one item.
        let (dims, item) = match dims.split_last() {
            Some((&(size, step), outer)) if step == self.element => (outer, size * self.element),
            _ => (dims, self.element),
        };
        match item {
            1 => items::<1>(dims, source, base, out),
            2 => items::<2>(dims, source, base, out),
            4 => items::<4>(dims, source, base, out),
            8 => items::<8>(dims, source, base, out),
            16 => items::<16>(dims, source, base, out),
            _ => {
                let mut at = 0;
                each(dims, base, &mut |from| {
                    out[at..at + item].copy_from_slice(&source[from..from + item]);
                    at += item;
                });
            }
        }
    }
}

/// Calls `visit` with the place of each item, in row-major order.
fn each(dims: &[Dim], base: usize, visit: &mut impl FnMut(usize)) {
    match dims.split_first() {
        None => visit(base),
        Some((&(size, step), inner)) => (0..size).for_each(|i| each(inner, base + i * step, visit)),
    }
}

/// All items of `W` bytes.
fn items<const W: usize>(dims: &[Dim], source: &[u8], base: usize, out: &mut [u8]) {
    let Some((&(n_columns, column_step), outer)) = dims.split_last() else {
        out.copy_from_slice(&source[base..base + W]);
        return;
    };
    // The dimension along which neighbours share a cache line, if that is not the innermost anyway.
    let rows = (0..outer.len())
        .filter(|&d| outer[d].1 > 0 && outer[d].1 < column_step && outer[d].1 < LINE_BYTES)
        .min_by_key(|&d| outer[d].1);
    let Some(rows) = rows else {
        let mut slots = out.chunks_exact_mut(W);
        each(outer, base, &mut |from| {
            for (i, slot) in slots.by_ref().take(n_columns).enumerate() {
                let from = from + i * column_step;
                slot.copy_from_slice(&source[from..from + W]);
            }
        });
        return;
    };
    let (n_rows, row_step) = outer[rows];
    // Dimensions around the tiles, with their steps in the result.
    let mut around: Vec<(usize, usize, usize)> = Vec::with_capacity(outer.len());
    let (mut to_step, mut row_to) = (n_columns * W, 0);
    for (d, &(size, step)) in outer.iter().enumerate().rev() {
        if d == rows {
            row_to = to_step;
        } else {
            around.push((size, step, to_step));
        }
        to_step *= size;
    }
    around.reverse();
    let tiles = Tiles {
        n_rows,
        row_step,
        row_to,
        n_columns,
        column_step,
    };
    each_pair(&around, base, 0, &mut |from, to| {
        tiles.transpose::<W>(source, from, out, to);
    });
}

fn each_pair(dims: &[(usize, usize, usize)], from: usize, to: usize, visit: &mut impl FnMut(usize, usize)) {
    match dims.split_first() {
        None => visit(from, to),
        Some((&(size, step, to_step), inner)) => {
            (0..size).for_each(|i| each_pair(inner, from + i * step, to + i * to_step, visit));
        }
    }
}

/// Rows and columns of the result; rows are near each other in the source, columns in the result.
struct Tiles {
    n_rows: usize,
    row_step: usize,
    row_to: usize,
    n_columns: usize,
    column_step: usize,
}

impl Tiles {
    fn transpose<const W: usize>(&self, source: &[u8], from: usize, out: &mut [u8], to: usize) {
        // Through a tile of its own: lines that are a power of two apart would drive each other out of the cache.
        let mut tile = [[[0_u8; W]; TILE]; TILE];
        for row in (0..self.n_rows).step_by(TILE) {
            let n_rows = TILE.min(self.n_rows - row);
            for column in (0..self.n_columns).step_by(TILE) {
                let n_columns = TILE.min(self.n_columns - column);
                for j in 0..n_columns {
                    let from = from + row * self.row_step + (column + j) * self.column_step;
                    let near = &source[from..from + (n_rows - 1) * self.row_step + W];
                    if self.row_step == W {
                        for (line, item) in tile.iter_mut().zip(near.chunks_exact(W)) {
                            line[j].copy_from_slice(item);
                        }
                    } else {
                        for (i, line) in tile.iter_mut().enumerate().take(n_rows) {
                            line[j].copy_from_slice(&near[i * self.row_step..i * self.row_step + W]);
                        }
                    }
                }
                for (i, line) in tile.iter().enumerate().take(n_rows) {
                    let to = to + (row + i) * self.row_to + column * W;
                    out[to..to + n_columns * W].copy_from_slice(line[..n_columns].as_flattened());
                }
            }
        }
    }
}
