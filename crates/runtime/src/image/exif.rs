//! Which way up a picture is: the EXIF orientation, found as Pillow finds it, and the turn that it asks for.

use super::bytes::slice;
use super::decode::Pixels;
use super::resize::PIXEL;

/// One of the eight orientations of the EXIF standard, 1 being upright.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Orientation(u8);

impl Orientation {
    /// The orientation that a JPEG, PNG or WebP file states; none where it is upright or nothing is said.
    ///
    /// XMP counts where EXIF says nothing, as in `PIL.Image.getexif`. Bytes that make no sense say nothing.
    pub(super) fn of(bytes: &[u8]) -> Option<Orientation> {
        let (exif, xmp) = match bytes {
            [0xff, 0xd8, ..] => jpeg_blocks(bytes),
            [0x89, b'P', b'N', b'G', ..] => png_blocks(bytes),
            [b'R', b'I', b'F', b'F', ..] => webp_blocks(bytes),
            _ => (None, None),
        };
        let said = exif.and_then(from_exif).or_else(|| xmp.and_then(from_xmp));
        said.filter(|orientation| (2..=8).contains(orientation))
            .map(Orientation)
    }

    /// Width and height after the turn.
    pub(super) fn size(self, (width, height): (usize, usize)) -> (usize, usize) {
        if self.0 >= 5 {
            (height, width)
        } else {
            (width, height)
        }
    }

    /// The picture the right way up (`PIL.ImageOps.exif_transpose`).
    pub(super) fn apply(self, source: &Pixels) -> Pixels {
        let (w, h) = (source.width, source.height);
        let (width, height) = self.size((w, h));
        let mut data = Vec::with_capacity(width * height * PIXEL + Pixels::PADDING);
        for y in 0..height {
            for x in 0..width {
                let (from_x, from_y) = match self.0 {
                    2 => (w - 1 - x, y),
                    3 => (w - 1 - x, h - 1 - y),
                    4 => (x, h - 1 - y),
                    5 => (y, x),
                    6 => (y, h - 1 - x),
                    7 => (w - 1 - y, h - 1 - x),
                    8 => (w - 1 - y, x),
                    _ => (x, y),
                };
                let at = (from_y * w + from_x) * PIXEL;
                data.extend_from_slice(&source.data[at..at + PIXEL]);
            }
        }
        data.resize(data.len() + Pixels::PADDING, 0);
        Pixels { width, height, data }
    }
}

type Blocks<'b> = (Option<&'b [u8]>, Option<&'b [u8]>);

fn jpeg_blocks(bytes: &[u8]) -> Blocks<'_> {
    const XMP: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
    let (mut exif, mut xmp) = (None, None);
    let mut at = 2;
    while let Some(&[0xff, marker]) = bytes.get(at..at + 2) {
        match marker {
            // Fill bytes, and markers without a length.
            0xff => {
                at += 1;
                continue;
            }
            0x01 | 0xd0..=0xd8 => {
                at += 2;
                continue;
            }
            0xd9 | 0xda => break,
            _ => {}
        }
        let Some(&[high, low]) = bytes.get(at + 2..at + 4) else {
            break;
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let Some(body) = length
            .checked_sub(2)
            .and_then(|length| bytes.get(at + 4..at + 4 + length))
        else {
            break;
        };
        if marker == 0xe1 && body.starts_with(b"Exif\0\0") {
            exif = exif.or(body.get(6..));
        } else if marker == 0xe1 && body.starts_with(XMP) {
            xmp = body.get(XMP.len()..);
        }
        at += 2 + length;
    }
    (exif, xmp)
}

fn png_blocks(bytes: &[u8]) -> Blocks<'_> {
    let (mut exif, mut xmp) = (None, None);
    let mut at = 8;
    while let (Ok(head), kind) = (slice(bytes, at, 4), bytes.get(at + 4..at + 8)) {
        let length = head
            .iter()
            .fold(0usize, |length, &byte| length << 8 | usize::from(byte));
        let Ok(body) = slice(bytes, at + 8, length) else {
            break;
        };
        match kind {
            Some(b"eXIf") => exif = Some(body.strip_prefix(b"Exif\0\0").unwrap_or(body)),
            Some(b"iTXt") if body.starts_with(b"XML:com.adobe.xmp\0") => xmp = Some(body),
            _ => {}
        }
        at += length + 12;
    }
    (exif, xmp)
}

fn webp_blocks(bytes: &[u8]) -> Blocks<'_> {
    let (mut exif, mut xmp) = (None, None);
    let mut at = 12;
    while let (Some(kind), Ok(size)) = (bytes.get(at..at + 4), super::bytes::u32_le(bytes, at + 4)) {
        let size = size as usize;
        let Ok(body) = slice(bytes, at + 8, size) else {
            break;
        };
        match kind {
            b"EXIF" => exif = Some(body.strip_prefix(b"Exif\0\0").unwrap_or(body)),
            b"XMP " => xmp = Some(body),
            _ => {}
        }
        at += 8 + size + size % 2;
    }
    (exif, xmp)
}

