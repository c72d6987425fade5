//! A picture's bytes to network input in one pass: no picture is held whole unless its format demands it.
//!
//! Rows go from the decoder straight into the resize, and finished rows straight into the network's input. Buffers are
//! the thread's own and stay for the next picture.

use std::borrow::Cow;
use std::cell::RefCell;

use super::decode::{DecodeError, Picture, Pixels};
use super::exif::Orientation;
use super::geometry::Plan;
use super::normalize::Values;
use super::resize::{Buffers, PIXEL, Resampler};
use super::spec::Preprocess;
use super::view::View;

/// What a thread keeps from picture to picture.
#[derive(Default)]
struct Scratch {
    buffers: Buffers,
    rows: Vec<u8>,
    /// What bytes became in the last preprocessing.
    values: Option<(Preprocess, Box<Values>)>,
}

/// Buffers above this are given back after the picture that needed them.
const KEPT_BYTES: usize = 16 << 20;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Calls with the thread's buffers, or with new ones where they are in use further up the stack.
fn with_scratch<T>(call: impl FnOnce(&mut Scratch) -> T) -> T {
    SCRATCH.with(|scratch| match scratch.try_borrow_mut() {
        Ok(mut scratch) => {
            let result = call(&mut scratch);
            scratch.buffers.trim(KEPT_BYTES);
            if scratch.rows.capacity() > KEPT_BYTES {
                scratch.rows = Vec::new();
            }
            result
        }
        Err(_) => call(&mut Scratch::default()),
    })
}

impl Scratch {
    /// Taken out, and put back by the caller: the buffers beside it are lent at the same time.
    fn take_values(&mut self, preprocess: &Preprocess) -> Box<Values> {
        match self.values.take() {
            Some((known, values)) if known == *preprocess => values,
            _ => Box::new(Values::new(preprocess)),
        }
    }
}

impl Preprocess {
    /// Decodes a picture and writes it as network input, `[3, H, W]`, into `out`, which holds
    /// [`numel`](Preprocess::numel) numbers. The same numbers as [`decode`](super::decode) and
    /// [`apply`](Preprocess::apply) give, without the picture in between.
    ///
    /// # Errors
    /// A [`DecodeError`] where Pillow would raise; `out` is then unspecified.
    ///
    /// # Panics
    /// Where `out` has another length.
    pub fn prepare(&self, encoded: &[u8], view: Option<&View>, out: &mut [f32]) -> Result<(), DecodeError> {
        let picture = self.open(encoded)?;
        with_scratch(|scratch| self.run(picture, view, scratch, out))
    }

    /// Writes decoded pixels as network input, `[3, H, W]`, into `out`, which holds [`numel`](Preprocess::numel) numbers.
    ///
    /// # Panics
    /// Where `out` has another length.
    pub fn apply(&self, pixels: &Pixels, view: Option<&View>, out: &mut [f32]) {
        let picture = Picture::Whole(Cow::Borrowed(pixels));
        // Only decoding fails, and these are decoded.
        let _: Result<(), DecodeError> = with_scratch(|scratch| self.run(picture, view, scratch, out));
    }

    /// The eight-bit pixels that the network sees, before they become numbers.
    pub fn pixels(&self, pixels: &Pixels, view: Option<&View>) -> Pixels {
        let plan = self.plan(pixels.width, pixels.height, view);
        let [red, green, blue] = self.fill;
        let mut data = [red, green, blue, 0].repeat(plan.out_width * plan.out_height);
        data.resize(data.len() + Pixels::PADDING, 0);
        let stride = plan.out_width * PIXEL;
        let picture = Picture::Whole(Cow::Borrowed(pixels));
        let _: Result<(), DecodeError> = with_scratch(|scratch| {
            self.resample(picture, &plan, scratch, &mut |row, pixels| {
                let row = &mut data[row * stride..(row + 1) * stride];
                for (x, pixel) in pixels.chunks_exact(PIXEL).enumerate() {
                    let x = plan.column(x) * PIXEL;
                    row[x..x + PIXEL].copy_from_slice(pixel);
                }
            })
        });
        Pixels {
            width: plan.out_width,
            height: plan.out_height,
            data,
        }
    }

    /// Columns and rows of a picture as this preprocessing sees it: what regions of views are measured in.
    ///
    /// # Errors
    /// As [`prepare`](Preprocess::prepare), for what the header shows.
    pub fn source_size(&self, encoded: &[u8]) -> Result<(usize, usize), DecodeError> {
        self.open(encoded).map(|picture| picture.size())
    }

    /// Opens a picture and sets what the decoder is to do.
    fn open<'b>(&self, encoded: &'b [u8]) -> Result<Picture<'b>, DecodeError> {
        let mut picture = Picture::open(encoded)?;
        if let (true, Picture::Jpeg(reader)) = (self.scaled_decode, &mut picture) {
            let (width, height) = reader.size();
            let (width, height) = self.resize.size(self.flavour, width, height);
            reader.draft(width, height);
        }
        if let (true, Some(orientation)) = (self.exif, Orientation::of(encoded)) {
            picture = Picture::Turned(Box::new(picture), orientation);
        }
        Ok(picture)
    }

    fn run(
        &self,
        picture: Picture<'_>,
        view: Option<&View>,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) -> Result<(), DecodeError> {
        assert_eq!(out.len(), self.numel(), "the room for one picture");
        let (width, height) = picture.size();
        let plan = self.plan(width, height, view);
        let values = scratch.take_values(self);
        let n_pixels = plan.out_width * plan.out_height;
        let (red, rest) = out.split_at_mut(n_pixels);
        let (green, blue) = rest.split_at_mut(n_pixels);
        let mut planes = [red, green, blue];
        if (plan.window.width, plan.window.height) != (plan.out_width, plan.out_height) {
            for ((channel, plane), fill) in planes.iter_mut().enumerate().zip(self.fill) {
                plane.fill(values.get(channel, fill));
            }
        }
        let result = self.resample(picture, &plan, scratch, &mut |row, pixels| {
            let [red, green, blue] = &mut planes;
            let start = row * plan.out_width + plan.column(0).min(plan.column(plan.window.width - 1));
            let span = start..start + plan.window.width;
            let planes = [&mut red[span.clone()], &mut green[span.clone()], &mut blue[span]];
            values.write_row(pixels, planes, plan.flip);
        });
        scratch.values = Some((self.clone(), values));
        result
    }

    /// Hands the rows of the plan's window to `sink`, each with its row of the network's input.
    fn resample(
        &self,
        picture: Picture<'_>,
        plan: &Plan,
        scratch: &mut Scratch,
        sink: &mut impl FnMut(usize, &[u8]),
    ) -> Result<(), DecodeError> {
        let mut resampler = Resampler::new(*plan, self.interpolation, &mut scratch.buffers);
        let (rows, columns, slack) = (
            resampler.wanted_rows(),
            resampler.wanted_columns(),
            resampler.slack(),
        );
        picture.rows(
            rows,
            columns,
            slack,
            &mut scratch.rows,
            &mut |bytes, stride, n_rows, first_column| {
                resampler.push(bytes, stride, n_rows, first_column, &mut |row, pixels| {
                    sink(row + plan.pad_top, pixels);
                });
            },
        )
    }
}

impl Plan {
    /// Where column `x` of the window goes.
    fn column(&self, x: usize) -> usize {
        if self.flip {
            self.out_width - 1 - (self.pad_left + x)
        } else {
            self.pad_left + x
        }
    }
}
