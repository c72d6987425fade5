//! Going through a folder and the folders below it, the same way every time.

use std::fs;
use std::path::Path;

use super::bad;
use super::left_out::LeftOuts;
use super::listing::Names;
use crate::error::Error;

/// A symbolic link to a folder above would lead round for ever.
const MAX_DEPTH: usize = 64;
/// What files and folders that cannot be listed are called when they are only counted.
pub(super) const UNLISTED: &str = "files or folders that cannot be listed";

/// Adds the files at and below `prefix` (a folder below `root` with a slash at its end, or nothing) whose names are wanted,
/// in the order of their paths' parts; hidden ones are passed over, and what cannot be listed is left out by name.
///
/// # Errors
/// Folders nested too deep, which links that lead back up do.
pub(super) fn walk(
    root: &Path,
    prefix: &str,
    is_wanted: &dyn Fn(&str) -> bool,
    names: &mut Names,
    left_out: &mut LeftOuts,
) -> Result<(), Error> {
    go(root, prefix, 0, is_wanted, names, left_out)
}

fn go(
    root: &Path,
    prefix: &str,
    depth: usize,
    is_wanted: &dyn Fn(&str) -> bool,
    names: &mut Names,
    left_out: &mut LeftOuts,
) -> Result<(), Error> {
    let folder = root.join(prefix);
    if depth > MAX_DEPTH {
        return Err(bad(
            &folder,
            "folders are nested over 64 deep; is there a link that leads back up?",
        ));
    }
    let mut entries = Vec::new();
    let listed = fs::read_dir(&folder).and_then(|listed| {
        for entry in listed {
            let entry = entry?;
            entries.push((entry.file_name(), entry.file_type()?));
        }
        Ok(())
    });
    if let Err(error) = listed {
        // A folder that could be read in part would be listed differently every time.
        let name = if prefix.is_empty() {
            "."
        } else {
            prefix.trim_end_matches('/')
        };
        left_out.push(UNLISTED, name, format!("the folder cannot be read: {error}"));
        return Ok(());
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    let mut here = None;
    for (name, kind) in entries {
        let lossy = name.to_string_lossy();
        if lossy.starts_with('.') {
            continue;
        }
        let is_file_wanted = is_wanted(&lossy);
        // What is not wanted by its name is followed only to see whether it is a folder.
        let (is_folder, is_file) = if kind.is_symlink() {
            match fs::metadata(folder.join(&name)) {
                Ok(metadata) => (metadata.is_dir(), metadata.is_file()),
                Err(error) if is_file_wanted => {
                    left_out.push(
                        UNLISTED,
                        format!("{prefix}{lossy}"),
                        format!("it cannot be read: {error}"),
                    );
                    continue;
                }
                Err(_) => continue,
            }
        } else {
            (kind.is_dir(), kind.is_file())
        };
        match (is_folder, name.to_str()) {
            (true, Some(name)) => go(
                root,
                &format!("{prefix}{name}/"),
                depth + 1,
                is_wanted,
                names,
                left_out,
            )?,
            (true, None) => left_out.push(
                UNLISTED,
                format!("{prefix}{lossy}"),
                "the folder's name is not UTF-8",
            ),
            (false, _) if !is_file_wanted => {}
            (false, None) => {
                left_out.push(UNLISTED, format!("{prefix}{lossy}"), "the file name is not UTF-8");
            }
            (false, Some(_)) if !is_file => {
                left_out.push(UNLISTED, format!("{prefix}{lossy}"), "it is not a regular file");
            }
            (false, Some(name)) => {
                let folder = *here.get_or_insert_with(|| names.folder(prefix));
                names.push(folder, name);
            }
        }
    }
    Ok(())
}
