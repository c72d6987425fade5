//! What a network runs on.

use std::fmt;
use std::str::FromStr;

/// What a network runs on. Asked for by name and never replaced by another: what is absent is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU, through ONNX Runtime's CUDA execution provider.
    Cuda {
        /// Which one, as `CUDA_VISIBLE_DEVICES` numbers them.
        index: u32,
        /// Whether products of float32 may be made in TensorFloat-32 (10 bits of mantissa instead of 23). ONNX Runtime's
        /// own default is yes; here it is said each time, since values of the two kinds must not be mixed.
        tf32: bool,
    },
}

impl Device {
    /// What separates values of one kind of device from another's, for cache keys: `cpu`, `cuda` or `cuda-tf32`. Which
    /// GPU it was is not part of it.
    pub fn class(self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
            Device::Cuda { tf32: false, .. } => "cuda",
            Device::Cuda { tf32: true, .. } => "cuda-tf32",
        }
    }

    /// The same device with TensorFloat-32 as said.
    ///
    /// # Errors
    /// For a processor, which has none, where it is asked for.
    pub fn with_tf32(self, tf32: bool) -> Result<Device, String> {
        match self {
            Device::Cpu if tf32 => {
                Err("TF32 is a number format of CUDA devices, and the device is cpu".to_owned())
            }
            Device::Cpu => Ok(Device::Cpu),
            Device::Cuda { index, .. } => Ok(Device::Cuda { index, tf32 }),
        }
    }
}

/// `cpu`, `cuda` (the first GPU) or `cuda:N`, TensorFloat-32 off.
impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        let cuda = |index| Device::Cuda { index, tf32: false };
        match text {
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                // CUDA counts devices in a signed integer.
                .filter(|&index| index <= i32::MAX.cast_unsigned())
                .map(cuda)
                .ok_or_else(|| format!("`{text}` is no device; there are cpu, cuda and cuda:N")),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda { index, .. } => write!(f, "cuda:{index}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_written() {
        for (text, device, class) in [
            ("cpu", Device::Cpu, "cpu"),
            (
                "cuda",
                Device::Cuda {
                    index: 0,
                    tf32: false,
                },
                "cuda",
            ),
            (
                "cuda:3",
                Device::Cuda {
                    index: 3,
                    tf32: false,
                },
                "cuda",
            ),
        ] {
            let read: Device = text.parse().unwrap();
            assert_eq!((read, read.class()), (device, class));
            assert_eq!(read.to_string().parse(), Ok(device));
        }
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:4294967295", "CUDA"] {
            let error = text.parse::<Device>().unwrap_err();
            assert_eq!(
                error,
                format!("`{text}` is no device; there are cpu, cuda and cuda:N")
            );
        }
    }

    #[test]
    fn tf32_is_for_gpus() {
        assert_eq!(Device::Cpu.with_tf32(false), Ok(Device::Cpu));
        Device::Cpu.with_tf32(true).unwrap_err();
        let gpu: Device = "cuda:1".parse().unwrap();
        assert_eq!(gpu.with_tf32(true).unwrap().class(), "cuda-tf32");
    }
}
