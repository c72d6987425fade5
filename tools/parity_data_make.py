"""Records what two functions do that no package index carries, as names and row numbers only: writes `parity_data/`.

    python tools/parity_data_make.py FOLDER

FOLDER has `c2_model_loading.py` of detectron2 0.5 (Apache-2.0) and `checkpoint_utils.py` of fairseq 0.12.2 (MIT); neither is copied here.
"""

import ast
import contextlib
import json
import logging
import pathlib
import re
import sys
import types

import torch

HERE = pathlib.Path(__file__).resolve().parent / "parity_data"


def functions_of(path, names, **globals_):
    """The functions called `names` of a module that cannot be imported whole."""
    tree = ast.parse(path.read_text())
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and (not names or node.name in names)]
    space = dict(globals_)
    for node in found:
        # Annotations name classes that are not here.
        for each in ast.walk(node):
            if isinstance(each, ast.arg):
                each.annotation = None
            if isinstance(each, ast.FunctionDef):
                each.returns = None
    exec(compile(ast.Module(found, []), str(path), "exec"), space)
    return types.SimpleNamespace(**{node.name: space[node.name] for node in found})


def resnet_c2():
    names = ["conv1_w", "res_conv1_bn_s", "res_conv1_bn_b"]
    for stage, n_blocks in zip((2, 3, 4, 5), (3, 4, 6, 3)):
        for block in range(n_blocks):
            for branch in (["branch1"] if block == 0 else []) + ["branch2a", "branch2b", "branch2c"]:
                names += [f"res{stage}_{block}_{branch}_{end}" for end in ("w", "bn_s", "bn_b")]
    return names


def pyramid():
    last = {2: 2, 3: 3, 4: 5, 5: 2}
    names = [f"fpn_inner_res{s}_{n}_sum{'' if s == 5 else '_lateral'}_{end}" for s, n in last.items() for end in "wb"]
    return names + [f"fpn_res{s}_{n}_sum_{end}" for s, n in last.items() for end in "wb"]


def both(*stems):
    return [f"{stem}_{end}" for stem in stems for end in "wb"]


def c2_names():
    rpn = both("conv_rpn_fpn2", "rpn_bbox_pred_fpn2", "rpn_cls_logits_fpn2")
    box = both("fc6", "fc7", "cls_score", "bbox_pred")
    mask = both("_[mask]_fcn1", "_[mask]_fcn2", "_[mask]_fcn3", "_[mask]_fcn4", "conv5_mask", "mask_fcn_logits")
    points = both(*[f"conv_fcn{n}" for n in range(1, 9)], "kps_score_lowres", "kps_score")
    stem = resnet_c2()[:15]
    moments = [name.replace("_bn_s", f"_bn_{end}") for name in stem if name.endswith("_bn_s") for end in ("rm", "riv")]
    group_norm = [f"head_conv{n}_{end}" for n in range(1, 5) for end in ("w", "gn_s", "gn_b")]
    grouped = both("conv_rpn", "rpn_bbox_pred", "rpn_cls_logits", "cls_score", "bbox_pred", "conv5_mask", "mask_fcn_logits")
    return {
        "imagenet_R_50": resnet_c2() + both("pred"), "moments": stem + moments, "mask_rcnn_R_50_FPN": resnet_c2() + pyramid() + rpn + box + mask,
        "keypoints": stem + points, "mask_rcnn_C4": stem + grouped, "box_head_GN": stem + group_norm + both("fc6", "cls_score", "bbox_pred"),
    }


def detectron2_names(converted):
    """The names of the module that detectron2 builds for such weights, and its buffers that no checkpoint has."""
    names = []
    for name in converted:
        top = "backbone." if name.startswith("fpn_") else "backbone.bottom_up." if re.match(r"stem\.|res\d\.", name) else ""
        top = "roi_heads." if name.startswith(("box_head.", "mask_head.")) else "roi_heads.box_predictor." if name.startswith(("cls_score.", "bbox_pred.")) else top
        if not name.startswith("fc1000") and not name.startswith("linear"):
            names.append(top + name)
    norms = [name.removesuffix(".weight") for name in names if name.endswith(".norm.weight")]
    names += [f"{norm}.{part}" for norm in norms for part in ("running_mean", "running_var") if f"{norm}.{part}" not in names]
    return ["pixel_mean", *names, "proposal_generator.anchor_generator.cell_anchors.0"]


