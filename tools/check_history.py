"""Reads a run's history with TensorBoard's own reader.

    cargo build --package graftwork-runtime --example history
    python tools/check_history.py --history target/debug/examples/history

The example writes twelve epochs, in the middle of which the run is killed one epoch behind its checkpoint and resumed: each epoch must
be there once, in `metrics.jsonl` and in the event file, with the same values in both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from parity_common import check, finish

N_EPOCHS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--history", required=True, help="the example `history`")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([args.history, folder, str(N_EPOCHS)], check=True)
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
        check("epochs", [line["epoch"] for line in lines], list(range(1, N_EPOCHS + 1)))
        events = EventAccumulator(folder, purge_orphaned_data=False)
        events.Reload()
        tags = ["loss/train", "accuracy/val", "lr"]
        check("tags", sorted(events.Tags()["scalars"]), sorted(tags))
        for tag in tags:
            scalars = events.Scalars(tag)
            check(f"{tag} steps", [scalar.step for scalar in scalars], list(range(1, N_EPOCHS + 1)))
            check(f"{tag} values", [scalar.value for scalar in scalars], [float(np.float32(line[tag])) for line in lines])
            check(f"{tag} times rise", all(a.wall_time <= b.wall_time for a, b in zip(scalars, scalars[1:])), True)
        files = list(Path(folder).glob("events.out.tfevents.*"))
        check("one event file", len(files), 1)
    finish()


if __name__ == "__main__":
    main()
