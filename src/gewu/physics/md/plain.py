"""Lennard-Jones and Coulomb interactions within a cutoff, plainly: a list of all neighbours of each atom and one loop over it.

    U = sum over pairs closer than r_c that are not excluded of  4 eps [(s/r)^12 - (s/r)^6] - shift(r)  +  f q_i q_j g(r)

    lj        "cut"          shift = 0
              "shift"        shift = U_LJ(r_c)
              "force-shift"  shift = U_LJ(r_c) + (r - r_c) U_LJ'(r_c)
    coulomb   "none"            g = 0
              "cut"             g = 1/r
              "reaction-field"  g = 1/r + k r^2 - c,  k = (e - 1)/(2 e + 1)/r_c^3,  c = 3 e/(2 e + 1)/r_c;  e = 0 means infinity
              "ewald"           g = erfc(alpha r)/r

The same `@kernel` bodies run as a Python loop, on threads and on a GPU; `PlainPairs` is the way for GPUs and twin of the fast
CPU kernel; the tests hold both against the sum over all pairs.  Atom i owns half of the energy and virial of each of its pairs,
so ranks that own different atoms add up to the whole.  Excluded pairs have no reaction field either; in Ewald's sum the
reciprocal part takes them out.  A topology here has the rows of the state; along box vectors that are cut between ranks no image
is taken (`images`).

Reference: Allen and Tildesley, Computer Simulation of Liquids, 2nd edition (2017), sections 2.8, 5.2, 5.3; Tironi et al.,
J. Chem. Phys. 102, 5451 (1995).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gewu.core.device import load_cuda
from gewu.core.errors import ConvergenceError, InputError
from gewu.core.kernel import Kernel, device, kernel
from gewu.formats.forcefield.graph import partners
from gewu.physics.md.box import box_of, check_reach, heights, minimum_image
from gewu.physics.md.state import Array, Evaluation, State, Topology
from gewu.physics.md.units import COULOMB

if TYPE_CHECKING:
    from gewu.physics.md.pairs import NonBonded

_KINDS = {"lj": ("cut", "shift", "force-shift"), "coulomb": ("none", "cut", "reaction-field", "ewald")}


class Cutoff(NamedTuple):
    """Constants of the truncated interactions (see `constants`)."""

    cutoff: float
    s6: float
    s12: float
    d6: float
    d12: float
    edge: float
    screened: float
    bare: float
    k_rf: float
    c_rf: float
    alpha: float


def constants(settings: NonBonded) -> Cutoff:
    """Return the numbers that all variants of the interactions have in common.

    LJ is c12 [r^-12 - s12 + (r - edge) d12] - c6 [r^-6 - s6 + (r - edge) d6] and Coulomb f q q [bare/r + screened erfc(alpha r)/r
    + k_rf r^2 - c_rf].
    """
    rc, lj, coulomb = settings.cutoff, settings.lj, settings.coulomb
    for key, value in (("lj", lj), ("coulomb", coulomb)):
        if value not in _KINDS[key]:
            raise InputError("unknown treatment of the cutoff", key=key, value=value, allowed=", ".join(_KINDS[key]))
    if not rc > 0 or (coulomb == "ewald" and not settings.alpha > 0):
        raise InputError("the cutoff and Ewald's alpha must be positive", key="cutoff", value=(rc, settings.alpha))
    shifted, forced = float(lj != "cut"), float(lj == "force-shift")
    eps, field = settings.epsilon_rf, float(coulomb == "reaction-field")
    k, c = (0.5, 1.5) if eps == 0 else ((eps - 1) / (2 * eps + 1), 3 * eps / (2 * eps + 1))
    return Cutoff(
        cutoff=rc,
        s6=shifted / rc**6,
        s12=shifted / rc**12,
        d6=forced * 6 / rc**7,
        d12=forced * 12 / rc**13,
        edge=rc if forced and math.isfinite(rc) else 0.0,
        screened=float(coulomb == "ewald"),
        bare=float(coulomb in ("cut", "reaction-field")),
        k_rf=field * k / rc**3,
        c_rf=field * c / rc,
        alpha=settings.alpha,
    )


Images = tuple[bool, bool, bool]


def images_box(state: State, images: Images | None) -> tuple[Array, NDArray[np.bool_]]:
    """Return the box for `minimum_image` and along which vectors there are images."""
    periodic = np.full(3, state.periodic) & np.array((True, True, True) if images is None else images)
    return np.where(periodic[:, None], box_of(state), np.eye(3) * 1e30), periodic


def named_energies(energy: Array, settings: NonBonded) -> dict[str, float]:
    """Return the energies of Lennard-Jones and, unless there are no charges, Coulomb by their names."""
    charged = {} if settings.coulomb == "none" else {"coulomb": float(energy[1])}
    return {"lennard_jones": float(energy[0])} | charged


def dispersion_correction(topology: Topology, settings: NonBonded, volume: float) -> tuple[float, float]:
    """Return what the truncation takes from energy and virial, for a fluid that is uniform around each atom.

    With D = U_LJ(untruncated) - U(used) and <> the mean over all pairs of atoms i <= j, excluded ones included,
        E = 2 pi N^2/V <int_0^inf D r^2 dr> - 1/2 sum_i D_ii(0),    W_aa = -2 pi N^2/(3 V) <int_0^inf D' r^3 dr>.
    Beyond r_c, D is U_LJ: the usual tail.  Within, it is what "shift" and "force-shift" subtract; there an atom is none of
    its own neighbours, hence the second term of E.

    Args:
        topology: all atoms of the system.
        settings: cutoff and variant.
        volume: nm^3.
    Returns:
        E and one diagonal element of the virial, kJ/mol.

    Reference: Allen and Tildesley (2017), section 2.8; the mean over i <= j: Shirts et al., J. Phys. Chem. B 111, 13052 (2007).
    """
    if not math.isfinite(settings.cutoff):
        return 0.0, 0.0
    c, rc, n = constants(settings), settings.cutoff, len(topology)
    count = np.bincount(topology.type_n, minlength=len(topology.type_names)).astype(float)
    weight = (np.outer(count, count) + np.diag(count)) * n / (n + 1.0)

    def of(p: int, s: float, d: float) -> tuple[float, float, float]:
        """The integrals of D r^2 and D' r^3, and D(0), for U_LJ = r^-p."""
        tail, tail_virial = rc ** (3 - p) / (p - 3), -p * rc ** (3 - p) / (p - 3)
        return tail + s * rc**3 / 3 + d * rc**4 / 12, tail_virial - d * rc**4 / 4, s + d * rc

    p12, p6 = of(12, c.s12, c.d12), of(6, c.s6, c.d6)
    c6 = 4 * topology.epsilon_tt * topology.sigma_tt**6
    energy, slope, own = (c6 * topology.sigma_tt**6 * a - c6 * b for a, b in zip(p12, p6, strict=True))
    scale = 2 * math.pi / volume
    total = scale * float((weight * energy).sum()) - 0.5 * float(count @ np.diag(own))
    return total, -scale / 3 * float((weight * slope).sum())


