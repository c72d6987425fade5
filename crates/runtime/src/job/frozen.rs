//! Features of the frozen part of a network that is fine-tuned: cached, or computed again in each epoch.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use super::fit::ExtractSummary;
use super::tune::{Context, TuneEvent};
use crate::data::Split;
use crate::error::Error;
use crate::features::{
    Budget, ExtractConfig, Extraction, Labelled, Pool, Preparation, Recomputed, RowId, Store, Tap, Views,
    Wanted, extract, keys,
};
use crate::onnx::Model;
use crate::targets::{Targets, Task};
use crate::tune::{self, Boundary, Source, Stage};

/// Whether features of the frozen part are computed again in each epoch instead of being cached. The numbers are the same to
/// the bit, but where a boundary lies inside of what an exporter took apart (a LayerNorm, a GELU): then last bits of what the
/// solver's classifier stands on may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recompute {
    /// Where the cache has no room for them, or where they are more than half of the free memory and a probe of about a
    /// second finds that reading a row takes longer than computing it.
    #[default]
    Auto,
    /// In any case.
    Always,
    /// In no case.
    Never,
}

/// Where the rows of stages come from as a run goes on.
pub(super) struct FrozenFeatures<'f, 'c> {
    context: &'f Context<'c>,
    cut: &'f str,
    on_event: &'f mut (dyn FnMut(&TuneEvent<'_>) + Send),
    /// An extraction that served the head, and serves the first stage too.
    kept: Option<(Boundary, Extraction<'c>)>,
    /// What the classifier stands on, which tells what can be read at all where nothing else is cached.
    heads: Option<Extraction<'c>>,
    /// Why features are computed again, of boundaries for which that is decided; none where they are cached.
    decided: HashMap<String, Option<String>>,
    /// Of all extractions.
    pub(super) summaries: Vec<ExtractSummary>,
    /// What was left out, as the last extraction has it.
    pub(super) ledger: String,
}

