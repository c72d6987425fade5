//! A GPU by NVIDIA's driver alone: context, stream, memory, the kernels of `kernels/*.ptx`, recorded graphs.
//!
//! The driver is looked for before anything of it is called, since `cudarc` panics where a library is absent; cuBLASLt is
//! used where it is found ([`blas`](super::blas)). Work goes to one stream in order; only [`read`](Backend::read) waits.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::rc::Rc;
use std::sync::Arc;

use cudarc::driver::{CudaContext, DriverError, result, sys};

use super::backend::{Arg, Backend, Product, Shape};
use super::blas::Blas;
use super::gemm;
use crate::contained::contain;
use crate::engine::{CudaMissing, Device, driver_devices};
use crate::error::Error;

/// The kernels as PTX 8.0 for compute capability 8.0, which any driver of CUDA 12 compiles for the GPU that it has; made by
/// `tools/check_kernels.py --write`.
pub(super) const MODULES: [(&str, &str); 5] = [
    ("gemm", include_str!("../../kernels/gemm.ptx")),
    ("layer", include_str!("../../kernels/layer.ptx")),
    ("loss", include_str!("../../kernels/loss.ptx")),
    ("optim", include_str!("../../kernels/optim.ptx")),
    ("rows", include_str!("../../kernels/rows.ptx")),
];

/// What the PTX needs of the driver, as `cuDriverGetVersion` counts.
const DRIVER_VERSION: i32 = 12000;
/// What the kernels need of the GPU: bfloat16 conversions and `mma.m16n8k16`.
const CAPABILITY: (i32, i32) = (8, 0);

/// A GPU that is ready.
pub struct Cuda {
    inner: Rc<Inner>,
    functions: HashMap<String, sys::CUfunction>,
    blas: Option<Blas>,
    name: String,
}

struct Inner {
    device: Device,
    context: Arc<CudaContext>,
    stream: sys::CUstream,
    modules: Vec<sys::CUmodule>,
}

/// Memory on a GPU, freed when it is dropped.
pub(crate) struct Buffer {
    pub(super) at: sys::CUdeviceptr,
    n_bytes: usize,
    inner: Rc<Inner>,
}

/// A recording.
pub(crate) struct Graph {
    graph: sys::CUgraph,
    runnable: sys::CUgraphExec,
    inner: Rc<Inner>,
}

impl std::fmt::Debug for Cuda {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cuda")
            .field("device", &self.inner.device)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Cuda {
    /// GPU number `index` as NVIDIA's driver counts.
    ///
    /// # Errors
    /// [`Error::CudaMissing`]: no driver, an old one, no such GPU, a GPU that is too old.
    pub fn open(index: u32) -> Result<Cuda, Error> {
        Cuda::open_with(index, true)
    }

    /// As [`open`](Cuda::open); without cuBLASLt, all products are those of `kernels/gemm.cu`.
    ///
    /// # Errors
    /// As [`open`](Cuda::open).
    pub(crate) fn open_with(index: u32, with_blas: bool) -> Result<Cuda, Error> {
        let device = Device::Cuda { index, tf32: false };
        let missing = |reason| Error::CudaMissing { device, reason };
        let names = driver_devices().map_err(|reason| missing(CudaMissing::Driver { reason }))?;
        let n_devices = names.len();
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        let name = names
            .into_iter()
            .nth(at)
            .ok_or_else(|| missing(CudaMissing::Index { n_devices }))?;
        // cudarc looks for the driver under names of its own, and panics where it does not find one or lacks a symbol.
        let opened = contain(|| Cuda::start(device, at));
        let (inner, functions) = opened.unwrap_or_else(|panic| {
            let words = panic
                .downcast_ref::<String>()
                .map_or("it lacks a function", String::as_str);
            let reason = words.lines().next().unwrap_or_default().to_owned();
            Err(missing(CudaMissing::Driver { reason }))
        })?;
        let inner = Rc::new(inner);
        let blas = if with_blas {
            Blas::open(|n_bytes| Buffer::zeros(&inner, n_bytes))?
        } else {
            None
        };
        Ok(Cuda {
            inner,
            functions,
            blas,
            name,
        })
    }

    fn start(device: Device, index: usize) -> Result<(Inner, HashMap<String, sys::CUfunction>), Error> {
        let missing = |reason| Error::CudaMissing { device, reason };
        let start = |error: DriverError| missing(CudaMissing::Driver { reason: words(error) });
        let mut version = 0;
        // SAFETY: the pointer lives through the call; the driver was loaded and started by `driver_devices`.
        unsafe { sys::cuDriverGetVersion(&mut version) }
            .result()
            .map_err(start)?;
        if version < DRIVER_VERSION {
            return Err(missing(CudaMissing::DriverVersion { version }));
        }
        let context = CudaContext::new(index).map_err(start)?;
        let capability = context.compute_capability().map_err(start)?;
        if capability < CAPABILITY {
            return Err(missing(CudaMissing::Capability { capability }));
        }
        context.bind_to_thread().map_err(start)?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(start)?;
        let mut inner = Inner {
            device,
            context,
            stream,
            modules: Vec::new(),
        };
        let mut functions = HashMap::new();
        for (_, ptx) in MODULES {
            let text = CString::new(ptx).expect("PTX is text without zeros");
            // SAFETY: a text that ends in zero, which is what the driver takes PTX as.
            let module = unsafe { result::module::load_data(text.as_ptr().cast()) }.map_err(start)?;
            inner.modules.push(module);
            for name in entries(ptx) {
                let symbol = CString::new(name).expect("names hold no zeros");
                // SAFETY: the module is loaded and stays so as long as `inner` lives.
                let function = unsafe { result::module::get_function(module, symbol) }.map_err(start)?;
                functions.insert(name.to_owned(), function);
            }
        }
        Ok((inner, functions))
    }

    /// The GPU's name, as NVIDIA's driver gives it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether products go to cuBLASLt.
    pub fn has_blas(&self) -> bool {
        self.blas.is_some()
    }
}

/// Names of the kernels of a PTX text.
pub(super) fn entries(ptx: &str) -> impl Iterator<Item = &str> {
    ptx.split(".entry ")
        .skip(1)
        .filter_map(|rest| rest.split('(').next())
}

/// The driver's own words.
fn words(error: DriverError) -> String {
    match error.error_string() {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => format!("error {:?}", error.0),
    }
}

impl Inner {
    /// Makes the context this thread's.
    fn bind(&self) -> Result<(), Error> {
        self.check("use", self.context.bind_to_thread())
    }

