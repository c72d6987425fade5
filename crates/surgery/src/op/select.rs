//! Verbs that say what stays.

use std::collections::{BTreeMap, HashMap};

use super::matched;
use crate::Error;
use crate::lazy::LazyStateDict;
use crate::plan::args::{Args, At, Patterns, list};
use crate::plan::{Effect, Fault, Operation, Workspace};

/// `keep backbone.**`, `drop head.* except head.norm.*`
#[derive(Debug)]
struct Select {
    patterns: Patterns,
    is_optional: bool,
    is_keep: bool,
}

pub(crate) fn parse_keep(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    parse_select(args, true)
}

pub(crate) fn parse_drop(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    parse_select(args, false)
}

fn parse_select(args: &mut Args, is_keep: bool) -> Result<Box<dyn Operation>, Fault> {
    Ok(Box::new(Select {
        patterns: args.patterns(0)?,
        is_optional: args.is_optional,
        is_keep,
    }))
}

impl Operation for Select {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let places = matched(&work.tensors, &self.patterns, self.is_optional)?;
        let n = work.tensors.len();
        let (mut place, mut next) = (0, places.iter().peekable());
        work.tensors.retain(|_, _| {
            let is_meant = next.next_if(|&&meant| meant == place).is_some();
            place += 1;
            is_meant == self.is_keep
        });
        let left = work.tensors.len();
        Ok(Effect::lossy(format!("{} of {n} dropped, {left} kept", n - left)))
    }
}

/// `unwrap state_dict_ema|model_ema|state_dict|model`
#[derive(Debug)]
struct Unwrap {
    containers: At<String>,
    is_optional: bool,
}

pub(crate) fn parse_unwrap(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    Ok(Box::new(Unwrap {
        containers: args.word("a container's name")?,
        is_optional: args.is_optional,
    }))
}

impl Operation for Unwrap {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let tensors = &work.tensors;
        for container in self.containers.value.split('|') {
            if tensors.wrapper == container {
                return Ok(Effect::exact(format!("`{container}` it is")));
            }
            let prefix = format!("{container}.");
            // A dict of tensors beside the one that was taken, or a part of it.
            let beside = tensors.others.names().any(|name| name.starts_with(&prefix));
            let others = &tensors.others;
            let inside: pth::StateDict = others
                .entries()
                .filter_map(|(name, entry)| Some((name.strip_prefix(&prefix)?.to_owned(), entry.clone())))
                .collect();
            if beside {
                let n = inside.len();
                let left_out = tensors.len();
                let metadata = std::mem::take(&mut work.tensors.metadata);
                work.tensors = LazyStateDict::from(inside);
                work.tensors.metadata = metadata;
                container.clone_into(&mut work.tensors.wrapper);
                return Ok(Effect::lossy(format!(
                    "{n} of `{container}`, {left_out} others left out"
                )));
            }
            if tensors.names().any(|name| name.starts_with(&prefix)) {
                let n = tensors.len();
                work.tensors.retain(|name, _| name.starts_with(&prefix));
                let kept = work
                    .tensors
                    .rename(|name| name.strip_prefix(&prefix).map(str::to_owned))?;
                return Ok(Effect::lossy(format!(
                    "{kept} of `{container}`, {} others left out",
                    n - kept
                )));
            }
        }
        if self.is_optional {
            return Ok(Effect::exact("no such container"));
        }
        let fault = Fault::new(format!(
            "the checkpoint has no `{}`",
            self.containers.value.replace('|', "`, no `")
        ));
        Err(fault.at(&self.containers.span).hint("`unwrap?` goes on without"))
    }
}

/// `renumber encoder.layers keep 0,2,4`, `renumber features compact`
#[derive(Debug)]
struct Renumber {
    prefix: At<String>,
    /// The layers that stay, in the order of their new numbers; none for all there are.
    keep: Option<At<Vec<u64>>>,
    is_optional: bool,
}

pub(crate) fn parse_renumber(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    let prefix = args.word("a prefix")?;
    let word = args.word("`keep` or `compact`")?;
    let keep = match word.value.as_str() {
        "compact" => None,
        "keep" => {
            let numbers = args.word("layers as in `0,2,4`")?;
            let mut kept = Vec::new();
            for item in numbers.value.split(',') {
                let text = At {
                    value: item.replace("..", ","),
                    span: numbers.span.clone(),
                };
                match list::<u64>(&text, ',', "a list of layers such as `0,2,4` or `0..11`")?[..] {
                    [one] => kept.push(one),
                    [first, last] if first <= last && last - first < 1 << 20 => kept.extend(first..=last),
                    _ => {
                        return Err(
                            Fault::new(format!("`{item}` is not a range of layers")).at(&numbers.span)
                        );
                    }
                }
            }
            Some(At {
                value: kept,
                span: numbers.span,
            })
        }
        _ => {
            return Err(
                Fault::new(format!("`{}` is neither `keep` nor `compact`", word.value)).at(&word.span),
            );
        }
    };
    Ok(Box::new(Renumber {
        prefix,
        keep,
        is_optional: args.is_optional,
    }))
}

impl Operation for Renumber {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let prefix = format!("{}.", self.prefix.value.trim_end_matches('.'));
        let number = |name: &str| -> Option<u64> {
            let digits = name.strip_prefix(&prefix)?.split('.').next()?;
            // `01` is no number of a layer as torch writes them, and would come back as `1`.
            digits
                .parse()
                .ok()
                .filter(|number: &u64| number.to_string() == digits)
        };
        let there: BTreeMap<u64, ()> = work.tensors.names().filter_map(number).map(|n| (n, ())).collect();
        if there.is_empty() && !self.is_optional {
            let rule = format!("starts with `{prefix}` and an integer");
            return Err(Fault::from(Error::NoMatch { rule }).at(&self.prefix.span));
        }
        let kept: Vec<u64> = match &self.keep {
            Some(kept) => {
                if let Some(missing) = kept.value.iter().find(|layer| !there.contains_key(layer)) {
                    return Err(Fault::new(format!("there is no `{prefix}{missing}`")).at(&kept.span));
                }
                kept.value.clone()
            }
            None => there.into_keys().collect(),
        };
        let new: HashMap<u64, usize> = kept.iter().enumerate().map(|(new, &old)| (old, new)).collect();
        if new.len() < kept.len() {
            let span = self.keep.as_ref().map_or(&self.prefix.span, |kept| &kept.span);
            return Err(Fault::new("a layer is kept twice: `copy` makes another of it").at(span));
        }
        let n = work.tensors.len();
        work.tensors
            .retain(|name, _| number(name).is_none_or(|layer| new.contains_key(&layer)));
        let n_dropped = n - work.tensors.len();
        let n_renamed = work.tensors.rename(|name| {
            let layer = number(name)?;
            let rest = &name[prefix.len() + layer.to_string().len()..];
            Some(format!("{prefix}{}{rest}", new.get(&layer)?))
        })?;
        let summary = format!("{} layers, {n_renamed} renamed, {n_dropped} dropped", kept.len());
        Ok(if n_dropped > 0 {
            Effect::lossy(summary)
        } else {
            Effect::exact(summary)
        })
    }
}
