//! What cannot be trained, and what a run begins with.

use super::*;

#[test]
fn a_mean_over_no_weight_stops_before_its_step() {
    let rows = data(33, 6, 3, Task::SingleLabel);
    let config = TrainerConfig {
        class_weights: ClassWeights::Given(vec![0.0, 1.0, 1.0]),
        batch_size: 1,
        ..config(Task::SingleLabel)
    };
    let error = fit(
        &rows,
        None,
        &names(3),
        &config,
        None,
        &mut |_| {},
        Monitor::none(),
    )
    .unwrap_err();
    let Error::NotFinite { epoch, step, .. } = error else {
        panic!("{error}")
    };
    let mut order = epoch_order(config.seed, 0, 33);
    let labels = rows.targets.classes().unwrap();
    let first = order.iter().position(|row| labels[*row] == 0).unwrap();
    assert_eq!((epoch, step), (1, first + 1));
    order.sort_unstable();
    assert!(order.into_iter().eq(0..33));
}

#[test]
fn a_head_to_begin_with_has_the_widths_that_are_asked_for() {
    let rows = data(33, 6, 3, Task::SingleLabel);
    let hidden = |width: usize| TrainerConfig {
        hidden: vec![width],
        ..config(Task::SingleLabel)
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let names = names(3);
    let start = fit(
        &rows,
        None,
        &names,
        &hidden(4),
        None,
        &mut |_| {},
        Monitor::none(),
    )
    .unwrap()
    .head;
    let from = |width: usize| {
        let config = hidden(width);
        fit_from(
            &start,
            &rows,
            None,
            &names,
            &config,
            Some(&path),
            &mut |_| {},
            Monitor::none(),
        )
    };
    let error = from(8).unwrap_err().to_string();
    assert!(error.contains("has other layers than the settings"), "{error}");
    from(4).unwrap();
    // What begins elsewhere is another run.
    let fresh = fit(
        &rows,
        None,
        &names,
        &hidden(4),
        Some(&path),
        &mut |_| {},
        Monitor::none(),
    );
    let error = fresh.unwrap_err().to_string();
    assert!(error.contains("its `start` is"), "{error}");
}

#[test]
fn what_cannot_be_trained_is_said() {
    let rows = data(33, 6, 3, Task::SingleLabel);
    let check = |change: &dyn Fn(&mut TrainerConfig, &mut Labelled), message: &str| {
        let (mut config, mut rows) = (config(Task::SingleLabel), rows.clone());
        change(&mut config, &mut rows);
        let error = fit(
            &rows,
            None,
            &names(3),
            &config,
            None,
            &mut |_| {},
            Monitor::none(),
        )
        .unwrap_err()
        .to_string();
        assert!(error.contains(message), "{error}");
    };
    check(
        &|config, _| (config.batch_size, config.drop_last) = (34, true),
        "33 rows make no batch of 34",
    );
    check(
        &|config, _| (config.hidden, config.norm) = (vec![4], Norm::Batch),
        "batches of 16 leave one of 33 rows over",
    );
    check(
        &|_, rows| rows.targets = Targets::Classes(vec![1; 33]),
        "all rows are of one class",
    );
    check(
        &|_, rows| rows.targets = Targets::Classes(vec![1; 3]),
        "33 rows and 3 labels",
    );
    check(
        &|config, _| config.class_weights = ClassWeights::Given(vec![1.0]),
        "1 class weights for 3 classes",
    );
    check(&|config, _| config.lr = -1.0, "lr = -1");
    let other = data(10, 7, 3, Task::SingleLabel);
    let error = fit(
        &rows,
        Some(&other),
        &names(3),
        &config(Task::SingleLabel),
        None,
        &mut |_| {},
        Monitor::none(),
    );
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("the training rows have 6 numbers and the validation rows 7")
    );
    let empty = SweepConfig {
        heads: Vec::new(),
        ..SweepConfig::dinov2(Task::SingleLabel, 128, 2)
    };
    let error = sweep(
        &rows,
        None,
        &names(3),
        &empty,
        None,
        &mut |_, _| {},
        Monitor::none(),
    )
    .unwrap_err();
    assert!(error.to_string().contains("a sweep of no heads"));
    let start = Head::linear(Task::SingleLabel, names(3), vec![0.0; 6], vec![0.0; 3]).unwrap();
    let config = config(Task::SingleLabel);
    let error = fit_from(
        &start,
        &rows,
        None,
        &names(3),
        &config,
        None,
        &mut |_| {},
        Monitor::none(),
    )
    .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("takes 2 numbers and gives 3, and 6 and 3 are needed")
    );
}

#[test]
fn a_head_goes_on_from_where_another_ended() {
    let rows = data(64, 6, 3, Task::SingleLabel);
    let config = TrainerConfig {
        standardise: true,
        lr: 0.0,
        epochs: 1,
        ..config(Task::SingleLabel)
    };
    let start = train(
        &rows,
        &rows,
        &TrainerConfig {
            lr: 0.1,
            epochs: 2,
            ..config.clone()
        },
        3,
    )
    .last;
    let same = fit_from(
        &start,
        &rows,
        None,
        &names(3),
        &config,
        None,
        &mut |_| {},
        Monitor::none(),
    )
    .unwrap()
    .last;
    let numbers = |head: &Head| head.layers().iter().flat_map(numbers).collect::<Vec<_>>();
    for (a, b) in numbers(&same).iter().zip(numbers(&start)) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}
