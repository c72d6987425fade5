//! `copy.deepcopy(model.state_dict())`.

use pth::StateDict;

use crate::Error;

/// The same tensors in own bytes, independent of any file. A storage that several share is copied for each.
///
/// # Errors
/// A view that repeats its storage beyond all proportion.
pub fn deep_copy(tensors: &StateDict) -> Result<StateDict, Error> {
    let copied: Result<StateDict, Error> = tensors
        .iter()
        .map(|(name, tensor)| match tensor.deep_copy() {
            Ok(copy) => Ok((name.to_owned(), copy)),
            Err(source) => Err(Error::Tensor {
                name: name.to_owned(),
                source,
            }),
        })
        .collect();
    Ok(copied?.with_metadata(tensors.metadata().to_vec()))
}
