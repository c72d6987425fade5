//! Arguments to parameters, as Python binds them.

use std::rc::Rc;

use super::fault::Fault;
use super::syntax::ParamKind;
use super::value::Value;

/// What a call is given.
#[derive(Debug, Clone, Default)]
pub(super) struct Args {
    pub(super) positional: Vec<Value>,
    pub(super) named: Vec<(Rc<str>, Value)>,
}

impl Args {
    pub(super) fn of(positional: Vec<Value>) -> Args {
        Args {
            positional,
            named: Vec::new(),
        }
    }

    /// The same behind `first`.
    pub(super) fn behind(mut self, first: Value) -> Args {
        self.positional.insert(0, first);
        self
    }

    /// These, then `more`; a name that is given again has its later value.
    pub(super) fn and(mut self, more: Args) -> Args {
        self.positional.extend(more.positional);
        for (name, value) in more.named {
            self.named.retain(|(old, _)| *old != name);
            self.named.push((name, value));
        }
        self
    }

    /// One value for each parameter; `None` where there is no argument and a default is to be taken.
    ///
    /// `params` are names and kinds; `has_default` tells of which there is one.
    pub(super) fn bind(
        self,
        called: &str,
        params: &[(Rc<str>, ParamKind)],
        has_default: impl Fn(usize) -> bool,
    ) -> Result<Vec<Option<Value>>, Fault> {
        let mut out: Vec<Option<Value>> = vec![None; params.len()];
        let mut plain = params
            .iter()
            .enumerate()
            .filter(|(_, (_, kind))| *kind == ParamKind::Plain)
            .map(|(at, _)| at);
        let n_given = self.positional.len();
        let mut rest = Vec::new();
        for value in self.positional {
            match plain.next() {
                Some(at) => out[at] = Some(value),
                None => rest.push(value),
            }
        }
        let star = params.iter().position(|(_, kind)| *kind == ParamKind::Star);
        match star {
            Some(at) => out[at] = Some(Value::tuple(rest)),
            None if !rest.is_empty() => {
                let most = n_given - rest.len();
                return Err(Fault::new(format!(
                    "`{called}` takes {most} positional arguments, and {n_given} are given"
                )));
            }
            None => {}
        }
        let mut others = Vec::new();
        for (name, value) in self.named {
            let at = params.iter().position(|(param, kind)| {
                *param == name && matches!(kind, ParamKind::Plain | ParamKind::NamedOnly)
            });
            match at {
                Some(at) if out[at].is_some() => {
                    return Err(Fault::new(format!("`{called}` gets `{name}` twice")));
                }
                Some(at) => out[at] = Some(value),
                None => others.push((Value::Str(name), value)),
            }
        }
        let double_star = params.iter().position(|(_, kind)| *kind == ParamKind::DoubleStar);
        match (double_star, others.first()) {
            (Some(at), _) => out[at] = Some(Value::Dict(Rc::new(std::cell::RefCell::new(others)))),
            (None, Some((Value::Str(name), _))) => {
                return Err(Fault::new(format!("`{called}` has no parameter `{name}`")));
            }
            _ => {}
        }
        let missing = (0..params.len()).find(|&at| out[at].is_none() && !has_default(at));
        if let Some(at) = missing {
            return Err(Fault::new(format!("`{called}` needs `{}`", params[at].0)));
        }
        Ok(out)
    }
}
