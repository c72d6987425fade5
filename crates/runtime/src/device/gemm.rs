//! Products by the kernels of `kernels/gemm.cu`.

use super::backend::{Arg, Backend, Kind, Product, Shape, count};
use crate::error::Error;

/// Rows and columns of a block's part of the result.
const TILE: usize = 64;

/// Blocks that keep a large GPU busy, and rows below which a segment is not worth its result.
const BLOCKS: usize = 512;
const ROWS: usize = 256;

/// Segments of a product over `k` rows, [`Backend::segments`].
pub(super) fn segments(m: usize, n: usize, k: usize) -> usize {
    let tiles = m.div_ceil(TILE) * n.div_ceil(TILE);
    let wanted = BLOCKS.div_ceil(tiles).min(k / ROWS).max(1);
    // Equal ones: where the last would be empty there is one less.
    k.div_ceil(segment(k, wanted)).max(1)
}

/// Rows of each segment, a multiple of the kernels' depth.
pub(super) fn segment(k: usize, n_segments: usize) -> usize {
    k.div_ceil(n_segments).next_multiple_of(32).max(32)
}

/// Runs a product as one kernel.
pub(super) fn multiply<D: Backend>(device: &D, product: &Product<'_, D::Buffer>) -> Result<(), Error> {
    let Product { m, n, k, .. } = *product;
    let kernel = match (product.kind, product.out_kind) {
        (Kind::F32, _) => "gemm_f32",
        (Kind::F16, Kind::F32) => "gemm_f16_f32",
        (Kind::F16, _) => "gemm_f16",
        (Kind::Bf16, Kind::F32) => "gemm_bf16_f32",
        (Kind::Bf16, _) => "gemm_bf16",
    };
    let threads = if product.kind == Kind::F32 { 256 } else { 128 };
    let shape = Shape {
        grid: [n.div_ceil(TILE), m.div_ceil(TILE), product.n_segments],
        block: [threads, 1],
    };
    let n_bytes = product.kind.n_bytes();
    let args = [
        Arg::At(product.out, product.out_offset * product.out_kind.n_bytes()),
        Arg::At(product.a.buffer, product.a.offset * n_bytes),
        Arg::At(product.b.buffer, product.b.offset * n_bytes),
        count(m),
        count(n),
        count(k),
        Arg::U64(product.a.row_stride as u64),
        Arg::U64(product.a.k_stride as u64),
        Arg::U64(product.b.row_stride as u64),
        Arg::U64(product.b.k_stride as u64),
        Arg::U64(product.out_stride as u64),
        count(segment(k, product.n_segments)),
        Arg::F32(product.alpha),
        Arg::F32(product.beta),
    ];
    device.launch(kernel, shape, &args)
}
