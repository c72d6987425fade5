//! What follows a convolution or a linear layer, done while its outputs are near.

use crate::panels::vectorised;

/// `out = clamp((out + bias) · factor + offset + residual)`, of which any part may be absent. Step by step the same as operators
/// behind each other, so that it does not show which of them were put together.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct After<'a> {
    /// A number for each channel.
    pub(super) bias: Option<&'a [f32]>,
    /// Factor and offset of each channel.
    pub(super) scale: Option<[&'a [f32]; 2]>,
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
    fn finish(rows: &'a mut [f32], n_columns: usize, after: After<'a>) {
        for (at, row) in rows.chunks_exact_mut(n_columns).enumerate() {
            if let Some(bias) = after.bias {
                for (out, b) in row.iter_mut().zip(bias) {
                    *out += b;
                }
            }
            if let Some([factor, offset]) = after.scale {
                for ((out, factor), offset) in row.iter_mut().zip(factor).zip(offset) {
                    *out = out.mul_add(*factor, *offset);
                }
            }
            if let Some(residual) = after.residual {
                for (out, r) in row.iter_mut().zip(&residual[at * n_columns..]) {
                    *out += r;
                }
            }
            if let Some(bounds) = after.clamp {
                for out in row {
                    *out = bounded(*out, bounds);
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

    /// Finishes rows of `n_columns` channels, of which the residual's first numbers are the first's.
    pub(super) fn finish(self, rows: &mut [f32], n_columns: usize) {
        let After {
            bias,
            scale,
            residual,
            clamp,
        } = self;
        if bias.is_some() || scale.is_some() || residual.is_some() || clamp.is_some() {
            finish(rows, n_columns, self);
        }
    }
}
