//! `graftwork cuts`: where a network can be cut in two.

use std::path::PathBuf;

use clap::Args;
use runtime::onnx::Boundary;

use crate::args::{OpenArgs, TemplateArgs};
use crate::text::{self, grouped, plain};

#[derive(Debug, Args)]
pub(crate) struct CutsArgs {
    /// The backbone: an ONNX model, or a checkpoint that a template fits
    #[arg(value_name = "M.onnx|CKPT")]
    backbone: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    open: OpenArgs,
}

pub(crate) fn run(args: &CutsArgs) -> anyhow::Result<u8> {
    let boundaries = args.template.open(&args.backbone, None, &args.open)?.boundaries();
    if args.json {
        text::json(&boundaries)?;
        return Ok(0);
    }
    let rows: Vec<[String; 5]> = boundaries
        .iter()
        .map(|boundary| {
            [
                plain(&boundary.name),
                plain(&boundary.op_type),
                shape(boundary),
                grouped(boundary.parameters_before),
                grouped(boundary.parameters_behind),
            ]
        })
        .collect();
    let titles = ["tensor", "made by", "shape", "weights before", "behind"];
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([titles[column].len()]).max().unwrap_or(0)
    };
    let [tensor, made_by, sizes, before, behind] = [0, 1, 2, 3, 4].map(width);
    let line = |mark: &str, [a, b, c, d, e]: [&str; 5]| {
        format!("{mark} {a:tensor$}  {b:made_by$}  {c:sizes$}  {d:>before$}  {e:>behind$}\n")
    };
    let mut out = line(" ", titles);
    for (boundary, row) in boundaries.iter().zip(&rows) {
        let mark = match (boundary.is_default, boundary.is_suggested) {
            (true, _) => "=",
            (false, true) => "*",
            (false, false) => " ",
        };
        out.push_str(&line(mark, row.each_ref().map(String::as_str)));
    }
    text::print(&out)?;
    text::remark(
        "= where it is cut by default, * the end of a block; --cut takes any tensor, several with commas",
    );
    Ok(0)
}

fn shape(boundary: &Boundary) -> String {
    let Some(shape) = &boundary.shape else {
        return "?".to_owned();
    };
    let sizes = shape
        .iter()
        .map(|size| size.map_or("n".to_owned(), |size| size.to_string()));
    sizes.collect::<Vec<_>>().join(" x ")
}
