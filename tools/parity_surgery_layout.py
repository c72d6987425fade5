"""What moves values without computing: fused attention, stacked experts, rotary halves, transposed kernels.

The expected values are plain torch expressions, each of them compared with the original of transformers where that is installed.
"""

from collections import OrderedDict
from types import SimpleNamespace

import torch

from parity_common import check
from parity_surgery_common import Case, convention, importable, randoms

HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 24, 4, 2, 6


def agrees(label, made, original):
    check(f"{label}: as the original", torch.equal(made, original), True)


def attention(n_layers=2, kv_heads=HEADS, order="kvq", has_bias=True):
    shapes = {}
    for n in range(n_layers):
        for part in order:
            rows = (HEADS if part == "q" else kv_heads) * HEAD_DIM
            shapes[f"layers.{n}.attn.{part}_proj.weight"] = (rows, HIDDEN)
            shapes |= {f"layers.{n}.attn.{part}_proj.bias": (rows,)} if has_bias else {}
        shapes[f"layers.{n}.attn.o_proj.weight"] = (HIDDEN, HEADS * HEAD_DIM)
    return randoms(shapes)


def fused(given, join, name):
    """The state dict with the parts q, k, v of each layer joined under `name`."""
    out = OrderedDict()
    for key, tensor in given.items():
        if ".q_proj." in key:
            out[key.replace("q_proj", name)] = join(*(given[key.replace("q_proj", f"{part}_proj")] for part in "qkv"))
        elif ".k_proj." not in key and ".v_proj." not in key:
            out[key] = tensor
    return out


def has_transformers(module="core_model_loading"):
    return importable("transformers") and importable(f"transformers.{module}")


@convention("qkv_blocks", "transformers Concatenate and Chunk: [q; k; v]")
def qkv_blocks():
    join = lambda *parts: torch.cat(parts, 0)
    given = attention()
    expected = fused(given, join, "qkv_proj")
    if has_transformers():
        from transformers.core_model_loading import Chunk, Concatenate

        parts = {f"{part}_proj": given[f"layers.0.attn.{part}_proj.weight"] for part in "qkv"}
        whole = Concatenate(0).convert(dict(parts), list(parts), ["qkv_proj"])["qkv_proj"]
        agrees("Concatenate", expected["layers.0.attn.qkv_proj.weight"], whole)
        for name, chunk in Chunk(0).convert({"qkv_proj": whole}, ["qkv_proj"], list(parts)).items():
            agrees(f"Chunk {name}", chunk, parts[name])
    yield Case("cat 0 **.{q|k|v}_proj.* -> **.qkv_proj.*", given, expected)
    yield Case("split 0 **.qkv_proj.* -> **.{q|k|v}_proj.*", expected, given)
    grouped = attention(kv_heads=KV_HEADS)
    together = fused(grouped, join, "qkv_proj")
    sizes = f"{HEADS * HEAD_DIM},{KV_HEADS * HEAD_DIM},{KV_HEADS * HEAD_DIM}"
    yield Case("cat 0 **.{q|k|v}_proj.* -> **.qkv_proj.*", grouped, together)
    yield Case(f"split 0 **.qkv_proj.* -> **.{{q|k|v}}_proj.* sizes={sizes}", together, grouped)


@convention("qkv_mha", "torch MultiheadAttention: in_proj_weight")
def qkv_mha():
    given = torch.nn.MultiheadAttention(HEADS * HEAD_DIM, HEADS).state_dict()
    expected = {name: tensor for name, tensor in given.items() if "in_proj" not in name}
    for kind in ("weight", "bias"):
        expected |= {f"{part}_proj.{kind}": chunk for part, chunk in zip("qkv", given[f"in_proj_{kind}"].chunk(3))}
    yield Case("split 0 in_proj_* -> {q|k|v}_proj.*", given, expected)
    yield Case("cat 0 {q|k|v}_proj.* -> in_proj_*", expected, given)


def per_head(n_heads):
    """q, k and v of one head beside each other, head by head; with grouped queries, of one group."""

    def join(*parts):
        return torch.cat([part.reshape(n_heads, -1, *part.shape[1:]) for part in parts], 1).reshape(-1, *parts[0].shape[1:])

    return join


