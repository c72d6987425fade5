//! JPEG through libjpeg (mozjpeg's tree of libjpeg-turbo): accurate integer DCT and fancy upsampling, as Pillow asks.
//!
//! `unsafe` here is the C interface. A fatal error and the end of the data unwind out of the library and are caught in
//! [`Reader::guarded`].
//!
//! Columns and rows that are not wanted are entropy-decoded, for their neighbours depend on them and their damage counts,
//! but not transformed.

use std::marker::{PhantomData, PhantomPinned};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::raw::{c_int, c_long, c_uint};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;

use mozjpeg_sys as ffi;

use super::decode::{DecodeError, Pixels};
use super::resize::PIXEL;

/// Carries a fatal error through the unwinding.
struct Fatal(DecodeError);

/// Blocks of luma for one of a component that is sampled as coarsely as JPEG allows.
const MAX_SAMPLING: usize = 16;

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
    let text = String::from_utf8_lossy(text).into_owned();
    resume_unwind(Box::new(Fatal(DecodeError::Damaged(text))));
}

extern "C-unwind" fn on_message(_: &mut ffi::jpeg_common_struct, _level: c_int) {}
extern "C-unwind" fn on_source(_: &mut ffi::jpeg_decompress_struct) {}

/// No data beyond the slice. Pillow would suspend here, find no more, and call the file truncated.
extern "C-unwind" fn on_empty(_: &mut ffi::jpeg_decompress_struct) -> ffi::boolean {
    resume_unwind(Box::new(Fatal(DecodeError::Truncated)));
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

/// A JPEG picture whose header has been read; rows come on demand.
pub(super) struct Reader<'b> {
    decoder: Pin<Box<Decoder>>,
    width: usize,
    height: usize,
    four_inks: bool,
    /// The columns that rows hold, set when decoding starts.
    columns: Option<Range<usize>>,
    _bytes: PhantomData<&'b [u8]>,
}

