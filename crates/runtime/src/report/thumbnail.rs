//! Small pictures inside the page.

use png::{BitDepth, ColorType, Compression, Encoder};

use crate::data::Content;
use crate::image::{Crop, Pixels, Preprocess, Resize, decode};

/// The longer side of a thumbnail.
const SIDE: usize = 96;

/// A picture as a `data:` URI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thumbnail {
    uri: String,
}

impl Thumbnail {
    /// A sample's picture, at most 96 pixels wide and high; none of a text, or of a picture that cannot be decoded.
    pub fn of(content: &Content<'_>) -> Option<Thumbnail> {
        let pixels = match content {
            Content::Encoded(bytes) => decode(bytes).ok()?,
            Content::Pixels { width, height, rgb } => Pixels::from_rgb(*width, *height, rgb).ok()?,
            Content::Text(_) => return None,
        };
        let pixels = shrunk(&pixels);
        Thumbnail::png(
            pixels.width(),
            pixels.height(),
            ColorType::Rgb,
            &[],
            &pixels.to_rgb(),
        )
    }

    /// A picture whose pixels are shades of one colour, from nothing to all of it; `shades` row by row.
    pub(super) fn shades(width: usize, height: usize, shades: &[u8]) -> Option<Thumbnail> {
        Thumbnail::png(width, height, ColorType::Indexed, &[70, 130, 220], shades)
    }

    /// `colour` is that of all entries of the palette, whose opacities are their numbers.
    fn png(width: usize, height: usize, kind: ColorType, colour: &[u8], data: &[u8]) -> Option<Thumbnail> {
        let mut file = Vec::new();
        let mut encoder = Encoder::new(&mut file, u32::try_from(width).ok()?, u32::try_from(height).ok()?);
        encoder.set_color(kind);
        encoder.set_depth(BitDepth::Eight);
        encoder.set_compression(Compression::High);
        if kind == ColorType::Indexed {
            encoder.set_palette(colour.repeat(256));
            encoder.set_trns((0..=255).collect::<Vec<u8>>());
        }
        let mut writer = encoder.write_header().ok()?;
        writer.write_image_data(data).ok()?;
        writer.finish().ok()?;
        Some(Thumbnail {
            uri: format!("data:image/png;base64,{}", base64(&file)),
        })
    }

    /// `data:image/png;base64,…`
    pub fn uri(&self) -> &str {
        &self.uri
    }
}

/// The picture with its longer side at most [`SIDE`].
fn shrunk(pixels: &Pixels) -> Pixels {
    let (width, height) = (pixels.width(), pixels.height());
    let longer = width.max(height);
    if longer <= SIDE {
        return pixels.clone();
    }
    let scaled = |side: usize| (side * SIDE / longer).max(1);
    let preprocess = Preprocess {
        resize: Resize::Exact(scaled(height), scaled(width)),
        crop: Crop::Whole,
        ..Preprocess::imagenet()
    };
    preprocess.pixels(pixels, None)
}

/// RFC 4648.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let three = [chunk[0], *chunk.get(1).unwrap_or(&0), *chunk.get(2).unwrap_or(&0)];
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for digit in 0..4 {
            let is_there = digit <= chunk.len();
            let at = (bits >> (18 - 6 * digit)) as usize & 63;
            text.push(if is_there { char::from(DIGITS[at]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    #[test]
    fn base64_is_rfc_4648s() {
        let pairs = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, encoded) in pairs {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

    #[test]
    fn a_picture_shrinks_to_its_place_and_what_is_none_has_none() {
        let rgb = [200, 100, 50].repeat(300 * 200);
        let content = Content::Pixels {
            width: 300,
            height: 200,
            rgb: Cow::Owned(rgb),
        };
        assert!(
            Thumbnail::of(&content)
                .unwrap()
                .uri()
                .starts_with("data:image/png;base64,iVBORw0KGgo")
        );
        let pixels = Pixels::from_rgb(300, 200, &[200, 100, 50].repeat(300 * 200)).unwrap();
        let small = shrunk(&pixels);
        assert_eq!((small.width(), small.height()), (96, 64));
        assert!(
            small
                .to_rgb()
                .chunks_exact(3)
                .all(|pixel| pixel == [200, 100, 50])
        );
        let strip = Pixels::from_rgb(1000, 2, &[9; 6000]).unwrap();
        assert_eq!((shrunk(&strip).width(), shrunk(&strip).height()), (96, 1));
        assert_eq!(Thumbnail::of(&Content::Text("cat".into())), None);
        assert_eq!(
            Thumbnail::of(&Content::Encoded(Cow::Borrowed(b"no picture"))),
            None
        );
    }
}
