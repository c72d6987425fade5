//! What reading comes across: sizes, extents, keys.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::Scanner;
use crate::error::TensorFault;
use crate::finding::Severity;
use crate::{Checkpoint, DType, Error, Format, OpenOptions, Record, RecordKind, limits};

impl<'s> Scanner<'s> {
    /// What reading comes across: sizes, extents, keys.
    pub(super) fn reading(&mut self) {
        let lenient = OpenOptions {
            allow_opaque: true,
            allow_prefix: true,
            ..OpenOptions::default()
        };
        match Checkpoint::from_source(self.source.clone(), &lenient) {
            Ok(checkpoint) => {
                for problem in checkpoint.problems() {
                    self.problem(&problem.name, &problem.fault, checkpoint.format() == Format::Zip);
                }
                let mut looked_at = std::collections::HashSet::new();
                for (name, record) in checkpoint.records() {
                    let detail = format!("a {} tensor", record.kind.as_str());
                    self.tell("tensor.exotic", Severity::Note, name, detail);
                    let indices = record.part("indices");
                    let place = indices.map(|indices| {
                        (
                            indices.storage().id(),
                            indices.storage_offset(),
                            record.shape.clone(),
                        )
                    });
                    if looked_at.insert(place)
                        && let Some(fault) = index_outside(record)
                    {
                        self.refuse(format!("tensor `{name}`: {fault}"));
                        self.tell("tensor.extent", Severity::High, name, fault);
                    }
                }
                for (name, tensor) in checkpoint.all_tensors() {
                    if is_rare(tensor.dtype()) {
                        let detail = format!("its type {} is one that few programs read", tensor.dtype());
                        self.tell("tensor.exotic", Severity::Note, name, detail);
                    }
                    let limit = limits::FREE_EXPANSION_BYTES
                        .max(tensor.storage().nbytes().saturating_mul(limits::MAX_EXPANSION));
                    if tensor.nbytes() > limit {
                        let detail = format!(
                            "it repeats {} bytes to {}",
                            tensor.storage().nbytes(),
                            tensor.nbytes()
                        );
                        self.tell("tensor.stride-zero", Severity::Flag, name, detail);
                    }
                }
            }
            Err(error) => self.failure(&error),
        }
        // Nothing that a reader refuses may pass for clean.
        if let Err(error) = Checkpoint::from_source(self.source.clone(), &OpenOptions::default())
            && self
                .findings
                .iter()
                .all(|finding| finding.severity < Severity::Flag)
        {
            self.failure(&error);
        }
    }

    fn problem(&mut self, name: &str, fault: &TensorFault, is_zip: bool) {
        let (id, severity) = match fault {
            TensorFault::Outside { .. }
            | TensorFault::RankMismatch { .. }
            | TensorFault::TooManyDimensions(_)
            | TensorFault::Overflow { .. } => ("tensor.extent", Severity::High),
            TensorFault::MissingStorage(_) | TensorFault::StorageDType { .. } => {
                ("storage.size", Severity::High)
            }
            TensorFault::DuplicateName => ("tensor.name", Severity::Flag),
            TensorFault::Malformed(what) if what.contains("natural number") => {
                ("tensor.extent", Severity::High)
            }
            TensorFault::Malformed(what) if what.starts_with("storage ") => ("storage.size", Severity::High),
            TensorFault::Malformed(_) => ("tensor.malformed", Severity::High),
            _ => ("tensor.exotic", Severity::Note),
        };
        // A legacy file's views are clamped, and its storages may stay unfilled; what else is odd here torch does not look at.
        let is_refused = match fault {
            TensorFault::Outside { .. } | TensorFault::MissingStorage(_) => is_zip,
            TensorFault::Malformed(_) if id == "storage.size" => true,
            _ => id == "tensor.extent",
        };
        if is_refused {
            self.refuse(format!("tensor `{name}`: {fault}"));
        }
        self.tell(id, severity, name, fault.to_string());
    }

    fn failure(&mut self, error: &Error) {
        let text = error.to_string();
        let (id, record) = match error {
            Error::Tensor { name, fault } => match fault {
                TensorFault::DuplicateKey => ("dict.duplicate-key", name.clone()),
                _ => ("storage.size", name.clone()),
            },
            Error::Limit { .. } => ("pickle.nesting", "object".to_owned()),
            Error::Container { record, .. } if record.starts_with("storage") => {
                ("storage.size", record.clone())
            }
            Error::Container { record, .. } => ("zip.broken", record.clone()),
            Error::NotACheckpoint { .. } => ("not-a-checkpoint", "file".to_owned()),
            Error::Unsafe { record, .. } => ("global.unsafe", record.clone()),
            _ => ("pickle.broken", "file".to_owned()),
        };
        // The same thing may have been found on the way already.
        let is_told = self.findings.iter().any(|finding| {
            finding.severity >= Severity::High && (finding.id == id || text.contains(&finding.detail))
        });
        // torch's own checks: of a legacy file's counts and keys, and of the size of a storage that is referred to.
        let is_refused = match error {
            Error::Tensor { fault, .. } => fault.condemns_the_file(),
            Error::Container { record, .. } => record.starts_with("storage ") || record == "protocol version",
            Error::NotACheckpoint { .. } => true,
            _ => false,
        };
        if is_refused {
            self.refuse(text.clone());
        }
        if !is_told {
            self.tell(id, Severity::High, record, text);
        }
    }
}

/// An index of a sparse tensor that is outside of its shape.
fn index_outside(record: &Record) -> Option<String> {
    let RecordKind::SparseCoo { .. } = record.kind else {
        return None;
    };
    let indices = record.part("indices")?;
    let &[_, nnz] = indices.shape() else {
        return None;
    };
    // Expanded indices repeat what a smaller file could say; they are not worth the memory.
    if indices.nbytes() > indices.storage().nbytes() {
        return None;
    }
    let bytes = indices.to_bytes().ok()?;
    let mut values = bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|&index| i64::from_le_bytes(index));
    for (dim, &size) in record.shape.iter().enumerate().take(*indices.shape().first()?) {
        for _ in 0..nnz {
            let index = values.next()?;
            if usize::try_from(index).map_or(true, |index| index >= size) {
                return Some(format!("index {index} of dimension {dim}, whose size is {size}"));
            }
        }
    }
    None
}

fn is_rare(dtype: DType) -> bool {
    matches!(
        dtype,
        DType::Complex32
            | DType::BComplex32
            | DType::Float4E2M1FnX2
            | DType::Bits8
            | DType::Bits16
            | DType::Bits1x8
            | DType::Bits2x4
            | DType::Bits4x2
    )
}
