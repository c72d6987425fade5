//! Verbs that rearrange the elements of one tensor.

use super::{map_tensors, matched};
use crate::lazy::{LazyTensor, resolve_dim};
use crate::plan::args::{Args, At, Patterns, list};
use crate::plan::{Effect, Fault, Operation, Workspace};

/// A rearrangement of whatever matches.
#[derive(Debug)]
struct Shape {
    patterns: Patterns,
    is_optional: bool,
    change: Change,
    /// What is told of when it cannot be done.
    span: std::ops::Range<usize>,
}

#[derive(Debug)]
enum Change {
    Permute(Vec<i64>),
    Transpose,
    Reshape(Vec<i64>),
    Squeeze(Option<i64>),
    Unsqueeze(i64),
    Slice { dim: i64, range: SliceSpec },
    Take { dim: i64, indices: Vec<i64> },
    Roll { dim: i64, shift: i64 },
}

/// `start:stop:step` as Python reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SliceSpec {
    pub(crate) start: Option<i64>,
    pub(crate) stop: Option<i64>,
    pub(crate) step: usize,
}

impl SliceSpec {
    /// Reads `1:`, `:-1`, `::2`, `3`; a single index is a range of one.
    pub(crate) fn parse(text: &str) -> Option<SliceSpec> {
        let bound = |text: &str| -> Option<Option<i64>> {
            let text = text.trim();
            if text.is_empty() {
                Some(None)
            } else {
                text.parse().ok().map(Some)
            }
        };
        let items: Vec<&str> = text.split(':').collect();
        let (start, stop, step) = match items.as_slice() {
            [start, stop] => (bound(start)?, bound(stop)?, 1),
            [start, stop, step] => (
                bound(start)?,
                bound(stop)?,
                step.trim().parse().ok().filter(|&step| step > 0)?,
            ),
            _ => return None,
        };
        Some(SliceSpec { start, stop, step })
    }

    /// `(start, len)` in a dimension of that size.
    pub(crate) fn resolve(self, size: usize) -> (usize, usize) {
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        let clamp = |bound: i64| {
            if bound < 0 {
                (bound + size).max(0)
            } else {
                bound.min(size)
            }
        };
        let (start, stop) = (clamp(self.start.unwrap_or(0)), clamp(self.stop.unwrap_or(size)));
        let n = usize::try_from((stop - start).max(0)).unwrap_or(0);
        (usize::try_from(start).unwrap_or(0), n.div_ceil(self.step))
    }
}

fn shape(
    args: &mut Args,
    n_behind: usize,
    read: impl Fn(&mut Args) -> Result<Change, Fault>,
) -> Result<Box<dyn Operation>, Fault> {
    let patterns = args.patterns(n_behind)?;
    let change = read(args)?;
    Ok(Box::new(Shape {
        patterns,
        is_optional: args.is_optional,
        change,
        span: args.verb_span(),
    }))
}

pub(crate) fn parse_permute(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    shape(args, 1, |args| {
        let word = args.word("dimensions as in `1,0`")?;
        Ok(Change::Permute(list(
            &word,
            ',',
            "a list of dimensions such as `3,2,0,1`",
        )?))
    })
}

pub(crate) fn parse_t(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    shape(args, 0, |_| Ok(Change::Transpose))
}

pub(crate) fn parse_reshape(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    shape(args, 1, |args| {
        let word = args.word("a shape as in `768,3,16,16`")?;
        let separator = if word.value.contains('x') { 'x' } else { ',' };
        Ok(Change::Reshape(list(
            &word,
            separator,
            "a shape such as `768,3,16,16`",
        )?))
    })
}

pub(crate) fn parse_squeeze(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    let dim = args.parsed("dim", "a dimension")?;
    shape(args, 0, |_| Ok(Change::Squeeze(dim)))
}

