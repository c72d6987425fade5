"""The torch sides of benches/open.py: one `torch.load` in a fresh process, imports not counted.

    python benches/open_torch.py torch|torch-mmap list|read FILE

Does what `open-bench` does and prints the same line of JSON; `heap_bytes` is null, as torch has no allocator that we could count in.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch


def main() -> None:
    side, task, path = sys.argv[1:]
    anon_before = memory_mark("RssAnon:")
    cpu_start, start = time.process_time(), time.perf_counter()
    # What was loaded lives on in `tensors`, so that freeing it is not timed.
    tensors = {name: value for name, value in load(path, side).items() if isinstance(value, torch.Tensor)}
    looked_at = sum(len(name) + sum(tensor.shape) + tensor.dtype.itemsize for name, tensor in tensors.items())
    xor = exclusive_or(tensors) if task == "read" else 0
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    print(json.dumps({"wall_s": wall, "cpu_s": cpu, "heap_bytes": None, "rss_bytes": memory_mark("VmHWM:"), "anon_before_bytes": anon_before,
                      "n_tensors": len(tensors), "looked_at": looked_at, "xor": xor}))


def load(path: str, side: str) -> dict:
    return torch.load(path, weights_only=True, mmap=side == "torch-mmap")


def exclusive_or(tensors: dict[str, torch.Tensor]) -> int:
    """All bytes as 64-bit words; the benchmark's tensors are contiguous and a multiple of that."""
    xor = 0
    for tensor in tensors.values():
        xor ^= int(np.bitwise_xor.reduce(tensor.numpy().reshape(-1).view(np.uint64)))
    return xor


def memory_mark(mark: str) -> int:
    """Bytes by one mark of /proc/self/status."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(mark, 1)[1].split(None, 1)[0])


if __name__ == "__main__":
    main()
