//! Operators that only move numbers, and reductions.

use super::known::{Int, Known};
use super::{Entity, Layout, Lower, Lowered, Tensor, whole};
use crate::grad::op::{Axis, Concat, Reduce, Select, Strided};
use crate::grad::shape::{Dim, describe, numel, strides};
use crate::grad::weights::ParameterKind;
use crate::onnx::Operation;

/// Where each axis of pictures lies in memory.
const PLACES: [usize; 4] = [0, 3, 1, 2];

impl Lower<'_> {
    /// Lowers the node if it is one of these; says whether it was.
    pub(super) fn shape(&mut self, operation: &Operation<'_>) -> Lowered<bool> {
        let x = match operation.inputs.first() {
            Some(name) => match self.entity(name, ParameterKind::Other)? {
                Entity::Tensor(x) => x,
                Entity::Known(_) => self.tensor(name)?,
            },
            None => return Ok(false),
        };
        let rank = x.shape.len();
        let axis = |axis: i64| -> Lowered<usize> {
            let place = if axis < 0 { axis + rank as i64 } else { axis };
            let is_there = (0..rank as i64).contains(&place);
            is_there
                .then_some(place as usize)
                .ok_or_else(|| format!("there is no axis {axis} of {}", describe(&x.shape)))
        };
        let tensor = match operation.op_type {
            "Reshape" => {
                let target = self.known(&operation.inputs[1])?;
                let target = target.ok_or("its sizes are not known beforehand")?;
                let shape = reshape(&x.shape, target.ints()?)?;
                self.reshaped(&x, shape)?
            }
            "Flatten" => {
                let at = operation.integer("axis").unwrap_or(1);
                let at = if at < 0 { at + rank as i64 } else { at }.clamp(0, rank as i64) as usize;
                let shape = vec![numel(&x.shape[..at]), numel(&x.shape[at..])];
                self.reshaped(&x, shape)?
            }
            "Unsqueeze" => {
                let axes = self.integers(operation, 1, "axes")?.unwrap_or_default();
                let new_rank = (rank + axes.len()) as i64;
                let mut axes: Vec<usize> = axes
                    .iter()
                    .map(|axis| axis.rem_euclid(new_rank) as usize)
                    .collect();
                axes.sort_unstable();
                let mut shape = x.shape.clone();
                axes.into_iter().for_each(|axis| shape.insert(axis, Dim::ONE));
                self.reshaped(&x, shape)?
            }
            "Squeeze" => {
                let axes = self.integers(operation, 1, "axes")?;
                let gone: Vec<usize> = match axes {
                    Some(axes) => axes.into_iter().map(axis).collect::<Lowered<_>>()?,
                    None => (0..rank).filter(|axis| x.shape[*axis] == Dim::ONE).collect(),
                };
                if let Some(axis) = gone.iter().find(|axis| x.shape[**axis] != Dim::ONE) {
                    return Err(format!("axis {axis} of {} is not of size 1", describe(&x.shape)));
                }
                let kept = (0..rank).filter(|axis| !gone.contains(axis));
                let shape = kept.map(|axis| x.shape[axis]).collect();
                self.reshaped(&x, shape)?
            }
            "Transpose" => {
                let order: Vec<usize> = match operation.integers("perm") {
                    Some(order) if !order.is_empty() => {
                        order.iter().map(|a| axis(*a)).collect::<Lowered<_>>()?
                    }
                    _ => (0..rank).rev().collect(),
                };
                self.transpose(&x, &order)?
            }
            "Slice" => {
                let lists = [(1, "starts"), (2, "ends"), (3, "axes"), (4, "steps")];
                let [starts, ends, axes, steps] = lists.map(|(at, name)| self.integers(operation, at, name));
                let (Some(starts), Some(ends)) = (starts?, ends?) else {
                    return Err("it has no bounds".to_owned());
                };
                let axes = axes?.unwrap_or_else(|| (0..starts.len() as i64).collect());
                let steps = steps?.unwrap_or_else(|| vec![1; starts.len()]);
                if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
                    return Err("its bounds are of different number".to_owned());
                }
                let mut cuts = vec![None; rank];
                for (at, place) in axes.iter().enumerate() {
                    let place = axis(*place)?;
                    cuts[place] = cut(x.shape[place], starts[at], ends[at], steps[at])?;
                }
                self.sliced(&x, &cuts)
            }
            "Split" => {
                self.split(operation, &x, axis(operation.integer("axis").unwrap_or(0))?)?;
                return Ok(true);
            }
            "Gather" => self.gather(operation, &x, axis(operation.integer("axis").unwrap_or(0))?)?,
            "Concat" => self.concat(operation, axis(operation.integer("axis").unwrap_or(0))?)?,
            "Expand" => {
                let target = self.known(&operation.inputs[1])?;
                let target = target.ok_or("its sizes are not known beforehand")?;
                let x = self.plain(&x)?;
                self.expand(&x, target.ints()?)?
            }
            "ReduceMean" | "ReduceSum" => self.reduce(operation, &x)?,
            _ => return Ok(false),
        };
        self.set(&operation.outputs[0], tensor);
        Ok(true)
    }

    /// The same numbers under other sizes.
    fn reshaped(&mut self, x: &Tensor, shape: Vec<Dim>) -> Lowered<Tensor> {
        if numel(&shape) != x.numel() {
            return Err(format!(
                "{} does not become {}",
                describe(&x.shape),
                describe(&shape)
            ));
        }
        let x = self.plain(x)?;
        Ok(Tensor {
            source: x.source,
            shape,
            layout: Layout::Plain,
        })
    }

    fn transpose(&mut self, x: &Tensor, order: &[usize]) -> Lowered<Tensor> {
        let rank = x.shape.len();
        if order.len() != rank || (0..rank).any(|axis| !order.contains(&axis)) {
            return Err(format!(
                "{order:?} is no order of the axes of {}",
                describe(&x.shape)
            ));
        }
        let shape: Vec<Dim> = order.iter().map(|axis| x.shape[*axis]).collect();
        let with = |layout| Tensor {
            source: x.source,
            shape: shape.clone(),
            layout,
        };
        match (x.layout, order) {
            (Layout::ChannelsLast, [0, 2, 3, 1]) => return Ok(with(Layout::Plain)),
            (Layout::Plain, [0, 3, 1, 2]) => return Ok(with(Layout::ChannelsLast)),
            (Layout::Plain, [1, 0]) => return Ok(with(Layout::Transposed)),
            (Layout::Transposed, [1, 0]) => return Ok(with(Layout::Plain)),
            _ => {}
        }
        let x = self.plain(x)?;
        let strides = strides(&x.shape);
        let axes = order.iter().map(|axis| whole((x.shape[*axis], strides[*axis])));
        Ok(self.emit(Strided(axes.collect()), vec![x.source], shape, Layout::Plain))
    }

    /// The tensor without those parts of axes that are cut off; pictures stay as they lie.
    fn sliced(&mut self, x: &Tensor, cuts: &[Option<Cut>]) -> Tensor {
        let x = match x.layout {
            Layout::Transposed => match self.plain(x) {
                Ok(plain) => plain,
                Err(_) => x.clone(),
            },
            _ => x.clone(),
        };
        let rank = x.shape.len();
        let place = |axis: usize| {
            if x.layout == Layout::ChannelsLast {
                PLACES[axis]
            } else {
                axis
            }
        };
        let mut memory = vec![Dim::ONE; rank];
        for axis in 0..rank {
            memory[place(axis)] = x.shape[axis];
        }
        let strides = strides(&memory);
        let mut shape = x.shape.clone();
        let mut axes = vec![whole((Dim::ONE, Dim::ONE)); rank];
        for axis in 0..rank {
            let stride = strides[place(axis)];
            axes[place(axis)] = match cuts[axis] {
                None => whole((x.shape[axis], stride)),
                Some(cut) => {
                    shape[axis] = Dim::fixed(cut.size);
                    Axis {
                        size: shape[axis],
                        start: cut.start,
                        step: cut.step,
                        stride,
                    }
                }
            };
        }
        self.emit(Strided(axes), vec![x.source], shape, x.layout)
    }

    fn split(&mut self, operation: &Operation<'_>, x: &Tensor, axis: usize) -> Lowered<()> {
        let total = x.shape[axis];
        if total.is_batched {
            return Err("it splits the batch".to_owned());
        }
        let n = operation.outputs.len();
        let sizes = match self.integers(operation, 1, "split")? {
            Some(sizes) if !sizes.is_empty() => sizes.iter().map(|size| *size as usize).collect(),
            _ => {
                let each = total.size.div_ceil(n);
                let mut sizes = vec![each; n];
                sizes[n - 1] = total.size - each * (n - 1);
                sizes
            }
        };
        if sizes.len() != n || sizes.iter().sum::<usize>() != total.size {
            return Err(format!("{sizes:?} of {}", total.size));
        }
        let mut start = 0;
        for (name, size) in operation.outputs.iter().zip(sizes) {
            let mut cuts = vec![None; x.shape.len()];
            cuts[axis] = Some(Cut { start, size, step: 1 });
            start += size;
            let part = self.sliced(x, &cuts);
            self.set(name, part);
        }
        Ok(())
    }

    fn gather(&mut self, operation: &Operation<'_>, x: &Tensor, axis: usize) -> Lowered<Tensor> {
        let name = &operation.inputs[1];
        let indices: Option<Known> = self.known(name)?;
        let indices = indices.ok_or_else(|| format!("its indices `{name}` are computed"))?;
        let size = x.shape[axis];
        if size.is_batched {
            return Err("it chooses among the samples".to_owned());
        }
        let n = size.size as i64;
        let at: Vec<usize> = indices
            .fixed_integers()?
            .iter()
            .map(|index| {
                let place = if *index < 0 { index + n } else { *index };
                (0..n)
                    .contains(&place)
                    .then_some(place as usize)
                    .ok_or_else(|| format!("there is no element {index} of {n}"))
            })
            .collect::<Lowered<_>>()?;
        if indices.shape.is_empty() {
            let mut cuts = vec![None; x.shape.len()];
            cuts[axis] = Some(Cut {
                start: at[0],
                size: 1,
                step: 1,
            });
            let x = self.plain(x)?;
            let mut tensor = self.sliced(&x, &cuts);
            tensor.shape.remove(axis);
            return Ok(tensor);
        }
        let x = self.plain(x)?;
        let mut shape = x.shape[..axis].to_vec();
        shape.extend(indices.shape.iter().map(|size| Dim::fixed(*size)));
        shape.extend(&x.shape[axis + 1..]);
        let op = Select {
            size: size.size,
            inner: numel(&x.shape[axis + 1..]),
            indices: at,
        };
        Ok(self.emit(op, vec![x.source], shape, Layout::Plain))
    }

    fn concat(&mut self, operation: &Operation<'_>, axis: usize) -> Lowered<Tensor> {
        let mut inputs = Vec::new();
        for name in operation.inputs {
            inputs.push(self.tensor(name)?);
        }
        let layout = if inputs.iter().any(|input| input.layout == Layout::ChannelsLast) {
            Layout::ChannelsLast
        } else {
            Layout::Plain
        };
        let batch = inputs
            .iter()
            .map(|input| input.shape[0])
            .find(|dim| dim.is_batched);
        for input in &mut inputs {
            *input = if layout == Layout::ChannelsLast {
                self.channels_last(input)?
            } else {
                self.plain(input)?
            };
            // A class token of a graph that was exported for one sample.
            if let (Some(batch), Dim::ONE, true) = (batch, input.shape[0], axis != 0) {
                let mut target: Vec<Int> = vec![Int::fixed(1); input.shape.len()];
                target[0] = Int {
                    value: batch.size as i64,
                    is_batched: true,
                };
                let expanded = self.plain(input)?;
                *input = self.expand(&expanded, &target)?;
                if layout == Layout::ChannelsLast {
                    *input = self.channels_last(input)?;
                }
            }
        }
        let mut shape = inputs[0].shape.clone();
        let mut total = 0;
        for input in &inputs {
            let rest = |shape: &[Dim]| [&shape[..axis], &shape[axis + 1..]].concat();
            if input.shape.len() != shape.len()
                || rest(&input.shape) != rest(&shape)
                || input.shape[axis].is_batched
            {
                return Err(format!("{} behind {}", describe(&input.shape), describe(&shape)));
            }
            total += input.shape[axis].size;
        }
        shape[axis] = Dim::fixed(total);
        let (memory, place) = match layout {
            Layout::ChannelsLast => (vec![shape[0], shape[2], shape[3], shape[1]], PLACES[axis]),
            _ => (shape.clone(), axis),
        };
        let op = Concat {
            sizes: inputs.iter().map(|input| input.shape[axis]).collect(),
            inner: numel(&memory[place + 1..]),
        };
        let sources = inputs.iter().map(|input| input.source).collect();
        Ok(self.emit(op, sources, shape, layout))
    }

    /// Repeated along axes of size one; `x` is plain.
    fn expand(&mut self, x: &Tensor, target: &[Int]) -> Lowered<Tensor> {
        let rank = x.shape.len().max(target.len());
        let own = strides(&x.shape);
        let (mut shape, mut axes) = (Vec::new(), Vec::new());
        for axis in 0..rank {
            let of_x = (axis + x.shape.len())
                .checked_sub(rank)
                .map(|at| (x.shape[at], own[at]));
            let wanted = (axis + target.len()).checked_sub(rank).map(|at| Dim {
                size: target[at].value.max(1) as usize,
                is_batched: target[at].is_batched,
            });
            let (size, stride) = match (of_x, wanted.unwrap_or(Dim::ONE)) {
                (Some((size, stride)), wanted) if wanted == size || wanted == Dim::ONE => (size, stride),
                (Some((Dim::ONE, _)) | None, wanted) => (wanted, Dim::fixed(0)),
                (Some((size, stride)), wanted) if wanted.size == size.size => (size, stride),
                _ => return Err(format!("{} cannot be repeated so", describe(&x.shape))),
            };
            shape.push(size);
            axes.push(whole((size, stride)));
        }
        if shape == x.shape {
            return Ok(x.clone());
        }
        Ok(self.emit(Strided(axes), vec![x.source], shape, Layout::Plain))
    }

    fn reduce(&mut self, operation: &Operation<'_>, x: &Tensor) -> Lowered<Tensor> {
        let axes = self.integers(operation, 1, "axes")?.unwrap_or_default();
        let x = match x.layout {
            Layout::Transposed => self.plain(x)?,
            _ => x.clone(),
        };
        let rank = x.shape.len();
        let mut axes: Vec<usize> = axes
            .iter()
            .map(|axis| axis.rem_euclid(rank as i64) as usize)
            .collect();
        if axes.is_empty() {
            axes = (0..rank).collect();
        }
        let is_picture = x.layout == Layout::ChannelsLast;
        let (memory, mut places) = match is_picture {
            true => (
                vec![x.shape[0], x.shape[2], x.shape[3], x.shape[1]],
                axes.iter().map(|axis| PLACES[*axis]).collect(),
            ),
            false => (x.shape.clone(), axes.clone()),
        };
        places.sort_unstable();
        let (first, last) = (places[0], places[places.len() - 1]);
        if last - first + 1 != places.len() {
            return Err(format!(
                "it reduces axes {axes:?} of {}, which are no neighbours",
                describe(&x.shape)
            ));
        }
        let op = Reduce {
            size: numel(&memory[first..=last]),
            inner: numel(&memory[last + 1..]),
            is_mean: operation.op_type == "ReduceMean",
        };
        if op.size.is_batched {
            return Err("it reduces over the samples".to_owned());
        }
        let keeps = operation.integer("keepdims").unwrap_or(1) == 1;
        let shape: Vec<Dim> = (0..rank)
            .filter_map(|axis| match axes.contains(&axis) {
                true => keeps.then_some(Dim::ONE),
                false => Some(x.shape[axis]),
            })
            .collect();
        // Without the reduced ones, the axes that are left keep their order only where channels are not among several.
        let layout = if is_picture && keeps {
            Layout::ChannelsLast
        } else {
            Layout::Plain
        };
        if is_picture
            && !keeps
            && shape.len() > 1
            && !axes.contains(&1)
            && !(axes.contains(&2) && axes.contains(&3))
        {
            return Err(format!("it reduces axes {axes:?} of pictures"));
        }
        Ok(self.emit(op, vec![x.source], shape, layout))
    }
}

