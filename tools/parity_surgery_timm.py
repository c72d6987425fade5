"""What timm's checkpoint filters do: first convolutions, classifiers, and CLIP, DINOv2, BEiT-3, I-JEPA, OpenCLIP and plain containers to its names."""

from collections import OrderedDict

import torch

from parity_surgery_common import Case, convention, randoms


def conv_stem(dtype=torch.float32, channels=3, kernel=7):
    return randoms({"conv1.weight": (8, channels, kernel, kernel), "bn1.weight": (8,), "bn1.bias": (8,)}, dtype)


@convention("in_chans", "timm adapt_input_conv", needs=("timm",))
def in_chans():
    from timm.models import adapt_input_conv

    for channels, dtype in [(1, torch.float32), (4, torch.float32), (6, torch.float32), (2, torch.float32), (5, torch.float16), (1, torch.float16), (8, torch.bfloat16)]:
        given = conv_stem(dtype)
        expected = dict(given) | {"conv1.weight": adapt_input_conv(channels, given["conv1.weight"])}
        # A half result may round to either neighbour where the sums differ in their order.
        tolerance = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}[dtype]
        yield Case(f"in_chans conv1.weight {channels}", given, expected, near={"conv1.weight": tolerance})
    given = conv_stem(channels=12, kernel=3)
    expected = dict(given) | {"conv1.weight": adapt_input_conv(1, given["conv1.weight"])}
    yield Case("in_chans conv1.weight 1", given, expected, near={"conv1.weight": 1e-6})
    given = conv_stem()
    yield Case("in_chans conv1.weight 3", given, given)


@convention("in_chans_modes", "a mean over RGB for each channel; zeros for channels that are new")
def in_chans_modes():
    given = conv_stem()
    weight = given["conv1.weight"]
    mean = weight.mean(1, keepdim=True).repeat(1, 5, 1, 1)
    yield Case("in_chans conv1.weight 5 mode=mean", given, dict(given) | {"conv1.weight": mean}, near={"conv1.weight": 1e-6})
    zero = torch.cat([weight, torch.zeros(8, 2, 7, 7)], 1)
    yield Case("in_chans conv1.weight 5 mode=zero", given, dict(given) | {"conv1.weight": zero})


@convention("timm_load_pretrained", "timm load_pretrained: label_offset and in_chans", needs=("timm",))
def load_pretrained():
    import timm
    from timm.models import load_pretrained as load

    for kind, n_in in [("resnet10t", 1), ("resnet10t", 4)]:
        source = timm.create_model(kind, num_classes=11)
        target = timm.create_model(kind, num_classes=10, in_chans=n_in)
        given = source.state_dict()
        config = {"state_dict": OrderedDict(given), "first_conv": "conv1.0", "classifier": "fc", "label_offset": 1, "num_classes": 10}
        config["input_size"] = (3, 224, 224)
        load(target, pretrained_cfg=config, num_classes=10, in_chans=n_in)
        plan = f"slice fc.* 0 1:\nin_chans conv1.0.weight {n_in}"
        yield Case(plan, given, target.state_dict(), near={"conv1.0.weight": 1e-6}, ordered=True)


@convention("timm_containers", "timm load_state_dict and clean_state_dict", needs=("timm",))
def containers():
    import os
    import tempfile

    from timm.models import load_state_dict

    shapes = {"conv.weight": (4, 3, 3, 3), "fc.weight": (2, 4), "fc.bias": (2,)}
    for keys, prefix in [
        (["state_dict_ema", "state_dict"], "module."), (["model_ema", "model"], "_orig_mod."), (["state_dict"], "module._orig_mod."),
        (["model"], "_orig_mod.module."), (["model"], ""),
    ]:
        given = {key: OrderedDict((prefix + name, tensor) for name, tensor in randoms(shapes).items()) for key in reversed(keys)}
        given |= {"epoch": 3, "optimizer": {"state": {}, "param_groups": []}}
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "checkpoint.pth")
            torch.save(given, path)
            expected = load_state_dict(path)
        unwrap = "unwrap state_dict_ema|model_ema|state_dict|model"
        plan = f"{unwrap}\nstrip? _orig_mod. module. _orig_mod."
        yield Case(plan, given, expected, ordered=True)


def transformer_block(prefix, width, norms=("ln_1", "ln_2"), fused=True):
    """One block under CLIP's names."""
    return {
        f"{prefix}attn.in_proj_weight": (3 * width, width), f"{prefix}attn.in_proj_bias": (3 * width,),
        f"{prefix}attn.out_proj.weight": (width, width), f"{prefix}attn.out_proj.bias": (width,),
        f"{prefix}{norms[0]}.weight": (width,), f"{prefix}{norms[0]}.bias": (width,),
        f"{prefix}mlp.c_fc.weight": (4 * width, width), f"{prefix}mlp.c_fc.bias": (4 * width,),
        f"{prefix}mlp.c_proj.weight": (width, 4 * width), f"{prefix}mlp.c_proj.bias": (width,),
        f"{prefix}{norms[1]}.weight": (width,), f"{prefix}{norms[1]}.bias": (width,),
    }


