use super::*;
use crate::head::Head;

fn names(n: usize) -> Vec<String> {
    (0..n).map(|class| format!("c{class}")).collect()
}

/// Numbers that look random and are the same everywhere.
fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 * 4.0 - 2.0
    };
    (0..n).map(|_| next()).collect()
}

#[test]
fn marks_are_scikit_learns() {
    // y_true = [0, 0, 1, 1, 2], y_pred = [0, 1, 1, 1, 0]; figures by hand.
    let classes: Vec<String> = ["a", "b", "c"].map(String::from).to_vec();
    let logits = [2., 0., 0., 0., 2., 0., 0., 2., 0., 0., 2., 0., 2., 0., 0.];
    let marks = Metrics::new(&logits, &[0, 0, 1, 1, 2], &classes);
    assert_eq!(marks.confusion, [[1, 1, 0], [0, 2, 0], [1, 0, 0]]);
    assert!((marks.accuracy - 0.6).abs() < 1e-12);
    assert_eq!(marks.top5_accuracy, None);
    assert!((marks.per_class[0].precision - 0.5).abs() < 1e-12);
    assert!((marks.per_class[1].precision - 2.0 / 3.0).abs() < 1e-12);
    let none = ClassMetrics {
        class: "c".into(),
        precision: 0.,
        recall: 0.,
        f1: 0.,
        support: 1,
    };
    assert_eq!(marks.per_class[2], none);
    assert!((marks.macro_f1 - (0.5 + 0.8 + 0.0) / 3.0).abs() < 1e-12);
    let total = 2f64.exp() + 2.0;
    let (top, other) = (2f64.exp() / total, 1.0 / total);
    let expected = (3.0 * -top.ln() + 2.0 * -other.ln()) / 5.0;
    assert!((marks.log_loss - expected).abs() < 1e-9);
    let right = (1.0 - top).powi(2) + 2.0 * other * other;
    let wrong = top * top + (1.0 - other).powi(2) + other * other;
    assert!((marks.brier - (3.0 * right + 2.0 * wrong) / 5.0).abs() < 1e-12);
    assert!((marks.ece - (top - 0.6)).abs() < 1e-12);
}

#[test]
fn the_table_is_scikit_learns() {
    // Printed by scikit-learn 1.9.1 for the same labels.
    let classes: Vec<String> = ["a", "b", "c"].map(String::from).to_vec();
    let logits = [2., 0., 0., 0., 2., 0., 0., 2., 0., 0., 2., 0., 2., 0., 0.];
    let marks = Marks::SingleLabel(Metrics::new(&logits, &[0, 0, 1, 1, 2], &classes));
    let expected = "              precision    recall  f1-score   support

           a       0.50      0.50      0.50         2
           b       0.67      1.00      0.80         2
           c       0.00      0.00      0.00         1

    accuracy                           0.60         5
   macro avg       0.39      0.50      0.43         5
weighted avg       0.47      0.60      0.52         5
";
    assert_eq!(marks.table(2), expected);
}

#[test]
fn a_class_that_neither_occurs_nor_is_predicted_is_not_in_the_mean() {
    let logits = [1.0, 0.0, -9.0, 0.0, 1.0, -9.0];
    let marks = Metrics::new(&logits, &[0, 1], &names(3));
    assert!((marks.macro_f1 - 1.0).abs() < 1e-12);
    assert!((marks.averages()[0].f1 - 2.0 / 3.0).abs() < 1e-12);
}

#[test]
fn rank_breaks_ties_as_the_class_does() {
    let logits = [1.0, 3.0, 3.0, 0.0];
    let judged = Judged::new(&logits);
    assert_eq!(judged.class, 1);
    assert_eq!([0, 1, 2, 3].map(|class| judged.rank(class)), [2, 0, 1, 3]);
}

#[test]
fn average_precision_takes_equal_scores_together() {
    // average_precision_score([1, 0, 1, 1, 0], [.9, .8, .8, .4, .1]) by hand: 1/3 · 1 + 1/3 · 2/3 + 1/3 · 3/4.
    let scores = [0.9, 0.8, 0.8, 0.4, 0.1];
    let labels = [1.0, 0.0, 1.0, 1.0, 0.0];
    let marks = MultiLabelMetrics::new(&scores, &labels, &names(1));
    let expected = (1.0 + 2.0 / 3.0 + 0.75) / 3.0;
    assert!((marks.mean_average_precision - expected).abs() < 1e-12);
    let marks = MultiLabelMetrics::new(&[0.9, 1.0, 0.8, 2.0], &[0.0, 1.0, 0.0, 1.0], &names(2));
    assert_eq!(marks.per_class[0].average_precision, None);
    assert!((marks.mean_average_precision - 1.0).abs() < 1e-12);
}

