"""Read and write DCD trajectories (CHARMM, NAMD; read by VMD, MDAnalysis, OVITO): positions as float32 in angstrom, unit cells.

Fortran records of 32-bit lengths: a header "CORD" with 20 integers (number of frames, first step, steps between frames, ...),
titles, number of atoms; then for each frame the cell as six float64 (a, gamma, b, beta, alpha, c; degrees) and columns x, y, z.
All frames have one size, so a file is cut back to a number of frames by its length. Written little-endian; both orders are read.
Reference: the CHARMM manual, dynamc; the reader of VMD for the two conventions of angles (degrees, or cosines).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from gewu.core.errors import InputError, StoreError
from gewu.core.files import read_capped
from gewu.core.growing import GrowingFile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

LIMIT_BYTES = 64_000_000_000
AKMA_PS = 0.04888821
"""CHARMM's unit of time in ps."""
_HEAD_BYTES = 92 + 4 + 4 + 80 + 4 + 12
_TITLE = b"written by gewu".ljust(80)


def _header(n_atoms: int, timestep_ps: float, every: int, cell: bool) -> bytes:
    """Return the header of a file without frames."""
    numbers = [0, every, every, 0, *[0] * 5]
    tail = [int(cell), *[0] * 8, 24]
    head = struct.pack("<i4s9if10ii", 84, b"CORD", *numbers, timestep_ps / AKMA_PS, *tail, 84)
    return head + struct.pack("<ii80si", 84, 1, _TITLE, 84) + struct.pack("<3i", 4, n_atoms, 4)


