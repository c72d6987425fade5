//! Values from PyTorch's initialisers: `init`, `zeros`, `ones`, `head`.

use pth::DType;

use super::{map_tensors, matched};
use crate::Error;
use crate::lazy::{Distribution, Draw, LazyEntry, LazyStateDict, LazyTensor};
use crate::marks;
use crate::plan::args::{Args, At, Patterns, list, nearest, parse_dtype};
use crate::plan::{Effect, Fault, Operation, Workspace};

/// An initialiser of `torch.nn.init`, or what a layer's own `reset_parameters` would draw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Method {
    Default,
    Constant(f64),
    Normal { std: f64, mean: f64 },
    Uniform { low: f64, high: f64 },
    TruncatedNormal { std: f64 },
    XavierUniform { gain: f64 },
    XavierNormal { gain: f64 },
    KaimingUniform { a: f64 },
    KaimingNormal { a: f64 },
    Orthogonal { gain: f64 },
}

const METHODS: [&str; 12] = [
    "default",
    "zeros",
    "ones",
    "constant",
    "normal",
    "uniform",
    "trunc_normal",
    "xavier_uniform",
    "xavier_normal",
    "kaiming_uniform",
    "kaiming_normal",
    "orthogonal",
];

impl Method {
    /// `trunc_normal:.02`, or the name with `numbers` that stood behind it.
    fn parse(word: &At<String>, numbers: &[f64]) -> Result<Method, Fault> {
        let (name, own) = word.value.split_once(':').unwrap_or((&word.value, ""));
        let mut given = numbers.to_vec();
        if !own.is_empty() {
            let text = At {
                value: own.to_owned(),
                span: word.span.clone(),
            };
            given.extend(list::<f64>(&text, ',', "numbers")?);
        }
        let number = |i: usize, default: f64| given.get(i).copied().unwrap_or(default);
        // The defaults are those of the functions of `torch.nn.init`.
        let (method, most) = match name {
            "default" => (Method::Default, 0),
            "zeros" => (Method::Constant(0.0), 0),
            "ones" => (Method::Constant(1.0), 0),
            "constant" if given.len() == 1 => (Method::Constant(given[0]), 1),
            "normal" => (
                Method::Normal {
                    std: number(0, 1.0),
                    mean: number(1, 0.0),
                },
                2,
            ),
            "uniform" => (
                Method::Uniform {
                    low: number(0, 0.0),
                    high: number(1, 1.0),
                },
                2,
            ),
            "trunc_normal" => (Method::TruncatedNormal { std: number(0, 1.0) }, 1),
            "xavier_uniform" => (Method::XavierUniform { gain: number(0, 1.0) }, 1),
            "xavier_normal" => (Method::XavierNormal { gain: number(0, 1.0) }, 1),
            "kaiming_uniform" => (Method::KaimingUniform { a: number(0, 0.0) }, 1),
            "kaiming_normal" => (Method::KaimingNormal { a: number(0, 0.0) }, 1),
            "orthogonal" => (Method::Orthogonal { gain: number(0, 1.0) }, 1),
            "constant" => {
                return Err(Fault::new("`constant` takes one number, as in `constant:0.5`").at(&word.span));
            }
            _ => {
                let fault = Fault::new(format!("`{name}` is no initialiser")).at(&word.span);
                return Err(match nearest(name, &METHODS) {
                    Some(near) => fault.hint(format!("did you mean `{near}`?")),
                    None => fault.hint(format!("the initialisers are {}", METHODS.join(", "))),
                });
            }
        };
        if given.len() > most || given.iter().any(|number| !number.is_finite()) {
            return Err(Fault::new(format!("`{name}` takes at most {most} finite numbers")).at(&word.span));
        }
        Ok(method)
    }

