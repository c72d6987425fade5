//! JPEG through libjpeg (mozjpeg's tree of libjpeg-turbo): accurate integer DCT and fancy upsampling, as Pillow asks.
//!
//! `unsafe` here is the C interface. A fatal error unwinds out of the library and is caught in [`decode`]; the end of
//! the data suspends it, as in Pillow, so that a truncated picture is told from a whole one.

use std::marker::PhantomPinned;
use std::mem::MaybeUninit;
use std::os::raw::{c_int, c_long};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;

use mozjpeg_sys as ffi;

use super::decode::{DecodeError, Pixels};

/// Carries the message of a fatal error through the unwinding.
struct Fatal(String);

/// libjpeg's `JMSG_LENGTH_MAX`.
const MESSAGE_LENGTH: usize = 200;

extern "C-unwind" fn on_error(info: &mut ffi::jpeg_common_struct) {
    let mut message = [0u8; MESSAGE_LENGTH];
    // SAFETY: `err` is the manager that `Decoder::new` installed and outlives the call. `format_message` writes a
    // terminated string of at most JMSG_LENGTH_MAX bytes; the binding's type says 80 and shared, hence the cast.
    unsafe {
        if let Some(format) = (*info.err).format_message {
            type Format = unsafe extern "C-unwind" fn(*mut ffi::jpeg_common_struct, *mut u8);
            let format: Format = std::mem::transmute(format);
            format(info, message.as_mut_ptr());
        }
    }
    let text = message.split(|&byte| byte == 0).next().unwrap_or_default();
    // Not `panic!`: this must not reach the panic hook.
    resume_unwind(Box::new(Fatal(String::from_utf8_lossy(text).into_owned())));
}

extern "C-unwind" fn on_message(_: &mut ffi::jpeg_common_struct, _level: c_int) {}
extern "C-unwind" fn on_source(_: &mut ffi::jpeg_decompress_struct) {}

/// No data beyond the slice: suspend.
extern "C-unwind" fn on_empty(_: &mut ffi::jpeg_decompress_struct) -> ffi::boolean {
    0
}

extern "C-unwind" fn on_skip(info: &mut ffi::jpeg_decompress_struct, n_bytes: c_long) {
    // SAFETY: `src` is the manager that `Decoder::new` installed; the pointer moves inside its slice.
    unsafe {
        let source = &mut *info.src;
        let n_bytes = usize::try_from(n_bytes).unwrap_or(0).min(source.bytes_in_buffer);
        source.next_input_byte = source.next_input_byte.add(n_bytes);
        source.bytes_in_buffer -= n_bytes;
    }
}

/// libjpeg's state; pinned, for it points into itself.
struct Decoder {
    info: ffi::jpeg_decompress_struct,
    errors: ffi::jpeg_error_mgr,
    source: ffi::jpeg_source_mgr,
    _pinned: PhantomPinned,
}

impl Decoder {
    fn new(bytes: &[u8]) -> Pin<Box<Decoder>> {
        let mut decoder: Box<MaybeUninit<Decoder>> = Box::new(MaybeUninit::zeroed());
        // SAFETY: all three are C structs of numbers, pointers and optional functions, for which zero is a value.
        // `jpeg_create_decompress` reads `err` before it clears the rest, as the library's documentation asks.
        unsafe {
            let this = decoder.assume_init_mut();
            this.info.common.err = ffi::jpeg_std_error(&mut this.errors);
            this.errors.error_exit = Some(on_error);
            this.errors.emit_message = Some(on_message);
            ffi::jpeg_create_decompress(&mut this.info);
            this.source.next_input_byte = bytes.as_ptr();
            this.source.bytes_in_buffer = bytes.len();
            this.source.init_source = Some(on_source);
            this.source.fill_input_buffer = Some(on_empty);
            this.source.skip_input_data = Some(on_skip);
            this.source.resync_to_restart = Some(ffi::jpeg_resync_to_restart);
            this.source.term_source = Some(on_source);
            this.info.src = &mut this.source;
            Box::into_pin(decoder.assume_init())
        }
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // SAFETY: created in `new`; freeing is allowed in every state, also after an unwound error.
        unsafe { ffi::jpeg_destroy_decompress(&mut self.info) }
    }
}

pub(super) fn decode(bytes: &[u8]) -> Result<Pixels, DecodeError> {
    let mut decoder = Decoder::new(bytes);
    catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the decoder stays where it is; `bytes` outlives this call.
        unsafe { run(&mut decoder.as_mut().get_unchecked_mut().info) }
    }))
    .unwrap_or_else(|payload| match payload.downcast::<Fatal>() {
        Ok(fatal) => Err(DecodeError::Damaged(fatal.0)),
        Err(other) => resume_unwind(other),
    })
}

/// # Safety
/// `info` is set up by [`Decoder::new`] and its source is alive.
unsafe fn run(info: &mut ffi::jpeg_decompress_struct) -> Result<Pixels, DecodeError> {
    const HEADER_OK: c_int = 1;
    // SAFETY: the calls follow the order that libjpeg demands; `row` has room for the four bytes per pixel that both
    // output colour spaces have, and `read_scanlines` writes one row of `output_width` pixels.
    unsafe {
        if ffi::jpeg_read_header(info, 1) != HEADER_OK {
            return Err(DecodeError::Truncated);
        }
        let four_inks = info.num_components == 4;
        info.out_color_space = if four_inks {
            ffi::J_COLOR_SPACE::JCS_CMYK
        } else {
            ffi::J_COLOR_SPACE::JCS_EXT_RGBX
        };
        info.dct_method = ffi::J_DCT_METHOD::JDCT_ISLOW;
        let mut pixels = Pixels::new(info.image_width as usize, info.image_height as usize)?;
        if ffi::jpeg_start_decompress(info) == 0 {
            return Err(DecodeError::Truncated);
        }
        let row_bytes = pixels.width * 4;
        while info.output_scanline < info.output_height {
            let start = info.output_scanline as usize * row_bytes;
            let mut row = pixels.data[start..start + row_bytes].as_mut_ptr();
            if ffi::jpeg_read_scanlines(info, &mut row, 1) == 0 {
                return Err(DecodeError::Truncated);
            }
        }
        if four_inks {
            let n_bytes = row_bytes * pixels.height;
            cmyk_to_rgb(&mut pixels.data[..n_bytes]);
        }
        Ok(pixels)
    }
}

/// Pillow's CMYK to RGB: the inks are stored inverted (Adobe's convention, which Pillow assumes of every file), and a
/// channel is `255 - k` less that share of the ink.
fn cmyk_to_rgb(pixels: &mut [u8]) {
    for pixel in pixels.chunks_exact_mut(4) {
        let not_black = i32::from(pixel[3]);
        for channel in &mut pixel[..3] {
            let product = (255 - i32::from(*channel)) * not_black + 128;
            let ink = ((product >> 8) + product) >> 8;
            *channel = (not_black - ink).clamp(0, 255) as u8;
        }
    }
}
