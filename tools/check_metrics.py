"""Compares the marks of heads with scikit-learn's functions, and the calibration with SciPy's minimiser.

    cargo build --package graftwork-runtime --example marks
    python tools/check_metrics.py --marks target/debug/examples/marks

Random logits, with ties, with classes that never occur and classes that are never predicted, of two to forty classes. Every figure
must agree within 1e-9 (1e-6 of the temperature, which SciPy finds no closer), and the tables character by character.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import warnings

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax
from sklearn import metrics

from parity_common import check, finish

warnings.filterwarnings("ignore")
N_BINS = 15


def said(binary: str, **given) -> dict:
    given = {key: value.ravel().tolist() if isinstance(value, np.ndarray) else value for key, value in given.items()}
    done = subprocess.run([binary], input=json.dumps(given), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def near(name: str, ours: float, theirs: float, tolerance: float = 1e-9) -> None:
    check(f"{name}: {ours!r}, expected {theirs!r}", abs(ours - theirs) <= tolerance * max(1.0, abs(theirs)), True)


def same_table(name: str, ours: str, theirs: str) -> None:
    """Character by character, but for a last digit where a mean lies between two: NumPy adds in another order."""
    number = re.compile(r"\d+\.\d+")
    check(f"{name}: table", number.sub("#", ours), number.sub("#", theirs))
    for a, b in zip(number.findall(ours), number.findall(theirs)):
        check(f"{name}: {a} in the table, expected {b}", abs(float(a) - float(b)) < 1.5e-3, True)
    off = sum(a != b for a, b in zip(number.findall(ours), number.findall(theirs)))
    check(f"{name}: last digits that differ", off <= 1, True)


def ece(probability: np.ndarray, true: np.ndarray) -> float:
    edges = np.linspace(0, 1, N_BINS + 1)
    total = 0.0
    for low, high in zip(edges[:-1], edges[1:]):
        inside = (probability > low) & (probability <= high) if low > 0 else probability <= high
        if inside.any():
            total += inside.mean() * abs(probability[inside].mean() - true[inside].mean())
    return total


def temperature(loss) -> float:
    """Of a loss over temperatures, the least between 0.01 and 100."""
    found = minimize_scalar(lambda log: loss(np.exp(log)), bounds=(np.log(0.01), np.log(100)), method="bounded", options={"xatol": 1e-10})
    return float(np.exp(found.x))


def single_label(binary: str, rng: np.random.Generator, n: int, k: int, ties: bool) -> None:
    case = f"{n} rows of {k} classes{', ties' if ties else ''}"
    labels = rng.integers(0, max(2, k - 1), n)  # the last class never occurs where there are more than two
    logits = rng.normal(size=(n, k)).astype(np.float32)
    logits[np.arange(n), labels] += 1.5
    if k > 3:
        logits[:, 0] -= 9  # never predicted
    if ties:
        logits = np.round(logits).astype(np.float32)
    names = [f"class {i}" for i in range(k)]
    answer = said(binary, task="single-label", outputs=names, logits=logits, labels=labels)
    marks, wide = answer["marks"], logits.astype(np.float64)
    predicted, probability = logits.argmax(1), softmax(wide, axis=1)
    every = list(range(k))
    near(f"{case}: accuracy", marks["accuracy"], metrics.accuracy_score(labels, predicted))
    near(f"{case}: log loss", marks["log_loss"], metrics.log_loss(labels, probability, labels=every))
    near(f"{case}: macro F1", marks["macro_f1"], metrics.f1_score(labels, predicted, average="macro", zero_division=0))
    one_hot = np.eye(k)[labels]
    near(f"{case}: Brier by its definition", marks["brier"], ((probability - one_hot) ** 2).sum(1).mean())
    if k > 2:
        near(f"{case}: Brier", marks["brier"], metrics.brier_score_loss(labels, probability, labels=every, scale_by_half=False))
    if k > 5 and not ties:
        near(f"{case}: top 5", marks["top5_accuracy"], metrics.top_k_accuracy_score(labels, wide, k=5, labels=every))
    check(f"{case}: confusion", marks["confusion"], metrics.confusion_matrix(labels, predicted, labels=every).tolist())
    near(f"{case}: calibration error", marks["ece"], ece(probability.max(1), predicted == labels))
    table = metrics.classification_report(labels, predicted, labels=every, target_names=names, digits=3, zero_division=0)
    same_table(case, answer["table"], table)
    loss = lambda t: -log_softmax(wide / t, axis=1)[np.arange(n), labels].mean()
    near(f"{case}: temperature", answer["temperature"]["value"], temperature(loss), 1e-6)
    near(f"{case}: log loss after", answer["temperature"]["log_loss_after"], loss(temperature(loss)))


def multi_label(binary: str, rng: np.random.Generator, n: int, k: int, ties: bool) -> None:
    case = f"{n} rows with labels of {k}{', ties' if ties else ''}"
    values = (rng.random((n, k)) < 0.3).astype(np.float32)
    logits = (rng.normal(size=(n, k)) * 2 + 3 * values - 1).astype(np.float32)
    if ties:
        logits = np.round(logits).astype(np.float32)
    names = [f"class {i}" for i in range(k)]
    answer = said(binary, task="multi-label", outputs=names, logits=logits, values=values)
    marks, probability = answer["marks"], expit(logits.astype(np.float64))
    truth, predicted = values.astype(int), (logits > 0).astype(int)
    each = metrics.average_precision_score(truth, logits, average=None)
    for name, ours, theirs in zip(names, marks["per_class"], np.atleast_1d(each)):
        near(f"{case}: average precision of {name}", ours["average_precision"], theirs)
    near(f"{case}: mAP", marks["mean_average_precision"], metrics.average_precision_score(truth, logits, average="macro"))
    # Of one column scikit-learn makes two classes.
    for average in ("micro", "macro") if k > 1 else ():
        near(f"{case}: {average} F1", marks[f"{average}_f1"], metrics.f1_score(truth, predicted, average=average, zero_division=0))
    near(f"{case}: exact", marks["exact_match"], metrics.accuracy_score(truth, predicted))
    near(f"{case}: Brier", marks["brier"], metrics.mean_squared_error(truth, probability))
    near(f"{case}: calibration error", marks["ece"], ece(probability.ravel(), truth.ravel()))
    loss = lambda t: np.mean(np.logaddexp(0, logits.astype(np.float64) / t) - truth * logits.astype(np.float64) / t)
    near(f"{case}: log loss", marks["log_loss"], loss(1.0))
    near(f"{case}: temperature", answer["temperature"]["value"], temperature(loss), 1e-6)
    if k > 1:
        table = metrics.classification_report(truth, predicted, target_names=names, digits=3, zero_division=0)
        same_table(case, answer["table"], table)


def regression(binary: str, rng: np.random.Generator, n: int, k: int) -> None:
    case = f"{n} rows of {k} numbers"
    values = rng.normal(size=(n, k)).astype(np.float32) * 3 + 5
    logits = (values + rng.normal(size=(n, k)) * 0.7).astype(np.float32)
    answer = said(binary, task="regression", outputs=[f"out {i}" for i in range(k)], logits=logits, values=values)
    true, predicted = values.astype(np.float64), logits.astype(np.float64)
    near(f"{case}: MAE", answer["marks"]["mae"], metrics.mean_absolute_error(true, predicted))
    near(f"{case}: RMSE", answer["marks"]["rmse"], metrics.root_mean_squared_error(true, predicted))
    near(f"{case}: R²", answer["marks"]["r2"], metrics.r2_score(true, predicted))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--marks", required=True, help="the example `marks`")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    for n, k in [(50, 2), (200, 3), (1000, 10), (3000, 40)]:
        for ties in (False, True):
            single_label(args.marks, rng, n, k, ties)
            multi_label(args.marks, rng, n, k, ties)
        regression(args.marks, rng, n, k)
    multi_label(args.marks, rng, 100, 1, True)
    finish()


if __name__ == "__main__":
    main()
