"""Linear heads beside scikit-learn and PyTorch: time and passes to relative gaps of the objective, and a sweep over C.

    cargo build --release -p graftwork-runtime --example solve
    python benches/solver.py [--npz FEATURES.npz] [--sets cifar 5000x256x2 ...] [--append]

A set is `N x D x C` of synthetic features (correlated, condition number about 1e6, 70 to 90 % separable), or the name of --npz (arrays X, y).
The objective is scikit-learn's, C * sum of cross-entropies + 1/2 ||W||^2 with the bias free. The least value that any side reaches, ours
run to 1e-12 among them, is the reference; a side's time to a gap is when its objective first came within it, evaluations counted alike.
Our trace is the solver's own, seconds since the call, the second moments and everything else included; scikit-learn is timed by
fitting again with max_iter = 1, 2, 4, … (its solver shows no trace; a fit that takes more than --budget seconds ends that), PyTorch's LBFGS
(strong Wolfe, history 20, float32, features centred) shows its own. All sides have the same threads.
Sides that do not come within a gap in the budget show a dash.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from machine import cpu_model

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import check_solver  # noqa: E402

GAPS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
SWEEP = 10 ** np.linspace(-6, 5, 45)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solve", type=Path, default=ROOT / "target/release/examples/solve")
    parser.add_argument("--npz", type=Path, help="real features: arrays X [N, D] and y [N]")
    parser.add_argument("--sets", nargs="+", default=None, help="default: the --npz, 5000x256x2, 20000x512x100, 60000x512x10, 5000x2048x1000, 20000x2048x2")
    parser.add_argument("--c", type=float, nargs="+", default=[0.001, 0.01, 0.1, 1, 10, 1000], help="for the real features; synthetic sets take every other")
    parser.add_argument("--budget", type=float, default=20, help="seconds for one side of one problem (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of ours; the median counts (default %(default)s)")
    parser.add_argument("--no-sweep", action="store_true")
    parser.add_argument("--append", action="store_true", help="to benches/RESULTS.md")
    args = parser.parse_args()
    out = [f"\n## Linear heads, {datetime.date.today()}\n", *setting(args)]
    print("\n".join(out), flush=True)
    names = args.sets or ([args.npz.stem] if args.npz else []) + ["5000x256x2", "20000x512x100", "60000x512x10", "5000x2048x1000", "20000x2048x2"]
    lines = ["| features | C | side | " + " | ".join(f"to {gap:.0e}" for gap in GAPS) + " |", "|---" * (3 + len(GAPS)) + "|"]
    out += ["", *lines]
    print("\n" + "\n".join(lines), flush=True)
    data = {}
    for name in names:
        data[name] = x, y = real(args.npz) if args.npz and name == args.npz.stem else synthetic(name)
        for c in args.c if args.npz and name == args.npz.stem else args.c[1::2]:
            for line in compare(args, name, x, y, c):
                out.append(line)
                print(line, flush=True)
    if not args.no_sweep:
        out += sweep(args, names[0], *data[names[0]])
    if args.append:
        with open(ROOT / "benches/RESULTS.md", "a") as results:
            results.write("\n".join(out) + "\n")


def setting(args) -> list[str]:
    cpu = cpu_model()
    import sklearn
    import torch

    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    load = Path("/proc/loadavg").read_text().split()[0]
    return [
        "Seconds (evaluations or iterations) until the objective is within a relative gap of the least that any side reached; in brackets how many times ours.",
        f"Machine: {cpu}, {len(__import__('os').sched_getaffinity(0))} cores, load average before the run {load}.",
        "Command: `python benches/solver.py " + " ".join(Path(a).name if a.startswith("/") else a for a in sys.argv[1:]) + "`",
        f"Versions: checkout {commit}, Python {platform.python_version()}, scikit-learn {sklearn.__version__}, numpy {np.__version__}, torch {torch.__version__}.",
    ]


def real(path: Path) -> tuple[np.ndarray, np.ndarray]:
    arrays = np.load(path)
    return np.ascontiguousarray(arrays["X"], np.float32), np.asarray(arrays["y"], np.int64)


def synthetic(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Features like a network's: after a ReLU, correlated through a mixing whose spectrum falls as 1/k, labels of a noisy linear rule."""
    n, d, classes = map(int, name.split("x"))
    rng = np.random.default_rng(7)
    hidden = rng.standard_normal((n, d), dtype=np.float32)
    mixing = np.linalg.qr(rng.standard_normal((d, d)))[0].astype(np.float32) / np.sqrt(np.arange(1, d + 1, dtype=np.float32))[:, None]
    x = np.maximum(hidden @ mixing * np.float32(np.sqrt(d)) / 2 + 0.3, 0)
    rule = rng.standard_normal((d, classes), dtype=np.float32)
    y = (hidden @ rule + np.sqrt(d) * 0.7 * rng.standard_normal((n, classes), dtype=np.float32)).argmax(1)
    return np.ascontiguousarray(x, np.float32), np.unique(y, return_inverse=True)[1]


