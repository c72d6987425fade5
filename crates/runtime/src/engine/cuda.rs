//! Whether a GPU can be used, found out before a session asks for one: the library's provider, NVIDIA's driver, the
//! device, in this order, so that what is absent is named instead of worked around.
//!
//! Nothing here is needed to build: the driver is looked for when a GPU is asked for.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Once;

use libloading::Library;

use super::providers::{self, short_provider};

/// Why a GPU cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CudaMissing {
    /// ONNX Runtime was built without its CUDA provider.
    Provider {
        /// The library.
        library: PathBuf,
        /// What it has instead.
        has: Vec<String>,
    },
    /// It was built with it, and the provider's own library does not lie beside it.
    ProviderFile {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// NVIDIA's driver does not load or does not start.
    Driver {
        /// The driver's or the loader's words.
        reason: String,
    },
    /// There are GPUs, but not this one.
    Index {
        /// How many there are.
        n_devices: usize,
    },
    /// The driver is older than the kernels need.
    DriverVersion {
        /// The CUDA that it is of: 1000 times the major and 10 times the minor version.
        version: i32,
    },
    /// The GPU is older than the kernels need.
    Capability {
        /// Its compute capability.
        capability: (i32, i32),
    },
    /// The provider did not start: one of NVIDIA's libraries is absent, or the driver is too old for them.
    Start {
        /// ONNX Runtime's own words.
        reason: String,
    },
}

impl fmt::Display for CudaMissing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CudaMissing::Provider { library, has } => {
                let has: Vec<&str> = has.iter().map(|name| short_provider(name)).collect();
                write!(
                    f,
                    "`{}` was built without CUDA (it has {})",
                    library.display(),
                    has.join(", ")
                )
            }
            CudaMissing::ProviderFile { path } => write!(
                f,
                "ONNX Runtime was built with CUDA, and there is no `{}`",
                path.display()
            ),
            CudaMissing::Driver { reason } => write!(f, "NVIDIA's driver does not start: {reason}"),
            CudaMissing::Index { n_devices: 0 } => f.write_str("NVIDIA's driver finds no GPU"),
            CudaMissing::Index { n_devices: 1 } => f.write_str("the only one is cuda:0"),
            CudaMissing::Index { n_devices } => write!(f, "there are cuda:0 to cuda:{}", n_devices - 1),
            CudaMissing::DriverVersion { version } => {
                let (major, minor) = (version / 1000, version % 1000 / 10);
                write!(
                    f,
                    "NVIDIA's driver is of CUDA {major}.{minor}, and the kernels need 12.0"
                )
            }
            CudaMissing::Capability {
                capability: (major, minor),
            } => write!(
                f,
                "its compute capability is {major}.{minor}, and the kernels need 8.0"
            ),
            CudaMissing::Start { reason } => write!(f, "ONNX Runtime's provider does not start: {reason}"),
        }
    }
}

/// Names of the GPUs that `library`, an ONNX Runtime, could run on, in the order of their numbers; never empty.
///
/// # Errors
/// What is absent, the first of: the library's CUDA provider, the provider's file, the driver, a GPU.
pub fn cuda_devices(library: &Path) -> Result<Vec<String>, CudaMissing> {
    let has = providers::providers(library).unwrap_or_default();
    if !has.iter().any(|name| name == providers::CUDA) {
        return Err(CudaMissing::Provider {
            library: library.to_owned(),
            has,
        });
    }
    // A library that the system's loader found by name brings its providers from where it lies, which is not known here.
    if let Some(folder) = library.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        let path = folder.join(provider_file());
        if !path.exists() {
            return Err(CudaMissing::ProviderFile { path });
        }
    }
    let names = driver_devices().map_err(|reason| CudaMissing::Driver { reason })?;
    if names.is_empty() {
        return Err(CudaMissing::Index { n_devices: 0 });
    }
    Ok(names)
}

