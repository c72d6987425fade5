//! Verbs that change names, or say which names stand for one tensor.

use std::collections::HashMap;

use super::matching::{MAY_MATCH_NOTHING, no_match, target_name};
use super::{matched, names_at, pairs_of};
use crate::Error;
use crate::lazy::{LazyEntry, LazyTensor};
use crate::pattern::Target;
use crate::plan::args::{Args, At, Pair, Patterns};
use crate::plan::{Effect, Fault, Operation, Workspace};

/// `strip module. _orig_mod.`
#[derive(Debug)]
struct Strip {
    prefixes: Vec<At<String>>,
    is_strict: bool,
    is_optional: bool,
}

pub(crate) fn parse_strip(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    let mut prefixes = vec![args.word("a prefix")?];
    while !args.is_empty() {
        prefixes.push(args.word("a prefix")?);
    }
    Ok(Box::new(Strip {
        prefixes,
        is_strict: args.is_strict,
        is_optional: args.is_optional,
    }))
}

impl Operation for Strip {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let n = work.tensors.len();
        let mut n_stripped = 0;
        for prefix in &self.prefixes {
            let text = prefix.value.as_str();
            let without = work.tensors.names().find(|name| !name.starts_with(text));
            if let Some(name) = without.filter(|_| self.is_strict) {
                return Err(Fault::new(format!("`{name}` does not start with `{text}`")).at(&prefix.span));
            }
            let stripped = work
                .tensors
                .rename(|name| name.strip_prefix(text).map(str::to_owned));
            n_stripped += match stripped.map_err(|error| Fault::from(error).at(&prefix.span))? {
                0 if !self.is_optional && self.prefixes.len() == 1 => return Err(no_prefix(text, prefix)),
                n_stripped => n_stripped,
            };
        }
        if n_stripped == 0 && !self.is_optional {
            return Err(no_prefix(&self.prefixes[0].value, &self.prefixes[0]));
        }
        Ok(Effect::exact(format!("{n_stripped} of {n} renamed")))
    }
}

fn no_prefix(text: &str, prefix: &At<String>) -> Fault {
    let rule = format!("starts with `{text}`");
    Fault::from(Error::NoMatch { rule })
        .at(&prefix.span)
        .hint(MAY_MATCH_NOTHING)
}

/// `add model.`
#[derive(Debug)]
struct Add {
    prefix: String,
}

pub(crate) fn parse_add(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    Ok(Box::new(Add {
        prefix: args.word("a prefix")?.value,
    }))
}

impl Operation for Add {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let n = work
            .tensors
            .rename(|name| Some(format!("{}{name}", self.prefix)))?;
        Ok(Effect::exact(format!("{n} renamed")))
    }
}

/// `rename conv1.** -> stem.0.**, bn1.** -> stem.1.**`
#[derive(Debug)]
struct Rename {
    pairs: Vec<Pair>,
    is_optional: bool,
}

pub(crate) fn parse_rename(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    Ok(Box::new(Rename {
        pairs: args.pairs(Target::One)?,
        is_optional: args.is_optional,
    }))
}

impl Operation for Rename {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let n = work.tensors.len();
        let mut is_used = vec![false; self.pairs.len()];
        let mut fault = None;
        let renamed = work.tensors.rename(|name| {
            let mut new = None;
            for (pair, is_used) in self.pairs.iter().zip(&mut is_used) {
                // All pairs are asked, so that each knows whether it matches something; the first that matches counts.
                let Some(captures) = pair.source.value.captures(name) else {
                    continue;
                };
                *is_used = true;
                if new.is_none() {
                    new = Some(
                        target_name(pair, name, &captures, 0)
                            .map_err(|error| fault = Some(error))
                            .ok()?,
                    );
                }
            }
            new
        });
        if let Some(fault) = fault {
            return Err(fault);
        }
        if let Some((pair, _)) = self
            .pairs
            .iter()
            .zip(is_used)
            .find(|(_, is_used)| !is_used && !self.is_optional)
        {
            return Err(no_match(&work.tensors, &pair.source));
        }
        let n_renamed = renamed?;
        Ok(Effect::exact(format!("{n_renamed} of {n} renamed")))
    }
}

/// `replace conv1=patch_embed.proj ln_=norm`
#[derive(Debug)]
struct Replace {
    rules: Vec<(At<String>, String)>,
    is_optional: bool,
}

pub(crate) fn parse_replace(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    let mut rules = Vec::new();
    while rules.is_empty() || !args.is_empty() {
        if args.take(",") {
            continue;
        }
        let word = args.word("OLD=NEW")?;
        let (old, new) = match word.value.split_once('=') {
            Some((old, new)) if !old.is_empty() => (old.to_owned(), new.to_owned()),
            _ => {
                return Err(Fault::new(format!("`{}` is not of the form OLD=NEW", word.value)).at(&word.span));
            }
        };
        rules.push((
            At {
                value: old,
                span: word.span,
            },
            new,
        ));
    }
    Ok(Box::new(Replace {
        rules,
        is_optional: args.is_optional,
    }))
}

