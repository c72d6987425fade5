//! The two files of an adapter, as PEFT has them on disk: `adapter_model.safetensors` and `adapter_config.json` beside it.
//!
//! While a state dict is at hand, the text of the second is in its metadata.

use std::path::Path;

use pth::FileError;

use crate::Error;

/// The key of the metadata under which the configuration is.
pub(crate) const CONFIG_KEY: &str = "adapter_config";

/// The name of its file.
pub(crate) const CONFIG_FILE: &str = "adapter_config.json";

/// The names that the file of an adapter's tensors may have, the preferred one first.
pub(crate) const MODEL_FILES: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// Whether `path` is called as an adapter's tensors are.
pub(crate) fn is_adapter(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| MODEL_FILES.iter().any(|model| name == *model))
}

/// The configuration beside the adapter `path`, if that is one and has it.
///
/// # Errors
/// It is there and cannot be read.
pub(crate) fn config_beside(path: &Path) -> Result<Option<String>, Error> {
    if !is_adapter(path) {
        return Ok(None);
    }
    let config = path.with_file_name(CONFIG_FILE);
    match std::fs::read_to_string(&config) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::at("read", &config)(error).into()),
    }
}
