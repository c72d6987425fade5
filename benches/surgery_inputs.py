"""Inputs and checks of surgery.py, in processes of their own: what a process inherits would count as its children's memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def llama(folder: Path, layers: int, hidden: int, inner: int, vocabulary: int, seed: int) -> None:
    """A model folder with the names and shapes of LLaMA, bfloat16."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)

    def weight(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * 0.02).to(torch.bfloat16)

    tensors = {"model.embed_tokens.weight": weight(vocabulary, hidden)}
    for layer in range(layers):
        base = f"model.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"{base}self_attn.{name}.weight"] = weight(hidden, hidden)
        for name, shape in (("gate_proj", (inner, hidden)), ("up_proj", (inner, hidden)), ("down_proj", (hidden, inner))):
            tensors[f"{base}mlp.{name}.weight"] = weight(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{base}{name}.weight"] = weight(hidden)
    tensors["model.norm.weight"] = weight(hidden)
    tensors["lm_head.weight"] = weight(vocabulary, hidden)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))


def misrounded(a: Path, b: Path, merged: Path) -> float:
    """The share of elements that are not 0.6 a + 0.4 b, rounded once."""
    wrong = total = 0
    with safe_open(a / "model.safetensors", "pt") as x, safe_open(b / "model.safetensors", "pt") as y:
        with safe_open(merged, "pt") as z:
            assert set(z.keys()) == set(x.keys()), "the names differ"
            for name in x.keys():
                exact = x.get_tensor(name).double() * 0.6 + y.get_tensor(name).double() * 0.4
                got = z.get_tensor(name)
                # The nearest of the value that torch rounds to by way of float32, and its two neighbours.
                near = exact.to(torch.bfloat16).view(torch.int16)
                best = near.clone()
                error = (near.view(torch.bfloat16).double() - exact).abs()
                for step in (-1, 1):
                    other = near + step
                    distance = (other.view(torch.bfloat16).double() - exact).abs()
                    is_even = (other & 1) == 0
                    better = (distance < error) | ((distance == error) & is_even)
                    best = torch.where(better, other, best)
                    error = torch.where(better, distance, error)
                wrong += int((got.view(torch.int16) != best).sum())
                total += got.numel()
    return wrong / total


def large_pth(path: Path) -> None:
    torch.save({f"layers.{i}.weight": torch.randn(4096, 4096) for i in range(20)}, path)


def sharded(folder: Path) -> None:
    """100 shards of 1,000 tensors each."""
    folder.mkdir()
    weight_map = {}
    for shard in range(100):
        file = f"model-{shard + 1:05}-of-00100.safetensors"
        names = [f"model.layers.{shard}.experts.{i}.weight" for i in range(1000)]
        save_file({name: torch.zeros(4, dtype=torch.bfloat16) for name in names}, str(folder / file), metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": 800000}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def main() -> None:
    task, *arguments = sys.argv[1:]
    if task == "llama":
        folder, *numbers = arguments
        llama(Path(folder), *map(int, numbers))
    elif task == "misrounded":
        print(misrounded(*map(Path, arguments)))
    elif task == "large":
        large_pth(Path(arguments[0]))
    elif task == "sharded":
        sharded(Path(arguments[0]))
    else:
        raise SystemExit(f"no task {task}")


if __name__ == "__main__":
    main()