impl<'f, 'c> FrozenFeatures<'f, 'c> {
    pub(super) fn new(
        context: &'f Context<'c>,
        cut: &'f str,
        on_event: &'f mut (dyn FnMut(&TuneEvent<'_>) + Send),
    ) -> FrozenFeatures<'f, 'c> {
        FrozenFeatures {
            context,
            cut,
            on_event,
            kept: None,
            heads: None,
            decided: HashMap::new(),
            summaries: Vec::new(),
            ledger: String::new(),
        }
    }

    pub(super) fn say(&mut self, event: &TuneEvent<'_>) {
        (self.on_event)(event);
    }

    /// Training and validation rows of what the classifier stands on; in one pass with the features of the first stage where
    /// both can be had of one.
    ///
    /// # Errors
    /// As [`extract`].
    pub(super) fn rows_of_head(
        &mut self,
        model: &Model,
        first: &Stage,
        shape: &[usize],
    ) -> Result<(Labelled, Labelled), Error> {
        let rows = self.context.tap_of_head(self.cut);
        let is_cached = self.reason(model, &first.boundary, shape)?.is_none();
        let (extraction, tap) = match &first.boundary {
            Boundary::Tensor(name) if name != self.cut && is_cached => {
                let taps = [whole(name), rows];
                (self.extract(model, &taps, true)?, 1)
            }
            Boundary::Rows(_) => (self.extract(model, &[rows], true)?, 0),
            Boundary::Tensor(_) | Boundary::Input(_) => (self.extract(model, &[rows], false)?, 0),
        };
        let manifest = extraction.manifest();
        let store = &extraction.stores[tap];
        let train = manifest.labelled(store, &[], Split::Train)?;
        let val = manifest.labelled(store, &[], Split::Val)?;
        match &first.boundary {
            Boundary::Rows(_) => self.kept = Some((first.boundary.clone(), extraction)),
            _ if tap == 1 => self.kept = Some((first.boundary.clone(), extraction)),
            _ => self.heads = Some(extraction),
        }
        Ok((train, val))
    }

    /// The rows of a stage.
    ///
    /// # Errors
    /// As [`extract`].
    pub(super) fn rows(
        &mut self,
        model: &Model,
        stage: &Stage,
        shape: &[usize],
    ) -> Result<tune::Rows<'c>, Error> {
        let rows = match self.kept.take() {
            Some((boundary, extraction)) if boundary == stage.boundary => {
                let rows = self.stored(&extraction)?;
                if matches!(boundary, Boundary::Rows(_)) {
                    self.heads = Some(extraction);
                }
                rows
            }
            _ => match self.reason(model, &stage.boundary, shape)? {
                Some(reason) => {
                    self.say(&TuneEvent::Recomputes {
                        boundary: stage.boundary.name(),
                        reason: &reason,
                    });
                    self.again(model, &stage.boundary, shape.iter().product())?
                }
                None => {
                    let extraction = self.extract_at(model, &stage.boundary)?;
                    self.stored(&extraction)?
                }
            },
        };
        if rows.val.targets.is_empty() {
            return Err(self.context.nothing_to_judge());
        }
        let n_classes = self.context.data.classes().len();
        rows.train
            .targets
            .check(Task::SingleLabel, rows.train.features.n_rows(), n_classes)?;
        Ok(rows)
    }

    fn extract(&mut self, model: &Model, taps: &[Tap], with_views: bool) -> Result<Extraction<'c>, Error> {
        let context = self.context;
        let views = context.config.views.as_ref().filter(|_| with_views);
        let extraction = extract(
            model,
            context.data,
            context.engine,
            &context.extraction(taps, views),
            context.monitor,
        )?;
        let summary = ExtractSummary::of(&extraction);
        self.say(&TuneEvent::Extracted(&summary));
        self.summaries.push(summary);
        self.ledger = extraction.ledger();
        Ok(extraction)
    }

    fn extract_at(&mut self, model: &Model, boundary: &Boundary) -> Result<Extraction<'c>, Error> {
        match boundary {
            Boundary::Input(_) => {
                let (model, name) = model.input_alone()?;
                self.extract(&model, &[whole(&name)], true)
            }
            Boundary::Tensor(name) => self.extract(model, &[whole(name)], true),
            Boundary::Rows(_) => self.extract(model, &[self.context.tap_of_head(self.cut)], true),
        }
    }

    fn stored(&self, extraction: &Extraction<'_>) -> Result<tune::Rows<'c>, Error> {
        let manifest = extraction.manifest();
        let split = |rows: Labelled| tune::Split {
            features: Source::Stored(rows.features),
            targets: rows.targets,
            names: rows.names,
        };
        Ok(tune::Rows {
            train: split(manifest.labelled(extraction.store(), &extraction.views, Split::Train)?),
            val: split(manifest.labelled(extraction.store(), &[], Split::Val)?),
        })
    }

    /// Rows that are computed whenever they are asked for. What can be read is known from an extraction of what the
    /// classifier stands on.
    fn again(
        &mut self,
        model: &Model,
        boundary: &Boundary,
        n_features: usize,
    ) -> Result<tune::Rows<'c>, Error> {
        if self.heads.is_none() {
            self.heads = Some(self.extract(model, &[self.context.tap_of_head(self.cut)], false)?);
        }
        let heads = self.heads.as_ref().expect("made above");
        let wanted = |split: Split, n_views: usize| {
            let (mut wanted, mut labels, mut names) = (Vec::new(), Vec::new(), Vec::new());
            for (sample, id, label) in heads.labelled(split) {
                for slot in 0..=n_views {
                    wanted.push(Wanted {
                        sample,
                        slot,
                        id: Some(id),
                    });
                    labels.push(label);
                    names.push(self.context.data.name(sample).into_owned());
                }
            }
            (wanted, Targets::Classes(labels), names)
        };
        let (of_train, targets, names) = wanted(Split::Train, self.context.n_views());
        let features = self.recomputed_at(model, boundary, n_features, of_train)?;
        let (of_val, val_targets, val_names) = wanted(Split::Val, 0);
        let val_features = features.of_others(of_val);
        Ok(tune::Rows {
            train: tune::Split {
                features: Source::Recomputed(Box::new(features)),
                targets,
                names,
            },
            val: tune::Split {
                features: Source::Recomputed(Box::new(val_features)),
                targets: val_targets,
                names: val_names,
            },
        })
    }

    fn recomputed_at(
        &self,
        model: &Model,
        boundary: &Boundary,
        n_features: usize,
        wanted: Vec<Wanted>,
    ) -> Result<Recomputed<'c>, Error> {
        let context = self.context;
        let (model, name) = context.in_front(model, boundary)?;
        let config = context.extraction(&[], context.config.views.as_ref());
        Recomputed::new(
            &model,
            &name,
            context.data,
            context.engine,
            &config,
            n_features,
            wanted,
        )
    }

    /// Why the features at a boundary are computed again; none where they are cached.
    fn reason(
        &mut self,
        model: &Model,
        boundary: &Boundary,
        shape: &[usize],
    ) -> Result<Option<String>, Error> {
        if let Some(decided) = self.decided.get(boundary.name()) {
            return Ok(decided.clone());
        }
        let reason = self.decide(model, boundary, shape)?;
        self.decided.insert(boundary.name().to_owned(), reason.clone());
        Ok(reason)
    }

    fn decide(&self, model: &Model, boundary: &Boundary, shape: &[usize]) -> Result<Option<String>, Error> {
        let context = self.context;
        match context.recompute {
            // What the classifier stands on is small.
            _ if matches!(boundary, Boundary::Rows(_)) => return Ok(None),
            Recompute::Never => return Ok(None),
            Recompute::Always => return Ok(Some("as was asked".to_owned())),
            Recompute::Auto => {}
        }
        let n_features = shape.iter().product::<usize>();
        let row_bytes = (n_features * context.config.dtype.n_bytes()) as u64;
        let (model_in_front, name) = context.in_front(model, boundary)?;
        let taps = [whole(&name)];
        let config = context.extraction(&taps, context.config.views.as_ref());
        let stores: Vec<Store> = keys(&model_in_front, &config)?
            .iter()
            .flatten()
            .map(|key| context.config.cache.join(key.digest()))
            .filter(|folder| folder.join("key.json").exists())
            .map(|folder| Store::open_entry(&folder))
            .collect::<Result<_, Error>>()?;
        let all = context.n_rows() * (row_bytes + size_of::<RowId>() as u64);
        let n_stores = 1 + context.n_views();
        let share = self.share_missing(&stores, n_stores);
        let limit = context.config.max_cache_bytes;
        let budget = limit.map(|limit| Budget::new(&context.config.cache, limit));
        let room = budget.transpose()?.map(|budget| budget.room());
        let size = Size {
            all,
            missing: (all as f64 * share) as u64,
            room: [room, free_space(&context.config.cache)]
                .into_iter()
                .flatten()
                .min(),
            memory: free_memory(),
        };
        size.reason(&mut || {
            let costs = self.probe(model, boundary, n_features)?;
            Ok(costs.and_then(|costs| costs.reason(context.tune.trainer.epochs)))
        })
    }

    /// Which part of all rows is not in the entries that are there, of `n` that are wanted, as a few pictures tell: an entry
    /// may hold those of other data, and of this data some cannot be read.
    fn share_missing(&self, stores: &[Store], n: usize) -> f64 {
        const N_ASKED: usize = 64;
        if stores.is_empty() {
            return 1.0;
        }
        let data = self.context.data;
        let mut reader = data.reader();
        let (mut n_asked, mut n_there) = (0, 0);
        for sample in (0..data.len()).step_by(data.len().div_ceil(N_ASKED).max(1)) {
            let Ok(content) = reader.read(sample) else {
                continue;
            };
            let id = content.id();
            n_asked += n;
            n_there += match data.split(sample) {
                Split::Train => stores.iter().filter(|store| store.contains(&id)).count(),
                // Of which only the plain picture is wanted.
                _ if stores[0].contains(&id) => n,
                _ => 0,
            };
        }
        1.0 - n_there as f64 / n_asked.max(1) as f64
    }

    /// Measures for about a second what a row costs. None where that cannot be measured here.
    fn probe(&self, model: &Model, boundary: &Boundary, n_features: usize) -> Result<Option<Costs>, Error> {
        const HALF: Duration = Duration::from_millis(500);
        const MOST_BYTES: usize = 256 << 20;
        let (context, data) = (self.context, self.context.data);
        let is_train = |&sample: &usize| data.split(sample) == Split::Train && data.label(sample).is_some();
        let samples = (0..data.len()).filter(is_train);
        // Neighbours in a tar or on a disk are not what steps will ask for.
        let every = (context.n_rows() as usize / 256).max(1);
        let wanted = samples.step_by(every).map(|sample| Wanted {
            sample,
            slot: 0,
            id: None,
        });
        let recomputed = self.recomputed_at(model, boundary, n_features, wanted.collect())?;
        let most = (MOST_BYTES / (n_features * size_of::<f32>()).max(1)).max(1);
        let n = recomputed.at_once().min(recomputed.n_rows()).min(most);
        let mut values = vec![0.0; n * n_features];
        let (mut n_done, mut spent, mut is_warm) = (0, Duration::ZERO, false);
        let rows: Vec<usize> = (0..recomputed.n_rows()).collect();
        for rows in rows.chunks_exact(n.max(1)) {
            let start = Instant::now();
            match recomputed.rows(rows, &mut values, context.monitor) {
                Ok(()) => {}
                // The extraction says what cannot be read; others may.
                Err(Error::Data { .. }) => continue,
                Err(Error::HalfOverflow { .. } | Error::Features(_)) => return Ok(None),
                Err(error) => return Err(error),
            }
            // Sessions are made in the first round, which matters where it is short.
            if is_warm || start.elapsed() > 2 * HALF {
                spent += start.elapsed();
                n_done += n;
            }
            is_warm = true;
            if spent > HALF {
                break;
            }
        }
        if n_done == 0 {
            return Ok(None);
        }
        let row_bytes = n_features * context.config.dtype.n_bytes();
        // Where it cannot be made, the extraction says so.
        let _ = std::fs::create_dir_all(&context.config.cache);
        let Some((write, read)) = probe_disk(&context.config.cache, row_bytes, HALF) else {
            return Ok(None);
        };
        Ok(Some(Costs {
            compute: spent.as_secs_f64() / n_done as f64,
            write,
            read,
        }))
    }
}

