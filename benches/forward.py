"""Features of torchvision's networks by graftwork's own kernels and by ONNX Runtime, turn by turn in one run.

    cargo build --release --example forward
    python3 benches/forward.py --example target/release/examples/forward [--models resnet18 ...] [--threads 2] [--batch 8] [--append]

Each thread has batches and a session of its own, as in an extraction; `example` says what is measured. Networks that
graftwork leaves to ONNX Runtime are not in the table.
"""

import argparse
import datetime
import json
import os
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch
import torchvision

import onnxruntime

from machine import cpu_model

RESULTS = Path(__file__).resolve().parent / "RESULTS.md"
MODELS = ["resnet18", "resnet34", "resnet50", "vgg11_bn", "vgg16"]


def export(name, folder):
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)()
    with torch.no_grad():
        model(torch.randn(8, 3, 224, 224))
    path = Path(folder) / f"{name}.onnx"
    warnings.filterwarnings("ignore")
    torch.onnx.export(
        model.eval(), torch.zeros(1, 3, 224, 224), path, input_names=["input"], output_names=["logits"],
        dynamic_axes={"input": {0: "n"}, "logits": {0: "n"}}, dynamo=False, opset_version=17,
    )
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--example", required=True, type=Path)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--append", action="store_true")
    args = parser.parse_args()
    library = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    environment = os.environ | {"ORT_DYLIB_PATH": str(library)}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            command = [args.example, export(name, folder), args.batch, args.threads, args.rounds]
            done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout)
            if found["own"] is None:
                continue
            rows.append(f"| {name} | {found['own']:.1f} | {found['onnxruntime']:.1f} | {found['ratio']:.2f} | {found['difference']} |")
            print(rows[-1], flush=True)
    lines = [
        f"## {datetime.date.today()}: features without ONNX Runtime",
        "",
        f"{cpu_model()}, {os.cpu_count()} cores; ONNX Runtime {onnxruntime.__version__}. "
        f"`benches/forward.py --threads {args.threads} --batch {args.batch} --rounds {args.rounds}`: medians of interleaved "
        "rounds, float32; the difference is in parts of the largest feature.",
        "",
        "| network | graftwork, pictures/s | ONNX Runtime, pictures/s | ratio | difference |",
        "|---|---|---|---|---|",
        *rows,
    ]
    text = "\n".join(lines)
    print(text)
    if args.append:
        RESULTS.write_text(RESULTS.read_text().rstrip("\n") + "\n\n" + text + "\n")


if __name__ == "__main__":
    main()
