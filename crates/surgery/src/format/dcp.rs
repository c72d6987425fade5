//! Checkpoints of `torch.distributed.checkpoint`: a folder with a pickle `.metadata` and files `__RANK_N.distcp`.
//!
//! The pickle says of each name which rectangular pieces it has, and where each piece lies: a part of a `.distcp` file that is a
//! whole archive of `torch.save`. It is read as data, like any pickle; classes are told by their names.

use std::collections::HashMap;
use std::path::Path;

use pth::{Checkpoint, DType, Object, OpenOptions, Other, Problem, Source, Tensor, TensorFault, Value};

use super::index::{is_bare, stays};
use super::open::{Format, Opened};
use super::pieces::{Piece, Pieces, check_cover};
use crate::Error;

/// The name of the pickle.
pub(super) const METADATA: &str = ".metadata";

/// Where an item lies.
struct Item<'v> {
    /// Where in its tensor a piece begins; none for what is no tensor.
    offsets: Option<Vec<usize>>,
    file: &'v str,
    offset: usize,
    length: usize,
    /// Whether its bytes were changed on the way to the file.
    is_transformed: bool,
}

/// What the pickle says of a tensor.
struct Described {
    dtype: DType,
    shape: Vec<usize>,
    requires_grad: bool,
    /// Offsets and sizes.
    chunks: Vec<(Vec<usize>, Vec<usize>)>,
}

/// Opens the checkpoint in `folder`. A name that cannot be read is a problem; the names are those that DCP has given.
///
/// # Errors
/// The pickle is none of DCP's, or a file is missing.
pub(super) fn open(folder: &Path, options: &OpenOptions) -> Result<Opened, Error> {
    let path = folder.join(METADATA);
    let named = |source| match source {
        pth::Error::File(error) => Error::File(error),
        source => Error::Checkpoint {
            path: path.clone(),
            source,
        },
    };
    let source = Source::open(&path, options.backing)?;
    let root = pth::read_pickle(&source, options).map_err(named)?;
    let fault = |fault: &str| Error::Dcp {
        path: folder.to_owned(),
        fault: fault.to_owned(),
    };
    let metadata = object(&root, "Metadata").ok_or_else(|| fault("its metadata are no `Metadata`"))?;
    let entries = attribute(metadata, "state_dict_metadata").and_then(pairs);
    let entries = entries.ok_or_else(|| fault("its metadata have no `state_dict_metadata`"))?;
    let places = attribute(metadata, "storage_data").and_then(pairs);
    let places = places.ok_or_else(|| fault("its metadata have no `storage_data`"))?;
    let items = items(places).map_err(|text| fault(&text))?;
    let files = files(folder, &items, options)?;

    let mut opened = Opened::new(Format::Dcp);
    opened.state_dict.reserve(entries.len());
    for (name, about) in entries {
        let Value::Str(name) = name else {
            return Err(fault("a name in its metadata is no text"));
        };
        let own = items.get(name.as_str()).map_or(&[][..], Vec::as_slice);
        let set = Set {
            files: &files,
            options,
            items: own,
        };
        let taken = match object(about, "TensorStorageMetadata") {
            Some(about) => set.tensor(name, about, &mut opened),
            None if object(about, "BytesStorageMetadata").is_some() => set.value(name, &mut opened),
            None => Err("described by neither TensorStorageMetadata nor BytesStorageMetadata".to_owned()),
        };
        if let Err(text) = taken {
            opened.problems.push(Problem {
                name: name.clone(),
                fault: TensorFault::Malformed(text),
                in_state_dict: object(about, "BytesStorageMetadata").is_none(),
            });
        }
    }
    Ok(opened)
}

/// `storage_data`, by name.
fn items(places: &[(Value, Value)]) -> Result<HashMap<&str, Vec<Item<'_>>>, String> {
    let mut items: HashMap<&str, Vec<Item<'_>>> = HashMap::new();
    for (key, info) in places {
        let read = || {
            let key = object(key, "MetadataIndex")?;
            let info = object(info, "_StorageInfo")?;
            let item = Item {
                offsets: match attribute(key, "offset") {
                    None | Some(Value::None) => None,
                    Some(offsets) => Some(sizes(offsets)?),
                },
                file: text(attribute(info, "relative_path")?)?,
                offset: integer(attribute(info, "offset")?)?,
                length: integer(attribute(info, "length")?)?,
                is_transformed: match attribute(info, "transform_descriptors") {
                    None | Some(Value::None) => false,
                    Some(Value::List(list) | Value::Tuple(list)) => !list.is_empty(),
                    Some(_) => true,
                },
            };
            Some((text(attribute(key, "fqn")?)?, item))
        };
        let (name, item) = read().ok_or("an entry of `storage_data` is none of DCP's")?;
        items.entry(name).or_default().push(item);
    }
    Ok(items)
}

