"""Compares what `graftwork export` and `predict` make of heads with torch: graphs with a head behind them, state dicts with a head in
them, heads alone, and tables of predictions.

    cargo build --package graftwork
    python tools/check_export.py --graftwork target/debug/graftwork

Graphs: small convolutional networks exported at several operator sets, of float32 and of float16, each with a linear head and with
perceptrons of all kinds of layers, put behind the network that a cache entry's features came from; ONNX Runtime on the exported file
against torch on backbone and head, probabilities too. `onnx.checker` must accept each file, and the bytes of every node and weight in
front of the head must be those of the backbone's file.

State dicts: torchvision's resnet18, mobilenet_v2 and mobilenet_v3_small (random weights), which load the result strictly once their
classifier is the head, give the same logits as backbone and head, and have the frozen marks that say so.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from parity_common import check, finish
from png import encode

warnings.filterwarnings("ignore")
N_ROWS = 7
SIDE = 20
TOLERANCE = 2e-5


class Backbone(nn.Module):
    """A few layers, and a classifier that the head takes the place of."""

    def __init__(self, n_features: int):
        super().__init__()
        self.conv = nn.Conv2d(3, n_features, 3, stride=2)
        self.norm = nn.BatchNorm2d(n_features)
        self.fc = nn.Linear(n_features, 11)

    def features(self, x):
        return torch.relu(self.norm(self.conv(x))).mean((2, 3))

    def forward(self, x):
        return self.fc(self.features(x))


def stirred(head: nn.Module) -> nn.Module:
    """Statistics and factors that training would have made."""
    for module in head.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.3, 3)
            module.num_batches_tracked.fill_(9)
        if isinstance(module, (nn.BatchNorm1d, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    return head.eval()


def heads(d: int, c: int) -> dict[str, nn.Module]:
    return {
        "linear": nn.Linear(d, c),
        "relu": nn.Sequential(nn.Linear(d, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, c)),
        "batch norm, gelu": nn.Sequential(nn.Linear(d, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Linear(16, c)),
        "layer norm, gelu": nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 16), nn.LayerNorm(16, eps=1e-3), nn.GELU(), nn.Linear(16, c)),
        "batch norm first": nn.Sequential(nn.BatchNorm1d(d), nn.Dropout(0.1), nn.Linear(d, c)),
        "batch norm behind relu": nn.Sequential(nn.Linear(d, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.GELU(), nn.Linear(16, c)),
    }


def kind(layer: nn.Module) -> dict:
    match layer:
        case nn.Linear():
            return {"kind": "linear"}
        case nn.BatchNorm1d():
            return {"kind": "batch-norm1d", "eps": layer.eps}
        case nn.LayerNorm():
            return {"kind": "layer-norm", "eps": layer.eps}
        case nn.ReLU():
            return {"kind": "relu"}
        case nn.GELU():
            return {"kind": "gelu"}
        case nn.Dropout():
            return {"kind": "dropout", "p": layer.p}
    raise ValueError(layer)


def save_head(head: nn.Module, path: Path, task: str) -> None:
    n_outputs = [module for module in head.modules() if isinstance(module, nn.Linear)][-1].out_features
    metadata = {"classes": json.dumps([f"class {i}" for i in range(n_outputs)]), "task": json.dumps(task)}
    if isinstance(head, nn.Sequential):
        metadata["layers"] = json.dumps([kind(layer) for layer in head])
    save_file(head.state_dict(), path, metadata)


def graftwork(binary: str, *args) -> str:
    done = subprocess.run([binary, *map(str, args)], capture_output=True, text=True)
    check(f"graftwork {args[0]}: {done.stderr}", done.returncode, 0)
    return done.stdout.strip()


def extracted(binary: str, backbone: Path, folder: Path) -> str:
    """The cache entry of the backbone's features of a few pictures, as `train` would be given it."""
    data = folder / "pictures"
    if not data.exists():
        for at in range(8):
            path = data / "ab"[at % 2] / f"{at}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(np.random.default_rng(at).integers(0, 256, (SIDE, SIDE, 3)), 8))
    return graftwork(binary, "extract", "--backbone", backbone, "--data", data, "--cache", folder / "cache", "--dtype", "float32",
                     "--resize", SIDE, "--crop", SIDE)


