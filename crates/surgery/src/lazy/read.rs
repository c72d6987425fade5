//! Reading lazy tensors from the first element to the last.

use pth::{DType, Tensor, TensorReader};

use super::convert::{convert, from_f64, is_convertible, to_f64};
use super::sum::{self, Term};
use super::view::of_bytes;
use super::{Draw, Kind, LazyTensor, NanPolicy, RowWise};
use crate::{Error, Pieces};

/// Reads a [`LazyTensor`]: its contiguous little-endian bytes, in order.
pub struct LazyReader<'t> {
    dtype: DType,
    way: Way<'t>,
}

enum Way<'t> {
    Stored(Box<TensorReader>),
    Pieced {
        pieces: &'t Pieces,
        at: usize,
    },
    Cast {
        from: DType,
        to: DType,
        of: Box<LazyReader<'t>>,
        bytes: Vec<u8>,
    },
    Joined(Joined<'t>),
    Sum(Sum<'t>),
    Filled {
        element: Vec<u8>,
    },
    Drawn {
        dtype: DType,
        draw: Draw,
        at: usize,
        values: Vec<f64>,
    },
    Rows(Box<Rows<'t>>),
    Checked {
        dtype: DType,
        name: &'t str,
        of: Box<LazyReader<'t>>,
    },
}

impl LazyTensor {
    /// A reader of the elements from `start` on, counted in row-major order.
    ///
    /// # Errors
    /// What is made whole cannot be made.
    pub fn reader_at(&self, start: usize) -> Result<LazyReader<'_>, Error> {
        self.check()?;
        let way = match self.kind() {
            Kind::Stored(tensor, _) => stored(tensor, start)?,
            Kind::Pieced(pieces) => Way::Pieced { pieces, at: start },
            Kind::Reshaped(of) => return of.reader_at(start),
            Kind::Cast(of) => Way::Cast {
                from: of.dtype(),
                to: self.dtype(),
                of: Box::new(of.reader_at(start)?),
                bytes: Vec::new(),
            },
            Kind::Joined { dim, parts } => Way::Joined(Joined::new(self, *dim, parts, start)?),
            Kind::Sum { terms, nan } => Way::Sum(Sum {
                dtype: self.dtype(),
                nan,
                terms: terms
                    .iter()
                    .map(|(weight, term)| Ok((*weight, term.dtype(), term.reader_at(start)?, Vec::new())))
                    .collect::<Result<_, Error>>()?,
            }),
            Kind::Filled(value) => Way::Filled {
                element: element(self.dtype(), *value),
            },
            Kind::Drawn(draw) if draw.is_whole() => {
                let mut values = vec![0.0; self.numel()];
                draw.fill(0, &mut values);
                stored(&owned(self, &values)?, start)?
            }
            Kind::Drawn(draw) => Way::Drawn {
                dtype: self.dtype(),
                draw: *draw,
                at: start,
                values: Vec::new(),
            },
            Kind::View { base, dims } => {
                let bytes = base.to_bytes()?;
                let view = of_bytes(base, self.shape(), dims, bytes).map_err(Error::Computed)?;
                stored(&view, start)?
            }
            Kind::Computed { inputs, compute, .. } => {
                let values = compute(inputs)?;
                stored(&owned(self, &values)?, start)?
            }
            Kind::Rows { inputs, rows } => {
                Way::Rows(Box::new(Rows::new(self, inputs, rows.as_ref(), start)?))
            }
            Kind::Checked { of, name } => Way::Checked {
                dtype: self.dtype(),
                name,
                of: Box::new(of.reader_at(start)?),
            },
        };
        Ok(LazyReader {
            dtype: self.dtype(),
            way,
        })
    }

    /// All its bytes.
    ///
    /// # Errors
    /// As reading.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; self.nbytes()];
        self.reader_at(0)?.read(&mut bytes)?;
        Ok(bytes)
    }

    /// All its values in float64.
    pub(crate) fn to_f64(&self) -> Result<Vec<f64>, Error> {
        let mut values = vec![0.0; self.numel()];
        to_f64(self.dtype(), &self.to_bytes()?, &mut values);
        Ok(values)
    }

    /// The tensor in memory.
    ///
    /// # Errors
    /// As reading.
    pub fn compute(&self) -> Result<Tensor, Error> {
        match self.as_stored() {
            Some(tensor) => Ok(tensor.clone()),
            None => Tensor::from_bytes(self.dtype(), self.shape(), self.to_bytes()?).map_err(Error::Computed),
        }
    }
}

