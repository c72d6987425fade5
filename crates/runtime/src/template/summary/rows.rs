//! Calls to rows, by torchinfo's rules.

use std::collections::{HashMap, HashSet};

use super::{BatchSize, NetworkRow, NetworkSummary};
use crate::template::interpreter::Interpreter;
use crate::template::value::{Base, Dim, ModuleId, Role, Value};

/// What torchinfo's `sys.getsizeof` adds to a tensor's bytes.
const PYTHON_OBJECT_BYTES: usize = 64;
/// A float32.
const ELEMENT_BYTES: usize = 4;

/// Where a module stands in the network: the last of its places.
#[derive(Clone)]
struct Place {
    var_name: String,
    depth: usize,
    parent: Option<ModuleId>,
}

/// A row in the making.
struct Line {
    module: ModuleId,
    depth: usize,
    /// Whether it is the container itself, put in because it is not called.
    is_put_in: bool,
    is_recursive: bool,
    input: Vec<usize>,
    output: Vec<usize>,
}

struct Network<'n, 's> {
    interpreter: &'n Interpreter<'s>,
    places: HashMap<ModuleId, Place>,
    trains: &'n dyn Fn(&str) -> bool,
}

pub(super) fn summarise(
    interpreter: &Interpreter<'_>,
    root: ModuleId,
    batch: BatchSize,
    trains: &dyn Fn(&str) -> bool,
) -> NetworkSummary {
    let network = Network {
        interpreter,
        places: places(interpreter, root),
        trains,
    };
    let mut lines = Vec::new();
    let mut seen = HashSet::new();
    for call in &interpreter.trace.calls {
        lines.push(Line {
            module: call.module,
            depth: network.places.get(&call.module).map_or(0, |place| place.depth),
            is_put_in: false,
            is_recursive: !seen.insert(call.module),
            input: sizes(&call.input, batch.n),
            output: sizes(&call.output, batch.n),
        });
    }
    network.put_in_containers(&mut lines, &mut seen);
    let rows = network.rows(&lines);
    totals(rows, batch)
}

fn sizes(shape: &[Dim], n: usize) -> Vec<usize> {
    let size = |dim: &Dim| match dim.is_batch {
        true => dim.n.saturating_mul(n),
        false => dim.n,
    };
    shape.iter().map(size).collect()
}

fn product(sizes: &[usize]) -> usize {
    sizes.iter().fold(1, |n: usize, &size| n.saturating_mul(size))
}

fn places(interpreter: &Interpreter<'_>, root: ModuleId) -> HashMap<ModuleId, Place> {
    let mut places = HashMap::new();
    let name = interpreter.modules[root].class_name.to_string();
    let mut stack = vec![(name, root, 0, None)];
    while let Some((var_name, id, depth, parent)) = stack.pop() {
        let place = Place {
            var_name,
            depth,
            parent,
        };
        places.insert(id, place);
        for (name, child) in interpreter.modules[id].children.iter().rev() {
            if let Some(child) = child {
                stack.push((name.to_string(), *child, depth + 1, Some(id)));
            }
        }
    }
    places
}

impl Network<'_, '_> {
    /// Modules that hold others and are not called, such as a `ModuleList`, in front of the first row that is in them.
    fn put_in_containers(&self, lines: &mut Vec<Line>, seen: &mut HashSet<ModuleId>) {
        let mut current: HashMap<usize, ModuleId> = HashMap::new();
        let mut at = 0;
        while at < lines.len() {
            let (module, depth) = (lines[at].module, lines[at].depth);
            let mut around: HashMap<usize, ModuleId> = HashMap::new();
            let mut parent = self.places.get(&module).and_then(|place| place.parent);
            while let Some(id) = parent {
                let place = &self.places[&id];
                if place.depth == 0 {
                    break;
                }
                around.insert(place.depth, id);
                parent = place.parent;
            }
            let mut n_new = 0;
            for d in 1..depth {
                let Some(&holder) = around.get(&d) else { continue };
                let before = (at + n_new).checked_sub(1).and_then(|before| lines.get(before));
                let is_before = before.is_some_and(|line| line.is_put_in && line.module == holder);
                if current.get(&d) == Some(&holder) || is_before {
                    continue;
                }
                let line = Line {
                    module: holder,
                    depth: d,
                    is_put_in: true,
                    is_recursive: !seen.insert(holder),
                    input: Vec::new(),
                    output: Vec::new(),
                };
                lines.insert(at + n_new, line);
                current.insert(d, holder);
                n_new += 1;
            }
            current.insert(depth, module);
            let mut deeper = depth + 1;
            while current.remove(&deeper).is_some() {
                deeper += 1;
            }
            // The same line again where some were put in before it, as torchinfo's loop comes to it again.
            at += 1;
        }
    }

