//! Heads in files: torch's names, and in the metadata what the numbers do not say.

use std::collections::BTreeMap;
use std::path::Path;

use pth::{DType, Existing, StateDict, Tensor};

use super::layer::Kind;
use super::{BatchNorm1d, Head, Layer, LayerNorm, Linear};
use crate::error::Error;
use crate::targets::Task;

const CLASSES: &str = "classes";
const TASK: &str = "task";
const LAYERS: &str = "layers";

impl Head {
    /// All numbers by torch's names: `weight` and `bias` of a linear head, as `torch.nn.Linear` has them; else
    /// `torch.nn.Sequential`'s (`0.weight`, `1.running_mean`, …), where layers without numbers are counted too.
    pub fn state_dict(&self) -> StateDict {
        let mut tensors = StateDict::new();
        let mut add = |name: String, shape: &[usize], values: &[f32]| {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let tensor = Tensor::from_bytes(DType::Float32, shape, bytes);
            tensors.insert(&name, tensor.expect("the shape is the number of values"));
        };
        let is_linear = self.as_linear().is_some();
        let mut counted = Vec::new();
        for (at, layer) in self.layers.iter().enumerate() {
            let name = |field: &str| match is_linear {
                true => field.to_owned(),
                false => format!("{at}.{field}"),
            };
            match layer {
                Layer::Linear(linear) => {
                    add(name("weight"), &[linear.n_out, linear.n_in], &linear.weight);
                    add(name("bias"), &[linear.n_out], &linear.bias);
                }
                Layer::BatchNorm1d(norm) => {
                    let n = [norm.weight.len()];
                    add(name("weight"), &n, &norm.weight);
                    add(name("bias"), &n, &norm.bias);
                    add(name("running_mean"), &n, &norm.running_mean);
                    add(name("running_var"), &n, &norm.running_var);
                    counted.push((name("num_batches_tracked"), norm.num_batches_tracked));
                }
                Layer::LayerNorm(norm) => {
                    let n = [norm.weight.len()];
                    add(name("weight"), &n, &norm.weight);
                    add(name("bias"), &n, &norm.bias);
                }
                Layer::Relu | Layer::Gelu | Layer::Dropout { .. } => {}
            }
        }
        for (name, count) in counted {
            let tensor = Tensor::from_bytes(DType::Int64, &[], count.to_le_bytes().to_vec());
            tensors.insert(&name, tensor.expect("one number"));
        }
        tensors
    }

    /// Writes the state dict as safetensors, with task, classes and layers in its metadata.
    ///
    /// # Errors
    /// The file system's; [`Error::Surgery`] for class names beyond the format's header.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        surgery::save_safetensors(path, &self.state_dict(), &self.metadata(), Existing::Replace)?;
        Ok(())
    }

    /// What goes beside the numbers.
    pub(crate) fn metadata(&self) -> BTreeMap<String, String> {
        let kinds: Vec<Kind> = self.layers.iter().map(Layer::kind).collect();
        let json = |value: Result<String, serde_json::Error>| value.expect("plain data is JSON");
        let mut metadata = BTreeMap::from([(CLASSES.to_owned(), json(serde_json::to_string(&self.outputs)))]);
        if self.task != Task::SingleLabel {
            metadata.insert(TASK.to_owned(), json(serde_json::to_string(&self.task)));
        }
        if self.as_linear().is_none() {
            metadata.insert(LAYERS.to_owned(), json(serde_json::to_string(&kinds)));
        }
        metadata
    }

    /// Reads what [`save`](Head::save) wrote.
    ///
    /// # Errors
    /// [`Error::BadFile`] where it is no such head.
    pub fn open(path: &Path) -> Result<Head, Error> {
        let (tensors, metadata) = surgery::open_safetensors(path)?;
        let bad = |reason: String| Error::BadFile {
            path: path.to_owned(),
            reason,
        };
        let read = Read { tensors: &tensors };
        let kinds: Vec<Kind> = match metadata.get(LAYERS) {
            Some(text) => serde_json::from_str(text).map_err(|error| bad(format!("its layers: {error}")))?,
            None => vec![Kind::Linear],
        };
        let task: Task = match metadata.get(TASK) {
            Some(text) => serde_json::from_str(text).map_err(|error| bad(format!("its task: {error}")))?,
            None => Task::SingleLabel,
        };
        let is_linear = kinds == [Kind::Linear];
        let layers = kinds.iter().enumerate().map(|(at, kind)| {
            let prefix = if is_linear {
                String::new()
            } else {
                format!("{at}.")
            };
            read.layer(*kind, &prefix)
        });
        let layers: Vec<Layer> = layers.collect::<Result<_, String>>().map_err(bad)?;
        let n_outputs = match layers.last() {
            Some(Layer::Linear(linear)) => linear.n_out,
            _ => return Err(bad("the last layer of the head is not linear".to_owned())),
        };
        let outputs: Vec<String> = match metadata.get(CLASSES) {
            Some(text) => {
                serde_json::from_str(text).map_err(|error| bad(format!("its class names: {error}")))?
            }
            None => (0..n_outputs).map(|class| class.to_string()).collect(),
        };
        Head::new(task, outputs, layers).map_err(|error| match error {
            Error::Features(reason) => bad(reason),
            other => other,
        })
    }
}

