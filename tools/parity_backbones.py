"""Compares what Graftwork makes of ONNX backbones with PyTorch, onnx and onnxruntime.

    python tools/parity_backbones.py --graftwork target/release/graftwork

Networks of torchvision and timm are exported by both of PyTorch's exporters, and once with nothing folded; the checkpoint of another
training goes into each graph with `--weights`, and the features must be those of the PyTorch model with that checkpoint. The same network
stored in five ways must be one cache entry; the tensors that a network can be cut at must be those without which its output is not reached;
float16 graphs and a model over 2 GB must give what onnxruntime gives; and what is broken must be said with exit code 3.
ONNX Runtime is found as the binary finds it. Exits with 1 on any mismatch.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import timm
import torch
import torchvision
from blake3 import blake3
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import load_file
from torch import nn

import parity_common as common
import reference

warnings.filterwarnings("ignore")
TOLERANCE = 1e-5
# The fused attention of inference has no ONNX operator.
torch.backends.mha.set_fastpath_enabled(False)


class Attention(nn.Module):
    """A small network with `nn.MultiheadAttention`, whose projection is no `weight` of a Linear, and a group norm."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 16, 16)
        self.norm = nn.GroupNorm(4, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        x = self.norm(self.stem(x)).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + self.mlp(x)
        return self.fc(x.mean(1))


class PreActivation(nn.Module):
    """Normalisation in front of the convolution: the exporter folds it into the one before, which has another number."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(8, eps=1e-3)
        self.block = nn.Sequential()
        self.bn2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.bn3, self.conv3 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        y = self.conv2(self.bn2(x).relu())
        y = self.conv3(self.bn3(y).relu())
        return self.fc((x + y).mean((2, 3)))


# Name, model, the classifier whose input are the features, the epsilon that TorchScript's exporter forgets.
ZOO = {
    "resnet18": (lambda: torchvision.models.resnet18(weights=None), "fc", None),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(weights=None), "classifier.1", None),
    "mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(weights=None), "classifier.3", 1e-3),
    "densenet121": (lambda: torchvision.models.densenet121(weights=None), "classifier", None),
    "vit_tiny": (lambda: timm.create_model("vit_tiny_patch16_224", pretrained=False), "head", None),
    "convnext_atto": (lambda: timm.create_model("convnext_atto", pretrained=False), "head.fc", None),
    "efficientnet_lite0": (lambda: timm.create_model("efficientnet_lite0", pretrained=False), "classifier", None),
    "attention": (Attention, "fc", None),
    "preactivation": (PreActivation, "fc", 1e-5),
}
# Two epsilons, one of which TorchScript's exporter folded away: no one value is right.
REFUSED = {("preactivation", "script")}


def train(model, seed):
    """Other values everywhere, as after a training; statistics that a normalisation can have."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda like: torch.randn(like.shape, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter * (1 + 0.2 * draw(parameter)) + 0.02 * draw(parameter))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(0.1 * draw(module.running_mean))
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
    return model


def export(model, path, kind):
    x = torch.randn(2, 3, 224, 224)
    names = {"input_names": ["input"], "output_names": ["output"]}
    script = {"dynamo": False, "opset_version": 17, "dynamic_axes": {"input": {0: "n"}, "output": {0: "n"}}, **names}
    with torch.no_grad():
        if kind == "traced":
            shapes = ({0: torch.export.Dim("n")},)
            torch.onnx.export(model, (x,), path, dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False, **names)
        elif kind == "script":
            torch.onnx.export(model, (x,), path, **script)
        else:
            torch.onnx.export(model, (x,), path, training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False, **script)


def pictures(folder):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
            for i in range(2):
                Image.fromarray(rng.integers(0, 256, (240, 250, 3), dtype=np.uint8)).save(folder / split / label / f"{i}.png")
    return sorted(folder.glob("*/*/*.png"))


def extract(args, backbone, data, cache, *more):
    """The code, the report, and what was said."""
    command = ["extract", "--backbone", backbone, "--data", data, "--cache", cache, "--dtype", "float32", "--json", *more]
    code, out, err = common.run(args.graftwork, *command)
    return code, json.loads(out) if code == 0 else None, err


def rows_of(entry):
    rows = {}
    for block in Path(entry).rglob("*.safetensors"):
        tensors = load_file(block)
        if "ids" in tensors:
            rows.update(zip((ids.tobytes() for ids in tensors["ids"]), tensors["features"]))
    return rows


def compare(label, entry, expected, tolerance=TOLERANCE):
    """Features against `{path: array}`: the largest difference beside the largest feature of the same picture."""
    rows = rows_of(entry)
    worst = 0.0
    for path, features in expected.items():
        row = rows.get(blake3(path.read_bytes()).digest())
        if row is None:
            common.check(f"{label}: {path.name} is there", None, "a row")
            return
        worst = max(worst, float(np.abs(row.astype(np.float64).ravel() - features.ravel()).max() / np.abs(features).max()))
    common.check(f"{label}: within {tolerance:g} (worst {worst:.1e})", worst <= tolerance, True)


def features_of(model, head, paths):
    found = {}
    hook = model.get_submodule(head).register_forward_hook(lambda _module, inputs, _output: found.__setitem__("last", inputs[0]))
    prepare = reference.Preprocessing().evaluation()
    expected = {}
    with torch.no_grad():
        for path in paths:
            model(prepare(reference.open_rgb(path))[None])
            expected[path] = found["last"][0].double().numpy()
    hook.remove()
    return expected


def check_weights(args, name, scratch, data, paths):
    make, head, eps = ZOO[name]
    torch.manual_seed(1)
    untrained = make().eval()
    pretrained = train(make(), 2).eval()
    tuned = train(make(), 3).eval()
    expected = features_of(tuned, head, paths)
    plain, wrapped = scratch / f"{name}.pth", scratch / f"{name}-wrapped.pth"
    torch.save(tuned.state_dict(), plain)
    torch.save({f"module.{key}": value for key, value in tuned.state_dict().items()}, wrapped)
    for model, origin in ((pretrained, "pretrained"), (untrained, "untrained")):
        for kind in ("script", "traced", "preserved"):
            path = scratch / "backbone.onnx"
            label = f"{name} {origin} {kind}"
            export(model, path, kind)
            more = ["--bn-eps", eps] if eps and kind == "script" else []
            for checkpoint in (plain, wrapped):
                cache = tempfile.mkdtemp(dir=scratch)
                code, report, err = extract(args, path, data, cache, "--weights", checkpoint, *more)
                if (name, kind) in REFUSED:
                    continue
                common.check(f"{label} {checkpoint.name}: exit code ({err.strip()[:600]})", code, 0)
                if code == 0:
                    compare(f"{label} {checkpoint.name}", report["entry"], expected)


def dominators(model):
    """Tensors without which the output is not reached, each tried; sizes are no path."""
    graph = model.graph
    output = graph.output[0].name
    found = []
    made = [name for node in graph.node for name in node.output if name]
    for removed in made:
        reached = {graph.input[0].name}
        for node in graph.node:
            if node.op_type not in ("Shape", "Size") and reached.intersection(node.input):
                reached.update(name for name in node.output if name != removed)
        if output not in reached:
            found.append(removed)
    reached = {graph.input[0].name}
    for node in graph.node:
        if node.op_type not in ("Shape", "Size") and reached.intersection(node.input):
            reached.update(node.output)
    return [name for name in found if name in reached]


def check_cuts(args, name, scratch):
    make, _, _ = ZOO[name]
    model = make().eval()
    for kind in ("script", "traced"):
        path = scratch / "cuts.onnx"
        export(model, path, kind)
        code, out, err = common.run(args.graftwork, "cuts", path, "--json")
        common.check(f"cuts of {name} {kind}: exit code {err}", code, 0)
        found = json.loads(out)
        loaded = onnx.load(path)
        common.check(f"cuts of {name} {kind}", [at["name"] for at in found], dominators(loaded))
        common.check(f"cuts of {name} {kind}: one default", sum(at["is_default"] for at in found), 1)
        common.check(f"cuts of {name} {kind}: some suggested", any(at["is_suggested"] for at in found), True)
        sizes = [sum(at[side] for side in ("parameters_before", "parameters_behind")) for at in found]
        common.check(f"cuts of {name} {kind}: weights add up", len(set(sizes)), 1)


def check_storage(args, scratch, data, paths):
    """The same network, stored otherwise, is the same cache entry; several taps at once are what onnxruntime gives each alone."""
    path = scratch / "plain.onnx"
    export(train(torchvision.models.resnet18(weights=None), 5).eval(), path, "traced")
    model = onnx.load(path)
    cache = scratch / "storage"
    _, first, _ = extract(args, path, data, cache)
    variants = {"one file": dict(all_tensors_to_one_file=True, location="weights.bin", size_threshold=0),
                "a file each": dict(all_tensors_to_one_file=False, size_threshold=100)}
    for label, options in variants.items():
        folder = scratch / label.replace(" ", "-")
        folder.mkdir()
        onnx.save(onnx.load(path), folder / "m.onnx", save_as_external_data=True, **options)
        code, report, err = extract(args, folder / "m.onnx", data, cache)
        common.check(f"weights in {label}: exit code {err}", code, 0)
        common.check(f"weights in {label}: hits", report["cache"], {"hits": len(paths), "misses": 0})
        common.check(f"weights in {label}: the same entry", report["entry"], first["entry"])
        # And computed anew, from the files.
        _, report, _ = extract(args, folder / "m.onnx", data, scratch / f"cache-{folder.name}")
        for key, row in rows_of(first["entry"]).items():
            common.check(f"weights in {label}: the same row", np.array_equal(rows_of(report["entry"])[key], row), True)
    typed = onnx.load(path)
    for tensor in typed.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).ravel()
            tensor.ClearField("raw_data")
            tensor.float_data.extend(values.tolist())
    onnx.save(typed, scratch / "typed.onnx")
    _, report, _ = extract(args, scratch / "typed.onnx", data, cache)
    common.check("weights in typed fields", report["cache"]["misses"], 0)
    constants = onnx.load(path)
    kept = [tensor for tensor in constants.graph.initializer if len(tensor.dims) != 1]
    nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in constants.graph.initializer if len(tensor.dims) == 1]
    nodes += list(constants.graph.node)
    for field, values in (("node", nodes), ("initializer", kept)):
        constants.graph.ClearField(field)
        getattr(constants.graph, field).extend(values)
    onnx.save(constants, scratch / "constants.onnx")
    _, report, _ = extract(args, scratch / "constants.onnx", data, cache)
    common.check("weights in Constant nodes", report["cache"]["misses"], 0)

    taps = ["relu_4", "view", "getitem_3"]
    code, report, err = extract(args, path, data, scratch / "taps", "--cut", ",".join(taps), "--pool", "avg")
    common.check(f"taps: exit code {err}", code, 0)
    common.check("taps: boundaries in the order asked for", [entry["boundary"] for entry in report["entries"]], taps)
    prepare = reference.Preprocessing().evaluation()
    for tap, entry in zip(taps, report["entries"]):
        session = reference.session_of(reference.cut_at(onnx.load(path), tap))
        expected = {}
        for picture in paths:
            batch = prepare(reference.open_rgb(picture))[None].numpy()
            row = session.run(None, {"input": batch})[0][0].astype(np.float64)
            expected[picture] = row.mean((1, 2)) if row.ndim == 3 else row
        compare(f"tap {tap}", entry["entry"], expected)


