"""The trainer beside PyTorch: the same first weights, the same batches, the same settings; losses and weights compared.

    cargo build --release -p graftwork-runtime --example trainer
    python tools/parity_trainer.py --trainer target/release/examples/trainer

The reference is PyTorch in float64. Every row is one configuration after a hundred steps: the largest difference of an
epoch's mean loss, of a weight and of a moving average, relative to the largest number of its array, and in brackets how far
PyTorch's own float32 is from the reference. A row fails where a difference is beyond the limit and beyond four times
PyTorch's own; some settings multiply any rounding. The bias in front of a batch norm is not compared: its gradient is zero
but for rounding, which Adam divides by itself. Exits with 1 if a row fails.
"""

import argparse
import copy
import itertools
import json
import subprocess
import sys

import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

LIMIT = 5e-6

BASE = {
    "task": "single-label", "hidden": [], "activation": "relu", "norm": "none", "dropout": 0.0, "label_smoothing": 0.0,
    "class_weights": "none", "optimiser": {"kind": "sgd", "momentum": 0.9, "dampening": 0.0, "nesterov": False},
    "lr": 0.05, "weight_decay": 0.0,
    "schedule": {"curve": {"kind": "constant"}, "unit": "epoch", "warmup": 0, "warmup_start": 1 / 3},
    "epochs": 10, "batch_size": 16, "drop_last": False, "clip_norm": None, "mixup": None, "noise": 0.0,
    "standardise": False, "early_stopping": None, "best": "last", "ema": None, "init": {"kind": "uniform"},
    "seed": 5, "init_seed": 1,
}

SGD = {
    "sgd": {"kind": "sgd", "momentum": 0.0, "dampening": 0.0, "nesterov": False},
    "momentum": {"kind": "sgd", "momentum": 0.9, "dampening": 0.0, "nesterov": False},
    "dampened": {"kind": "sgd", "momentum": 0.8, "dampening": 0.3, "nesterov": False},
    "nesterov": {"kind": "sgd", "momentum": 0.9, "dampening": 0.0, "nesterov": True},
}
ADAM = {
    "adam": {"kind": "adam", "betas": [0.9, 0.999], "eps": 1e-8},
    "adamw": {"kind": "adam-w", "betas": [0.8, 0.99], "eps": 1e-6},
}
CURVES = {
    "constant": {"kind": "constant"},
    "step": {"kind": "step", "step_size": 3, "gamma": 0.3},
    "cosine": {"kind": "cosine", "min_lr": 0.001},
    "one-cycle": {"kind": "one-cycle", "pct_start": 0.3, "div_factor": 25.0, "final_div_factor": 1e4, "momentum": [0.85, 0.95]},
}


def ask(trainer, request):
    done = subprocess.run([trainer], input=json.dumps(request), capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"the trainer failed: {done.stderr}")
    return json.loads(done.stdout)


