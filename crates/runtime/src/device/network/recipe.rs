//! What a network is, how it learns, and what an epoch of it is made with and gives.

use crate::targets::Task;

/// What `kernels/layer.cu` calls an activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    Relu = 1,
    Gelu = 2,
}

/// Between a hidden layer and its activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Norm {
    None,
    Batch,
    Layer,
}

/// What a network is and how it learns, but for what depends on the step.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    pub(crate) task: Task,
    pub(crate) hidden: Vec<usize>,
    pub(crate) n_outputs: usize,
    /// More than one only without hidden layers.
    pub(crate) n_heads: usize,
    pub(crate) activation: Activation,
    pub(crate) norm: Norm,
    pub(crate) dropout: f32,
    pub(crate) dropout_key: u64,
    pub(crate) noise: f32,
    pub(crate) noise_key: u64,
    pub(crate) smoothing: f32,
    /// What a class counts; for several labels what each one's presence and then what its absence does.
    pub(crate) class_weights: Option<Vec<f32>>,
    pub(crate) clip_norm: Option<f32>,
    /// Decay of the moving average.
    pub(crate) ema: Option<f32>,
    pub(crate) is_adam: bool,
    /// Of each head.
    pub(crate) rules: Vec<Rule>,
    pub(crate) batch_size: usize,
}

/// `Rule` of `kernels/optim.cu`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rule {
    pub(crate) weight_decay: f32,
    pub(crate) dampening: f32,
    pub(crate) nesterov: f32,
    pub(crate) beta2: f32,
    pub(crate) eps: f32,
    pub(crate) decoupled: f32,
}

/// `StepScalars` of `kernels/optim.cu`, one for each step and head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct StepScalars {
    pub(crate) rate: f32,
    pub(crate) momentum: f32,
    pub(crate) step_size: f32,
    pub(crate) root: f32,
    pub(crate) first: f32,
}

impl Rule {
    /// In the order of the kernels.
    pub(super) fn numbers(&self) -> [f32; 6] {
        [
            self.weight_decay,
            self.dampening,
            self.nesterov,
            self.beta2,
            self.eps,
            self.decoupled,
        ]
    }
}

impl StepScalars {
    pub(super) fn numbers(&self) -> [f32; 5] {
        [self.rate, self.momentum, self.step_size, self.root, self.first]
    }
}

/// Sums of an epoch or an evaluation for one head.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Totals {
    pub(crate) loss: f64,
    /// What the loss is divided by.
    pub(crate) weight: f64,
    pub(crate) top1: f64,
    pub(crate) top5: f64,
    /// The step of the epoch, from 0, whose loss or gradient was not finite; the head has stood still since.
    pub(crate) fault: Option<usize>,
}

/// What an epoch is made with.
#[derive(Debug, Clone)]
pub(crate) struct Epoch<'e> {
    /// Rows in their order.
    pub(crate) order: &'e [u32],
    /// `[steps, heads]`.
    pub(crate) table: &'e [StepScalars],
    /// Steps before this epoch.
    pub(crate) start: u64,
    /// Share of each row of the order, and the position in its batch of the row that it is mixed with.
    pub(crate) mixup: Option<(&'e [f32], &'e [u32])>,
}