/// As [`cuda_devices`] for one GPU, whose name is returned; makes NVIDIA's libraries of the Python packages beside
/// `library` known to the loader.
pub(super) fn prepare(library: &Path, index: u32) -> Result<String, CudaMissing> {
    static PRELOADED: Once = Once::new();
    let mut names = cuda_devices(library)?;
    let n_devices = names.len();
    let index = usize::try_from(index).unwrap_or(usize::MAX);
    if index >= n_devices {
        return Err(CudaMissing::Index { n_devices });
    }
    PRELOADED.call_once(|| {
        for path in packaged_libraries(library) {
            // What does not load is named by ONNX Runtime when it is really needed.
            let _ = ort::util::preload_dylib(path);
        }
    });
    Ok(names.swap_remove(index))
}

fn provider_file() -> &'static str {
    if cfg!(target_os = "windows") {
        "onnxruntime_providers_cuda.dll"
    } else {
        "libonnxruntime_providers_cuda.so"
    }
}

/// What the provider needs of NVIDIA's, each before what depends on it; pip keeps them in `nvidia/*/lib` of the
/// `site-packages` in which `onnxruntime/capi/libonnxruntime.so.1.x.y` lies.
const NVIDIA_LIBRARIES: [&str; 9] = [
    "libcudart.so.",
    "libnvJitLink.so.",
    "libcublasLt.so.",
    "libcublas.so.",
    "libnvrtc.so.",
    "libcurand.so.",
    "libcufft.so.",
    "libcudnn_graph.so.",
    "libcudnn.so.",
];

/// Files of [`NVIDIA_LIBRARIES`] in the Python packages beside `library`, in that order; of every version that is there,
/// for they do not disturb each other and only the provider knows which it wants.
fn packaged_libraries(library: &Path) -> Vec<PathBuf> {
    let folders = |path: &Path| {
        let mut folders: Vec<PathBuf> = std::fs::read_dir(path)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        folders.sort();
        folders
    };
    let Some(site_packages) = library.ancestors().nth(3) else {
        return Vec::new();
    };
    let files: Vec<PathBuf> = folders(&site_packages.join("nvidia"))
        .iter()
        .flat_map(|package| folders(&package.join("lib")))
        .collect();
    let named = |stem: &str| {
        let found = files.iter().filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(stem))
        });
        found.cloned().collect::<Vec<PathBuf>>()
    };
    NVIDIA_LIBRARIES.iter().flat_map(|stem| named(stem)).collect()
}

