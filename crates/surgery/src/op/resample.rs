//! Verbs that fit weights with a place to another grid: `pos_embed`, `patch_embed`, `relpos`, `interp`.

use super::interpolation::{self, Kernel, matrix};
use super::{map_tensors, matched};
use crate::lazy::{LazyTensor, resolve_dim};
use crate::plan::args::{Args, At, Patterns, list, one_of};
use crate::plan::{Effect, Fault, Operation, Workspace};

#[derive(Debug)]
struct Resample {
    patterns: Patterns,
    is_optional: bool,
    how: How,
    span: std::ops::Range<usize>,
}

#[derive(Debug)]
enum How {
    /// `[1, P + H*W, D]` or `[P + H*W, D]`, as timm's `resample_abs_pos_embed`; or a grid `[1, H, W, D]`.
    PosEmbed {
        to: [usize; 2],
        from: Option<[usize; 2]>,
        n_prefix: usize,
        kernel: Kernel,
        antialias: bool,
    },
    /// `[O, I, H, W]`, as timm's `resample_patch_embed` (Beyer et al., "FlexiViT", 2022).
    PatchEmbed {
        to: [usize; 2],
        kernel: Kernel,
        antialias: bool,
    },
    /// `[(2H-1)(2W-1) + extra, heads]` or `[heads, 2H-1, 2W-1]`, as timm's `resize_rel_pos_bias_table_simple` and `resize_rel_pos_bias_table`.
    RelPos {
        to: [usize; 2],
        n_extra: usize,
        grid: RelGrid,
    },
    /// One dimension.
    Interp { axis: i64, n: usize, kernel: Kernel },
}

/// Where the values of a table of relative positions lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RelGrid {
    /// At even distances: bicubic.
    Even,
    /// At distances that grow: linear, as timm has it by default.
    Geometric,
    /// The same with cubic splines, as BEiT's own code.
    GeometricSpline,
}

/// Interpolation is a matrix of this many rows.
const MAX_SIDE: usize = 1 << 16;

const KERNELS: [(&str, Kernel); 5] = [
    ("bicubic", Kernel::Cubic),
    ("cubic", Kernel::Cubic),
    ("bilinear", Kernel::Linear),
    ("linear", Kernel::Linear),
    ("nearest", Kernel::Nearest),
];

fn kernel(args: &mut Args, default: Kernel) -> Result<Kernel, Fault> {
    args.option("mode")
        .map_or(Ok(default), |text| one_of(&text, &KERNELS))
}

/// `24x24` or `24`
fn grid(text: &At<String>) -> Result<[usize; 2], Fault> {
    let sizes = list::<usize>(text, 'x', "a grid such as `24x24`")?;
    match sizes.as_slice() {
        sizes if sizes.iter().any(|&side| side > MAX_SIDE) => {
            Err(Fault::new(format!("`{}` is larger than {MAX_SIDE}", text.value)).at(&text.span))
        }
        &[side] if side > 0 => Ok([side, side]),
        &[height, width] if height > 0 && width > 0 => Ok([height, width]),
        _ => Err(Fault::new(format!("`{}` is not a grid such as `24x24`", text.value)).at(&text.span)),
    }
}

fn required(args: &mut Args, key: &str) -> Result<At<String>, Fault> {
    args.option(key)
        .ok_or_else(|| Fault::new(format!("`{key}=` is missing")).at(&args.verb_span()))
}

fn resample(args: &mut Args, how: How) -> Result<Box<dyn Operation>, Fault> {
    Ok(Box::new(Resample {
        patterns: args.patterns(0)?,
        is_optional: args.is_optional,
        how,
        span: args.verb_span(),
    }))
}

pub(crate) fn parse_pos_embed(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    let how = How::PosEmbed {
        to: grid(&required(args, "to")?)?,
        from: args.option("from").map(|text| grid(&text)).transpose()?,
        n_prefix: args.parsed("prefix", "a number of tokens")?.unwrap_or(1),
        kernel: kernel(args, Kernel::Cubic)?,
        antialias: args.flag("antialias", true)?,
    };
    resample(args, how)
}

pub(crate) fn parse_patch_embed(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    let how = How::PatchEmbed {
        to: grid(&required(args, "to")?)?,
        kernel: kernel(args, Kernel::Cubic)?,
        antialias: args.flag("antialias", true)?,
    };
    resample(args, how)
}

pub(crate) fn parse_relpos(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    let to = grid(&required(args, "to")?)?;
    let n_extra = args.parsed("extra", "a number of tokens")?.unwrap_or(0);
    let modes = [
        ("bicubic", RelGrid::Even),
        ("beit", RelGrid::Geometric),
        ("beit-cubic", RelGrid::GeometricSpline),
    ];
    let grid = args
        .option("mode")
        .map_or(Ok(RelGrid::Even), |text| one_of(&text, &modes))?;
    resample(args, How::RelPos { to, n_extra, grid })
}

