"""What folds one tensor into another, or computes: batch norms, weight norm, layer scale, LoRA, arithmetic, types."""

import json
import os
import tempfile
from collections import OrderedDict

import torch
from safetensors.torch import save_file
from torch import nn

from parity_common import check
from parity_surgery_common import Case, convention, randoms


def random_norms(model):
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.4, 2)
            module.num_batches_tracked.fill_(7)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()


def folded(model, pairs):
    """The state dict after torch has folded each batch norm into its convolution."""
    expected = OrderedDict(model.state_dict())
    for norm, conv in pairs:
        fuse = nn.utils.fusion.fuse_linear_bn_eval if isinstance(model.get_submodule(conv), nn.Linear) else nn.utils.fusion.fuse_conv_bn_eval
        fused = fuse(model.get_submodule(conv), model.get_submodule(norm))
        expected |= {f"{conv}.weight": fused.weight.detach(), f"{conv}.bias": fused.bias.detach()}
        for name in [name for name in expected if name.startswith(norm + ".")]:
            del expected[name]
    return expected


@convention("fold_bn", "torch.nn.utils.fusion fuse_conv_bn_eval, fuse_linear_bn_eval")
def fold_bn():
    from torchvision.models.resnet import BasicBlock, ResNet

    model = random_norms(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4))
    pairs = [(name, name.replace("bn", "conv")) for name, _ in model.named_modules() if name.split(".")[-1].startswith("bn")]
    pairs += [(name, name[:-1] + "0") for name, _ in model.named_modules() if name.endswith("downsample.1")]
    plan = "fold bn **bn{n} -> **conv{n}\nfold bn **.downsample.1 -> **.downsample.0"
    yield Case(plan, model.state_dict(), folded(model, pairs), near={"*": 1e-6})
    layers = OrderedDict(conv=nn.Conv2d(6, 8, 3, groups=2), norm=nn.BatchNorm2d(8, eps=1e-3), fc=nn.Linear(8, 5), last=nn.BatchNorm1d(5, eps=1e-3))
    model = random_norms(nn.Sequential(layers))
    yield Case("fold bn norm -> conv eps=1e-3\nfold bn last -> fc eps=1e-3", model.state_dict(), folded(model, [("norm", "conv"), ("last", "fc")]), near={"*": 1e-6})
    model = random_norms(nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4)))).half()
    yield Case("fold bn norm -> conv", model.state_dict(), folded(model, [("norm", "conv")]), near={"*": 2e-3})


@convention("fold_weight_norm", "torch remove_weight_norm and remove_parametrizations")
def fold_weight_norm():
    import warnings

    def modules():
        return OrderedDict(conv=nn.Conv1d(3, 5, 4), up=nn.ConvTranspose1d(5, 3, 4), fc=nn.Linear(6, 4), plain=nn.Linear(2, 2))

    def disturb(model):
        for name, tensor in model.state_dict().items():
            if name.endswith(("_g", "original0")):
                tensor.uniform_(0.5, 2)

    warnings.simplefilter("ignore")
    old = nn.Sequential(modules())
    for name in ("conv", "up", "fc"):
        # ConvTranspose is normed along its input channels too, unless told.
        setattr(old, name, nn.utils.weight_norm(getattr(old, name), dim=0))
    disturb(old)
    given = OrderedDict((name, tensor.clone()) for name, tensor in old.state_dict().items())
    for name in ("conv", "up", "fc"):
        nn.utils.remove_weight_norm(getattr(old, name))
    yield Case("fold weight_norm **", given, old.state_dict(), near={"*": 1e-6})
    new = nn.Sequential(modules())
    for name, dim in (("conv", 0), ("up", 1), ("fc", 1)):
        nn.utils.parametrizations.weight_norm(getattr(new, name), dim=dim)
    disturb(new)
    given = OrderedDict((name, tensor.clone()) for name, tensor in new.state_dict().items())
    for name in ("conv", "up", "fc"):
        nn.utils.parametrize.remove_parametrizations(getattr(new, name), "weight")
    yield Case("fold weight_norm **", given, new.state_dict(), near={"*": 1e-6})
    scalar = nn.utils.weight_norm(nn.Linear(6, 4), dim=None)
    given = OrderedDict((name, tensor.clone()) for name, tensor in scalar.state_dict().items())
    nn.utils.remove_weight_norm(scalar)
    yield Case("fold weight_norm **", given, scalar.state_dict(), near={"*": 1e-6})


