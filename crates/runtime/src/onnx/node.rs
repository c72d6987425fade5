//! Nodes and value infos as spans of the file's bytes.

use std::ops::Range;

use super::graph::span_of;
use super::tensor::text;
use super::wire::{self, Value};

/// A tensor that the file describes: a graph input that is not an initialiser, an output, or one in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// The tensor's name.
    pub name: String,
    /// `TensorProto.DataType`; 1 is float32, 10 float16, 7 int64; 0 where the file does not say.
    pub elem_type: i64,
    /// Fixed sizes, `None` where an axis is symbolic; `None` as a whole where the file gives no shape.
    pub shape: Option<Vec<Option<usize>>>,
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    /// What the exporter called it; often empty.
    pub(super) name: String,
    pub(super) op_type: String,
    pub(super) domain: String,
    /// The message.
    pub(super) span: Range<usize>,
    /// Tensor names; an empty string stands for an optional input that is left out.
    pub(super) inputs: Vec<String>,
    pub(super) outputs: Vec<String>,
    /// Name and span of each `AttributeProto`.
    pub(super) attributes: Vec<(String, Range<usize>)>,
    /// Span of each entry of `metadata_props`.
    pub(super) metadata: Vec<Range<usize>>,
    /// Tensors of this graph that subgraphs of the node (If, Loop, Scan) read by name.
    pub(super) captured: Vec<String>,
}

impl Node {
    pub(super) fn reads(&self) -> impl Iterator<Item = &str> {
        self.inputs
            .iter()
            .chain(&self.captured)
            .map(String::as_str)
            .filter(|name| !name.is_empty())
    }
}

pub(super) fn read_node(bytes: &[u8], span: Range<usize>) -> Result<Node, wire::WireError> {
    let mut node = Node {
        name: String::new(),
        op_type: String::new(),
        domain: String::new(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        attributes: Vec::new(),
        captured: Vec::new(),
        metadata: Vec::new(),
        span: Range::default(),
    };
    node.span = span.clone();
    for field in wire::each(bytes, span) {
        let field = field?;
        let Value::Bytes(span) = &field.value else {
            continue;
        };
        match field.number {
            1 => node.inputs.push(text(bytes, span)),
            2 => node.outputs.push(text(bytes, span)),
            3 => node.name = text(bytes, span),
            4 => node.op_type = text(bytes, span),
            5 => {
                let mut name = String::new();
                for part in wire::fields(bytes, span.clone())? {
                    match (part.number, &part.value) {
                        (1, Value::Bytes(span)) => name = text(bytes, span),
                        (6 | 11, Value::Bytes(span)) => capture(bytes, span.clone(), &mut node.captured, 0)?,
                        _ => {}
                    }
                }
                node.attributes.push((name, span.clone()));
            }
            7 => node.domain = text(bytes, span),
            9 => node.metadata.push(span.clone()),
            _ => {}
        }
    }
    if node.domain == "ai.onnx" {
        node.domain.clear();
    }
    Ok(node)
}

/// Collects the names that the nodes of a subgraph read. Names made inside are among them and do no harm: the cut
/// looks each up in the outer graph, where they are unknown.
fn capture(
    bytes: &[u8],
    graph: Range<usize>,
    into: &mut Vec<String>,
    depth: usize,
) -> Result<(), wire::WireError> {
    const MAX_DEPTH: usize = 64;
    if depth > MAX_DEPTH {
        return Err(wire::WireError {
            offset: graph.start,
            what: "subgraphs nested over 64 deep",
        });
    }
    for field in wire::fields(bytes, graph)? {
        if let Some(node) = span_of(&field, 1) {
            for part in wire::fields(bytes, node)? {
                if let Some(span) = span_of(&part, 1) {
                    into.push(text(bytes, &span));
                } else if let Some(attribute) = span_of(&part, 5) {
                    for part in wire::fields(bytes, attribute)? {
                        if let Some(inner) = span_of(&part, 6).or_else(|| span_of(&part, 11)) {
                            capture(bytes, inner, into, depth + 1)?;
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

pub(super) fn read_value_info(bytes: &[u8], span: Range<usize>) -> Result<Input, wire::WireError> {
    let mut info = Input {
        name: String::new(),
        elem_type: 0,
        shape: None,
    };
    for field in wire::fields(bytes, span)? {
        if let Some(span) = span_of(&field, 1) {
            info.name = text(bytes, &span);
        } else if let Some(type_span) = span_of(&field, 2) {
            for field in wire::fields(bytes, type_span)? {
                let Some(tensor_span) = span_of(&field, 1) else {
                    continue;
                };
                for field in wire::fields(bytes, tensor_span)? {
                    match (&field.number, &field.value) {
                        (1, Value::Varint(value)) => info.elem_type = value.cast_signed(),
                        (2, Value::Bytes(shape_span)) => {
                            let mut shape = Vec::new();
                            for dim in wire::fields(bytes, shape_span.clone())? {
                                let Some(dim_span) = span_of(&dim, 1) else {
                                    continue;
                                };
                                let size = wire::fields(bytes, dim_span)?.iter().find_map(|field| {
                                    match (field.number, &field.value) {
                                        (1, Value::Varint(size)) => usize::try_from(*size).ok(),
                                        _ => None,
                                    }
                                });
                                // 0 and -1 are written by some exporters for "any".
                                shape.push(size.filter(|&size| size > 0 && size < 1 << 40));
                            }
                            info.shape = Some(shape);
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    Ok(info)
}
