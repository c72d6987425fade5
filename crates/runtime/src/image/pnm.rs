//! Portable bitmaps, greymaps and pixmaps (`P1` to `P6`), by the rules of Pillow's `PpmImagePlugin`.

use super::decode::{DecodeError, Pixels};
use super::resize::PIXEL;

struct Header {
    kind: u8,
    width: usize,
    height: usize,
    /// 1 for bitmaps.
    max: u32,
    data_at: usize,
}

pub(super) fn size(bytes: &[u8]) -> Result<(usize, usize), DecodeError> {
    Header::read(bytes).map(|header| (header.width, header.height))
}

pub(super) fn decode(bytes: &[u8]) -> Result<Pixels, DecodeError> {
    let header = Header::read(bytes)?;
    let n_pixels = Pixels::check_size(header.width, header.height)?;
    let data = bytes.get(header.data_at..).unwrap_or_default();
    let n_channels = if matches!(header.kind, b'3' | b'6') { 3 } else { 1 };
    // Each sample takes a bit at least, so that no room is taken for what cannot be there.
    if n_pixels / 8 > data.len() {
        return Err(DecodeError::Truncated);
    }
    let mut samples: Box<dyn Iterator<Item = Result<u32, DecodeError>>> = match header.kind {
        b'1' => Box::new(plain_bits(data)),
        b'2' | b'3' => Box::new(plain_numbers(data, header.max)),
        b'4' => Box::new(packed_bits(data, header.width)),
        _ if header.max < 256 => Box::new(data.iter().map(|&byte| Ok(u32::from(byte)))),
        _ => Box::new(
            data.chunks_exact(2)
                .map(|pair| Ok(u32::from(u16::from_be_bytes([pair[0], pair[1]])))),
        ),
    };
    let value = |sample: u32| -> u8 {
        match header.kind {
            b'1' | b'4' => {
                if sample == 0 {
                    255
                } else {
                    0
                }
            }
            // Greys of more than a byte become mode "I", which `convert("RGB")` clips.
            b'2' | b'5' if header.max > 255 => {
                u8::try_from(scaled(sample, header.max, 65_535)).unwrap_or(255)
            }
            _ => scaled(sample, header.max, 255) as u8,
        }
    };
    let mut pixels = Pixels::new(header.width, header.height)?;
    for pixel in pixels.data.chunks_exact_mut(PIXEL).take(n_pixels) {
        for channel in pixel.iter_mut().take(n_channels) {
            *channel = value(samples.next().ok_or(DecodeError::Truncated)??);
        }
        if n_channels == 1 {
            (pixel[1], pixel[2]) = (pixel[0], pixel[0]);
        }
    }
    Ok(pixels)
}

/// Python's `min(to, round(value / max * to))`.
fn scaled(value: u32, max: u32, to: u32) -> u32 {
    let exact = f64::from(value) / f64::from(max) * f64::from(to);
    (exact.round_ties_even() as u32).min(to)
}

/// Rows of bits, each padded to a byte, high bits first.
fn packed_bits(data: &[u8], width: usize) -> impl Iterator<Item = Result<u32, DecodeError>> {
    data.chunks(width.div_ceil(8)).flat_map(move |row| {
        // The last row may be cut short.
        let n_bits = width.min(row.len() * 8);
        (0..n_bits).map(|x| Ok(u32::from(row[x / 8] >> (7 - x % 8)) & 1))
    })
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// The bytes without comments.
fn without_comments(data: &[u8]) -> impl Iterator<Item = u8> {
    let mut in_comment = false;
    data.iter().copied().filter(move |&byte| {
        if in_comment {
            in_comment = !matches!(byte, b'\n' | b'\r');
            return false;
        }
        in_comment = byte == b'#';
        !in_comment
    })
}

fn plain_bits(data: &[u8]) -> impl Iterator<Item = Result<u32, DecodeError>> {
    without_comments(data)
        .filter(|&byte| !is_space(byte))
        .map(|byte| match byte {
            b'0' => Ok(0),
            b'1' => Ok(1),
            _ => Err(DecodeError::Damaged("a bit that is neither 0 nor 1".to_owned())),
        })
}

fn plain_numbers(data: &[u8], max: u32) -> impl Iterator<Item = Result<u32, DecodeError>> {
    let mut bytes = without_comments(data);
    std::iter::from_fn(move || {
        let mut token = String::new();
        for byte in bytes.by_ref() {
            if !is_space(byte) {
                token.push(char::from(byte));
            } else if !token.is_empty() {
                break;
            }
            if token.len() > 10 {
                break;
            }
        }
        if token.is_empty() {
            return None;
        }
        Some(match token.parse::<u32>() {
            Ok(value) if value <= max => Ok(value),
            _ => Err(DecodeError::Damaged(format!(
                "`{token}` is no number up to {max}"
            ))),
        })
    })
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Header, DecodeError> {
        let kind = bytes.get(1).copied().ok_or(DecodeError::Truncated)?;
        let mut at = 2;
        let mut number = || -> Result<u32, DecodeError> {
            let mut token = String::new();
            while let Some(&byte) = bytes.get(at) {
                at += 1;
                if byte == b'#' {
                    while let Some(&byte) = bytes.get(at) {
                        at += 1;
                        if matches!(byte, b'\n' | b'\r') {
                            break;
                        }
                    }
                } else if is_space(byte) {
                    if !token.is_empty() {
                        break;
                    }
                } else {
                    token.push(char::from(byte));
                }
                if token.len() > 10 {
                    break;
                }
            }
            if token.is_empty() {
                return Err(DecodeError::Truncated);
            }
            token
                .parse()
                .map_err(|_| DecodeError::Damaged(format!("`{token}` in its header is no number")))
        };
        let (width, height) = (number()? as usize, number()? as usize);
        let max = if matches!(kind, b'1' | b'4') { 1 } else { number()? };
        if !(1..65_536).contains(&max) {
            return Err(DecodeError::Damaged(format!("its greatest value is {max}")));
        }
        Ok(Header {
            kind,
            width,
            height,
            max,
            data_at: at,
        })
    }
}
