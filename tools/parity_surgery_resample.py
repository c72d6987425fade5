"""What changes size by interpolation: position embeddings, patch kernels, tables of relative positions."""

import contextlib

import torch

from parity_surgery_common import Case, convention, randoms


@convention("pos_embed", "timm resample_abs_pos_embed", needs=("timm",))
def pos_embed():
    from timm.layers import resample_abs_pos_embed

    half = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
    variants = [
        # old grid, new grid, prefix tokens, type
        ((14, 14), (24, 24), 1, torch.float32), ((24, 24), (14, 14), 1, torch.float32), ((14, 14), (16, 10), 1, torch.float32),
        ((7, 7), (14, 14), 0, torch.float32), ((16, 16), (12, 12), 5, torch.float32), ((12, 16), (9, 20), 1, torch.float32),
        ((14, 14), (18, 18), 1, torch.float16), ((8, 8), (5, 5), 2, torch.bfloat16), ((3, 3), (17, 2), 0, torch.float32),
    ]
    for old, new, prefix, dtype in variants:
        given = randoms({"pos_embed": (1, old[0] * old[1] + prefix, 12), "norm.weight": (12,)}, dtype)
        expected = dict(given) | {"pos_embed": resample_abs_pos_embed(given["pos_embed"], new, old, prefix)}
        plan = f"pos_embed pos_embed to={new[0]}x{new[1]} prefix={prefix}"
        plan += "" if old[0] == old[1] else f" from={old[0]}x{old[1]}"
        yield Case(plan, given, expected, near={"pos_embed": half[dtype]})
    given = randoms({"pos_embed": (1, 197, 12)})
    for mode, antialias in [("bilinear", True), ("bilinear", False), ("bicubic", False)]:
        for new in [(20, 20), (9, 9)]:
            expected = {"pos_embed": resample_abs_pos_embed(given["pos_embed"], new, None, 1, mode, antialias)}
            yield Case(f"pos_embed pos_embed to={new[0]}x{new[1]} prefix=1 mode={mode} antialias={str(antialias).lower()}", given, expected, near={"pos_embed": 1e-5})
    # The grid is there already.
    yield Case("pos_embed pos_embed to=14x14 prefix=1", given, {"pos_embed": resample_abs_pos_embed(given["pos_embed"], (14, 14), None, 1)})


@convention("patch_embed", "timm resample_patch_embed", needs=("timm",))
def patch_embed():
    from timm.layers import resample_patch_embed

    for old, new, dtype, tolerance in [
        (16, 14, torch.float32, 1e-5), (16, 8, torch.float32, 1e-5), (8, 16, torch.float32, 1e-5),
        (14, 16, torch.float32, 1e-5), (32, 16, torch.float32, 1e-5), (16, 14, torch.float16, 1e-3),
    ]:
        given = randoms({"patch_embed.proj.weight": (6, 3, old, old), "patch_embed.proj.bias": (6,)}, dtype)
        expected = dict(given) | {"patch_embed.proj.weight": resample_patch_embed(given["patch_embed.proj.weight"], [new, new])}
        yield Case(f"patch_embed patch_embed.proj.weight to={new}x{new}", given, expected, near={"patch_embed.proj.weight": tolerance})
    given = randoms({"patch_embed.proj.weight": (6, 3 * 16 * 16)})
    square = given["patch_embed.proj.weight"].reshape(6, 3, 16, 16)
    plan = "reshape patch_embed.proj.weight 6,3,16,16\npatch_embed patch_embed.proj.weight to=12x10"
    yield Case(plan, given, {"patch_embed.proj.weight": resample_patch_embed(square, [12, 10])}, near={"patch_embed.proj.weight": 1e-5})


@contextlib.contextmanager
def with_interp2d():
    """SciPy took `interp2d` away in 1.14, and timm falls back to linear; this is the replacement that SciPy's guide of the transition names."""
    from scipy import interpolate
    from timm.layers import pos_embed_rel

    def interp2d(x, y, z, kind):
        assert kind == "cubic"
        spline = interpolate.RectBivariateSpline(x, y, z.T)
        return lambda to_x, to_y: spline(to_x, to_y).T

    old = getattr(interpolate, "interp2d", None), pos_embed_rel._USE_SCIPY
    interpolate.interp2d, pos_embed_rel._USE_SCIPY = interp2d, True
    try:
        yield
    finally:
        interpolate.interp2d, pos_embed_rel._USE_SCIPY = old


