"""From the keys of a job to a system: who the atoms are, where they stand, which terms act on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gewu.core.errors import InputError
from gewu.core.ranks import SERIAL, Ranks
from gewu.formats import read_structure
from gewu.formats.amber import AmberCoordinates, read_prmtop, read_rst7
from gewu.formats.eam import read_eam
from gewu.formats.elements import MASS_U
from gewu.formats.forcefield import System, from_amber, from_gromacs, from_lammps, lennard_jones, new_system, rigid
from gewu.formats.forcefield.water import solvate, water_box, water_topology
from gewu.formats.gromacs import read_gro, read_top
from gewu.formats.lammps import read_lammps
from gewu.formats.pdb import is_mmcif, read_mmcif, read_pdb
from gewu.formats.potentials import read_stillinger_weber, read_tersoff
from gewu.formats.zhou import zhou_tables
from gewu.physics.md.bonded import Bonded
from gewu.physics.md.config import Config
from gewu.physics.md.eam import Eam
from gewu.physics.md.ewald import choose_alpha
from gewu.physics.md.manybody import stillinger_weber, tersoff
from gewu.physics.md.model import Local, Model
from gewu.physics.md.pairs import NonBonded, Pairs
from gewu.physics.md.plain import DispersionCorrection, PlainPairs
from gewu.physics.md.pme import Pme, choose_grid
from gewu.physics.md.state import Array, State, Term, Topology, new_state
from gewu.physics.md.units import ANGSTROM


@dataclass(frozen=True, eq=False)
class Setup:
    """A system ready to move: all atoms, their forces, what to cite and to say about them."""

    topology: Topology
    state: State
    model: Model
    citations: tuple[str, ...]
    notes: tuple[str, ...]


def build_system(config: Config) -> System:
    """Return topology and coordinates of a job.

    Raises:
        InputError: files that do not fit together, elements without parameters, no coordinates.
    """
    if config.topology:
        system = _with_topology(config)
        topology = _tied(system.topology, config.constraints)
        system = replace(system, topology=topology)
        return solvate(system, config.water, padding_nm=config.solvate_nm, seed=config.seed) if config.solvate_nm else system
    if config.water:
        return _water(config)
    symbols, position, box = _structure(config)
    if config.lennard_jones:
        topology = lennard_jones(
            symbols,
            {name: _pair_of_numbers(text, name) for name, text in _table(config.lennard_jones, "lennard_jones").items()},
            mixing=config.mixing,  # type: ignore[arg-type]
            charges={name: _number(text, f"charges.{name}") for name, text in _table(config.charges, "charges").items()},
        )
    else:
        topology = lennard_jones(symbols, {name: (0.0, 0.0) for name in symbols})  # many-body potentials only
    return new_system(topology, position, None, box, config.structure)


def _tied(topology: Topology, kind: str) -> Topology:
    bonds = {"none": "none", "hydrogen bonds": "hydrogens", "all bonds": "all"}[kind]
    return rigid(topology, water=kind != "none", bonds=bonds)  # type: ignore[arg-type]


def _with_topology(config: Config) -> System:
    suffix, name = Path(config.topology).suffix.lower(), config.topology
    if suffix in (".prmtop", ".parm7"):
        coordinates = _amber_coordinates(config) if config.structure else None
        system = from_amber(read_prmtop(name), coordinates)
    elif suffix == ".top":
        frame = read_gro(config.structure) if config.structure.lower().endswith(".gro") else None
        system = from_gromacs(read_top(name), frame)
    else:
        system = from_lammps(read_lammps(name), units=config.lammps_units, mixing=None)  # type: ignore[arg-type]
    if system.position_n3 is None:
        if not config.structure:
            raise InputError(
                "this topology brings no coordinates", file=name, key="structure", hint="name a file with coordinates"
            )
        _, position, box = _structure(config)
        system = new_system(system.topology, position, None, box, config.structure)
    return system


def _amber_coordinates(config: Config) -> AmberCoordinates | None:
    if Path(config.structure).suffix.lower() in (".inpcrd", ".rst7", ".ncrst", ".restrt", ".crd"):
        return read_rst7(config.structure)
    return None


def _structure(config: Config) -> tuple[tuple[str, ...], Array, Array | None]:
    """Return symbols, positions and cell (nm) of a structure file, repeated."""
    path = Path(config.structure)
    suffix = path.suffix.lower()
    if suffix in (".pdb", ".ent", ".mmcif") or (suffix == ".cif" and is_mmcif(path)):
        sites = read_pdb(path) if suffix in (".pdb", ".ent") else read_mmcif(path)
        symbols, position = sites.symbols, sites.positions_angstrom * ANGSTROM
        cell = None if sites.cell_angstrom is None else sites.cell_angstrom * ANGSTROM
    elif suffix == ".gro":
        frame = read_gro(path)
        if not config.topology:
            _refuse_names(frame.atom_name, str(path))
        symbols, position, cell = frame.atom_name, frame.position_n3, frame.box_33
    else:
        crystal = read_structure(path)
        symbols, cell = crystal.symbols, crystal.cell_angstrom * ANGSTROM
        position = crystal.frac_n3 @ cell
    if cell is None:
        return tuple(symbols), position, None
    shifts = np.array(
        [[i, j, k] for i in range(config.repeat[0]) for j in range(config.repeat[1]) for k in range(config.repeat[2])]
    )
    position = (np.asarray(position)[None] + (shifts @ cell)[:, None]).reshape(-1, 3)
    return tuple(symbols) * len(shifts), position, cell * np.array(config.repeat)[:, None]


def _refuse_names(names: Sequence[str], file: str) -> None:
    """Refuse a file whose atoms are not named by element, where nothing else says what they are."""
    unknown = sorted(set(names) - set(MASS_U))
    if unknown:
        raise InputError("atoms are not named by element", file=file, value=unknown[0], hint="give a topology")


def _water(config: Config) -> System:
    if not config.structure:
        return water_box(config.water, config.molecules, seed=config.seed)
    symbols, position, box = _structure(config)
    if len(symbols) % 3 or any(symbols[k : k + 3] != ("O", "H", "H") for k in range(0, len(symbols), 3)):
        raise InputError("water is expected as O H H, molecule by molecule", file=config.structure, hint="give a topology")
    model = water_topology(config.water, len(symbols) // 3)
    sites = len(model) // (len(symbols) // 3)
    everything = np.zeros((len(symbols) // 3, sites, 3))
    everything[:, :3] = position.reshape(-1, 3, 3)
    everything[:, 3:] = everything[:, :1]  # virtual sites are placed by the model
    return new_system(model, everything.reshape(-1, 3), None, box, config.structure)


def _table(value: str | dict[str, str], key: str) -> dict[str, str]:
    if isinstance(value, str):
        if value:
            raise InputError("a table by element is expected", key=key, value=value, hint="for example {Ar = '0.996 0.3405'}")
        return {}
    return value


def _number(text: str, key: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError("not a number", key=key, value=text) from None


def _pair_of_numbers(text: str, name: str) -> tuple[float, float]:
    words = text.split()
    if len(words) != 2:
        raise InputError(
            "two numbers are expected", key=f"lennard_jones.{name}", value=text, allowed="epsilon (kJ/mol) sigma (nm)"
        )
    return _number(words[0], f"lennard_jones.{name}"), _number(words[1], f"lennard_jones.{name}")


def prepare(config: Config, ranks: Ranks = SERIAL, device: str = "cpu") -> Setup:
    """Build the system of a job and its forces.

    Raises:
        InputError: see `build_system`; a cutoff that does not fit into the box; options that the device lacks.
    """
    system = build_system(config)
    assert system.position_n3 is not None
    topology, periodic = system.topology, system.box_33 is not None
    box = system.box_33 if system.box_33 is not None else np.eye(3)
    state = new_state(topology, system.position_n3, box, periodic=periodic, velocity_n3=system.velocity_n3)
    if not periodic and (config.ensemble == "npt" or config.coulomb == "ewald"):
        raise InputError("a system without a box has neither pressure nor an Ewald sum", key="ensemble", value=config.ensemble)
    if device != "cpu" and ranks.size > 1:
        raise InputError("several ranks share no GPU here", key="device", value=device, hint="use one rank, or the device cpu")
    terms, cutoff, skin, citations, notes = _terms(config, topology, state, ranks, device)
    mtk = config.ensemble == "npt" and config.barostat == "mtk"
    free = config.ensemble in ("nvt", "npt") and config.thermostat == "langevin" and not mtk
    model = Model(topology, terms, cutoff, skin, ranks=ranks, tolerance=config.constraint_tolerance, free_centre=free)
    return Setup(topology, state, model, citations, notes)


def _terms(config: Config, topology: Topology, state: State, ranks: Ranks, device: str) -> tuple[Any, float, float, Any, Any]:
    """Return what makes the terms, their cutoff, the skin, keys of papers, and remarks."""
    if config.eam or config.tersoff or config.stillinger_weber:
        return _manybody(config, topology, device)
    coulomb = config.coulomb
    if coulomb == "auto":
        coulomb = "none" if not np.any(topology.charge_n) else ("ewald" if state.periodic else "cut")
    alpha = choose_alpha(config.cutoff_nm, config.ewald_tolerance) if coulomb == "ewald" else 0.0
    dispersion = config.dispersion_correction and state.periodic
    cutoff = config.cutoff_nm
    if not state.periodic:  # in vacuum everything meets everything
        cutoff = max(cutoff, 2.0 * float(np.ptp(state.position_n3, axis=0).max()) + 2.0)
    settings = NonBonded(cutoff, config.lj, coulomb, config.epsilon_rf, alpha)
    skin = config.skin_nm or 0.1
    grid = choose_grid(state.box_33, config.pme_spacing_nm) if coulomb == "ewald" else (0, 0, 0)
    bonded = any(
        len(table.index) for name, table in topology.tables().items() if name not in ("constraints", "settles", "virtual_sites")
    )

    precision: Any = config.precision
    mesh = None
    if coulomb == "ewald":
        mesh = Pme(topology, alpha, grid, order=config.pme_order, precision=precision, ranks=ranks, device=device)

    def make(local: Local) -> list[Term]:
        terms: list[Term] = []
        if device == "cpu":
            terms.append(Pairs(local.topology, settings, skin, precision, local.images, watch_all=config.ensemble == "nve"))
        else:
            terms.append(PlainPairs(local.topology, settings, device=device, precision=precision, skin=skin))
        if mesh is not None:
            terms.append(mesh)
        if bonded:
            terms.append(Bonded(local.topology, local.state.owned, len(local.state.mass_n), device=device))
        if dispersion:
            terms.append(DispersionCorrection(topology, settings))
        return terms

    notes = [f"cutoff {cutoff:.4g} nm, skin {skin:g} nm, {settings.lj} Lennard-Jones, Coulomb: {coulomb}"]
    if coulomb == "ewald":
        notes.append(f"PME: alpha {alpha:.4g} 1/nm, mesh {grid[0]} x {grid[1]} x {grid[2]}, order {config.pme_order}")
    return make, cutoff, skin, ("cluster-list", *(("pme",) if coulomb == "ewald" else ())), tuple(notes)


def _manybody(config: Config, topology: Topology, device: str) -> tuple[Callable[[Local], list[Term]], float, float, Any, Any]:
    skin, names = config.skin_nm or 0.1, topology.type_names
    if config.eam:
        shipped = config.eam == "zhou"
        tables = zhou_tables(sorted(set(names))) if shipped else read_eam(config.eam)

        def embedded(local: Local) -> list[Term]:
            return [Eam(tables, names, skin_nm=skin, precision=config.precision, device=device, forward=local.forward)]

        cutoff = tables.cutoff * ANGSTROM
        cited = ("daw-baskes", "zhou-eam") if shipped else ("daw-baskes",)
        return embedded, cutoff, skin, cited, (f"EAM: cutoff {cutoff:.4g} nm, skin {skin:g} nm",)
    if config.tersoff:
        triplets, make, cited = read_tersoff(config.tersoff), tersoff, ("tersoff",)
    else:
        triplets, make, cited = read_stillinger_weber(config.stillinger_weber), stillinger_weber, ("stillinger-weber",)

    def three_body(local: Local) -> list[Term]:
        return [make(triplets, names, skin_nm=skin, device=device)]

    reach = make(triplets, names).reach_nm
    return three_body, reach, skin, cited, (f"{cited[0]}: forces reach {reach:.4g} nm, skin {skin:g} nm",)