struct Read<'t> {
    tensors: &'t StateDict,
}

impl Read<'_> {
    fn layer(&self, kind: Kind, prefix: &str) -> Result<Layer, String> {
        let values = |field: &str| self.values(&format!("{prefix}{field}")).map(|(_, values)| values);
        Ok(match kind {
            Kind::Linear => {
                let (shape, weight) = self.values(&format!("{prefix}weight"))?;
                let [n_out, n_in] = shape[..] else {
                    return Err(format!("`{prefix}weight` has the shape {shape:?}"));
                };
                Layer::Linear(Linear {
                    weight,
                    bias: values("bias")?,
                    n_in,
                    n_out,
                })
            }
            Kind::BatchNorm1d { eps } => Layer::BatchNorm1d(BatchNorm1d {
                weight: values("weight")?,
                bias: values("bias")?,
                running_mean: values("running_mean")?,
                running_var: values("running_var")?,
                num_batches_tracked: self.count(&format!("{prefix}num_batches_tracked"))?,
                eps,
            }),
            Kind::LayerNorm { eps } => Layer::LayerNorm(LayerNorm {
                weight: values("weight")?,
                bias: values("bias")?,
                eps,
            }),
            Kind::Relu => Layer::Relu,
            Kind::Gelu => Layer::Gelu,
            Kind::Dropout { p } => Layer::Dropout { p },
        })
    }

    fn values(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>), String> {
        let tensor = self.tensor(name, DType::Float32)?;
        let bytes = tensor.to_bytes().map_err(|error| error.to_string())?;
        let values = bytes.chunks_exact(4);
        let values = values.map(|bytes| f32::from_le_bytes(bytes.try_into().expect("chunks of four")));
        Ok((tensor.shape().to_vec(), values.collect()))
    }

    fn count(&self, name: &str) -> Result<i64, String> {
        let bytes = self
            .tensor(name, DType::Int64)?
            .to_bytes()
            .map_err(|error| error.to_string())?;
        let bytes: [u8; 8] = bytes[..]
            .try_into()
            .map_err(|_| format!("`{name}` is not one number"))?;
        Ok(i64::from_le_bytes(bytes))
    }

    fn tensor(&self, name: &str, dtype: DType) -> Result<&Tensor, String> {
        let tensor = self
            .tensors
            .get(name)
            .ok_or_else(|| format!("a head without `{name}`"))?;
        if tensor.dtype() != dtype {
            return Err(format!("`{name}` is not {dtype}"));
        }
        Ok(tensor)
    }
}