#[test]
fn a_constant_target_has_an_r2() {
    let of = |predicted: &[f32]| RegressionMetrics::new(predicted, &[2.0, 2.0], &names(1)).r2;
    assert_eq!((of(&[2.0, 2.0]), of(&[2.0, 2.5])), (1.0, 0.0));
    let marks = RegressionMetrics::new(&[1.0, 2.0, 4.0], &[1.0, 2.0, 3.0], &names(1));
    assert!((marks.mae - 1.0 / 3.0).abs() < 1e-12 && (marks.rmse - (1.0f64 / 3.0).sqrt()).abs() < 1e-12);
    assert!((marks.r2 - 0.5).abs() < 1e-12);
}

#[test]
fn bins_hold_what_lies_above_one_edge_up_to_the_next() {
    let edge = 1.0 / 15.0;
    let reliability =
        Reliability::of([(0.0, false), (edge, false), (edge * 1.01, true), (1.0, true)].into_iter());
    let counts: Vec<usize> = reliability.bins.iter().map(|bin| bin.n).collect();
    assert_eq!((counts[0], counts[1], counts[14]), (2, 1, 1));
    let expected = (2.0 * (edge / 2.0) + (1.0 - edge * 1.01)) / 4.0;
    assert!((reliability.ece - expected).abs() < 1e-12);
}

/// The least of a loss over temperatures, found by trying many.
fn by_grid(loss: impl Fn(f64) -> f64) -> f64 {
    let mut best = (f64::INFINITY, 0.0);
    for step in 0..40_000 {
        let temperature = 10f64.powf(-2.0 + f64::from(step) / 10_000.0);
        let loss = loss(temperature);
        if loss < best.0 {
            best = (loss, temperature);
        }
    }
    best.1
}

#[test]
fn the_temperature_is_where_the_loss_is_least() {
    let (n, k) = (300, 4);
    let logits: Vec<f32> = noise(n * k, 1).iter().map(|z| z * 5.0).collect();
    let labels: Vec<u32> = logits
        .chunks_exact(k)
        .zip(noise(n, 2))
        .map(|(row, other)| {
            if other > 1.0 {
                3
            } else {
                Judged::new(row).class as u32
            }
        })
        .collect();
    let targets = Targets::Classes(labels.clone());
    let fitted = Temperature::fit(Task::SingleLabel, &logits, &targets, k).unwrap();
    let loss = |t: f64| {
        let scaled: Vec<f32> = logits.iter().map(|z| (f64::from(*z) / t) as f32).collect();
        Metrics::new(&scaled, &labels, &names(k)).log_loss
    };
    let by_grid = by_grid(loss);
    assert!(
        (fitted.value / by_grid - 1.0).abs() < 3e-4,
        "{fitted:?} {by_grid}"
    );
    assert!((fitted.log_loss_before - loss(1.0)).abs() < 1e-6);
    assert!(fitted.log_loss_after < fitted.log_loss_before);

    let labels: Vec<f32> = logits
        .iter()
        .zip(noise(n * k, 3))
        .map(|(z, other)| f32::from(u8::from(z + 4.0 * other > 0.0)))
        .collect();
    let targets = Targets::dense(labels.clone(), k).unwrap();
    let fitted = Temperature::fit(Task::MultiLabel, &logits, &targets, k).unwrap();
    let loss = |t: f64| {
        let scaled: Vec<f32> = logits.iter().map(|z| (f64::from(*z) / t) as f32).collect();
        MultiLabelMetrics::new(&scaled, &labels, &names(k)).log_loss
    };
    let by_grid = by_grid_coarse(loss);
    assert!(
        (fitted.value / by_grid - 1.0).abs() < 3e-3,
        "{fitted:?} {by_grid}"
    );
}

/// As [`by_grid`], for losses that cost more.
fn by_grid_coarse(loss: impl Fn(f64) -> f64) -> f64 {
    let temperatures = (0..4000).map(|step| 10f64.powf(-2.0 + f64::from(step) / 1000.0));
    let losses = temperatures.map(|temperature| (loss(temperature), temperature));
    losses
        .fold(
            (f64::INFINITY, 0.0),
            |best, next| if next.0 < best.0 { next } else { best },
        )
        .1
}

