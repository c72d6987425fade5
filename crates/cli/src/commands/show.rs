//! `graftwork show FILE 'NAME[INDEX]'`: one tensor, or a slice of it.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use pth::{AtomicFile, DType, Existing, FileError, Tensor};
use surgery::Opened;

use crate::args::OpenArgs;
use crate::text::{nearest, plain, print, remark};
use crate::torch_print::{self, Value};
use crate::usage::UsageError;

/// Arguments of `show`.
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// A checkpoint or safetensors file, whatever its name.
    file: PathBuf,
    /// The tensor, and which part of it: `conv1.weight[0]`, `fc.weight[0, :5]`, `fc.bias[-3:]`.
    #[arg(value_name = "NAME[INDEX]")]
    name: String,
    /// Print how its values are distributed.
    #[arg(long)]
    stats: bool,
    /// Write it as a NumPy array too.
    #[arg(long, value_name = "OUT")]
    npy: Option<PathBuf>,
    /// Replace OUT if it is there.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    open: OpenArgs,
}

/// Runs the verb; returns the exit code.
pub(crate) fn run(args: &ShowArgs) -> Result<u8> {
    let mut opened = surgery::open_with(&args.file, &args.open.options())?;
    opened.assemble()?;
    let tensor = select(&opened, &args.name)?;
    if args.npy.is_some() || args.stats {
        tensor.check_expansion()?;
    }
    if let Some(path) = &args.npy {
        let existing = if args.force {
            Existing::Replace
        } else {
            Existing::Refuse
        };
        let n_bytes = write_npy(path, &tensor, existing)?;
        remark(&format!("wrote {} ({n_bytes} bytes)", path.display()));
    }
    if args.stats {
        print(&stats(&tensor)?)?;
    } else if args.npy.is_none() {
        print(&format!("{}\n", torch_print::tensor(&tensor)?))?;
    }
    Ok(0)
}

/// A tensor by its name, or a part of one that is not one array: `fc.weight.scales`.
fn find<'o>(opened: &'o Opened, name: &str) -> Option<&'o Tensor> {
    let all = [&opened.state_dict, &opened.other_tensors];
    let mut tensors = all.iter().filter_map(|tensors| tensors.get(name));
    let part = || {
        let mut records = all.iter().flat_map(|tensors| tensors.records());
        records.find_map(|(record, it)| it.part(name.strip_prefix(record)?.strip_prefix('.')?))
    };
    tensors.next().or_else(part)
}

/// The tensor that `request` asks for. A name may itself end in brackets, so the whole is tried first.
fn select(opened: &Opened, request: &str) -> Result<Tensor> {
    let mut name = request;
    let mut groups: Vec<&str> = Vec::new();
    loop {
        if let Some(tensor) = find(opened, name) {
            let mut tensor = tensor.clone();
            for group in groups.iter().rev() {
                tensor = index(&tensor, group)?;
            }
            return Ok(tensor);
        }
        let Some((rest, group)) = name.strip_suffix(']').and_then(|inner| inner.rsplit_once('[')) else {
            break;
        };
        name = rest;
        groups.push(group);
    }
    if let Some(problem) = opened.problems.iter().find(|problem| problem.name == name) {
        return Err(pth::Error::Tensor {
            name: problem.name.clone(),
            fault: problem.fault.clone(),
        }
        .into());
    }
    let all = [&opened.state_dict, &opened.other_tensors];
    let record = all
        .iter()
        .flat_map(|tensors| tensors.records())
        .find(|(record, _)| *record == name);
    if let Some((record, it)) = record {
        let parts: Vec<String> = it
            .parts
            .iter()
            .map(|(part, _)| format!("`{record}.{part}`"))
            .collect();
        let error = UsageError::new(format!(
            "`{}` is a {} tensor, which is not one array",
            plain(record),
            it.kind.as_str()
        ));
        return Err(error
            .with_hint(format!("its parts are {}", parts.join(", ")))
            .into());
    }
    let names = opened.state_dict.names().chain(opened.other_tensors.names());
    let near = nearest(name, names);
    let error = UsageError::new(format!("no tensor is called `{}`", plain(name)));
    Err(match near.as_slice() {
        [] => error.with_hint("`graftwork inspect` lists the names"),
        near => {
            let near: Vec<String> = near.iter().map(|name| format!("`{}`", plain(name))).collect();
            error.with_hint(format!("did you mean {}?", near.join(" or ")))
        }
    }
    .into())
}

