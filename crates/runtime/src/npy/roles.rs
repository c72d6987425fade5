//! What arrays that lie together are for, by their names: Keras's `x_train`, MedMNIST's `val_labels`, NumPy's `arr_0`.

use crate::data::Tag;

/// What an array holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Pixels or features.
    Samples,
    Labels,
}

/// The role and the split that a name says; `None` where it says no role.
pub(crate) fn of_name(name: &str) -> Option<(Role, Option<Tag>)> {
    const SAMPLES: [&str; 9] = [
        "x",
        "image",
        "images",
        "img",
        "data",
        "features",
        "embeddings",
        "emb",
        "pixels",
    ];
    const LABELS: [&str; 6] = ["y", "label", "labels", "target", "targets", "class"];
    let name = name.to_ascii_lowercase();
    match name.as_str() {
        "arr_0" => return Some((Role::Samples, None)),
        "arr_1" => return Some((Role::Labels, None)),
        _ => {}
    }
    let (mut role, mut split) = (None, None);
    for word in name.split(['_', '-', '.', ' ']).filter(|word| !word.is_empty()) {
        if SAMPLES.contains(&word) {
            role.get_or_insert(Role::Samples);
        } else if LABELS.contains(&word) {
            // `image_labels` are labels.
            role = Some(Role::Labels);
        } else if let Some(found) = Tag::of_name(word) {
            split = Some(found);
        } else {
            return None;
        }
    }
    Some((role?, split))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_roles_and_splits() {
        for (name, expected) in [
            ("x_train", Some((Role::Samples, Some(Tag::Train)))),
            ("Y_test", Some((Role::Labels, Some(Tag::Test)))),
            ("val_images", Some((Role::Samples, Some(Tag::Val)))),
            ("train_labels", Some((Role::Labels, Some(Tag::Train)))),
            ("X", Some((Role::Samples, None))),
            ("labels", Some((Role::Labels, None))),
            ("arr_1", Some((Role::Labels, None))),
            ("weights", None),
            ("train", None),
        ] {
            assert_eq!(of_name(name), expected, "{name}");
        }
    }
}
