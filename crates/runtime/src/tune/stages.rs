//! Which part of a network is frozen while so many groups train: all in front of a boundary behind which they all lie.

use super::groups::Group;
use crate::error::Error;
use crate::onnx::{Model, Parameter};

/// What a run does between two unfreezings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stage {
    /// Groups that train.
    pub(crate) n_groups: usize,
    /// Where the trained part begins.
    pub(crate) boundary: Boundary,
}

/// Where a tail begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Boundary {
    /// At the network's input.
    Input(String),
    /// At a tensor that everything goes through.
    Tensor(String),
    /// At the rows that the classifier stands on: those that are made of the tensor where the backbone was cut.
    Rows(String),
}

impl Boundary {
    /// The tensor.
    pub(crate) fn name(&self) -> &str {
        match self {
            Boundary::Input(name) | Boundary::Tensor(name) | Boundary::Rows(name) => name,
        }
    }
}

/// A stage for each number of groups that train at a time, in the order of time; `is_gradual` says whether there are
/// several. The backbone was cut at `cut`.
///
/// # Errors
/// As [`Model::input`].
pub(crate) fn stages(
    model: &Model,
    cut: &str,
    parameters: &[Parameter],
    groups: &[Group],
    is_gradual: bool,
) -> Result<Vec<Stage>, Error> {
    let first = if is_gradual { 1 } else { groups.len() };
    (first..=groups.len())
        .map(|n_groups| {
            Ok(Stage {
                n_groups,
                boundary: boundary_of(model, cut, parameters, &groups[..n_groups])?,
            })
        })
        .collect()
}

/// The last tensor in front of all nodes that a trained parameter goes into, that alone is needed behind it. Between two
/// such tensors of a network several are needed; then an earlier one is taken, the input at last.
fn boundary_of(
    model: &Model,
    cut: &str,
    parameters: &[Parameter],
    groups: &[Group],
) -> Result<Boundary, Error> {
    let members = groups.iter().flat_map(|group| &group.members);
    let first = members.map(|&at| parameters[at].node_idx).min().unwrap_or(0);
    let boundaries = model.boundaries();
    let cut_idx = boundaries
        .iter()
        .find(|at| at.name == cut)
        .map_or(usize::MAX, |at| at.node_idx);
    let found = boundaries
        .into_iter()
        .rfind(|at| at.is_sole && at.node_idx < first);
    match found {
        Some(boundary) if boundary.node_idx > cut_idx => Ok(Boundary::Rows(boundary.name)),
        Some(boundary) => Ok(Boundary::Tensor(boundary.name)),
        None => Ok(Boundary::Input(model.input()?.name.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::test_graph as graph;

    /// x -> a -> (b, skip) -> sum -> c, with a weight in each of the letters.
    fn model() -> Model {
        let weight = [1.0f32; 2];
        graph()
            .input("x", 1, &[0, 2])
            .weight("a.weight", &[2], &weight)
            .weight("b.0.weight", &[2], &weight)
            .weight("b.1.weight", &[2], &weight)
            .weight("c.weight", &[2], &weight)
            .node("Mul", &["x", "a.weight"], &["a"])
            .node("Relu", &["a"], &["a_relu"])
            .node("Mul", &["a_relu", "b.0.weight"], &["b0"])
            .node("Mul", &["b0", "b.1.weight"], &["b1"])
            .node("Add", &["b1", "a_relu"], &["sum"])
            .node("Mul", &["sum", "c.weight"], &["y"])
            .output("y")
            .model()
    }

    fn boundary(trained: &[&str]) -> Boundary {
        boundary_with_cut(trained, "none")
    }

    fn boundary_with_cut(trained: &[&str], cut: &str) -> Boundary {
        let model = model();
        let parameters = model.parameters();
        let members = (0..parameters.len()).filter(|&at| trained.contains(&parameters[at].name.as_str()));
        let group = Group {
            name: String::new(),
            members: members.collect(),
            lr: 0.0,
        };
        assert_eq!(group.members.len(), trained.len());
        stages(&model, cut, &parameters, &[group], false)
            .unwrap()
            .remove(0)
            .boundary
    }

    #[test]
    fn the_boundary_is_the_last_tensor_that_all_goes_through() {
        let tensor = |name: &str| Boundary::Tensor(name.to_owned());
        assert_eq!(boundary(&["c.weight"]), tensor("sum"));
        // Behind `b0` the skip connection is needed too.
        assert_eq!(boundary(&["b.1.weight"]), tensor("a_relu"));
        assert_eq!(boundary(&["b.0.weight", "c.weight"]), tensor("a_relu"));
        assert_eq!(boundary(&["a.weight"]), Boundary::Input("x".to_owned()));
        assert_eq!(
            boundary_with_cut(&["c.weight"], "a_relu"),
            Boundary::Rows("sum".to_owned())
        );
        assert_eq!(boundary_with_cut(&["b.1.weight"], "a_relu"), tensor("a_relu"));
    }

    #[test]
    fn boundaries_move_towards_the_input_with_each_group() {
        let model = model();
        let parameters = model.parameters();
        let names: Vec<&str> = parameters
            .iter()
            .map(|parameter| parameter.name.as_str())
            .collect();
        assert_eq!(names, ["a.weight", "b.0.weight", "b.1.weight", "c.weight"]);
        let group = |members: &[usize]| Group {
            name: String::new(),
            members: members.to_vec(),
            lr: 0.0,
        };
        let stages = stages(
            &model,
            "none",
            &parameters,
            &[group(&[3]), group(&[1, 2]), group(&[0])],
            true,
        )
        .unwrap();
        let found: Vec<(usize, &str)> = stages
            .iter()
            .map(|stage| (stage.n_groups, stage.boundary.name()))
            .collect();
        assert_eq!(found, [(1, "sum"), (2, "a_relu"), (3, "x")]);
    }
}