impl<'b> Reader<'b> {
    /// Reads the header.
    ///
    /// # Errors
    /// Where it is damaged or cut short, or its picture is too large.
    pub(super) fn open(bytes: &'b [u8]) -> Result<Reader<'b>, DecodeError> {
        const HEADER_OK: c_int = 1;
        let mut reader = Reader {
            decoder: Decoder::new(bytes),
            width: 0,
            height: 0,
            four_inks: false,
            columns: None,
            _bytes: PhantomData,
        };
        let n_blocks = reader.guarded(|info| {
            // SAFETY: the decoder is fresh; libjpeg's order of calls is kept.
            if unsafe { ffi::jpeg_read_header(info, 1) } != HEADER_OK {
                return Err(DecodeError::Truncated);
            }
            info.out_color_space = if info.num_components == 4 {
                ffi::J_COLOR_SPACE::JCS_CMYK
            } else {
                ffi::J_COLOR_SPACE::JCS_EXT_RGBX
            };
            info.dct_method = ffi::J_DCT_METHOD::JDCT_ISLOW;
            Ok((info.image_width as usize).div_ceil(8) * (info.image_height as usize).div_ceil(8))
        })?;
        reader.four_inks = reader.info().num_components == 4;
        (reader.width, reader.height) = (
            reader.info().image_width as usize,
            reader.info().image_height as usize,
        );
        Pixels::check_size(reader.width, reader.height)?;
        // Of a progressive picture all coefficients are held. Each block costs at least a bit, so that a file shorter
        // than that is cut, and is told so before any room is taken. (Where an end marker has been put behind the cut,
        // libjpeg would take the room and make up grey.)
        if reader.has_multiple_scans() && bytes.len() < n_blocks / 8 / MAX_SAMPLING {
            return Err(DecodeError::Truncated);
        }
        Ok(reader)
    }

    /// Width and height of what will be decoded.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    /// Has the picture decoded at 1/2, 1/4 or 1/8 of its size (or not), as `PIL.Image.draft` chooses for a picture that
    /// is to be `width` x `height`.
    pub(super) fn draft(&mut self, width: usize, height: usize) {
        let scale = (self.width / width.max(1)).min(self.height / height.max(1));
        let shrink = [8, 4, 2, 1]
            .into_iter()
            .find(|&shrink| scale >= shrink)
            .unwrap_or(1);
        let info = self.info_mut();
        info.scale_num = 1;
        info.scale_denom = shrink as c_uint;
        self.width = self.width.div_ceil(shrink);
        self.height = self.height.div_ceil(shrink);
    }

    /// Starts decoding. Rows hold at least `columns`; the answer says which they do hold.
    pub(super) fn start(&mut self, columns: Range<usize>) -> Result<Range<usize>, DecodeError> {
        let whole = 0..self.width;
        // Scaled and progressive pictures are decoded whole: block smoothing looks beyond a cut.
        let may_cut = self.info().scale_denom == 1 && !self.has_multiple_scans();
        let columns = self.guarded(|info| {
            // SAFETY: the header has been read, and nothing has been started.
            if unsafe { ffi::jpeg_start_decompress(info) } == 0 {
                return Err(DecodeError::Truncated);
            }
            // Upsampling reads one chroma sample to each side, and at a cut it would take its neighbour for it: one more
            // unit of blocks on each side keeps the cut away from what is wanted.
            let unit = 8 * usize::try_from(info.max_h_samp_factor).unwrap_or(4);
            let cut = columns.start.saturating_sub(unit)..(columns.end + unit).min(whole.end);
            if !may_cut || cut.len() + unit >= whole.len() {
                return Ok(whole);
            }
            let (mut left, mut width) = (cut.start as c_uint, cut.len() as c_uint);
            // SAFETY: started, no row read yet, and the span lies inside the picture.
            unsafe { ffi::jpeg_crop_scanline(info, &mut left, &mut width) };
            let left = left as usize;
            Ok(left..left + width as usize)
        })?;
        self.columns = Some(columns.clone());
        Ok(columns)
    }

    /// Passes over `n_rows` rows, of which the colours are not computed.
    pub(super) fn skip(&mut self, n_rows: usize) -> Result<(), DecodeError> {
        self.guarded(|info| {
            if n_rows > 0 {
                // SAFETY: decoding has been started.
                unsafe { ffi::jpeg_skip_scanlines(info, n_rows as c_uint) };
            }
            Ok(())
        })
    }

    /// Reads up to `max_rows` rows into `out`, each `stride` bytes behind the last; says how many.
    pub(super) fn next(
        &mut self,
        out: &mut [u8],
        stride: usize,
        max_rows: usize,
    ) -> Result<usize, DecodeError> {
        const AT_ONCE: usize = 16;
        let row_bytes = self.columns.as_ref().map_or(self.width, ExactSizeIterator::len) * PIXEL;
        let n_fit = (out.len() + stride).saturating_sub(row_bytes) / stride.max(1);
        let max_rows = max_rows.min(n_fit).min(AT_ONCE);
        let base = out.as_mut_ptr();
        let n_read = self.guarded(|info| {
            // SAFETY: `max_rows` rows of `row_bytes` bytes lie inside `out`, and libjpeg writes `output_width` pixels of
            // four bytes to each.
            let n_read = unsafe {
                let mut rows: [*mut u8; AT_ONCE] = std::array::from_fn(|row| base.wrapping_add(row * stride));
                ffi::jpeg_read_scanlines(info, rows.as_mut_ptr(), max_rows as c_uint)
            };
            if n_read == 0 {
                Err(DecodeError::Truncated)
            } else {
                Ok(n_read as usize)
            }
        })?;
        if self.four_inks {
            for row in 0..n_read {
                cmyk_to_rgb(&mut out[row * stride..row * stride + row_bytes]);
            }
        }
        Ok(n_read)
    }

    /// Reads the rest, of which only the errors matter.
    pub(super) fn finish(&mut self) -> Result<(), DecodeError> {
        let left = (self.info().output_height - self.info().output_scanline) as usize;
        if left == 0 || self.has_multiple_scans() {
            // All scans were read when decoding started.
            return Ok(());
        }
        // libjpeg does not look at what it skips to the end, so that the last row is read.
        self.skip(left - 1)?;
        let stride = self.columns.as_ref().map_or(self.width, ExactSizeIterator::len) * PIXEL;
        self.next(&mut vec![0; stride], stride, 1).map(drop)
    }

    /// Of a picture in several scans all coefficients are held, two bytes each; at most as many as there are pixels times
    /// components.
    pub(super) fn n_held_bytes(&self) -> usize {
        let info = self.info();
        let n_components = usize::try_from(info.num_components).unwrap_or(4);
        match self.has_multiple_scans() {
            true => info.image_width as usize * info.image_height as usize * n_components * 2,
            false => 0,
        }
    }

    fn has_multiple_scans(&self) -> bool {
        // SAFETY: only a flag is read, once the header has been.
        unsafe { ffi::jpeg_has_multiple_scans(self.info()) != 0 }
    }

    fn info(&self) -> &ffi::jpeg_decompress_struct {
        &self.decoder.info
    }

    fn info_mut(&mut self) -> &mut ffi::jpeg_decompress_struct {
        // SAFETY: the decoder is not moved.
        unsafe { &mut self.decoder.as_mut().get_unchecked_mut().info }
    }

    /// Calls into libjpeg, whose fatal errors come back as unwinding.
    fn guarded<T>(
        &mut self,
        call: impl FnOnce(&mut ffi::jpeg_decompress_struct) -> Result<T, DecodeError>,
    ) -> Result<T, DecodeError> {
        let info = self.info_mut();
        catch_unwind(AssertUnwindSafe(|| call(info))).unwrap_or_else(|payload| {
            match payload.downcast::<Fatal>() {
                Ok(fatal) => Err(fatal.0),
                Err(other) => resume_unwind(other),
            }
        })
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
