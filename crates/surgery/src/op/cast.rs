//! `cast ** bf16 except **norm**`: another element type.

use pth::DType;

use super::{map_tensors, matched};
use crate::Error;
use crate::lazy::{LazyTensor, is_convertible};
use crate::plan::args::{Args, Patterns};
use crate::plan::{Effect, Fault, Operation, Workspace};

#[derive(Debug)]
struct Cast {
    patterns: Patterns,
    is_optional: bool,
    to: DType,
}

pub(crate) fn parse_cast(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    // Both orders are read: `cast ** except norm.** bf16` and `cast ** bf16 except norm.**`.
    let dtype = args.take_word_if(|text| crate::plan::args::short_dtype(text).is_some());
    match dtype {
        Some(word) => {
            let to = crate::plan::args::parse_dtype(&word)?;
            Ok(Box::new(Cast {
                patterns: args.patterns(0)?,
                is_optional: args.is_optional,
                to,
            }))
        }
        None => {
            let patterns = args.patterns(1)?;
            Ok(Box::new(Cast {
                patterns,
                is_optional: args.is_optional,
                to: args.dtype()?,
            }))
        }
    }
}

/// `tensor` as `to`, if values of both types are converted into each other.
pub(crate) fn cast(name: &str, tensor: &LazyTensor, to: DType) -> Result<LazyTensor, Error> {
    if tensor.dtype() == to || (is_convertible(tensor.dtype()) && is_convertible(to)) {
        return Ok(tensor.cast(to));
    }
    Err(Error::Cast {
        name: name.to_owned(),
        from: tensor.dtype(),
        to,
    })
}

impl Operation for Cast {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let mut places = matched(&work.tensors, &self.patterns, self.is_optional)?;
        // `model.half()` leaves integers alone, and so does a cast to a float here.
        if self.to.is_float() {
            places.retain(|&place| {
                let tensor = work.tensors.at(place).and_then(|(_, entry)| entry.tensor());
                tensor.is_none_or(|tensor| tensor.dtype().is_float())
            });
        }
        let mut n_cast = 0;
        let mut is_lossy = false;
        map_tensors(&mut work.tensors, &places, |name, tensor| {
            n_cast += usize::from(tensor.dtype() != self.to);
            is_lossy |= !holds(self.to, tensor.dtype());
            Ok(cast(name, tensor, self.to)?)
        })?;
        let summary = format!("{n_cast} cast to {}", self.to);
        Ok(if is_lossy {
            Effect::lossy(summary)
        } else {
            Effect::exact(summary)
        })
    }
}

/// Whether every value of `from` has a place in `to`.
fn holds(to: DType, from: DType) -> bool {
    use DType::{BFloat16, Float16, Float32, Float64};
    to == from
        || matches!(
            (from, to),
            (Float16 | BFloat16, Float32 | Float64) | (Float32, Float64)
        )
}
