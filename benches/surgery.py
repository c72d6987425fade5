"""Merging, converting and planning side by side: graftwork, mergekit and cp, interleaved in one run.

    cargo build --release
    python benches/surgery.py --graftwork target/release/graftwork --mergekit VENV/bin --append

Prints a Markdown section; `--append` also adds it to benches/RESULTS.md. Linux only: CPU seconds and peak memory are those of `wait4`.
Inputs are made on the spot, a pair of LLaMA-shaped models of 300 M bfloat16 parameters among them, so everyone finds them in the page cache.
CPU seconds are user plus system. mergekit's start-up is what it takes for a model of one layer and a few kilobytes.
A merge is checked against float64: the share of elements that are not the correctly rounded value.
Packages here: torch, safetensors, numpy; mergekit in the environment that `--mergekit` names.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from machine import cpu_model

BENCHES = Path(__file__).resolve().parent
RESULTS = BENCHES / "RESULTS.md"


@dataclass
class Run:
    """One process."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def run(command: list[str], env: dict[str, str] | None = None) -> Run:
    """Runs a command; fails with what it said when it fails."""
    log = tempfile.TemporaryFile()
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        log.seek(0)
        raise SystemExit(f"{' '.join(command)}\n{log.read().decode()[-3000:]}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000)


def prepare(*arguments: object) -> str:
    """Runs a task of surgery_inputs.py; returns what it printed."""
    command = [sys.executable, str(BENCHES / "surgery_inputs.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def recipe(path: Path, a: Path, b: Path) -> Path:
    path.write_text(
        "merge_method: linear\ndtype: bfloat16\nmodels:\n"
        f"  - model: {a}\n    parameters: {{weight: 0.6}}\n  - model: {b}\n    parameters: {{weight: 0.4}}\n"
    )
    return path


def rounds(sides: dict, repeats: int) -> dict[str, list[Run]]:
    """Every side once, then every side again."""
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            runs[name].append(side())
    return runs


def median(runs: list[Run], what: str) -> float:
    return statistics.median(getattr(one, what) for one in runs)


def spread(runs: list[Run], what: str, digits: int = 2) -> str:
    values = [getattr(one, what) for one in runs]
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def bench_merge(work: Path, graftwork: str, mergekit: Path | None, repeats: int) -> list[str]:
    a, b = work / "a", work / "b"
    prepare("llama", a, 14, 1024, 4096, 32000, 1)
    prepare("llama", b, 14, 1024, 4096, 32000, 2)
    for name, seed in (("tiny-a", 3), ("tiny-b", 4)):
        prepare("llama", work / name, 1, 32, 64, 64, seed)
    ours = work / "ours.safetensors"
    weights = [f"{a}/model.safetensors:0.6", f"{b}/model.safetensors:0.4"]

    def graft() -> Run:
        # As for mergekit: what was written before is gone.
        ours.unlink(missing_ok=True)
        return run([graftwork, "merge", "linear", "-o", str(ours), *weights])

    sides = {"graftwork merge linear": graft}
    out = work / "mergekit-out"
    if mergekit:
        env = {**os.environ, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}

        def kit(recipe_path: Path) -> Run:
            shutil.rmtree(out, ignore_errors=True)
            command = [str(mergekit / "mergekit-yaml"), str(recipe_path), str(out), "--no-copy-tokenizer"]
            return run(command, env)

        large = recipe(work / "large.yml", a, b)
        tiny = recipe(work / "tiny.yml", work / "tiny-a", work / "tiny-b")
        sides["mergekit start-up"] = lambda: kit(tiny)
        sides["mergekit linear, bfloat16"] = lambda: kit(large)
    runs = rounds(sides, repeats)
    size = (a / "model.safetensors").stat().st_size
    lines = [
        f"### Linear merge of two models of {size / 2e6:.0f} M bfloat16 parameters, {size / 1e9:.2f} GB each",
        "",
        "| side | CPU s | wall s | peak RSS MB | not correctly rounded |",
        "|---|---|---|---|---|",
    ]
    wrong = {"graftwork merge linear": float(prepare("misrounded", a, b, ours))}
    if mergekit:
        wrong["mergekit linear, bfloat16"] = float(prepare("misrounded", a, b, next(out.glob("model*.safetensors"))))
    for name, side in runs.items():
        share = f"{100 * wrong[name]:.3f} %" if name in wrong else ""
        lines.append(f"| {name} | {spread(side, 'cpu_s')} | {spread(side, 'wall_s')} | {median(side, 'peak_mb'):.0f} | {share} |")
    if mergekit:
        ours_cpu = median(runs["graftwork merge linear"], "cpu_s")
        theirs = median(runs["mergekit linear, bfloat16"], "cpu_s")
        start = median(runs["mergekit start-up"], "cpu_s")
        lines += ["", f"CPU seconds: mergekit net of its start-up {(theirs - start) / ours_cpu:.1f}x, with it {theirs / ours_cpu:.1f}x."]
    for path in (a, b, out):
        shutil.rmtree(path, ignore_errors=True)
    ours.unlink()
    return [*lines, ""]


def bench_convert(work: Path, graftwork: str, repeats: int) -> list[str]:
    source = work / "large.pth"
    prepare("large", source)
    size = source.stat().st_size

    def copy() -> Run:
        (work / "copy.pth").unlink(missing_ok=True)
        return run(["cp", str(source), str(work / "copy.pth")])

    def copy_synced() -> Run:
        (work / "copy.pth").unlink(missing_ok=True)
        return run(["sh", "-c", f"cp {source} {work / 'copy.pth'} && sync {work / 'copy.pth'}"])

    def convert() -> Run:
        (work / "out.safetensors").unlink(missing_ok=True)
        return run([graftwork, "convert", str(source), str(work / "out.safetensors")])

    runs = rounds({"cp": copy, "cp, then sync of the file": copy_synced, "graftwork convert": convert}, repeats)
    base = median(runs["cp"], "wall_s")
    synced = median(runs["cp, then sync of the file"], "wall_s")
    lines = [
        f"### `.pth` to `.safetensors`, {size / 1e9:.2f} GB",
        "",
        "| side | wall s | CPU s | GB/s | speed against cp | speed against cp with sync | peak RSS MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, side in runs.items():
        wall = median(side, "wall_s")
        lines.append(
            f"| {name} | {spread(side, 'wall_s')} | {median(side, 'cpu_s'):.2f} | {size / 1e9 / wall:.2f} "
            f"| {base / wall:.2f}x | {synced / wall:.2f}x | {median(side, 'peak_mb'):.0f} |"
        )
    for name in ("large.pth", "copy.pth", "out.safetensors"):
        (work / name).unlink()
    return [*lines, ""]


def bench_plan(work: Path, graftwork: str, repeats: int) -> list[str]:
    folder = work / "set"
    prepare("sharded", folder)
    steps = "rename model.layers.{i}.** -> blocks.{i}.**; cast ** f32; freeze blocks.0.**"
    command = [graftwork, "edit", str(folder), str(work / "planned"), "--dry-run", "--max-shard-size", "8kB", "-e", steps]
    copy = [graftwork, "convert", str(folder), str(work / "planned.safetensors"), "--dry-run"]
    runs = rounds({"copy": lambda: run(copy), "dry-run": lambda: run(command)}, repeats)
    shutil.rmtree(folder)
    return [
        "### Plan of a set of 100 shards with 100,000 tensors",
        "",
        "| side | wall s | CPU s | peak RSS MB |",
        "|---|---|---|---|",
        *[
            f"| {name} | {spread(side, 'wall_s', 3)} | {spread(side, 'cpu_s', 3)} | {median(side, 'peak_mb'):.0f} |"
            for name, side in (
                ("convert --dry-run: to one file", runs["copy"]),
                ("edit --dry-run: rename, cast, freeze; 200 shards out", runs["dry-run"]),
            )
        ],
        "",
    ]


def version(mergekit: Path | None) -> str:
    if not mergekit:
        return "mergekit not run"
    code = "import importlib.metadata as m; print('mergekit', m.version('mergekit'), 'torch', m.version('torch'))"
    return subprocess.run([str(mergekit / "python"), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graftwork", required=True)
    parser.add_argument("--mergekit", type=Path, help="the folder of mergekit-yaml")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=("merge", "convert", "plan"), default=("merge", "convert", "plan"))
    parser.add_argument("--folder", type=Path, help="where inputs and outputs are made")
    parser.add_argument("--append", action="store_true")
    args = parser.parse_args()
    graftwork = str(Path(args.graftwork).resolve())
    cpu = cpu_model()
    load = os.getloadavg()[0]
    sections = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        work = Path(folder)
        if "merge" in args.only:
            sections += bench_merge(work, graftwork, args.mergekit, args.repeats)
        if "convert" in args.only:
            sections += bench_convert(work, graftwork, args.repeats)
        if "plan" in args.only:
            sections += bench_plan(work, graftwork, args.repeats)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=BENCHES, capture_output=True, text=True).stdout.strip()
    more = f" --only {' '.join(args.only)}" if len(args.only) < 3 else ""
    head = [
        f"## Surgery, {datetime.date.today()}",
        "",
        f"{args.repeats} interleaved repeats, medians (min to max); inputs in the page cache. RSS is of the whole process.",
        f"Machine: {cpu}, {os.cpu_count()} cores, Linux {platform.release()}, load average before the run {load:.2f}.",
        f"Versions: graftwork (checkout {commit}), {version(args.mergekit)}, here torch {importlib.metadata.version('torch')}, "
        f"Python {platform.python_version()}.",
        f"Command: `python benches/surgery.py --graftwork target/release/graftwork --mergekit VENV/bin --repeats {args.repeats}{more} --append`",
        "",
    ]
    text = "\n".join([*head, *sections])
    print(text)
    if args.append:
        with RESULTS.open("a") as file:
            file.write("\n" + text)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