@device
def cell_beside(x: int, y: int, z: int, part: int, shape: Any, wrap: Any) -> int:
    """Return the cell that is number `part` of the 27 around (x, y, z), or -1 where there is none or it is another part too."""
    x, y, z = x + part // 9 - 1, y + part // 3 % 3 - 1, z + part % 3 - 1
    a, b, c = shape[0], shape[1], shape[2]
    if wrap[0] and a >= 3:
        x = (x + a) % a
    if wrap[1] and b >= 3:
        y = (y + b) % b
    if wrap[2] and c >= 3:
        z = (z + c) % c
    return (x * b + y) * c + z if 0 <= x < a and 0 <= y < b and 0 <= z < c else -1


@kernel
def _list_neighbours(  # type: ignore[no-untyped-def]
    i, position, box, wrap, reach, shape, cell, start, order, first, excluded, stride_i, stride_k, width, neighbour, count
):  # fmt: skip
    """Write the rows within `reach` of row i that are not excluded; count all of them, also those beyond `width`."""
    found = 0
    for part in range(27):
        here = cell_beside(cell[i, 0], cell[i, 1], cell[i, 2], part, shape, wrap)
        for k in range(start[here], start[here + 1] if here >= 0 else start[here]):
            j = order[k]
            dx, dy, dz = position[i, 0] - position[j, 0], position[i, 1] - position[j, 1], position[i, 2] - position[j, 2]
            dx, dy, dz = minimum_image(dx, dy, dz, box)
            near = j != i and dx * dx + dy * dy + dz * dz < reach * reach
            if near:
                for e in range(first[i], first[i + 1]):
                    if excluded[e] == j:
                        near = False
            if near:
                if found < width:
                    neighbour[i * stride_i + found * stride_k] = j
                found += 1
    count[i] = found