def check_half(args, scratch, data, paths):
    from onnxruntime.transformers.float16 import convert_float_to_float16

    path, half = scratch / "full.onnx", scratch / "half.onnx"
    export(train(torchvision.models.resnet18(weights=None), 6).eval(), path, "script")
    onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=False), half)
    code, report, err = extract(args, half, data, scratch / "half")
    common.check(f"float16: exit code {err}", code, 0)
    boundary = reference.boundary_of(onnx.load(half))
    session = onnxruntime.InferenceSession(onnx.utils.Extractor(onnx.load(half)).extract_model(["input"], [boundary]).SerializeToString())
    prepare = reference.Preprocessing().evaluation()
    expected = {}
    for picture in paths:
        batch = prepare(reference.open_rgb(picture))[None].numpy().astype(np.float16)
        expected[picture] = session.run(None, {"input": batch})[0][0].astype(np.float64)
    # The same library on the same graph; how it splits a batch may move the last bits of a float16.
    compare("float16", report["entry"], expected, 2e-3)


def external(name, shape, dtype=TensorProto.FLOAT, **entries):
    tensor = TensorProto(name=name, data_type=dtype, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def small(nodes, initializers, output="y", opsets=(("", 17),), shape=("n", 3, 224, 224)):
    info = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    out = onnx.ValueInfoProto(name=output)
    graph = helper.make_graph(nodes, "small", info, [out], initializers)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid(*opset) for opset in opsets])


