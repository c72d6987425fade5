//! SHA-256: of files, as callers and names give it, and in a file beside.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use pth::FileError;
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::features::write_whole;
use crate::monitor::Monitor;

/// Bytes at a time between two looks at the monitor.
pub(super) const CHUNK: usize = 1 << 20;

/// A SHA-256, or the first eight or more of its hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sha256Prefix(String);

impl Sha256Prefix {
    /// Whether these are the first digits of `sha256`.
    pub(super) fn fits(&self, sha256: &str) -> bool {
        sha256.starts_with(&self.0)
    }
}

impl fmt::Display for Sha256Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Sha256Prefix {
    type Err = String;

    /// # Errors
    /// A sentence for the caller.
    fn from_str(text: &str) -> Result<Sha256Prefix, String> {
        let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hex || !(8..=64).contains(&text.len()) {
            return Err(
                "a SHA-256 is 64 hexadecimal digits; the first eight of them or more will do".to_owned(),
            );
        }
        Ok(Sha256Prefix(text.to_ascii_lowercase()))
    }
}

/// A digest on its way, as text.
pub(super) fn hex(sha256: Sha256) -> String {
    let bytes = sha256.finalize();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Size and digest of a file.
pub(super) fn sha256_of(path: &Path, monitor: Monitor<'_>) -> Result<(u64, String), Error> {
    let mut file = File::open(path).map_err(FileError::at("read", path))?;
    let mut sha256 = Sha256::new();
    let n_bytes = hash_into(&mut sha256, &mut file, path, monitor)?;
    Ok((n_bytes, hex(sha256)))
}

/// Hashes the rest of a file.
pub(super) fn hash_into(
    sha256: &mut Sha256,
    file: &mut File,
    path: &Path,
    monitor: Monitor<'_>,
) -> Result<u64, Error> {
    let mut buffer = vec![0; CHUNK];
    let mut total = 0;
    loop {
        if monitor.is_cancelled() {
            return Err(Error::Stopped { n_bytes: 0 });
        }
        match file.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(n_bytes) => {
                sha256.update(&buffer[..n_bytes]);
                total += n_bytes as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(FileError::at("read", path)(error).into()),
        }
    }
}

/// `NAME.sha256`, which `sha256sum --check` reads.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".sha256");
    path.with_file_name(name)
}

/// Writes the digest that a cached file will have.
pub(super) fn write_beside(path: &Path, sha256: &str) -> Result<(), Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(write_whole(
        &beside(path),
        format!("{sha256}  {name}\n").as_bytes(),
    )?)
}

/// The digest that a cached file had when it was installed.
pub(super) fn read_beside(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(beside(path)).ok()?;
    text.split_whitespace().next().map(str::to_owned)
}
