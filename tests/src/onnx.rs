//! ONNX graphs, byte by byte, for tests that need one with a certain shape.
//!
//! Source of the field numbers: `onnx/onnx.proto3`.

/// `TensorProto.DataType`.
pub mod dtype {
    /// float32.
    pub const FLOAT: u64 = 1;
    /// int32.
    pub const INT32: u64 = 6;
    /// int64.
    pub const INT64: u64 = 7;
    /// bool.
    pub const BOOL: u64 = 9;
    /// float16.
    pub const FLOAT16: u64 = 10;
    /// float64.
    pub const DOUBLE: u64 = 11;
}

/// A graph under construction; operator set 17.
#[derive(Debug, Default)]
pub struct Graph {
    bytes: Vec<u8>,
}

/// An attribute of a node.
#[derive(Debug, Clone, Copy)]
pub enum Attribute<'a> {
    /// A whole number.
    Int(&'a str, i64),
    /// Several.
    Ints(&'a str, &'a [i64]),
}

/// The size of an axis: fixed, or a name.
#[derive(Debug, Clone, Copy)]
pub enum Dim {
    /// Fixed.
    Of(u64),
    /// Any.
    Any(&'static str),
}

impl Graph {
    /// An empty one.
    pub fn new() -> Graph {
        Graph::default()
    }

    /// A graph input.
    pub fn input(self, name: &str, dtype: u64, shape: &[Dim]) -> Graph {
        self.value(11, name, dtype, Some(shape))
    }

    /// A graph output, whose shape is left open.
    pub fn output(self, name: &str, dtype: u64) -> Graph {
        self.value(12, name, dtype, None)
    }

    /// A node.
    pub fn node(self, op_type: &str, inputs: &[&str], outputs: &[&str]) -> Graph {
        self.node_with(op_type, inputs, outputs, &[])
    }

    /// A node with attributes.
    pub fn node_with(
        mut self,
        op_type: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: &[Attribute<'_>],
    ) -> Graph {
        let mut node = Vec::new();
        for input in inputs {
            put_bytes(&mut node, 1, input.as_bytes());
        }
        for output in outputs {
            put_bytes(&mut node, 2, output.as_bytes());
        }
        put_bytes(&mut node, 4, op_type.as_bytes());
        for attribute in attributes {
            let mut bytes = Vec::new();
            match attribute {
                Attribute::Int(name, value) => {
                    put_bytes(&mut bytes, 1, name.as_bytes());
                    put_varint(&mut bytes, 3, value.cast_unsigned());
                    put_varint(&mut bytes, 20, 2);
                }
                Attribute::Ints(name, values) => {
                    put_bytes(&mut bytes, 1, name.as_bytes());
                    for value in *values {
                        put_varint(&mut bytes, 8, value.cast_unsigned());
                    }
                    put_varint(&mut bytes, 20, 7);
                }
            }
            put_bytes(&mut node, 5, &bytes);
        }
        put_bytes(&mut self.bytes, 1, &node);
        self
    }

    /// An initialiser; `raw` is its little-endian bytes.
    pub fn initializer(mut self, name: &str, dtype: u64, shape: &[u64], raw: &[u8]) -> Graph {
        let mut tensor = Vec::new();
        for &size in shape {
            put_varint(&mut tensor, 1, size);
        }
        put_varint(&mut tensor, 2, dtype);
        put_bytes(&mut tensor, 8, name.as_bytes());
        put_bytes(&mut tensor, 9, raw);
        put_bytes(&mut self.bytes, 5, &tensor);
        self
    }

    /// A float32 initialiser whose bytes lie in the file `location` beside the model.
    pub fn external(mut self, name: &str, shape: &[u64], location: &str, offset: usize) -> Graph {
        let n_bytes = 4 * shape.iter().product::<u64>();
        let mut tensor = Vec::new();
        for &size in shape {
            put_varint(&mut tensor, 1, size);
        }
        put_varint(&mut tensor, 2, dtype::FLOAT);
        put_bytes(&mut tensor, 8, name.as_bytes());
        for (key, value) in [
            ("location", location.to_owned()),
            ("offset", offset.to_string()),
            ("length", n_bytes.to_string()),
        ] {
            let mut entry = Vec::new();
            put_bytes(&mut entry, 1, key.as_bytes());
            put_bytes(&mut entry, 2, value.as_bytes());
            put_bytes(&mut tensor, 13, &entry);
        }
        put_varint(&mut tensor, 14, 1);
        put_bytes(&mut self.bytes, 5, &tensor);
        self
    }

    /// The model file.
    pub fn build(mut self) -> Vec<u8> {
        put_bytes(&mut self.bytes, 2, b"graph");
        let mut opset = Vec::new();
        put_varint(&mut opset, 2, 17);
        let mut model = Vec::new();
        put_varint(&mut model, 1, 8);
        put_bytes(&mut model, 7, &self.bytes);
        put_bytes(&mut model, 8, &opset);
        model
    }

    fn value(mut self, field: u64, name: &str, dtype: u64, shape: Option<&[Dim]>) -> Graph {
        let mut tensor = Vec::new();
        put_varint(&mut tensor, 1, dtype);
        if let Some(shape) = shape {
            let mut dims = Vec::new();
            for dim in shape {
                let mut bytes = Vec::new();
                match dim {
                    Dim::Of(size) => put_varint(&mut bytes, 1, *size),
                    Dim::Any(name) => put_bytes(&mut bytes, 2, name.as_bytes()),
                }
                put_bytes(&mut dims, 1, &bytes);
            }
            put_bytes(&mut tensor, 2, &dims);
        }
        let mut type_proto = Vec::new();
        put_bytes(&mut type_proto, 1, &tensor);
        let mut info = Vec::new();
        put_bytes(&mut info, 1, name.as_bytes());
        put_bytes(&mut info, 2, &type_proto);
        put_bytes(&mut self.bytes, field, &info);
        self
    }
}

fn put(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    into.push(value.to_le_bytes()[0]);
}

fn put_varint(into: &mut Vec<u8>, field: u64, value: u64) {
    put(into, field << 3);
    put(into, value);
}

fn put_bytes(into: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put(into, field << 3 | 2);
    put(into, bytes.len() as u64);
    into.extend_from_slice(bytes);
}
