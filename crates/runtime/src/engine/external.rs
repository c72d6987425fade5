//! Weights that lie outside a model's bytes, handed to ONNX Runtime where they are: a map of a file is shared by all
//! sessions, and no copy passes through protobuf's 2 GB.

use std::ptr::{self, NonNull};

use ort::AsPointer;
use ort::memory::{Allocator, MemoryInfo};
use ort::value::{DynValue, TensorElementType};

use crate::onnx::External;

/// A tensor's bytes, kept where ONNX Runtime reads them.
#[derive(Debug)]
pub(super) struct Held {
    tensor: External,
    ty: TensorElementType,
    /// A copy, where the file did not align the bytes to their type.
    aligned: Option<Vec<u64>>,
}

impl Held {
    /// Keeps `tensor`.
    ///
    /// # Errors
    /// Where the type is unknown or the bytes are not as many as type and shape say.
    pub(super) fn new(tensor: &External) -> Result<Held, String> {
        let ty = element_type(tensor.dtype).ok_or_else(|| {
            format!(
                "`{}` is of the number type {}, which cannot lie outside the model",
                tensor.name, tensor.dtype
            )
        })?;
        let bytes = tensor.bytes();
        // Every type here has a whole number of bytes.
        let size = ty.byte_size(1).unwrap_or(1);
        let n_bytes = tensor
            .shape
            .iter()
            .try_fold(size, |product, &size| product.checked_mul(size));
        if n_bytes != Some(bytes.len()) {
            let needed = n_bytes.map_or("more than there can be".to_owned(), |n| n.to_string());
            return Err(format!(
                "`{}` has {} bytes, and {:?} numbers of {ty} need {needed}",
                tensor.name,
                bytes.len(),
                tensor.shape
            ));
        }
        let aligned = (!bytes.as_ptr().addr().is_multiple_of(size)).then(|| {
            let words = bytes.chunks(8).map(|chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                u64::from_ne_bytes(word)
            });
            words.collect()
        });
        Ok(Held {
            tensor: tensor.clone(),
            ty,
            aligned,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.tensor.name
    }

    /// A tensor over the bytes, which it does not copy.
    ///
    /// # Errors
    /// ONNX Runtime's.
    ///
    /// # Safety
    /// `self` must outlive the value and every session that gets it.
    pub(super) unsafe fn value(&self) -> Result<DynValue, String> {
        let shape: Vec<i64> = self
            .tensor
            .shape
            .iter()
            .map(|&size| i64::try_from(size).map_err(|_| format!("`{}` has an axis of {size}", self.name())))
            .collect::<Result<_, String>>()?;
        let n_bytes = self.tensor.bytes().len();
        let data = match &self.aligned {
            Some(words) => words.as_ptr().cast::<u8>(),
            None => self.tensor.bytes().as_ptr(),
        };
        let memory = MemoryInfo::default();
        let mut value = ptr::null_mut();
        // SAFETY: `data` points to `n_bytes` bytes, which `self` keeps in place and which are as many as shape and type
        // need; ONNX Runtime only reads an initialiser. The other pointers live through the call.
        let status = unsafe {
            (ort::api().CreateTensorWithDataAsOrtValue)(
                memory.ptr(),
                data.cast_mut().cast(),
                n_bytes,
                shape.as_ptr(),
                shape.len(),
                self.ty.into(),
                &mut value,
            )
        };
        // SAFETY: the status comes from the call above and is looked at once.
        unsafe { ort::Error::result_from_status(status) }.map_err(|error: ort::Error| error.to_string())?;
        let value = NonNull::new(value).ok_or("ONNX Runtime made no tensor")?;
        // SAFETY: a tensor that was just made, and that nothing else owns.
        Ok(unsafe { DynValue::from_ptr(value, Some(&Allocator::default())) })
    }
}

/// `TensorProto.DataType` to ONNX Runtime's; none for strings and for types below a byte.
fn element_type(dtype: i64) -> Option<TensorElementType> {
    Some(match dtype {
        1 => TensorElementType::Float32,
        2 => TensorElementType::Uint8,
        3 => TensorElementType::Int8,
        4 => TensorElementType::Uint16,
        5 => TensorElementType::Int16,
        6 => TensorElementType::Int32,
        7 => TensorElementType::Int64,
        9 => TensorElementType::Bool,
        10 => TensorElementType::Float16,
        11 => TensorElementType::Float64,
        12 => TensorElementType::Uint32,
        13 => TensorElementType::Uint64,
        16 => TensorElementType::Bfloat16,
        _ => return None,
    })
}
