//! Operators on numbers, lists and tensors.

use super::Interpreter;
use crate::template::fault::Fault;
use crate::template::functions;
use crate::template::value::Value;

/// Items of one list.
const MAX_ITEMS: usize = 1_000_000;

impl Interpreter<'_> {
    pub(super) fn unary(&mut self, sign: &str, value: &Value) -> Result<Value, Fault> {
        match (sign, value) {
            ("not", value) => Ok(Value::Bool(!self.truth(value)?)),
            ("-", Value::Float(value)) => Ok(Value::Float(-value)),
            ("-", Value::Tensor(_)) => self.binary("*", value, &Value::Int(-1)),
            ("+", value) if value.float().is_some() => Ok(value.clone()),
            ("-", value) if value.int().is_some() => {
                let negated = value.int().and_then(i64::checked_neg);
                negated.map(Value::Int).ok_or_else(too_large)
            }
            _ => Err(Fault::new(format!("`{sign}` is not for {}", value.kind()))),
        }
    }

    pub(super) fn binary(&mut self, sign: &str, left: &Value, right: &Value) -> Result<Value, Fault> {
        let odd = || {
            Fault::new(format!(
                "`{sign}` is not for {} and {}",
                left.kind(),
                right.kind()
            ))
        };
        if matches!(left, Value::Tensor(_)) || matches!(right, Value::Tensor(_)) {
            return functions::arithmetic(self, sign, left, right);
        }
        match (left, right) {
            (Value::Batch(a), right) if right.int().is_some() || matches!(right, Value::Batch(_)) => {
                return batch(sign, *a, right);
            }
            (left, Value::Batch(b)) if sign == "*" && left.int().is_some() => {
                return batch("*", *b, left);
            }
            (Value::Str(a), Value::Str(b)) if sign == "+" => return Ok(Value::str(&format!("{a}{b}"))),
            _ => {}
        }
        if let (Some(a), Some(b)) = (left.int(), right.int()) {
            return ints(sign, a, b);
        }
        if let (Some(a), Some(b)) = (left.float(), right.float()) {
            return floats(sign, a, b);
        }
        let is_tuple = matches!((left, right), (Value::Tuple(_), _) | (_, Value::Tuple(_)));
        let many = |items: Vec<Value>| {
            if is_tuple {
                Value::tuple(items)
            } else {
                Value::list(items)
            }
        };
        match (sign, left.items(), right.items()) {
            ("+", Some(mut a), Some(b)) => {
                a.extend(b);
                Ok(many(a))
            }
            ("*", Some(items), None) | ("*", None, Some(items)) => {
                let times = left.int().or(right.int()).ok_or_else(odd)?;
                let times = usize::try_from(times).unwrap_or(0);
                if items.len().saturating_mul(times) > MAX_ITEMS {
                    return Err(Fault::new(format!("a list of more than {MAX_ITEMS} items")));
                }
                Ok(many(
                    items.iter().cycle().take(items.len() * times).cloned().collect(),
                ))
            }
            _ => Err(odd()),
        }
    }

    pub(super) fn compare(&mut self, sign: &str, left: &Value, right: &Value) -> Result<bool, Fault> {
        let unknown = || Fault::new("the batch is known only when the network runs");
        match sign {
            "==" => return left.equals(right).ok_or_else(unknown),
            "!=" => return left.equals(right).map(|is_equal| !is_equal).ok_or_else(unknown),
            "is" | "is not" => {
                let is_same = matches!((left, right), (Value::None, Value::None))
                    || !matches!(right, Value::None) && left.equals(right).ok_or_else(unknown)?;
                return Ok(is_same == (sign == "is"));
            }
            "in" | "not in" => {
                let is_in = match right {
                    Value::Str(text) => matches!(left, Value::Str(part) if text.contains(&**part)),
                    Value::Dict(entries) => {
                        let entries = entries.borrow();
                        entries.iter().any(|(key, _)| key.equals(left) == Some(true))
                    }
                    other => self
                        .iterate(other)?
                        .iter()
                        .any(|item| item.equals(left) == Some(true)),
                };
                return Ok(is_in == (sign == "in"));
            }
            _ => {}
        }
        let (Some(a), Some(b)) = (left.float(), right.float()) else {
            return Err(Fault::new(format!(
                "`{sign}` is not for {} and {}",
                left.kind(),
                right.kind()
            )));
        };
        Ok(match sign {
            "<" => a < b,
            "<=" => a <= b,
            ">" => a > b,
            _ => a >= b,
        })
    }

    /// Whether `if` takes the value for true.
    pub(in crate::template) fn truth(&self, value: &Value) -> Result<bool, Fault> {
        match value {
            Value::None => Ok(false),
            Value::Str(text) => Ok(!text.is_empty()),
            Value::Dict(entries) => Ok(!entries.borrow().is_empty()),
            Value::Tensor(_) | Value::Batch(_) => Err(Fault::new(format!(
                "whether {} is true is known only when the network runs",
                value.kind()
            ))),
            other => Ok(match (other.float(), other.items()) {
                (Some(number), _) => number != 0.0,
                (None, Some(items)) => !items.is_empty(),
                (None, None) => true,
            }),
        }
    }

    /// What a loop goes through.
    pub(in crate::template) fn iterate(&self, value: &Value) -> Result<Vec<Value>, Fault> {
        if let Some(items) = value.items() {
            return Ok(items);
        }
        match value {
            Value::Module(id) => {
                let module = &self.modules[*id];
                if module.base == crate::template::value::Base::Module {
                    return Err(Fault::new(format!("`{}` has no items", module.class_name)));
                }
                Ok(module
                    .children
                    .values()
                    .copied()
                    .flatten()
                    .map(Value::Module)
                    .collect())
            }
            Value::Dict(entries) => Ok(entries.borrow().iter().map(|(key, _)| key.clone()).collect()),
            Value::Str(text) => Ok(text
                .chars()
                .map(|c| Value::str(c.encode_utf8(&mut [0; 4])))
                .collect()),
            other => Err(Fault::new(format!("{} has no items", other.kind()))),
        }
    }
}

