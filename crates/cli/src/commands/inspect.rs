//! `graftwork inspect FILE`: the tree of names, what it weighs, and what else is in the file.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Result;
use indexmap::IndexMap;
use pth::{Record, StateDict, Tensor};
use serde_json::{Value, json};
use surgery::Opened;

use crate::args::OpenArgs;
use crate::text::{grouped, plain, print};

/// Arguments of `inspect`.
#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// A checkpoint or safetensors file, whatever its name.
    file: PathBuf,
    /// Show modules down to this depth, with their sums.
    #[arg(long, value_name = "N")]
    depth: Option<usize>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    open: OpenArgs,
}

/// Runs the verb; returns the exit code.
pub(crate) fn run(args: &InspectArgs) -> Result<u8> {
    let mut opened = surgery::open_with(&args.file, &args.open.options())?;
    opened.outline()?;
    if args.json {
        let text = serde_json::to_string_pretty(&as_json(&opened))?;
        print(&format!("{text}\n"))?;
    } else {
        print(&as_text(&opened, args.depth.unwrap_or(usize::MAX)))?;
    }
    Ok(0)
}

fn as_json(opened: &Opened) -> Value {
    let tensors: Vec<Value> = opened
        .state_dict
        .iter()
        .map(|(name, tensor)| tensor_json(name, tensor))
        .collect();
    let values = opened
        .others
        .iter()
        .map(|other| json!({ "name": other.name, "value": other.value }));
    let metadata = opened.metadata.iter();
    let metadata =
        metadata.map(|(key, value)| json!({ "name": format!("__metadata__.{key}"), "value": value }));
    let other_tensors = opened
        .other_tensors
        .iter()
        .map(|(name, tensor)| tensor_json(name, tensor));
    let problems = opened.problems.iter();
    let problems: Vec<Value> = problems
        .map(|problem| json!({ "name": problem.name, "reason": problem.fault.to_string() }))
        .collect();
    let records = opened.state_dict.records().chain(opened.other_tensors.records());
    let sources = opened.sources.iter().map(|source| {
        json!({ "class": source.class, "file": source.file, "n_lines": source.text.lines().count() })
    });
    json!({
        "format": opened.format.to_string(),
        "wrapper": opened.wrapper,
        "prefix": opened.state_dict.wrapper_prefix(),
        "tensors": tensors,
        "other": values.chain(metadata).chain(other_tensors).collect::<Vec<_>>(),
        "records": records.map(|(name, record)| record_json(name, record)).collect::<Vec<_>>(),
        "sources": sources.collect::<Vec<_>>(),
        "problems": problems,
    })
}

fn tensor_json(name: &str, tensor: &Tensor) -> Value {
    json!({
        "name": name,
        "dtype": tensor.dtype().as_str(),
        "shape": tensor.shape(),
        "stride": tensor.stride(),
        "storage": tensor.storage().key(),
        "offset": tensor.storage_offset(),
        "nbytes": tensor.nbytes(),
        "requires_grad": tensor.requires_grad(),
    })
}

fn record_json(name: &str, record: &Record) -> Value {
    let facts: serde_json::Map<String, Value> = record
        .kind
        .facts()
        .into_iter()
        .map(|(name, value)| (name, Value::String(value)))
        .collect();
    let parts: Vec<Value> = record
        .parts
        .iter()
        .map(|(name, tensor)| tensor_json(name, tensor))
        .collect();
    json!({
        "name": name,
        "kind": record.kind.as_str(),
        "dtype": record.dtype,
        "shape": record.shape,
        "requires_grad": record.requires_grad,
        "facts": facts,
        "parts": parts,
    })
}

/// What a tensor is made of that is not one array, on one line.
fn record_text(name: &str, record: &Record) -> String {
    let facts = record
        .kind
        .facts()
        .into_iter()
        .map(|(fact, value)| format!("{fact} {value}"));
    let parts = record
        .parts
        .iter()
        .map(|(part, tensor)| format!("{part} {}{:?}", tensor.dtype(), tensor.shape()));
    let all: Vec<String> = facts.chain(parts).collect();
    let (kind, dtype) = (record.kind.as_str(), &record.dtype);
    plain(&format!(
        "  {name}  {kind} {dtype} {:?}  ({})",
        record.shape,
        all.join(", ")
    ))
}

