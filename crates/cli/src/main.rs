//! The `graftwork` binary.
fn main() {}
