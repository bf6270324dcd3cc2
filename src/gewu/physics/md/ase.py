"""The Atomic Simulation Environment on both sides: `GewuCalculator` computes for ASE, `from_ase` lets ASE compute for gewu, and
`run_atoms` moves ASE's atoms.

ASE counts in angstrom and eV, takes any cell vectors and gives the stress as (1/V) dU/d(strain) in the order xx yy zz yz xz xy.
Here a cell is turned to lower triangular form and reduced (|bx| <= ax/2 ...), cell = L Q with a rotation Q; forces and virial are
turned back.  Needs the package ase (pip install gewu[interop]).

Reference: Larsen et al., J. Phys.: Condens. Matter 29, 273002 (2017).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Protocol

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.cell import Cell

from gewu.core.errors import InputError
from gewu.formats.forcefield import lennard_jones
from gewu.physics.md.integrate import Integrator
from gewu.physics.md.kinetics import kinetic_energy
from gewu.physics.md.model import Model
from gewu.physics.md.potential import CallableTerm
from gewu.physics.md.state import Array, Evaluation, State, new_state
from gewu.physics.md.units import ANGSTROM, EV

_VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))
_VELOCITY = ANGSTROM * units.fs / 1e-3  # ASE's unit of velocity in nm/ps


class Forces(Protocol):
    """What is asked of a model: it zeroes and fills `state.force_n3`."""

    def compute(self, state: State, want: bool) -> Evaluation | None:
        """Evaluate forces and, with `want`, energies and virial."""


def frame(atoms: Atoms) -> tuple[Array, Array, bool, Array]:
    """Return positions (n, 3) and box (3, 3) in nm as a `State` wants them, whether periodic, and the rotation Q: ASE's = ours Q.

    Raises:
        InputError: periodic in some directions only, or without a volume.
    """
    if atoms.pbc.any() != atoms.pbc.all():
        raise InputError("a system is periodic in all directions or in none", key="pbc", value=atoms.pbc.tolist())
    if not atoms.pbc.any():
        return atoms.positions * ANGSTROM, np.eye(3), False, np.eye(3)
    if abs(atoms.cell.volume) < 1e-12:
        raise InputError("a periodic system needs three independent cell vectors", key="cell", value=atoms.cell.tolist())
    lower, rotation = Cell(atoms.cell).standard_form()
    box = np.tril(np.asarray(lower))
    box[1] -= np.rint(box[1, 0] / box[0, 0]) * box[0]
    box[2] -= np.rint(box[2, 1] / box[1, 1]) * box[1]
    box[2] -= np.rint(box[2, 0] / box[0, 0]) * box[0]
    return atoms.positions @ rotation.T * ANGSTROM, box * ANGSTROM, True, np.asarray(rotation)


class GewuCalculator(Calculator):  # type: ignore[misc]
    """An ASE calculator of energy, forces and stress from a gewu model.

    Args:
        build: takes `Atoms`, returns (model, state) with the atoms in the same order; called at first and whenever chemical
            symbols or periodicity change.  Positions and box of that state are overwritten (see `frame`).
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces", "stress"]

    def __init__(self, build: Callable[[Atoms], tuple[Forces, State]], **settings: Any) -> None:
        super().__init__(**settings)
        self._build = build
        self._built: tuple[Forces, State] | None = None
        self._key: tuple[Any, ...] = ()

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        """Evaluate energy, forces and, in a periodic cell, stress."""
        super().calculate(atoms, properties, system_changes)
        position, box, periodic, rotation = frame(self.atoms)
        key = (*self.atoms.numbers.tolist(), periodic)
        if self._built is None or key != self._key:
            self._built, self._key = self._build(self.atoms), key
        model, state = self._built
        if len(state.position_n3) != len(position) or state.periodic != periodic:
            raise InputError(
                "the model was built for another system", value=len(state.position_n3), allowed=f"{len(position)} atoms"
            )
        state.position_n3[:], state.box_33[:] = position[state.tag_n], box
        evaluation = model.compute(state, True)
        assert evaluation is not None
        force = np.empty_like(position)
        force[state.tag_n] = state.force_n3
        energy = evaluation.potential / EV
        self.results = {"energy": energy, "free_energy": energy, "forces": force @ rotation * (ANGSTROM / EV)}
        if periodic:
            stress = -rotation.T @ evaluation.virial_33 @ rotation / state.volume * (ANGSTROM**3 / EV)
            self.results["stress"] = stress[_VOIGT]