#[test]
fn a_head_that_is_always_right_gets_the_smallest_temperature() {
    let logits = [2.0, 0.0, 0.0, 1.0];
    let targets = Targets::Classes(vec![0, 1]);
    for margin in [1.0, 20.0] {
        let logits = logits.map(|logit| logit * margin);
        let fitted = Temperature::fit(Task::SingleLabel, &logits, &targets, 2).unwrap();
        // As small as float64 can tell from smaller ones.
        assert!(
            fitted.value * f64::from(margin) < 3.0 && fitted.log_loss_after < 1e-12,
            "{fitted:?}"
        );
        assert!(margin > 1.0 || fitted.value < 0.03, "{fitted:?}");
    }
    let wrong = Targets::Classes(vec![1, 0]);
    let fitted = Temperature::fit(Task::SingleLabel, &logits, &wrong, 2).unwrap();
    assert!((fitted.value - 100.0).abs() < 1e-4, "{fitted:?}");
}

#[test]
fn a_temperature_folds_into_the_head() {
    let head = Head::linear(
        Task::SingleLabel,
        names(2),
        vec![1.0, -2.0, 0.5, 4.0],
        vec![0.5, -0.5],
    )
    .unwrap();
    let fitted = Temperature {
        value: 2.5,
        n: 1,
        log_loss_before: 0.0,
        log_loss_after: 0.0,
        ece_before: 0.0,
        ece_after: 0.0,
    };
    let features = crate::features::Features::new(noise(40, 9), 2).unwrap();
    let mut plain = head.logits(&features).unwrap();
    let folded = fitted.fold(&head).unwrap().logits(&features).unwrap();
    fitted.apply(&mut plain);
    for (a, b) in plain.iter().zip(&folded) {
        assert!((a - b).abs() < 1e-5);
    }
}

#[test]
fn threads_change_nothing() {
    let (n, k) = (5000, 7);
    let logits = noise(n * k, 4);
    let targets = Targets::Classes(noise(n, 5).iter().map(|x| ((x + 2.0) * 1.74) as u32).collect());
    let with = |n_threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(n_threads)
            .build()
            .unwrap();
        pool.install(|| {
            (
                Temperature::fit(Task::SingleLabel, &logits, &targets, k).unwrap(),
                Marks::new(Task::SingleLabel, &logits, &targets, &names(k)).unwrap(),
            )
        })
    };
    assert_eq!(with(1), with(2));
    assert_eq!(with(1), with(3));
}

#[test]
fn what_cannot_be_marked_is_named() {
    let message = |task, logits: &[f32], targets: &Targets| {
        Marks::new(task, logits, targets, &names(2))
            .unwrap_err()
            .to_string()
    };
    let classes = Targets::Classes(vec![0, 2]);
    let dense = Targets::dense(vec![0.0, 1.0, 0.5, 1.0], 2).unwrap();
    assert!(
        message(Task::SingleLabel, &[0.0; 4], &classes)
            .contains("row 1 has label 2, and there are 2 classes")
    );
    assert!(message(Task::SingleLabel, &[0.0; 6], &classes).contains("6 logits for 2 rows of 2 outputs"));
    assert!(message(Task::SingleLabel, &[0.0, 0.0, f32::NAN, 0.0], &classes).contains("NaN for row 1"));
    assert!(message(Task::SingleLabel, &[0.0; 4], &dense).contains("one class each"));
    assert!(message(Task::Regression, &[0.0; 4], &classes).contains("rows of numbers"));
    assert!(message(Task::MultiLabel, &[0.0; 4], &dense).contains("row 1 has the label 0.5"));
    let three = Targets::dense(vec![0.0; 3], 3).unwrap();
    assert!(message(Task::Regression, &[0.0; 2], &three).contains("3 numbers a row"));
    let none = Targets::Classes(Vec::new());
    let error = Temperature::fit(Task::SingleLabel, &[], &none, 2).unwrap_err();
    assert!(error.to_string().contains("no held-out rows"));
    let error = Temperature::fit(Task::Regression, &[0.0; 4], &dense, 2).unwrap_err();
    assert!(error.to_string().contains("no probabilities"));
}