    /// `shape` filled for the tensor called `name`.
    pub(crate) fn fill(
        self,
        tensors: &LazyStateDict,
        name: &str,
        dtype: DType,
        shape: &[usize],
        seed: u64,
    ) -> Result<LazyTensor, Error> {
        if !crate::lazy::is_convertible(dtype) && self != Method::Constant(0.0) {
            return Err(Error::CannotBeMade {
                name: name.to_owned(),
                cause: Error::NotCalculated(dtype).to_string(),
            });
        }
        let draw = |distribution| LazyTensor::drawn(dtype, shape, Draw::new(distribution, seed, name));
        let symmetric = |bound: f64| {
            draw(Distribution::Uniform {
                low: -bound,
                high: bound,
            })
        };
        let gain = |a: f64| (2.0 / (1.0 + a * a)).sqrt();
        Ok(match self {
            Method::Default => match default_of(tensors, name, shape) {
                Some(Method::Default) | None => {
                    return Err(Error::NoDefault {
                        name: name.to_owned(),
                    });
                }
                Some(method) => return method.fill(tensors, name, dtype, shape, seed),
            },
            Method::Constant(value) => LazyTensor::filled(dtype, shape, value),
            Method::Normal { std, mean } => draw(Distribution::Normal { mean, std }),
            Method::Uniform { low, high } => draw(Distribution::Uniform { low, high }),
            Method::TruncatedNormal { std } => draw(Distribution::TruncatedNormal {
                std,
                low: -2.0,
                high: 2.0,
            }),
            Method::XavierUniform { gain } => {
                let (fan_in, fan_out) = fans(name, shape)?;
                symmetric(gain * (6.0 / (fan_in + fan_out)).sqrt())
            }
            Method::XavierNormal { gain } => {
                let (fan_in, fan_out) = fans(name, shape)?;
                draw(Distribution::Normal {
                    mean: 0.0,
                    std: gain * (2.0 / (fan_in + fan_out)).sqrt(),
                })
            }
            Method::KaimingUniform { a } => symmetric(gain(a) * (3.0 / fans(name, shape)?.0).sqrt()),
            Method::KaimingNormal { a } => draw(Distribution::Normal {
                mean: 0.0,
                std: gain(a) / fans(name, shape)?.0.sqrt(),
            }),
            Method::Orthogonal { gain } => {
                fans(name, shape)?;
                draw(Distribution::Orthogonal { rows: shape[0], gain })
            }
        })
    }
}

/// `(fan_in, fan_out)` as `torch.nn.init._calculate_fan_in_and_fan_out`.
fn fans(name: &str, shape: &[usize]) -> Result<(f64, f64), Error> {
    let [out, input, kernel @ ..] = shape else {
        return Err(Error::NoFans {
            name: name.to_owned(),
            shape: shape.to_vec(),
        });
    };
    let field: usize = kernel.iter().product();
    // An empty tensor has no fans, and nothing to be drawn for.
    Ok(((input * field).max(1) as f64, (out * field).max(1) as f64))
}

/// What the layer that has a tensor of this name would draw for it: `reset_parameters` of torch's own layers.
fn default_of(tensors: &LazyStateDict, name: &str, shape: &[usize]) -> Option<Method> {
    let (module, leaf) = name.rsplit_once('.').unwrap_or(("", name));
    let sibling = |leaf: &str| {
        let path = if module.is_empty() {
            leaf.to_owned()
        } else {
            format!("{module}.{leaf}")
        };
        tensors.get(&path).map(|entry| entry.shape().to_vec())
    };
    let (zeros, ones) = (Method::Constant(0.0), Method::Constant(1.0));
    let bounded = |n: usize| {
        let bound = 1.0 / (n.max(1) as f64).sqrt();
        Method::Uniform {
            low: -bound,
            high: bound,
        }
    };
    if leaf.starts_with("weight_ih_l")
        || leaf.starts_with("weight_hh_l")
        || leaf.starts_with("bias_ih_l")
        || leaf.starts_with("bias_hh_l")
    {
        // Recurrent layers draw all from the hidden size.
        return Some(bounded(*sibling("weight_hh_l0")?.get(1)?));
    }
    match leaf {
        "running_mean" | "num_batches_tracked" | "in_proj_bias" => Some(zeros),
        "running_var" => Some(ones),
        "in_proj_weight" => Some(Method::XavierUniform { gain: 1.0 }),
        "weight" if shape.len() == 1 => Some(ones),
        // torch.nn.Embedding draws from the standard normal distribution.
        "weight" if is_embedding(module) && shape.len() == 2 => Some(Method::Normal { std: 1.0, mean: 0.0 }),
        "weight" if shape.len() >= 2 => Some(Method::KaimingUniform { a: 5_f64.sqrt() }),
        "bias" => {
            let weight = sibling("weight")?;
            let is_attention_out = module.rsplit_once('.').is_some_and(|(parent, last)| {
                last == "out_proj" && tensors.contains(&format!("{parent}.in_proj_weight"))
            });
            match weight.as_slice() {
                [_] => Some(zeros),
                _ if is_attention_out => Some(zeros),
                [_, input @ ..] => Some(bounded(input.iter().product())),
                [] => None,
            }
        }
        _ => None,
    }
}

/// Whether a module is called as embeddings are.
fn is_embedding(module: &str) -> bool {
    let last = module.rsplit('.').next().unwrap_or(module);
    let is_projection = last.contains("proj") || last.contains("patch");
    !is_projection && (last.contains("embed") || matches!(last, "wte" | "wpe" | "tok_emb" | "pos_emb"))
}

/// `init layer4.** default`, `init head.weight 10x768 trunc_normal .02 seed=0`, `zeros b 10`
#[derive(Debug)]
struct Init {
    what: What,
    method: Method,
    seed: u64,
    span: std::ops::Range<usize>,
}

