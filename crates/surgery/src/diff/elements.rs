//! Elements of two tensors side by side: how many differ, by how much, and how many are no numbers.
//!
//! Sums are in float64 over eight lanes that are added in order at the end, so that they depend neither on the width of the machine's
//! vectors nor on how the elements were cut into pieces of whole blocks.

use pth::DType;

use super::options::Tolerance;
use crate::lazy::to_f64;

/// Elements at once: four blocks of numbers stay in the first cache.
pub(super) const BLOCK: usize = 512;

const LANES: usize = 8;

/// What is known of the elements of one side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) n_nan: u64,
    pub(super) n_inf: u64,
    pub(super) n_nonzero: u64,
}

/// What the elements of two tensors say; sums are over the elements that are finite on both sides.
#[derive(Debug, Clone)]
pub(super) struct Sums {
    /// Elements that were looked at.
    pub(super) n: u64,
    /// Elements with different bits, or values where the types differ.
    pub(super) n_different: u64,
    /// Of these, those beyond the tolerance.
    pub(super) n_beyond: u64,
    pub(super) max_abs: f64,
    pub(super) max_ulp: u64,
    pub(super) a: Tally,
    pub(super) b: Tally,
    aa: [f64; LANES],
    bb: [f64; LANES],
    ab: [f64; LANES],
    dd: [f64; LANES],
}

impl Sums {
    pub(super) fn new() -> Sums {
        Sums {
            n: 0,
            n_different: 0,
            n_beyond: 0,
            max_abs: 0.0,
            max_ulp: 0,
            a: Tally::default(),
            b: Tally::default(),
            aa: [0.0; LANES],
            bb: [0.0; LANES],
            ab: [0.0; LANES],
            dd: [0.0; LANES],
        }
    }

    /// Sum of the squares of A's elements.
    pub(super) fn aa(&self) -> f64 {
        self.aa.iter().sum()
    }

    /// Sum of the squares of B's elements.
    pub(super) fn bb(&self) -> f64 {
        self.bb.iter().sum()
    }

    /// Sum of the products.
    pub(super) fn ab(&self) -> f64 {
        self.ab.iter().sum()
    }

    /// Sum of the squares of the differences.
    pub(super) fn dd(&self) -> f64 {
        self.dd.iter().sum()
    }
}

/// What can be said of elements of a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Numbers {
    /// Real floats of 16 bits and more.
    Float,
    /// Pairs of the component.
    Complex(DType),
    /// Integers and booleans.
    Integer { is_signed: bool },
    /// Bits only: the narrow floats need scales, and bits mean nothing.
    Bits,
}

impl Numbers {
    pub(super) fn of(dtype: DType) -> Numbers {
        match dtype {
            DType::Float16 | DType::BFloat16 | DType::Float32 | DType::Float64 => Numbers::Float,
            DType::Complex32 => Numbers::Complex(DType::Float16),
            DType::Complex64 => Numbers::Complex(DType::Float32),
            DType::Complex128 => Numbers::Complex(DType::Float64),
            DType::BComplex32 => Numbers::Complex(DType::BFloat16),
            DType::Int8 | DType::Int16 | DType::Int32 | DType::Int64 => Numbers::Integer { is_signed: true },
            DType::Bool | DType::Uint8 | DType::Uint16 | DType::Uint32 | DType::Uint64 => {
                Numbers::Integer { is_signed: false }
            }
            _ => Numbers::Bits,
        }
    }
}

/// Adds the elements of `a` and `b`, as many on both sides. All calls but the last bring whole blocks.
pub(super) fn add(a: (DType, &[u8]), b: (DType, &[u8]), tolerance: Tolerance, sums: &mut Sums) {
    pulp::Arch::new().dispatch(Add {
        a,
        b,
        tolerance,
        sums,
    });
}

struct Add<'a> {
    a: (DType, &'a [u8]),
    b: (DType, &'a [u8]),
    tolerance: Tolerance,
    sums: &'a mut Sums,
}

impl pulp::NullaryFnOnce for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let (a, b) = (self.a, self.b);
        let blocks = a.1.chunks(BLOCK * a.0.size()).zip(b.1.chunks(BLOCK * b.0.size()));
        for (x, y) in blocks {
            self.sums.n += to_u64(x.len() / a.0.size());
            if a.0 != b.0 {
                mixed((a.0, x), (b.0, y), self.tolerance, self.sums);
            } else if x == y {
                same(a.0, x, self.sums);
            } else {
                different(a.0, x, y, self.tolerance, self.sums);
            }
        }
    }
}

fn to_u64(n: usize) -> u64 {
    u64::try_from(n).expect("no machine addresses more than 64 bits")
}

