//! Which parameters of a tail learn, and what its batch normalisations do meanwhile.

use super::gradients::Gradients;

/// What a batch normalisation does in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormMode {
    /// The running statistics are constants, as in `torch.nn.BatchNorm2d.eval()`.
    Frozen,
    /// The statistics are the batch's, and the running ones follow as torch's do: momentum 0.1, unbiased variance.
    Batch,
}

/// Which parameters learn; made by [`Tail::plan`](super::Tail::plan) and good for that tail only.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(super) trainable: Vec<String>,
}

impl Plan {
    /// Names of the parameters that learn, in the order of [`Tail::parameters`](super::Tail::parameters).
    pub fn trainable(&self) -> impl Iterator<Item = &str> {
        self.trainable.iter().map(String::as_str)
    }

    /// Room for what a step writes: zeros in the shapes of the parameters that learn.
    pub fn gradients(&self) -> Gradients {
        unimplemented!()
    }
}