def falcon(**options):
    """Splits the rows of a fused weight as Falcon's attention splits its activations, which GPT-NeoX and BLOOM do alike."""
    from transformers.models.falcon.modeling_falcon import FalconAttention

    module = SimpleNamespace(num_heads=HEADS, head_dim=HEAD_DIM, multi_query=False, new_decoder_architecture=False, num_kv_heads=HEADS)
    module.__dict__.update(options)
    # One "token" for each column.
    return lambda weight: FalconAttention._split_heads(module, weight.t().contiguous()[None])


@convention("qkv_interleaved", "transformers FalconAttention._split_heads: per head, as GPT-NeoX and BLOOM")
def qkv_interleaved():
    given = attention()
    expected = fused(given, per_head(HEADS), "query_key_value")
    if has_transformers("models.falcon.modeling_falcon"):
        for part, rows in zip("qkv", falcon()(expected["layers.0.attn.query_key_value.weight"])):
            agrees(f"_split_heads {part}", given[f"layers.0.attn.{part}_proj.weight"], rows[0].reshape(HIDDEN, -1).t())
    yield Case(f"cat 0 **.{{q|k|v}}_proj.* -> **.query_key_value.* by heads={HEADS}", given, expected)
    yield Case(f"split 0 **.query_key_value.* -> **.{{q|k|v}}_proj.* by heads={HEADS}", expected, given)


