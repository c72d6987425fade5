//! The room of a run, kept from one to the next: results, derivatives, and what operators remember.

use super::gradients::Gradients;
use super::op::{Backward, Kept, Run, Sink};
use super::plan::{NormMode, Plan};
use super::program::{Program, Source};
use super::weights::Weights;

/// Room for one run at a time.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    slots: Vec<Vec<f32>>,
    derivatives: Vec<Option<Vec<f32>>>,
    /// Derivatives that nobody needs any more.
    free: Vec<Vec<f32>>,
    kept: Vec<Kept>,
    room: Vec<f32>,
}

/// What every operator of a run may read.
#[derive(Clone, Copy)]
struct Known<'k> {
    program: &'k Program,
    weights: &'k Weights,
    batch: &'k [f32],
}

impl<'k> Known<'k> {
    fn look<'s>(self, slots: &'s [Vec<f32>], source: Source) -> &'s [f32]
    where
        'k: 's,
    {
        match source {
            Source::Boundary => self.batch,
            Source::Slot(slot) => &slots[slot],
            Source::Parameter(idx) => &self.weights.values[idx],
            Source::Constant(idx) => &self.program.constants[idx],
        }
    }
}

impl Workspace {
    fn fit(&mut self, program: &Program, n: usize) {
        self.slots.resize(program.slots.len(), Vec::new());
        self.derivatives.resize(program.slots.len(), None);
        self.kept.resize_with(program.nodes.len(), Kept::default);
        for (slot, len) in self.slots.iter_mut().zip(&program.slots) {
            slot.resize(len.at(n), 0.0);
        }
    }

    /// Runs all operators; `norm` is by node.
    pub(super) fn forward(
        &mut self,
        program: &Program,
        weights: &Weights,
        batch: &[f32],
        run: Run,
        norm: impl Fn(usize) -> NormMode,
    ) {
        self.fit(program, run.n);
        let known = Known {
            program,
            weights,
            batch,
        };
        for (idx, node) in program.nodes.iter().enumerate() {
            let mut out = std::mem::take(&mut self.slots[node.slot]);
            let inputs: Vec<&[f32]> = node
                .inputs
                .iter()
                .map(|source| known.look(&self.slots, *source))
                .collect();
            let kept = &mut self.kept[idx];
            std::mem::swap(&mut kept.room, &mut self.room);
            let run = Run {
                norm: norm(idx),
                ..run
            };
            node.op.forward(run, &inputs, &mut out, kept);
            std::mem::swap(&mut kept.room, &mut self.room);
            self.slots[node.slot] = out;
        }
    }

