//! Features as a matrix: rows of one length that stay where they are, in a file's map or in memory, and become float32 a
//! few at a time. A copy and a selection share them.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::try_cast_slice;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use pth::Storage;

use super::key::FeatureType;
use crate::error::Error;

/// `[N, D]`, every number finite; float32 or float16 underneath.
#[derive(Debug, Clone)]
pub struct Features {
    pieces: Arc<[Piece]>,
    order: Order,
    n_rows: usize,
    n_features: usize,
    /// No number is larger in absolute value.
    largest: f32,
}

/// Rows that lie one after another.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    numbers: Numbers,
    n_rows: usize,
}

#[derive(Debug, Clone)]
enum Numbers {
    Owned(Vec<f32>),
    /// Little-endian, and to be had without reading: [`Piece::stored`] sees to that.
    Stored(Storage, FeatureType),
}

/// Which rows there are.
#[derive(Debug, Clone)]
enum Order {
    /// Rows of the only piece, from this one on.
    From(usize),
    /// Piece and row of each.
    Picked(Arc<[(u32, u32)]>),
}

impl Piece {
    /// Rows of `n_features` numbers that `storage` holds, a map or memory.
    ///
    /// # Errors
    /// The file's, where its bytes can only be had by reading and that fails.
    pub(crate) fn stored(
        storage: Storage,
        dtype: FeatureType,
        n_features: usize,
    ) -> Result<Piece, pth::Error> {
        let n_bytes = storage.nbytes();
        let owned = match storage.read(0..n_bytes)? {
            Cow::Borrowed(_) => None,
            Cow::Owned(bytes) => Some(Storage::owned(bytes)),
        };
        let n_rows = n_bytes / (dtype.n_bytes() * n_features.max(1));
        let numbers = Numbers::Stored(owned.unwrap_or(storage), dtype);
        Ok(Piece { numbers, n_rows })
    }

    /// These rows, borrowed where they are float32 in this machine's order at an address that suits.
    fn slice(&self, rows: Range<usize>, n_features: usize) -> Stretch<'_> {
        let numbers = rows.start * n_features..rows.end * n_features;
        match &self.numbers {
            Numbers::Owned(values) => Stretch::Ready(&values[numbers]),
            Numbers::Stored(storage, dtype) => {
                let size = dtype.n_bytes();
                let bytes = storage.read(numbers.start * size..numbers.end * size);
                let Ok(Cow::Borrowed(bytes)) = bytes else {
                    unreachable!("a piece is made of bytes that need no reading, and rows lie inside")
                };
                match (dtype, try_cast_slice::<u8, f32>(bytes)) {
                    (FeatureType::Float32, Ok(values)) if cfg!(target_endian = "little") => {
                        Stretch::Ready(values)
                    }
                    _ => Stretch::Raw(bytes, *dtype),
                }
            }
        }
    }
}

enum Stretch<'p> {
    Ready(&'p [f32]),
    Raw(&'p [u8], FeatureType),
}

impl Stretch<'_> {
    /// Writes all its numbers.
    fn write_to(&self, out: &mut [f32]) {
        match *self {
            Stretch::Ready(values) => out.copy_from_slice(values),
            Stretch::Raw(bytes, FeatureType::Float32) => {
                for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *out = f32::from_le_bytes(bytes.try_into().expect("chunks of four"));
                }
            }
            Stretch::Raw(bytes, FeatureType::Float16) => match try_cast_slice::<u8, u16>(bytes) {
                Ok(bits) if cfg!(target_endian = "little") => {
                    bits.reinterpret_cast::<half::f16>().convert_to_f32_slice(out);
                }
                _ => {
                    for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                        *out = half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
                    }
                }
            },
        }
    }
}

impl Features {
    /// Takes rows of `n_features` numbers after one another.
    ///
    /// # Errors
    /// [`Error::Features`] where the numbers make no whole rows or one is not finite; the first such row is named.
    pub fn new(values: Vec<f32>, n_features: usize) -> Result<Features, Error> {
        if n_features == 0 || !values.len().is_multiple_of(n_features) {
            return Err(Error::Features(format!(
                "{} numbers do not make rows of {n_features}",
                values.len()
            )));
        }
        let n_rows = values.len() / n_features;
        let numbers = Numbers::Owned(values);
        let features = Features {
            pieces: Arc::new([Piece { numbers, n_rows }]),
            order: Order::From(0),
            n_rows,
            n_features,
            largest: 0.0,
        };
        features.measured(|row| format!("row {row}"))
    }