fn as_text(opened: &Opened, depth: usize) -> String {
    let mut out = String::new();
    let tensors = &opened.state_dict;
    let place = if opened.wrapper.is_empty() {
        String::new()
    } else {
        format!(" under `{}`", plain(&opened.wrapper))
    };
    line(
        &mut out,
        format!("{}: {} tensors{place}", opened.format, grouped(tensors.len())),
    );
    if let Some(prefix) = tensors.wrapper_prefix() {
        line(
            &mut out,
            format!(
                "every name begins with `{prefix}`, as wrappers leave it: convert --strip-prefix {prefix} takes it off"
            ),
        );
    }
    out.push('\n');
    tree(&mut out, tensors, depth);
    if tensors.records().next().is_some() {
        line(&mut out, "Tensors that are not one array:");
        for (name, record) in tensors.records() {
            line(&mut out, record_text(name, record));
        }
    }
    totals(&mut out, tensors);
    if !opened.others.is_empty() || !opened.other_tensors.is_empty() || !opened.metadata.is_empty() {
        line(&mut out, "\nAlso in the file:");
        for other in &opened.others {
            line(
                &mut out,
                format!("  {} = {}", plain(&other.name), plain(&other.value)),
            );
        }
        for (key, value) in &opened.metadata {
            line(
                &mut out,
                format!("  __metadata__.{} = {}", plain(key), plain(value)),
            );
        }
        other_tensors(&mut out, &opened.other_tensors);
        for (name, record) in opened.other_tensors.records() {
            line(&mut out, record_text(name, record));
        }
    }
    if !opened.sources.is_empty() {
        line(&mut out, "\nPython source in the file, which is never run:");
        for source in &opened.sources {
            let (class, file) = (plain(&source.class), plain(&source.file));
            line(
                &mut out,
                format!("  {class}  {} lines of {file}", source.text.lines().count()),
            );
        }
    }
    if !opened.problems.is_empty() {
        line(&mut out, "\nNot read:");
        for problem in &opened.problems {
            line(
                &mut out,
                format!(
                    "  {}: {}",
                    plain(&problem.name),
                    plain(&problem.fault.to_string())
                ),
            );
        }
    }
    out
}

/// Tensors beside the state dict; an optimizer has as many as the model, and gets one line.
fn other_tensors(out: &mut String, tensors: &StateDict) {
    const MAX_LISTED: usize = 8;
    let family = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    let mut families: IndexMap<String, Vec<(&str, &Tensor)>> = IndexMap::new();
    for (name, tensor) in tensors.iter() {
        families.entry(family(name)).or_default().push((name, tensor));
    }
    for (family, members) in families {
        if members.len() > MAX_LISTED {
            let n_bytes = members
                .iter()
                .fold(0usize, |sum, (_, tensor)| sum.saturating_add(tensor.nbytes()));
            let (n, n_bytes) = (grouped(members.len()), grouped(n_bytes));
            line(
                out,
                format!(
                    "  {}.**  {n} tensors, {n_bytes} bytes (--json lists them)",
                    plain(&family)
                ),
            );
            continue;
        }
        for (name, tensor) in members {
            line(
                out,
                format!("  {}  {} {:?}", plain(name), tensor.dtype(), tensor.shape()),
            );
        }
    }
}

fn line(out: &mut String, text: impl AsRef<str>) {
    out.push_str(text.as_ref());
    out.push('\n');
}

/// A module, by the dots of the names.
#[derive(Default)]
struct Module<'t> {
    tensors: Vec<(&'t str, &'t Tensor)>,
    children: IndexMap<&'t str, Module<'t>>,
    n_params: usize,
    n_trainable: usize,
}

impl<'t> Module<'t> {
    fn insert(&mut self, name: &'t str, tensor: &'t Tensor) {
        /// Modules are dropped by recursion: a name of a hundred thousand dots must not reach the end of the stack.
        const MAX_LEVELS: usize = 256;
        let mut module = self;
        let mut rest = name;
        for level in 0.. {
            if surgery::can_train(tensor) && !surgery::is_buffer_name(name) {
                // A view of stride zero may claim any number of elements.
                module.n_params = module.n_params.saturating_add(tensor.numel());
                if tensor.requires_grad() {
                    module.n_trainable = module.n_trainable.saturating_add(tensor.numel());
                }
            }
            match rest.split_once('.') {
                Some((first, after)) if level < MAX_LEVELS => {
                    module = module.children.entry(first).or_default();
                    rest = after;
                }
                _ => return module.tensors.push((rest, tensor)),
            }
        }
    }
}

