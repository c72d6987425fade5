//! Rows that name files.

use std::path::{Path, PathBuf};

use super::super::gather::Gather;
use super::super::listing::{Folders, Names, Place};
use super::super::split::Tag;
use super::super::{Backing, Request};
use crate::error::Error;

/// The files of a manifest's rows, relative to a root.
#[derive(Debug)]
pub(in super::super) struct FileRows {
    root: PathBuf,
    /// Paths, where the samples have names of their own.
    paths: Option<(Names, Folders)>,
    /// Paths may not lead out of the root: the manifest came with the files.
    is_confined: bool,
}

impl FileRows {
    pub(in super::super) fn new(root: &Path, request: &Request<'_>, is_confined: bool) -> FileRows {
        FileRows {
            root: root.to_owned(),
            paths: request.options.columns.id.is_some().then(Default::default),
            is_confined,
        }
    }

    /// Adds the row's file; `below` is what its path is relative to, and `row` what the row is called by if it is left out.
    #[expect(
        clippy::too_many_arguments,
        reason = "one row of two tables; a struct would be made for these calls alone"
    )]
    pub(in super::super) fn add(
        &mut self,
        gather: &mut Gather<'_>,
        below: &str,
        path: &str,
        id: Option<&str>,
        label: Option<&str>,
        tag: Tag,
        line: u64,
        row: &dyn Fn() -> String,
    ) -> Result<(), Error> {
        let path = path.strip_prefix("./").unwrap_or(path);
        let refused = match path {
            "" => Some("it has no path".to_owned()),
            _ if path.contains("://") => Some(format!("`{path}` is an address and no path")),
            _ if path.contains('\0') => Some("its path holds a NUL".to_owned()),
            _ if self.is_confined && leads_out(path) => Some(format!("`{path}` leads out of the folder")),
            _ => None,
        };
        if let Some(reason) = refused {
            gather.leave_out(row(), reason);
            return Ok(());
        }
        // The folders of a manifest that came with the files say splits where nothing else does.
        let tag = match tag {
            Tag::Unsaid if self.is_confined => {
                let folders = path.rsplit_once('/').map_or("", |(folders, _)| folders);
                folders.split('/').find_map(Tag::of_folder).unwrap_or(tag)
            }
            _ => tag,
        };
        let full = match Path::new(path).is_absolute() {
            true => path.to_owned(),
            false => format!("{below}{path}"),
        };
        match (&mut self.paths, id) {
            (Some(_), None) => {
                gather.leave_out(row(), "it has no name");
                return Ok(());
            }
            (Some((paths, folders)), Some(id)) => {
                folders.push(paths, &full);
                gather.folders.push(&mut gather.listing.names, id);
            }
            (None, _) => gather.folders.push(&mut gather.listing.names, &full),
        }
        gather.add_rest(label, tag, Place { at: 0, len: line })
    }

    /// What the samples are read from; `kept` says which rows are left.
    pub(in super::super) fn finish(self, kept: Option<&[bool]>) -> Backing {
        let paths = self.paths.map(|(mut paths, _)| {
            if let Some(kept) = kept {
                paths.retain(|idx| kept[idx]);
            }
            paths
        });
        Backing::Listed {
            root: self.root,
            paths,
        }
    }
}

/// Whether a path leads out of the folder that it is relative to.
fn leads_out(path: &str) -> bool {
    use std::path::Component;
    let mut depth = 0i64;
    for component in Path::new(path).components() {
        match component {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir => depth -= 1,
            Component::RootDir | Component::Prefix(_) => return true,
        }
        if depth < 0 {
            return true;
        }
    }
    false
}
