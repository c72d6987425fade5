"""Whole modules, training files and Lightning's checkpoints: the state dict found in each, and `convert --all`."""

import argparse
import inspect
import json
import os
import pathlib
import sys
import types
from collections import OrderedDict, defaultdict

import numpy as np
import torch
from torch import nn

from parity_common import check, compare_listing, compare_pth, parts_of, run, same, save, sharing, whole

# Small enough to be written twice; the old format is compared with all but the last two.
FAMILIES = ["squeezenet1_0", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5", "efficientnet_b0", "regnet_y_400mf", "densenet121", "googlenet", "resnet18", "vit_b_32"]


class Tiny(nn.Module):
    """What a state dict leaves out: a buffer that is not persistent, tensors as plain attributes, None in the place of a parameter."""

    def __init__(self):
        super().__init__()
        self.register_buffer("passing", torch.arange(3.0), persistent=False)
        self.register_buffer("lasting", torch.arange(4))
        self.register_buffer("absent", None)
        self.register_parameter("missing", None)
        self.plain = torch.full((2, 2), 7.0)
        self.config = {"width": 3, "names": ["a", "b"]}
        self.layers = nn.ModuleList([nn.Linear(3, 2, bias=False), nn.Identity()])
        self.named = nn.ModuleDict({"norm": nn.BatchNorm1d(2), "act": nn.ReLU()})
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)
        self.tied = self.layers[0]
        self.buffer = nn.Buffer(torch.ones(2))


def small_models():
    lists = nn.Module()
    lists.weights = nn.ParameterList([nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(3), requires_grad=False)])
    lists.by_name = nn.ParameterDict({"b": nn.Parameter(torch.randn(2)), "a": nn.Parameter(torch.randn(1))})
    normed = nn.Sequential(nn.Linear(3, 2), nn.utils.weight_norm(nn.Linear(2, 2)))
    tied = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    tied[1].weight = tied[0].weight
    half = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)).half()
    return {
        "tiny": Tiny(), "lists": lists, "weight_norm": normed, "tied": tied, "half": half,
        "channels_last": nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), "rnn": nn.RNN(3, 4, num_layers=2, bidirectional=True),
        "lstm": nn.LSTM(3, 4, num_layers=2, proj_size=2), "gru_cell": nn.GRUCell(3, 4), "attention": nn.MultiheadAttention(4, 2, kdim=3, vdim=3),
        "transformer": nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8), 2), "data_parallel": nn.DataParallel(nn.Sequential(nn.Linear(2, 2))),
        "compiled": torch.compile(nn.Sequential(nn.Linear(2, 2))), "nested_parallel": nn.DataParallel(nn.ModuleDict({"module": nn.Linear(2, 1)})),
        "norms": nn.Sequential(nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.InstanceNorm1d(4, affine=True, track_running_stats=True), nn.SyncBatchNorm(4)),
        "batch_norm_plain": nn.BatchNorm2d(3, affine=False), "bilinear": nn.Bilinear(2, 3, 4), "double": nn.Linear(2, 2).double(),
    }


def one_model(binary, label, path, folder, model, container):
    save(model, path, container)
    expected = model.state_dict(keep_vars=True)
    if "compiled" in label:
        # Dynamo's callbacks are bound methods, which pickle rebuilds by calling `getattr`: refused aloud, unless the reader has a way around.
        code, _, err = run(binary, "inspect", path, "--json")
        if code == 4:
            check(f"{label} names what it refuses: {err}", "getattr" in err, True)
            save(expected, path, container)
    listing = whole(binary, label, path, folder, expected)
    if listing is None:
        return
    if container == "legacy" and "compiled" not in label:
        check(f"{label} sources", sorted((s["class"], s["file"], s["n_lines"]) for s in listing.get("sources", [])), sorted(sources(model)))


def sources(model):
    """The classes whose source torch.save's old format puts beside a module."""
    out = set()
    for module in model.modules():
        try:
            lines, _ = inspect.getsourcelines(type(module))
            out.add((f"{type(module).__module__}.{type(module).__qualname__}", inspect.getsourcefile(type(module)), len(lines)))
        except (OSError, TypeError):
            pass
    return out


