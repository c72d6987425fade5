//! What exporters took apart and what is faster together, found in the nodes.

use std::collections::{HashMap, HashSet};

use super::known::Known;
use super::{Lower, Lowered};
use crate::grad::weights::ParameterKind;
use crate::onnx::{Model, Operation};

/// Nodes that become one operator; numbers are places among the operations.
#[derive(Debug, Clone)]
pub(super) enum Pattern {
    /// A batch normalisation, what is added to it, and a clamping activation.
    Norm {
        norm: usize,
        residual: Option<String>,
        activation: Option<usize>,
    },
    /// A product and the bias behind it.
    Biased { product: usize, bias: String },
    /// `(x - mean) / √(mean of squares + eps) · scale + shift`
    LayerNorm {
        x: String,
        eps: f32,
        scale: String,
        shift: String,
    },
    /// `x/2 · (1 + erf(x/√2))`
    Gelu { x: String },
}

/// The patterns of a tail, each at its last node.
#[derive(Debug, Default)]
pub(super) struct Fused {
    patterns: HashMap<usize, (Pattern, String)>,
    parts: HashSet<usize>,
}

struct Finder<'f, 'm> {
    model: &'f Model,
    operations: &'f [Operation<'m>],
    producers: HashMap<&'f str, usize>,
    consumers: HashMap<&'f str, Vec<usize>>,
    outputs: &'f [&'f str],
}

impl Fused {
    pub(super) fn find(model: &Model, operations: &[Operation<'_>], outputs: &[&str]) -> Fused {
        let mut finder = Finder {
            model,
            operations,
            producers: HashMap::new(),
            consumers: HashMap::new(),
            outputs,
        };
        for (idx, operation) in operations.iter().enumerate() {
            for name in operation.outputs {
                finder.producers.insert(name, idx);
            }
            for name in operation.inputs {
                finder.consumers.entry(name).or_default().push(idx);
            }
        }
        let mut fused = Fused::default();
        for (idx, operation) in operations.iter().enumerate() {
            let found = match operation.op_type {
                "BatchNormalization" => finder.norm(idx),
                "MatMul" => finder.biased(idx),
                "Sqrt" => finder.layer_norm(idx),
                "Erf" => finder.gelu(idx),
                _ => None,
            };
            let Some((pattern, nodes)) = found else { continue };
            let Some((last, parts)) = nodes.split_last() else {
                continue;
            };
            let is_taken = |at: &usize| fused.parts.contains(at) || fused.patterns.contains_key(at);
            if nodes.iter().any(is_taken) {
                continue;
            }
            fused.parts.extend(parts);
            fused
                .patterns
                .insert(*last, (pattern, operations[*last].outputs[0].clone()));
        }
        fused
    }

    /// Whether a node is computed with a later one.
    pub(super) fn is_part(&self, idx: usize) -> bool {
        self.parts.contains(&idx)
    }

    /// The pattern that ends here, and the tensor that it makes.
    pub(super) fn at(&self, idx: usize) -> Option<&(Pattern, String)> {
        self.patterns.get(&idx)
    }
}

/// A pattern and its nodes, the last of which is where it is computed.
type Found = Option<(Pattern, Vec<usize>)>;

impl<'f> Finder<'f, '_> {
    fn made_by(&self, name: &str, op_type: &str) -> Option<usize> {
        let idx = *self.producers.get(name)?;
        (self.operations[idx].op_type == op_type).then_some(idx)
    }

    /// The node that alone reads a node's result.
    fn next(&self, idx: usize) -> Option<usize> {
        let output = self.operations[idx].outputs.first()?.as_str();
        match self.consumers.get(output)?.as_slice() {
            [next] if !self.outputs.contains(&output) => Some(*next),
            _ => None,
        }
    }

    fn next_of(&self, idx: usize, op_type: &str) -> Option<usize> {
        self.next(idx)
            .filter(|next| self.operations[*next].op_type == op_type)
    }