def _angles(cell: Array) -> list[float]:
    """Return lengths and angles of a cell in the order of the file."""
    a, b, c = lengths = np.linalg.norm(cell, axis=1)
    cosines = [cell[i] @ cell[j] / (lengths[i] * lengths[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    gamma, beta, alpha = (90.0 if x == 0 else float(np.degrees(np.arccos(np.clip(x, -1, 1)))) for x in cosines)
    return [float(a), gamma, float(b), beta, alpha, float(c)]


class DcdWriter:
    """Writes frames to a DCD file as they come.

    Args:
        path: the file.
        n_atoms: atoms of every frame.
        frames: keep this many frames of an existing file and go on behind them; 0 begins anew.
        timestep_ps: of the dynamics, for the header.
        every: steps between frames, for the header.
        cell: whether frames come with a cell.

    Raises:
        StoreError: the existing file is shorter than that, or was begun with another header.
        ResourceError: the disk is full.
    """

    def __init__(
        self, path: str | Path, n_atoms: int, *, frames: int = 0, timestep_ps: float = 0.001, every: int = 1, cell: bool = True
    ) -> None:
        self.frames, self._n, self._every, self._cell = frames, n_atoms, every, cell
        header = _header(n_atoms, timestep_ps, every, cell)
        size = 56 * cell + 3 * (4 * n_atoms + 8)
        self._file = GrowingFile(path, _HEAD_BYTES + frames * size if frames else 0)
        if frames:
            found = self._file.head(_HEAD_BYTES)
            if found[:8] + found[12:20] + found[24:] != header[:8] + header[12:20] + header[24:]:
                self._file.close()
                raise StoreError("was begun with other settings", file=path, hint="the checkpoint belongs to another run")
            self._count()
        else:
            self._file.append(header)

    def _count(self) -> None:
        """Put the number of frames and of steps into the header."""
        self._file.patch(8, struct.pack("<i", self.frames))
        self._file.patch(20, struct.pack("<i", min(self.frames * self._every, 2**31 - 1)))

    def append(self, position_n3: Any, cell: Any = None) -> None:
        """Write a frame.

        Args:
            position_n3: (n, 3) angstrom.
            cell: (3, 3) rows in angstrom, a along x and b in the xy plane; None only if the file was begun without.
        """
        position = np.asarray(position_n3, dtype="<f4")
        if position.shape != (self._n, 3) or (cell is not None) != self._cell:
            raise ValueError(f"frame of {position.shape} with cell {cell is not None} does not fit the file")
        parts = [struct.pack("<i6di", 48, *_angles(np.asarray(cell, np.float64)), 48)] if self._cell else []
        mark = struct.pack("<i", 4 * self._n)
        for axis in range(3):
            parts += [mark, position[:, axis].tobytes(), mark]
        self._file.append(b"".join(parts))
        self.frames += 1
        self._count()

    def sync(self) -> None:
        """Flush to the disk; before a checkpoint that counts these frames."""
        self._file.sync()

    def close(self) -> None:
        """Flush and close."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True, eq=False)
class Dcd:
    """A trajectory: positions (f, n, 3) in angstrom; lengths and angles (f, 6) a b c alpha beta gamma in degrees, or None."""

    position_fn3: NDArray[np.float32]
    cell_f6: Array | None
    first_step: int
    every: int
    timestep_ps: float


def _record(data: bytes, at: int, order: str, file: str) -> tuple[bytes, int]:
    """Return the Fortran record at `at` and the offset behind it."""
    if at + 4 <= len(data):
        (size,) = struct.unpack_from(f"{order}i", data, at)
        end = at + 4 + size
        if size >= 0 and end + 4 <= len(data) and data[end : end + 4] == data[at : at + 4]:
            return data[at + 4 : end], end + 4
    raise InputError("record is damaged", file=file, value=f"byte {at}", hint="the file may be truncated")


def read_dcd(path: str | Path) -> Dcd:
    """Read a whole DCD trajectory.

    Raises:
        InputError: damaged or truncated files, fixed atoms, four dimensions.
    """
    file, data = str(path), read_capped(path, LIMIT_BYTES)
    order = next((o for o in "<>" if data[:4] == struct.pack(f"{o}i", 84)), None)
    if order is None or data[4:8] != b"CORD":
        raise InputError("is not a DCD trajectory", file=file, value=data[:8], allowed='a record of 84 bytes with "CORD"')
    head, at = _record(data, 0, order, file)
    numbers = struct.unpack_from(f"{order}20i", head, 4)
    (step,) = struct.unpack_from(f"{order}f", head, 40)
    if numbers[8] or numbers[11] or numbers[19] == 0:
        raise InputError("fixed atoms, a fourth dimension and X-PLOR files are not supported", file=file, key="header")
    _, at = _record(data, at, order, file)
    count, at = _record(data, at, order, file)
    n = struct.unpack(f"{order}i", count)[0] if len(count) == 4 else 0
    has_cell = numbers[10] == 1
    size = 56 * has_cell + 3 * (4 * n + 8)
    frames, rest = divmod(len(data) - at, size)
    if n < 1 or rest or frames != numbers[0]:
        hint = "the file may be truncated"
        raise InputError("frames do not fit the header", file=file, value=frames, allowed=f"{numbers[0]} of {n} atoms", hint=hint)
    fields = [("m0", f"{order}i4"), ("cell", f"{order}f8", (6,)), ("m1", f"{order}i4")] if has_cell else []
    for axis in "xyz":
        fields += [(f"{axis}0", f"{order}i4"), (axis, f"{order}f4", (n,)), (f"{axis}1", f"{order}i4")]
    table = np.frombuffer(data, np.dtype(fields), frames, at)
    marks = [table[f"{axis}{end}"] for axis in "xyz" for end in "01"]
    if any(np.any(mark != 4 * n) for mark in marks) or (has_cell and np.any((table["m0"] != 48) | (table["m1"] != 48))):
        raise InputError("record is damaged", file=file, key="frames")
    position = np.stack([table[axis] for axis in "xyz"], axis=2).astype(np.float32)
    cell = table["cell"][:, [0, 2, 5, 4, 3, 1]].astype(np.float64) if has_cell else None
    if cell is not None and frames:
        cosines = (np.abs(cell[:, 3:]) <= 1).all(axis=1)
        cell[cosines, 3:] = np.degrees(np.arccos(cell[cosines, 3:]))
    if not np.isfinite(position).all() or (cell is not None and not np.isfinite(cell).all()) or not np.isfinite(step):
        raise InputError("holds a number that is not finite", file=file, key="frames")
    return Dcd(position, cell, numbers[1], numbers[2], step * AKMA_PS)
