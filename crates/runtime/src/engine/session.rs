//! The only file that knows the `ort` crate's sessions.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::session::builder::GraphOptimizationLevel;
use ort::value::TensorRef;

use super::find::{Found, find};
use crate::error::Error;
use crate::onnx::Model;

/// ONNX Runtime, loaded. There is one environment per process, whoever opens it first chooses the library.
#[derive(Debug, Clone)]
pub struct Engine {
    environment: ort::environment::Environment,
    found: Found,
}

/// How a model is run.
#[derive(Debug, Clone, Copy)]
pub struct SessionOptions {
    /// Threads inside one operator.
    pub intra_threads: usize,
}

/// A model, ready to run. `run` takes `&mut self`: a session per worker thread.
#[derive(Debug)]
pub struct Session {
    inner: ort::session::Session,
    path: PathBuf,
    input: String,
    output: String,
}

impl Engine {
    /// Loads ONNX Runtime from where [`find`] finds it. A second call in the process gets the first call's library.
    ///
    /// # Errors
    /// As [`find`]; [`Error::OrtUnusable`] where the library does not start.
    pub fn open(requested: Option<&Path>) -> Result<Engine, Error> {
        static OPENED: Mutex<Option<Engine>> = Mutex::new(None);
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(engine) = &*opened {
            return match requested {
                Some(path) if std::path::absolute(path).is_ok_and(|path| path != engine.found.path) => {
                    let reason = format!("`{}` is loaded already", engine.found.path.display());
                    Err(Error::OrtUnusable {
                        path: path.to_owned(),
                        reason,
                    })
                }
                _ => Ok(engine.clone()),
            };
        }
        let found = find(requested)?;
        let unusable = |reason: String| Error::OrtUnusable {
            path: found.path.clone(),
            reason,
        };
        let environment = ort::init_from(&found.path)
            .map_err(|error| unusable(error.to_string()))?
            .with_name("graftwork")
            .with_telemetry(false)
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        // Errors come back as values; what the library would print on stderr beside them is noise.
        environment.set_log_level(ort::logging::LogLevel::Fatal);
        let engine = Engine { environment, found };
        *opened = Some(engine.clone());
        Ok(engine)
    }

    /// Which library is in use.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// Makes a model with one input and (as a cut has) one output ready to run.
    ///
    /// # Errors
    /// [`Error::Ort`] with ONNX Runtime's own words; [`Error::Backbone`] for several inputs.
    pub fn session(&self, model: &Model, options: SessionOptions) -> Result<Session, Error> {
        let input = model.input()?.name.clone();
        let output = model.outputs()[0].clone();
        let load = |message: String| Error::Ort {
            action: "load",
            path: model.path().to_owned(),
            message,
        };
        let set_up = || -> Result<_, String> {
            let text = |error: ort::Error<ort::session::builder::SessionBuilder>| error.to_string();
            let builder =
                ort::session::Session::builder(&self.environment).map_err(|error| error.to_string())?;
            let builder = builder
                .with_optimization_level(GraphOptimizationLevel::Level3)
                .map_err(text)?;
            let builder = builder.with_intra_threads(options.intra_threads).map_err(text)?;
            let builder = builder.with_inter_threads(1).map_err(text)?;
            // Preprocessing shares the cores: a pool that spins while it waits would take them from it.
            let builder = builder.with_intra_op_spinning(false).map_err(text)?;
            builder.with_deterministic_compute(true).map_err(text)
        };
        let mut builder = set_up().map_err(load)?;
        let inner = builder
            .commit_from_memory(model.bytes())
            .map_err(|error| load(error.to_string()))?;
        Ok(Session {
            inner,
            path: model.path().to_owned(),
            input,
            output,
        })
    }
}

impl std::fmt::Display for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "ONNX Runtime 1.{} ({}, `{}`)",
            self.found.minor,
            self.found.origin,
            self.found.path.display()
        )
    }
}

impl Session {
    /// Runs one batch: `pixels` is row-major with `shape`, `[N, 3, H, W]`. Returns the output's rows after one
    /// another and how many numbers a row has.
    ///
    /// # Errors
    /// [`Error::Ort`] with ONNX Runtime's own words; [`Error::Backbone`] where the output is not float32 or does not
    /// have one row per picture.
    pub fn run(&mut self, shape: [usize; 4], pixels: &[f32]) -> Result<(Vec<f32>, usize), Error> {
        let failed = |error: ort::Error| Error::Ort {
            action: "run",
            path: self.path.clone(),
            message: error.to_string(),
        };
        let tensor = TensorRef::from_array_view((shape, pixels)).map_err(failed)?;
        let outputs = self
            .inner
            .run(ort::inputs![self.input.as_str() => tensor])
            .map_err(failed)?;
        let value = outputs.get(&self.output).ok_or_else(|| Error::Backbone {
            path: self.path.clone(),
            reason: format!("it gave no `{}`", self.output),
        })?;
        let (out_shape, values) = value.try_extract_tensor::<f32>().map_err(|_| Error::Backbone {
            path: self.path.clone(),
            reason: format!("`{}` is not float32", self.output),
        })?;
        let n_rows = out_shape.first().copied().unwrap_or(0);
        if usize::try_from(n_rows) != Ok(shape[0]) || shape[0] == 0 || values.is_empty() {
            return Err(Error::Backbone {
                path: self.path.clone(),
                reason: format!(
                    "`{}` has shape {:?} for {} pictures",
                    self.output,
                    &out_shape[..],
                    shape[0]
                ),
            });
        }
        Ok((values.to_vec(), values.len() / shape[0]))
    }
}