@convention("fold_layerscale", "torch: rows of the linear layer in front times gamma")
def fold_layerscale():
    given, expected = OrderedDict(), OrderedDict()
    for n in range(3):
        for linear, scale in [("attn.proj", "ls1"), ("mlp.fc2", "ls2")]:
            part = randoms({f"blocks.{n}.{linear}.weight": (6, 8), f"blocks.{n}.{linear}.bias": (6,), f"blocks.{n}.{scale}.gamma": (6,)})
            given |= part
            weight, bias, gamma = part.values()
            expected |= {f"blocks.{n}.{linear}.weight": weight * gamma[:, None], f"blocks.{n}.{linear}.bias": bias * gamma}
    yield Case("fold layerscale blocks.{i}.ls1.gamma -> blocks.{i}.attn.proj\nfold layerscale blocks.{i}.ls2.gamma -> blocks.{i}.mlp.fc2", given, expected)


def adapter(config, tensors):
    """The files of a PEFT adapter."""
    names = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    return {"adapter/adapter_config.json": {"peft_type": "LORA"} | config, "adapter/adapter_model.safetensors": names}


@convention("fold_lora", "PEFT's adapters: W + s B A with s = alpha / r, or alpha / sqrt r")
def fold_lora():
    r, alpha = 4, 12
    for dtype, tolerance in [(torch.float32, 1e-6), (torch.bfloat16, 8e-3)]:
        given = randoms({"model.q_proj.weight": (20, 16), "model.v_proj.weight": (12, 16), "model.norm.weight": (16,)}, dtype)
        shapes = {"model.q_proj.lora_A.weight": (r, 16), "model.q_proj.lora_B.weight": (20, r)}
        parts = randoms(shapes | {"model.v_proj.lora_A.weight": (2 * r, 16), "model.v_proj.lora_B.weight": (12, 2 * r)})
        for config, scales in [
            ({}, {"q": alpha / r, "v": alpha / (2 * r)}), ({"use_rslora": True}, {"q": alpha / r**0.5, "v": alpha / (2 * r) ** 0.5}),
            ({"alpha_pattern": {"v_proj": 5}}, {"q": alpha / r, "v": 5 / (2 * r)}),
        ]:
            config = {"r": r, "lora_alpha": alpha, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 2 * r}} | config
            expected = dict(given)
            for part, scale in scales.items():
                product = parts[f"model.{part}_proj.lora_B.weight"] @ parts[f"model.{part}_proj.lora_A.weight"]
                expected[f"model.{part}_proj.weight"] = (given[f"model.{part}_proj.weight"].float() + scale * product).to(dtype)
            yield Case("fold lora adapter", given, expected, near={"*_proj.weight": tolerance}, ordered=True, files=adapter(config, parts))
    # A convolution, an embedding, Conv1D's transposed weight, and a head that was trained whole.
    given = randoms({"conv.weight": (6, 3, 3, 3), "embed.weight": (10, 8), "c_attn.weight": (8, 24), "score.weight": (2, 8)})
    shapes = {"conv.lora_A.weight": (r, 3, 3, 3), "conv.lora_B.weight": (6, r, 1, 1), "embed.lora_embedding_A": (r, 10), "embed.lora_embedding_B": (8, r)}
    parts = randoms(shapes | {"score.weight": (2, 8)})
    s = alpha / r
    expected = dict(given) | {"score.weight": parts["score.weight"]}
    expected["conv.weight"] = given["conv.weight"] + s * (parts["conv.lora_B.weight"].flatten(1) @ parts["conv.lora_A.weight"].flatten(1)).reshape(6, 3, 3, 3)
    expected["embed.weight"] = given["embed.weight"] + s * (parts["embed.lora_embedding_B"] @ parts["embed.lora_embedding_A"]).T
    config = {"r": r, "lora_alpha": alpha, "target_modules": ["conv", "embed"], "modules_to_save": ["score"]}
    yield Case("fold lora adapter", given, expected, near={"conv.weight": 1e-6, "embed.weight": 1e-6}, files=adapter(config, parts))
    parts = randoms({"c_attn.lora_A.weight": (r, 8), "c_attn.lora_B.weight": (24, r)})
    expected = dict(given) | {"c_attn.weight": given["c_attn.weight"] + s * (parts["c_attn.lora_B.weight"] @ parts["c_attn.lora_A.weight"]).T}
    config = {"r": r, "lora_alpha": alpha, "fan_in_fan_out": True, "target_modules": ["c_attn"]}
    yield Case("fold lora adapter", given, expected, near={"c_attn.weight": 1e-6}, files=adapter(config, parts))


