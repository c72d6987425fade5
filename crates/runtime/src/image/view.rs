//! Views: parts of a picture, mirrored or not, as random augmentation takes them.
//!
//! A view is a function of the seed, the picture's content and the view's number, and of nothing else: in whatever order,
//! by whatever number of workers, and whether two views are made or ten.

use serde::{Deserialize, Serialize};

/// A rectangle of the picture, in its own pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// First column.
    pub left: usize,
    /// First row.
    pub top: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// How one view of a picture differs from the evaluation transform.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// This part of the picture is resampled to the network's input, in place of resize and centre crop
    /// (`torchvision.transforms.functional.resized_crop`). It is clipped to the picture.
    pub region: Option<Region>,
    /// Mirrored left to right, at the end (`hflip`).
    pub flip: bool,
}

/// What a random view is: torchvision's `RandomResizedCrop` and `RandomHorizontalFlip`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Augment {
    /// Decides everything, together with the picture's content and the view's number.
    pub seed: u64,
    /// The random part; `None` keeps the evaluation transform, for views that only differ in being mirrored.
    pub crop: Option<RandomCrop>,
    /// The probability that a view is mirrored, 0 to 1.
    pub flip: f64,
}

/// `RandomResizedCrop`'s ranges.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomCrop {
    /// The part's share of the picture's area, from and to.
    pub scale: [f64; 2],
    /// Its width divided by its height, from and to.
    pub ratio: [f64; 2],
}

impl Augment {
    /// torchvision's defaults for training: 8 % to 100 % of the area, ratios 3/4 to 4/3, mirrored half the time.
    pub fn imagenet(seed: u64) -> Augment {
        Augment {
            seed,
            crop: Some(RandomCrop {
                scale: [0.08, 1.0],
                ratio: [3.0 / 4.0, 4.0 / 3.0],
            }),
            flip: 0.5,
        }
    }

    /// The mirrored picture, always: with the plain one, all that flipping can give.
    pub fn mirror() -> Augment {
        Augment {
            seed: 0,
            crop: None,
            flip: 1.0,
        }
    }

    /// Whether every part is in range; says which is not.
    ///
    /// # Errors
    /// A sentence for the caller.
    pub fn check(&self) -> Result<(), String> {
        if !(0.0..=1.0).contains(&self.flip) {
            return Err(format!(
                "the probability {} of a flip is not between 0 and 1",
                self.flip
            ));
        }
        let Some(crop) = &self.crop else {
            return Ok(());
        };
        let ascends = |[from, to]: [f64; 2]| from > 0.0 && from <= to && to.is_finite();
        if !ascends(crop.scale) || crop.scale[1] > 1.0 {
            let [from, to] = crop.scale;
            return Err(format!(
                "the random crop's share of the area, {from} to {to}, is not within 0 to 1"
            ));
        }
        if !ascends(crop.ratio) {
            let [from, to] = crop.ratio;
            return Err(format!(
                "the random crop's ratio, {from} to {to}, is not a range of positive numbers"
            ));
        }
        Ok(())
    }

    /// Whether the views of a picture can differ from each other.
    pub fn is_random(&self) -> bool {
        let flips = self.flip > 0.0 && self.flip < 1.0;
        let crops = self.crop.is_some_and(|crop| {
            let [narrowest, widest] = crop.ratio;
            crop.scale != [1.0, 1.0] || narrowest < widest
        });
        flips || crops
    }

    /// View `index` of the picture `id` (the BLAKE3 digest of its bytes), whose size is (width, height) as
    /// [`Preprocess::source_size`](super::Preprocess::source_size) gives it.
    pub fn view(&self, id: &[u8; 32], index: u32, size: (usize, usize)) -> View {
        let mut draws = Draws::new(self.seed, id, index);
        let region = self.crop.as_ref().map(|crop| crop.region(&mut draws, size));
        View {
            region,
            flip: draws.unit() < self.flip,
        }
    }
}

impl RandomCrop {
    /// `RandomResizedCrop.get_params`: ten tries, then the largest centred part whose ratio is allowed.
    fn region(&self, draws: &mut Draws, (width, height): (usize, usize)) -> Region {
        const TRIES: usize = 10;
        let (w, h) = (width as f64, height as f64);
        let log_ratio = self.ratio.map(f64::ln);
        for _ in 0..TRIES {
            let area = w * h * draws.between(self.scale);
            let ratio = draws.between(log_ratio).exp();
            let part_w = (area * ratio).sqrt().round_ties_even() as usize;
            let part_h = (area / ratio).sqrt().round_ties_even() as usize;
            if (1..=width).contains(&part_w) && (1..=height).contains(&part_h) {
                return Region {
                    top: draws.below(height - part_h + 1),
                    left: draws.below(width - part_w + 1),
                    width: part_w,
                    height: part_h,
                };
            }
        }
        let [narrowest, widest] = self.ratio;
        let rounded = |side: f64, limit: usize| (side.round_ties_even() as usize).clamp(1, limit.max(1));
        let (part_w, part_h) = if w / h < narrowest {
            (width, rounded(w / narrowest, height))
        } else if w / h > widest {
            (rounded(h * widest, width), height)
        } else {
            (width, height)
        };
        Region {
            left: (width - part_w) / 2,
            top: (height - part_h) / 2,
            width: part_w,
            height: part_h,
        }
    }
}

