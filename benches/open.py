"""Opening and reading checkpoints side by side: graftwork's `pth`, torch.load, candle-core and pytorch-reader, interleaved in one run.

    cargo build --release && (cd benches/open && cargo build --release)
    python benches/open.py --graftwork target/release/graftwork --append

Prints a Markdown section; `--append` also adds it to benches/RESULTS.md. Linux only: memory is read from /proc. Packages: torch, numpy.
Every measurement is a process of its own on one core, timed inside around open + list or open + read; imports and start-up are not counted.
`list` looks at every name, shape and dtype, `read` also at every byte; all sides must find the same, or the run fails.
The files are new, so everyone finds them in the page cache. A side that refuses a file or exceeds the time limit stays in the table and
is not asked again. Memory comes from a run of its own, in which a counting allocator sees the heap of the Rust sides and this process
watches the pages. Ratios are of medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import tomllib
import zipfile
from pathlib import Path

from machine import cpu_model
from open_inputs import INPUTS, save_input

BENCHES = Path(__file__).resolve().parent
RESULTS = BENCHES / "RESULTS.md"
TORCH_SIDES = ("torch", "torch-mmap")
SIDES = ("graftwork", "graftwork-pread", "zip-crate", "pytorch-reader", "candle", *TORCH_SIDES)
PEER_CRATES = ("pytorch-reader", "candle-core", "zip")
CORE = "0"
POLL_S = 0.001
MB = 1e6


@dataclasses.dataclass
class Measured:
    """One side's runs of one task: the JSON of each timed run, that of the memory run, or why there are none."""

    runs: list[dict] = dataclasses.field(default_factory=list)
    memory: dict | None = None
    refusal: str | None = None


class Refused(Exception):
    """The process failed or took too long; the text is for the table."""


def main() -> int:
    args = arguments()
    load_before, lines = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory(prefix="graftwork-bench-") as temporary:
        scratch = Path(temporary)
        for name in args.only or INPUTS:
            path = (args.inputs or scratch) / f"{name}.pth"
            if not path.exists():
                save_input(name, path)
            path.read_bytes()
            lines += measure_input(args, name, path)
            if name == "large" and args.graftwork:
                lines += measure_convert(args, path, scratch)
            if args.inputs is None:
                path.unlink()
    section = "\n".join(heading(args, load_before) + lines)
    print(section)
    if args.append:
        with RESULTS.open("a") as file:
            file.write("\n" + section + "\n")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--open-bench", type=Path, default=BENCHES / "open/target/release/open-bench", help="default: where cargo puts it")
    parser.add_argument("--graftwork", type=Path, help="the binary, for `convert`; without it that part is left out")
    parser.add_argument("--repeats", type=int, default=3, help="default %(default)s")
    parser.add_argument("--time-limit", type=float, default=120, metavar="S", help="of one process (default %(default)s)")
    parser.add_argument("--only", nargs="+", choices=INPUTS, help="not every input")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="not every side")
    parser.add_argument("--inputs", type=Path, help="keep the inputs in this folder and use those that are there")
    parser.add_argument("--append", action="store_true", help="add the result to benches/RESULTS.md, with the date")
    return parser.parse_args()


def measure_input(args: argparse.Namespace, name: str, path: Path) -> list[str]:
    """Every side and task on one file, and the table of that."""
    found = {(task, side): Measured() for task in ("list", "read") for side in args.sides if (task, side) != ("read", "zip-crate")}
    for repeat in range(args.repeats + 1):
        is_memory_run = repeat == args.repeats
        for (task, side), measured in found.items():
            if measured.refusal:
                continue
            command = [sys.executable, str(BENCHES / "open_torch.py")] if side in TORCH_SIDES else [str(args.open_bench)]
            command += [side, task, str(path)]
            try:
                if is_memory_run:
                    measured.memory = run(args, command if side in TORCH_SIDES else [*command, "--memory"], watch=True)
                else:
                    measured.runs.append(run(args, command))
            except Refused as refusal:
                measured.refusal = str(refusal)
        print(f"{name}: {'memory' if is_memory_run else f'repeat {repeat + 1}/{args.repeats}'} done", file=sys.stderr)
    check_agreement(name, found)
    with zipfile.ZipFile(path) as archive:
        n_pickle = next(member.file_size for member in archive.infolist() if member.filename.endswith("/data.pkl"))
    return render(args, f"### {INPUTS[name].what}: {path.stat().st_size / MB:.1f} MB, data.pkl {n_pickle / MB:.2f} MB", found, n_pickle)


