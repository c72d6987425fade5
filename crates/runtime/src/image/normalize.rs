//! Bytes to network input: red, green and blue into a plane each, by a table of what every byte becomes.
//!
//! With AVX2 the table is computed instead of read, two divisions each replaced by a multiplication and a correction;
//! that gives the same float32 numbers for nearly every mean and deviation, and it is used only where all 768 numbers
//! have been found equal to the table's. `unsafe` here is the loads and stores and the call into code that needs AVX2.

use super::resize::PIXEL;
use super::spec::Preprocess;

/// What bytes become.
#[derive(Debug)]
pub(super) struct Values {
    /// Per channel, by byte; the arithmetic is the library's own, in its order.
    table: [[f32; 256]; 3],
    formula: Option<[Formula; 3]>,
}

/// `(byte / 255 - mean) / std` without dividing.
#[derive(Debug, Clone, Copy)]
struct Formula {
    mean: f32,
    std: f32,
    inverse_std: f32,
}

const INVERSE_255: f32 = 1.0 / 255.0;

impl Formula {
    /// Markstein's division: the quotient by the rounded inverse, and its remainder divided the same way.
    fn value(self, byte: u8) -> f32 {
        let divide = |a: f32, b: f32, inverse: f32| {
            let quotient = a * inverse;
            quotient.mul_add(-b, a).mul_add(inverse, quotient)
        };
        let scaled = divide(f32::from(byte), 255.0, INVERSE_255);
        divide(scaled - self.mean, self.std, self.inverse_std)
    }
}

/// A row of each plane.
pub(super) type Planes<'o> = [&'o mut [f32]; 3];

impl Values {
    pub(super) fn new(preprocess: &Preprocess) -> Values {
        let table = preprocess.table();
        let formulas: [Formula; 3] = std::array::from_fn(|channel| Formula {
            mean: preprocess.mean[channel],
            std: preprocess.std[channel],
            inverse_std: 1.0 / preprocess.std[channel],
        });
        let equal = (0..=255u8).all(|byte| {
            formulas
                .iter()
                .zip(&table)
                .all(|(formula, table)| formula.value(byte).to_bits() == table[usize::from(byte)].to_bits())
        });
        Values {
            table,
            formula: (equal && is_fast()).then_some(formulas),
        }
    }

    /// What one byte of one channel becomes.
    pub(super) fn get(&self, channel: usize, byte: u8) -> f32 {
        self.table[channel][usize::from(byte)]
    }

    /// Writes a row of pixels; mirrored left to right where `flip` says so.
    pub(super) fn write_row(&self, pixels: &[u8], planes: Planes<'_>, flip: bool) {
        #[cfg(target_arch = "x86_64")]
        if let Some(formulas) = &self.formula {
            avx2::write_row(formulas, self, pixels, planes, flip);
            return;
        }
        self.write_row_by_table(pixels, planes, flip);
    }

