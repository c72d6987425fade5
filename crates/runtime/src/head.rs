//! A linear head: `logits = features · weightᵀ + bias`, on the features as the backbone gives them.

use std::collections::BTreeMap;
use std::path::Path;

use pth::{DType, Existing, StateDict, Tensor};

use crate::error::Error;
use crate::features::Features;
use crate::onnx::HeadWeights;
use crate::solve::{Fitted, matmul_transposed};

/// A trained classifier over cached features; in a file, `weight [C, D]` and `bias [C]` as `torch.nn.Linear` has them.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearHead {
    classes: Vec<String>,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

const CLASSES: &str = "classes";

impl LinearHead {
    /// The head of a fit.
    ///
    /// # Errors
    /// [`Error::Features`] where the sizes disagree with the number of classes.
    pub fn new(classes: Vec<String>, fitted: &Fitted) -> Result<LinearHead, Error> {
        if classes.is_empty()
            || fitted.bias.len() != classes.len()
            || !fitted.weight.len().is_multiple_of(classes.len())
        {
            return Err(Error::Features(format!(
                "a head of {} rows for {} classes",
                fitted.bias.len(),
                classes.len()
            )));
        }
        Ok(LinearHead {
            classes,
            weight: fitted.weight.clone(),
            bias: fitted.bias.clone(),
        })
    }

    /// Class names in order.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// D.
    pub fn n_features(&self) -> usize {
        self.weight.len() / self.classes.len()
    }

    /// `[N, C]`.
    ///
    /// # Errors
    /// [`Error::Features`] where the features have another length.
    pub fn logits(&self, features: &Features) -> Result<Vec<f32>, Error> {
        if features.n_features() != self.n_features() {
            return Err(Error::Features(format!(
                "they have {} numbers a row, and the head takes {}",
                features.n_features(),
                self.n_features()
            )));
        }
        Ok(LinearHead::logits_of(&self.weight, &self.bias, features))
    }

    /// How far each logit `[N, C]` may be off because its features were rounded to float16 when they were stored: half a
    /// unit in the last place of every product, all in one direction.
    pub(crate) fn rounding_slack(&self, features: &Features) -> Vec<f32> {
        const HALF_UNIT: f32 = 1.0 / 2048.0;
        let weight: Vec<f32> = self.weight.iter().map(|value| value.abs() * HALF_UNIT).collect();
        let bias = vec![0.0; self.bias.len()];
        LinearHead::logits_of(&weight, &bias, &features.abs())
    }

    pub(crate) fn logits_of(weight: &[f32], bias: &[f32], features: &Features) -> Vec<f32> {
        let mut logits = vec![0.0; features.n_rows() * bias.len()];
        matmul_transposed(features.values(), weight, &mut logits, features.n_features());
        for row in logits.chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(bias).for_each(|(logit, bias)| *logit += bias);
        }
        logits
    }

    /// What goes into an ONNX graph.
    pub fn weights(&self) -> HeadWeights<'_> {
        HeadWeights {
            weight: &self.weight,
            bias: &self.bias,
            n_classes: self.classes.len(),
            n_features: self.n_features(),
        }
    }

    /// Writes `weight`, `bias` and the class names as safetensors.
    ///
    /// # Errors
    /// The file system's; [`Error::Surgery`] for class names beyond the format's header.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let tensor = |shape: &[usize], values: &[f32]| {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            Tensor::from_bytes(DType::Float32, shape, bytes).expect("the shape is the number of values")
        };
        let mut tensors = StateDict::new();
        tensors.insert(
            "weight",
            tensor(&[self.classes.len(), self.n_features()], &self.weight),
        );
        tensors.insert("bias", tensor(&[self.classes.len()], &self.bias));
        let classes = serde_json::to_string(&self.classes).expect("strings are JSON");
        surgery::save_safetensors(
            path,
            &tensors,
            &BTreeMap::from([(CLASSES.to_owned(), classes)]),
            Existing::Replace,
        )?;
        Ok(())
    }

    /// Reads what [`save`](LinearHead::save) wrote.
    ///
    /// # Errors
    /// [`Error::BadFile`] where it is no such head.
    pub fn open(path: &Path) -> Result<LinearHead, Error> {
        let (tensors, metadata) = surgery::open_safetensors(path)?;
        let bad = |reason: String| Error::BadFile {
            path: path.to_owned(),
            reason,
        };
        let read = |name: &str| -> Result<(Vec<usize>, Vec<f32>), Error> {
            let tensor = tensors
                .get(name)
                .ok_or_else(|| bad(format!("a head without `{name}`")))?;
            if tensor.dtype() != DType::Float32 {
                return Err(bad(format!("`{name}` is not float32")));
            }
            let bytes = tensor.to_bytes().map_err(|error| bad(error.to_string()))?;
            let values = bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().expect("chunks of four")));
            Ok((tensor.shape().to_vec(), values.collect()))
        };
        let (shape, weight) = read("weight")?;
        let (bias_shape, bias) = read("bias")?;
        let classes: Vec<String> = match metadata.get(CLASSES) {
            Some(text) => {
                serde_json::from_str(text).map_err(|error| bad(format!("its class names: {error}")))?
            }
            None => (0..bias.len()).map(|class| class.to_string()).collect(),
        };
        match (shape.as_slice(), bias_shape.as_slice()) {
            ([n_classes, n_features], [n_bias])
                if n_classes == n_bias
                    && *n_classes == classes.len()
                    && *n_classes > 0
                    && *n_features > 0 =>
            {
                Ok(LinearHead {
                    classes,
                    weight,
                    bias,
                })
            }
            _ => Err(bad(format!(
                "weight {shape:?}, bias {bias_shape:?} and {} classes",
                classes.len()
            ))),
        }
    }
}
