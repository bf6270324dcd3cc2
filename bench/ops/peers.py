"""Make the environment of the PyTorch peer, with NVIDIA's disassembler for our readers of machine code.

`python -m bench.ops.peers bench/ops/work/peers` (some minutes, 1 GB).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

PACKAGES = ("torch==2.13.0", "numpy", "nvidia-cuda-nvdisasm")


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


def main() -> int:
    """Make the environment named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    make(parser.parse_args().folder.resolve())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
