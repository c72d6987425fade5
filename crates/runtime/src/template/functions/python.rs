//! Python's own functions on numbers and lists, and methods of lists, dicts and strings.

use std::rc::Rc;

use super::{Builtin, Fault, Interpreter, Value, float, int};
use crate::template::call::Args;
use crate::template::value::{Class, ModuleId, Parent};

pub(super) const TABLE: &[Builtin] = &[
    Builtin {
        name: "len",
        signature: "len(items)",
        run: |i, a| Ok(Value::Int(i.iterate(&a[0])?.len() as i64)),
    },
    Builtin {
        name: "range",
        signature: "range(first, end=None, step=1)",
        run: range,
    },
    Builtin {
        name: "enumerate",
        signature: "enumerate(items, start=0)",
        run: enumerate,
    },
    Builtin {
        name: "zip",
        signature: "zip(a, b)",
        run: zip,
    },
    Builtin {
        name: "reversed",
        signature: "reversed(items)",
        run: reversed,
    },
    Builtin {
        name: "list",
        signature: "list(items=[])",
        run: |i, a| i.iterate(&a[0]).map(Value::list),
    },
    Builtin {
        name: "tuple",
        signature: "tuple(items=[])",
        run: |i, a| i.iterate(&a[0]).map(Value::tuple),
    },
    Builtin {
        name: "dict",
        signature: "dict(**entries)",
        run: |_, a| Ok(a[0].clone()),
    },
    Builtin {
        name: "OrderedDict",
        signature: "OrderedDict(entries=[])",
        run: ordered_dict,
    },
    Builtin {
        name: "int",
        signature: "int(value)",
        run: as_int,
    },
    Builtin {
        name: "str",
        signature: "str(value)",
        run: |_, a| Ok(Value::str(&format!("{:?}", a[0]))),
    },
    Builtin {
        name: "bool",
        signature: "bool(value)",
        run: |i, a| i.truth(&a[0]).map(Value::Bool),
    },
    Builtin {
        name: "abs",
        signature: "abs(value)",
        run: |_, a| {
            float(&a[0]).map(|x| match a[0] {
                Value::Int(n) => Value::Int(n.saturating_abs()),
                _ => Value::Float(x.abs()),
            })
        },
    },
    Builtin {
        name: "round",
        signature: "round(value)",
        run: |_, a| Ok(Value::Int(float(&a[0])?.round_ties_even() as i64)),
    },
    Builtin {
        name: "floor",
        signature: "floor(value)",
        run: |_, a| Ok(Value::Int(float(&a[0])?.floor() as i64)),
    },
    Builtin {
        name: "ceil",
        signature: "ceil(value)",
        run: |_, a| Ok(Value::Int(float(&a[0])?.ceil() as i64)),
    },
    Builtin {
        name: "sum",
        signature: "sum(items)",
        run: sum,
    },
    Builtin {
        name: "max",
        signature: "max(*values)",
        run: |i, a| extreme(i, &a[0], |new, old| new > old),
    },
    Builtin {
        name: "min",
        signature: "min(*values)",
        run: |i, a| extreme(i, &a[0], |new, old| new < old),
    },
    Builtin {
        name: "isinstance",
        signature: "isinstance(value, kind)",
        run: isinstance,
    },
    Builtin {
        name: "hasattr",
        signature: "hasattr(value, name)",
        run: |i, a| Ok(Value::Bool(attribute(i, &a[0], &a[1])?.is_some())),
    },
    Builtin {
        name: "getattr",
        signature: "getattr(value, name)",
        run: getattr,
    },
    Builtin {
        name: "partial",
        signature: "partial(function, *args, **named)",
        run: partial,
    },
    Builtin {
        name: "print",
        signature: "print(*values)",
        run: |_, _| Ok(Value::None),
    },
];

fn range(_: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    const MOST: i64 = 100_000;
    let (first, end) = match &args[1] {
        Value::None => (0, int(&args[0])?),
        end => (int(&args[0])?, int(end)?),
    };
    let step = int(&args[2])?;
    if step == 0 || end.saturating_sub(first).saturating_abs() / step.saturating_abs().max(1) > MOST {
        return Err(Fault::new(format!(
            "a range of more than {MOST} numbers, or none"
        )));
    }
    let mut out = Vec::new();
    let mut at = first;
    while if step > 0 { at < end } else { at > end } {
        out.push(Value::Int(at));
        at = at.saturating_add(step);
    }
    Ok(Value::list(out))
}