pub(crate) fn parse_unsqueeze(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    match args.parsed("dim", "a dimension")? {
        Some(dim) => shape(args, 0, |_| Ok(Change::Unsqueeze(dim))),
        None => shape(args, 1, |args| Ok(Change::Unsqueeze(args.value("a dimension")?))),
    }
}

pub(crate) fn parse_slice(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    shape(args, 2, |args| {
        let dim = args.value("a dimension")?;
        let word = args.word("a range as in `1:`")?;
        let range = SliceSpec::parse(&word.value).ok_or_else(|| {
            Fault::new(format!(
                "`{}` is not a range such as `1:`, `:10` or `::2`",
                word.value
            ))
            .at(&word.span)
        })?;
        Ok(Change::Slice { dim, range })
    })
}

pub(crate) fn parse_take(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    shape(args, 2, |args| {
        let dim = args.value("a dimension")?;
        let word = args.word("indices as in `0,2,1` or `@indices.json`")?;
        let indices = match word.value.strip_prefix('@') {
            Some(path) => indices_of(path, &word)?,
            None => list(&word, ',', "a list of indices such as `0,2,1`")?,
        };
        Ok(Change::Take { dim, indices })
    })
}

/// The indices in a JSON file: a list of integers.
fn indices_of(path: &str, word: &At<String>) -> Result<Vec<i64>, Fault> {
    let path = std::path::Path::new(path);
    let read = pth::FileError::at("read", path);
    let text = std::fs::read_to_string(path)
        .map_err(|error| Fault::from(crate::Error::File(read(error))).at(&word.span))?;
    serde_json::from_str(&text).map_err(|error| {
        Fault::new(format!(
            "`{}` is not a JSON list of integers: {error}",
            path.display()
        ))
        .at(&word.span)
    })
}

pub(crate) fn parse_roll(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    shape(args, 2, |args| {
        Ok(Change::Roll {
            dim: args.value("a dimension")?,
            shift: args.value("a number of places")?,
        })
    })
}

impl Operation for Shape {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let names = matched(&work.tensors, &self.patterns, self.is_optional)?;
        let mut first = None;
        map_tensors(&mut work.tensors, &names, |name, tensor| {
            let changed = self.change.of(tensor).map_err(|reason| {
                Fault::new(format!("`{name}` {:?}: {reason}", tensor.shape())).at(&self.span)
            })?;
            first.get_or_insert_with(|| format!("{:?} -> {:?}", tensor.shape(), changed.shape()));
            Ok(changed)
        })?;
        let summary = format!(
            "{} tensors, {}",
            names.len(),
            first.unwrap_or_else(|| "none".to_owned())
        );
        Ok(match &self.change {
            Change::Slice { .. } | Change::Take { .. } => Effect::lossy(summary),
            _ => Effect::exact(summary),
        })
    }
}

