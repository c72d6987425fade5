//! Windows and OS/2 bitmaps, by the rules of Pillow's `BmpImagePlugin`.
//!
//! Alpha is dropped; a palette that is a ramp of greys makes the picture grey; indices beyond any other are black.

use super::bytes::{slice, u8, u16_le, u32_le};
use super::decode::{DecodeError, Pixels};
use super::resize::PIXEL;

const FILE_HEADER: usize = 14;

/// What the header says.
struct Header {
    width: usize,
    height: usize,
    top_down: bool,
    bits: u16,
    compression: Compression,
    /// Where the pixels begin.
    offset: usize,
    /// Where the palette begins, its entries, and the bytes of each.
    palette: (usize, usize, usize),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Rle8,
    Rle4,
    /// Which byte of a pixel (or which layout of a 16-bit one) is red, green and blue.
    Fields(Fields),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fields {
    Bytes([usize; 3]),
    Rgb555,
    Rgb565,
}

pub(super) fn size(bytes: &[u8]) -> Result<(usize, usize), DecodeError> {
    Header::read(bytes).map(|header| (header.width, header.height))
}

pub(super) fn decode(bytes: &[u8]) -> Result<Pixels, DecodeError> {
    let header = Header::read(bytes)?;
    let n_pixels = Pixels::check_size(header.width, header.height)?;
    if header.bits <= 8 {
        return decode_indexed(bytes, &header, n_pixels);
    }
    let bytes_per_pixel = usize::from(header.bits) / 8;
    let fields = match header.compression {
        Compression::Fields(fields) => fields,
        _ if header.bits == 16 => Fields::Rgb555,
        _ => Fields::Bytes([2, 1, 0]),
    };
    let rows = Rows::of(bytes, &header, header.width * bytes_per_pixel)?;
    let mut pixels = Pixels::new(header.width, header.height)?;
    for (y, out) in pixels.rows_mut().enumerate() {
        for (pixel, out) in rows
            .row(y)
            .chunks_exact(bytes_per_pixel)
            .zip(out.chunks_exact_mut(PIXEL))
        {
            let rgb = match fields {
                Fields::Bytes(at) => at.map(|at| pixel[at]),
                Fields::Rgb555 => {
                    let value = u16::from_le_bytes([pixel[0], pixel[1]]);
                    [scaled(value >> 10, 31), scaled(value >> 5, 31), scaled(value, 31)]
                }
                Fields::Rgb565 => {
                    let value = u16::from_le_bytes([pixel[0], pixel[1]]);
                    [scaled(value >> 11, 31), scaled(value >> 5, 63), scaled(value, 31)]
                }
            };
            out[..3].copy_from_slice(&rgb);
        }
    }
    Ok(pixels)
}

/// The low bits under the mask `max`, stretched to a byte and rounded down.
fn scaled(value: u16, max: u16) -> u8 {
    ((value & max) * 255 / max) as u8
}

/// The rows of an uncompressed picture, the first one on top.
struct Rows<'b> {
    data: &'b [u8],
    stride: usize,
    row_bytes: usize,
    height: usize,
    top_down: bool,
}

impl<'b> Rows<'b> {
    fn of(bytes: &'b [u8], header: &Header, row_bytes: usize) -> Result<Rows<'b>, DecodeError> {
        let stride = ((header.width * usize::from(header.bits) + 31) >> 3) & !3;
        if stride < row_bytes {
            return Err(DecodeError::Damaged(
                "its rows are longer than their stride".to_owned(),
            ));
        }
        // The last row needs no padding.
        let n_bytes = stride * (header.height - 1) + row_bytes;
        Ok(Rows {
            data: slice(bytes, header.offset, n_bytes)?,
            stride,
            row_bytes,
            height: header.height,
            top_down: header.top_down,
        })
    }

    fn row(&self, y: usize) -> &'b [u8] {
        let y = if self.top_down { y } else { self.height - 1 - y };
        &self.data[y * self.stride..][..self.row_bytes]
    }
}

