//! Ordered groups of parameters: what is frozen first, and whose learning rate is the smallest.
//!
//! One notion serves fastai's `freeze_to`, gradual unfreezing and layer-wise decay: a list of groups from the input to the output, of
//! which group i of L has the learning rate times decay^(L-1-i) (as timm's `param_groups_layer_decay`).

use std::collections::BTreeMap;

use super::freeze;
use super::matching::must_match;
use crate::lazy::{Group, LazyStateDict};
use crate::pattern::{Part, Pattern};
use crate::plan::args::{Args, At};
use crate::plan::{Effect, Fault, Operation, Workspace};

/// `group conv1.**,bn1.** layer{i}.** fc.** decay=.75` or `group by blocks.{i} decay=.75`.
#[derive(Debug)]
struct MakeGroups {
    /// One item per word; a word with an integer makes one group for each value of it.
    items: Vec<Vec<At<Pattern>>>,
    /// Whether what matches nothing goes to groups before and behind, by its place.
    is_by: bool,
    decay: f64,
    is_optional: bool,
}

pub(crate) fn parse_group(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    let decay: f64 = args.parsed("decay", "a factor such as 0.75")?.unwrap_or(1.0);
    if !decay.is_finite() {
        return Err(Fault::new(format!("`{decay}` is not a factor such as 0.75")).at(&args.verb_span()));
    }
    let is_by = args.take("by");
    let mut items: Vec<Vec<At<Pattern>>> = Vec::new();
    if is_by {
        let word = args.word("a pattern as in `blocks.{i}`")?;
        let text = if word.value.ends_with("**") {
            word.value.clone()
        } else {
            format!("{}.**", word.value)
        };
        let pattern = Pattern::parse(&text).map_err(|error| Fault::new(error.reason).at(&word.span))?;
        if !has_integer(&pattern) {
            return Err(Fault::new(format!(
                "`{}` has no integer to count groups by, as in `blocks.{{i}}`",
                word.value
            ))
            .at(&word.span));
        }
        items.push(vec![At {
            value: pattern,
            span: word.span,
        }]);
    } else {
        // `a.**,b.**` is one group, also where a space follows the comma.
        let mut goes_on = false;
        while items.is_empty() || !args.is_empty() {
            if args.take(",") {
                goes_on = true;
                continue;
            }
            let word = args.word("a pattern")?;
            let mut patterns = Vec::new();
            for text in word.value.split(',').filter(|text| !text.is_empty()) {
                let value = Pattern::parse(text).map_err(|error| Fault::new(error.reason).at(&word.span))?;
                patterns.push(At {
                    value,
                    span: word.span.clone(),
                });
            }
            match items.last_mut().filter(|_| goes_on) {
                Some(last) => last.extend(patterns),
                None => items.push(patterns),
            }
            goes_on = false;
        }
    }
    Ok(Box::new(MakeGroups {
        items,
        is_by,
        decay,
        is_optional: args.is_optional,
    }))
}

fn has_integer(pattern: &Pattern) -> bool {
    pattern
        .parts()
        .iter()
        .any(|part| matches!(part, Part::Integer { .. }))
}

impl Operation for MakeGroups {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        for pattern in self.items.iter().flatten() {
            must_match(&work.tensors, pattern, self.is_optional)?;
        }
        // (item, integers) in order is the order of the groups.
        let mut groups: BTreeMap<(usize, Vec<u64>), (String, Vec<String>)> = BTreeMap::new();
        let mut has_begun = false;
        for name in work.tensors.names() {
            let found = self.items.iter().enumerate().find_map(|(item, patterns)| {
                let captured = patterns
                    .iter()
                    .find_map(|pattern| Some((pattern, pattern.value.captures(name)?)));
                let (pattern, captures) = captured?;
                let integers: Vec<u64> = captures.integers.clone();
                Some((item, integers, pattern.value.as_str()))
            });
            let (key, label) = match found {
                Some((item, integers, text)) => {
                    has_begun = true;
                    let label = label(text, &integers);
                    ((item + 1, integers), label)
                }
                None if self.is_by && !has_begun => ((0, Vec::new()), "stem".to_owned()),
                // As in timm, what nothing matches is the head.
                None => ((usize::MAX, Vec::new()), "rest".to_owned()),
            };
            groups
                .entry(key)
                .or_insert_with(|| (label, Vec::new()))
                .1
                .push(name.to_owned());
        }
        let n = groups.len();
        work.tensors.groups = Vec::with_capacity(n);
        for (index, (label, names)) in groups.into_values().enumerate() {
            let lr_scale = self.decay.powi(i32::try_from(n - 1 - index).unwrap_or(i32::MAX));
            work.tensors.groups.push(Group {
                name: label,
                lr_scale,
            });
            for name in names {
                if let Some(entry) = work.tensors.get_mut(&name) {
                    entry.group = Some(index);
                }
            }
        }
        Ok(Effect {
            notes: table(&work.tensors),
            ..Effect::exact(format!("{n} groups"))
        })
    }
}

