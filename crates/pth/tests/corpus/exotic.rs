//! Tensors of kinds that are read otherwise or not at all, and bytes in the other order: T6, T7.

use super::base::{beside, entries, plain, second, w, zip};
use super::calls::hooks;
use super::{Case, Expect, both, case};
use crate::build::{Archive, Entry, Pickle};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    kinds(&mut cases);
    invalid(&mut cases);
    byte_order(&mut cases);
    cases
}

fn indices(rows: i32, columns: i32) -> Pickle {
    Pickle::bare().typed("LongStorage", "1", 2, 0, &[rows, columns], &[columns, 1])
}

fn sparse(layout: &str, parts: &Pickle) -> Pickle {
    Pickle::bare()
        .global("torch._utils", "_rebuild_sparse_tensor")
        .op(b"(")
        .global("torch.serialization", "_get_layout")
        .str(layout)
        .op(b"\x85R(")
        .then(parts)
        .op(b"ttR")
}

fn quantized(class: &str, numel: i128, stride: i32, scheme: &Pickle) -> Pickle {
    let q = Pickle::bare()
        .global("torch._utils", "_rebuild_qtensor")
        .op(b"(")
        .storage(class, "1", numel)
        .int(0)
        .ints(&[4])
        .ints(&[stride])
        .then(scheme);
    hooks(q).op(b"tR")
}

fn per_tensor() -> Pickle {
    Pickle::bare()
        .op(b"(")
        .global("torch", "per_tensor_affine")
        .op(b"G\x3f\xb9\x99\x99\x99\x99\x99\x9a")
        .int(0)
        .op(b"t")
}

/// Told as what they are; never zeros, never left out.
fn kinds(cases: &mut Vec<Case>) {
    let p = Pickle::bare();
    let nested = p
        .clone()
        .global("torch._utils", "_rebuild_nested_tensor")
        .op(b"(")
        .then(&second())
        .then(&second())
        .then(&second())
        .then(&second())
        .op(b"tR");
    let meta = p
        .clone()
        .global("torch._utils", "_rebuild_meta_tensor_no_storage")
        .op(b"(")
        .global("torch", "float32")
        .ints(&[4])
        .ints(&[1])
        .op(b"\x89tR");
    let on_meta = {
        let storage = p
            .clone()
            .op(b"(")
            .str("storage")
            .global("torch", "FloatStorage")
            .str("17")
            .str("meta")
            .int(4)
            .op(b"tQ");
        p.clone()
            .rebuilt(&storage, &p.clone().int(0).ints(&[4]).ints(&[1]))
    };
    let wrapper = hooks(
        p.clone()
            .global("torch._tensor", "_rebuild_from_type_v2")
            .op(b"(")
            .global("torch._utils", "_rebuild_wrapper_subclass")
            .global("torchao.quantization", "Int8Tensor")
            .op(b"(")
            .global("torchao.quantization", "Int8Tensor")
            .global("torch", "float32")
            .ints(&[4])
            .ints(&[1])
            .int(0),
    )
    .op(b"t}")
    .str("qdata")
    .then(&second())
    .op(b"stR");
    for (id, value) in [
        ("nested", nested),
        ("meta", meta),
        ("on-meta", on_meta),
        ("wrapper", wrapper),
        (
            "uninitialised",
            p.clone()
                .global("torch.nn.parameter", "UninitializedParameter")
                .op(b"\x89\x85R"),
        ),
        (
            "complex32",
            p.clone().untyped("complex32", "1", 16, 0, &[4], &[1]),
        ),
        ("bits8", p.clone().untyped("bits8", "1", 16, 0, &[16], &[1])),
        (
            "float4",
            p.clone().untyped("float4_e2m1fn_x2", "1", 16, 0, &[16], &[1]),
        ),
        ("quantized", quantized("QInt8Storage", 16, 1, &per_tensor())),
        (
            "quantized-unsigned",
            quantized("QUInt8Storage", 16, 1, &per_tensor()),
        ),
        ("quantized-32", quantized("QInt32Storage", 4, 1, &per_tensor())),
    ] {
        let [zip, legacy] = both(
            &format!("T6-{id}"),
            &["T6", "R15"],
            &beside(&value),
            // Whether one of these is read as a record, or as a tensor after all, is a matter of how much the reader knows.
            &Expect::Survives,
            &["tensor.exotic"],
        );
        cases.push(zip);
        // Elements of one byte: a stacked file would count sixteen of them, and this builder counts four.
        if matches!(id, "nested" | "meta" | "on-meta" | "uninitialised") {
            cases.push(legacy);
        }
    }
    for layout in ["torch.sparse_coo", "torch.sparse_csr", "torch.sparse_csc"] {
        let parts = if layout == "torch.sparse_coo" {
            indices(2, 1).op(b"").tensor("0", 4, 0, &[1], &[1]).ints(&[4, 4])
        } else {
            indices(2, 1)
                .then(&indices(2, 1))
                .tensor("0", 4, 0, &[1], &[1])
                .ints(&[4, 4])
        };
        cases.push(
            case(
                format!("T6-{layout}"),
                &["T6", "R15"],
                zip(&beside(&sparse(layout, &parts))),
                Expect::Survives,
            )
            .scan(&["tensor.exotic"]),
        );
    }
}