/// A part of an axis.
#[derive(Debug, Clone, Copy)]
struct Cut {
    start: usize,
    size: usize,
    step: isize,
}

/// What `Slice` takes of an axis; none where that is all of it.
fn cut(dim: Dim, start: i64, end: i64, step: i64) -> Lowered<Option<Cut>> {
    let n = dim.size as i64;
    if dim.is_batched {
        return if start == 0 && end >= n && step == 1 {
            Ok(None)
        } else {
            Err("it takes some of the samples".to_owned())
        };
    }
    let place =
        |at: i64, low: i64, high: i64| (if at < 0 { at.saturating_add(n) } else { at }).clamp(low, high);
    let (start, size) = if step > 0 {
        let (start, end) = (place(start, 0, n), place(end, 0, n));
        (start, (end - start).max(0).div_ceil_by(step))
    } else if step < 0 {
        let (start, end) = (
            place(start, 0, n - 1),
            if end < -n { -1 } else { place(end, -1, n - 1) },
        );
        (start, (start - end).max(0).div_ceil_by(-step))
    } else {
        return Err("its step is 0".to_owned());
    };
    if size == 0 {
        return Err("it takes nothing".to_owned());
    }
    if (start, size, step) == (0, n, 1) {
        return Ok(None);
    }
    Ok(Some(Cut {
        start: start as usize,
        size: size as usize,
        step: step as isize,
    }))
}

