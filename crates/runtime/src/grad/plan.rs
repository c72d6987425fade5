//! Which parameters of a tail learn, and what its batch normalisations do meanwhile.

use indexmap::IndexMap;

use super::gradients::Gradients;
use super::program::{Program, Source};
use super::weights::Parameter;

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
    /// Names and numbers of elements of what learns.
    trainable: Vec<(String, usize)>,
    /// By parameter, its place among the gradients.
    pub(super) gradient_of: Vec<Option<usize>>,
    /// By slot, whether its derivative leads to something that learns.
    pub(super) needs: Vec<bool>,
    /// By node.
    pub(super) norms: Vec<NormMode>,
}

impl Plan {
    pub(super) fn new(
        program: &Program,
        parameters: &[Parameter],
        trainable: &dyn Fn(&str) -> bool,
        norm: &dyn Fn(&str) -> NormMode,
    ) -> Plan {
        let mut plan = Plan {
            trainable: Vec::new(),
            gradient_of: vec![None; parameters.len()],
            needs: vec![false; program.slots.len()],
            norms: program.nodes.iter().map(|node| norm(&node.layer)).collect(),
        };
        for (gradient, parameter) in plan.gradient_of.iter_mut().zip(parameters) {
            if parameter.kind.can_learn() && trainable(&parameter.name) {
                *gradient = Some(plan.trainable.len());
                let numel = parameter.shape.iter().product();
                plan.trainable.push((parameter.name.clone(), numel));
            }
        }
        for node in &program.nodes {
            plan.needs[node.slot] = node.inputs.iter().any(|source| match *source {
                Source::Slot(slot) => plan.needs[slot],
                Source::Parameter(param) => plan.gradient_of[param].is_some(),
                _ => false,
            });
        }
        plan
    }

    /// Names of the parameters that learn, in the order of [`Tail::parameters`](super::Tail::parameters).
    pub fn trainable(&self) -> impl Iterator<Item = &str> {
        self.trainable.iter().map(|(name, _)| name.as_str())
    }

    /// Room for what a step writes: zeros in the shapes of the parameters that learn.
    pub fn gradients(&self) -> Gradients {
        let values = self
            .trainable
            .iter()
            .map(|(name, numel)| (name.clone(), vec![0.0; *numel]));
        Gradients {
            values: IndexMap::from_iter(values),
        }
    }
}
