"""Make the environment of the PyTorch peer, with NVIDIA's disassembler for our readers of machine code; and a cross compiler.

`python -m bench.ops.peers bench/ops/work/peers` (some minutes, 1 GB).
`python -m bench.ops.peers --cross bench/ops/work/cross` (zig: a C compiler with C libraries for all processors; 100 MB).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

PACKAGES = ("torch==2.13.0", "numpy", "nvidia-cuda-nvdisasm")
CROSS = "ziglang==0.17.1"


def find(folder: Path) -> Path | None:
    """Return the peer's Python, or None when it was not made."""
    python = folder / "bin" / "python"
    return python if python.is_file() else None


def disassembler(folder: Path) -> Path | None:
    """Return the environment's nvdisasm, or None."""
    return next(folder.glob("lib/python*/site-packages/nvidia/*/bin/nvdisasm"), None)


def make(folder: Path) -> None:
    """Make a virtual environment with PyTorch in `folder`, or do nothing when it holds one.

    Raises:
        subprocess.CalledProcessError: the packages cannot be installed.
    """
    python = folder / "bin" / "python"
    tried = [python, "-c", "import torch, numpy"]
    if find(folder) and disassembler(folder) and subprocess.run(tried, check=False, capture_output=True).returncode == 0:
        return
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)


def cross_compiler(folder: Path) -> Path | None:
    """Return the program of which `PROGRAM cc -target TRIPLE` is a cross compiler, or None when it was not made."""
    zig = folder / "ziglang" / "zig"
    return zig if zig.is_file() else None


def make_cross(folder: Path) -> None:
    """Put the cross compiler into `folder`, or do nothing when it is there.

    Raises:
        subprocess.CalledProcessError: the package cannot be installed.
    """
    if cross_compiler(folder) is None:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, CROSS], check=True)


def main() -> int:
    """Make the environment named on the command line, or the cross compiler."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cross", action="store_true", help="the cross compiler")
    given = parser.parse_args()
    (make_cross if given.cross else make)(given.folder.resolve())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