@convention("qkv_grouped", "transformers FalconAttention._split_heads: grouped queries, as Megatron and InternLM2")
def qkv_grouped():
    given = attention(kv_heads=KV_HEADS)
    expected = fused(given, per_head(KV_HEADS), "wqkv")
    if has_transformers("models.falcon.modeling_falcon"):
        parts = falcon(new_decoder_architecture=True, num_kv_heads=KV_HEADS)(expected["layers.0.attn.wqkv.weight"])
        for part, rows in zip("qkv", parts):
            # Keys and values are repeated for each query of their group.
            rows = rows[0] if part == "q" else rows[0][:, :: HEADS // KV_HEADS]
            agrees(f"_split_heads {part}", given[f"layers.0.attn.{part}_proj.weight"], rows.reshape(HIDDEN, -1).t())
    sizes = f"{HEADS * HEAD_DIM},{KV_HEADS * HEAD_DIM},{KV_HEADS * HEAD_DIM}"
    yield Case(f"cat 0 **.{{q|k|v}}_proj.* -> **.wqkv.* by heads={KV_HEADS}", given, expected)
    yield Case(f"split 0 **.wqkv.* -> **.{{q|k|v}}_proj.* sizes={sizes} by heads={KV_HEADS}", expected, given)


@convention("moe_stack", "transformers v5: the conversion of Mixtral, MergeModulelist and Concatenate")
def moe_stack():
    n_experts, shapes = 11, {}
    for layer in range(2):
        at = f"model.layers.{layer}.block_sparse_moe"
        shapes[f"{at}.gate.weight"] = (n_experts, 8)
        # The names as a file in lexicographic order has them: 10 before 2.
        for e in sorted(range(n_experts), key=str):
            shapes |= {f"{at}.experts.{e}.w1.weight": (12, 8), f"{at}.experts.{e}.w2.weight": (8, 12), f"{at}.experts.{e}.w3.weight": (12, 8)}
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = (8,)
    given = randoms(shapes)
    expected = {name.replace(".block_sparse_moe.", ".mlp."): tensor for name, tensor in given.items() if ".experts." not in name}
    for layer in range(2):
        stack = {w: torch.stack([given[f"model.layers.{layer}.block_sparse_moe.experts.{e}.{w}.weight"] for e in range(n_experts)]) for w in ("w1", "w2", "w3")}
        at = f"model.layers.{layer}.mlp.experts"
        expected |= {f"{at}.gate_up_proj": torch.cat([stack["w1"], stack["w3"]], 1), f"{at}.down_proj": stack["w2"]}
    if has_transformers():
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        for rule in get_checkpoint_conversion_mapping("mixtral"):
            if not getattr(rule, "operations", None):
                continue
            # What the loader hands to the first operation: for each source pattern the tensors in the order of the experts.
            values = {p: [given[f"model.layers.0.block_sparse_moe{p.replace('*', str(e))}"] for e in range(n_experts)] for p in rule.source_patterns}
            for operation in rule.operations:
                values = operation.convert(values, source_patterns=rule.source_patterns, target_patterns=rule.target_patterns)
            for target, tensor in values.items():
                agrees(f"Mixtral {target}", expected[f"model.layers.0.mlp{target}"], tensor)
    plan = "stack **.block_sparse_moe.experts.{e}.{w1|w3|w2}.weight -> **.mlp.experts.{gate|up|down_proj}\n"
    plan += "cat 1 **.mlp.experts.{gate|up} -> **.mlp.experts.gate_up_proj\nrename **.block_sparse_moe.gate.weight -> **.mlp.gate.weight"
    yield Case(plan, given, expected)
    back = "split 1 **.mlp.experts.gate_up_proj -> **.mlp.experts.{gate|up}\n"
    back += "unstack **.mlp.experts.{gate|up|down_proj} -> **.block_sparse_moe.experts.{e}.{w1|w3|w2}.weight\nrename **.mlp.gate.weight -> **.block_sparse_moe.gate.weight"
    yield Case(back, expected, given)
    # One kind of expert under its own name.
    only = {name: tensor for name, tensor in given.items() if ".w1." in name}
    stacked = {}
    for at in (f"model.layers.{n}.block_sparse_moe.experts" for n in range(2)):
        stacked[f"{at}.w1"] = torch.stack([given[f"{at}.{e}.w1.weight"] for e in range(n_experts)])
    yield Case("stack 0 **.experts.{e}.w1.weight -> **.experts.w1", only, stacked)
    yield Case("unstack 0 **.experts.w1 -> **.experts.{e}.w1.weight", stacked, only)


LLAMA = {
    "tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head",
    "layers.{i}.attention.wq": "model.layers.{i}.self_attn.q_proj", "layers.{i}.attention.wk": "model.layers.{i}.self_attn.k_proj",
    "layers.{i}.attention.wv": "model.layers.{i}.self_attn.v_proj", "layers.{i}.attention.wo": "model.layers.{i}.self_attn.o_proj",
    "layers.{i}.feed_forward.w1": "model.layers.{i}.mlp.gate_proj", "layers.{i}.feed_forward.w2": "model.layers.{i}.mlp.down_proj",
    "layers.{i}.feed_forward.w3": "model.layers.{i}.mlp.up_proj", "layers.{i}.attention_norm": "model.layers.{i}.input_layernorm",
    "layers.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
}


def rotary(weight, n_heads, inverse=False):
    """From pairs beside each other to halves behind each other, in each head; and back."""
    halves = (2, -1) if inverse else (-1, 2)
    return weight.reshape(n_heads, *(HEAD_DIM // 2 if h == -1 else h for h in halves), -1).transpose(1, 2).reshape(weight.shape)


def llama_meta(n_layers=2):
    width = HEADS * HEAD_DIM
    shapes = {"tok_embeddings.weight": (20, width)}
    for n in range(n_layers):
        at = f"layers.{n}"
        shapes |= {f"{at}.attention.wq.weight": (width, width)} | {f"{at}.attention.{w}.weight": (KV_HEADS * HEAD_DIM, width) for w in ("wk", "wv")}
        shapes |= {f"{at}.attention.wo.weight": (width, width), f"{at}.feed_forward.w1.weight": (40, width), f"{at}.feed_forward.w2.weight": (width, 40)}
        shapes |= {f"{at}.feed_forward.w3.weight": (40, width), f"{at}.attention_norm.weight": (width,), f"{at}.ffn_norm.weight": (width,)}
    return randoms(shapes | {"norm.weight": (width,), "output.weight": (20, width)}, torch.bfloat16)


@convention("rope_permute", "transformers PermuteForRope, which is the permute of its script for Meta's weights")
def rope_permute():
    given = llama_meta()
    expected = dict(given)
    for name, tensor in given.items():
        if name.endswith(("wq.weight", "wk.weight")):
            heads = HEADS if ".wq." in name else KV_HEADS
            expected[name] = rotary(tensor, heads)
            if has_transformers():
                from transformers.core_model_loading import PermuteForRope

                config = SimpleNamespace(num_attention_heads=heads)
                done = PermuteForRope().convert({"w": tensor}, ["w"], ["w"], config)["w"]
                agrees("PermuteForRope", expected[name], done)
                agrees("its inverse", tensor, PermuteForRope(inverse=True).convert({"w": done}, ["w"], ["w"], config)["w"])
    width, half = HEADS * HEAD_DIM, HEAD_DIM // 2
    # -1 is the number of heads, so that queries and grouped keys go by one rule.
    plan = f"reshape **.{{wq|wk}}.weight -1,{half},2,{width}\npermute **.{{wq|wk}}.weight 0,2,1,3\nreshape **.{{wq|wk}}.weight -1,{width}"
    yield Case(plan, given, expected, ordered=True)
    yield Case(plan.replace(f"-1,{half},2,", f"-1,2,{half},"), expected, given, ordered=True)


@convention("llama_names", "the names that transformers' script for Meta's weights gives")
def llama_names():
    given = llama_meta()
    expected = OrderedDict()
    for name, tensor in given.items():
        parts = name.split(".")
        index = parts[1] if parts[0] == "layers" else ""
        source = ".".join("{i}" if part == index else part for part in parts[:-1])
        expected[LLAMA[source].replace("{i}", index) + ".weight"] = tensor
    plan = "replace tok_embeddings=model.embed_tokens output=lm_head attention_norm=input_layernorm attention=self_attn ffn_norm=post_attention_layernorm feed_forward=mlp\n"
    plan += "replace wq=q_proj wk=k_proj wv=v_proj wo=o_proj w1=gate_proj w2=down_proj w3=up_proj\nrename layers.** -> model.layers.**, norm.weight -> model.norm.weight"
    # In this order, since `attention_norm` holds `attention`, and so does what `ffn_norm` becomes.
    yield Case(plan, given, expected, ordered=True)


@convention("kernels", "TensorFlow's HWIO and IO kernels, GPT-2's Conv1D: torch permute and t")
def kernels():
    given = randoms({"conv1.kernel": (3, 3, 4, 8), "block.conv2.kernel": (1, 1, 8, 6), "dense.kernel": (6, 5), "dense.bias": (5,)})
    expected = {"conv1.weight": given["conv1.kernel"].permute(3, 2, 0, 1), "block.conv2.weight": given["block.conv2.kernel"].permute(3, 2, 0, 1)}
    expected |= {"dense.weight": given["dense.kernel"].t(), "dense.bias": given["dense.bias"]}
    yield Case("permute **conv*.kernel 3,2,0,1\nt dense.kernel\nrename **.kernel -> **.weight", given, expected, ordered=True)
    given = randoms({"h.0.attn.c_attn.weight": (8, 24), "h.0.mlp.c_fc.weight": (8, 32), "h.0.ln_1.weight": (8,)})
    yield Case("t **.{c_attn|c_fc}.weight", given, {name: tensor.t() if tensor.ndim == 2 else tensor for name, tensor in given.items()}, ordered=True)


@convention("c2_classes", "torch: indexing, cat and roll, as detectron2 moves the background class")
def c2_classes():
    given = randoms({"cls_score.weight": (5, 4), "cls_score.bias": (5,), "bbox_pred.weight": (20, 4), "bbox_pred.bias": (20,), "mask.weight": (5, 4, 1, 1)})
    expected = {name: torch.cat([t[1:], t[:1]]) if "cls" in name else t[4:] if "bbox" in name else t[1:] for name, t in given.items()}
    yield Case("roll cls_score.* 0 -1\nslice bbox_pred.* 0 4:\nslice mask.* 0 1:", given, expected, ordered=True)
    yield Case("take cls_score.* 0 1,2,3,4,0\nslice bbox_pred.* 0 4:\ntake mask.* 0 @rows.json", given, expected, ordered=True, files={"rows.json": [1, 2, 3, 4]})