def _pair_loop(real: Any) -> Kernel:
    """Make the loop over the neighbours of an atom with pair arithmetic in `real`; distances and sums are float64."""

    @kernel
    def _pair_forces(  # type: ignore[no-untyped-def]
        i, position, box, kind, charge, c6_tt, c12_tt, constant, want, stride_i, stride_k, neighbour, count, force, tally
    ):  # fmt: skip
        s6, s12, d6, d12, edge = constant[1], constant[2], constant[3], constant[4], constant[5]
        screened, bare, k_rf, c_rf, alpha = constant[6], constant[7], constant[8], constant[9], constant[10]
        cutoff2, slope = constant[0] * constant[0], constant[11]
        fx, fy, fz, lennard_jones, coulomb = 0.0, 0.0, 0.0, 0.0, 0.0
        wxx, wyy, wzz, wyz, wxz, wxy = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        kind_i, charge_i = kind[i], charge[i]
        for k in range(count[i]):
            j = neighbour[i * stride_i + k * stride_k]
            dx, dy, dz = position[i, 0] - position[j, 0], position[i, 1] - position[j, 1], position[i, 2] - position[j, 2]
            dx, dy, dz = minimum_image(dx, dy, dz, box)
            x, y, z = real(dx), real(dy), real(dz)
            r2 = x * x + y * y + z * z
            if r2 < cutoff2:
                inverse2 = real(1.0) / r2
                inverse = real(math.sqrt(inverse2))
                r, inverse6 = r2 * inverse, inverse2 * inverse2 * inverse2
                c6, c12, qq = c6_tt[kind_i, kind[j]], c12_tt[kind_i, kind[j]], charge_i * charge[j]
                screen, fall = bare, real(0.0)
                if screened > real(0.0):
                    screen = real(math.erfc(alpha * r))
                    fall = slope * real(math.exp(-(alpha * alpha * r2)))
                strength = c12 * (real(12.0) * inverse6 * inverse6 - d12 * r) - c6 * (real(6.0) * inverse6 - d6 * r)
                strength = (strength + qq * ((screen + fall * r) * inverse - real(2.0) * k_rf * r2)) * inverse2
                fx += strength * x
                fy += strength * y
                fz += strength * z
                if want:
                    lennard_jones += c12 * (inverse6 * inverse6 - s12 + (r - edge) * d12) - c6 * (inverse6 - s6 + (r - edge) * d6)
                    coulomb += qq * (screen * inverse + k_rf * r2 - c_rf)
                    wxx += strength * x * x
                    wyy += strength * y * y
                    wzz += strength * z * z
                    wyz += strength * y * z
                    wxz += strength * x * z
                    wxy += strength * x * y
        force[i, 0], force[i, 1], force[i, 2] = fx, fy, fz
        if want:
            tally[i, 0], tally[i, 1] = 0.5 * lennard_jones, 0.5 * coulomb
            tally[i, 2], tally[i, 3], tally[i, 4] = 0.5 * wxx, 0.5 * wyy, 0.5 * wzz
            tally[i, 5], tally[i, 6], tally[i, 7] = 0.5 * wyz, 0.5 * wxz, 0.5 * wxy

    return _pair_forces


