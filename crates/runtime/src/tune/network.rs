//! The graph that is fine-tuned: a backbone with a classifier of the wanted classes under the old one's name, its parameters,
//! and which of them train when.

use std::collections::HashMap;
use std::path::Path;

use pth::{DType, OpenOptions};
use serde::Serialize;
use surgery::{LazyEntry, LazyStateDict, LazyTensor, Plan, open_whole};

use super::config::{TuneConfig, Unfreeze};
use super::groups::{Group, matched, resolve};
use super::stages::{Stage, stages};
use crate::error::Error;
use crate::export::metadata;
use crate::head::{Head, Linear};
use crate::image::Preprocess;
use crate::onnx::{Model, Parameter, Reduction, nearest};
use crate::targets::Task;

/// What a network is made of.
pub(crate) struct NetworkOptions<'o> {
    /// The backbone.
    pub(crate) model: &'o Model,
    /// The tensor that the classifier reads.
    pub(crate) cut: &'o str,
    /// What makes rows of features of it.
    pub(crate) reduction: Reduction,
    /// Numbers of such a row.
    pub(crate) n_features: usize,
    /// Names of the classes.
    pub(crate) classes: &'o [String],
    /// How pictures become input, for the metadata.
    pub(crate) preprocess: &'o Preprocess,
}

/// A graph to fine-tune.
#[derive(Debug)]
pub(crate) struct Network {
    /// With the values that training begins at.
    pub(crate) model: Model,
    /// All of its parameters.
    pub(crate) parameters: Vec<Parameter>,
    /// The classifier's module.
    pub(crate) module: String,
    /// Where the classifier's values come from.
    pub(crate) classifier: Classifier,
    /// What trains, the top first.
    pub(crate) groups: Vec<Group>,
    /// When.
    pub(crate) stages: Vec<Stage>,
    /// What was taken from another checkpoint.
    pub(crate) loaded: Option<LoadReport>,
}

/// Where a classifier's first values come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Classifier {
    /// Drawn as torch draws a `Linear`'s.
    Fresh,
    /// Fitted by the solver on the frozen features.
    Solved,
    /// The backbone's own, which has as many classes.
    Own,
    /// Of the checkpoint that was loaded.
    Loaded,
}

/// What `load_state_dict(strict=False)` would say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LoadReport {
    /// Tensors that were put in.
    pub loaded: Vec<String>,
    /// Parameters of the network that the checkpoint lacks; they keep their values.
    pub missing: Vec<String>,
    /// Tensors of the checkpoint that the network lacks; they are left out.
    pub unexpected: Vec<String>,
}

impl Network {
    /// Puts the classifier on, loads what is to be loaded, draws what is to be fresh, and finds groups and boundaries.
    ///
    /// # Errors
    /// As [`resolve`], [`load_part`] and [`Model::splice`]; [`Error::Backbone`] for weights that are not float32.
    pub(crate) fn new(options: &NetworkOptions<'_>, config: &TuneConfig) -> Result<Network, Error> {
        let NetworkOptions {
            model, cut, classes, ..
        } = *options;
        let own = model.classifier_at(cut);
        let module = own
            .as_ref()
            .map_or_else(|| "head".to_owned(), |own| own.module.clone());
        let own = own.filter(|own| own.bias.len() == classes.len() && options.reduction == Reduction::None);
        let (d, c) = (options.n_features, classes.len());
        let (mut classifier, linear) = match own {
            Some(own) => {
                let linear = Linear {
                    weight: own.weight,
                    bias: own.bias,
                    n_in: d,
                    n_out: c,
                };
                (Classifier::Own, linear)
            }
            None => (
                Classifier::Fresh,
                fresh_linear(&module, d, c, config.trainer.init_seed)?,
            ),
        };
        let head = Head::linear(Task::SingleLabel, classes.to_vec(), linear.weight, linear.bias)?;
        let metadata = metadata(classes, Task::SingleLabel, options.preprocess);
        let mut model = model
            .untied()?
            .splice_as(&module, cut, options.reduction, &head, &metadata)?;
        let parameters = model.parameters();
        let names = [format!("{module}.weight"), format!("{module}.bias")];
        if !names
            .iter()
            .all(|name| parameters.iter().any(|parameter| parameter.initializer == *name))
        {
            return Err(Error::Backbone {
                path: model.path().to_owned(),
                reason: format!("its `{module}.weight` is used in front of the classifier too"),
            });
        }
        if let Some(odd) = parameters
            .iter()
            .find(|at| model.values(&at.initializer).is_none())
        {
            return Err(Error::Backbone {
                path: model.path().to_owned(),
                reason: format!("`{}` is not float32, and what is trained is", odd.name),
            });
        }
        let mut loaded = None;
        if let Some(path) = &config.load {
            let (with, report) = load_part(&model, &parameters, path)?;
            if names.iter().all(|name| report.loaded.contains(name)) {
                classifier = Classifier::Loaded;
            }
            (model, loaded) = (with, Some(report));
        }
        let drawn = matched(model.path(), &parameters, &config.fresh)?;
        if !drawn.is_empty() {
            model = draw(&model, &parameters, &drawn, config.trainer.init_seed)?;
            if drawn.iter().any(|&at| parameters[at].initializer == names[0]) {
                classifier = Classifier::Fresh;
            }
        }
        let groups = resolve(model.path(), &parameters, &module, config)?;
        let is_gradual = config.unfreeze != Unfreeze::AtOnce;
        let stages = stages(&model, cut, &parameters, &groups, is_gradual)?;
        Ok(Network {
            model,
            parameters,
            module,
            classifier,
            groups,
            stages,
            loaded,
        })
    }

