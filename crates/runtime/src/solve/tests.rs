//! The solver against a Newton method with the whole Hessian in float64: slow, and obviously right.

use super::cholesky::Cholesky;
use super::{ClassWeights, Fitted, SolverConfig, fit, path};
use crate::features::Features;
use crate::monitor::Monitor;
use crate::random::Random;
use crate::targets::{Targets, Task};

/// Correlated features of very different scales, far from zero, and labels that they depend on.
pub(super) fn data(n: usize, d: usize, k: usize) -> (Features, Vec<u32>) {
    let mut random = Random::new(3, "solver test");
    let mut uniform = || random.below(1 << 20) as f32 / (1 << 20) as f32 - 0.5;
    let (mut values, mut labels) = (Vec::new(), Vec::new());
    for _ in 0..n {
        let label = ((uniform() + 0.5) * k as f32) as usize % k;
        let common = uniform();
        for j in 0..d {
            let signal = if j % k == label { 0.4 } else { 0.0 };
            values.push((common + 0.3 * uniform() + signal) * 10f32.powi(j as i32 % 3 - 1) + 2.0);
        }
        labels.push(label as u32);
    }
    (Features::new(values, d).unwrap(), labels)
}

/// The objective of a head by definition, in float64: `target[row][k]` is the mass on each class.
struct Definition<'d> {
    features: &'d Features,
    mass: Vec<Vec<f64>>,
    k: usize,
    c: f64,
    /// Which weights the penalty sees, over what is saved.
    scale: Vec<f64>,
}

impl Definition<'_> {
    fn row(&self, row: usize) -> Vec<f64> {
        let d = self.features.n_features();
        let values = &self.features.values()[row * d..(row + 1) * d];
        values.iter().map(|x| f64::from(*x)).chain([1.0]).collect()
    }

    /// Value, gradient and Hessian at `x`, `[k, d + 1]`; the first `fixed` outputs stay zero.
    fn newton_parts(&self, x: &[f64], fixed: usize) -> (f64, Vec<f64>, Vec<f64>) {
        let (d, k) = (self.features.n_features(), self.k);
        let n = k * (d + 1);
        let (mut value, mut gradient, mut hessian) = (0.0, vec![0.0; n], vec![0.0; n * n]);
        for at in 0..n {
            if at % (d + 1) < d {
                let s = self.scale[at % (d + 1)].powi(-2);
                value += x[at] * x[at] * s / 2.0;
                gradient[at] += x[at] * s;
                hessian[at * n + at] += s;
            }
        }
        for (row, mass) in self.mass.iter().enumerate() {
            let features = self.row(row);
            let logits: Vec<f64> = x
                .chunks_exact(d + 1)
                .map(|x| x.iter().zip(&features).map(|(a, b)| a * b).sum())
                .collect();
            let top = logits.iter().copied().fold(f64::MIN, f64::max);
            let total: f64 = logits.iter().map(|z| (z - top).exp()).sum();
            let p: Vec<f64> = logits.iter().map(|z| (z - top).exp() / total).collect();
            let all: f64 = mass.iter().sum();
            for a in 0..k {
                value += self.c * mass[a] * (total.ln() + top - logits[a]);
                for i in 0..=d {
                    gradient[a * (d + 1) + i] += self.c * (all * p[a] - mass[a]) * features[i];
                }
                for b in 0..k {
                    let curvature = self.c * all * p[a] * (f64::from(u8::from(a == b)) - p[b]);
                    for i in 0..=d {
                        for j in 0..=d {
                            hessian[(a * (d + 1) + i) * n + b * (d + 1) + j] +=
                                curvature * features[i] * features[j];
                        }
                    }
                }
            }
        }
        for at in 0..n {
            // The bias direction that all classes share is free: a little is added to the diagonal for it.
            hessian[at * n + at] += 1e-9;
            if at < fixed * (d + 1) {
                gradient[at] = 0.0;
                hessian[at * n..(at + 1) * n].fill(0.0);
                (0..n).for_each(|other| hessian[other * n + at] = 0.0);
                hessian[at * n + at] = 1.0;
            }
        }
        (value, gradient, hessian)
    }

    fn value(&self, x: &[f64]) -> f64 {
        self.newton_parts(x, 0).0
    }

    fn minimum(&self, fixed: usize) -> f64 {
        let n = self.k * (self.features.n_features() + 1);
        let mut x = vec![0.0; n];
        let mut least = f64::INFINITY;
        for _ in 0..60 {
            let (value, gradient, hessian) = self.newton_parts(&x, fixed);
            if value >= least * (1.0 - 1e-14) {
                break;
            }
            least = value;
            let factor = Cholesky::new(hessian, n).unwrap();
            let mut step = gradient;
            factor.solve(&mut step);
            factor.solve_transposed(&mut step);
            let mut length = 1.0;
            loop {
                let next: Vec<f64> = x.iter().zip(&step).map(|(x, s)| x - length * s).collect();
                if self.value(&next) <= value || length < 1e-9 {
                    x = next;
                    break;
                }
                length /= 2.0;
            }
        }
        least
    }
}