/// The tag 0x0112 of the first directory of a TIFF.
fn from_exif(tiff: &[u8]) -> Option<u8> {
    const ORIENTATION: u16 = 0x0112;
    let big_endian = match tiff.get(..2)? {
        b"II" => false,
        b"MM" => true,
        _ => return None,
    };
    let number = |at: usize, count: usize| -> Option<u32> {
        let bytes = slice(tiff, at, count).ok()?;
        let step = |value: u32, &byte: &u8| value << 8 | u32::from(byte);
        Some(if big_endian {
            bytes.iter().fold(0, step)
        } else {
            bytes.iter().rev().fold(0, step)
        })
    };
    let directory = number(4, 4)? as usize;
    let n_entries = number(directory, 2)? as usize;
    (0..n_entries)
        .map_while(|entry| {
            let at = directory.checked_add(2 + entry * 12)?;
            Some((at, number(at, 2)?))
        })
        .find(|(_, tag)| *tag == u32::from(ORIENTATION))
        .and_then(|(at, _)| {
            let (kind, count) = (number(at + 2, 2)?, number(at + 4, 4)?);
            let value = match (kind, count) {
                (1, 1) => number(at + 8, 1)?,
                (3, 1) => number(at + 8, 2)?,
                (4, 1) => number(at + 8, 4)?,
                _ => return None,
            };
            u8::try_from(value).ok()
        })
}

/// The digit behind `tiff:Orientation="` or `tiff:Orientation>`.
fn from_xmp(xmp: &[u8]) -> Option<u8> {
    const NAME: &[u8] = b"tiff:Orientation";
    xmp.windows(NAME.len())
        .enumerate()
        .filter(|(_, window)| *window == NAME)
        .find_map(|(at, _)| {
            let rest = &xmp[at + NAME.len()..];
            let rest = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?;
            rest.first()
                .filter(|digit| digit.is_ascii_digit())
                .map(|digit| digit - b'0')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiff(big_endian: bool, kind: u8, count: u8, value: u8) -> Vec<u8> {
        let mut bytes = if big_endian {
            b"MM\0*\0\0\0\x08\0\x01".to_vec()
        } else {
            b"II*\0\x08\0\0\0\x01\0".to_vec()
        };
        bytes.extend(if big_endian {
            [1, 0x12, 0, kind, 0, 0, 0, count, 0, value, 0, 0]
        } else {
            [0x12, 1, kind, 0, count, 0, 0, 0, value, 0, 0, 0]
        });
        bytes
    }

    #[test]
    fn both_byte_orders_and_nonsense() {
        assert_eq!(from_exif(&tiff(false, 3, 1, 6)), Some(6));
        assert_eq!(from_exif(&tiff(true, 3, 1, 8)), Some(8));
        assert_eq!(from_exif(&tiff(false, 2, 1, 6)), None);
        assert_eq!(from_exif(&tiff(false, 3, 2, 6)), None);
        let whole = tiff(true, 3, 1, 8);
        for end in 0..whole.len() {
            // Cut anywhere, it says nothing or the same.
            assert!(matches!(from_exif(&whole[..end]), None | Some(8)));
        }
        assert_eq!(from_exif(b"II*\0\xff\xff\xff\xff"), None);
    }

    #[test]
    fn xmp_counts_where_exif_is_silent() {
        assert_eq!(from_xmp(b"<x tiff:Orientation=\"3\"/>"), Some(3));
        assert_eq!(from_xmp(b"<tiff:Orientation>7</tiff:Orientation>"), Some(7));
        assert_eq!(from_xmp(b"tiff:Orientation='3'"), None);
        assert_eq!(from_xmp(b"tiff:Orientation"), None);
    }

    #[test]
    fn turns_and_their_sizes() {
        let rgb: Vec<u8> = (0..6).flat_map(|pixel| [pixel, 0, 0]).collect();
        let source = Pixels::from_rgb(3, 2, &rgb).unwrap();
        let reds = |orientation: u8| -> Vec<u8> {
            let turned = Orientation(orientation).apply(&source);
            assert_eq!(
                (turned.width, turned.height),
                Orientation(orientation).size((3, 2))
            );
            turned.to_rgb().chunks(3).map(|pixel| pixel[0]).collect()
        };
        // 0 1 2 / 3 4 5, turned by Pillow.
        assert_eq!(reds(2), [2, 1, 0, 5, 4, 3]);
        assert_eq!(reds(3), [5, 4, 3, 2, 1, 0]);
        assert_eq!(reds(4), [3, 4, 5, 0, 1, 2]);
        assert_eq!(reds(5), [0, 3, 1, 4, 2, 5]);
        assert_eq!(reds(6), [3, 0, 4, 1, 5, 2]);
        assert_eq!(reds(7), [5, 2, 4, 1, 3, 0]);
        assert_eq!(reds(8), [2, 5, 1, 4, 0, 3]);
    }
}
