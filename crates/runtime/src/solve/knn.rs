//! Nearest neighbours: what features are worth without any training.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::linalg::matmul_transposed;
use crate::error::Error;
use crate::features::Features;
use crate::targets::{Targets, Task};

/// How near two rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// The angle between them.
    Cosine,
    /// The distance between them.
    Euclidean,
}

/// How neighbours are counted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Vote {
    /// One each; of classes with as many, the first: scikit-learn's `weights="uniform"`.
    Even,
    /// `exp(similarity / temperature)` each, where the similarity is the cosine, or minus the distance: DINO's vote, with a
    /// temperature of 0.07.
    Weighted {
        /// Above zero.
        temperature: f32,
    },
}

/// The settings of [`knn`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct KnnConfig {
    /// Neighbours.
    pub k: usize,
    /// How near two rows are.
    pub metric: Metric,
    /// How neighbours are counted.
    pub vote: Vote,
}

/// What the neighbours say.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Knn {
    /// `[N]`: the class of each row.
    pub predicted: Vec<u32>,
    /// Share that is right.
    pub accuracy: f64,
}

/// Rows of either side that are compared at once.
const QUERIES: usize = 64;
const KNOWN: usize = 1024;

/// Classes of `queries` by their neighbours among `known`. Equally near rows are taken in their order.
///
/// # Errors
/// [`Error::Features`] for labels that do not fit and rows of another length, [`Error::Usage`] for settings out of range.
pub fn knn(
    known: (&Features, &[u32]),
    queries: (&Features, &[u32]),
    n_classes: usize,
    config: KnnConfig,
) -> Result<Knn, Error> {
    let (features, labels) = known;
    let d = features.n_features();
    Targets::Classes(labels.to_vec()).check(Task::SingleLabel, features.n_rows(), n_classes)?;
    if queries.0.n_features() != d {
        let text = format!(
            "the rows have {} numbers, and their neighbours {d}",
            queries.0.n_features()
        );
        return Err(Error::Features(text));
    }
    if queries.1.len() != queries.0.n_rows() {
        let text = format!("{} rows and {} labels", queries.0.n_rows(), queries.1.len());
        return Err(Error::Features(text));
    }
    if config.k == 0 || config.k > features.n_rows() {
        let text = format!("{} neighbours of {} rows", config.k, features.n_rows());
        return Err(Error::Usage(text));
    }
    if let Vote::Weighted { temperature } = config.vote
        && (temperature.is_nan() || temperature <= 0.0)
    {
        return Err(Error::Usage(format!(
            "the temperature is {temperature}, not above 0"
        )));
    }
    let prepare = Prepare::new(features, config.metric);
    let predicted: Vec<u32> = (0..queries.0.n_rows())
        .step_by(QUERIES)
        .collect::<Vec<_>>()
        .into_par_iter()
        .flat_map_iter(|first| {
            let rows = first..(first + QUERIES).min(queries.0.n_rows());
            let (x, squares) = prepare.rows(queries.0, rows);
            let nearest = neighbours(&prepare, features, &x, &squares, config.k);
            nearest
                .into_iter()
                .map(|nearest| vote(&nearest, labels, n_classes, config))
        })
        .collect();
    let right = predicted.iter().zip(queries.1).filter(|(p, l)| p == l).count();
    Ok(Knn {
        accuracy: right as f64 / predicted.len().max(1) as f64,
        predicted,
    })
}

/// Makes rows comparable: of length one, or about the mean, which saves the digits of a common offset.
struct Prepare {
    metric: Metric,
    centre: Vec<f32>,
}

impl Prepare {
    fn new(features: &Features, metric: Metric) -> Prepare {
        let d = features.n_features();
        let mut sums = vec![0.0f64; d];
        if metric == Metric::Euclidean {
            let mut scratch = Vec::new();
            for start in (0..features.n_rows()).step_by(KNOWN) {
                let rows = start..(start + KNOWN).min(features.n_rows());
                for row in features.rows(rows, &mut scratch).chunks_exact(d) {
                    sums.iter_mut()
                        .zip(row)
                        .for_each(|(sum, x)| *sum += f64::from(*x));
                }
            }
        }
        let n = features.n_rows() as f64;
        Prepare {
            metric,
            centre: sums.iter().map(|sum| (sum / n) as f32).collect(),
        }
    }

    /// Rows, and the square of each.
    fn rows(&self, features: &Features, range: std::ops::Range<usize>) -> (Vec<f32>, Vec<f32>) {
        let d = features.n_features();
        let mut scratch = Vec::new();
        let mut rows = features.rows(range, &mut scratch).to_vec();
        let squares = rows
            .chunks_exact_mut(d)
            .map(|row| {
                row.iter_mut()
                    .zip(&self.centre)
                    .for_each(|(x, centre)| *x -= centre);
                let square: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
                if self.metric == Metric::Cosine && square > 0.0 {
                    let inverse = 1.0 / square.sqrt();
                    row.iter_mut().for_each(|x| *x = (f64::from(*x) * inverse) as f32);
                }
                square as f32
            })
            .collect();
        (rows, squares)
    }
}

/// A similarity, the larger the nearer, and the row it is with.
type Neighbour = (f32, u32);

