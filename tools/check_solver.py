"""Compares the solver's heads with scikit-learn's and with a Newton method's, by the objective they all minimise.

    cargo build --release -p graftwork-runtime --example solve
    python tools/check_solver.py --solve target/release/examples/solve [--npz FEATURES.npz]

The objective is C * (sum of cross-entropies) + 1/2 ||W||^2 with the bias free, evaluated here in float64 for every head.
The references are LogisticRegression(lbfgs, tol=1e-10, max_iter=10000, or fewer with `--sklearn-iterations`) and a Newton method with
the whole Hessian; the lower of the two is the reference value. Exits with 1 when (ours - reference) / reference is above `--tolerance` anywhere, or when Newton's method itself
is that far above scikit-learn, which would make the check worthless.
With two classes scikit-learn fits one vector w with 1/2 ||w||^2; as the head [0; w] it has the same objective, and that is compared.
Data: the digits, a small ill-conditioned synthetic set, two classes, and with `--npz FILE` features of your own (arrays X and y).
Then, on the digits: class weights (given and balanced), standardised features, several labels (one-vs-rest), ridge regression with its
cross-validated penalty, the nearest mean, discriminant analysis and nearest neighbours, each beside scikit-learn's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import scipy.linalg
from scipy.special import log_softmax, softmax
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

SEED = 11
# Newton's method is done when the fall that its model still promises is below this part of the objective.
NEWTON_DECREMENT = 1e-14
NEWTON_STEPS = 100


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--solve", type=Path, help="the example; without it only the references are compared with each other")
    parser.add_argument("--npz", type=Path, help="features of your own: arrays X [N, D] and y [N]")
    parser.add_argument("--c", type=float, nargs="+", default=[0.01, 1.0, 100.0], help="default: 0.01 1 100")
    parser.add_argument("--sklearn-iterations", type=int, default=10_000, help="fewer is quicker; Newton's method stays exact (default %(default)s)")
    parser.add_argument("--tolerance", type=float, default=1e-6, help="relative gap of the objective (default %(default)s)")
    args = parser.parse_args()
    failures = 0
    print(f"{'data':<22} {'N':>6} {'D':>5} {'C':>4} {'c':>8} {'objective':>16} {'sklearn gap':>12} {'newton gap':>12} {'solver gap':>14} {'seconds':>8}")
    for name, (x, y) in data_sets(args.npz).items():
        for c in args.c:
            failures += compare(args, name, x, y, c)
    if args.solve:
        failures += others(args.solve, args.tolerance)
    print(f"{failures} failures" if failures else "all within the tolerance")
    return 1 if failures else 0


def data_sets(npz: Path | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> (features [N, D] float32, labels [N] int64 from 0)."""
    digits, labels = load_digits(return_X_y=True)
    # All of 0-3, one in seven of the others.
    kept = (labels <= 3) | (np.arange(len(labels)) % 7 == 0)
    rng = np.random.default_rng(SEED)
    sets = {
        "digits": (digits, labels),
        "digits, unbalanced": (digits[kept], labels[kept]),
        "ill-conditioned": ill_conditioned(rng, classes=6),
        "two classes": ill_conditioned(rng, classes=2),
        "more D than N": (rng.standard_normal((60, 200)), rng.integers(0, 3, 60)),
    }
    if npz:
        arrays = np.load(npz)
        sets[npz.stem] = (arrays["X"], arrays["y"])
    return {name: (np.ascontiguousarray(x, np.float32), np.asarray(y, np.int64)) for name, (x, y) in sets.items()}


