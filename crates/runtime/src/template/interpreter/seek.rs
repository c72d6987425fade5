//! What a name stands for.

use std::rc::Rc;

use super::Interpreter;
use crate::onnx::nearest;
use crate::template::fault::Fault;
use crate::template::functions;
use crate::template::value::{Base, Scope, Value};

/// Python's modules that are here one space of names.
const NAMESPACES: [&str; 9] = [
    "torch",
    "nn",
    "F",
    "functional",
    "models",
    "torchvision",
    "timm",
    "math",
    "functools",
];

impl Interpreter<'_> {
    /// The value of a name: a variable of the function or of one around it, a global of the file, or what torch has under that name.
    pub(super) fn seek(&self, name: &str, scope: Option<&Rc<Scope>>) -> Result<Value, Fault> {
        let mut around = scope;
        while let Some(scope) = around {
            if let Some(value) = scope.variables.borrow().get(name) {
                return Ok(value.clone());
            }
            around = scope.around.as_ref();
        }
        if let Some(value) = self.files[self.file].globals.get(name) {
            return Ok(value.clone());
        }
        if NAMESPACES.contains(&name) {
            return Ok(Value::Namespace);
        }
        self.seek_in_torch(name)
    }

    /// What torch, torchvision or the templates that are shipped call so.
    pub(super) fn seek_in_torch(&self, name: &str) -> Result<Value, Fault> {
        let base = match name {
            "Module" => Some(Base::Module),
            "Sequential" => Some(Base::Sequential),
            "ModuleList" => Some(Base::ModuleList),
            "ModuleDict" => Some(Base::ModuleDict),
            _ => None,
        };
        if let Some(base) = base {
            return Ok(Value::Base(base));
        }
        if let Some(builtin) = functions::find(name) {
            return Ok(Value::Builtin(builtin));
        }
        let found = self.files.iter().find_map(|file| file.globals.get(name));
        found.cloned().ok_or_else(|| {
            let globals = self.files.iter().flat_map(|file| file.globals.keys());
            let mut names: Vec<&str> = globals.map(|name| &**name).collect();
            for builtin in functions::names() {
                names.push(builtin);
            }
            let near = nearest(name, names.into_iter(), 1);
            Fault::new(match near.first() {
                Some(near) => format!("`{name}` is not known; the nearest name is `{near}`"),
                None => format!("`{name}` is not known"),
            })
        })
    }

    /// What an import of `module` binds.
    pub(super) fn imported(&self, module: &str) -> Result<Value, Fault> {
        let (first, last) = match module.split_once('.') {
            Some((first, _)) => (first, module.rsplit('.').next().unwrap_or(module)),
            None => (module, module),
        };
        match first {
            "typing" | "collections" | "__future__" | "functools" | "math" | "torchinfo" => {
                Ok(self.seek_in_torch(last).unwrap_or(Value::Namespace))
            }
            "torch" | "torchvision" | "timm" => {
                if last == "init" {
                    return Ok(Value::Ignored);
                }
                Ok(self.seek_in_torch(last).unwrap_or(Value::Namespace))
            }
            _ => Err(Fault::new(format!(
                "`{module}` cannot be imported: a template knows torch, torch.nn, torchvision.models and what is shipped"
            ))),
        }
    }
}