fn stored<'t>(tensor: &Tensor, start: usize) -> Result<Way<'t>, Error> {
    let reader = tensor.reader_at(start).map_err(Error::Computed)?;
    Ok(Way::Stored(Box::new(reader)))
}

fn owned(like: &LazyTensor, values: &[f64]) -> Result<Tensor, Error> {
    let mut bytes = vec![0; like.nbytes()];
    from_f64(like.dtype(), values, &mut bytes);
    Tensor::from_bytes(like.dtype(), like.shape(), bytes).map_err(Error::Computed)
}

/// One element of that value. Types that numbers are not converted to have a zero, which is all bits zero.
fn element(dtype: DType, value: f64) -> Vec<u8> {
    let mut bytes = vec![0; dtype.size()];
    if is_convertible(dtype) {
        from_f64(dtype, &[value], &mut bytes);
    }
    bytes
}

impl LazyReader<'_> {
    /// The next `n` elements as numbers.
    pub(crate) fn read_f64(&mut self, n: usize) -> Result<Vec<f64>, Error> {
        let mut bytes = vec![0; n * self.dtype.size()];
        self.read(&mut bytes)?;
        let mut values = vec![0.0; n];
        to_f64(self.dtype, &bytes, &mut values);
        Ok(values)
    }

    /// The next bytes, of whole elements.
    ///
    /// # Errors
    /// A file cannot be read or was changed; a value is NaN where none may be.
    pub fn read(&mut self, out: &mut [u8]) -> Result<(), Error> {
        if out.is_empty() {
            return Ok(());
        }
        match &mut self.way {
            Way::Stored(reader) => reader.read(out).map_err(Error::Computed),
            Way::Pieced { pieces, at } => {
                pieces.read_at(*at, out).map_err(Error::Computed)?;
                *at += out.len() / pieces.dtype().size();
                Ok(())
            }
            Way::Cast { from, to, of, bytes } => {
                bytes.resize(out.len() / to.size() * from.size(), 0);
                of.read(bytes)?;
                convert(*from, *to, bytes, out);
                Ok(())
            }
            Way::Joined(joined) => joined.read(out),
            Way::Sum(sum) => sum.read(out),
            Way::Filled { element } => {
                out.chunks_exact_mut(element.len())
                    .for_each(|to| to.copy_from_slice(element));
                Ok(())
            }
            Way::Drawn {
                dtype,
                draw,
                at,
                values,
            } => {
                const BLOCK: usize = 4096;
                for out in out.chunks_mut(BLOCK * dtype.size()) {
                    values.resize(out.len() / dtype.size(), 0.0);
                    draw.fill(*at, values);
                    *at += values.len();
                    from_f64(*dtype, values, out);
                }
                Ok(())
            }
            Way::Rows(rows) => rows.read(out),
            Way::Checked { dtype, name, of } => {
                of.read(out)?;
                if has_nan(*dtype, out) {
                    return Err(Error::NotANumber {
                        name: (*name).to_owned(),
                        input: None,
                    });
                }
                Ok(())
            }
        }
    }
}

pub(crate) fn has_nan(dtype: DType, bytes: &[u8]) -> bool {
    if !dtype.is_float() || !is_convertible(dtype) {
        return false;
    }
    let mut values = [0.0; sum::BLOCK];
    bytes.chunks(sum::BLOCK * dtype.size()).any(|bytes| {
        let values = &mut values[..bytes.len() / dtype.size()];
        to_f64(dtype, bytes, values);
        values.iter().any(|value| value.is_nan())
    })
}

