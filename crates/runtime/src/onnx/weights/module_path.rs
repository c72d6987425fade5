//! Which module of the PyTorch model a node comes from, as its exporter wrote it down.
//!
//! The exporter that traces with `torch.export` puts a list of scopes into a node's metadata, the last of which is the
//! operator: `['', 'layer1', 'layer1.0', 'layer1.0.conv1', 'conv2d_1']`. The one for TorchScript makes a path of the
//! node's name, in which children of a `Sequential` repeat their parent: `/layer1/layer1.0/conv1/Conv`.

use super::super::graph::Model;
use super::super::node::Node;
use super::super::tensor::text;
use super::super::wire::{self, Value};

const SCOPES: &str = "pkg.torch.onnx.name_scopes";
const FX_NODE: &str = "pkg.torch.onnx.fx_node";
/// Readings of one name; more cannot be told apart anyway.
const MAX_READINGS: usize = 16;

/// Paths that a node's module may have, the likeliest first; empty for a node that does not tell.
pub(super) fn module_paths(model: &Model, node: &Node) -> Vec<String> {
    if let Some(scopes) = metadata(model, node, SCOPES) {
        let scopes = strings_of_list(&scopes);
        return match scopes.as_slice() {
            [.., module, _operator] => vec![module.clone()],
            _ => Vec::new(),
        };
    }
    let Some((path, _operator)) = node.name.strip_prefix('/').and_then(|name| name.rsplit_once('/')) else {
        return Vec::new();
    };
    let mut readings: Vec<Vec<&str>> = vec![Vec::new()];
    for segment in path.split('/') {
        let mut next = Vec::new();
        for reading in readings {
            let repeats = reading.last().is_some_and(|parent| {
                segment
                    .strip_prefix(parent)
                    .is_some_and(|rest| rest.starts_with('.'))
            });
            if repeats {
                let mut collapsed = reading.clone();
                collapsed.pop();
                collapsed.push(segment);
                next.push(collapsed);
            }
            let mut whole = reading;
            whole.push(segment);
            next.push(whole);
        }
        next.truncate(MAX_READINGS);
        readings = next;
    }
    readings.into_iter().map(|reading| reading.join(".")).collect()
}

/// The last number among the arguments of the traced call: of a batch normalisation, its epsilon.
pub(super) fn last_number(model: &Model, node: &Node) -> Option<f64> {
    let call = metadata(model, node, FX_NODE)?;
    let (_, arguments) = call.split_once("args = (")?;
    let (arguments, _) = arguments.split_once("), kwargs")?;
    let mut numbers = arguments
        .rsplit(',')
        .filter_map(|part| part.trim().parse::<f64>().ok());
    numbers.next().filter(|number| number.is_finite())
}

fn metadata(model: &Model, node: &Node, key: &str) -> Option<String> {
    node.metadata.iter().find_map(|span| {
        let mut parts = [None, None];
        for part in wire::each(&model.bytes, span.clone()).flatten() {
            if let (number @ 1..=2, Value::Bytes(span)) = (part.number, &part.value) {
                parts[number as usize - 1] = Some(text(&model.bytes, span));
            }
        }
        match parts {
            [Some(found), Some(value)] if found == key => Some(value),
            _ => None,
        }
    })
}

/// The strings of a Python list of strings, as `repr` writes it.
fn strings_of_list(list: &str) -> Vec<String> {
    let mut strings = Vec::new();
    let mut rest = list;
    while let Some(start) = rest.find(['\'', '"']) {
        let quote = &rest[start..start + 1];
        let inner = &rest[start + 1..];
        let Some(end) = inner.find(quote) else { break };
        strings.push(inner[..end].to_owned());
        rest = &inner[end + 1..];
    }
    strings
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::build::{graph, node, with_scopes};
    use super::*;

    fn read(name: &str) -> Vec<String> {
        let made = graph().input("x", 1, &[1]).output("y");
        let model = made.named("Relu", name, &["x"], "y").model();
        module_paths(&model, &model.nodes[0])
    }

    #[test]
    fn names_of_torchscript_nodes_are_paths() {
        assert_eq!(read("/conv1/Conv"), ["conv1"]);
        assert_eq!(
            read("/layer1/layer1.0/conv1/Conv_1"),
            ["layer1.0.conv1", "layer1.layer1.0.conv1"]
        );
        assert_eq!(
            read("/features/features.1/conv/conv.0/conv.0.0/Conv")[0],
            "features.1.conv.0.0"
        );
        // A ModuleList is not called, and leaves no segment.
        assert_eq!(
            read("/encoder/layer.0/attention/MatMul"),
            ["encoder.layer.0.attention"]
        );
        assert_eq!(read("/Add"), [""; 0]);
        assert_eq!(read("node_relu"), [""; 0]);
    }

    #[test]
    fn scopes_of_traced_nodes_are_read_first() {
        let call = "%bn : [num_users=1] = call_function[target=torch.ops.aten._native_batch_norm_legit_no_training.default]\
                    (args = (%conv2d, %w, %b, %m, %v, 0.1, 0.001), kwargs = {})";
        let made = node("Conv", "node_Conv_1", "", &["x"], &["y"]);
        let made = with_scopes(
            made,
            "['', 'layer1', 'layer1.0', \"layer1.0.bn1\", 'batch_norm_1']",
            call,
        );
        let model = graph().input("x", 1, &[1]).field(1, made).output("y").model();
        assert_eq!(module_paths(&model, &model.nodes[0]), ["layer1.0.bn1"]);
        assert_eq!(last_number(&model, &model.nodes[0]), Some(0.001));
    }
}
