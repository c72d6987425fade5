//! Pictures to network input, bit for bit as torchvision, timm and transformers do it over Pillow.
//!
//! Decoding equals libjpeg-turbo's, resizing equals Pillow's fixed-point arithmetic, and only the pixels that the crop
//! keeps are computed. Deliberately absent: colour profiles and the compositing of transparency, which torchvision ignores
//! too.

mod bmp;
mod bytes;
mod config;
mod decode;
mod exif;
mod filter;
mod geometry;
mod gif;
mod huggingface;
mod jpeg;
mod normalize;
mod png;
mod pnm;
mod prepare;
mod presets;
mod resize;
mod room;
mod spec;
mod timm;
mod view;
mod webp;

pub use decode::{DecodeError, Pixels, decode, size};
pub use filter::Interpolation;
pub use spec::{Crop, Flavour, Preprocess, Resize};
pub use view::{Augment, RandomCrop, Region, View};