impl<'c> Context<'c> {
    fn extraction<'e>(&'e self, taps: &'e [Tap], views: Option<&'e Views>) -> ExtractConfig<'e> {
        let config = self.config;
        ExtractConfig {
            cache: &config.cache,
            taps,
            input: Preparation::Pictures(&config.preprocess),
            views,
            dtype: config.dtype,
            device: config.device,
            batch_size: config.batch_size,
            threads: config.threads,
            block_rows: config.block_rows,
            max_cache_bytes: config.max_cache_bytes,
            shard: None,
        }
    }

    /// What the classifier stands on, as a head's features are kept.
    fn tap_of_head(&self, cut: &str) -> Tap {
        Tap {
            boundary: cut.to_owned(),
            pool: self.config.pool,
        }
    }

    /// The graph whose tensor a boundary is, and the tensor.
    pub(super) fn in_front(&self, model: &Model, boundary: &Boundary) -> Result<(Model, String), Error> {
        match boundary {
            Boundary::Input(_) => model.input_alone(),
            Boundary::Tensor(name) | Boundary::Rows(name) => Ok((model.clone(), name.clone())),
        }
    }

    fn n_views(&self) -> usize {
        self.config.views.as_ref().map_or(0, |views| views.count as usize)
    }

    /// Rows of both splits, if all can be read.
    fn n_rows(&self) -> u64 {
        let n = |split: Split| self.data.count(split) as u64;
        n(Split::Train) * (1 + self.n_views() as u64) + n(Split::Val)
    }

    pub(super) fn nothing_to_judge(&self) -> Error {
        Error::Data {
            path: self.config.data.clone(),
            reason: "no validation picture could be read".to_owned(),
        }
    }
}

