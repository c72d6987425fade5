//! Products with what follows them, found in a program.

use std::collections::BTreeMap;

use super::What;
use crate::grad::op::{FrozenProduct, Part};
use crate::grad::program::{Node, Program, Source};
use crate::grad::weights::Weights;

/// A step that has no place in memory yet.
pub(super) struct Planned {
    pub(super) what: What,
    pub(super) inputs: Vec<Source>,
    pub(super) slot: usize,
}

/// What follows a product, as far as it becomes part of it.
struct Follow {
    /// Each output channel is multiplied by one and added the other.
    factor: Vec<f64>,
    shift: Vec<f64>,
    residual: Option<Source>,
    clamp: Option<[f32; 2]>,
    /// The last node of it.
    last: usize,
}

pub(super) struct Planner<'p> {
    program: &'p Program,
    weights: &'p Weights,
    /// By slot, the nodes that read it, and one that does not exist where it is an output.
    readers: Vec<Vec<usize>>,
    is_taken: Vec<bool>,
}

impl<'p> Planner<'p> {
    pub(super) fn new(program: &'p Program, weights: &'p Weights) -> Planner<'p> {
        let mut readers = vec![Vec::new(); program.slots.len()];
        for (idx, node) in program.nodes.iter().enumerate() {
            for source in &node.inputs {
                if let Source::Slot(slot) = source {
                    readers[*slot].push(idx);
                }
            }
        }
        for output in &program.outputs {
            if let Source::Slot(slot) = output.source {
                readers[slot].push(program.nodes.len());
            }
        }
        Planner {
            program,
            weights,
            readers,
            is_taken: vec![false; program.nodes.len()],
        }
    }

    /// Steps in an order in which each finds its inputs.
    pub(super) fn plan(mut self) -> Vec<Planned> {
        let mut steps = BTreeMap::new();
        for (idx, node) in self.program.nodes.iter().enumerate() {
            if self.is_taken[idx] {
                continue;
            }
            // What follows a product may need what is computed between them.
            let (last, planned) = self.product(idx).unwrap_or_else(|| {
                let planned = Planned {
                    what: What::Node(idx),
                    inputs: node.inputs.clone(),
                    slot: node.slot,
                };
                (idx, planned)
            });
            steps.insert(last, planned);
        }
        steps.into_values().collect()
    }

    fn parameter(&self, source: Option<&Source>) -> Option<&'p [f32]> {
        match source {
            Some(Source::Parameter(idx)) => Some(&self.weights.values[*idx]),
            _ => None,
        }
    }

    /// The product at a node with what follows it; none where it is none, or its weights are computed.
    fn product(&mut self, idx: usize) -> Option<(usize, Planned)> {
        let program = self.program;
        let node: &'p Node = &program.nodes[idx];
        let weights = self.parameter(node.inputs.get(1))?;
        let n_channels = match node.op.part() {
            Part::Conv(conv) if conv.can_be_frozen() => conv.n_outputs(),
            Part::Linear(linear) => linear.n_out,
            _ => return None,
        };
        let bias = match node.inputs.get(2) {
            Some(source) => Some(self.parameter(Some(source))?),
            None => None,
        };
        let follow = self.follow(idx, n_channels, bias);
        let mut weights = weights.to_vec();
        let is_scaled = follow.factor.iter().any(|factor| *factor != 1.0);
        let times = |value: &mut f32, factor: f64| *value = (f64::from(*value) * factor) as f32;
        if is_scaled {
            let is_transposed = matches!(node.op.part(), Part::Linear(linear) if linear.is_transposed);
            let per_channel = weights.len() / n_channels;
            for (at, value) in weights.iter_mut().enumerate() {
                let channel = if is_transposed {
                    at % n_channels
                } else {
                    at / per_channel
                };
                times(value, follow.factor[channel]);
            }
        }
        let product = match node.op.part() {
            Part::Conv(conv) => FrozenProduct::of_conv(conv, &weights)?,
            Part::Linear(linear) => FrozenProduct::of_linear(linear, &weights),
            _ => return None,
        };
        let is_shifted = follow.shift.iter().any(|shift| *shift != 0.0);
        let bias = is_shifted.then(|| follow.shift.iter().map(|shift| *shift as f32).collect());
        let planned = Planned {
            what: What::Product(product.with(bias, follow.clamp)),
            inputs: std::iter::once(node.inputs[0]).chain(follow.residual).collect(),
            slot: program.nodes[follow.last].slot,
        };
        Some((follow.last, planned))
    }

    /// Takes the nodes behind a product that can be part of it: a normalisation, a sum, an activation, in this order.
    fn follow(&mut self, idx: usize, n_channels: usize, bias: Option<&[f32]>) -> Follow {
        let mut follow = Follow {
            factor: vec![1.0; n_channels],
            shift: bias.map_or(vec![0.0; n_channels], |bias| {
                bias.iter().map(|b| f64::from(*b)).collect()
            }),
            residual: None,
            clamp: None,
            last: idx,
        };
        while follow.clamp.is_none() {
            let own = Source::Slot(self.program.nodes[follow.last].slot);
            let Source::Slot(slot) = own else { break };
            let &[next] = self.readers[slot].as_slice() else {
                break;
            };
            let Some(node) = self.program.nodes.get(next).filter(|_| !self.is_taken[next]) else {
                break;
            };
            match node.op.part() {
                Part::Norm(norm) if follow.residual.is_none() && node.inputs[0] == own => {
                    let parameters: Option<Vec<&[f32]>> =
                        (1..5).map(|at| self.parameter(node.inputs.get(at))).collect();
                    let Some(parameters) = parameters.filter(|parameters| parameters[0].len() == n_channels)
                    else {
                        break;
                    };
                    for channel in 0..n_channels {
                        let [scale, shift, mean, var] =
                            [0, 1, 2, 3].map(|at| f64::from(parameters[at][channel]));
                        let factor = scale / (var + f64::from(norm.eps)).sqrt();
                        follow.factor[channel] *= factor;
                        follow.shift[channel] = (follow.shift[channel] - mean) * factor + shift;
                    }
                    follow.residual = node.inputs.get(5).copied();
                    follow.clamp = norm.clamp;
                }
                Part::Sum if follow.residual.is_none() => {
                    let other = node.inputs.iter().find(|source| **source != own);
                    let Some(other @ (Source::Slot(_) | Source::Boundary)) = other else {
                        break;
                    };
                    follow.residual = Some(*other);
                }
                Part::Clamp(bounds) => follow.clamp = Some(bounds),
                _ => break,
            }
            self.is_taken[next] = true;
            follow.last = next;
        }
        follow
    }
}
