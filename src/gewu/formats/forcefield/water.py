"""Rigid water models, boxes of them, and water around a solute.

SPC/E: H. J. C. Berendsen, J. R. Grigera & T. P. Straatsma, J. Phys. Chem. 91, 6269 (1987).
TIP3P: W. L. Jorgensen et al., J. Chem. Phys. 79, 926 (1983); no Lennard-Jones on hydrogen.
TIP4P-Ew: H. W. Horn et al., J. Chem. Phys. 120, 9665 (2004); the charge sits on M, 0.0125 nm from O on the bisector.
Boxes are lattices of randomly turned molecules: without overlap, not equilibrated. Minimise and heat them before use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.spatial import cKDTree

from gewu.core.errors import InputError
from gewu.core.random import uniform_pair
from gewu.core.units import AVOGADRO_PER_MOL
from gewu.formats.elements import MASS_U
from gewu.formats.forcefield.system import Mixing, System, mix
from gewu.formats.forcefield.topology import Array, Terms, Topology, no_terms

U_PER_NM3: Final = AVOGADRO_PER_MOL * 1e-21
"""One g/cm^3 in u/nm^3."""
_TURN_STREAMS: Final = (0x57A7E1, 0x57A7E2)
MOLECULES_PER_NM3: Final = 33.3
"""Of liquid water at room temperature: 0.997 g/cm^3."""


@dataclass(frozen=True)
class Water:
    """A rigid model: geometry in nm and degrees, charges in e, Lennard-Jones on oxygen in nm and kJ/mol."""

    d_oh: float
    angle: float
    charge_h: float
    sigma: float
    epsilon: float
    d_om: float = 0.0

    @property
    def d_hh(self) -> float:
        """Distance of the hydrogens, nm."""
        return float(2 * self.d_oh * np.sin(np.radians(self.angle) / 2))

    @property
    def sites(self) -> int:
        """Number of sites: 4 with a virtual site."""
        return 4 if self.d_om else 3

    @property
    def weight(self) -> float:
        """Weight of each hydrogen in r_M = r_O + w (r_H1 - r_O) + w (r_H2 - r_O)."""
        return float(self.d_om / (2 * self.d_oh * np.cos(np.radians(self.angle) / 2)))


MODELS: Final = {
    "spce": Water(0.1, 109.47, 0.4238, 0.3428**2 / 0.37122, (0.37122 / 0.3428) ** 12 / 4),
    "tip3p": Water(0.09572, 104.52, 0.417, 0.315061, 0.6364),
    "tip4pew": Water(0.09572, 104.52, 0.52422, 0.316435, 0.680946, 0.0125),
}


def _model(name: str) -> Water:
    if name not in MODELS:
        raise InputError("unknown water model", key="water", value=name, allowed=", ".join(MODELS))
    return MODELS[name]


def water_topology(model: str, n_molecules: int) -> Topology:
    """Return the topology of `n_molecules` rigid molecules, atoms O, H, H (and M) each.

    Args:
        model: "spce", "tip3p" or "tip4pew".
        n_molecules: at least 1.

    Raises:
        InputError: an unknown model, or no molecules.
    """
    water = _model(model)
    if not 1 <= n_molecules <= 3_000_000:
        raise InputError("number of molecules out of range", key="molecules", value=n_molecules, allowed="1 to 3000000")
    first = (water.sites * np.arange(n_molecules))[:, None]
    pairs = np.array([(i, j) for i in range(water.sites) for j in range(i + 1, water.sites)])
    four = water.sites == 4
    mass, names = [MASS_U["O"], MASS_U["H"], MASS_U["H"], 0.0], ("O", "H1", "H2", "M")
    charge = [0.0 if four else -2 * water.charge_h, water.charge_h, water.charge_h, -2 * water.charge_h]
    settles = Terms((first + np.array([0, 1, 2])).astype(np.int32), np.tile([water.d_oh, water.d_hh], (n_molecules, 1)))
    sites = Terms((first + np.array([3, 0, 1, 2])).astype(np.int32), np.full((n_molecules, 2), water.weight))
    return Topology(
        mass_n=np.tile(mass[: water.sites], n_molecules),
        charge_n=np.tile(charge[: water.sites], n_molecules),
        type_n=np.tile(np.array([0, 1, 1, 1], np.int32)[: water.sites], n_molecules),
        type_names=("OW", "HW"),
        element=("O", "H", "H", "")[: water.sites] * n_molecules,
        sigma_tt=np.array([[water.sigma, 0.0], [0.0, 0.0]]),
        epsilon_tt=np.array([[water.epsilon, 0.0], [0.0, 0.0]]),
        atom_name=names[: water.sites] * n_molecules,
        residue_name=("HOH",) * (water.sites * n_molecules),
        residue_n=np.repeat(np.arange(n_molecules, dtype=np.int32), water.sites),
        molecule_n=np.repeat(np.arange(n_molecules, dtype=np.int32), water.sites),
        exclusions=(first[:, :, None] + pairs).reshape(-1, 2).astype(np.int32),
        settles=settles,
        virtual_sites=sites if four else no_terms(4, 2),
    )


def molecule_n3(model: str) -> Array:
    """Return the sites of one molecule, (3 or 4, 3) nm, O at the origin and the bisector along x."""
    water = _model(model)
    half = np.radians(water.angle) / 2
    x, y = water.d_oh * np.cos(half), water.d_oh * np.sin(half)
    return np.array([[0, 0, 0], [x, y, 0], [x, -y, 0], [water.d_om, 0, 0]], np.float64)[: water.sites]


def _turned(model: str, centres: Array, seed: int) -> Array:
    """Return molecules at `centres`, each turned by a random rotation (K. Shoemake, Graphics Gems III, 124 (1992))."""
    (u, v), (w, _) = (uniform_pair(seed, stream, np.arange(len(centres))) for stream in _TURN_STREAMS)
    a, b = np.sqrt(1 - u), np.sqrt(u)
    x, y = a * np.sin(2 * np.pi * v), a * np.cos(2 * np.pi * v)
    z, s = b * np.sin(2 * np.pi * w), b * np.cos(2 * np.pi * w)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - s * z), 2 * (x * z + s * y)],
            [2 * (x * y + s * z), 1 - 2 * (x * x + z * z), 2 * (y * z - s * x)],
            [2 * (x * z - s * y), 2 * (y * z + s * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    sites = molecule_n3(model)
    return np.asarray(centres[:, None, :] + np.einsum("ijm,aj->mai", rotation, sites))


def _lattice(n: int, lengths: Array) -> Array:
    """Return n points of the simple lattice with the widest spacing that has at least n points in a box of these lengths."""
    middle = np.maximum(np.round(lengths / np.cbrt(lengths.prod() / n)).astype(int), 1)
    options = [middle + np.array([i, j, k]) for i in (-1, 0, 1, 2) for j in (-1, 0, 1, 2) for k in (-1, 0, 1, 2)]
    usable = [counts for counts in options if counts.min() >= 1 and counts.prod() >= n]
    counts = max(usable, key=lambda c: (float((lengths / c).min()), -int(c.prod())))
    points = (np.argwhere(np.ones(counts, np.bool_)) + 0.5) * (lengths / counts)
    chosen = np.round(np.linspace(0, len(points) - 1, n)).astype(int) if n > 1 else np.zeros(1, int)
    return np.asarray(points[chosen])


def water_box(model: str, n_molecules: int, density_g_cm3: float = 0.997, seed: int = 0) -> System:
    """Return a periodic cube of water: a lattice of randomly turned molecules, not equilibrated.

    Args:
        model: "spce", "tip3p" or "tip4pew".
        n_molecules: at least 1.
        density_g_cm3: 0.01 to 2.
        seed: of the orientations.
    """
    if not 0.01 <= density_g_cm3 <= 2:
        raise InputError("density out of range", key="density_g_cm3", value=density_g_cm3, allowed="0.01 to 2")
    topology = water_topology(model, n_molecules)
    length = float(np.cbrt(topology.mass_n.sum() / (density_g_cm3 * U_PER_NM3)))
    position = _turned(model, _lattice(n_molecules, np.full(3, length)), seed)
    return System(topology, position.reshape(-1, 3), None, np.diag([length] * 3))


def merge(first: Topology, second: Topology, mixing: Mixing = "lorentz-berthelot") -> Topology:
    """Return both systems as one; pairs of types of different systems follow the mixing rule.

    Raises:
        InputError: both have CMAP grids, of different sizes.
    """
    n, types, grids = len(first), len(first.type_names), len(first.cmap_grids)
    if grids and len(second.cmap_grids) and first.cmap_grids.shape[1:] != second.cmap_grids.shape[1:]:
        raise InputError("CMAP grids of different sizes", key="cmap", value=second.cmap_grids.shape[1:])
    sigma, epsilon = mix(
        np.concatenate([np.diag(part.sigma_tt) for part in (first, second)]),
        np.concatenate([np.diag(part.epsilon_tt) for part in (first, second)]),
        mixing,
    )
    for table, name in ((sigma, "sigma_tt"), (epsilon, "epsilon_tt")):
        table[:types, :types], table[types:, types:] = getattr(first, name), getattr(second, name)
    tables: dict[str, Any] = {
        name: Terms(np.concatenate([table.index, other.index + np.int32(n)]), np.concatenate([table.parameter, other.parameter]))
        for (name, table), other in zip(first.tables().items(), second.tables().values(), strict=True)
    }
    tables["cmap"].parameter[len(first.cmap.index) :] += grids

    def names(which: str) -> tuple[str, ...]:
        return tuple(name for part in (first, second) for name in getattr(part, which) or ("",) * len(part))

    def numbers(which: str) -> Any:
        a, b = (getattr(part, which) if len(getattr(part, which)) else np.arange(len(part)) for part in (first, second))
        return np.concatenate([a, b + a.max() + 1]).astype(np.int32)

    return Topology(
        mass_n=np.concatenate([first.mass_n, second.mass_n]),
        charge_n=np.concatenate([first.charge_n, second.charge_n]),
        type_n=np.concatenate([first.type_n, second.type_n + np.int32(types)]),
        type_names=first.type_names + second.type_names,
        element=first.element + second.element,
        sigma_tt=sigma,
        epsilon_tt=epsilon,
        atom_name=names("atom_name"),
        residue_name=names("residue_name"),
        residue_n=numbers("residue_n"),
        molecule_n=numbers("molecule_n"),
        cmap_grids=first.cmap_grids if grids else second.cmap_grids,
        exclusions=np.concatenate([first.exclusions, second.exclusions + np.int32(n)]),
        **tables,
    )


def solvate(solute: System, model: str, *, padding_nm: float = 1.0, closest_nm: float = 0.24, seed: int = 0) -> System:
    """Return the solute in a box of water; its own box is used when it has one.

    Args:
        solute: with positions.
        model: "spce", "tip3p" or "tip4pew".
        padding_nm: water on each side of a solute without a box.
        closest_nm: molecules of which an atom is nearer to the solute are left out.
        seed: of the orientations.

    Raises:
        InputError: a box that is not rectangular, or without room for water.
    """
    if solute.position_n3 is None:
        raise InputError("a solute needs coordinates", key="solute")
    position = solute.position_n3
    if solute.box_33 is None:
        low, high = position.min(axis=0) - padding_nm, position.max(axis=0) + padding_nm
        position, box = position - low, np.diag(high - low)
    else:
        box = solute.box_33
    lengths = np.diag(box)
    if np.any(box - np.diag(lengths)):
        raise InputError("the box of a solute is rectangular", key="box", value=box.tolist())
    n = max(1, round(float(lengths.prod()) * MOLECULES_PER_NM3))
    if n > 3_000_000:
        raise InputError("box too large", key="box", value=lengths.tolist())
    centres = _lattice(n, lengths)
    water = _turned(model, centres, seed)
    tree = cKDTree(position % lengths % lengths, boxsize=lengths)  # twice: -1e-17 % 3 is 3
    distance, _ = tree.query((water % lengths % lengths).reshape(-1, 3), distance_upper_bound=closest_nm)
    free = np.isinf(distance).reshape(len(centres), -1).all(axis=1)
    if not free.any():
        raise InputError("no room for water", key="padding_nm", value=padding_nm)
    sites = water[free].reshape(-1, 3)
    topology = merge(solute.topology, water_topology(model, int(free.sum())))
    velocity = None if solute.velocity_n3 is None else np.concatenate([solute.velocity_n3, np.zeros_like(sites)])
    return System(topology, np.concatenate([position, sites]), velocity, box)
