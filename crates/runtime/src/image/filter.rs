//! The interpolation filters of Pillow, by its names and numbers.

use serde::{Deserialize, Serialize};

/// The interpolation filters, with Pillow's names and supports; all but `nearest` antialias when they shrink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// The one source pixel below the centre; no filter.
    Nearest,
    /// Mean of the covered pixels, support 1/2.
    Box,
    /// Triangle, support 1.
    Bilinear,
    /// Hamming-windowed sinc, support 1.
    Hamming,
    /// Keys' cubic with a = -0.5, support 2.
    Bicubic,
    /// Windowed sinc, support 3.
    Lanczos,
}

impl Interpolation {
    /// All, in the order of their names here.
    pub const ALL: [Interpolation; 6] = [
        Interpolation::Nearest,
        Interpolation::Box,
        Interpolation::Bilinear,
        Interpolation::Hamming,
        Interpolation::Bicubic,
        Interpolation::Lanczos,
    ];

    /// The name that Pillow, torchvision, timm and the JSON of a [`Preprocess`](super::Preprocess) use, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Interpolation::Nearest => "nearest",
            Interpolation::Box => "box",
            Interpolation::Bilinear => "bilinear",
            Interpolation::Hamming => "hamming",
            Interpolation::Bicubic => "bicubic",
            Interpolation::Lanczos => "lanczos",
        }
    }

    /// The filter of that name.
    pub fn from_name(name: &str) -> Option<Interpolation> {
        Interpolation::ALL
            .into_iter()
            .find(|filter| filter.name() == name)
    }

    /// The filter of a number of `PIL.Image.Resampling`, as `preprocessor_config.json` gives it.
    pub fn from_pillow(number: u64) -> Option<Interpolation> {
        Some(match number {
            0 => Interpolation::Nearest,
            1 => Interpolation::Lanczos,
            2 => Interpolation::Bilinear,
            3 => Interpolation::Bicubic,
            4 => Interpolation::Box,
            5 => Interpolation::Hamming,
            _ => return None,
        })
    }

    /// How far the filter reaches to each side, in samples of the coarser grid. Not for [`Nearest`](Self::Nearest).
    pub(super) fn support(self) -> f64 {
        match self {
            Interpolation::Nearest | Interpolation::Box => 0.5,
            Interpolation::Bilinear | Interpolation::Hamming => 1.0,
            Interpolation::Bicubic => 2.0,
            Interpolation::Lanczos => 3.0,
        }
    }

    /// The filter's value at distance `x`, as `Resample.c` computes it.
    pub(super) fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        match self {
            Interpolation::Nearest | Interpolation::Box => {
                if x > -0.5 && x <= 0.5 {
                    1.0
                } else {
                    0.0
                }
            }
            Interpolation::Bilinear => {
                let x = x.abs();
                if x < 1.0 { 1.0 - x } else { 0.0 }
            }
            Interpolation::Hamming => {
                let x = x.abs();
                if x == 0.0 {
                    1.0
                } else if x >= 1.0 {
                    0.0
                } else {
                    // The constants are float32 in Pillow.
                    let x = x * std::f64::consts::PI;
                    x.sin() / x * (f64::from(0.54f32) + f64::from(0.46f32) * x.cos())
                }
            }
            Interpolation::Bicubic => {
                let x = x.abs();
                if x < 1.0 {
                    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * A
                } else {
                    0.0
                }
            }
            Interpolation::Lanczos => {
                if (-3.0..3.0).contains(&x) {
                    sinc(x) * sinc(x / 3.0)
                } else {
                    0.0
                }
            }
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for filter in Interpolation::ALL {
            assert_eq!(Interpolation::from_name(filter.name()), Some(filter));
            let json = format!("\"{}\"", filter.name());
            assert_eq!(serde_json::from_str::<Interpolation>(&json).unwrap(), filter);
        }
        assert_eq!(Interpolation::from_pillow(3), Some(Interpolation::Bicubic));
        assert_eq!(Interpolation::from_pillow(6), None);
        assert_eq!(Interpolation::from_name("cubic"), None);
    }
}