/// A block that both have.
#[inline(always)]
fn same(dtype: DType, bytes: &[u8], sums: &mut Sums) {
    let component = match Numbers::of(dtype) {
        Numbers::Float => dtype,
        Numbers::Complex(component) => component,
        Numbers::Integer { .. } | Numbers::Bits => return,
    };
    for bytes in bytes.chunks(BLOCK * component.size()) {
        let mut block = [0.0; BLOCK];
        let values = &mut block[..bytes.len() / component.size()];
        to_f64(component, bytes, values);
        let tally = tally(values);
        sums.a.add(tally);
        sums.b.add(tally);
        let mut squares = [0.0; LANES];
        let (lanes, rest) = values.as_chunks::<LANES>();
        for lane in lanes {
            for (square, x) in squares.iter_mut().zip(lane) {
                *square += finite_or_zero(*x) * finite_or_zero(*x);
            }
        }
        for (square, x) in squares.iter_mut().zip(rest) {
            *square += finite_or_zero(*x) * finite_or_zero(*x);
        }
        for (i, square) in squares.iter().enumerate() {
            sums.aa[i] += square;
            sums.bb[i] += square;
            sums.ab[i] += square;
        }
    }
}

/// A block of one type that is not the same on both sides.
#[inline(always)]
fn different(dtype: DType, a: &[u8], b: &[u8], tolerance: Tolerance, sums: &mut Sums) {
    let numbers = Numbers::of(dtype);
    let n = a.len() / dtype.size();
    let (mut bits_a, mut bits_b) = ([0_u64; BLOCK], [0_u64; BLOCK]);
    match numbers {
        Numbers::Float => {
            let (mut x, mut y) = ([0.0; BLOCK], [0.0; BLOCK]);
            let (x, y) = (&mut x[..n], &mut y[..n]);
            to_f64(dtype, a, x);
            to_f64(dtype, b, y);
            let (bits_a, bits_b) = (&mut bits_a[..n], &mut bits_b[..n]);
            to_bits(dtype.size(), a, bits_a);
            to_bits(dtype.size(), b, bits_b);
            let width = 8 * dtype.size();
            let mut beyond = 0;
            for i in 0..n {
                let is_number = !x[i].is_nan() && !y[i].is_nan();
                let steps = ordered(width, bits_a[i]).abs_diff(ordered(width, bits_b[i]));
                let steps = if is_number { steps } else { 0 };
                sums.max_ulp = sums.max_ulp.max(steps);
                let differ = bits_a[i] != bits_b[i];
                sums.n_different += u64::from(differ);
                let is_within = match tolerance {
                    Tolerance::Exact => false,
                    Tolerance::Close { relative, absolute } => {
                        is_close(x[i].abs(), (y[i] - x[i]).abs(), relative, absolute)
                    }
                    Tolerance::Ulp(limit) => is_number && steps <= limit,
                };
                beyond += u64::from(differ && !is_within);
            }
            sums.n_beyond += beyond;
            products(x, y, sums);
        }
        Numbers::Complex(component) => complex(component, a, b, tolerance, sums),
        Numbers::Integer { is_signed } => {
            to_bits(dtype.size(), a, &mut bits_a[..n]);
            to_bits(dtype.size(), b, &mut bits_b[..n]);
            let shift = 64 - 8 * dtype.size();
            for (x, y) in bits_a[..n].iter().zip(&bits_b[..n]) {
                let distance = if is_signed {
                    let extend = |x: u64| (x << shift).cast_signed() >> shift;
                    extend(*x).abs_diff(extend(*y))
                } else {
                    x.abs_diff(*y)
                };
                sums.max_abs = sums.max_abs.max(distance as f64);
                sums.n_different += u64::from(x != y);
                sums.n_beyond += u64::from(x != y);
            }
        }
        Numbers::Bits => {
            let size = dtype.size();
            let n = a.chunks_exact(size).zip(b.chunks_exact(size));
            let n = to_u64(n.filter(|(x, y)| x != y).count());
            sums.n_different += n;
            sums.n_beyond += n;
        }
    }
}

/// Pairs of components; distances are moduli.
fn complex(component: DType, a: &[u8], b: &[u8], tolerance: Tolerance, sums: &mut Sums) {
    let size = component.size();
    for (a, b) in a.chunks(BLOCK * size).zip(b.chunks(BLOCK * size)) {
        let n = a.len() / size;
        let (mut x, mut y) = ([0.0; BLOCK], [0.0; BLOCK]);
        let (x, y) = (&mut x[..n], &mut y[..n]);
        to_f64(component, a, x);
        to_f64(component, b, y);
        let (mut bits_a, mut bits_b) = ([0_u64; BLOCK], [0_u64; BLOCK]);
        to_bits(size, a, &mut bits_a[..n]);
        to_bits(size, b, &mut bits_b[..n]);
        for i in (0..n).step_by(2) {
            let differ = bits_a[i..i + 2] != bits_b[i..i + 2];
            let distance = (y[i] - x[i]).hypot(y[i + 1] - x[i + 1]);
            if distance.is_finite() {
                sums.max_abs = sums.max_abs.max(distance);
            }
            let mut steps = 0;
            for j in i..i + 2 {
                if !x[j].is_nan() && !y[j].is_nan() {
                    let key = |bits| ordered(8 * size, bits);
                    steps = steps.max(key(bits_a[j]).abs_diff(key(bits_b[j])));
                }
            }
            let is_number = !distance.is_nan();
            sums.max_ulp = sums.max_ulp.max(steps);
            let is_within = match tolerance {
                Tolerance::Exact => false,
                Tolerance::Close { relative, absolute } => {
                    is_close(x[i].hypot(x[i + 1]), distance, relative, absolute)
                }
                Tolerance::Ulp(limit) => is_number && steps <= limit,
            };
            sums.n_different += u64::from(differ);
            sums.n_beyond += u64::from(differ && !is_within);
        }
        let max_abs = sums.max_abs;
        products(x, y, sums);
        // Of the components' distances none is above the modulus.
        sums.max_abs = max_abs;
    }
}

