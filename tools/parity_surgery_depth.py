"""What changes the depth of a stack or the size of a vocabulary: LayerDrop's list, SOLAR, LLaMA-Pro, rows of an embedding."""

import json
import os
from collections import OrderedDict

import torch

from parity_surgery_common import Case, check_moments, convention, randoms

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "parity_data")


def llama(n_layers, width=4):
    shapes = {"model.embed_tokens.weight": (10, width)}
    for n in range(n_layers):
        for name in ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"]:
            shapes[f"model.layers.{n}.{name}.weight"] = (width, width)
        shapes[f"model.layers.{n}.input_layernorm.weight"] = (width,)
    return randoms(shapes | {"model.norm.weight": (width,), "lm_head.weight": (10, width)})


def layers_from(given, sources):
    """The model whose layer k is the layer `sources[k]` of `given`."""
    out = OrderedDict((name, tensor) for name, tensor in given.items() if ".layers." not in name)
    for to, source in enumerate(sources):
        start = f"model.layers.{source}."
        out |= {f"model.layers.{to}." + name.removeprefix(start): tensor for name, tensor in given.items() if name.startswith(start)}
    return out


@convention("layer_keep", "the kept layers, counted anew")
def layer_keep():
    given = llama(12)
    yield Case("renumber model.layers keep 0,2,4,11", given, layers_from(given, [0, 2, 4, 11]))
    gaps = OrderedDict((f"features.{n}.{part}", torch.randn(3)) for n in [0, 3, 7, 10] for part in ("weight", "bias"))
    expected = {f"features.{to}.{part}": gaps[f"features.{n}.{part}"] for to, n in enumerate([0, 3, 7, 10]) for part in ("weight", "bias")}
    yield Case("renumber features compact", gaps, expected, ordered=True)


@convention("fairseq_prune", "fairseq prune_state_dict, whose results are recorded")
def fairseq_prune():
    with open(os.path.join(DATA, "fairseq_prune.json"), encoding="utf-8") as file:
        recorded = json.load(file)
    for case in recorded["cases"]:
        given = OrderedDict((name, torch.randn(3)) for name in case["names"])
        expected = OrderedDict((target, given[source]) for target, source in case["result"].items())
        plan = "\n".join(f"renumber {prefix} keep {layers}" for prefix, layers in case["keep"].items())
        yield Case(plan, given, expected, ordered=True)


@convention("solar", "SOLAR's depth up-scaling: layers 0 to 23 and 8 to 31 of 32")
def solar():
    given = llama(32)
    plan = "rename model.layers.{i=24..31}.** -> model.layers.{i+16}.**\ncopy model.layers.{i=8..23}.** -> model.layers.{i+16}.**"
    yield Case(plan, given, layers_from(given, [*range(24), *range(8, 32)]))


@convention("llama_pro", "LLaMA-Pro's block expansion: copies with zeros for o_proj and down_proj")
def llama_pro():
    given = llama(8)
    # A copy behind each second layer.
    expected = layers_from(given, [0, 1, 1, 2, 3, 3, 4, 5, 5, 6, 7, 7])
    for n in (2, 5, 8, 11):
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            expected[f"model.layers.{n}.{name}.weight"] = torch.zeros(4, 4)
    plan = "rename " + ", ".join(f"model.layers.{{i={2 * g}..{2 * g + 1}}}.** -> model.layers.{{i+{g}}}.**" for g in (1, 2, 3)) + "\n"
    plan += "copy " + ", ".join(f"model.layers.{n}.** -> model.layers.{n + 1}.**" for n in (1, 4, 7, 10)) + "\n"
    plan += "init model.layers.{2|5|8|11}.{self_attn.o_proj|mlp.down_proj}.weight zeros"
    yield Case(plan, given, expected)


@convention("vocabulary", "torch: rows cut off, or new ones of zeros, of the mean, of another row, of a normal distribution")
def vocabulary():
    given = randoms({"embed.weight": (50, 16), "lm_head.weight": (50, 16), "lm_head.bias": (50,), "norm.weight": (16,)})

    def resized(n, fill):
        out = {}
        for name, tensor in given.items():
            new = tensor
            if not name.startswith("norm"):
                more = max(n - 50, 0)
                new = torch.cat([tensor, fill(tensor)[None].expand(more, *tensor.shape[1:])])[:n]
            out[name] = new
        return out

    zeros, mean, copy = (lambda t: torch.zeros_like(t[0])), (lambda t: t.double().mean(0).to(t.dtype)), (lambda t: t[7])
    yield Case("rows embed.weight lm_head.* 40", given, resized(40, zeros), ordered=True)
    yield Case("rows embed.weight lm_head.* 61 fill=zeros", given, resized(61, zeros), ordered=True)
    yield Case("rows embed.weight lm_head.* 61 fill=copy:7", given, resized(61, copy), ordered=True)
    yield Case("rows embed.weight lm_head.* 61 fill=mean", given, resized(61, mean), near={"*": 1e-6}, ordered=True)
    yield Case("rows embed.weight lm_head.* 51 fill=zeros multiple=64", given, resized(64, zeros), ordered=True)
    yield Case("rows embed.weight lm_head.* 50 fill=zeros multiple=64", given, resized(64, zeros), ordered=True)

    def drawn(label, found):
        from parity_common import check

        check(f"{label}: the old rows", torch.equal(found["embed.weight"][:50], given["embed.weight"]), True)
        check(f"{label}: shape", tuple(found["embed.weight"].shape), (400, 16))
        check_moments(f"{label}: the new rows", found["embed.weight"][50:].double().flatten(), 0.0, 0.02)

    yield Case("rows embed.weight 400 fill=normal:0.02 seed=3", given, also=drawn)
    half = randoms({"embed.weight": (50, 16)}, torch.float16)
    expected = torch.cat([half["embed.weight"], half["embed.weight"].float().mean(0).half()[None].expand(6, 16)])
    yield Case("rows embed.weight 56 fill=mean", half, {"embed.weight": expected}, near={"*": 5e-4})
