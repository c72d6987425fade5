"""What is drawn anew: each distribution of torch.nn.init by its moments, bounds and Kolmogorov-Smirnov, the defaults of torch's layers, new heads."""

import math
from collections import OrderedDict

import torch
from torch import nn

from parity_common import bits, check
from parity_surgery_common import Case, check_distribution, check_normal, check_uniform, convention, randoms

SHAPE = (96, 32, 3, 3)
FAN_IN, FAN_OUT = 32 * 9, 96 * 9


def gain(a):
    return math.sqrt(2 / (1 + a * a))


METHODS = {
    "zeros": lambda label, w: check(f"{label}: zeros", bool((w == 0).all()), True),
    "ones": lambda label, w: check(f"{label}: ones", bool((w == 1).all()), True),
    "constant:0.25": lambda label, w: check(f"{label}: constant", bool((w == 0.25).all()), True),
    "normal": lambda label, w: check_normal(label, w, 1.0),
    "normal:0.02": lambda label, w: check_normal(label, w, 0.02),
    "normal:0.5,3": lambda label, w: check_normal(label, w, 0.5, 3.0),
    "uniform": lambda label, w: check_uniform(label, w, 1.0, 0.0),
    "uniform:-0.3,0.7": lambda label, w: check_uniform(label, w, 0.7, -0.3),
    "trunc_normal": lambda label, w: check_normal(label, w, 1.0, cut=2.0),
    "trunc_normal:0.02": lambda label, w: check_normal(label, w, 0.02, cut=2.0),
    "trunc_normal:1.5": lambda label, w: check_normal(label, w, 1.5, cut=2.0),
    "xavier_uniform": lambda label, w: check_uniform(label, w, math.sqrt(6 / (FAN_IN + FAN_OUT))),
    "xavier_normal": lambda label, w: check_normal(label, w, math.sqrt(2 / (FAN_IN + FAN_OUT))),
    "kaiming_uniform": lambda label, w: check_uniform(label, w, gain(0) * math.sqrt(3 / FAN_IN)),
    f"kaiming_uniform:{math.sqrt(5)}": lambda label, w: check_uniform(label, w, math.sqrt(1 / FAN_IN)),
    "kaiming_normal": lambda label, w: check_normal(label, w, gain(0) / math.sqrt(FAN_IN)),
    "default": lambda label, w: check_uniform(label, w, math.sqrt(1 / FAN_IN)),
}


def torch_sample(method, shape):
    """The same tensor as torch draws it, or None for what has no function of its own."""
    name, _, values = method.partition(":")
    values = [float(value) for value in values.split(",") if value]
    functions = {
        "normal": lambda w, std=1.0, mean=0.0: nn.init.normal_(w, mean, std), "uniform": lambda w, a=0.0, b=1.0: nn.init.uniform_(w, a, b),
        "trunc_normal": lambda w, std=1.0: nn.init.trunc_normal_(w, std=std), "xavier_uniform": nn.init.xavier_uniform_,
        "xavier_normal": nn.init.xavier_normal_, "kaiming_uniform": lambda w, a=0.0: nn.init.kaiming_uniform_(w, a=a),
        "kaiming_normal": nn.init.kaiming_normal_,
        "default": lambda w: nn.init.kaiming_uniform_(w, a=math.sqrt(5)), "orthogonal": nn.init.orthogonal_,
    }
    return functions[name](torch.empty(shape), *values) if name in functions else None


@convention("init", "torch.nn.init: each distribution, checked on torch's own sample first")
def init():
    given = randoms({"conv.weight": SHAPE, "other.weight": SHAPE})
    for method, test in METHODS.items():
        sample = torch_sample(method, SHAPE)
        if sample is not None:
            test(f"torch's own {method}", sample)

        def also(label, found, method=method, test=test):
            test(f"{label} {method}", found["conv.weight"])
            check(f"{label}: the other stays", bits(found["other.weight"]) == bits(given["other.weight"]), True)

        yield Case(f"init conv.weight {method} seed=1", given, also=also)