struct Joined<'t> {
    parts: Vec<LazyReader<'t>>,
    /// Bytes of each part between one of its turns and the next.
    turns: Vec<usize>,
    /// Whose turn it is, and how much of it is left.
    part: usize,
    left: usize,
}

impl<'t> Joined<'t> {
    fn new(of: &LazyTensor, dim: usize, parts: &'t [LazyTensor], start: usize) -> Result<Joined<'t>, Error> {
        let runs: Vec<usize> = parts
            .iter()
            .map(|part| part.shape()[dim..].iter().product())
            .collect();
        let round: usize = runs.iter().sum();
        let (rounds, mut rest) = match round {
            0 => (0, 0),
            round => (start / round, start % round),
        };
        let mut readers = Vec::with_capacity(parts.len());
        let mut turn = None;
        for (i, (part, &run)) in parts.iter().zip(&runs).enumerate() {
            let here = rest.min(run);
            rest -= here;
            readers.push(part.reader_at(rounds * run + here)?);
            if turn.is_none() && here < run {
                turn = Some((i, run - here));
            }
        }
        let size = of.dtype().size();
        let (part, left) = turn.unwrap_or((0, runs[0]));
        Ok(Joined {
            parts: readers,
            turns: runs.iter().map(|run| run * size).collect(),
            part,
            left: left * size,
        })
    }

    fn read(&mut self, mut out: &mut [u8]) -> Result<(), Error> {
        while !out.is_empty() {
            if self.left == 0 {
                self.part = (self.part + 1) % self.parts.len();
                self.left = self.turns[self.part];
                continue;
            }
            let (now, later) = out.split_at_mut(self.left.min(out.len()));
            self.parts[self.part].read(now)?;
            self.left -= now.len();
            out = later;
        }
        Ok(())
    }
}

struct Sum<'t> {
    dtype: DType,
    nan: &'t NanPolicy,
    terms: Vec<(f64, DType, LazyReader<'t>, Vec<u8>)>,
}

impl Sum<'_> {
    fn read(&mut self, out: &mut [u8]) -> Result<(), Error> {
        /// What the terms' buffers hold at once.
        const PIECE: usize = 1 << 18;
        for out in out.chunks_mut(PIECE * self.dtype.size()) {
            let n = out.len() / self.dtype.size();
            for (_, dtype, reader, bytes) in &mut self.terms {
                bytes.resize(n * dtype.size(), 0);
                reader.read(bytes)?;
            }
            let terms: Vec<Term<'_>> = self
                .terms
                .iter()
                .map(|(weight, dtype, _, bytes)| Term {
                    weight: *weight,
                    dtype: *dtype,
                    bytes,
                })
                .collect();
            let is_clean = sum::add(self.dtype, &terms, out);
            if let NanPolicy::Refuse { name, inputs } = self.nan
                && !is_clean
            {
                // Infinities of both signs add up to NaN too; that is then no input's fault.
                let input = terms.iter().position(|term| has_nan(term.dtype, term.bytes));
                return Err(Error::NotANumber {
                    name: name.clone(),
                    input: input.and_then(|input| inputs.get(input).cloned()),
                });
            }
        }
        Ok(())
    }
}

/// Makes blocks of whole rows, and hands out of them what is asked for.
struct Rows<'t> {
    dtype: DType,
    rows: &'t dyn RowWise,
    others: Vec<Vec<f64>>,
    source: LazyReader<'t>,
    source_dtype: DType,
    row_len: usize,
    next_row: usize,
    n_rows: usize,
    ready: Vec<u8>,
    at: usize,
}

