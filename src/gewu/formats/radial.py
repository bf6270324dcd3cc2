r"""Checks that every tabulated pseudopotential passes, whatever file it came from.

No format carries a checksum, and a flipped digit inside a number gives another valid number. Physics gives the checks instead:
the mesh increases and `rab` is its derivative; r V_loc(r) tends to -Z; the density integrates to Z; D_ij is symmetric and joins
equal l only; and every table is smooth, so one wrong point stands out of its neighbours. The last is tested with sixth
differences along the index: an error e at one point adds e * (1, -6, 15, -20, 15, -6, 1) to them; a kink, a step or the end
of a projector leaves another pattern and passes. The first six points of a local potential are only bounded: sound ONCVPSP files
hold noise there, which r^2 weighs to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gewu.core.errors import InputError
from gewu.formats.elements import ATOMIC_NUMBER
from gewu.formats.pseudopotential import RadialPseudo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

PATTERN = np.array([1.0, -6.0, 15.0, -20.0, 15.0, -6.0, 1.0])
SPIKE_FLOOR = 1e-6
SPIKE_CONTRAST = 30.0
SPIKE_EXPLAINED = 0.995
EDGE_POINTS = 6
EDGE_LIMIT = 3.0
MESH_TOLERANCE = 0.02
TAIL_TOLERANCE = 0.01
CHARGE_TOLERANCE = 0.1
MAX_POINTS = 100_000


def find_spike(values: Array, first: int = 0) -> int | None:
    """Return the index (from `first` on) of a point that does not belong to the smooth curve through the others, or None.

    A point is refused when its error exceeds `SPIKE_FLOOR` of the largest value, leaves `SPIKE_CONTRAST` times the sixth
    differences found around it, and `SPIKE_EXPLAINED` of the differences it touches is its pattern.
    """
    n = len(values)
    if n < 24:
        return None
    scale = float(np.abs(values).max())
    differences = np.concatenate([np.zeros(6), np.diff(values, 6), np.zeros(6)])
    valid = np.concatenate([np.zeros(6), np.ones(n - 6), np.zeros(6)])
    window = np.lib.stride_tricks.sliding_window_view
    touched, mask = window(differences, 7)[:n], window(valid, 7)[:n]
    weight = (mask * PATTERN**2).sum(1)
    error = (touched * PATTERN).sum(1) / weight
    explained = error**2 * weight / np.maximum((touched**2).sum(1), 1e-300)
    size = np.abs(np.concatenate([np.zeros(12), differences, np.zeros(12)]))
    around = np.maximum(window(size, 12)[:n].max(1), window(size, 12)[19 : 19 + n].max(1))
    peak = np.abs(error) * (mask * np.abs(PATTERN)).max(1)
    spikes = (
        (np.arange(n) >= first)
        & (np.abs(error) > SPIKE_FLOOR * scale)
        & (peak > SPIKE_CONTRAST * around)
        & (explained > SPIKE_EXPLAINED)
    )
    return int(np.abs(error * spikes).argmax()) if spikes.any() else None


def check_smooth(values: Array, what: str, file: str, first: int = 0) -> None:
    """Refuse a table with one point out of line, looked for from point `first` on."""
    spike = find_spike(values, first)
    if spike is not None:
        raise InputError(
            f"point {spike + 1} does not belong to the smooth curve of its neighbours",
            file=file,
            key=what,
            value=float(values[spike]),
            hint="a digit is damaged; take the file afresh from its origin",
        )


def check_mesh(r: Array, rab: Array, file: str) -> None:
    """Refuse a mesh that does not increase, is no mesh for an atom, or whose weights are not its derivative."""
    if len(r) < 24 or len(r) > MAX_POINTS:
        raise InputError("radial mesh too short or too long", file=file, key="mesh", value=len(r), allowed=f"24 to {MAX_POINTS}")
    step = np.diff(r)
    if r[0] < 0.0 or step.min() <= 0.0:
        bad = int(step.argmin()) + 1
        raise InputError(f"radial mesh does not increase at point {bad + 1}", file=file, key="mesh", value=float(r[bad]))
    if not 1.0 <= r[-1] <= 1000.0 or r[0] > 0.1:
        raise InputError(
            "radial mesh out of range", file=file, key="mesh", value=(float(r[0]), float(r[-1])), allowed="0 to 1 .. 1000"
        )
    slope = np.gradient(r)
    wrong = np.abs(rab - slope) > MESH_TOLERANCE * slope
    wrong[[0, -1]] = (np.abs(rab - slope) > 0.5 * slope)[[0, -1]]
    if wrong.any():
        bad = int(wrong.argmax())
        raise InputError(f"weight of mesh point {bad + 1} is not dr/di", file=file, key="rab", value=float(rab[bad]))
    check_smooth(r, "r", file)
    check_smooth(rab, "rab", file)


def _check_projectors(pseudo: RadialPseudo, file: str) -> None:
    """Refuse a D matrix that is not symmetric or joins different l, and projectors that are not smooth."""
    d, l_p = pseudo.d_ij_ha, np.array([projector.l for projector in pseudo.projectors])
    size = float(np.abs(d).max(initial=0.0))
    if size > 1e6 or np.abs(d - d.T).max(initial=0.0) > 1e-6 * size:
        raise InputError("D_ij is not symmetric or out of range", file=file, key="D_ij", value=size)
    if len(d) and (d[l_p[:, None] != l_p] != 0.0).any():
        raise InputError("D_ij joins projectors of different angular momentum", file=file, key="D_ij")
    for number, projector in enumerate(pseudo.projectors, start=1):
        size = float(np.abs(projector.rbeta).max(initial=0.0))
        if not 0.0 < size < 1e6:
            raise InputError("projector is zero or out of range", file=file, key=f"projector {number}", value=size)
        check_smooth(projector.rbeta, f"projector {number}", file)


def check_radial(pseudo: RadialPseudo, file: str) -> RadialPseudo:
    """Return `pseudo` when it passes every check of this module.

    Raises:
        InputError: naming the table and the point.
    """
    z, r = pseudo.z_valence, pseudo.r
    if not 0.0 < z <= ATOMIC_NUMBER[pseudo.element] or z != round(z):
        raise InputError("valence charge does not fit the element", file=file, key="z_valence", value=z, allowed="an integer")
    check_mesh(r, pseudo.rab, file)
    if float(np.abs(pseudo.vloc_ha).max()) > 1e5:
        raise InputError("local potential out of range", file=file, key="V_loc", value=float(np.abs(pseudo.vloc_ha).max()))
    tail = float(r[-1] * pseudo.vloc_ha[-1])
    if abs(tail + z) > TAIL_TOLERANCE * z:
        raise InputError("local potential does not end as -Z/r", file=file, key="V_loc", value=tail, allowed=f"r V = {-z:g}")
    check_smooth(pseudo.vloc_ha, "V_loc", file, first=EDGE_POINTS)
    edge, inner = np.abs(pseudo.vloc_ha[:EDGE_POINTS]).max(), np.abs(pseudo.vloc_ha[EDGE_POINTS:]).max()
    if r[EDGE_POINTS] < 0.2 and edge > EDGE_LIMIT * inner:
        raise InputError("local potential out of range near the nucleus", file=file, key="V_loc", value=float(edge))
    _check_projectors(pseudo, file)
    if pseudo.rho_atom is not None:
        charge = float(pseudo.rho_atom @ pseudo.rab)
        beyond = float(pseudo.rho_atom[-1] * r[-1])
        if abs(charge - z) > CHARGE_TOLERANCE * z + beyond or pseudo.rho_atom.min() < -1e-3:
            raise InputError(
                "atomic density does not hold the valence electrons", file=file, key="rho", value=charge, allowed=f"{z:g}"
            )
        check_smooth(pseudo.rho_atom, "rho", file)
    if pseudo.core_density is not None:
        core = float((4.0 * np.pi * r**2 * pseudo.core_density) @ pseudo.rab)
        if not 0.0 <= core <= 2.0 * ATOMIC_NUMBER[pseudo.element] or pseudo.core_density.min() < -1e-3:
            raise InputError("core density out of range", file=file, key="core", value=core)
        check_smooth(pseudo.core_density, "core", file)
    return pseudo