def record_c2(path):
    quiet = types.SimpleNamespace(getLogger=lambda name: types.SimpleNamespace(info=lambda *_: None, warning=lambda *_: None, error=lambda *_: None))
    import copy

    original = functions_of(path, [], torch=torch, re=re, copy=copy, logging=quiet, tabulate=lambda *_, **__: "")
    record = {"converted": {}, "aligned": {}}
    for kind, names in c2_names().items():
        n_rows = {name: 20 if name.startswith("bbox_pred") else 5 for name in names}
        new, sources = original.convert_c2_detectron_names({name: torch.arange(n_rows[name]) for name in names})
        entries = []
        for target, rows in new.items():
            n = n_rows[sources[target]]
            rows = rows.tolist()
            entries.append([sources[target], target, None if rows == list(range(n)) else rows, n])
        record["converted"][kind] = sorted(entries, key=lambda entry: names.index(entry[0]))
    checkpoints = {kind: [entry[1] for entry in record["converted"][kind]] for kind in ("mask_rcnn_R_50_FPN", "imagenet_R_50")}
    models = {kind: detectron2_names(names) for kind, names in checkpoints.items()}
    # Where a name and its suffix are both there, the longer one is meant; and a suffix begins behind a dot.
    checkpoints["longest"] = ["conv1.weight", "res2.conv1.weight", "head.bias", "weight"]
    models["longest"] = ["body.conv1.weight", "body.res2.conv1.weight", "net.head.bias", "net.whead.bias", "other.weight"]
    for kind, names in checkpoints.items():
        # A number of its own for each name tells who has matched whom.
        given = {name: torch.tensor([float(n)]) for n, name in enumerate(names)}
        model = {name: torch.tensor([-1.0]) for name in models[kind]}
        loaded = original.align_and_update_state_dicts(model, given, c2_conversion=False)
        matched = [[name, names[int(loaded[name])] if name in loaded else None] for name in model]
        used = {source for _, source in matched}
        record["aligned"][kind] = {"model": matched, "unused": [name for name in names if name not in used]}
    return record


def record_fairseq(path):
    class Config(types.SimpleNamespace):
        """Stands for omegaconf's, which the function asks for its kind only."""

    space = {"re": re, "contextlib": contextlib, "logger": logging.getLogger("none"), "DictConfig": Config, "open_dict": lambda config: contextlib.nullcontext()}
    original = functions_of(path, ["prune_state_dict"], **space)
    parts = ["self_attn.k_proj.weight", "self_attn.k_proj.bias", "fc1.weight", "final_layer_norm.weight"]
    names = ["encoder.version", "encoder.embed_tokens.weight"] + [f"encoder.layers.{n}.{part}" for n in range(12) for part in parts] + ["encoder.layer_norm.weight"]
    names += ["decoder.embed_tokens.weight"] + [f"decoder.layers.{n}.{part}" for n in range(6) for part in [*parts, "encoder_attn.q_proj.weight"]] + ["decoder.output_projection.weight"]
    language = [f"decoder.layers.{n}.{part}" for n in range(12) for part in parts] + ["decoder.embed_positions.weight"]
    sentence = ["encoder.sentence_encoder.embed_tokens.weight"] + [f"encoder.sentence_encoder.layers.{n}.{part}" for n in range(12) for part in parts] + ["encoder.lm_head.bias"]
    cases = []
    for given, prefixes, encoder, decoder in [
        (names, ("encoder.layers", "decoder.layers"), "0,2,4,6,8,10", "0,3,5"), (names, ("encoder.layers", "decoder.layers"), "11,1", "0,1,2,3,4,5"),
        (language, (None, "decoder.layers"), None, "0,2,4"), (sentence, ("encoder.sentence_encoder.layers", None), "0,2,4", None),
    ]:
        config = Config(_name="transformer", encoder_layers_to_keep=encoder, decoder_layers_to_keep=decoder)
        result = original.prune_state_dict({name: name for name in given}, config)
        # Our verb keeps the layers in the order given; the original sorts them.
        keep = {prefix: ",".join(map(str, sorted(map(int, layers.split(","))))) for prefix, layers in zip(prefixes, (encoder, decoder)) if layers}
        cases.append({"names": given, "keep": keep, "result": result})
    return {"cases": cases}


def main(folder):
    HERE.mkdir(exist_ok=True)
    for name, record in [("c2_names.json", record_c2(folder / "c2_model_loading.py")), ("fairseq_prune.json", record_fairseq(folder / "checkpoint_utils.py"))]:
        (HERE / name).write_text(lines(record) + "\n")


def lines(value, indent=0):
    """JSON with a line for each entry of a dict and for each list in a list; other lists in one line."""
    pad = " " * (indent + 1)
    if isinstance(value, dict) and value:
        inner = [f"{pad}{json.dumps(key)}: {lines(each, indent + 1)}" for key, each in value.items()]
        return "{\n" + ",\n".join(inner) + "\n" + " " * indent + "}"
    if isinstance(value, list) and value and isinstance(value[0], (list, dict)):
        return "[\n" + ",\n".join(pad + lines(each, indent + 1) for each in value) + "\n" + " " * indent + "]"
    return json.dumps(value)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