def clip_names(width=32, text=16, out=24, n_blocks=3, grid=7):
    shapes = {"positional_embedding": (77, text), "text_projection": (text, out), "logit_scale": ()}
    shapes |= {"visual.class_embedding": (width,), "visual.positional_embedding": (grid * grid + 1, width), "visual.proj": (width, out), "visual.conv1.weight": (width, 3, 32, 32)}
    shapes |= {f"visual.{norm}.{part}": (width,) for norm in ("ln_pre", "ln_post") for part in ("weight", "bias")}
    for n in range(n_blocks):
        shapes |= transformer_block(f"visual.transformer.resblocks.{n}.", width)
        shapes |= transformer_block(f"transformer.resblocks.{n}.", text)
    return shapes | {"token_embedding.weight": (100, text), "ln_final.weight": (text,), "ln_final.bias": (text,)}


@convention("clip_to_timm", "timm checkpoint_filter_fn, _convert_openai_clip", needs=("timm",))
def clip_to_timm():
    from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

    swaps = "conv1=patch_embed.proj positional_embedding=pos_embed transformer.resblocks.=blocks. ln_pre=norm_pre ln_post=norm ln_=norm"
    swaps += " in_proj_=qkv. out_proj=proj mlp.c_fc=mlp.fc1 mlp.c_proj=mlp.fc2"
    plan = f"keep visual.**; strip visual.; replace {swaps}\n"
    plan += "rename proj -> head.weight, class_embedding -> cls_token; t head.weight; zeros head.bias 24 dtype=f32\n"
    plan += "reshape cls_token 1,1,-1; unsqueeze pos_embed dim=0"
    for dtype in (torch.float32, torch.float16):
        given = randoms(clip_names(), dtype)
        model = VisionTransformer(img_size=224, patch_size=32, embed_dim=32, depth=3, num_heads=2, num_classes=24, pre_norm=True)
        expected = checkpoint_filter_fn(OrderedDict(given), model)
        model.load_state_dict(expected)
        yield Case(plan, given, expected)
    given = OrderedDict(("module." + name, tensor) for name, tensor in given.items())
    yield Case(plan.replace("keep visual.**; strip visual.", "keep module.visual.**; strip module.visual."), given, expected)


