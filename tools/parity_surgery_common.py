"""What the scripts about surgery share: a convention and its cases, the temporary folder of one run, and how a result is compared."""

import fnmatch
import functools
import importlib
import json
import math
import os
import subprocess
import tempfile
import zlib
from collections import OrderedDict
from dataclasses import dataclass, field

import torch
from safetensors.torch import load_file, save_file

from parity_common import bits, check

# A plan says a convention in at most so many lines, none of them wider than a wide terminal.
MAX_LINES = 3
MAX_WIDTH = 280

conventions = OrderedDict()


@dataclass
class Case:
    """One plan, the state dict it is given, and what the original function makes of that."""

    plan: str
    given: object
    expected: dict = None
    # Patterns of names -> |a - b| <= tolerance * max|b|. Every other tensor is equal to the last bit.
    near: dict = field(default_factory=dict)
    # The order of the names is compared too.
    ordered: bool = False
    # Further files in the folder in which the plan runs: state dicts, or a function of the folder that writes them.
    files: dict = field(default_factory=dict)
    # The text on stderr behind `error: `, of a plan that is refused.
    message: str = None
    given_suffix: str = ".pth"
    out_suffix: str = ".safetensors"
    # Is given the state dict found, for what no expected state dict says: distributions.
    also: object = None
    # The plan comes from a file and not from the command line.
    from_file: bool = False


@dataclass
class Convention:
    name: str
    original: str
    needs: tuple
    cases: object

    def missing(self):
        """Which of the packages it needs are not here."""
        return [name for name in self.needs if not importable(name)]


@functools.cache
def importable(name):
    try:
        importlib.import_module(name)
    except Exception:
        return False
    return True


def convention(name, original, needs=()):
    """Registers a function that gives the cases of one convention. `original` says whose function is the oracle."""

    def register(cases):
        conventions[name] = Convention(name, original, tuple(needs), cases)
        return cases

    return register


def seed(name):
    torch.manual_seed(zlib.crc32(name.encode()))


def randoms(shapes, dtype=torch.float32):
    """A state dict of these names and shapes."""
    return OrderedDict((name, torch.randn(shape).to(dtype)) for name, shape in shapes.items())


def lines_of(plan):
    return [line for line in plan.strip().split("\n") if line.strip()]


def steps_of(plan):
    return sum(len([step for step in line.split(";") if step.strip()]) for line in lines_of(plan))


def check_plan(label, plan, max_lines=MAX_LINES):
    lines = lines_of(plan)
    check(f"{label}: lines of its plan", len(lines) <= max_lines, True)
    check(f"{label}: widest line of its plan, {max(map(len, lines))}", max(map(len, lines)) <= MAX_WIDTH, True)


def write(value, path):
    if path.endswith(".safetensors"):
        # safetensors takes no tensors that share memory, nor views.
        save_file({name: tensor.detach().clone().contiguous() for name, tensor in value.items()}, path)
    elif path.endswith((".tsv", ".json", ".plan")):
        with open(path, "w", encoding="utf-8") as file:
            file.write(value if isinstance(value, str) else json.dumps(value))
    else:
        torch.save(value, path)


def read(path):
    """The state dict of a result, in the order in which its file names it; of an adapter's folder, with its `config`."""
    if os.path.isdir(path):
        found = read(os.path.join(path, "adapter_model.safetensors"))
        with open(os.path.join(path, "adapter_config.json"), encoding="utf-8") as file:
            found.config = json.load(file)
        return found
    if not path.endswith(".safetensors"):
        return torch.load(path, weights_only=True)
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    tensors = load_file(path)
    return OrderedDict((name, tensors[name]) for name in header if name != "__metadata__")


