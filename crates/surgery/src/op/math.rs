//! Arithmetic: `let cls_token = cls_token + pos_embed[:,0:1]`, `scale down_proj.weight 0.5`.

use super::init::fresh;
use super::matching::{no_match, record_error};
use super::shape::SliceSpec;
use super::{map_tensors, matched};
use crate::Pattern;
use crate::lazy::{LazyStateDict, LazyTensor, NanPolicy, is_convertible, promote};
use crate::plan::args::{Args, At, Patterns};
use crate::plan::{Effect, Fault, Operation, Workspace};

/// `scale down_proj.weight 0.5`
#[derive(Debug)]
struct Scale {
    patterns: Patterns,
    is_optional: bool,
    factor: f64,
}

pub(crate) fn parse_scale(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    Ok(Box::new(Scale {
        patterns: args.patterns(1)?,
        is_optional: args.is_optional,
        factor: args.value("a factor")?,
    }))
}

impl Operation for Scale {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let mut names = matched(&work.tensors, &self.patterns, self.is_optional)?;
        names.retain(|&place| {
            let tensor = work.tensors.at(place).and_then(|(_, entry)| entry.tensor());
            tensor.is_none_or(|tensor| tensor.dtype().is_float())
        });
        map_tensors(&mut work.tensors, &names, |name, tensor| {
            numbers(name, tensor)?;
            Ok(LazyTensor::sum(
                tensor.dtype(),
                vec![(self.factor, tensor.clone())],
                NanPolicy::Allow,
            ))
        })?;
        Ok(Effect::lossy(format!(
            "{} scaled by {}",
            names.len(),
            self.factor
        )))
    }
}

fn numbers(name: &str, tensor: &LazyTensor) -> Result<(), Fault> {
    if is_convertible(tensor.dtype()) {
        return Ok(());
    }
    Err(Fault::new(format!(
        "`{name}` is {}, which is not calculated with",
        tensor.dtype()
    )))
}

/// `let NAME = EXPRESSION`
#[derive(Debug)]
struct Let {
    name: String,
    expression: Expression,
    span: std::ops::Range<usize>,
}

pub(crate) fn parse_let(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    let name = args.word("a name")?.value;
    if !args.take("=") {
        return Err(Fault::new(format!("`=` is missing behind `{name}`")).at(&args.verb_span()));
    }
    if args.is_empty() {
        return Err(Fault::new("an expression is missing behind `=`").at(&args.verb_span()));
    }
    let text = args.rest();
    let expression = Parser::new(&text.value)
        .whole()
        .map_err(|reason| Fault::new(reason).at(&text.span))?;
    Ok(Box::new(Let {
        name,
        expression,
        span: text.span,
    }))
}

