//! Arithmetic on what is known beforehand: the sizes that exporters compute inside the graph.

use super::known::{Int, Known, KnownValues};
use super::{Entity, Lower, Lowered};
use crate::grad::weights::ParameterKind;
use crate::onnx::Operation;

/// Elements that a constant of the graph's own making may have.
const LARGEST: usize = 1 << 20;

impl Lower<'_> {
    /// Computes the node if all that it reads is known; says whether it did.
    pub(super) fn fold(&mut self, operation: &Operation<'_>) -> Lowered<bool> {
        let Some(output) = operation.outputs.first() else {
            return Ok(false);
        };
        if !operation.domain.is_empty() {
            return Ok(false);
        }
        match operation.op_type {
            "Constant" => {
                let numbers = operation
                    .constant()
                    .ok_or("its value is of no type that is computed with")?;
                self.set_known(output, Known::from(numbers));
                return Ok(true);
            }
            "Shape" | "Size" => {
                let sizes: Vec<Int> = match self.entity(&operation.inputs[0], ParameterKind::Other)? {
                    Entity::Known(known) => known.shape.iter().map(|size| Int::fixed(*size as i64)).collect(),
                    Entity::Tensor(tensor) => tensor
                        .shape
                        .iter()
                        .map(|dim| Int {
                            value: dim.size as i64,
                            is_batched: dim.is_batched,
                        })
                        .collect(),
                };
                let known = if operation.op_type == "Size" {
                    let total = sizes.iter().try_fold(Int::fixed(1), |a, b| multiply(a, *b))?;
                    Known {
                        shape: Vec::new(),
                        values: KnownValues::Ints(vec![total]),
                    }
                } else {
                    let n = sizes.len() as i64;
                    let at = |name: &str, default: i64| {
                        let at = operation.integer(name).unwrap_or(default);
                        (if at < 0 { at + n } else { at }).clamp(0, n) as usize
                    };
                    let (start, end) = (at("start", 0), at("end", n));
                    let sizes = sizes[start..end.max(start)].to_vec();
                    Known {
                        shape: vec![sizes.len()],
                        values: KnownValues::Ints(sizes),
                    }
                };
                self.set_known(output, known);
                return Ok(true);
            }
            _ => {}
        }
        let mut inputs = Vec::with_capacity(operation.inputs.len());
        for name in operation.inputs.iter().filter(|name| !name.is_empty()) {
            let is_parameter = self
                .model
                .float_initializer(name)
                .is_some_and(|shape| !shape.is_empty());
            if is_parameter {
                return Ok(false);
            }
            match self.entity(name, ParameterKind::Other) {
                Ok(Entity::Known(known)) => inputs.push(known),
                _ => return Ok(false),
            }
        }
        if inputs.is_empty() {
            return Ok(false);
        }
        let Some(known) = compute(operation, &inputs)? else {
            return Ok(false);
        };
        self.set_known(output, known);
        Ok(true)
    }
}

fn multiply(a: Int, b: Int) -> Lowered<Int> {
    if a.is_batched && b.is_batched {
        return Err("it multiplies the number of samples by itself".to_owned());
    }
    Ok(Int {
        value: a.value.wrapping_mul(b.value),
        is_batched: a.is_batched || b.is_batched,
    })
}

fn arithmetic(op_type: &str, a: Int, b: Int) -> Lowered<Int> {
    let same = a.is_batched == b.is_batched || a.value == 0 || b.value == 0;
    let is_batched = a.is_batched || b.is_batched;
    let bad = || Err(format!("{op_type} of the number of samples and another number"));
    match op_type {
        "Mul" => multiply(a, b),
        "Add" if same => Ok(Int {
            value: a.value + b.value,
            is_batched,
        }),
        "Sub" if same => Ok(Int {
            value: a.value - b.value,
            is_batched,
        }),
        "Div" if b.value != 0 => match (a.is_batched, b.is_batched) {
            (false, false) => Ok(Int::fixed(a.value / b.value)),
            (true, true) if a.value % b.value == 0 => Ok(Int::fixed(a.value / b.value)),
            (true, false) if a.value % b.value == 0 => Ok(Int {
                value: a.value / b.value,
                is_batched: true,
            }),
            _ => bad(),
        },
        "Mod" if b.value != 0 && !is_batched => Ok(Int::fixed(a.value.rem_euclid(b.value))),
        "Equal" => Ok(Int::fixed(i64::from(a == b))),
        _ => bad(),
    }
}

