//! Pictures to network input, bit for bit as torchvision, timm and transformers do it over Pillow.
//!
//! Decoding equals libjpeg-turbo's, resizing equals Pillow's fixed-point arithmetic, and only the pixels that the crop
//! keeps are computed. Deliberately absent: colour profiles, which torchvision ignores too.

mod decode;
mod filter;
mod geometry;
mod jpeg;
mod png;
mod prepare;
mod resize;
mod spec;
mod view;

pub use decode::{DecodeError, Pixels, decode, size};
pub use filter::Interpolation;
pub use spec::{Crop, Flavour, Preprocess, Resize};
pub use view::{Augment, RandomCrop, Region, View};
