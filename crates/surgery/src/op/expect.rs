//! `expect keys=like target.pth`, `expect blocks.{i}.attn.qkv.weight count=12`, `expect no nan`: what must be so, or the plan ends.

use super::{map_tensors, matched};
use crate::Error;
use crate::plan::args::{Args, At, Patterns};
use crate::plan::{Effect, Fault, Operation, Workspace};

#[derive(Debug)]
enum Expect {
    Like {
        target: At<String>,
        shapes: bool,
    },
    Count {
        patterns: Patterns,
        n: usize,
        span: std::ops::Range<usize>,
    },
    /// Checked when the values are made.
    NoNan {
        patterns: Option<Patterns>,
    },
}

pub(crate) fn parse_expect(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    for (key, shapes) in [("keys", false), ("shapes", true)] {
        let option = args.option(key);
        let is_word = option.is_none() && args.take(key);
        let is_like =
            option.as_ref().is_some_and(|text| text.value == "like") || (is_word && args.take("like"));
        if is_like {
            return Ok(Box::new(Expect::Like {
                target: args.word("a file or an input's name")?,
                shapes,
            }));
        }
        if option.is_some() || is_word {
            return Err(Fault::new(format!("`{key}=like TARGET` is the form")).at(&args.verb_span()));
        }
    }
    if args.take("no") {
        let word = args.word("`nan`")?;
        if !word.value.eq_ignore_ascii_case("nan") {
            return Err(Fault::new(format!("`no {}` is not known: `no nan` is", word.value)).at(&word.span));
        }
        let patterns = if args.is_empty() {
            None
        } else {
            Some(args.patterns(0)?)
        };
        return Ok(Box::new(Expect::NoNan { patterns }));
    }
    let n = args.parsed("count", "a number of tensors")?;
    let span = args.verb_span();
    Ok(Box::new(Expect::Count {
        n: n.ok_or_else(|| {
            Fault::new("`count=N`, `keys=like TARGET`, `shapes=like TARGET` or `no nan` is missing").at(&span)
        })?,
        patterns: args.patterns(0)?,
        span,
    }))
}

impl Operation for Expect {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        match self {
            Expect::Like { target, shapes } => {
                let like = work.source(target)?.clone();
                let fault = |text: String| Err(Fault::from(Error::Unexpected(text)).at(&target.span));
                let missing: Vec<&str> = like.names().filter(|name| !work.tensors.contains(name)).collect();
                if let Some(first) = missing.first() {
                    return fault(format!(
                        "{} names of `{}` are missing, the first is `{first}`",
                        missing.len(),
                        target.value
                    ));
                }
                let more: Vec<&str> = work.tensors.names().filter(|name| !like.contains(name)).collect();
                if let Some(first) = more.first() {
                    return fault(format!(
                        "{} names are not in `{}`, the first is `{first}`",
                        more.len(),
                        target.value
                    ));
                }
                for (name, entry) in work.tensors.iter().filter(|_| *shapes) {
                    let expected = like.get(name).map(crate::LazyEntry::shape).unwrap_or_default();
                    if entry.shape() != expected {
                        return fault(format!(
                            "`{name}` is {:?}, expected is {expected:?}",
                            entry.shape()
                        ));
                    }
                }
                Ok(Effect::exact(format!("{} as in `{}`", like.len(), target.value)))
            }
            Expect::Count { patterns, n, span } => {
                let found = matched(&work.tensors, patterns, true)?.len();
                if found != *n {
                    let text = format!("{found} tensors match, expected are {n}");
                    return Err(Fault::from(Error::Unexpected(text)).at(span));
                }
                Ok(Effect::exact(format!("{n} it is")))
            }
            Expect::NoNan { patterns } => {
                let mut names = match patterns {
                    Some(patterns) => matched(&work.tensors, patterns, false)?,
                    None => (0..work.tensors.len()).collect(),
                };
                names.retain(|&place| {
                    let tensor = work.tensors.at(place).and_then(|(_, entry)| entry.tensor());
                    tensor.is_some_and(|tensor| tensor.dtype().is_float())
                });
                map_tensors(&mut work.tensors, &names, |name, tensor| Ok(tensor.checked(name)))?;
                Ok(Effect::exact(format!(
                    "{} are checked while they are written",
                    names.len()
                )))
            }
        }
    }
}
