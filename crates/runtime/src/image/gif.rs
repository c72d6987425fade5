//! The first frame of a GIF, by the rules of Pillow's `GifImagePlugin` and `GifDecode.c`: the frame lies on a canvas of
//! the transparent index (or index 0) and transparency is then forgotten.

use super::bytes::{slice, u8, u16_le};
use super::decode::{DecodeError, Pixels};
use super::resize::PIXEL;

/// What precedes the first frame's data.
struct Header {
    /// The canvas.
    width: usize,
    height: usize,
    left: usize,
    top: usize,
    frame_width: usize,
    frame_height: usize,
    interlaced: bool,
    background: u8,
    palette: Palette,
    /// Where the LZW data begins, with its byte of bits.
    data_at: usize,
}

pub(super) fn size(bytes: &[u8]) -> Result<(usize, usize), DecodeError> {
    Header::read(bytes).map(|header| (header.width, header.height))
}

pub(super) fn decode(bytes: &[u8]) -> Result<Pixels, DecodeError> {
    let header = Header::read(bytes)?;
    // A code takes two bits at least and stands for 4,096 pixels at most: what cannot be there takes no room.
    if header.frame_width * header.frame_height / (4 * 4096) > bytes.len() {
        return Err(DecodeError::Truncated);
    }
    let mut pixels = Pixels::new(header.width, header.height)?;
    let rgb = |idx: u8| header.palette[usize::from(idx)];
    let [red, green, blue] = rgb(header.background);
    for pixel in pixels.data.chunks_exact_mut(PIXEL) {
        pixel.copy_from_slice(&[red, green, blue, 0]);
    }
    if header.frame_width == 0 || header.frame_height == 0 {
        return Err(DecodeError::Damaged("its frame has no pixels".to_owned()));
    }
    let mut rows = row_order(header.frame_height, header.interlaced);
    let (mut x, mut row) = (0, rows.next());
    let done = expand(bytes, header.data_at, |idx| {
        let Some(y) = row else { return false };
        let at = ((header.top + y) * header.width + header.left + x) * PIXEL;
        pixels.data[at..at + 3].copy_from_slice(&rgb(idx));
        x += 1;
        if x == header.frame_width {
            (x, row) = (0, rows.next());
        }
        row.is_some()
    })?;
    if done {
        Ok(pixels)
    } else {
        Err(DecodeError::Truncated)
    }
}

fn row_order(height: usize, interlaced: bool) -> impl Iterator<Item = usize> {
    let passes: &[(usize, usize)] = if interlaced {
        &[(0, 8), (4, 8), (2, 4), (1, 2)]
    } else {
        &[(0, 1)]
    };
    passes
        .iter()
        .flat_map(move |&(first, step)| (first..height).step_by(step))
}

