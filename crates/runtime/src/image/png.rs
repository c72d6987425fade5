//! PNG through the `png` crate, turned to RGB by Pillow's rules: alpha is dropped and not composited, 16-bit colour
//! keeps its high byte, 16-bit grey is clipped at 255 (that is what `convert("RGB")` does to mode `I;16`).

use std::io::Cursor;

use png::{BitDepth, ColorType, DecodingError, Transformations};

use super::decode::{DecodeError, Pixels};

pub(super) fn decode(bytes: &[u8]) -> Result<Pixels, DecodeError> {
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(Transformations::IDENTITY);
    let mut reader = decoder.read_info().map_err(explain)?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    let mut pixels = Pixels::new(width, height)?;
    let n_bytes = reader
        .output_buffer_size()
        .ok_or(DecodeError::TooLarge { width, height })?;
    let mut raw = vec![0; n_bytes];
    let (color_type, bit_depth) = reader.output_color_type();
    let line_size = n_bytes / height;
    if reader.info().interlaced {
        reader.next_frame(&mut raw).map_err(explain)?;
    } else {
        // Row by row: what follows the last row, such as a missing end chunk, is no matter of the pixels.
        for line in raw.chunks_exact_mut(line_size) {
            let row = reader
                .next_row()
                .map_err(explain)?
                .ok_or(DecodeError::Truncated)?;
            line.copy_from_slice(row.data());
        }
    }
    // Indices beyond the palette show Pillow's initial grey ramp.
    let mut palette: Vec<[u8; 3]> = (0..=255).map(|value| [value; 3]).collect();
    if let Some(stored) = &reader.info().palette {
        for (entry, stored) in palette.iter_mut().zip(stored.chunks_exact(3)) {
            entry.copy_from_slice(stored);
        }
    }
    for (row, out) in raw
        .chunks_exact(line_size)
        .zip(pixels.data.chunks_exact_mut(width * 4))
    {
        for (x, pixel) in out.chunks_exact_mut(4).enumerate() {
            let rgb = match (color_type, bit_depth) {
                (ColorType::Grayscale, BitDepth::Sixteen) => {
                    [u8::try_from(u16::from_be_bytes([row[x * 2], row[x * 2 + 1]])).unwrap_or(255); 3]
                }
                (ColorType::Grayscale, depth) => {
                    let full = (1u16 << depth as u8) - 1;
                    [(u16::from(sample(row, x, depth)) * 255 / full) as u8; 3]
                }
                (ColorType::Indexed, depth) => palette[usize::from(sample(row, x, depth))],
                (ColorType::GrayscaleAlpha, BitDepth::Sixteen) => [row[x * 4]; 3],
                (ColorType::GrayscaleAlpha, _) => [row[x * 2]; 3],
                (ColorType::Rgb, BitDepth::Sixteen) => [row[x * 6], row[x * 6 + 2], row[x * 6 + 4]],
                (ColorType::Rgb, _) => [row[x * 3], row[x * 3 + 1], row[x * 3 + 2]],
                (ColorType::Rgba, BitDepth::Sixteen) => [row[x * 8], row[x * 8 + 2], row[x * 8 + 4]],
                (ColorType::Rgba, _) => [row[x * 4], row[x * 4 + 1], row[x * 4 + 2]],
            };
            pixel[..3].copy_from_slice(&rgb);
        }
    }
    Ok(pixels)
}

/// Sample `x` of a row that packs samples of 1, 2, 4 or 8 bits, high bits first.
fn sample(row: &[u8], x: usize, depth: BitDepth) -> u8 {
    let bits = depth as usize;
    let bit = x * bits;
    let shift = 8 - bits - bit % 8;
    let mask = ((1u16 << bits) - 1) as u8;
    (row[bit / 8] >> shift) & mask
}

fn explain(error: DecodingError) -> DecodeError {
    match error {
        DecodingError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            DecodeError::Truncated
        }
        other => DecodeError::Damaged(other.to_string()),
    }
}
