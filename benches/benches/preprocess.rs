//! Decoding and transforming pictures on one thread, in milliseconds per picture.
//!
//! `cargo bench --package graftwork-benches -- FOLDER [RESIZE CROP]`

use std::hint::black_box;
use std::time::Instant;

use runtime::data::{Content, Dataset};
use runtime::image::{Preprocess, decode};

/// Each picture is done this often; the best counts, for the machine is shared.
const ROUNDS: usize = 5;

#[expect(clippy::print_stdout, reason = "a measurement prints its result")]
fn main() {
    // Cargo adds `--bench`.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let side = |at: usize, default| {
        args.get(at)
            .map_or(default, |arg| arg.parse().expect("a number of pixels"))
    };
    let folder = args.first().expect("a folder of pictures");
    let preprocess = Preprocess {
        resize: side(1, 256).into(),
        crop: side(2, 224).into(),
        ..Preprocess::imagenet()
    };
    let data = Dataset::of_pictures(&[folder.into()]).expect("a folder of pictures");
    let mut reader = data.reader();
    let pictures: Vec<Vec<u8>> = (0..data.len())
        .filter_map(|picture| match reader.read(picture) {
            Ok(Content::Encoded(bytes)) => Some(bytes.into_owned()),
            _ => None,
        })
        .collect();
    let mut input = vec![0.0; preprocess.numel()];
    let (mut decode_s, mut transform_s, mut prepare_s, mut n) = (0.0, 0.0, 0.0, 0);
    for bytes in &pictures {
        let (mut best_decode, mut best_transform, mut best_prepare) = (f64::MAX, f64::MAX, f64::MAX);
        for _ in 0..ROUNDS {
            let start = Instant::now();
            let Ok(pixels) = decode(black_box(bytes)) else {
                break;
            };
            let decoded = Instant::now();
            preprocess.apply(&pixels, None, black_box(&mut input));
            best_decode = best_decode.min((decoded - start).as_secs_f64());
            best_transform = best_transform.min(decoded.elapsed().as_secs_f64());
            let start = Instant::now();
            if preprocess
                .prepare(black_box(bytes), None, black_box(&mut input))
                .is_ok()
            {
                best_prepare = best_prepare.min(start.elapsed().as_secs_f64());
            }
        }
        if best_decode < f64::MAX {
            decode_s += best_decode;
            transform_s += best_transform;
            prepare_s += best_prepare;
            n += 1;
        }
    }
    assert!(n > 0, "no picture could be read");
    let ms = |seconds: f64| seconds * 1e3 / f64::from(n);
    println!(
        "{n} pictures: decode {:.3} ms, resize + crop + normalise {:.3} ms, both in one pass {:.3} ms each",
        ms(decode_s),
        ms(transform_s),
        ms(prepare_s)
    );
}