fn unknowns(fitted: &Fitted, d: usize) -> Vec<f64> {
    let rows = fitted.weight.chunks_exact(d).zip(&fitted.bias);
    rows.flat_map(|(w, b)| w.iter().chain([b]).map(|v| f64::from(*v)).collect::<Vec<_>>())
        .collect()
}

fn check_minimum(
    n: usize,
    d: usize,
    k: usize,
    c: f64,
    weights: Option<Vec<f64>>,
    smoothing: f64,
    standardise: bool,
) {
    let (features, labels) = data(n, d, k);
    let config = SolverConfig {
        class_weights: weights.clone().map_or(ClassWeights::None, ClassWeights::Given),
        label_smoothing: smoothing,
        standardise,
        ..SolverConfig::new(Task::SingleLabel)
    };
    let weights = weights.unwrap_or(vec![1.0; k]);
    let mass = labels.iter().map(|label| {
        let of_class = |class: usize| {
            let hit = f64::from(u8::from(class == *label as usize));
            weights[class] * (hit * (1.0 - smoothing) + smoothing / k as f64)
        };
        (0..k).map(of_class).collect()
    });
    let values = features.values();
    let deviation = |j: usize| {
        let column = || (0..n).map(|row| f64::from(values[row * d + j]));
        let mean = column().sum::<f64>() / n as f64;
        (column().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64).sqrt()
    };
    let definition = Definition {
        features: &features,
        mass: mass.collect(),
        k,
        c,
        scale: (0..d)
            .map(|j| if standardise { 1.0 / deviation(j) } else { 1.0 })
            .collect(),
    };
    let targets = Targets::Classes(labels);
    let fitted = fit(&features, &targets, k, c, &config, Monitor::none()).unwrap();
    assert!(
        fitted.converged,
        "k {k} C {c}: not converged in {} passes",
        fitted.passes
    );
    let value = definition.value(&unknowns(&fitted, d));
    // Two classes have one vector, as in scikit-learn.
    let least = definition.minimum(usize::from(k == 2));
    let gap = (value - least) / least;
    assert!(
        gap.abs() < 1e-7,
        "k {k} C {c}: relative gap {gap:e}, {value} {least}, {fitted:?}"
    );
    assert!((fitted.objective / value - 1.0).abs() < 1e-6);
    let over = fitted.objective - least;
    // The bound holds for exact sums; the objective's own are float32 products.
    assert!(
        over <= fitted.gap_bound + 1e-7 * least,
        "{over} above, bound {}",
        fitted.gap_bound
    );
}