    /// The rows of one piece, in order.
    ///
    /// # Errors
    /// As [`Features::new`].
    pub(crate) fn of_piece(piece: Piece, n_features: usize) -> Result<Features, Error> {
        let features = Features {
            n_rows: piece.n_rows,
            pieces: Arc::new([piece]),
            order: Order::From(0),
            n_features,
            largest: 0.0,
        };
        features.measured(|row| format!("row {row}"))
    }

    /// The rows that `picked` lists as piece and row; `name` is how an error calls one.
    ///
    /// # Errors
    /// [`Error::Features`] for a number that is not finite.
    pub(crate) fn picked(
        pieces: Arc<[Piece]>,
        picked: Vec<(u32, u32)>,
        n_features: usize,
        name: impl Fn(usize) -> String,
    ) -> Result<Features, Error> {
        let features = Features {
            n_rows: picked.len(),
            pieces,
            order: Order::Picked(picked.into()),
            n_features,
            largest: 0.0,
        };
        features.measured(name)
    }

    /// N.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// D.
    pub fn n_features(&self) -> usize {
        self.n_features
    }

    /// Some rows, `[rows.len(), D]`: where they lie as float32 one after another they are borrowed, else they are converted
    /// into `scratch`.
    ///
    /// # Panics
    /// Where there are fewer rows.
    pub fn rows<'a>(&'a self, rows: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        assert!(
            rows.start <= rows.end && rows.end <= self.n_rows,
            "rows {rows:?} of {}",
            self.n_rows
        );
        let d = self.n_features;
        match &self.order {
            Order::From(first) => match self.pieces[0].slice(first + rows.start..first + rows.end, d) {
                Stretch::Ready(values) => values,
                raw => {
                    scratch.resize(rows.len() * d, 0.0);
                    raw.write_to(scratch);
                    scratch
                }
            },
            Order::Picked(picked) => {
                scratch.resize(rows.len() * d, 0.0);
                self.copy(picked[rows].iter().copied(), scratch);
                scratch
            }
        }
    }

    /// The rows at `indices`, in that order, in place of what `into` held.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn gather(&self, indices: &[usize], into: &mut Vec<f32>) {
        into.resize(indices.len() * self.n_features, 0.0);
        self.copy(indices.iter().map(|&row| self.place(row)), into);
    }

    /// The rows at `indices`, in that order; the numbers are shared.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn select(&self, indices: &[usize]) -> Features {
        Features {
            pieces: Arc::clone(&self.pieces),
            order: Order::Picked(indices.iter().map(|&row| self.place(row)).collect()),
            n_rows: indices.len(),
            n_features: self.n_features,
            largest: self.largest,
        }
    }

    /// A row, where it lies as float32.
    pub(crate) fn row(&self, row: usize) -> Option<&[f32]> {
        let (piece, row) = self.place(row);
        let row = row as usize;
        match self.pieces[piece as usize].slice(row..row + 1, self.n_features) {
            Stretch::Ready(values) => Some(values),
            Stretch::Raw(..) => None,
        }
    }

    /// What no number exceeds in absolute value.
    pub(crate) fn largest(&self) -> f32 {
        self.largest
    }

    /// All numbers after one another.
    #[cfg(test)]
    pub(crate) fn values(&self) -> Cow<'_, [f32]> {
        let mut scratch = Vec::new();
        if let Order::From(first) = self.order
            && let Stretch::Ready(values) = self.pieces[0].slice(first..first + self.n_rows, self.n_features)
        {
            return Cow::Borrowed(values);
        }
        self.rows(0..self.n_rows, &mut scratch);
        Cow::Owned(scratch)
    }

    fn place(&self, row: usize) -> (u32, u32) {
        assert!(row < self.n_rows, "row {row} of {}", self.n_rows);
        match &self.order {
            Order::From(first) => (0, u32::try_from(first + row).expect("fewer rows than 2^32")),
            Order::Picked(picked) => picked[row],
        }
    }

    fn copy(&self, places: impl Iterator<Item = (u32, u32)>, out: &mut [f32]) {
        for ((piece, row), out) in places.zip(out.chunks_exact_mut(self.n_features)) {
            let row = row as usize;
            self.pieces[piece as usize]
                .slice(row..row + 1, self.n_features)
                .write_to(out);
        }
    }

    /// With the largest absolute value of all rows, once all are found to be finite.
    fn measured(mut self, name: impl Fn(usize) -> String) -> Result<Features, Error> {
        const CHUNK_NUMBERS: usize = 1 << 16;
        /// Rows that an error names.
        const MAX_NAMED: usize = 5;
        let step = (CHUNK_NUMBERS / self.n_features).max(1);
        let mut scratch = Vec::new();
        let (mut named, mut n_bad, mut largest) = (Vec::new(), 0, 0.0f32);
        for start in (0..self.n_rows).step_by(step) {
            let end = (start + step).min(self.n_rows);
            let values = self.rows(start..end, &mut scratch);
            // One pass without a branch a number.
            let top = max_abs(values);
            if top.is_finite() {
                largest = largest.max(top);
                continue;
            }
            for (row, values) in values.chunks_exact(self.n_features).enumerate() {
                if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                    if named.len() < MAX_NAMED {
                        named.push(format!("{} holds {value}", name(start + row)));
                    }
                    n_bad += 1;
                }
            }
        }
        match n_bad - named.len() {
            _ if n_bad == 0 => {
                self.largest = largest;
                Ok(self)
            }
            0 => Err(Error::Features(named.join(", "))),
            more => Err(Error::Features(format!(
                "{}, and {more} more rows",
                named.join(", ")
            ))),
        }
    }
}

