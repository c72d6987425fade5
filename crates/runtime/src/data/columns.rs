//! Which column means what: as the caller says, else by the usual names.

use super::options::Columns;

/// Usual names, the first that is there is taken; in any case.
const PATH: &[&str] = &["file_name", "filename", "path", "image", "image_path", "filepath"];
pub(super) const LABEL: &[&str] = &["label", "class", "target", "y"];
pub(super) const TEXT: &[&str] = &["text", "caption", "sentence"];
const SPLIT: &[&str] = &["split"];

/// Places of the columns that matter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) path: Option<usize>,
    pub(super) label: Option<usize>,
    pub(super) text: Option<usize>,
    pub(super) split: Option<usize>,
    pub(super) id: Option<usize>,
}

impl Found {
    /// Finds the columns among `names`.
    ///
    /// # Errors
    /// A column that the caller names and that is not there; it says which are.
    pub(super) fn among(names: &[&str], columns: &Columns) -> Result<Found, String> {
        let find = |said: &Option<String>, usual: &[&str]| match said {
            Some(said) => match names.iter().position(|name| name == said) {
                Some(at) => Ok(Some(at)),
                None => Err(format!("there is no column `{said}`; there {}", list(names))),
            },
            None => Ok(usual
                .iter()
                .find_map(|usual| names.iter().position(|name| name.eq_ignore_ascii_case(usual)))),
        };
        Ok(Found {
            path: find(&columns.path, PATH)?,
            label: find(&columns.label, LABEL)?,
            text: find(&columns.text, TEXT)?,
            split: find(&columns.split, SPLIT)?,
            id: find(&columns.id, &[])?,
        })
    }
}

/// `is `a`` or `are `a`, `b``, cut after some.
pub(super) fn list(names: &[&str]) -> String {
    const MAX_LISTED: usize = 20;
    let quoted: Vec<String> = names
        .iter()
        .take(MAX_LISTED)
        .map(|name| format!("`{name}`"))
        .collect();
    let verb = if names.len() == 1 { "is" } else { "are" };
    let more = names.len().saturating_sub(MAX_LISTED);
    match (names.len(), more) {
        (0, _) => "are none".to_owned(),
        (_, 0) => format!("{verb} {}", quoted.join(", ")),
        _ => format!("{verb} {} and {more} more", quoted.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_found_by_their_usual_names() {
        let found = Found::among(&["id", "Image", "caption", "path", "y"], &Columns::default()).unwrap();
        assert_eq!(
            found,
            Found {
                path: Some(3),
                label: Some(4),
                text: Some(2),
                split: None,
                id: None,
            }
        );
    }

    #[test]
    fn a_column_that_is_said_has_to_be_there() {
        let columns = Columns {
            label: Some("species".to_owned()),
            ..Columns::default()
        };
        assert_eq!(Found::among(&["a", "species"], &columns).unwrap().label, Some(1));
        assert_eq!(
            Found::among(&["a", "b"], &columns).unwrap_err(),
            "there is no column `species`; there are `a`, `b`"
        );
    }
}