/// The node's result; none where it is not computed here.
fn compute(operation: &Operation<'_>, inputs: &[Known]) -> Lowered<Option<Known>> {
    let first = &inputs[0];
    let with_shape = |shape: Vec<usize>| Known {
        shape,
        values: first.values.clone(),
    };
    let axes = |at: usize| match inputs.get(at) {
        Some(known) => known.fixed_integers(),
        None => Ok(operation.integers("axes").unwrap_or_default().to_vec()),
    };
    Ok(Some(match operation.op_type {
        "Identity" | "Dropout" => first.clone(),
        "Cast" => cast(first, operation.integer("to").unwrap_or(1))?,
        "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Equal" | "Pow" | "Max" | "Min" => {
            let Some(result) = binary(operation.op_type, first, &inputs[1])? else {
                return Ok(None);
            };
            result
        }
        "Sqrt" | "Neg" | "Reciprocal" | "Floor" | "Ceil" | "Abs" | "Exp" => {
            let KnownValues::Floats(values) = &first.values else {
                return match (operation.op_type, first.fixed_integers()) {
                    ("Neg", Ok(values)) => Ok(Some(Known {
                        shape: first.shape.clone(),
                        values: KnownValues::Ints(values.iter().map(|value| Int::fixed(-value)).collect()),
                    })),
                    _ => Ok(None),
                };
            };
            let f: fn(f32) -> f32 = match operation.op_type {
                "Sqrt" => f32::sqrt,
                "Neg" => |x| -x,
                "Reciprocal" => |x| 1.0 / x,
                "Floor" => f32::floor,
                "Ceil" => f32::ceil,
                "Abs" => f32::abs,
                _ => f32::exp,
            };
            Known {
                shape: first.shape.clone(),
                values: KnownValues::Floats(values.iter().map(|x| f(*x)).collect()),
            }
        }
        "Unsqueeze" => {
            let axes = axes(1)?;
            let rank = (first.shape.len() + axes.len()) as i64;
            let mut axes: Vec<usize> = axes.iter().map(|axis| axis.rem_euclid(rank) as usize).collect();
            axes.sort_unstable();
            let mut shape = first.shape.clone();
            axes.into_iter().for_each(|axis| shape.insert(axis, 1));
            with_shape(shape)
        }
        "Squeeze" => {
            let axes = axes(1)?;
            let rank = first.shape.len() as i64;
            let is_gone =
                |axis: usize| axes.is_empty() || axes.iter().any(|a| a.rem_euclid(rank) as usize == axis);
            let sizes = first.shape.iter().enumerate();
            with_shape(
                sizes
                    .filter(|(axis, size)| !(**size == 1 && is_gone(*axis)))
                    .map(|(_, size)| *size)
                    .collect(),
            )
        }
        "Reshape" => {
            let target = inputs[1].fixed_integers()?;
            let total: usize = first.shape.iter().product();
            let known: i64 = target.iter().filter(|size| **size > 0).product();
            let sizes = target.iter().enumerate().map(|(axis, size)| match size {
                0 => first.shape.get(axis).copied().unwrap_or(1),
                -1 => total / (known.max(1) as usize),
                size => *size as usize,
            });
            let shape: Vec<usize> = sizes.collect();
            if shape.iter().product::<usize>() != total {
                return Err(format!("{:?} does not become {target:?}", first.shape));
            }
            with_shape(shape)
        }
        "Concat" if first.shape.len() == 1 => {
            let shape = vec![
                inputs
                    .iter()
                    .map(|known| known.shape.iter().product::<usize>())
                    .sum(),
            ];
            let values = if inputs
                .iter()
                .all(|known| matches!(known.values, KnownValues::Ints(_)))
            {
                let mut all = Vec::new();
                for known in inputs {
                    all.extend_from_slice(known.ints()?);
                }
                KnownValues::Ints(all)
            } else {
                return Ok(None);
            };
            Known { shape, values }
        }
        "Gather" if first.shape.len() == 1 => {
            let n = first.shape[0] as i64;
            let mut at = Vec::new();
            for index in inputs[1].fixed_integers()? {
                let index = if index < 0 { index + n } else { index };
                if !(0..n).contains(&index) {
                    return Err(format!("there is no element {index} of {n}"));
                }
                at.push(index as usize);
            }
            Known {
                shape: inputs[1].shape.clone(),
                values: pick(&first.values, at.into_iter()),
            }
        }
        "Slice" if first.shape.len() == 1 => {
            let n = first.shape[0] as i64;
            let one = |at: usize, name: &str, default: i64| match inputs.get(at) {
                Some(known) => Ok::<_, String>(known.fixed_integers()?.first().copied().unwrap_or(default)),
                None => Ok(operation
                    .integers(name)
                    .and_then(|found| found.first().copied())
                    .unwrap_or(default)),
            };
            let clamp = |at: i64| (if at < 0 { at + n } else { at }).clamp(0, n);
            let (start, end, step) = (
                clamp(one(1, "starts", 0)?),
                clamp(one(2, "ends", n)?),
                one(4, "steps", 1)?,
            );
            if step < 1 {
                return Ok(None);
            }
            let at: Vec<usize> = (start..end)
                .step_by(step as usize)
                .map(|at| at as usize)
                .collect();
            Known {
                shape: vec![at.len()],
                values: pick(&first.values, at.into_iter()),
            }
        }
        "ConstantOfShape" => {
            let shape: Vec<usize> = first
                .fixed_integers()?
                .iter()
                .map(|size| *size as usize)
                .collect();
            let n: usize = shape.iter().product();
            if n > LARGEST {
                return Ok(None);
            }
            let value = operation.constant().map(Known::from);
            let values = match value.map(|known| known.values) {
                Some(KnownValues::Ints(values)) => KnownValues::Ints(vec![values[0]; n]),
                Some(KnownValues::Floats(values)) => KnownValues::Floats(vec![values[0]; n]),
                None => KnownValues::Floats(vec![0.0; n]),
            };
            Known { shape, values }
        }
        "Where" => {
            let condition = first.ints()?;
            let (yes, no) = (inputs[1].ints(), inputs[2].ints());
            let (Ok(yes), Ok(no)) = (yes, no) else {
                return Ok(None);
            };
            let n = condition.len().max(yes.len()).max(no.len());
            let at = |values: &[Int], i: usize| if values.len() == 1 { values[0] } else { values[i] };
            if [condition.len(), yes.len(), no.len()]
                .iter()
                .any(|len| *len != 1 && *len != n)
            {
                return Ok(None);
            }
            let values = (0..n).map(|i| {
                if at(condition, i).value != 0 {
                    at(yes, i)
                } else {
                    at(no, i)
                }
            });
            Known {
                shape: [first, &inputs[1], &inputs[2]]
                    .iter()
                    .max_by_key(|k| k.shape.len())
                    .map(|k| k.shape.clone())
                    .unwrap_or_default(),
                values: KnownValues::Ints(values.collect()),
            }
        }
        "ReduceProd" => {
            let total = first
                .ints()?
                .iter()
                .try_fold(Int::fixed(1), |a, b| multiply(a, *b))?;
            let keeps = operation.integer("keepdims").unwrap_or(1) == 1;
            Known {
                shape: if keeps {
                    vec![1; first.shape.len()]
                } else {
                    Vec::new()
                },
                values: KnownValues::Ints(vec![total]),
            }
        }
        _ => return Ok(None),
    }))
}

