"""Read and write H5MD 1.1 trajectories (HDF5): positions, velocities and boxes of all atoms, in nm, nm/ps and ps.

Files are read through a Python stream: HDF5 then neither asks whether a killed writer closed them, nor waits for it.

Layout: /h5md (version, author, creator); /particles/all/{position, velocity, box/edges}/{step, time, value} that grow by a frame,
/particles/all/species. The file is written in HDF5's single-writer mode, in which it is readable after a kill at any instant; a
run that resumes copies the frames its checkpoint counted to a new file, which replaces the old one.
Reference: de Buyl, Colberg & Hoefling, Comput. Phys. Commun. 185, 1546 (2014); nongnu.org/h5md.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from gewu.core.errors import GewuError, InputError, StoreError
from gewu.core.files import TEMPORARY_SUFFIX, storage_error
from gewu.formats.elements import ATOMIC_NUMBER

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_GROUP = "particles/all"
_CHUNK_BYTES = 1 << 18


def _failure(error: Exception, path: Path, verb: str) -> GewuError:
    """Return the error for a failure inside HDF5, which reports the system's reason in its text or its number."""
    if isinstance(error, OSError) and error.errno:
        return storage_error(error, path, verb)
    return StoreError(f"cannot be {verb}: {' '.join(str(error).split())[:200]}", file=path)