#[test]
fn the_minimum_is_newtons() {
    check_minimum(500, 9, 3, 0.01, None, 0.0, false);
    check_minimum(500, 9, 3, 1.0, None, 0.0, false);
    check_minimum(300, 6, 5, 10.0, None, 0.0, false);
    check_minimum(300, 6, 4, 1.0, Some(vec![1.0, 2.0, 0.5, 4.0]), 0.1, false);
    check_minimum(300, 6, 4, 1.0, None, 0.0, true);
    // Fewer rows than features.
    check_minimum(24, 30, 3, 100.0, None, 0.0, false);
}

#[test]
fn two_classes_are_scikit_learns_one_vector() {
    check_minimum(300, 6, 2, 1.0, None, 0.0, false);
    check_minimum(300, 6, 2, 100.0, Some(vec![1.0, 3.0]), 0.1, true);
    let (features, labels) = data(300, 6, 2);
    let config = SolverConfig::new(Task::SingleLabel);
    let fitted = fit(
        &features,
        &Targets::Classes(labels),
        2,
        1.0,
        &config,
        Monitor::none(),
    )
    .unwrap();
    assert!(fitted.weight[..6].iter().all(|w| *w == 0.0) && fitted.bias[0] == 0.0);
}

#[test]
fn several_labels_are_each_a_problem_of_their_own() {
    let (features, labels) = data(400, 9, 3);
    let yes = |label: u32, output: u32| f32::from(u8::from(label == output || (output == 2 && label == 0)));
    let dense: Vec<f32> = labels
        .iter()
        .flat_map(|l| [yes(*l, 0), yes(*l, 1), yes(*l, 2)])
        .collect();
    let targets = Targets::dense(dense.clone(), 3).unwrap();
    for weights in [ClassWeights::None, ClassWeights::Balanced] {
        let config = SolverConfig {
            class_weights: weights,
            ..SolverConfig::new(Task::MultiLabel)
        };
        let all = fit(&features, &targets, 3, 2.0, &config, Monitor::none()).unwrap();
        let single = SolverConfig {
            task: Task::SingleLabel,
            ..config
        };
        let mut sum = 0.0;
        for output in 0..3 {
            let classes = Targets::Classes(dense.iter().skip(output).step_by(3).map(|y| *y as u32).collect());
            let one = fit(&features, &classes, 2, 2.0, &single, Monitor::none()).unwrap();
            sum += one.objective;
            let pairs = all.weight[output * 9..][..9].iter().zip(&one.weight[9..]);
            assert!(
                pairs
                    .into_iter()
                    .all(|(a, b)| (a - b).abs() < 2e-3 * (1.0 + b.abs())),
                "{output}"
            );
        }
        assert!((all.objective / sum - 1.0).abs() < 1e-7);
    }
}

#[test]
fn a_label_that_no_row_has_is_never_predicted() {
    let (features, labels) = data(200, 5, 2);
    let dense: Vec<f32> = labels.iter().flat_map(|l| [0.0, *l as f32, 1.0]).collect();
    let targets = Targets::dense(dense, 3).unwrap();
    let config = SolverConfig::new(Task::MultiLabel);
    let fitted = fit(&features, &targets, 3, 1.0, &config, Monitor::none()).unwrap();
    assert!(fitted.converged && fitted.bias[0] == -1e4 && fitted.bias[2] == 1e4);
    assert!(fitted.weight[..5].iter().all(|w| *w == 0.0) && fitted.weight[5..10].iter().all(|w| *w != 0.0));
    // Also where there is no other label.
    let constant = Targets::dense(labels.iter().flat_map(|_| [0.0, 1.0]).collect(), 2).unwrap();
    let fitted = fit(&features, &constant, 2, 1.0, &config, Monitor::none()).unwrap();
    assert!(fitted.converged && fitted.bias == [-1e4, 1e4] && fitted.weight.iter().all(|w| *w == 0.0));
    let apart: Vec<u32> = labels.iter().map(|label| 2 * label + 1).collect();
    let config = SolverConfig::new(Task::SingleLabel);
    let wide = fit(
        &features,
        &Targets::Classes(apart),
        5,
        1.0,
        &config,
        Monitor::none(),
    )
    .unwrap();
    let plain = fit(
        &features,
        &Targets::Classes(labels),
        2,
        1.0,
        &config,
        Monitor::none(),
    )
    .unwrap();
    assert_eq!((wide.bias[0], wide.bias[2], wide.bias[4]), (-1e4, -1e4, -1e4));
    assert_eq!(
        (&wide.weight[15..20], wide.bias[3]),
        (&plain.weight[5..], plain.bias[1])
    );
}