#[derive(Debug)]
enum What {
    /// Tensors that are there.
    There { patterns: Patterns, is_optional: bool },
    /// A new one.
    New {
        name: At<String>,
        shape: Vec<usize>,
        dtype: Option<DType>,
    },
}

fn is_shape(text: &str) -> bool {
    text.contains(|char: char| char.is_ascii_digit())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || matches!(byte, b'x' | b','))
}

pub(crate) fn parse_init(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    let options = Options::read(args)?;
    let is_number = |text: &str| text.parse::<f64>().is_ok() && !is_shape(text);
    let mut numbers = Vec::new();
    // `normal 2` has a whole number behind its name, which looks like a shape of one dimension: a name goes before.
    while let Some(word) = args.pop_back_if(is_number) {
        numbers.insert(0, word.value.parse::<f64>().unwrap_or(f64::NAN));
    }
    let is_method = |text: &str| METHODS.contains(&text.split(':').next().unwrap_or(text));
    let word = args.pop_back_if(is_method);
    let method = match &word {
        Some(word) => Method::parse(word, &numbers)?,
        None if !numbers.is_empty() => {
            return Err(Fault::new("numbers without an initialiser").at(&args.verb_span()));
        }
        None => {
            let mistyped = args.pop_back_if(|text| {
                !text.contains(['.', '*'])
                    && !is_shape(text)
                    && nearest(text, &METHODS).is_some_and(|near| near.len() > 4)
            });
            match mistyped {
                Some(word) if !args.is_empty() => Method::parse(&word, &[])?,
                Some(word) => {
                    return Err(
                        Fault::new(format!("there is no tensor in front of `{}`", word.value)).at(&word.span),
                    );
                }
                None => Method::Default,
            }
        }
    };
    init(args, method, options)
}

pub(crate) fn parse_zeros(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    let options = Options::read(args)?;
    init(args, Method::Constant(0.0), options)
}

pub(crate) fn parse_ones(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    let options = Options::read(args)?;
    init(args, Method::Constant(1.0), options)
}

/// `seed=` and `dtype=`, which stand behind the words.
struct Options {
    seed: u64,
    dtype: Option<DType>,
}

impl Options {
    fn read(args: &mut Args) -> Result<Options, Fault> {
        Ok(Options {
            seed: args.parsed("seed", "a whole number")?.unwrap_or(0),
            dtype: args.option("dtype").map(|text| parse_dtype(&text)).transpose()?,
        })
    }
}

fn init(args: &mut Args, method: Method, options: Options) -> Result<Box<dyn Operation>, Fault> {
    let Options { seed, dtype } = options;
    let shape = args.pop_back_if(is_shape);
    let what = match shape {
        Some(text) => {
            let separator = if text.value.contains('x') { 'x' } else { ',' };
            What::New {
                name: args.word("a name")?,
                shape: list(&text, separator, "a shape such as `10x768`")?,
                dtype,
            }
        }
        None => What::There {
            patterns: args.patterns(0)?,
            is_optional: args.is_optional,
        },
    };
    Ok(Box::new(Init {
        what,
        method,
        seed,
        span: args.verb_span(),
    }))
}

impl Operation for Init {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        match &self.what {
            What::There {
                patterns,
                is_optional,
            } => {
                let names = matched(&work.tensors, patterns, *is_optional)?;
                let all = work.tensors.clone();
                map_tensors(&mut work.tensors, &names, |name, tensor| {
                    let filled = self
                        .method
                        .fill(&all, name, tensor.dtype(), tensor.shape(), self.seed);
                    filled.map_err(|error| Fault::from(error).at(&self.span))
                })?;
                Ok(Effect::lossy(format!("{} initialised", names.len())))
            }
            What::New { name, shape, dtype } => {
                if work.tensors.contains(&name.value) {
                    return Err(Fault::new(format!("there is a tensor `{}` already", name.value))
                        .at(&name.span)
                        .hint("without a shape it is initialised anew"));
                }
                let dtype = dtype.unwrap_or_else(|| common_float(&work.tensors));
                super::matching::check_size(&name.value, &LazyTensor::filled(dtype, shape, 0.0))
                    .map_err(|fault| fault.at(&name.span))?;
                let tensor = self
                    .method
                    .fill(&work.tensors, &name.value, dtype, shape, self.seed)?;
                let entry = fresh(&work.tensors, &name.value, tensor);
                work.tensors.insert(name.value.clone(), entry);
                Ok(Effect::exact(format!("{dtype} {shape:?}")))
            }
        }
    }
}

