//! ONNX Runtime loaded once per process, and models made ready to run on it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::ep;
use ort::session::SessionInputValue;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::TensorElementType;

use super::cuda::{self, CudaMissing};
use super::device::Device;
use super::external::Held;
use super::find::{Found, find};
use super::tensor::{Input, Output, OutputView, input_value, output_view, type_name};
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
    /// Threads inside one operator, on the processor.
    pub intra_threads: usize,
    /// What runs it.
    pub device: Device,
}

/// A model, ready to run. `run` takes `&mut self`: a session per worker thread.
#[derive(Debug)]
pub struct Session {
    inner: ort::session::Session,
    path: PathBuf,
    inputs: Vec<Port>,
    outputs: Vec<String>,
    partly_on_cpu: bool,
    /// ONNX Runtime reads these bytes as long as the session lives; dropped after it.
    _external: Vec<Held>,
}

/// An input of a session.
#[derive(Debug)]
struct Port {
    name: String,
    ty: TensorElementType,
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

    /// Checks that `device` can be used, so that this is said before an hour of work.
    ///
    /// # Errors
    /// [`Error::CudaMissing`].
    pub fn check(&self, device: Device) -> Result<(), Error> {
        self.name(device).map(drop)
    }

    /// What runs a network on `device`, in one line for a person: `the CPU with ONNX Runtime 1.32 (...)`.
    ///
    /// # Errors
    /// As [`Engine::check`].
    pub fn describe(&self, device: Device) -> Result<String, Error> {
        Ok(match device {
            Device::Cpu => format!("the CPU with {self}"),
            Device::Cuda { tf32, .. } => format!(
                "{device} ({}, TF32 {}) with {self}",
                self.name(device)?,
                if tf32 { "on" } else { "off" }
            ),
        })
    }

    fn name(&self, device: Device) -> Result<String, Error> {
        match device {
            Device::Cpu => Ok("the CPU".to_owned()),
            Device::Cuda { index, .. } => {
                cuda::prepare(&self.found.path, index).map_err(|reason| Error::CudaMissing { device, reason })
            }
        }
    }

    /// Makes a model ready to run.
    ///
    /// # Errors
    /// [`Error::Ort`] with ONNX Runtime's own words, for an operator that it does not know among others;
    /// [`Error::Backbone`] where an input is no tensor; as [`Engine::check`].
    pub fn session(&self, model: &Model, options: SessionOptions) -> Result<Session, Error> {
        let load = |message: String| Error::Ort {
            action: "load",
            path: model.path().to_owned(),
            message: match model.culprit(&message) {
                Some(node) => format!("{message}: {node}"),
                None => message,
            },
        };
        model.check_operators()?;
        self.check(options.device)?;
        // Before the builder, so that it is dropped after it.
        let external: Vec<Held> = model
            .external()
            .iter()
            .map(|tensor| Held::new(tensor).map_err(load))
            .collect::<Result<_, Error>>()?;
        let commit = |fallback: CpuFallback| {
            let mut builder = self.builder(options).map_err(load)?;
            if let Device::Cuda { index, tf32 } = options.device {
                builder = with_cuda(builder, index, tf32, fallback).map_err(|reason| Error::CudaMissing {
                    device: options.device,
                    reason: CudaMissing::Start { reason },
                })?;
            }
            for tensor in &external {
                // SAFETY: `external` outlives the builder here and ONNX Runtime's session in `Session`; the bytes stay
                // where they are when the vector moves.
                let value = unsafe { tensor.value() }.map_err(load)?;
                builder = builder
                    .with_external_initializer(tensor.name(), value)
                    .map_err(|error| load(error.to_string()))?;
            }
            builder
                .commit_from_memory(model.bytes())
                .map_err(|error| load(error.to_string()))
        };
        let (inner, partly_on_cpu) = match options.device {
            Device::Cpu => (commit(CpuFallback::Allowed)?, false),
            // Graphs with a free batch size compute shapes, which belongs on the processor; that some operators run
            // there is allowed, and known.
            Device::Cuda { .. } => match commit(CpuFallback::Refused) {
                Err(Error::Ort { message, .. }) if message.contains(REFUSED_FALLBACK) => {
                    (commit(CpuFallback::Allowed)?, true)
                }
                whole => (whole?, false),
            },
        };
        let port = |outlet: &ort::value::Outlet| match outlet.dtype().tensor_type() {
            Some(ty) => Ok(Port {
                name: outlet.name().to_owned(),
                ty,
            }),
            None => Err(Error::Backbone {
                path: model.path().to_owned(),
                reason: format!("its input `{}` is no tensor", outlet.name()),
            }),
        };
        Ok(Session {
            inputs: inner.inputs().iter().map(port).collect::<Result<_, Error>>()?,
            outputs: inner
                .outputs()
                .iter()
                .map(|outlet| outlet.name().to_owned())
                .collect(),
            path: model.path().to_owned(),
            inner,
            partly_on_cpu,
            _external: external,
        })
    }

