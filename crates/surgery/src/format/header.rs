//! The JSON header of a safetensors file, in the order in which it is written.

use std::collections::BTreeMap;
use std::fmt;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

use pth::DType;

use super::canonical;

/// Bytes of the length in front of the header.
pub(crate) const LENGTH_BYTES: usize = 8;

/// The largest header that the format allows, in bytes.
pub(crate) const MAX_HEADER_BYTES: usize = 100_000_000;

/// The member that is no tensor.
pub(crate) const METADATA_KEY: &str = "__metadata__";

/// Members in file order; the crate's own type forgets the order and takes the last of equal names. Equal names are still in it.
pub(crate) struct Header {
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) tensors: Vec<(String, TensorInfo)>,
}

impl Header {
    /// Understands a header, without the length in front of it.
    pub(crate) fn parse(json: &[u8]) -> Result<Header, serde_json::Error> {
        canonical::parse(json).map_or_else(|| serde_json::from_slice(json), Ok)
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Header, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut metadata = None;
                let mut tensors: Vec<(String, TensorInfo)> = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA_KEY {
                        if metadata.is_some() {
                            return Err(A::Error::custom(format!("two entries are called `{name}`")));
                        }
                        metadata = Some(map.next_value()?);
                    } else {
                        tensors.push((name, map.next_value()?));
                    }
                }
                Ok(Header {
                    metadata: metadata.unwrap_or_default(),
                    tensors,
                })
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

impl Serialize for Header {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry(METADATA_KEY, &self.metadata)?;
        }
        for (name, info) in &self.tensors {
            map.serialize_entry(name, info)?;
        }
        map.end()
    }
}

/// Both names of each type that both sides have.
const DTYPES: [(DType, Dtype); 20] = [
    (DType::Bool, Dtype::BOOL),
    (DType::Uint8, Dtype::U8),
    (DType::Int8, Dtype::I8),
    (DType::Uint16, Dtype::U16),
    (DType::Int16, Dtype::I16),
    (DType::Uint32, Dtype::U32),
    (DType::Int32, Dtype::I32),
    (DType::Uint64, Dtype::U64),
    (DType::Int64, Dtype::I64),
    (DType::Float16, Dtype::F16),
    (DType::BFloat16, Dtype::BF16),
    (DType::Float32, Dtype::F32),
    (DType::Float64, Dtype::F64),
    (DType::Complex64, Dtype::C64),
    (DType::Float8E5M2, Dtype::F8_E5M2),
    (DType::Float8E4M3Fn, Dtype::F8_E4M3),
    (DType::Float8E5M2Fnuz, Dtype::F8_E5M2FNUZ),
    (DType::Float8E4M3Fnuz, Dtype::F8_E4M3FNUZ),
    (DType::Float8E8M0Fnu, Dtype::F8_E8M0),
    (DType::Float4E2M1FnX2, Dtype::F4),
];

pub(crate) fn to_safetensors(dtype: DType) -> Option<Dtype> {
    DTYPES.iter().find(|row| row.0 == dtype).map(|row| row.1)
}

pub(crate) fn from_safetensors(dtype: Dtype) -> Option<DType> {
    DTYPES.iter().find(|row| row.1 == dtype).map(|row| row.0)
}

/// safetensors counts 4-bit floats, torch counts the bytes that hold two of them.
pub(crate) fn shape_in_safetensors(dtype: DType, shape: &[usize]) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if let (DType::Float4E2M1FnX2, Some(last)) = (dtype, shape.last_mut()) {
        *last *= 2;
    }
    shape
}

/// The reverse of [`shape_in_safetensors`]; none for an odd number of 4-bit floats.
pub(crate) fn shape_in_torch(dtype: DType, mut shape: Vec<usize>) -> Option<Vec<usize>> {
    if dtype == DType::Float4E2M1FnX2 {
        let last = shape.last_mut()?;
        if !last.is_multiple_of(2) {
            return None;
        }
        *last /= 2;
    }
    Some(shape)
}