fn pick(values: &KnownValues, at: impl Iterator<Item = usize>) -> KnownValues {
    match values {
        KnownValues::Ints(values) => KnownValues::Ints(at.map(|at| values[at]).collect()),
        KnownValues::Floats(values) => KnownValues::Floats(at.map(|at| values[at]).collect()),
    }
}

/// `to` is a `TensorProto.DataType`.
fn cast(from: &Known, to: i64) -> Lowered<Known> {
    let is_float = matches!(to, 1 | 10 | 11 | 16);
    let values = match &from.values {
        KnownValues::Ints(_) if is_float => {
            KnownValues::Floats(from.fixed_integers()?.iter().map(|value| *value as f32).collect())
        }
        KnownValues::Floats(values) if !is_float => {
            KnownValues::Ints(values.iter().map(|value| Int::fixed(*value as i64)).collect())
        }
        same => same.clone(),
    };
    Ok(Known {
        shape: from.shape.clone(),
        values,
    })
}

/// Of equal sizes, or one of them a single number.
fn binary(op_type: &str, a: &Known, b: &Known) -> Lowered<Option<Known>> {
    let [n_a, n_b] = [a, b].map(|known| known.shape.iter().product::<usize>());
    if n_a != n_b && n_a != 1 && n_b != 1 || a.shape.len().min(b.shape.len()) > 1 && a.shape != b.shape {
        return Ok(None);
    }
    let n = n_a.max(n_b);
    let shape = if (n_a, a.shape.len()) >= (n_b, b.shape.len()) {
        &a.shape
    } else {
        &b.shape
    };
    let values = match (&a.values, &b.values) {
        (KnownValues::Floats(a), KnownValues::Floats(b)) => {
            let f: fn(f32, f32) -> f32 = match op_type {
                "Add" => |a, b| a + b,
                "Sub" => |a, b| a - b,
                "Mul" => |a, b| a * b,
                "Div" => |a, b| a / b,
                "Pow" => f32::powf,
                "Max" => f32::max,
                "Min" => f32::min,
                _ => return Ok(None),
            };
            KnownValues::Floats((0..n).map(|i| f(a[i % n_a], b[i % n_b])).collect())
        }
        (KnownValues::Ints(a), KnownValues::Ints(b)) => {
            let values: Lowered<Vec<Int>> = (0..n)
                .map(|i| arithmetic(op_type, a[i % n_a], b[i % n_b]))
                .collect();
            KnownValues::Ints(values?)
        }
        _ => return Ok(None),
    };
    Ok(Some(Known {
        shape: shape.clone(),
        values,
    }))
}