/// `blocks.{i}.**` of block 3 is `blocks.3`.
fn label(pattern: &str, integers: &[u64]) -> String {
    let mut text = pattern.trim_end_matches(".**").to_owned();
    for integer in integers {
        let (Some(start), Some(end)) = (text.find('{'), text.find('}')) else {
            break;
        };
        if start < end {
            text.replace_range(start..=end, &integer.to_string());
        }
    }
    text
}

/// The groups as rows: number, name, tensors, parameters, learning rate's factor, state.
pub(crate) fn table(tensors: &LazyStateDict) -> Vec<String> {
    let width = tensors
        .groups
        .iter()
        .map(|group| group.name.chars().count())
        .max()
        .unwrap_or(0)
        .max(5);
    let mut rows = vec![format!(
        "{:>5}  {:<width$}  {:>7}  {:>9}  {:>9}  state",
        "group", "names", "tensors", "params", "lr scale"
    )];
    let mut sums = vec![(0_usize, 0_usize, 0_usize); tensors.groups.len()];
    for (_, entry) in tensors
        .iter()
        .filter(|(name, entry)| LazyStateDict::can_train(name, entry))
    {
        if let (Some(sum), Some(tensor)) = (entry.group.and_then(|group| sums.get_mut(group)), entry.tensor())
        {
            *sum = (
                sum.0 + 1,
                tensor.numel().saturating_add(sum.1),
                sum.2 + usize::from(entry.requires_grad),
            );
        }
    }
    for (index, (group, (n, n_params, n_trained))) in tensors.groups.iter().zip(sums).enumerate() {
        let state = match n_trained {
            _ if !tensors.is_marked() || n_trained == n => "trainable",
            0 => "frozen",
            _ => "partly frozen",
        };
        rows.push(format!(
            "{index:>5}  {:<width$}  {n:>7}  {:>9}  {:>9.3e}  {state}",
            group.name,
            freeze::short(n_params),
            group.lr_scale
        ));
    }
    rows
}

/// `freeze-to 2`, `freeze-to -1`
#[derive(Debug)]
struct FreezeTo {
    n: i64,
    /// fastai trains BatchNorm also in frozen groups.
    trains_norms: bool,
}

pub(crate) fn parse_freeze_to(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    let bn = args.option("bn");
    let trains_norms = match &bn {
        None => false,
        Some(text) => crate::plan::args::one_of(text, &[("train", true), ("freeze", false)])?,
    };
    Ok(Box::new(FreezeTo {
        n: args.value("a number of groups")?,
        trains_norms,
    }))
}

impl Operation for FreezeTo {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let n_groups = work.tensors.groups.len();
        if n_groups == 0 {
            return Err(
                Fault::new("the state dict has no groups yet").hint("`group by blocks.{i}` makes some")
            );
        }
        let n_signed = i64::try_from(n_groups).unwrap_or(i64::MAX);
        let n = if self.n < 0 { self.n + n_signed } else { self.n };
        if !(0..=n_signed).contains(&n) {
            return Err(Fault::new(format!(
                "there are {n_groups} groups, and none is number {}",
                self.n
            )));
        }
        let n = usize::try_from(n).unwrap_or(0);
        let tensors = &work.tensors;
        let is_norm = |name: &str| {
            let module = name.rsplit_once('.').map_or("", |(module, _)| module);
            tensors.contains(&format!("{module}.running_mean"))
        };
        let (mut frozen, mut trained) = (Vec::new(), Vec::new());
        for (place, (name, entry)) in tensors.iter().enumerate() {
            let is_frozen =
                entry.group.is_some_and(|group| group < n) && !(self.trains_norms && is_norm(name));
            if is_frozen {
                frozen.push(place);
            } else {
                trained.push(place);
            }
        }
        freeze::mark(&mut work.tensors, &frozen, false);
        freeze::mark(&mut work.tensors, &trained, true);
        Ok(Effect {
            notes: table(&work.tensors),
            ..Effect::exact(freeze::count(&work.tensors))
        })
    }
}