/// LZW codes to indices, until `take` wants no more: then true; false where the codes end before.
fn expand(bytes: &[u8], data_at: usize, mut take: impl FnMut(u8) -> bool) -> Result<bool, DecodeError> {
    const MAX_BITS: u32 = 12;
    const TABLE: usize = 1 << MAX_BITS;
    let broken = || DecodeError::Damaged("its codes are broken".to_owned());
    let bits = u32::from(u8(bytes, data_at)?);
    // Pillow's own check.
    if bits > MAX_BITS - 1 {
        return Err(broken());
    }
    let clear = 1usize << bits;
    let end = clear + 1;
    let (mut suffix, mut prefix) = (vec![0u8; TABLE], vec![0u16; TABLE]);
    let mut string = Vec::with_capacity(TABLE);
    let (mut next, mut code_bits) = (clear + 2, bits + 1);
    let (mut last_code, mut last_value, mut fresh) = (0, 0, true);
    let (mut buffer, mut n_buffered) = (0u32, 0u32);
    let (mut at, mut block) = (data_at + 1, 0usize);
    loop {
        while n_buffered < code_bits {
            while block == 0 {
                let Ok(length) = u8(bytes, at) else {
                    return Ok(false);
                };
                block = usize::from(length);
                at += 1;
                // A block is decoded only when all of it is there.
                if bytes.len() < at + block {
                    return Ok(false);
                }
            }
            buffer |= u32::from(bytes[at]) << n_buffered;
            (at, block, n_buffered) = (at + 1, block - 1, n_buffered + 8);
        }
        let code = (buffer & ((1 << code_bits) - 1)) as usize;
        buffer >>= code_bits;
        n_buffered -= code_bits;
        if code == clear {
            (next, code_bits, fresh) = (clear + 2, bits + 1, true);
            continue;
        }
        if code == end {
            return Ok(false);
        }
        if fresh {
            if code > clear {
                return Err(broken());
            }
            (last_code, last_value, fresh) = (code, code as u8, false);
            if !take(last_value) {
                return Ok(true);
            }
            continue;
        }
        if code > next {
            return Err(broken());
        }
        string.clear();
        let mut link = if code == next {
            string.push(last_value);
            last_code
        } else {
            code
        };
        while link >= clear {
            if string.len() >= TABLE || link >= TABLE {
                return Err(broken());
            }
            string.push(suffix[link]);
            link = usize::from(prefix[link]);
        }
        last_value = link as u8;
        string.push(last_value);
        if next < TABLE {
            suffix[next] = last_value;
            prefix[next] = last_code as u16;
            if next == (1 << code_bits) - 1 && code_bits < MAX_BITS {
                code_bits += 1;
            }
            next += 1;
        }
        last_code = code;
        for &value in string.iter().rev() {
            if !take(value) {
                return Ok(true);
            }
        }
    }
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Header, DecodeError> {
        let (mut width, mut height) = (usize::from(u16_le(bytes, 6)?), usize::from(u16_le(bytes, 8)?));
        let flags = u8(bytes, 10)?;
        let mut at = 13;
        let mut global = None;
        if flags & 128 != 0 {
            let n_bytes = 3usize << ((flags & 7) + 1);
            global = colours(slice(bytes, at, n_bytes)?);
            at += n_bytes;
        }
        let mut transparent = None;
        loop {
            match u8(bytes, at)? {
                b'!' => {
                    let label = u8(bytes, at + 1)?;
                    at += 2;
                    let length = usize::from(u8(bytes, at)?);
                    if label == 249 && length >= 4 {
                        let block = slice(bytes, at + 1, length)?;
                        if block[0] & 1 != 0 {
                            transparent = Some(block[3]);
                        }
                    }
                    loop {
                        let length = usize::from(u8(bytes, at)?);
                        at += 1 + length;
                        if length == 0 {
                            break;
                        }
                    }
                }
                b',' => break,
                b';' => return Err(DecodeError::Damaged("it has no frame".to_owned())),
                _ => at += 1,
            }
        }
        let field = |idx: usize| u16_le(bytes, at + 1 + idx * 2).map(usize::from);
        let (left, top, frame_width, frame_height) = (field(0)?, field(1)?, field(2)?, field(3)?);
        let flags = u8(bytes, at + 9)?;
        at += 10;
        // A frame that leaves the canvas enlarges it.
        (width, height) = (width.max(left + frame_width), height.max(top + frame_height));
        Pixels::check_size(width, height)?;
        let mut local = None;
        if flags & 128 != 0 {
            let n_bytes = 3usize << ((flags & 7) + 1);
            local = colours(slice(bytes, at, n_bytes)?);
            at += n_bytes;
        }
        Ok(Header {
            width,
            height,
            left,
            top,
            frame_width,
            frame_height,
            interlaced: flags & 64 != 0,
            background: transparent.unwrap_or(0),
            palette: local.or(global).unwrap_or_else(ramp),
            data_at: at,
        })
    }
}

type Palette = Box<[[u8; 3]; 256]>;

/// What indices without a palette stand for.
fn ramp() -> Palette {
    Box::new(std::array::from_fn(|value| [value as u8; 3]))
}

/// The palette, black beyond its end; or none where it is the ramp of greys that indices stand for by themselves.
fn colours(stored: &[u8]) -> Option<Palette> {
    let mut palette = Box::new([[0; 3]; 256]);
    for (entry, stored) in palette.iter_mut().zip(stored.chunks_exact(3)) {
        entry.copy_from_slice(stored);
    }
    (palette[..stored.len() / 3] != ramp()[..stored.len() / 3]).then_some(palette)
}