def from_ase(calculator: Any, symbols: Sequence[str]) -> Callable[[State], tuple[Any, ...]]:
    """Return a callable for `CallableTerm` that asks an ASE calculator.

    Args:
        calculator: with energy and forces, and stress if the pressure is wanted.
        symbols: chemical symbols in the order of the input (`Topology.element`).
    """
    names = np.asarray(symbols)

    def potential(state: State) -> tuple[Any, ...]:
        cell = state.box_33 / ANGSTROM if state.periodic else None
        atoms: Any = Atoms(names[state.tag_n], state.position_n3 / ANGSTROM, cell=cell, pbc=state.periodic, calculator=calculator)
        energy, force = atoms.get_potential_energy() * EV, atoms.get_forces() * (EV / ANGSTROM)
        if not state.periodic or "stress" not in calculator.implemented_properties:
            return energy, force
        return energy, force, -atoms.get_stress(voigt=False) * atoms.get_volume() * EV

    return potential


def run_atoms(atoms: Any, steps: int, integrator: Integrator, every: int = 10) -> Array:
    """Move ASE's atoms in place, by an integrator of gewu, under the forces of their own calculator.

    Args:
        atoms: with a calculator and, unless they start at rest, momenta; masses are theirs. Positions come back continuous.
        steps: how many.
        integrator: of `integrate` or `barostat`; a barostat needs a calculator with stress.
        every: steps between two rows of what is returned.

    Returns:
        (rows, 4): time in ps; potential, kinetic and conserved energy in eV.

    Raises:
        InputError: constraints, no calculator, a cell that `frame` refuses.

    >>> from ase.build import bulk; from ase.calculators.emt import EMT; from gewu.physics.md.integrate import VelocityVerlet
    >>> copper = bulk("Cu", cubic=True); copper.calc = EMT()
    >>> run_atoms(copper, 20, VelocityVerlet(0.002)).shape
    (2, 4)
    """
    if atoms.constraints:
        raise InputError("constraints of ASE are not kept here", key="atoms", value=type(atoms.constraints[0]).__name__)
    if atoms.calc is None:
        raise InputError("these atoms have no calculator", key="atoms", hint="set atoms.calc")
    names = tuple(atoms.get_chemical_symbols())
    topology = replace(lennard_jones(names, dict.fromkeys(names, (0.0, 0.0))), mass_n=atoms.get_masses())
    position, box, periodic, rotation = frame(atoms)
    state = new_state(topology, position, box, periodic=periodic, velocity_n3=atoms.get_velocities() @ rotation.T * _VELOCITY)
    model = Model(topology, lambda _: [CallableTerm(from_ase(atoms.calc, names))], 0.0, 1.0)
    state, rows = model.adopt(state), []
    model.compute(state, False)
    for step in range(1, steps + 1):
        evaluation = integrator.step(state, model, step % every == 0)
        if step % every == 0 and evaluation is not None:
            energies = evaluation.potential, kinetic_energy(state), integrator.conserved(state, evaluation)
            rows.append((state.time_ps, *(x / EV for x in energies)))
    if periodic:  # the box may have been reduced to other vectors of the same lattice, and turned: undo both
        change = np.linalg.solve(box, state.box_33)
        atoms.set_cell(atoms.cell.array @ rotation.T @ change @ rotation)
    atoms.positions[:] = state.position_n3 @ rotation / ANGSTROM
    atoms.set_velocities(state.velocity_n3 @ rotation / _VELOCITY)
    return np.array(rows).reshape(-1, 4)