def network(config, n_features, n_outputs):
    layers, width = [], n_features
    for hidden in config["hidden"]:
        layers.append(nn.Linear(width, hidden))
        if config["norm"] != "none":
            layers.append({"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}[config["norm"]](hidden))
        layers.append({"relu": nn.ReLU, "gelu": nn.GELU}[config["activation"]]())
        width = hidden
    layers.append(nn.Linear(width, n_outputs))
    return nn.Sequential(*layers)


def criterion(config, dtype):
    weights = config["class_weights"]
    weights = torch.tensor(weights["given"], dtype=dtype) if weights != "none" else None
    if config["task"] == "single-label":
        return nn.CrossEntropyLoss(weight=weights, label_smoothing=config["label_smoothing"])
    if config["task"] == "multi-label":
        inner = nn.BCEWithLogitsLoss(pos_weight=weights)
        smoothing = config["label_smoothing"]
        return lambda z, y: inner(z, y * (1 - smoothing) + smoothing / 2)
    return nn.MSELoss()


def optimiser(config, parameters):
    spec, common = config["optimiser"], {"lr": config["lr"], "weight_decay": config["weight_decay"]}
    if spec["kind"] == "sgd":
        return torch.optim.SGD(parameters, momentum=spec["momentum"], dampening=spec["dampening"],
                               nesterov=spec["nesterov"], **common)
    kind = {"adam": torch.optim.Adam, "adam-w": torch.optim.AdamW}[spec["kind"]]
    return kind(parameters, betas=spec["betas"], eps=spec["eps"], **common)


def scheduler(config, optim, total):
    """The torch schedule, and whether it moves after each step."""
    spec = config["schedule"]
    curve, warmup = spec["curve"], spec["warmup"]
    if curve["kind"] == "one-cycle":
        base, top = curve["momentum"]
        return schedulers.OneCycleLR(optim, config["lr"], total_steps=total["step"], pct_start=curve["pct_start"],
                                     div_factor=curve["div_factor"], final_div_factor=curve["final_div_factor"],
                                     base_momentum=base, max_momentum=top), True
    left = total[spec["unit"]] - warmup
    made = {
        "constant": lambda: schedulers.ConstantLR(optim, 1.0),
        "step": lambda: schedulers.StepLR(optim, curve["step_size"], curve["gamma"]),
        "cosine": lambda: schedulers.CosineAnnealingLR(optim, left, curve["min_lr"]),
    }[curve["kind"]]()
    if warmup:
        rise = schedulers.LinearLR(optim, spec["warmup_start"], total_iters=warmup)
        made = schedulers.SequentialLR(optim, [rise, made], [warmup])
    return made, spec["unit"] == "step"


def train(config, model, features, targets, orders):
    loss_of = criterion(config, features.dtype)
    optim = optimiser(config, model.parameters())
    size = config["batch_size"]
    per_epoch = -(-len(features) // size)
    schedule, each_step = scheduler(config, optim, {"step": per_epoch * config["epochs"], "epoch": config["epochs"]})
    average = None
    if config["ema"] is not None:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config["ema"]))
    losses, rates = [], []
    model.train()
    for epoch in range(config["epochs"]):
        total = weight = 0.0
        for rows in torch.tensor(orders[epoch]).split(size):
            optim.zero_grad()
            loss = loss_of(model(features[rows]), targets[rows])
            loss.backward()
            if config["clip_norm"] is not None:
                nn.utils.clip_grad_norm_(model.parameters(), config["clip_norm"])
            rates.append(optim.param_groups[0]["lr"])
            optim.step()
            if each_step:
                schedule.step()
            if average is not None:
                average.update_parameters(model)
            share = len(rows)
            if config["class_weights"] != "none" and config["task"] == "single-label":
                share = torch.tensor(config["class_weights"]["given"])[targets[rows]].sum().item()
            total, weight = total + loss.item() * share, weight + share
        if not each_step:
            schedule.step()
        losses.append(total / weight)
    return losses, average


def arrays(model):
    return [v for k, v in model.state_dict().items() if v.is_floating_point()]


def compared(config):
    """Which arrays say something; see above."""
    if config["norm"] != "batch":
        return None
    per_layer = [True, False, True, True, True, True]
    # The running mean carries that bias along.
    per_layer[4] = False
    return per_layer * len(config["hidden"]) + [True, True]


def furthest(theirs, ours, keep):
    worst = 0.0
    for at, (a, b) in enumerate(zip(theirs, ours, strict=True)):
        if keep is None or keep[at]:
            b = torch.as_tensor(b, dtype=torch.float64).reshape(a.shape)
            worst = max(worst, ((a - b).abs().max() / a.abs().max().clamp(min=1e-3)).item())
    return worst


def spread(reference, losses, weights, average, keep):
    (exact_losses, exact_average), exact = reference
    loss = max(abs(a - b) / max(abs(a), 1e-3) for a, b in zip(exact_losses, losses, strict=True))
    mean = furthest(arrays(exact_average.module), average, keep) if exact_average is not None else 0.0
    return loss, furthest(arrays(exact), weights, keep), mean


def data(task, n, d, k, seed):
    torch.manual_seed(seed)
    features = torch.randn(n, d)
    if task == "single-label":
        return features, (features @ torch.randn(d, k) + torch.randn(n, k)).argmax(1)
    if task == "multi-label":
        return features, (features @ torch.randn(d, k) > 0).float()
    return features, features @ torch.randn(d, k) * 0.1


# Features in spans, on several threads.
WIDE = "2,048 features, "


def cases():
    for (name, optim), decay in itertools.product((SGD | ADAM).items(), [0.0, 0.05]):
        lr = 0.05 if name in SGD else 0.003
        yield f"{name}, decay {decay}", {"optimiser": optim, "weight_decay": decay, "lr": lr}
    for task in ["single-label", "multi-label", "regression"]:
        for smoothing in [0.0, 0.1] if task != "regression" else [0.0]:
            yield f"{task}, smoothing {smoothing}", {"task": task, "label_smoothing": smoothing}
        if task != "regression":
            yield f"{task}, class weights", {"task": task, "class_weights": {"given": [0.5, 2.0, 1.0, 3.0, 0.25]},
                                             "label_smoothing": 0.05}
    for (name, curve), unit in itertools.product(CURVES.items(), ["epoch", "step"]):
        for warmup in [0, 3] if name != "one-cycle" else [0]:
            yield f"{name} by {unit}, warm-up {warmup}", {
                "schedule": {"curve": curve, "unit": unit, "warmup": warmup, "warmup_start": 0.1}}
    yield "one-cycle with adamw", {"optimiser": ADAM["adamw"], "lr": 0.01,
                                   "schedule": BASE["schedule"] | {"curve": CURVES["one-cycle"], "unit": "step"}}
    # The larger eps keeps Adam from dividing gradients that are nothing but rounding by themselves.
    for name, optim in [("momentum", SGD["momentum"]), ("adamw", ADAM["adamw"] | {"eps": 1e-3})]:
        yield f"{WIDE}{name}", {"optimiser": optim, "lr": 0.001, "batch_size": 75}
    yield "clipped", {"clip_norm": 0.2}
    yield "moving average", {"ema": 0.9}
    for norm, activation in itertools.product(["none", "batch", "layer"], ["relu", "gelu"]):
        for name in ["momentum", "adamw"]:
            yield f"perceptron, {norm}, {activation}, {name}", {
                "hidden": [24, 7], "norm": norm, "activation": activation, "optimiser": (SGD | ADAM)[name],
                "lr": 0.05 if name == "momentum" else 0.002, "weight_decay": 0.01, "clip_norm": 1.0, "ema": 0.95}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trainer", required=True)
    trainer = parser.parse_args().trainer
    failed = 0
    print(f"{'configuration':44} {'loss':17}  {'weights':17}  {'average':17}  limit {LIMIT:g}")
    for name, change in cases():
        config = BASE | change
        # One case of few outputs (lanes are inputs) and one of many (lanes are outputs); 5 classes where weights are given.
        for k in [5] if config["class_weights"] != "none" else [5, 12]:
            n, d = 150, 2048 if name.startswith(WIDE) else 37
            features, targets = data(config["task"], n, d, k, seed=k)
            torch.manual_seed(1)
            model = network(config, d, k)
            request = {
                "config": config, "outputs": k, "n_features": d, "features": features.flatten().tolist(), "orders": True,
                "layers": [v.detach().flatten().tolist() for v in model.parameters()],
                ("labels" if config["task"] == "single-label" else "targets"): targets.flatten().tolist(),
            }
            answer = ask(trainer, request)
            head = answer["heads"][0]
            exact = copy.deepcopy(model).double()
            wide = targets.double() if targets.is_floating_point() else targets
            reference = train(config, exact, features.double(), wide, answer["orders"]), exact
            losses, average = train(config, model, features, targets, answer["orders"])
            keep = compared(config)
            theirs = spread(reference, losses, arrays(model), average and arrays(average.module), keep)
            ours = spread(reference, [epoch["train_loss"] for epoch in head["history"]], head["last"], head["ema"], keep)
            bad = any(not a <= max(LIMIT, 4 * b) for a, b in zip(ours, theirs, strict=True))
            failed += bad
            cells = "  ".join(f"{a:7.1e} ({b:7.1e})" for a, b in zip(ours, theirs, strict=True))
            print(f"{name + f', {k} outputs':44} {cells}{'   TOO FAR' if bad else ''}")
    for (name, curve), unit, warmup in itertools.product(CURVES.items(), ["epoch", "step"], [0, 4]):
        if name == "one-cycle" and warmup:
            continue
        epochs, per_epoch, lr = 12, 5, 0.3
        spec = {"curve": curve, "unit": unit, "warmup": warmup, "warmup_start": 0.25}
        ours = ask(trainer, {"schedule": spec, "lr": lr, "epochs": epochs, "steps": epochs * per_epoch})
        optim = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)
        schedule, each_step = scheduler({"schedule": spec, "lr": lr}, optim, {"step": epochs * per_epoch, "epoch": epochs})
        worst = 0.0
        for step in range(epochs * per_epoch):
            group = optim.param_groups[0]
            worst = max(worst, abs(group["lr"] - ours["lr"][step]) / lr)
            if ours["momentum"][step] is not None:
                worst = max(worst, abs(group["momentum"] - ours["momentum"][step]))
            optim.step()
            if each_step or (step + 1) % per_epoch == 0:
                schedule.step()
        bad = worst > 1e-9
        failed += bad
        print(f"{f'rates: {name} by {unit}, warm-up {warmup}':44} {worst:9.1e}{'   TOO FAR' if bad else ''}")
    print("all within the limit" if not failed else f"{failed} beyond the limit")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