def measure_convert(args: argparse.Namespace, path: Path, scratch: Path) -> list[str]:
    """`graftwork convert` to safetensors beside copying the same file; it fsyncs what it writes, so `cp` is shown both ways."""
    out = scratch / "out.safetensors"
    commands = {
        "cp": ["cp", str(path), str(out)],
        "cp, then sync": ["sh", "-c", f"cp {shlex.quote(str(path))} {shlex.quote(str(out))} && sync {shlex.quote(str(out))}"],
        "graftwork convert": [str(args.graftwork), "convert", str(path), str(out)],
    }
    found = {side: Measured() for side in commands}
    for _ in range(args.repeats):
        for side, command in commands.items():
            # A copy nobody times: a virtual machine may have handed idle pages back to its host, and the first to fill them again would pay.
            shutil.copyfile(path, out)
            out.unlink()
            os.sync()
            try:
                found[side].runs.append(run(args, command, watch=True, is_json=False))
            except Refused as refusal:
                found[side].refusal = str(refusal)
            out.unlink(missing_ok=True)
    base = median_of(found["cp"].runs, "wall_s")
    lines = ["", f"### {INPUTS['large'].what}, converted to safetensors", "",
             "| side | wall s | GB/s | time against cp | peak anonymous MiB | peak RSS MiB |", "|---|---|---|---|---|---|"]
    for side, measured in found.items():
        if measured.refusal:
            lines.append(f"| {side} | {measured.refusal} | | | | |")
            continue
        wall, anon, rss = median_of(measured.runs, "wall_s"), *(max(r[key] for r in measured.runs) / 2**20 for key in ("anon_bytes", "rss_bytes"))
        marks = f"{anon:.1f} | {rss:.1f}" if side == "graftwork convert" else "|"
        lines.append(f"| {side} | {spread(measured.runs, 'wall_s')} | {path.stat().st_size / wall / 1e9:.2f} | {wall / base:.2f}x | {marks} |")
    return lines


