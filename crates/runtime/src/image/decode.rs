//! Encoded bytes to pixels, by content and never by file name.

use std::borrow::Cow;
use std::ops::Range;

use super::exif::Orientation;
use super::resize::PIXEL;
use super::room::ROOM;
use super::{bmp, gif, jpeg, png, pnm, webp};

/// Eight-bit pixels, four bytes each (red, green, blue, unused), rows top down.
///
/// The fourth byte makes a pixel a 32-bit lane; its value is meaningless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pixels {
    pub(super) width: usize,
    pub(super) height: usize,
    /// `height * width * 4` bytes and [`Pixels::PADDING`] more, so that a vector load at the last pixel stays inside.
    pub(super) data: Vec<u8>,
}

/// Why a picture has no pixels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The file is empty.
    #[error("the file is empty")]
    Empty,
    /// None of the formats that are read; says what it looks like instead.
    #[error("not a JPEG, PNG, WebP, GIF, BMP or PNM picture: {0}")]
    UnknownFormat(&'static str),
    /// The data ends before the last row.
    #[error("the picture is truncated")]
    Truncated,
    /// The decoder's own words.
    #[error("the picture is damaged: {0}")]
    Damaged(String),
    /// More pixels than Pillow would open (its decompression-bomb limit).
    #[error("{width} x {height} pixels are over the limit of {}", Pixels::MAX_PIXELS)]
    TooLarge {
        /// Columns that the header claims.
        width: usize,
        /// Rows that the header claims.
        height: usize,
    },
}

impl Pixels {
    /// Twice Pillow's `MAX_IMAGE_PIXELS`, beyond which it refuses.
    pub const MAX_PIXELS: usize = 2 * 89_478_485;
    /// One 16-byte load may start at the last pixel of a row.
    pub(super) const PADDING: usize = 32;

    /// Room for `width * height` pixels; the limit is checked before anything is allocated.
    pub(super) fn new(width: usize, height: usize) -> Result<Pixels, DecodeError> {
        let n_pixels = Pixels::check_size(width, height)?;
        Ok(Pixels {
            width,
            height,
            data: vec![0; n_pixels * PIXEL + Pixels::PADDING],
        })
    }

    /// The number of pixels of a picture whose header claims this size, where it is one that is decoded.
    pub(super) fn check_size(width: usize, height: usize) -> Result<usize, DecodeError> {
        match width.checked_mul(height) {
            Some(0) => Err(DecodeError::Damaged("it has no pixels".to_owned())),
            Some(n_pixels) if n_pixels <= Pixels::MAX_PIXELS => Ok(n_pixels),
            _ => Err(DecodeError::TooLarge { width, height }),
        }
    }

    /// Pixels from red, green and blue of each, row by row.
    ///
    /// # Errors
    /// [`DecodeError::TooLarge`] and [`DecodeError::Damaged`] where `rgb` does not hold `width * height * 3` bytes.
    pub fn from_rgb(width: usize, height: usize, rgb: &[u8]) -> Result<Pixels, DecodeError> {
        let n_pixels = Pixels::check_size(width, height)?;
        if rgb.len() != n_pixels * 3 {
            return Err(DecodeError::Damaged(format!(
                "{} bytes are not {width} x {height} pixels of three",
                rgb.len()
            )));
        }
        let mut pixels = Pixels::new(width, height)?;
        for (pixel, rgb) in pixels.data.chunks_exact_mut(PIXEL).zip(rgb.chunks_exact(3)) {
            pixel[..3].copy_from_slice(rgb);
        }
        Ok(pixels)
    }

    /// The rows, top down.
    pub(super) fn rows_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.data.chunks_exact_mut(self.width * PIXEL).take(self.height)
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Red, green and blue of all pixels, row by row, as Pillow's `convert("RGB").tobytes()` gives them.
    pub fn to_rgb(&self) -> Vec<u8> {
        let pixels = &self.data[..self.width * self.height * 4];
        pixels
            .chunks_exact(4)
            .flat_map(|pixel| [pixel[0], pixel[1], pixel[2]])
            .collect()
    }
}

/// Decodes a picture to what Pillow's `Image.open(…).convert("RGB")` gives.
///
/// # Errors
/// A [`DecodeError`] where Pillow would raise.
pub fn decode(bytes: &[u8]) -> Result<Pixels, DecodeError> {
    Picture::open(bytes)?.into_pixels()
}

