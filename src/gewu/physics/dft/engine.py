"""The engine `dft`: from a structure file to total energy, bands, density of states and gap.

The chain is `Config` -> `prepare.prepare` (crystal, ions, basis, k mesh) -> `ScfSolver.run` -> bands and density of states ->
numbers and arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gewu.core.context import Context
from gewu.core.errors import ConvergenceError
from gewu.core.figure import Figure
from gewu.core.machine import one_blas_thread
from gewu.core.units import HARTREE_EV
from gewu.formats import read_structure
from gewu.formats.cube import cube_bytes
from gewu.formats.extxyz import extxyz_bytes
from gewu.physics.dft import figures as pictures
from gewu.physics.dft.bands import Gap, KPath, Stopped, band_energies, gap
from gewu.physics.dft.config import Config as Config
from gewu.physics.dft.crystal import Crystal
from gewu.physics.dft.dos import density_of_states
from gewu.physics.dft.prepare import Setup, auto_mesh, automatic_cutoff, easy_gth, prepare
from gewu.physics.dft.references import REFERENCES as REFERENCES
from gewu.physics.dft.scf import GroundState, ScfSolver
from gewu.physics.dft.symmetry import KMesh, primitive, reduce_mesh

SUMMARY = "Plane-wave density-functional theory: energy, bands, density of states and gap of a crystal"

_METALS = """Li Na K Rb Cs Be Mg Ca Sr Ba Sc Y Lu Ti Zr Hf V Nb Ta Cr Mo W Mn Tc Re Fe Ru Os Co Rh Ir Ni Pd Pt Cu Ag Au Zn Cd Hg
    Al Ga In Tl Sn Pb Bi"""
METALS = frozenset(_METALS.split())


def run(config: Config, ctx: Context) -> None:
    """Compute the ground state, and what was asked for on top of it.

    Raises:
        InputError: structure, pseudopotentials or settings that cannot be computed.
        ResourceError: the memory needed is not there.
        ConvergenceError: self-consistency was not reached; what was found is saved and flagged.
    """
    with ctx.phase("setup"), one_blas_thread():  # form factors with the same bits for any number of threads
        setup = prepare(config, ctx)
        solver = ScfSolver(setup.basis, setup.ions, setup.mesh, setup.mesh_group, setup.options, ctx)
        _describe(setup, solver, ctx)
    with ctx.phase("scf"):
        ground = solver.run()
    if ground is None:
        return
    _save_ground_state(setup, solver, ground, ctx)
    ctx.number("time_scf_s", ground.seconds, "s")
    if not ground.converged:
        _save_terms(ground, ctx)
        raise ConvergenceError(
            f"self-consistency not reached in {len(ground.history)} iterations (density error {ground.history[-1, 1]:.1e} Ha)",
            key="dft.max_iterations",
            value=config.max_iterations,
            hint="for a metal choose a smearing; else allow more iterations",
        )
    state = {"ground": ground.to_state()}
    ctx.checkpoint(state)
    try:
        with ctx.phase("bands"):
            _bands_and_dos(config, setup, solver, ground, ctx)
        _save_terms(ground, ctx)
    except Stopped:
        ctx.checkpoint(state)


def _describe(setup: Setup, solver: ScfSolver, ctx: Context) -> None:
    basis, group = setup.basis, setup.group
    waves = [h.npw for h in solver.hamiltonians]
    ctx.log(
        f"{len(setup.crystal)} atoms, {solver.electrons:g} electrons, "
        f"space group {group.symbol} ({len(group.rotations)} operations); "
        f"{len(setup.mesh.k)} irreducible k points, {solver.bands} bands, cutoff {basis.cutoff_ha:g} Ha, "
        f"up to {max(waves, default=0)} plane waves, FFT grid {basis.grid[0]} x {basis.grid[1]} x {basis.grid[2]}"
    )
    ctx.log(f"arrays: {basis.arrays.name}; {basis.workers} k points at a time on each of {ctx.ranks.size} ranks")
    for ion in setup.ions.values():
        ctx.log(f"{ion.symbol}: {ion.source}, {ion.valence:g} valence electrons")
    if len(setup.mesh_group.rotations) < len(group.rotations):
        ctx.warn("The k mesh is less symmetric than the crystal: symmetry it lacks is not used, nor imposed on the density.")
    ctx.file("structure.extxyz", extxyz_bytes([setup.crystal.to_structure()]))
    ctx.cite("hohenberg-kohn", "kohn-sham", *setup.citations)


def _save_ground_state(setup: Setup, solver: ScfSolver, ground: GroundState, ctx: Context) -> None:
    ok, crystal, basis = ground.converged, setup.crystal, setup.basis
    ctx.number("energy_ha", ground.energy, "Ha", converged=ok)
    ctx.number("energy_per_atom_ha", ground.energy / len(crystal), "Ha", converged=ok)
    ctx.number("fermi_ev", ground.occupations.mu * HARTREE_EV, "eV", converged=ok)
    ctx.number("scf_iterations", len(ground.history), "1", converged=ok)
    ctx.save("kpoints", setup.mesh.k, ("k", "axis"), "1", long_name="k points, fractions of the reciprocal vectors")
    ctx.save("kweights", setup.mesh.weight, ("k",), "1", long_name="k-point weights")
    ctx.save("eigenvalues_ha", ground.eps, ("k", "band"), "Ha", long_name="band energies")
    ctx.save("occupations", ground.occupations.f, ("k", "band"), "1", long_name="electrons in each state")
    ctx.save("scf_history", ground.history, ("iteration", "quantity"), "Ha", long_name="energy, density error, band residual")
    density = basis.arrays.get(basis.to_grid(basis.arrays.put(ground.rho_g)))
    potential = basis.arrays.get(solver.local_potential(ground.rho_in)[0])
    structure = crystal.to_structure()
    for name, field_, unit, title in (
        ("density", density, "bohr-3", "valence electron density"),
        ("potential", potential, "Ha", "local Kohn-Sham potential"),
    ):
        ctx.save(name, field_, ("a1", "a2", "a3"), unit, long_name=title)
        ctx.file(f"{name}.cube", cube_bytes(structure, field_, title, unit))


def _save_terms(ground: GroundState, ctx: Context) -> None:
    for name, value in ground.energies.items():
        ctx.number(f"energy_{name}_ha", value, "Ha", converged=ground.converged or name == "ewald")


def _bands_and_dos(config: Config, setup: Setup, solver: ScfSolver, ground: GroundState, ctx: Context) -> None:
    v = solver.local_potential(ground.rho_in)[0]
    known = [(setup.mesh.k, ground.eps)]

    def energies_at(k: np.ndarray) -> np.ndarray:
        eps = band_energies(setup.basis, setup.ions, v, k, solver.bands, ctx, config.seed)
        known.append((k, eps))
        return eps

    mesh, mesh_eps = setup.mesh, ground.eps
    if max(config.dos_kpoints) > 0:
        ctx.log(f"density of states on a {'x'.join(map(str, config.dos_kpoints))} mesh")
        mesh = reduce_mesh(config.dos_kpoints, (0.0, 0.0, 0.0), setup.group)[0]
        mesh_eps = energies_at(mesh.k)
    _save_dos(config, setup, solver, ground, mesh, mesh_eps, ctx)
    if setup.path is not None:
        ctx.log(f"bands at {len(setup.path.k)} k points along {' '.join(setup.path.labels)}")
        _save_path(setup.path, energies_at(setup.path.k), ctx)
    k, eps = (np.concatenate(parts) for parts in zip(*known, strict=True))
    _report_gap(config, gap(eps, k, solver.electrons), ctx)


def _save_path(path: KPath, eps: np.ndarray, ctx: Context) -> None:
    ctx.cite("hinuma-path")
    ctx.save("band_kpoints", path.k, ("path", "axis"), "1", long_name="k points along the path")
    labels = " ".join(path.labels)
    ctx.save("band_distance", path.distance, ("path",), "bohr-1", long_name="length along the path")
    ctx.save("band_ticks", np.array(path.ticks), ("tick",), "bohr-1", long_name="labelled points", labels=labels)
    ctx.save("bands_ev", eps * HARTREE_EV, ("path", "band"), "eV", long_name="band energies along the path")


def _save_dos(
    config: Config, setup: Setup, solver: ScfSolver, ground: GroundState, mesh: KMesh, eps: np.ndarray, ctx: Context
) -> None:
    complete = 2 * solver.bands <= solver.electrons  # no empty band was computed: none hides above the last one
    top = eps.max() if complete else max(eps[:, -1].min(), ground.occupations.mu)
    reciprocal = setup.crystal.reciprocal
    energies, dos, states = density_of_states(eps, mesh, reciprocal, config.dos_width_ev / HARTREE_EV, float(top))
    ctx.cite("tetrahedron")
    ctx.save("dos_energy_ev", energies * HARTREE_EV, ("energy",), "eV", long_name="energies of the density of states")
    ctx.save("dos_per_ev", dos / HARTREE_EV, ("energy",), "eV-1", long_name="density of states per cell")
    ctx.save("dos_states", states, ("energy",), "1", long_name="electrons per cell in states below the energy")


def _report_gap(config: Config, found: Gap | None, ctx: Context) -> None:
    if found is None:
        ctx.log("no empty band was computed, so no gap is reported")
        return
    ctx.number("gap_ev", found.fundamental * HARTREE_EV, "eV")
    ctx.number("gap_direct_ev", found.direct * HARTREE_EV, "eV")
    ctx.save(
        "gap_kpoints",
        np.array([found.k_valence, found.k_conduction]),
        ("edge", "axis"),
        "1",
        long_name="valence top, conduction bottom",
    )
    if found.fundamental == 0 and config.smearing == "none":
        ctx.warn("Valence and conduction bands overlap: this is a metal, computed with fixed occupations. Choose a smearing.")


def recognise(path: Path) -> dict[str, Any] | None:
    """Return the `[dft]` table of a sensible first calculation for a structure file, or None for other files."""
    name = path.name.lower()
    if path.suffix.lower() not in (".cif", ".vasp", ".poscar", ".xyz", ".extxyz") and not name.startswith(("poscar", "contcar")):
        return None
    crystal = primitive(Crystal.from_structure(read_structure(path)))
    pseudos = {symbol: easy_gth(symbol) for symbol in crystal.species}
    mesh = auto_mesh(crystal)
    table: dict[str, Any] = {
        "structure": str(path),
        "cell": "primitive",
        "pseudo": {symbol: f"gth-q{pseudo.z_valence}" for symbol, pseudo in pseudos.items()},
        "cutoff_ha": automatic_cutoff(pseudos),
        "kpoints": mesh,
        "dos_kpoints": tuple(2 * n for n in mesh),
    }
    if sum(pseudos[s].z_valence for s in crystal.symbols) % 2 or METALS.issuperset(crystal.symbols):
        table |= {"smearing": "marzari-vanderbilt", "smearing_width_ha": 0.005}
    return table


def figures(result: Any) -> Iterator[Figure]:
    """Yield the figures of a report: bands, density of states, convergence."""
    return pictures.figures(result)
