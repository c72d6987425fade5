//! Which byte goes where, before any is made.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use indexmap::IndexMap;

use super::index::{Index, shard_name};
use super::{OutputFormat, WriteOptions, WriteReport, pth_file, run, safetensors_file};
use crate::Error;
use crate::format::adapter;
use crate::lazy::{Identity, LazyEntry, LazyStateDict, LazyTensor};

/// All files of an output.
pub struct Layout {
    pub(super) files: Vec<FileLayout>,
    pub(super) index: Option<Index>,
    /// `adapter_config.json` and its text.
    pub(super) config: Option<(PathBuf, String)>,
    pub(super) tied: Vec<(String, String)>,
    pub(super) separated: Vec<Vec<String>>,
}

/// One file: what is known of its bytes, and what is to be computed.
pub(super) struct FileLayout {
    pub(super) path: PathBuf,
    pub(super) n_bytes: u64,
    pub(super) rest: Rest,
    /// In the order of the file.
    pub(super) items: Vec<Item>,
}

/// The bytes between the tensors.
pub(super) enum Rest {
    /// In front of all.
    Header(Vec<u8>),
    /// Around each, with its CRC.
    Archive(Box<pth::Archive>),
}

/// A tensor and its place.
pub(super) struct Item {
    pub(super) name: String,
    pub(super) tensor: LazyTensor,
    pub(super) offset: u64,
}

/// What writing a layout costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Bytes of tensors that are read from files.
    pub read_bytes: u64,
    /// Bytes that are written.
    pub write_bytes: u64,
    /// The most memory for buffers and for what is made whole.
    pub peak_bytes: u64,
    /// Files, without the index.
    pub n_files: usize,
}

impl Layout {
    /// Places every tensor of `tensors`. Reads nothing of their bytes.
    ///
    /// # Errors
    /// What the format cannot express.
    pub fn plan(path: &Path, tensors: &LazyStateDict, options: &WriteOptions<'_>) -> Result<Layout, Error> {
        let is_adapter = tensors.metadata.contains_key(adapter::CONFIG_KEY);
        Layout::at(Target::of(path, is_adapter, options), tensors, options)
    }

    /// As [`plan`](Layout::plan), for the file of exactly that name.
    pub(super) fn plan_file(
        path: &Path,
        tensors: &LazyStateDict,
        options: &WriteOptions<'_>,
    ) -> Result<Layout, Error> {
        Layout::at(Target::file(path), tensors, options)
    }

