//! Features of one network by the crate's own kernels and by ONNX Runtime, turn by turn, one line of JSON.
//!
//! `forward MODEL.onnx [BATCH [THREADS [ROUNDS]]]`; `ORT_DYLIB_PATH` says which ONNX Runtime. Each thread has batches and
//! sessions of its own, as in an extraction. Rates are pictures a second of all threads together, the median of the rounds;
//! `difference` is the largest, in parts of the largest feature.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "an example")]

use std::path::Path;
use std::sync::Barrier;
use std::time::Instant;

use runtime::engine::{Device, Engine, Input, SessionOptions};
use runtime::grad::{Frozen, Room};
use runtime::onnx::Model;

const SIDE: usize = 224;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: usize| args.get(at).map_or(default, |arg| arg.parse().unwrap());
    let (batch_size, n_threads, n_rounds) = (number(1, 8), number(2, 2), number(3, 7));
    let model = Model::open(Path::new(&args[0])).unwrap();
    let boundary = model.default_boundary().unwrap();
    let model = model.cut(&[&boundary]).unwrap();
    let input = model.input().unwrap().name.clone();
    let input_shape = [3, SIDE, SIDE];
    if !Frozen::pays(&model, &input, &boundary, &input_shape) {
        println!("{{\"own\": null}}");
        return;
    }
    let frozen = Frozen::new(&model, &input, &[&boundary], &input_shape).unwrap();
    let engine = Engine::open(None).unwrap();
    let shape = [batch_size, 3, SIDE, SIDE];
    let values: Vec<f32> = (0..shape.iter().product::<usize>())
        .map(|i| (i * 7919 % 1013) as f32 / 253.25 - 2.0)
        .collect();
    let barrier = Barrier::new(n_threads);
    let thread = || {
        let options = SessionOptions {
            intra_threads: 1,
            device: Device::Cpu,
        };
        let mut session = engine.session(&model, options).unwrap();
        let threads = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let (mut room, mut seconds, mut difference) = (Room::default(), Vec::new(), 0.0);
        for round in 0..=n_rounds {
            barrier.wait();
            let start = Instant::now();
            let own = threads.install(|| frozen.forward(&mut room, &values));
            barrier.wait();
            let own_seconds = start.elapsed().as_secs_f64();
            let start = Instant::now();
            let input = Input::F32 {
                shape: &shape,
                values: &values,
            };
            let other = session.run(&[input]).unwrap();
            barrier.wait();
            if round == 0 {
                let largest =
                    |values: &mut dyn Iterator<Item = f32>| values.fold(0.0f32, |a, b| a.max(b.abs()));
                let differences = &mut own[0].iter().zip(&other[0].values).map(|(a, b)| a - b);
                difference = largest(differences) / largest(&mut other[0].values.iter().copied());
            } else {
                seconds.push([own_seconds, start.elapsed().as_secs_f64()]);
            }
        }
        (seconds, difference)
    };
    let (seconds, difference) = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..n_threads).map(|_| scope.spawn(thread)).collect();
        let mut results = threads.into_iter().map(|thread| thread.join().unwrap());
        results.next().unwrap()
    });
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let rate =
        |side: usize| (n_threads * batch_size) as f64 / median(seconds.iter().map(|s| s[side]).collect());
    let ratio = median(seconds.iter().map(|[own, other]| other / own).collect());
    println!(
        "{{\"own\": {:.1}, \"onnxruntime\": {:.1}, \"ratio\": {ratio:.2}, \"difference\": {difference:.1e}}}",
        rate(0),
        rate(1)
    );
}
