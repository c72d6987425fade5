//! Trains a head as a request in JSON says, for comparisons with other trainers: `trainer < request.json > result.json`.
//!
//! A request has `config` (`TrainerConfig`), `task`, `outputs` (how many), `n_features`, `features` (row after row),
//! `labels` or `targets`, perhaps `layers` to begin with (`torch.nn.Sequential`'s numbers in order) and `val_features` with
//! `val_labels` or `val_targets`. With `schedule` and `lr`, `epochs`, `steps` it only answers with the rates of the steps.
//! With `repeat` it trains that often and says how many seconds each took. Large arrays are better files of float32 and
//! uint32: `features_file`, `labels_file`. With `sweep` (`SweepConfig`) it trains many heads.

use std::error::Error;
use std::io::Read;
use std::time::Instant;

use runtime::features::{Features, Labelled};
use runtime::head::{BatchNorm1d, Head, Layer, LayerNorm, Linear};
use runtime::train::{
    Activation, Norm, Schedule, SweepConfig, Time, TrainedHead, TrainerConfig, epoch_order, fit, fit_from,
    sweep,
};
use runtime::{Monitor, Targets};
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let request: Value = serde_json::from_str(&text)?;
    let answer = if request.get("schedule").is_some() {
        rates(&request)?
    } else {
        train(&request)?
    };
    #[expect(clippy::print_stdout, reason = "the answer")]
    {
        println!("{answer}");
    }
    Ok(())
}

fn rates(request: &Value) -> Result<Value> {
    let schedule: Schedule = serde_json::from_value(request["schedule"].clone())?;
    let number = |name: &str| {
        request[name]
            .as_u64()
            .map(|n| n as usize)
            .ok_or(format!("no `{name}`"))
    };
    let (epochs, steps) = (number("epochs")?, number("steps")?);
    let lr = request["lr"].as_f64().ok_or("no `lr`")?;
    let per_epoch = steps / epochs;
    let time = |step: usize| Time {
        epoch: step / per_epoch,
        step,
        epochs,
        steps,
    };
    let rates: Vec<f64> = (0..steps).map(|step| schedule.lr(lr, time(step))).collect();
    let momenta: Vec<Option<f64>> = (0..steps).map(|step| schedule.momentum(time(step))).collect();
    Ok(json!({ "lr": rates, "momentum": momenta }))
}

fn floats(value: &Value) -> Option<Vec<f32>> {
    Some(
        value
            .as_array()?
            .iter()
            .map(|x| x.as_f64().unwrap_or(f64::NAN) as f32)
            .collect(),
    )
}

fn labelled(request: &Value, prefix: &str, n_features: usize, n_outputs: usize) -> Result<Option<Labelled>> {
    let get = |name: &str| request.get(format!("{prefix}{name}"));
    let bytes = |name: &str| -> Result<Option<Vec<u8>>> {
        Ok(get(name).and_then(Value::as_str).map(std::fs::read).transpose()?)
    };
    let features = match (bytes("features_file")?, get("features").and_then(floats)) {
        (Some(bytes), _) => bytemuck::pod_collect_to_vec(&bytes),
        (None, Some(values)) => values,
        (None, None) => return Ok(None),
    };
    let targets = match (
        bytes("labels_file")?,
        get("labels"),
        get("targets").and_then(floats),
    ) {
        (Some(bytes), ..) => Targets::Classes(bytemuck::pod_collect_to_vec(&bytes)),
        (None, Some(labels), _) => Targets::Classes(serde_json::from_value(labels.clone())?),
        (None, None, Some(values)) => Targets::dense(values, n_outputs)?,
        (None, None, None) => return Err(format!("no `{prefix}labels`").into()),
    };
    let features = Features::new(features, n_features)?;
    Ok(Some(Labelled {
        features,
        targets,
        names: Vec::new(),
        n_unlabelled: 0,
        n_missing_views: 0,
    }))
}

