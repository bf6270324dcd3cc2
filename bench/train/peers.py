"""Make the peer's environment: `python -m bench.train.peers bench/train/work/peers` makes what the folder lacks (0.9 GB)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PACKAGES = {"torch": ("torch==2.13.0", "numpy==2.4.6")}
_DONE = ".made"


def find(folder: Path, name: str) -> Path | None:
    """Return the Python of one peer's environment in `folder`, or None when it was not made."""
    python, done = folder / name / "bin" / "python", folder / name / _DONE
    return python if python.is_file() and done.is_file() and done.read_text() == " ".join(PACKAGES[name]) else None


def make(folder: Path) -> list[str]:
    """Make the environments that `folder` lacks; return the names of those that could not be made."""
    failed = []
    for name, packages in PACKAGES.items():
        if find(folder, name):
            continue
        python = folder / name / "bin" / "python"
        steps = [[sys.executable, "-m", "venv", "--clear", folder / name], [python, "-m", "pip", "install", "-q", *packages]]
        if all(subprocess.run(step, check=False).returncode == 0 for step in steps):
            (folder / name / _DONE).write_text(" ".join(packages))
        else:
            failed.append(name)
    return failed


def main() -> int:
    """Make the environments in the folder named on the command line."""
    if len(sys.argv) != 2:
        print("usage: python -m bench.train.peers FOLDER", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    failed = make(folder)
    print(f"not made: {', '.join(failed)}" if failed else f"{', '.join(PACKAGES)} are in {folder}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
