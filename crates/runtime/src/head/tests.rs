use super::*;

fn perceptron() -> Head {
    let linear = |weight: &[f32], n_out: usize| {
        Layer::Linear(Linear {
            weight: weight.to_vec(),
            bias: (0..n_out).map(|i| i as f32 * 0.5 - 0.25).collect(),
            n_in: weight.len() / n_out,
            n_out,
        })
    };
    let layers = vec![
        linear(&[1.0, -1.0, 0.5, 2.0, -0.5, 1.5], 3),
        Layer::BatchNorm1d(BatchNorm1d {
            weight: vec![1.0, 2.0, 0.5],
            bias: vec![0.1, 0.2, 0.3],
            running_mean: vec![0.5, -0.5, 0.25],
            running_var: vec![1.0, 4.0, 0.25],
            num_batches_tracked: 7,
            eps: 1e-5,
        }),
        Layer::Gelu,
        Layer::Dropout { p: 0.5 },
        Layer::LayerNorm(LayerNorm {
            weight: vec![1.0, 1.5, 0.5],
            bias: vec![0.0, 0.1, -0.1],
            eps: 1e-5,
        }),
        Layer::Relu,
        linear(&[1.0, 0.0, 1.0, -1.0, 1.0, 0.5], 2),
    ];
    Head::new(Task::MultiLabel, vec!["a".into(), "b".into()], layers).unwrap()
}

#[test]
fn logits_are_torchs() {
    // What torch.nn.Sequential of the same layers gives in eval mode, in float64.
    let features = Features::new(vec![0.3, -0.7, 1.0, 2.0], 2).unwrap();
    let logits = perceptron().logits(&features).unwrap();
    let expected = [1.161_617_3, -1.161_617_3, -0.25, 2.037_325_3];
    for (got, want) in logits.iter().zip(expected) {
        assert!((got - want).abs() < 2e-6, "{logits:?}");
    }
}

#[test]
fn stretches_of_rows_give_the_same_logits() {
    let head = perceptron();
    let values = (0..2 * 20_000).map(|at| (at as f32 * 0.1).sin()).collect();
    let features = Features::new(values, 2).unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    pool.install(|| {
        let (mut all, mut firsts) = (Vec::new(), Vec::new());
        let mut each = |first: usize, logits: &[f32]| {
            assert_eq!(first * 2, all.len());
            firsts.push(first);
            all.extend_from_slice(logits);
            Ok(())
        };
        head.logits_each(&features, &mut each).unwrap();
        assert!(firsts.len() > 2, "{firsts:?}");
        assert_eq!(all, head.logits(&features).unwrap());
        let mut n_calls = 0;
        let error = head.logits_each(&features, &mut |_, _| {
            n_calls += 1;
            Err(Error::Cancelled)
        });
        assert!(matches!(error, Err(Error::Cancelled)));
        assert_eq!(n_calls, 1, "it went on");
    });
}

#[test]
fn a_file_gives_the_same_head_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("head.safetensors");
    let linear = Head::linear(
        Task::SingleLabel,
        vec!["cat".into(), "dog".into()],
        vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        vec![0.5, -0.5],
    )
    .unwrap();
    for head in [perceptron(), linear] {
        head.save(&path).unwrap();
        assert_eq!(Head::open(&path).unwrap(), head);
    }
    let names: Vec<String> = perceptron()
        .state_dict()
        .iter()
        .map(|(name, _)| name.to_string())
        .collect();
    assert!(names.contains(&"1.num_batches_tracked".to_owned()) && names.contains(&"6.weight".to_owned()));
}

#[test]
fn layers_that_do_not_fit_are_named() {
    let linear = |n_out: usize, n_in: usize| {
        Layer::Linear(Linear {
            weight: vec![0.0; n_out * n_in],
            bias: vec![0.0; n_out],
            n_in,
            n_out,
        })
    };
    let message = |layers: Vec<Layer>| {
        Head::new(Task::SingleLabel, vec!["a".into(), "b".into()], layers)
            .unwrap_err()
            .to_string()
    };
    assert!(
        message(vec![linear(3, 4), linear(2, 4)]).contains("layer 1 of the head does not take rows of 3")
    );
    assert!(message(vec![linear(3, 4)]).contains("3 outputs for 2 names"));
    assert!(message(vec![linear(2, 4), Layer::Relu]).contains("not linear"));
    assert!(message(vec![Layer::Relu]).contains("how many numbers"));
}

#[test]
fn the_error_bound_holds() {
    let head = perceptron();
    let values = vec![0.3, -0.7, 1.0, 2.0, 10.0, -3.0];
    let rounded: Vec<f32> = values.iter().map(|v| half::f16::from_f32(*v).to_f32()).collect();
    let exact = head.logits(&Features::new(values.clone(), 2).unwrap()).unwrap();
    let off = head.logits(&Features::new(rounded.clone(), 2).unwrap()).unwrap();
    let slack = head.rounding_slack(&Features::new(rounded, 2).unwrap());
    for ((a, b), slack) in exact.iter().zip(&off).zip(&slack) {
        assert!((a - b).abs() <= *slack, "{a} {b} {slack}");
    }
}
