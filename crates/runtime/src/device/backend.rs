//! What a computation on a device is made of: memory, kernels, matrix products, and a recording of all three that can be
//! replayed. [`Cuda`](super::cuda::Cuda) runs it on a GPU; in tests, a plain reference in float64 runs the same calls, so
//! that whatever is built of them is checked without one.

use crate::error::Error;

/// How features lie in a GPU's memory, and what its products read; sums, weights and their moments are float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// float32: products without tensor cores.
    F32,
    /// float16: eleven bits of mantissa, up to 65504.
    F16,
    /// bfloat16: eight bits of mantissa, the range of float32.
    Bf16,
}

impl Kind {
    pub(crate) fn n_bytes(self) -> usize {
        match self {
            Kind::F32 => 4,
            Kind::F16 | Kind::Bf16 => 2,
        }
    }

    /// As the kernels' names end.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Kind::F32 => "f32",
            Kind::F16 => "f16",
            Kind::Bf16 => "bf16",
        }
    }

    /// Numbers of which a row is a multiple, so that it is one of 16 bytes.
    pub(crate) fn pad(self, width: usize) -> usize {
        width.next_multiple_of(16 / self.n_bytes())
    }
}

/// Threads of a block, for kernels with one number a thread.
pub(crate) const BLOCK: usize = 256;

/// One argument of a kernel; numbers have the size that the kernel declares.
#[derive(Debug)]
pub(crate) enum Arg<'a, B> {
    /// A pointer that is null.
    Null,
    /// A pointer to a buffer.
    Buffer(&'a B),
    /// A pointer to a byte of a buffer.
    At(&'a B, usize),
    U32(u32),
    I32(i32),
    U64(u64),
    F32(f32),
}

/// A buffer where there is one.
pub(crate) fn maybe<B>(buffer: Option<&B>) -> Arg<'_, B> {
    buffer.map_or(Arg::Null, Arg::Buffer)
}

/// A count as kernels take it.
///
/// # Panics
/// Where it does not fit. Rows are counted when they are uploaded; widths of layers that large have no room on any GPU.
pub(crate) fn count<'a, B>(n: usize) -> Arg<'a, B> {
    Arg::U32(u32::try_from(n).expect("a GPU holds fewer than 2^32 of anything"))
}

/// Blocks of a grid and threads of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) grid: [usize; 3],
    pub(crate) block: [usize; 2],
}

impl Shape {
    /// One thread for each of `n`.
    pub(crate) fn each(n: usize) -> Shape {
        Shape {
            grid: [n.div_ceil(BLOCK).max(1), 1, 1],
            block: [BLOCK, 1],
        }
    }
}

/// An operand of a product: number (row, k) of the operand lies at `offset + row·row_stride + k·k_stride`, all counted in
/// numbers; one of the strides is 1.
#[derive(Debug)]
pub(crate) struct Operand<'a, B> {
    pub(crate) buffer: &'a B,
    pub(crate) offset: usize,
    pub(crate) row_stride: usize,
    pub(crate) k_stride: usize,
}

impl<'a, B> Operand<'a, B> {
    /// Rows of the operand are rows in memory.
    pub(crate) fn rows(buffer: &'a B, offset: usize, stride: usize) -> Operand<'a, B> {
        Operand {
            buffer,
            offset,
            row_stride: stride,
            k_stride: 1,
        }
    }

    /// Rows of the operand are columns in memory.
    pub(crate) fn columns(buffer: &'a B, offset: usize, stride: usize) -> Operand<'a, B> {
        Operand {
            buffer,
            offset,
            row_stride: 1,
            k_stride: stride,
        }
    }
}

/// `out[m, n] = alpha · Σ_k a(m, k)·b(n, k) + beta · out[m, n]`, sums in float32.
#[derive(Debug)]
pub(crate) struct Product<'a, B> {
    /// Of both operands.
    pub(crate) kind: Kind,
    /// [`Kind::F32`] or that of the operands.
    pub(crate) out_kind: Kind,
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) a: Operand<'a, B>,
    pub(crate) b: Operand<'a, B>,
    pub(crate) out: &'a B,
    pub(crate) out_offset: usize,
    pub(crate) out_stride: usize,
    /// Results of `out`, `m·out_stride` numbers apart, one for each of so many equal segments of `k`.
    pub(crate) n_segments: usize,
    pub(crate) alpha: f32,
    pub(crate) beta: f32,
}

/// A device.
pub(crate) trait Backend {
    /// Memory on it.
    type Buffer;
    /// Calls that were recorded.
    type Graph;

    /// `n_bytes` zeros.
    fn zeros(&self, n_bytes: usize) -> Result<Self::Buffer, Error>;

    /// Copies onto the device, from byte `at` on.
    fn write(&self, to: &Self::Buffer, at: usize, bytes: &[u8]) -> Result<(), Error>;

    /// Copies from the device once all that was asked for before is done.
    fn read(&self, from: &Self::Buffer, at: usize, bytes: &mut [u8]) -> Result<(), Error>;

    /// Zeros all of it.
    fn clear(&self, buffer: &Self::Buffer) -> Result<(), Error>;

    /// Runs a kernel by its name in `kernels/*.cu`, with the arguments that it has there.
    fn launch(&self, kernel: &str, shape: Shape, args: &[Arg<'_, Self::Buffer>]) -> Result<(), Error>;

    /// Multiplies.
    fn multiply(&self, product: &Product<'_, Self::Buffer>) -> Result<(), Error>;

    /// Into how many segments of `k` a product over many rows is best cut; their results, added by `sum_segments`, are the
    /// product. Depends on the sizes alone.
    fn segments(&self, m: usize, n: usize, k: usize) -> usize;

    /// Records what `calls` asks for instead of doing it. Nothing may be allocated or copied from the host meanwhile.
    fn record(&self, calls: &mut dyn FnMut() -> Result<(), Error>) -> Result<Self::Graph, Error>;

    /// Does what was recorded.
    fn replay(&self, graph: &Self::Graph) -> Result<(), Error>;
}

/// Numbers onto the device.
pub(crate) fn upload<D: Backend, T: bytemuck::NoUninit>(
    device: &D,
    values: &[T],
) -> Result<D::Buffer, Error> {
    let bytes: &[u8] = bytemuck::cast_slice(values);
    let buffer = device.zeros(bytes.len())?;
    device.write(&buffer, 0, bytes)?;
    Ok(buffer)
}

/// The first `n` numbers of a buffer.
pub(crate) fn download<D: Backend, T: bytemuck::Pod>(
    device: &D,
    buffer: &D::Buffer,
    n: usize,
) -> Result<Vec<T>, Error> {
    let mut values = vec![T::zeroed(); n];
    device.read(buffer, 0, bytemuck::cast_slice_mut(&mut values))?;
    Ok(values)
}