def models(binary, folder):
    path = os.path.join(folder, "model.bin")
    for container in ["zip", "legacy"]:
        for name, model in small_models().items():
            one_model(binary, f"{container}/{name}", path, folder, model, container)
        save(Tiny(), path, container)
        listing = json.loads(run(binary, "inspect", path, "--json")[1] or "{}")
        other = {entry["name"]: entry for entry in listing.get("other", [])}
        for name, shape in [("plain", [2, 2]), ("passing", [3])]:
            found = [entry.get("shape") for key, entry in other.items() if key.split(".")[-1] == name]
            check(f"{container}/tiny reports {name} beside the state dict", found, [shape])
    state = OrderedDict(weight=torch.randn(2), _extra_state=torch.arange(3, dtype=torch.uint8))
    state["inner._extra_state"] = torch.tensor(1.5)
    save(state, path, "zip")
    whole(binary, "_extra_state of tensors", path, folder, state)
    state["inner._extra_state"] = {"amax": 2, "recipe": "e4m3"}
    save(state, path, "zip")
    listing = json.loads(run(binary, "inspect", path, "--json")[1] or "{}")
    check("_extra_state of a dict: tensors", [t["name"] for t in listing.get("tensors", [])], ["weight", "_extra_state"])
    named = {entry["name"] for entry in listing.get("other", [])}
    check("_extra_state of a dict: values", any(name.startswith("inner._extra_state") for name in named), True)
    try:
        import torchvision
    except ImportError:
        print("torchvision is missing: whole models of its families are not compared")
        return
    for family in FAMILIES:
        model = getattr(torchvision.models, family)(weights=None)
        for n, parameter in enumerate(model.parameters()):
            parameter.requires_grad = n % 3 == 0
        for container in ["zip", "legacy"] if family in FAMILIES[:-2] else ["zip"]:
            one_model(binary, f"{container}/torchvision {family}", path, folder, model, container)


def stand_in(module, name):
    """A class of a package that need not be installed, importable while this runs."""
    made = type(name, (), {"__module__": module})
    for depth in range(1, module.count(".") + 2):
        package = ".".join(module.split(".")[:depth])
        sys.modules.setdefault(package, types.ModuleType(package))
    setattr(sys.modules[module], name, made)
    return made


ModelCheckpoint = stand_in("lightning_like.callbacks.model_checkpoint", "ModelCheckpoint")
Settings = stand_in("lightning_like.settings", "Settings")


def plain(value):
    """What `convert --all` makes of a value: the written rule, spelled as Python."""
    if isinstance(value, nn.Module):
        return value.state_dict(keep_vars=True)
    if isinstance(value, np.ndarray):
        # A copy, in the order of bytes of this machine.
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, pathlib.PurePath):
        return str(value)
    if isinstance(value, frozenset):
        return {plain(item) for item in value}
    if isinstance(value, (argparse.Namespace, Settings)):
        return {key: plain(item) for key, item in vars(value).items()}
    if isinstance(value, OrderedDict):
        return OrderedDict((plain(key), plain(item)) for key, item in value.items())
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    return value


