"""A job in shards as a real Slurm array on this machine, compared with the same job in one process.

    python tools/slurm_array.py --graftwork target/release/graftwork [--shards 2]

Starts munged, slurmctld and slurmd (Debian: slurm-wlm, munge) on the loopback address in a scratch folder, as root since slurmd wants it;
submits `graftwork extract` as an array, kills one task in its middle and submits what `graftwork status --missing --format slurm` prints;
then finalizes. Fails unless rows and label manifest equal those of a run without shards, byte for byte. Needs ONNX Runtime to be found.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "fixtures" / "digits"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graftwork", type=Path, required=True)
    parser.add_argument("--shards", type=int, default=2)
    args = parser.parse_args()
    missing = [name for name in PROGRAMS if not shutil.which(name) and not Path(f"/usr/sbin/{name}").exists()]
    if missing or os.geteuid() != 0:
        raise SystemExit(f"needs root and Debian's slurm-wlm and munge; not found: {', '.join(missing) or 'nothing'}")
    with tempfile.TemporaryDirectory(prefix="graftwork-slurm-") as temporary:
        scratch = Path(temporary)
        scratch.chmod(0o755)
        daemons = start_cluster(scratch)
        try:
            compare(args, scratch)
        finally:
            for daemon in daemons:
                daemon.terminate()
            for daemon in daemons:
                daemon.wait()
    return 0


def start_cluster(scratch: Path) -> list[subprocess.Popen]:
    """munged, slurmctld and slurmd of one node, everything they write in `scratch`."""
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool", "munge"):
        (scratch / name).mkdir()
    key = scratch / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    munge_socket = scratch / "munge" / "socket"
    config = scratch / "slurm.conf"
    config.write_text(f"""ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={munge_socket}
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation={scratch}/state
SlurmdSpoolDir={scratch}/spool
SlurmctldPidFile={scratch}/slurmctld.pid
SlurmdPidFile={scratch}/slurmd.pid
SlurmctldLogFile={scratch}/slurmctld.log
SlurmdLogFile={scratch}/slurmd.log
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
""")
    os.environ["SLURM_CONF"] = str(config)
    os.environ["PATH"] += ":/usr/sbin"
    daemons = [subprocess.Popen(["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge_socket}",
                                 f"--pid-file={scratch}/munge/pid", f"--log-file={scratch}/munge/log", f"--seed-file={scratch}/munge/seed"])]
    time.sleep(1)
    daemons.append(subprocess.Popen(["slurmctld", "-D", "-i"]))
    time.sleep(1)
    daemons.append(subprocess.Popen(["slurmd", "-D"]))
    for _ in range(60):
        state = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True).stdout.strip()
        if state in ("idle", "mixed", "allocated"):
            return daemons
        time.sleep(1)
    for log in ("slurmctld.log", "slurmd.log", "munge/log"):
        print((scratch / log).read_text() if (scratch / log).exists() else f"no {log}", file=sys.stderr)
    raise SystemExit("Slurm did not start")


def compare(args, scratch: Path) -> None:
    binary = args.graftwork.resolve()
    extract = [str(binary), "extract", "--backbone", str(DIGITS / "backbone.onnx"), "--data", str(DIGITS / "pictures"),
               "--resize", "32", "--crop", "32"]
    whole = json.loads(output([*extract, "--cache", str(scratch / "whole"), "--json"]))
    cache = scratch / "cache"
    command = " ".join([*extract, "--cache", str(cache), "--json"])
    # The first task is killed the moment that it starts, as a node that fails would.
    first = f'if [ "$SLURM_ARRAY_TASK_ID" = 0 ]; then kill -9 $$; fi; {command}'
    submit(scratch, f"0-{args.shards - 1}", first)
    status = subprocess.run([str(binary), "status", "--cache", str(cache), "--missing", "--format", "slurm"], capture_output=True, text=True)
    print(f"missing after the first array: {status.stdout.strip()} (exit code {status.returncode})")
    if status.stdout.strip() != "0" or status.returncode != 1:
        raise SystemExit("the killed shard is not the one that is missing")
    unfinished = subprocess.run([str(binary), "finalize", "--cache", str(cache)], capture_output=True, text=True)
    if unfinished.returncode != 1:
        raise SystemExit(f"finalize of an unfinished job exits with {unfinished.returncode}")
    os.environ["GRAFTWORK_NUM_SHARDS"] = str(args.shards)
    submit(scratch, status.stdout.strip(), command)
    finalized = json.loads(output([str(binary), "finalize", "--cache", str(cache), "--json"]))
    entry, expected = Path(finalized["entries"][0]), Path(whole["entry"])
    if entry.name != expected.name:
        raise SystemExit(f"entry {entry.name}, and {expected.name} without shards")
    if Path(finalized["manifest"]).read_bytes() != Path(whole["labels"]).read_bytes():
        raise SystemExit("another label manifest than without shards")
    ours, theirs = rows(entry), rows(expected)
    if ours != theirs:
        raise SystemExit(f"{sum(ours.get(key) != row for key, row in theirs.items())} of {len(theirs)} rows differ")
    print(f"{args.shards} shards in a Slurm array, one killed and submitted again: {len(ours)} rows and the label manifest equal those of one process")


def submit(scratch: Path, array: str, command: str) -> None:
    subprocess.run(["sbatch", "--wait", "--parsable", f"--array={array}", f"--output={scratch}/task-%A-%a.log", "--wrap", command],
                   check=False, stdout=subprocess.DEVNULL)
    for log in sorted(scratch.glob("task-*.log")):
        print(f"{log.name}: {log.read_text().strip().splitlines()[:1]}")


def output(command: list[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def rows(entry: Path) -> dict[bytes, bytes]:
    """Every row of a cache entry by its id, read with the safetensors format alone."""
    found = {}
    for block in entry.glob("block-*.safetensors"):
        data = block.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        part = {name: data[8 + length + header[name]["data_offsets"][0] : 8 + length + header[name]["data_offsets"][1]] for name in ("ids", "features")}
        n = header["ids"]["shape"][0]
        size = len(part["features"]) // n
        for row in range(n):
            found[part["ids"][32 * row : 32 * row + 32]] = part["features"][size * row : size * row + size]
    return found


if __name__ == "__main__":
    sys.exit(main())