    fn at(target: Target, tensors: &LazyStateDict, options: &WriteOptions<'_>) -> Result<Layout, Error> {
        let shards = shards(tensors, options);
        let n_shards = shards.len();
        let mut layout = Layout {
            files: Vec::with_capacity(n_shards),
            index: None,
            config: None,
            tied: Vec::new(),
            separated: Vec::new(),
        };
        let ties = match options.format {
            OutputFormat::Safetensors => tied(tensors),
            // An archive has each storage once, under as many names as there are.
            OutputFormat::Pth => IndexMap::new(),
        };
        let mut metadata = safetensors_file::metadata(tensors, &ties);
        if adapter::is_adapter(Path::new(&target.file)) {
            let config = metadata.remove(adapter::CONFIG_KEY);
            layout.config = config.map(|text| (target.folder.join(adapter::CONFIG_FILE), text));
        }
        if options.format == OutputFormat::Safetensors {
            layout.separated = separated(tensors);
            layout.tied = ties
                .iter()
                .map(|(dropped, kept)| (dropped.clone(), kept.clone()))
                .collect();
        }
        let mut weight_map = Vec::with_capacity(tensors.len());
        for (number, names) in shards.into_iter().enumerate() {
            let name = if n_shards == 1 {
                target.file.clone()
            } else {
                shard_name(&target.file, number + 1, n_shards)
            };
            let entries: Vec<(&str, &LazyEntry)> = names
                .into_iter()
                .filter(|name| !ties.contains_key(*name))
                .map(|name| (name, tensors.get(name).expect("shards are made of the names")))
                .collect();
            weight_map.extend(
                entries
                    .iter()
                    .map(|(tensor, _)| ((*tensor).to_owned(), name.clone())),
            );
            let path = target.folder.join(&name);
            layout.files.push(match options.format {
                OutputFormat::Safetensors => safetensors_file::plan(path, &entries, &metadata)?,
                OutputFormat::Pth => pth_file::plan(path, &entries, tensors, options)?,
            });
        }
        if n_shards > 1 {
            let total = tensors.nbytes();
            layout.index = Some(Index::new(
                &target,
                options.format,
                tensors,
                &metadata,
                weight_map,
                total,
            ));
        }
        Ok(layout)
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
        if let Some(index) = &self.index {
            cost.write_bytes = cost.write_bytes.saturating_add(wide(index.json.len()));
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

/// The names of each shard, as huggingface_hub's `split_torch_state_dict_into_shards` deals them out: in order, greedily, what is
/// larger than a shard may be in one of its own, tied names together.
fn shards<'t>(tensors: &'t LazyStateDict, options: &WriteOptions<'_>) -> Vec<Vec<&'t str>> {
    let Some(limit) = options.max_shard_bytes else {
        return vec![tensors.names().collect()];
    };
    let mut shards: Vec<Vec<&str>> = Vec::new();
    let mut place: HashMap<Identity, usize> = HashMap::new();
    let (mut current, mut current_bytes): (Vec<&str>, u64) = (Vec::new(), 0);
    let mut late: Vec<(&str, Identity)> = Vec::new();
    for (name, entry) in tensors.iter() {
        let identity = entry.tensor().map(LazyTensor::identity);
        if let Some(identity) = &identity
            && place.contains_key(identity)
        {
            late.push((name, identity.clone()));
            continue;
        }
        let n_bytes = u64::try_from(entry.nbytes()).unwrap_or(u64::MAX);
        if n_bytes > limit {
            identity.map(|identity| place.insert(identity, shards.len()));
            shards.push(vec![name]);
            continue;
        }
        if current_bytes.saturating_add(n_bytes) > limit {
            for name in &current {
                if let Some(tensor) = tensors.tensor(name) {
                    place.insert(tensor.identity(), shards.len());
                }
            }
            shards.push(std::mem::take(&mut current));
            current_bytes = 0;
        }
        current.push(name);
        current_bytes += n_bytes;
        // Its shard is known when that is full.
        identity.map(|identity| place.insert(identity, usize::MAX));
    }
    if !current.is_empty() {
        shards.push(current);
    }
    for (name, identity) in late {
        let last = shards.len() - 1;
        let shard = place
            .get(&identity)
            .copied()
            .filter(|&shard| shard <= last)
            .unwrap_or(last);
        shards[shard].push(name);
    }
    if shards.is_empty() {
        shards.push(Vec::new());
    }
    shards
}

/// Second names and the name that is kept: of those that stand for one tensor, the first in the alphabet, as safetensors' `save_model`.
fn tied(tensors: &LazyStateDict) -> IndexMap<String, String> {
    let mut ties = IndexMap::new();
    for names in tensors.ties() {
        let kept = names.iter().min().copied().unwrap_or_default();
        for name in names.into_iter().filter(|name| *name != kept) {
            ties.insert(name.to_owned(), kept.to_owned());
        }
    }
    ties
}

/// Names of different views of one storage that overlap.
fn separated(tensors: &LazyStateDict) -> Vec<Vec<String>> {
    let mut by_storage: IndexMap<(usize, u32), Vec<(&str, &pth::Tensor)>> = IndexMap::new();
    for (name, entry) in tensors.iter() {
        if let Some(tensor) = entry
            .tensor()
            .and_then(LazyTensor::as_found)
            .filter(|tensor| tensor.numel() > 0)
        {
            by_storage
                .entry(tensor.storage().id())
                .or_default()
                .push((name, tensor));
        }
    }
    let mut groups = Vec::new();
    for views in by_storage.into_values().filter(|views| views.len() > 1) {
        let distinct: HashSet<Identity> = views
            .iter()
            .map(|(_, tensor)| LazyTensor::stored((*tensor).clone()).identity())
            .collect();
        if distinct.len() > 1 {
            groups.push(views.into_iter().map(|(name, _)| name.to_owned()).collect());
        }
    }
    groups
}
