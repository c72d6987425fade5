#!/usr/bin/env python3
"""Compares the ONNX models that Graftwork makes of checkpoints by templates with torchvision and timm.

    python tools/parity_templates.py --graftwork target/release/graftwork [--only MODEL]... [--quick]

Each network gets random weights and random running statistics, is saved as a plain state dict, and goes through
`graftwork convert net.pth net.onnx`. Compared with the network in evaluation mode are: the logits by onnxruntime, to 1e-5 of the largest
(batches of one and three, so that the batch is any); the initialisers, which must be the state dict's tensors under its names, bit for
bit; the names of the nodes, which torch's own exporter must give too (where the operator is spelled alike, and the modules are called
alike: timm's ResNets call their activations otherwise); and what onnx's checker says. Beside the whole networks there are a changed number of classes and of channels, other sizes of pictures, float16 and
bfloat16 checkpoints, safetensors, the notebook's own class by `docs/templates/notebook.template`, and what does not fit.
Exits with 1 on any mismatch.
"""

import argparse
import json
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import timm
import torch
import torchvision
from onnx import numpy_helper
from safetensors.torch import save_file
from torch import nn

from notebook_net import NOTEBOOK, MyNet_pretrained
from parity_common import check, finish, run

warnings.filterwarnings("ignore")
TOLERANCE = 1e-5


def vision(name, **options):
    return lambda: getattr(torchvision.models, name)(**options)


def timm_model(name, **options):
    return lambda: timm.create_model(name, **options)


def one_channel(name):
    """The notebook's replaced first layer, and ten classes."""

    def make():
        net = getattr(torchvision.models, name)(num_classes=10)
        net.conv1 = nn.Conv2d(1, 64, kernel_size=(7, 7), stride=(2, 2), padding=(3, 3), bias=False)
        return net

    return make


def cases():
    """Label, how it is made, the template that must fit, the size of pictures (None for the default), arguments, whether it is slow."""
    for name in ["resnet18", "resnet34", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "convnext_tiny", "vit_b_32"]:
        yield name, vision(name), name, None, [], False
    for name in ["resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2", "convnext_small",
                 "convnext_base", "convnext_large", "vit_b_16", "vit_l_16", "vit_l_32", "vit_h_14"] + [f"vgg{n}{bn}" for n in (11, 13, 16, 19) for bn in ("", "_bn")]:
        yield name, vision(name), name, None, [], True
    yield "resnet18, one channel, ten classes", one_channel("resnet18"), "resnet18", None, [], False
    yield "resnet34, 64 x 96", vision("resnet34", num_classes=7), "resnet34", (64, 96), [], False
    yield "vgg11, 96 x 160", vision("vgg11", num_classes=3), "vgg11", (96, 160), [], True
    yield "mobilenet_v2, 96", vision("mobilenet_v2", num_classes=5), "mobilenet_v2", (96, 96), [], False
    yield "vit_b_16, 384", vision("vit_b_16", image_size=384), "vit_b_16", None, [], True
    yield "vit_tiny_patch16_224", timm_model("vit_tiny_patch16_224", num_classes=11), "timm_vit", None, [], False
    yield "vit_small_patch16_224", timm_model("vit_small_patch16_224"), "timm_vit", None, [], True
    yield "vit_base_patch32_224", timm_model("vit_base_patch32_224"), "timm_vit", None, [], True
    yield "deit_tiny_patch16_224", timm_model("deit_tiny_patch16_224"), "timm_vit", None, [], False
    yield "deit3_small_patch16_224", timm_model("deit3_small_patch16_224"), "timm_vit", None, [], True
    yield "vit_tiny, average", timm_model("vit_tiny_patch16_224", global_pool="avg"), "timm_vit", None, [], False
    yield "timm resnet18", timm_model("resnet18"), "resnet18", None, [], False
    yield "MyNet_pretrained", MyNet_pretrained, "MyNet_pretrained", None, ["--template", NOTEBOOK], False


