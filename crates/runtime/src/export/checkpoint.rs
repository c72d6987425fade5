//! State dicts for torch: the head alone, and backbone and head as one that a model with that head loads strictly.

use std::path::{Path, PathBuf};

use pth::{Existing, OpenOptions};
use surgery::{
    LazyEntry, LazyStateDict, LazyTensor, LazyValue, OutputFormat, WriteOptions, is_buffer_name, open_whole,
};

use super::module::{check_module, classifier, is_below};
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
    // What has no ending would be a set of files in a folder.
    let format = path.extension().and_then(|_| OutputFormat::of(path));
    format.ok_or_else(|| Error::Usage(format!("`{}` is neither .pth nor .safetensors", path.display())))
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

#[cfg(test)]
mod tests {
    use pth::{Profile, SaveOptions};

    use super::super::module::tests::state_dict;
    use super::*;
    use crate::head::{BatchNorm1d, Layer, Linear};
    use crate::targets::Task;

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
