#!/usr/bin/env python3
"""Compares `graftwork summary` with torchinfo, row by row, on whole models with several freezes.

    python tools/parity_summary.py --graftwork target/debug/graftwork [--only MODEL]...

Needs torch, torchvision and torchinfo 1.8.0. Exits 1 if anything differs.

Each model is saved as `{name: Parameter}` so that the marks survive. Of torchinfo's rows, those of modules without tensors are left out:
a state dict does not name them. Compared are order, depth, name, count (with its parentheses), kernel and `Trainable` of every row at
every depth, the lines of `verbose=2`, and the totals. Where a state dict can tell every class, the whole text is compared.
Three things are torchinfo's alone and are computed here from the model instead:
- it counts a tied tensor once in each module, so that its totals are too high; here they come from `model.parameters()`;
- by the same slip, a module's own parameters vanish where tied ones in it outnumber them;
- it marks a module as recursive where the module is used again, not where all of its tensors are.

With `--input-size` the whole text must be equal, in every column and at every depth, for the notebook's module before and after its last
frozen block is unfrozen and for networks of every family that a template is shipped of. From Python 3.11 on torchinfo prints the unit of
the multiply-adds as `Units.GIGABYTES`, which is read as the `G` that it means.
"""

import argparse
import os
import re
import tempfile
from collections import OrderedDict

import torch
import torchinfo
import timm
import torchvision
from torch import nn

from notebook_net import NOTEBOOK, MyNet_pretrained
from parity_common import check, finish, run

COLUMNS = ("kernel_size", "num_params", "trainable")
DEPTHS = [0, 1, 2, 3, 9]


class Language(nn.Module):
    """A transformer whose output layer is its embedding, with parameters of its own and a module in two places."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.pos = nn.Parameter(torch.zeros(1, 8, 16))
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, norm=nn.LayerNorm(16), enable_nested_tensor=False)
        self.cross = nn.MultiheadAttention(16, 2, kdim=6, vdim=10)
        self.cross_again = self.cross
        self.register_buffer("position_ids", torch.arange(8))
        self.lm_head = nn.Linear(16, 50, bias=False)
        self.lm_head.weight = self.embed.weight
        self.biased = nn.Linear(16, 50)
        self.biased.weight = self.embed.weight


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.EmbeddingBag(20, 8)
        self.lstm = nn.LSTM(8, 12, num_layers=2, bidirectional=True)
        self.projected = nn.LSTM(24, 12, proj_size=5)
        self.gru = nn.GRU(8, 12, bias=False)
        self.rnn = nn.RNN(8, 8)
        self.cells = nn.ModuleList([nn.LSTMCell(4, 6), nn.GRUCell(4, 6), nn.RNNCell(4, 6)])
        self.fc = nn.Linear(24, 3)


class Scales(nn.Module):
    """Its own parameters beside modules, and modules that hold nothing but buffers."""

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(7))
        self.list = nn.ParameterList([torch.ones(2), torch.ones(3, 2)])
        self.plain_norm = nn.BatchNorm2d(4, affine=False)
        self.body = nn.Sequential(nn.Conv1d(4, 8, 5), nn.ReLU(), nn.Conv3d(2, 4, (1, 2, 3)), nn.Sequential(nn.Linear(5, 2)))
        self.unused = nn.Sequential(nn.ReLU(), nn.Sequential())
        self.empty = nn.Linear(0, 3, bias=False)


def named():
    """Models of which a state dict tells every class; the whole text must be equal."""
    return {
        "Sequential": nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Sequential(nn.Conv2d(8, 16, (1, 5)), nn.BatchNorm2d(16)), nn.Linear(16, 10), nn.BatchNorm1d(10), nn.LayerNorm(10)
        ),
        "Long names": nn.Sequential(OrderedDict([(str(i), nn.Sequential(OrderedDict([(str(10**j), nn.Conv1d(2, 2, 3)) for j in range(0, 30, 9)]))) for i in range(3)])),
        "Deep": nn.Sequential(nn.Sequential(nn.Sequential(nn.Sequential(nn.Sequential(nn.LSTM(1100, 1300), nn.MultiheadAttention(8, 2)))))),
    }


def models():
    torchvision_models = torchvision.models
    return {
        "resnet18": torchvision_models.resnet18(),
        "mobilenet_v2": torchvision_models.mobilenet_v2(),
        "vgg11": torchvision_models.vgg11(),
        "vit_b_16": torchvision_models.vit_b_16(),
        "densenet121": torchvision_models.densenet121(),
        "swin_t": torchvision_models.swin_t(),
        "convnext_tiny": torchvision_models.convnext_tiny(),
        "r3d_18": torchvision_models.video.r3d_18(),
        "language": Language(),
        "recurrent": Recurrent(),
        "scales": Scales(),
        **named(),
    }


def freezes(model):
    """Each sets the marks of every parameter: none frozen, all, a prefix, all but the biases, every other."""
    params = list(model.named_parameters())
    first = params[0][0].split(".")[0]
    rules = {
        "nothing": lambda i, name: False,
        "all": lambda i, name: True,
        "first module": lambda i, name: name.split(".")[0] == first,
        "all but biases": lambda i, name: not name.endswith("bias"),
        "every other": lambda i, name: i % 2 == 0,
    }
    for label, is_frozen in rules.items():
        for i, (name, param) in enumerate(params):
            param.requires_grad_(not is_frozen(i, name))
        yield label


def info(model, depth, verbose=0):
    return torchinfo.summary(model, depth=depth, verbose=verbose, col_names=COLUMNS, row_settings=["depth", "var_names"])


def text_of(statistics, verbose=0):
    statistics.formatting.verbose = verbose
    return str(statistics)


ROW = re.compile(r"^(?:(?:│    )*[├└]─)?(.*?)(?: \((.*)\))?(?:: (\d+)-\d+)?$")


def rows_of(text):
    """Rows as (depth, name, kernel, count, trainable), and the lines of the totals."""
    lines = text.split("\n")
    header = lines[1]
    starts = [header.index(title) for title in ("Kernel Shape", "Param #", "Trainable")]
    divider = [i for i, line in enumerate(lines) if line and not line.strip("=")]
    rows = []
    for line in lines[divider[1] + 1 : divider[2]]:
        title, kernel, count, trainable = (line[a:b].strip() for a, b in zip([0] + starts, starts + [None]))
        _, name, depth = ROW.match(title).groups()
        rows.append((int(depth or 0), name, kernel, count, trainable))
    return rows, lines[divider[2] : divider[3] + 1]


def expected_rows(model, statistics):
    """torchinfo's rows of modules that own tensors, with what it gets wrong about ties put right."""
    depth = statistics.formatting.max_depth
    out, met = [], set()
    for layer in statistics.summary_list:
        params = list(layer.module.parameters())
        is_named = any(True for _ in layer.module.state_dict())
        is_recursive = layer.num_params > 0 and all(id(param) in met for param in params if param.numel())
        met.update(id(param) for param in layer.module.parameters(recurse=False))
        if layer.depth > depth or not (is_named or layer.depth == 0):
            continue
        if is_recursive and layer.depth > 0:
            count = "(recursive)"
        elif layer.is_leaf_layer or layer.depth == depth:
            count = layer.num_params_to_str(layer.depth == depth)
        else:
            own = sum(param.numel() for param in {id(p): p for p in layer.module.parameters(recurse=False)}.values())
            count = f"{own:,}" if own else "--"
        kernel = str(layer.kernel_size) if layer.kernel_size and layer.num_params else "--"
        name = layer.var_name if layer.depth else None
        out.append((layer.depth, name, kernel, count, layer.trainable))
    return out


