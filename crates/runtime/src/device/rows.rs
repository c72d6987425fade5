//! Features and targets that stay on a device for as long as they are used.

use half::{bf16, f16};

use super::backend::{Backend, Kind, upload};
use crate::error::Error;
use crate::features::Features;
use crate::targets::Targets;

/// Rows that are converted and copied at once: 16 MiB of 1024 float32 features.
const CHUNK: usize = 4096;

/// `[N, padded]` numbers and what is wanted of each row.
pub(crate) struct Rows<D: Backend> {
    pub(super) features: D::Buffer,
    /// `u32` classes `[N]` or float32 numbers `[N, K]`.
    pub(super) targets: D::Buffer,
    /// 0, 1, 2, …: the order of an evaluation.
    pub(super) identity: D::Buffer,
    pub(super) n_rows: usize,
    pub(super) n_features: usize,
    pub(super) kind: Kind,
}

impl<D: Backend> Rows<D> {
    /// Copies rows onto the device, each number as `x · factor + shift`.
    ///
    /// # Errors
    /// [`Error::Features`]: a number that float16 cannot hold, whose row is named. [`Error::GpuMemory`].
    pub(crate) fn new(
        device: &D,
        features: &Features,
        targets: &Targets,
        affine: Option<(&[f32], &[f32])>,
        kind: Kind,
    ) -> Result<Rows<D>, Error> {
        let (n, d) = (features.n_rows(), features.n_features());
        let padded = kind.pad(d);
        let buffer = device.zeros(n * padded * kind.n_bytes())?;
        let (mut scratch, mut numbers) = (Vec::new(), vec![0f32; 0]);
        for first in (0..n).step_by(CHUNK) {
            let rows = first..n.min(first + CHUNK);
            let values = features.rows(rows.clone(), &mut scratch);
            numbers.clear();
            numbers.resize(rows.len() * padded, 0.0);
            for (row, out) in values.chunks_exact(d).zip(numbers.chunks_exact_mut(padded)) {
                for (column, (x, out)) in row.iter().zip(out).enumerate() {
                    *out = affine.map_or(*x, |(factor, shift)| x.mul_add(factor[column], shift[column]));
                }
            }
            let at = first * padded * kind.n_bytes();
            match kind {
                Kind::F32 => device.write(&buffer, at, bytemuck::cast_slice(&numbers))?,
                Kind::F16 => {
                    let halves: Vec<u16> = numbers.iter().map(|x| f16::from_f32(*x).to_bits()).collect();
                    if let Some(bad) = halves.iter().position(|bits| !f16::from_bits(*bits).is_finite()) {
                        let (row, value) = (first + bad / padded, numbers[bad]);
                        let text = format!("row {row} has the value {value}, which float16 cannot hold");
                        return Err(Error::Features(text));
                    }
                    device.write(&buffer, at, bytemuck::cast_slice(&halves))?;
                }
                Kind::Bf16 => {
                    let halves: Vec<u16> = numbers.iter().map(|x| bf16::from_f32(*x).to_bits()).collect();
                    device.write(&buffer, at, bytemuck::cast_slice(&halves))?;
                }
            }
        }
        let targets = match targets {
            Targets::Classes(labels) => upload(device, labels)?,
            Targets::Dense { values, .. } => upload(device, values)?,
        };
        let last = u32::try_from(n)
            .map_err(|_| Error::Features(format!("a GPU counts to 2^32 rows, and there are {n}")))?;
        let identity: Vec<u32> = (0..last).collect();
        Ok(Rows {
            features: buffer,
            targets,
            identity: upload(device, &identity)?,
            n_rows: n,
            n_features: d,
            kind,
        })
    }

    /// Numbers from one row to the next.
    pub(super) fn stride(&self) -> usize {
        self.kind.pad(self.n_features)
    }
}
