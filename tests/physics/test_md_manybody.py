"""Many-body potentials: forces are gradients, the virial is the strain derivative, crystals are as published, lists hold."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.core.errors import ConvergenceError, InputError
from gewu.core.splines import local_cubic
from gewu.formats.potentials import STILLINGER_WEBER, Triplets
from gewu.formats.zhou import METALS, zhou_tables
from gewu.physics.md.eam import Eam
from gewu.physics.md.manybody import stillinger_weber, tersoff
from gewu.physics.md.state import State
from gewu.physics.md.units import EV
from gewu.physics.md.verlet import Verlet
from tests.manybodytools import (
    DIAMOND,
    FCC,
    SKIN,
    SW_PAIR,
    SW_SILICON,
    crystal,
    evaluate,
    finnis_sinclair_like,
    tersoff_1989,
)

CASES: dict[str, tuple[Callable[[], Any], Callable[[], State]]] = {
    "eam": (
        lambda: Eam(zhou_tables(("Cu",)), ("Cu",), precision="double", skin_nm=SKIN),
        lambda: crystal(FCC, 0.3615, 4, rattle=0.01, sheared=True),
    ),
    "alloy": (
        lambda: Eam(zhou_tables(("Cu", "Ni", "Al")), ("Ni", "Al", "Cu"), precision="double", skin_nm=SKIN),
        lambda: crystal(FCC, 0.375, 4, rattle=0.01, types=3, sheared=True),
    ),
    "finnis-sinclair": (
        lambda: Eam(finnis_sinclair_like(), ("Cu", "Ni"), precision="double", skin_nm=SKIN),
        lambda: crystal(FCC, 0.36, 4, rattle=0.01, types=2, sheared=True),
    ),
    "stillinger-weber": (
        lambda: stillinger_weber(SW_PAIR, ("Si", "Ge"), skin_nm=SKIN),
        lambda: crystal(DIAMOND, 0.5431, 2, rattle=0.02, types=2, sheared=True),
    ),
    "tersoff": (
        lambda: tersoff(tersoff_1989("Si", "C"), ("C", "Si"), skin_nm=SKIN),
        lambda: crystal(DIAMOND, 0.45, 2, rattle=0.02, types=2, sheared=True),
    ),
    "tersoff lambda3": (
        lambda: tersoff(tersoff_1989("Si", lambda3=1.7322), ("Si",), skin_nm=SKIN),
        lambda: crystal(DIAMOND, 0.52, 2, rattle=0.02, sheared=True),
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Any, State]:
    term, state = CASES[request.param][0](), CASES[request.param][1]()
    term.rebuild(state)
    return term, state


def test_forces_are_minus_the_gradient(case: tuple[Any, State]) -> None:
    term, state = case
    force, _ = evaluate(term, state)
    h = 1e-5
    for atom, axis in ((0, 0), (7, 1), (20, 2), (33, 0)):
        shifted = [state.position_n3.copy() for _ in range(2)]
        shifted[0][atom, axis] += h
        shifted[1][atom, axis] -= h
        up, down = (evaluate(term, state, x)[1].potential for x in shifted)
        # the energies, 1e5 kJ/mol, are rounded to 1e-11, which the division makes 1e-6; cubics have kinks in their third
        # derivative, and cutoffs are smooth or beyond the neighbours: h^2 terms are below 1e-5 of forces of some 100
        assert force[atom, axis] == pytest.approx(-(up - down) / (2 * h), abs=2e-3, rel=1e-5)


def test_forces_add_up_to_nothing(case: tuple[Any, State]) -> None:
    term, state = case
    force, _ = evaluate(term, state)
    assert np.abs(force).max() > 100.0
    np.testing.assert_allclose(force.sum(axis=0), 0.0, atol=1e-9 * np.abs(force).sum())  # rounding of some 1e4 terms


def test_the_virial_is_the_strain_derivative(case: tuple[Any, State]) -> None:
    term, state = case
    virial = evaluate(term, state)[1].virial_33
    np.testing.assert_allclose(virial, virial.T, rtol=0, atol=1e-9 * np.abs(virial).max())  # rotations change nothing
    h = 1e-6
    for a, b in ((0, 0), (1, 1), (2, 2), (1, 0), (2, 0), (2, 1)):  # x -> x + strain x, with the box kept lower triangular
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[a, b] += sign * h
            energies.append(evaluate(term, state, state.position_n3 @ strain, state.box_33 @ strain)[1].potential)
        # as for the forces: 1e-11 / h of the energy's rounding, against virials of 1e3 to 1e5
        assert virial[a, b] == pytest.approx(-(energies[0] - energies[1]) / (2 * h), rel=2e-6, abs=0.05)


@pytest.mark.parametrize("name", ["alloy", "stillinger-weber", "tersoff"])
def test_the_plain_loop_gives_the_same(name: str) -> None:
    state = CASES[name][1]()
    results = []
    for device in ("cpu", "reference"):
        term = CASES[name][0]()
        term.device = device
        term.rebuild(state)
        results.append(evaluate(term, state))
    (force, one), (plain, other) = results
    # the same operations but for the compiler's choice of pow and exp: last bits
    np.testing.assert_allclose(force, plain, rtol=0, atol=1e-11 * np.abs(plain).max())
    assert one.potential == pytest.approx(other.potential, rel=1e-13)


@pytest.mark.parametrize("name", ["eam", "alloy", "finnis-sinclair"])
def test_mixed_precision_is_close_to_double(name: str) -> None:
    state = CASES[name][1]()
    double = CASES[name][0]()
    tables = finnis_sinclair_like() if name == "finnis-sinclair" else zhou_tables(("Cu", "Ni", "Al"))
    kinds = {"eam": ("Cu",), "alloy": ("Ni", "Al", "Cu"), "finnis-sinclair": ("Cu", "Ni")}[name]
    if name == "eam":
        tables = zhou_tables(("Cu",))
    mixed = Eam(tables, kinds, precision="mixed", skin_nm=SKIN)
    for term in (double, mixed):
        term.rebuild(state)
    exact, reference = evaluate(double, state)
    force, evaluation = evaluate(mixed, state)
    assert np.sqrt(((force - exact) ** 2).sum() / (exact**2).sum()) < 2e-5  # the bar of the room; 2e-6 seen
    assert evaluation.potential == pytest.approx(reference.potential, rel=1e-6)  # float32 tables
    np.testing.assert_allclose(evaluation.virial_33, reference.virial_33, atol=2e-5 * np.abs(reference.virial_33).max())


def cluster(name: str, device: str) -> tuple[np.ndarray, float]:
    """Return forces and energy of a few atoms in a vacuum."""
    state = crystal(DIAMOND, 0.5431, 1, rattle=0.01)
    state.periodic = False
    if name == "eam":
        term: Any = Eam(zhou_tables(("Cu",), points=501), ("Cu",), precision="double", device=device, skin_nm=SKIN)
    else:
        make = stillinger_weber if name == "stillinger-weber" else tersoff
        triplets = SW_SILICON if name == "stillinger-weber" else tersoff_1989("Si")
        term = make(triplets, ("Si",), skin_nm=SKIN, device=device)
    term.rebuild(state)
    force, evaluation = evaluate(term, state)
    return force, evaluation.potential


def test_the_simulated_gpu_gives_the_same(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    names, out = ("eam", "stillinger-weber", "tersoff"), tmp_path / "cuda.npz"
    program = (
        "import sys, numpy as np; from tests.physics.test_md_manybody import cluster\n"
        f"results = {{name: cluster(name, 'cuda') for name in {names!r}}}\n"
        f"np.savez({str(out)!r}, **{{name: np.append(f.ravel(), e) for name, (f, e) in results.items()}})\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}
    environment |= {"PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}", "NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(out) as stored:
        for name in names:
            force, energy = cluster(name, "cpu")
            expected = np.append(force.ravel(), energy)
            # the same formulas in another order of additions
            np.testing.assert_allclose(stored[name], expected, rtol=1e-11, atol=1e-9 * np.abs(force).max())


def test_moving_within_the_skin_and_whole_boxes_away_changes_nothing() -> None:
    state = crystal(FCC, 0.3615, 4, rattle=0.005)
    term = Eam(zhou_tables(("Cu",)), ("Cu",), precision="mixed", skin_nm=SKIN)
    term.rebuild(state)
    moved = state.position_n3 + np.random.default_rng(1).uniform(-0.01, 0.01, state.position_n3.shape)
    kept = evaluate(term, state, moved)[0]
    state.position_n3 = moved + np.array([[3, -2, 1]] * len(moved)) @ state.box_33
    state.position_n3[::3] -= state.box_33[1]
    term.rebuild(state)
    fresh = evaluate(term, state)[0]
    # other rounding of fixed-point fractions and another order of float32 sums
    np.testing.assert_allclose(kept, fresh, rtol=0, atol=1e-5 * np.abs(fresh).max())


@pytest.mark.parametrize("sheared", [False, True])
@pytest.mark.parametrize("periodic", [False, True])
def test_the_list_holds_every_pair_once(periodic: bool, sheared: bool) -> None:
    state = crystal(FCC, 0.4, 4, rattle=0.03, sheared=sheared)
    state.periodic = periodic
    verlet = Verlet(0.5, 0.1)
    verlet.rebuild(state)
    shifts = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), -1).reshape(-1, 3) @ state.box_33 if periodic else np.zeros((1, 3))
    x = state.position_n3
    distance = np.min([np.linalg.norm(x[:, None] - x[None] + s, axis=-1) for s in shifts], axis=0)
    np.fill_diagonal(distance, 9.0)
    for k in range(len(x)):
        found = verlet.order_n[verlet.list_nw[k, : verlet.count_n[k]]]
        wanted = np.flatnonzero(distance[verlet.order_n[k]] < 0.6)
        assert len(found) == len(wanted) and set(found) == set(wanted)


def test_a_row_that_runs_over_makes_the_list_grow() -> None:
    state = crystal(FCC, 0.4, 4)
    verlet = Verlet(0.3, 0.0)
    verlet.rebuild(state)
    state.position_n3 = state.position_n3 * 0.5  # half the lattice constant, in a vacuum: eight times the neighbours
    state.periodic = False
    verlet.rebuild(state)
    x = state.position_n3
    distance = np.linalg.norm(x[:, None] - x[None], axis=-1)
    assert verlet.count_n.sum() == (distance < 0.3).sum() - len(x)
    assert verlet.count_n.max() > 32


def test_ghost_images_of_listed_atoms_are_left_out() -> None:
    state = crystal(FCC, 0.3615, 4, rattle=0.01)
    term = Eam(zhou_tables(("Cu",)), ("Cu",), precision="double", skin_nm=SKIN)
    term.rebuild(state)
    alone, evaluation = evaluate(term, state)
    n = len(alone)
    m = n + 50
    position = np.concatenate([state.position_n3, state.position_n3[:50] + state.box_33[0]])
    tag, zero = np.concatenate([np.arange(n), np.arange(50)]), np.zeros((m, 3))
    many = State(position, zero, zero, np.ones(m), np.zeros(m), np.zeros(m, np.int32), tag, state.box_33, True, n)
    term.rebuild(many)
    force, again = evaluate(term, many)
    np.testing.assert_allclose(force[:n], alone, rtol=0, atol=1e-9)  # sums in another order
    assert again.potential == pytest.approx(evaluation.potential, rel=1e-13)


def fill_ghosts(ghosts: np.ndarray, by_row: np.ndarray) -> None:
    by_row[len(by_row) - len(ghosts) :] = ghosts


def test_two_ranks_give_the_forces_of_one() -> None:
    for name in ("alloy", "tersoff"):
        state, term = CASES[name][1](), CASES[name][0]()
        term.rebuild(state)
        whole, evaluation = evaluate(term, state)
        n, potential, virial = len(whole), 0.0, np.zeros((3, 3))
        slopes = np.zeros(n)
        if isinstance(term, Eam):
            slopes[term.verlet.order_n] = term._slope
        for owned in (np.arange(n // 3), np.arange(n // 3, n)):  # each rank has all others as ghosts
            rows = np.concatenate([owned, np.setdiff1d(np.arange(n), owned)])
            zero, types = np.zeros((n, 3)), state.type_n[rows]
            part = State(
                state.position_n3[rows], zero, zero, np.ones(n), np.zeros(n), types, rows, state.box_33, True, len(owned)
            )
            local = CASES[name][0]()

            local.forward = partial(fill_ghosts, slopes[rows[len(owned) :]])
            local.rebuild(part)
            force, share = evaluate(local, part)
            np.testing.assert_allclose(force[: len(owned)], whole[owned], rtol=0, atol=1e-9 * np.abs(whole).max())
            potential, virial = potential + share.potential, virial + share.virial_33
        assert potential == pytest.approx(evaluation.potential, rel=1e-12)
        np.testing.assert_allclose(virial, evaluation.virial_33, atol=1e-9 * np.abs(virial).max())


def lattice_minimum(term: Any, basis: np.ndarray, a: float, cells: int) -> tuple[float, float]:
    """Return lattice constant (nm) and energy per atom (eV) of the minimum, from a parabola through three close points."""
    state = crystal(basis, a, cells)
    term.rebuild(state)
    for step in (2e-4, 2e-5):
        energies = []
        for shift in (-step, 0.0, step):
            factor = (a + shift) / (state.box_33[0, 0] / cells)
            energies.append(evaluate(term, state, state.position_n3 * factor, state.box_33 * factor)[1].potential)
        low, middle, high = energies
        a -= step * (high - low) / (2 * (high - 2 * middle + low))
    return a, middle / len(state.position_n3) / EV


def test_silicon_of_stillinger_and_weber() -> None:
    a, energy = lattice_minimum(stillinger_weber(SW_SILICON, ("Si",), skin_nm=SKIN), DIAMOND, 0.543, 2)
    assert a == pytest.approx(0.54310, abs=1e-5)  # 4 2^(1/6) sigma / sqrt(3)
    assert energy == pytest.approx(-2 * 2.1683, abs=2e-6)  # A and B are rounded to ten digits, chosen to give -2 epsilon


def test_silicon_and_carbon_of_tersoff() -> None:
    a, energy = lattice_minimum(tersoff(tersoff_1989("Si"), ("Si",), skin_nm=SKIN), DIAMOND, 0.543, 2)
    assert (a, energy) == (pytest.approx(0.5432, abs=1e-4), pytest.approx(-4.63, abs=5e-3))  # as printed in the paper
    a, energy = lattice_minimum(tersoff(tersoff_1989("C"), ("C",), skin_nm=SKIN), DIAMOND, 0.357, 2)
    assert (a, energy) == (pytest.approx(0.3566, abs=1e-4), pytest.approx(-7.37, abs=5e-3))


@pytest.mark.parametrize(
    ("name", "a_nm", "energy_ev"),
    [("Cu", 0.3615, 3.54), ("Ag", 0.409, 2.85), ("Au", 0.408, 3.93), ("Ni", 0.352, 4.45), ("Al", 0.405, 3.58)],
)
def test_metals_of_zhou(name: str, a_nm: float, energy_ev: float) -> None:
    term = Eam(zhou_tables((name,)), (name,), precision="double", skin_nm=0.02)
    a, energy = lattice_minimum(term, FCC, a_nm, 4)
    # fitted to lattice constant and cohesive energy, given to three or four digits
    assert (a, energy) == (pytest.approx(a_nm, abs=6e-5), pytest.approx(-energy_ev, abs=1e-3))


def test_metals_of_zhou_are_smooth_where_their_pieces_meet() -> None:
    for name, metal in METALS.items():
        tables = zhou_tables((name,), points=40001)
        slope = np.diff(tables.embedding_ex[0]) / tables.d_rho
        for edge in (0.85, 1.15):
            k = int(edge * metal.rho_e / tables.d_rho)
            # a wrong digit makes a step in F, a spike of (step / d_rho) in the slope; six printed digits leave 1e-6 / 2e-3
            assert np.abs(np.diff(slope[k - 3 : k + 4])).max() < 2e-3


def test_density_beyond_the_table_goes_on_as_a_straight_line() -> None:
    tables = zhou_tables(("Cu",))
    short = dataclasses.replace(tables, embedding_ex=tables.embedding_ex[:, :800])
    state = crystal(FCC, 0.3615, 4)
    term = Eam(short, ("Cu",), precision="double", skin_nm=SKIN)
    term.rebuild(state)
    energy = evaluate(term, state)[1].energies["eam_embedding"] / len(state.position_n3) / EV
    rho, end = term._rho[0], 799 * tables.d_rho
    f = tables.embedding_ex[0]
    assert rho > end and term.beyond == len(state.position_n3)
    assert energy == pytest.approx(f[799] + (f[799] - f[798]) / tables.d_rho * (rho - end), rel=1e-12)


def test_local_cubics_hit_their_points_and_polynomials() -> None:
    x = np.arange(12.0)
    table = local_cubic(x**3 - 2 * x)
    p = 0.3
    inner = table[2:-3] @ p ** np.arange(4)
    np.testing.assert_allclose(inner, (x[2:-3] + p) ** 3 - 2 * (x[2:-3] + p), rtol=1e-12)  # five points are exact for a cubic


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"smallest height is 1.08.*twice"):
        Eam(zhou_tables(("Cu",)), ("Cu",)).rebuild(crystal(FCC, 0.3615, 3))
    state = crystal(FCC, 0.3615, 4)
    state.position_n3[5] = state.position_n3[40] + 0.001
    with pytest.raises(InputError, match="atoms 6 and 41 lie on top of each other"):
        Eam(zhou_tables(("Cu",)), ("Cu",), skin_nm=SKIN).rebuild(state)
    state.position_n3[7, 1] = np.nan
    with pytest.raises(InputError, match="atom 8: a position is not finite"):
        Verlet(0.3, 0.1).rebuild(state)
    state.step = 12
    with pytest.raises(ConvergenceError, match="not finite, at step 12"):
        Verlet(0.3, 0.1).rebuild(state)
    with pytest.raises(InputError, match="no such element"):
        Eam(zhou_tables(("Cu",)), ("Ni",))
    with pytest.raises(InputError, match="precision"):
        Eam(zhou_tables(("Cu",)), ("Cu",), precision="single")
    with pytest.raises(InputError, match="no Zhou potential"):
        zhou_tables(("U",))
    with pytest.raises(InputError, match=r"no parameters for these three elements.*Ge Ge Ge"):
        stillinger_weber(SW_SILICON, ("Ge",))
    with pytest.raises(InputError, match="another potential"):
        tersoff(SW_SILICON, ("Si",))
    for key, column, message in ((("Si", "Ge", "Si"), 3, "third"), (("Si", "Ge", "Ge"), 6, "bond")):
        entries = dict(SW_PAIR.entries)
        entries[key] = tuple(x * (1.1 if k == column else 1.0) for k, x in enumerate(entries[key]))
        with pytest.raises(InputError, match=message):
            stillinger_weber(Triplets(STILLINGER_WEBER, entries), ("Ge", "Si"))
