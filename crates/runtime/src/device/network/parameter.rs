//! One tensor that learns, with what the update keeps beside it.

use super::recipe::Recipe;
use crate::device::backend::{Arg, Backend, Kind, Shape, count};
use crate::error::Error;

/// What is kept of each number that learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Weights,
    /// SGD's buffer or Adam's first moment.
    First,
    Second,
    /// The moving average.
    Ema,
}

/// Weights of a layer as torch has them: a linear layer, or a normalisation with its running figures.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Weights {
    /// `[out, in]`.
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
    /// Factor, summand, running mean and variance of the normalisation behind it.
    pub(crate) norm: Option<[Vec<f32>; 4]>,
}

/// One tensor that learns: `[heads, per_head]`.
pub(super) struct Parameter<D: Backend> {
    pub(super) weights: D::Buffer,
    /// What products read, where it is not `weights`.
    pub(super) half_width: Option<D::Buffer>,
    pub(super) first: Option<D::Buffer>,
    pub(super) second: Option<D::Buffer>,
    pub(super) ema: Option<D::Buffer>,
    pub(super) gradient: D::Buffer,
    pub(super) per_head: usize,
}

impl<D: Backend> Parameter<D> {
    pub(super) fn new(
        device: &D,
        recipe: &Recipe,
        kind: Kind,
        n_heads: usize,
        per_head: usize,
    ) -> Result<Parameter<D>, Error> {
        let n = n_heads * per_head;
        let when = |yes: bool, n_bytes: usize| yes.then(|| device.zeros(n_bytes)).transpose();
        Ok(Parameter {
            weights: device.zeros(n * 4)?,
            half_width: when(kind != Kind::F32, n * 2)?,
            first: Some(device.zeros(n * 4)?),
            second: when(recipe.is_adam, n * 4)?,
            ema: when(recipe.ema.is_some(), n * 4)?,
            gradient: device.zeros(n * 4)?,
            per_head,
        })
    }

    /// What products read.
    pub(super) fn operand(&self) -> &D::Buffer {
        self.half_width.as_ref().unwrap_or(&self.weights)
    }

    /// What it keeps, where it does.
    fn array(&self, state: State) -> Option<&D::Buffer> {
        match state {
            State::Weights => Some(&self.weights),
            State::First => self.first.as_ref(),
            State::Second => self.second.as_ref(),
            State::Ema => self.ema.as_ref(),
        }
    }

    /// Sets the numbers of one head, and the copies of weights.
    pub(super) fn set(
        &self,
        device: &D,
        kind: Kind,
        state: State,
        head: usize,
        values: &[f32],
    ) -> Result<(), Error> {
        let Some(array) = self.array(state) else {
            return Ok(());
        };
        device.write(array, head * self.per_head * 4, bytemuck::cast_slice(values))?;
        if state == State::Weights
            && let Some(copy) = &self.half_width
        {
            let n = self.per_head;
            let args = [
                Arg::At(copy, head * n * 2),
                Arg::At(&self.weights, head * n * 4),
                count(1),
                count(n),
                count(n),
                Arg::Null,
                Arg::Null,
            ];
            device.launch(&format!("convert_f32_{}", kind.suffix()), Shape::each(n), &args)?;
        }
        Ok(())
    }

    /// The numbers of one head; none where it does not keep them.
    pub(super) fn get(&self, device: &D, state: State, head: usize) -> Result<Vec<f32>, Error> {
        let Some(array) = self.array(state) else {
            return Ok(Vec::new());
        };
        let mut values = vec![0f32; self.per_head];
        device.read(
            array,
            head * self.per_head * 4,
            bytemuck::cast_slice_mut(&mut values),
        )?;
        Ok(values)
    }
}