    fn write_row_by_table(&self, pixels: &[u8], [red, green, blue]: Planes<'_>, flip: bool) {
        let write = |pixel: &[u8], red: &mut f32, green: &mut f32, blue: &mut f32| {
            *red = self.get(0, pixel[0]);
            *green = self.get(1, pixel[1]);
            *blue = self.get(2, pixel[2]);
        };
        let planes = red.iter_mut().zip(green).zip(blue);
        let pixels = pixels.chunks_exact(PIXEL);
        if flip {
            for (pixel, ((red, green), blue)) in pixels.zip(planes.rev()) {
                write(pixel, red, green, blue);
            }
        } else {
            for (pixel, ((red, green), blue)) in pixels.zip(planes) {
                write(pixel, red, green, blue);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn is_fast() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

#[cfg(not(target_arch = "x86_64"))]
fn is_fast() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{Formula, INVERSE_255, PIXEL, Planes, Values, is_fast};

    /// Pixels of one vector.
    const STEP: usize = 8;

    pub(super) fn write_row(
        formulas: &[Formula; 3],
        values: &Values,
        pixels: &[u8],
        planes: Planes<'_>,
        flip: bool,
    ) {
        let n_pixels = pixels.len() / PIXEL;
        assert!(is_fast());
        assert!(planes.iter().all(|plane| plane.len() == n_pixels));
        let n_vector = n_pixels / STEP * STEP;
        let [red, green, blue] = planes;
        // What is left is at the row's end, which comes first where it is mirrored.
        let rest = if flip {
            0..n_pixels - n_vector
        } else {
            n_vector..n_pixels
        };
        let rest_planes = [&mut red[rest.clone()], &mut green[rest.clone()], &mut blue[rest]];
        values.write_row_by_table(&pixels[n_vector * PIXEL..], rest_planes, flip);
        let (red, green, blue) = (red.as_mut_ptr(), green.as_mut_ptr(), blue.as_mut_ptr());
        // SAFETY: AVX2 and FMA are there; the planes and the row have `n_pixels` each, of which `n_vector` are touched.
        unsafe {
            run(
                formulas,
                pixels.as_ptr(),
                [red, green, blue],
                n_pixels,
                n_vector,
                flip,
            );
        }
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn run(
        formulas: &[Formula; 3],
        pixels: *const u8,
        planes: [*mut f32; 3],
        n_pixels: usize,
        n_vector: usize,
        flip: bool,
    ) {
        let mask = _mm256_set1_epi32(0xff);
        let backwards = _mm256_setr_epi32(7, 6, 5, 4, 3, 2, 1, 0);
        for x in (0..n_vector).step_by(STEP) {
            // SAFETY: eight pixels from `x` on lie inside the row.
            let mut eight = unsafe { _mm256_loadu_si256(pixels.add(x * PIXEL).cast()) };
            let to = if flip {
                eight = _mm256_permutevar8x32_epi32(eight, backwards);
                n_pixels - STEP - x
            } else {
                x
            };
            let channels = [
                _mm256_and_si256(eight, mask),
                _mm256_and_si256(_mm256_srli_epi32::<8>(eight), mask),
                _mm256_and_si256(_mm256_srli_epi32::<16>(eight), mask),
            ];
            for ((bytes, formula), plane) in channels.into_iter().zip(formulas).zip(planes) {
                let scaled = divide(_mm256_cvtepi32_ps(bytes), 255.0, INVERSE_255);
                let centred = _mm256_sub_ps(scaled, _mm256_set1_ps(formula.mean));
                let value = divide(centred, formula.std, formula.inverse_std);
                // SAFETY: eight numbers from `to` on lie inside the plane.
                unsafe { _mm256_storeu_ps(plane.add(to), value) };
            }
        }
    }

    /// As in `Formula::value`.
    #[target_feature(enable = "avx2,fma")]
    fn divide(a: __m256, b: f32, inverse: f32) -> __m256 {
        let inverse = _mm256_set1_ps(inverse);
        let quotient = _mm256_mul_ps(a, inverse);
        let remainder = _mm256_fnmadd_ps(quotient, _mm256_set1_ps(b), a);
        _mm256_fmadd_ps(remainder, inverse, quotient)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Flavour;

    fn check(preprocess: &Preprocess) -> bool {
        let values = Values::new(preprocess);
        for n_pixels in [1, 7, 8, 9, 31, 64, 256] {
            let pixels: Vec<u8> = (0..n_pixels * PIXEL)
                .map(|idx| (idx * 37 + idx / 256) as u8)
                .collect();
            for flip in [false, true] {
                let run = |write: &dyn Fn(Planes<'_>)| {
                    let mut planes = [
                        vec![f32::NAN; n_pixels],
                        vec![f32::NAN; n_pixels],
                        vec![f32::NAN; n_pixels],
                    ];
                    write(planes.each_mut().map(Vec::as_mut_slice));
                    planes.map(|plane| plane.into_iter().map(f32::to_bits).collect::<Vec<_>>())
                };
                let fast = run(&|planes| values.write_row(&pixels, planes, flip));
                let slow = run(&|planes| values.write_row_by_table(&pixels, planes, flip));
                assert_eq!(fast, slow, "{n_pixels} pixels, flip {flip}");
            }
        }
        values.formula.is_some()
    }

    #[test]
    fn computed_numbers_are_the_tables() {
        let imagenet = Preprocess::imagenet();
        let mut n_fast = usize::from(check(&imagenet));
        let mut n = 1;
        for mean in [0.0, 0.5, 0.481_454_66, 0.123_456_79] {
            for std in [1.0, 0.5, 0.268_629_54, 0.003_921_569, 3.7] {
                for flavour in [Flavour::Torchvision, Flavour::Transformers] {
                    n_fast += usize::from(check(&Preprocess {
                        mean: [mean; 3],
                        std: [std, 0.229, std],
                        flavour,
                        ..imagenet.clone()
                    }));
                    n += 1;
                }
            }
        }
        assert!(!is_fast() || n_fast > n / 2, "{n_fast} of {n} by the formula");
        // Other arithmetic is not the formula's, and is left to the table.
        assert!(!check(&Preprocess {
            rescale: 1.0,
            ..imagenet.clone()
        }));
        assert!(!check(&Preprocess {
            offset: 1.0,
            ..imagenet.clone()
        }));
        assert!(!check(&Preprocess {
            second_std: Some([0.5; 3]),
            ..imagenet
        }));
    }
}
