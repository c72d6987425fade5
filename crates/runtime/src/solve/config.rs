//! What is fitted, and how well.

use serde::{Deserialize, Serialize};

/// How much each class counts.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClassWeights {
    /// All rows alike.
    #[default]
    None,
    /// Each class as much as any other: scikit-learn's `class_weight="balanced"`, `N / (classes · rows of the class)`;
    /// with several labels that of every label by itself, its presence against its absence.
    Balanced,
    /// `[C]`. One class a row: the `weight` of `torch.nn.CrossEntropyLoss`, and without label smoothing scikit-learn's
    /// `class_weight`. Several labels: the `pos_weight` of `torch.nn.BCEWithLogitsLoss`.
    Given(Vec<f64>),
}
