//! Statements are carried out: what a template's text builds is a tree of modules, and what its `forward` does is a trace.
//!
//! Nothing outside is reached: no file, no clock, no Python. Every loop and call is counted.

mod call;
mod expr;
mod member;
mod operator;
mod seek;
mod tree;

pub(super) use member::{position, slice};

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::fault::{Fault, TemplateError};
use super::lex::Span;
use super::parse::parse;
use super::syntax::{ClassSyntax, Expr, ExprKind, Function, Statement, StatementKind};
use super::trace::Trace;
use super::value::{Base, Class, Closure, Module, ModuleId, Parent, Scope, Value};

/// Statements, calls and items of loops that one template may take.
const MAX_STEPS: usize = 5_000_000;
/// Calls within calls.
const MAX_CALLS: usize = 64;
/// Expressions and blocks within each other, over all calls: what the stack of a thread has room for.
const MAX_NESTING: usize = 400;
/// Modules of one network.
const MAX_MODULES: usize = 100_000;

/// Sizes of a tensor of the checkpoint at hand.
pub(super) type Sizes<'s> = dyn Fn(&str) -> Option<Vec<usize>> + 's;

/// Reads templates.
pub(super) struct Interpreter<'s> {
    files: Vec<File>,
    /// The file that is being carried out.
    file: usize,
    pub(super) modules: Vec<Module>,
    /// Paths of modules in the network that is traced.
    pub(super) paths: HashMap<ModuleId, String>,
    pub(super) trace: Trace,
    pub(super) sizes: &'s Sizes<'s>,
    steps: usize,
    depth: usize,
    nesting: usize,
}

struct File {
    name: String,
    text: Rc<str>,
    globals: HashMap<Rc<str>, Value>,
    /// Classes and functions that are marked as networks, in order.
    models: Vec<Rc<str>>,
    /// The last class; the last function where there is none.
    last: Option<Rc<str>>,
}

/// How a block ended.
enum Flow {
    Next,
    Return(Value),
    Break,
    Continue,
}

