use super::super::decode::Pixels;
use super::super::geometry::Window;
use super::super::view::Region;
use super::*;

fn noise(width: usize, height: usize) -> Pixels {
    let mut pixels = Pixels::new(width, height).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ (width * 1000 + height) as u64;
    for byte in &mut pixels.data {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // Many extremes, so that the clipping of overshoots is exercised.
        *byte = match state >> 61 {
            0 => 0,
            1 => 255,
            _ => (state >> 33) as u8,
        };
    }
    pixels
}

fn whole_axis(filter: Interpolation, n_in: usize, n_out: usize) -> Taps {
    Taps::new(Axis {
        filter,
        n_in,
        n_out,
        first: 0,
        count: n_out,
    })
}

/// The definition, without windows, crops or vectors: whole picture, one sum per pixel.
fn naive(source: &Pixels, width: usize, height: usize, filter: Interpolation) -> Vec<u8> {
    let pass = |data: &[u8], n_in: usize, n_out: usize, others: usize, step: usize, other_step: usize| {
        let taps = whole_axis(filter, n_in, n_out);
        let mut out = vec![0u8; n_out * others * PIXEL];
        for other in 0..others {
            for (idx, (start, n_taps)) in taps.windows.iter().enumerate() {
                for channel in 0..PIXEL {
                    let mut sum = 1i64 << 21;
                    for tap in 0..*n_taps {
                        let value = data[(other * other_step + (start + tap) * step) * PIXEL + channel];
                        sum += i64::from(value) * i64::from(taps.weights_of(idx)[tap]);
                    }
                    let to = if step == 1 {
                        other * n_out + idx
                    } else {
                        idx * others + other
                    };
                    out[to * PIXEL + channel] = (sum >> 22).clamp(0, 255) as u8;
                }
            }
        }
        out
    };
    let mut data = source.data[..source.width * source.height * PIXEL].to_vec();
    let (w, h) = (source.width as i64, source.height as i64);
    if h > height as i64 && h - height as i64 > 2 * (w - width as i64) {
        data = pass(&data, source.height, height, source.width, source.width, 1);
        if width != source.width {
            data = pass(&data, source.width, width, height, 1, source.width);
        }
        return data;
    }
    if width != source.width {
        data = pass(&data, source.width, width, source.height, 1, source.width);
    }
    if height != source.height {
        data = pass(&data, source.height, height, width, width, 1);
    }
    data
}

/// The window of the region, through the row-by-row machine.
fn streamed(source: &Pixels, plan: Plan, filter: Interpolation) -> Vec<u8> {
    let mut buffers = Buffers::default();
    let mut resampler = Resampler::new(plan, filter, &mut buffers);
    let columns = resampler.wanted_columns();
    let mut out = Vec::new();
    for row in resampler.wanted_rows() {
        // Rows are cut to the wanted columns, so that a read beside them would be seen.
        let start = (row * source.width + columns.start) * PIXEL;
        let row = &source.data[start..start + columns.len() * PIXEL];
        resampler.push(row, row.len(), 1, columns.start, &mut |idx, row| {
            assert_eq!(idx * row.len(), out.len());
            out.extend_from_slice(row);
        });
    }
    out
}

fn plan(region: Region, width: usize, height: usize, window: Window) -> Plan {
    Plan {
        region,
        width,
        height,
        window,
        pad_left: 0,
        pad_top: 0,
        out_width: window.width,
        out_height: window.height,
        flip: false,
    }
}

#[test]
fn windows_of_regions_equal_the_whole() {
    let sizes = [
        (64, 48, 32, 24),
        (37, 53, 90, 128),
        (50, 50, 50, 20),
        (50, 50, 20, 50),
        (1, 1, 7, 5),
        (3, 40, 256, 3),
        (33, 21, 33, 21),
        (300, 7, 11, 64),
        (7, 300, 64, 11),
        (75, 100, 51, 51),
        (200, 90, 190, 40),
    ];
    for (w, h, to_w, to_h) in sizes {
        let source = noise(w, h);
        // The region as a picture of its own.
        let region = Region {
            left: w / 4,
            top: h / 5,
            width: w - w / 3,
            height: h - h / 4,
        };
        let mut cut = Pixels::new(region.width, region.height).unwrap();
        for y in 0..region.height {
            let from = ((region.top + y) * w + region.left) * PIXEL;
            let n_bytes = region.width * PIXEL;
            cut.data[y * n_bytes..(y + 1) * n_bytes].copy_from_slice(&source.data[from..from + n_bytes]);
        }
        let whole = Region {
            left: 0,
            top: 0,
            width: w,
            height: h,
        };
        for filter in Interpolation::ALL {
            for (region, picture) in [(whole, &source), (region, &cut)] {
                let want = naive(picture, to_w, to_h, filter);
                for window in [
                    Window {
                        left: 0,
                        top: 0,
                        width: to_w,
                        height: to_h,
                    },
                    Window {
                        left: to_w / 3,
                        top: to_h / 4,
                        width: to_w - to_w / 2,
                        height: to_h - to_h / 3,
                    },
                ] {
                    let got = streamed(&source, plan(region, to_w, to_h, window), filter);
                    assert_eq!(got.len(), window.width * window.height * PIXEL);
                    assert_eq!(at_once(&source, plan(region, to_w, to_h, window), filter), got);
                    for (idx, pixel) in got.chunks_exact(PIXEL).enumerate() {
                        let (x, y) = (idx % window.width, idx / window.width);
                        let at = ((y + window.top) * to_w + x + window.left) * PIXEL;
                        let what = format!("{filter:?} {region:?} -> {to_w}x{to_h} at {x},{y}");
                        assert_eq!(pixel[..3], want[at..at + 3], "{what}");
                    }
                }
            }
        }
    }
}

