//! Weights from `http(s)`: resumed where they were cut, checked by their digest, installed whole or not at all.
//!
//! [`fetch`] brings one file into a folder of such files or to a path. What has arrived lies beside the target as
//! `NAME.part`, locked by the process that writes it, with `NAME.part.json`, which says of what it is the beginning:
//! a later call asks the server for the rest of that very file (`Range` with `If-Range`, RFC 9110 13.1.5 and 14.2). A file
//! is given its name after its last byte is durable and its digest is as it should be. The digest is SHA-256, from the
//! caller or from the name as `torch.hub` reads it (`resnet18-f37072fd.pth`).
//!
//! Deliberately absent: several connections for one file, passwords in URLs, lists of mirrors.

mod address;
mod digest;
mod download;
mod http;
mod partial;

use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use pth::{Existing, FileError, put_in_place};

use crate::error::Error;
use crate::monitor::Monitor;
pub use address::Address;
pub use digest::Sha256Prefix;
use digest::sha256_of;
use download::download;
use partial::Partial;

/// Where a file goes.
#[derive(Debug, Clone, Copy)]
pub enum Target<'t> {
    /// Into a folder of downloaded files, under its own name, in a folder of its URL's.
    Cache(&'t Path),
    /// To this path, or into this folder where there is one.
    Path(&'t Path, Existing),
}

/// What [`fetch`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub n_bytes: u64,
    /// SHA-256 of all its bytes, 64 hexadecimal digits.
    pub sha256: String,
    /// Whether the file was there already, so that nothing was downloaded.
    pub was_there: bool,
    /// Bytes that an earlier call had left.
    pub resumed_from: u64,
}

/// The folder for [`Target::Cache`] where the caller names none: `graftwork/weights` in the user's cache folder
/// (`$XDG_CACHE_HOME` or `~/.cache` on Linux).
///
/// # Errors
/// [`Error::Usage`] where the user has no home folder.
pub fn default_folder() -> Result<PathBuf, Error> {
    let strategy = etcetera::choose_base_strategy()
        .map_err(|error| Error::Usage(format!("the user's cache folder is unknown ({error}); name one")))?;
    Ok(strategy.cache_dir().join("graftwork").join("weights"))
}

/// Brings a file, unless it is there already with the digest that it should have. A file in the cache whose bytes are not
/// those that were downloaded is brought again. `expected` is compared before the file gets its name; the monitor counts
/// bytes.
///
/// Proxies are those of `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`; certificates are Mozilla's, or those of
/// the file that `SSL_CERT_FILE` names. Up to ten redirects are followed, from `https` to `https` only.
///
/// # Errors
/// [`Error::Fetch`] says what the server or the network did; what has arrived is kept unless its digest is wrong.
/// [`Error::Exists`] for a path that holds another file, [`Error::Stopped`] when the monitor cancels, and the file system's.
pub fn fetch(
    address: &Address,
    target: Target<'_>,
    expected: Option<&Sha256Prefix>,
    monitor: Monitor<'_>,
) -> Result<Fetched, Error> {
    let place = Place::of(address, target)?;
    if let Some(found) = place.look(expected, monitor)? {
        return Ok(found);
    }
    let folder = place.path.parent().unwrap_or(Path::new(""));
    std::fs::create_dir_all(folder).map_err(FileError::at("create", folder))?;
    let mut partial = Partial::open(&place.path, monitor)?;
    // While this one waited for the lock, another may have brought it.
    if let Some(found) = place.look(expected, monitor)? {
        return Ok(found);
    }
    let done = download(address, &mut partial, monitor)?;
    if let Some(wanted) = expected.filter(|wanted| !wanted.fits(&done.sha256)) {
        partial.remove()?;
        return Err(address.error(Fault::Digest {
            expected: wanted.to_string(),
            found: done.sha256,
        }));
    }
    partial.sync()?;
    if place.is_cached {
        digest::write_beside(&place.path, &done.sha256)?;
    }
    put_in_place(partial.path(), &place.path, place.existing).map_err(|error| match error.source.kind() {
        std::io::ErrorKind::AlreadyExists => place.exists(),
        _ => error.into(),
    })?;
    partial.forget();
    Ok(Fetched {
        path: place.path,
        n_bytes: done.n_bytes,
        sha256: done.sha256,
        was_there: false,
        resumed_from: done.resumed_from,
    })
}

/// A target with its file's name.
struct Place {
    path: PathBuf,
    existing: Existing,
    is_cached: bool,
}

impl Place {
    fn of(address: &Address, target: Target<'_>) -> Result<Place, Error> {
        let name = || {
            address.file_name().ok_or_else(|| {
                Error::Usage(format!(
                    "`{address}` names no file, and so the result needs a path"
                ))
            })
        };
        Ok(match target {
            Target::Cache(folder) => Place {
                path: folder.join(address.key()).join(name()?),
                existing: Existing::Replace,
                is_cached: true,
            },
            Target::Path(path, existing) => Place {
                path: match path.is_dir() {
                    true => path.join(name()?),
                    // A link is followed, as everywhere: the file behind it is replaced.
                    false => std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()),
                },
                existing,
                is_cached: false,
            },
        })
    }

    /// The file, where it is there and need not be downloaded.
    fn look(&self, expected: Option<&Sha256Prefix>, monitor: Monitor<'_>) -> Result<Option<Fetched>, Error> {
        // A path is taken for what is wanted only where a digest says so.
        let is_asked = self.is_cached || expected.is_some();
        if !self.path.exists() || (self.existing == Existing::Replace && !self.is_cached) {
            return Ok(None);
        }
        if is_asked {
            let (n_bytes, sha256) = sha256_of(&self.path, monitor)?;
            let fits = expected.is_none_or(|wanted| wanted.fits(&sha256))
                && (!self.is_cached || digest::read_beside(&self.path).is_some_and(|known| known == sha256));
            if fits {
                return Ok(Some(Fetched {
                    path: self.path.clone(),
                    n_bytes,
                    sha256,
                    was_there: true,
                    resumed_from: 0,
                }));
            }
        }
        if self.is_cached {
            Ok(None)
        } else {
            Err(self.exists())
        }
    }

    fn exists(&self) -> Error {
        Error::Exists {
            path: self.path.clone(),
            what: "another file".to_owned(),
        }
    }
}

/// What a server or the network did instead of giving a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// Its answer is no file.
    #[error("the server answers {0}")]
    Status(String),
    /// The server is too busy, or out of order: later it may give the file.
    #[error("the server answers {0}")]
    NotNow(String),
    /// No connection came about.
    #[error("{0}")]
    Unreachable(String),
    /// The server is not who it should be, or no secure connection came about.
    #[error("no secure connection: {0}")]
    Tls(String),
    /// The connection ended before the file did.
    #[error("the file ends after {received} of {promised} bytes ({cause}); what has arrived is kept")]
    Cut {
        /// Bytes that have arrived in all.
        received: u64,
        /// Bytes that the server promised, or a word for it.
        promised: String,
        /// How that showed.
        cause: String,
    },
    /// The file is another than the caller or its name says.
    #[error("its SHA-256 is {found}, and {expected} was expected; nothing is kept of it")]
    Digest {
        /// The digits that were expected.
        expected: String,
        /// All 64 that there are.
        found: String,
    },
    /// Answers that fit no question.
    #[error("the server's answer makes no sense: {0}")]
    Protocol(String),
}