def compare(args, name: str, x: np.ndarray, y: np.ndarray, c: float) -> list[str]:
    classes = int(y.max()) + 1
    curves = {}
    exact = check_solver.solve(args.solve, x, y, classes, [c], relative_gap=1e-11, max_passes=1500)[0]["objective"]
    # The first fit of a process warms up what the other sides have warm.
    runs = [fit["trace"] for fit in check_solver.solve(args.solve, x, y, classes, [c] * (args.repeats + 1), trace=True, relative_gap=1e-7)[1:]]
    middle = sorted(runs, key=lambda trace: trace[-1][2])[len(runs) // 2]
    curves["graftwork"] = [(seconds, passes, value) for passes, value, seconds in middle]
    solvers = ["lbfgs"]
    if classes == 2 and x.shape[1] <= 2048 or classes * x.shape[1] <= 5000:
        # Its Hessian has (C D)^2 numbers.
        solvers.append("newton-cholesky")
    for solver in solvers:
        curves[f"scikit-learn {solver}"] = sklearn_curve(x, y, c, solver, args.budget)
    if classes > 2:
        curves["PyTorch LBFGS"] = torch_curve(x, y, c, classes, args.budget)
    best = min([exact] + [value for curve in curves.values() for _, _, value in curve])
    times = {side: [first_within(curve, best, gap) for gap in GAPS] for side, curve in curves.items()}
    lines = []
    for side, found in times.items():
        cells = []
        for mine, other in zip(times["graftwork"], found):
            cell = "-" if other is None else f"{other[0]:.4f} ({other[1]})"
            if side != "graftwork" and mine and other:
                cell += f" [{other[0] / mine[0]:.1f}]"
            cells.append(cell)
        lines.append(f"| {name} | {c:g} | {side} | " + " | ".join(cells) + " |")
    return lines


def first_within(curve, best: float, gap: float):
    return next(((seconds, steps) for seconds, steps, value in curve if value - best <= gap * abs(best)), None)


def sklearn_curve(x, y, c: float, solver: str, budget: float):
    # lbfgs keeps float32; a fit with fewer iterations is the beginning of one with more.
    curve, iterations, spent = [], 1, 0.0
    exact = x.astype(np.float64)
    while True:
        fit = LogisticRegression(C=c, solver=solver, tol=1e-12, max_iter=iterations)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            start = time.perf_counter()
            fit.fit(x, y)
            seconds = time.perf_counter() - start
        weight, bias = fit.coef_, fit.intercept_
        if len(weight) == 1:
            weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
        done = int(fit.n_iter_.max())
        curve.append((seconds, done, check_solver.objective(exact, y, c, weight, bias)))
        spent += seconds
        if done < iterations or spent + 1.6 * seconds > budget:
            return curve
        iterations = iterations + 1 if iterations < 6 else int(iterations * 1.5)


def torch_curve(x, y, c: float, classes: int, budget: float):
    import torch

    start = time.perf_counter()
    features = torch.from_numpy(x)
    features = features - features.mean(0)
    labels = torch.from_numpy(y)
    weight = torch.zeros(classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], lr=1, max_iter=100_000, max_eval=100_000, history_size=20, line_search_fn="strong_wolfe",
                                  tolerance_grad=0, tolerance_change=0)
    curve = []

    class Enough(Exception):
        pass

    def closure():
        optimiser.zero_grad()
        # Divided by N C, as its line search wants values near one.
        loss = torch.nn.functional.cross_entropy(features @ weight.T + bias, labels) + (weight**2).sum() / (2 * c * len(y))
        loss.backward()
        seconds = time.perf_counter() - start
        curve.append((seconds, len(curve) + 1, float(loss.detach()) * c * len(y)))
        if seconds > budget or len(curve) >= 3000:
            raise Enough
        return loss

    try:
        optimiser.step(closure)
    except Enough:
        pass
    return curve


def sweep(args, name: str, x, y) -> list[str]:
    classes = int(y.max()) + 1
    lines = ["", f"Sweep over 45 values of C, 10^linspace(-6, 5), on {name}, to estimated gaps; single fits are of every fourth value.", "",
             "| gap | all 45, s | passes | one fit, mean, s | passes | fits that the sweep costs |", "|---|---|---|---|---|---|"]
    for gap in (1e-4, 1e-5, 1e-6):
        together = check_solver.solve(args.solve, x, y, classes, SWEEP.tolist(), path=True, relative_gap=gap)
        apart = check_solver.solve(args.solve, x, y, classes, SWEEP[::4].tolist(), relative_gap=gap)
        mean = np.mean([fit["seconds"] for fit in apart])
        lines.append(f"| {gap:.0e} | {together[0]['seconds']:.3f} | {sum(f['passes'] for f in together)} | {mean:.4f} | {np.mean([f['passes'] for f in apart]):.0f} | {together[0]['seconds'] / mean:.1f} |")
    print("\n".join(lines), flush=True)
    return lines


if __name__ == "__main__":
    with threadpool_limits(len(__import__("os").sched_getaffinity(0))):
        main()
