//! Pixels in `.npy` and `.npz` arrays, with their labels in arrays beside them.

use std::fs;
use std::path::{Path, PathBuf};

use pth::FileError;

use super::gather::Gather;
use super::listing::Place;
use super::options::Unlabelled;
use super::split::Tag;
use super::{Backing, Parts, Request, bad};
use crate::error::Error;
use crate::npy::array::{ArrayFile, open_npz};
use crate::npy::label_texts;
use crate::npy::roles::{Role, of_name};

/// Arrays of pixels, one behind the other.
#[derive(Debug)]
pub(super) struct Pixels {
    arrays: Vec<PixelArray>,
    /// The number of each array's first row among all.
    bases: Vec<u64>,
}

/// `[N, H, W, 3]`, or `[N, H, W]` of grey.
#[derive(Debug)]
struct PixelArray {
    array: ArrayFile,
    height: usize,
    width: usize,
    channels: usize,
}

/// An array with the split that its name says.
struct Named {
    array: ArrayFile,
    role: Role,
    tag: Option<Tag>,
    name: String,
}

/// Lists a `.npy` of pixels with the labels beside it, the arrays of a `.npz`, or the `.npy` files of a folder.
pub(super) fn open(source: &Path, request: &Request<'_>) -> Result<Parts, Error> {
    let all = match (source.is_dir(), crate::npy::is_npz(source)) {
        (true, _) => of_folder(source)?,
        (false, true) => of_npz(source)?,
        (false, false) => of_file(source)?,
    };
    let mut gather = Gather::new(source, request);
    let (mut arrays, mut bases, mut base) = (Vec::new(), Vec::new(), 0u64);
    let mut labels: Vec<(Option<Tag>, ArrayFile)> = Vec::new();
    let mut samples = Vec::new();
    for named in all {
        match named.role {
            Role::Labels => labels.push((named.tag, named.array)),
            Role::Samples => samples.push((named.tag, named.name, PixelArray::new(named.array)?)),
        }
    }
    if samples.is_empty() {
        return Err(bad(
            source,
            "none of its arrays is called one of pictures, such as `X` or `x_train`",
        ));
    }
    for (tag, name, pixels) in samples {
        let n = pixels.array.header.shape[0];
        let label = labels.iter().position(|(known, _)| *known == tag);
        let label = label.map(|at| labels.swap_remove(at).1);
        if let Some(label) = &label
            && label.header.shape.first() != Some(&n)
        {
            let n_labels = label.header.shape.first().copied().unwrap_or(0);
            return Err(label.bad(format!("it has {n_labels} rows, and the pictures {n}")));
        }
        let folder = gather.listing.names.folder(&format!("{name}#"));
        let split = tag.unwrap_or(Tag::Unsaid);
        let mut failed = None;
        let mut add = |row: usize, label: Option<&str>| {
            gather.listing.names.push(folder, &row.to_string());
            let place = Place {
                at: base + row as u64,
                len: 0,
            };
            if let Err(error) = gather.add_rest(label, split, place) {
                failed.get_or_insert(error);
            }
        };
        match &label {
            Some(label) => label_texts(label, |row, text| add(row, Some(text)))?,
            None if request.options.unlabelled == Unlabelled::LeaveOut => {
                return Err(bad(
                    source,
                    format!(
                        "there are no labels beside `{name}`, such as {}",
                        label_example(&name)
                    ),
                ));
            }
            None => (0..n).for_each(|row| add(row, None)),
        }
        if let Some(error) = failed {
            return Err(error);
        }
        bases.push(base);
        base += n as u64;
        arrays.push(pixels);
    }
    let gathered = gather.finish()?;
    Ok(Parts::new(gathered, Backing::Pixels(Pixels { arrays, bases })))
}

fn of_npz(source: &Path) -> Result<Vec<Named>, Error> {
    let name = super::file_name(source);
    let arrays = open_npz(source, |name| of_name(name).is_some())?;
    let named = |array: ArrayFile| {
        let member = array.member.clone()?;
        let (role, tag) = of_name(&member)?;
        Some(Named {
            array,
            role,
            tag,
            name: format!("{name}/{member}"),
        })
    };
    Ok(arrays.into_iter().filter_map(named).collect())
}

fn of_folder(source: &Path) -> Result<Vec<Named>, Error> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(source).map_err(FileError::at("read", source))? {
        let path = entry.map_err(FileError::at("read", source))?.path();
        if path
            .extension()
            .is_some_and(|ending| ending.eq_ignore_ascii_case("npy"))
        {
            paths.push(path);
        }
    }
    paths.sort();
    let mut all = Vec::new();
    for path in paths {
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        if let Some((role, tag)) = stem.as_deref().and_then(of_name) {
            all.push(Named {
                array: ArrayFile::open(&path)?,
                role,
                tag,
                name: super::file_name(&path),
            });
        }
    }
    Ok(all)
}

