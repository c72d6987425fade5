//! The value of an expression.

use std::cell::RefCell;
use std::rc::Rc;

use super::Interpreter;
use crate::template::call::Args;
use crate::template::fault::Fault;
use crate::template::syntax::{Arg, Expr, ExprKind};
use crate::template::value::{Scope, Value};

impl Interpreter<'_> {
    pub(super) fn eval(&mut self, expr: &Expr, scope: Option<&Rc<Scope>>) -> Result<Value, Fault> {
        self.nested(|interpreter| interpreter.value_of(expr, scope))
            .map_err(|fault| fault.at(&expr.span))
    }

    fn value_of(&mut self, expr: &Expr, scope: Option<&Rc<Scope>>) -> Result<Value, Fault> {
        Ok(match &expr.kind {
            ExprKind::None => Value::None,
            ExprKind::Ellipsis => Value::Ellipsis,
            ExprKind::Bool(value) => Value::Bool(*value),
            ExprKind::Int(value) => Value::Int(*value),
            ExprKind::Float(value) => Value::Float(*value),
            ExprKind::Str(text) => Value::Str(text.clone()),
            ExprKind::Format(parts) => {
                let mut text = String::new();
                for part in parts {
                    text.push_str(&format!("{:?}", self.eval(part, scope)?));
                }
                Value::str(&text)
            }
            ExprKind::Name(name) => self.seek(name, scope)?,
            ExprKind::List(items) => Value::list(self.eval_all(items, scope)?),
            ExprKind::Tuple(items) => Value::tuple(self.eval_all(items, scope)?),
            ExprKind::Dict(entries) => {
                let mut out = Vec::new();
                for (key, value) in entries {
                    out.push((self.eval(key, scope)?, self.eval(value, scope)?));
                }
                Value::Dict(Rc::new(RefCell::new(out)))
            }
            ExprKind::Comprehension {
                item,
                target,
                iterable,
                condition,
            } => {
                let items = self.eval(iterable, scope)?;
                // Its variables are its own.
                let inner = Rc::new(Scope {
                    around: scope.cloned(),
                    method: scope.and_then(|scope| scope.method.clone()),
                    ..Scope::default()
                });
                let mut out = Vec::new();
                for value in self.iterate(&items).map_err(|fault| fault.at(&iterable.span))? {
                    self.step()?;
                    self.assign(target, value, Some(&inner))?;
                    if let Some(condition) = condition {
                        let value = self.eval(condition, Some(&inner))?;
                        if !self.truth(&value)? {
                            continue;
                        }
                    }
                    out.push(self.eval(item, Some(&inner))?);
                }
                Value::list(out)
            }
            ExprKind::Attribute(of, name) => {
                let of = self.eval(of, scope)?;
                self.attribute(&of, name)?
            }
            ExprKind::Index(of, key) => {
                let of = self.eval(of, scope)?;
                let key = self.eval(key, scope)?;
                self.item(&of, &key)?
            }
            ExprKind::Slice(from, to, step) => {
                let mut bound = |bound: &Option<Box<Expr>>| match bound {
                    Some(bound) => self.eval(bound, scope),
                    None => Ok(Value::None),
                };
                Value::Slice(Rc::new([bound(from)?, bound(to)?, bound(step)?]))
            }
            ExprKind::Call(callee, args) => return self.eval_call(expr, callee, args, scope),
            ExprKind::Unary(sign, inner) => {
                let value = self.eval(inner, scope)?;
                self.unary(sign, &value)?
            }
            ExprKind::Binary(sign, left, right) => {
                let (left, right) = (self.eval(left, scope)?, self.eval(right, scope)?);
                self.binary(sign, &left, &right)?
            }
            ExprKind::Compare(first, others) => {
                let mut left = self.eval(first, scope)?;
                for (sign, right) in others {
                    let right = self.eval(right, scope)?;
                    if !self.compare(sign, &left, &right)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Value::Bool(true)
            }
            ExprKind::And(left, right) => {
                let left = self.eval(left, scope)?;
                if self.truth(&left)? {
                    self.eval(right, scope)?
                } else {
                    left
                }
            }
            ExprKind::Or(left, right) => {
                let left = self.eval(left, scope)?;
                if self.truth(&left)? {
                    left
                } else {
                    self.eval(right, scope)?
                }
            }
            ExprKind::If {
                condition,
                then,
                otherwise,
            } => {
                let value = self.eval(condition, scope)?;
                let chosen = if self.truth(&value)? { then } else { otherwise };
                self.eval(chosen, scope)?
            }
            ExprKind::Star(_) => return Err(Fault::new("`*` has no meaning here")),
        })
    }

    fn eval_all(&mut self, items: &[Expr], scope: Option<&Rc<Scope>>) -> Result<Vec<Value>, Fault> {
        let mut out = Vec::new();
        for item in items {
            if let ExprKind::Star(inner) = &item.kind {
                let values = self.eval(inner, scope)?;
                out.extend(self.iterate(&values).map_err(|fault| fault.at(&inner.span))?);
            } else {
                out.push(self.eval(item, scope)?);
            }
        }
        Ok(out)
    }

    fn eval_call(
        &mut self,
        expr: &Expr,
        callee: &Expr,
        args: &[Arg],
        scope: Option<&Rc<Scope>>,
    ) -> Result<Value, Fault> {
        if let ExprKind::Name(name) = &callee.kind
            && &**name == "super"
        {
            return self.super_of(scope);
        }
        let callee_value = self.eval(callee, scope)?;
        let mut given = Args::default();
        for arg in args {
            match arg {
                Arg::Positional(value) => given.positional.push(self.eval(value, scope)?),
                Arg::Named(name, value) => {
                    let value = self.eval(value, scope)?;
                    given.named.push((name.clone(), value));
                }
                Arg::Star(values) => {
                    let items = self.eval(values, scope)?;
                    let items = self.iterate(&items).map_err(|fault| fault.at(&values.span))?;
                    given.positional.extend(items);
                }
                Arg::DoubleStar(values) => {
                    let Value::Dict(entries) = self.eval(values, scope)? else {
                        return Err(Fault::new("`**` takes a dict").at(&values.span));
                    };
                    for (name, value) in entries.borrow().iter() {
                        let Value::Str(name) = name else {
                            return Err(Fault::new("`**` takes a dict of names").at(&values.span));
                        };
                        given.named.push((name.clone(), value.clone()));
                    }
                }
            }
        }
        let (file, span) = self.place(&expr.span);
        let called = called(callee);
        self.call(&callee_value, given)
            .map_err(|fault| match fault.is_located() {
                true => fault.called(&called, file, &span),
                false => fault,
            })
    }
}

/// What is called, for messages.
fn called(callee: &Expr) -> String {
    match &callee.kind {
        ExprKind::Name(name) => name.to_string(),
        ExprKind::Attribute(of, name) => format!("{}.{name}", called(of)),
        ExprKind::Index(of, _) => format!("{}[...]", called(of)),
        ExprKind::Call(of, _) => format!("{}(...)", called(of)),
        _ => "a value".to_owned(),
    }
}
