//! The head alone, on features that are there already.

use std::path::Path;

use runtime::exchange::Modality;
use runtime::features::Manifest;
use runtime::predict::{NamedBy, Rows};

use super::answers::Answers;
use super::{PredictArgs, name_left_out, open_head};
use crate::text;
use crate::usage::UsageError;

/// How many samples of an entry have no row.
pub(super) fn predict(args: &PredictArgs, features: &Path) -> anyhow::Result<usize> {
    let head = open_head(&args.model)?;
    let rows = open(args, features)?;
    let watch = args.watch();
    let mut answers = Answers::begin(args, args.predictions(head.task(), head.outputs())?)?;
    let mut n_left_out = 0;
    for left_out in rows.left_out() {
        n_left_out += 1;
        name_left_out(&left_out);
    }
    let threads = args.engine.threads();
    let result = watch.run(|monitor| {
        rows.predict(&head, threads, monitor, &mut |name, known, logits| {
            answers.push(name, known, logits)
        })
    });
    answers.finish(result, n_left_out)?;
    Ok(n_left_out)
}

fn open(args: &PredictArgs, features: &Path) -> anyhow::Result<Rows> {
    let stray = [("--labels", args.labels.is_some()), ("--ids", args.ids)];
    let stray = stray.into_iter().find(|(_, is_given)| *is_given);
    let refuse_stray = || match stray {
        Some((flag, _)) => {
            let text = format!(
                "{flag} is for a cache entry, and `{}` is none",
                features.display()
            );
            Err(UsageError::new(text))
        }
        None => Ok(()),
    };
    if !features.is_dir() {
        refuse_stray()?;
        return Ok(Rows::of_array(features)?);
    }
    let embeddings = [("img_emb", Modality::Images), ("text_emb", Modality::Texts)];
    let there = embeddings
        .iter()
        .find(|(folder, _)| features.join(folder).is_dir());
    if let Some((_, modality)) = there {
        refuse_stray()?;
        return Ok(Rows::of_embeddings(features, *modality)?);
    }
    let labels = match &args.labels {
        Some(labels) => labels.clone(),
        None => match Manifest::list(features)?.into_iter().next() {
            Some(newest) => {
                text::remark(&format!("labels from `{}`", newest.display()));
                newest
            }
            None => {
                let text = format!("`{}` holds no labels", features.display());
                return Err(UsageError::new(text)
                    .with_hint("graftwork extract writes them")
                    .into());
            }
        },
    };
    let named_by = match args.ids {
        true => NamedBy::Digest,
        false => NamedBy::Name,
    };
    Ok(Rows::of_entry(features, &labels, named_by)?)
}