def has_ties(model):
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return len(names) != len(list(model.parameters()))


def expected_totals(model):
    params = list(model.parameters())
    n, n_trainable = sum(p.numel() for p in params), sum(p.numel() for p in params if p.requires_grad)
    return [f"Total params: {n:,}", f"Trainable params: {n_trainable:,}", f"Non-trainable params: {n - n_trainable:,}"]


def unnamed_root(rows):
    return [(depth, None if depth == 0 else name, *rest) for depth, name, *rest in rows]


def one(binary, name, model, folder):
    path = os.path.join(folder, "model.pth")
    is_exact = name in named()
    tied = has_ties(model)
    for freeze in freezes(model):
        torch.save(model.state_dict(keep_vars=True), path)
        for depth in DEPTHS:
            label = f"{name}, frozen: {freeze}, depth {depth}"
            code, out, err = run(binary, "summary", path, "--depth", depth, "--name", type(model).__name__)
            check(f"{label}: exit {err}", code, 0)
            if code:
                continue
            statistics = info(model, depth)
            found, totals = rows_of(out)
            found, expected = unnamed_root(found), expected_rows(model, statistics)
            check(f"{label}: number of rows", len(found), len(expected))
            for i, (a, b) in enumerate(zip(found, expected)):
                check(f"{label}: row {i}", a, b)
            check(f"{label}: totals", totals[1:4], expected_totals(model))
            if not tied:
                # And as torchinfo itself printed them, divider and all; its width may be another.
                theirs, lines = rows_of(text_of(statistics))
                check(f"{label}: torchinfo's totals", totals[1:4], lines[1:4])
                # The rows as printed, too, not as this script computes them.
                named_in = {(row[0], row[1]) for row in expected}
                printed = [row for row in unnamed_root(theirs) if (row[0], row[1]) in named_in and (row[3] != "--" or row[0] == 0 or row[4] != "--")]
                ours = [row for row in found if row[3] != "--" or row[0] == 0 or row[4] != "--"]
                check(f"{label}: rows as printed", ours, printed)
            if is_exact:
                theirs = text_of(statistics)
                check(f"{label}: whole text", out[: len(theirs)], theirs)
        compare_verbose(binary, f"{name}, frozen: {freeze}", model, path, is_exact)
    size = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6
    check(f"{name}: size", f"Params size (MB): {size:.2f}\n" in out, True)
    compare_unmarked(binary, name, model, path)


