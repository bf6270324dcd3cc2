"""Frames to a file that grows, cut back to what a checkpoint knows when a run resumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gewu.core.context import Context
from gewu.core.growing import GrowingFile
from gewu.formats.dcd import DcdWriter
from gewu.formats.extxyz import extxyz_bytes
from gewu.formats.h5md import H5mdWriter
from gewu.formats.structure import Structure
from gewu.physics.md.state import Array, State, Topology
from gewu.physics.md.units import ANGSTROM

NAMES = {"dcd": "trajectory.dcd", "h5md": "trajectory.h5", "extxyz": "trajectory.extxyz"}


def snapshot(topology: Topology, position_n3: Array, state: State) -> Structure:
    """Return the real atoms (no virtual sites) as a structure; in vacuum in a box around them."""
    real = np.flatnonzero(np.asarray(topology.mass_n) > 0)
    symbols = tuple(topology.element[i] or "X" for i in real)
    position = position_n3[real]
    if state.periodic:
        box = state.box_33
    else:
        low = position.min(axis=0) - 0.5
        position, box = position - low, np.diag(np.ptp(position, axis=0) + 1.0)
    return Structure(box / ANGSTROM, symbols, position @ np.linalg.inv(box))


class Trajectory:
    """The trajectory of a run, written on the root.

    Args:
        kind: "none", "dcd", "h5md" or "extxyz".
        topology: all atoms.
        ctx: where results go.
        dt_ps, every: time step, and steps between frames.
        periodic: whether frames have a box.
        saved: `to_state` of an earlier, interrupted run.
    """

    def __init__(
        self, kind: str, topology: Topology, ctx: Context, dt_ps: float, every: int, periodic: bool, saved: dict[str, int] | None
    ) -> None:
        self.kind, self.topology = kind, topology
        self.frames, self.bytes = (saved["frames"], saved["bytes"]) if saved else (0, 0)
        path = ctx.stream(NAMES[kind]) if kind != "none" else None
        self._writer: DcdWriter | H5mdWriter | GrowingFile | None = None
        if path is not None:
            self._writer = self._open(path, dt_ps, every, periodic)

    def _open(self, path: Path, dt_ps: float, every: int, periodic: bool) -> DcdWriter | H5mdWriter | GrowingFile:
        n = len(self.topology)
        if self.kind == "dcd":
            return DcdWriter(path, n, frames=self.frames, timestep_ps=dt_ps, every=every, cell=periodic)
        if self.kind == "h5md":
            return H5mdWriter(path, self.topology.element, frames=self.frames, periodic=periodic)
        return GrowingFile(path, self.bytes)

    def append(self, state: State, position_n3: Array) -> None:
        """Write a frame; `position_n3` holds all atoms in the order of the input."""
        self.frames += 1
        box = state.box_33 if state.periodic else None
        if isinstance(self._writer, DcdWriter):
            self._writer.append(position_n3 / ANGSTROM, None if box is None else box / ANGSTROM)
        elif isinstance(self._writer, H5mdWriter):
            self._writer.append(state.step, state.time_ps, position_n3, None, box)
        elif self._writer is not None:
            data = extxyz_bytes([snapshot(self.topology, position_n3, state)], [{"time_ps": state.time_ps}])
            self._writer.append(data)
            self.bytes += len(data)

    def to_state(self) -> dict[str, int]:
        """Flush, and return what a checkpoint needs."""
        if self._writer is not None:
            self._writer.sync()
        return {"frames": self.frames, "bytes": self.bytes}

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()