@convention("relpos", "timm resize_rel_pos_bias_table_simple, resize_rel_pos_bias_table_levit", needs=("timm",))
def relpos():
    from timm.layers import resize_rel_pos_bias_table_levit, resize_rel_pos_bias_table_simple

    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    for old, new, extra in [(7, 8, 0), (7, 12, 0), (12, 7, 0), (14, 24, 3)]:
        size = 2 * new - 1
        given = randoms({name: ((2 * old - 1) ** 2 + extra, 4), "norm.weight": (4,)})
        expected = dict(given) | {name: resize_rel_pos_bias_table_simple(given[name], (new, new), (size * size + extra, 4))}
        yield Case(f"relpos **.relative_position_bias_table to={new}x{new}" + (f" extra={extra}" if extra else ""), given, expected, near={name: 1e-5})
    given = randoms({"rel_pos.relative_position_bias_table": (4, 13, 13)})
    expected = {"rel_pos.relative_position_bias_table": resize_rel_pos_bias_table_simple(given["rel_pos.relative_position_bias_table"], (8, 8), (4, 15, 15))}
    yield Case("relpos **.relative_position_bias_table to=8x8", given, expected, near={"*": 1e-5})
    given = randoms({"attn.attention_biases": (49, 4)})
    expected = {"attn.attention_biases": resize_rel_pos_bias_table_levit(given["attn.attention_biases"].T.contiguous().T, (100, 4))}
    # LeViT's table is a square of positions and not of distances.
    plan = "unsqueeze **.attention_biases dim=0\npos_embed **.attention_biases to=10x10 prefix=0\nsqueeze **.attention_biases dim=0"
    yield Case(plan, given, expected, near={"*": 1e-5})


def beit_tables(resize, mode):
    name = "blocks.0.attn.relative_position_bias_table"
    for old, new, extra in [(14, 24, 3), (14, 16, 3), (7, 12, 0), (7, 8, 0)]:
        given = randoms({name: ((2 * old - 1) ** 2 + extra, 4)})
        expected = {name: resize(given[name], (new, new), ((2 * new - 1) ** 2 + extra, 4))}
        yield Case(f"relpos **.relative_position_bias_table to={new}x{new} mode={mode}" + (f" extra={extra}" if extra else ""), given, expected, near={name: 1e-5})
    given = randoms({name: (4, 13, 13)})
    yield Case(f"relpos **.relative_position_bias_table to=8x8 mode={mode}", given, {name: resize(given[name], (8, 8), (4, 15, 15))}, near={name: 1e-5})


@convention("relpos_beit", "timm resize_rel_pos_bias_table: geometric distances, linear between them as timm does without SciPy's interp2d", needs=("timm",))
def relpos_beit():
    from timm.layers import pos_embed_rel

    pos_embed_rel._USE_SCIPY = False
    yield from beit_tables(pos_embed_rel.resize_rel_pos_bias_table, "beit")


@convention("relpos_beit_cubic", "timm resize_rel_pos_bias_table: geometric distances and SciPy's cubic splines, as BEiT's own script", needs=("timm", "scipy"))
def relpos_beit_cubic():
    from timm.layers import pos_embed_rel

    with with_interp2d():
        yield from beit_tables(pos_embed_rel.resize_rel_pos_bias_table, "beit-cubic")


@convention("interp", "torch interpolate along one axis, as LaBraM's time embedding")
def interp():
    given = randoms({"time_embed": (1, 16, 8)})
    for mode, torch_mode in [("linear", "linear"), ("nearest", "nearest")]:
        expected = torch.nn.functional.interpolate(given["time_embed"].transpose(1, 2), size=40, mode=torch_mode).transpose(1, 2)
        yield Case(f"interp time_embed axis=1 n=40 mode={mode}", given, {"time_embed": expected}, near={"time_embed": 1e-6} if mode == "linear" else {})
    expected = torch.nn.functional.interpolate(given["time_embed"].transpose(1, 2)[:, :, None], size=(1, 40), mode="bicubic").squeeze(2).transpose(1, 2)
    yield Case("interp time_embed axis=1 n=40 mode=cubic", given, {"time_embed": expected}, near={"time_embed": 1e-5})
