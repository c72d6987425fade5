//! PNG through the `png` crate, turned to RGB by Pillow's rules: alpha is dropped and not composited, 16-bit colour
//! keeps its high byte, 16-bit grey is clipped at 255 (that is what `convert("RGB")` does to mode `I;16`).

use std::io::Cursor;

use png::{BitDepth, ColorType, DecodingError, Transformations};

use super::decode::{DecodeError, Pixels};
use super::resize::PIXEL;

/// A PNG picture whose header has been read; rows come on demand.
pub(super) struct Reader<'b> {
    reader: png::Reader<Cursor<&'b [u8]>>,
    width: usize,
    height: usize,
    palette: Vec<[u8; 3]>,
    /// Of an interlaced picture all rows are read at once, when the first is wanted.
    whole: Option<Vec<u8>>,
    next_row: usize,
}

impl<'b> Reader<'b> {
    /// Reads everything in front of the picture's data.
    ///
    /// # Errors
    /// Where it is damaged or cut short, or the picture is too large.
    pub(super) fn open(bytes: &'b [u8]) -> Result<Reader<'b>, DecodeError> {
        let mut decoder = png::Decoder::new(Cursor::new(bytes));
        decoder.set_transformations(Transformations::IDENTITY);
        // What is not pixels is not inflated.
        decoder.set_ignore_text_chunk(true);
        decoder.set_ignore_iccp_chunk(true);
        let header = decoder.read_header_info().map_err(explain)?;
        let (width, height) = (header.width as usize, header.height as usize);
        Pixels::check_size(width, height)?;
        // Deflate cannot shrink to less than a 1032nd.
        let n_bits = width
            .saturating_mul(height)
            .saturating_mul(header.bits_per_pixel());
        if n_bits / 8 / 1032 > bytes.len() {
            return Err(DecodeError::Truncated);
        }
        let reader = decoder.read_info().map_err(explain)?;
        // Indices beyond the palette are black, as in Pillow since 12.
        let mut palette = vec![[0; 3]; 256];
        if let Some(stored) = &reader.info().palette {
            for (entry, stored) in palette.iter_mut().zip(stored.chunks_exact(3)) {
                entry.copy_from_slice(stored);
            }
        }
        Ok(Reader {
            reader,
            width,
            height,
            palette,
            whole: None,
            next_row: 0,
        })
    }

    /// Width and height.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    /// An interlaced picture is held whole.
    pub(super) fn n_held_bytes(&self) -> usize {
        match self.reader.info().interlaced {
            true => self.reader.output_buffer_size().unwrap_or(0),
            false => 0,
        }
    }

    /// Passes over `n_rows` rows.
    pub(super) fn skip(&mut self, n_rows: usize) -> Result<(), DecodeError> {
        (0..n_rows).try_for_each(|_| self.row(&mut []))
    }

    /// Reads the next row into `out`, whose length says how many pixels of it are wanted.
    pub(super) fn next(&mut self, out: &mut [u8]) -> Result<(), DecodeError> {
        self.row(out)
    }

    /// Reads the rest, of which only the errors matter. What follows the last row, such as a missing end chunk, is no
    /// matter of the pixels.
    pub(super) fn finish(&mut self) -> Result<(), DecodeError> {
        self.skip(self.height - self.next_row)
    }

    fn row(&mut self, out: &mut [u8]) -> Result<(), DecodeError> {
        let (color_type, bit_depth) = self.reader.output_color_type();
        let convert = |row: &[u8], palette: &[[u8; 3]], out: &mut [u8]| {
            for (x, pixel) in out.chunks_exact_mut(PIXEL).enumerate() {
                pixel[..3].copy_from_slice(&rgb(row, x, color_type, bit_depth, palette));
            }
        };
        if self.reader.info().interlaced {
            if self.whole.is_none() {
                let n_bytes = self.reader.output_buffer_size().ok_or(DecodeError::TooLarge {
                    width: self.width,
                    height: self.height,
                })?;
                let mut raw = vec![0; n_bytes];
                self.reader.next_frame(&mut raw).map_err(explain)?;
                self.whole = Some(raw);
            }
            if let Some(raw) = &self.whole {
                let line_size = raw.len() / self.height;
                let start = self.next_row * line_size;
                convert(&raw[start..start + line_size], &self.palette, out);
            }
        } else {
            let row = self
                .reader
                .next_row()
                .map_err(explain)?
                .ok_or(DecodeError::Truncated)?;
            convert(row.data(), &self.palette, out);
        }
        self.next_row += 1;
        Ok(())
    }
}

/// Pixel `x` of a row, by Pillow's `convert("RGB")`.
fn rgb(row: &[u8], x: usize, color_type: ColorType, bit_depth: BitDepth, palette: &[[u8; 3]]) -> [u8; 3] {
    match (color_type, bit_depth) {
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
    }
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
