//! Whether a file is what it says: CRCs, sizes, extents. Reads every byte.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use std::io::Read;

use flate2::read::DeflateDecoder;

use crate::container::directory::{Member, Method};
use crate::container::zip::Archive;
use crate::container::{Format, OpenOptions, is_zip};
use crate::finding::{Finding, Severity};
use crate::storage::SourceReader;
use crate::{Checkpoint, Error, Source};

/// The account of a file.
#[derive(Debug, Clone)]
pub struct Verification {
    /// The container, in words.
    pub format: String,
    /// Records of the archive, or storages of a legacy file.
    pub n_records: usize,
    /// Records whose damage could not be seen, for want of a CRC.
    pub n_without_crc: usize,
    /// Bytes that were read.
    pub n_bytes: u64,
    /// What is wrong; nothing in a file that is whole.
    pub faults: Vec<Finding>,
}

/// Checks all of `source`. Content never makes it fail; what is wrong is a fault.
pub fn verify(source: &Source) -> Verification {
    let mut found = Verification {
        format: "unknown".to_owned(),
        n_records: 0,
        n_without_crc: 0,
        n_bytes: 0,
        faults: Vec::new(),
    };
    let options = OpenOptions {
        allow_opaque: true,
        ..OpenOptions::default()
    };
    if is_zip(source, &options).unwrap_or(false) {
        found.format = Format::Zip.to_string();
        archive(source, &mut found);
    }
    match Checkpoint::from_source(source.clone(), &options) {
        Ok(checkpoint) => {
            found.format = checkpoint.format().to_string();
            for problem in checkpoint.problems() {
                let fault = problem.fault.to_string();
                found.faults.push(Finding::new(
                    "tensor",
                    Severity::High,
                    problem.name.clone(),
                    fault,
                ));
            }
            if checkpoint.format() == Format::Legacy {
                let mut storages = std::collections::HashSet::new();
                for (_, tensor) in checkpoint.all_tensors() {
                    if storages.insert(tensor.storage().id()) {
                        let n_bytes = u64::try_from(tensor.storage().nbytes()).unwrap_or(u64::MAX);
                        found.n_bytes = found.n_bytes.saturating_add(n_bytes);
                    }
                }
                found.n_records = storages.len();
                found.n_without_crc = storages.len();
            }
        }
        Err(error) => {
            let text = error.to_string();
            let is_told = found.faults.iter().any(|fault| text.contains(&fault.detail));
            if !is_told {
                found
                    .faults
                    .push(Finding::new("file", Severity::High, "file", text));
            }
        }
    }
    found
}

fn archive(source: &Source, found: &mut Verification) {
    let mut findings = Vec::new();
    let archive = Archive::read(source, false, &mut |finding| {
        findings.push(finding);
        Ok(())
    });
    findings.retain(|finding| finding.severity >= Severity::High);
    found.faults.append(&mut findings);
    // A directory that cannot be read is told of by the reader.
    let Ok(archive) = archive else {
        return;
    };
    for member in &archive.directory.members {
        found.n_records = found.n_records.saturating_add(1);
        found.n_without_crc = found
            .n_without_crc
            .saturating_add(usize::from(member.crc == 0 && member.size > 0));
        found.n_bytes = found
            .n_bytes
            .saturating_add(u64::try_from(member.data.len()).unwrap_or(u64::MAX));
        if let Err(error) = self::member(&archive, source, member) {
            let detail = match error {
                Error::Container { fault, .. } => fault,
                other => other.to_string(),
            };
            let name = archive.directory.text(member);
            found
                .faults
                .push(Finding::new("zip.crc", Severity::High, name, detail));
        }
    }
}

/// Reads a member to its end, and compares size and CRC.
pub(crate) fn member(archive: &Archive<'_>, source: &Source, member: &Member) -> Result<(), Error> {
    let fault = |fault: String| Error::container(archive.directory.text(member), fault);
    let mut reader = SourceReader::new(source, member.data.clone());
    let mut inflated;
    let reader: &mut dyn Read = match member.method {
        Method::Deflated => {
            inflated = DeflateDecoder::new(reader);
            &mut inflated
        }
        // Told of by the directory.
        Method::Other(_) => return Ok(()),
        Method::Stored => &mut reader,
    };
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; (1 << 20_usize).min(member.size.saturating_add(1))];
    let mut n_bytes = 0_usize;
    loop {
        let n = reader
            .read(&mut buffer)
            .map_err(|error| fault(format!("it cannot be read: {error}")))?;
        if n == 0 {
            break;
        }
        n_bytes = n_bytes.saturating_add(n);
        if n_bytes > member.size {
            return Err(fault(format!(
                "it has more than the declared {} bytes",
                member.size
            )));
        }
        hasher.update(buffer.get(..n).unwrap_or_default());
    }
    if n_bytes != member.size {
        return Err(fault(format!(
            "it has {n_bytes} bytes, declared are {}",
            member.size
        )));
    }
    let found = hasher.finalize();
    if member.crc != 0 && found != member.crc {
        return Err(fault(format!(
            "its CRC is {found:08x}, expected {:08x}",
            member.crc
        )));
    }
    Ok(())
}