    fn check<T>(&self, action: &'static str, result: Result<T, DriverError>) -> Result<T, Error> {
        result.map_err(|error| Error::Gpu {
            device: self.device,
            action,
            message: words(error),
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Errors of the end of a context have no one to go to.
        let _ = self.context.bind_to_thread();
        // SAFETY: whatever used the stream and the modules holds an `Rc` of this and is gone.
        unsafe {
            let _ = result::stream::synchronize(self.stream);
            for module in self.modules.drain(..) {
                let _ = result::module::unload(module);
            }
            let _ = result::stream::destroy(self.stream);
        }
    }
}

impl Buffer {
    fn zeros(inner: &Rc<Inner>, n_bytes: usize) -> Result<Buffer, Error> {
        inner.bind()?;
        // The driver gives no memory of no bytes.
        let n_bytes = n_bytes.max(16);
        // SAFETY: what it holds is set below, before anyone sees it.
        let at = match unsafe { result::malloc_sync(n_bytes) } {
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let (free, total) = inner.check("ask about memory", result::mem_get_info())?;
                return Err(Error::GpuMemory {
                    device: inner.device,
                    needed: n_bytes,
                    free,
                    total,
                });
            }
            other => inner.check("allocate", other)?,
        };
        let buffer = Buffer {
            at,
            n_bytes,
            inner: Rc::clone(inner),
        };
        // SAFETY: the memory was just allocated with this size.
        inner.check("clear", unsafe {
            result::memset_d8_async(at, 0, n_bytes, inner.stream)
        })?;
        Ok(buffer)
    }

    fn within(&self, at: usize, n_bytes: usize) {
        let end = at.checked_add(n_bytes);
        assert!(
            end.is_some_and(|end| end <= self.n_bytes),
            "{at} + {n_bytes} bytes of a buffer of {}",
            self.n_bytes
        );
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let _ = self.inner.context.bind_to_thread();
        // SAFETY: allocated by `zeros` and freed once; the driver waits for the kernels that use it.
        let _ = unsafe { result::free_sync(self.at) };
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.inner.context.bind_to_thread();
        // SAFETY: made by `record` and destroyed once; the driver keeps what still runs.
        unsafe {
            let _ = result::graph::exec_destroy(self.runnable);
            let _ = result::graph::destroy(self.graph);
        }
    }
}

impl Backend for Cuda {
    type Buffer = Buffer;
    type Graph = Graph;

    fn zeros(&self, n_bytes: usize) -> Result<Buffer, Error> {
        Buffer::zeros(&self.inner, n_bytes)
    }

    fn write(&self, to: &Buffer, at: usize, bytes: &[u8]) -> Result<(), Error> {
        self.inner.bind()?;
        to.within(at, bytes.len());
        if bytes.is_empty() {
            return Ok(());
        }
        let stream = self.inner.stream;
        // SAFETY: inside the buffer, as was checked; the copy is waited for, so that `bytes` outlives it.
        let result = unsafe {
            result::memcpy_htod_async(to.at + at as u64, bytes, stream)
                .and_then(|()| result::stream::synchronize(stream))
        };
        self.inner.check("copy to", result)
    }

