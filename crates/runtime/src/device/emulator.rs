//! A GPU for tests: a real one where there is one, else the emulated one of `tests/cuda_emulator`, which g++ compiles once
//! for each state of the sources.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::cuda::{Cuda, MODULES, entries};
use crate::engine::driver_devices;

/// GPU 0, with cuBLASLt or without. None, said aloud, where there is neither a GPU nor g++.
#[expect(clippy::print_stderr, reason = "what was not tested is said")]
pub(crate) fn gpu(with_blas: bool) -> Option<Cuda> {
    match load() {
        Ok(()) => Some(Cuda::open_with(0, with_blas).expect("the GPU opens")),
        Err(reason) => {
            eprintln!("skipped: {reason}");
            None
        }
    }
}

/// Puts the emulated driver in the place of NVIDIA's, where there is none.
pub(super) fn load() -> Result<(), String> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| {
        if driver_devices().is_ok_and(|names| !names.is_empty()) {
            return Ok(());
        }
        let folder = build()?;
        for name in ["libcuda.so.1", "libcublasLt.so.12"] {
            // SAFETY: compiled from this repository; the loader finds it by its name from now on.
            let library = unsafe { Library::open(Some(folder.join(name)), RTLD_NOW | RTLD_GLOBAL) };
            // Never unloaded: the loader would forget it.
            std::mem::forget(library.map_err(|error| error.to_string())?);
        }
        Ok(())
    });
    loaded.clone()
}

/// The folder of the compiled emulator.
fn build() -> Result<PathBuf, String> {
    if Command::new("g++").arg("--version").output().is_err() {
        return Err("no GPU, and no g++ to compile the emulated one".to_owned());
    }
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (sources, kernels) = (manifest.join("tests/cuda_emulator"), manifest.join("kernels"));
    let mut files: Vec<PathBuf> = [&sources, &kernels]
        .iter()
        .flat_map(|folder| fs::read_dir(folder).expect("the folder is part of the repository"))
        .map(|entry| entry.expect("it can be listed").path())
        .collect();
    files.sort();
    let mut digest = blake3::Hasher::new();
    for file in files {
        digest.update(&fs::read(file).map_err(|error| error.to_string())?);
    }
    let folder = std::env::temp_dir().join(format!(
        "graftwork-emulator-{}",
        &digest.finalize().to_hex()[..16]
    ));
    fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    // Tests are processes of their own: one compiles, the others wait.
    let lock = fs::File::create(folder.join("lock")).map_err(|error| error.to_string())?;
    lock.lock().map_err(|error| error.to_string())?;
    if folder.join("libcublasLt.so.12").exists() {
        return Ok(folder);
    }
    let list: String = MODULES
        .iter()
        .flat_map(|(_, ptx)| entries(ptx))
        .map(|name| format!("KERNEL({name})\n"))
        .collect();
    #[expect(clippy::disallowed_methods, reason = "a test's input needs no durability")]
    fs::write(folder.join("kernels.inc"), list).map_err(|error| error.to_string())?;
    let compile = |inputs: &[&str], output: &str, with: &[PathBuf]| {
        let made = folder.join(format!("{output}.new"));
        let run = Command::new("g++")
            .current_dir(&sources)
            .args([
                "-std=c++17",
                "-O1",
                "-DEMULATED",
                "-fPIC",
                "-shared",
                "-fvisibility=hidden",
            ])
            .args(["-ffp-contract=off", "-Wno-unknown-pragmas", "-I."])
            .arg("-I")
            .arg(&kernels)
            .arg("-I")
            .arg(&folder)
            .args(inputs)
            .args(with)
            .arg(format!("-Wl,-soname,{output}"))
            .arg("-o")
            .arg(&made)
            .output()
            .map_err(|error| error.to_string())?;
        // A compiler that does not take the kernels is a failure, not a reason to skip.
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        fs::rename(made, folder.join(output)).map_err(|error| error.to_string())
    };
    compile(&["driver.cpp", "threads.cpp"], "libcuda.so.1", &[])?;
    compile(
        &["cublaslt.cpp"],
        "libcublasLt.so.12",
        &[folder.join("libcuda.so.1")],
    )?;
    Ok(folder)
}
