#![expect(
    clippy::disallowed_methods,
    reason = "tests write the files that are then read"
)]

mod bad;
mod boundaries;
pub(crate) mod build;
mod digests;
mod external;
mod parameters;
mod splice;
mod weights;