/// Columns and rows of a picture, as its header claims them.
///
/// # Errors
/// As [`decode`], for what the header shows.
pub fn size(bytes: &[u8]) -> Result<(usize, usize), DecodeError> {
    Picture::open(bytes).map(|picture| picture.size())
}

/// A picture whose header has been read. JPEG and PNG give their rows on demand; what has no rows to give one by one is
/// decoded whole.
pub(super) enum Picture<'b> {
    Jpeg(jpeg::Reader<'b>),
    Png(Box<png::Reader<'b>>),
    /// Known by its size only, until its pixels are asked for.
    Deferred {
        size: (usize, usize),
        bytes: &'b [u8],
        decode: fn(&[u8]) -> Result<Pixels, DecodeError>,
    },
    /// To be turned the right way up.
    Turned(Box<Picture<'b>>, Orientation),
    Whole(Cow<'b, Pixels>),
}

impl<'b> Picture<'b> {
    pub(super) fn open(bytes: &'b [u8]) -> Result<Picture<'b>, DecodeError> {
        type Decode = fn(&[u8]) -> Result<Pixels, DecodeError>;
        let (size, decode) = match bytes {
            [] => return Err(DecodeError::Empty),
            [0xff, 0xd8, 0xff, ..] => return jpeg::Reader::open(bytes).map(Picture::Jpeg),
            [0x89, b'P', b'N', b'G', ..] => return png::Reader::open(bytes).map(Box::new).map(Picture::Png),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => (gif::size(bytes)?, gif::decode as Decode),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => {
                (webp::size(bytes)?, webp::decode as Decode)
            }
            [b'B', b'M', ..] => (bmp::size(bytes)?, bmp::decode as Decode),
            [b'P', b'1'..=b'6', space, ..] if space.is_ascii_whitespace() || *space == 11 => {
                (pnm::size(bytes)?, pnm::decode as Decode)
            }
            _ => return Err(DecodeError::UnknownFormat(looks_like(bytes))),
        };
        Pixels::check_size(size.0, size.1)?;
        Ok(Picture::Deferred { size, bytes, decode })
    }

    pub(super) fn size(&self) -> (usize, usize) {
        match self {
            Picture::Jpeg(reader) => reader.size(),
            Picture::Png(reader) => reader.size(),
            Picture::Deferred { size, .. } => *size,
            Picture::Turned(picture, orientation) => orientation.size(picture.size()),
            Picture::Whole(pixels) => (pixels.width, pixels.height),
        }
    }

    /// Bytes that [`rows`](Picture::rows) holds at once of a picture that does not come row by row.
    fn n_held_bytes(&self) -> usize {
        /// What decoders make first has at most as much.
        const DEFERRED: usize = 2 * PIXEL;
        let (width, height) = self.size();
        match self {
            Picture::Jpeg(reader) => reader.n_held_bytes(),
            Picture::Png(reader) => reader.n_held_bytes(),
            Picture::Deferred { .. } => width * height * DEFERRED,
            // As it lay, and turned.
            Picture::Turned(picture, _) => width * height * 2 * PIXEL + picture.n_held_bytes(),
            Picture::Whole(_) => 0,
        }
    }

    pub(super) fn into_pixels(self) -> Result<Pixels, DecodeError> {
        let (width, height) = self.size();
        match self {
            Picture::Deferred { bytes, decode, .. } => return decode(bytes),
            Picture::Turned(picture, orientation) => {
                return picture.into_pixels().map(|pixels| orientation.apply(&pixels));
            }
            Picture::Whole(pixels) => return Ok(pixels.into_owned()),
            Picture::Jpeg(_) | Picture::Png(_) => {}
        }
        let mut pixels = Pixels::new(width, height)?;
        let stride = width * PIXEL;
        match self {
            Picture::Jpeg(mut reader) => {
                reader.start(0..width)?;
                let mut row = 0;
                while row < height {
                    let out = &mut pixels.data[row * stride..height * stride];
                    row += reader.next(out, stride, height - row)?;
                }
            }
            Picture::Png(mut reader) => {
                for out in pixels.data.chunks_exact_mut(stride).take(height) {
                    reader.next(out)?;
                }
            }
            Picture::Deferred { .. } | Picture::Turned(..) | Picture::Whole(_) => {}
        }
        Ok(pixels)
    }

    /// Gives `sink` the rows `rows`, some at a time (bytes, stride, count), each from some column at or before
    /// `columns.start` (which it is told last) to some column at or behind `columns.end`; reads all the others too, for
    /// what is wrong with them.
    pub(super) fn rows(
        self,
        rows: Range<usize>,
        columns: Range<usize>,
        slack: usize,
        buffer: &mut Vec<u8>,
        sink: &mut impl FnMut(&[u8], usize, usize, usize),
    ) -> Result<(), DecodeError> {
        /// Enough to filter several at once, few enough to stay in the cache.
        const AT_ONCE: usize = 8;
        let _room = ROOM.take(self.n_held_bytes());
        match self {
            Picture::Jpeg(mut reader) => {
                let held = reader.start(columns)?;
                let stride = held.len() * PIXEL + slack;
                buffer.resize(AT_ONCE * stride, 0);
                reader.skip(rows.start)?;
                let mut row = rows.start;
                while row < rows.end {
                    let n_rows = (rows.end - row).min(AT_ONCE);
                    let mut n_read = 0;
                    while n_read < n_rows {
                        n_read += reader.next(&mut buffer[n_read * stride..], stride, n_rows - n_read)?;
                    }
                    sink(buffer, stride, n_rows, held.start);
                    row += n_rows;
                }
                reader.finish()
            }
            Picture::Png(mut reader) => {
                let stride = columns.end * PIXEL + slack;
                buffer.resize(AT_ONCE * stride, 0);
                reader.skip(rows.start)?;
                let mut row = rows.start;
                while row < rows.end {
                    let n_rows = (rows.end - row).min(AT_ONCE);
                    for out in buffer.chunks_exact_mut(stride).take(n_rows) {
                        reader.next(&mut out[..columns.end * PIXEL])?;
                    }
                    sink(buffer, stride, n_rows, 0);
                    row += n_rows;
                }
                reader.finish()
            }
            Picture::Deferred { .. } | Picture::Turned(..) => {
                let pixels = Picture::Whole(Cow::Owned(self.into_pixels()?));
                pixels.rows(rows, columns, slack, buffer, sink)
            }
            Picture::Whole(pixels) => {
                let stride = pixels.width * PIXEL;
                for row in rows.clone().step_by(AT_ONCE) {
                    let n_rows = (rows.end - row).min(AT_ONCE);
                    sink(&pixels.data[row * stride..], stride, n_rows, 0);
                }
                Ok(())
            }
        }
    }
}

fn looks_like(bytes: &[u8]) -> &'static str {
    let start = bytes
        .strip_prefix(b"\xef\xbb\xbf")
        .unwrap_or(bytes)
        .trim_ascii_start();
    let brand = |wanted: &[&[u8]]| {
        bytes.get(4..8) == Some(b"ftyp") && bytes.get(8..12).is_some_and(|b| wanted.contains(&b))
    };
    match bytes {
        _ if start.starts_with(b"<svg") => "it is an SVG drawing",
        _ if start.starts_with(b"<") => "it starts like an HTML or XML page",
        _ if start.starts_with(b"{") || start.starts_with(b"[") => "it starts like JSON",
        _ if bytes.starts_with(b"version https://git-lfs") => "it is a Git LFS pointer",
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => "it is a TIFF",
        [0xff, 0x4f, 0xff, 0x51, ..] | [0, 0, 0, 12, b'j', b'P', ..] => "it is a JPEG 2000 picture",
        [0xff, 0x0a, ..] | [0, 0, 0, 12, b'J', b'X', b'L', ..] => "it is a JPEG XL picture",
        _ if brand(&[b"avif", b"avis"]) => "it is an AVIF picture",
        _ if brand(&[b"heic", b"heix", b"mif1", b"msf1"]) => "it is a HEIF picture",
        _ if bytes.get(4..8) == Some(b"ftyp") => "it is an MP4 film",
        [0, 0, 1 | 2, 0, ..] => "it is a Windows icon",
        [b'8', b'B', b'P', b'S', ..] => "it is a Photoshop document",
        [b'%', b'P', b'D', b'F', ..] => "it is a PDF",
        [b'P', b'K', 3, 4, ..] => "it is a zip archive",
        [0x1f, 0x8b, ..] => "it is a gzip file",
        [b'P', b'7' | b'F' | b'f', b'\n', ..] => "it is a PAM or PFM picture",
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => "it is a NumPy array",
        _ if bytes.iter().take(1024).all(|&byte| byte == 0) => "it is all zeros",
        _ => "its first bytes are of none of them",
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    fn fixtures(folder: &str) -> Vec<PathBuf> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../fixtures/pictures")
            .join(folder);
        let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file() && path.extension().is_some_and(|extension| extension != "json"))
            .collect();
        paths.sort();
        paths
    }

    /// What `rows` gives of a part, against the same part of the whole picture.
    fn check_part(bytes: &[u8], whole: &Pixels, rows: Range<usize>, columns: Range<usize>, what: &str) {
        let mut next = rows.start;
        let picture = Picture::open(bytes).unwrap();
        picture
            .rows(
                rows.clone(),
                columns.clone(),
                48,
                &mut Vec::new(),
                &mut |bytes, stride, n_rows, first_column| {
                    assert!(first_column <= columns.start, "{what}");
                    for row in 0..n_rows {
                        let row = &bytes[row * stride..];
                        let got = &row
                            [(columns.start - first_column) * PIXEL..(columns.end - first_column) * PIXEL];
                        let start = (next * whole.width + columns.start) * PIXEL;
                        let want = &whole.data[start..start + got.len()];
                        for (x, (got, want)) in got.chunks(PIXEL).zip(want.chunks(PIXEL)).enumerate() {
                            assert_eq!(
                                got[..3],
                                want[..3],
                                "{what}: row {next}, column {}",
                                columns.start + x
                            );
                        }
                        next += 1;
                    }
                },
            )
            .unwrap();
        assert_eq!(next, rows.end, "{what}");
    }

    #[test]
    fn parts_of_a_picture_equal_the_whole() {
        let mut n_cut = 0;
        for path in fixtures("") {
            let bytes = std::fs::read(&path).unwrap();
            let whole = decode(&bytes).unwrap();
            let (w, h) = (whole.width, whole.height);
            // Every start and end modulo the units of the samplings, 8 to 32 columns and rows.
            for step in 0..40 {
                let rows = (step * 7 % h)..h - (step * 5 % (h - step * 7 % h));
                let columns = (step * 11 % w)..w - (step * 13 % (w - step * 11 % w));
                let what = format!("{} rows {rows:?} columns {columns:?}", path.display());
                check_part(&bytes, &whole, rows.clone(), columns.clone(), &what);
                if let Ok(Picture::Jpeg(mut reader)) = Picture::open(&bytes) {
                    n_cut += usize::from(reader.start(columns).unwrap().len() < w);
                }
            }
        }
        assert!(n_cut > 400, "columns were left out only {n_cut} times");
    }

    #[test]
    fn hostile_bytes_never_panic() {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize
        };
        for path in fixtures("").into_iter().chain(fixtures("broken")) {
            let bytes = std::fs::read(&path).unwrap();
            for part in 0..24 {
                let _: Result<Pixels, DecodeError> = decode(&bytes[..bytes.len() * part / 24]);
            }
            for _ in 0..24 {
                let mut bytes = bytes.clone();
                for _ in 0..1 + random() % 6 {
                    // Headers are hit more often than their share.
                    let at = if random() % 2 == 0 {
                        random() % bytes.len().clamp(1, 64)
                    } else {
                        random() % bytes.len().max(1)
                    };
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = random() as u8;
                    }
                }
                // A damaged header may claim a hundred megapixels, which is allowed but slow.
                if size(&bytes).is_ok_and(|(w, h)| w * h < 4_000_000) {
                    let _: Result<Pixels, DecodeError> = decode(&bytes);
                    let _: Option<Orientation> = Orientation::of(&bytes);
                }
            }
        }
    }

    #[test]
    fn what_is_no_picture_is_named() {
        let check = |bytes: &[u8], message: &str| {
            let error = decode(bytes).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        check(b"", "the file is empty");
        check(b"\n <!DOCTYPE html><html>", "it starts like an HTML or XML page");
        check(b"\xef\xbb\xbf<html>", "it starts like an HTML or XML page");
        check(b"{\"error\": 404}", "it starts like JSON");
        check(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:",
            "it is a Git LFS pointer",
        );
        check(b"<svg xmlns", "it is an SVG drawing");
        check(b"II*\0\x08\0\0\0", "it is a TIFF");
        check(b"\0\0\0\x20ftypavif\0\0", "it is an AVIF picture");
        check(b"\0\0\0\x20ftypheic\0\0", "it is a HEIF picture");
        check(b"\0\0\0\x20ftypisom\0\0", "it is an MP4 film");
        check(b"%PDF-1.7", "it is a PDF");
        check(b"PK\x03\x04", "it is a zip archive");
        check(&[0; 4096], "it is all zeros");
        check(b"hello there", "its first bytes are of none of them");
    }
}