def check_large(args, scratch, data, paths):
    """2.2 GB of weights in front of the boundary, nearly all of it a hole, and as many behind it."""
    rows, width = 180_000, 3_072
    folder = scratch / "large"
    folder.mkdir()
    at = rows - 1
    values = np.arange(width, dtype=np.float32) / 100
    with open(folder / "weights.bin", "wb") as file:
        file.truncate(rows * width * 4)
        file.seek(at * width * 4)
        file.write(values.tobytes())
    place = dict(location="weights.bin", offset=0, length=rows * width * 4)
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["pool"]), helper.make_node("Flatten", ["pool"], ["flat"]),
             helper.make_node("Gather", ["table", "index"], ["row"]), helper.make_node("MatMul", ["flat", "w"], ["wide"]),
             helper.make_node("Add", ["wide", "row"], ["sum"]), helper.make_node("MatMul", ["sum", "behind"], ["y"])]
    w = np.random.default_rng(1).standard_normal((3, width)).astype(np.float32)
    model = small(nodes, [external("table", [rows, width], **place), external("behind", [width, rows], **place),
                          numpy_helper.from_array(np.array(at), "index"), numpy_helper.from_array(w, "w")])
    onnx.save(model, folder / "m.onnx")
    code, report, err = extract(args, folder / "m.onnx", data, scratch / "large-cache")
    common.check(f"over 2 GB: exit code {err}", code, 0)
    prepare = reference.Preprocessing().evaluation()
    expected = {path: prepare(reference.open_rgb(path)).double().numpy().mean((1, 2)) @ w + values for path in paths}
    if code == 0:
        common.check("over 2 GB: cut at the classifier's input", report["boundary"], "sum")
        compare("over 2 GB", report["entry"], expected)