    fn builder(&self, options: SessionOptions) -> Result<SessionBuilder, String> {
        let text = |error: ort::Error<SessionBuilder>| error.to_string();
        let builder = ort::session::Session::builder(&self.environment).map_err(|error| error.to_string())?;
        let builder = builder
            .with_optimization_level(GraphOptimizationLevel::Level3)
            .map_err(text)?;
        let builder = builder.with_intra_threads(options.intra_threads).map_err(text)?;
        let builder = builder.with_inter_threads(1).map_err(text)?;
        // Preprocessing shares the cores: a pool that spins while it waits would take them from it.
        let builder = builder.with_intra_op_spinning(false).map_err(text)?;
        builder.with_deterministic_compute(true).map_err(text)
    }
}

/// Whether operators that the GPU's provider does not take may run on the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CpuFallback {
    Allowed,
    Refused,
}

/// What ONNX Runtime says where operators would run on the processor and that is refused.
const REFUSED_FALLBACK: &str = "fallback to CPU EP has been explicitly disabled";

fn with_cuda(
    builder: SessionBuilder,
    index: u32,
    tf32: bool,
    fallback: CpuFallback,
) -> Result<SessionBuilder, String> {
    let text = |error: ort::Error<SessionBuilder>| error.to_string();
    let index = i32::try_from(index).map_err(|_| format!("there is no device {index}"))?;
    let provider = ep::CUDA::default()
        .with_device_id(index)
        .with_tf32(tf32)
        // The default measures algorithms and takes the fastest of the day, which need not be the same tomorrow.
        .with_conv_algorithm_search(ep::cuda::ConvAlgorithmSearch::Heuristic);
    let builder = builder
        .with_execution_providers([provider.build().error_on_failure()])
        .map_err(text)
        .map_err(|error| match error.rsplit_once(" : FAIL : ") {
            // In front of the words stands where in ONNX Runtime's source they were said.
            Some((_, words)) => words.trim().to_owned(),
            None => error,
        })?;
    match fallback {
        CpuFallback::Allowed => Ok(builder),
        CpuFallback::Refused => builder.with_disable_cpu_fallback().map_err(text),
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
    /// Names of the inputs, in the order in which [`Session::run`] takes them.
    pub fn input_names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.inputs.iter().map(|port| port.name.as_str())
    }

    /// Names of the outputs, in the order in which [`Session::run`] gives them.
    pub fn output_names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.outputs.iter().map(String::as_str)
    }

    /// Whether the device is a GPU and some operators of the graph run on the processor all the same, for the provider
    /// has no kernel for them or they only compute shapes.
    pub fn partly_on_cpu(&self) -> bool {
        self.partly_on_cpu
    }

    /// Runs the network once: inputs and outputs in the model's order.
    ///
    /// # Errors
    /// [`Error::Ort`] with ONNX Runtime's own words, where shapes do not fit among others; [`Error::Backbone`] where
    /// the number of inputs or the type of a tensor does not fit.
    pub fn run(&mut self, inputs: &[Input<'_>]) -> Result<Vec<Output>, Error> {
        self.run_with(inputs, |outputs| {
            outputs.into_iter().map(OutputView::into_owned).collect()
        })
    }

    /// As [`Session::run`], and the outputs are looked at where ONNX Runtime left them instead of being copied.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run_with<R>(
        &mut self,
        inputs: &[Input<'_>],
        look: impl FnOnce(Vec<OutputView<'_>>) -> R,
    ) -> Result<R, Error> {
        let path = &self.path;
        let misfit = |reason: String| Error::Backbone {
            path: path.clone(),
            reason,
        };
        let failed = |error: ort::Error| Error::Ort {
            action: "run",
            path: path.clone(),
            message: error.to_string(),
        };
        if inputs.len() != self.inputs.len() {
            let ports: Vec<String> = self
                .inputs
                .iter()
                .map(|port| format!("`{}` {}", port.name, type_name(port.ty)))
                .collect();
            return Err(misfit(format!(
                "it takes {} inputs ({}), and {} were given",
                ports.len(),
                ports.join(", "),
                inputs.len()
            )));
        }
        let values = inputs
            .iter()
            .zip(&self.inputs)
            .map(|(input, port)| {
                input_value(input, port.ty)
                    .map_err(|reason| misfit(format!("its input `{}`: {reason}", port.name)))
            })
            .collect::<Result<Vec<SessionInputValue<'_>>, Error>>()?;
        let outputs = self.inner.run(values.as_slice()).map_err(failed)?;
        let views = self
            .outputs
            .iter()
            .enumerate()
            .map(|(idx, name)| output_view(name, &outputs[idx]))
            .collect::<Result<Vec<OutputView<'_>>, String>>()
            .map_err(|reason| misfit(format!("its output {reason}")))?;
        Ok(look(views))
    }

    /// As [`Session::run`], and each output must have one row per sample.
    ///
    /// # Errors
    /// As [`Session::run`]; [`Error::Backbone`] where the first axis of an output is not `n_rows` or rows are empty.
    pub fn run_rows(&mut self, inputs: &[Input<'_>], n_rows: usize) -> Result<Vec<Output>, Error> {
        let outputs = self.run(inputs)?;
        for (output, name) in outputs.iter().zip(&self.outputs) {
            if output.shape.first() != Some(&n_rows) || output.row_len() == 0 {
                return Err(Error::Backbone {
                    path: self.path.clone(),
                    reason: format!(
                        "its output `{name}` has shape {:?} for {n_rows} samples",
                        output.shape
                    ),
                });
            }
        }
        Ok(outputs)
    }
}
