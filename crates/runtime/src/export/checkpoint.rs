//! State dicts for torch: the head alone, and backbone and head as one that a model with that head loads strictly.

use std::path::{Path, PathBuf};

use pth::{Existing, OpenOptions};
use surgery::{
    HEADS, LazyEntry, LazyStateDict, LazyTensor, LazyValue, OutputFormat, WriteOptions, is_buffer_name,
    open_whole,
};

use crate::error::Error;
use crate::head::Head;
use crate::monitor::Monitor;

/// How backbone and head are put together.
#[derive(Debug, Clone, Copy)]
pub struct CheckpointOptions<'o> {
    /// The module that becomes the head, `fc` or `classifier.1`; none for the classifier that the backbone has.
    pub module: Option<&'o str>,
    /// What happens to a file that is there.
    pub existing: Existing,
}

/// What was put together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointReport {
    /// The files written.
    pub files: Vec<PathBuf>,
    /// The module that is the head now.
    pub module: String,
    /// Names of the backbone that the head took the place of.
    pub replaced: Vec<String>,
    /// Names of the head.
    pub added: Vec<String>,
    /// Frozen parameters: the backbone's.
    pub n_frozen: usize,
}

/// Writes the head alone by torch's names, which `nn.Linear` or an `nn.Sequential` of the same layers loads strictly: a
/// `.pth`, or a `.safetensors` with task, classes and layers in its metadata.
///
/// # Errors
/// [`Error::Usage`] for another ending; the file system's.
pub fn save_head(head: &Head, path: &Path, existing: Existing) -> Result<(), Error> {
    let mut tensors = LazyStateDict::from(head.state_dict());
    let options = WriteOptions {
        existing,
        ..WriteOptions::new(format_of(path)?)
    };
    if options.format == OutputFormat::Safetensors {
        tensors.metadata = head.metadata();
    }
    surgery::write(path, &tensors, &options)?;
    Ok(())
}

/// Writes the backbone's checkpoint, of any format that is read, with the head in the place of its classifier. The backbone's
/// parameters are marked frozen and the head's trainable; buffers and all else stay as they are.
///
/// A linear head takes the place of the classifier's last linear layer (`fc.weight`, `classifier.1.weight`), which has to take
/// as many features. One of several layers becomes an `nn.Sequential` there (`fc.0.weight`, …). A head on what goes into the
/// first of a classifier's several layers takes the place of all of them.
///
/// # Errors
/// [`Error::Usage`] where no module of the backbone takes the head's features and none is named, where the one that is named
/// takes another number of them, or is not there and there is a classifier, and for a path of another ending than `.pth` or
/// `.safetensors`; [`Error::Surgery`] where the checkpoint cannot be read or written.
pub fn save_checkpoint(
    backbone: &Path,
    head: &Head,
    path: &Path,
    options: &CheckpointOptions<'_>,
    monitor: Monitor<'_>,
) -> Result<CheckpointReport, Error> {
    let format = format_of(path)?;
    let tensors = open_whole(backbone, &OpenOptions::default())?;
    let module = match options.module {
        Some(module) => {
            check_module(&tensors, module, head.n_features())
                .map_err(|reason| Error::Usage(format!("`{}` {reason}", backbone.display())))?;
            module.to_owned()
        }
        None => classifier(&tensors, head.n_features()).map_err(|reason| {
            Error::Usage(format!(
                "`{}` {reason}; name the module that the head is to be",
                backbone.display()
            ))
        })?,
    };
    let (tensors, mut report) = graft(tensors, head, &module);
    let written = surgery::write(
        path,
        &tensors,
        &WriteOptions {
            existing: options.existing,
            cancelled: monitor.cancel,
            ..WriteOptions::new(format)
        },
    )?;
    report.files = written.files;
    Ok(report)
}

fn format_of(path: &Path) -> Result<OutputFormat, Error> {
    OutputFormat::of(path)
        .ok_or_else(|| Error::Usage(format!("`{}` is neither .pth nor .safetensors", path.display())))
}

/// The state dict with the head as its module of that name, at the place where that was, or at the end.
fn graft(tensors: LazyStateDict, head: &Head, module: &str) -> (LazyStateDict, CheckpointReport) {
    let is_marked = tensors.is_marked();
    let mut grafted = tensors.clone();
    grafted.retain(|_, _| false);
    grafted
        .versions
        .retain(|version| !is_below(&version.module, module));
    let mut report = CheckpointReport {
        files: Vec::new(),
        module: module.to_owned(),
        replaced: Vec::new(),
        added: Vec::new(),
        n_frozen: 0,
    };
    let mut of_head = Some(head_entries(head, module));
    let mut insert_head = |grafted: &mut LazyStateDict, added: &mut Vec<String>| {
        for (name, entry) in of_head.take().into_iter().flatten() {
            added.push(name.clone());
            grafted.insert(name, entry);
        }
    };
    for (name, entry) in tensors.iter() {
        if is_below(name, module) {
            report.replaced.push(name.to_owned());
            insert_head(&mut grafted, &mut report.added);
            continue;
        }
        let mut entry = entry.clone();
        let is_float = entry.tensor().is_some_and(|tensor| {
            let dtype = tensor.dtype();
            dtype.is_float() || dtype.is_complex()
        });
        if !is_marked {
            entry.is_parameter = is_float && !is_buffer_name(name);
        }
        entry.requires_grad = false;
        report.n_frozen += usize::from(entry.is_parameter);
        grafted.insert(name, entry);
    }
    insert_head(&mut grafted, &mut report.added);
    (grafted, report)
}

