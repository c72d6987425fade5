//! `copy.deepcopy(model.state_dict())`.

use pth::{Entry, StateDict, Tensor};

use crate::Error;

/// The same tensors in own bytes, independent of any file. A storage that several share is copied for each.
///
/// # Errors
/// A tensor that cannot be read, or a view that repeats its storage beyond all proportion.
pub fn deep_copy(tensors: &StateDict) -> Result<StateDict, Error> {
    let copy = |name: &str, tensor: &Tensor| {
        tensor.deep_copy().map_err(|source| Error::Tensor {
            name: name.to_owned(),
            source,
        })
    };
    let copied: Result<StateDict, Error> = tensors
        .entries()
        .map(|(name, entry)| {
            let entry = match entry {
                Entry::Tensor(tensor) => Entry::Tensor(copy(name, tensor)?),
                Entry::Record(record) => {
                    let mut record = record.clone();
                    for (_, part) in &mut record.parts {
                        *part = copy(name, part)?;
                    }
                    Entry::Record(record)
                }
            };
            Ok((name.to_owned(), entry))
        })
        .collect();
    Ok(copied?.with_metadata(tensors.metadata().to_vec()))
}