/// The largest absolute value; one that is not a number is larger than all.
#[inline(always)]
pub(crate) fn max_abs(values: &[f32]) -> f32 {
    // The bits of positive numbers are in the order of the numbers, with infinity and then NaN behind them. One plain loop:
    // over lanes it is compiled to gathers.
    let largest = values
        .iter()
        .fold(0, |largest, value| value.abs().to_bits().max(largest));
    f32::from_bits(largest)
}

impl PartialEq for Features {
    /// Whether the numbers are the same, wherever they lie.
    fn eq(&self, other: &Features) -> bool {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        self.n_features == other.n_features
            && self.n_rows == other.n_rows
            && (0..self.n_rows).all(|row| self.rows(row..row + 1, &mut a) == other.rows(row..row + 1, &mut b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_of_numbers_is_found() {
        let values: Vec<f32> = (1..=37).map(|i| 10.0 - i as f32).collect();
        assert_eq!(max_abs(&values), 27.0);
        assert!(max_abs(&[1.0, f32::NAN, f32::INFINITY]).is_nan());
        let features = Features::new(values, 37).unwrap();
        assert_eq!(features.largest(), 27.0);
        assert_eq!(features.select(&[0, 0]).largest(), 27.0);
    }

    fn piece(values: &[f32], dtype: FeatureType) -> Piece {
        let bytes = match dtype {
            FeatureType::Float32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            FeatureType::Float16 => values
                .iter()
                .flat_map(|v| half::f16::from_f32(*v).to_le_bytes())
                .collect(),
        };
        Piece::stored(Storage::owned(bytes), dtype, 2).unwrap()
    }

    #[test]
    fn rows_are_the_same_wherever_they_lie() {
        let values = [1.0, -2.0, 0.5, 4.0, 65504.0, -0.25];
        let owned = Features::new(values.to_vec(), 2).unwrap();
        for dtype in [FeatureType::Float16, FeatureType::Float32] {
            let stored = Features::of_piece(piece(&values, dtype), 2).unwrap();
            assert_eq!(stored, owned);
            let picked = vec![(1, 0), (0, 1), (0, 0)];
            let pieces = Arc::new([piece(&values[..4], dtype), piece(&values[4..], dtype)]);
            let picked = Features::picked(pieces, picked, 2, |row| row.to_string()).unwrap();
            assert_eq!(picked, owned.select(&[2, 1, 0]));
            assert_eq!(picked.select(&[2, 1, 0]), owned);
            assert_eq!(owned.select(&[2, 1]).select(&[1]).values()[..], values[2..4]);
            let mut gathered = vec![9.0; 40];
            picked.gather(&[1, 1], &mut gathered);
            assert_eq!(gathered, [0.5, 4.0, 0.5, 4.0]);
        }
    }

    #[test]
    fn float32_rows_are_borrowed() {
        let features = Features::of_piece(piece(&[1.0, 2.0, 3.0, 4.0], FeatureType::Float32), 2).unwrap();
        let mut scratch = Vec::new();
        assert_eq!(features.rows(1..2, &mut scratch), [3.0, 4.0]);
        assert_eq!(scratch.capacity(), 0);
    }

    #[test]
    fn rows_that_are_not_finite_are_named() {
        let message = |values: Vec<f32>| Features::new(values, 2).unwrap_err().to_string();
        let text = message(vec![0.0, 1.0, f32::NAN, 0.0, 1.0, f32::NEG_INFINITY]);
        assert!(text.ends_with("row 1 holds NaN, row 2 holds -inf"), "{text}");
        let text = message(vec![f32::NAN; 40]);
        assert!(text.ends_with("row 4 holds NaN, and 15 more rows"), "{text}");
        assert!(Features::new(vec![0.0; 3], 2).is_err());
    }
}
