//! The surgery language: steps on a state dict, said as text, checked from headers, run as a stream.
//!
//! A step takes a [`LazyStateDict`] and leaves another. Nothing of a tensor's bytes is read meanwhile, so that whatever is wrong with
//! names and shapes is known before any work is done.

pub(crate) mod args;
mod error;
mod lex;
mod verbs;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use pth::OpenOptions;

pub(crate) use error::Fault;
pub use error::PlanError;
pub use verbs::{VERBS, Verb};

use crate::Error;
use crate::lazy::LazyStateDict;
use args::{Args, At, nearest};
use lex::{Span, WordKind};

/// Steps to be done one after the other.
#[derive(Debug)]
pub struct Plan {
    text: String,
    steps: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    span: Span,
    /// The input that it is done on, where it is not the state dict at hand.
    on: Option<At<String>>,
    operation: Box<dyn Operation>,
}

/// What a verb does.
pub(crate) trait Operation: std::fmt::Debug + Send + Sync {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault>;

    /// What a plan says of files, for those that run it.
    fn file(&self) -> Option<FileRole> {
        None
    }
}

/// `in` and `out`.
#[derive(Debug, Clone)]
pub(crate) enum FileRole {
    Input(PathBuf),
    Output(OutputSpec),
}

/// Where a plan's result goes: `out model.safetensors shard=5GB dtype=bf16`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputSpec {
    /// The file or folder.
    pub path: PathBuf,
    /// The most bytes that a shard may have.
    pub max_shard_bytes: Option<u64>,
    /// What floating tensors are converted to.
    pub dtype: Option<pth::DType>,
}

/// What a step has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effect {
    /// In few words: `148 of 148 renamed`.
    pub summary: String,
    /// Whether what was there cannot be had back from the result.
    pub is_lossy: bool,
    /// What should be known of it.
    pub notes: Vec<String>,
}

impl Effect {
    pub(crate) fn exact(summary: impl Into<String>) -> Effect {
        Effect {
            summary: summary.into(),
            is_lossy: false,
            notes: Vec::new(),
        }
    }

    pub(crate) fn lossy(summary: impl Into<String>) -> Effect {
        Effect {
            is_lossy: true,
            ..Effect::exact(summary)
        }
    }
}

/// A step as it was written, and what it has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepReport {
    /// The step's own text.
    pub step: String,
    /// What it has done.
    pub effect: Effect,
}

/// What steps work on.
pub(crate) struct Workspace {
    /// The state dict at hand.
    pub(crate) tensors: LazyStateDict,
    /// The inputs that `in` has named.
    inputs: IndexMap<String, LazyStateDict>,
    opened: HashMap<PathBuf, LazyStateDict>,
    options: OpenOptions,
}

impl Workspace {
    fn new(tensors: LazyStateDict, options: &OpenOptions) -> Workspace {
        Workspace {
            tensors,
            inputs: IndexMap::new(),
            opened: HashMap::new(),
            options: options.clone(),
        }
    }

    /// The state dict that `name` stands for: one that `in` has named, or a file.
    pub(crate) fn source(&mut self, name: &At<String>) -> Result<&LazyStateDict, Fault> {
        if name.value == "self" {
            return Ok(&self.tensors);
        }
        if let Some(index) = self.inputs.get_index_of(&name.value) {
            return Ok(&self.inputs[index]);
        }
        self.open(Path::new(&name.value))
            .map_err(|fault| fault.at(&name.span))
    }

    fn open(&mut self, path: &Path) -> Result<&LazyStateDict, Fault> {
        if !self.opened.contains_key(path) {
            let tensors = open_whole(path, &self.options)?;
            self.opened.insert(path.to_owned(), tensors);
        }
        Ok(&self.opened[path])
    }

    pub(crate) fn add_input(&mut self, name: &At<String>, path: &Path) -> Result<usize, Fault> {
        if self.inputs.contains_key(&name.value) {
            return Err(Fault::new(format!("two inputs are called `{}`", name.value)).at(&name.span));
        }
        let tensors = self.open(path)?.clone();
        let n = tensors.len();
        self.inputs.insert(name.value.clone(), tensors);
        Ok(n)
    }
}

/// Opens a file of which every tensor of the state dict must be readable.
///
/// # Errors
/// It cannot be opened, or a tensor of it cannot be read.
pub fn open_whole(path: &Path, options: &OpenOptions) -> Result<LazyStateDict, Error> {
    let opened = crate::open_with(path, options)?;
    if let Some(problem) = opened.problems.iter().find(|problem| problem.in_state_dict) {
        return Err(Error::Checkpoint {
            path: path.to_owned(),
            source: pth::Error::Tensor {
                name: problem.name.clone(),
                fault: problem.fault.clone(),
            },
        });
    }
    Ok(LazyStateDict::of(opened))
}

