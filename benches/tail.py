"""Times a training step of tails beside PyTorch, step by step in turn, on as many threads.

A step is forward, backward and SGD with momentum on a batch that is in memory. Both sides are processes (torch's is this
one) that make one step when asked, so that whatever else the machine does falls on both.

    python benches/tail.py --threads 2 --batch 32 --repeats 15 --append
"""

import argparse
import copy
import datetime
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import torch.nn.functional as F

from machine import cpu_model

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tools"))
import parity_tail  # noqa: E402


def cpu_ms(pid):
    """What a process's threads have used."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def torch_step(tail, x, labels, norm, lr, channels_last):
    """A function that makes a step."""
    tail.train()
    if norm == "frozen":
        for module in tail.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
    if channels_last and x.dim() == 4:
        tail = tail.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(tail.parameters(), lr=lr, momentum=0.9)

    def step():
        start = time.perf_counter()
        optimiser.zero_grad()
        F.cross_entropy(tail(x), labels).backward()
        optimiser.step()
        return (time.perf_counter() - start) * 1e3

    return step


def run(name, args):
    """Milliseconds of each side."""
    torch.manual_seed(0)
    tail, shape = parity_tail.CASES[name]()
    x = torch.randn(args.batch, *shape)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        parity_tail.export(tail, shape, args.batch, str(folder / "tail.onnx"), args.opset, False)
        labels = torch.randint(0, copy.deepcopy(tail).eval()(x).shape[1], (args.batch,))
        x.numpy().astype("<f4").tofile(folder / "x.f32")
        labels.numpy().astype("<i8").tofile(folder / "y.i64")
        command = [args.tail, "bench", str(folder / "tail.onnx"), "boundary", "output", ",".join(map(str, shape))]
        command += [str(folder / "x.f32"), str(folder / "y.i64"), args.norm, "0.001", str(args.threads)]
        ours = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

        def here():
            ours.stdin.write("\n")
            ours.stdin.flush()
            return float(ours.stdout.readline().split()[0])

        sides = {"graftwork": here}
        layouts = [("torch", False)] + ([("torch, channels last", True)] if len(shape) == 3 else [])
        for side, channels_last in layouts:
            sides[side] = torch_step(copy.deepcopy(tail), x, labels, args.norm, 0.001, channels_last)
        times = {side: [] for side in sides}
        for repeat in range(args.repeats + 2):
            for side, step in sides.items():
                pid = ours.pid if side == "graftwork" else os.getpid()
                before = cpu_ms(pid)
                took = step()
                if repeat >= 2:
                    times[side].append((took, cpu_ms(pid) - before))
        ours.stdin.close()
        ours.wait()
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=["resnet18", "resnet18_whole", "mobilenet_v2", "vit"])
    parser.add_argument("--tail", default=str(REPOSITORY / "target/release/examples/tail"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--norm", choices=["batch", "frozen"], default="batch")
    parser.add_argument("--opset", type=int, default=17)
    parser.add_argument("--append", action="store_true", help="to benches/RESULTS.md")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load = os.getloadavg()[0]
    checkout = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    lines = [
        f"## Steps of a tail, {datetime.date.today()}",
        "",
        f"Forward, backward and SGD with momentum on a batch of {args.batch} in memory, {args.threads} threads, batch"
        f" normalisation {'by the batch' if args.norm == 'batch' else 'frozen'}; {args.repeats} interleaved repeats,"
        " medians (min to max).",
        f"Machine: {cpu_model()}, {os.cpu_count()} cores, load average before the run {load:.2f}.",
        f"Versions: graftwork (checkout {checkout.stdout.strip()}), torch {torch.__version__}, Python"
        f" {platform.python_version()}.",
        f"Command: `python benches/tail.py {' '.join(a for a in sys.argv[1:] if not a.startswith('/'))}`",
        "",
        "| tail | side | ms a step | CPU ms | time against graftwork (median of the rounds' ratios) | CPU time |",
        "|---|---|---|---|---|---|",
    ]
    for name in args.cases:
        times = run(name, args)
        for side, values in times.items():
            wall, cpu = zip(*values)
            rounds = list(zip(times["graftwork"], values))
            ratios = [statistics.median(b[i] / a[i] for a, b in rounds) for i in (0, 1)]
            row = f"| {name} | {side} | {statistics.median(wall):.0f} ({min(wall):.0f} to {max(wall):.0f})"
            lines.append(f"{row} | {statistics.median(cpu):.0f} | {ratios[0]:.2f}x | {ratios[1]:.2f}x |")
            print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    if args.append:
        path = REPOSITORY / "benches/RESULTS.md"
        path.write_text(path.read_text().rstrip("\n") + "\n\n" + text)
    else:
        print(text)


if __name__ == "__main__":
    main()
