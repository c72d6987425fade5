//! Functions of each element, and arithmetic with broadcasting.

use super::known::Known;
use super::{Entity, Layout, Lower, Lowered, Tensor};
use crate::grad::op::{Binary, BinaryKind, Unary, UnaryKind};
use crate::grad::shape::{Dim, describe};
use crate::grad::weights::ParameterKind;
use crate::onnx::Operation;

impl Lower<'_> {
    pub(super) fn unary(&mut self, x: &Tensor, kind: UnaryKind) -> Tensor {
        self.emit(Unary(kind), vec![x.source], x.shape.clone(), x.layout)
    }

    /// The bounds of a `Relu` or a `Clip`.
    pub(super) fn bounds(&mut self, operation: &Operation<'_>) -> Lowered<[f32; 2]> {
        if operation.op_type == "Relu" {
            return Ok([0.0, f32::INFINITY]);
        }
        let mut bounds = [f32::NEG_INFINITY, f32::INFINITY];
        for (at, (bound, attribute)) in bounds.iter_mut().zip(["min", "max"]).enumerate() {
            *bound = match operation.inputs.get(at + 1).filter(|name| !name.is_empty()) {
                Some(name) => {
                    let known = self.known(name)?.and_then(|known| known.scalar());
                    known.ok_or_else(|| format!("its bound `{name}` is not known beforehand"))?
                }
                None => operation.float(attribute).unwrap_or(*bound),
            };
        }
        Ok(bounds)
    }

    /// Lowers the node if it is one of these; says whether it was.
    pub(super) fn elementwise(&mut self, operation: &Operation<'_>) -> Lowered<bool> {
        let float = |name: &str, default: f32| operation.float(name).unwrap_or(default);
        let kind = match operation.op_type {
            "Identity" | "Dropout" | "Cast" => {
                let is_float = matches!(operation.integer("to"), None | Some(1 | 10 | 11 | 16));
                if !is_float {
                    return Err("it makes integers of fractions".to_owned());
                }
                let x = self.tensor(&operation.inputs[0])?;
                self.set(&operation.outputs[0], x);
                return Ok(true);
            }
            "Relu" | "Clip" => {
                let [low, high] = self.bounds(operation)?;
                UnaryKind::Clip { low, high }
            }
            "LeakyRelu" => UnaryKind::LeakyRelu {
                slope: float("alpha", 0.01),
            },
            "Elu" => UnaryKind::Elu {
                alpha: float("alpha", 1.0),
            },
            "HardSigmoid" => UnaryKind::HardSigmoid {
                alpha: float("alpha", 0.2),
                beta: float("beta", 0.5),
            },
            "HardSwish" => UnaryKind::HardSwish,
            "Sigmoid" => UnaryKind::Sigmoid,
            "Swish" if float("alpha", 1.0) == 1.0 => UnaryKind::Silu,
            "Tanh" => UnaryKind::Tanh,
            "Softplus" => UnaryKind::Softplus,
            "Gelu" if operation.text("approximate") == Some("tanh") => UnaryKind::GeluTanh,
            "Gelu" => UnaryKind::Gelu,
            "FastGelu" if operation.inputs.len() == 1 => UnaryKind::GeluTanh,
            "Erf" => UnaryKind::Erf,
            "Exp" => UnaryKind::Exp,
            "Log" => UnaryKind::Log,
            "Sqrt" => UnaryKind::Sqrt,
            "Reciprocal" => UnaryKind::Reciprocal,
            "Neg" => UnaryKind::Neg,
            "Abs" => UnaryKind::Abs,
            "Pow" => {
                let exponent = self.known(&operation.inputs[1])?;
                match exponent.as_ref().and_then(number) {
                    Some(2.0) => UnaryKind::Square,
                    Some(0.5) => UnaryKind::Sqrt,
                    Some(-1.0) => UnaryKind::Reciprocal,
                    Some(exponent) => UnaryKind::Power { exponent },
                    None => return Err("its exponent is not known beforehand".to_owned()),
                }
            }
            "Add" | "Sub" | "Mul" | "Div" => {
                let tensor = self.arithmetic(operation)?;
                self.set(&operation.outputs[0], tensor);
                return Ok(true);
            }
            _ => return Ok(false),
        };
        let x = self.tensor(&operation.inputs[0])?;
        let tensor = self.unary(&x, kind);
        self.set(&operation.outputs[0], tensor);
        Ok(true)
    }

    fn arithmetic(&mut self, operation: &Operation<'_>) -> Lowered<Tensor> {
        let [a, b] = operation.inputs else {
            return Err("it has not two inputs".to_owned());
        };
        let kinds = match operation.op_type {
            "Add" => [ParameterKind::Other, ParameterKind::Bias],
            _ => [ParameterKind::Other; 2],
        };
        let sides = [self.entity(a, kinds[0])?, self.entity(b, kinds[1])?];
        let scalars = [&sides[0], &sides[1]].map(|side| match side {
            Entity::Known(known) => known.scalar(),
            Entity::Tensor(_) => None,
        });
        let scale = |factor: f32, offset: f32| UnaryKind::Scale { factor, offset };
        let kind = match operation.op_type {
            "Add" => BinaryKind::Add,
            "Sub" => BinaryKind::Sub,
            "Mul" => BinaryKind::Mul,
            _ => BinaryKind::Div,
        };
        let with_scalar = match (&sides, scalars) {
            ([Entity::Tensor(x), _], [_, Some(value)]) => Some((
                x,
                match kind {
                    BinaryKind::Add => scale(1.0, value),
                    BinaryKind::Sub => scale(1.0, -value),
                    BinaryKind::Mul => scale(value, 0.0),
                    BinaryKind::Div => scale(1.0 / value, 0.0),
                },
            )),
            ([_, Entity::Tensor(x)], [Some(value), _]) => match kind {
                BinaryKind::Add => Some((x, scale(1.0, value))),
                BinaryKind::Sub => Some((x, scale(-1.0, value))),
                BinaryKind::Mul => Some((x, scale(value, 0.0))),
                BinaryKind::Div => None,
            },
            _ => None,
        };
        if let Some((x, kind)) = with_scalar {
            return Ok(self.unary(x, kind));
        }
        let (a, b) = (self.tensor_as(a, kinds[0])?, self.tensor_as(b, kinds[1])?);
        self.binary(kind, &a, &b)
    }

    pub(super) fn binary(&mut self, kind: BinaryKind, a: &Tensor, b: &Tensor) -> Lowered<Tensor> {
        let rank = a.shape.len().max(b.shape.len());
        let is_picture = [a, b].iter().any(|side| side.layout == Layout::ChannelsLast);
        let mut sides = [a.clone(), b.clone()];
        for side in &mut sides {
            if !is_picture {
                *side = self.plain(side)?;
            }
            let missing = rank - side.shape.len();
            if missing > 0 {
                *side = self.plain(side)?;
                side.shape.splice(0..0, vec![Dim::ONE; missing]);
            }
            if is_picture {
                *side = self.channels_last(side)?;
            }
        }
        let [a, b] = &sides;
        let mut shape = Vec::with_capacity(rank);
        let mut has = [vec![true; rank], vec![true; rank]];
        for (axis, (&of_a, &of_b)) in a.shape.iter().zip(&b.shape).enumerate() {
            shape.push(match (of_a == of_b, of_a == Dim::ONE, of_b == Dim::ONE) {
                (true, ..) => of_a,
                (_, true, _) => {
                    has[0][axis] = false;
                    of_b
                }
                (_, _, true) => {
                    has[1][axis] = false;
                    of_a
                }
                _ => return Err(format!("{} with {}", describe(&a.shape), describe(&b.shape))),
            });
        }
        let layout = if is_picture {
            Layout::ChannelsLast
        } else {
            Layout::Plain
        };
        let mut memory = shape.clone();
        if is_picture {
            for list in &mut has {
                list.swap(1, 2);
                list.swap(2, 3);
            }
            memory.swap(1, 2);
            memory.swap(2, 3);
        }
        let inputs = vec![a.source, b.source];
        let op = Binary {
            kind,
            shape: memory,
            has,
        };
        Ok(self.emit(op, inputs, shape, layout))
    }
}

/// A fraction or an integer that is the only one.
fn number(known: &Known) -> Option<f32> {
    known
        .scalar()
        .or_else(|| match known.fixed_integers().ok()?.as_slice() {
            [value] => Some(*value as f32),
            _ => None,
        })
}
