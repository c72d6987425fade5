//! What several verbs do with a backbone.

use runtime::onnx::{Boundary, Model, WeightsReport};

use crate::args::BackboneArgs;
use crate::text::{self, grouped, plain};

/// The backbone with the checkpoint's weights in it, where one is named; what was put in is said.
pub(crate) fn open(args: &BackboneArgs) -> anyhow::Result<Model> {
    let model = Model::open(&args.backbone)?;
    let Some(weights) = args.weights()? else {
        return Ok(model);
    };
    let mut cuts: Vec<&str> = args.cut.iter().map(String::as_str).collect();
    let default = model.default_boundary();
    if let (true, Ok(default)) = (cuts.is_empty(), &default) {
        cuts.push(default);
    }
    let (model, report) = weights.put_into(&model, &cuts)?;
    report_weights(&report);
    Ok(model)
}

/// Says what was put into a graph, on stderr.
pub(crate) fn report_weights(report: &WeightsReport) {
    let mut parts = vec![format!(
        "{} tensors of the checkpoint are in the graph",
        report.placed.len()
    )];
    let prefixes = [
        (&report.prefix_in_checkpoint, "of its names"),
        (&report.prefix_in_graph, "of the graph's names"),
    ];
    for (prefix, of) in prefixes.into_iter().filter(|(prefix, _)| !prefix.is_empty()) {
        parts.push(format!("without `{prefix}` in front {of}"));
    }
    if !report.transposed.is_empty() {
        parts.push(format!("{} of them transposed", report.transposed.len()));
    }
    text::remark(&parts.join(", "));
    if let Some(first) = report.folded.first() {
        let assumed: Vec<_> = report
            .folded
            .iter()
            .filter(|folded| !folded.is_eps_known)
            .collect();
        let eps = match assumed.first() {
            Some(first) => format!(
                "; the graph does not tell epsilon, {:e} is taken (--bn-eps where the model has another)",
                first.eps
            ),
            None => String::new(),
        };
        text::remark(&format!(
            "{} batch normalisations were folded at export, and are again (`{}` into `{}` first){eps}",
            report.folded.len(),
            first.norm,
            first.conv
        ));
    }
    let lists = [
        ("converted", &report.converted),
        ("left out, they belong behind the cut", &report.left),
        ("left out, they lack the prefix", &report.outside),
        ("the graph keeps its own", &report.kept),
    ];
    for (what, names) in lists.into_iter().filter(|(_, names)| !names.is_empty()) {
        const MAX_NAMED: usize = 6;
        let shown: Vec<&str> = names.iter().take(MAX_NAMED).map(String::as_str).collect();
        let more = match names.len() - shown.len() {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        text::remark(&format!("{what}: {}{more}", shown.join(", ")));
    }
}

/// Prints where a network can be cut in two.
pub(crate) fn list_cuts(model: &Model, json: bool) -> anyhow::Result<()> {
    let boundaries = model.boundaries();
    if json {
        return text::json(&boundaries);
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
    text::remark("= where it is cut by default, * the end of a block");
    Ok(())
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