#[test]
fn a_regression_is_ridge() {
    let (features, labels) = data(200, 7, 3);
    let wanted: Vec<f32> = labels
        .iter()
        .flat_map(|l| [*l as f32 - 1.0, (*l as f32).powi(2)])
        .collect();
    let targets = Targets::dense(wanted.clone(), 2).unwrap();
    let config = SolverConfig::new(Task::Regression);
    let fitted = path(&features, &targets, 2, &[10.0, 0.1], &config, Monitor::none()).unwrap();
    let values = features.values();
    for fitted in &fitted {
        // The objective's gradient by definition.
        for output in 0..2 {
            let weight = &fitted.weight[output * 7..][..7];
            let mut gradient: Vec<f64> = weight.iter().map(|w| f64::from(*w)).chain([0.0]).collect();
            for row in 0..200 {
                let x = &values[row * 7..][..7];
                let z: f64 = x.iter().zip(weight).map(|(x, w)| f64::from(x * w)).sum::<f64>()
                    + f64::from(fitted.bias[output]);
                let error = 2.0 * fitted.c * (z - f64::from(wanted[row * 2 + output]));
                gradient
                    .iter_mut()
                    .zip(x)
                    .for_each(|(g, x)| *g += error * f64::from(*x));
                gradient[7] += error;
            }
            assert!(
                gradient.iter().all(|g| g.abs() < 2e-3 * fitted.c.max(1.0)),
                "{gradient:?}"
            );
        }
        assert!(fitted.gap_bound < 1e-12 * fitted.objective);
    }
    assert!((fitted[0].c, fitted[1].c) == (10.0, 0.1));
}

#[test]
fn a_path_of_45_is_its_fits_at_the_price_of_a_few() {
    let (features, labels) = data(2000, 30, 5);
    let targets = Targets::Classes(labels);
    let config = SolverConfig {
        relative_gap: 1e-5,
        ..SolverConfig::new(Task::SingleLabel)
    };
    let cs: Vec<f64> = (0..45).map(|i| 10f64.powf(-6.0 + 0.25 * f64::from(i))).collect();
    let all = path(&features, &targets, 5, &cs, &config, Monitor::none()).unwrap();
    let (mut together, mut apart) = (0, 0);
    for (at, (fitted, c)) in all.iter().zip(&cs).enumerate() {
        together += fitted.passes;
        if at % 4 == 0 {
            let alone = fit(&features, &targets, 5, *c, &config, Monitor::none()).unwrap();
            apart += alone.passes;
            let gap = fitted.objective / alone.objective - 1.0;
            assert!(gap.abs() < 3e-5 && fitted.converged, "C {c}: {gap:e}");
        }
    }
    // These rows can be separated, where one fit is cheap; on real features the same sweep costs eight fits.
    assert!(
        together < 24 * apart / 12,
        "{together} passes together, {apart} for 12 alone"
    );
}

#[test]
fn the_same_bits_for_any_number_of_threads_and_wherever_features_lie() {
    let (features, labels) = data(3000, 12, 4);
    let order: Vec<usize> = (0..3000).collect();
    let view = features.select(&order);
    let targets = Targets::Classes(labels);
    for gap in [1e-4, 1e-9] {
        let config = SolverConfig {
            relative_gap: gap,
            ..SolverConfig::new(Task::SingleLabel)
        };
        let run = |n, features: &Features| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
            pool.install(|| fit(features, &targets, 4, 1.0, &config, Monitor::none()).unwrap())
        };
        let bits = |fitted: &Fitted| {
            let numbers = fitted.weight.iter().chain(&fitted.bias).map(|w| w.to_bits());
            (
                numbers.collect::<Vec<_>>(),
                fitted.objective.to_bits(),
                fitted.passes,
            )
        };
        let one = run(1, &features);
        for n in [2, 3, 5] {
            assert_eq!(bits(&run(n, &features)), bits(&one), "{n} threads");
        }
        assert_eq!(bits(&run(2, &view)), bits(&one));
    }
}