impl Operation for Let {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let tensor = match self
            .expression
            .value(&work.tensors)
            .map_err(|fault| fault.at(&self.span))?
        {
            Value::Tensor(tensor) => tensor,
            Value::Number(_) => {
                return Err(Fault::new("the expression is a number and no tensor").at(&self.span));
            }
        };
        super::matching::check_size(&self.name, &tensor).map_err(|fault| fault.at(&self.span))?;
        let summary = format!("{} {:?}", tensor.dtype(), tensor.shape());
        if work.tensors.tensor(&self.name).is_some() {
            work.tensors.replace_tensor(&self.name, &tensor);
        } else {
            let entry = fresh(&work.tensors, &self.name, tensor);
            work.tensors.insert(self.name.clone(), entry);
        }
        Ok(Effect::lossy(summary))
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Expression {
    Number(f64),
    Tensor { name: String, index: Vec<Index> },
    Binary(char, Box<Expression>, Box<Expression>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Index {
    One(i64),
    Range(SliceSpec),
}

enum Value {
    Number(f64),
    Tensor(LazyTensor),
}

/// Sums of products, by precedence.
struct Parser<'t> {
    text: &'t str,
    at: usize,
    n_signs: usize,
}

impl<'t> Parser<'t> {
    fn new(text: &'t str) -> Parser<'t> {
        Parser {
            text,
            at: 0,
            n_signs: 0,
        }
    }
}

impl Parser<'_> {
    fn whole(mut self) -> Result<Expression, String> {
        let expression = self.sum(0)?;
        match self.peek() {
            None => Ok(expression),
            Some(char) => Err(format!("`{char}` is not understood in `{}`", self.text)),
        }
    }

    fn peek(&mut self) -> Option<char> {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
        self.text[self.at..].chars().next()
    }

    fn take(&mut self, wanted: &[char]) -> Option<char> {
        let char = self.peek().filter(|char| wanted.contains(char))?;
        self.at += char.len_utf8();
        Some(char)
    }

    fn sum(&mut self, depth: usize) -> Result<Expression, String> {
        /// Parentheses within parentheses; nobody writes more, and the stack is safe.
        const MAX_DEPTH: usize = 100;
        if depth > MAX_DEPTH {
            return Err("the parentheses are too deep".to_owned());
        }
        let mut left = self.product(depth)?;
        while let Some(sign) = self.take(&['+', '-']) {
            self.count()?;
            left = Expression::Binary(sign, Box::new(left), Box::new(self.product(depth)?));
        }
        Ok(left)
    }

    fn product(&mut self, depth: usize) -> Result<Expression, String> {
        let mut left = self.factor(depth)?;
        while let Some(sign) = self.take(&['*', '/']) {
            self.count()?;
            left = Expression::Binary(sign, Box::new(left), Box::new(self.factor(depth)?));
        }
        Ok(left)
    }

    /// Nobody writes more, and the stack is safe.
    fn count(&mut self) -> Result<(), String> {
        const MAX_SIGNS: usize = 200;
        self.n_signs += 1;
        if self.n_signs > MAX_SIGNS {
            return Err(format!("an expression of more than {MAX_SIGNS} operations"));
        }
        Ok(())
    }

    fn factor(&mut self, depth: usize) -> Result<Expression, String> {
        if self.take(&['-']).is_some() {
            self.count()?;
            let factor = self.factor(depth + 1)?;
            return Ok(Expression::Binary(
                '*',
                Box::new(Expression::Number(-1.0)),
                Box::new(factor),
            ));
        }
        if self.take(&['(']).is_some() {
            let inside = self.sum(depth + 1)?;
            return match self.take(&[')']) {
                Some(_) => Ok(inside),
                None => Err(format!("a parenthesis is not closed in `{}`", self.text)),
            };
        }
        let first = self
            .peek()
            .ok_or_else(|| format!("`{}` ends too early", self.text))?;
        let rest = &self.text[self.at..];
        if first.is_ascii_digit() || first == '.' {
            let is_of_number = |(i, char): &(usize, char)| {
                char.is_ascii_digit()
                    || matches!(char, '.' | 'e' | 'E')
                    || (*i > 0 && matches!(char, '-' | '+') && rest[..*i].ends_with(['e', 'E']))
            };
            let len: usize = rest
                .char_indices()
                .take_while(is_of_number)
                .map(|(_, char)| char.len_utf8())
                .sum();
            let number = rest[..len]
                .parse()
                .map_err(|_| format!("`{}` is no number", &rest[..len]))?;
            self.at += len;
            return Ok(Expression::Number(number));
        }
        let name = if first == '"' {
            let end = rest[1..]
                .find('"')
                .ok_or_else(|| format!("a quote is not closed in `{}`", self.text))?;
            self.at += end + 2;
            rest[1..=end].to_owned()
        } else {
            let is_of_name = |char: char| char.is_alphanumeric() || matches!(char, '_' | '.');
            let len = rest.find(|char| !is_of_name(char)).unwrap_or(rest.len());
            if len == 0 {
                return Err(format!("`{first}` is not understood in `{}`", self.text));
            }
            self.at += len;
            rest[..len].to_owned()
        };
        let mut index = Vec::new();
        if self.take(&['[']).is_some() {
            let rest = &self.text[self.at..];
            let end = rest
                .find(']')
                .ok_or_else(|| format!("a bracket is not closed in `{}`", self.text))?;
            for item in rest[..end].split(',') {
                let item = item.trim();
                let one = item.parse().map(Index::One).ok();
                let range = || SliceSpec::parse(item).map(Index::Range);
                index.push(
                    one.or_else(range)
                        .ok_or_else(|| format!("`{item}` is no index"))?,
                );
            }
            self.at += end + 1;
        }
        Ok(Expression::Tensor { name, index })
    }
}

impl Expression {
    fn value(&self, tensors: &LazyStateDict) -> Result<Value, Fault> {
        match self {
            Expression::Number(number) => Ok(Value::Number(*number)),
            Expression::Tensor { name, index } => {
                let Some(entry) = tensors.get(name) else {
                    let pattern = At {
                        value: Pattern::literal(name),
                        span: 0..0,
                    };
                    return Err(Fault {
                        span: None,
                        ..no_match(tensors, &pattern)
                    });
                };
                let tensor = entry
                    .tensor()
                    .ok_or_else(|| Fault::from(record_error(name, entry)))?;
                numbers(name, tensor)?;
                indexed(name, tensor, index).map(Value::Tensor)
            }
            Expression::Binary(sign, left, right) => {
                binary(*sign, left.value(tensors)?, right.value(tensors)?).map_err(Fault::new)
            }
        }
    }
}

fn indexed(name: &str, tensor: &LazyTensor, index: &[Index]) -> Result<LazyTensor, Fault> {
    if index.len() > tensor.shape().len() {
        return Err(Fault::new(format!(
            "`{name}` {:?} has no {} dimensions",
            tensor.shape(),
            index.len()
        )));
    }
    let mut view = tensor.clone();
    let mut dim = 0;
    for item in index {
        let size = view.shape()[dim];
        match item {
            Index::Range(range) => {
                let (start, len) = range.resolve(size);
                view = view.slice(dim, start, len, range.step);
                dim += 1;
            }
            Index::One(at) => {
                let at = crate::lazy::resolve_dim(*at, size).ok_or_else(|| {
                    Fault::new(format!(
                        "`{name}` {:?} has no index {at} in dimension {dim}",
                        tensor.shape()
                    ))
                })?;
                view = view.slice(dim, at, 1, 1);
                let mut shape = view.shape().to_vec();
                shape.remove(dim);
                view = view.reshape(&shape);
            }
        }
    }
    Ok(view)
}

fn binary(sign: char, left: Value, right: Value) -> Result<Value, String> {
    // As torch: an integer that is divided, or meets a fraction, becomes float32.
    let floated = |tensor: LazyTensor, is_fraction: bool| {
        let is_integer = !tensor.dtype().is_float();
        if is_integer && is_fraction {
            tensor.cast(pth::DType::Float32)
        } else {
            tensor
        }
    };
    let weighted = |weight: f64, tensor: LazyTensor| {
        let tensor = floated(tensor, weight.fract() != 0.0);
        let dtype = tensor.dtype();
        LazyTensor::sum(dtype, vec![(weight, tensor)], NanPolicy::Allow)
    };
    Ok(match (sign, left, right) {
        ('+', Value::Number(a), Value::Number(b)) => Value::Number(a + b),
        ('-', Value::Number(a), Value::Number(b)) => Value::Number(a - b),
        ('*', Value::Number(a), Value::Number(b)) => Value::Number(a * b),
        (_, Value::Number(a), Value::Number(b)) => Value::Number(a / b),
        ('*', Value::Number(factor), Value::Tensor(tensor))
        | ('*', Value::Tensor(tensor), Value::Number(factor)) => Value::Tensor(weighted(factor, tensor)),
        ('/', Value::Tensor(tensor), Value::Number(divisor)) => {
            let tensor = floated(tensor, true);
            let filled = LazyTensor::filled(tensor.dtype(), tensor.shape(), divisor);
            Value::Tensor(elementwise('/', tensor, filled)?)
        }
        (sign, Value::Number(number), Value::Tensor(tensor)) => {
            let tensor = floated(tensor, sign == '/' || number.fract() != 0.0);
            let filled = LazyTensor::filled(tensor.dtype(), tensor.shape(), number);
            Value::Tensor(elementwise(sign, filled, tensor)?)
        }
        (sign, Value::Tensor(tensor), Value::Number(number)) => {
            let tensor = floated(tensor, number.fract() != 0.0);
            let filled = LazyTensor::filled(tensor.dtype(), tensor.shape(), number);
            Value::Tensor(elementwise(sign, tensor, filled)?)
        }
        (sign, Value::Tensor(a), Value::Tensor(b)) => Value::Tensor(elementwise(
            sign,
            floated(a, sign == '/'),
            floated(b, sign == '/'),
        )?),
    })
}

fn elementwise(sign: char, a: LazyTensor, b: LazyTensor) -> Result<LazyTensor, String> {
    let shape = broadcast(a.shape(), b.shape())
        .ok_or_else(|| format!("shapes {:?} and {:?} do not fit each other", a.shape(), b.shape()))?;
    let dtype = promote(a.dtype(), b.dtype());
    let (a, b) = (a.expand(&shape), b.expand(&shape));
    Ok(match sign {
        '+' => LazyTensor::sum(dtype, vec![(1.0, a), (1.0, b)], NanPolicy::Allow),
        '-' => LazyTensor::sum(dtype, vec![(1.0, a), (-1.0, b)], NanPolicy::Allow),
        sign => LazyTensor::computed(dtype, &shape, vec![a, b], move |inputs| {
            let pairs = inputs[0].iter().zip(&inputs[1]);
            Ok(pairs
                .map(|(a, b)| if sign == '*' { a * b } else { a / b })
                .collect())
        }),
    })
}

/// The shape that both are repeated to, as `torch.broadcast_shapes`.
fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let size = |shape: &[usize], dim: usize| (dim + shape.len()).checked_sub(rank).map_or(1, |at| shape[at]);
    (0..rank)
        .map(|dim| match (size(a, dim), size(b, dim)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use pth::DType;

    use super::*;
    use crate::lazy::LazyEntry;

    fn tensors() -> LazyStateDict {
        let mut tensors = LazyStateDict::default();
        let row = |values: &[f32], shape: &[usize]| {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            LazyEntry::unmarked(LazyTensor::stored(
                pth::Tensor::from_bytes(DType::Float32, shape, bytes).unwrap(),
            ))
        };
        tensors.insert("a.w", row(&[1.0, 2.0, 3.0, 4.0], &[2, 2]));
        tensors.insert("b", row(&[10.0, 20.0], &[2]));
        tensors
    }

    fn check(text: &str, shape: &[usize], expected: &[f64]) {
        let expression = Parser::new(text).whole().unwrap();
        let Ok(Value::Tensor(tensor)) = expression.value(&tensors()) else {
            panic!("{text}")
        };
        assert_eq!(tensor.shape(), shape, "{text}");
        assert_eq!(tensor.to_f64().unwrap(), expected, "{text}");
    }

    #[test]
    fn expressions_are_those_of_arithmetic() {
        check("a.w + b", &[2, 2], &[11.0, 22.0, 13.0, 24.0]);
        check("2 * a.w - a.w / 2", &[2, 2], &[1.5, 3.0, 4.5, 6.0]);
        check("a.w[0] * b", &[2], &[10.0, 40.0]);
        check("-(b - 1e1)", &[2], &[0.0, -10.0]);
        check("a.w[:,1:] / (1 + 1)", &[2, 1], &[1.0, 2.0]);
        check("1 / b", &[2], &[f64::from(0.1_f32), f64::from(0.05_f32)]);
        check("\"a.w\"[-1, ::2]", &[1], &[3.0]);
    }

    #[test]
    fn what_is_no_expression_is_told() {
        for (text, reason) in [
            ("a +", "`a +` ends too early"),
            ("(a", "a parenthesis is not closed in `(a`"),
            ("a ? b", "`?` is not understood in `a ? b`"),
            ("a[x]", "`x` is no index"),
        ] {
            assert_eq!(Parser::new(text).whole().unwrap_err(), reason);
        }
        let missing = Parser::new("c").whole().unwrap().value(&tensors());
        assert!(missing.is_err());
    }
}