impl Operation for Replace {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let n = work.tensors.len();
        let mut is_used = vec![false; self.rules.len()];
        let n_renamed = work.tensors.rename(|name| {
            let mut name = name.to_owned();
            for ((old, new), is_used) in self.rules.iter().zip(&mut is_used) {
                if name.contains(&old.value) {
                    *is_used = true;
                    name = name.replace(&old.value, new);
                }
            }
            Some(name)
        })?;
        match self.rules.iter().zip(is_used).find(|(_, is_used)| !is_used) {
            Some(((old, _), _)) if !self.is_optional => {
                let rule = format!("contains `{}`", old.value);
                Err(Fault::from(Error::NoMatch { rule })
                    .at(&old.span)
                    .hint(MAY_MATCH_NOTHING))
            }
            _ => Ok(Effect::exact(format!("{n_renamed} of {n} renamed"))),
        }
    }
}

/// `map table.tsv`: a line for each name, old and new with a tab between.
#[derive(Debug)]
struct Map {
    path: At<String>,
    is_optional: bool,
}

pub(crate) fn parse_map(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    Ok(Box::new(Map {
        path: args.word("a file")?,
        is_optional: args.is_optional,
    }))
}

impl Operation for Map {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let path = std::path::Path::new(&self.path.value);
        let read = pth::FileError::at("read", path);
        let text = std::fs::read_to_string(path).map_err(|error| Fault::from(Error::File(read(error))))?;
        let mut names: HashMap<&str, &str> = HashMap::new();
        let lines = text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
        for (number, line) in lines {
            let here = format!("line {} of `{}`", number + 1, self.path.value);
            let Some((old, new)) = line.split_once('\t') else {
                return Err(Fault::new(format!("{here} has no tab between two names")).at(&self.path.span));
            };
            if names.insert(old.trim(), new.trim()).is_some() {
                return Err(Fault::new(format!("{here} maps `{}` again", old.trim())).at(&self.path.span));
            }
            if !self.is_optional && !work.tensors.contains(old.trim()) {
                return Err(
                    Fault::new(format!("{here}: no tensor is called `{}`", old.trim())).at(&self.path.span),
                );
            }
        }
        let n = work.tensors.len();
        let n_renamed = work
            .tensors
            .rename(|name| names.get(name).map(|&new| new.to_owned()))?;
        Ok(Effect::exact(format!("{n_renamed} of {n} renamed")))
    }
}

/// `copy layers.{i=8..23}.** -> layers.{i+16}.**`; `tie embed.weight -> head.weight`
#[derive(Debug)]
struct Again {
    pairs: Vec<Pair>,
    is_optional: bool,
    is_own: bool,
}

pub(crate) fn parse_copy(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    parse_again(args, true)
}

pub(crate) fn parse_tie(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    parse_again(args, false)
}

fn parse_again(args: &mut Args, is_own: bool) -> Result<Box<dyn Operation>, Fault> {
    Ok(Box::new(Again {
        pairs: args.pairs(Target::One)?,
        is_optional: args.is_optional,
        is_own,
    }))
}

impl Operation for Again {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let mut copies: Vec<(String, String, LazyEntry)> = Vec::new();
        // What was one tensor among the originals is one among the copies.
        let mut own = HashMap::new();
        for (name, pair, captures) in pairs_of(&work.tensors, &self.pairs, self.is_optional)? {
            let target = target_name(pair, &name, &captures, 0)?;
            let entry = work.tensors.get(&name).expect("a name of the state dict");
            let entry = match entry.tensor().filter(|_| self.is_own) {
                None => entry.clone(),
                Some(tensor) => {
                    let copy = own.entry(tensor.identity()).or_insert_with(|| tensor.own());
                    entry.with_tensor(copy.clone())
                }
            };
            copies.push((name, target, entry));
        }
        let n = copies.len();
        let there = work
            .tensors
            .iter()
            .map(|(name, entry)| (name.to_owned(), name.to_owned(), entry.clone()));
        let all: Vec<_> = there.chain(copies).collect();
        work.tensors.replace_entries(all)?;
        let done = if self.is_own { "copied" } else { "tied" };
        Ok(Effect::exact(format!("{n} {done}")))
    }
}

/// `untie lm_head.weight`
#[derive(Debug)]
struct Untie {
    patterns: Patterns,
    is_optional: bool,
}

pub(crate) fn parse_untie(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    Ok(Box::new(Untie {
        patterns: args.patterns(0)?,
        is_optional: args.is_optional,
    }))
}

impl Operation for Untie {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let names = names_at(
            &work.tensors,
            &matched(&work.tensors, &self.patterns, self.is_optional)?,
        );
        let tied: std::collections::HashSet<String> = work
            .tensors
            .ties()
            .into_iter()
            .flatten()
            .map(str::to_owned)
            .collect();
        let mut n_untied = 0;
        for name in names.iter().filter(|name| tied.contains(*name)) {
            let entry = work.tensors.get_mut(name).expect("a name of the state dict");
            if let Some(tensor) = entry.tensor().map(LazyTensor::own) {
                *entry = entry.with_tensor(tensor);
                n_untied += 1;
            }
        }
        Ok(Effect::lossy(format!("{n_untied} untied")))
    }
}
