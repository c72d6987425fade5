//! The reference: every kernel of `kernels/*.cu` with the same name and arguments, by its definition in float64 and with no
//! thought of speed. Only tests use it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use half::{bf16, f16};

use super::backend::{Arg, Backend, Kind, Product, Shape};
use super::gemm;
use crate::error::Error;

// Definitions read best by their indices.
#[allow(clippy::needless_range_loop)]
mod layer;
#[allow(clippy::needless_range_loop)]
mod loss;
#[allow(clippy::needless_range_loop)]
mod optim;
#[allow(clippy::needless_range_loop)]
mod rows;

/// A device that is the processor.
#[derive(Debug, Default)]
pub(super) struct Reference {
    recording: RefCell<Option<Vec<(String, Args)>>>,
    /// Launches, those of replays among them.
    pub(super) n_launches: Cell<usize>,
}

/// Bytes.
#[derive(Debug, Clone)]
pub(super) struct Memory(Rc<RefCell<Vec<u8>>>);

/// A kernel's arguments.
#[derive(Debug, Clone)]
pub(super) struct Args(Vec<Value>);

#[derive(Debug, Clone)]
enum Value {
    Null,
    Memory(Memory, usize),
    Number(u64),
    Real(f32),
}

impl Args {
    fn new(args: &[Arg<'_, Memory>]) -> Args {
        let value = |arg: &Arg<'_, Memory>| match *arg {
            Arg::Null => Value::Null,
            Arg::Buffer(memory) => Value::Memory(memory.clone(), 0),
            Arg::At(memory, byte) => Value::Memory(memory.clone(), byte),
            Arg::U32(number) => Value::Number(u64::from(number)),
            Arg::I32(number) => Value::Number(u64::from(number.cast_unsigned())),
            Arg::U64(number) => Value::Number(number),
            Arg::F32(number) => Value::Real(number),
        };
        Args(args.iter().map(value).collect())
    }

    fn number(&self, at: usize) -> usize {
        match self.0[at] {
            Value::Number(number) => number as usize,
            ref other => panic!("argument {at} is {other:?}"),
        }
    }

    fn real(&self, at: usize) -> f64 {
        match self.0[at] {
            Value::Real(number) => f64::from(number),
            ref other => panic!("argument {at} is {other:?}"),
        }
    }

    fn is_null(&self, at: usize) -> bool {
        matches!(self.0[at], Value::Null)
    }

    fn bytes(&self, at: usize) -> Vec<u8> {
        match &self.0[at] {
            Value::Memory(memory, byte) => memory.0.borrow()[*byte..].to_vec(),
            other => panic!("argument {at} is {other:?}"),
        }
    }

    /// All numbers from the pointer on.
    fn reals(&self, at: usize, kind: Kind) -> Vec<f64> {
        let bytes = self.bytes(at);
        match kind {
            Kind::F32 => words(&bytes)
                .map(|word| f64::from(f32::from_bits(word)))
                .collect(),
            Kind::F16 => halves(&bytes).map(|half| f16::from_bits(half).to_f64()).collect(),
            Kind::Bf16 => halves(&bytes)
                .map(|half| bf16::from_bits(half).to_f64())
                .collect(),
        }
    }

    fn doubles(&self, at: usize) -> Vec<f64> {
        let whole = |bytes: &[u8]| f64::from_le_bytes(bytes.try_into().expect("chunks of 8"));
        self.bytes(at).chunks_exact(8).map(whole).collect()
    }

    fn numbers(&self, at: usize) -> Vec<usize> {
        words(&self.bytes(at)).map(|word| word as usize).collect()
    }

    fn put(&self, at: usize, start: usize, bytes: &[u8]) {
        match &self.0[at] {
            Value::Memory(memory, byte) => {
                memory.0.borrow_mut()[byte + start..byte + start + bytes.len()].copy_from_slice(bytes);
            }
            other => panic!("argument {at} is {other:?}"),
        }
    }

    /// Rounds a number into its place.
    fn set(&self, at: usize, kind: Kind, index: usize, value: f64) {
        match kind {
            Kind::F32 => self.put(at, index * 4, &(value as f32).to_le_bytes()),
            Kind::F16 => self.put(at, index * 2, &f16::from_f64(value).to_le_bytes()),
            Kind::Bf16 => self.put(at, index * 2, &bf16::from_f64(value).to_le_bytes()),
        }
    }