pub(crate) fn parse_interp(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    let n: Option<std::num::NonZeroUsize> = args.parsed("n", "a size")?;
    let n = n.filter(|n| n.get() <= MAX_SIDE);
    let how = How::Interp {
        axis: args.parsed("axis", "a dimension")?.unwrap_or(0),
        n: n.map(usize::from).ok_or_else(|| {
            Fault::new(format!("`n=` from 1 to {MAX_SIDE} is missing")).at(&args.verb_span())
        })?,
        kernel: kernel(args, Kernel::Linear)?,
    };
    resample(args, how)
}

impl Operation for Resample {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let names = matched(&work.tensors, &self.patterns, self.is_optional)?;
        let mut summary = String::new();
        map_tensors(&mut work.tensors, &names, |name, tensor| {
            let fault = |reason: String| {
                Fault::new(format!("`{name}` {:?}: {reason}", tensor.shape())).at(&self.span)
            };
            if !tensor.dtype().is_float() || tensor.numel() == 0 {
                return Err(fault("there is nothing to interpolate".to_owned()));
            }
            let changed = self.how.of(tensor).map_err(fault)?;
            summary = format!("{:?} -> {:?}", tensor.shape(), changed.shape());
            Ok(changed)
        })?;
        Ok(Effect::lossy(summary))
    }
}

impl How {
    fn of(&self, tensor: &LazyTensor) -> Result<LazyTensor, String> {
        match *self {
            How::PosEmbed {
                to,
                from,
                n_prefix,
                kernel,
                antialias,
            } => pos_embed(tensor, to, from, n_prefix, kernel, antialias),
            How::PatchEmbed {
                to,
                kernel,
                antialias,
            } => patch_embed(tensor, to, kernel, antialias),
            How::RelPos { to, n_extra, grid } => relpos(tensor, to, n_extra, grid),
            How::Interp { axis, n, kernel } => {
                let dim = resolve_dim(axis, tensor.shape().len())
                    .ok_or_else(|| format!("there is no dimension {axis}"))?;
                Ok(interp(tensor, dim, n, kernel))
            }
        }
    }
}

/// One dimension interpolated to `n` values.
pub(crate) fn interp(tensor: &LazyTensor, dim: usize, n: usize, kernel: Kernel) -> LazyTensor {
    let mut shape = tensor.shape().to_vec();
    if shape[dim] == n {
        return tensor.clone();
    }
    let weights = matrix(shape[dim], n, kernel, false);
    let inner: usize = shape[dim + 1..].iter().product();
    shape[dim] = n;
    LazyTensor::computed(tensor.dtype(), &shape, vec![tensor.clone()], move |inputs| {
        Ok(interpolation::apply(&inputs[0], &weights, inner))
    })
}

/// A grid `[…, H, W, inner]` in row-major order, interpolated to `to`; `[outer, h, w, inner]` comes out.
fn grid_to(
    tensor: &LazyTensor,
    shape: &[usize],
    from: [usize; 2],
    to: [usize; 2],
    inner: usize,
    weights: impl Fn(usize, usize) -> interpolation::Matrix,
) -> LazyTensor {
    let (rows, cols) = (weights(from[0], to[0]), weights(from[1], to[1]));
    LazyTensor::computed(tensor.dtype(), shape, vec![tensor.clone()], move |inputs| {
        let wide = interpolation::apply(&inputs[0], &cols, inner);
        Ok(interpolation::apply(&wide, &rows, to[1] * inner))
    })
}

fn square(n: usize) -> Option<usize> {
    let side = n.isqrt();
    (side * side == n).then_some(side)
}

fn pos_embed(
    tensor: &LazyTensor,
    to: [usize; 2],
    from: Option<[usize; 2]>,
    n_prefix: usize,
    kernel: Kernel,
    antialias: bool,
) -> Result<LazyTensor, String> {
    let weights = |from, to| matrix(from, to, kernel, antialias);
    if let &[1, height, width, dim] = tensor.shape() {
        if [height, width] == to {
            return Ok(tensor.clone());
        }
        return Ok(grid_to(
            tensor,
            &[1, to[0], to[1], dim],
            [height, width],
            to,
            dim,
            weights,
        ));
    }
    let (n_tokens, dim) = match *tensor.shape() {
        [1, n, dim] | [n, dim] => (n, dim),
        _ => return Err("a position embedding is `[1, tokens, dim]` or `[tokens, dim]`".to_owned()),
    };
    let axis = tensor.shape().len() - 2;
    // As timm: as many tokens in a square is taken for the same grid.
    if to[0] * to[1] + n_prefix == n_tokens && to[0] == to[1] {
        return Ok(tensor.clone());
    }
    let n_grid = n_tokens
        .checked_sub(n_prefix)
        .ok_or_else(|| format!("there are fewer tokens than the {n_prefix} of the prefix"))?;
    let from = match from {
        Some(from) => from,
        None => square(n_grid).map(|side| [side, side]).ok_or_else(|| {
            format!("{n_grid} tokens behind a prefix of {n_prefix} are no square; `from=HxW` and `prefix=N` say what they are")
        })?,
    };
    if from[0] * from[1] != n_grid {
        return Err(format!(
            "{n_grid} tokens behind a prefix of {n_prefix} are no grid of {}x{}",
            from[0], from[1]
        ));
    }
    let mut shape = tensor.shape().to_vec();
    shape[axis] = to[0] * to[1];
    let grid = grid_to(
        &tensor.slice(axis, n_prefix, n_grid, 1),
        &shape,
        from,
        to,
        dim,
        weights,
    );
    Ok(match n_prefix {
        0 => grid,
        _ => LazyTensor::joined(axis, vec![tensor.slice(axis, 0, n_prefix, 1), grid]),
    })
}

