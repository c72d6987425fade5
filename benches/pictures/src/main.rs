//! `pictures-bench`: a question a line on stdin, `SIDE TASK PATH`; the seconds of one go a line on stdout.
//!
//! Tasks: `decode` gives RGB pixels; `resample` takes decoded pixels to 224 x 224 of the short side 256, bilinear and
//! antialiased; `whole` is both. Graftwork's `resample` and `whole` end with float32 numbers, normalised, where the peers
//! end with bytes: it is the only side that does that work too.

use std::collections::HashMap;
use std::hint::black_box;
use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fast_image_resize as fir;
use image::imageops::FilterType;
use image::{ImageFormat, RgbImage};
use runtime::image::{Preprocess, decode};
use zune_jpeg::JpegDecoder;

const RESIZE: usize = 256;
const CROP: usize = 224;

fn main() -> Result<()> {
    let mut files: HashMap<String, Vec<u8>> = HashMap::new();
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let [side, task, path] = line.split(' ').collect::<Vec<_>>()[..] else {
            bail!("`{line}` is not SIDE TASK PATH");
        };
        if !files.contains_key(path) {
            files.insert(path.to_owned(), std::fs::read(path).with_context(|| path.to_owned())?);
        }
        let elapsed = measure(side, task, &files[path]).with_context(|| line.clone())?;
        writeln!(out, "{}", elapsed.as_secs_f64())?;
        out.flush()?;
    }
    Ok(())
}

fn measure(side: &str, task: &str, bytes: &[u8]) -> Result<Duration> {
    let timed = |work: &mut dyn FnMut() -> Result<()>| -> Result<Duration> {
        let start = Instant::now();
        work()?;
        Ok(start.elapsed())
    };
    let preprocess = Preprocess::imagenet();
    // Touched, as a batch's buffer is that has been used before.
    let mut input = vec![1f32; preprocess.numel()];
    match (side, task) {
        ("graftwork", "decode") => timed(&mut || {
            black_box(decode(black_box(bytes))?);
            Ok(())
        }),
        ("graftwork", "resample") => {
            let pixels = decode(bytes)?;
            timed(&mut || {
                preprocess.apply(black_box(&pixels), None, &mut input);
                black_box(&input);
                Ok(())
            })
        }
        ("graftwork", "whole") => timed(&mut || {
            preprocess.prepare(black_box(bytes), None, &mut input)?;
            black_box(&input);
            Ok(())
        }),
        ("zune-jpeg", "decode") => timed(&mut || {
            black_box(zune(black_box(bytes))?);
            Ok(())
        }),
        ("image", "decode") => timed(&mut || {
            black_box(image_decode(black_box(bytes))?);
            Ok(())
        }),
        ("fast_image_resize", "resample") => {
            let (rgb, width, height) = zune(bytes)?;
            timed(&mut || {
                black_box(fir_resample(&rgb, width, height)?);
                Ok(())
            })
        }
        ("image", "resample") => {
            let picture = image_decode(bytes)?;
            timed(&mut || {
                black_box(image_resample(&picture));
                Ok(())
            })
        }
        ("zune-jpeg+fast_image_resize", "whole") => timed(&mut || {
            let (rgb, width, height) = zune(black_box(bytes))?;
            black_box(fir_resample(&rgb, width, height)?);
            Ok(())
        }),
        ("image", "whole") => timed(&mut || {
            black_box(image_resample(&image_decode(black_box(bytes))?));
            Ok(())
        }),
        _ => bail!("no such side or task"),
    }
}

fn zune(bytes: &[u8]) -> Result<(Vec<u8>, usize, usize)> {
    let mut decoder = JpegDecoder::new(zune_core::bytestream::ZCursor::new(bytes));
    let pixels = decoder.decode().map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let (width, height) = decoder.dimensions().context("no size")?;
    anyhow::ensure!(pixels.len() == width * height * 3, "not RGB");
    Ok((pixels, width, height))
}

fn image_decode(bytes: &[u8]) -> Result<RgbImage> {
    Ok(image::load_from_memory_with_format(bytes, ImageFormat::Jpeg)?.into_rgb8())
}

/// `Resize(256)`: width and height.
fn resized(width: usize, height: usize) -> (usize, usize) {
    if width <= height {
        (RESIZE, RESIZE * height / width)
    } else {
        (RESIZE * width / height, RESIZE)
    }
}

fn fir_resample(rgb: &[u8], width: usize, height: usize) -> Result<Vec<u8>> {
    let source = fir::images::ImageRef::new(width as u32, height as u32, rgb, fir::PixelType::U8x3)?;
    let (to_width, to_height) = resized(width, height);
    let mut target = fir::images::Image::new(to_width as u32, to_height as u32, fir::PixelType::U8x3);
    let options = fir::ResizeOptions::new().resize_alg(fir::ResizeAlg::Convolution(fir::FilterType::Bilinear));
    fir::Resizer::new().resize(&source, &mut target, &options)?;
    let (left, top) = ((to_width - CROP) / 2, (to_height - CROP) / 2);
    let rows = target.buffer().chunks_exact(to_width * 3).skip(top).take(CROP);
    Ok(rows.flat_map(|row| row[left * 3..(left + CROP) * 3].iter().copied()).collect())
}

fn image_resample(picture: &RgbImage) -> RgbImage {
    let (width, height) = resized(picture.width() as usize, picture.height() as usize);
    let whole = image::imageops::resize(picture, width as u32, height as u32, FilterType::Triangle);
    let (left, top) = ((width - CROP) / 2, (height - CROP) / 2);
    image::imageops::crop_imm(&whole, left as u32, top as u32, CROP as u32, CROP as u32).to_image()
}
