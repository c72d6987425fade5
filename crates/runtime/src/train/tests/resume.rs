//! Runs that are stopped, and go on.

use super::*;

/// Runs until `stop` steps are done, then goes on; the state of both ends is compared.
fn check_resume(rows: &Labelled, config: &TrainerConfig, k: usize, stops: impl Iterator<Item = usize>) {
    let folder = tempfile::tempdir().unwrap();
    let whole_path = folder.path().join("whole");
    let run = |path: &std::path::Path, cancel: &AtomicBool, stop: usize| {
        let report = |progress: crate::Progress| {
            if progress.done == stop {
                cancel.store(true, Ordering::Relaxed);
            }
        };
        let monitor = Monitor {
            cancel,
            report: &report,
        };
        fit(
            rows,
            Some(rows),
            &names(k),
            config,
            Some(path),
            &mut |_| {},
            monitor,
        )
    };
    let whole = run(&whole_path, &AtomicBool::new(false), usize::MAX).unwrap();
    let end = std::fs::read(&whole_path).unwrap();
    for stop in stops {
        let path = folder.path().join("part");
        let part = run(&path, &AtomicBool::new(false), stop);
        assert_eq!(part.is_err(), stop < 200, "{stop}");
        if let Err(error) = part {
            assert!(matches!(error, Error::Cancelled), "{error}");
        }
        let resumed = run(&path, &AtomicBool::new(false), usize::MAX).unwrap();
        assert_eq!(resumed, whole, "stopped after {stop}");
        assert!(std::fs::read(&path).unwrap() == end, "stopped after {stop}");
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn two_hundred_steps_stopped_at_each_end_in_the_same_bytes() {
    let rows = data(160, 12, 3, Task::SingleLabel);
    let linear = TrainerConfig {
        epochs: 20,
        ema: Some(0.9),
        ..config(Task::SingleLabel)
    };
    let deep = TrainerConfig {
        epochs: 20,
        ..perceptron(Norm::Batch)
    };
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            check_resume(&rows, &linear, 3, 1..=200);
            check_resume(
                &rows,
                &deep,
                3,
                (1..=200).step_by(if threads == 1 { 1 } else { 7 }),
            );
        });
    }
}

#[test]
fn a_killed_run_goes_on_from_its_last_checkpoint() {
    let rows = data(160, 12, 3, Task::SingleLabel);
    let config = TrainerConfig {
        epochs: 6,
        ..perceptron(Norm::Layer)
    };
    let folder = tempfile::tempdir().unwrap();
    let (path, copy) = (folder.path().join("run"), folder.path().join("copy"));
    let mut epoch = 0;
    let mut keep = |metrics: &EpochMetrics| {
        // What a kill after three epochs would leave: the checkpoint of the epoch before.
        epoch = metrics.epoch;
        if epoch == 4 {
            std::fs::copy(&path, &copy).unwrap();
        }
    };
    let whole = fit(
        &rows,
        None,
        &names(3),
        &config,
        Some(&path),
        &mut keep,
        Monitor::none(),
    )
    .unwrap();
    let mut seen = Vec::new();
    let resumed = fit(
        &rows,
        None,
        &names(3),
        &config,
        Some(&copy),
        &mut |m| seen.push(m.epoch),
        Monitor::none(),
    )
    .unwrap();
    assert_eq!(resumed, whole);
    assert_eq!(seen, [4, 5, 6]);
    assert!(std::fs::read(&path).unwrap() == std::fs::read(&copy).unwrap());
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a damaged file is made")]
fn a_checkpoint_of_another_run_is_refused_by_name() {
    let rows = data(60, 6, 3, Task::SingleLabel);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let run = |rows: &Labelled, config: &TrainerConfig| {
        fit(
            rows,
            None,
            &names(3),
            config,
            Some(&path),
            &mut |_| {},
            Monitor::none(),
        )
    };
    let base = config(Task::SingleLabel);
    run(&rows, &base).unwrap();
    let message = |rows: &Labelled, config: &TrainerConfig| run(rows, config).unwrap_err().to_string();
    let text = message(
        &rows,
        &TrainerConfig {
            batch_size: 8,
            ..base.clone()
        },
    );
    assert!(
        text.contains("its `batch_size` is 16, and 8 is asked for"),
        "{text}"
    );
    let mut other = rows.clone();
    other.targets = Targets::Classes((0..60).map(|i| i % 3).collect());
    let text = message(&other, &base);
    assert!(text.contains("its features or targets are not these"), "{text}");
    std::fs::write(&path, b"nonsense").unwrap();
    let text = message(&rows, &base);
    assert!(text.contains("not a checkpoint of a trainer"), "{text}");
}
