//! Floating types into each other, while the bytes pass by.

use std::io::{self, Write};

use half::{bf16, f16};
use pth::{DType, StateDict};

use crate::Error;

/// Whether tensors of `dtype` take part in a cast between floating types.
pub(crate) fn is_castable(dtype: DType) -> bool {
    matches!(
        dtype,
        DType::Float16 | DType::BFloat16 | DType::Float32 | DType::Float64
    )
}

/// Refuses what a cast to `to` would have to guess: the 8-bit and 4-bit floats, which need scales.
pub(crate) fn check(tensors: &StateDict, to: DType) -> Result<(), Error> {
    for (name, tensor) in tensors.iter() {
        let from = tensor.dtype();
        if from.is_float() && (!is_castable(from) || !is_castable(to)) {
            return Err(Error::Cast {
                name: name.to_owned(),
                from,
                to,
            });
        }
    }
    Ok(())
}

/// Converts little-endian elements on their way to `out`, rounding to nearest even by way of float32, as torch does.
pub(crate) struct Cast<W> {
    pub(crate) from: DType,
    pub(crate) to: DType,
    pub(crate) out: W,
}

impl<W: Write> Write for Cast<W> {
    /// Takes whole elements only, which is what tensors write.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        const CHUNK_ELEMENTS: usize = 1 << 15;
        let size = self.from.size();
        let mut converted = Vec::with_capacity(CHUNK_ELEMENTS * self.to.size());
        for chunk in bytes.chunks(CHUNK_ELEMENTS * size) {
            converted.clear();
            for element in chunk.chunks_exact(size) {
                self.convert(element, &mut converted);
            }
            self.out.write_all(&converted)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl<W> Cast<W> {
    fn convert(&self, element: &[u8], out: &mut Vec<u8>) {
        let value = match (self.from, element) {
            (DType::Float16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            (DType::BFloat16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
            (DType::Float32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (DType::Float64, bytes) => {
                let wide =
                    f64::from_le_bytes(*bytes.first_chunk().expect("elements of float64 have 8 bytes"));
                if self.to == DType::Float64 {
                    return out.extend_from_slice(&wide.to_le_bytes());
                }

                wide as f32
            }
            _ => unreachable!("`check` admits four types"),
        };
        match self.to {
            DType::Float16 => out.extend_from_slice(&f16::from_f32(value).to_le_bytes()),
            DType::BFloat16 => out.extend_from_slice(&bf16::from_f32(value).to_le_bytes()),
            DType::Float64 => out.extend_from_slice(&f64::from(value).to_le_bytes()),
            _ => out.extend_from_slice(&value.to_le_bytes()),
        }
    }
}
