//! Encoded bytes to pixels, by content and never by file name.

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
    /// Neither of the formats that are read; says what it looks like instead.
    #[error("not a JPEG or PNG picture: {0}")]
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
        match width.checked_mul(height) {
            Some(n) if n > 0 && n <= Pixels::MAX_PIXELS => Ok(Pixels {
                width,
                height,
                data: vec![0; n * 4 + Pixels::PADDING],
            }),
            Some(0) => Err(DecodeError::Damaged("it has no pixels".to_owned())),
            _ => Err(DecodeError::TooLarge { width, height }),
        }
    }

    /// Pixels that are there already: `rgb` holds `[height, width, 3]` bytes.
    ///
    /// # Errors
    /// Another number of bytes than that, none, or more pixels than [`Pixels::MAX_PIXELS`].
    pub fn from_rgb(width: usize, height: usize, rgb: &[u8]) -> Result<Pixels, DecodeError> {
        let mut pixels = Pixels::new(width, height)?;
        if rgb.len() != width * height * 3 {
            let reason = format!("{} bytes are not {width} x {height} pixels", rgb.len());
            return Err(DecodeError::Damaged(reason));
        }
        for (to, from) in pixels.data.chunks_exact_mut(4).zip(rgb.chunks_exact(3)) {
            to[..3].copy_from_slice(from);
        }
        Ok(pixels)
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

/// Decodes a JPEG or PNG picture to what Pillow's `Image.open(…).convert("RGB")` gives.
///
/// # Errors
/// A [`DecodeError`] where Pillow would raise.
pub fn decode(bytes: &[u8]) -> Result<Pixels, DecodeError> {
    match bytes {
        [] => Err(DecodeError::Empty),
        [0xff, 0xd8, 0xff, ..] => super::jpeg::decode(bytes),
        [0x89, b'P', b'N', b'G', ..] => super::png::decode(bytes),
        _ => Err(DecodeError::UnknownFormat(looks_like(bytes))),
    }
}

fn looks_like(bytes: &[u8]) -> &'static str {
    let start = bytes.trim_ascii_start();
    match bytes {
        _ if start.starts_with(b"<") => "it starts like an HTML or XML page",
        _ if bytes.starts_with(b"version https://git-lfs") => "it is a Git LFS pointer",
        [b'G', b'I', b'F', b'8', ..] => "it is a GIF",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "it is a WebP",
        [b'B', b'M', ..] => "it is a BMP",
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => "it is a TIFF",
        [b'P', b'K', 3, 4, ..] => "it is a zip archive",
        _ => "its first bytes are of neither",
    }
}