fn enumerate(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let start = int(&args[1])?;
    let items = interpreter.iterate(&args[0])?.into_iter().zip(start..);
    Ok(Value::list(
        items
            .map(|(item, at)| Value::tuple(vec![Value::Int(at), item]))
            .collect(),
    ))
}

fn zip(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let (a, b) = (interpreter.iterate(&args[0])?, interpreter.iterate(&args[1])?);
    Ok(Value::list(
        a.into_iter()
            .zip(b)
            .map(|(a, b)| Value::tuple(vec![a, b]))
            .collect(),
    ))
}

fn reversed(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let mut items = interpreter.iterate(&args[0])?;
    items.reverse();
    Ok(Value::list(items))
}

fn ordered_dict(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    if matches!(args[0], Value::Dict(_)) {
        return Ok(args[0].clone());
    }
    let mut entries = Vec::new();
    for item in interpreter.iterate(&args[0])? {
        match item.items().as_deref() {
            Some([name, value]) => entries.push((name.clone(), value.clone())),
            _ => return Err(Fault::new("`OrderedDict` takes pairs")),
        }
    }
    Ok(Value::Dict(Rc::new(std::cell::RefCell::new(entries))))
}

fn as_int(_: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    match &args[0] {
        batch @ Value::Batch(_) => Ok(batch.clone()),
        value => Ok(Value::Int(float(value)?.trunc() as i64)),
    }
}

fn sum(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let items = interpreter.iterate(&args[0])?;
    if let Some(whole) = items.iter().map(Value::int).collect::<Option<Vec<i64>>>() {
        return Ok(Value::Int(whole.into_iter().fold(0, i64::saturating_add)));
    }
    let numbers = items.iter().map(float).collect::<Result<Vec<_>, _>>()?;
    Ok(Value::Float(numbers.into_iter().sum()))
}

fn extreme(
    interpreter: &mut Interpreter<'_>,
    values: &Value,
    wins: impl Fn(f64, f64) -> bool,
) -> Result<Value, Fault> {
    let mut items = interpreter.iterate(values)?;
    if let [only] = items.as_slice() {
        items = interpreter.iterate(only)?;
    }
    let mut best: Option<(f64, Value)> = None;
    for item in items {
        let number = float(&item)?;
        if best.as_ref().is_none_or(|(old, _)| wins(number, *old)) {
            best = Some((number, item));
        }
    }
    best.map(|(_, item)| item)
        .ok_or_else(|| Fault::new("none of no values"))
}

fn isinstance(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    if let Some(kinds) = args[1].items() {
        for kind in kinds {
            if let Value::Bool(true) = isinstance(interpreter, &[args[0].clone(), kind])? {
                return Ok(Value::Bool(true));
            }
        }
        return Ok(Value::Bool(false));
    }
    Ok(Value::Bool(match (&args[0], &args[1]) {
        (Value::Module(id), Value::Class(class)) => is_a(interpreter, *id, class),
        (Value::Module(id), Value::Base(base)) => {
            *base == crate::template::value::Base::Module || interpreter.modules[*id].base == *base
        }
        (value, Value::Builtin(builtin)) => match builtin.name {
            "int" => matches!(value, Value::Int(_) | Value::Bool(_)),
            "float" => matches!(value, Value::Float(_)),
            "str" => matches!(value, Value::Str(_)),
            "bool" => matches!(value, Value::Bool(_)),
            "list" => matches!(value, Value::List(_)),
            "tuple" => matches!(value, Value::Tuple(_)),
            "dict" => matches!(value, Value::Dict(_)),
            _ => false,
        },
        // `torch.Tensor`.
        (value, Value::None) => matches!(value, Value::Tensor(_)),
        _ => false,
    }))
}

