//! Which execution providers a library of ONNX Runtime was built with, asked of the library itself without choosing it.

use std::ffi::{CStr, c_char};
use std::path::Path;
use std::ptr;

use libloading::Library;
use ort::sys::OrtApiBase;

use super::find::MIN_MINOR;

/// The name under which ONNX Runtime lists its CUDA execution provider.
pub(super) const CUDA: &str = "CUDAExecutionProvider";

/// Names of the execution providers that a library was built with, as ONNX Runtime spells them
/// (`CPUExecutionProvider`), in its order of preference.
///
/// # Errors
/// Where the library does not load, or is not ONNX Runtime of a version that serves.
pub fn providers(library: &Path) -> Result<Vec<String>, String> {
    // SAFETY: a library that was found as ONNX Runtime, whose initialisers are those that using it would run.
    let library = unsafe { Library::new(library) }.map_err(|error| error.to_string())?;
    // SAFETY: the type is the one that `onnxruntime_c_api.h` declares.
    let get_base = unsafe { library.get::<unsafe extern "C" fn() -> *const OrtApiBase>(b"OrtGetApiBase") }
        .map_err(|_| "it does not export OrtGetApiBase".to_owned())?;
    // SAFETY: the function takes nothing and gives a pointer to a static table, or null.
    let base = unsafe { get_base().as_ref() }.ok_or("it gives no interface")?;
    // SAFETY: the table's first entry by the same header; null for versions that the library does not have.
    let api = unsafe { (base.GetApi)(MIN_MINOR).as_ref() }
        .ok_or_else(|| format!("it has no interface of version {MIN_MINOR}"))?;
    let mut names: *mut *mut c_char = ptr::null_mut();
    let mut n_names = 0;
    // SAFETY: both pointers live through the call.
    let status = unsafe { (api.GetAvailableProviders)(&mut names, &mut n_names) };
    if !status.0.is_null() {
        // SAFETY: a status that the call above made, released once.
        unsafe { (api.ReleaseStatus)(status.0) };
        return Err("it does not list its providers".to_owned());
    }
    let n = usize::try_from(n_names).unwrap_or(0);
    let list = (0..n)
        .map(|idx| {
            // SAFETY: the library gave `n_names` pointers to strings that end in a zero byte, and they live until released.
            let name = unsafe { CStr::from_ptr(*names.add(idx)) };
            name.to_string_lossy().into_owned()
        })
        .collect();
    // SAFETY: what `GetAvailableProviders` gave, released once; the strings above are copies.
    let status = unsafe { (api.ReleaseAvailableProviders)(names, n_names) };
    debug_assert!(status.0.is_null(), "it cannot fail by its documentation");
    Ok(list)
}

/// A provider's name for a person: `CUDAExecutionProvider` is `CUDA`.
pub fn short_provider(name: &str) -> &str {
    name.strip_suffix("ExecutionProvider").unwrap_or(name)
}