/// The `k` nearest of each query, the nearest first.
fn neighbours(
    prepare: &Prepare,
    known: &Features,
    x: &[f32],
    squares: &[f32],
    k: usize,
) -> Vec<Vec<Neighbour>> {
    let d = known.n_features();
    let mut nearest: Vec<Vec<Neighbour>> = vec![Vec::with_capacity(k + 1); squares.len()];
    let mut products = Vec::new();
    for start in (0..known.n_rows()).step_by(KNOWN) {
        let (y, others) = prepare.rows(known, start..(start + KNOWN).min(known.n_rows()));
        products.resize(squares.len() * others.len(), 0.0);
        matmul_transposed(x, &y, &mut products, d);
        let each = products.chunks_exact(others.len()).zip(squares).zip(&mut nearest);
        for ((products, square), nearest) in each {
            for (at, (product, other)) in products.iter().zip(&others).enumerate() {
                let similarity = match prepare.metric {
                    Metric::Cosine => *product,
                    Metric::Euclidean => 2.0 * product - square - other,
                };
                if nearest.len() == k && similarity <= nearest[k - 1].0 {
                    continue;
                }
                // After all that are as near: they came before.
                let place = nearest.partition_point(|(other, _)| *other >= similarity);
                nearest.insert(place, (similarity, (start + at) as u32));
                nearest.truncate(k);
            }
        }
    }
    nearest
}

fn vote(nearest: &[Neighbour], labels: &[u32], n_classes: usize, config: KnnConfig) -> u32 {
    let mut votes = vec![0.0f64; n_classes];
    for (similarity, row) in nearest {
        votes[labels[*row as usize] as usize] += match config.vote {
            Vote::Even => 1.0,
            Vote::Weighted { temperature } => {
                let near = |s: f32| match config.metric {
                    Metric::Cosine => f64::from(s),
                    Metric::Euclidean => -f64::from(-s).max(0.0).sqrt(),
                };
                // Against the nearest, so that nothing overflows.
                ((near(*similarity) - near(nearest[0].0)) / f64::from(temperature)).exp()
            }
        };
    }
    let mut best = 0;
    for class in 1..n_classes {
        if votes[class] > votes[best] {
            best = class;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::solve::tests::data;

    fn config(k: usize, metric: Metric, vote: Vote) -> KnnConfig {
        KnnConfig { k, metric, vote }
    }

    #[test]
    fn neighbours_are_those_of_the_definition() {
        let (features, labels) = data(1300, 9, 4);
        let queries: Vec<usize> = (0..1300).step_by(13).collect();
        let asked = features.select(&queries);
        let wanted: Vec<u32> = queries.iter().map(|row| labels[*row]).collect();
        let values = features.values();
        let row = |at: usize| &values[at * 9..][..9];
        let dot = |a: &[f32], b: &[f32]| {
            a.iter()
                .zip(b)
                .map(|(a, b)| f64::from(*a) * f64::from(*b))
                .sum::<f64>()
        };
        for metric in [Metric::Cosine, Metric::Euclidean] {
            for vote in [Vote::Even, Vote::Weighted { temperature: 0.07 }] {
                let got = knn(
                    (&features, &labels),
                    (&asked, &wanted),
                    4,
                    config(7, metric, vote),
                )
                .unwrap();
                let mut same = 0;
                for (query, predicted) in queries.iter().zip(&got.predicted) {
                    let x = row(*query);
                    let near = |at: usize| match metric {
                        Metric::Cosine => dot(x, row(at)) / (dot(x, x) * dot(row(at), row(at))).sqrt(),
                        Metric::Euclidean => -x
                            .iter()
                            .zip(row(at))
                            .map(|(a, b)| f64::from(a - b).powi(2))
                            .sum::<f64>()
                            .sqrt(),
                    };
                    let mut order: Vec<usize> = (0..1300).collect();
                    order.sort_by(|a, b| near(*b).total_cmp(&near(*a)));
                    let mut votes = [0.0; 4];
                    for at in &order[..7] {
                        votes[labels[*at] as usize] += match vote {
                            Vote::Even => 1.0,
                            Vote::Weighted { temperature } => (near(*at) / f64::from(temperature)).exp(),
                        };
                    }
                    let want = (0..4)
                        .rev()
                        .max_by(|a, b| votes[*a].total_cmp(&votes[*b]))
                        .unwrap();
                    same += usize::from(want == *predicted as usize);
                }
                // Cosines of rows far from zero are equal but for their last digits.
                assert!(
                    same >= queries.len() - 2,
                    "{metric:?} {vote:?}: {same} of {}",
                    queries.len()
                );
            }
        }
    }

    #[test]
    fn what_has_no_neighbours_is_said() {
        let (features, labels) = data(20, 3, 2);
        let message = |k, labels: &[u32], queries: &Features| {
            let asked = vec![0; queries.n_rows()];
            let config = config(k, Metric::Cosine, Vote::Even);
            knn((&features, labels), (queries, &asked), 2, config)
                .unwrap_err()
                .to_string()
        };
        assert!(message(21, &labels, &features).contains("21 neighbours of 20 rows"));
        assert!(message(0, &labels, &features).contains("0 neighbours"));
        assert!(message(1, &labels[1..], &features).contains("20 rows and 19 labels"));
        let other = Features::new(vec![1.0; 4], 2).unwrap();
        assert!(message(1, &labels, &other).contains("2 numbers"));
    }
}
