//! `freeze pretrained.**`, `unfreeze pretrained.5.1.**`: `requires_grad` by pattern.

use super::matched;
use crate::lazy::LazyStateDict;
use crate::marks;
use crate::plan::args::{Args, Patterns};
use crate::plan::{Effect, Fault, Operation, Workspace};

#[derive(Debug)]
struct Freeze {
    patterns: Patterns,
    is_optional: bool,
    trains: bool,
}

pub(crate) fn parse_freeze(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    parse(args, false)
}

pub(crate) fn parse_unfreeze(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    parse(args, true)
}

fn parse(args: &mut Args, trains: bool) -> Result<Box<dyn Operation>, Fault> {
    Ok(Box::new(Freeze {
        patterns: args.patterns(0)?,
        is_optional: args.is_optional,
        trains,
    }))
}

impl Operation for Freeze {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let places = matched(&work.tensors, &self.patterns, self.is_optional)?;
        mark(&mut work.tensors, &places, self.trains);
        Ok(Effect::exact(count(&work.tensors)))
    }
}

/// Marks the entries at `places`, of those that can be trained.
///
/// A state dict without any mark, as `torch.save(model.state_dict())` writes it, is taken as trainable first, but for its buffers.
pub(crate) fn mark(tensors: &mut LazyStateDict, places: &[usize], trains: bool) {
    if !tensors.is_marked() {
        for (name, entry) in tensors.iter_mut() {
            let is_parameter = LazyStateDict::can_train(name, entry);
            (entry.requires_grad, entry.is_parameter) = (is_parameter, is_parameter);
        }
    }
    for &place in places {
        let Some((name, entry)) = tensors.at_mut(place) else {
            continue;
        };
        if LazyStateDict::can_train(name, entry) {
            (entry.requires_grad, entry.is_parameter) = (trains, true);
        } else if !trains && !marks::is_buffer_name(name) {
            entry.requires_grad = false;
        }
    }
}

/// `41 frozen (11.2 M), 2 trainable (5.1 k)`
pub(crate) fn count(tensors: &LazyStateDict) -> String {
    let (mut frozen, mut trained) = ((0, 0), (0, 0));
    for (name, entry) in tensors.iter() {
        let Some(tensor) = entry.tensor().filter(|_| LazyStateDict::can_train(name, entry)) else {
            continue;
        };
        let sum = if entry.requires_grad {
            &mut trained
        } else {
            &mut frozen
        };
        *sum = (sum.0 + 1, tensor.numel().saturating_add(sum.1));
    }
    format!(
        "{} frozen ({}), {} trainable ({})",
        frozen.0,
        short(frozen.1),
        trained.0,
        short(trained.1)
    )
}

/// `5.1 k`, `11.2 M`
pub(crate) fn short(n: usize) -> String {
    const UNITS: [(f64, &str); 4] = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    match UNITS.iter().find(|(unit, _)| n as f64 >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", n as f64 / unit),
        None => n.to_string(),
    }
}