fn decode_indexed(bytes: &[u8], header: &Header, n_pixels: usize) -> Result<Pixels, DecodeError> {
    let (at, n_colors, entry_bytes) = header.palette;
    if n_colors > 256 {
        return Err(DecodeError::Damaged(format!(
            "its palette has {n_colors} colours"
        )));
    }
    let stored = bytes.get(at..).unwrap_or_default();
    let mut palette = [[0; 3]; 256];
    let mut is_ramp = stored.len() >= n_colors * entry_bytes;
    for (idx, entry) in stored.chunks_exact(entry_bytes).take(n_colors).enumerate() {
        palette[idx] = [entry[2], entry[1], entry[0]];
        let grey = if n_colors == 2 && idx == 1 { 255 } else { idx as u8 };
        is_ramp &= palette[idx] == [grey; 3];
    }
    // What Pillow then calls mode "1" or "L" is unpacked by that mode, whatever the depth says.
    let bits = match (is_ramp, n_colors) {
        (true, ..=2) => 1,
        (true, _) => 8,
        (false, _) => header.bits,
    };
    if is_ramp {
        palette = std::array::from_fn(|value| [value as u8; 3]);
        if n_colors <= 2 {
            palette[1] = [255; 3];
        }
    }
    let mut pixels = Pixels::new(header.width, header.height)?;
    if matches!(header.compression, Compression::Rle8 | Compression::Rle4) {
        if is_ramp && n_colors <= 2 {
            return Err(DecodeError::Damaged("run-length coding of one bit".to_owned()));
        }
        let indices = runs(bytes, header, n_pixels)?;
        for (y, out) in pixels.rows_mut().enumerate() {
            let y = if header.top_down { y } else { header.height - 1 - y };
            let row = &indices[y * header.width..][..header.width];
            for (&idx, out) in row.iter().zip(out.chunks_exact_mut(PIXEL)) {
                out[..3].copy_from_slice(&palette[usize::from(idx)]);
            }
        }
        return Ok(pixels);
    }
    let per_byte = 8 / usize::from(bits);
    let rows = Rows::of(bytes, header, header.width.div_ceil(per_byte))?;
    let mask = ((1u16 << bits) - 1) as u8;
    for (y, out) in pixels.rows_mut().enumerate() {
        let row = rows.row(y);
        for (x, out) in out.chunks_exact_mut(PIXEL).enumerate() {
            let shift = 8 - usize::from(bits) * (x % per_byte + 1);
            let idx = (row[x / per_byte] >> shift) & mask;
            out[..3].copy_from_slice(&palette[usize::from(idx)]);
        }
    }
    Ok(pixels)
}