fn is_a(interpreter: &Interpreter<'_>, id: ModuleId, class: &Rc<Class>) -> bool {
    let own = interpreter.modules[id].class.clone();
    let mut parent = own.map(Parent::Class);
    while let Some(Parent::Class(own)) = parent {
        if Rc::ptr_eq(&own, class) {
            return true;
        }
        parent = Some(own.parent.clone());
    }
    false
}

fn attribute(interpreter: &mut Interpreter<'_>, of: &Value, name: &Value) -> Result<Option<Value>, Fault> {
    let Value::Str(name) = name else {
        return Err(Fault::new("an attribute's name is a string"));
    };
    Ok(interpreter.attribute(of, name).ok())
}

fn getattr(interpreter: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let Value::Str(name) = &args[1] else {
        return Err(Fault::new("an attribute's name is a string"));
    };
    interpreter.attribute(&args[0], name)
}

fn partial(_: &mut Interpreter<'_>, args: &[Value]) -> Result<Value, Fault> {
    let mut named = Vec::new();
    if let Value::Dict(entries) = &args[2] {
        for (name, value) in entries.borrow().iter() {
            if let Value::Str(name) = name {
                named.push((name.clone(), value.clone()));
            }
        }
    }
    let positional = args[1].items().unwrap_or_default();
    Ok(Value::Partial(Rc::new((
        args[0].clone(),
        Args { positional, named },
    ))))
}

/// Calls a method of a list, a dict or a string.
pub(in crate::template) fn method(
    interpreter: &mut Interpreter<'_>,
    of: &Value,
    name: &str,
    args: Args,
) -> Result<Value, Fault> {
    let arg = |at: usize| args.positional.get(at).cloned();
    let missing = || {
        Fault::new(format!(
            "{} has no method `{name}` here, or it takes other arguments",
            of.kind()
        ))
    };
    match (of, name) {
        (Value::List(items), "append") => items.borrow_mut().push(arg(0).ok_or_else(missing)?),
        (Value::List(items), "extend") => {
            let more = interpreter.iterate(&arg(0).ok_or_else(missing)?)?;
            items.borrow_mut().extend(more);
        }
        (Value::List(items), "insert") => {
            let at = int(&arg(0).ok_or_else(missing)?)?;
            let mut items = items.borrow_mut();
            let n = items.len() as i64;
            let at = if at < 0 { (at + n).max(0) } else { at.min(n) };
            items.insert(at as usize, arg(1).ok_or_else(missing)?);
        }
        (Value::List(items), "pop") => {
            let mut items = items.borrow_mut();
            let at = crate::template::interpreter::position(&arg(0).unwrap_or(Value::Int(-1)), items.len())?;
            return Ok(items.remove(at));
        }
        (Value::Dict(entries), "items") => {
            let pairs = entries
                .borrow()
                .iter()
                .map(|(k, v)| Value::tuple(vec![k.clone(), v.clone()]))
                .collect();
            return Ok(Value::list(pairs));
        }
        (Value::Dict(entries), "keys") => {
            return Ok(Value::list(
                entries.borrow().iter().map(|(key, _)| key.clone()).collect(),
            ));
        }
        (Value::Dict(entries), "values") => {
            return Ok(Value::list(
                entries.borrow().iter().map(|(_, value)| value.clone()).collect(),
            ));
        }
        (Value::Dict(entries), "get" | "pop") => {
            let key = arg(0).ok_or_else(missing)?;
            let mut entries = entries.borrow_mut();
            let at = entries
                .iter()
                .position(|(name, _)| name.equals(&key) == Some(true));
            return Ok(match at {
                Some(at) if name == "pop" => entries.remove(at).1,
                Some(at) => entries[at].1.clone(),
                None => arg(1).unwrap_or(Value::None),
            });
        }
        (Value::Str(text), "format") => {
            let mut out = text.to_string();
            for value in &args.positional {
                out = out.replacen("{}", &format!("{value:?}"), 1);
            }
            return Ok(Value::str(&out));
        }
        (Value::Str(text), "startswith" | "endswith") => {
            let Some(Value::Str(part)) = arg(0) else {
                return Err(missing());
            };
            return Ok(Value::Bool(match name {
                "startswith" => text.starts_with(&*part),
                _ => text.ends_with(&*part),
            }));
        }
        _ => return Err(missing()),
    }
    Ok(Value::None)
}