/// The same kinds, contradicting themselves. None of them may come out as a tensor called `t`.
fn invalid(cases: &mut Vec<Case>) {
    let p = Pickle::bare();
    let none = p.clone().op(b"N");
    for (id, value) in [
        ("sparse-without-parts", sparse("torch.sparse_coo", &p.clone())),
        (
            "sparse-of-none",
            sparse("torch.sparse_coo", &p.clone().op(b"NNN")),
        ),
        (
            "sparse-unknown-layout",
            sparse("torch.sparse_xyz", &p.clone().op(b"NNN")),
        ),
        // PR #184750: indices that point outside of the dense shape.
        (
            "sparse-outside",
            sparse(
                "torch.sparse_coo",
                &indices(2, 1).tensor("0", 4, 0, &[1], &[1]).ints(&[1, 1]),
            ),
        ),
        (
            "sparse-negative-shape",
            sparse(
                "torch.sparse_coo",
                &indices(2, 1).tensor("0", 4, 0, &[1], &[1]).ints(&[-4, 4]),
            ),
        ),
        (
            "sparse-more-indices-than-values",
            sparse(
                "torch.sparse_coo",
                &indices(1, 2).tensor("0", 4, 0, &[1], &[1]).ints(&[4]),
            ),
        ),
        // Issue #184652: the stride is not bounded by the storage.
        (
            "quantized-outside",
            quantized("QInt8Storage", 16, 1 << 20, &per_tensor()),
        ),
        (
            "quantized-negative-stride",
            quantized("QInt8Storage", 16, -1, &per_tensor()),
        ),
        (
            "quantized-without-scheme",
            quantized("QInt8Storage", 16, 1, &none),
        ),
        (
            "quantized-over-floats",
            quantized("FloatStorage", 4, 1 << 20, &per_tensor()),
        ),
        (
            "meta-negative",
            p.clone()
                .global("torch._utils", "_rebuild_meta_tensor_no_storage")
                .op(b"(")
                .global("torch", "float32")
                .ints(&[-4])
                .ints(&[1])
                .op(b"\x89tR"),
        ),
        (
            "nested-of-none",
            p.clone()
                .global("torch._utils", "_rebuild_nested_tensor")
                .op(b"(NNNNtR"),
        ),
        (
            "wrapper-of-nothing",
            p.clone()
                .global("torch._utils", "_rebuild_wrapper_subclass")
                .op(b")R"),
        ),
        (
            "bits8-outside",
            p.clone().untyped("bits8", "1", 16, 0, &[17], &[1]),
        ),
        (
            "packed-outside",
            p.clone().typed("QUInt4x2Storage", "1", 16, 0, &[1 << 20], &[1]),
        ),
    ] {
        cases.push(case(
            format!("T6-invalid-{id}"),
            &["T6", "R15"],
            zip(&beside(&value)),
            Expect::Refused("t"),
        ));
    }
}

fn byte_order(cases: &mut Vec<Case>) {
    let ordered = |order: &[u8], values: Vec<u8>| {
        let mut entries = entries(&plain());
        entries[2] = Entry::stored("m/data/0", &values);
        entries.push(Entry::stored("m/byteorder", order));
        Archive::of(entries).bytes()
    };
    let big: Vec<u8> = [1.0_f32, 2.0, 3.0, 4.0]
        .iter()
        .flat_map(|v| v.to_be_bytes())
        .collect();
    // `w` must come out as everywhere else.
    cases.push(
        case(
            "T7-big",
            &["T7", "R16"],
            ordered(b"big", big),
            Expect::Loads(&["w"]),
        )
        .scan(&["byte-order"]),
    );
    cases.push(case(
        "T7-little",
        &["T7", "R16"],
        ordered(b"little", w()),
        Expect::Loads(&["w"]),
    ));
    for (id, order) in [
        ("middle", &b"middle"[..]),
        ("empty", b""),
        ("upper-case", b"LITTLE"),
        ("newline", b"little\n"),
        ("not-utf-8", b"\xff\xfe"),
        ("long", &[b'l'; 5_000]),
    ] {
        cases.push(case(
            format!("T7-order-{id}"),
            &["T7", "R16"],
            ordered(order, w()),
            Expect::Rejects("byteorder"),
        ));
    }
    // The system of a stacked file does not decide: writers on big-endian machines converted.
    let file = super::base::stacked(&plain()).with(|file| {
        file.system = Pickle::new().op(b"}").str("little_endian").op(b"\x89s").stop();
    });
    cases.push(case(
        "T7-system-legacy",
        &["T7"],
        file.bytes(),
        Expect::Loads(&["w"]),
    ));
}