@convention("init_orthogonal", "torch.nn.init.orthogonal_: rows or columns are orthonormal")
def init_orthogonal():
    def orthonormal(label, weight):
        flat = weight.double().flatten(1)
        flat = flat if flat.shape[0] <= flat.shape[1] else flat.T
        error = (flat @ flat.T - torch.eye(flat.shape[0], dtype=torch.float64)).abs().max().item()
        check(f"{label}: orthonormal but for {error:.1e}", error <= 1e-5, True)

    for shape in [(16, 16), (8, 30), (30, 8), (6, 4, 3, 3)]:
        orthonormal("torch's own orthogonal", torch_sample("orthogonal", shape))
        given = randoms({"w": shape})
        yield Case("init w orthogonal", given, also=lambda label, found: orthonormal(label, found["w"]))

    # The angle of a random rotation of the plane is uniform, which a QR without its signs gets wrong.
    def angles(label, found):
        values = torch.stack([torch.atan2(w[1, 0], w[0, 0]) for w in found.values()]).double()
        check_distribution(f"{label}: angles", values, lambda x: (x + math.pi) / (2 * math.pi))

    yield Case("init ** orthogonal", randoms({f"w{n}": (2, 2) for n in range(400)}), also=angles)


@convention("init_seeds", "one seed and name give the same numbers whatever else is drawn; another name or seed gives others")
def init_seeds():
    given = randoms({"a": (40, 30), "b": (40, 30), "c": (3,)})
    seen = {}

    def keep(key):
        def also(label, found):
            seen[key] = OrderedDict(found)
            if key == "again":
                check(f"{label}: the same again", bits(seen["all"]["a"]) == bits(seen["again"]["a"]), True)
            if key == "alone":
                check(f"{label}: the same without the others", bits(seen["all"]["b"]) == bits(seen["alone"]["b"]), True)
            if key == "seed":
                check(f"{label}: another seed", bits(seen["all"]["a"]) == bits(seen["seed"]["a"]), False)
            if key == "all":
                check(f"{label}: another name", bits(found["a"]) == bits(found["b"]), False)
                # Unlike, not shifted: their correlation is that of independent draws.
                both = torch.stack([found["a"].flatten(), found["b"].flatten()]).double()
                check(f"{label}: uncorrelated", abs(torch.corrcoef(both)[0, 1].item()) < 5 / math.sqrt(1200), True)

        return also

    yield Case("init a b normal seed=7", given, also=keep("all"))
    yield Case("init a b normal seed=7", given, also=keep("again"), given_suffix=".safetensors")
    yield Case("drop a c\ninit b normal seed=7", given, also=keep("alone"))
    yield Case("init a b normal seed=8", given, also=keep("seed"))


@convention("init_new", "tensors that were not there: shape, type, values")
def init_new():
    given = randoms({"a": (2, 2)})

    def also(label, found):
        check(f"{label}: names", sorted(found), ["a", "bias", "gate", "new"])
        check(f"{label}: shapes", [tuple(found[name].shape) for name in ("new", "bias", "gate")], [(64, 48), (64,), (3, 2)])
        check_normal(f"{label} new", found["new"], 0.02, cut=2.0)
        check(f"{label}: zeros and ones", (bool((found["bias"] == 0).all()), bool((found["gate"] == 1).all())), (True, True))

    yield Case("init new 64x48 trunc_normal:.02 seed=0\nzeros bias 64\nones gate 3x2", given, also=also)
    yield Case("init new 64x48 normal dtype=bf16", given, also=lambda label, found: check(f"{label}: type", found["new"].dtype, torch.bfloat16))


def default_layers():
    layers = OrderedDict(
        conv=nn.Conv2d(24, 64, 3, groups=2), bn=nn.BatchNorm2d(64), fc=nn.Linear(200, 300),
        norm=nn.LayerNorm(300), embed=nn.Embedding(100, 64), conv1d=nn.Conv1d(32, 64, 5, bias=False),
    )
    return nn.Sequential(layers)


