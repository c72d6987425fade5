"""How many ONNX Runtime sessions of how many threads, and how large a batch: pictures per second on this machine.

    python3 benches/sessions.py MODEL.onnx... [--batches 1,4,8,16,32] [--seconds 1] [--rounds 3] [--bits] [--options]

Rates are the best of the rounds, which are interleaved so that what else the machine does falls on all alike; those per
second of processor time hardly depend on it.
--bits compares outputs bit by bit between batch sizes, threads, sessions and neighbours; --options tries session options.
"""

import argparse
import itertools
import resource
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort


def session(path, threads, batch=None, **more):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = more.pop("deterministic", True)
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if more.pop("spin", False) else "0")
    options.enable_mem_pattern = more.pop("pattern", True)
    options.enable_cpu_mem_arena = more.pop("arena", True)
    for key, value in more.pop("entries", {}).items():
        options.add_session_config_entry(key, value)
    assert not more, more
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def pictures(n, side, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 3, side, side), dtype=np.float32)


def side_of(s):
    size = s.get_inputs()[0].shape[-1]
    return size if isinstance(size, int) else 224


def rate(sessions, batch, seconds):
    """Pictures of all sessions together, each on its own thread: per second, and per second of processor time."""
    side = side_of(sessions[0])
    name = sessions[0].get_inputs()[0].name
    pixels = pictures(batch, side)
    counts = [0] * len(sessions)
    for s in sessions:
        s.run(None, {name: pixels})
    start, cpu = time.perf_counter(), time.process_time()

    def work(idx):
        while True:
            sessions[idx].run(None, {name: pixels})
            counts[idx] += batch
            if time.perf_counter() - start > seconds:
                return

    threads = [threading.Thread(target=work, args=(idx,)) for idx in range(len(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start), sum(counts) / (time.process_time() - cpu)


def table(path, batches, seconds, rounds, cores):
    setups = {
        f"1 x {cores} threads": [session(path, cores)],
        f"{cores} x 1 thread": [session(path, 1) for _ in range(cores)],
    }
    best = {}
    for _ in range(rounds):
        for batch, (name, sessions) in itertools.product(batches, setups.items()):
            per_second, per_cpu = rate(sessions, batch, seconds)
            for key, value in (((name, batch), per_second), ((name + ", per CPU second", batch), per_cpu)):
                best[key] = max(best.get(key, 0), value)
    print(f"\n| {path.stem} | " + " | ".join(f"batch {batch}" for batch in batches) + " |")
    print("|---" * (len(batches) + 1) + "|")
    for name in dict.fromkeys(name for name, _ in best):
        print(f"| {name} | " + " | ".join(f"{best[name, batch]:.1f}" for batch in batches) + " |", flush=True)


def bits(path):
    name = session(path, 1).get_inputs()[0].name
    side = side_of(session(path, 1))
    pixels = pictures(8, side)

    def rows(s, batch, neighbours=None):
        out = []
        for first in range(0, 8, batch):
            part = pixels[first : first + batch]
            if neighbours is not None:
                part = np.concatenate([part, neighbours])
            out.append(s.run(None, {name: part})[0][: min(batch, 8 - first)])
        return np.concatenate(out)

    reference = rows(session(path, 1), 8)
    again = session(path, 1)
    checks = {
        "another session": rows(again, 8),
        "the same session again": rows(again, 8),
        "2 threads": rows(session(path, 2), 8),
        "batch 1": rows(session(path, 1), 1),
        "batch 3": rows(session(path, 1), 3),
        "batch 4": rows(session(path, 1), 4),
        "batch 4, 2 threads": rows(session(path, 2), 4),
        "batch 8 padded to 32 with zeros": rows(session(path, 1), 8, np.zeros((24, 3, side, side), np.float32)),
        "batch 8 padded to 32 with others": rows(session(path, 1), 8, pictures(24, side, 1)),
        "32 with zeros against 32 with others": None,
        "not deterministic_compute": rows(session(path, 1, deterministic=False), 8),
    }
    zeros, others = checks["batch 8 padded to 32 with zeros"], checks["batch 8 padded to 32 with others"]
    print(f"\n{path.stem}: rows against one session, 1 thread, batch 8")
    for what, value in checks.items():
        base = reference
        if value is None:
            base, value = zeros, others
        equal = np.array_equal(base.view(np.uint32), value.view(np.uint32))
        error = np.abs(base - value).max() / np.abs(base).max()
        print(f"  {what:40} {'equal bit for bit' if equal else f'differs, {error:.1e} of the largest'}", flush=True)


def options(path, batch, seconds, rounds):
    setups = {
        "as it is": {},
        "no memory pattern": {"pattern": False},
        "no arena": {"arena": False},
        "denormals are zero": {"entries": {"session.set_denormal_as_zero": "1"}},
        "spinning": {"spin": True},
        "not deterministic": {"deterministic": False},
        "no prepacking": {"entries": {"session.disable_prepacking": "1"}},
    }
    best, memory = {}, {}
    made = {}
    for name, more in setups.items():
        before = resident()
        made[name] = [session(path, 1, **dict(more)) for _ in range(2)]
        memory[name] = resident() - before
    for _ in range(rounds):
        for name, sessions in made.items():
            best[name] = max(best.get(name, 0), rate(sessions, batch, seconds)[1])
    print(f"\n| {path.stem}, 2 x 1 thread, batch {batch} | pictures per CPU second | MiB when loaded |\n|---|---|---|")
    for name in setups:
        print(f"| {name} | {best[name]:.1f} | {memory[name] / 2**20:.0f} |", flush=True)


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--batches", default="1,4,8,16,32")
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--bits", action="store_true")
    parser.add_argument("--options", action="store_true")
    args = parser.parse_args()
    for path in args.models:
        if args.bits:
            bits(path)
        elif args.options:
            options(path, int(args.batches.split(",")[-1]), args.seconds, args.rounds)
        else:
            table(path, [int(b) for b in args.batches.split(",")], args.seconds, args.rounds, args.cores)


main()