/// Run-length coding to one index per pixel, rows as stored; `BmpRleDecoder` to the letter.
fn runs(bytes: &[u8], header: &Header, n_pixels: usize) -> Result<Vec<u8>, DecodeError> {
    let width = header.width;
    let four_bits = header.compression == Compression::Rle4;
    let mut at = header.offset;
    let mut data: Vec<u8> = Vec::new();
    let mut x = 0;
    while data.len() < n_pixels {
        let (Some(&count), Some(&value)) = (bytes.get(at), bytes.get(at + 1)) else {
            break;
        };
        at += 2;
        match (count, value) {
            (0, 0) => {
                data.resize(data.len().next_multiple_of(width), 0);
                x = 0;
            }
            (0, 1) => break,
            (0, 2) => {
                let Some(&[right, up]) = bytes.get(at..at + 2) else {
                    break;
                };
                at += 2;
                let skipped = usize::from(right) + usize::from(up) * width;
                data.resize(n_pixels.min(data.len() + skipped), 0);
                x = data.len() % width;
            }
            (0, _) => {
                let n_wanted = (n_pixels - data.len()).min(usize::from(value));
                let n_bytes = if four_bits { n_wanted.div_ceil(2) } else { n_wanted };
                let rest = bytes.get(at..).unwrap_or_default();
                let read = &rest[..n_bytes.min(rest.len())];
                if four_bits {
                    let halves = read.iter().flat_map(|byte| [byte >> 4, byte & 15]);
                    data.extend(halves.take(n_wanted));
                } else {
                    data.extend_from_slice(read);
                }
                at += read.len();
                if read.len() < n_bytes || data.len() == n_pixels {
                    break;
                }
                x += usize::from(value);
                // Aligned in the file, not in the data.
                at += at % 2;
            }
            (count, value) => {
                let count = usize::from(count).min(width.saturating_sub(x));
                if four_bits {
                    data.extend((0..count).map(|idx| if idx % 2 == 0 { value >> 4 } else { value & 15 }));
                } else {
                    data.resize(data.len() + count, value);
                }
                x += count;
            }
        }
    }
    if data.len() < n_pixels {
        return Err(DecodeError::Truncated);
    }
    Ok(data)
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Header, DecodeError> {
        let offset = u32_le(bytes, 10)? as usize;
        let header_size = u32_le(bytes, FILE_HEADER)? as usize;
        let end = FILE_HEADER + header_size;
        let damaged = |what: String| Err(DecodeError::Damaged(what));
        let u16_at = |at| u16_le(bytes, FILE_HEADER + at);
        let u32_at = |at| u32_le(bytes, FILE_HEADER + at);
        let (width, height, top_down, bits, compression, n_colors, entry_bytes) = match header_size {
            12 => (
                u32::from(u16_at(4)?),
                u32::from(u16_at(6)?),
                false,
                u16_at(10)?,
                0,
                0,
                3,
            ),
            40 | 52 | 56 | 64 | 108 | 124 => {
                slice(bytes, FILE_HEADER, header_size)?;
                let top_down = u8(bytes, FILE_HEADER + 11)? == 0xff;
                let height = u32_at(8)?;
                let height = if top_down { height.wrapping_neg() } else { height };
                (
                    u32_at(4)?,
                    height,
                    top_down,
                    u16_at(14)?,
                    u32_at(16)?,
                    u32_at(32)?,
                    4,
                )
            }
            other => return damaged(format!("a bitmap header of {other} bytes")),
        };
        if !matches!(bits, 1 | 4 | 8 | 16 | 24 | 32) {
            return damaged(format!("a bitmap of {bits} bits a pixel"));
        }
        let mut palette_at = end;
        let compression = match compression {
            0 => Compression::None,
            1 => Compression::Rle8,
            2 => Compression::Rle4,
            3 => {
                let masks_at = if header_size == 40 {
                    palette_at += 12;
                    end
                } else {
                    FILE_HEADER + 40
                };
                let mask = |idx: usize| u32_le(bytes, masks_at + idx * 4);
                let alpha = if header_size >= 56 { mask(3)? } else { 0 };
                match fields(bits, [mask(0)?, mask(1)?, mask(2)?], alpha) {
                    Some(fields) => Compression::Fields(fields),
                    None => return damaged("a bitmap whose bit fields have an unknown layout".to_owned()),
                }
            }
            other => return damaged(format!("a bitmap with compression {other}")),
        };
        if bits > 8 && matches!(compression, Compression::Rle8 | Compression::Rle4) {
            return damaged("run-length coding of colours".to_owned());
        }
        let n_colors = match n_colors {
            0 => 1usize << bits.min(16),
            n => n as usize,
        };
        let pixels_at = match offset {
            0 if bits <= 8 => palette_at.saturating_add(n_colors.saturating_mul(entry_bytes)),
            0 => palette_at,
            offset if offset == end && bits <= 8 => {
                offset.saturating_add(n_colors.saturating_mul(entry_bytes))
            }
            offset => offset,
        };
        Ok(Header {
            width: width as usize,
            height: height as usize,
            top_down,
            bits,
            compression,
            offset: pixels_at,
            palette: (palette_at, n_colors, entry_bytes),
        })
    }
}

/// The layouts that Pillow knows.
fn fields(bits: u16, masks: [u32; 3], alpha: u32) -> Option<Fields> {
    const LOW: u32 = 0xff;
    const SECOND: u32 = 0xff00;
    const THIRD: u32 = 0xff_0000;
    const HIGH: u32 = 0xff00_0000;
    Some(match (bits, masks, alpha) {
        (32, [THIRD, SECOND, LOW], 0 | HIGH) | (32, [0, 0, 0], 0) | (24, [THIRD, SECOND, LOW], _) => {
            Fields::Bytes([2, 1, 0])
        }
        (32, [HIGH, THIRD, SECOND], 0 | LOW) => Fields::Bytes([3, 2, 1]),
        (32, [HIGH, SECOND, LOW], 0 | THIRD) => Fields::Bytes([3, 1, 0]),
        (32, [LOW, SECOND, THIRD], HIGH) => Fields::Bytes([0, 1, 2]),
        (16, [0xf800, 0x7e0, 0x1f], _) => Fields::Rgb565,
        (16, [0x7c00, 0x3e0, 0x1f], _) => Fields::Rgb555,
        _ => return None,
    })
}