fn whole(boundary: &str) -> Tap {
    Tap {
        boundary: boundary.to_owned(),
        pool: Pool::None,
    }
}

/// Features, and what there is for them, in bytes.
#[derive(Debug, Clone, Copy)]
struct Size {
    all: u64,
    /// Not yet in the cache.
    missing: u64,
    /// How much more the cache may hold, where that is known.
    room: Option<u64>,
    /// Free memory, where that is known.
    memory: Option<u64>,
}

impl Size {
    /// Why such features are better computed again; `probe` says so where it is a question of time.
    fn reason(
        &self,
        probe: &mut dyn FnMut() -> Result<Option<String>, Error>,
    ) -> Result<Option<String>, Error> {
        let megabytes = |n: u64| n as f64 / 1e6;
        if self.missing == 0 {
            return Ok(None);
        }
        if let Some(room) = self.room.filter(|room| *room < self.missing) {
            return Ok(Some(format!(
                "{:.1} MB of them are missing, and the cache has room for {:.1} MB",
                megabytes(self.missing),
                megabytes(room)
            )));
        }
        // What memory holds is read from the disk once at most; half of it is left to everything else.
        if self.memory.is_none_or(|memory| self.all <= memory / 2) {
            return Ok(None);
        }
        probe()
    }
}