/// One row per module and tensor: name, type, shape, parameters.
fn tree(out: &mut String, tensors: &StateDict, depth: usize) {
    let mut root = Module::default();
    for (name, tensor) in tensors.iter() {
        root.insert(name, tensor);
    }
    let is_marked = root.n_trainable > 0;
    let mut rows: Vec<[String; 4]> = Vec::new();
    // Depth first, without recursion: names in a file may nest as deep as they like.
    enum Step<'m, 't> {
        Module(&'m str, &'m Module<'t>, usize),
        Tensor(&'m str, &'t Tensor, usize),
    }
    let mut steps = vec![Step::Module("", &root, 0)];
    while let Some(step) = steps.pop() {
        match step {
            Step::Module(name, module, level) => {
                if level > 0 {
                    let count = count(module.n_params, is_marked && module.n_trainable == 0);
                    rows.push([
                        format!("{}{}", indent(level), plain(name)),
                        String::new(),
                        String::new(),
                        count,
                    ]);
                }
                if level >= depth {
                    continue;
                }
                for (name, child) in module.children.iter().rev() {
                    steps.push(Step::Module(name, child, level + 1));
                }
                for (name, tensor) in module.tensors.iter().rev() {
                    steps.push(Step::Tensor(name, tensor, level + 1));
                }
            }
            Step::Tensor(name, tensor, level) => {
                let is_param = surgery::can_train(tensor) && !surgery::is_buffer_name(name);
                let count = if is_param {
                    count(tensor.numel(), is_marked && !tensor.requires_grad())
                } else {
                    "--".to_owned()
                };
                rows.push([
                    format!("{}{}", indent(level), plain(name)),
                    tensor.dtype().to_string(),
                    format!("{:?}", tensor.shape()),
                    count,
                ]);
            }
        }
    }
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths = [width(0), width(1), width(2), width(3)];
    for [name, dtype, shape, count] in &rows {
        let text = format!(
            "{name:<0$}  {dtype:<1$}  {shape:<2$}  {count:>3$}",
            widths[0], widths[1], widths[2], widths[3]
        );
        line(out, text.trim_end());
    }
}

fn indent(level: usize) -> String {
    // Deeper than this is no longer legible, and a hostile name could ask for gigabytes.
    "  ".repeat((level - 1).min(40))
}

/// torchinfo writes the count of what is frozen in parentheses.
fn count(n: usize, is_frozen: bool) -> String {
    if is_frozen && n > 0 {
        format!("({})", grouped(n))
    } else {
        grouped(n)
    }
}

fn totals(out: &mut String, tensors: &StateDict) {
    let is_param = |name: &str, tensor: &Tensor| surgery::can_train(tensor) && !surgery::is_buffer_name(name);
    let sum = |keep: &dyn Fn(&str, &Tensor) -> bool| -> (usize, usize) {
        tensors
            .iter()
            .filter(|(name, tensor)| keep(name, tensor))
            .fold((0, 0), |(n, bytes), (_, tensor)| {
                (
                    n.saturating_add(tensor.numel()),
                    bytes.saturating_add(tensor.nbytes()),
                )
            })
    };
    let (n_params, _) = sum(&is_param);
    let (n_trainable, _) = sum(&|name, tensor| is_param(name, tensor) && tensor.requires_grad());
    let (_, n_bytes) = sum(&|_, _| true);
    let rule = "=".repeat(80);
    line(out, &rule);
    line(out, format!("Total params: {}", grouped(n_params)));
    if n_trainable > 0 {
        line(out, format!("Trainable params: {}", grouped(n_trainable)));
        line(
            out,
            format!("Non-trainable params: {}", grouped(n_params - n_trainable)),
        );
    }
    let megabytes = n_bytes as f64 / 1e6;
    writeln!(out, "Tensors size (MB): {megabytes:.2}").expect("a String takes every write");
    line(out, &rule);
}
