//! Which module of a backbone's state dict a head takes the place of.

use surgery::{HEADS, LazyEntry, LazyStateDict};

/// Whether `name` is that of the module or of something inside it.
pub(super) fn is_below(name: &str, module: &str) -> bool {
    let rest = name.strip_prefix(module);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Whether the head can be the module of this name; else a phrase of why not. A backbone without a classifier can get a
/// module that it does not have.
pub(super) fn check_module(tensors: &LazyStateDict, module: &str, n_features: usize) -> Result<(), String> {
    let mut inside = tensors
        .iter()
        .filter(|(name, _)| is_below(name, module))
        .peekable();
    if inside.peek().is_none() {
        return match classifier(tensors, n_features) {
            Err(NoClassifier::Nameless) => Ok(()),
            Ok(found) => Err(format!("has no module `{module}`; its classifier is `{found}`")),
            Err(misfit) => Err(format!("has no module `{module}`, and {misfit}")),
        };
    }
    // Of modules of other kinds the names do not tell how many numbers they take.
    match inside.find_map(linear) {
        Some((name, n_in)) if n_in != n_features => Err(format!(
            "has a `{name}` that takes {n_in} features, and the head takes {n_features}"
        )),
        _ => Ok(()),
    }
}

/// The module of a linear layer's weight, and how many numbers it takes.
fn linear((name, entry): (&str, &LazyEntry)) -> Option<(String, usize)> {
    let module = name.strip_suffix(".weight")?.to_owned();
    match entry.tensor()?.shape() {
        [_, n_in] => Some((module, *n_in)),
        _ => None,
    }
}

/// Why no module of a backbone is its classifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoClassifier {
    /// None has a known name.
    Nameless,
    /// It takes another number of features: a phrase.
    Misfit(String),
}

impl std::fmt::Display for NoClassifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NoClassifier::Nameless => f.write_str("has no classifier of a known name"),
            NoClassifier::Misfit(phrase) => f.write_str(phrase),
        }
    }
}

/// The module that takes `n_features` numbers where the backbone has its classifier.
pub(super) fn classifier(tensors: &LazyStateDict, n_features: usize) -> Result<String, NoClassifier> {
    // `module.fc.weight` of a model that was saved inside a wrapper.
    let first_of = |name: &str| name.split_once('.').map(|(first, _)| format!("{first}."));
    let wrapper = tensors
        .names()
        .next()
        .and_then(first_of)
        .filter(|wrapper| tensors.names().all(|name| name.starts_with(wrapper.as_str())));
    let wrapper = wrapper.unwrap_or_default();
    for classifier in HEADS {
        let whole = format!("{wrapper}{classifier}");
        let inside = tensors.iter().filter(|(name, _)| is_below(name, &whole));
        let layers: Vec<(String, usize)> = inside.filter_map(linear).collect();
        let (Some((first, first_in)), Some((last, last_in))) = (layers.first(), layers.last()) else {
            continue;
        };
        if *last_in == n_features {
            return Ok(last.clone());
        }
        if *first_in == n_features {
            return Ok(whole);
        }
        let first = match first == last {
            true => String::new(),
            false => format!(", and `{first}` {first_in}"),
        };
        return Err(NoClassifier::Misfit(format!(
            "has a classifier whose `{last}` takes {last_in} features{first}, and the head takes {n_features}"
        )));
    }
    // The last linear layer may be any: files that are sorted by name say nothing of order.
    Err(NoClassifier::Nameless)
}

#[cfg(test)]
pub(super) mod tests {
    use pth::{DType, StateDict, Tensor};

    use super::*;

    pub(in crate::export) fn state_dict(entries: &[(&str, &[usize])]) -> StateDict {
        let mut tensors = StateDict::new();
        for (name, shape) in entries {
            let n_bytes = shape.iter().product::<usize>() * 4;
            let tensor = Tensor::from_bytes(DType::Float32, shape, vec![0; n_bytes]).unwrap();
            tensors.insert(*name, tensor);
        }
        tensors
    }

    #[test]
    fn the_classifier_is_found_by_its_name_and_what_it_takes() {
        let of = |entries: &[(&str, &[usize])], n_features| {
            let found = classifier(&LazyStateDict::from(state_dict(entries)), n_features);
            found.map_err(|reason| reason.to_string())
        };
        let resnet: &[(&str, &[usize])] = &[
            ("conv1.weight", &[4, 3, 3, 3]),
            ("fc.weight", &[10, 6]),
            ("fc.bias", &[10]),
        ];
        assert_eq!(of(resnet, 6).unwrap(), "fc");
        let wrapped: &[(&str, &[usize])] = &[
            ("module.conv.weight", &[4, 3, 1, 1]),
            ("module.fc.weight", &[10, 6]),
        ];
        assert_eq!(of(wrapped, 6).unwrap(), "module.fc");
        let mobilenet: &[(&str, &[usize])] = &[
            ("features.0.weight", &[4, 3, 3, 3]),
            ("classifier.0.weight", &[12, 8]),
            ("classifier.3.weight", &[10, 12]),
        ];
        assert_eq!(of(mobilenet, 12).unwrap(), "classifier.3");
        assert_eq!(of(mobilenet, 8).unwrap(), "classifier");
        let error = of(mobilenet, 9).unwrap_err();
        assert_eq!(
            error,
            "has a classifier whose `classifier.3` takes 12 features, and `classifier.0` 8, and the head takes 9"
        );
        assert!(
            of(resnet, 9)
                .unwrap_err()
                .contains("`fc` takes 6 features, and the head takes 9")
        );
        let vit: &[(&str, &[usize])] = &[("blocks.0.mlp.weight", &[7, 7]), ("heads.head.weight", &[10, 7])];
        assert_eq!(of(vit, 7).unwrap(), "heads.head");
        let nameless: &[(&str, &[usize])] = &[("net.0.weight", &[3, 2]), ("other", &[1])];
        assert_eq!(of(nameless, 2).unwrap_err(), "has no classifier of a known name");

        let named = |entries: &[(&str, &[usize])], module, n_features| {
            check_module(&LazyStateDict::from(state_dict(entries)), module, n_features).unwrap_err()
        };
        assert_eq!(
            named(resnet, "fcc", 6),
            "has no module `fcc`; its classifier is `fc`"
        );
        assert_eq!(
            named(resnet, "fcc", 7),
            "has no module `fcc`, and has a classifier whose `fc` takes 6 features, and the head takes 7"
        );
        assert_eq!(
            named(mobilenet, "classifier", 12),
            "has a `classifier.0` that takes 8 features, and the head takes 12"
        );
        let of_nameless = LazyStateDict::from(state_dict(nameless));
        assert_eq!(check_module(&of_nameless, "fc", 5), Ok(()));
        assert_eq!(
            check_module(&LazyStateDict::from(state_dict(resnet)), "conv1", 5),
            Ok(())
        );
    }
}
