//! What a step says about each parameter that learns.

use indexmap::IndexMap;
use rayon::prelude::*;

use super::op::{CHUNK, alone};
use crate::panels::vectorised;

vectorised! {
    fn all_finite(values: &'a [f32]) -> bool {
        // Zero times what is no number, or infinite, is no number.
        let mut lanes = [0.0f32; 16];
        let (chunks, rest) = values.as_chunks::<16>();
        for chunk in chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane += value * 0.0;
            }
        }
        lanes.iter().sum::<f32>() == 0.0 && rest.iter().all(|value| value.is_finite())
    }
}

/// The derivative of the loss by each parameter that learns, row-major, in the shapes of the parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Gradients {
    pub(super) values: IndexMap<String, Vec<f32>>,
}

impl Gradients {
    /// Whether all are numbers, and none is infinite.
    pub(super) fn are_finite(&self) -> bool {
        self.values.values().all(|values| {
            values
                .par_chunks(CHUNK)
                .with_min_len(alone(CHUNK))
                .all(all_finite)
        })
    }

    /// The gradient of a parameter; none where it does not learn.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.values.get(name).map(Vec::as_slice)
    }

    /// The gradient of a parameter, to be clipped or averaged.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut [f32]> {
        self.values.get_mut(name).map(Vec::as_mut_slice)
    }

    /// All gradients, in the order of [`Tail::parameters`](super::Tail::parameters).
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[f32])> {
        self.values
            .iter()
            .map(|(name, values)| (name.as_str(), values.as_slice()))
    }

    /// All gradients, to be clipped or averaged.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut [f32])> {
        self.values
            .iter_mut()
            .map(|(name, values)| (name.as_str(), values.as_mut_slice()))
    }
}