fn train(request: &Value) -> Result<Value> {
    let number = |name: &str| {
        request[name]
            .as_u64()
            .map(|n| n as usize)
            .ok_or(format!("no `{name}`"))
    };
    let (n_features, n_outputs) = (number("n_features")?, number("outputs")?);
    let train = labelled(request, "", n_features, n_outputs)?.ok_or("no `features`")?;
    let val = labelled(request, "val_", n_features, n_outputs)?;
    let outputs: Vec<String> = (0..n_outputs).map(|output| output.to_string()).collect();
    let repeat = request.get("repeat").and_then(Value::as_u64).unwrap_or(1);
    let mut seconds = Vec::new();
    let mut heads = Vec::new();
    let mut config = TrainerConfig::notebook(runtime::Task::SingleLabel);
    for _ in 0..repeat {
        let begin = Instant::now();
        if let Some(spec) = request.get("sweep") {
            let spec: SweepConfig = serde_json::from_value(spec.clone())?;
            heads = sweep(
                &train,
                val.as_ref(),
                &outputs,
                &spec,
                None,
                &mut |_, _| {},
                Monitor::none(),
            )?;
            config = spec.base;
        } else {
            config = serde_json::from_value(request["config"].clone())?;
            let head = match request.get("layers").and_then(Value::as_array) {
                None => fit(
                    &train,
                    val.as_ref(),
                    &outputs,
                    &config,
                    None,
                    &mut |_| {},
                    Monitor::none(),
                )?,
                Some(arrays) => {
                    let arrays: Vec<Vec<f32>> = arrays.iter().filter_map(floats).collect();
                    let start = Head::new(
                        config.task,
                        outputs.clone(),
                        layers(&config, n_features, n_outputs, &arrays),
                    )?;
                    fit_from(
                        &start,
                        &train,
                        val.as_ref(),
                        &outputs,
                        &config,
                        None,
                        &mut |_| {},
                        Monitor::none(),
                    )?
                }
            };
            heads = vec![head];
        }
        seconds.push(begin.elapsed().as_secs_f64());
    }
    let orders: Vec<Vec<usize>> = match request.get("orders") {
        Some(_) => (0..config.epochs)
            .map(|epoch| epoch_order(config.seed, epoch, train.features.n_rows()))
            .collect(),
        None => Vec::new(),
    };
    let described: Vec<Value> = match request.get("quiet") {
        Some(_) => heads
            .iter()
            .map(|head| json!({ "history": head.history }))
            .collect(),
        None => heads.iter().map(describe).collect(),
    };
    Ok(json!({ "heads": described, "orders": orders, "seconds": seconds }))
}

/// Layers of the form that the settings ask for, with these arrays in order.
fn layers(config: &TrainerConfig, n_features: usize, n_outputs: usize, arrays: &[Vec<f32>]) -> Vec<Layer> {
    let mut arrays = arrays.iter().cloned();
    let mut next = || arrays.next().unwrap_or_default();
    let mut linear = |n_in: usize, n_out: usize, next: &mut dyn FnMut() -> Vec<f32>| {
        Layer::Linear(Linear {
            weight: next(),
            bias: next(),
            n_in,
            n_out,
        })
    };
    let mut layers = Vec::new();
    let mut n_in = n_features;
    for &width in &config.hidden {
        layers.push(linear(n_in, width, &mut next));
        match config.norm {
            Norm::None => {}
            Norm::Layer => layers.push(Layer::LayerNorm(LayerNorm {
                weight: next(),
                bias: next(),
                eps: 1e-5,
            })),
            Norm::Batch => layers.push(Layer::BatchNorm1d(BatchNorm1d {
                weight: next(),
                bias: next(),
                running_mean: vec![0.0; width],
                running_var: vec![1.0; width],
                num_batches_tracked: 0,
                eps: 1e-5,
            })),
        }
        layers.push(match config.activation {
            Activation::Relu => Layer::Relu,
            Activation::Gelu => Layer::Gelu,
        });
        if config.dropout > 0.0 {
            layers.push(Layer::Dropout { p: config.dropout });
        }
        n_in = width;
    }
    layers.push(linear(n_in, n_outputs, &mut next));
    layers
}

fn describe(trained: &TrainedHead) -> Value {
    let arrays = |head: &Head| -> Vec<Vec<f32>> {
        let mut arrays = Vec::new();
        for layer in head.layers() {
            match layer {
                Layer::Linear(l) => arrays.extend([l.weight.clone(), l.bias.clone()]),
                Layer::LayerNorm(n) => arrays.extend([n.weight.clone(), n.bias.clone()]),
                Layer::BatchNorm1d(n) => {
                    arrays.extend([
                        n.weight.clone(),
                        n.bias.clone(),
                        n.running_mean.clone(),
                        n.running_var.clone(),
                    ]);
                }
                Layer::Relu | Layer::Gelu | Layer::Dropout { .. } => {}
            }
        }
        arrays
    };
    json!({
        "history": trained.history,
        "best_epoch": trained.best_epoch,
        "head": arrays(&trained.head),
        "last": arrays(&trained.last),
        "ema": trained.ema.as_ref().map(arrays),
    })
}