impl<'s> Interpreter<'s> {
    pub(super) fn new(sizes: &'s Sizes<'s>) -> Interpreter<'s> {
        Interpreter {
            files: Vec::new(),
            file: 0,
            modules: Vec::new(),
            paths: HashMap::new(),
            trace: Trace::default(),
            sizes,
            steps: 0,
            depth: 0,
            nesting: 0,
        }
    }

    /// Reads and carries out a file; its number.
    pub(super) fn load(&mut self, name: &str, text: &str) -> Result<usize, Fault> {
        let file = self.files.len();
        self.files.push(File {
            name: name.to_owned(),
            text: text.into(),
            globals: HashMap::new(),
            models: Vec::new(),
            last: None,
        });
        let statements = parse(text).map_err(|fault| fault.in_file(file))?;
        self.file = file;
        self.block(&statements, None)
            .map_err(|fault| fault.in_file(file))?;
        let mut models: Vec<Rc<str>> = Vec::new();
        let mut last: [Option<Rc<str>>; 2] = [None, None];
        for statement in &statements {
            let (name, is_model, is_class) = match &statement.kind {
                StatementKind::Define(function) => (&function.name, function.is_model, false),
                StatementKind::Class(class) => (&class.name, class.is_model, true),
                _ => continue,
            };
            models.extend(is_model.then(|| name.clone()));
            last[usize::from(is_class)] = Some(name.clone());
        }
        let [last_function, last_class] = last;
        self.files[file].last = last_class.or(last_function);
        self.files[file].models = models;
        Ok(file)
    }

    /// The networks of a file.
    pub(super) fn models(&self, file: usize) -> &[Rc<str>] {
        &self.files[file].models
    }

    /// What stands last in a file, which is its network where none is marked.
    pub(super) fn last(&self, file: usize) -> Option<&Rc<str>> {
        self.files[file].last.as_ref()
    }

    /// Makes the network called `model` of a file.
    pub(super) fn build(&mut self, file: usize, model: &str) -> Result<ModuleId, Fault> {
        self.steps = 0;
        let callee = self.files[file]
            .globals
            .get(model)
            .cloned()
            .unwrap_or(Value::None);
        self.file = file;
        match self
            .call(&callee, crate::template::call::Args::default())
            .map_err(|fault| fault.in_file(file))?
        {
            Value::Module(id) => Ok(id),
            other => {
                Err(Fault::new(format!("`{model}` gives {}, and not a module", other.kind())).in_file(file))
            }
        }
    }

    /// The error for people.
    pub(super) fn located(&self, fault: Fault) -> TemplateError {
        fault.located(|file| match self.files.get(file) {
            Some(file) => (file.name.as_str(), &*file.text),
            None => ("", ""),
        })
    }

    pub(super) fn step(&mut self) -> Result<(), Fault> {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return Err(Fault::new(format!(
                "the template takes more than {MAX_STEPS} steps"
            )));
        }
        Ok(())
    }

    /// Does something within what is being done.
    fn nested<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, Fault>) -> Result<T, Fault> {
        self.nesting += 1;
        let out = if self.nesting > MAX_NESTING {
            Err(Fault::new("too much within each other"))
        } else {
            work(self)
        };
        self.nesting -= 1;
        out
    }

    fn block(&mut self, statements: &[Statement], scope: Option<&Rc<Scope>>) -> Result<Flow, Fault> {
        self.nested(|interpreter| interpreter.statements(statements, scope))
    }

    fn statements(&mut self, statements: &[Statement], scope: Option<&Rc<Scope>>) -> Result<Flow, Fault> {
        for statement in statements {
            self.step()?;
            let flow = self
                .statement(statement, scope)
                .map_err(|fault| fault.at(&statement.span))?;
            if !matches!(flow, Flow::Next) {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn statement(&mut self, statement: &Statement, scope: Option<&Rc<Scope>>) -> Result<Flow, Fault> {
        match &statement.kind {
            StatementKind::Pass => {}
            StatementKind::Expr(expr) => {
                self.eval(expr, scope)?;
            }
            StatementKind::Assign(targets, value) => {
                let value = self.eval(value, scope)?;
                for target in targets {
                    self.assign(target, value.clone(), scope)?;
                }
            }
            StatementKind::Update(target, sign, value) => {
                let old = self.eval(target, scope)?;
                let value = self.eval(value, scope)?;
                if let (Value::List(items), Some(more), "+") = (&old, value.items(), *sign) {
                    items.borrow_mut().extend(more);
                } else {
                    let new = self
                        .binary(sign, &old, &value)
                        .map_err(|fault| fault.at(&statement.span))?;
                    self.assign(target, new, scope)?;
                }
            }
            StatementKind::If(condition, then, otherwise) => {
                let value = self.eval(condition, scope)?;
                let chosen = if self.truth(&value).map_err(|fault| fault.at(&condition.span))? {
                    then
                } else {
                    otherwise
                };
                return self.block(chosen, scope);
            }
            StatementKind::For(target, iterable, body) => {
                let items = self.eval(iterable, scope)?;
                for item in self.iterate(&items).map_err(|fault| fault.at(&iterable.span))? {
                    self.assign(target, item, scope)?;
                    match self.block(body, scope)? {
                        Flow::Break => break,
                        flow @ Flow::Return(_) => return Ok(flow),
                        Flow::Next | Flow::Continue => {}
                    }
                    self.step()?;
                }
            }
            StatementKind::Return(value) => {
                let value = match value {
                    Some(value) => self.eval(value, scope)?,
                    None => Value::None,
                };
                return Ok(Flow::Return(value));
            }
            StatementKind::Raise(value) => {
                let text = match value.as_ref().map(|value| &value.kind) {
                    Some(ExprKind::Call(_, args)) => match args.first() {
                        Some(super::syntax::Arg::Positional(text)) => {
                            let text = self.eval(text, scope)?;
                            format!("{text:?}")
                        }
                        _ => "the template refuses this".to_owned(),
                    },
                    _ => "the template refuses this".to_owned(),
                };
                return Err(Fault::new(text));
            }
            StatementKind::Assert(condition) => {
                let value = self.eval(condition, scope)?;
                if !self.truth(&value)? {
                    return Err(Fault::new("this does not hold").at(&condition.span));
                }
            }
            StatementKind::Define(function) => {
                let closure = Value::Function(self.closure(function, scope));
                self.bind(&function.name, closure, scope);
            }
            StatementKind::Class(class) => {
                let value = self.class(class, scope)?;
                self.bind(&class.name, value, scope);
            }
            StatementKind::Break => return Ok(Flow::Break),
            StatementKind::Continue => return Ok(Flow::Continue),
            StatementKind::Import(names) => {
                for (module, name) in names {
                    let value = self.imported(module)?;
                    self.bind(name, value, scope);
                }
            }
        }
        Ok(Flow::Next)
    }

    fn closure(&self, function: &Rc<Function>, scope: Option<&Rc<Scope>>) -> Rc<Closure> {
        Rc::new(Closure {
            function: function.clone(),
            file: self.file,
            around: scope.cloned(),
            class: RefCell::default(),
        })
    }

    fn class(&mut self, class: &Rc<ClassSyntax>, scope: Option<&Rc<Scope>>) -> Result<Value, Fault> {
        let parent = match &class.base {
            None => Parent::Base(Base::Module),
            Some(base) => match self.eval(base, scope)? {
                Value::Base(base) => Parent::Base(base),
                Value::Class(class) => Parent::Class(class),
                other => {
                    let text = format!("{} cannot be the base of a class", other.kind());
                    return Err(Fault::new(text).at(&base.span));
                }
            },
        };
        let mut methods = HashMap::new();
        let mut constants = HashMap::new();
        for statement in &class.body {
            match &statement.kind {
                StatementKind::Define(function) => {
                    methods.insert(function.name.clone(), self.closure(function, scope));
                }
                StatementKind::Assign(targets, value) => {
                    let value = self.eval(value, scope)?;
                    for target in targets {
                        if let ExprKind::Name(name) = &target.kind {
                            constants.insert(name.clone(), value.clone());
                        }
                    }
                }
                // A text that documents the class.
                StatementKind::Pass | StatementKind::Expr(_) => {}
                _ => {
                    return Err(Fault::new("a class holds functions and names of values").at(&statement.span));
                }
            }
        }
        let class = Rc::new(Class {
            name: class.name.clone(),
            parent,
            methods,
            constants,
        });
        for method in class.methods.values() {
            *method.class.borrow_mut() = Rc::downgrade(&class);
        }
        Ok(Value::Class(class))
    }

    fn bind(&mut self, name: &Rc<str>, value: Value, scope: Option<&Rc<Scope>>) {
        match scope {
            Some(scope) => {
                scope.variables.borrow_mut().insert(name.clone(), value);
            }
            None => {
                self.files[self.file].globals.insert(name.clone(), value);
            }
        }
    }

    fn assign(&mut self, target: &Expr, value: Value, scope: Option<&Rc<Scope>>) -> Result<(), Fault> {
        match &target.kind {
            ExprKind::Name(name) => self.bind(name, value, scope),
            ExprKind::Attribute(of, name) => {
                let of = self.eval(of, scope)?;
                self.set_attribute(&of, name, value)
                    .map_err(|fault| fault.at(&target.span))?;
            }
            ExprKind::Index(of, key) => {
                let of = self.eval(of, scope)?;
                let key = self.eval(key, scope)?;
                self.set_item(&of, key, value)
                    .map_err(|fault| fault.at(&target.span))?;
            }
            ExprKind::Tuple(targets) | ExprKind::List(targets) => {
                let items = self.iterate(&value).map_err(|fault| fault.at(&target.span))?;
                if items.len() != targets.len() {
                    let text = format!("{} names for {} values", targets.len(), items.len());
                    return Err(Fault::new(text).at(&target.span));
                }
                for (target, item) in targets.iter().zip(items) {
                    self.assign(target, item, scope)?;
                }
            }
            _ => return Err(Fault::new("nothing can be assigned to this").at(&target.span)),
        }
        Ok(())
    }

    fn new_module(&mut self, module: Module) -> Result<ModuleId, Fault> {
        if self.modules.len() >= MAX_MODULES {
            return Err(Fault::new(format!("more than {MAX_MODULES} modules")));
        }
        self.modules.push(module);
        Ok(self.modules.len() - 1)
    }

    /// Where in a text something stands, with the text.
    fn place(&self, span: &Span) -> (usize, Span) {
        (self.file, span.clone())
    }
}