def near(label: str, found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    scale = 1 + np.abs(expected).max()
    check(f"{label}: off by {np.abs(found - expected).max():.2e}", bool(np.abs(found - expected).max() <= tolerance * scale), True)


def graphs(binary: str, folder: Path) -> None:
    d, c = 24, 5
    x = torch.randn(N_ROWS, 3, SIDE, SIDE)
    run = folder / "run"
    run.mkdir()
    for opset, half in [(11, False), (13, False), (16, False), (17, False), (18, False), (20, False), (17, True)]:
        backbone = Backbone(d).eval()
        nn.init.uniform_(backbone.norm.running_mean, -1, 1)
        given = copy.deepcopy(backbone).half() if half else backbone
        source = folder / "backbone.onnx"
        axes = {"x": {0: "n"}, "y": {0: "n"}}
        torch.onnx.export(given, (x.half() if half else x,), source, opset_version=opset, input_names=["x"], output_names=["y"],
                          dynamic_axes=axes, dynamo=False)
        before = onnx.load(source)
        (run / "config.toml").write_text(f"features = {json.dumps(extracted(binary, source, folder))}\n")
        for at, (name, head) in enumerate(heads(d, c).items()):
            head, task = stirred(head), ["single-label", "multi-label", "regression"][at % 3]
            label = f"opset {opset}{', float16' if half else ''}, {name}, {task}"
            save_head(head, run / "head.safetensors", task)
            more = [] if task == "regression" else ["--probabilities"]
            said = graftwork(binary, "export", run, folder / "model.onnx", "--backbone", source, "--force", "--json", *more)
            check(f"{label}: compared on pictures", json.loads(said)["verified"]["pictures"]["n"], 8)
            model = onnx.load(folder / "model.onnx")
            onnx.checker.check_model(model, full_check=True)
            with torch.no_grad():
                features = given.features(x.half()).float() if half else given.features(x)
                logits = head(features)
            session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
            found = session.run(None, {"x": (x.half() if half else x).numpy()})
            names = [output.name for output in session.get_outputs()]
            check(f"{label} outputs", names, ["logits"] if task == "regression" else ["logits", "probabilities"])
            # A convolution in float16 is another on either side.
            near(label, found[0], logits.numpy(), 5e-3 if half else TOLERANCE)
            if task != "regression":
                probabilities = logits.softmax(1) if task == "single-label" else logits.sigmoid()
                near(f"{label} probabilities", found[1], probabilities.numpy(), 5e-3 if half else TOLERANCE)
            metadata = {entry.key: entry.value for entry in model.metadata_props}
            check(f"{label} classes", json.loads(metadata["graftwork.classes"]), [f"class {i}" for i in range(c)])
            check(f"{label} task", json.loads(metadata["graftwork.task"]), task)
            node_names = [node.name for node in model.graph.node]
            check(f"{label} names of nodes", len(set(node_names)), len(node_names))
            kept = {node.SerializeToString() for node in before.graph.node[:-1]}
            check(f"{label} nodes kept", kept <= {node.SerializeToString() for node in model.graph.node}, True)
            weights = {tensor.name: tensor.SerializeToString() for tensor in model.graph.initializer}
            for tensor in before.graph.initializer:
                if tensor.name.startswith("fc."):
                    check(f"{label} {tensor.name} is gone", tensor.name in weights, False)
                else:
                    check(f"{label} {tensor.name}", weights.get(tensor.name), tensor.SerializeToString())


def set_module(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, last = path.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def checkpoints(binary: str, folder: Path) -> None:
    models = [("resnet18", 512, "fc"), ("mobilenet_v2", 1280, "classifier.1"), ("mobilenet_v3_small", 1024, "classifier.3"),
              ("mobilenet_v3_small", 576, "classifier")]
    x = torch.randn(2, 3, 64, 64)
    for name, d, module in models:
        torch.manual_seed(0)
        model = getattr(torchvision.models, name)(weights=None).eval()
        for source in ("b.pth", "b.safetensors", "whole.pth"):
            if source == "whole.pth":
                torch.save({"epoch": 3, "state_dict": model.state_dict()}, folder / source)
            elif source == "b.pth":
                torch.save(model.state_dict(), folder / source)
            else:
                save_file(model.state_dict(), folder / source)
            for head_name, head in heads(d, 7).items():
                head = stirred(head)
                save_head(head, folder / "head.safetensors", "single-label")
                for out in ("out.pth", "out.safetensors"):
                    label = f"{name} from {source} with {head_name} as {out}"
                    said = json.loads(graftwork(binary, "export", folder / "head.safetensors", folder / out, "--checkpoint",
                                                folder / source, "--force", "--json"))
                    check(f"{label}: the module", said["module"], module)
                    grafted = copy.deepcopy(model)
                    set_module(grafted, module, copy.deepcopy(head))
                    with torch.no_grad():
                        expected = grafted(x)
                    blank = getattr(torchvision.models, name)(weights=None).eval()
                    set_module(blank, module, copy.deepcopy(head).apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None))
                    if out == "out.pth":
                        state = torch.load(folder / out, weights_only=True)
                        trainable = [key for key, value in state.items() if value.requires_grad]
                        check(f"{label}: trainable", sorted(trainable), sorted(f"{module}.{key}" for key, _ in head.named_parameters()))
                        frozen = [key for key, value in state.items() if isinstance(value, nn.Parameter) and not value.requires_grad]
                        check(f"{label}: frozen", sorted(frozen), sorted(key for key, _ in blank.named_parameters() if key not in trainable))
                        if source != "b.safetensors":  # which sorts
                            check(f"{label}: order", list(state), list(grafted.state_dict()))
                    else:
                        from safetensors.torch import load_file
                        state = load_file(folder / out)
                    blank.load_state_dict(state, strict=True)
                    with torch.no_grad():
                        check(f"{label}: logits", torch.equal(blank(x), expected), True)
                    if source != "b.pth":
                        break


def alone(binary: str, folder: Path) -> None:
    for name, head in heads(12, 4).items():
        head = stirred(head)
        save_head(head, folder / "head.safetensors", "multi-label")
        graftwork(binary, "export", folder / "head.safetensors", folder / "head.pth", "--force")
        state = torch.load(folder / "head.pth", weights_only=True)
        again = copy.deepcopy(head)
        again.load_state_dict(state, strict=True)
        check(f"{name} alone: names", sorted(state), sorted(head.state_dict()))
        for key, value in head.state_dict().items():
            check(f"{name} alone: {key}", torch.equal(state[key], value), True)


def predictions(binary: str, folder: Path) -> None:
    """What a head alone says of an array, in all three kinds of files, against torch."""
    x = torch.randn(5000, 12)
    np.save(folder / "x.npy", x.numpy())
    for at, (name, head) in enumerate(heads(12, 4).items()):
        head, task = stirred(head), ["single-label", "multi-label", "regression"][at % 3]
        save_head(head, folder / "head.safetensors", task)
        with torch.no_grad():
            logits = head(x)
        expected = {"single-label": logits.softmax(1), "multi-label": logits.sigmoid(), "regression": logits}[task].numpy()
        names = [f"class {i}" for i in range(4)]
        more = [] if task == "regression" else ["--probabilities"]
        for ending in ("csv", "jsonl", "parquet"):
            label = f"{name}, {task}, {ending}"
            graftwork(binary, "predict", folder / "head.safetensors", "--features", folder / "x.npy", "-o", folder / f"p.{ending}",
                      "--force", *more)
            if ending == "jsonl":
                rows = [json.loads(line) for line in (folder / "p.jsonl").read_text().splitlines()]
                key = "predicted" if task == "regression" else "probabilities"
                found = np.array([[row[key][name] for name in names] for row in rows])
                predicted = [row["predicted"] for row in rows]
            else:
                table = pandas.read_csv(folder / "p.csv") if ending == "csv" else pandas.read_parquet(folder / "p.parquet")
                prefix = "" if task == "regression" else "p_"
                found = table[[prefix + name for name in names]].to_numpy()
                check(f"{label}: names", [str(name) for name in table["name"]], [str(i) for i in range(len(x))])
                predicted = list(table["predicted"]) if task != "regression" else []
            near(label, found, expected, TOLERANCE)
            if task == "single-label":
                check(f"{label}: predicted", predicted, [names[i] for i in logits.argmax(1)])
            if task == "multi-label":
                listed = [row if isinstance(row, list) else json.loads(row) for row in predicted]
                check(f"{label}: predicted", listed, [[name for name, z in zip(names, row) if z > 0] for row in logits])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graftwork", required=True, help="the binary")
    args = parser.parse_args()
    torch.manual_seed(1)
    with tempfile.TemporaryDirectory() as folder:
        for part in (alone, predictions, graphs, checkpoints):
            part(args.graftwork, Path(folder))
    finish()


if __name__ == "__main__":
    main()