/// The head's tensors below a module, trainable but for buffers.
fn head_entries(head: &Head, module: &str) -> Vec<(String, LazyEntry)> {
    let tensors = head.state_dict();
    let entries = tensors.iter().map(|(name, tensor)| {
        let trains = tensor.dtype().is_float() && !is_buffer_name(name);
        let entry = LazyEntry {
            value: LazyValue::Tensor(LazyTensor::stored(tensor.clone())),
            requires_grad: trains,
            is_parameter: trains,
            group: None,
        };
        (format!("{module}.{name}"), entry)
    });
    entries.collect()
}

/// Whether `name` is that of the module or of something inside it.
fn is_below(name: &str, module: &str) -> bool {
    let rest = name.strip_prefix(module);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Whether the head can be the module of this name; else a phrase of why not. A backbone without a classifier can get a
/// module that it does not have.
fn check_module(tensors: &LazyStateDict, module: &str, n_features: usize) -> Result<(), String> {
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
enum NoClassifier {
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
fn classifier(tensors: &LazyStateDict, n_features: usize) -> Result<String, NoClassifier> {
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
mod tests {
    use pth::{DType, Profile, SaveOptions, StateDict, Tensor};

    use super::*;
    use crate::head::{BatchNorm1d, Layer, Linear};
    use crate::targets::Task;

    fn state_dict(entries: &[(&str, &[usize])]) -> StateDict {
        let mut tensors = StateDict::new();
        for (name, shape) in entries {
            let n_bytes = shape.iter().product::<usize>() * 4;
            let tensor = Tensor::from_bytes(DType::Float32, shape, vec![0; n_bytes]).unwrap();
            tensors.insert(*name, tensor);
        }
        tensors
    }

    fn linear(n_out: usize, n_in: usize) -> Layer {
        Layer::Linear(Linear {
            weight: vec![0.5; n_out * n_in],
            bias: vec![0.25; n_out],
            n_in,
            n_out,
        })
    }

    fn head(layers: Vec<Layer>) -> Head {
        Head::new(Task::SingleLabel, vec!["a".into(), "b".into()], layers).unwrap()
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

    #[test]
    fn the_head_stands_where_the_classifier_was_and_alone_is_trainable() {
        let folder = tempfile::tempdir().unwrap();
        let (backbone, out) = (folder.path().join("b.pth"), folder.path().join("o.pth"));
        let tensors = state_dict(&[
            ("conv.weight", &[2, 3, 1, 1]),
            ("bn.running_mean", &[2]),
            ("fc.weight", &[10, 4]),
            ("fc.bias", &[10]),
            ("last.weight", &[2]),
        ]);
        let save = SaveOptions {
            profile: Profile::Torch,
            existing: Existing::Refuse,
        };
        pth::save_state_dict(&backbone, &tensors, &save).unwrap();
        let wide = head(vec![linear(2, 5)]);
        let norm = Layer::BatchNorm1d(BatchNorm1d {
            weight: vec![1.0; 3],
            bias: vec![0.0; 3],
            running_mean: vec![0.0; 3],
            running_var: vec![1.0; 3],
            num_batches_tracked: 3,
            eps: 1e-5,
        });
        let head = head(vec![linear(3, 4), norm, Layer::Relu, linear(2, 3)]);
        let options = CheckpointOptions {
            module: None,
            existing: Existing::Refuse,
        };
        let report = save_checkpoint(&backbone, &head, &out, &options, Monitor::none()).unwrap();
        assert_eq!(report.module, "fc");
        assert_eq!(report.replaced, ["fc.weight", "fc.bias"]);
        assert_eq!(report.n_frozen, 2);
        let read = open_whole(&out, &OpenOptions::default()).unwrap();
        let names: Vec<&str> = read.names().collect();
        let expected = [
            "conv.weight",
            "bn.running_mean",
            "fc.0.weight",
            "fc.0.bias",
            "fc.1.weight",
            "fc.1.bias",
            "fc.1.running_mean",
            "fc.1.running_var",
        ];
        assert_eq!(names[..8], expected);
        let trainable: Vec<&str> = read
            .iter()
            .filter(|(_, entry)| entry.requires_grad)
            .map(|(name, _)| name)
            .collect();
        let expected = [
            "fc.0.weight",
            "fc.0.bias",
            "fc.1.weight",
            "fc.1.bias",
            "fc.3.weight",
            "fc.3.bias",
        ];
        assert_eq!(trainable, expected);
        assert!(!read.get("bn.running_mean").unwrap().is_parameter);
        assert!(read.get("conv.weight").unwrap().is_parameter);

        let error = save_checkpoint(&backbone, &head, &out, &options, Monitor::none()).unwrap_err();
        assert!(error.to_string().contains("o.pth"), "{error}");
        let error = save_checkpoint(
            &backbone,
            &wide,
            &folder.path().join("p.pth"),
            &options,
            Monitor::none(),
        );
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("name the module that the head is to be"),
            "{error}"
        );
    }

    #[test]
    fn a_head_alone_has_torchs_names() {
        let folder = tempfile::tempdir().unwrap();
        let head = head(vec![linear(3, 4), Layer::Gelu, linear(2, 3)]);
        for file in ["head.pth", "head.safetensors"] {
            let path = folder.path().join(file);
            save_head(&head, &path, Existing::Refuse).unwrap();
            let read = open_whole(&path, &OpenOptions::default()).unwrap();
            let mut names: Vec<&str> = read.names().collect();
            names.sort_unstable();
            assert_eq!(names, ["0.bias", "0.weight", "2.bias", "2.weight"]);
        }
        assert_eq!(Head::open(&folder.path().join("head.safetensors")).unwrap(), head);
        let error = save_head(&head, &folder.path().join("head.h5"), Existing::Refuse).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("head.h5` is neither .pth nor .safetensors")
        );
    }
}
