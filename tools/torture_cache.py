"""Kills writers of one cache at random moments, many at once, and compares what they leave with one clean run.

    python tools/torture_cache.py --graftwork target/release/graftwork [--kills 200] [--writers 4] [--data FOLDER --backbone M.onnx]

Each round starts `--writers` extractions of the same pictures into the same cache and sends each SIGKILL at a random moment of its own, until
`--kills` processes have been killed before they ended. Then `cache verify` must find nothing wrong, every row that is there must equal the
clean run's, one more extraction must complete the rest, and the whole must equal the clean run byte for byte, before and after `cache gc`.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(Path(__file__).resolve().parent))
from slurm_array import rows  # noqa: E402

DIGITS = ROOT / "fixtures" / "digits"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graftwork", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=DIGITS / "pictures")
    parser.add_argument("--backbone", type=Path, default=DIGITS / "backbone.onnx")
    parser.add_argument("--side", type=int, default=32, help="resize and crop (default %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="graftwork-torture-") as temporary:
        return torture(args, Path(temporary))


def torture(args, scratch: Path) -> int:
    chance = random.Random(args.seed)
    extract = [str(args.graftwork.resolve()), "extract", "--backbone", str(args.backbone), "--data", str(args.data), "--json", "--block-rows", "16",
               "--resize", str(args.side), "--crop", str(args.side)]
    start = time.perf_counter()
    clean_entry = Path(json.loads(output([*extract, "--cache", str(scratch / "clean")]))["entry"])
    duration = time.perf_counter() - start
    clean = rows(clean_entry)
    killed = rounds = n_seen = n_filled = 0
    cache = scratch / "cache"
    while killed < args.kills:
        if cache.exists() and chance.random() < 0.5:
            # A full cache has nothing left to write: some rounds begin anew.
            shutil.rmtree(cache)
        writers = [subprocess.Popen([*extract, "--cache", str(cache), "-j", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                   for _ in range(args.writers)]
        moments = sorted((chance.uniform(0, duration * args.writers / 2), writer) for writer in range(args.writers))
        begun = time.perf_counter()
        for moment, writer in moments:
            time.sleep(max(0.0, begun + moment - time.perf_counter()))
            writers[writer].kill()
            killed += writers[writer].wait() != 0
        rounds += 1
        for entry in cache.glob("*/key.json"):
            there = rows(entry.parent)
            n_seen += len(there)
            n_filled += there.keys() == clean.keys()
            wrong = [key for key, row in there.items() if clean.get(key) != row]
            if wrong:
                raise SystemExit(f"round {rounds}: {len(wrong)} wrong rows")
        if cache.exists():
            verify(args, cache)
    last = Path(json.loads(output([*extract, "--cache", str(cache)]))["entry"])
    verify(args, cache)
    before = rows(last)
    output([str(args.graftwork), "cache", "gc", "--cache", str(cache)])
    after = rows(last)
    if not before == after == clean:
        raise SystemExit("the completed cache differs from the clean one")
    print(f"{killed} writers killed in {rounds} rounds of {args.writers} at once; {n_seen:,} rows looked at in between, 0 wrong; "
          f"{n_filled} rounds ended with all rows; completed, {len(clean)} rows equal one clean run byte for byte")
    return 0


def verify(args, cache: Path) -> None:
    done = subprocess.run([str(args.graftwork), "cache", "verify", "--cache", str(cache)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"cache verify exits with {done.returncode}: {done.stdout}{done.stderr}")


def output(command: list[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