/// One pair of brackets: integers and slices, as Python reads them.
fn index(tensor: &Tensor, group: &str) -> Result<Tensor> {
    let mut tensor = tensor.clone();
    let mut dim = 0;
    for item in group.split(',').map(str::trim) {
        let Some(&size) = tensor.shape().get(dim) else {
            let rank = tensor.shape().len();
            return Err(UsageError::new(format!(
                "`[{group}]` has more indices than the {rank} dimensions left"
            ))
            .into());
        };
        if item.contains(':') {
            let (start, len, step) = slice(item, size)?;
            tensor = tensor.slice_in(dim, start, len, step)?;
            dim += 1;
        } else {
            let wanted = number(item, group)?;
            let at = if wanted < 0 {
                wanted.checked_add_unsigned(size)
            } else {
                Some(wanted)
            };
            let at = at.and_then(|at| usize::try_from(at).ok()).filter(|&at| at < size);
            let at = at.ok_or_else(|| {
                UsageError::new(format!(
                    "index {wanted} is out of range for dimension {dim} of size {size}"
                ))
            })?;
            tensor = tensor.select_in(dim, at)?;
        }
    }
    Ok(tensor)
}

fn number(text: &str, group: &str) -> Result<isize> {
    text.parse()
        .map_err(|_| UsageError::new(format!("`{text}` in `[{group}]` is no index")).into())
}

/// `start:stop:step` on a dimension of `size`: first index, how many, step.
fn slice(item: &str, size: usize) -> Result<(usize, usize, usize)> {
    let parts: Vec<&str> = item.split(':').map(str::trim).collect();
    let bound = |text: &str, default: usize| -> Result<usize> {
        if text.is_empty() {
            return Ok(default);
        }
        let wanted = number(text, item)?;
        let from_end = if wanted < 0 {
            wanted.saturating_add_unsigned(size)
        } else {
            wanted
        };
        Ok(usize::try_from(from_end).unwrap_or(0).min(size))
    };
    let (start, stop, step) = match parts.as_slice() {
        [start, stop] => (bound(start, 0)?, bound(stop, size)?, 1),
        [start, stop, step] => {
            let step = if step.is_empty() { 1 } else { number(step, item)? };
            let step = usize::try_from(step).ok().filter(|&step| step > 0);
            let step =
                step.ok_or_else(|| UsageError::new("the step of a slice is at least 1, as in torch"))?;
            (bound(start, 0)?, bound(stop, size)?, step)
        }
        _ => return Err(UsageError::new(format!("`{item}` is no slice")).into()),
    };
    let len = stop.saturating_sub(start).div_ceil(step);
    Ok((start, len, step))
}

/// Writes version 1.0 of NumPy's format; returns the size of the file.
fn write_npy(path: &Path, tensor: &Tensor, existing: Existing) -> Result<u64> {
    let descr = descr(tensor.dtype()).ok_or_else(|| {
        UsageError::new(format!("NumPy has no type for {}", tensor.dtype()))
            .with_hint("`graftwork convert --dtype float32` first")
    })?;
    let shape = torch_print::tuple(tensor.shape());
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    // Magic, version and length are 10 bytes; the data begins at a multiple of 64.
    let padded = (10 + header.len() + 1).next_multiple_of(64) - 10;
    header = format!("{header:<0$}\n", padded - 1);
    let length = u16::try_from(header.len()).context("the shape is too long for a NumPy header")?;

    let mut file = AtomicFile::create(path, existing)?;
    let write = FileError::at("write", path);
    let mut out = BufWriter::new(&mut file);
    out.write_all(b"\x93NUMPY\x01\x00").map_err(&write)?;
    out.write_all(&length.to_le_bytes()).map_err(&write)?;
    out.write_all(header.as_bytes()).map_err(&write)?;
    tensor.write_to(&mut out).map_err(|error| match error {
        pth::Error::Output { source } => anyhow::Error::from(write(source)),
        error => error.into(),
    })?;
    out.flush().map_err(&write)?;
    drop(out);
    file.commit()?;
    Ok(u64::try_from(10 + header.len() + tensor.nbytes())?)
}

