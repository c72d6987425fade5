//! Many heads at once.

use super::*;

#[test]
fn heads_of_a_sweep_are_those_trained_alone() {
    for (k, clip_norm) in [(3, None), (3, Some(0.5)), (10, None), (10, Some(0.5)), (21, None)] {
        let rows = data(120, 19, k, Task::SingleLabel);
        for optimiser in [Optimiser::sgd(0.9), Optimiser::adamw()] {
            let base = TrainerConfig {
                optimiser,
                clip_norm,
                ema: Some(0.8),
                ..config(Task::SingleLabel)
            };
            let head = |i: u32| SweepHead {
                lr: 0.001 * 3f64.powi(i as i32),
                weight_decay: 0.01 * f64::from(i),
                init_seed: i.into(),
            };
            let sweep_config = SweepConfig {
                base: base.clone(),
                heads: (0..5).map(head).collect(),
                halving: None,
            };
            let heads = sweep(
                &rows,
                Some(&rows),
                &names(k),
                &sweep_config,
                None,
                &mut |_, _| {},
                Monitor::none(),
            )
            .unwrap();
            for (
                trained,
                SweepHead {
                    lr,
                    weight_decay,
                    init_seed,
                },
            ) in heads.iter().zip(&sweep_config.heads)
            {
                let alone = TrainerConfig {
                    lr: *lr,
                    weight_decay: *weight_decay,
                    init_seed: *init_seed,
                    ..base.clone()
                };
                assert_eq!(*trained, train(&rows, &rows, &alone, k), "{k} classes, lr {lr}");
            }
        }
    }
}

#[test]
fn halving_drops_the_worst_and_the_others_do_not_notice() {
    let rows = data(200, 19, 10, Task::SingleLabel);
    let base = TrainerConfig {
        epochs: 6,
        best: Best::Loss,
        ..config(Task::SingleLabel)
    };
    let head = |i: u32| SweepHead {
        lr: 1e-4 * 3f64.powi(i as i32),
        weight_decay: 0.0,
        init_seed: 1,
    };
    let mut config = SweepConfig {
        base,
        heads: (0..7).map(head).collect(),
        halving: None,
    };
    let run = |config: &SweepConfig| {
        sweep(
            &rows,
            Some(&rows),
            &names(10),
            config,
            None,
            &mut |_, _| {},
            Monitor::none(),
        )
        .unwrap()
    };
    let all = run(&config);
    config.halving = Some(Halving { first: 1, factor: 2 });
    let halved = run(&config);
    let epochs: Vec<usize> = halved.iter().map(|head| head.history.len()).collect();
    // Seven after one epoch become four, after two epochs two, after four epochs one.
    assert_eq!(epochs, [1, 1, 1, 2, 2, 4, 6]);
    for (halved, all) in halved.iter().zip(&all) {
        assert_eq!(halved.history[..], all.history[..halved.history.len()]);
    }
    assert_eq!(halved[6], all[6]);
    assert_eq!(halved[0].outcome, Outcome::Dropped);
}

#[test]
fn a_sweep_can_be_interrupted_and_a_diverging_head_ends_alone() {
    let rows = data(160, 12, 9, Task::Regression);
    let mut base = TrainerConfig {
        epochs: 8,
        best: Best::Loss,
        ..config(Task::Regression)
    };
    base.batch_size = 8;
    let head = |lr: f64| SweepHead {
        lr,
        weight_decay: 0.0,
        init_seed: 4,
    };
    let heads = vec![head(0.01), head(1e4), head(0.02), head(0.001)];
    let config = SweepConfig {
        base: base.clone(),
        heads,
        halving: Some(Halving { first: 3, factor: 2 }),
    };
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, stop: usize| {
        let cancel = AtomicBool::new(false);
        let report = |progress: crate::Progress| {
            if progress.done == stop {
                cancel.store(true, Ordering::Relaxed);
            }
        };
        let monitor = Monitor {
            cancel: &cancel,
            report: &report,
        };
        sweep(
            &rows,
            None,
            &names(9),
            &config,
            Some(&folder.path().join(name)),
            &mut |_, _| {},
            monitor,
        )
    };
    let whole = run("whole", usize::MAX).unwrap();
    assert!(
        matches!(whole[1].outcome, Outcome::Diverged { epoch: 1, .. }),
        "{:?}",
        whole[1].outcome
    );
    assert!(
        bits(&whole[1].last)
            .iter()
            .all(|bits| f32::from_bits(*bits).is_finite())
    );
    for stop in [1, 7, 30, 61, 100, 150] {
        let name = format!("part {stop}");
        assert!(matches!(run(&name, stop), Err(Error::Cancelled)));
        assert_eq!(run(&name, usize::MAX).unwrap(), whole, "stopped after {stop}");
    }
    let alone = TrainerConfig { lr: 1e4, ..base };
    let error = fit(&rows, None, &names(9), &alone, None, &mut |_| {}, Monitor::none())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("is not finite in epoch 1, step ") && error.contains("(row "),
        "{error}"
    );
}