def low_rank(shape, rank):
    """A change of that rank, of the first dimension by the others."""
    n = torch.Size(shape[1:]).numel()
    return (torch.randn(shape[0], rank) @ torch.randn(rank, n) * 0.1).reshape(shape)


def optimum(matrix, rank):
    """What the best approximation of that rank leaves over (Eckart and Young)."""
    return torch.linalg.svdvals(matrix.double())[rank:].square().sum().sqrt().item()


def change(found, module, scale):
    """What an adapter adds to the weight of a module."""
    name = f"base_model.model.{module}"
    if f"{name}.lora_embedding_A" in found:
        return scale * (found[f"{name}.lora_embedding_B"].double() @ found[f"{name}.lora_embedding_A"].double()).T
    return scale * found[f"{name}.lora_B.weight"].double().flatten(1) @ found[f"{name}.lora_A.weight"].double().flatten(1)


def check_near_optimum(label, found, module, scale, delta, rank):
    delta = delta.double().flatten(1)
    left_over, best = (delta - change(found, module, scale)).norm().item(), optimum(delta, rank)
    # What torch's own factors in float32 leave over where nothing need be.
    limit = best * (1 + 1e-4) + 1e-6 * delta.norm().item()
    check(f"{label}: {module} of rank {rank} leaves {left_over:.6e}, the best {best:.6e}", left_over <= limit, True)