_REAL: dict[str, Any] = {"double": np.float64, "mixed": np.float32}
_PAIR_FORCES = {name: _pair_loop(real) for name, real in _REAL.items()}


def bin_cells(state: State, reach: float, images: Images | None = None) -> tuple[list[NDArray[Any]], float]:
    """Sort all rows into cells of at least height `reach`.

    Returns:
        What `_list_neighbours` wants after `reach`: numbers of cells (3,), cell (n, 3) of each row, start and order of the rows
        of each cell; and the volume of all cells.
    """
    position, n = state.position_n3, len(state.position_n3)
    bad = np.flatnonzero(~np.isfinite(position).all(axis=1))
    if bad.size:
        raise ConvergenceError(
            f"atom {state.tag_n[bad[0]] + 1} is nowhere: its position is not finite at step {state.step}",
            value=position[bad[0]].tolist(),
            hint="a shorter time step, or a minimisation before the run",
        )
    wrap, box = images_box(state, images)[1], state.box_33 if state.periodic else np.eye(3)
    fraction = position @ np.linalg.inv(box)
    fraction -= np.where(wrap, np.floor(fraction), fraction.min(axis=0))
    span = np.where(wrap, 1.0, np.maximum(fraction.max(axis=0), 1e-9))
    shape = np.clip(heights(box) * span / reach, 1, max(1.0, n ** (1 / 3))).astype(np.int32)
    cell = np.minimum((fraction / span * shape).astype(np.int32), shape - 1)
    flat = (cell[:, 0].astype(np.int64) * shape[1] + cell[:, 1]) * shape[2] + cell[:, 2]
    order = np.argsort(flat, kind="stable")
    start = np.searchsorted(flat[order], np.arange(int(shape.prod()) + 1))
    return [shape, cell, start, order.astype(np.int32)], float(np.linalg.det(box) * span.prod())


