"""The stamp of the vectors: every source counts, and a stamped function has a name of its own in Numba's cache."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from gewu.core import vector
from gewu.core.device import load_numba


def test_the_stamp_covers_every_module_of_intrinsics() -> None:
    folder = Path(vector.__file__).parent
    users = {path.name for path in folder.glob("*.py") if "numba.extending import" in path.read_text()}
    users |= {path.name for path in folder.glob("*.py") if "@stamped" in path.read_text()} | {"vector.py"}
    users |= {"objects.py"}  # whose functions those of records call
    names = ("vector.py", "simd.py", "lanes.py", "mesh.py", "crc32c.py", "objects.py", "records.py")
    sources = b"".join((folder / name).read_bytes() for name in names)
    assert users == set(names)
    assert hashlib.sha256(sources).hexdigest().startswith(vector.STAMP)


def test_a_stamped_function_is_cached_under_the_stamp(tmp_path: Path) -> None:
    numba = load_numba()
    file = tmp_path / "body.py"
    file.write_text("def double(x):\n    return 2.0 * x\n")
    scope: dict[str, object] = {"__name__": "body"}
    exec(compile(file.read_text(), str(file), "exec"), scope)
    double = numba.njit(cache=True)(vector.stamped(scope["double"]))  # type: ignore[arg-type]
    assert double(np.float64(1.5)) == 3.0
    assert [path.name for path in Path(double.stats.cache_path).glob(f"*double_{vector.STAMP}*.nbi")]