impl<'t> Rows<'t> {
    fn new(
        of: &LazyTensor,
        inputs: &'t [LazyTensor],
        rows: &'t dyn RowWise,
        start: usize,
    ) -> Result<Rows<'t>, Error> {
        let n_rows = of.shape().first().copied().unwrap_or(1);
        let row_len = of.numel().checked_div(n_rows).unwrap_or(0).max(1);
        let first = start / row_len;
        let others = inputs[1..]
            .iter()
            .map(LazyTensor::to_f64)
            .collect::<Result<_, _>>()?;
        let mut made = Rows {
            dtype: of.dtype(),
            rows,
            others,
            source: inputs[0].reader_at(first * row_len)?,
            source_dtype: inputs[0].dtype(),
            row_len,
            next_row: first,
            n_rows,
            ready: Vec::new(),
            at: 0,
        };
        let skip = start % row_len * of.dtype().size();
        if skip > 0 {
            made.refill()?;
            made.at = skip;
        }
        Ok(made)
    }

    fn refill(&mut self) -> Result<(), Error> {
        /// Elements that are made at once, where a row is not longer.
        const BLOCK: usize = 1 << 19;
        let n = (BLOCK / self.row_len).clamp(1, (self.n_rows - self.next_row).max(1));
        let mut bytes = vec![0; n * self.row_len * self.source_dtype.size()];
        self.source.read(&mut bytes)?;
        let mut values = vec![0.0; n * self.row_len];
        to_f64(self.source_dtype, &bytes, &mut values);
        self.rows.apply(self.next_row, &mut values, &self.others)?;
        self.ready.resize(values.len() * self.dtype.size(), 0);
        from_f64(self.dtype, &values, &mut self.ready);
        self.next_row += n;
        self.at = 0;
        Ok(())
    }

    fn read(&mut self, mut out: &mut [u8]) -> Result<(), Error> {
        while !out.is_empty() {
            if self.at == self.ready.len() {
                self.refill()?;
            }
            let n = out.len().min(self.ready.len() - self.at);
            let (now, later) = out.split_at_mut(n);
            now.copy_from_slice(&self.ready[self.at..self.at + n]);
            self.at += n;
            out = later;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Distribution, NanPolicy};
    use super::*;

    fn numbers(shape: &[usize]) -> LazyTensor {
        let n: usize = shape.iter().product();
        let bytes = (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect();
        LazyTensor::stored(Tensor::from_bytes(DType::Float32, shape, bytes).unwrap())
    }

    /// Element by element from the definition of each operation.
    fn check(tensor: &LazyTensor, shape: &[usize], expected: &[f64]) {
        assert_eq!(tensor.shape(), shape, "{tensor:?}");
        assert_eq!(tensor.to_f64().unwrap(), expected, "{tensor:?}");
        let size = tensor.dtype().size();
        let whole = tensor.to_bytes().unwrap();
        for start in 0..tensor.numel() {
            for step in [1, 2, 5] {
                let mut reader = tensor.reader_at(start).unwrap();
                let mut chopped = vec![0; whole.len() - start * size];
                for piece in chopped.chunks_mut(step * size) {
                    reader.read(piece).unwrap();
                }
                assert_eq!(
                    chopped,
                    whole[start * size..],
                    "{tensor:?} from {start} by {step}"
                );
            }
        }
    }

    fn as_f64(values: &[usize]) -> Vec<f64> {
        values.iter().map(|&value| value as f64).collect()
    }

    #[test]
    fn joins_interleave_along_their_dimension() {
        let (a, b) = (numbers(&[2, 3]), numbers(&[2, 1]));
        let joined = LazyTensor::joined(1, vec![a.clone(), b]);
        check(&joined, &[2, 4], &as_f64(&[0, 1, 2, 0, 3, 4, 5, 1]));
        check(&joined.slice(1, 2, 2, 1), &[2, 2], &as_f64(&[2, 0, 5, 1]));
        check(&joined.slice(1, 0, 2, 2), &[2, 2], &as_f64(&[0, 2, 3, 5]));
        check(
            &joined.permute(&[1, 0]),
            &[4, 2],
            &as_f64(&[0, 3, 1, 4, 2, 5, 0, 1]),
        );
        check(&joined.reshape(&[8]), &[8], &as_f64(&[0, 1, 2, 0, 3, 4, 5, 1]));
        check(&joined.reshape(&[8]).slice(0, 3, 2, 1), &[2], &as_f64(&[0, 3]));
        check(&a.take(1, &[2, 0, 1]), &[2, 3], &as_f64(&[2, 0, 1, 5, 3, 4]));
    }

    #[test]
    fn views_of_views_are_views() {
        let a = numbers(&[2, 3, 4]);
        let view = a.permute(&[2, 0, 1]).slice(0, 1, 2, 2);
        assert!(view.as_stored().is_some());
        let expected: Vec<usize> = [1, 3]
            .iter()
            .flat_map(|k| (0..2).flat_map(move |i| (0..3).map(move |j| i * 12 + j * 4 + k)))
            .collect();
        check(&view, &[2, 2, 3], &as_f64(&expected));
        check(&view.reshape(&[12]), &[12], &as_f64(&expected));
        check(
            &numbers(&[3]).reshape(&[3, 1]).expand(&[3, 2]),
            &[3, 2],
            &as_f64(&[0, 0, 1, 1, 2, 2]),
        );
    }

    #[test]
    fn sums_are_weighted_and_nan_is_named() {
        let (a, b) = (numbers(&[4]), numbers(&[4]).cast(DType::BFloat16));
        let sum = LazyTensor::sum(DType::Float32, vec![(2.0, a), (0.5, b)], NanPolicy::Allow);
        check(&sum, &[4], &[0.0, 2.5, 5.0, 7.5]);
        let nan = LazyTensor::filled(DType::Float32, &[4], f64::NAN);
        let refuse = NanPolicy::Refuse {
            name: "fc.weight".to_owned(),
            inputs: ["a.pth".to_owned(), "b.pth".to_owned()].into(),
        };
        let sum = LazyTensor::sum(
            DType::Float32,
            vec![(1.0, numbers(&[4])), (1.0, nan.clone())],
            refuse,
        );
        let text = sum.to_bytes().unwrap_err().to_string();
        assert_eq!(text, "tensor `fc.weight` of `b.pth` holds NaN");
        let text = nan.checked("x").to_bytes().unwrap_err().to_string();
        assert_eq!(text, "tensor `x` holds NaN");
    }

    #[test]
    fn what_is_drawn_or_made_whole_reads_alike_from_everywhere() {
        let draw = Draw::new(Distribution::Normal { mean: 0.0, std: 1.0 }, 0, "w");
        let drawn = LazyTensor::drawn(DType::Float32, &[3, 4], draw);
        let values = drawn.to_f64().unwrap();
        check(&drawn, &[3, 4], &values);
        let transposed: Vec<f64> = (0..12).map(|i| values[i % 3 * 4 + i / 3]).collect();
        check(&drawn.permute(&[1, 0]), &[4, 3], &transposed);
        let twice = LazyTensor::computed(DType::Float32, &[6], vec![numbers(&[6])], |inputs| {
            Ok(inputs[0].iter().map(|x| 2.0 * x).collect())
        });
        check(&twice, &[6], &as_f64(&[0, 2, 4, 6, 8, 10]));

        struct AddRow;
        impl RowWise for AddRow {
            fn apply(&self, first: usize, rows: &mut [f64], others: &[Vec<f64>]) -> Result<(), Error> {
                for (i, row) in rows.chunks_mut(others[0].len()).enumerate() {
                    let number = (first + i) as f64;
                    row.iter_mut()
                        .zip(&others[0])
                        .for_each(|(x, other)| *x += number * other);
                }
                Ok(())
            }
        }
        let rows = LazyTensor::row_wise(vec![numbers(&[3, 2]), numbers(&[2])], std::sync::Arc::new(AddRow));
        check(&rows, &[3, 2], &as_f64(&[0, 1, 2, 4, 4, 7]));
    }
}
