//! A network as torchinfo shows it with an input: the modules in the order of their calls, with output shapes and multiply-adds.
//!
//! Source: torchinfo 1.8.0, `torchinfo.summary(net, input_size=...)`, row by row and rule by rule.

mod print;
mod rows;

use serde::Serialize;
use surgery::LazyStateDict;

use super::fit::Template;
use super::interpreter::Interpreter;
use crate::error::Error;

pub use print::{Column, SummaryFormat};

/// Sizes of a batch of pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchSize {
    /// Pictures.
    pub n: usize,
    /// Channels of each.
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl std::str::FromStr for BatchSize {
    type Err = String;

    /// Reads `10,3,224,224`.
    fn from_str(text: &str) -> Result<BatchSize, String> {
        const MOST: usize = 1 << 20;
        let odd = || format!("`{text}` is no size of a batch: 10,3,224,224 (n,channels,height,width) is");
        let sizes = text.trim_matches(['(', ')']).split(',').map(|size| {
            let size: usize = size.trim().parse().map_err(|_| odd())?;
            if (1..=MOST).contains(&size) {
                Ok(size)
            } else {
                Err(odd())
            }
        });
        match sizes.collect::<Result<Vec<_>, _>>()?.as_slice() {
            &[n, channels, height, width] => Ok(BatchSize {
                n,
                channels,
                height,
                width,
            }),
            _ => Err(odd()),
        }
    }
}

/// A network with an input. [`to_text`](NetworkSummary::to_text) prints it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NetworkSummary {
    /// Calls of modules in their order; the first is the network.
    pub rows: Vec<NetworkRow>,
    /// Elements of all parameters.
    pub n_params: usize,
    /// How many of those train.
    pub n_trainable: usize,
    /// Multiplications with an addition, for the whole batch.
    pub n_mult_adds: usize,
    /// Size of the input in bytes, as torchinfo counts it: with the 64 bytes of its Python object.
    pub input_nbytes: usize,
    /// Twice the size in bytes of what layers with parameters give.
    pub passes_nbytes: usize,
    /// Size in bytes of the parameters of layers; what is a parameter of a module that holds others is not counted.
    pub params_nbytes: usize,
}

/// A call of a module, or a container that is not called itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NetworkRow {
    /// The module's class.
    pub class: String,
    /// Its name within the one that holds it; the class for the network.
    pub var_name: String,
    /// 0 for the network.
    pub depth: usize,
    /// 1 for the first row of this depth.
    pub depth_idx: usize,
    /// Whether it holds no modules.
    pub is_leaf: bool,
    /// Whether the module was called before.
    pub is_recursive: bool,
    /// Sizes of the kernel where it has one: one number, or one for each axis.
    pub kernel: Vec<usize>,
    /// Sizes of what it was given first; empty for a container that is not called.
    pub input: Vec<usize>,
    /// Sizes of what it gave.
    pub output: Vec<usize>,
    /// Elements of all parameters in it.
    pub n_params: usize,
    /// How many of those train.
    pub n_trainable: usize,
    /// Elements of parameters that no row below it has.
    pub n_left: usize,
    /// As [`n_left`](NetworkRow::n_left), of those that train.
    pub n_left_trainable: usize,
    /// Multiplications with an addition.
    pub n_mult_adds: usize,
    /// How many of the rows that follow are in it.
    pub n_below: usize,
}

impl Template {
    /// The network with a batch of pictures. Marks of the state dict say what trains; without any, everything does.
    ///
    /// # Errors
    /// [`Error::Template`] where the network does not take such pictures; [`Error::Usage`] for another number of channels.
    pub fn summary(&self, tensors: &LazyStateDict, batch: BatchSize) -> Result<NetworkSummary, Error> {
        let lookup = |name: &str| self.sizes.get(name).cloned();
        let mut interpreter = Interpreter::new(&lookup);
        let root = self.build(&mut interpreter)?;
        if let Some(channels) = interpreter.in_channels(root)
            && channels != batch.channels
        {
            return Err(Error::Usage(format!(
                "`{}` takes pictures of {channels} channels, and not of {}",
                self.path.display(),
                batch.channels
            )));
        }
        let size = super::InputSize {
            height: batch.height,
            width: batch.width,
        };
        self.trace(&mut interpreter, root, Some(size))?;
        let is_marked = tensors.is_marked();
        let trains = |name: &str| {
            let entry = tensors.get(name);
            !is_marked || entry.is_some_and(|entry| entry.requires_grad)
        };
        Ok(rows::summarise(&interpreter, root, batch, &trains))
    }
}