/// All rows at once, as whole pictures are pushed.
fn at_once(source: &Pixels, plan: Plan, filter: Interpolation) -> Vec<u8> {
    let mut buffers = Buffers::default();
    let mut resampler = Resampler::new(plan, filter, &mut buffers);
    let rows = resampler.wanted_rows();
    let mut out = Vec::new();
    let from = &source.data[rows.start * source.width * PIXEL..];
    resampler.push(from, source.width * PIXEL, rows.len(), 0, &mut |_, row| {
        out.extend_from_slice(row);
    });
    out
}

#[test]
fn vectors_equal_scalars() {
    let source = noise(131, 64);
    let stride = 131 * PIXEL;
    for (filter, n_out, first, count) in [
        (Interpolation::Bicubic, 50, 3, 40),
        (Interpolation::Lanczos, 17, 0, 17),
        (Interpolation::Bilinear, 300, 10, 99),
        (Interpolation::Nearest, 77, 0, 77),
    ] {
        let taps = Taps::new(Axis {
            filter,
            n_in: 131,
            n_out,
            first,
            count,
        });
        assert!(taps.has_digits);
        for n_rows in [1, 2, 3, 4, 5, 9, 64] {
            let mut want = vec![0; n_rows * count * PIXEL];
            for (row, out) in want.chunks_exact_mut(count * PIXEL).enumerate() {
                horizontal_scalar(&source.data[row * stride..], 0, &taps, out);
            }
            let mut got = vec![0; want.len()];
            horizontal(&source.data, stride, n_rows, 0, &taps, &mut got, &mut Vec::new());
            assert_eq!(got, want, "{filter:?}, {n_rows} rows");
            #[cfg(target_arch = "x86_64")]
            if avx2::is_available() && n_rows < 64 {
                for (row, out) in got.chunks_exact_mut(count * PIXEL).enumerate() {
                    avx2::horizontal(&source.data[row * stride..], 0, &taps, out);
                }
                assert_eq!(got, want, "{filter:?}, AVX2");
            }
        }
    }
    for (filter, n_out) in [
        (Interpolation::Lanczos, 21),
        (Interpolation::Bilinear, 200),
        (Interpolation::Bicubic, 63),
    ] {
        let taps = whole_axis(filter, 64, n_out);
        for (idx, (start, _)) in taps.windows.iter().enumerate() {
            let rows = &source.data[start * stride..];
            // Also widths that are no multiple of a vector's.
            for n_bytes in [stride, 64, 60, 4, 224] {
                let (mut fast, mut slow) = (vec![0; n_bytes], vec![0; n_bytes]);
                column_sums_scalar(rows, stride, taps.weights_of(idx), &mut slow);
                column_sums(rows, stride, &taps, idx, &mut fast);
                assert_eq!(fast, slow, "{filter:?}");
                #[cfg(target_arch = "x86_64")]
                if avx2::is_available() {
                    avx2::column_sums(rows, stride, taps.weights_of(idx), &mut fast);
                    assert_eq!(fast, slow, "{filter:?}, AVX2");
                }
            }
        }
    }
}

#[test]
fn the_cache_of_taps_forgets_the_oldest() {
    let mut cache = TapsCache::default();
    let axis = |n_in| Axis {
        filter: Interpolation::Bilinear,
        n_in,
        n_out: 5,
        first: 0,
        count: 5,
    };
    let first = cache.get(axis(10));
    assert!(Arc::ptr_eq(&first, &cache.get(axis(10))));
    for n_in in 11..30 {
        cache.get(axis(n_in));
    }
    assert!(!Arc::ptr_eq(&first, &cache.get(axis(10))));
}
