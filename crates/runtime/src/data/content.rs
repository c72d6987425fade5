//! What a sample is made of, and what its content is called.

use std::borrow::Cow;

/// A sample as its source holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content<'a> {
    /// An encoded picture: the bytes of a JPEG, PNG and so on.
    Encoded(Cow<'a, [u8]>),
    /// A decoded picture, `[height, width, 3]` bytes.
    Pixels {
        /// Pixels in a row.
        width: usize,
        /// Rows.
        height: usize,
        /// Red, green, blue of each pixel, row by row.
        rgb: Cow<'a, [u8]>,
    },
    /// A text.
    Text(Cow<'a, str>),
}

impl Content<'_> {
    /// The content's own name, whatever the sample is called and wherever it lies: BLAKE3 of an encoded picture's bytes;
    /// of pixels and texts under contexts of their own, so that no two kinds share a name.
    pub fn id(&self) -> [u8; 32] {
        match self {
            Content::Encoded(bytes) => blake3::hash(bytes).into(),
            Content::Pixels { width, height, rgb } => {
                let mut hasher = blake3::Hasher::new_derive_key("graftwork 2026-11 content: pixels rgb8");
                hasher.update(&(*width as u64).to_le_bytes());
                hasher.update(&(*height as u64).to_le_bytes());
                hasher.update(rgb);
                hasher.finalize().into()
            }
            Content::Text(text) => {
                blake3::derive_key("graftwork 2026-11 content: text utf-8", text.as_bytes())
            }
        }
    }

    /// The same content with bytes of its own.
    pub fn into_owned(self) -> Content<'static> {
        match self {
            Content::Encoded(bytes) => Content::Encoded(Cow::Owned(bytes.into_owned())),
            Content::Pixels { width, height, rgb } => Content::Pixels {
                width,
                height,
                rgb: Cow::Owned(rgb.into_owned()),
            },
            Content::Text(text) => Content::Text(Cow::Owned(text.into_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_alone_decides_its_name() {
        let encoded = Content::Encoded(Cow::Borrowed(b"abc"));
        assert_eq!(encoded.id(), *blake3::hash(b"abc").as_bytes());
        let text = Content::Text(Cow::Borrowed("abc"));
        assert_ne!(text.id(), encoded.id());
        let pixels = |width, height| {
            let rgb = Cow::Borrowed(&[0; 12][..]);
            Content::Pixels { width, height, rgb }.id()
        };
        assert_ne!(pixels(2, 2), pixels(4, 1));
        assert_eq!(pixels(2, 2), pixels(2, 2));
    }
}
