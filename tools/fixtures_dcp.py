"""Fixtures of distributed checkpoints: folders as `torch.distributed.checkpoint` writes them, with what it holds as safetensors.

`whole/` is saved by one process, `split/` by two, whose tensors are cut in rows, in columns and unevenly, and `old/` has the
metadata without the fields that versions of torch before 2.3 do not know.
`expected.safetensors` is made from the tensors before they are cut.
"""

from __future__ import annotations

import os
import pickle
import shutil
import socket
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.distributed.checkpoint.filesystem as filesystem
import torch.multiprocessing as mp
from safetensors.torch import save_file

N_PROCESSES = 2


def make(folder: Path) -> dict:
    """Writes everything below `folder`; returns the numbers that the manifest records."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    whole = whole_state()
    save_whole(whole, folder / "whole")
    save_expected(whole, folder / "whole" / "expected.safetensors")
    mp.spawn(save_split, args=(free_port(), str(folder / "split")), nprocs=N_PROCESSES, join=True)
    save_expected(split_state(), folder / "split" / "expected.safetensors")
    model = split_state()["model"]
    old = {"model": {name: model[name] for name in ("whole", "uneven")}, "epoch": 7}
    save_whole(old, folder / "old")
    make_old(folder / "old" / ".metadata")
    save_expected(old, folder / "old" / "expected.safetensors")
    return {"dcp_folders": 3}


def whole_state() -> dict:
    weight = torch.arange(12.0).reshape(3, 4)
    return {
        "model": {
            "layer.weight": weight,
            "bias": torch.arange(3, dtype=torch.bfloat16),
            "tied": weight,
            "steps": torch.tensor(5),
            "empty": torch.zeros(0, 3),
            "transposed": torch.arange(6.0).reshape(2, 3).t(),
            "row": torch.arange(20, dtype=torch.int16).reshape(4, 5)[2],
            "parameter": torch.nn.Parameter(torch.tensor([1.5, -2.0])),
        },
        "opt": {"state": {0: {"exp_avg": torch.full((2, 2), 0.25)}}, "param_groups": [{"lr": 0.1}]},
        "epoch": 3,
        "name": "a text",
    }


def split_state() -> dict:
    return {
        "model": {
            "rows": torch.arange(24.0).reshape(6, 4),
            "columns": torch.arange(24, dtype=torch.int32).reshape(4, 6),
            "uneven": torch.arange(15, dtype=torch.float64).reshape(5, 3),
            "whole": torch.arange(3.0),
        },
    }


def save_whole(state: dict, folder: Path) -> None:
    same_every_time()
    dcp.save(state, checkpoint_id=relative(folder), no_dist=True)


def save_split(rank: int, port: int, folder: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    same_every_time()
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=N_PROCESSES)
    mesh = init_device_mesh("cpu", (N_PROCESSES,))
    model = split_state()["model"]
    cuts = {"rows": 0, "columns": 1, "uneven": 0}
    state = {
        name: distribute_tensor(tensor, mesh, [Shard(cuts[name])]) if name in cuts else tensor
        for name, tensor in model.items()
    }
    dcp.save({"model": state}, checkpoint_id=relative(Path(folder)))
    dist.destroy_process_group()


def same_every_time() -> None:
    """The metadata hold a random number, of which nothing depends."""
    filesystem._generate_uuid = lambda: "00000000-0000-0000-0000-000000000000"


def make_old(path: Path) -> None:
    """Takes the younger fields out of the pickled classes."""
    metadata = pickle.loads(path.read_bytes())
    for field in ("planner_data", "storage_meta", "version"):
        vars(metadata).pop(field, None)
    for info in metadata.storage_data.values():
        vars(info).pop("transform_descriptors", None)
    properties = dcp.metadata.TensorProperties
    younger = properties.__getstate__
    properties.__getstate__ = lambda self: younger(self)[:5]
    try:
        path.write_bytes(pickle.dumps(metadata))
    finally:
        properties.__getstate__ = younger


def relative(folder: Path) -> str:
    """`.metadata` holds the path that was given: it is to be the same on every machine."""
    os.chdir(folder.parent)
    return folder.name


def save_expected(state: dict, path: Path) -> None:
    tensors = {}

    def walk(value, name: str) -> None:
        if isinstance(value, torch.Tensor):
            tensors[name] = value.detach().clone().contiguous()
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{name}.{key}" if name else str(key))

    walk(state, "")
    save_file(tensors, str(path))
    path.chmod(0o644)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    make(Path(__file__).resolve().parent.parent / "fixtures" / "dcp")