class H5mdWriter:
    """Writes frames to an H5MD file as they come.

    Args:
        path: the file.
        symbols: n element symbols, "" for virtual sites.
        frames: keep this many frames of an existing file and go on behind them; 0 begins anew.
        velocities: whether frames come with velocities.
        periodic: whether frames come with a box.

    Raises:
        StoreError: the existing file has fewer frames or another shape, or the system refuses.
        ResourceError: the disk is full.
    """

    def __init__(
        self, path: str | Path, symbols: Sequence[str], *, frames: int = 0, velocities: bool = False, periodic: bool = True
    ) -> None:
        import h5py

        self.path, self._n = Path(path), len(symbols)
        self._shapes: dict[str, tuple[int, ...]] = {"position": (self._n, 3)}
        self._shapes |= {"velocity": (self._n, 3)} if velocities else {}
        self._shapes |= {"box/edges": (3, 3)} if periodic else {}
        temporary = self.path.with_name(f".{self.path.name}{TEMPORARY_SUFFIX}")
        try:
            temporary.unlink(missing_ok=True)
            self._store = h5py.File(temporary, "w", libver="latest", locking=False)
            try:
                self._create(symbols, periodic)
                if frames:
                    _copy_frames(self.path, frames, self._shapes, self._store)
                self._store.flush()
                os.replace(temporary, self.path)
                self._store.swmr_mode = True
            except BaseException:
                self._store.close()
                temporary.unlink(missing_ok=True)
                raise
        except (OSError, KeyError, RuntimeError, ValueError, AttributeError, TypeError) as error:
            raise _failure(error, self.path, "written") from error
        self.frames = frames

    def _create(self, symbols: Sequence[str], periodic: bool) -> None:
        """Make the groups, and data sets without frames."""
        head = self._store.create_group("h5md")
        head.attrs["version"] = np.array([1, 1], np.int32)
        head.create_group("author").attrs["name"] = "unknown"
        creator = head.create_group("creator")
        creator.attrs["name"], creator.attrs["version"] = "gewu", "1"
        group = self._store.create_group(_GROUP)
        group["species"] = np.array([ATOMIC_NUMBER.get(symbol, 0) for symbol in symbols], np.int32)
        box = group.create_group("box")
        box.attrs["dimension"] = 3
        box.attrs["boundary"] = np.array([b"periodic" if periodic else b"none"] * 3)
        for name, shape in self._shapes.items():
            part = group.create_group(name)
            kind = np.float64 if name.startswith("box") else np.float32
            rows = max(1, _CHUNK_BYTES // (np.dtype(kind).itemsize * int(np.prod(shape))))
            value = part.create_dataset("value", (0, *shape), kind, maxshape=(None, *shape), chunks=(min(rows, 256), *shape))
            value.attrs["unit"] = "nm ps-1" if name == "velocity" else "nm"
            if name != "position":  # all have the same frames: H5MD lets them share step and time
                part["step"], part["time"] = group["position/step"], group["position/time"]
                continue
            part.create_dataset("step", (0,), np.int64, maxshape=(None,), chunks=(1024,))
            part.create_dataset("time", (0,), np.float64, maxshape=(None,), chunks=(1024,)).attrs["unit"] = "ps"

    def append(self, step: int, time_ps: float, position_n3: Any, velocity_n3: Any = None, box_33: Any = None) -> None:
        """Write a frame: nm, nm/ps; the box as rows a, b, c in nm."""
        given = {"position": position_n3, "velocity": velocity_n3, "box/edges": box_33}
        values = {name: np.asarray(value) for name, value in given.items() if value is not None}
        if {name: value.shape for name, value in values.items()} != self._shapes:
            raise ValueError("frame does not fit the file")
        try:
            items = {"position/step": step, "position/time": time_ps} | {f"{name}/value": x for name, x in values.items()}
            for name, item in items.items():
                series = self._store[f"{_GROUP}/{name}"]
                series.resize(self.frames + 1, axis=0)
                series[self.frames] = item
            self._store.flush()
        except (OSError, RuntimeError, ValueError) as error:
            raise _failure(error, self.path, "written") from error
        self.frames += 1

    def sync(self) -> None:
        """Flush to the disk; before a checkpoint that counts these frames."""
        try:
            self._store.flush()
        except (OSError, RuntimeError, ValueError) as error:
            raise _failure(error, self.path, "written") from error

    def close(self) -> None:
        """Flush and close."""
        try:
            self._store.close()
        except (OSError, RuntimeError, ValueError) as error:
            raise _failure(error, self.path, "written") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _copy_frames(path: Path, frames: int, shapes: dict[str, tuple[int, ...]], target: Any) -> None:
    """Copy the first frames of `path` into a new file, piece by piece."""
    import h5py

    if not path.is_file():
        raise StoreError("there is no such file", file=path, hint="the checkpoint counts frames of it")
    with open(path, "rb") as stream, h5py.File(stream, "r") as source:
        for name in ["position/step", "position/time", *(f"{name}/value" for name in shapes)]:
            new, old = target[f"{_GROUP}/{name}"], source[f"{_GROUP}/{name}"]
            if len(old) < frames or old.shape[1:] != new.shape[1:]:
                raise StoreError("holds other frames than the checkpoint says", file=path, key=name, value=old.shape)
            new.resize(frames, axis=0)
            for at in range(0, frames, new.chunks[0]):
                end = min(at + new.chunks[0], frames)
                new[at:end] = old[at:end]


@dataclass(frozen=True, eq=False)
class H5md:
    """A trajectory: steps, times (ps), positions (f, n, 3) nm, velocities nm/ps or None, boxes (f, 3, 3) nm or None, species."""

    step_f: NDArray[np.int64]
    time_ps: Array
    position_fn3: NDArray[np.float32]
    velocity_fn3: NDArray[np.float32] | None
    box_f33: Array | None
    species_n: NDArray[np.int32]


def read_h5md(path: str | Path) -> H5md:
    """Read a whole H5MD trajectory in the layout above; it may belong to a run that was killed or goes on.

    Raises:
        InputError: the file is not HDF5, is damaged, or lacks what the layout asks for.
    """
    import h5py

    if not Path(path).is_file():
        raise InputError("there is no such file", file=path)
    try:
        with open(path, "rb") as stream, h5py.File(stream, "r") as store:
            group = store[_GROUP]
            frames = min(len(group["position"][key]) for key in ("step", "time", "value"))
            optional = [name for name in ("velocity", "box/edges") if name in group]
            frames = min([frames, *(len(group[name]["value"]) for name in optional)])
            parts = {name: group[name]["value"][:frames] for name in ("position", *optional)}
            step, time = group["position/step"][:frames], group["position/time"][:frames]
            species = group["species"][:]
    except Exception as error:  # the library raises whatever a damaged file leads to
        raise InputError(f"is not a readable H5MD file: {' '.join(str(error).split())[:120]}", file=path) from error
    position = parts["position"]
    if position.ndim != 3 or position.shape[1:] != (len(species), 3) or position.dtype.kind != "f":
        raise InputError("positions of a wrong shape", file=path, key=f"{_GROUP}/position", value=position.shape)
    if not np.isfinite(position).all():
        raise InputError("holds a number that is not finite", file=path, key=f"{_GROUP}/position")
    return H5md(step, time, position, parts.get("velocity"), parts.get("box/edges"), species)