/// The array, whatever it is called, and the labels that go with its name.
fn of_file(source: &Path) -> Result<Vec<Named>, Error> {
    let mut all = vec![Named {
        array: ArrayFile::open(source)?,
        role: Role::Samples,
        tag: None,
        name: super::file_name(source),
    }];
    if let Some(labels) = label_names(source).into_iter().find(|path| path.is_file()) {
        all.push(Named {
            array: ArrayFile::open(&labels)?,
            role: Role::Labels,
            tag: None,
            name: super::file_name(&labels),
        });
    }
    Ok(all)
}

/// What the labels of an array may be called: `y_a` for `X_a`, `a_labels` for `a_images`, then `y`, then `labels`.
fn label_names(samples: &Path) -> Vec<PathBuf> {
    let stem = samples
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned())
        .unwrap_or_default();
    let mut names = Vec::new();
    for (from, to) in [
        ("X", "y"),
        ("x", "y"),
        ("images", "labels"),
        ("image", "label"),
        ("data", "labels"),
    ] {
        let words: Vec<&str> = stem
            .split('_')
            .map(|word| if word == from { to } else { word })
            .collect();
        let name = words.join("_");
        if name != stem {
            names.push(name);
        }
    }
    names.extend([format!("{stem}_labels"), "y".to_owned(), "labels".to_owned()]);
    names
        .into_iter()
        .map(|name| samples.with_file_name(format!("{name}.npy")))
        .collect()
}

fn label_example(name: &str) -> String {
    match name.split_once('/') {
        Some((_, member)) if member.contains("train") => "`y_train`".to_owned(),
        Some(_) => "`y`".to_owned(),
        None => {
            let first = label_names(Path::new(name))
                .into_iter()
                .next()
                .unwrap_or_default();
            format!("`{}`", first.display())
        }
    }
}

impl PixelArray {
    fn new(array: ArrayFile) -> Result<PixelArray, Error> {
        let shape = &array.header.shape;
        let (height, width, channels) = match shape[..] {
            [_, height, width] => (height, width, 1),
            [_, height, width, channels @ (1 | 3)] => (height, width, channels),
            [_, 1 | 3, _, _] => {
                return Err(array.bad(format!(
                    "its shape {shape:?} has the channels first; save array.transpose(0, 2, 3, 1) of it"
                )));
            }
            _ => {
                return Err(array.bad(format!(
                    "pictures are [N, H, W, 3] or [N, H, W], and this array is {shape:?}"
                )));
            }
        };
        if array.header.kind != "u1" {
            return Err(array.bad(format!(
                "pictures are uint8, and this array is `{}`",
                array.header.kind
            )));
        }
        if array.header.is_fortran {
            return Err(array.bad("it is in Fortran order; save numpy.ascontiguousarray of it"));
        }
        let n_pixels = height.checked_mul(width);
        if n_pixels.is_none_or(|n| n == 0 || n > crate::image::Pixels::MAX_PIXELS) {
            return Err(array.bad(format!("pictures of {width} x {height} pixels are not read")));
        }
        Ok(PixelArray {
            array,
            height,
            width,
            channels,
        })
    }
}

impl Pixels {
    /// The pixels of a row into `rgb`; their width and height.
    ///
    /// # Errors
    /// Why they cannot be read, in one sentence.
    pub(super) fn read(
        &self,
        row: u64,
        rgb: &mut Vec<u8>,
        grey: &mut Vec<u8>,
    ) -> Result<(usize, usize), String> {
        let at = self.bases.partition_point(|base| *base <= row).saturating_sub(1);
        let pixels = self.arrays.get(at).ok_or("there is no such row")?;
        let n_bytes = pixels.height * pixels.width * pixels.channels;
        let offset = (row - self.bases[at]).saturating_mul(n_bytes as u64);
        let buffer = if pixels.channels == 3 {
            &mut *rgb
        } else {
            &mut *grey
        };
        buffer.resize(n_bytes, 0);
        pixels
            .array
            .read_at(offset, buffer)
            .map_err(|error| format!("it cannot be read: {error}"))?;
        if pixels.channels == 1 {
            rgb.clear();
            rgb.extend(grey.iter().flat_map(|value| [*value; 3]));
        }
        Ok((pixels.width, pixels.height))
    }
}
