//! Views that leave their storage, or claim more than it could ever hold: T2, T3, T4.

use super::base::{beside, second};
use super::{Case, Expect, both};
use crate::build::Pickle;

/// Offset, shape and stride over a storage of four elements.
type Geometry = (i128, &'static [i128], &'static [i128]);

/// Past the end of the storage, or past all numbers.
const OUTSIDE: &[(&str, Geometry)] = &[
    ("offset-one", (1, &[4], &[1])),
    ("offset-past", (4, &[1], &[1])),
    ("offset-far", (1 << 40, &[1], &[1])),
    ("offset-i64-max", (i64::MAX as i128, &[1], &[1])),
    ("offset-wraps-in-bytes", (1 << 62, &[1], &[1])),
    ("offset-wraps-in-elements", (u64::MAX as i128, &[2], &[1])),
    ("shape-five", (0, &[5], &[1])),
    ("shape-far", (0, &[1 << 40], &[1])),
    ("shape-scalar-outside", (4, &[], &[])),
    ("stride-two", (0, &[4], &[2])),
    ("stride-far", (0, &[2], &[1 << 40])),
    ("stride-i64-max", (0, &[2], &[i64::MAX as i128])),
    ("stride-wraps", (0, &[5], &[1 << 62])),
    ("two-dimensions", (0, &[2, 3], &[3, 1])),
    ("extent-wraps", (0, &[1 << 32, 1 << 32], &[1 << 32, 1])),
    ("extent-wraps-to-fit", (0, &[3, 2], &[1 << 63, 1])),
];

/// Numbers that are no geometry.
const MALFORMED: &[(&str, Geometry)] = &[
    ("offset-negative", (-1, &[4], &[1])),
    ("offset-min", (i64::MIN as i128, &[1], &[1])),
    ("offset-past-64-bits", (1 << 70, &[1], &[1])),
    ("size-negative", (0, &[-1], &[1])),
    ("size-min", (0, &[i64::MIN as i128], &[1])),
    ("sizes-negative-product-positive", (0, &[-2, -2], &[1, 1])),
    ("size-past-64-bits", (0, &[1 << 70], &[1])),
    ("stride-negative", (3, &[4], &[-1])),
    ("stride-min", (0, &[2], &[i64::MIN as i128])),
    ("stride-past-64-bits", (0, &[1], &[1 << 70])),
    ("rank-no-stride", (0, &[4], &[])),
    ("rank-no-shape", (0, &[], &[1])),
    ("rank-more-strides", (0, &[4], &[1, 1])),
    ("rank-more-sizes", (0, &[2, 2], &[1])),
    ("rank-65", (0, &[1; 65], &[1; 65])),
    ("rank-1000", (0, &[1; 1000], &[1; 1000])),
    ("numel-wraps", (0, &[1 << 32, 1 << 32, 1 << 32], &[0, 0, 0])),
    ("bytes-wrap", (0, &[1 << 62], &[0])),
];

/// More than a machine holds, over sixteen bytes.
const EXPANDED: &[(&str, Geometry)] = &[
    ("one-dimension", (0, &[1 << 50], &[0])),
    ("two-dimensions", (0, &[1 << 25, 1 << 25], &[0, 0])),
    ("rows", (0, &[1 << 45, 4], &[0, 1])),
    ("columns", (0, &[4, 1 << 45], &[1, 0])),
    ("many-dimensions", (0, &[2; 50], &[0; 50])),
    // Not one stride is zero: each step overlaps the one before.
    ("overlapping", (0, &[2, 2, 1 << 48], &[1, 1, 0])),
];

/// Geometries that look odd and are sound.
const SOUND: &[(&str, Geometry)] = &[
    ("empty-far-away", (0, &[0, 1 << 40], &[1 << 40, 1])),
    ("empty-with-any-stride", (4, &[0], &[1 << 50])),
    ("single-with-any-stride", (3, &[1, 1], &[1 << 50, 1 << 50])),
    ("scalar", (3, &[], &[])),
    ("expanded-a-little", (1, &[100, 2], &[0, 1])),
    ("transposed", (0, &[2, 2], &[1, 2])),
    ("rank-64", (0, &[1; 64], &[1; 64])),
];

/// The three ways in which torch has written a tensor.
fn rebuilt(how: &str, (offset, shape, stride): Geometry) -> Pickle {
    let geometry = Pickle::bare().long(offset).longs(shape).longs(stride);
    let p = Pickle::bare();
    match how {
        "v2" => p.rebuilt(&Pickle::bare().storage("FloatStorage", "1", 4), &geometry),
        "v1" => p
            .global("torch._utils", "_rebuild_tensor")
            .op(b"(")
            .storage("FloatStorage", "1", 4)
            .then(&geometry)
            .op(b"tR"),
        "v3" => p
            .global("torch._utils", "_rebuild_tensor_v3")
            .op(b"((")
            .str("storage")
            .global("torch.storage", "UntypedStorage")
            .str("1")
            .str("cpu")
            .int(16)
            .op(b"tQ")
            .then(&geometry)
            .op(b"\x89")
            .global("collections", "OrderedDict")
            .op(b")R")
            .global("torch", "float32")
            .op(b"tR"),
        "state" => p
            .global("torch", "FloatTensor")
            .op(b")\x81(")
            .storage("FloatStorage", "1", 4)
            .then(&geometry)
            .op(b"tb"),
        other => panic!("no way `{other}`"),
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let families = [
        (
            "T2",
            &["T2", "R13"][..],
            OUTSIDE,
            Expect::Problem("t", ""),
            &["tensor.extent"][..],
        ),
        (
            "T4",
            &["T4", "R13"],
            MALFORMED,
            Expect::Problem("t", ""),
            &["tensor.extent"],
        ),
        (
            "T3",
            &["T3", "R14"],
            EXPANDED,
            Expect::Unreadable("t", "limit"),
            &["tensor.stride-zero"],
        ),
        ("T2-sound", &["T2"], SOUND, Expect::Loads(&["w", "t"]), &[]),
    ];
    for (family, classes, geometries, expect, scan) in families {
        for &(id, geometry) in geometries {
            for how in ["v1", "v2", "v3", "state"] {
                let pickle = beside(&rebuilt(how, geometry));
                let [zip, legacy] = both(&format!("{family}-{id}-{how}"), classes, &pickle, &expect, scan);
                cases.push(zip);
                // The arithmetic is one, whatever the container.
                if how == "v2" {
                    cases.push(legacy);
                }
            }
        }
    }
    // A hundred views of one storage cost what a hundred views cost.
    let mut many = Pickle::bare().op(b"](");
    for _ in 0..100 {
        many = many.then(&second());
    }
    cases.extend(both(
        "T2-many-views",
        &["T2"],
        &beside(&many.op(b"e")),
        &Expect::Survives,
        &[],
    ));
    cases
}
