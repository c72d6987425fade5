//! `meta set author=me`, `meta drop ss_*`: `__metadata__` of the result.

use crate::pattern::Pattern;
use crate::plan::args::{Args, At};
use crate::plan::{Effect, Fault, Operation, Workspace};

#[derive(Debug)]
enum Meta {
    Set(Vec<(String, String)>),
    Drop {
        patterns: Vec<At<Pattern>>,
        is_optional: bool,
    },
}

pub(crate) fn parse_meta(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    let word = args.word("`set` or `drop`")?;
    match word.value.as_str() {
        "set" => {
            let mut pairs = Vec::new();
            while pairs.is_empty() || !args.is_empty() {
                let word = args.word("KEY=VALUE")?;
                let (key, value) = word.value.split_once('=').ok_or_else(|| {
                    Fault::new(format!("`{}` is not of the form KEY=VALUE", word.value)).at(&word.span)
                })?;
                if matches!(key, "frozen" | "groups") {
                    return Err(Fault::new(format!("`{key}` is written from the marks")).at(&word.span));
                }
                pairs.push((key.to_owned(), value.to_owned()));
            }
            Ok(Box::new(Meta::Set(pairs)))
        }
        "drop" => {
            let mut patterns = vec![args.pattern()?];
            while !args.is_empty() {
                patterns.push(args.pattern()?);
            }
            Ok(Box::new(Meta::Drop {
                patterns,
                is_optional: args.is_optional,
            }))
        }
        _ => Err(Fault::new(format!("`{}` is neither `set` nor `drop`", word.value)).at(&word.span)),
    }
}

impl Operation for Meta {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        if let Meta::Set(pairs) = self
            && let Some((key, value)) = pairs.iter().find(|(_, value)| work.tensors.contains(value))
        {
            let what = format!(
                "`{key}={value}` in a file says that `{key}` is another name of the tensor `{value}`"
            );
            return Err(Fault::new(what).hint(format!("`tie {value} -> {key}` gives it one")));
        }
        let metadata = &mut work.tensors.metadata;
        match self {
            Meta::Set(pairs) => {
                metadata.extend(pairs.iter().cloned());
                Ok(Effect::exact(format!("{} set", pairs.len())))
            }
            Meta::Drop {
                patterns,
                is_optional,
            } => {
                for pattern in patterns {
                    if !is_optional && !metadata.keys().any(|key| pattern.value.matches(key)) {
                        let text = pattern.value.as_str();
                        return Err(
                            Fault::new(format!("no key of the metadata matches `{text}`")).at(&pattern.span)
                        );
                    }
                }
                let n = metadata.len();
                metadata.retain(|key, _| !patterns.iter().any(|pattern| pattern.value.matches(key)));
                Ok(Effect::lossy(format!("{} dropped", n - metadata.len())))
            }
        }
    }
}