def ill_conditioned(rng, classes: int, n: int = 800, d: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Columns of scales from 1e-2 to 1e2, correlated, far from centred; labels from a noisy linear rule."""
    scales = np.logspace(-2, 2, d)
    mixing = np.linalg.qr(rng.standard_normal((d, d)))[0]
    hidden = rng.standard_normal((n, d))
    x = (hidden * scales) @ mixing + rng.uniform(-20, 20, d)
    y = (hidden @ rng.standard_normal((d, classes)) + 2 * rng.standard_normal((n, classes))).argmax(1)
    return x, y


def compare(args, name: str, x: np.ndarray, y: np.ndarray, c: float) -> int:
    classes = int(y.max()) + 1
    exact = x.astype(np.float64)
    # The matrices are small: one thread is several times faster than two that wait for each other.
    with threadpool_limits(1):
        by_sklearn = objective(exact, y, c, *fit_sklearn(exact, y, c, classes, args.sklearn_iterations))
        by_newton = objective(exact, y, c, *fit_newton(exact, y, c, classes))
    best = min(by_sklearn, by_newton)
    gap, seconds = float("nan"), float("nan")
    failures = int(by_newton - best > args.tolerance * best)
    # scikit-learn may stop early on the ill-conditioned sets; Newton's method is then the reference that counts.
    if args.solve:
        fitted = solve(args.solve, x, y, classes, [c])[0]
        weight, bias, seconds = fitted["weight"], fitted["bias"], fitted["seconds"]
        gap = (objective(exact, y, c, weight, bias) - best) / best
        failures += int(not gap <= args.tolerance)
    print(f"{name:<22} {len(x):>6} {x.shape[1]:>5} {classes:>4} {c:>8g} {best:>16.9g} {(by_sklearn - best) / best:>12.1e} "
          f"{(by_newton - best) / best:>12.1e} {gap:>14.1e} {seconds:>8.2f}{'   FAILED' if failures else ''}")
    return failures


def objective(x: np.ndarray, y: np.ndarray, c: float, weight: np.ndarray, bias: np.ndarray, per_row: np.ndarray | float = 1.0) -> float:
    """C * sum of weighted cross-entropies + 1/2 ||W||^2 for weight [C, D] and bias [C], in float64."""
    weight, bias = weight.astype(np.float64), bias.astype(np.float64)
    log_p = log_softmax(x @ weight.T + bias, axis=1)
    return float(-c * (per_row * log_p[np.arange(len(y)), y]).sum() + 0.5 * (weight**2).sum())


def fit_sklearn(x: np.ndarray, y: np.ndarray, c: float, classes: int, max_iter: int) -> tuple[np.ndarray, np.ndarray]:
    # Two classes: scikit-learn fits one vector w with 1/2 ||w||^2. As the head [0; w] it has the same loss and the same penalty.
    fit = LogisticRegression(C=c, solver="lbfgs", tol=1e-10, max_iter=max_iter)
    with warnings.catch_warnings():
        # Whether it converged shows in the objective.
        warnings.simplefilter("ignore")
        fit.fit(x, y)
    if classes > 2:
        return fit.coef_, fit.intercept_
    return np.concatenate([0 * fit.coef_, fit.coef_]), np.concatenate([0 * fit.intercept_, fit.intercept_])


def fit_newton(x: np.ndarray, y: np.ndarray, c: float, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Newton's method with the whole Hessian, steps halved until the objective falls.

    Features are centred inside, which only shifts the bias: the bias is free, so the optimum is the same.
    """
    # Two classes: 2 (C/2 sum + 1/2 ||W||^2) of the symmetric W = [-w/2; w/2] is C sum + 1/2 ||w||^2.
    c = c / 2 if classes == 2 else c
    centre = x.mean(0)
    design = np.hstack([x - centre, np.ones((len(x), 1))])  # [N, D + 1]
    penalty = np.append(np.ones(x.shape[1]), 0.0)
    target = np.eye(classes)[y]
    theta = np.zeros((classes, design.shape[1]))

    def value(theta):
        return -c * (target * log_softmax(design @ theta.T, axis=1)).sum() + 0.5 * (theta**2 * penalty).sum()

    for _ in range(NEWTON_STEPS):
        p = softmax(design @ theta.T, axis=1)
        gradient = c * (p - target).T @ design + theta * penalty
        step, here, length = newton_step(design, p, gradient, penalty, c), value(theta), 1.0
        if -0.5 * (gradient * step).sum() <= NEWTON_DECREMENT * here:
            break
        while value(theta + length * step) > here and length > 1e-8:
            length /= 2
        if length <= 1e-8:
            break  # no descent left in float64
        theta = theta + length * step
    if classes == 2:
        theta = theta - theta[0]
    weight = theta[:, :-1]
    return weight, theta[:, -1] - weight @ centre


def newton_step(design: np.ndarray, p: np.ndarray, gradient: np.ndarray, penalty: np.ndarray, c: float) -> np.ndarray:
    """-H^-1 gradient; block (j, k) of H is c X^T diag(p_j ([j = k] - p_k)) X, plus the penalty on the diagonal."""
    classes, width = gradient.shape
    blocks = np.empty((classes, width, classes, width))
    for j in range(classes):
        for k in range(j + 1):
            curve = p[:, j] * ((j == k) - p[:, k])
            blocks[j, :, k, :] = c * (design * curve[:, None]).T @ design
            blocks[k, :, j, :] = blocks[j, :, k, :].T
        blocks[j, :, j, :] += np.diag(penalty)
    # The same bias added to every class changes nothing, which leaves H singular; the gradient has no part in that direction, so
    # any curvature given to it leaves the step as it is.
    blocks[:, -1, :, -1] += c * len(design) / classes**2
    hessian = blocks.reshape(gradient.size, gradient.size)
    scale = 1 / np.sqrt(np.diag(hessian))
    solved = scipy.linalg.solve(hessian * scale * scale[:, None], -gradient.ravel() * scale, assume_a="pos")
    return (solved * scale).reshape(gradient.shape)


def others(binary: Path, tolerance: float) -> int:
    """What has a counterpart in scikit-learn beside the plain fit; returns the number of failures."""
    x, y = load_digits(return_X_y=True)
    x = np.ascontiguousarray(x, np.float32)
    exact = x.astype(np.float64)
    failures = 0

    def judge(what: str, gap: float, within: float = tolerance):
        nonlocal failures
        bad = not gap <= within
        failures += bad
        print(f"{what:<60} {gap:>12.1e}{'   FAILED' if bad else ''}", flush=True)

    weights = np.linspace(0.5, 3, 10)
    kept = (y <= 3) | (np.arange(len(y)) % 7 == 0)
    for name, rows, given, per_class in [
        ("class weights", slice(None), {"given": weights.tolist()}, weights),
        ("balanced", kept, "balanced", len(y[kept]) / (10 * np.bincount(y[kept]))),
    ]:
        ours = solve(binary, x[rows], y[rows], 10, [0.1], class_weights=given)[0]
        reference = LogisticRegression(C=0.1, tol=1e-9, max_iter=20_000, class_weight=dict(enumerate(per_class))).fit(exact[rows], y[rows])
        value = lambda w, b: objective(exact[rows], y[rows], 0.1, w, b, per_class[y[rows]])
        best = value(reference.coef_, reference.intercept_)
        judge(f"digits, {name}", (value(ours["weight"], ours["bias"]) - best) / best)

    ours = solve(binary, x, y, 10, [0.1], standardise=True)[0]
    scaler = StandardScaler().fit(exact)
    reference = LogisticRegression(C=0.1, tol=1e-9, max_iter=20_000).fit(scaler.transform(exact), y)
    value = lambda w, b: objective(scaler.transform(exact), y, 0.1, w * scaler.scale_, b + w @ scaler.mean_)
    best = value(reference.coef_ / scaler.scale_, reference.intercept_ - (reference.coef_ / scaler.scale_) @ scaler.mean_)
    judge("digits, standardised", (value(ours["weight"], ours["bias"]) - best) / best)

    labels = np.stack([y % 2, y > 5, y % 3 == 0, y == 7], 1).astype(np.float32)
    for name, balance in [("several labels", "none"), ("several labels, balanced", "balanced")]:
        ours = solve(binary, x, labels, 4, [0.5], task="multi-label", class_weights=balance)[0]
        gaps = []
        for k in range(4):
            wanted = labels[:, k].astype(int)
            per_row = np.ones(len(y)) if balance == "none" else (len(y) / (2 * np.bincount(wanted)))[wanted]
            reference = LogisticRegression(C=0.5, tol=1e-9, max_iter=20_000, class_weight=None if balance == "none" else "balanced").fit(exact, wanted)
            pair = lambda w, b: objective(exact, wanted, 0.5, np.stack([0 * w, w]), np.array([0, b]), per_row)
            best = pair(reference.coef_[0], reference.intercept_[0])
            gaps.append((pair(ours["weight"][k], ours["bias"][k]) - best) / best)
        judge(f"digits, {name}", max(gaps))

    numbers = np.stack([y, np.sqrt(y)], 1).astype(np.float32)
    for c in (1e-3, 1.0):
        ours = solve(binary, x, numbers, 2, [c], task="regression")[0]
        reference = Ridge(alpha=1 / (2 * c), solver="svd").fit(exact, numbers)
        value = lambda w, b: c * ((exact @ w.T.astype(float) + b - numbers) ** 2).sum() + 0.5 * (w.astype(float) ** 2).sum()
        best = value(reference.coef_, reference.intercept_)
        judge(f"digits, ridge regression, C {c:g}", (value(ours["weight"], ours["bias"]) - best) / best)

    extra = solve(binary, x, y, 10, [], baselines={"known": 1200, "alphas": [0.1, 10.0, 1000.0], "shrinkage": 0.3, "k": 5})[0]
    near = NearestCentroid().fit(exact, y).predict(exact)
    judge("digits, nearest mean: rows that differ", float((predict(extra["nearest_mean"], exact) != near).sum()), 0)
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3).fit(exact, y)
    theirs = lda.decision_function(exact)
    mine = exact @ extra["lda"][0].T + extra["lda"][1]
    # Logits may differ by what all classes of a row share.
    judge("digits, discriminant analysis: largest difference of a logit", np.abs((mine - mine[:, :1]) - (theirs - theirs[:, :1])).max(), 1e-3)
    one_hot = np.eye(10)[y]
    ridge = RidgeCV(alphas=[0.1, 10.0, 1000.0], store_cv_results=True, fit_intercept=True).fit(exact, one_hot)
    errors = ridge.cv_results_.mean((0, 1))
    judge("digits, leave-one-out error, relative", np.abs(np.array(extra["squared_errors"]) / errors - 1).max(), 1e-6)
    judge("digits, leave-one-out penalty", float(extra["alpha"] != ridge.alpha_), 0)
    for metric in ("cosine", "euclidean"):
        theirs = KNeighborsClassifier(5, metric=metric, algorithm="brute").fit(exact[:1200], y[:1200]).predict(exact[1200:])
        judge(f"digits, neighbours, {metric}: rows that differ", float((np.array(extra[metric]) != theirs).sum()), 1)
    return failures