/// NumPy's name of the type.
fn descr(dtype: DType) -> Option<&'static str> {
    Some(match dtype {
        DType::Bool => "|b1",
        DType::Uint8 => "|u1",
        DType::Int8 => "|i1",
        DType::Uint16 => "<u2",
        DType::Int16 => "<i2",
        DType::Uint32 => "<u4",
        DType::Int32 => "<i4",
        DType::Uint64 => "<u8",
        DType::Int64 => "<i8",
        DType::Float16 => "<f2",
        DType::Float32 => "<f4",
        DType::Float64 => "<f8",
        DType::Complex64 => "<c8",
        DType::Complex128 => "<c16",
        _ => return None,
    })
}

/// Sums over the values as they pass by, in float64.
struct Sums {
    dtype: DType,
    n: u64,
    n_nan: u64,
    n_inf: u64,
    n_zero: u64,
    min: f64,
    max: f64,
    mean: f64,
    /// Sum of squared differences from the mean (Welford).
    squares: f64,
    unprintable: Option<anyhow::Error>,
}

impl Write for Sums {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for element in bytes.chunks_exact(self.dtype.size()) {
            match torch_print::value(self.dtype, element) {
                Ok(value) => self.add(value),
                Err(error) => {
                    self.unprintable = Some(error);
                    return Err(io::ErrorKind::Unsupported.into());
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sums {
    fn add(&mut self, value: Value) {
        let value = match value {
            Value::Bool(value) => f64::from(u8::from(value)),
            Value::Int(value) => value as f64,
            Value::Float(value) => value,
            // The modulus, as torch.abs.
            Value::Complex(re, im) => re.hypot(im),
        };
        if value.is_nan() {
            self.n_nan += 1;
            return;
        }
        if value.is_infinite() {
            self.n_inf += 1;
            return;
        }
        self.n += 1;
        self.n_zero += u64::from(value == 0.0);
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        let difference = value - self.mean;
        self.mean += difference / self.n as f64;
        self.squares += difference * (value - self.mean);
    }
}

fn stats(tensor: &Tensor) -> Result<String> {
    let mut sums = Sums {
        dtype: tensor.dtype(),
        n: 0,
        n_nan: 0,
        n_inf: 0,
        n_zero: 0,
        min: f64::INFINITY,
        max: f64::NEG_INFINITY,
        mean: 0.0,
        squares: 0.0,
        unprintable: None,
    };
    if let Err(error) = tensor.write_to(&mut sums) {
        return Err(sums.unprintable.unwrap_or_else(|| error.into()));
    }
    let mut out = format!(
        "{} {:?}  {} values\n",
        tensor.dtype(),
        tensor.shape(),
        tensor.numel()
    );
    if tensor.dtype().is_complex() {
        out.push_str("of the moduli:\n");
    }
    if sums.n > 0 {
        // As torch.std: divided by n - 1.
        let std = (sums.squares / (sums.n as f64 - 1.0)).sqrt();
        out.push_str(&format!(
            "min   {:.6e}\nmax   {:.6e}\nmean  {:.6e}\nstd   {std:.6e}\n",
            sums.min, sums.max, sums.mean
        ));
    }
    out.push_str(&format!(
        "zeros {}\nnan   {}\ninf   {}\n",
        sums.n_zero, sums.n_nan, sums.n_inf
    ));
    Ok(out)
}
