//! Which pixels of the source make which pixels of the network's input: sizes, crops, padding and regions.

use super::spec::{Crop, Flavour, Preprocess, Resize};
use super::view::{Region, View};

/// The window of the resized picture that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) left: usize,
    pub(super) top: usize,
    pub(super) width: usize,
    pub(super) height: usize,
}

/// One picture's way from its own pixels to the network's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// The part of the source that is resampled, as if it were the whole picture.
    pub(super) region: Region,
    /// The size that the region is resampled to.
    pub(super) width: usize,
    pub(super) height: usize,
    /// The part of the resampled picture that is kept.
    pub(super) window: Window,
    /// Columns and rows of padding in front of it.
    pub(super) pad_left: usize,
    pub(super) pad_top: usize,
    /// The size of the network's input.
    pub(super) out_width: usize,
    pub(super) out_height: usize,
    /// Mirrored left to right at the end.
    pub(super) flip: bool,
}

impl Preprocess {
    /// The way of a picture of `width` x `height`.
    pub(super) fn plan(&self, width: usize, height: usize, view: Option<&View>) -> Plan {
        let flip = view.is_some_and(|view| view.flip);
        let whole = Region {
            left: 0,
            top: 0,
            width,
            height,
        };
        let [_, out_height, out_width] = self.shape();
        if let Some(region) = view.and_then(|view| view.region) {
            return Plan {
                region: clipped(region, whole),
                width: out_width,
                height: out_height,
                window: Window {
                    left: 0,
                    top: 0,
                    width: out_width,
                    height: out_height,
                },
                pad_left: 0,
                pad_top: 0,
                out_width,
                out_height,
                flip,
            };
        }
        let (resized_width, resized_height) = self.resize.size(self.flavour, width, height);
        let (left, pad_left, kept_width) = self.flavour.center(resized_width, out_width);
        let (top, pad_top, kept_height) = self.flavour.center(resized_height, out_height);
        debug_assert!(self.crop != Crop::Whole || (kept_width, kept_height) == (out_width, out_height));
        Plan {
            region: whole,
            width: resized_width,
            height: resized_height,
            window: Window {
                left,
                top,
                width: kept_width,
                height: kept_height,
            },
            pad_left,
            pad_top,
            out_width,
            out_height,
            flip,
        }
    }
}

/// The part of `region` inside `whole`, at least one pixel.
fn clipped(region: Region, whole: Region) -> Region {
    let axis = |start: usize, count: usize, n: usize| {
        let start = start.min(n.saturating_sub(1));
        (start, count.clamp(1, n - start))
    };
    let (left, width) = axis(region.left, region.width, whole.width);
    let (top, height) = axis(region.top, region.height, whole.height);
    Region {
        left,
        top,
        width,
        height,
    }
}

impl Resize {
    /// Width and height after the resize; no side becomes zero.
    pub(super) fn size(self, flavour: Flavour, width: usize, height: usize) -> (usize, usize) {
        // In f64 as in Python: the product of integers is exact, the quotient is rounded, `int` truncates.
        let scaled = |side: usize, to: usize, from: usize| ((side * to) as f64 / from as f64) as usize;
        let (w, h) = (width as f64, height as f64);
        let keep_ratio = |ratio: f64| {
            let side = |side: f64| (side / ratio).round_ties_even().max(1.0) as usize;
            (side(w), side(h))
        };
        match self {
            Resize::ShortSide(side) => short_side(
                width,
                height,
                side,
                scaled(side, width.max(height), width.min(height)),
            ),
            Resize::ShortSideAtMost { short, long } => match flavour {
                Flavour::Torchvision => {
                    let new_long = scaled(short, width.max(height), width.min(height));
                    if new_long > long {
                        // int(max_size * new_short / new_long)
                        short_side(width, height, scaled(long, short, new_long), long)
                    } else {
                        short_side(width, height, short, new_long)
                    }
                }
                Flavour::Transformers => {
                    let (small, large) = (w.min(h), w.max(h));
                    let limited = large / small * short as f64 > long as f64;
                    let exact = if limited {
                        long as f64 * small / large
                    } else {
                        short as f64
                    };
                    let new_short = exact.round_ties_even() as usize;
                    if width.min(height) == new_short {
                        (width, height)
                    } else {
                        short_side(width, height, new_short, (exact * large / small) as usize)
                    }
                }
            },
            Resize::Exact(height, width) => (width, height),
            Resize::Cover(to_h, to_w) => keep_ratio((h / to_h as f64).min(w / to_w as f64)),
            Resize::Inside(to_h, to_w) => keep_ratio((h / to_h as f64).max(w / to_w as f64)),
            Resize::Keep => (width, height),
        }
    }
}