def run(args: argparse.Namespace, command: list[str], *, watch: bool = False, is_json: bool = True) -> dict:
    """One process on one core: its line of JSON, or else its wall seconds; `watch` adds its peaks of memory.

    Raises `Refused` with the last line of stderr if it fails.
    """
    start = time.perf_counter()
    # A wish for backtraces would slow the sides that fill them in, and hide the reason of a refusal.
    child = subprocess.Popen(["taskset", "--cpu-list", CORE, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             env=os.environ | {"RUST_BACKTRACE": "0"})
    peaks = {"RssAnon:": 0, "VmHWM:": 0}
    watcher = threading.Thread(target=watch_memory, args=(child, peaks))
    if watch:
        watcher.start()
    try:
        stdout, stderr = child.communicate(timeout=args.time_limit)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        raise Refused(f"more than {args.time_limit:.0f} s") from None
    finally:
        if watch:
            watcher.join()
    wall = time.perf_counter() - start
    if child.returncode != 0:
        reason = (stderr.strip().splitlines() or [f"exits with {child.returncode}"])[-1]
        raise Refused(f"refused: {textwrap.shorten(reason, 120).replace('|', '/')}")
    result = json.loads(stdout) if is_json else {"wall_s": wall, "rss_bytes": peaks["VmHWM:"]}
    if watch:
        result["anon_bytes"] = max(0, peaks["RssAnon:"] - result.get("anon_before_bytes", 0))
    return result


def watch_memory(child: subprocess.Popen, peaks: dict[str, int]) -> None:
    """Keeps the highest marks of a process until it ends; the kernel keeps no peak of anonymous pages, so it is looked at every millisecond."""
    status = Path(f"/proc/{child.pid}/status")
    while child.returncode is None:
        try:
            for line in status.read_text().splitlines():
                mark, _, rest = line.partition("\t")
                if mark in peaks:
                    peaks[mark] = max(peaks[mark], 1024 * int(rest.split()[0]))
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(POLL_S)


def check_agreement(name: str, found: dict[tuple[str, str], Measured]) -> None:
    """A side that skips tensors or misreads them is no peer: the run stops."""
    for wanted in ("list", "read"):
        answers = {side: tuple(measured.runs[0][key] for key in ("n_tensors", "looked_at", "xor"))
                   for (task, side), measured in found.items() if task == wanted and side != "zip-crate" and measured.runs}
        if len(set(answers.values())) > 1:
            raise SystemExit(f"{name}: the sides disagree on what they {wanted}: {answers}")


def render(args: argparse.Namespace, title: str, found: dict[tuple[str, str], Measured], n_pickle: int) -> list[str]:
    lines = ["", title, "", "| task | side | wall s | CPU s | time against graftwork | peak heap MB | peak heap / data.pkl "
             "| peak anonymous MB | peak RSS MB |", "|---|---|---|---|---|---|---|---|---|"]
    for (task, side), measured in found.items():
        if measured.refusal or not measured.memory:
            lines.append(f"| {task} | {side} | {measured.refusal} | | | | | | |")
            continue
        ours, memory = found.get((task, "graftwork"), Measured()).runs, measured.memory
        ratio = f"{median_of(measured.runs, 'wall_s') / median_of(ours, 'wall_s'):.2f}x" if ours else ""
        heap = memory["heap_bytes"]
        # The ratio says nothing where fixed costs outweigh the pickle.
        times_pickle = f"{heap / n_pickle:.2f}" if heap is not None and n_pickle > MB else ""
        heap_columns = f"{heap / MB:.2f} | {times_pickle}" if heap is not None else "|"
        lines.append(f"| {task} | {side} | {spread(measured.runs, 'wall_s')} | {median_of(measured.runs, 'cpu_s'):.3f} | {ratio} | {heap_columns} "
                     f"| {memory['anon_bytes'] / MB:.1f} | {memory['rss_bytes'] / MB:.1f} |")
    return lines


def heading(args: argparse.Namespace, load_before: float) -> list[str]:
    return [
        f"## Opening checkpoints, {datetime.date.today().isoformat()}", "",
        f"One thread on one core, page cache warm; {args.repeats} interleaved repeats, medians (min to max). Heap and anonymous pages are "
        "those of the task; RSS is of the whole process, its libraries and the pages of a mapped file included.",
        f"Machine: {cpu_model()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, load average before the run {load_before:.2f}.",
        f"Versions: {versions()}.",
        f"Command: `python {shlex.join(['benches/open.py', *sys.argv[1:]])}`",
    ]


def median_of(runs: list[dict], key: str) -> float:
    return statistics.median(r[key] for r in runs)


def spread(runs: list[dict], key: str) -> str:
    values = [r[key] for r in runs]
    return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def versions() -> str:
    """Of everyone: graftwork's is the checkout's, the Rust peers' those of the committed lock."""
    packages = tomllib.loads((BENCHES / "open/Cargo.lock").read_text())["package"]
    # Of several versions of one crate, ours is the newest.
    peers = {package["name"]: package["version"] for package in packages if package["name"] in PEER_CRATES}
    revision = subprocess.run(["git", "-C", str(BENCHES), "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True).stdout.strip()
    named = [f"{name} {peers[name]}" for name in PEER_CRATES]
    return ", ".join([f"graftwork (checkout {revision})", *named, f"torch {importlib.metadata.version('torch')}", f"Python {platform.python_version()}"])


if __name__ == "__main__":
    sys.exit(main())