fn too_large() -> Fault {
    Fault::new("a number that is too large")
}

fn ints(sign: &str, a: i64, b: i64) -> Result<Value, Fault> {
    let by_zero = b == 0 && matches!(sign, "/" | "//" | "%");
    if by_zero {
        return Err(Fault::new("a division by zero"));
    }
    let out = match sign {
        "+" => a.checked_add(b),
        "-" => a.checked_sub(b),
        "*" => a.checked_mul(b),
        "//" => floor_div(a, b),
        "%" => floor_div(a, b).map(|quotient| a - b * quotient),
        "**" if b >= 0 => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
        _ => return floats(sign, a as f64, b as f64),
    };
    out.map(Value::Int).ok_or_else(too_large)
}

/// Rounded down, as Python divides.
fn floor_div(a: i64, b: i64) -> Option<i64> {
    let quotient = a.checked_div(b)?;
    let is_below = a % b != 0 && (a < 0) != (b < 0);
    Some(quotient - i64::from(is_below))
}

fn floats(sign: &str, a: f64, b: f64) -> Result<Value, Fault> {
    if b == 0.0 && matches!(sign, "/" | "//" | "%") {
        return Err(Fault::new("a division by zero"));
    }
    Ok(Value::Float(match sign {
        "+" => a + b,
        "-" => a - b,
        "*" => a * b,
        "/" => a / b,
        "//" => (a / b).floor(),
        "%" => a - b * (a / b).floor(),
        "**" => a.powf(b),
        _ => return Err(Fault::new(format!("`{sign}` is not for numbers"))),
    }))
}

/// So many times the batch, and another number.
fn batch(sign: &str, n: i64, other: &Value) -> Result<Value, Fault> {
    match (sign, other) {
        ("*", other) if other.int().is_some() => {
            let product = other.int().and_then(|by| n.checked_mul(by));
            product.map(Value::Batch).ok_or_else(too_large)
        }
        ("//" | "/", Value::Batch(by)) if *by != 0 && n % by == 0 => Ok(Value::Int(n / by)),
        ("//", Value::Int(by)) if *by != 0 && n % by == 0 => Ok(Value::Batch(n / by)),
        _ => Err(Fault::new(format!(
            "`{sign}` cannot be done with the batch before the network runs"
        ))),
    }
}
