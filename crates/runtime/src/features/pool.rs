//! What becomes of a boundary that has more than one axis behind the batch.

use serde::{Deserialize, Serialize};

/// From the tensor at the boundary to one row per sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    /// Kept as it is, with its shape.
    #[default]
    None,
    /// The mean over positions: `[N, C, H, W]` and `[N, T, C]` become `[N, C]`
    /// (`torch.nn.AdaptiveAvgPool2d(1)`; over all tokens, the class token included).
    Avg,
    /// The first token: `[N, T, C]` becomes `[N, C]`.
    Cls,
}

impl Pool {
    /// The shape of one sample's row, from the shape of one sample at the boundary.
    ///
    /// # Errors
    /// Why this pooling is not for this shape.
    pub fn row_shape(self, sample: &[usize]) -> Result<Vec<usize>, String> {
        match (self, sample) {
            (Pool::None, shape) => Ok(shape.to_vec()),
            (Pool::Avg, [_]) => Ok(sample.to_vec()),
            (Pool::Avg, [channels, _, _]) => Ok(vec![*channels]),
            (Pool::Avg | Pool::Cls, [_, channels]) => Ok(vec![*channels]),
            (Pool::Avg, shape) => Err(format!(
                "an average is over positions, and a sample has shape {shape:?} here"
            )),
            (Pool::Cls, shape) => Err(format!(
                "the first token is of [T, C], and a sample has shape {shape:?} here"
            )),
        }
    }

    /// Appends the row of one sample of shape `sample`, which [`row_shape`](Pool::row_shape) accepts.
    ///
    /// Means are summed in float64.
    pub fn append(self, sample: &[usize], values: &[f32], into: &mut Vec<f32>) {
        match (self, sample) {
            (Pool::Avg, &[channels, height, width]) => {
                let area = height * width;
                into.extend(values.chunks_exact(area.max(1)).take(channels).map(|plane| {
                    let sum: f64 = plane.iter().map(|&value| f64::from(value)).sum();
                    (sum / area as f64) as f32
                }));
            }
            (Pool::Avg, &[n_tokens, channels]) => into.extend((0..channels).map(|channel| {
                let tokens = values.chunks_exact(channels.max(1));
                let sum: f64 = tokens.map(|token| f64::from(token[channel])).sum();
                (sum / n_tokens as f64) as f32
            })),
            (Pool::Cls, &[_, channels]) => into.extend_from_slice(&values[..channels]),
            _ => into.extend_from_slice(values),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_boundary_becomes_a_row() {
        let values: Vec<f32> = (0..12).map(|value| value as f32).collect();
        let pooled = |pool: Pool, shape: &[usize]| {
            let mut row = Vec::new();
            pool.append(shape, &values, &mut row);
            (pool.row_shape(shape).unwrap(), row)
        };
        assert_eq!(pooled(Pool::Avg, &[3, 2, 2]), (vec![3], vec![1.5, 5.5, 9.5]));
        assert_eq!(pooled(Pool::Avg, &[3, 4]), (vec![4], vec![4.0, 5.0, 6.0, 7.0]));
        assert_eq!(pooled(Pool::Cls, &[3, 4]), (vec![4], vec![0.0, 1.0, 2.0, 3.0]));
        assert_eq!(pooled(Pool::None, &[3, 2, 2]), (vec![3, 2, 2], values.clone()));
        assert_eq!(pooled(Pool::Avg, &[12]), (vec![12], values.clone()));
        for (pool, shape) in [
            (Pool::Cls, &[3, 2, 2][..]),
            (Pool::Cls, &[12]),
            (Pool::Avg, &[1, 3, 2, 2]),
        ] {
            assert!(pool.row_shape(shape).is_err(), "{pool:?} {shape:?}");
        }
    }
}