def predict(head: tuple[np.ndarray, np.ndarray], x: np.ndarray) -> np.ndarray:
    return (x @ head[0].T + head[1]).argmax(1)


def solve(binary: Path, x: np.ndarray, y: np.ndarray, n_outputs: int, cs: list[float], path=False, trace=False, baselines=None, **config) -> list[dict]:
    """What `examples/solve` makes of a request: one answer for each C, or one with the baselines."""
    settings = {"task": "single-label", "class_weights": "none", "label_smoothing": 0.0, "standardise": False, "relative_gap": 1e-8, "max_passes": 2000}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.save(folder / "X.npy", x)
        np.save(folder / "y.npy", y if y.ndim == 2 else y.astype(np.int64))
        request = {"features": str(folder / "X.npy"), "labels": str(folder / "y.npy"), "n_outputs": n_outputs, "config": settings | config, "cs": list(cs),
                   "out": str(folder / "out"), "path": path, "trace": trace, "baselines": baselines}
        (folder / "request.json").write_text(json.dumps(request))
        done = subprocess.run([str(binary), str(folder / "request.json")], capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{binary} exits with {done.returncode}: {done.stderr}")
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        read = lambda name, i: (np.load(folder / "out" / f"weight-{name}{i}.npy").reshape(n_outputs, -1).astype(np.float64),
                                np.load(folder / "out" / f"bias-{name}{i}.npy").astype(np.float64))
        for i, answer in enumerate(answers):
            if baselines:
                answer["nearest_mean"], answer["lda"] = read("nearest-mean", ""), read("lda", "")
            else:
                answer["weight"], answer["bias"] = read("", i)
    return answers


if __name__ == "__main__":
    sys.exit(main())
