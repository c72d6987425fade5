//! A tensor that lies in pieces, as the processes of a distributed training have saved it, put together only as far as it is read.

use pth::{DType, Error, Tensor};

/// A tensor of which several files, or several places of one, hold rectangular pieces.
///
/// The pieces are proven to cover it without overlap.
#[derive(Debug, Clone)]
pub struct Pieces {
    name: String,
    place: usize,
    dtype: DType,
    shape: Vec<usize>,
    requires_grad: bool,
    pieces: Vec<Piece>,
}

/// One piece.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Where in the whole its first element lies, outermost dimension first.
    pub offsets: Vec<usize>,
    /// Its elements.
    pub tensor: Tensor,
}

impl Pieces {
    /// Puts `pieces` together; `place` is the number of entries of the state dict in front of it.
    ///
    /// # Errors
    /// The pieces leave something out, overlap, or reach outside of `shape`; as a phrase.
    pub(super) fn new(
        name: String,
        place: usize,
        dtype: DType,
        shape: Vec<usize>,
        pieces: Vec<Piece>,
    ) -> Result<Pieces, String> {
        let boxes: Vec<Box<'_>> = pieces
            .iter()
            .map(|piece| (piece.offsets.as_slice(), piece.tensor.shape()))
            .collect();
        check_cover(&shape, &boxes)?;
        Ok(Pieces {
            name,
            place,
            dtype,
            shape,
            requires_grad: false,
            pieces,
        })
    }

    pub(super) fn with_requires_grad(mut self, requires_grad: bool) -> Pieces {
        self.requires_grad = requires_grad;
        self
    }

    /// The tensor's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many entries of the state dict come before it.
    pub fn place(&self) -> usize {
        self.place
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Sizes of the whole, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Whether training would change it.
    pub fn requires_grad(&self) -> bool {
        self.requires_grad
    }

    /// The pieces, in the order of the file.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Size of the whole in bytes.
    pub fn nbytes(&self) -> usize {
        self.pieces.iter().map(|piece| piece.tensor.nbytes()).sum()
    }

    /// Fills `out`, whole elements, with the contiguous little-endian form of the whole from its element `start` on.
    ///
    /// Holds at most as much again as `out`.
    ///
    /// # Errors
    /// Those of [`Tensor::reader_at`] and [`TensorReader::read`](pth::TensorReader::read).
    ///
    /// # Panics
    /// `out` is no whole number of elements, or more than there are from `start` on.
    pub fn read_at(&self, start: usize, out: &mut [u8]) -> Result<(), Error> {
        let size = self.dtype.size();
        let end = start + out.len() / size;
        assert!(
            out.len().is_multiple_of(size) && end * size <= self.nbytes(),
            "whole elements of the tensor"
        );
        let mut part = Vec::new();
        for piece in &self.pieces {
            let within = Within {
                whole: &self.shape,
                piece: piece.tensor.shape(),
                offsets: &piece.offsets,
            };
            // In both orders the elements of a piece come one after the other, so that what is wanted of it is one range.
            let numel = piece.tensor.numel();
            let first = partition_point(numel, |element| within.place(element) < start);
            let last = partition_point(numel, |element| within.place(element) < end);
            if first == last {
                continue;
            }
            part.resize((last - first) * size, 0);
            piece.tensor.reader_at(first)?.read(&mut part)?;
            let run = within.run();
            let mut element = first;
            let mut rest = part.as_slice();
            while element < last {
                let n = (run - element % run).min(last - element);
                let (now, later) = rest.split_at(n * size);
                let to = (within.place(element) - start) * size;
                out[to..to + now.len()].copy_from_slice(now);
                rest = later;
                element += n;
            }
        }
        Ok(())
    }

    /// The whole, in memory of its own.
    ///
    /// # Errors
    /// A piece that cannot be read, or that repeats its storage beyond all proportion.
    pub fn assemble(&self) -> Result<Tensor, Error> {
        for piece in &self.pieces {
            piece.tensor.check_expansion()?;
        }
        let mut bytes = vec![0; self.nbytes()];
        self.read_at(0, &mut bytes)?;
        let tensor = Tensor::from_bytes(self.dtype, &self.shape, bytes)?;
        Ok(match self.requires_grad {
            true => tensor.into_parameter(true),
            false => tensor,
        })
    }
}

/// A piece's elements in the whole.
struct Within<'p> {
    whole: &'p [usize],
    piece: &'p [usize],
    offsets: &'p [usize],
}

