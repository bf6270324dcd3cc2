"""Readers and writers of molecular dynamics: one system in three formats, values read back, trajectories cut back."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.io import netcdf_file

from gewu.core.errors import InputError, StoreError
from gewu.formats.amber import AMBER_VELOCITY, read_prmtop, read_rst7
from gewu.formats.dcd import DcdWriter, read_dcd
from gewu.formats.forcefield import from_amber, from_gromacs, from_lammps, lennard_jones, reduced_box, rigid, whole
from gewu.formats.forcefield.graph import cell_of, molecules, within_bonds
from gewu.formats.forcefield.system import System
from gewu.formats.forcefield.water import MODELS, U_PER_NM3, merge, solvate, water_box, water_topology
from gewu.formats.gromacs import Gro, gro_bytes, read_gro, read_top
from gewu.formats.h5md import H5mdWriter, read_h5md
from gewu.formats.lammps import read_lammps
from gewu.formats.pdb import pdb_bytes, read_mmcif, read_pdb
from gewu.physics.md.state import Topology, new_state
from tests.data import md_synthetic as synthetic

ROUND = 1e-8  # prmtop files give nine digits
CELL = np.array([[30.0, 0, 0], [4, 28, 0], [-3, 5, 27]])


def write(folder: Path, **texts: str) -> list[Path]:
    """Write files named by their suffix; `chain_itp` is what the topology includes."""
    paths = []
    for name, text in texts.items():
        path = folder / ("chain.itp" if name == "chain_itp" else f"test.{name}")
        path.write_text(text)
        paths.append(path)
    return paths


def amber(folder: Path, coordinates: bool = True, **changes: object) -> System:
    top, rst7 = write(folder, prmtop=synthetic.prmtop_text(**changes), rst7=synthetic.inpcrd_text())  # type: ignore[arg-type]
    return from_amber(read_prmtop(top), read_rst7(rst7) if coordinates else None)


def gromacs(folder: Path) -> System:
    top, gro, _ = write(folder, top=synthetic.top_text(), gro=synthetic.gro_text(), chain_itp=synthetic.itp_text())
    return from_gromacs(read_top(top), read_gro(gro))


def assert_same_terms(one: Topology, other: Topology, names: tuple[str, ...]) -> None:
    for name in names:
        a, b = one.tables()[name], other.tables()[name]
        np.testing.assert_array_equal(a.index, b.index, err_msg=name)
        np.testing.assert_allclose(a.parameter, b.parameter, rtol=ROUND, atol=ROUND, err_msg=name)


def test_amber_and_gromacs_files_of_one_system_give_one_topology(tmp_path: Path) -> None:
    a, g = amber(tmp_path), gromacs(tmp_path)
    one, other = rigid(a.topology), g.topology
    names = ("bonds", "angles", "dihedrals", "pairs14", "settles", "virtual_sites")
    assert [len(one.tables()[name].index) for name in names] == [3, 2, 2, 1, 1, 1]
    assert_same_terms(one, other, names)
    np.testing.assert_array_equal(one.exclusions, other.exclusions)
    assert one.element == other.element == ("C", "C", "C", "O", "O", "H", "H", "")
    assert one.atom_name == other.atom_name and one.residue_name == other.residue_name
    np.testing.assert_array_equal(one.molecule_n, [0, 0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(other.residue_n, one.residue_n)
    np.testing.assert_allclose(one.charge_n, synthetic.CHARGE, atol=1e-8)
    np.testing.assert_allclose(a.position_n3, g.position_n3, atol=5.1e-5)  # the gro file has four decimals
    both = [(t.sigma_tt[t.type_n][:, t.type_n], t.epsilon_tt[t.type_n][:, t.type_n]) for t in (one, other)]
    np.testing.assert_allclose(both[0][1], both[1][1], rtol=ROUND, atol=1e-12)
    acting = both[0][1] > 0
    np.testing.assert_allclose(both[0][0][acting], both[1][0][acting], rtol=ROUND)
    new_state(other, g.position_n3, g.box_33)


def test_a_lammps_file_of_the_chain_gives_the_same_terms(tmp_path: Path) -> None:
    a = amber(tmp_path).topology
    (path,) = write(tmp_path, data=synthetic.lammps_text())
    system = from_lammps(read_lammps(path), units="real", mixing="lorentz-berthelot", special_14=(0.4, 0.8))
    assert_same_terms(
        system.topology,
        replace(a, bonds=type(a.bonds)(*(part[:3] for part in rigid(a).bonds))),
        ("bonds", "angles", "dihedrals", "pairs14"),
    )
    np.testing.assert_allclose(system.position_n3, np.array(synthetic.POSITION[:4]) / 10, atol=1e-12)  # image flag applied
    np.testing.assert_allclose(system.velocity_n3[2], [0.1, 0.2, 0.3])  # 0.001 angstrom/fs is 0.1 nm/ps
    assert system.topology.element == ("C", "C", "C", "O") and len(system.topology.exclusions) == 6
    without = from_lammps(read_lammps(path), units="metal").topology
    assert len(without.pairs14.index) == 0
    assert without.bonds.parameter[0, 0] == pytest.approx(2 * 310.0 * 96.48533212 * 100)
    np.testing.assert_allclose(without.sigma_tt[0, 1], np.sqrt(0.34 * 0.30))  # LAMMPS' own rule is geometric


def test_lammps_coefficients_of_other_styles(tmp_path: Path) -> None:
    text = synthetic.lammps_text()
    text = text.replace(
        "Dihedral Coeffs # charmm\n\n1 0.18 3 0 0.0\n2 0.25 2 180 0.0",
        "Dihedral Coeffs # charmm\n\n1 0.18 3 0 0.5\n2 0.25 2 180 0.0",
    )
    text = text.replace(
        "Angle Coeffs # harmonic\n\n1 40.0 109.5\n2 50.0 108.5", "Angle Coeffs # charmm\n\n1 40.0 109.5 8.0 2.5\n2 50.0 108.5 0 0"
    )
    (path,) = write(tmp_path, data=text)
    found = from_lammps(read_lammps(path), units="real").topology
    np.testing.assert_allclose(found.urey_bradley.parameter, [[2 * 8 * 418.4, 0.25]])
    np.testing.assert_array_equal(found.urey_bradley.index, [[0, 2]])
    np.testing.assert_allclose(found.pairs14.parameter[0, 0], 0.1 * -0.3 * 0.5)
    text = (
        synthetic.lammps_text()
        .replace("# charmm", "# opls")
        .replace("1 0.18 3 0 0.0", "1 1.0 2.0 3.0 4.0")
        .replace("2 0.25 2 180 0.0", "2 0 0 0 0")
    )
    (path,) = write(tmp_path, data=text)
    found = from_lammps(read_lammps(path), units="real").topology
    phi = np.linspace(-3, 3, 7)
    direct = sum(k / 2 * (1 - (-1) ** k * np.cos(k * phi)) for k in (1, 2, 3, 4)) * 4.184
    c = found.ryckaert.parameter[0]
    np.testing.assert_allclose(sum(c[m] * np.cos(phi - np.pi) ** m for m in range(6)), direct, atol=1e-12)


def test_gromacs_functions(tmp_path: Path) -> None:
    itp = synthetic.itp_text() + (
        "1 2 3 4 3 1 2 3 4 5 6\n1 2 3 4 5 1 2 3 4\n1 2 3 4 2 35.0 50.0\n1 2 3 4 4 180.0 3.0 2\n[ cmap ]\n"
    )
    top = synthetic.top_text().replace("3 4 1 gb_co", "3 4 1 gb_co")
    write(tmp_path, top=top, chain_itp=itp.replace("2 3 4 1\n[ dih", "2 3 4 5 100.0 300.0 0.25 1000.0\n[ dih"))
    found = from_gromacs(read_top(tmp_path / "test.top", defines={"FLEXIBLE": ""})).topology
    np.testing.assert_array_equal(found.ryckaert.parameter[0], [1, 2, 3, 4, 5, 6])
    phi = np.linspace(-3, 3, 7)
    direct = sum(k / 2 * (1 - (-1) ** k * np.cos(k * phi)) for k in (1, 2, 3, 4))
    c = found.ryckaert.parameter[1]
    np.testing.assert_allclose(sum(c[m] * np.cos(phi - np.pi) ** m for m in range(6)), direct, atol=1e-12)
    np.testing.assert_allclose(found.impropers.parameter, [[50.0, np.radians(35.0)]])
    np.testing.assert_allclose(found.dihedrals.parameter[-1], [3.0, np.pi, 2])
    np.testing.assert_allclose(found.urey_bradley.parameter, [[1000.0, 0.25]])
    assert len(found.settles.index) == 0 and len(found.bonds.index) == 6  # FLEXIBLE


def test_cmap_grids_of_both_formats_agree(tmp_path: Path) -> None:
    grid = np.arange(16.0).reshape(4, 4)
    angles = {"CMAP_COUNT": ("10I8", [1, 1]), "CMAP_RESOLUTION": ("10I8", [4]), "CMAP_INDEX": ("10I8", [1, 2, 3, 4, 5, 1])}
    extra = angles | {"CMAP_PARAMETER_01": ("8(F9.5)", grid.ravel())}
    a = amber(tmp_path, extra=extra).topology
    np.testing.assert_allclose(a.cmap_grids[0], grid * 4.184)
    np.testing.assert_array_equal(a.cmap.index, [[0, 1, 2, 3, 4]])
    values = " ".join(str(x) for x in grid.ravel() * 4.184)
    itp = synthetic.itp_text().replace("[ moleculetype ]", f"[ cmaptypes ]\nCT CT CT OH CT 1 4 4 {values}\n[ moleculetype ]")
    itp = itp.replace("[ bonds ]", "5 CT 1 CHN C4 1 0.0\n[ bonds ]") + "[ cmap ]\n1 2 3 4 5 1\n"
    write(tmp_path, top=synthetic.top_text(), chain_itp=itp)
    g = from_gromacs(read_top(tmp_path / "test.top")).topology
    np.testing.assert_allclose(g.cmap_grids, a.cmap_grids)
    np.testing.assert_array_equal(g.cmap.index, a.cmap.index)


def test_charmm_sections_of_a_prmtop(tmp_path: Path) -> None:
    extra = {
        "CHARMM_UREY_BRADLEY_COUNT": ("10I8", [1, 1]), "CHARMM_UREY_BRADLEY": ("10I8", [1, 3, 1]),
        "CHARMM_UREY_BRADLEY_FORCE_CONSTANT": ("5E16.8", [8.0]), "CHARMM_UREY_BRADLEY_EQUIL_VALUE": ("5E16.8", [2.5]),
        "CHARMM_NUM_IMPROPERS": ("10I8", [1]), "CHARMM_IMPROPERS": ("10I8", [1, 2, 3, 4, 1]),
        "CHARMM_NUM_IMPR_TYPES": ("10I8", [1]), "CHARMM_IMPROPER_FORCE_CONSTANT": ("5E16.8", [20.0]),
        "CHARMM_IMPROPER_PHASE": ("5E16.8", [0.5]),
        "LENNARD_JONES_14_ACOEF": ("5E16.8", [4 * 0.3 * 2.0**12] * 6),
        "LENNARD_JONES_14_BCOEF": ("5E16.8", [4 * 0.3 * 2.0**6] * 6),
    }  # fmt: skip
    found = amber(tmp_path, extra=extra).topology
    np.testing.assert_allclose(found.urey_bradley.parameter, [[2 * 8 * 418.4, 0.25]])
    np.testing.assert_allclose(found.impropers.parameter, [[2 * 20 * 4.184, 0.5]])
    np.testing.assert_allclose(found.pairs14.parameter[0, 1:], [0.2, 0.3 * 4.184 / 2.5], rtol=ROUND)


def test_restarts_in_text_and_netcdf(tmp_path: Path) -> None:
    (path,) = write(tmp_path, rst7=synthetic.inpcrd_text(velocities=True))
    found = read_rst7(path)
    position = np.array(synthetic.POSITION)
    np.testing.assert_allclose(found.position_n3, position, atol=1e-7)
    np.testing.assert_allclose(found.velocity_n3, position / 100 * AMBER_VELOCITY, atol=2e-6)  # seven decimals, times 20.455
    np.testing.assert_allclose(found.box_lengths, synthetic.BOX)
    (path,) = write(tmp_path, rst7=synthetic.inpcrd_text(box=False))
    assert read_rst7(path).velocity_n3 is None and read_rst7(path).box_lengths is None
    store = netcdf_file(tmp_path / "test.ncrst", "w", version=2)
    store.Conventions = b"AMBERRESTART"
    for name, size in (("atom", 8), ("spatial", 3)):
        store.createDimension(name, size)
    store.createVariable("coordinates", "d", ("atom", "spatial"))[:] = position
    store.createVariable("velocities", "d", ("atom", "spatial"))[:] = position / 100
    store.variables["velocities"].scale_factor = 20.455
    store.createVariable("cell_lengths", "d", ("spatial",))[:] = synthetic.BOX
    store.createVariable("cell_angles", "d", ("spatial",))[:] = [90.0, 90.0, 109.4712]
    store.close()
    found = read_rst7(tmp_path / "test.ncrst")
    np.testing.assert_array_equal(found.position_n3, position)
    np.testing.assert_allclose(found.velocity_n3, position / 100 * 20.455)
    np.testing.assert_array_equal(found.box_angles, [90.0, 90.0, 109.4712])


def test_gro_files_come_back_as_written(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    position, velocity = generator.normal(size=(2, 3, 3))
    frame = Gro("three", (1, 1, 2), ("WAT",) * 3, ("O", "H1", "H2"), position, velocity, CELL / 10)
    path = tmp_path / "test.gro"
    path.write_bytes(gro_bytes(frame))
    found = read_gro(path)
    assert (found.residue_n, found.residue_name, found.atom_name) == (frame.residue_n, frame.residue_name, frame.atom_name)
    np.testing.assert_allclose(found.position_n3, position, atol=5.1e-7)  # six decimals
    np.testing.assert_allclose(found.velocity_n3, velocity, atol=5.1e-8)
    np.testing.assert_allclose(found.box_33, CELL / 10, atol=5.1e-7)
    path.write_bytes(gro_bytes(replace(frame, velocity_n3=None, box_33=None)))
    assert read_gro(path).velocity_n3 is None and read_gro(path).box_33 is None


def test_pdb_and_mmcif_hold_the_same_atoms(tmp_path: Path) -> None:
    (tmp_path / "a.pdb").write_text(synthetic.PDB_TEXT)
    (tmp_path / "a.cif").write_text(synthetic.MMCIF_TEXT)
    one, other = read_pdb(tmp_path / "a.pdb"), read_mmcif(tmp_path / "a.cif")
    assert one.symbols == ("N", "C", "H", "Ca", "O")
    assert one.residue_ids == ("1", "1", "1", "2", "3A")
    assert one.notes == ("first model of several", "1 alternative locations left out")
    for name in ("symbols", "names", "residues", "residue_ids", "chains", "notes"):
        assert getattr(one, name) == getattr(other, name)
    np.testing.assert_array_equal(one.positions_angstrom, other.positions_angstrom)
    np.testing.assert_array_equal(one.cell_angstrom, np.diag(synthetic.BOX))
    (tmp_path / "b.pdb").write_bytes(pdb_bytes(replace(one, cell_angstrom=CELL), "again"))
    again = read_pdb(tmp_path / "b.pdb")
    assert (again.symbols, again.names, again.chains) == (one.symbols, one.names, one.chains)
    np.testing.assert_allclose(again.positions_angstrom, one.positions_angstrom, atol=1e-12)
    np.testing.assert_allclose(again.cell_angstrom, CELL, atol=6e-3)  # angles have two decimals: 27 angstrom * 0.005 degrees


@pytest.mark.parametrize("kind", ["dcd", "h5md"])
def test_a_trajectory_cut_back_and_continued_is_the_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    frames = np.random.default_rng(2).normal(size=(5, 7, 3))
    path = tmp_path / f"test.{kind}"

    def run(first: int, last: int, keep: int) -> None:
        if kind == "dcd":
            with DcdWriter(path, 7, frames=keep, timestep_ps=0.002, every=10) as writer:
                for frame in frames[first:last]:
                    writer.append(frame, CELL)
                writer.sync()
        else:
            with H5mdWriter(path, ["O"] * 6 + [""], frames=keep, velocities=True) as writer:
                for at in range(first, last):
                    writer.append(10 * at, 0.02 * at, frames[at], frames[at] / 2, CELL / 10)
                writer.sync()

    def content() -> tuple[np.ndarray, ...]:
        found = read_dcd(path) if kind == "dcd" else read_h5md(path)
        return tuple(np.asarray(value) for value in vars(found).values())

    run(0, 5, 0)
    true = content()
    position = true[0] if kind == "dcd" else true[2]
    np.testing.assert_array_equal(position, frames.astype(np.float32))
    run(3, 5, 3)
    for value, expected in zip(content(), true, strict=True):
        np.testing.assert_array_equal(value, expected)
    with pytest.raises(StoreError):
        run(0, 0, 6)  # the checkpoint speaks of a frame that is not there
    run(0, 2, 0)
    assert len(content()[0]) == 2


def test_dcd_keeps_the_cell_and_the_times(tmp_path: Path) -> None:
    path = tmp_path / "a.dcd"
    with DcdWriter(path, 2, timestep_ps=0.002, every=10) as writer:
        writer.append(np.zeros((2, 3)), CELL)
    found = read_dcd(path)
    np.testing.assert_allclose(cell_of(found.cell_f6[0, :3], found.cell_f6[0, 3:]), CELL, atol=1e-12)
    assert found.every == 10 and found.timestep_ps == pytest.approx(0.002, rel=1e-6)
    with pytest.raises(StoreError, match="other settings"):
        DcdWriter(path, 2, frames=1, timestep_ps=0.001, every=10)
    if importlib.util.find_spec("MDAnalysis"):
        from MDAnalysis.lib.formats.libdcd import DCDFile

        with DCDFile(str(path)) as peer:
            np.testing.assert_allclose(peer.readframes().unitcell[0][[0, 2, 5]], np.linalg.norm(CELL, axis=1))


def test_reduced_boxes_hold_the_same_lattice() -> None:
    generator = np.random.default_rng(3)
    for _ in range(20):
        cell = generator.normal(size=(3, 3)) + np.diag([3.0, 3.0, 3.0])
        cell = cell if np.linalg.det(cell) > 0 else cell[[1, 0, 2]]
        rotation, box = reduced_box(cell)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-14)
        assert np.linalg.det(rotation) > 0 and not np.triu(box, 1).any() and (np.diag(box) > 0).all()
        limit = 0.5 + 1e-12
        assert abs(box[1, 0]) <= limit * box[0, 0] and abs(box[2, 0]) <= limit * box[0, 0] and abs(box[2, 1]) <= limit * box[1, 1]
        steps = cell @ rotation @ np.linalg.inv(box)
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-9)  # whole numbers: the same lattice
        assert round(np.linalg.det(np.round(steps))) == 1
    rotation, box = reduced_box(np.diag([3.0, 4.0, 5.0]))
    assert np.array_equal(rotation, np.eye(3)) and np.array_equal(box, np.diag([3.0, 4.0, 5.0]))
    for bad in (np.zeros((3, 3)), -np.eye(3), np.full((3, 3), np.nan)):
        with pytest.raises(InputError, match="box"):
            reduced_box(bad)


def test_molecules_are_made_whole_in_a_triclinic_box() -> None:
    generator = np.random.default_rng(4)
    box = CELL / 10
    chain = np.cumsum(generator.uniform(-0.3, 0.3, size=(60, 3)), axis=0)  # longer than the box: only bonds are short
    edges = np.stack([np.arange(59), np.arange(1, 60)], axis=1)[np.arange(59) != 29]
    position = np.concatenate([chain[:30] + 1, chain[30:] + 2])
    broken = position + generator.integers(-2, 3, size=(60, 3)) @ box
    found = whole(broken, box, generator.permutation(edges))
    for part in (slice(0, 30), slice(30, 60)):
        np.testing.assert_allclose(found[part] - found[part][0], position[part] - position[part][0], atol=1e-12)
        np.testing.assert_array_equal(found[part][0], broken[part][0])
    np.testing.assert_array_equal(molecules(edges, 60), np.repeat([0, 1], 30))
    assert len(within_bonds(edges, 60, 3)) == 2 * (29 + 28 + 27)


def test_rigid_replaces_bonds(tmp_path: Path) -> None:
    flexible = amber(tmp_path).topology
    assert len(flexible.bonds.index) == 6  # with water's three; the bond to the virtual site has no energy
    water = rigid(flexible)
    assert len(water.bonds.index) == 3 and len(water.settles.index) == 1
    np.testing.assert_allclose(water.settles.parameter, [[0.09572, MODELS["tip4pew"].d_hh]], atol=1e-7)  # 104.52 degrees, rounded
    everything = rigid(flexible, bonds="all")
    assert len(everything.bonds.index) == 0 and len(everything.constraints.index) == 3
    hydrogens = rigid(flexible, water=False, bonds="hydrogens")
    np.testing.assert_array_equal(hydrogens.constraints.index, [[4, 5], [4, 6], [5, 6]])
    np.testing.assert_allclose(hydrogens.constraints.parameter[0], [0.09572])


@pytest.mark.parametrize("model", sorted(MODELS))
def test_water_boxes(model: str) -> None:
    system, water = water_box(model, 27, 0.997, seed=5), MODELS[model]
    topology, position = system.topology, system.position_n3.reshape(27, -1, 3)
    assert topology.charge_n.sum() == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(topology.mass_n.sum() / np.prod(np.diag(system.box_33)) / U_PER_NM3, 0.997)
    for i, j, length in ((0, 1, water.d_oh), (0, 2, water.d_oh), (1, 2, water.d_hh)):
        np.testing.assert_allclose(np.linalg.norm(position[:, i] - position[:, j], axis=1), length, atol=1e-15)
    if water.sites == 4:
        w = topology.virtual_sites.parameter[0, 0]
        placed = position[:, 0] + w * (position[:, 1] - position[:, 0]) + w * (position[:, 2] - position[:, 0])
        np.testing.assert_allclose(placed, position[:, 3], atol=1e-15)
        np.testing.assert_allclose(np.linalg.norm(position[:, 3] - position[:, 0], axis=1), 0.0125, atol=1e-15)
    assert len(topology.exclusions) == 27 * (water.sites * (water.sites - 1) // 2)
    directions = (position[:, 1] + position[:, 2]) / 2 - position[:, 0]
    unit = directions / np.linalg.norm(directions, axis=1)[:, None]
    assert np.linalg.norm(unit.mean(axis=0)) < 0.5  # random: 1/sqrt(27) = 0.19, 0.5 is far beyond 99.9 %
    assert np.array_equal(water_box(model, 27, 0.997, seed=5).position_n3, system.position_n3)


def test_dipoles_of_water_models() -> None:
    for model, debye in (("spce", 2.35), ("tip3p", 2.35), ("tip4pew", 2.32)):  # the papers'
        system = water_box(model, 1)
        dipole = np.linalg.norm(system.topology.charge_n @ system.position_n3) / 0.020819434
        assert dipole == pytest.approx(debye, abs=0.006)


def test_the_virtual_site_of_tip4pew_is_where_openmm_puts_it() -> None:
    # amber14/tip4pew.xml of OpenMM 8.6.1: average3 with weights 0.786646558, 0.106676721, 0.106676721
    assert MODELS["tip4pew"].weight == pytest.approx(0.106676721, abs=1e-9)


def test_a_solute_in_water_keeps_its_terms(tmp_path: Path) -> None:
    solute = amber(tmp_path)
    found = solvate(solute, "spce", seed=1)
    n = len(solute.topology)
    np.testing.assert_array_equal(found.position_n3[:n], solute.position_n3)
    assert_same_terms(replace(found.topology), solute.topology, ("bonds", "angles", "dihedrals", "pairs14"))
    rest = found.position_n3[n:]
    apart = np.abs(rest[:, None] - solute.position_n3)
    apart = np.minimum(apart, np.diag(found.box_33) - apart)
    assert np.sqrt((apart**2).sum(axis=2)).min() >= 0.24
    density = found.topology.mass_n.sum() / np.prod(np.diag(found.box_33)) / U_PER_NM3
    assert 0.8 < density < 1.1  # holes around the solute, coarse lattice
    assert len(np.unique(found.topology.molecule_n)) == 2 + len(rest) // 3
    both = merge(solute.topology, water_topology("spce", 1))
    types = len(solute.topology.type_names)
    np.testing.assert_allclose(both.sigma_tt[0, types], (solute.topology.sigma_tt[0, 0] + MODELS["spce"].sigma) / 2)
    np.testing.assert_array_equal(both.exclusions[-1], [n + 1, n + 2])


def test_the_compact_force_field() -> None:
    salt = lennard_jones(["Na", "Cl", "Na"], {"Na": (0.4, 0.2), "Cl": (0.1, 0.4)}, charges={"Na": 1.0, "Cl": -1.0})
    np.testing.assert_allclose(salt.sigma_tt, [[0.2, 0.3], [0.3, 0.4]])
    np.testing.assert_allclose(salt.epsilon_tt, [[0.4, 0.2], [0.2, 0.1]])
    np.testing.assert_array_equal(salt.charge_n, [1, -1, 1])
    with pytest.raises(InputError, match="no Lennard-Jones parameters for Cl"):
        lennard_jones(["Na", "Cl"], {"Na": (0.4, 0.2)})
    with pytest.raises(InputError, match="out of range"):
        lennard_jones(["Ar"], {"Ar": (float("nan"), 0.34)})