#[test]
fn the_same_bits_where_products_samples_and_factors_are_shared_by_threads() {
    // More features than two blocks of a factor, and outputs that go into panels; then labels, one of which all rows have.
    let (n, d, k) = (2600, 300, 48);
    let (features, classes) = data(n, d, k);
    let has = |row: usize, label: usize| label == 1 || (classes[row] as usize + label).is_multiple_of(5);
    let labels = (0..n * 6)
        .map(|at| f32::from(u8::from(has(at / 6, at % 6))))
        .collect();
    let cases = [
        (Task::SingleLabel, Targets::Classes(classes.clone()), k),
        (Task::MultiLabel, Targets::dense(labels, 6).unwrap(), 6),
    ];
    for (task, targets, k) in cases {
        let config = SolverConfig {
            relative_gap: 1e-5,
            max_passes: 6,
            ..SolverConfig::new(task)
        };
        let run = |n| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
            pool.install(|| path(&features, &targets, k, &[0.01, 1.0], &config, Monitor::none()).unwrap())
        };
        let one = run(1);
        for n in [2, 3] {
            assert_eq!(run(n), one, "{n} threads, {task:?}");
        }
        assert!(one.iter().all(|fitted| fitted.passes > 3));
    }
}

#[test]
fn a_sample_that_lacks_the_rows_that_matter_costs_little() {
    // One label that four large rows have, in the sample or not. Fits of unit steps take 50 to 110 passes.
    let (n, d) = (4000, 16);
    let (features, _) = data(n, d, 4);
    let values: Vec<f32> = features.values().to_vec();
    for rare in [[17usize, 1017, 2017, 3017], [5, 1500, 2500, 3999]] {
        let mut values = values.clone();
        for row in rare {
            values[row * d..(row + 1) * d].iter_mut().for_each(|x| *x *= 20.0);
        }
        let features = Features::new(values, d).unwrap();
        let labels = (0..n as u32)
            .map(|row| u32::from(rare.contains(&(row as usize))))
            .collect();
        let config = SolverConfig {
            relative_gap: 1e-6,
            ..SolverConfig::new(Task::SingleLabel)
        };
        for c in [0.01, 1.0, 100.0] {
            let targets = Targets::Classes(Vec::clone(&labels));
            let fitted = fit(&features, &targets, 2, c, &config, Monitor::none()).unwrap();
            assert!(
                fitted.converged && fitted.passes < 150,
                "C {c}: {} passes",
                fitted.passes
            );
            assert!(
                fitted.gap_bound < 0.2 * fitted.objective,
                "C {c}: {} of {}",
                fitted.gap_bound,
                fitted.objective
            );
        }
    }
}

