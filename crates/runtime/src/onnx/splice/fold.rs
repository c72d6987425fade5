//! Batch normalisations folded into the linear layers beside them: in evaluation mode they are a factor and a summand.

use crate::head::{BatchNorm1d, Layer, Linear};

/// The layers that have an effect in evaluation mode, with their places in the head. A batch normalisation behind or in front
/// of a linear layer is folded into it, in float64 and rounded once.
pub(super) fn fold(layers: &[Layer]) -> Vec<(usize, Layer)> {
    let mut folded: Vec<(usize, Layer)> = Vec::new();
    for (at, layer) in layers.iter().enumerate() {
        match (folded.last_mut(), layer) {
            (_, Layer::Dropout { .. }) => {}
            (Some((_, Layer::Linear(before))), Layer::BatchNorm1d(norm)) => after(before, norm),
            (Some((_, Layer::BatchNorm1d(norm))), Layer::Linear(linear)) => {
                let linear = before(norm, linear);
                folded.pop();
                folded.push((at, Layer::Linear(linear)));
            }
            _ => folded.push((at, layer.clone())),
        }
    }
    folded
}

/// What the normalisation multiplies each number by, and what it adds after that.
fn affine(norm: &BatchNorm1d) -> impl Iterator<Item = (f64, f64)> {
    norm.running_var.iter().enumerate().map(|(i, var)| {
        let factor = f64::from(norm.weight[i]) / (f64::from(*var) + f64::from(norm.eps)).sqrt();
        (
            factor,
            f64::from(norm.bias[i]) - factor * f64::from(norm.running_mean[i]),
        )
    })
}

/// `f · (W x + b) + s = (f W) x + (f b + s)`.
fn after(linear: &mut Linear, norm: &BatchNorm1d) {
    let rows = linear.weight.chunks_exact_mut(linear.n_in).zip(&mut linear.bias);
    for ((row, bias), (factor, summand)) in rows.zip(affine(norm)) {
        row.iter_mut()
            .for_each(|weight| *weight = (f64::from(*weight) * factor) as f32);
        *bias = (f64::from(*bias) * factor + summand) as f32;
    }
}

/// `W (f x + s) + b = (W f) x + (W s + b)`.
fn before(norm: &BatchNorm1d, linear: &Linear) -> Linear {
    let affine: Vec<(f64, f64)> = affine(norm).collect();
    let mut folded = linear.clone();
    let rows = folded.weight.chunks_exact_mut(linear.n_in).zip(&mut folded.bias);
    for (row, bias) in rows {
        let mut sum = f64::from(*bias);
        for (weight, (factor, summand)) in row.iter_mut().zip(&affine) {
            let old = f64::from(*weight);
            sum += old * summand;
            *weight = (old * factor) as f32;
        }
        *bias = sum as f32;
    }
    folded
}
