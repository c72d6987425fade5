//! Products with what follows them, found in a program.

use std::collections::BTreeMap;

use super::What;
use crate::grad::op::{Follow, FrozenProduct, Part};
use crate::grad::program::{Node, Program, Source};
use crate::grad::weights::Weights;

/// A step that has no place in memory yet.
pub(super) struct Planned {
    pub(super) what: What,
    pub(super) inputs: Vec<Source>,
    pub(super) slot: usize,
}

/// What becomes part of a product.
struct Followed {
    follow: Follow,
    residual: Option<Source>,
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
        let bias = match node.inputs.get(2) {
            Some(source) => Some(self.parameter(Some(source))?.to_vec()),
            None => None,
        };
        let product = match node.op.part() {
            Part::Conv(conv) => FrozenProduct::of_conv(conv, weights)?,
            Part::Linear(linear) => FrozenProduct::of_linear(linear, weights),
            _ => return None,
        };
        let Followed {
            follow,
            residual,
            last,
        } = self.follow(idx, product.n_channels(), bias);
        let planned = Planned {
            what: What::Product(Box::new(product.with(follow))),
            inputs: std::iter::once(node.inputs[0]).chain(residual).collect(),
            slot: program.nodes[last].slot,
        };
        Some((last, planned))
    }

    /// Takes the nodes behind a product that can be part of it: a normalisation, a sum, an activation, in this order.
    fn follow(&mut self, idx: usize, n_channels: usize, bias: Option<Vec<f32>>) -> Followed {
        let mut found = Followed {
            follow: Follow {
                bias,
                ..Follow::default()
            },
            residual: None,
            last: idx,
        };
        while found.follow.clamp.is_none() {
            let slot = self.program.nodes[found.last].slot;
            let own = Source::Slot(slot);
            let &[next] = self.readers[slot].as_slice() else {
                break;
            };
            let Some(node) = self.program.nodes.get(next).filter(|_| !self.is_taken[next]) else {
                break;
            };
            match node.op.part() {
                // A normalisation behind a reshape may have other channels.
                Part::Norm(norm)
                    if norm.n_channels == n_channels
                        && found.follow.scale.is_none()
                        && found.residual.is_none()
                        && node.inputs[0] == own =>
                {
                    let parameters: Option<Vec<&[f32]>> =
                        (1..5).map(|at| self.parameter(node.inputs.get(at))).collect();
                    let Some(parameters) = parameters else { break };
                    let of_channel =
                        |channel: usize| norm.frozen([0, 1, 2, 3].map(|at| parameters[at][channel]));
                    let (factors, offsets) = (0..norm.n_channels).map(of_channel).unzip();
                    found.follow.scale = Some([factors, offsets]);
                    found.follow.clamp = norm.clamp;
                    found.residual = node.inputs.get(5).copied();
                }
                Part::Sum if found.residual.is_none() => {
                    let other = node.inputs.iter().find(|source| **source != own);
                    let Some(other @ (Source::Slot(_) | Source::Boundary)) = other else {
                        break;
                    };
                    found.residual = Some(*other);
                }
                Part::Clamp(bounds) => found.follow.clamp = Some(bounds),
                _ => break,
            }
            self.is_taken[next] = true;
            found.last = next;
        }
        found
    }
}
