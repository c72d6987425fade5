//! `requires_grad` by pattern.

use pth::StateDict;

use crate::{Error, Pattern, marks};

/// Marks every tensor that matches as frozen; returns how many.
///
/// A state dict without any mark, as `torch.save(model.state_dict())` writes it, is taken as trainable first, but for the
/// buffers of normalisation layers.
///
/// # Errors
/// Nothing matches.
pub fn freeze(tensors: &mut StateDict, pattern: &Pattern) -> Result<usize, Error> {
    let n = count(tensors, pattern)?;
    if tensors.iter().all(|(_, tensor)| !tensor.requires_grad()) {
        marks::apply(tensors, &[]);
    }
    for (name, tensor) in tensors.iter_mut() {
        if pattern.matches(name) {
            let is_parameter = marks::can_train(tensor) && !marks::is_buffer_name(name);
            *tensor = marks::mark(tensor, false, is_parameter);
        }
    }
    Ok(n)
}

/// Marks every tensor that matches, and can be trained, as trainable; returns how many match.
///
/// # Errors
/// Nothing matches.
pub fn unfreeze(tensors: &mut StateDict, pattern: &Pattern) -> Result<usize, Error> {
    let n = count(tensors, pattern)?;
    for (name, tensor) in tensors.iter_mut() {
        if pattern.matches(name) && marks::can_train(tensor) && !marks::is_buffer_name(name) {
            *tensor = marks::mark(tensor, true, true);
        }
    }
    Ok(n)
}

fn count(tensors: &StateDict, pattern: &Pattern) -> Result<usize, Error> {
    match tensors.names().filter(|name| pattern.matches(name)).count() {
        0 => Err(Error::NoMatch {
            rule: format!("matches `{}`", pattern.as_str()),
        }),
        n => Ok(n),
    }
}

#[cfg(test)]
mod tests {
    use pth::{DType, Tensor};

    use super::*;

    #[test]
    fn freezing_a_plain_state_dict_leaves_the_rest_trainable() {
        let float = Tensor::from_bytes(DType::Float32, &[], vec![0; 4]).unwrap();
        let names = ["layer1.w", "layer2.w", "bn.running_mean"];
        let mut tensors: StateDict = names
            .iter()
            .map(|name| ((*name).to_owned(), float.clone()))
            .collect();
        let marks = |t: &StateDict| t.iter().map(|(_, t)| t.requires_grad()).collect::<Vec<_>>();
        assert_eq!(freeze(&mut tensors, &Pattern::new("layer1.**")).unwrap(), 1);
        assert_eq!(marks(&tensors), [false, true, false]);
        assert_eq!(unfreeze(&mut tensors, &Pattern::new("**")).unwrap(), 3);
        assert_eq!(marks(&tensors), [true, true, false]);
        let error = freeze(&mut tensors, &Pattern::new("layer3.**")).unwrap_err();
        assert_eq!(error.to_string(), "no tensor name matches `layer3.**`");
    }
}