fn short_side(width: usize, height: usize, short: usize, long: usize) -> (usize, usize) {
    let (short, long) = (short.max(1), long.max(1));
    if width <= height {
        (short, long)
    } else {
        (long, short)
    }
}

impl Flavour {
    /// First sample kept, samples of padding before it, and samples kept, for a centre crop of one axis.
    ///
    /// torchvision pads `(crop - n) / 2` in front (rounded down) and starts a crop at `round((n - crop) / 2)` with
    /// Python's rounding of halves to even; transformers pads `ceil((crop - n) / 2)` and starts at `(n - crop) // 2`.
    pub(super) fn center(self, n: usize, crop: usize) -> (usize, usize, usize) {
        if n <= crop {
            let pad = match self {
                Flavour::Torchvision => (crop - n) / 2,
                Flavour::Transformers => (crop - n).div_ceil(2),
            };
            return (0, pad, n);
        }
        let start = match self {
            Flavour::Torchvision => ((n - crop) as f64 / 2.0).round_ties_even() as usize,
            Flavour::Transformers => (n - crop) / 2,
        };
        (start, 0, crop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crops_start_where_the_libraries_start_them() {
        // runtime.md 5.2, measured: 257 -> 16, 259 -> 18, 261 -> 18.
        for (n, start) in [(256, 16), (257, 16), (258, 17), (259, 18), (261, 18), (224, 0)] {
            assert_eq!(Flavour::Torchvision.center(n, 224), (start, 0, 224), "{n}");
        }
        assert_eq!(Flavour::Torchvision.center(221, 224), (0, 1, 221));
        for (n, start) in [(256, 16), (257, 16), (258, 17), (259, 17), (261, 18), (224, 0)] {
            assert_eq!(Flavour::Transformers.center(n, 224), (start, 0, 224), "{n}");
        }
        assert_eq!(Flavour::Transformers.center(221, 224), (0, 2, 221));
    }

    #[test]
    fn sizes_are_the_libraries_own() {
        // torchvision's _compute_resized_output_size and timm's ResizeKeepRatio.get_params, asked.
        let check = |resize: Resize, from: (usize, usize), want| {
            assert_eq!(
                resize.size(Flavour::Torchvision, from.0, from.1),
                want,
                "{resize:?} of {from:?}"
            );
        };
        check(Resize::ShortSide(256), (500, 375), (341, 256));
        check(Resize::ShortSide(256), (375, 500), (256, 341));
        check(Resize::ShortSide(256), (1, 300), (256, 76_800));
        check(
            Resize::ShortSideAtMost {
                short: 256,
                long: 300,
            },
            (500, 375),
            (300, 225),
        );
        check(
            Resize::ShortSideAtMost {
                short: 256,
                long: 400,
            },
            (500, 375),
            (341, 256),
        );
        check(Resize::Exact(10, 20), (500, 375), (20, 10));
        check(Resize::Cover(256, 256), (500, 375), (341, 256));
        check(Resize::Inside(256, 256), (500, 375), (256, 192));
        check(Resize::Inside(256, 256), (1, 1000), (1, 256));
        check(Resize::Keep, (7, 9), (7, 9));
    }

    #[test]
    fn a_region_outside_the_picture_is_clipped() {
        let region = Region {
            left: 8,
            top: 12,
            width: 100,
            height: 0,
        };
        let view = View {
            region: Some(region),
            flip: true,
        };
        let plan = Preprocess::imagenet().plan(10, 10, Some(&view));
        assert_eq!(
            plan.region,
            Region {
                left: 8,
                top: 9,
                width: 2,
                height: 1
            }
        );
        assert!(plan.flip);
    }
}