    /// The name of what the graph gives.
    pub(crate) fn output(&self) -> &str {
        &self.model.outputs()[0]
    }

    /// Takes the solver's classifier.
    ///
    /// # Errors
    /// None that a classifier of these sizes could cause.
    pub(crate) fn set_classifier(&mut self, linear: &Linear) -> Result<(), Error> {
        let values = [
            (format!("{}.weight", self.module), linear.weight.clone()),
            (format!("{}.bias", self.module), linear.bias.clone()),
        ];
        self.model = self.model.with_values(&HashMap::from(values))?;
        self.classifier = Classifier::Solved;
        Ok(())
    }
}

/// `torch.nn.Linear`'s first values, by surgery's `init`.
fn fresh_linear(module: &str, n_in: usize, n_out: usize, seed: u64) -> Result<Linear, Error> {
    let (weight, bias) = (format!("{module}.weight"), format!("{module}.bias"));
    let shapes = [(weight.clone(), vec![n_out, n_in]), (bias.clone(), vec![n_out])];
    let mut drawn = init(&shapes, &[weight.clone(), bias.clone()], seed)?;
    let mut take = |name: &str| drawn.remove(name).unwrap_or_default();
    Ok(Linear {
        weight: take(&weight),
        bias: take(&bias),
        n_in,
        n_out,
    })
}

/// The model with the parameters at `drawn` as their layers' own `reset_parameters` would draw them.
fn draw(model: &Model, parameters: &[Parameter], drawn: &[usize], seed: u64) -> Result<Model, Error> {
    let shapes: Vec<(String, Vec<usize>)> = parameters
        .iter()
        .map(|at| (at.name.clone(), at.state_shape()))
        .collect();
    let names: Vec<String> = drawn.iter().map(|&at| parameters[at].name.clone()).collect();
    let values = init(&shapes, &names, seed)?;
    let in_graph = drawn.iter().filter_map(|&at| {
        let parameter = &parameters[at];
        let drawn = values.get(&parameter.name)?;
        let turned = parameter.turned(drawn, &parameter.state_shape());
        Some((parameter.initializer.clone(), turned))
    });
    model.with_values(&in_graph.collect())
}

/// Surgery's `init … default` of the tensors `names` among those of these shapes.
fn init(
    shapes: &[(String, Vec<usize>)],
    names: &[String],
    seed: u64,
) -> Result<HashMap<String, Vec<f32>>, Error> {
    let mut tensors = LazyStateDict::default();
    for (name, shape) in shapes {
        let zeros = LazyTensor::filled(DType::Float32, shape, 0.0);
        tensors.insert(name.clone(), LazyEntry::unmarked(zeros));
    }
    let plan = Plan::parse(&format!("init {} default seed={seed}", names.join(" ")))?;
    let (tensors, _) = plan.apply(tensors, &OpenOptions::default())?;
    names
        .iter()
        .map(|name| {
            let tensor = tensors.tensor(name).expect("init keeps every tensor");
            Ok((name.clone(), floats(&tensor.to_bytes()?)))
        })
        .collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let numbers = bytes.chunks_exact(4);
    numbers
        .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("chunks of four")))
        .collect()
}

/// The model with those tensors of a checkpoint whose names it has, as `load_state_dict(strict=False)`.
///
/// # Errors
/// [`Error::Weights`] for tensors of another shape, in torch's words; [`Error::NoParameter`] where no name agrees; as
/// [`open_whole`].
pub(crate) fn load_part(
    model: &Model,
    parameters: &[Parameter],
    path: &Path,
) -> Result<(Model, LoadReport), Error> {
    let tensors = open_whole(path, &OpenOptions::default())?;
    let mut report = LoadReport {
        loaded: Vec::new(),
        missing: Vec::new(),
        unexpected: Vec::new(),
    };
    let (mut values, mut faults) = (HashMap::new(), Vec::new());
    let known: HashMap<&str, &Parameter> = parameters.iter().map(|at| (at.name.as_str(), at)).collect();
    for (name, entry) in tensors.iter() {
        let Some(parameter) = known.get(name) else {
            if !name.ends_with("num_batches_tracked") {
                report.unexpected.push(name.to_owned());
            }
            continue;
        };
        let shape = parameter.state_shape();
        let Some(tensor) = entry.tensor().filter(|tensor| tensor.shape() == shape) else {
            let given: &[usize] = entry.tensor().map_or(&[], LazyTensor::shape);
            faults.push(format!(
                "size mismatch for {name}: copying a param with shape torch.Size({given:?}) from checkpoint, the shape in current model is torch.Size({shape:?})."
            ));
            continue;
        };
        let given = floats(&tensor.cast(DType::Float32).to_bytes()?);
        values.insert(parameter.initializer.clone(), parameter.turned(&given, &shape));
        report.loaded.push(name.to_owned());
    }
    if !faults.is_empty() {
        return Err(Error::Weights {
            path: model.path().to_owned(),
            faults,
        });
    }
    if report.loaded.is_empty() {
        let first = tensors.names().next().unwrap_or_default().to_owned();
        let suggestions = nearest(&first, known.keys().copied(), 5);
        return Err(Error::NoParameter {
            path: model.path().to_owned(),
            pattern: first,
            suggestions,
        });
    }
    let loaded = |at: &&Parameter| !report.loaded.contains(&at.name);
    report.missing = parameters
        .iter()
        .filter(loaded)
        .map(|at| at.name.clone())
        .collect();
    Ok((model.with_values(&values)?, report))
}