impl Change {
    fn of(&self, tensor: &LazyTensor) -> Result<LazyTensor, String> {
        let shape = tensor.shape();
        let rank = shape.len();
        let dim = |dim: i64| resolve_dim(dim, rank).ok_or_else(|| format!("there is no dimension {dim}"));
        match self {
            Change::Permute(dims) => {
                let dims = dims.iter().map(|&d| dim(d)).collect::<Result<Vec<_>, _>>()?;
                let mut sorted = dims.clone();
                sorted.sort_unstable();
                if !sorted.into_iter().eq(0..rank) {
                    return Err(format!("{dims:?} does not name each of {rank} dimensions once"));
                }
                Ok(tensor.permute(&dims))
            }
            Change::Transpose if rank == 2 => Ok(tensor.permute(&[1, 0])),
            // As `Tensor.t`: what has fewer dimensions is its own transpose.
            Change::Transpose if rank < 2 => Ok(tensor.clone()),
            Change::Transpose => Err("`t` transposes matrices; `permute` names dimensions".to_owned()),
            Change::Reshape(sizes) => Ok(tensor.reshape(&sizes_of(sizes, tensor.numel())?)),
            Change::Squeeze(None) => Ok(tensor.reshape(
                &shape
                    .iter()
                    .copied()
                    .filter(|&size| size != 1)
                    .collect::<Vec<_>>(),
            )),
            Change::Squeeze(Some(d)) => {
                let d = dim(*d)?;
                if shape[d] != 1 {
                    return Err(format!("dimension {d} has size {}", shape[d]));
                }
                Ok(tensor.reshape(&[&shape[..d], &shape[d + 1..]].concat()))
            }
            Change::Unsqueeze(d) => {
                let d = resolve_dim(*d, rank + 1)
                    .ok_or_else(|| format!("there is no place {d} for a dimension"))?;
                Ok(tensor.reshape(&[&shape[..d], &[1], &shape[d..]].concat()))
            }
            Change::Slice { dim: d, range } => {
                let d = dim(*d)?;
                let (start, len) = range.resolve(shape[d]);
                Ok(tensor.slice(d, start, len, range.step))
            }
            Change::Take { dim: d, indices } => {
                let d = dim(*d)?;
                let indices = indices
                    .iter()
                    .map(|&index| {
                        resolve_dim(index, shape[d])
                            .ok_or_else(|| format!("there is no index {index} in dimension {d}"))
                    })
                    .collect::<Result<Vec<_>, _>>()?;
                if indices.is_empty() {
                    return Ok(tensor.slice(d, 0, 0, 1));
                }
                Ok(tensor.take(d, &indices))
            }
            Change::Roll { dim: d, shift } => {
                let d = dim(*d)?;
                let size = shape[d];
                if size == 0 {
                    return Ok(tensor.clone());
                }
                let size_signed = i64::try_from(size).map_err(|_| "too large".to_owned())?;
                let first = usize::try_from((-i128::from(*shift)).rem_euclid(i128::from(size_signed)))
                    .map_err(|_| "too large".to_owned())?;
                if first == 0 {
                    return Ok(tensor.clone());
                }
                let parts = vec![
                    tensor.slice(d, first, size - first, 1),
                    tensor.slice(d, 0, first, 1),
                ];
                Ok(LazyTensor::joined(d, parts))
            }
        }
    }
}

/// A shape of `numel` elements, of which one size may be -1.
pub(crate) fn sizes_of(sizes: &[i64], numel: usize) -> Result<Vec<usize>, String> {
    let fits = || format!("{sizes:?} is no shape of {numel} elements");
    let known: usize = sizes
        .iter()
        .filter(|&&size| size != -1)
        .try_fold(1, |product: usize, &size| {
            product.checked_mul(usize::try_from(size).ok()?)
        })
        .ok_or_else(fits)?;
    let n_open = sizes.iter().filter(|&&size| size == -1).count();
    let open = match (n_open, known) {
        (0, _) if known == numel => 0,
        (1, 1..) if numel.is_multiple_of(known) => numel / known,
        _ => return Err(fits()),
    };
    Ok(sizes
        .iter()
        .map(|&size| usize::try_from(size).unwrap_or(open))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_python() {
        let check = |text: &str, size, expected| {
            let spec = SliceSpec::parse(text).unwrap();
            assert_eq!(spec.resolve(size), expected, "{text}");
        };
        check("1:", 10, (1, 9));
        check(":-1", 10, (0, 9));
        check("-3:", 10, (7, 3));
        check("::2", 5, (0, 3));
        check("1:5:3", 10, (1, 2));
        check("8:4", 10, (8, 0));
        check(":100", 10, (0, 10));
        assert_eq!(SliceSpec::parse("3"), None);
        assert_eq!(SliceSpec::parse("::0"), None);
    }

    #[test]
    fn open_sizes_are_filled_in() {
        assert_eq!(sizes_of(&[2, -1], 6), Ok(vec![2, 3]));
        assert!(sizes_of(&[4, -1], 6).is_err());
        assert!(sizes_of(&[-1, -1], 6).is_err());
        assert!(sizes_of(&[7], 6).is_err());
        assert!(sizes_of(&[-2], 6).is_err());
    }
}
