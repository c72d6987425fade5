#![expect(
    clippy::unwrap_used,
    reason = "in helpers of tests, too, a panic is the answer"
)]

mod bad;
mod boundaries;
pub(super) mod build;
mod digests;
mod external;
mod weights;