@convention("init_default", "what torch's Conv, Linear, BatchNorm, LayerNorm and Embedding draw")
def init_default():
    def test(label, state):
        check_uniform(f"{label} conv.weight", state["conv.weight"], 1 / math.sqrt(12 * 9))
        check_uniform(f"{label} conv.bias", state["conv.bias"], 1 / math.sqrt(12 * 9))
        check_uniform(f"{label} conv1d.weight", state["conv1d.weight"], 1 / math.sqrt(32 * 5))
        check_uniform(f"{label} fc.weight", state["fc.weight"], 1 / math.sqrt(200))
        check_uniform(f"{label} fc.bias", state["fc.bias"], 1 / math.sqrt(200))
        check_normal(f"{label} embed.weight", state["embed.weight"], 1.0)
        for name, value in [("bn.weight", 1), ("bn.bias", 0), ("bn.running_mean", 0), ("bn.running_var", 1), ("bn.num_batches_tracked", 0), ("norm.weight", 1), ("norm.bias", 0)]:
            check(f"{label} {name} is {value}", bool((state[name] == value).all()), True)

    model = default_layers()
    test("torch's own", model.state_dict())
    given = OrderedDict((name, torch.full_like(tensor, 5)) for name, tensor in model.state_dict().items())
    yield Case("init **", given, also=test)
    yield Case("init ** seed=9", given, also=test, given_suffix=".safetensors")


@convention("head", "torch: a Linear of the new number of classes where the old one was")
def head():
    body = {"conv1.weight": (8, 3, 3, 3), "bn1.weight": (8,)}

    def test(label, found, given, classes, module="fc", drawn=True):
        others = [name for name in given if not name.startswith(module + ".")]
        check(f"{label}: names", list(found), list(given))
        check(f"{label}: shapes", (tuple(found[f"{module}.weight"].shape), tuple(found[f"{module}.bias"].shape)), ((classes, 512), (classes,)))
        check(f"{label}: the body", all(bits(found[name]) == bits(given[name]) for name in others), True)
        if drawn:
            check_uniform(f"{label} weight", found[f"{module}.weight"], 1 / math.sqrt(512))
            check_uniform(f"{label} bias", found[f"{module}.bias"], 1 / math.sqrt(512))

    given = randoms(body | {"fc.weight": (1000, 512), "fc.bias": (1000,)})
    for classes in (10, 300, 2000):
        yield Case(f"head fc classes={classes}", given, also=lambda label, found, n=classes: test(label, found, given, n))
    yield Case("head fc classes=10 seed=3", given, also=lambda label, found: test(label, found, given, 10))
    deep = randoms(body | {"classifier.6.weight": (1000, 512), "classifier.6.bias": (1000,)})
    yield Case("head classifier.6 classes=10", deep, also=lambda label, found: test(label, found, deep, 10, "classifier.6"))

    def zeros(label, found):
        test(label, found, given, 10, drawn=False)
        check(f"{label}: zeros", bool((found["fc.weight"] == 0).all()), True)

    yield Case("head fc classes=10 init=zeros", given, also=zeros)

    def truncated(label, found):
        test(label, found, given, 100, drawn=False)
        check_normal(f"{label} weight", found["fc.weight"], 0.02, cut=2.0)

    yield Case("head fc classes=100 init=trunc_normal:.02", given, also=truncated)
    half = OrderedDict((name, tensor.half()) for name, tensor in given.items())
    yield Case("head fc classes=10", half, also=lambda label, found: check(f"{label}: type", (found["fc.weight"].dtype, found["fc.bias"].dtype), (torch.float16, torch.float16)))
    yield Case("head fc drop", given, OrderedDict((name, tensor) for name, tensor in given.items() if not name.startswith("fc.")), ordered=True)
    # A 1x1 convolution as classifier keeps its kernel.
    conv = randoms(body | {"head.weight": (100, 64, 1, 1), "head.bias": (100,)})
    yield Case("head head classes=7", conv, also=lambda label, found: check(f"{label}: shape", tuple(found["head.weight"].shape), (7, 64, 1, 1)))
    # timm's label_offset: the background class is left out.
    yield Case("slice fc.* 0 1:", given, OrderedDict((name, tensor[1:] if name.startswith("fc.") else tensor) for name, tensor in given.items()), ordered=True)
