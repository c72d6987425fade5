//! Where tensors lie, and how many samples are computed at a time.

use std::ops::Range;

use super::fuse::Planned;
use super::{AT_ONCE, Input, Place, Step, What};
use crate::grad::program::{Program, Source};

/// Steps that some samples go through before the next ones do, so that what one step leaves is still near when the next one
/// reads it.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) steps: Range<usize>,
    /// Samples.
    pub(super) at_once: usize,
}

/// Steps in their places.
pub(super) struct Placed {
    pub(super) steps: Vec<Step>,
    pub(super) groups: Vec<Group>,
    pub(super) n_buffers: usize,
    pub(super) outputs: Vec<Input>,
}

/// So many samples that reading the weights costs little beside reading and writing the samples.
fn at_once(program: &Program, step: &Planned) -> Option<usize> {
    let What::Product(product) = &step.what else {
        return None;
    };
    let per_sample = program.slots[step.slot].size.max(1);
    let wanted = (product.n_weights() / per_sample).max(1);
    Some(wanted.next_power_of_two().min(AT_ONCE))
}

fn groups(program: &Program, planned: &[Planned]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let is_by_sample = program.nodes.iter().all(|node| node.op.is_by_sample());
    for (at, step) in planned.iter().enumerate() {
        let wanted = if is_by_sample {
            at_once(program, step)
        } else {
            Some(AT_ONCE)
        };
        match groups.last_mut() {
            Some(group) if wanted.is_none_or(|wanted| wanted == group.at_once) => group.steps.end = at + 1,
            _ => groups.push(Group {
                steps: at..at + 1,
                at_once: wanted.unwrap_or(1),
            }),
        }
    }
    groups
}

/// Memory that is handed out and taken back.
#[derive(Default)]
struct Pool {
    sizes: Vec<usize>,
    free: Vec<usize>,
}

impl Pool {
    /// The smallest that is large enough, or else the largest, or else a new one.
    fn take(&mut self, size: usize) -> usize {
        let best = (0..self.free.len()).min_by_key(|i| {
            let own = self.sizes[self.free[*i]];
            (own < size, own.abs_diff(size))
        });
        let buffer = match best {
            Some(i) => self.free.swap_remove(i),
            None => {
                self.sizes.push(0);
                self.sizes.len() - 1
            }
        };
        self.sizes[buffer] = self.sizes[buffer].max(size);
        buffer
    }
}

/// Gives steps their places in memory: what is read in the group that wrote it has room for that group's samples, and goes
/// when it has been read; the rest has room for all, and goes when a group is through.
pub(super) fn place(program: &Program, planned: Vec<Planned>) -> Placed {
    let groups = groups(program, &planned);
    let n_slots = program.slots.len();
    // By slot, the last step and the last group that read it, and whether only the group that wrote it does.
    let (mut last_step, mut last_group) = (vec![0; n_slots], vec![0; n_slots]);
    let (mut writer, mut is_passing) = (vec![0; n_slots], vec![true; n_slots]);
    for (group_idx, group) in groups.iter().enumerate() {
        for at in group.steps.clone() {
            writer[planned[at].slot] = group_idx;
            for source in &planned[at].inputs {
                if let Source::Slot(slot) = *source {
                    last_step[slot] = at;
                    last_group[slot] = group_idx;
                    is_passing[slot] &= writer[slot] == group_idx;
                }
            }
        }
    }
    for output in &program.outputs {
        if let Source::Slot(slot) = output.source {
            last_group[slot] = groups.len();
            is_passing[slot] = false;
        }
    }
    let unplaced = |slot: usize| Place {
        buffer: 0,
        len: program.slots[slot],
        is_passing: is_passing[slot],
    };
    let mut places: Vec<Place> = (0..n_slots).map(unplaced).collect();
    let input = |source: Source, places: &[Place]| match source {
        Source::Boundary => Input::Boundary,
        Source::Slot(slot) => Input::Buffer(places[slot]),
        Source::Parameter(idx) => Input::Parameter(idx),
        Source::Constant(idx) => Input::Constant(idx),
    };
    let (mut pool, mut steps) = (Pool::default(), Vec::new());
    let mut planned = planned.into_iter();
    for (group_idx, group) in groups.iter().enumerate() {
        let mut shared = Vec::new();
        // First what stays: what passes is overwritten by the next samples.
        for step in &planned.as_slice()[..group.steps.len()] {
            if !is_passing[step.slot] {
                places[step.slot].buffer = pool.take(program.slots[step.slot].at(AT_ONCE));
            }
        }
        for (at, step) in group.steps.clone().zip(planned.by_ref()) {
            let slot = step.slot;
            if is_passing[slot] {
                places[slot].buffer = pool.take(program.slots[slot].at(group.at_once));
            }
            let inputs = step.inputs.iter().map(|source| input(*source, &places));
            steps.push(Step {
                inputs: inputs.collect(),
                what: step.what,
                output: places[slot],
            });
            for source in &step.inputs {
                let Source::Slot(read) = *source else { continue };
                let buffer = places[read].buffer;
                if is_passing[read] {
                    if last_step[read] == at && !pool.free.contains(&buffer) {
                        pool.free.push(buffer);
                    }
                } else if last_group[read] == group_idx && !shared.contains(&buffer) {
                    shared.push(buffer);
                }
            }
        }
        pool.free.extend(shared);
    }
    Placed {
        outputs: program
            .outputs
            .iter()
            .map(|output| input(output.source, &places))
            .collect(),
        steps,
        groups,
        n_buffers: pool.sizes.len(),
    }
}
