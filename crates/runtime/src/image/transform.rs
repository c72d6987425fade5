//! torchvision's evaluation transform: `Resize`, `CenterCrop`, `ToTensor`, `Normalize`.

use serde::{Deserialize, Serialize};

use super::decode::Pixels;
use super::resize::{Interpolation, Window, resize};

/// How a picture becomes network input. All of it is part of the feature cache's key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocess {
    /// The short side after resizing (`torchvision.transforms.Resize(size)`).
    pub resize: usize,
    /// The side of the square that is cut from the centre (`CenterCrop(size)`); padded with black where it is larger.
    pub crop: usize,
    /// The filter.
    pub interpolation: Interpolation,
    /// Subtracted per channel after the division by 255.
    pub mean: [f32; 3],
    /// Divided by per channel after that.
    pub std: [f32; 3],
}

impl Preprocess {
    /// The transform of torchvision's ImageNet models: 256, 224, bilinear, ImageNet's mean and deviation.
    pub fn imagenet() -> Preprocess {
        Preprocess {
            resize: 256,
            crop: 224,
            interpolation: Interpolation::Bilinear,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
        }
    }

    /// Whether every part is in range; says which is not.
    ///
    /// # Errors
    /// A sentence for the caller.
    pub fn check(&self) -> Result<(), String> {
        const MAX_SIDE: usize = 1 << 14;
        for (what, side) in [("resize", self.resize), ("crop", self.crop)] {
            if side == 0 || side > MAX_SIDE {
                return Err(format!("{what} {side} is not between 1 and {MAX_SIDE}"));
            }
        }
        if !self.mean.iter().chain(&self.std).all(|value| value.is_finite()) || self.std.contains(&0.0) {
            return Err("mean and std are finite, and no std is zero".to_owned());
        }
        Ok(())
    }

    /// Numbers in one picture: `3 * crop * crop`.
    pub fn numel(&self) -> usize {
        3 * self.crop * self.crop
    }

    /// The eight-bit pixels that the network sees: `crop` x `crop`.
    pub fn crop_pixels(&self, source: &Pixels) -> Pixels {
        let (width, height) = self.resized_size(source.width(), source.height());
        let (left, pad_left, kept_width) = center(width, self.crop);
        let (top, pad_top, kept_height) = center(height, self.crop);
        let window = Window {
            left,
            top,
            width: kept_width,
            height: kept_height,
        };
        let kept = resize(source, width, height, self.interpolation, window);
        if kept_width == self.crop && kept_height == self.crop {
            return kept;
        }
        let mut padded = Pixels {
            width: self.crop,
            height: self.crop,
            data: vec![0; self.crop * self.crop * 4 + Pixels::PADDING],
        };
        for (row, from) in kept
            .data
            .chunks_exact(kept_width * 4)
            .take(kept_height)
            .enumerate()
        {
            let at = ((row + pad_top) * self.crop + pad_left) * 4;
            padded.data[at..at + from.len()].copy_from_slice(from);
        }
        padded
    }

    pub fn shape(&self) -> [usize; 3] {
        [3, self.crop, self.crop]
    }

    pub fn source_size(&self, encoded: &[u8]) -> Result<(usize, usize), super::DecodeError> {
        let pixels = super::decode(encoded)?;
        Ok((pixels.width(), pixels.height()))
    }

    pub fn prepare(
        &self,
        encoded: &[u8],
        view: Option<&super::View>,
        out: &mut [f32],
    ) -> Result<(), super::DecodeError> {
        self.apply(&super::decode(encoded)?, view, out);
        Ok(())
    }

    /// Writes the picture as `[3, crop, crop]` into `out`, which holds [`numel`](Preprocess::numel) numbers.
    pub fn apply(&self, source: &Pixels, _view: Option<&super::View>, out: &mut [f32]) {
        let pixels = self.crop_pixels(source);
        // There are 256 values per channel; the arithmetic is torch's, in f32, in its order.
        let table: [[f32; 256]; 3] = std::array::from_fn(|channel| {
            std::array::from_fn(|value| (value as f32 / 255.0 - self.mean[channel]) / self.std[channel])
        });
        let (red, rest) = out.split_at_mut(self.crop * self.crop);
        let (green, blue) = rest.split_at_mut(self.crop * self.crop);
        let planes = red.iter_mut().zip(green).zip(blue);
        for (pixel, ((red, green), blue)) in pixels.data.chunks_exact(4).zip(planes) {
            *red = table[0][usize::from(pixel[0])];
            *green = table[1][usize::from(pixel[1])];
            *blue = table[2][usize::from(pixel[2])];
        }
    }

    /// `Resize(int)`: the short side becomes `resize`, the long one keeps the ratio and is rounded down.
    fn resized_size(&self, width: usize, height: usize) -> (usize, usize) {
        let long = |short: usize, long: usize| (((self.resize * long) as f64 / short as f64) as usize).max(1);
        if width <= height {
            (self.resize, long(width, height))
        } else {
            (long(height, width), self.resize)
        }
    }
}

/// First sample kept, samples of padding before it, and samples kept, for a centre crop of one axis.
///
/// torchvision pads `(crop - n) / 2` in front (rounded down), and starts a crop at `round((n - crop) / 2)` with
/// Python's rounding of halves to even.
fn center(n: usize, crop: usize) -> (usize, usize, usize) {
    if n <= crop {
        return (0, (crop - n) / 2, n);
    }
    let start = ((n - crop) as f64 / 2.0).round_ties_even() as usize;
    (start, 0, crop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crops_start_where_torchvision_starts_them() {
        // runtime.md 5.2, measured: 257 -> 16, 259 -> 18, 261 -> 18.
        for (n, start) in [(256, 16), (257, 16), (258, 17), (259, 18), (261, 18), (224, 0)] {
            assert_eq!(center(n, 224), (start, 0, 224), "{n}");
        }
        assert_eq!(center(221, 224), (0, 1, 221));
    }
}
