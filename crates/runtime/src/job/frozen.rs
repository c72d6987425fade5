//! Features of the frozen part of a network that is fine-tuned: cached, or computed again in each epoch.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::fit::ExtractSummary;
use super::room::{Costs, Size, free_memory, free_space, probe_disk};
use super::tune::{Context, TuneEvent};
use crate::data::Split;
use crate::error::Error;
use crate::features::{
    Budget, Extraction, Labelled, Pool, Recomputed, RowId, Store, Tap, Wanted, extract, keys,
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
            &context.config.extraction(taps, views),
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
        let config = context.config.extraction(&[], context.config.views.as_ref());
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
        let config = context.config.extraction(&taps, context.config.views.as_ref());
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
