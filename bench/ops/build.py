"""Compile the kernels once: PTX for sm_90 and machine code for sm_80 and sm_90, each in a folder without any source."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from bench.ops.case import KERNELS

FILES = {"ptx": (".ptx", ("-ptx", "-arch=sm_90")), "sm_80": (".sm_80.cubin", ("-cubin", "-arch=sm_80"))}
FILES["sm_90"] = (".sm_90.cubin", ("-cubin", "-arch=sm_90"))


def compiler() -> str | None:
    """Return the path of nvcc, or None."""
    return shutil.which("nvcc")


def build(folder: Path, kinds: tuple[str, ...] = tuple(FILES), sources: tuple[Path, ...] = ()) -> dict[str, Path]:
    """Compile every source to each kind under `folder`, unless it was compiled from the same text; return a folder for each kind.

    Raises:
        subprocess.CalledProcessError: nvcc fails.
    """
    paths = sources or tuple(sorted(KERNELS.glob("*.cu")))
    header = b"".join(path.read_bytes() for path in sorted(KERNELS.glob("*.cuh")))
    made = {}
    for kind in kinds:
        suffix, options = FILES[kind]
        made[kind] = folder / kind
        made[kind].mkdir(parents=True, exist_ok=True)
        for path in paths:
            target = made[kind] / (path.stem + suffix)
            mark, stamp = target.with_suffix(target.suffix + ".sha"), hashlib.sha256(header + path.read_bytes()).hexdigest()
            if target.is_file() and mark.is_file() and mark.read_text() == stamp:
                continue
            subprocess.run(["nvcc", *options, "-o", str(target), str(path)], check=True, capture_output=True)
            mark.write_text(stamp)
    return made