/// The type of most of the floating tensors.
pub(crate) fn common_float(tensors: &LazyStateDict) -> DType {
    let mut counts: Vec<(DType, usize)> = Vec::new();
    for tensor in tensors
        .iter()
        .filter_map(|(_, entry)| entry.tensor())
        .filter(|tensor| tensor.dtype().is_float())
    {
        match counts.iter_mut().find(|(dtype, _)| *dtype == tensor.dtype()) {
            Some((_, n)) => *n += 1,
            None => counts.push((tensor.dtype(), 1)),
        }
    }
    counts
        .into_iter()
        .max_by_key(|(_, n)| *n)
        .map_or(DType::Float32, |(dtype, _)| dtype)
}

/// A new tensor, trainable where marks are known.
pub(crate) fn fresh(tensors: &LazyStateDict, name: &str, tensor: LazyTensor) -> LazyEntry {
    let entry = LazyEntry::unmarked(tensor);
    let trains =
        tensors.is_marked() && LazyStateDict::can_train(name, &entry) && !marks::is_buffer_name(name);
    LazyEntry {
        requires_grad: trains,
        is_parameter: trains,
        ..entry
    }
}

/// `head fc classes=10`, `head fc drop`
#[derive(Debug)]
struct Head {
    module: At<String>,
    /// None to leave it out.
    classes: Option<usize>,
    n_inputs: Option<usize>,
    method: Method,
    has_bias: Option<bool>,
    seed: u64,
}

pub(crate) fn parse_head(args: &mut Args) -> Result<Box<dyn Operation>, Fault> {
    let classes: Option<std::num::NonZeroUsize> = args.parsed("classes", "a number of classes")?;
    let method = match args.option("init") {
        Some(word) => Method::parse(&word, &[])?,
        None => Method::Default,
    };
    let n_inputs: Option<std::num::NonZeroUsize> = args.parsed("in", "a number of features")?;
    let has_bias = args.parsed("bias", "true or false")?;
    let seed = args.parsed("seed", "a whole number")?.unwrap_or(0);
    let module = args.word("a module's name")?;
    let drops = args.take("drop");
    if drops == classes.is_some() {
        return Err(Fault::new("`head` takes either `classes=N` or `drop`").at(&args.verb_span()));
    }
    Ok(Box::new(Head {
        module,
        classes: classes.map(usize::from),
        n_inputs: n_inputs.map(usize::from),
        method,
        has_bias,
        seed,
    }))
}

impl Operation for Head {
    fn apply(&self, work: &mut Workspace) -> Result<Effect, Fault> {
        let module = self.module.value.trim_end_matches('.');
        let (weight, bias) = (format!("{module}.weight"), format!("{module}.bias"));
        let tensors = &mut work.tensors;
        let old = tensors
            .get(&weight)
            .map(|entry| (entry.dtype_of(), entry.shape().to_vec()));
        if old.is_none() && self.n_inputs.is_none() {
            let fault = Fault::from(Error::NoMatch {
                rule: format!("is `{weight}`"),
            })
            .at(&self.module.span);
            return Err(fault.hint("`in=512` makes a head where there is none"));
        }
        let Some(classes) = self.classes else {
            let n = tensors.len();
            tensors.retain(|name, _| name != weight && name != bias);
            return Ok(Effect::lossy(format!("{} dropped", n - tensors.len())));
        };
        let (dtype, mut shape) = match old {
            Some((Some(dtype), shape)) if shape.len() >= 2 => (dtype, shape),
            Some((_, shape)) => {
                return Err(
                    Fault::new(format!("`{weight}` {shape:?} is no weight of a linear layer"))
                        .at(&self.module.span),
                );
            }
            None => (common_float(tensors), vec![0, 0]),
        };
        shape[0] = classes;
        if let Some(n_inputs) = self.n_inputs {
            shape[1] = n_inputs;
        }
        let has_bias = self
            .has_bias
            .unwrap_or(tensors.contains(&bias) || !tensors.contains(&weight));
        let filled = self.method.fill(tensors, &weight, dtype, &shape, self.seed)?;
        let entry = fresh(tensors, &weight, filled);
        tensors.insert(weight, entry);
        if has_bias {
            let entry = LazyEntry::unmarked(LazyTensor::filled(dtype, &[classes], 0.0));
            tensors.insert(bias.clone(), entry);
            // The initialisers of matrices are not for biases: these are what the layer draws, or zero.
            let method = match self.method {
                Method::Default => Method::Default,
                _ => Method::Constant(0.0),
            };
            let filled = method.fill(tensors, &bias, dtype, &[classes], self.seed)?;
            let entry = fresh(tensors, &bias, filled);
            tensors.insert(bias, entry);
        } else {
            tensors.retain(|name, _| name != bias);
        }
        Ok(Effect::lossy(format!("{shape:?} initialised")))
    }
}
