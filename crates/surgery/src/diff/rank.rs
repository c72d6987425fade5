//! The numerical rank of what was added to a matrix: low where adapters (LoRA) were folded in.
//!
//! Of the difference D [M, N] at most 128 rows are looked at, spread evenly, which have the rank of the whole unless the whole has more than
//! them; their products with 80 columns of random signs have it too (Halko, Martinsson and Tropp, "Finding structure with randomness",
//! SIAM Review 2011, 4.1). Gram-Schmidt with pivots counts the directions above what rounding alone would leave.

use pth::{DType, Error, Tensor};

use super::verdict::Products;
use crate::lazy::to_f64;

/// Ranks above are not low, whatever the matrix.
const MAX_RANK: usize = 64;
/// A few more than the rank that is looked for, as the paper advises.
const N_COLUMNS: usize = MAX_RANK + 16;
const N_ROWS: usize = 2 * MAX_RANK;
/// From this size on, `pth` reads from the file and not through its map.
const MIN_READ_BYTES: usize = 1 << 16;
/// A low rank is at most this part of what the matrix could have.
const MIN_SIDE_PER_RANK: usize = 4;

/// Whether the rank of a difference between such tensors says anything.
pub(super) fn is_candidate(a: &Tensor, b: &Tensor) -> bool {
    let is_matrix = matches!(a.shape(), &[m, n] if m.min(n) >= 2 * MIN_SIDE_PER_RANK);
    is_matrix && a.dtype() == b.dtype() && spacing(a.dtype()).is_some()
}

/// Twice the relative error of rounding to the type, and the distance of its smallest numbers.
fn spacing(dtype: DType) -> Option<(f64, f64)> {
    match dtype {
        DType::Float16 => Some((2_f64.powi(-10), 2_f64.powi(-24))),
        DType::BFloat16 => Some((2_f64.powi(-7), 2_f64.powi(-133))),
        DType::Float32 => Some((2_f64.powi(-23), 2_f64.powi(-149))),
        DType::Float64 => Some((2_f64.powi(-52), 0.0)),
        _ => None,
    }
}

/// The rank of `b - a`, matrices of one shape and type with these `products`, if it is low and not lost in rounding.
pub(super) fn low_rank(a: &Tensor, b: &Tensor, products: Products) -> Result<Option<usize>, Error> {
    let (&[m, n], Some((relative, smallest))) = (a.shape(), spacing(a.dtype())) else {
        return Ok(None);
    };
    // A number that is rounded to a grid of spacing s errs by s^2 / 12 in the mean square; both the sum and, where the adapter was
    // multiplied out in the same type, its product were rounded.
    let numel = (m * n) as f64;
    let spacing_squared = relative * relative * (products.bb + products.dd) / numel + smallest * smallest;
    let noise = spacing_squared / 12.0;
    if products.dd <= 4.0 * noise * numel {
        return Ok(None);
    }
    let n_rows = m.min(N_ROWS);
    let mut columns = sketch(a, b, n_rows)?;
    // Each of a column's elements is the sum of n errors with random signs; three times that is beyond chance.
    let floor = 3.0 * (noise * n as f64 * n_rows as f64).sqrt();
    let limit = MAX_RANK.min(m.min(n) / MIN_SIDE_PER_RANK);
    Ok(count_directions(&mut columns, floor, limit).filter(|&rank| rank > 0))
}

/// Evenly spread rows of `b - a` times random signs: the columns of a matrix [n_rows, N_COLUMNS].
fn sketch(a: &Tensor, b: &Tensor, n_rows: usize) -> Result<Vec<Vec<f64>>, Error> {
    let (m, n) = (a.shape()[0], a.shape()[1]);
    let size = a.dtype().size();
    // Small parts of a mapped file come through the map, whose pages then count as this process's memory; a few rows together do not.
    let n_together = MIN_READ_BYTES.div_ceil(n * size);
    let (mut bytes_a, mut bytes_b) = (vec![0; n_together * n * size], vec![0; n_together * n * size]);
    let (mut x, mut y) = (vec![0.0; n], vec![0.0; n]);
    let mut columns = vec![vec![0.0; n_rows]; N_COLUMNS];
    for row in 0..n_rows {
        let at = row * (m / n_rows);
        let n_read = n_together.min(m - at);
        for (tensor, bytes, values) in [(a, &mut bytes_a, &mut x), (b, &mut bytes_b, &mut y)] {
            let bytes = &mut bytes[..n_read * n * size];
            tensor.slice_in(0, at, n_read, 1)?.reader_at(0)?.read(bytes)?;
            to_f64(a.dtype(), &bytes[..n * size], values);
        }
        let mut sums = [0.0; N_COLUMNS];
        for (j, (x, y)) in x.iter().zip(&y).enumerate() {
            let d = y - x;
            if d != 0.0 && d.is_finite() {
                add_signed(d, j, &mut sums);
            }
        }
        for (column, sum) in columns.iter_mut().zip(sums) {
            column[row] = sum;
        }
    }
    Ok(columns)
}

/// Adds `d` with the random signs of row `j` of the test matrix.
fn add_signed(d: f64, j: usize, sums: &mut [f64; N_COLUMNS]) {
    let seed = j as u64;
    for (word, sums) in sums.chunks_mut(64).enumerate() {
        let bits = split_mix(2 * seed + word as u64);
        for (c, sum) in sums.iter_mut().enumerate() {
            let sign = ((bits >> c) & 1) << 63;
            *sum += f64::from_bits(d.to_bits() ^ sign);
        }
    }
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): 64 random bits for each number.
fn split_mix(n: u64) -> u64 {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// How many orthogonal directions longer than `floor` the columns have, if not more than `limit`.
fn count_directions(columns: &mut [Vec<f64>], floor: f64, limit: usize) -> Option<usize> {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let longest = |columns: &[Vec<f64>]| {
        let lengths = columns.iter().map(|column| dot(column, column).sqrt());
        lengths.enumerate().fold(
            (0, 0.0),
            |best, (i, length)| {
                if length > best.1 { (i, length) } else { best }
            },
        )
    };
    // Orthogonalising in float64 leaves this much of what is taken away.
    let floor = floor.max(1e-12 * longest(columns).1);
    for rank in 0..=limit {
        let (at, length) = longest(&columns[rank..]);
        if length <= floor {
            return Some(rank);
        }
        columns.swap(rank, rank + at);
        let (done, rest) = columns.split_at_mut(rank + 1);
        let direction = &mut done[rank];
        direction.iter_mut().for_each(|x| *x /= length);
        for column in rest {
            let along = dot(direction, column);
            column
                .iter_mut()
                .zip(&*direction)
                .for_each(|(x, u)| *x -= along * u);
        }
    }
    None
}
