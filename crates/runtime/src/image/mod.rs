//! Pictures to network input, bit for bit as torchvision's evaluation transform does it over Pillow.
//!
//! Decoding equals libjpeg-turbo's, resizing equals Pillow's fixed-point arithmetic, and only the pixels that the crop
//! keeps are computed. Deliberately absent: EXIF rotation and colour profiles, which torchvision ignores too.

mod decode;
mod jpeg;
mod png;
mod resize;
#[cfg(target_arch = "x86_64")]
mod resize_avx2;
mod transform;
mod view;

pub use decode::{DecodeError, Pixels, decode};
pub use resize::Interpolation;
pub use transform::Preprocess;
pub use view::{Augment, RandomCrop, Region, View};