    fn rows(&self, lines: &[Line]) -> Vec<NetworkRow> {
        let mut idxs: HashMap<usize, usize> = HashMap::new();
        let mut rows: Vec<NetworkRow> = Vec::new();
        for (at, line) in lines.iter().enumerate() {
            let module = &self.interpreter.modules[line.module];
            let idx = idxs.entry(line.depth).or_default();
            *idx += 1;
            let below = lines[at + 1..]
                .iter()
                .take_while(|other| other.depth > line.depth);
            let (n_params, n_trainable) = self.count(line.module);
            rows.push(NetworkRow {
                class: module.class_name.to_string(),
                var_name: self
                    .places
                    .get(&line.module)
                    .map_or_else(String::new, |place| place.var_name.clone()),
                depth: line.depth,
                depth_idx: *idx,
                is_leaf: self.is_leaf(line.module),
                is_recursive: line.is_recursive,
                kernel: kernel(module.attributes.get("kernel_size")),
                input: line.input.clone(),
                output: line.output.clone(),
                n_params,
                n_trainable,
                n_left: 0,
                n_left_trainable: 0,
                n_mult_adds: if line.is_put_in { 0 } else { self.mult_adds(line) },
                n_below: below.count(),
            });
        }
        // What is left depends on the rows below, which come later.
        for at in (0..rows.len()).rev() {
            let below = &rows[at + 1..=at + rows[at].n_below];
            let new = || below.iter().filter(|row| !row.is_recursive);
            let params = new().map(|row| if row.is_leaf { row.n_params } else { row.n_left });
            let taken = params.fold(0, usize::saturating_add);
            let params = new().map(|row| {
                if row.is_leaf {
                    row.n_trainable
                } else {
                    row.n_left_trainable
                }
            });
            let taken_trainable = params.fold(0, usize::saturating_add);
            rows[at].n_left = rows[at].n_params.saturating_sub(taken);
            rows[at].n_left_trainable = rows[at].n_trainable.saturating_sub(taken_trainable);
        }
        rows
    }

    /// Elements of the parameters in a module, each once, and of those that train.
    fn count(&self, id: ModuleId) -> (usize, usize) {
        let (mut n_params, mut n_trainable) = (0usize, 0usize);
        self.each_parameter(id, &mut |_, name, n| {
            n_params = n_params.saturating_add(n);
            if (self.trains)(name) {
                n_trainable = n_trainable.saturating_add(n);
            }
        });
        (n_params, n_trainable)
    }

    /// Calls `visit` with the name within the module, the whole name and the number of elements.
    fn each_parameter(&self, id: ModuleId, visit: &mut dyn FnMut(&str, &str, usize)) {
        let mut seen = HashSet::new();
        self.interpreter.each_module(id, &mut |path, module| {
            if !seen.insert(module) {
                return;
            }
            let whole = self.interpreter.paths.get(&module).map_or("", String::as_str);
            for (name, stored) in &self.interpreter.modules[module].tensors {
                let Some(stored) = stored.as_ref().filter(|stored| stored.role == Role::Parameter) else {
                    continue;
                };
                let join = |path: &str| match path {
                    "" => name.to_string(),
                    path => format!("{path}.{name}"),
                };
                visit(&join(path), &join(whole), product(&stored.shape));
            }
        });
    }

    /// Whether no module is in it that Python takes for true: a container without modules is not.
    fn is_leaf(&self, id: ModuleId) -> bool {
        let children = self.interpreter.modules[id].children.values().flatten();
        !children.into_iter().any(|&child| {
            let child = &self.interpreter.modules[child];
            child.base == Base::Module || !child.children.is_empty()
        })
    }

    /// As torchinfo counts: of convolutions a multiplication for each weight and position, of all else one for each weight and sample.
    fn mult_adds(&self, line: &Line) -> usize {
        let is_conv = self.interpreter.modules[line.module].class_name.contains("Conv");
        let out = &line.output;
        let first = out.first().copied().unwrap_or(1);
        let mut n = 0usize;
        self.each_parameter(line.module, &mut |name, _, n_params| {
            let times = match name {
                "weight" | "bias" if is_conv => {
                    first.saturating_mul(product(out.get(2..).unwrap_or_default()))
                }
                "weight" | "bias" => first,
                name if name.contains("weight") || name.contains("bias") => product(&out[..out.len().min(2)]),
                _ => 0,
            };
            n = n.saturating_add(n_params.saturating_mul(times));
        });
        n
    }
}

fn kernel(value: Option<&Value>) -> Vec<usize> {
    let number = |value: &Value| value.int().and_then(|n| usize::try_from(n).ok());
    match value {
        None => Vec::new(),
        Some(value) => match value.items() {
            Some(items) => items.iter().filter_map(number).collect(),
            None => number(value).into_iter().collect(),
        },
    }
}

fn totals(rows: Vec<NetworkRow>, batch: BatchSize) -> NetworkSummary {
    let mut out = NetworkSummary {
        rows: Vec::new(),
        n_params: 0,
        n_trainable: 0,
        n_mult_adds: 0,
        input_nbytes: product(&[ELEMENT_BYTES, batch.n, batch.channels, batch.height, batch.width])
            .saturating_add(PYTHON_OBJECT_BYTES),
        passes_nbytes: 0,
        params_nbytes: 0,
    };
    let add = |sum: &mut usize, n: usize| *sum = sum.saturating_add(n);
    for row in &rows {
        if row.is_leaf {
            add(&mut out.n_mult_adds, row.n_mult_adds);
            if row.n_params > 0 {
                add(
                    &mut out.passes_nbytes,
                    product(&row.output).saturating_mul(2 * ELEMENT_BYTES),
                );
            }
        }
        if row.is_recursive {
            continue;
        }
        let (n_params, n_trainable) = match row.is_leaf {
            true => (row.n_params, row.n_trainable),
            false => (row.n_left, row.n_left_trainable),
        };
        add(&mut out.n_params, n_params);
        add(&mut out.n_trainable, n_trainable);
        if row.is_leaf {
            add(&mut out.params_nbytes, row.n_params.saturating_mul(ELEMENT_BYTES));
        }
    }
    out.rows = rows;
    out
}