    /// What the last run said.
    pub(super) fn output<'o>(
        &'o self,
        program: &'o Program,
        weights: &'o Weights,
        batch: &'o [f32],
    ) -> &'o [f32] {
        let known = Known {
            program,
            weights,
            batch,
        };
        known.look(&self.slots, program.outputs[0].source)
    }

    /// A place for the derivative by the output.
    pub(super) fn take(&mut self, len: usize) -> Vec<f32> {
        let fitting = (0..self.free.len())
            .filter(|idx| self.free[*idx].capacity() >= len)
            .min_by_key(|idx| self.free[*idx].capacity());
        let mut room = fitting.map_or_else(Vec::new, |idx| self.free.swap_remove(idx));
        room.resize(len, 0.0);
        room
    }

    /// Runs the operators back that lead to what learns; gradients are written whole.
    #[expect(
        clippy::too_many_arguments,
        reason = "what is known, and three places to write to"
    )]
    pub(super) fn backward(
        &mut self,
        program: &Program,
        plan: &Plan,
        weights: &Weights,
        batch: &[f32],
        run: Run,
        d_output: Vec<f32>,
        gradients: &mut Gradients,
    ) {
        let known = Known {
            program,
            weights,
            batch,
        };
        let mut is_written = vec![false; weights.values.len()];
        match program.outputs[0].source {
            Source::Slot(slot) => self.derivatives[slot] = Some(d_output),
            _ => self.free.push(d_output),
        }
        for (idx, node) in program.nodes.iter().enumerate().rev() {
            if !plan.needs[node.slot] {
                continue;
            }
            let Some(d_out) = self.derivatives[node.slot].take() else {
                continue;
            };
            // A sink's numbers are taken out of their place, so that a second one for the same place is seen.
            let mut rooms: Vec<Option<(Vec<f32>, bool)>> = Vec::with_capacity(node.inputs.len());
            let mut repeated = Vec::new();
            for (at, source) in node.inputs.iter().enumerate() {
                let is_wanted = match *source {
                    Source::Slot(slot) => plan.needs[slot],
                    Source::Parameter(param) => plan.gradient_of[param].is_some(),
                    _ => false,
                };
                if !is_wanted {
                    rooms.push(None);
                    continue;
                }
                if node.inputs[..at].contains(source) {
                    let len = known.look(&self.slots, *source).len();
                    repeated.push(at);
                    rooms.push(Some((self.take(len), false)));
                    continue;
                }
                rooms.push(Some(match *source {
                    Source::Slot(slot) => match self.derivatives[slot].take() {
                        Some(room) => (room, true),
                        None => (self.take(program.slots[slot].at(run.n)), false),
                    },
                    Source::Parameter(param) => {
                        let gradient = plan.gradient_of[param].expect("wanted above");
                        let is_added = std::mem::replace(&mut is_written[param], true);
                        (std::mem::take(&mut gradients.values[gradient]), is_added)
                    }
                    _ => unreachable!("not wanted above"),
                }));
            }
            let inputs: Vec<&[f32]> = node
                .inputs
                .iter()
                .map(|source| known.look(&self.slots, *source))
                .collect();
            let mut sinks: Vec<Option<Sink<'_>>> = rooms
                .iter_mut()
                .map(|room| {
                    room.as_mut().map(|(values, is_added)| Sink {
                        values,
                        is_added: *is_added,
                    })
                })
                .collect();
            let kept = &mut self.kept[idx];
            std::mem::swap(&mut kept.room, &mut self.room);
            let run = Run {
                norm: plan.norms[idx],
                ..run
            };
            let pass = Backward {
                inputs: &inputs,
                out: &self.slots[node.slot],
                d_out: &d_out,
            };
            node.op.backward(run, pass, &mut sinks, kept);
            std::mem::swap(&mut kept.room, &mut self.room);
            self.free.push(d_out);
            for at in repeated {
                let (room, _) = rooms[at].take().expect("made above");
                let first = node.inputs.iter().position(|source| *source == node.inputs[at]);
                let first = first
                    .and_then(|first| rooms[first].as_mut())
                    .expect("it is repeated");
                super::op::add(&mut first.0, &room);
                self.free.push(room);
            }
            for (source, room) in node.inputs.iter().zip(rooms) {
                let Some((room, _)) = room else { continue };
                match *source {
                    Source::Slot(slot) => self.derivatives[slot] = Some(room),
                    Source::Parameter(param) => {
                        gradients.values[plan.gradient_of[param].expect("wanted above")] = room;
                    }
                    _ => {}
                }
            }
        }
        for slot in &mut self.derivatives {
            self.free.extend(slot.take());
        }
        for (param, gradient) in plan.gradient_of.iter().enumerate() {
            if let (Some(gradient), false) = (gradient, is_written[param]) {
                gradients.values[*gradient].fill(0.0);
            }
        }
    }

    /// Lets running statistics follow.
    pub(super) fn update_running(&self, program: &Program, plan: &Plan, weights: &mut Weights) {
        for (idx, node) in program.nodes.iter().enumerate() {
            if !node.is_batch_norm || plan.norms[idx] != NormMode::Batch {
                continue;
            }
            let (Source::Parameter(mean), Source::Parameter(var)) = (node.inputs[3], node.inputs[4]) else {
                continue;
            };
            let [mut means, mut vars] = [mean, var].map(|idx| std::mem::take(&mut weights.values[idx]));
            node.op.update_running(&self.kept[idx], &mut means, &mut vars);
            weights.values[mean] = means;
            weights.values[var] = vars;
        }
    }
}