    fn input(&self, idx: usize, at: usize) -> Option<&'f str> {
        self.operations[idx].inputs.get(at).map(String::as_str)
    }

    /// The input of a node of two that is not the result of `of`.
    fn other(&self, idx: usize, of: usize) -> Option<&'f str> {
        let own = self.operations[of].outputs.first()?;
        let [a, b] = self.operations[idx].inputs else {
            return None;
        };
        match (a == own, b == own) {
            (true, false) => Some(b),
            (false, true) => Some(a),
            _ => None,
        }
    }

    fn scalar(&self, name: &str) -> Option<f32> {
        let numbers = match self.made_by(name, "Constant") {
            Some(idx) => self.operations[idx].constant(),
            None => self.model.numbers(name),
        };
        Known::from(numbers?).scalar()
    }

    fn is_about(&self, name: &str, value: f32) -> bool {
        self.scalar(name)
            .is_some_and(|found| (found - value).abs() < 1e-5)
    }

    fn parameter_rank(&self, name: &str) -> Option<usize> {
        self.model.float_initializer(name).map(<[usize]>::len)
    }

    fn norm(&self, norm: usize) -> Found {
        let is_clamp = |idx: &usize| matches!(self.operations[*idx].op_type, "Relu" | "Clip");
        let mut nodes = vec![norm];
        let mut residual = None;
        if let Some(add) = self.next_of(norm, "Add") {
            // A result of one number per channel would be a bias, not a residual.
            residual = self
                .other(add, norm)
                .filter(|name| self.producers.contains_key(name))
                .map(str::to_owned);
            nodes.extend(residual.is_some().then_some(add));
        }
        let last = nodes[nodes.len() - 1];
        let activation = self.next(last).filter(is_clamp);
        nodes.extend(activation);
        (nodes.len() > 1).then_some((
            Pattern::Norm {
                norm,
                residual,
                activation,
            },
            nodes,
        ))
    }

    fn biased(&self, product: usize) -> Found {
        let add = self.next_of(product, "Add")?;
        let bias = self.other(add, product)?;
        (self.parameter_rank(bias) == Some(1)).then_some((
            Pattern::Biased {
                product,
                bias: bias.to_owned(),
            },
            vec![product, add],
        ))
    }

    fn is_mean_of_last(&self, idx: usize) -> bool {
        let operation = &self.operations[idx];
        let of_input = || {
            let name = operation.inputs.get(1)?;
            let numbers = match self.made_by(name, "Constant") {
                Some(idx) => self.operations[idx].constant(),
                None => self.model.numbers(name),
            };
            Known::from(numbers?).fixed_integers().ok()
        };
        let axes = operation.integers("axes").map(<[i64]>::to_vec).or_else(of_input);
        axes.as_deref() == Some(&[-1]) && operation.integer("keepdims").unwrap_or(1) == 1
    }

    fn layer_norm(&self, root: usize) -> Found {
        let add_eps = self.made_by(self.input(root, 0)?, "Add")?;
        let [a, b] = [self.input(add_eps, 0)?, self.input(add_eps, 1)?];
        let (var, eps) = match (self.scalar(a), self.scalar(b)) {
            (None, Some(eps)) => (a, eps),
            (Some(eps), None) => (b, eps),
            _ => return None,
        };
        let var = self.made_by(var, "ReduceMean")?;
        let squares = self.input(var, 0)?;
        let (square, centred) = match self.made_by(squares, "Pow") {
            Some(power) if self.is_about(self.input(power, 1)?, 2.0) => (power, self.input(power, 0)?),
            _ => {
                let product = self.made_by(squares, "Mul")?;
                let same = self.input(product, 0)? == self.input(product, 1)?;
                (product, same.then(|| self.input(product, 0)).flatten()?)
            }
        };
        let subtract = self.made_by(centred, "Sub")?;
        let mean = self.made_by(self.input(subtract, 1)?, "ReduceMean")?;
        let x = self.input(subtract, 0)?;
        let quotient = self.next_of(root, "Div")?;
        let scaled = self.next_of(quotient, "Mul")?;
        let shifted = self.next_of(scaled, "Add")?;
        let (scale, shift) = (self.other(scaled, quotient)?, self.other(shifted, scaled)?);
        let inner = [mean, var, square, add_eps, root];
        let fits = self.input(mean, 0)? == x
            && self.input(quotient, 0)? == centred
            && self.is_mean_of_last(mean)
            && self.is_mean_of_last(var)
            && self.parameter_rank(scale) == Some(1)
            && self.parameter_rank(shift) == Some(1)
            && inner.iter().all(|idx| self.next(*idx).is_some())
            && self
                .consumers
                .get(centred)?
                .iter()
                .all(|idx| [square, quotient].contains(idx));
        fits.then(|| {
            (
                Pattern::LayerNorm {
                    x: x.to_owned(),
                    eps,
                    scale: scale.to_owned(),
                    shift: shift.to_owned(),
                },
                vec![
                    mean, subtract, square, var, add_eps, root, quotient, scaled, shifted,
                ],
            )
        })
    }

    fn gelu(&self, erf: usize) -> Found {
        let scaled = *self.producers.get(self.input(erf, 0)?)?;
        let x = self.input(scaled, 0)?;
        let factor = self.input(scaled, 1)?;
        let is_scaled = match self.operations[scaled].op_type {
            "Div" => self.is_about(factor, std::f32::consts::SQRT_2),
            "Mul" => self.is_about(factor, std::f32::consts::FRAC_1_SQRT_2),
            _ => false,
        };
        let one = self.next_of(erf, "Add")?;
        let product = self.next_of(one, "Mul")?;
        if !is_scaled || self.next(scaled) != Some(erf) || !self.is_about(self.other(one, erf)?, 1.0) {
            return None;
        }
        let factor = self.other(product, one)?;
        let pattern = Pattern::Gelu { x: x.to_owned() };
        if factor == x {
            let half = self.next_of(product, "Mul")?;
            self.is_about(self.other(half, product)?, 0.5)
                .then_some((pattern, vec![scaled, erf, one, product, half]))
        } else {
            let half = self.made_by(factor, "Mul")?;
            let [a, b] = [self.input(half, 0)?, self.input(half, 1)?];
            let is_half = a == x && self.is_about(b, 0.5) || b == x && self.is_about(a, 0.5);
            (is_half && self.next(half) == Some(product))
                .then_some((pattern, vec![scaled, erf, one, half, product]))
        }
    }
}

impl Lower<'_> {
    pub(super) fn pattern(
        &mut self,
        operations: &[Operation<'_>],
        (pattern, output): &(Pattern, String),
    ) -> Lowered<()> {
        let tensor = match pattern {
            Pattern::Norm {
                norm,
                residual,
                activation,
            } => {
                self.layer = operations[*norm].name.to_owned();
                let clamp = match activation {
                    Some(idx) => Some(self.bounds(&operations[*idx])?),
                    None => None,
                };
                self.batch_norm(&operations[*norm], residual.as_deref(), clamp)?
            }
            Pattern::Biased { product, bias } => {
                self.layer = operations[*product].name.to_owned();
                self.product(&operations[*product], Some(bias))?
            }
            Pattern::LayerNorm { x, eps, scale, shift } => self.layer_norm(x, scale, Some(shift), *eps)?,
            Pattern::Gelu { x } => {
                let x = self.tensor_as(x, ParameterKind::Other)?;
                self.unary(&x, crate::grad::op::UnaryKind::Gelu)
            }
        };
        self.set(output, tensor);
        Ok(())
    }
}