/// Numbers for one view: BLAKE3's output stream over (seed, picture, index).
struct Draws(blake3::OutputReader);

impl Draws {
    fn new(seed: u64, id: &[u8; 32], index: u32) -> Draws {
        let mut hasher = blake3::Hasher::new_derive_key("graftwork 2026-11 random view of a picture");
        hasher
            .update(&seed.to_le_bytes())
            .update(id)
            .update(&index.to_le_bytes());
        Draws(hasher.finalize_xof())
    }

    /// In `0..1`, with 53 random bits.
    fn unit(&mut self) -> f64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        (u64::from_le_bytes(bytes) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn between(&mut self, [from, to]: [f64; 2]) -> f64 {
        from + (to - from) * self.unit()
    }

    /// In `0..bound`; the bias is below 2⁻²⁰ for any picture.
    fn below(&mut self, bound: usize) -> usize {
        ((self.unit() * bound as f64) as usize).min(bound.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_depends_on_seed_picture_and_number_alone() {
        let augment = Augment::imagenet(3);
        let view = |seed, id, index| Augment::imagenet(seed).view(&[id; 32], index, (500, 375));
        assert_eq!(augment.view(&[1; 32], 2, (500, 375)), view(3, 1, 2));
        assert_ne!(view(3, 1, 2), view(3, 1, 3));
        assert_ne!(view(3, 1, 2), view(3, 2, 2));
        assert_ne!(view(3, 1, 2), view(4, 1, 2));
        // For ever: a change of this line is a change of every cached view.
        let region = Region {
            left: 204,
            top: 141,
            width: 175,
            height: 182,
        };
        assert_eq!(
            view(3, 1, 2),
            View {
                region: Some(region),
                flip: true
            }
        );
    }

    #[test]
    fn views_have_the_asked_area_and_ratio_and_lie_inside() {
        let augment = Augment::imagenet(0);
        let (mut areas, mut flips, n) = (0.0, 0, 40_000u32);
        for index in 0..n {
            let view = augment.view(&[7; 32], index, (640, 480));
            let region = view.region.unwrap();
            assert!(region.left + region.width <= 640 && region.top + region.height <= 480);
            let ratio = region.width as f64 / region.height as f64;
            assert!((0.7..1.4).contains(&ratio), "{region:?}");
            areas += (region.width * region.height) as f64 / (640.0 * 480.0);
            flips += u32::from(view.flip);
        }
        // torchvision's own mean for this size, over 20,000 draws, is 0.4346.
        let mean = areas / f64::from(n);
        assert!((0.43..0.44).contains(&mean), "{mean}");
        assert!((19_600..20_400).contains(&flips), "{flips}");
    }

    #[test]
    fn where_no_part_fits_the_centre_is_taken() {
        let region = |size| Augment::imagenet(1).view(&[0; 32], 0, size).region.unwrap();
        assert_eq!(
            region((1, 300)),
            Region {
                left: 0,
                top: 149,
                width: 1,
                height: 1
            }
        );
        assert_eq!(
            region((1000, 10)),
            Region {
                left: 493,
                top: 0,
                width: 13,
                height: 10
            }
        );
        assert_eq!(
            region((1, 1)),
            Region {
                left: 0,
                top: 0,
                width: 1,
                height: 1
            }
        );
    }

    #[test]
    fn only_mirrored() {
        assert_eq!(
            Augment::mirror().view(&[0; 32], 5, (3, 3)),
            View {
                region: None,
                flip: true
            }
        );
    }

    #[test]
    fn ranges_are_checked() {
        let check = |change: fn(&mut Augment), message: &str| {
            let mut augment = Augment::imagenet(0);
            change(&mut augment);
            let error = augment.check().unwrap_err();
            assert!(error.contains(message), "{error}");
        };
        assert_eq!(Augment::imagenet(0).check(), Ok(()));
        check(|a| a.flip = 1.5, "1.5 of a flip is not between 0 and 1");
        check(
            |a| {
                a.crop = Some(RandomCrop {
                    scale: [0.5, 1.5],
                    ratio: [1.0, 1.0],
                });
            },
            "0.5 to 1.5",
        );
        check(
            |a| {
                a.crop = Some(RandomCrop {
                    scale: [0.5, 0.4],
                    ratio: [1.0, 1.0],
                });
            },
            "0.5 to 0.4",
        );
        check(
            |a| {
                a.crop = Some(RandomCrop {
                    scale: [0.5, 1.0],
                    ratio: [0.0, 1.0],
                });
            },
            "ratio, 0 to 1",
        );
    }
}