    fn read(&self, from: &Buffer, at: usize, bytes: &mut [u8]) -> Result<(), Error> {
        self.inner.bind()?;
        from.within(at, bytes.len());
        if bytes.is_empty() {
            return Ok(());
        }
        let stream = self.inner.stream;
        // SAFETY: inside the buffer, as was checked; the copy is waited for.
        let result = unsafe {
            result::memcpy_dtoh_async(bytes, from.at + at as u64, stream)
                .and_then(|()| result::stream::synchronize(stream))
        };
        self.inner.check("copy from", result)
    }

    fn clear(&self, buffer: &Buffer) -> Result<(), Error> {
        self.inner.bind()?;
        // SAFETY: all of the buffer and nothing else.
        let result = unsafe { result::memset_d8_async(buffer.at, 0, buffer.n_bytes, self.inner.stream) };
        self.inner.check("clear", result)
    }

    fn launch(&self, kernel: &str, shape: Shape, args: &[Arg<'_, Buffer>]) -> Result<(), Error> {
        self.inner.bind()?;
        let function = self
            .functions
            .get(kernel)
            .expect("kernels are launched by the names that the PTX has");
        // A word for each argument, of which the driver reads as many bytes as the kernel declares; little-endian.
        let mut words: Vec<u64> = args
            .iter()
            .map(|arg| match *arg {
                Arg::Null => 0,
                Arg::Buffer(buffer) => buffer.at,
                Arg::At(buffer, byte) => buffer.at + byte as u64,
                Arg::U32(value) => u64::from(value),
                Arg::I32(value) => u64::from(value.cast_unsigned()),
                Arg::U64(value) => value,
                Arg::F32(value) => u64::from(value.to_bits()),
            })
            .collect();
        let mut pointers: Vec<*mut c_void> = words
            .iter_mut()
            .map(|word| std::ptr::from_mut(word).cast())
            .collect();
        let side = |n: usize| u32::try_from(n).expect("a GPU holds fewer than 2^32 of anything");
        let [x, y, z] = shape.grid.map(side);
        let [bx, by] = shape.block.map(side);
        // SAFETY: the number and the types of the arguments are those of the kernel: the tests call each with the
        // arguments of its case table, and compare the PTX's parameters with the source's; buffers outlive the launch, since the driver waits where one is freed.
        let result = unsafe {
            result::launch_kernel(
                *function,
                (x, y, z),
                (bx, by, 1),
                0,
                self.inner.stream,
                &mut pointers,
            )
        };
        self.inner.check("run a kernel on", result)
    }

    fn multiply(&self, product: &Product<'_, Buffer>) -> Result<(), Error> {
        self.inner.bind()?;
        if product.n_segments == 1
            && let Some(blas) = &self.blas
            && blas.multiply(self.inner.device, self.inner.stream, product)?
        {
            return Ok(());
        }
        gemm::multiply(self, product)
    }

    fn segments(&self, m: usize, n: usize, k: usize) -> usize {
        // cuBLASLt cuts by itself.
        if self.blas.is_some() {
            1
        } else {
            gemm::segments(m, n, k)
        }
    }

    fn record(&self, calls: &mut dyn FnMut() -> Result<(), Error>) -> Result<Graph, Error> {
        self.inner.bind()?;
        let stream = self.inner.stream;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives; its capture is ended below, whatever happens between.
        let begun = unsafe { result::stream::begin_capture(stream, mode) };
        self.inner.check("record", begun)?;
        let outcome = calls();
        // SAFETY: begun above.
        let graph = self
            .inner
            .check("record", unsafe { result::stream::end_capture(stream) });
        outcome?;
        let graph = graph?;
        let flags = sys::CUgraphInstantiate_flags(0);
        // SAFETY: the graph is whole and not null, since its capture ended well.
        match unsafe { result::graph::instantiate(graph, flags) } {
            Ok(runnable) => Ok(Graph {
                graph,
                runnable,
                inner: Rc::clone(&self.inner),
            }),
            Err(error) => {
                // SAFETY: no one else has it.
                let _ = unsafe { result::graph::destroy(graph) };
                self.inner.check("record", Err(error))
            }
        }
    }

    fn replay(&self, graph: &Graph) -> Result<(), Error> {
        self.inner.bind()?;
        // SAFETY: the graph and the stream live; the buffers that it names belong to whoever holds the graph.
        let result = unsafe { result::graph::launch(graph.runnable, self.inner.stream) };
        self.inner.check("run a graph on", result)
    }
}
