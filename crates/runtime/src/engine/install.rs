//! Getting ONNX Runtime with pip from the user's configured index, and keeping only the library.
//!
//! pip brings the user's mirrors, proxies, certificates and hash checks, as `fetch` does not know them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use etcetera::BaseStrategy;
use pth::{AtomicFile, Existing, FileError};

use super::find::{is_library, library_name};
use crate::error::Error;

/// What [`install`] did.
#[derive(Debug, Clone)]
pub struct InstallReport {
    /// The version of the wheel.
    pub version: String,
    /// The library, ready to be found.
    pub path: PathBuf,
    /// Its size.
    pub n_bytes: u64,
}

/// The folder that holds one folder per installed version: `onnxruntime` in Graftwork's part of the user's data folder
/// (`$XDG_DATA_HOME/graftwork` or `~/.local/share/graftwork` on Linux).
///
/// # Errors
/// [`Error::Install`] where the user has no home folder.
pub fn installed_dir() -> Result<PathBuf, Error> {
    let strategy = etcetera::choose_base_strategy()
        .map_err(|error| Error::Install(format!("the user's data folder is unknown: {error}")))?;
    Ok(strategy.data_dir().join("graftwork").join("onnxruntime"))
}

/// Downloads the `onnxruntime` wheel with `python3 -m pip download` and puts its library into the user's data folder.
/// Several processes may do so at once: each version appears whole.
///
/// # Errors
/// [`Error::Install`] with pip's own last words, or where the wheel holds no library for this system.
pub fn install() -> Result<InstallReport, Error> {
    let root = installed_dir()?;
    fs::create_dir_all(&root).map_err(FileError::at("create", &root))?;
    let scratch = root.join(format!(".download-{}", std::process::id()));
    let result = download(&scratch).and_then(|wheel| unpack(&wheel, &root));
    let _ = fs::remove_dir_all(&scratch);
    result
}

fn download(scratch: &Path) -> Result<PathBuf, Error> {
    fs::create_dir_all(scratch).map_err(FileError::at("create", scratch))?;
    let python = if cfg!(target_os = "windows") {
        "python"
    } else {
        "python3"
    };
    let output = Command::new(python)
        .args([
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--disable-pip-version-check",
        ])
        .args(["--no-input", "--progress-bar", "off", "--dest"])
        .arg(scratch)
        .arg("onnxruntime")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Error::Install(format!("{python} does not start: {error}")))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let last = words
            .lines()
            .rev()
            .find(|line| !line.trim().is_empty())
            .unwrap_or("no message");
        return Err(Error::Install(format!("pip says: {}", last.trim())));
    }
    fs::read_dir(scratch)
        .map_err(FileError::at("read", scratch))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|ending| ending == "whl"))
        .ok_or_else(|| Error::Install("pip downloaded no wheel".to_owned()))
}

fn unpack(wheel: &Path, root: &Path) -> Result<InstallReport, Error> {
    // `onnxruntime-1.32.0-cp311-cp311-manylinux_2_27_x86_64.whl`
    let name = wheel
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let version = name.split('-').nth(1).unwrap_or("0").to_owned();
    let bad = |error: zip::result::ZipError| Error::Install(format!("`{name}` is not a wheel: {error}"));
    let file = fs::File::open(wheel).map_err(FileError::at("read", wheel))?;
    let mut archive = zip::ZipArchive::new(io::BufReader::new(file)).map_err(bad)?;
    let entry = archive
        .file_names()
        .filter_map(Result::ok)
        .map(std::borrow::Cow::into_owned)
        .find(|name| {
            name.rsplit_once('/')
                .is_some_and(|(folder, file)| folder == "onnxruntime/capi" && is_library(file))
        })
        .ok_or_else(|| Error::Install(format!("`{name}` carries no {}", library_name())))?;
    let folder = root.join(&version);
    fs::create_dir_all(&folder).map_err(FileError::at("create", &folder))?;
    let path = folder.join(library_name());
    let mut source = archive.by_name(&entry).map_err(bad)?;
    let mut target = AtomicFile::create(&path, Existing::Replace)?;
    let n_bytes = io::copy(&mut source, &mut target).map_err(FileError::at("write", &path))?;
    target.commit()?;
    Ok(InstallReport {
        version,
        path,
        n_bytes,
    })
}