def randomise(net, seed=0):
    """Weights at which no layer dies or explodes, and running statistics that matter."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.data.uniform_(0.5, 1.2, generator=generator)
            module.bias.data.normal_(0, 0.2, generator=generator)
        elif isinstance(module, nn.LayerNorm):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.2, generator=generator)
        elif isinstance(module, nn.Linear):
            module.weight.data.normal_(0, module.in_features**-0.5, generator=generator)
            if module.bias is not None:
                module.bias.data.normal_(0, 0.1, generator=generator)
    for name, param in net.named_parameters():
        if name.endswith(("layer_scale", "gamma")):
            param.data.uniform_(0.2, 1, generator=generator)
        elif name.endswith(("class_token", "cls_token", "pos_embed", "pos_embedding", "in_proj_bias", "reg_token")):
            param.data.normal_(0, 0.3, generator=generator)
    return net.eval()


def input_of(net, size, n):
    channels = next(module.in_channels for module in net.modules() if isinstance(module, nn.Conv2d))
    side = getattr(net, "image_size", 224)
    height, width = size or (side, side)
    return torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(n))


def compare_logits(label, net, path, size):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    check(f"{label}: ends", ([i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()]), (["input"], ["logits"]))
    check(f"{label}: batch", session.get_inputs()[0].shape[0], "batch")
    worst = 0.0
    for n in (1, 3):
        x = input_of(net, size, n)
        with torch.no_grad():
            expected = net(x).numpy()
        found = session.run(None, {"input": x.numpy()})[0]
        check(f"{label}: shape of logits", found.shape, expected.shape)
        worst = max(worst, float(np.abs(found - expected).max() / np.abs(expected).max()))
    check(f"{label}: logits within {TOLERANCE} (found {worst:.1e})", worst <= TOLERANCE, True)
    return worst


def compare_graph(label, net, path):
    model = onnx.load(str(path))
    onnx.checker.check_model(str(path), full_check=True)
    state = net.state_dict()
    stored = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in state}
    left = [name for name in state if name not in stored and not name.endswith("num_batches_tracked")]
    check(f"{label}: tensors that are not initialisers", left, [])
    for name, tensor in stored.items():
        check(f"{label}: {name}", np.array_equal(numpy_helper.to_array(tensor), state[name].float().numpy()), True)
    return model


def compare_names(label, net, model, size, folder):
    """Names of convolutions, normalisations, activations, sums and products of rows, beside torch's exporter."""
    path = folder / "torch.onnx"
    try:
        torch.onnx.export(net, (input_of(net, size, 1),), str(path), dynamo=False, opset_version=17, do_constant_folding=False,
                          training=torch.onnx.TrainingMode.PRESERVE, input_names=["input"], output_names=["logits"])
    except Exception as error:  # a release without the exporter
        print(f"  {label}: torch's exporter: {str(error)[:80]}")
        return
    # torchvision's attention is one function of torch, which the exporter takes apart in its own way.
    apart = {"Add", "Gemm"} if any(isinstance(module, nn.MultiheadAttention) for module in net.modules()) else set()
    kinds = {"Conv", "BatchNormalization", "Relu", "Add", "Gemm", "MaxPool", "GlobalAveragePool", "Clip", "HardSwish", "LayerNormalization"} - apart
    names = lambda graph: [(node.op_type, node.name) for node in graph.node if node.op_type in kinds]
    theirs = names(onnx.load(str(path)).graph)
    check(f"{label}: names of nodes", names(model.graph), theirs)


