//! Which byte goes where, before any is made.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;

use super::index::{Index, shard_name};
use super::{OutputFormat, WriteOptions, WriteReport, pth_file, run, safetensors_file};
use crate::Error;
use crate::format::adapter;
use crate::lazy::{Identity, LazyEntry, LazyStateDict, LazyTensor, Map};

/// All files of an output.
pub struct Layout<'t> {
    pub(super) files: Vec<FileLayout<'t>>,
    pub(super) index: Option<Index<'t>>,
    /// `adapter_config.json` and its text.
    pub(super) config: Option<(PathBuf, String)>,
    pub(super) tied: Vec<(String, String)>,
    pub(super) separated: Vec<Vec<String>>,
}

/// One file: what is known of its bytes, and what is to be computed.
pub(super) struct FileLayout<'t> {
    pub(super) path: PathBuf,
    pub(super) n_bytes: u64,
    pub(super) rest: Rest<'t>,
    /// In the order of the file.
    pub(super) items: Vec<Item<'t>>,
}

/// The bytes between the tensors.
pub(super) enum Rest<'t> {
    /// In front of all.
    Header(safetensors_file::Header<'t>),
    /// Around each, with its CRC.
    Archive(Box<pth::Archive>),
}

/// A tensor and its place.
pub(super) struct Item<'t> {
    pub(super) name: Cow<'t, str>,
    pub(super) tensor: LazyTensor,
    pub(super) offset: u64,
}

/// Refuses what cannot be made, or would make terabytes of a few bytes.
pub(super) fn check(name: &str, tensor: &LazyTensor) -> Result<(), Error> {
    tensor.check().map_err(|error| error.of_tensor(name))?;
    let mut expansion = Ok(());
    tensor.for_each_stored(&mut |stored| {
        if expansion.is_ok() {
            expansion = stored.check_expansion();
        }
    });
    expansion.map_err(|source| Error::Tensor {
        name: name.to_owned(),
        source,
    })
}

/// What writing a layout costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Bytes of tensors that are read from files.
    pub read_bytes: u64,
    /// Bytes that are written, without an index.
    pub write_bytes: u64,
    /// The most memory for buffers and for what is made whole.
    pub peak_bytes: u64,
    /// Files, without the index.
    pub n_files: usize,
}

