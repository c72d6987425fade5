"""The checkpoints that benches/open.py measures on, written by `torch.save`.

Every tensor is contiguous float32 with a storage of its own, so that every peer can read it.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch

SEED = 20261124
LAYER = [*(f"self_attn.{part}_proj.weight" for part in "qkvo"), *(f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
         "mlp.weight", "input_layernorm.weight", "post_attention_layernorm.weight"]


@dataclasses.dataclass(frozen=True)
class Input:
    """A title for the table and how to make the object that is saved."""

    what: str
    make: Callable[[], dict]


def many_small(n: int) -> dict:
    """What a model of many layers or a sharded optimizer looks like: names and records cost, bytes do not."""
    values = torch.randn(n, 4)
    return OrderedDict((f"model.layers.{i // len(LAYER)}.{LAYER[i % len(LAYER)]}", values[i].clone()) for i in range(n))


def vocabulary(n: int) -> dict:
    """A pickle that is all strings and integers, as checkpoints with a tokenizer inside have."""
    return {"vocab": {f"token_{i}": i for i in range(n)}, "embedding": torch.randn(1000, 64)}


def large(n: int) -> dict:
    """A pickle of nothing beside gigabytes of storages."""
    return OrderedDict((f"model.layers.{i}.mlp.weight", torch.randn(4096, 4096)) for i in range(n))


INPUTS = {
    "tensors-100k": Input("100,000 tensors of shape (4,)", lambda: many_small(100_000)),
    "tensors-20k": Input("20,000 tensors of shape (4,)", lambda: many_small(20_000)),
    "vocab-1m": Input("A vocabulary of 1,000,000 entries beside one tensor", lambda: vocabulary(1_000_000)),
    "large": Input("20 float32 tensors of 64 MiB", lambda: large(20)),
}


def save_input(name: str, path: Path) -> None:
    """The same values whenever and wherever it is made."""
    torch.manual_seed(SEED)
    torch.save(INPUTS[name].make(), path)
