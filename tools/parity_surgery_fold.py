"""What folds one tensor into another, or computes: batch norms, weight norm, layer scale, LoRA, arithmetic, types."""

from collections import OrderedDict

import torch
from torch import nn

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


@convention("arithmetic", "torch: sums, products, types")
def arithmetic():
    given = randoms({"a": (3, 4), "b": (3, 4), "layers.0.mlp.down_proj.weight": (4, 4), "norm.weight": (4,)})
    yield Case("let a = (a - b) * 0.5 + b / 4", given, dict(given) | {"a": (given["a"] - given["b"]) * 0.5 + given["b"] / 4}, near={"a": 1e-6})
    yield Case("let c = a[1:,0:2] + b[:2,2:]", given, dict(given) | {"c": given["a"][1:, 0:2] + given["b"][:2, 2:]})
    yield Case("scale **.down_proj.weight 0.5", given, {name: tensor * 0.5 if "down" in name else tensor for name, tensor in given.items()}, ordered=True)
    expected = {name: tensor if "norm" in name else tensor.bfloat16() for name, tensor in given.items()}
    yield Case("cast ** bf16 except **norm**", given, expected, ordered=True)
    yield Case("cast ** half", given, {name: tensor.half() for name, tensor in given.items()}, ordered=True, given_suffix=".safetensors")