/// A block of two types, both of which are numbers.
#[inline(always)]
fn mixed(a: (DType, &[u8]), b: (DType, &[u8]), tolerance: Tolerance, sums: &mut Sums) {
    let n = a.1.len() / a.0.size();
    let (mut x, mut y) = ([0.0; BLOCK], [0.0; BLOCK]);
    let (x, y) = (&mut x[..n], &mut y[..n]);
    to_f64(a.0, a.1, x);
    to_f64(b.0, b.1, y);
    for i in 0..n {
        let differ = x[i] != y[i] && !(x[i].is_nan() && y[i].is_nan());
        let is_within = match tolerance {
            Tolerance::Close { relative, absolute } => {
                is_close(x[i].abs(), (y[i] - x[i]).abs(), relative, absolute)
            }
            Tolerance::Exact | Tolerance::Ulp(_) => false,
        };
        sums.n_different += u64::from(differ);
        sums.n_beyond += u64::from(differ && !is_within);
    }
    products(x, y, sums);
}

#[inline(always)]
fn is_close(expected: f64, distance: f64, relative: f64, absolute: f64) -> bool {
    // An infinite distance is within no tolerance, though infinity times `relative` is not less.
    distance.is_finite() && distance <= absolute + relative * expected
}

/// Adds to the sums of squares, products and distances, and to both tallies.
#[inline(always)]
fn products(a: &[f64], b: &[f64], sums: &mut Sums) {
    sums.a.add(tally(a));
    sums.b.add(tally(b));
    let mut max_abs = [0.0_f64; LANES];
    let (mut aa, mut bb, mut ab, mut dd) = ([0.0; LANES], [0.0; LANES], [0.0; LANES], [0.0; LANES]);
    let mut step = |i: usize, x: f64, y: f64| {
        let d = y - x;
        // A difference may be too large for its type though both are finite; then it counts as none.
        let is_finite = d.is_finite();
        let (x, y, d) = if is_finite { (x, y, d) } else { (0.0, 0.0, 0.0) };
        aa[i] += x * x;
        bb[i] += y * y;
        ab[i] += x * y;
        dd[i] += d * d;
        max_abs[i] = if d.abs() > max_abs[i] { d.abs() } else { max_abs[i] };
    };
    let (lanes_a, rest_a) = a.as_chunks::<LANES>();
    let (lanes_b, rest_b) = b.as_chunks::<LANES>();
    for (x, y) in lanes_a.iter().zip(lanes_b) {
        for i in 0..LANES {
            step(i, x[i], y[i]);
        }
    }
    for (i, (x, y)) in rest_a.iter().zip(rest_b).enumerate() {
        step(i, *x, *y);
    }
    for i in 0..LANES {
        sums.aa[i] += aa[i];
        sums.bb[i] += bb[i];
        sums.ab[i] += ab[i];
        sums.dd[i] += dd[i];
        sums.max_abs = sums.max_abs.max(max_abs[i]);
    }
}

#[inline(always)]
fn finite_or_zero(x: f64) -> f64 {
    if x.is_finite() { x } else { 0.0 }
}

#[inline(always)]
fn tally(values: &[f64]) -> Tally {
    let mut tally = Tally::default();
    for x in values {
        tally.n_nan += u64::from(x.is_nan());
        tally.n_inf += u64::from(x.is_infinite());
        tally.n_nonzero += u64::from(*x != 0.0);
    }
    tally
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.n_nan += other.n_nan;
        self.n_inf += other.n_inf;
        self.n_nonzero += other.n_nonzero;
    }
}

/// The elements' bits, as unsigned numbers.
#[inline(always)]
fn to_bits(size: usize, bytes: &[u8], out: &mut [u64]) {
    macro_rules! each {
        ($type:ty) => {
            for (element, bits) in bytes
                .as_chunks::<{ size_of::<$type>() }>()
                .0
                .iter()
                .zip(out)
            {
                *bits = u64::from(<$type>::from_le_bytes(*element));
            }
        };
    }
    match size {
        1 => each!(u8),
        2 => each!(u16),
        4 => each!(u32),
        _ => each!(u64),
    }
}

/// The place of a float among all floats of its width, from the lowest to the highest; both zeros are one place.
#[inline(always)]
fn ordered(width: usize, bits: u64) -> i64 {
    let sign = 1 << (width - 1);
    let magnitude = (bits & (sign - 1)).cast_signed();
    if bits & sign == 0 { magnitude } else { -magnitude }
}