@convention("lora_extract", "torch.linalg.svd of W - W_base; names and shapes of PEFT")
def lora_extract():
    shapes = {"model.q_proj.weight": (20, 16), "model.q_proj.bias": (20,), "conv.weight": (6, 3, 3, 3), "model.embed_tokens.weight": (30, 8), "tiny.weight": (2, 12), "norm.weight": (16,), "same.weight": (4, 4)}
    base = randoms(shapes)
    tuned = {name: tensor if "same" in name else tensor + (low_rank(tensor.shape, 2) if tensor.dim() > 1 else torch.randn(tensor.shape)) for name, tensor in base.items()}
    made = {}

    def exact(label, found):
        names = {"model.q_proj.lora_A.weight": (4, 16), "model.q_proj.lora_B.weight": (20, 4), "conv.lora_A.weight": (4, 3, 3, 3), "conv.lora_B.weight": (6, 4, 1, 1)}
        names |= {"model.embed_tokens.lora_embedding_A": (4, 30), "model.embed_tokens.lora_embedding_B": (8, 4), "tiny.lora_A.weight": (2, 12), "tiny.lora_B.weight": (2, 2), "norm.weight": (16,), "model.q_proj.base_layer.bias": (20,)}
        check(f"{label}: names and shapes", {name: tuple(tensor.shape) for name, tensor in found.items()}, {f"base_model.model.{name}": shape for name, shape in names.items()})
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "lora_only", "fan_in_fan_out": False, "target_modules": ["model.q_proj", "conv", "model.embed_tokens", "tiny"], "modules_to_save": ["norm"], "rank_pattern": {"^tiny": 2}}
        check(f"{label}: config", {key: found.config.get(key) for key in config}, config)
        check(f"{label}: what is whole", torch.equal(found["base_model.model.norm.weight"], tuned["norm.weight"]), True)
        for module, scale in [("model.q_proj", 2), ("conv", 2), ("model.embed_tokens", 2), ("tiny", 4)]:
            check_near_optimum(label, found, module, scale, tuned[f"{module}.weight"] - base[f"{module}.weight"], 2)
        made.update(found=found)

    yield Case("lora extract base=base.pth rank=4 alpha=8", tuned, files={"base.pth": base}, out_suffix="", also=exact)
    if made:
        files = {"adapter/adapter_config.json": made["found"].config, "adapter/adapter_model.safetensors": made["found"]}
        yield Case("fold lora adapter", base, tuned, near={"*": 1e-6}, files=files)
    # Changes of full rank: small ones are decomposed exactly, large ones through a sketch, the largest are read in chunks.
    shapes = {"small.weight": (64, 48), "wide.weight": (100, 400), "flat.weight": (320, 300), "steep.weight": (400, 500), "large.weight": (5000, 3600)}
    base = randoms(shapes)
    deltas = randoms(shapes)
    u, _, v = torch.linalg.svd(deltas["steep.weight"], full_matrices=False)
    deltas["steep.weight"] = u * torch.exp(-torch.arange(400) / 8) @ v
    deltas["large.weight"] = low_rank((5000, 3600), 6)
    tuned = {name: tensor + deltas[name] for name, tensor in base.items()}

    def near(label, found):
        check(f"{label}: modules_to_save", found.config["modules_to_save"], None)
        for module in ["small", "wide", "flat", "steep"]:
            name = f"{module}.weight"
            check_near_optimum(label, found, module, 1, tuned[name] - base[name], 16)
        delta = (tuned["large.weight"] - base["large.weight"]).double()
        left_over = (delta - change(found, "large", 1)).norm().item()
        # Rounding of the sum and of the factors in float32 is all that is beyond the rank.
        check(f"{label}: large leaves {left_over:.3e} of {delta.norm().item():.3e}", left_over <= 1e-6 * delta.norm().item(), True)

    yield Case("lora extract base=base.safetensors rank=16", tuned, files={"base.safetensors": base}, out_suffix="", also=near)
    tuned = {name: tensor.bfloat16() for name, tensor in tuned.items() if "large" not in name}
    base = {name: base[name].bfloat16() for name in tuned}

    def half(label, found):
        check(f"{label}: what is kept", torch.equal(found["base_model.model.flat.weight"], tuned["flat.weight"]), True)
        check(f"{label}: modules_to_save", found.config["modules_to_save"], ["flat", "steep"])
        for module in ["small", "wide"]:
            name = f"{module}.weight"
            check_near_optimum(label, found, module, 1, tuned[name].float() - base[name].float(), 8)

    yield Case("lora extract base=base.pth rank=8 keep=flat.**,steep.*", tuned, files={"base.pth": base}, out_suffix="", also=half)
    message = "`small.weight` of `the state dict at hand` is [64, 48], but `small.weight` of `base.pth` is [64, 47]"
    yield Case("lora extract base=base.pth rank=8", {"small.weight": tuned["small.weight"]}, files={"base.pth": {"small.weight": base["small.weight"][:, 1:]}}, message=message)


@convention("lora_resize", "torch.linalg.svd of B A, which is never made")
def lora_resize():
    r, alpha = 8, 12
    shapes = {"q.lora_A.weight": (r, 40), "q.lora_B.weight": (30, r), "conv.lora_A.weight": (r, 3, 3, 3), "conv.lora_B.weight": (16, r, 1, 1)}
    shapes |= {"e.lora_embedding_A": (r, 50), "e.lora_embedding_B": (20, r), "v.lora_A.weight": (2, 40), "v.lora_B.weight": (30, 2), "score.weight": (3, 4)}
    given = OrderedDict((f"base_model.model.{name}", tensor) for name, tensor in randoms(shapes).items())
    config = {"peft_type": "LORA", "r": r, "lora_alpha": alpha, "rank_pattern": {"v": 2}, "alpha_pattern": {"conv": 5}, "target_modules": ["q", "conv", "e", "v"], "task_type": "CAUSAL_LM"}
    for rank in [3, 8, 20]:
        for rslora in [False, True]:
            factor = (lambda alpha, r: alpha / r**0.5) if rslora else (lambda alpha, r: alpha / r)

            def resized(label, found):
                smaller = min(rank, r)
                check(f"{label}: names", sorted(found), sorted(given))
                check(f"{label}: rank and alpha", [found.config[key] for key in ["r", "lora_alpha", "task_type", "alpha_pattern"]], [rank, alpha, "CAUSAL_LM", {"conv": 5}])
                ranks = {"q": smaller, "conv": smaller, "e": smaller, "v": 2}
                check(f"{label}: rank_pattern", found.config["rank_pattern"], {f"^{module}": r for module, r in ranks.items() if r != rank})
                for module, a in [("q", alpha), ("conv", 5), ("e", alpha), ("v", alpha)]:
                    old = 2 if module == "v" else r
                    check_near_optimum(label, found, module, factor(a, ranks[module]), change(given, module, factor(a, old)), ranks[module])
                check(f"{label}: what is whole", torch.equal(found["base_model.model.score.weight"], given["base_model.model.score.weight"]), True)

            yield Case(f"lora resize rank={rank}", given, files={"in/adapter_config.json": config | {"use_rslora": rslora}}, given_suffix="/adapter_model.safetensors", out_suffix="", also=resized)


