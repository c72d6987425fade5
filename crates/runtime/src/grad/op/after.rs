//! What follows a convolution or a linear layer, done while its outputs are near.

use crate::panels::vectorised;

/// `out = clamp(out + bias + residual)`, of which any part may be absent.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct After<'a> {
    /// A number for each channel.
    pub(super) bias: Option<&'a [f32]>,
    /// As many numbers as there are outputs.
    pub(super) residual: Option<&'a [f32]>,
    /// Bounds of the activation.
    pub(super) clamp: Option<[f32; 2]>,
}

/// Within bounds; what is no number stays so, and is seen at the end of the network.
#[inline(always)]
pub(super) fn bounded(x: f32, [low, high]: [f32; 2]) -> f32 {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}

vectorised! {
    fn finish(rows: &'a mut [f32], bias: Option<&'a [f32]>, residual: Option<&'a [f32]>, bounds: [f32; 2], n_columns: usize) {
        match (bias, residual) {
            (None, None) => rows.iter_mut().for_each(|out| *out = bounded(*out, bounds)),
            (None, Some(residual)) => {
                for (out, r) in rows.iter_mut().zip(residual) {
                    *out = bounded(*out + r, bounds);
                }
            }
            (Some(bias), None) => {
                for out in rows.chunks_exact_mut(n_columns) {
                    for (out, b) in out.iter_mut().zip(bias) {
                        *out = bounded(*out + b, bounds);
                    }
                }
            }
            (Some(bias), Some(residual)) => {
                for (out, r) in rows.chunks_exact_mut(n_columns).zip(residual.chunks_exact(n_columns)) {
                    for ((out, b), r) in out.iter_mut().zip(bias).zip(r) {
                        *out = bounded(*out + b + r, bounds);
                    }
                }
            }
        }
    }
}

impl<'a> After<'a> {
    /// Only a bias, where there is one.
    pub(super) fn bias(bias: Option<&'a [f32]>) -> After<'a> {
        After {
            bias,
            ..After::default()
        }
    }

    /// The same for outputs from `start` on.
    pub(super) fn from(self, start: usize) -> After<'a> {
        After {
            residual: self.residual.map(|residual| &residual[start..]),
            ..self
        }
    }

    pub(super) fn bounds(&self) -> [f32; 2] {
        self.clamp.unwrap_or([f32::NEG_INFINITY, f32::INFINITY])
    }

    /// Finishes rows of `n_columns` channels, of which the residual's first numbers are the first's.
    pub(super) fn finish(self, rows: &mut [f32], n_columns: usize) {
        if self.bias.is_some() || self.residual.is_some() || self.clamp.is_some() {
            finish(rows, self.bias, self.residual, self.bounds(), n_columns);
        }
    }
}
