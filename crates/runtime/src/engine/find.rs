//! Where ONNX Runtime is looked for, in order: what was asked for, beside the executable, the user's data folder,
//! the active Python's package, the system loader.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::install::installed_dir;
use crate::error::Error;

/// The oldest minor version of ONNX Runtime 1.x whose C interface serves.
pub(super) const MIN_MINOR: u32 = ort::MINOR_VERSION;

/// Why a library was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// `--ort-lib` or `ORT_DYLIB_PATH`.
    Requested,
    /// The folder of the executable, or `../lib` beside it.
    Executable,
    /// Where [`install`](super::install()) puts it.
    UserData,
    /// `onnxruntime/capi` of the Python on the path.
    Python,
    /// The dynamic loader's own search.
    System,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Requested => "--ort-lib or ORT_DYLIB_PATH",
            Origin::Executable => "beside the executable",
            Origin::UserData => "user data folder",
            Origin::Python => "active Python",
            Origin::System => "system loader",
        })
    }
}

/// One place that was looked at.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Which rule led there.
    pub origin: Origin,
    /// The library, or the folder or name that was tried.
    pub path: PathBuf,
    /// The minor version of 1.x, or why there is none.
    pub version: Result<u32, String>,
}

/// The library that will be used.
#[derive(Debug, Clone)]
pub struct Found {
    /// Which rule led there.
    pub origin: Origin,
    /// The library.
    pub path: PathBuf,
    /// The minor version of 1.x.
    pub minor: u32,
}

/// Finds ONNX Runtime; `requested` is `--ort-lib`.
///
/// # Errors
/// [`Error::OrtUnusable`] where the library that was asked for does not serve: no other is taken silently.
/// [`Error::OrtMissing`] where there is none anywhere.
pub fn find(requested: Option<&Path>) -> Result<Found, Error> {
    let mut searched = Vec::new();
    for lookup in lookups(requested) {
        let candidate = lookup();
        match candidate.version {
            Ok(minor) => {
                return Ok(Found {
                    origin: candidate.origin,
                    path: candidate.path,
                    minor,
                });
            }
            Err(reason) if candidate.origin == Origin::Requested => {
                return Err(Error::OrtUnusable {
                    path: candidate.path,
                    reason,
                });
            }
            Err(reason) => searched.push(format!("{}: {reason}", candidate.origin)),
        }
    }
    Err(Error::OrtMissing { searched })
}

/// Every place with what is there, for `doctor`.
pub fn candidates(requested: Option<&Path>) -> Vec<Candidate> {
    lookups(requested).into_iter().map(|lookup| lookup()).collect()
}

type Lookup = Box<dyn FnOnce() -> Candidate>;

fn lookups(requested: Option<&Path>) -> Vec<Lookup> {
    let mut lookups: Vec<Lookup> = Vec::new();
    let requested = requested.map(Path::to_owned).or_else(|| {
        std::env::var_os("ORT_DYLIB_PATH")
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    });
    if let Some(path) = requested {
        lookups.push(Box::new(|| {
            let path = std::path::absolute(&path).unwrap_or(path);
            if path.is_dir() {
                in_folder(Origin::Requested, path)
            } else {
                probe(Origin::Requested, path)
            }
        }));
    }
    lookups.push(Box::new(|| {
        let folder = std::env::current_exe()
            .ok()
            .and_then(|exe| exe.parent().map(Path::to_owned))
            .unwrap_or_default();
        let beside = in_folder(Origin::Executable, folder.clone());
        if beside.version.is_ok() {
            beside
        } else {
            in_folder(Origin::Executable, folder.join("../lib"))
        }
    }));
    lookups.push(Box::new(|| match installed_dir() {
        Ok(folder) => newest_version(folder),
        Err(error) => Candidate {
            origin: Origin::UserData,
            path: PathBuf::new(),
            version: Err(error.to_string()),
        },
    }));
    lookups.push(Box::new(|| match python_capi() {
        Ok(folder) => in_folder(Origin::Python, folder),
        Err(reason) => Candidate {
            origin: Origin::Python,
            path: "python3".into(),
            version: Err(reason),
        },
    }));
    lookups.push(Box::new(|| {
        let unversioned = probe(Origin::System, library_name().into());
        if unversioned.version.is_ok() {
            unversioned
        } else {
            probe(Origin::System, "libonnxruntime.so.1".into())
        }
    }));
    lookups
}