/// Opens each file once.
fn files<'v>(
    folder: &Path,
    items: &HashMap<&str, Vec<Item<'v>>>,
    options: &OpenOptions,
) -> Result<HashMap<&'v str, Source>, Error> {
    let mut n_items: Vec<(&str, usize)> = {
        let mut count: HashMap<&str, usize> = HashMap::new();
        for item in items.values().flatten() {
            *count.entry(item.file).or_default() += 1;
        }
        count.into_iter().collect()
    };
    n_items.sort_unstable();
    let mut files = HashMap::with_capacity(n_items.len());
    for (file, n_items) in n_items {
        let fault = |fault: String| Error::Dcp {
            path: folder.to_owned(),
            fault,
        };
        if !is_bare(file) {
            let text = format!("its metadata name `{file}`, which is no bare file name");
            return Err(fault(text));
        }
        let path = folder.join(file);
        match path.symlink_metadata() {
            Err(_) => return Err(fault(format!("`{file}` is missing, which holds {n_items} items"))),
            Ok(about) if about.is_symlink() && !stays(&path, &folder.join(METADATA)) => {
                let text = format!("`{file}` is a link that leaves the folder, or leads nowhere");
                return Err(fault(text));
            }
            Ok(_) => files.insert(file, Source::open(&path, options.backing)?),
        };
    }
    Ok(files)
}

/// The items of one name.
struct Set<'v> {
    files: &'v HashMap<&'v str, Source>,
    options: &'v OpenOptions,
    items: &'v [Item<'v>],
}

impl Set<'_> {
    /// The archive of an item.
    fn archive(&self, item: &Item<'_>) -> Result<Checkpoint, String> {
        let Item {
            file, offset, length, ..
        } = item;
        if item.is_transformed {
            return Err(format!(
                "its bytes in `{file}` are transformed (compressed), which is not read"
            ));
        }
        let source = self
            .files
            .get(file)
            .ok_or_else(|| format!("`{file}` is missing"))?;
        let part = offset
            .checked_add(*length)
            .and_then(|end| source.part(*offset..end));
        let part = part.ok_or_else(|| {
            format!(
                "its {length} bytes at {offset} are not inside of `{file}`, which has {}",
                source.len()
            )
        })?;
        Checkpoint::from_source(part, self.options)
            .map_err(|error| format!("its archive at {offset} of `{file}` cannot be read: {error}"))
    }

    fn tensor(&self, name: &str, about: &Object, opened: &mut Opened) -> Result<(), String> {
        let Described {
            dtype,
            shape,
            requires_grad,
            chunks,
        } = described(about)?;
        // Before anything is opened: what the metadata say must be a tensor.
        let boxes: Vec<(&[usize], &[usize])> = chunks
            .iter()
            .map(|(offsets, sizes)| (offsets.as_slice(), sizes.as_slice()))
            .collect();
        check_cover(&shape, &boxes)?;
        let mut pieces = Vec::with_capacity(chunks.len());
        for (offsets, sizes) in chunks {
            let mut own = self
                .items
                .iter()
                .filter(|item| item.offsets.as_ref() == Some(&offsets));
            let item = own
                .next()
                .ok_or_else(|| format!("its piece at {offsets:?} lies nowhere"))?;
            let archive = self.archive(item)?;
            let tensor = archive.state_dict().get("tensor").cloned();
            let tensor = tensor.ok_or_else(|| format!("its piece at {offsets:?} is no tensor"))?;
            if tensor.dtype() != dtype || tensor.shape() != sizes {
                return Err(format!(
                    "its piece at {offsets:?} is {}{:?}, expected {dtype}{sizes:?}",
                    tensor.dtype(),
                    tensor.shape()
                ));
            }
            pieces.push(Piece { offsets, tensor });
        }
        let place = opened.state_dict.len();
        match pieces.as_slice() {
            [whole] if whole.tensor.shape() == shape => {
                let tensor = with_mark(whole.tensor.clone(), requires_grad);
                opened.state_dict.insert(name, tensor);
            }
            _ => {
                let pieces = Pieces::new(name.to_owned(), place, dtype, shape, pieces)?;
                opened.pieces.push(pieces.with_requires_grad(requires_grad));
            }
        }
        Ok(())
    }

    /// Something that is no tensor, as `torch.save` writes it.
    fn value(&self, name: &str, opened: &mut Opened) -> Result<(), String> {
        let item = self.items.first().ok_or("it lies nowhere")?;
        let archive = self.archive(item)?;
        // The reader calls a root that has no name of its own `tensor`.
        let full = |inner: &str| match inner {
            "tensor" => name.to_owned(),
            inner => format!("{name}.{inner}"),
        };
        opened.others.extend(archive.others().iter().map(|other| Other {
            name: full(&other.name),
            value: other.value.clone(),
        }));
        for (inner, entry) in archive
            .state_dict()
            .entries()
            .chain(archive.other_tensors().entries())
        {
            opened.other_tensors.insert_entry(full(inner), entry.clone());
        }
        opened
            .problems
            .extend(archive.problems().iter().map(|problem| Problem {
                name: full(&problem.name),
                fault: problem.fault.clone(),
                in_state_dict: false,
            }));
        Ok(())
    }
}

