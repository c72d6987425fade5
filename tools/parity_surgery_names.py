"""What only renames: prefixes, regular expressions, old names of parameters, Caffe2's names and matching by suffix."""

import json
import os
import re
from collections import OrderedDict

import torch
from torch import nn

from parity_common import check
from parity_surgery_common import Case, convention, importable, randoms
from parity_surgery_depth import DATA


def small_model():
    return nn.Sequential(OrderedDict(conv1=nn.Conv2d(3, 4, 3), bn1=nn.BatchNorm2d(4), fc=nn.Linear(4, 2)))


@convention("ddp_strip", "torch consume_prefix_in_state_dict_if_present")
def ddp_strip():
    given = nn.DataParallel(small_model()).state_dict()
    expected = OrderedDict(given)
    nn.modules.utils.consume_prefix_in_state_dict_if_present(expected, "module.")
    yield Case("strip module.", given, expected, ordered=True)
    yield Case("strip! module.", given, expected, ordered=True)
    # Per name: what has no prefix stays, and a prefix in the middle is none.
    mixed = OrderedDict([("module.a", torch.ones(1)), ("b.module.c", torch.ones(2))])
    expected = OrderedDict(mixed)
    nn.modules.utils.consume_prefix_in_state_dict_if_present(expected, "module.")
    # torch puts what it has renamed at the end; here names keep their places.
    yield Case("strip module.", mixed, expected)
    compiled = torch.compile(small_model()).state_dict()
    yield Case("strip _orig_mod.", compiled, OrderedDict((name.removeprefix("_orig_mod."), tensor) for name, tensor in compiled.items()), ordered=True)
    plain = small_model().state_dict()
    yield Case("add module.", plain, OrderedDict((f"module.{name}", tensor) for name, tensor in plain.items()), ordered=True)


@convention("lightning", "Lightning's checkpoint: `state_dict` with the attribute of the module in front")
def lightning():
    state = OrderedDict((f"model.{name}", tensor) for name, tensor in small_model().state_dict().items())
    state["loss.weight"] = torch.ones(2)
    given = {"epoch": 4, "global_step": 100, "pytorch-lightning_version": "2.4.0", "state_dict": state, "loops": {}, "callbacks": {}, "optimizer_states": [], "lr_schedulers": []}
    expected = OrderedDict((name.removeprefix("model."), tensor) for name, tensor in state.items() if name.startswith("model."))
    yield Case("unwrap state_dict\nkeep model.**\nstrip! model.", given, expected, ordered=True, given_suffix=".ckpt")


def revise(given, keys):
    """mmengine's `revise_keys`: ordered substitutions over every name."""
    for pattern, replacement in keys:
        given = OrderedDict((re.sub(pattern, replacement, name), tensor) for name, tensor in given.items())
    return given


@convention("revise_keys", "mmengine revise_keys, which is re.sub for each pair in order")
def revise_keys():
    given = OrderedDict((f"module.{name}", tensor) for name, tensor in small_model().state_dict().items())
    yield Case('rename /^module\\./ -> ""', given, revise(given, [(r"^module\.", "")]), ordered=True)
    plan = 'rename /^module\\./ -> backbone.\nrename /bn(\\d+)\\.(weight|bias)/ -> norm$1.$2_'
    yield Case(plan, given, revise(given, [(r"^module\.", "backbone."), (r"bn(\d+)\.(weight|bias)", r"norm\1.\2_")]), ordered=True)
    yield Case(plan.replace("$", "\\"), given, revise(given, [(r"^module\.", "backbone."), (r"bn(\d+)\.(weight|bias)", r"norm\1.\2_")]), ordered=True)
    # Every match of a name is replaced.
    many = randoms({"a.a.a": (1,), "b.a": (1,)})
    yield Case("rename /a/ -> xy", many, revise(many, [("a", "xy")]), ordered=True)


@convention("densenet_names", "torchvision's densenet: its regular expression, and a model that loads the result")
def densenet_names():
    from torchvision.models.densenet import DenseNet

    model = DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=4, num_classes=3)
    expected = model.state_dict()
    # The weights on its server say `norm.1` for `norm1`.
    given = OrderedDict((re.sub(r"^(.*denselayer\d+\.(?:norm|relu|conv))([12]\.)", r"\1.\2", name), tensor) for name, tensor in expected.items())
    yield Case(r"rename /(denselayer\d+\.(?:norm|relu|conv))\.([12])/ -> $1$2", given, expected, ordered=True)
    yield Case("rename **.denselayer{i}.{norm|conv}.{k}.* -> **.denselayer{i}.{norm|conv}{k}.*", given, expected, ordered=True)