/// What a row costs, in seconds.
#[derive(Debug, Clone, Copy)]
struct Costs {
    compute: f64,
    write: f64,
    read: f64,
}

impl Costs {
    /// Why computing is cheaper, where it is: each epoch reads or computes a row once, and a row is written once.
    fn reason(&self, epochs: usize) -> Option<String> {
        let epochs = epochs as f64;
        (epochs * self.compute < self.write + epochs * self.read).then(|| {
            format!(
                "a row takes {:.2} ms to compute and {:.2} ms to read",
                self.compute * 1e3,
                self.read * 1e3
            )
        })
    }
}

/// Bytes that a folder's disk has left, but for a little.
fn free_space(folder: &Path) -> Option<u64> {
    const LEFT_ALONE: u64 = 1 << 30;
    #[cfg(unix)]
    {
        // The folder may not be there yet.
        let folder = std::path::absolute(folder).ok()?;
        let folder = folder.ancestors().find(|folder| folder.exists())?;
        let found = rustix::fs::statvfs(folder).ok()?;
        Some((found.f_bavail * found.f_frsize).saturating_sub(LEFT_ALONE))
    }
    #[cfg(not(unix))]
    {
        let _ = (folder, LEFT_ALONE);
        None
    }
}

/// The greatest common divisor.
#[cfg(target_os = "linux")]
fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Bytes of memory that nobody needs, by the kernel, and by what the group of processes may have where it is the root that is
/// seen, as in a container.
fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let free = line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? << 10;
    let of_group = |name: &str| std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(name)).ok();
    let number = |name: &str| of_group(name)?.trim().parse::<u64>().ok();
    // What files were read into is given back when it is asked for.
    let kept = of_group("memory.stat").and_then(|text| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("inactive_file "))?;
        line.parse::<u64>().ok()
    });
    let of_group = number("memory.max").map(|most| {
        let used = number("memory.current")
            .unwrap_or(0)
            .saturating_sub(kept.unwrap_or(0));
        most.saturating_sub(used)
    });
    Some(of_group.map_or(free, |of_group| of_group.min(free)))
}