def check_bad(args, scratch, data):
    relu, neg = (lambda i, o, **k: helper.make_node("Relu", [i], [o], **k)), (lambda i, o: helper.make_node("Neg", [i], [o]))
    short = numpy_helper.from_array(np.ones(4, np.float32), "w")
    short.dims[0] = 5
    add = helper.make_node("Add", ["x", "w"], ["y"])
    plugin = helper.make_node("NMSPlugin", ["x"], ["y"], domain="trt.plugins", name="post/nms")
    (scratch / "short.bin").write_bytes(b"\0" * 100)
    cases = {
        "a custom operator": (small([plugin], [], opsets=(("", 17), ("trt.plugins", 1))), ["NMSPlugin `post/nms`", "domain `trt.plugins`"]),
        "an operator that ONNX does not have": (small([helper.make_node("Magic", ["x"], ["y"], name="wand")], []), ["Magic `wand`", "operator set 17"]),
        "an operator of a later set": (small([helper.make_node("Gelu", ["x"], ["y"], name="act")], []), ["Gelu `act`", "operator set 17"]),
        "nodes out of order": (small([relu("a", "y"), neg("x", "a")], []), ["not in order", "`a`"]),
        "a cycle": (small([helper.make_node("Add", ["x", "b"], ["a"]), neg("a", "b"), relu("b", "y")], []), ["cycle"]),
        "a tensor that nothing makes": (small([relu("ghost", "y")], []), ["`ghost`, which nothing makes"]),
        "a tensor that is made twice": (small([relu("x", "y"), neg("x", "y")], []), ["`y` is made twice"]),
        "no operator set": (small([relu("x", "y")], [], opsets=()), ["operator set"]),
        "an initialiser that is too short": (small([add], [short]), ["`w` is float32 of [5] and holds 16 bytes, not 20"]),
        "weights that are missing": (small([add], [external("w", [300], location="gone.bin")]), ["`w` in `gone.bin`, which is missing"]),
        "weights that are cut short": (small([add], [external("w", [300], location="short.bin")]), ["which has 100 bytes"]),
        "weights elsewhere": (small([add], [external("w", [25], location="../../etc/passwd")]), ["not below the model's folder"]),
    }
    for label, (model, said) in cases.items():
        path = scratch / "bad.onnx"
        path.write_bytes(model.SerializeToString())
        code, _, err = extract(args, path, data, scratch / "bad-cache", "--cut", "y", "--pool", "avg")
        common.check(f"{label}: exit code ({err.strip()})", code, 3)
        for part in said:
            common.check(f"{label}: says {part} ({err.strip()})", part in err, True)
    path = scratch / "whole.onnx"
    model = torchvision.models.resnet18(weights=None).eval()
    export(model, path, "preserved")
    state = model.state_dict()
    bad = {
        "missing": ({key: value for key, value in state.items() if key != "bn1.weight"}, 'Missing key(s) in state_dict: "bn1.weight". '),
        "unexpected": ({**state, "layer1.2.conv1.weight": torch.zeros(3)}, 'Unexpected key(s) in state_dict: "layer1.2.conv1.weight". '),
        "another shape": ({**state, "conv1.weight": torch.zeros(64, 4, 7, 7)}, "size mismatch for conv1.weight: copying a param with shape torch.Size([64, 4, 7, 7]) from checkpoint, the shape in current model is torch.Size([64, 3, 7, 7])."),
    }
    for label, (weights, said) in bad.items():
        torch.save(weights, scratch / "bad.pth")
        code, _, err = extract(args, path, data, scratch / "bad-cache", "--weights", scratch / "bad.pth")
        common.check(f"weights, {label}: exit code", code, 3)
        common.check(f"weights, {label}: {err.strip()}", said in err, True)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            common.check(f"weights, {label}: PyTorch's own words", said.strip() in str(error), True)
    # The classifier is behind the cut: another number of classes is no mismatch. And a step renames.
    other = {**state, "fc.weight": torch.zeros(5, 512), "fc.bias": torch.zeros(5)}
    torch.save({f"net.{key}": value for key, value in other.items()} | {"epoch": 3}, scratch / "other.pth")
    code, _, err = extract(args, path, data, scratch / "other", "--weights", scratch / "other.pth", "-e", "strip net.")
    common.check(f"another classifier, renamed: {err.strip()}", code, 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graftwork", type=Path, required=True, help="the binary")
    parser.add_argument("--only", nargs="*", help="networks of the zoo, or storage, half, large, bad")
    args = parser.parse_args()
    wanted = lambda name: not args.only or name in args.only
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        data = scratch / "data"
        paths = pictures(data)
        for name in filter(wanted, ZOO):
            check_cuts(args, name, scratch)
            check_weights(args, name, scratch, data, paths)
            print(f"{name}: {common.n_checks} checks so far, {len(common.failures)} mismatches", flush=True)
        if wanted("storage"):
            check_storage(args, scratch, data, paths)
        if wanted("half"):
            check_half(args, scratch, data, paths)
        if wanted("large"):
            check_large(args, scratch, data, paths)
        if wanted("bad"):
            check_bad(args, scratch, data)
    print(f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}")
    common.finish()


if __name__ == "__main__":
    main()