/// Names of the GPUs that the driver finds, with no more than the driver.
///
/// # Errors
/// Why the driver cannot be used.
pub(crate) fn driver_devices() -> Result<Vec<String>, String> {
    type Init = unsafe extern "C" fn(c_uint) -> c_int;
    type Count = unsafe extern "C" fn(*mut c_int) -> c_int;
    type Device = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
    type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
    /// `CUDA_ERROR_NO_DEVICE` of `cuda.h`.
    const NO_DEVICE: c_int = 100;

    let file = if cfg!(target_os = "windows") {
        "nvcuda.dll"
    } else {
        "libcuda.so.1"
    };
    // SAFETY: NVIDIA's driver, which any program that uses a GPU loads.
    let driver = unsafe { Library::new(file) }.map_err(|_| format!("no {file}"))?;
    let absent = |_| format!("{file} is not NVIDIA's");
    // SAFETY: the types of these four are those of `cuda.h` (driver interface, stable since CUDA 2).
    let (init, count, device, name) = unsafe {
        (
            driver.get::<Init>(b"cuInit").map_err(absent)?,
            driver.get::<Count>(b"cuDeviceGetCount").map_err(absent)?,
            driver.get::<Device>(b"cuDeviceGet").map_err(absent)?,
            driver.get::<Name>(b"cuDeviceGetName").map_err(absent)?,
        )
    };
    // SAFETY: 0 is the only flag word there is.
    match unsafe { init(0) } {
        0 => {}
        NO_DEVICE => return Ok(Vec::new()),
        code => return Err(format!("cuInit says {code}")),
    }
    let mut n_devices = 0;
    // SAFETY: the pointer lives through the call.
    match unsafe { count(&mut n_devices) } {
        0 => {}
        code => return Err(format!("cuDeviceGetCount says {code}")),
    }
    let mut names = Vec::new();
    for index in 0..n_devices {
        let mut handle = 0;
        let mut text: [c_char; 256] = [0; 256];
        // SAFETY: `index` is below the count; the buffer is as long as is said, and its last byte stays zero.
        let code = unsafe {
            match device(&mut handle, index) {
                0 => name(text.as_mut_ptr(), 255, handle),
                code => code,
            }
        };
        // SAFETY: the buffer ends in a zero byte.
        let text = unsafe { CStr::from_ptr(text.as_ptr()) };
        names.push(match code {
            0 => text.to_string_lossy().into_owned(),
            code => format!("GPU {index} (error {code})"),
        });
    }
    // Closing the driver after `cuInit` is not foreseen by NVIDIA; it stays loaded.
    std::mem::forget(driver);
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_is_named() {
        let check = |missing: CudaMissing, text: &str| assert_eq!(missing.to_string(), text);
        check(
            CudaMissing::Provider {
                library: "/lib/libonnxruntime.so".into(),
                has: vec!["AzureExecutionProvider".into(), "CPUExecutionProvider".into()],
            },
            "`/lib/libonnxruntime.so` was built without CUDA (it has Azure, CPU)",
        );
        let path = "/lib/libonnxruntime_providers_cuda.so".into();
        check(
            CudaMissing::ProviderFile { path },
            "ONNX Runtime was built with CUDA, and there is no `/lib/libonnxruntime_providers_cuda.so`",
        );
        let reason = "no libcuda.so.1".to_owned();
        check(
            CudaMissing::Driver { reason },
            "NVIDIA's driver does not start: no libcuda.so.1",
        );
        check(
            CudaMissing::Index { n_devices: 0 },
            "NVIDIA's driver finds no GPU",
        );
        check(
            CudaMissing::DriverVersion { version: 11_080 },
            "NVIDIA's driver is of CUDA 11.8, and the kernels need 12.0",
        );
        check(
            CudaMissing::Capability { capability: (7, 5) },
            "its compute capability is 7.5, and the kernels need 8.0",
        );
        check(CudaMissing::Index { n_devices: 1 }, "the only one is cuda:0");
        check(CudaMissing::Index { n_devices: 4 }, "there are cuda:0 to cuda:3");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn nvidia_s_libraries_are_found_beside_the_wheel() {
        let scratch = tempfile::tempdir().unwrap();
        let site = scratch.path();
        for file in [
            "onnxruntime/capi/libonnxruntime.so.1.31.1",
            "nvidia/cu13/lib/libcublas.so.13",
            "nvidia/cu13/lib/libcublasLt.so.13",
            "nvidia/cu13/lib/libcudart.so.13",
            "nvidia/cu13/lib/libcupti.so.13",
            "nvidia/cudnn/lib/libcudnn.so.9",
            "nvidia/cudnn/include/cudnn.h",
        ] {
            let path = site.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            #[expect(clippy::disallowed_methods, reason = "a test's input needs no durability")]
            std::fs::write(path, b"").unwrap();
        }
        let found = packaged_libraries(&site.join("onnxruntime/capi/libonnxruntime.so.1.31.1"));
        let names: Vec<_> = found
            .iter()
            .map(|path| path.strip_prefix(site).unwrap().to_str().unwrap())
            .collect();
        assert_eq!(
            names,
            [
                "nvidia/cu13/lib/libcudart.so.13",
                "nvidia/cu13/lib/libcublasLt.so.13",
                "nvidia/cu13/lib/libcublas.so.13",
                "nvidia/cudnn/lib/libcudnn.so.9",
            ]
        );
        assert!(packaged_libraries(Path::new("libonnxruntime.so")).is_empty());
    }
}