def every_tensor(value, prefix=""):
    """All tensors of a structure under the paths that lead there, for `sharing`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else []
    for key, item in items:
        name = f"{prefix}.{key}"
        if isinstance(item, torch.Tensor):
            yield name, item
        else:
            yield from every_tensor(item, name)


def convert_all(binary, label, path, folder, saved, changes=()):
    out = os.path.join(folder, "all.pth")
    code, _, err = run(binary, "convert", path, out, "--all", "--force")
    check(f"{label} --all: {err}", code, 0)
    if code != 0:
        return
    for words in changes:
        check(f"{label} --all says it changed {words}: {err}", words in err, True)
    expected = plain(saved)
    for mmap in [False, True]:
        try:
            loaded = torch.load(out, weights_only=True, mmap=mmap)
        except Exception as error:
            check(f"{label} --all loads", str(error), "")
            return
        same(f"{label} --all mmap={mmap}", loaded, expected)
    check(f"{label} --all sharing", sharing(dict(every_tensor(loaded))), sharing(dict(every_tensor(expected))))


OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda params: torch.optim.Adam(params, lr=torch.tensor(1e-3)),
    "adamw": lambda params: torch.optim.AdamW([{"params": params[:1], "lr": 0.5}, {"params": params[1:]}], amsgrad=True),
    "rmsprop": lambda params: torch.optim.RMSprop(params, momentum=0.5, centered=True),
    "adagrad": lambda params: torch.optim.Adagrad(params),
    "lbfgs": lambda params: torch.optim.LBFGS(params, history_size=3),
}


def trained(make):
    """A model, its optimizer after two steps, and its schedule."""
    model = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), fc=nn.Linear(4, 2)))
    optimizer = make(list(model.parameters()))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)

    def loss():
        optimizer.zero_grad()
        value = model.fc(model.bn(model.conv(torch.ones(1, 3, 5, 5))).mean((2, 3))).square().sum()
        value.backward()
        return value

    for _ in range(2):
        optimizer.step(loss)
        schedule.step()
    return model, optimizer, schedule


def training(binary, folder):
    path = os.path.join(folder, "training.bin")
    for name, make in OPTIMIZERS.items():
        model, optimizer, schedule = trained(make)
        state, moments = model.state_dict(), optimizer.state_dict()
        saved = {"epoch": 3, "model": state, "optimizer": moments, "scheduler": schedule.state_dict(), "loss": 0.25, "arch": "net", "best": None, "rng": torch.get_rng_state()}
        for container in ["zip", "legacy"]:
            save(saved, path, container)
            label = f"{container}/{name}"
            listing = wrapped(binary, label, path, folder, "model", state)
            listed = sorted(entry["name"] for entry in listing.get("other", []) if "shape" in entry and entry["name"].startswith("optimizer."))
            check(f"{label} optimizer tensors", listed, sorted("optimizer" + key for key, _ in every_tensor(moments)))
            convert_all(binary, label, path, folder, saved)
    wrappers(binary, path, folder)
    lightning(binary, path, folder)


def wrapped(binary, label, path, folder, wrapper, state):
    code, out, err = run(binary, "inspect", path, "--json")
    check(f"{label} inspect: {err}", code, 0)
    if code != 0:
        return {}
    listing = json.loads(out)
    check(f"{label} wrapper", listing["wrapper"], wrapper)
    check(f"{label} problems", listing["problems"], [])
    compare_listing(label, listing, state)
    compare_pth(binary, label, path, folder, state)
    return listing


def wrappers(binary, path, folder):
    model, adam, _ = trained(OPTIMIZERS["adam"])
    state = model.state_dict()
    n_moments = sum(1 for _ in every_tensor(adam.state_dict()["state"]))
    for container in ["zip", "legacy"]:
        for key in ["state_dict", "model", "module", "ema"]:
            save({"epoch": 3, key: state, "optimizer": adam.state_dict(), "loss": 0.25, "arch": "net"}, path, container)
            listing = wrapped(binary, f"{container}/{key}", path, folder, key, state)
            other = {o["name"]: o for o in listing.get("other", [])}
            for name, value in [("epoch", "3"), ("arch", "'net'"), ("loss", "0.25")]:
                check(f"{container}/{key} {name}", other.get(name, {}).get("value"), value)
            check(f"{container}/{key} exp_avg", other.get("optimizer.state.0.exp_avg", {}).get("shape"), [4, 3, 3, 3])
            check(f"{container}/{key} optimizer tensors", sum(1 for name in other if name.startswith("optimizer.state.")), n_moments)
        save({"epoch": 1, "model": model, "ema": None}, path, container)
        wrapped(binary, f"{container}/module in a dict", path, folder, "model", model.state_dict(keep_vars=True))
        convert_all(binary, f"{container}/module in a dict", path, folder, {"epoch": 1, "model": model, "ema": None}, ["model"])
        save(model, path, container)
        convert_all(binary, f"{container}/module", path, folder, model)
        shared = {"w": torch.randn(2)}
        save({"a": shared, "b": shared}, path, container)
        whole(binary, f"{container}/aliased dict", path, folder, {"a.w": shared["w"], "b.w": shared["w"]})
        convert_all(binary, f"{container}/aliased dict", path, folder, {"a": shared, "b": shared})
        save(torch.arange(4), path, container)
        whole(binary, f"{container}/bare tensor", path, folder, {"tensor": torch.arange(4)})
        save([torch.arange(4), (torch.ones(2),)], path, container)
        whole(binary, f"{container}/list", path, folder, {"0": torch.arange(4), "1.0": torch.ones(2)})
        frozen = OrderedDict(a=nn.Parameter(torch.ones(2), requires_grad=False), b=nn.Parameter(torch.ones(2)), c=torch.ones(2, requires_grad=True))
        save(frozen, path, container)
        whole(binary, f"{container}/parameters", path, folder, frozen)
        mixed = {"w": torch.ones(2), "s": torch.eye(2).to_sparse(), "q": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "m": torch.empty(2, device="meta"), "n": 3}
        save(mixed, path, container)
        listing = json.loads(run(binary, "inspect", path, "--json")[1] or "{}")
        check(f"{container}/exotic problems", listing.get("problems"), [])
        check(f"{container}/exotic rest", [t["name"] for t in listing.get("tensors", [])], ["w"])
        check(f"{container}/exotic records", [r["name"] for r in listing.get("records", [])], [name for name, value in mixed.items() if name != "n" and parts_of(value)])
        target = os.path.join(folder, "no.safetensors")
        check(f"{container}/exotic convert", run(binary, "convert", path, target)[0], 3)
        check(f"{container}/nothing half-written", os.path.exists(target), False)
        convert_all(binary, f"{container}/exotic", path, folder, mixed)


def lightning(binary, path, folder):
    model, adam, schedule = trained(OPTIMIZERS["adamw"])
    state = OrderedDict(("net." + name, value) for name, value in model.state_dict().items())
    settings = Settings()
    settings.depth, settings.inner = 3, {"rate": np.float32(0.5)}
    saved = {
        "epoch": 4, "global_step": 1200, "pytorch-lightning_version": "1.4.9", "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_loop.state_dict": {"_batches_that_stepped": 1200}}, "predict_loop": {}},
        "callbacks": {ModelCheckpoint: {"monitor": "val_loss", "best_model_score": torch.tensor(0.25), "best_model_path": pathlib.PurePosixPath("runs/best.ckpt"), "current_score": np.float64(0.4658)}},
        "optimizer_states": [adam.state_dict()], "lr_schedulers": [schedule.state_dict()],
        "native_amp_scaling_state": {"scale": 65536.0, "growth_tracker": 7}, "hparams_name": "hparams",
        "hyper_parameters": argparse.Namespace(lr=1e-3, layers=(1, 2), root=pathlib.PurePosixPath("data"), nested=argparse.Namespace(on=True), seed=np.int64(7)),
        "best": np.float64(0.4658), "confusion": np.arange(12, dtype=np.float32).reshape(3, 4),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)), "flags": np.array([True, False]), "big_endian": np.arange(3, dtype=">i4"),
        "flag": np.bool_(True), "counts": defaultdict(int, a=1), "frozen": frozenset(["x"]), "some": {1, 2}, "settings": settings, "empty": b"",
        "raw": b"ab", "size": torch.Size([1, 2]), "device": torch.device("cpu"), "type": torch.float16, "huge": 1 << 70, "complex": 1 + 2j,
        "none": {None: 1, (1, 2): 2},
    }
    for container in ["zip", "legacy"]:
        save(saved, path, container)
        label = f"{container}/lightning"
        listing = wrapped(binary, label, path, folder, "state_dict", state)
        other = {entry["name"]: entry.get("value") for entry in listing.get("other", [])}
        expected = {"epoch": "4", "global_step": "1200", "pytorch-lightning_version": "'1.4.9'", "best": "0.4658", "flag": "True", "confusion": "array(float32[3, 4])", "fortran": "array(int16[2, 3])", "hparams_name": "'hparams'"}
        for name, value in expected.items():
            check(f"{label} other {name}", other.get(name), value)
        check(f"{label} weights_only refuses it", json.loads(run(binary, "scan", path, "--json")[1] or '{"weights_only": {}}')["weights_only"].get("loads"), False)
        convert_all(binary, label, path, folder, saved, ["best", "confusion", "hyper_parameters", "counts", "frozen", "settings"])
        # The same, of parts that each fail alone, so that a mismatch has a name.
        for name in ["callbacks", "hyper_parameters", "best", "confusion", "fortran", "flags", "big_endian", "counts", "frozen", "settings", "empty", "none", "huge"]:
            part = {"state_dict": state, name: saved[name]}
            save(part, path, container)
            convert_all(binary, f"{label} {name}", path, folder, part)