/// Seconds that writing and reading a row take on a folder's disk, past the memory that keeps what was read lately. None
/// where that cannot be told apart.
fn probe_disk(folder: &Path, row_bytes: usize, time: Duration) -> Option<(f64, f64)> {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::FileExt;
        const MOST_BYTES: usize = 64 << 20;
        let n = (MOST_BYTES / row_bytes.max(1)).clamp(4, 1024);
        // Without a name: whatever happens, nothing is left of it.
        let mut file = tempfile::tempfile_in(folder).ok()?;
        // Not zeros, which some disks do not write.
        let mut row: Vec<u8> = (0..row_bytes as u64)
            .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
            .collect();
        let start = Instant::now();
        let mut n_written = 0;
        while n_written < n && (start.elapsed() < time / 2 || n_written < 4) {
            file.write_all(&row).ok()?;
            n_written += 1;
        }
        file.sync_all().ok()?;
        let write = start.elapsed().as_secs_f64() / n_written as f64;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).ok()?;
        let start = Instant::now();
        let mut n_read = 0;
        // Far from each other, as a shuffled order asks for them.
        let mut stride = n_written * 5 / 8 + 1;
        while gcd(stride, n_written) > 1 {
            stride += 1;
        }
        while n_read < n_written && (start.elapsed() < time / 2 || n_read < 4) {
            let at = (n_read * stride % n_written) * row_bytes;
            file.read_exact_at(&mut row, at as u64).ok()?;
            n_read += 1;
        }
        Some((write, start.elapsed().as_secs_f64() / n_read as f64))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (folder, row_bytes, time);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    fn reason(size: Size, costs: Option<Costs>) -> Option<String> {
        size.reason(&mut || Ok(costs.expect("nothing is probed").reason(10)))
            .unwrap()
    }

    #[test]
    fn what_has_no_room_is_computed_again_and_what_memory_holds_is_not_probed() {
        let size = Size {
            all: 30 * GB,
            missing: 25 * GB,
            room: Some(10 * GB),
            memory: Some(100 * GB),
        };
        assert_eq!(
            reason(size, None).as_deref(),
            Some("25000.0 MB of them are missing, and the cache has room for 10000.0 MB")
        );
        assert_eq!(reason(Size { missing: 0, ..size }, None), None);
        assert_eq!(reason(Size { room: None, ..size }, None), None);
        let known = Size {
            room: Some(40 * GB),
            ..size
        };
        assert_eq!(reason(known, None), None);
        assert_eq!(
            reason(
                Size {
                    memory: None,
                    ..known
                },
                None
            ),
            None
        );
    }

    #[test]
    fn time_decides_where_memory_is_short() {
        let size = Size {
            all: 30 * GB,
            missing: 30 * GB,
            room: None,
            memory: Some(59 * GB),
        };
        let costs = |compute: f64, write: f64, read: f64| {
            Some(Costs {
                compute: compute * 1e-3,
                write: write * 1e-3,
                read: read * 1e-3,
            })
        };
        assert_eq!(reason(size, costs(5.0, 2.0, 1.0)), None);
        assert_eq!(
            reason(size, costs(1.0, 2.0, 3.0)).as_deref(),
            Some("a row takes 1.00 ms to compute and 3.00 ms to read")
        );
        // Ten epochs of equal cost: what is written has to be made up for.
        assert!(reason(size, costs(1.0, 0.1, 1.0)).is_some());
        assert_eq!(reason(size, costs(1.0, 0.1, 0.9)), None);
    }

    #[test]
    fn a_disk_is_measured_and_a_folder_that_is_not_there_is_not() {
        let folder = tempfile::tempdir().unwrap();
        if let Some((write, read)) = probe_disk(folder.path(), 100_000, Duration::from_millis(50)) {
            assert!(write > 0.0 && read > 0.0, "{write} {read}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(probe_disk(&folder.path().join("none"), 10, Duration::ZERO), None);
        if cfg!(unix) {
            assert!(free_space(&folder.path().join("not/there")).is_some());
            assert!(free_space(Path::new("not-there-either")).is_some());
        }
    }
}
