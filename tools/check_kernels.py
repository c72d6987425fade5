#!/usr/bin/env python3
"""Compiles the CUDA kernels of crates/runtime/kernels without a GPU and without a toolkit.

    python tools/check_kernels.py            # every kernel for sm_80 and sm_90; registers, spills; committed PTX is current
    python tools/check_kernels.py --write    # writes kernels/*.ptx, which the library embeds

Needs, from PyPI, the compiler and the assembler:

    pip install nvidia-cuda-nvrtc-cu12==12.0.76 nvidia-cuda-nvcc-cu12

NVRTC 12.0 writes PTX 8.0, which every driver of CUDA 12 takes (525 on); a later one would ask for a later driver.
The first line of a .ptx file holds the SHA-256 of what it was made of, so that a test knows when it is stale.
Exit status 1 where a kernel does not compile, spills more than MAX_SPILL_BYTES, or its PTX is stale.
"""

import argparse
import ctypes
import hashlib
import importlib.util
import pathlib
import re
import subprocess
import sys
import tempfile

KERNELS = pathlib.Path(__file__).resolve().parent.parent / "crates/runtime/kernels"
SHARED = "common.cuh"
ARCHITECTURES = ("sm_80", "sm_90")
PTX_ARCHITECTURE = "compute_80"
# A spill is a sign of a block that is too large for its registers; no kernel here needs one.
MAX_SPILL_BYTES = 0
# Local memory beyond spills comes of arrays whose index the compiler could not know.
MAX_LOCAL_BYTES = 0


def package(name):
    """The folder of NVIDIA's Python package, as `nvidia.cuda_nvrtc`."""
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        found = None
    if found is None:
        sys.exit(f"no {name}; see the pip line at the top of {sys.argv[0]}")
    return pathlib.Path(list(found.submodule_search_locations)[0])


class Nvrtc:
    """What is needed of libnvrtc."""

    def __init__(self, folder):
        lib = folder / "lib"
        for builtins in sorted(lib.glob("libnvrtc-builtins.so*")):
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        self.lib = ctypes.CDLL(str(sorted(lib.glob("libnvrtc.so*"))[0]))
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.check(self.lib.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        self.version = (major.value, minor.value)

    def check(self, code):
        if code != 0:
            self.lib.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise RuntimeError(self.lib.nvrtcGetErrorString(code).decode())

    def compile(self, path, architecture):
        """PTX for compute_XX, a cubin for sm_XX."""
        program = ctypes.c_void_p()
        header = (KERNELS / SHARED).read_bytes()
        self.check(
            self.lib.nvrtcCreateProgram(
                ctypes.byref(program),
                path.read_bytes(),
                path.name.encode(),
                1,
                (ctypes.c_char_p * 1)(header),
                (ctypes.c_char_p * 1)(SHARED.encode()),
            )
        )
        # Products and sums are contracted as on any GPU; no fast mathematics, whose last digits differ by architecture.
        flags = [f"--gpu-architecture={architecture}", "--std=c++17", "-default-device"]
        code = self.lib.nvrtcCompileProgram(
            program, len(flags), (ctypes.c_char_p * len(flags))(*[flag.encode() for flag in flags])
        )
        if code != 0:
            size = ctypes.c_size_t()
            self.lib.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            self.lib.nvrtcGetProgramLog(program, log)
            raise RuntimeError(f"{path.name} for {architecture}:\n{log.value.decode()}")
        kind = "PTX" if architecture.startswith("compute") else "CUBIN"
        size = ctypes.c_size_t()
        self.check(getattr(self.lib, f"nvrtcGet{kind}Size")(program, ctypes.byref(size)))
        data = ctypes.create_string_buffer(size.value)
        self.check(getattr(self.lib, f"nvrtcGet{kind}")(program, data))
        self.check(self.lib.nvrtcDestroyProgram(ctypes.byref(program)))
        return data.raw


def digest(path):
    """SHA-256 of the shared header and of the file, one after the other."""
    return hashlib.sha256((KERNELS / SHARED).read_bytes() + path.read_bytes()).hexdigest()


def ptx_file(nvrtc, path):
    text = nvrtc.compile(path, PTX_ARCHITECTURE).rstrip(b"\0").decode()
    # NVIDIA's banner carries a build number and says nothing of the kernels.
    text = text[text.index(".version") :]
    return f"// sha256 of {SHARED} and {path.name}: {digest(path)}\n{text.rstrip()}\n"


def usage(ptxas, ptx, architecture):
    """{kernel: (registers, spill bytes, local bytes, shared bytes)} as ptxas counts them."""
    run = subprocess.run(
        [ptxas, "-v", f"-arch={architecture}", str(ptx), "-o", "/dev/null"], capture_output=True, text=True
    )
    if run.returncode != 0:
        raise RuntimeError(run.stderr)
    found, name, frame = {}, None, (0, 0)
    for line in run.stderr.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            name = match[1]
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            frame = (int(match[1]), int(match[2]) + int(match[3]))
        elif (match := re.search(r"Used (\d+) registers", line)) and name:
            shared = re.search(r"(\d+) bytes smem", line)
            found[name] = (int(match[1]), frame[1], frame[0], int(shared[1]) if shared else 0)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write kernels/*.ptx")
    arguments = parser.parse_args()
    nvrtc = Nvrtc(package("nvidia.cuda_nvrtc"))
    ptxas = str(package("nvidia.cuda_nvcc") / "bin/ptxas")
    if arguments.write and nvrtc.version != (12, 0):
        sys.exit(f"PTX is written with NVRTC 12.0, and this is {nvrtc.version[0]}.{nvrtc.version[1]}")
    failures = []
    print(f"NVRTC {nvrtc.version[0]}.{nvrtc.version[1]}")
    print(f"{'kernel':<28} {'arch':<6} {'registers':>9} {'spills':>7} {'local':>6} {'shared':>7}")
    for path in sorted(KERNELS.glob("*.cu")):
        target = path.with_suffix(".ptx")
        try:
            if arguments.write:
                target.write_text(ptx_file(nvrtc, path))
            for architecture in ARCHITECTURES:
                nvrtc.compile(path, architecture)
            # Read back from the file: what is counted is what is embedded.
            if not target.exists() or digest(path) not in target.read_text().splitlines()[0]:
                failures.append(f"{target.name} is not of the present {path.name}: run with --write")
                with tempfile.NamedTemporaryFile("w", suffix=".ptx", delete=False) as fresh:
                    fresh.write(ptx_file(nvrtc, path))
                target = pathlib.Path(fresh.name)
            for architecture in ARCHITECTURES:
                for name, (registers, spills, local, shared) in sorted(usage(ptxas, target, architecture).items()):
                    print(f"{name:<28} {architecture:<6} {registers:>9} {spills:>7} {local:>6} {shared:>7}")
                    if spills > MAX_SPILL_BYTES or local > MAX_LOCAL_BYTES:
                        failures.append(f"{name} for {architecture}: {spills} bytes spilled, {local} local")
        except RuntimeError as error:
            failures.append(str(error))
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
