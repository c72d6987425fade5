//! WebP: the first frame, as libwebp's animation decoder gives it to Pillow.

use std::io::Cursor;

use image_webp::{DecodingError, WebPDecoder};

use super::decode::{DecodeError, Pixels};
use super::resize::PIXEL;

pub(super) fn size(bytes: &[u8]) -> Result<(usize, usize), DecodeError> {
    let decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(explain)?;
    let (width, height) = decoder.dimensions();
    Ok((width as usize, height as usize))
}

pub(super) fn decode(bytes: &[u8]) -> Result<Pixels, DecodeError> {
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(explain)?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    Pixels::check_size(width, height)?;
    let n_bytes = decoder
        .output_buffer_size()
        .ok_or(DecodeError::TooLarge { width, height })?;
    let n_channels = if decoder.has_alpha() { 4 } else { 3 };
    let mut raw = vec![0; n_bytes];
    if decoder.is_animated() {
        decoder.read_frame(&mut raw).map_err(explain)?;
    } else {
        decoder.read_image(&mut raw).map_err(explain)?;
    }
    let mut pixels = Pixels::new(width, height)?;
    for (pixel, raw) in pixels
        .data
        .chunks_exact_mut(PIXEL)
        .zip(raw.chunks_exact(n_channels))
    {
        pixel[..3].copy_from_slice(&raw[..3]);
    }
    Ok(pixels)
}

fn explain(error: DecodingError) -> DecodeError {
    match error {
        DecodingError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            DecodeError::Truncated
        }
        other => DecodeError::Damaged(other.to_string()),
    }
}