class PlainPairs:
    """Lennard-Jones and Coulomb forces from a list of all neighbours within cutoff + skin.

    On a GPU list, types, charges and parameters stay in its memory from one `rebuild` to the next; in a step positions and box
    go up, forces come down, and energies and virial when they are wanted.

    Args:
        topology: parameters and exclusions, by rows of the state.
        settings: cutoff (nm, math.inf for all pairs in vacuum) and variants.
        device: "reference", "cpu" or "cuda".
        precision: "double", or "mixed": pair arithmetic in float32, distances and sums in float64.
        skin: nm by which the list reaches beyond the cutoff.
        images: along which box vectors periodic images are taken; default: all when the state is periodic.
    """

    def __init__(
        self,
        topology: Topology,
        settings: NonBonded,
        device: str = "cpu",
        precision: str = "double",
        skin: float = 0.0,
        images: Images | None = None,
    ) -> None:
        if precision not in _REAL:
            raise InputError("unknown precision", key="precision", value=precision, allowed=", ".join(_REAL))
        if device not in ("reference", "cpu", "cuda"):
            raise InputError("unknown device", key="device", value=device, allowed="reference, cpu, cuda")
        self.settings, self.device, self.reach, self.images = settings, device, settings.cutoff + skin, images
        self._real, self._forces = _REAL[precision], _PAIR_FORCES[precision]
        c6 = 4 * topology.epsilon_tt * topology.sigma_tt**6
        shared = constants(settings)
        slope = 2 * shared.alpha / math.sqrt(math.pi)
        exclusions = partners(topology.exclusions, len(topology))
        self._exclusions = tuple(self._send(a if a.size else np.zeros(1, a.dtype)) for a in exclusions)
        self._tables = tuple(
            self._send(a.astype(self._real)) for a in (c6, c6 * topology.sigma_tt**6, np.array([*shared, slope]))
        )
        self._width = 0
        self._neighbour: Any = self._send(np.zeros(1, np.int32))
        self._rows: tuple[Any, ...] = ()

    def _send(self, array: NDArray[Any]) -> Any:
        array = np.ascontiguousarray(array)
        return load_cuda().to_device(array) if self.device == "cuda" else array

    def _fetch(self, array: Any) -> NDArray[Any]:
        return np.asarray(array.copy_to_host()) if self.device == "cuda" else array

    def rebuild(self, state: State) -> None:
        """List all neighbours anew: before the first step and whenever atoms may have moved by half the skin.

        Raises:
            InputError: the box is too small for nearest images.
            ConvergenceError: a position is not finite.
        """
        box, wrap = images_box(state, self.images)
        if wrap.any():
            check_reach(box, self.reach, "the cutoff with its skin")
        cells, volume = bin_cells(state, self.reach, self.images)
        n, owned = len(state.position_n3), state.owned
        where = [self._send(a) for a in (state.position_n3, box, wrap.astype(np.int32))]
        binned = [self._send(a) for a in cells]
        expected = 1.2 * n * min(1.0, 4.2 * self.reach**3 / volume) + 8
        width, count = self._width or int(expected), self._send(np.zeros(owned, np.int32))
        while True:
            if self._neighbour.size < owned * width:
                self._neighbour = self._send(np.zeros(owned * width, np.int32))
            stride_i, stride_k = (
                (1, owned) if self.device == "cuda" else (width, 1)
            )  # neighbouring threads read neighbouring words
            listed = stride_i, stride_k, width, self._neighbour, count
            _list_neighbours.launch(self.device, owned, *where, self.reach, *binned, *self._exclusions, *listed)
            longest = int(self._fetch(count).max(initial=0))
            if longest <= width:
                break
            width = longest + longest // 8 + 1
        self._width = width
        charge = (math.sqrt(COULOMB) * state.charge_n).astype(self._real)
        self._rows = self._send(state.type_n), self._send(charge), stride_i, stride_k, self._neighbour, count
        self._out = self._send(np.zeros((owned, 3))), self._send(np.zeros((owned, 8)))

    def compute(self, state: State, want: bool) -> Evaluation | None:
        """Add the forces; with `want` return energies "lennard_jones" and "coulomb" and the virial."""
        if not self._rows:
            self.rebuild(state)
        kind, charge, *listed = self._rows
        where = self._send(state.position_n3), self._send(images_box(state, self.images)[0])
        self._forces.launch(self.device, state.owned, *where, kind, charge, *self._tables, int(want), *listed, *self._out)
        state.force_n3[: state.owned] += self._fetch(self._out[0])
        if not want:
            return None
        total = self._fetch(self._out[1]).sum(axis=0)
        energies, virial = named_energies(total[:2], self.settings), total[[[2, 7, 6], [7, 3, 5], [6, 5, 4]]]
        return Evaluation(energies, virial)


class DispersionCorrection:
    """The term "dispersion_correction": see the function; each rank returns its share by atoms.

    Args:
        topology: all atoms of the system, on every rank.
        settings: cutoff and variant.
    """

    def __init__(self, topology: Topology, settings: NonBonded) -> None:
        self._topology, self._settings = topology, settings

    def compute(self, state: State, want: bool) -> Evaluation | None:
        """Return energy and virial; there are no forces."""
        if not want:
            return None
        if not state.periodic:
            raise InputError("there is no dispersion correction in vacuum", key="dispersion_correction", allowed="false")
        energy, diagonal = dispersion_correction(self._topology, self._settings, state.volume)
        share = state.owned / len(self._topology)
        return Evaluation({"dispersion_correction": share * energy}, share * diagonal * np.eye(3))