@convention("layernorm_names", "transformers: LayerNorm.gamma and beta")
def layernorm_names():
    shapes = {}
    for n in range(2):
        for at in ("attention.output", "output"):
            parts = {"LayerNorm.gamma": (4,), "LayerNorm.beta": (4,), "dense.weight": (4, 4)}
            shapes |= {f"bert.encoder.layer.{n}.{at}.{part}": shape for part, shape in parts.items()}
    given = randoms(shapes)
    rules = [("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")]
    rename = lambda name: name.replace(*rules[0]).replace(*rules[1])
    if importable("transformers.conversion_mapping"):
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        legacy = get_checkpoint_conversion_mapping("legacy")
        for name in given:
            # The first rule that matches renames.
            original = next((out for out, used in (rule.rename_source_key(name) for rule in legacy) if used is not None), name)
            check(f"transformers renames {name}", rename(name), original)
    expected = OrderedDict((rename(name), tensor) for name, tensor in given.items())
    yield Case("replace LayerNorm.gamma=LayerNorm.weight LayerNorm.beta=LayerNorm.bias", given, expected, ordered=True)
    yield Case("rename **.LayerNorm.{gamma|beta} -> **.LayerNorm.{weight|bias}", given, expected, ordered=True)


@convention("weight_norm_names", "torch: what its parametrization loads of weight_g and weight_v")
def weight_norm_names():
    import warnings

    warnings.simplefilter("ignore")
    given = nn.Sequential(nn.utils.weight_norm(nn.Conv1d(3, 4, 2)), nn.ReLU(), nn.utils.weight_norm(nn.Linear(4, 2))).state_dict()
    parametrized = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 4, 2)), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)))
    parametrized.load_state_dict(given)
    yield Case("replace weight_g=parametrizations.weight.original0 weight_v=parametrizations.weight.original1", given, parametrized.state_dict())
    yield Case("rename **.weight_{g|v} -> **.parametrizations.weight.{original0|original1}", given, parametrized.state_dict())


def recorded_c2():
    with open(os.path.join(DATA, "c2_names.json"), encoding="utf-8") as file:
        return json.load(file)


def c2_tensors(entries):
    """Tensors of as many rows as the record was made with, and what each becomes: some rows, under another name."""
    given, expected = OrderedDict(), OrderedDict()
    for source, target, rows, n_rows in entries:
        given[source] = torch.randn(n_rows, 2)
        expected[target] = given[source] if rows is None else given[source][rows]
    return given, expected


C2_CLASSES = "roll cls_score.* 0 -1; slice bbox_pred.* 0 4:"


@convention("c2_table", "detectron2 convert_c2_detectron_names: names and rows recorded, said as a table")
def c2_table():
    for kind, entries in recorded_c2()["converted"].items():
        given, expected = c2_tensors(entries)
        table = "# Caffe2\tdetectron2\n" + "".join(f"{source}\t{target}\n" for source, target, _, _ in entries)
        plan = "map c2.tsv"
        plan += f"\n{C2_CLASSES}" if "cls_score.weight" in expected else ""
        plan += "\nslice mask_head.predictor.* 0 1:" if "mask_head.predictor.weight" in expected else ""
        yield Case(plan, given, expected, files={"c2.tsv": table})


@convention("c2_rules", "detectron2 convert_c2_detectron_names: the same as rules, for a box and mask R-CNN on a feature pyramid")
def c2_rules():
    ends = "/_bn_s$/ -> .norm.weight, /_bn_b$/ -> .norm.bias, /_b$/ -> .bias, /_w$/ -> .weight"
    words = "_=. .branch1.=.shortcut. conv1.=stem.conv1. res.stem.conv1.norm.=stem.conv1.norm. .branch2a.=.conv1. .branch2b.=.conv2. .branch2c.=.conv3."
    rpn = "proposal_generator.rpn_head"
    heads = f"conv.rpn.fpn2={rpn}.conv rpn.bbox.pred.fpn2={rpn}.anchor_deltas rpn.cls.logits.fpn2={rpn}.objectness_logits"
    box = "bbox.pred=bbox_pred cls.score=cls_score fc6.=box_head.fc1. fc7.=box_head.fc2."
    mask = ".[mask].fcn=mask_head.mask_fcn mask.fcn.logits=mask_head.predictor conv5.mask=mask_head.deconv"
    pyramid = "rename /fpn\\.inner\\.res(\\d)\\.\\d+\\.sum(\\.lateral)?/ -> fpn_lateral$1, /fpn\\.res(\\d)\\.\\d+\\.sum/ -> fpn_output$1"
    plan = f"rename {ends}; replace {words}\nreplace {heads} {mask}\nreplace {box}; {pyramid}"
    given, expected = c2_tensors([(source, target, None, n) for source, target, _, n in recorded_c2()["converted"]["mask_rcnn_R_50_FPN"]])
    yield Case(plan, given, expected)


@convention("c2_align", "detectron2 align_and_update_state_dicts: the longest suffix")
def c2_align():
    for kind, record in recorded_c2()["aligned"].items():
        names = record["unused"] + [source for _, source in reversed(record["model"]) if source]
        given = OrderedDict((name, torch.randn(2, 2)) for name in names)
        target = OrderedDict((name, torch.zeros(2, 2)) for name, _ in record["model"])
        expected = {name: given[source] for name, source in record["model"] if source}
        plan = "align like target.pth by suffix"
        if record["unused"]:
            plan = f"drop {' '.join(record['unused'])}\n{plan}"
        yield Case(plan, given, expected, files={"target.pth": target})
        # What the model has besides stays as it is there.
        whole = OrderedDict((name, expected.get(name, tensor)) for name, tensor in target.items())
        yield Case(f"{plan}\nload like target.pth strict=false", given, whole, ordered=True, files={"target.pth": target})
