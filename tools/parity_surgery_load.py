"""`load like TARGET` against torch's `load_state_dict`: its message word for word, what it converts, and policies where shapes differ."""

from collections import OrderedDict

import torch
from torch import nn

from parity_common import check
from parity_surgery_common import Case, convention, randoms


def refused(model, given, **options):
    """What torch says when it refuses to load `given`."""
    try:
        model.load_state_dict(given, **options)
    except RuntimeError as error:
        return str(error)
    return None


class ResNet(nn.Module):
    """Modules of several depths, whose order differs from that of their names."""

    def __init__(self, n_classes=10, width=4):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.conv1 = nn.Conv2d(3, width, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(nn.Sequential(OrderedDict(conv=nn.Conv2d(width, width, 3), bn=nn.BatchNorm2d(width))), nn.Conv2d(width, width, 1))
        self.attn = nn.MultiheadAttention(width, 2)
        self.fc = nn.Linear(width, n_classes)


def without(state, *names):
    return OrderedDict((name, tensor) for name, tensor in state.items() if not any(name.startswith(start) for start in names))


def with_extra(state, *names):
    """More tensors at the end, which is where the file has them."""
    return OrderedDict(state) | {name: torch.ones(2) for name in names}


@convention("load_report", "torch Module.load_state_dict: the text of its RuntimeError")
def load_report():
    model = ResNet()
    state = model.state_dict()
    target = {"target.pth": state}
    metadata = getattr(state, "_metadata")

    def kept(given):
        """`_metadata` of a state dict is what tells torch that a missing num_batches_tracked is an error."""
        given = OrderedDict(given)
        given._metadata = metadata
        return given

    wider = ResNet(n_classes=7).state_dict()
    deep = ResNet(width=8).state_dict()
    extras = ["fc.extra", "zzz.weight", "layer1.0.extra.weight", "layer1.0.conv.bias2", "scale.x", "layer1.7.bias", "lonely", "conv1.weight.deeper", "attn.out_proj.scale"]
    variants = {
        "missing": without(state, "layer1.0.conv", "fc.bias", "scale"), "one_missing": without(state, "attn.in_proj_bias"),
        "unexpected": with_extra(state, *extras), "mismatch": wider, "mismatches": deep, "no_counter": without(state, "bn1.num_batches_tracked"),
        "all_three": with_extra(without(wider, "bn1.", "layer1.1."), *extras[:4]),
        "reordered": with_extra(dict(reversed(list(without(deep, "attn.").items()))), *reversed(extras)),
        "prefix": OrderedDict((f"module.{name}", tensor) for name, tensor in state.items()),
    }
    for name, given in variants.items():
        message = refused(ResNet(), kept(given))
        check(f"torch refuses {name}", message is not None, True)
        yield Case("load like target.pth class=ResNet", kept(given), message=message, files=target)
    # Without `strict` only shapes are refused.
    for name in ("mismatch", "all_three", "reordered"):
        message = refused(ResNet(), kept(variants[name]), strict=False)
        yield Case("load like target.pth class=ResNet strict=false", kept(variants[name]), message=message, files=target)
    message = refused(ResNet(), kept(variants["all_three"]), assign=True)
    yield Case("load like target.pth class=ResNet assign=true", kept(variants["all_three"]), message=message, files=target)


@convention("load_report_real", "torch Module.load_state_dict: ResNet-18 for 1000 classes into one for 10 with another attribute", needs=("torchvision",))
def load_report_real():
    from torchvision.models import resnet18

    given = resnet18().state_dict()
    model = resnet18(num_classes=10)
    yield Case("load like target.pth class=ResNet", given, message=refused(model, given), files={"target.pth": model.state_dict()})
    model.head, model.fc = model.fc, nn.Identity()
    target = {"target.pth": model.state_dict()}
    yield Case("load like target.pth class=ResNet", given, message=refused(model, given), files=target)
    model.load_state_dict(given, strict=False)
    yield Case("load like target.pth class=ResNet strict=false", given, model.state_dict(), files=target, ordered=True)


@convention("load", "torch Module.load_state_dict: what it makes of order, types, scalars, counters and missing names")
def load():
    def loaded(target, given, **options):
        model = ResNet()
        if options.pop("to", None):
            model = model.half()
        model.load_state_dict(target)
        model.load_state_dict(given, **options)
        return OrderedDict((name, tensor.clone()) for name, tensor in model.state_dict().items())

    state = ResNet().state_dict()
    other = ResNet().state_dict()
    files = {"target.pth": state}
    yield Case("load like target.pth", dict(reversed(list(other.items()))), loaded(state, other), ordered=True, files=files)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        given = OrderedDict((name, tensor.to(dtype) if tensor.is_floating_point() else tensor) for name, tensor in other.items())
        yield Case("load like target.pth", given, loaded(state, given), ordered=True, files=files)
        # `assign` takes the tensors as they are.
        yield Case("load like target.pth assign=true", given, OrderedDict((name, given[name]) for name in state), ordered=True, files=files)
    half = ResNet().half().state_dict()
    yield Case("load like target.pth", other, loaded(half, other, to="half"), ordered=True, files={"target.pth": half})
    # A whole number into a float parameter, a float into a counter, one element into a scalar.
    given = OrderedDict(other) | {"fc.bias": torch.arange(10), "bn1.num_batches_tracked": torch.tensor(3.7), "scale": torch.tensor([2.5])}
    yield Case("load like target.pth", given, loaded(state, given), ordered=True, files=files)
    # A checkpoint from before `num_batches_tracked`, as any file without `_metadata`: the module's own count stays.
    given = {name: tensor for name, tensor in other.items() if "num_batches_tracked" not in name}
    yield Case("load like target.pth", given, loaded(state, OrderedDict(given)), ordered=True, files=files, given_suffix=".safetensors")
    given = with_extra(without(other, "layer1.", "scale"), "zzz", "fc.extra.weight")
    yield Case("load like target.pth strict=false", given, loaded(state, given, strict=False), ordered=True, files=files)
    # Marks are the module's, not the checkpoint's.
    yield Case("load like target.pth", OrderedDict(state), loaded(state, state), ordered=True, files={"target.safetensors": state, "target.pth": state}, out_suffix=".pth")


def corner(source, target_shape, into):
    """The common leading part of `source` over `into`."""
    common = tuple(slice(0, min(a, b)) for a, b in zip(source.shape, target_shape))
    out = into.clone()
    out[common] = source[common].to(out.dtype)
    return out


@convention("load_policies", "torch: skip keeps the target's values, crop takes the leading part, pad is the leading part of the target's own")
def load_policies():
    target = randoms({"body.weight": (4, 4), "embed.weight": (12, 8), "fc.weight": (10, 8), "fc.bias": (10,)})
    given = randoms({"body.weight": (4, 4), "embed.weight": (20, 10), "fc.weight": (3, 5), "fc.bias": (3,)})
    files = {"target.pth": target}
    wide = OrderedDict(given) | randoms({"fc.weight": (10, 8), "fc.bias": (10,)})
    expected = OrderedDict(wide) | {"embed.weight": target["embed.weight"]}
    yield Case("load like target.pth skip=embed.**", wide, expected, files=files)
    expected = OrderedDict(wide) | {"embed.weight": wide["embed.weight"][:12, :8]}
    yield Case("load like target.pth crop=embed.**", wide, expected, files=files)
    small = OrderedDict(given) | randoms({"embed.weight": (12, 8)})
    padded = {name: corner(given[name], target[name].shape, target[name]) for name in ("fc.weight", "fc.bias")}
    yield Case("load like target.pth pad=fc.**", small, OrderedDict(small) | padded, files=files)
    yield Case("load like target.pth crop=embed.** pad=fc.**", given, OrderedDict(given) | padded | {"embed.weight": given["embed.weight"][:12, :8]}, files=files)
    yield Case("load like target.pth skip=**", given, OrderedDict(target) | {"body.weight": given["body.weight"]}, files=files, ordered=True)