impl<'t> Layout<'t> {
    /// Places every tensor of `tensors`. Reads nothing of their bytes.
    ///
    /// # Errors
    /// What the format cannot express.
    pub fn plan(
        path: &Path,
        tensors: &'t LazyStateDict,
        options: &WriteOptions<'_>,
    ) -> Result<Layout<'t>, Error> {
        let is_adapter = tensors.metadata.contains_key(adapter::CONFIG_KEY);
        Layout::at(Target::of(path, is_adapter, options), tensors, options)
    }

    /// As [`plan`](Layout::plan), for the file of exactly that name.
    pub(super) fn plan_file(
        path: &Path,
        tensors: &'t LazyStateDict,
        options: &WriteOptions<'_>,
    ) -> Result<Layout<'t>, Error> {
        Layout::at(Target::file(path), tensors, options)
    }

    fn at(
        target: Target,
        tensors: &'t LazyStateDict,
        options: &WriteOptions<'_>,
    ) -> Result<Layout<'t>, Error> {
        let ties = match options.format {
            OutputFormat::Safetensors => tied(tensors),
            // An archive has each storage once, under as many names as there are.
            OutputFormat::Pth => IndexMap::new(),
        };
        let mut metadata = safetensors_file::metadata(tensors, &ties);
        let is_adapter = adapter::is_adapter(Path::new(&target.file));
        let config = metadata.remove(adapter::CONFIG_KEY).filter(|_| is_adapter);
        let metadata = Arc::new(metadata);
        let shards = shards(tensors, &ties, options);
        let n_shards = shards.len();
        let mut files = Vec::with_capacity(n_shards);
        let mut names = Vec::with_capacity(n_shards);
        for (number, entries) in shards.iter().enumerate() {
            let name = if n_shards == 1 {
                target.file.clone()
            } else {
                shard_name(&target.file, number + 1, n_shards)
            };
            let path = target.folder.join(&name);
            files.push(match options.format {
                OutputFormat::Safetensors => safetensors_file::plan(path, entries, &metadata)?,
                OutputFormat::Pth => pth_file::plan(path, entries, tensors, options)?,
            });
            names.push(name);
        }
        let index = (n_shards > 1).then(|| Index {
            path: target.folder.join(format!("{}.index.json", target.file)),
            metadata: match options.format {
                OutputFormat::Safetensors => BTreeMap::clone(&metadata),
                OutputFormat::Pth => BTreeMap::new(),
            },
            tensors,
            shards: names.into_iter().zip(shards).collect(),
        });
        Ok(Layout {
            files,
            index,
            config: config.map(|text| (target.folder.join(adapter::CONFIG_FILE), text)),
            separated: match options.format {
                OutputFormat::Safetensors => separated(tensors),
                OutputFormat::Pth => Vec::new(),
            },
            tied: ties.into_iter().collect(),
        })
    }

    /// What writing it costs, with that many threads.
    pub fn cost(&self, options: &WriteOptions<'_>) -> Cost {
        let mut cost = Cost {
            n_files: self.files.len(),
            ..Cost::default()
        };
        let wide = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let mut held = Vec::new();
        let mut buffers = 0;
        for file in &self.files {
            cost.write_bytes = cost.write_bytes.saturating_add(file.n_bytes);
            for item in &file.items {
                let mut n_inputs = 0;
                item.tensor.for_each_stored(&mut |tensor| {
                    n_inputs += 1;
                    cost.read_bytes = cost.read_bytes.saturating_add(wide(tensor.nbytes()));
                });
                held.push(wide(item.tensor.held_bytes()));
                let chunk = wide(run::CHUNK_BYTES.min(item.tensor.nbytes()));
                buffers = chunk.saturating_mul(1 + n_inputs).max(buffers);
            }
        }
        if let Some((_, config)) = &self.config {
            cost.write_bytes = cost.write_bytes.saturating_add(wide(config.len()));
        }
        held.sort_unstable_by(|a, b| b.cmp(a));
        let n_threads = options.n_threads();
        let held: u64 = held.into_iter().take(n_threads).fold(0, u64::saturating_add);
        cost.peak_bytes = held.saturating_add(wide(n_threads).saturating_mul(buffers));
        cost
    }

    /// Writes it.
    ///
    /// # Errors
    /// A tensor that cannot be made; a file that exists; the disk. No file has appeared or changed then.
    pub fn write(&self, options: &WriteOptions<'_>) -> Result<WriteReport, Error> {
        run::run(self, options)
    }

    /// The paths of all files, the index last.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let index = self.index.iter().map(|index| index.path.as_path());
        let config = self.config.iter().map(|(path, _)| path.as_path());
        let files = self.files.iter().map(|file| file.path.as_path());
        files.chain(config).chain(index)
    }
}

/// Where the files go.
pub(super) struct Target {
    pub(super) folder: PathBuf,
    /// The name of a single file, of which those of shards are made.
    pub(super) file: String,
}

impl Target {
    fn of(path: &Path, is_adapter: bool, options: &WriteOptions<'_>) -> Target {
        let is_folder = path.is_dir() || path.extension().is_none();
        if is_folder {
            // PEFT's and transformers' names.
            let file = match options.format {
                OutputFormat::Safetensors if is_adapter => adapter::MODEL_FILES[0],
                OutputFormat::Safetensors => "model.safetensors",
                OutputFormat::Pth if is_adapter => adapter::MODEL_FILES[1],
                OutputFormat::Pth => "pytorch_model.bin",
            };
            return Target {
                folder: path.to_owned(),
                file: file.to_owned(),
            };
        }
        Target::file(path)
    }

    fn file(path: &Path) -> Target {
        let file = path.file_name().map(|name| name.to_string_lossy().into_owned());
        Target {
            folder: path.parent().map(Path::to_owned).unwrap_or_default(),
            file: file.unwrap_or_default(),
        }
    }
}

/// Names and entries of one file.
pub(super) type Entries<'t> = Vec<(&'t str, &'t LazyEntry)>;

