//! A network without a checkpoint: all tensors that a template asks for, with values of their own.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use pth::{DType, OpenOptions};
use surgery::{LazyEntry, LazyStateDict, LazyTensor, Plan};

use super::fit::{Choice, Template, candidates, files, no_such};
use super::interpreter::Interpreter;
use super::value::Role;
use crate::error::Error;

/// What stands for the values of parameters that no layer of `torch.nn` draws: class tokens, position embeddings, scales.
const LOOSE: &str = "trunc_normal:.02";

impl Template {
    /// The network that a name or a file says, with the sizes that the template has where no checkpoint gives them.
    ///
    /// # Errors
    /// [`Error::Template`] for a file that is no template; [`Error::Usage`] for a name that no template has, and where
    /// several networks may be meant.
    pub fn named(choice: &Choice) -> Result<Template, Error> {
        let files = files(choice)?;
        let nothing = |_: &str| None;
        let mut interpreter = Interpreter::new(&nothing);
        let found = candidates(&mut interpreter, &files, choice)?;
        let chosen: Vec<&(usize, String)> = match choice {
            Choice::Named(name) => found.iter().filter(|(_, found)| found == name).collect(),
            Choice::Shipped | Choice::File(_) => found.iter().collect(),
        };
        match chosen.as_slice() {
            [] => Err(no_such(choice, &found)),
            [(file, name)] => Ok(Template {
                name: name.clone(),
                path: PathBuf::from(name),
                file: *file,
                files: files.into(),
                sizes: Arc::default(),
            }),
            several => {
                let names: Vec<&str> = several.iter().map(|(_, name)| name.as_str()).collect();
                Err(Error::Usage(format!(
                    "which network is meant? There are {}",
                    names.join(", ")
                )))
            }
        }
    }

    /// A state dict of this network in torch's order, float32, drawn as its layers' `reset_parameters` draw; parameters that
    /// are no layer's are drawn by `torch.nn.init.trunc_normal_` of standard deviation 0.02, and named beside. The same seed
    /// gives the same values, which are not those of torch's generator.
    ///
    /// # Errors
    /// [`Error::Template`] where the network cannot be made of the sizes that the template has by itself.
    pub fn draw(&self, seed: u64) -> Result<(LazyStateDict, Vec<String>), Error> {
        let sizes: HashMap<String, Vec<usize>> = HashMap::clone(&self.sizes);
        let lookup = move |name: &str| sizes.get(name).cloned();
        let mut interpreter = Interpreter::new(&lookup);
        let root = self.build(&mut interpreter)?;
        let mut tensors = LazyStateDict::default();
        let mut loose = Vec::new();
        interpreter.each_tensor(root, &mut |name, stored| {
            let dtype = match stored.role {
                Role::Counter => DType::Int64,
                Role::Parameter | Role::Buffer => DType::Float32,
            };
            let leaf = name.rsplit('.').next().unwrap_or(&name);
            let is_a_layers = matches!(leaf, "weight" | "bias") || leaf.starts_with("in_proj_");
            if stored.role == Role::Parameter && !is_a_layers {
                loose.push(name.clone());
            }
            let zeros = LazyTensor::filled(dtype, &stored.shape, 0.0);
            tensors.insert(name, LazyEntry::unmarked(zeros));
        });
        let mut steps = Vec::new();
        for (name, entry) in tensors.iter() {
            let is_loose = loose.iter().any(|known| known == name);
            let is_counter = entry
                .tensor()
                .is_some_and(|tensor| tensor.dtype() == DType::Int64);
            if !is_counter {
                let method = if is_loose { LOOSE } else { "default" };
                steps.push(format!("init {name} {method} seed={seed}"));
            }
        }
        let (tensors, _) = Plan::parse(&steps.join("\n"))?.apply(tensors, &OpenOptions::default())?;
        Ok((tensors, loose))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_network_has_all_tensors_and_is_recognised_again() {
        for name in ["resnet18", "vit_b_16", "mobilenet_v2"] {
            let template = Template::named(&Choice::Named(name.to_owned())).unwrap();
            let (tensors, loose) = template.draw(3).unwrap();
            assert_eq!(loose.is_empty(), name != "vit_b_16", "{loose:?}");
            let again = Template::recognise(name.as_ref(), &tensors, &Choice::Shipped).unwrap();
            assert_eq!(again.name(), name);
        }
        let (tensors, _) = Template::named(&Choice::Named("resnet18".to_owned()))
            .unwrap()
            .draw(0)
            .unwrap();
        assert_eq!(tensors.len(), 122);
        let names: Vec<&str> = tensors.names().take(7).collect();
        let expected = [
            "conv1.weight",
            "bn1.weight",
            "bn1.bias",
            "bn1.running_mean",
            "bn1.running_var",
            "bn1.num_batches_tracked",
            "layer1.0.conv1.weight",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn values_are_those_of_the_layers_own_initialisers() {
        let template = Template::named(&Choice::Named("resnet18".to_owned())).unwrap();
        let values = |seed: u64, name: &str| -> Vec<f32> {
            let (tensors, _) = template.draw(seed).unwrap();
            let bytes = tensors.tensor(name).unwrap().compute().unwrap();
            bytes
                .to_bytes()
                .unwrap()
                .chunks_exact(4)
                .map(|four| f32::from_le_bytes(four.try_into().unwrap()))
                .collect()
        };
        // kaiming_uniform_ with a = sqrt(5): evenly in ±1/sqrt(fan_in).
        let weights = values(0, "layer1.0.conv1.weight");
        let bound = 1.0 / (64.0f32 * 9.0).sqrt();
        let largest = weights.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        assert!(largest <= bound && largest > 0.99 * bound, "{largest} of {bound}");
        assert_eq!(weights, values(0, "layer1.0.conv1.weight"));
        assert_ne!(weights, values(1, "layer1.0.conv1.weight"));
        assert!(values(0, "bn1.running_var").iter().all(|&value| value == 1.0));
        assert!(values(0, "bn1.bias").iter().all(|&value| value == 0.0));
    }

    #[test]
    fn a_name_that_none_has_is_refused_with_those_there_are() {
        let error = Template::named(&Choice::Named("resnet19".to_owned())).unwrap_err();
        assert!(error.to_string().contains("resnet18"), "{error}");
    }
}