impl Within<'_> {
    /// Where in the row-major order of the whole an element of the piece comes.
    fn place(&self, element: usize) -> usize {
        let (mut rest, mut step, mut place) = (element, 1, 0);
        for ((&whole, &size), &offset) in self.whole.iter().zip(self.piece).zip(self.offsets).rev() {
            place += (rest % size + offset) * step;
            rest /= size;
            step *= whole;
        }
        place
    }

    /// How many of its elements come one after the other in the whole too.
    fn run(&self) -> usize {
        let mut run = 1;
        for (&whole, &size) in self.whole.iter().zip(self.piece).rev() {
            run *= size;
            if size != whole {
                break;
            }
        }
        run
    }
}

/// The first of `0..n` for which `is_before` does not hold; it holds for none behind.
fn partition_point(n: usize, is_before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, n);
    while low < high {
        let middle = low + (high - low) / 2;
        if is_before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// Offsets and sizes.
type Box<'p> = (&'p [usize], &'p [usize]);

/// Whether `boxes` fill `shape`, each place once.
pub(super) fn check_cover(shape: &[usize], boxes: &[Box<'_>]) -> Result<(), String> {
    let product = |sizes: &[usize]| {
        let mut sizes = sizes.iter();
        sizes.try_fold(1_usize, |product, &size| product.checked_mul(size))
    };
    let numel = product(shape).ok_or_else(|| format!("{shape:?} has more elements than can be addressed"))?;
    let mut n_covered = 0_usize;
    for &(offsets, sizes) in boxes {
        let is_inside = offsets.len() == shape.len()
            && sizes.len() == shape.len()
            && (offsets.iter().zip(sizes).zip(shape))
                .all(|((&offset, &size), &whole)| offset.checked_add(size).is_some_and(|end| end <= whole));
        if !is_inside {
            return Err(format!(
                "its piece of {sizes:?} at {offsets:?} is not inside of {shape:?}"
            ));
        }
        // No sum of parts of the whole that is larger than it needs a name.
        n_covered = n_covered.saturating_add(product(sizes).unwrap_or(usize::MAX));
    }
    let mut solid: Vec<Box<'_>> = boxes
        .iter()
        .filter(|(_, sizes)| !sizes.contains(&0))
        .copied()
        .collect();
    // Along the dimension that is cut most, few boxes are beside each other.
    let n_cuts = |dim: usize| {
        let mut offsets: Vec<usize> = solid.iter().map(|(offsets, _)| offsets[dim]).collect();
        offsets.sort_unstable();
        offsets.dedup();
        offsets.len()
    };
    if let Some(dim) = (0..shape.len()).max_by_key(|&dim| n_cuts(dim)) {
        solid.sort_by_key(|(offsets, _)| offsets[dim]);
        for (i, &(offsets, sizes)) in solid.iter().enumerate() {
            let end = offsets[dim] + sizes[dim];
            let beside = solid[i + 1..].iter().take_while(|(other, _)| other[dim] < end);
            for &(other, other_sizes) in beside {
                let overlap = (0..shape.len())
                    .all(|d| offsets[d] < other[d] + other_sizes[d] && other[d] < offsets[d] + sizes[d]);
                if overlap {
                    return Err(format!("its pieces at {offsets:?} and {other:?} overlap"));
                }
            }
        }
    } else if solid.len() > 1 {
        return Err("its pieces overlap".to_owned());
    }
    if n_covered == numel {
        return Ok(());
    }
    Err(format!("its pieces are {n_covered} of {numel} elements"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cuts `0..n` in pieces along a grid and reads it back, whole and in parts of every size.
    #[test]
    fn parts_of_a_cut_tensor_are_those_of_the_whole() {
        let shape = [5_usize, 4, 6];
        let whole: Vec<u8> = (0..240_u8).collect();
        let whole = Tensor::from_bytes(DType::Int16, &shape, whole).unwrap();
        for cuts in [
            [vec![0, 5], vec![0, 4], vec![0, 6]],
            [vec![0, 2, 5], vec![0, 4], vec![0, 6]],
            [vec![0, 5], vec![0, 1, 4], vec![0, 3, 6]],
            [vec![0, 1, 2, 5], vec![0, 3, 4], vec![0, 2, 6]],
        ] {
            let mut pieces = Vec::new();
            for a in cuts[0].windows(2) {
                for b in cuts[1].windows(2) {
                    for c in cuts[2].windows(2) {
                        let mut tensor = whole.clone();
                        for (dim, cut) in [a, b, c].into_iter().enumerate() {
                            tensor = tensor.slice_in(dim, cut[0], cut[1] - cut[0], 1).unwrap();
                        }
                        let offsets = vec![a[0], b[0], c[0]];
                        pieces.push(Piece { offsets, tensor });
                    }
                }
            }
            pieces.reverse();
            let pieces = Pieces::new("t".to_owned(), 0, DType::Int16, shape.to_vec(), pieces).unwrap();
            let expected = whole.to_bytes().unwrap();
            assert_eq!(pieces.assemble().unwrap().to_bytes().unwrap(), expected);
            for start in 0..120 {
                for n in [0, 1, 5, 6, 7, 23, 60, 120 - start] {
                    let n = n.min(120 - start);
                    let mut out = vec![0; 2 * n];
                    pieces.read_at(start, &mut out).unwrap();
                    assert_eq!(out, expected[2 * start..2 * (start + n)]);
                }
            }
        }
    }

    #[test]
    fn what_is_not_covered_once_is_refused() {
        let check = |shape: &[usize], boxes: &[Box<'_>], expected: Result<(), &str>| {
            assert_eq!(check_cover(shape, boxes), expected.map_err(str::to_owned));
        };
        check(&[4, 2], &[(&[0, 0], &[2, 2]), (&[2, 0], &[2, 2])], Ok(()));
        check(
            &[4, 2],
            &[(&[0, 0], &[2, 2])],
            Err("its pieces are 4 of 8 elements"),
        );
        check(&[4, 2], &[], Err("its pieces are 0 of 8 elements"));
        check(
            &[4, 2],
            &[(&[0, 0], &[3, 2]), (&[2, 0], &[2, 2])],
            Err("its pieces at [0, 0] and [2, 0] overlap"),
        );
        // As many elements as the whole, and yet one place twice and another not at all.
        check(
            &[2, 2],
            &[(&[0, 0], &[1, 2]), (&[0, 1], &[2, 1])],
            Err("its pieces at [0, 0] and [0, 1] overlap"),
        );
        check(
            &[4, 2],
            &[(&[3, 0], &[2, 2])],
            Err("its piece of [2, 2] at [3, 0] is not inside of [4, 2]"),
        );
        check(
            &[4],
            &[(&[0, 0], &[4, 1])],
            Err("its piece of [4, 1] at [0, 0] is not inside of [4]"),
        );
        check(
            &[4],
            &[(&[usize::MAX], &[2])],
            Err("its piece of [2] at [18446744073709551615] is not inside of [4]"),
        );
        check(&[], &[(&[], &[])], Ok(()));
        check(&[], &[(&[], &[]), (&[], &[])], Err("its pieces overlap"));
        check(&[0, 3], &[(&[0, 0], &[0, 3])], Ok(()));
        check(&[0, 3], &[], Ok(()));
    }
}