trait DivCeil {
    fn div_ceil_by(self, by: i64) -> i64;
}

impl DivCeil for i64 {
    fn div_ceil_by(self, by: i64) -> i64 {
        (self + by - 1) / by
    }
}

/// The sizes that `target` means: 0 is the input's, -1 what is left, and the batch goes where it was, for graphs that were
/// exported for one sample too.
fn reshape(from: &[Dim], target: &[Int]) -> Lowered<Vec<Dim>> {
    let total = numel(from);
    let bad = || {
        let target: Vec<String> = target
            .iter()
            .map(|int| {
                if int.is_batched {
                    format!("{}n", int.value)
                } else {
                    int.value.to_string()
                }
            })
            .collect();
        format!("{} does not become [{}]", describe(from), target.join(", "))
    };
    let mut shape = Vec::with_capacity(target.len());
    let mut open = None;
    for (axis, int) in target.iter().enumerate() {
        shape.push(match int.value {
            0 => *from.get(axis).ok_or_else(bad)?,
            -1 if open.is_none() && !int.is_batched => {
                open = Some(axis);
                Dim::ONE
            }
            size if size > 0 => Dim {
                size: size as usize,
                is_batched: int.is_batched,
            },
            _ => return Err(bad()),
        });
    }
    let known = numel(&shape);
    if let Some(axis) = open {
        if known.size == 0 || !total.size.is_multiple_of(known.size) {
            return Err(bad());
        }
        shape[axis].size = total.size / known.size;
    }
    if numel(&shape).size != total.size {
        return Err(bad());
    }
    if total.is_batched && !known.is_batched {
        let axis = home(from, &shape).ok_or_else(bad)?;
        shape[axis].is_batched = true;
    }
    if numel(&shape) != total {
        return Err(bad());
    }
    Ok(shape)
}