impl Plan {
    /// Reads a plan. See the README for the language.
    ///
    /// # Errors
    /// [`Error::Plan`] with the place of what is not understood.
    pub fn parse(text: &str) -> Result<Plan, Error> {
        // What some editors put in front of a text.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let in_text = |fault: Fault, span: &Span| Error::Plan(Box::new(fault.in_text(text, span)));
        let raw = lex::lex(text).map_err(|error| in_text(Fault::new(error.reason), &error.span))?;
        let mut steps = Vec::with_capacity(raw.len());
        for step in raw {
            let span = step.span.clone();
            steps.push(parse_step(step).map_err(|fault| in_text(fault, &span))?);
        }
        Ok(Plan {
            text: text.to_owned(),
            steps,
        })
    }

    /// The plan as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The first file that `in` names.
    pub fn input(&self) -> Option<PathBuf> {
        self.steps.iter().find_map(|step| match step.operation.file() {
            Some(FileRole::Input(path)) => Some(path),
            _ => None,
        })
    }

    /// What `out` says.
    pub fn output(&self) -> Option<OutputSpec> {
        self.steps
            .iter()
            .rev()
            .find_map(|step| match step.operation.file() {
                Some(FileRole::Output(spec)) => Some(spec),
                _ => None,
            })
    }

    /// Does all steps, from headers: names, shapes and types are those of the result, values are made when they are read.
    ///
    /// # Errors
    /// [`Error::Plan`] with the step that cannot be done, and why.
    pub fn apply(
        &self,
        tensors: LazyStateDict,
        options: &OpenOptions,
    ) -> Result<(LazyStateDict, Vec<StepReport>), Error> {
        let mut work = Workspace::new(tensors, options);
        let mut reports = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            let done = match &step.on {
                None => step.operation.apply(&mut work),
                Some(name) => on_input(&mut work, name, step.operation.as_ref()),
            };
            let effect = done.map_err(|fault| match fault.in_text(&self.text, &step.span) {
                // A file's own error is told as it is.
                PlanError {
                    cause: Some(cause), ..
                } if cause.is_of_a_file() => *cause,
                error => Error::Plan(Box::new(error)),
            })?;
            reports.push(StepReport {
                step: self.text[step.span.clone()]
                    .split_whitespace()
                    .collect::<Vec<_>>()
                    .join(" "),
                effect,
            });
        }
        Ok((work.tensors, reports))
    }
}

/// Does `operation` on a named input in the place of the state dict at hand.
fn on_input(work: &mut Workspace, name: &At<String>, operation: &dyn Operation) -> Result<Effect, Fault> {
    let Some(index) = work.inputs.get_index_of(&name.value) else {
        let names: Vec<&str> = work.inputs.keys().map(String::as_str).collect();
        let hint = match nearest(&name.value, &names) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("`in {} = FILE` gives it a file", name.value),
        };
        return Err(Fault::new(format!("no input is called `{}`", name.value))
            .at(&name.span)
            .hint(hint));
    };
    let input = std::mem::take(&mut work.inputs[index]);
    let at_hand = std::mem::replace(&mut work.tensors, input);
    let done = operation.apply(work);
    work.inputs[index] = std::mem::replace(&mut work.tensors, at_hand);
    done
}

fn parse_step(step: lex::RawStep) -> Result<Step, Fault> {
    let mut words = std::collections::VecDeque::from(step.words);
    let is_on = words
        .front()
        .is_some_and(|word| word.kind == WordKind::Bare && word.text == "on");
    let on_word = if is_on { words.pop_front() } else { None };
    let on = match on_word {
        Some(on_word) => {
            let name = words.pop_front().filter(|word| word.kind == WordKind::Bare);
            let name =
                name.ok_or_else(|| Fault::new("an input's name is missing behind `on`").at(&on_word.span))?;
            Some(At {
                value: name.text,
                span: name.span,
            })
        }
        None => None,
    };
    let Some(word) = words.pop_front() else {
        return Err(Fault::new("a verb is missing"));
    };
    let verb_name = word.text.trim_end_matches(['?', '!']);
    let marks = &word.text[verb_name.len()..];
    let names: Vec<&str> = VERBS.iter().map(|verb| verb.name).collect();
    let Some(verb) = VERBS.iter().find(|verb| verb.name == verb_name) else {
        let fault = Fault::new(format!("unknown verb `{verb_name}`")).at(&word.span);
        return Err(match nearest(verb_name, &names) {
            Some(near) => fault.hint(format!("did you mean `{near}`?")),
            None => fault.hint(format!("the verbs are {}", names.join(", "))),
        });
    };
    let mut args = Args::new(words.into(), verb.usage, word.span.clone());
    args.is_optional = marks.contains('?');
    args.is_strict = marks.contains('!');
    if args.is_strict && verb.name != "strip" {
        return Err(Fault::new("`!` belongs to `strip!` only").at(&word.span));
    }
    let operation = (verb.parse)(&mut args)?;
    args.finish()?;
    Ok(Step {
        span: step.span,
        on,
        operation,
    })
}