/// The file name that ONNX Runtime's library has on this system.
pub(super) fn library_name() -> &'static str {
    if cfg!(target_os = "windows") {
        "onnxruntime.dll"
    } else if cfg!(target_os = "macos") {
        "libonnxruntime.dylib"
    } else {
        "libonnxruntime.so"
    }
}

/// Whether a file name is ONNX Runtime's library, versioned or not (`libonnxruntime.so.1.32.0`), and not one of its
/// providers (`libonnxruntime_providers_cuda.so`).
pub(super) fn is_library(name: &str) -> bool {
    let (stem, ending) = if cfg!(target_os = "windows") {
        ("onnxruntime.", "dll")
    } else if cfg!(target_os = "macos") {
        ("libonnxruntime.", "dylib")
    } else {
        ("libonnxruntime.so", "")
    };
    name.strip_prefix(stem).is_some_and(|rest| {
        if ending.is_empty() {
            rest.is_empty() || rest.starts_with('.')
        } else {
            rest.ends_with(ending)
        }
    })
}

fn in_folder(origin: Origin, folder: PathBuf) -> Candidate {
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| is_library(name))
        .collect();
    names.sort();
    match names.first() {
        Some(name) => probe(origin, folder.join(name)),
        None => Candidate {
            origin,
            version: Err(format!("no {} in `{}`", library_name(), folder.display())),
            path: folder,
        },
    }
}

/// `doctor --install` keeps one folder per version; the newest serves.
fn newest_version(folder: PathBuf) -> Candidate {
    let parse = |name: &str| {
        name.split('.')
            .map(|part| part.parse().unwrap_or(0))
            .collect::<Vec<u32>>()
    };
    let newest = std::fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(|c: char| c.is_ascii_digit()))
        // An installation that failed half-way leaves an empty folder.
        .filter(|name| in_folder(Origin::UserData, folder.join(name)).version.is_ok())
        .max_by_key(|name| parse(name));
    match newest {
        Some(version) => in_folder(Origin::UserData, folder.join(version)),
        None => {
            let reason = format!("nothing in `{}`", folder.display());
            Candidate {
                origin: Origin::UserData,
                path: folder,
                version: Err(reason),
            }
        }
    }
}

/// Asks the Python on the path where its `onnxruntime` is, without importing it.
fn python_capi() -> Result<PathBuf, String> {
    const SCRIPT: &str =
        "import importlib.util as u; s = u.find_spec('onnxruntime'); print(s.origin if s else '')";
    let python = if cfg!(target_os = "windows") {
        "python"
    } else {
        "python3"
    };
    let output = Command::new(python)
        .args(["-c", SCRIPT])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(|_| format!("no {python} on the path"))?;
    let origin = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match Path::new(&origin).parent() {
        Some(package) if !origin.is_empty() => Ok(package.join("capi")),
        _ => Err(format!("{python} has no onnxruntime")),
    }
}

fn probe(origin: Origin, path: PathBuf) -> Candidate {
    let is_name = path.components().count() == 1;
    let version = if !is_name && !path.exists() {
        Err("no such file".to_owned())
    } else {
        match ort::util::probe(&path) {
            Some(minor) if minor >= MIN_MINOR => Ok(minor),
            Some(minor) => Err(format!("version 1.{minor} is older than 1.{MIN_MINOR}")),
            None if is_name => Err(format!("no {}", path.display())),
            None => Err("it does not load as ONNX Runtime 1.x".to_owned()),
        }
    };
    Candidate {
        origin,
        path,
        version,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_library_is_told_from_its_providers() {
        for name in [
            "libonnxruntime.so",
            "libonnxruntime.so.1",
            "libonnxruntime.so.1.32.0",
        ] {
            assert!(is_library(name), "{name}");
        }
        for name in [
            "libonnxruntime_providers_shared.so",
            "libonnxruntime.sob",
            "onnxruntime.so",
            "",
        ] {
            assert!(!is_library(name), "{name}");
        }
    }

    #[test]
    fn a_requested_library_that_is_absent_is_an_error_and_nothing_else_is_tried() {
        let error = find(Some(Path::new("/no/such/libonnxruntime.so"))).unwrap_err();
        assert!(matches!(error, Error::OrtUnusable { .. }), "{error}");
    }
}