@convention("lora_peft", "PEFT's PeftModel.from_pretrained and merge_and_unload", needs=("peft",))
def lora_peft():
    from peft import PeftModel

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed_tokens = nn.Embedding(30, 12)
            self.blocks = nn.ModuleList([nn.ModuleDict({"fc": nn.Linear(12, 12), "norm": nn.LayerNorm(12)}) for _ in range(2)])
            self.conv = nn.Conv2d(3, 6, 3)
            self.fc = nn.Linear(12, 2)
            self.norm = nn.LayerNorm(12)

    torch.manual_seed(1)
    model = Net()
    base = OrderedDict((name, tensor.clone()) for name, tensor in model.state_dict().items())
    # The inner layers called `fc` stay as they are: the one at the root is meant and no other.
    # `norm` at the root means all that are called so, and each is whole or PEFT does not load it.
    is_changed = lambda name: name in ("embed_tokens.weight", "conv.weight", "fc.weight", "fc.bias", "norm.weight")
    tuned = OrderedDict((name, tensor + low_rank(tensor.shape, 2) if is_changed(name) and tensor.dim() > 1 else tensor * 1.5 if is_changed(name) else tensor) for name, tensor in base.items())

    def loaded(label, found):
        with tempfile.TemporaryDirectory() as folder:
            save_file(found, os.path.join(folder, "adapter_model.safetensors"), metadata={"format": "pt"})
            with open(os.path.join(folder, "adapter_config.json"), "w", encoding="utf-8") as file:
                json.dump(found.config, file)
            merged = PeftModel.from_pretrained(model, folder).merge_and_unload().state_dict()
        for name, tensor in tuned.items():
            error = (merged[name] - tensor).abs().max().item()
            check(f"{label}: {name} after merge_and_unload, off by {error:.2e}", error <= 1e-5, True)

    yield Case("lora extract base=base.pth rank=3", tuned, files={"base.pth": base}, out_suffix="", also=loaded)


@convention("arithmetic", "torch: sums, products, types")
def arithmetic():
    given = randoms({"a": (3, 4), "b": (3, 4), "layers.0.mlp.down_proj.weight": (4, 4), "norm.weight": (4,)})
    yield Case("let a = (a - b) * 0.5 + b / 4", given, dict(given) | {"a": (given["a"] - given["b"]) * 0.5 + given["b"] / 4}, near={"a": 1e-6})
    yield Case("let c = a[1:,0:2] + b[:2,2:]", given, dict(given) | {"c": given["a"][1:, 0:2] + given["b"][:2, 2:]})
    yield Case("scale **.down_proj.weight 0.5", given, {name: tensor * 0.5 if "down" in name else tensor for name, tensor in given.items()}, ordered=True)
    expected = {name: tensor if "norm" in name else tensor.bfloat16() for name, tensor in given.items()}
    yield Case("cast ** bf16 except **norm**", given, expected, ordered=True)
    yield Case("cast ** half", given, {name: tensor.half() for name, tensor in given.items()}, ordered=True, given_suffix=".safetensors")
