//! Convolutions and linear layers whose weights do not change: packed once, with what follows them.

use super::after::After;
use super::conv::{self, Conv, Geometry, Way};
use super::linear::Linear;
use super::{narrow, winograd};
use crate::panels::panels_len;

/// `out = clamp((x * w + bias) · factor + offset + residual)`, of which all but the product may be absent.
#[derive(Debug)]
pub(in crate::grad) struct FrozenProduct {
    kind: Kind,
    follow: Follow,
}

/// What follows a product, but for what is added to it.
#[derive(Debug, Default)]
pub(in crate::grad) struct Follow {
    pub(in crate::grad) bias: Option<Vec<f32>>,
    /// Factors and offsets.
    pub(in crate::grad) scale: Option<[Vec<f32>; 2]>,
    pub(in crate::grad) clamp: Option<[f32; 2]>,
}

#[derive(Debug)]
enum Kind {
    Winograd(winograd::Frozen),
    Narrow(Geometry, Vec<f32>),
    Columns(Geometry, Vec<f32>),
    Linear {
        n_in: usize,
        n_out: usize,
        panels: Vec<f32>,
    },
}

/// Multiplications for one sample.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::grad) struct Cost {
    /// As the definition says.
    pub(in crate::grad) plain: usize,
    /// As it is computed.
    pub(in crate::grad) paid: usize,
}

impl FrozenProduct {
    /// None for a depthwise convolution, which gains nothing by it.
    pub(in crate::grad) fn of_conv(conv: &Conv, weights: &[f32]) -> Option<FrozenProduct> {
        let g = &conv.geometry;
        let kind = match conv.way {
            Way::Winograd => Kind::Winograd(winograd::Frozen::new(g, weights)),
            Way::Narrow => {
                let mut panels = vec![0.0; narrow::kernels_len(g)];
                narrow::pack_kernels(g, weights, &mut panels);
                Kind::Narrow(*g, panels)
            }
            Way::Columns => {
                let mut panels = vec![0.0; conv::kernels_len(g)];
                conv::pack_kernels(g, weights, &mut panels);
                Kind::Columns(*g, panels)
            }
            Way::Depthwise => return None,
        };
        Some(FrozenProduct {
            kind,
            follow: Follow::default(),
        })
    }

    pub(in crate::grad) fn of_linear(linear: &Linear, weights: &[f32]) -> FrozenProduct {
        let &Linear {
            n_in,
            n_out,
            is_transposed,
        } = linear;
        let mut panels = vec![0.0; panels_len(n_in, n_out)];
        Linear::panels(weights, n_out, n_in, is_transposed, &mut panels);
        FrozenProduct {
            kind: Kind::Linear { n_in, n_out, panels },
            follow: Follow::default(),
        }
    }

    /// With what follows it.
    pub(in crate::grad) fn with(self, follow: Follow) -> FrozenProduct {
        FrozenProduct { follow, ..self }
    }

    /// Channels of the output.
    pub(in crate::grad) fn n_channels(&self) -> usize {
        match &self.kind {
            Kind::Winograd(frozen) => frozen.n_channels(),
            Kind::Narrow(g, _) | Kind::Columns(g, _) => g.k,
            Kind::Linear { n_out, .. } => *n_out,
        }
    }

    /// Numbers of its packed weights.
    pub(in crate::grad) fn n_weights(&self) -> usize {
        match &self.kind {
            Kind::Winograd(frozen) => frozen.n_weights(),
            Kind::Narrow(_, packed) | Kind::Columns(_, packed) => packed.len(),
            Kind::Linear { panels, .. } => panels.len(),
        }
    }

    pub(in crate::grad) fn forward(&self, x: &[f32], residual: Option<&[f32]>, out: &mut [f32]) {
        let after = After {
            bias: self.follow.bias.as_deref(),
            scale: self
                .follow
                .scale
                .as_ref()
                .map(|scale| scale.each_ref().map(Vec::as_slice)),
            residual,
            clamp: self.follow.clamp,
        };
        match &self.kind {
            Kind::Winograd(frozen) => frozen.forward(x, after, out),
            Kind::Narrow(g, kernels) => narrow::forward(g, x, kernels, after, out),
            Kind::Columns(g, kernels) => conv::forward(g, x, kernels, after, out),
            Kind::Linear { n_in, n_out, panels } => {
                Linear::multiply(x, *n_in, panels, *n_out, out, false, after);
            }
        }
    }
}

impl Conv {
    pub(in crate::grad) fn cost(&self) -> Cost {
        let g = &self.geometry;
        let plain = g.oh * g.ow * g.k * g.taps() * g.group_c();
        let paid = match self.way {
            Way::Winograd => winograd::Frozen::cost(g),
            _ => plain,
        };
        Cost { plain, paid }
    }
}

impl Linear {
    /// For `n` outputs in all.
    pub(in crate::grad) fn cost(&self, n: usize) -> Cost {
        let plain = n * self.n_in;
        Cost { plain, paid: plain }
    }
}