def one(binary, label, make, template, size, arguments, folder, with_names):
    torch.manual_seed(0)
    net = randomise(make())
    source, target = folder / "net.pth", folder / "net.onnx"
    torch.save(net.state_dict(), source)
    sizes = ["--input-size", "x".join(map(str, size))] if size else []
    code, out, err = run(binary, "convert", source, target, *arguments, *sizes, "--json", "--force")
    check(f"{label}: exit, {err}", code, 0)
    if code:
        return
    check(f"{label}: template", json.loads(out)["template"], template)
    worst = compare_logits(label, net, target, size)
    model = compare_graph(label, net, target)
    if with_names:
        compare_names(label, net, model, size, folder)
    n = sum(param.numel() for param in net.parameters())
    print(f"{label}: {n / 1e6:.1f} M parameters, largest difference {worst:.1e}", flush=True)
    for file in folder.iterdir():
        file.unlink()


def other_files(binary, folder):
    """What a checkpoint may be beside float32 in a `.pth`."""
    net = randomise(torchvision.models.resnet18(num_classes=4))
    for dtype in (torch.float16, torch.bfloat16):
        state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in net.state_dict().items()}
        net.load_state_dict(state)
        source = folder / "half.safetensors"
        save_file(state, source)
        code, _, err = run(binary, "convert", source, folder / "half.onnx", "--force")
        check(f"{dtype}: exit, {err}", code, 0)
        compare_logits(str(dtype), net, folder / "half.onnx", None)
        compare_graph(str(dtype), net, folder / "half.onnx")
    # Counters are left out by some.
    state = {name: value for name, value in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}, folder / "wrapped.pth")
    code, _, err = run(binary, "convert", folder / "wrapped.pth", folder / "w.onnx")
    check("a prefix: exit", code, 3)
    check("a prefix: said", "fits the template `resnet18` but for `module.` in front of all its names" in err, True)
    code, _, err = run(binary, "convert", folder / "wrapped.pth", folder / "w.onnx", "--strip-prefix", "module.")
    check(f"a prefix taken off: exit, {err}", code, 0)
    compare_logits("a prefix taken off", net, folder / "w.onnx", None)


def what_does_not_fit(binary, folder):
    net = torchvision.models.resnet18()
    net.fc = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))
    torch.save(net.state_dict(), folder / "odd.pth")
    code, out, err = run(binary, "convert", folder / "odd.pth", folder / "odd.onnx")
    check("odd head: exit", code, 3)
    for part in ["fits no template", "`resnet18` is the nearest", "2 missing (`fc.bias`, `fc.weight`)", "4 unexpected (`fc.0.bias`"]:
        check(f"odd head: says `{part}` in {err}", part in err, True)
    check("odd head: nothing is written", (folder / "odd.onnx").exists(), False)
    code, _, err = run(binary, "convert", folder / "odd.pth", folder / "odd.onnx", "--template", "resnet50")
    check("asked for another: exit", code, 3)
    check("asked for another: names it", "does not fit the template `resnet50`" in err, True)
    code, _, err = run(binary, "convert", folder / "odd.pth", folder / "odd.onnx", "--template", "resnet19")
    check("an unknown name: exit", code, 2)
    torch.save(torchvision.models.vit_b_32().state_dict(), folder / "vit.pth")
    code, _, err = run(binary, "convert", folder / "vit.pth", folder / "vit.onnx", "--input-size", "256")
    check("a size that its positions do not have: exit", code, 3)
    check("a size that its positions do not have: says both", "[batch, 65, 768] and [1, 50, 768]" in err, True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graftwork", required=True, help="the binary")
    parser.add_argument("--only", action="append", help="compare this network and no other; may be given again")
    parser.add_argument("--quick", action="store_true", help="leave out the large networks")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for label, make, template, size, arguments, is_slow in cases():
            if args.only and label not in args.only or args.quick and is_slow:
                continue
            one(args.graftwork, label, make, template, size, arguments, folder, with_names=not is_slow and not label.startswith("timm"))
        if not args.only:
            other_files(args.graftwork, folder)
            what_does_not_fit(args.graftwork, folder)
    print(f"torchvision {torchvision.__version__}, timm {timm.__version__}, onnxruntime {onnxruntime.__version__}")
    finish()


if __name__ == "__main__":
    main()
