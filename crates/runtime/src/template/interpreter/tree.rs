//! The modules of a network, from the outermost inwards.

use super::Interpreter;
use super::member::joined;
use crate::template::value::{ModuleId, Stored, Value};

/// Modules within modules.
const MAX_LEVELS: usize = 256;

impl Interpreter<'_> {
    /// Gives each module of a network the path that it has first.
    pub(in crate::template) fn name_paths(&mut self, root: ModuleId) {
        let mut paths = Vec::new();
        self.each_module(root, &mut |path, id| paths.push((id, path.to_owned())));
        self.paths.clear();
        for (id, path) in paths {
            self.paths.entry(id).or_insert(path);
        }
    }

    /// Whether what is called now is written down.
    pub(in crate::template) fn is_tracing(&self) -> bool {
        !self.paths.is_empty()
    }

    /// Calls `visit` for the network and all modules in it, each as often as it has a path.
    pub(in crate::template) fn each_module(&self, root: ModuleId, visit: &mut dyn FnMut(&str, ModuleId)) {
        let mut stack = vec![(String::new(), root, 0)];
        while let Some((path, id, level)) = stack.pop() {
            visit(&path, id);
            if level >= MAX_LEVELS {
                continue;
            }
            for (name, child) in self.modules[id].children.iter().rev() {
                if let Some(child) = child {
                    stack.push((joined(&path, name), *child, level + 1));
                }
            }
        }
    }

    /// Calls `visit` for each parameter and buffer, as often as a state dict has it.
    pub(in crate::template) fn each_tensor(&self, root: ModuleId, visit: &mut dyn FnMut(String, &Stored)) {
        self.each_module(root, &mut |path, id| {
            for (name, stored) in &self.modules[id].tensors {
                if let Some(stored) = stored {
                    visit(joined(path, name), stored);
                }
            }
        });
    }

    /// A whole number above zero among a module's attributes.
    pub(in crate::template) fn integer_of(&self, id: ModuleId, name: &str) -> Option<usize> {
        match self.modules[id].attributes.get(name)? {
            Value::Int(n) => usize::try_from(*n).ok().filter(|&n| n > 0),
            _ => None,
        }
    }

    /// Channels of what the network takes: those of its first convolution.
    pub(in crate::template) fn in_channels(&self, root: ModuleId) -> Option<usize> {
        let mut found = None;
        self.each_module(root, &mut |_, id| {
            if found.is_none() && &*self.modules[id].class_name == "Conv2d" {
                found = self.integer_of(id, "in_channels");
            }
        });
        found
    }
}
