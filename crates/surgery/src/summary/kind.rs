//! Which of torch's layers a module is, by the names and shapes of its tensors.

use indexmap::IndexMap;

use crate::lazy::LazyEntry;

/// The spatial dimensions of the convolutions among `siblings`, for a BatchNorm that stands among them.
pub(super) fn rank_nearby<'t>(
    siblings: impl Iterator<Item = &'t IndexMap<&'t str, &'t LazyEntry>>,
) -> Option<usize> {
    siblings
        .filter_map(|held| held.get("weight").map(|weight| weight.shape().len()))
        .find(|rank| (3..=5).contains(rank))
        .map(|rank| rank - 2)
}

/// Class and kernel of the module called `name` with the tensors `held` and children of these names.
pub(super) fn of<'n>(
    name: &str,
    held: &IndexMap<&str, &LazyEntry>,
    children: impl Iterator<Item = &'n str>,
    rank_nearby: Option<usize>,
) -> (String, Option<Vec<usize>>) {
    let shape = |leaf: &str| held.get(leaf).map(|entry| entry.shape());
    if held.contains_key("in_proj_weight") || held.contains_key("q_proj_weight") {
        return ("MultiheadAttention".to_owned(), None);
    }
    let mut children = children.peekable();
    if children.peek().is_some() || held.is_empty() {
        let mut is_numbered = children.peek().is_some();
        children.for_each(|child| is_numbered &= child.bytes().all(|byte| byte.is_ascii_digit()));
        let kind = if is_numbered && held.is_empty() {
            "Sequential"
        } else {
            "Module"
        };
        return (kind.to_owned(), None);
    }
    if let (Some([gates, ..]), Some([_, hidden])) = (shape("weight_ih_l0"), shape("weight_hh_l0")) {
        let kind = match gates.checked_div(*hidden) {
            Some(4) => "LSTM",
            Some(3) => "GRU",
            _ => "RNN",
        };
        return (kind.to_owned(), None);
    }
    let norm = |of: &str| match rank_nearby {
        Some(rank) => format!("{of}{rank}d"),
        // Behind linear layers, which leave no other choice.
        None => format!("{of}1d"),
    };
    if held.contains_key("running_mean") {
        return (norm("BatchNorm"), None);
    }
    let quantity = match shape("weight") {
        Some(weight) => weight,
        None => return ("Module".to_owned(), None),
    };
    match quantity {
        [_] if held.contains_key("bias") => ("LayerNorm".to_owned(), None),
        [1] => ("PReLU".to_owned(), None),
        [_] => ("RMSNorm".to_owned(), None),
        [_, _] if is_embedding(name) && !held.contains_key("bias") => ("Embedding".to_owned(), None),
        [_, _] => ("Linear".to_owned(), None),
        [_, _, kernel @ ..] if kernel.len() <= 3 => (format!("Conv{}d", kernel.len()), Some(kernel.to_vec())),
        _ => ("Module".to_owned(), None),
    }
}

fn is_embedding(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.contains("embed") || matches!(name.as_str(), "wte" | "wpe" | "tok_emb" | "pos_emb" | "emb")
}