/// The axis of `to` that the samples of `from` are in: groups of axes with equal products belong together.
fn home(from: &[Dim], to: &[Dim]) -> Option<usize> {
    let (mut i, mut j) = (0, 0);
    while i < from.len() && j < to.len() {
        let (i_start, j_start) = (i, j);
        let (mut a, mut b) = (from[i].size, to[j].size);
        while a != b {
            if a < b {
                i += 1;
                a *= from.get(i)?.size;
            } else {
                j += 1;
                b *= to.get(j)?.size;
            }
        }
        (i, j) = (i + 1, j + 1);
        if let Some(at) = (i_start..i).find(|axis| from[*axis].is_batched) {
            let leads = (i_start..at).all(|axis| from[axis].size == 1);
            // Between two groups it is in either; rows of the last axis are not to grow with the batch.
            let is_between = at == i_start && from[at].size == 1 && i - i_start > 1;
            if is_between && j_start > 0 && j_start + 1 == to.len() {
                return Some(j_start - 1);
            }
            // Samples behind something: where the graph was exported for one, a one stands in their place.
            if from[at].size > 1 && to[j_start].size != 1 && to.get(j).is_some_and(|dim| dim.size == 1) {
                return Some(j);
            }
            return (leads || j - j_start == 1).then_some(j_start);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(from: &[Dim], target: &[i64], expect: &str) {
        let target: Vec<Int> = target.iter().map(|value| Int::fixed(*value)).collect();
        let shape = reshape(from, &target).map(|shape| describe(&shape));
        assert_eq!(shape.unwrap_or_else(|error| error), expect);
    }

    #[test]
    fn the_batch_finds_its_axis_in_graphs_for_one_sample() {
        let (n, fixed) = (Dim::batched(1), Dim::fixed);
        check(
            &[n, fixed(197), fixed(768)],
            &[1, 197, 12, 64],
            "[n, 197, 12, 64]",
        );
        check(&[n, fixed(197), fixed(768)], &[-1, 768], "[197n, 768]");
        check(&[fixed(197), n, fixed(768)], &[197, 12, 64], "[197, 12n, 64]");
        check(&[fixed(197), n, fixed(12), fixed(64)], &[197, 768], "[197n, 768]");
        check(&[Dim::batched(197), fixed(768)], &[197, 1, 768], "[197, n, 768]");
        check(
            &[Dim::batched(12), fixed(197), fixed(64)],
            &[1, 12, 197, 64],
            "[n, 12, 197, 64]",
        );
        check(&[n, fixed(4), fixed(4)], &[0, -1], "[n, 16]");
        check(
            &[n, fixed(4), fixed(4)],
            &[3, 5],
            "[n, 4, 4] does not become [3, 5]",
        );
    }
}