fn patch_embed(
    tensor: &LazyTensor,
    to: [usize; 2],
    kernel: Kernel,
    antialias: bool,
) -> Result<LazyTensor, String> {
    let &[out, input, height, width] = tensor.shape() else {
        return Err(
            "a patch embedding is `[out, in, height, width]`; `reshape` makes one of a linear layer"
                .to_owned(),
        );
    };
    if [height, width] == to {
        return Ok(tensor.clone());
    }
    let weights = |from, to| matrix(from, to, kernel, antialias).pinv_of_transpose();
    let (Some(rows), Some(cols)) = (weights(height, to[0]), weights(width, to[1])) else {
        return Err(format!(
            "the map to {}x{} has no pseudo-inverse of full rank",
            to[0], to[1]
        ));
    };
    let shape = [out, input, to[0], to[1]];
    Ok(LazyTensor::computed(
        tensor.dtype(),
        &shape,
        vec![tensor.clone()],
        move |inputs| {
            let wide = interpolation::apply(&inputs[0], &cols, 1);
            Ok(interpolation::apply(&wide, &rows, to[1]))
        },
    ))
}

fn relpos(tensor: &LazyTensor, to: [usize; 2], n_extra: usize, grid: RelGrid) -> Result<LazyTensor, String> {
    let to = [2 * to[0] - 1, 2 * to[1] - 1];
    let weights = move |from: usize, to: usize| match grid {
        RelGrid::Even => matrix(from, to, Kernel::Cubic, false),
        RelGrid::Geometric => interpolation::linear(&geometric(from, to), &centred(to)),
        RelGrid::GeometricSpline => interpolation::spline(&geometric(from, to), &centred(to)),
    };
    if let &[heads, height, width] = tensor.shape() {
        if [height, width] == to {
            return Ok(tensor.clone());
        }
        return Ok(grid_to(
            tensor,
            &[heads, to[0], to[1]],
            [height, width],
            to,
            1,
            weights,
        ));
    }
    let &[n, heads] = tensor.shape() else {
        return Err(
            "a table of relative positions is `[positions, heads]` or `[heads, height, width]`".to_owned(),
        );
    };
    let n_grid = n
        .checked_sub(n_extra)
        .ok_or_else(|| format!("there are fewer rows than {n_extra} extra ones"))?;
    let side = square(n_grid).ok_or_else(|| {
        format!("{n_grid} positions are no square; `extra=N` says how many rows behind them are none")
    })?;
    if [side, side] == to {
        return Ok(tensor.clone());
    }
    let grid = grid_to(
        &tensor.slice(0, 0, n_grid, 1),
        &[to[0] * to[1], heads],
        [side, side],
        to,
        heads,
        weights,
    );
    Ok(match n_extra {
        0 => grid,
        _ => LazyTensor::joined(0, vec![grid, tensor.slice(0, n_grid, n_extra, 1)]),
    })
}

/// `-n/2, …, n/2`
fn centred(n: usize) -> Vec<f64> {
    (0..n).map(|i| i as f64 - (n / 2) as f64).collect()
}

/// The places of the old values on the new table's scale: distances from the centre that grow geometrically, so that the table's ends
/// stay its ends (BEiT).
fn geometric(from: usize, to: usize) -> Vec<f64> {
    let (half_from, half_to) = (from / 2, to / 2);
    let reach = |q: f64| (0..half_from).map(|i| q.powi(i as i32)).sum::<f64>();
    let (mut low, mut high, mut q) = (1.01, 1.5, 1.01);
    while high - low > 1e-6 {
        q = (low + high) / 2.0;
        if reach(q) > half_to as f64 {
            high = q;
        } else {
            low = q;
        }
    }
    let mut distances = Vec::with_capacity(half_from);
    let mut distance = 1.0;
    for i in 0..half_from {
        distances.push(distance);
        distance += q.powi(i as i32 + 1);
    }
    distances
        .iter()
        .rev()
        .map(|d| -d)
        .chain([0.0])
        .chain(distances.iter().copied())
        .collect()
}