fn with_mark(tensor: Tensor, requires_grad: bool) -> Tensor {
    match requires_grad {
        true => tensor.into_parameter(true),
        false => tensor,
    }
}

/// `TensorStorageMetadata`: `properties`, `size`, `chunks`.
fn described(about: &Object) -> Result<Described, String> {
    let shape = attribute(about, "size")
        .and_then(sizes)
        .ok_or("it has no `size`")?;
    let properties = attribute(about, "properties").and_then(|value| object(value, "TensorProperties"));
    let properties = properties.ok_or("it has no `properties`")?;
    // A tuple (dtype, layout, requires_grad, ...), in which versions differ at the end; or attributes.
    let fields: &[Value] = match properties.states.as_slice() {
        [Value::Tuple(fields)] => fields,
        _ => &[],
    };
    let field = |place: usize, name: &str| fields.get(place).or_else(|| attribute(properties, name));
    let dtype = match field(0, "dtype") {
        Some(Value::DType(name)) => {
            DType::from_name(name).ok_or_else(|| format!("it is {name}, which is not read"))?
        }
        _ => return Err("it has no `dtype`".to_owned()),
    };
    let requires_grad = matches!(field(2, "requires_grad"), Some(Value::Bool(true)));
    let chunks = match attribute(about, "chunks") {
        Some(Value::List(chunks) | Value::Tuple(chunks)) => chunks,
        _ => return Err("it has no `chunks`".to_owned()),
    };
    let chunk = |value: &Value| {
        let chunk = object(value, "ChunkStorageMetadata")?;
        Some((
            sizes(attribute(chunk, "offsets")?)?,
            sizes(attribute(chunk, "sizes")?)?,
        ))
    };
    let chunks: Option<Vec<_>> = chunks.iter().map(chunk).collect();
    Ok(Described {
        dtype,
        shape,
        requires_grad,
        chunks: chunks.ok_or("a chunk of it is none of DCP's")?,
    })
}

/// An instance of a class of that name, in whatever module a version of torch has it.
fn object<'v>(value: &'v Value, class: &str) -> Option<&'v Object> {
    match value {
        Value::Object(object) if object.class.rsplit('.').next() == Some(class) => Some(object),
        _ => None,
    }
}

fn attribute<'v>(object: &'v Object, name: &str) -> Option<&'v Value> {
    let is_it = |(key, _): &&(Value, Value)| matches!(key, Value::Str(text) if text == name);
    object.attributes.iter().rev().find(is_it).map(|(_, value)| value)
}

fn pairs(value: &Value) -> Option<&[(Value, Value)]> {
    match value {
        Value::Dict(dict) => Some(&dict.items),
        _ => None,
    }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::Str(text) => Some(text),
        _ => None,
    }
}

fn integer(value: &Value) -> Option<usize> {
    match value {
        Value::Int(value) => usize::try_from(*value).ok(),
        _ => None,
    }
}

fn sizes(value: &Value) -> Option<Vec<usize>> {
    match value {
        Value::Size(sizes) => sizes.iter().map(|&size| usize::try_from(size).ok()).collect(),
        Value::Tuple(sizes) | Value::List(sizes) => sizes.iter().map(integer).collect(),
        _ => None,
    }
}