def dinov2_names(width=32, n_registers=4, grid=4, patch=14, is_swiglu=False):
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, grid * grid + 1, width), "mask_token": (1, width)}
    shapes |= {"register_tokens": (1, n_registers, width)} if n_registers else {}
    shapes |= {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    for n in range(3):
        names = {f"{norm}.{part}": (width,) for norm in ("norm1", "norm2") for part in ("weight", "bias")} | {"ls1.gamma": (width,)}
        names |= {"attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,), "attn.proj.weight": (width, width), "attn.proj.bias": (width,)}
        if is_swiglu:
            names |= {"mlp.w12.weight": (4 * width, width), "mlp.w12.bias": (4 * width,), "mlp.w3.weight": (width, 2 * width), "mlp.w3.bias": (width,)}
        else:
            names |= {"mlp.fc1.weight": (4 * width, width), "mlp.fc1.bias": (4 * width,), "mlp.fc2.weight": (width, 4 * width), "mlp.fc2.bias": (width,)}
        shapes |= {f"blocks.{n}.{name}": shape for name, shape in names.items()} | {f"blocks.{n}.ls2.gamma": (width,)}
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}


@convention("dinov2_registers", "timm checkpoint_filter_fn, _convert_dinov2", needs=("timm",))
def dinov2_registers():
    from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

    swiglu = "; rename blocks.{i}.mlp.w12.* -> blocks.{i}.mlp.fc1.*, blocks.{i}.mlp.w3.* -> blocks.{i}.mlp.fc2.*"
    for is_swiglu in (False, True):
        given = randoms(dinov2_names(is_swiglu=is_swiglu))
        sizes = {"img_size": 56, "patch_size": 14, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 0, "init_values": 1e-5}
        model = VisionTransformer(reg_tokens=4, no_embed_class=True, **sizes)
        expected = checkpoint_filter_fn(OrderedDict(given), model)
        plan = f"drop mask_token; rename register_tokens -> reg_token{swiglu if is_swiglu else ''}\nlet cls_token = cls_token + pos_embed[:,0:1]\nslice pos_embed 1 1:"
        yield Case(plan, given, expected)
    given = randoms(dinov2_names(n_registers=0))
    model = VisionTransformer(**sizes)
    yield Case("drop mask_token", given, checkpoint_filter_fn(OrderedDict(given), model), ordered=True)


def beit3_names(width=32, grid=4, patch=8):
    shapes = {"beit3.text_embed.weight": (50, width), "beit3.vision_embed.mask_token": (1, 1, width), "beit3.vision_embed.cls_token": (1, 1, width)}
    shapes |= {"beit3.vision_embed.proj.weight": (width, 3, patch, patch), "beit3.vision_embed.proj.bias": (width,)}
    shapes |= {"beit3.encoder.embed_positions.A.weight": (grid * grid + 3, width), "beit3.encoder.embed_positions.B.weight": (20, width)}
    for n in range(2):
        for branch in "AB":
            at = f"beit3.encoder.layers.{n}"
            modules = {f"self_attn.{p}_proj.{branch}": (width, width) for p in "kvq"} | {f"self_attn.out_proj.{branch}": (width, width), f"self_attn.inner_attn_ln.{branch}": (width,)}
            modules |= {f"ffn.{branch}.fc1": (4 * width, width), f"ffn.{branch}.fc2": (width, 4 * width), f"ffn.{branch}.ffn_layernorm": (4 * width,)}
            modules |= {f"self_attn_layer_norm.{branch}": (width,), f"final_layer_norm.{branch}": (width,)}
            for name, shape in modules.items():
                shapes |= {f"{at}.{name}.weight": shape, f"{at}.{name}.bias": shape[:1]}
    return shapes | {f"beit3.encoder.layer_norm.{branch}.{part}": (width,) for branch in "AB" for part in ("weight", "bias")}


@convention("beit3_to_timm", "timm _convert_beit3", needs=("timm",))
def beit3_to_timm():
    from timm.models.vision_transformer import _convert_beit3

    rules = "beit3.= vision_embed.cls_token=cls_token vision_embed.=patch_embed. embed_positions.=pos_embed. encoder.= layers.=blocks. ffn_layernorm.=norm. ffn.=mlp."
    more = "self_attn_layer_norm.=norm1. self_attn.=attn. final_layer_norm.=norm2. inner_attn_ln=norm out_proj=proj .A.=."
    plan = f"drop beit3.text_embed.weight **.mask_token **.B.**; replace {rules}\n"
    plan += f"replace {more}; slice pos_embed.weight 0 2:\nrename pos_embed.weight -> pos_embed; unsqueeze pos_embed dim=0; cat 0 **.{{q|k|v}}_proj.* -> **.qkv.*"
    state = randoms(beit3_names())
    expected = _convert_beit3(OrderedDict(state), None)
    yield Case(plan, state, expected)
    yield Case("unwrap model; " + plan, {"model": state}, expected)


@convention("ijepa_to_timm", "timm checkpoint_filter_fn, encoder", needs=("timm",))
def ijepa_to_timm():
    from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0, class_token=False, global_pool="avg", fc_norm=False)
    encoder = OrderedDict(("module." + name, torch.randn_like(tensor)) for name, tensor in model.state_dict().items())
    predictor = OrderedDict(("module." + name, torch.randn_like(tensor)) for name, tensor in model.state_dict().items() if name.startswith("blocks"))
    given = {"encoder": encoder, "predictor": predictor, "target_encoder": encoder, "opt": {"state": {}, "param_groups": []}, "epoch": 300, "loss": 0.1}
    expected = checkpoint_filter_fn(dict(given), model)
    model.load_state_dict(expected)
    yield Case("unwrap encoder\nstrip! module.", given, expected, ordered=True)


@convention("openclip_to_timm", "timm checkpoint_filter_fn, visual.trunk", needs=("timm",))
def openclip_to_timm():
    from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=24)
    given = OrderedDict(("visual.trunk." + name, torch.randn_like(tensor)) for name, tensor in model.state_dict().items() if not name.startswith("head."))
    given |= randoms({"visual.head.proj.weight": (24, 32), "text.ln_final.weight": (8,), "logit_scale": ()})
    expected = checkpoint_filter_fn(OrderedDict(given), model)
    model.load_state_dict(expected)
    yield Case("keep visual.**\nrename visual.trunk.** -> **, visual.head.proj.weight -> head.weight\nzeros head.bias 24", given, expected)


@convention("timm_remap", "timm remap_state_dict", needs=("timm",))
def remap():
    from timm.models._helpers import remap_state_dict

    model = torch.nn.Sequential(OrderedDict(stem=torch.nn.Conv2d(3, 4, 1), norm=torch.nn.BatchNorm2d(4), head=torch.nn.Linear(4, 2)))
    shapes = {"first.kernel": (4, 3), "first.b": (4,), "bn.gamma": (4,), "bn.beta": (4,), "bn.mean": (4,), "bn.var": (4,)}
    given = randoms(shapes) | {"bn.count": torch.tensor(5)} | randoms({"last.w": (2, 4), "last.b": (2,)})
    yield Case("reshape first.kernel 4,3,1,1\nalign like target.pth by order", given, remap_state_dict(given, model), ordered=True, files={"target.pth": model.state_dict()})
