//! Verbs that name files: `in`, `out`, `from`.

use std::path::PathBuf;

use super::matching::{must_match, target_name};
use super::pairs_of;
use crate::Error;
use crate::lazy::{LazyEntry, LazyStateDict};
use crate::pattern::Target;
use crate::plan::args::{Args, At, Pair, Patterns, parse_dtype};
use crate::plan::{Effect, Fault, FileRole, Operation, OutputSpec, Workspace};

/// `in a = "run1/best.pt"`
#[derive(Debug)]
struct In {
    name: At<String>,
    path: PathBuf,
}

pub(crate) fn parse_in(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    let name = args.word("a name")?;
    let (name, path) = match name.value.split_once('=') {
        Some((word, path)) if !path.is_empty() => {
            let word = At {
                value: word.to_owned(),
                span: name.span,
            };
            (word, path.to_owned())
        }
        Some((word, _)) => (
            At {
                value: word.to_owned(),
                span: name.span,
            },
            args.word("a file")?.value,
        ),
        None if args.take("=") => (name, args.word("a file")?.value),
        None => return Err(Fault::new("`=` is missing behind the name").at(&name.span)),
    };
    if name.value == "self" {
        return Err(Fault::new("`self` is the state dict at hand").at(&name.span));
    }
    Ok(Box::new(In {
        name,
        path: path.into(),
    }))
}

impl Operation for In {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let n = work.add_input(&self.name, &self.path)?;
        Ok(Effect::exact(format!("{n} tensors")))
    }

    fn file(&self) -> Option<FileRole> {
        Some(FileRole::Input(self.path.clone()))
    }
}

/// `out soup.safetensors shard=5GB dtype=bf16`
#[derive(Debug)]
struct Out {
    spec: OutputSpec,
}

pub(crate) fn parse_out(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    let shard = args.option("shard");
    let max_shard_bytes = shard
        .map(|text| {
            crate::parse_size(&text.value).ok_or_else(|| {
                Fault::new(format!("`{}` is not a size such as 5GB or 512MiB", text.value)).at(&text.span)
            })
        })
        .transpose()?;
    let dtype = args.option("dtype").map(|text| parse_dtype(&text)).transpose()?;
    Ok(Box::new(Out {
        spec: OutputSpec {
            path: args.word("a file")?.value.into(),
            max_shard_bytes,
            dtype,
        },
    }))
}

impl Operation for Out {
    fn apply(&self, _work: &mut Workspace) -> Result<Effect, Fault> {
        Ok(Effect::exact("the result"))
    }

    fn file(&self) -> Option<FileRole> {
        Some(FileRole::Output(self.spec.clone()))
    }
}

/// `from other.pt take head.**`, `from other.pt take fc.** -> head.**`
#[derive(Debug)]
struct From {
    source: At<String>,
    what: Taken,
    is_optional: bool,
}

#[derive(Debug)]
enum Taken {
    Patterns(Patterns),
    Pairs(Vec<Pair>),
}

pub(crate) fn parse_from(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    let source = args.word("a file or an input's name")?;
    if !args.take("take") {
        return Err(Fault::new("`take` is missing behind the file").at(&source.span));
    }
    let what = if args.has_arrow() {
        Taken::Pairs(args.pairs(Target::One)?)
    } else {
        Taken::Patterns(args.patterns(0)?)
    };
    Ok(Box::new(From {
        source,
        what,
        is_optional: args.is_optional,
    }))
}

impl Operation for From {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let source = work.source(&self.source)?;
        let is_marked = source.is_marked();
        let taken: Vec<(String, String, LazyEntry)> = match &self.what {
            Taken::Patterns(patterns) => {
                for pattern in patterns.any.iter().chain(&patterns.except) {
                    must_match(source, pattern, self.is_optional)?;
                }
                let names = super::names_at(source, &super::matched(source, patterns, self.is_optional)?);
                let entry = |name: String| Some((name.clone(), name.clone(), source.get(&name)?.clone()));
                names.into_iter().filter_map(entry).collect()
            }
            Taken::Pairs(pairs) => pairs_of(source, pairs, self.is_optional)?
                .into_iter()
                .map(|(name, pair, captures)| {
                    let entry = source.get(&name).expect("a name of the source").clone();
                    Ok((name.clone(), target_name(pair, &name, &captures, 0)?, entry))
                })
                .collect::<Result<_, Fault>>()?,
        };
        let mut sources: std::collections::HashMap<&str, &str> = std::collections::HashMap::new();
        for (source, name, _) in &taken {
            if let Some(first) = sources.insert(name, source) {
                return Err(Fault::from(Error::Collision {
                    first: first.to_owned(),
                    second: source.clone(),
                    name: name.clone(),
                }));
            }
        }
        let n_replaced = taken
            .iter()
            .filter(|(_, name, _)| work.tensors.contains(name))
            .count();
        let n = taken.len();
        // Where one side says what is frozen and the other does not, the other is trainable, as a model of PyTorch is.
        let any_marked = is_marked || work.tensors.is_marked();
        if any_marked && !work.tensors.is_marked() {
            super::freeze::mark(&mut work.tensors, &[], true);
        }
        for (_, name, mut entry) in taken {
            if any_marked && !is_marked {
                let trains = LazyStateDict::can_train(&name, &entry);
                (entry.requires_grad, entry.is_parameter) = (trains, trains);
            }
            // The place of a tensor, and its marks, are those of the state dict at hand where it has one of that name.
            let entry = match work.tensors.get(&name) {
                Some(old) => LazyEntry {
                    value: entry.value,
                    ..old.clone()
                },
                None => LazyEntry { group: None, ..entry },
            };
            work.tensors.insert(name, entry);
        }
        Ok(Effect::lossy(format!(
            "{n} taken, {n_replaced} of them in the place of others"
        )))
    }
}