def run_case(binary, label, case):
    """Runs one plan in a folder of its own and compares. Returns what the plan has made, or None."""
    with tempfile.TemporaryDirectory() as folder:
        given, out = f"in{case.given_suffix}", f"out{case.out_suffix}"
        os.makedirs(os.path.dirname(os.path.join(folder, given)), exist_ok=True)
        write(case.given, os.path.join(folder, given))
        for name, value in case.files.items():
            path = os.path.join(folder, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            value(path) if callable(value) else write(value, path)
        words = ["-e", case.plan]
        if case.from_file:
            write(case.plan, os.path.join(folder, "steps.plan"))
            words = ["--plan", "steps.plan"]
        done = subprocess.run([binary, "edit", given, out, *words], cwd=folder, capture_output=True)
        errors = done.stderr.decode()
        if case.message is None:
            check(f"{label}: exit code, {errors.strip()[:300]}", done.returncode, 0)
        else:
            check(f"{label}: is refused", done.returncode in (1, 2, 3), True)
            start = errors.find("error: ")
            check(f"{label}: message", errors[start + len("error: ") :].rstrip("\n")[: len(case.message) + 1].rstrip("\n") if start >= 0 else errors, case.message)
        if done.returncode != 0:
            check(f"{label}: no output is left behind", os.path.exists(os.path.join(folder, out)), False)
            return None
        found = read(os.path.join(folder, out))
    if case.expected is not None:
        compare(label, found, case)
    if case.also is not None:
        case.also(label, found)
    return found


def compare(label, found, case):
    expected = case.expected
    if case.ordered:
        check(f"{label}: order of names", list(found), list(expected))
    check(f"{label}: names", sorted(found), sorted(expected))
    for name in expected:
        if name not in found:
            continue
        a, b = found[name].detach(), expected[name].detach()
        check(f"{label}: {name} type and shape", (str(a.dtype), tuple(a.shape)), (str(b.dtype), tuple(b.shape)))
        if a.dtype != b.dtype or a.shape != b.shape:
            continue
        tolerance = next((value for pattern, value in case.near.items() if fnmatch.fnmatchcase(name, pattern)), None)
        if tolerance is None:
            check(f"{label}: {name} to the bit", bits(a) == bits(b), True)
        else:
            error = (a.double() - b.double()).abs().max().item() if b.numel() else 0.0
            limit = tolerance * b.double().abs().max().item() if b.numel() else 0.0
            check(f"{label}: {name} within {tolerance}, off by {error:.3e}, limit {limit:.3e}", error <= limit, True)


def check_uniform(label, values, bound, low=None):
    """Values drawn from [-bound, bound): inside, right moments, and Kolmogorov-Smirnov."""
    low = -bound if low is None else low
    values = values.detach().double().flatten()
    check(f"{label}: within [{low:.4g}, {bound:.4g}]", bool((values >= low).all() and (values <= bound * (1 + 1e-6)).all()), True)
    check_moments(label, values, (low + bound) / 2, (bound - low) / math.sqrt(12))
    check_distribution(label, values, lambda x: ((x - low) / (bound - low)).clamp(0, 1))


def check_normal(label, values, std, mean=0.0, cut=None):
    """Values of a normal distribution, or of one that is cut at +-cut."""
    values = values.detach().double().flatten()
    cdf = lambda x: 0.5 * (1 + torch.erf((x - mean) / (std * math.sqrt(2))))
    if cut is not None:
        check(f"{label}: within +-{cut}", bool((values.abs() <= cut).all()), True)
        low, high = (cdf(torch.tensor(edge, dtype=torch.float64)) for edge in (-cut, cut))
        check_distribution(label, values, lambda x: ((cdf(x) - low) / (high - low)).clamp(0, 1))
    else:
        check_moments(label, values, mean, std)
        check_distribution(label, values, cdf)


def check_moments(label, values, mean, std):
    n = values.numel()
    # Five standard errors; the seeds are fixed, so what passes once passes always.
    check(f"{label}: mean {values.mean():.4g}", abs(values.mean().item() - mean) <= 5 * std / math.sqrt(n), True)
    if n >= 64:
        check(f"{label}: std {values.std():.4g} of {std:.4g}", abs(values.std().item() / std - 1) <= 5 / math.sqrt(n), True)


def check_distribution(label, values, cdf):
    """Kolmogorov-Smirnov against a distribution function; 2.2 / sqrt(n) is passed by all but one in ten thousand."""
    n = values.numel()
    below = cdf(values.sort().values)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = max((steps[1:] - below).max().item(), (below - steps[:-1]).max().item())
    check(f"{label}: distance of distributions {distance:.4f}, n={n}", distance <= 2.2 / math.sqrt(n), True)