#[test]
fn it_does_not_matter_how_classes_are_numbered() {
    // Of hundreds of classes two are hard to tell apart, and have most of what is left to gain.
    let (k, d, each, of_hard) = (258, 64, 20, 600);
    let mut random = Random::new(5, "solver test");
    let mut uniform = |width: f32| (random.below(1 << 20) as f32 / (1 << 20) as f32 - 0.5) * width;
    let mut centres: Vec<f32> = (0..k * d).map(|_| uniform(10.0)).collect();
    for j in 0..d {
        centres[2 * d + j] = centres[j] + uniform(0.2);
    }
    let rows = (0..k).flat_map(|class| {
        let (n, width) = if class == 0 || class == 2 {
            (each + of_hard, 3.5)
        } else {
            (each, 1.0)
        };
        std::iter::repeat_n((class, width), n)
    });
    let (mut values, mut labels) = (Vec::new(), Vec::new());
    for (class, width) in rows {
        let scaled = |(j, x): (usize, f32)| x * 0.01f32.powf(j as f32 / (d - 1) as f32);
        let row = (0..d).map(|j| (j, centres[class * d + j] + uniform(width)));
        values.extend(row.map(scaled));
        labels.push(class as u32);
    }
    let features = Features::new(values, d).unwrap();
    let config = SolverConfig {
        relative_gap: 1e-2,
        ..SolverConfig::new(Task::SingleLabel)
    };
    let fitted = |labels: Vec<u32>| {
        fit(
            &features,
            &Targets::Classes(labels),
            k,
            10.0,
            &config,
            Monitor::none(),
        )
        .unwrap()
    };
    let swapped = labels
        .iter()
        .map(|label| if *label < 4 { label ^ 1 } else { *label });
    let (one, other) = (fitted(swapped.collect()), fitted(labels.clone()));
    assert!(
        (one.objective / other.objective - 1.0).abs() < 1e-3,
        "{} in {} passes, {} in {}",
        one.objective,
        one.passes,
        other.objective,
        other.passes
    );
}

#[test]
fn separable_rows_are_fitted_to_the_last_digits() {
    let (features, labels) = data(60, 20, 3);
    let targets = Targets::Classes(labels);
    let config = SolverConfig::new(Task::SingleLabel);
    for c in [1e4, 1e8] {
        let fitted = fit(&features, &targets, 3, c, &config, Monitor::none()).unwrap();
        assert!(
            fitted.converged,
            "C {c}: {} passes, {}",
            fitted.passes, fitted.objective
        );
    }
}

#[test]
fn what_cannot_be_fitted_is_said() {
    let (features, labels) = data(20, 3, 3);
    let config = SolverConfig::new(Task::SingleLabel);
    let check = |labels: &[u32], k, c, config: &SolverConfig, message: &str| {
        let targets = Targets::Classes(labels.to_vec());
        let error = fit(&features, &targets, k, c, config, Monitor::none())
            .unwrap_err()
            .to_string();
        assert!(error.contains(message), "{error}");
    };
    check(&labels[1..], 3, 1.0, &config, "20 rows and 19 labels");
    check(&[1; 20], 3, 1.0, &config, "all rows are of one class");
    check(&labels, 2, 1.0, &config, "and there are 2 classes");
    check(&labels, 3, -1.0, &config, "C = -1 is not a positive number");
    check(&labels, 3, f64::NAN, &config, "C = NaN is not a positive number");
    let with = |weights: &[f64], smoothing| SolverConfig {
        class_weights: ClassWeights::Given(weights.to_vec()),
        label_smoothing: smoothing,
        ..config.clone()
    };
    check(
        &labels,
        3,
        1.0,
        &with(&[1.0, 2.0], 0.0),
        "2 class weights are given, and there are 3 classes",
    );
    check(
        &labels,
        3,
        1.0,
        &with(&[1.0, 0.0, 1.0], 0.0),
        "the weight of class 1 is 0, not a positive number within float32's range",
    );
    // Zero as float32, and all its rows: a search of what is left never ended.
    check(
        &labels,
        3,
        1.0,
        &with(&[1.0, 1.0, 1e-60], 0.0),
        "the weight of class 2 is 0.000000000000000000000000000000000000000000000000000000000001, not",
    );
    check(
        &labels,
        3,
        1.0,
        &with(&[1.0; 3], 1.0),
        "label smoothing is 1, not in 0..1",
    );
    let regression = SolverConfig {
        task: Task::Regression,
        ..with(&[1.0], 0.0)
    };
    let targets = Targets::dense(vec![1.0; 20], 1).unwrap();
    let error = fit(&features, &targets, 1, 1.0, &regression, Monitor::none())
        .unwrap_err()
        .to_string();
    assert!(error.contains("a regression has no classes"), "{error}");
}
