//! Numbers: how far predictions are off, and what share of the variance they explain.

use serde::{Deserialize, Serialize};

/// Marks of a head that predicts numbers; the figures of the whole are means over the outputs, as scikit-learn's
/// `multioutput="uniform_average"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RegressionMetrics {
    /// Rows.
    pub n: usize,
    /// `mean_absolute_error`, in the targets' unit.
    pub mae: f64,
    /// `root_mean_squared_error`, in the targets' unit.
    pub rmse: f64,
    /// `r2_score`: 1 is perfect, 0 as good as the mean.
    pub r2: f64,
    /// One per output, in order.
    pub per_output: Vec<OutputMetrics>,
}

/// Marks of one output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutputMetrics {
    /// Its name.
    pub output: String,
    /// `mean_absolute_error`.
    pub mae: f64,
    /// `root_mean_squared_error`.
    pub rmse: f64,
    /// `r2_score`; where the target is always the same, 1 if all predictions are right and 0 else.
    pub r2: f64,
}

impl RegressionMetrics {
    /// Marks `predicted` `[N, K]` against `targets` `[N, K]`.
    ///
    /// # Panics
    /// Where there are no outputs.
    pub fn new(predicted: &[f32], targets: &[f32], outputs: &[String]) -> RegressionMetrics {
        let k = outputs.len();
        let n = targets.len() / k;
        let count = n.max(1) as f64;
        let of_output = |(at, output): (usize, &String)| {
            let column = |values: &'_ [f32]| -> Vec<f64> {
                values
                    .iter()
                    .skip(at)
                    .step_by(k)
                    .map(|value| f64::from(*value))
                    .collect()
            };
            let (predicted, targets) = (column(predicted), column(targets));
            let mean = targets.iter().sum::<f64>() / count;
            let (mut absolute, mut squared, mut total) = (0.0, 0.0, 0.0);
            for (predicted, target) in predicted.iter().zip(&targets) {
                absolute += (predicted - target).abs();
                squared += (predicted - target).powi(2);
                total += (target - mean).powi(2);
            }
            let r2 = match (squared, total) {
                (0.0, _) => 1.0,
                (_, 0.0) => 0.0,
                _ => 1.0 - squared / total,
            };
            OutputMetrics {
                output: output.clone(),
                mae: absolute / count,
                rmse: (squared / count).sqrt(),
                r2,
            }
        };
        let per_output: Vec<OutputMetrics> = outputs.iter().enumerate().map(of_output).collect();
        let mean = |of: fn(&OutputMetrics) -> f64| per_output.iter().map(of).sum::<f64>() / k as f64;
        RegressionMetrics {
            n,
            mae: mean(|output| output.mae),
            rmse: mean(|output| output.rmse),
            r2: mean(|output| output.r2),
            per_output,
        }
    }
}