def compare_verbose(binary, label, model, path, is_exact):
    """The lines of each parameter, below the rows that both have."""
    code, out, err = run(binary, "summary", path, "--verbose", "--name", type(model).__name__)
    check(f"{label}, verbose: exit {err}", code, 0)
    if code:
        return
    statistics = info(model, 3)
    theirs = text_of(statistics, verbose=2)
    if is_exact:
        check(f"{label}, verbose: whole text", out[: len(theirs)], theirs)
    # A long name pushes the columns aside, and theirs begin elsewhere.
    lines = lambda text: re.findall(r"^(.*?) +(\[[^]]*\]) +([├└]─[\d,]+)$", text, re.MULTILINE)
    check(f"{label}, verbose: number of lines", len(lines(theirs)) > 0, True)
    check(f"{label}, verbose: lines", lines(out), lines(theirs))


def compare_unmarked(binary, name, model, path):
    """A plain state dict: no marks, and every parameter trains; buffers are told by name."""
    for param in model.parameters():
        param.requires_grad_(True)
    torch.save(model.state_dict(), path)
    code, out, err = run(binary, "summary", path, "--depth", 9)
    check(f"{name}, no marks: exit {err}", code, 0)
    if code == 0:
        found, totals = rows_of(out)
        check(f"{name}, no marks: rows", unnamed_root(found), expected_rows(model, info(model, 9)))
        check(f"{name}, no marks: totals", totals[1:4], expected_totals(model))


ALL_COLUMNS = ["kernel_size", "input_size", "output_size", "num_params", "params_percent", "mult_adds", "trainable"]


def printed(statistics):
    units = {"Units.MEGABYTES": "M", "Units.GIGABYTES": "G", "Units.TERABYTES": "T"}
    text = str(statistics)
    for unit, letter in units.items():
        text = text.replace(unit, letter)
    return text + "\n"


def with_input(binary, label, net, path, size, arguments=()):
    torch.save(net.state_dict(keep_vars=True), path)
    sizes = ",".join(map(str, size))
    for depth in [0, 1, 2, 3, 4, 9]:
        for columns, var_names in [(["output_size", "num_params"], False), (ALL_COLUMNS, True)]:
            settings = ["depth", "var_names"] if var_names else ["depth"]
            theirs = printed(torchinfo.summary(net, input_size=size, depth=depth, col_names=columns, row_settings=settings, device="cpu", verbose=0))
            flags = ["--columns", ",".join(columns), "--var-names"] if var_names else []
            code, out, err = run(binary, "summary", path, "--input-size", sizes, "--depth", depth, *flags, *arguments)
            check(f"{label}, input {size}, depth {depth}, {len(columns)} columns: exit {err}", code, 0)
            for i, (a, b) in enumerate(zip(out.splitlines(), theirs.splitlines())):
                check(f"{label}, input {size}, depth {depth}, {len(columns)} columns: line {i}", a, b)
            check(f"{label}, input {size}, depth {depth}, {len(columns)} columns: whole text", out == theirs, True)


def networks_with_input(binary, folder, only):
    path = os.path.join(folder, "net.pth")
    size = (10, 3, 224, 224)
    if not only or "notebook" in only:
        net = MyNet_pretrained()
        notebook = ["--template", str(NOTEBOOK)]
        with_input(binary, "notebook, frozen", net, path, size, notebook)
        for param in net.pretrained[5][1].parameters():
            param.requires_grad = True
        with_input(binary, "notebook, one block unfrozen", net, path, size, notebook)
    vision = torchvision.models
    for name in ["resnet18", "resnet50", "vgg11_bn", "mobilenet_v2", "mobilenet_v3_small", "convnext_tiny", "vit_b_16"]:
        if only and name not in only:
            continue
        net = getattr(vision, name)()
        for i, param in enumerate(net.parameters()):
            param.requires_grad = i % 5 != 0 and i > 20
        with_input(binary, name, net, path, (2, 3, 224, 224))
    if not only or "vit_tiny" in only:
        with_input(binary, "vit_tiny", timm.create_model("vit_tiny_patch16_224"), path, (3, 3, 224, 224))
    if not only:
        with_input(binary, "resnet18, small", vision.resnet18(num_classes=3), path, (1, 3, 61, 80))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graftwork", required=True, help="the binary")
    parser.add_argument("--only", action="append", help="compare this model and no other; may be given again")
    args = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models().items():
            if not args.only or name in args.only:
                one(args.graftwork, name, model, folder)
        networks_with_input(args.graftwork, folder, args.only)
    print(f"torchinfo {torchinfo.__version__}")
    finish()


if __name__ == "__main__":
    main()