    /// The step's row, step of the epoch, and step of the run.
    fn cursor(&self, at: usize) -> [usize; 3] {
        let numbers = self.numbers(at);
        let start = numbers[2] + (numbers[3] << 32);
        [numbers[0], numbers[1], start + numbers[1]]
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes
        .chunks_exact(4)
        .map(|word| u32::from_le_bytes(word.try_into().expect("chunks of 4")))
}

fn halves(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes
        .chunks_exact(2)
        .map(|half| u16::from_le_bytes(half.try_into().expect("chunks of 2")))
}

/// Runs the kernel of this name.
fn run(name: &str, args: &Args) {
    // Names end in the kinds of what they read and write.
    let kinds = |stem: &str| {
        let rest = name
            .strip_prefix(stem)
            .unwrap_or_default()
            .trim_start_matches('_');
        let kind = |text: &str| match text {
            "f32" => Kind::F32,
            "f16" => Kind::F16,
            "bf16" => Kind::Bf16,
            other => panic!("{name}: {other}"),
        };
        let mut parts = rest.split('_').map(kind);
        let first = parts.next().expect("a kind");
        (first, parts.next().unwrap_or(first))
    };
    match name {
        "advance" => rows::advance(args),
        "gather_rows" => rows::gather_rows(args),
        "sum_segments" => rows::sum_segments(args),
        "split_f16" | "split_bf16" => rows::split(args, kinds("split").0),
        "batch_stats" => loss::batch_stats(args),
        "squares" => optim::squares(args),
        "clip_factor" => optim::clip_factor(args),
        "inverse_roots" => layer::inverse_roots(args),
        "gemm_f32" | "gemm_f16" | "gemm_bf16" | "gemm_f16_f32" | "gemm_bf16_f32" => {
            rows::gemm(args, kinds("gemm"));
        }
        _ if name.starts_with("gather_mix") => rows::gather_mix(args, kinds("gather_mix").0),
        _ if name.starts_with("convert") => rows::convert(args, kinds("convert")),
        _ if name.starts_with("column_sums") => rows::column_sums(args, kinds("column_sums").0),
        _ if name.starts_with("softmax_ce") => loss::softmax_ce(args, kinds("softmax_ce")),
        _ if name.starts_with("sigmoid_bce") => loss::dense(args, kinds("sigmoid_bce"), true),
        _ if name.starts_with("squared_error") => loss::dense(args, kinds("squared_error"), false),
        _ if name.starts_with("sgd") => optim::update(args, kinds("sgd").0, false),
        _ if name.starts_with("adam") => optim::update(args, kinds("adam").0, true),
        _ if name.starts_with("activation_backward") => {
            layer::activation_backward(args, kinds("activation_backward").0);
        }
        _ if name.starts_with("activation") => layer::activation(args, kinds("activation").0),
        _ if name.starts_with("row_moments") => layer::row_moments(args, kinds("row_moments").0),
        _ if name.starts_with("column_moments") => layer::column_moments(args, kinds("column_moments").0),
        _ if name.starts_with("normalise_sums") => layer::normalise_sums(args, kinds("normalise_sums").0),
        _ if name.starts_with("normalise") => layer::normalise(args, kinds("normalise").0),
        _ if name.starts_with("row_norm_backward") => {
            layer::row_norm_backward(args, kinds("row_norm_backward").0);
        }
        _ if name.starts_with("column_norm_backward") => {
            layer::column_norm_backward(args, kinds("column_norm_backward").0);
        }
        other => panic!("no kernel `{other}`"),
    }
}

impl Backend for Reference {
    type Buffer = Memory;
    type Graph = Vec<(String, Args)>;

    fn zeros(&self, n_bytes: usize) -> Result<Memory, Error> {
        Ok(Memory(Rc::new(RefCell::new(vec![0; n_bytes]))))
    }

    fn write(&self, to: &Memory, at: usize, bytes: &[u8]) -> Result<(), Error> {
        to.0.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&self, from: &Memory, at: usize, bytes: &mut [u8]) -> Result<(), Error> {
        bytes.copy_from_slice(&from.0.borrow()[at..at + bytes.len()]);
        Ok(())
    }

    fn clear(&self, buffer: &Memory) -> Result<(), Error> {
        buffer.0.borrow_mut().fill(0);
        Ok(())
    }

    fn launch(&self, kernel: &str, _: Shape, args: &[Arg<'_, Memory>]) -> Result<(), Error> {
        let args = Args::new(args);
        match self.recording.borrow_mut().as_mut() {
            Some(calls) => calls.push((kernel.to_owned(), args)),
            None => {
                self.n_launches.set(self.n_launches.get() + 1);
                run(kernel, &args);
            }
        }
        Ok(())
    }

    fn multiply(&self, product: &Product<'_, Memory>) -> Result<(), Error> {
        gemm::multiply(self, product)
    }

    fn segments(&self, m: usize, n: usize, k: usize) -> usize {
        gemm::segments(m, n, k)
    }

    fn record(&self, calls: &mut dyn FnMut() -> Result<(), Error>) -> Result<Self::Graph, Error> {
        *self.recording.borrow_mut() = Some(Vec::new());
        let outcome = calls();
        let recorded = self.recording.borrow_mut().take().unwrap_or_default();
        outcome.map(|()| recorded)
    }

    fn replay(&self, graph: &Self::Graph) -> Result<(), Error> {
        for (kernel, args) in graph {
            self.n_launches.set(self.n_launches.get() + 1);
            run(kernel, args);
        }
        Ok(())
    }
}
