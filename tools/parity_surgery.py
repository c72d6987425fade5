"""The conventions of checkpoint surgery, each said in at most three lines of a plan, against the function that it comes from.

    python tools/parity_surgery.py [--graftwork target/release/graftwork] [--only NAME] [--list] [--expected-only]

For each convention an input is made (small random tensors under the real names), the original function of the original project says
what must come out, `graftwork edit IN OUT -e PLAN` is run, and names, shapes, types and values are compared. What only moves values is
equal to the last bit; what computes has a tolerance, stated with the case. A package that is not installed skips what needs it, aloud.
"""

import argparse
import importlib
import pathlib
import sys

import torch

import parity_common
from parity_surgery_common import check_plan, conventions, importable, lines_of, run_case, seed, steps_of

# Each registers its conventions.
for subject in ["timm", "resample", "names", "layout", "depth", "fold", "init", "load", "notebook"]:
    importlib.import_module(f"parity_surgery_{subject}")


def chosen(only):
    found = [c for c in conventions.values() if not only or any(name in c.name for name in only)]
    if not found:
        sys.exit(f"no convention is called {', '.join(only)}; --list names them")
    return found


def show(convention):
    print(f"# {convention.name}: {convention.original}")
    missing = convention.missing()
    if missing:
        print(f"#   not shown, {', '.join(missing)} is not installed")
        return
    seed(convention.name)
    shown = set()
    for case in convention.cases():
        if case.plan not in shown:
            print("\n".join(f"    {line}" for line in lines_of(case.plan)))
            print()
        shown.add(case.plan)


def one(binary, convention, expected_only):
    missing = convention.missing()
    if missing:
        print(f"skipped {convention.name}: {', '.join(missing)} is not installed")
        return
    n_checks, n_failures, n_cases, lines, steps = parity_common.n_checks, len(parity_common.failures), 0, 0, 0
    seed(convention.name)
    for case in convention.cases():
        n_cases += 1
        lines, steps = max(lines, len(lines_of(case.plan))), max(steps, steps_of(case.plan))
        label = f"{convention.name}[{n_cases}]"
        check_plan(label, case.plan, getattr(case, "max_lines", 3))
        if not expected_only:
            run_case(binary, label, case)
    n_checks, n_failures = parity_common.n_checks - n_checks, len(parity_common.failures) - n_failures
    verdict = "same" if n_failures == 0 else f"{n_failures} MISMATCHES"
    if expected_only:
        verdict = "expected made" if n_failures == 0 else verdict
    print(f"{verdict:<14} {convention.name:<24} {n_cases:>3} cases {n_checks:>5} checks, {lines} lines, {steps} steps: {convention.original}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--graftwork", default="target/release/graftwork", help="the binary")
    parser.add_argument("--only", action="append", help="conventions whose name holds this")
    parser.add_argument("--list", action="store_true", help="prints the conventions and their plans")
    parser.add_argument("--expected-only", action="store_true", help="runs the original functions alone, without the binary")
    args = parser.parse_args()
    torch.set_num_threads(2)
    if args.list:
        for convention in chosen(args.only):
            show(convention)
        return
    binary = None if args.expected_only else str(pathlib.Path(args.graftwork).resolve(strict=True))
    for convention in chosen(args.only):
        one(binary, convention, args.expected_only)
    if not importable("transformers"):
        print("transformers is not installed: plain torch expressions stood for its functions and were not compared with them")
    parity_common.finish()


if __name__ == "__main__":
    main()
