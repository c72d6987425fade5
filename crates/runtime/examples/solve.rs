//! Fits linear heads on `.npy` features and writes what came out: for `tools/check_solver.py` and `benches/solver.py`.
//!
//!     solve REQUEST.json
//!
//! The request: `features` (.npy `[N, D]`), `labels` (.npy `[N]`, or `[N, K]` for other tasks), `n_outputs`, `config` (a
//! `SolverConfig`), `cs`, and `out`, a folder. Optional: `path` (one path over all C instead of a fit for each) and
//! `trace` (the objective after every pass);
//! `baselines`, in place of fits. `out` gets `weight-I.npy` and `bias-I.npy` for each C; stdout a line of JSON
//! for each.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use runtime::features::Features;
use runtime::solve::{
    Fitted, KnnConfig, Metric, SolverConfig, Vote, fit, fit_traced, knn, lda, leave_one_out, nearest_mean,
    path,
};
use runtime::{Monitor, Targets, Task};
use serde::Deserialize;

#[derive(Deserialize)]
struct Request {
    features: PathBuf,
    labels: PathBuf,
    n_outputs: usize,
    config: SolverConfig,
    cs: Vec<f64>,
    out: PathBuf,
    #[serde(default)]
    path: bool,
    #[serde(default)]
    trace: bool,
    baselines: Option<Baselines>,
}

/// What can be had in closed form, and nearest neighbours of the rows after the first `known` among those.
#[derive(Deserialize)]
struct Baselines {
    known: usize,
    alphas: Vec<f64>,
    shrinkage: f64,
    k: usize,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = std::env::args().nth(1).ok_or("usage: solve REQUEST.json")?;
    let request: Request = serde_json::from_slice(&fs::read(file)?)?;
    let (features, targets) = read(&request)?;
    fs::create_dir_all(&request.out)?;
    let (k, config) = (request.n_outputs, &request.config);
    if let Some(baselines) = &request.baselines {
        return closed(&request, baselines, &features, &targets);
    }
    if request.path {
        let start = Instant::now();
        let fitted = path(&features, &targets, k, &request.cs, config, Monitor::none())?;
        let seconds = start.elapsed().as_secs_f64();
        for (at, fitted) in fitted.iter().enumerate() {
            report(&request.out, at, fitted, seconds, &[])?;
        }
        return Ok(());
    }
    for (at, &c) in request.cs.iter().enumerate() {
        let start = Instant::now();
        let mut steps = Vec::new();
        let fitted = if request.trace {
            let mut note = |t: runtime::solve::Trace| {
                steps.push((t.passes, t.objective, start.elapsed().as_secs_f64()));
            };
            fit_traced(&features, &targets, k, c, config, &mut note)?
        } else {
            fit(&features, &targets, k, c, config, Monitor::none())?
        };
        report(&request.out, at, &fitted, start.elapsed().as_secs_f64(), &steps)?;
    }
    Ok(())
}

fn closed(
    request: &Request,
    baselines: &Baselines,
    features: &Features,
    targets: &Targets,
) -> Result<(), Box<dyn std::error::Error>> {
    let labels = targets.classes().ok_or("baselines are for classes")?;
    let k = request.n_outputs;
    for (name, head) in [
        ("nearest-mean", nearest_mean(features, labels, k)?),
        ("lda", lda(features, labels, k, baselines.shrinkage)?),
    ] {
        write_npy(&request.out.join(format!("weight-{name}.npy")), &head.weight)?;
        write_npy(&request.out.join(format!("bias-{name}.npy")), &head.bias)?;
    }
    let found = leave_one_out(features, targets, k, &baselines.alphas)?;
    let (first, last): (Vec<usize>, Vec<usize>) = (0..labels.len()).partition(|row| *row < baselines.known);
    let of = |rows: &[usize]| -> Vec<u32> { rows.iter().map(|row| labels[*row]).collect() };
    let (known, asked) = (features.select(&first), features.select(&last));
    let neighbours = |metric| {
        let config = KnnConfig {
            k: baselines.k,
            metric,
            vote: Vote::Even,
        };
        knn((&known, &of(&first)), (&asked, &of(&last)), k, config)
    };
    let line = serde_json::json!({
        "squared_errors": found.penalties.iter().map(|penalty| penalty.squared_error).collect::<Vec<_>>(),
        "alpha": found.alpha,
        "suspects": found.suspects.len(),
        "cosine": neighbours(Metric::Cosine)?.predicted,
        "euclidean": neighbours(Metric::Euclidean)?.predicted,
    });
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}

fn report(
    out: &Path,
    at: usize,
    fitted: &Fitted,
    seconds: f64,
    steps: &[(usize, f64, f64)],
) -> Result<(), Box<dyn std::error::Error>> {
    write_npy(&out.join(format!("weight-{at}.npy")), &fitted.weight)?;
    write_npy(&out.join(format!("bias-{at}.npy")), &fitted.bias)?;
    let line = serde_json::json!({
        "c": fitted.c,
        "objective": fitted.objective,
        "gap_bound": fitted.gap_bound,
        "passes": fitted.passes,
        "converged": fitted.converged,
        "seconds": seconds,
        "trace": steps,
    });
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}

/// One dimension: the reader knows the shape.
#[expect(
    clippy::disallowed_methods,
    reason = "a file for the one who asked, who waits until all is written"
)]
fn write_npy(path: &Path, values: &[f32]) -> std::io::Result<()> {
    let header = format!(
        "{{'descr': '<f4', 'fortran_order': False, 'shape': ({},), }}",
        values.len()
    );
    let padded = (header.len() + 11).next_multiple_of(64);
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&((padded - 10) as u16).to_le_bytes());
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(padded - 1, b' ');
    bytes.push(b'\n');
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    fs::write(path, bytes)
}

/// A shape, a type, and bytes.
type Array = (Vec<usize>, String, Vec<u8>);

/// Little-endian `.npy` of format 1, as numpy writes them: the shape and the bytes.
fn read_npy(path: &Path) -> Result<Array, Box<dyn std::error::Error>> {
    let bytes = fs::read(path)?;
    let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = std::str::from_utf8(&bytes[10..10 + length])?;
    let between = |start: &str, end: char| {
        let rest = header.split(start).nth(1).ok_or("an odd header")?;
        Ok::<_, &str>(rest.split(end).next().unwrap_or_default().to_owned())
    };
    let dtype = between("'descr': '", '\'')?;
    let shape = between("'shape': (", ')')?;
    let shape = shape.split(',').filter_map(|n| n.trim().parse().ok()).collect();
    Ok((shape, dtype, bytes[10 + length..].to_vec()))
}

fn read(request: &Request) -> Result<(Features, Targets), Box<dyn std::error::Error>> {
    let (shape, dtype, bytes) = read_npy(&request.features)?;
    if dtype != "<f4" {
        return Err(format!("features of {dtype}, not <f4").into());
    }
    let features = Features::new(floats(&bytes), shape[1])?;
    let (_, dtype, bytes) = read_npy(&request.labels)?;
    let targets = match (request.config.task, dtype.as_str()) {
        (Task::SingleLabel, "<i8") => Targets::Classes(
            bytes
                .chunks_exact(8)
                .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
        ),
        (Task::MultiLabel | Task::Regression, "<f4") => Targets::dense(floats(&bytes), request.n_outputs)?,
        (task, dtype) => return Err(format!("labels of {dtype} for {task:?}").into()),
    };
    Ok((features, targets))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}
