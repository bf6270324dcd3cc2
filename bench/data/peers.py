"""Make the peers' environments: `python -m bench.data.peers bench/data/work/peers` makes what the folder lacks (2.5 GB).

MosaicML Streaming asks for torchvision, which it needs for three classes of image data sets only, and which loads with the very
build of torch it was compiled for only. So it is resolved together with torch 2.13.0 and then removed; `worker` puts an empty
module in its place. All environments hold the same Pillow, so that decoding a JPEG is the same work everywhere.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PILLOW, NUMPY = "pillow==13.0.0", "numpy==2.4.6"
PACKAGES = {
    "mds": ("torch==2.13.0", "torchvision==0.28.0", "mosaicml-streaming==0.13.0", PILLOW),
    "arrayrecord": ("array_record==0.8.6", NUMPY, PILLOW),
    "arrow": ("pyarrow==26.0.1", NUMPY, PILLOW),
    "datatrove": ("datatrove[io,processing]==0.10.1", "spacy"),
}
UNWANTED = {"mds": ("torchvision",)}
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
        print(f"making the environment of {name}", file=sys.stderr, flush=True)
        python = folder / name / "bin" / "python"
        steps = [[sys.executable, "-m", "venv", "--clear", folder / name], [python, "-m", "pip", "install", "-q", *packages]]
        if name in UNWANTED:
            steps.append([python, "-m", "pip", "uninstall", "-q", "-y", *UNWANTED[name]])
        if all(subprocess.run(step, check=False).returncode == 0 for step in steps):
            (folder / name / _DONE).write_text(" ".join(packages))
        else:
            failed.append(name)
    return failed


def main() -> int:
    """Make the environments in the folder named on the command line."""
    if len(sys.argv) != 2:
        print("usage: python -m bench.data.peers FOLDER", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    failed = make(folder)
    print(f"not made: {', '.join(failed)}" if failed else f"{', '.join(PACKAGES)} are in {folder}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
