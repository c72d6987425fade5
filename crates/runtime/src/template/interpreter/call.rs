//! Functions, classes and modules are called.

use std::collections::HashMap;
use std::rc::Rc;

use indexmap::IndexMap;

use super::{Flow, Interpreter, MAX_CALLS};
use crate::template::call::Args;
use crate::template::fault::Fault;
use crate::template::syntax::ParamKind;
use crate::template::value::{Base, Class, Closure, Dim, Module, ModuleId, Parent, Scope, Value};

impl Interpreter<'_> {
    /// Calls any value that can be called.
    pub(in crate::template) fn call(&mut self, callee: &Value, args: Args) -> Result<Value, Fault> {
        self.step()?;
        self.depth += 1;
        let out = if self.depth > MAX_CALLS {
            Err(Fault::new(format!(
                "more than {MAX_CALLS} calls within each other"
            )))
        } else {
            self.called(callee, args)
        };
        self.depth -= 1;
        out
    }

    fn called(&mut self, callee: &Value, args: Args) -> Result<Value, Fault> {
        match callee {
            Value::Function(closure) => self.call_closure(closure, args, None),
            Value::Method(module, closure) => self.call_method(*module, closure, args),
            Value::Builtin(builtin) => self.call_builtin(builtin, args),
            Value::Partial(partial) => {
                let (callee, first) = &**partial;
                self.call(callee, first.clone().and(args))
            }
            Value::KindMethod(method) => {
                let (receiver, name) = &**method;
                self.call_value_method(receiver, name, args)
            }
            Value::Module(module) => self.call_module(*module, args),
            Value::Class(class) => {
                let id = self.new_module(empty(class.name.clone(), Some(class.clone())))?;
                self.initialise(id, &Parent::Class(class.clone()), args)?;
                Ok(Value::Module(id))
            }
            Value::Base(base) => {
                let id = self.new_module(empty(base_name(*base).into(), None))?;
                self.initialise(id, &Parent::Base(*base), args)?;
                Ok(Value::Module(id))
            }
            Value::Ignored => Ok(Value::None),
            other => Err(Fault::new(format!("{} cannot be called", other.kind()))),
        }
    }

    /// Calls a function; `method` is the class and the module of a method.
    fn call_closure(
        &mut self,
        closure: &Rc<Closure>,
        args: Args,
        method: Option<(Rc<Class>, ModuleId)>,
    ) -> Result<Value, Fault> {
        let function = &closure.function;
        let params: Vec<(Rc<str>, ParamKind)> = function
            .params
            .iter()
            .map(|param| (param.name.clone(), param.kind))
            .collect();
        let has_default = |at: usize| {
            let param = &function.params[at];
            param.default.is_some() || matches!(param.kind, ParamKind::DoubleStar | ParamKind::Star)
        };
        let values = args.bind(&function.name, &params, has_default)?;
        let scope = Rc::new(Scope {
            around: closure.around.clone(),
            method,
            ..Scope::default()
        });
        let outer = std::mem::replace(&mut self.file, closure.file);
        let out = self.run(closure, values, &scope);
        self.file = outer;
        out.map_err(|fault| fault.at(&function.span).in_file(closure.file))
    }

    fn run(
        &mut self,
        closure: &Closure,
        values: Vec<Option<Value>>,
        scope: &Rc<Scope>,
    ) -> Result<Value, Fault> {
        for (param, value) in closure.function.params.iter().zip(values) {
            let value = match (value, &param.default) {
                (Some(value), _) => value,
                (None, Some(default)) => self.eval(default, closure.around.as_ref())?,
                (None, None) if param.kind == ParamKind::DoubleStar => Value::Dict(Rc::default()),
                (None, None) => Value::tuple(Vec::new()),
            };
            scope.variables.borrow_mut().insert(param.name.clone(), value);
        }
        match self.block(&closure.function.body, Some(scope))? {
            Flow::Return(value) => Ok(value),
            _ => Ok(Value::None),
        }
    }

    pub(super) fn call_method(
        &mut self,
        module: ModuleId,
        method: &Rc<Closure>,
        args: Args,
    ) -> Result<Value, Fault> {
        let Some(class) = method.class.borrow().upgrade() else {
            return Err(Fault::new(format!("`{}` is no method", method.function.name)));
        };
        let args = if method.function.is_static {
            args
        } else {
            args.behind(Value::Module(module))
        };
        self.call_closure(method, args, Some((class, module)))
    }

    /// Gives a module what its class, or one that it inherits from, makes of the arguments.
    pub(super) fn initialise(&mut self, id: ModuleId, from: &Parent, args: Args) -> Result<(), Fault> {
        let mut parent = from.clone();
        loop {
            match parent {
                Parent::Base(base) => return self.initialise_base(id, base, args),
                Parent::Class(class) => {
                    if let Some(method) = class.methods.get("__init__").cloned() {
                        self.call_method(id, &method, args)?;
                        return Ok(());
                    }
                    parent = class.parent.clone();
                }
            }
        }
    }

    fn initialise_base(&mut self, id: ModuleId, base: Base, args: Args) -> Result<(), Fault> {
        self.modules[id].base = base;
        let mut named = Vec::new();
        let items = match (base, args.positional.as_slice()) {
            (Base::Module, _) | (_, []) => Vec::new(),
            (_, [Value::Dict(entries)]) => {
                named.extend(entries.borrow().iter().cloned());
                Vec::new()
            }
            (Base::Sequential, items) => items.to_vec(),
            (_, [items]) => self.iterate(items)?,
            _ => return Err(Fault::new(format!("`{}` takes one list", base_name(base)))),
        };
        let numbered = items.into_iter().enumerate();
        named.extend(numbered.map(|(at, item)| (Value::str(&at.to_string()), item)));
        for (name, item) in named {
            match (name, item) {
                (Value::Str(name), Value::Module(child)) => {
                    self.modules[id].children.insert(name, Some(child));
                }
                (Value::Str(name), Value::None) => {
                    self.modules[id].children.insert(name, None);
                }
                (_, item) => {
                    return Err(Fault::new(format!(
                        "`{}` takes modules, and not {}",
                        base_name(base),
                        item.kind()
                    )));
                }
            }
        }
        Ok(())
    }

    /// The method of that name of a class or one that it inherits from.
    pub(super) fn method(from: &Parent, name: &str) -> Option<Rc<Closure>> {
        let mut parent = from.clone();
        while let Parent::Class(class) = parent {
            if let Some(method) = class.methods.get(name) {
                return Some(method.clone());
            }
            parent = class.parent.clone();
        }
        None
    }

    /// What a module gives for its input, written into the trace.
    pub(in crate::template) fn call_module(&mut self, id: ModuleId, args: Args) -> Result<Value, Fault> {
        let path = self.paths.get(&id).cloned().unwrap_or_default();
        let input = args.positional.first().map(first_shape).unwrap_or_default();
        self.trace.enter(id, &path, input);
        let out = self.forward(id, args)?;
        let shape = first_shape(&out);
        self.trace.exit(&shape);
        Ok(out)
    }

    fn forward(&mut self, id: ModuleId, args: Args) -> Result<Value, Fault> {
        let class = self.modules[id].class.clone();
        if let Some(class) = class
            && let Some(method) = Self::method(&Parent::Class(class), "forward")
        {
            return self.call_method(id, &method, args);
        }
        self.forward_base(id, args)
    }

    /// What torch's own containers do with their input.
    pub(super) fn forward_base(&mut self, id: ModuleId, args: Args) -> Result<Value, Fault> {
        let module = &self.modules[id];
        if module.base != Base::Sequential {
            return Err(Fault::new(format!("`{}` has no `forward`", module.class_name)));
        }
        let [value] = args.positional.as_slice() else {
            return Err(Fault::new("`Sequential` takes one input"));
        };
        let mut value = value.clone();
        let children: Vec<ModuleId> = module.children.values().copied().flatten().collect();
        for child in children {
            value = self.call(&Value::Module(child), Args::of(vec![value]))?;
        }
        Ok(value)
    }

    /// `super()`.
    pub(super) fn super_of(&self, scope: Option<&Rc<Scope>>) -> Result<Value, Fault> {
        let mut around = scope;
        while let Some(scope) = around {
            if let Some((class, module)) = &scope.method {
                return Ok(Value::Super(*module, Some(class.parent.clone())));
            }
            around = scope.around.as_ref();
        }
        Err(Fault::new("`super()` is for methods of a class"))
    }

    fn call_builtin(
        &mut self,
        builtin: &'static crate::template::functions::Builtin,
        args: Args,
    ) -> Result<Value, Fault> {
        let params = builtin.params()?;
        let names: Vec<(Rc<str>, ParamKind)> = params
            .iter()
            .map(|param| (param.name.clone(), param.kind))
            .collect();
        let has_default = |at: usize| params[at].default.is_some() || params[at].kind != ParamKind::Plain;
        let values = args.bind(builtin.name, &names, has_default)?;
        let mut out = Vec::new();
        for (param, value) in params.iter().zip(values) {
            out.push(match (value, &param.default) {
                (Some(value), _) => value,
                (None, Some(default)) => self.eval(default, None)?,
                (None, None) if param.kind == ParamKind::DoubleStar => Value::Dict(Rc::default()),
                (None, None) => Value::tuple(Vec::new()),
            });
        }
        (builtin.run)(self, &out)
    }
}

fn empty(class_name: Rc<str>, class: Option<Rc<Class>>) -> Module {
    Module {
        class_name,
        class,
        base: Base::Module,
        attributes: HashMap::new(),
        children: IndexMap::new(),
        tensors: IndexMap::new(),
    }
}

pub(super) fn base_name(base: Base) -> &'static str {
    match base {
        Base::Module => "Module",
        Base::Sequential => "Sequential",
        Base::ModuleList => "ModuleList",
        Base::ModuleDict => "ModuleDict",
    }
}

/// Sizes of a tensor, or of the first of several.
fn first_shape(value: &Value) -> Vec<Dim> {
    match value {
        Value::Tensor(tensor) => tensor.shape.clone(),
        other => match other.items().as_deref() {
            Some([first, ..]) => first_shape(first),
            _ => Vec::new(),
        },
    }
}