/// The entries of each shard, as huggingface_hub's `split_torch_state_dict_into_shards` deals them out: in order, greedily, what is
/// larger than a shard may be in one of its own. Second names that a file has no place for are left out; other tied names stay together.
fn shards<'t>(
    tensors: &'t LazyStateDict,
    ties: &IndexMap<String, String>,
    options: &WriteOptions<'_>,
) -> Vec<Entries<'t>> {
    let entries = || {
        tensors
            .iter()
            .filter(|(name, _)| ties.is_empty() || !ties.contains_key(*name))
    };
    let Some(limit) = options.max_shard_bytes else {
        return vec![entries().collect()];
    };
    // Those of several names; the others need not be remembered.
    let several: HashSet<Identity> = tensors
        .ties()
        .into_iter()
        .filter_map(|names| Some(tensors.tensor(names.first()?)?.identity()))
        .collect();
    // Shards that are full before the one that is being filled, and that one.
    let mut shards: Vec<Entries<'t>> = Vec::new();
    let mut current: Entries<'t> = Vec::new();
    let mut current_bytes: u64 = 0;
    // Where a tensor of several names is: its first entry's address says in which shard.
    let mut first: Map<Identity, &'t str> = Map::default();
    let mut late: Vec<(&'t str, (&'t str, &'t LazyEntry))> = Vec::new();
    for (name, entry) in entries() {
        if let Some(identity) = entry
            .tensor()
            .map(LazyTensor::identity)
            .filter(|id| several.contains(id))
        {
            match first.entry(identity) {
                std::collections::hash_map::Entry::Occupied(known) => {
                    late.push((*known.get(), (name, entry)));
                    continue;
                }
                std::collections::hash_map::Entry::Vacant(place) => {
                    place.insert(name);
                }
            }
        }
        let n_bytes = u64::try_from(entry.nbytes()).unwrap_or(u64::MAX);
        if n_bytes > limit {
            shards.push(vec![(name, entry)]);
            continue;
        }
        if current_bytes.saturating_add(n_bytes) > limit && !current.is_empty() {
            shards.push(std::mem::take(&mut current));
            current_bytes = 0;
        }
        current.push((name, entry));
        current_bytes += n_bytes;
    }
    if !current.is_empty() || shards.is_empty() {
        shards.push(current);
    }
    if !late.is_empty() {
        let named = shards
            .iter()
            .enumerate()
            .flat_map(|(shard, entries)| entries.iter().map(move |(name, _)| (*name, shard)));
        let shard_of: Map<&str, usize> = named.collect();
        for (first, late) in late {
            if let Some(&shard) = shard_of.get(first) {
                shards[shard].push(late);
            }
        }
    }
    shards
}

/// Second names and the name that is kept: of those that stand for one tensor, the first in the alphabet, as safetensors' `save_model`.
pub(super) fn tied(tensors: &LazyStateDict) -> IndexMap<String, String> {
    let mut ties = IndexMap::new();
    for names in tensors.ties() {
        // A name that metadata has a meaning for must be that of a tensor.
        let reserved = names.iter().find(|name| crate::format::ties::is_reserved(name));
        let kept = reserved.or(names.iter().min()).copied().unwrap_or_default();
        for name in names.into_iter().filter(|name| *name != kept) {
            ties.insert(name.to_owned(), kept.to_owned());
        }
    }
    ties
}

/// Names of different views of one storage.
fn separated(tensors: &LazyStateDict) -> Vec<Vec<String>> {
    let found = || {
        tensors.iter().filter_map(|(name, entry)| {
            let tensor = entry.tensor()?;
            let id = tensor
                .as_found()
                .filter(|found| found.numel() > 0)?
                .storage()
                .id();
            Some((name, tensor.identity(), id))
        })
    };
    // Most storages have one view, and need no list.
    let mut first: Map<(usize, u32), Identity> = Map::default();
    first.reserve(tensors.len());
    let mut several: HashSet<(usize, u32)> = HashSet::new();
    for (_, identity, id) in found() {
        if *first.entry(id).or_insert(identity) != identity {
            several.insert(id);
        }
    }
    let mut groups: IndexMap<(usize, u32), Vec<String>> = IndexMap::new();
    for (name, _, id) in found().filter(|(_, _, id)| several.contains(id)) {
        groups.entry(id).or_default().push(name.to_owned());
    }
    groups.into_values().collect()
}
