"""Pair interactions on every device against the O(n^2) sum, and that sum against derivatives, images and integrals.

Numba chooses simulator or GPU when it is imported, so the simulator runs this file as a script in a process of its own.
"""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import erfc

from gewu.core import kernel as kernel_module
from gewu.core.errors import ConvergenceError, InputError
from gewu.physics.md.pairs import NonBonded
from gewu.physics.md.plain import DispersionCorrection, PlainPairs, dispersion_correction
from gewu.physics.md.state import Array, State, Topology, new_state
from gewu.physics.md.units import COULOMB
from tests.mdreference import brute_force

BOX = np.array([[2.5, 0.0, 0.0], [0.9, 2.4, 0.0], [-0.8, 0.7, 2.3]])
RC = 0.9
SETTINGS = {
    "cut": NonBonded(RC, "cut", "cut"),
    "shift": NonBonded(RC, "shift", "none"),
    "field": NonBonded(RC, "force-shift", "reaction-field", epsilon_rf=78.0),
    "metal": NonBonded(RC, "cut", "reaction-field", epsilon_rf=0.0),
    "ewald": NonBonded(RC, "shift", "ewald", alpha=3.0),
}


def charged_mixture(n: int) -> Topology:
    """Return two kinds of ions, every third of which is excluded from its next two neighbours in the file."""
    charge = np.random.default_rng(1).normal(scale=0.3, size=n)
    pairs = [(i, i + k) for i in range(0, n - 2, 3) for k in (1, 2)]
    return Topology(
        mass_n=np.ones(n),
        charge_n=charge - charge.mean(),
        type_n=(np.arange(n) % 2).astype(np.int32),
        type_names=("A", "B"),
        element=("Ar",) * n,
        sigma_tt=np.array([[0.3, 0.28], [0.28, 0.25]]),
        epsilon_tt=np.array([[0.5, 0.3], [0.3, 0.2]]),
        exclusions=np.array(pairs, np.int32),
    )


def disorder(n: int, periodic: bool = True) -> State:
    """Return a shaken lattice in a triclinic box, each atom in an image of its own."""
    rng, side = np.random.default_rng(2), math.ceil(n ** (1 / 3))
    lattice = np.array(list(itertools.product(range(side), repeat=3)))[:n] / side
    position = (lattice + rng.normal(scale=0.1 / side, size=(n, 3))) @ BOX
    if periodic:
        position += rng.integers(-2, 3, size=(n, 3)) @ BOX
    return new_state(charged_mixture(n), position, BOX, periodic=periodic)


def evaluate(device: str, n: int) -> dict[str, Array]:
    """Return forces, energies and virial of all variants on a device."""
    out = {}
    for (name, settings), periodic in itertools.product(SETTINGS.items(), (True, False)):
        for precision in ("double", "mixed") if periodic else ("double",):
            state = disorder(n, periodic)
            pairs = PlainPairs(charged_mixture(n), settings, device, precision, skin=0.05)
            found = pairs.compute(state, True)
            assert found is not None
            key = f"{name}/{periodic}/{precision}"
            out[key] = np.concatenate([state.force_n3.ravel(), found.virial_33.ravel(), [*found.energies.values()]])
            pairs.compute(state, False)  # forces are added to what is there
            assert np.allclose(state.force_n3.ravel(), 2 * out[key][: 3 * n], rtol=0, atol=0)
    return out


@pytest.mark.parametrize(("device", "n"), [("reference", 40), ("cpu", 300), ("cuda-simulator", 40), ("cuda", 300)])
def test_list_and_loop_give_the_double_sum(device: str, n: int, tmp_path: Path) -> None:
    if device == "cuda" and not pytest.importorskip("numba.cuda").is_available():
        pytest.skip("no CUDA device")
    if device == "cuda-simulator":
        env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")} | {"NUMBA_ENABLE_CUDASIM": "1"}
        paths = (Path(kernel_module.__file__).resolve().parents[2], Path(__file__).resolve().parents[2])
        env |= {"PYTHONPATH": os.pathsep.join(map(str, paths))}
        run = [sys.executable, "-W", "error", __file__, str(tmp_path / "found.npz"), str(n)]
        done = subprocess.run(run, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        with np.load(tmp_path / "found.npz") as stored:
            found = dict(stored)
    else:
        found = evaluate(device, n)
    for key, values in found.items():
        name, periodic, precision = key.split("/")
        reference, force = brute_force(disorder(n, periodic == "True"), charged_mixture(n), SETTINGS[name])
        expected = np.concatenate([force.ravel(), reference.virial_33.ravel(), [*reference.energies.values()]])
        # double: some 100 addends per atom, some ulp each; mixed: the bar
        limit = 1e-12 if precision == "double" else 2e-5
        scale = np.repeat(
            [math.sqrt((force**2).mean()), np.abs(reference.virial_33).max(), 1000.0], [3 * n, 9, values.size - 3 * n - 9]
        )
        assert np.all(np.abs(values - expected) < 10 * limit * scale), key
        assert math.sqrt((((values - expected) / scale)[: 3 * n] ** 2).mean()) < limit, key


@pytest.mark.parametrize("name", SETTINGS)
def test_forces_are_minus_the_gradient_and_the_virial_is_the_strain_derivative(name: str) -> None:
    settings, topology, h = SETTINGS[name], charged_mixture(60), 1e-6
    state = disorder(60)
    found, force = brute_force(state, topology, settings)

    def energy(position: Array, box: Array) -> float:
        return brute_force(replace(state, position_n3=position, box_33=box), topology, settings)[0].potential

    tolerance = 1e-5  # h^2 U''' ~ 1e-12 * 1e4 / 0.1^3, plus 1e-16 * 1000 / h
    for atom, axis in ((0, 0), (17, 1), (41, 2)):
        step = np.zeros((60, 3))
        step[atom, axis] = h
        slope = (energy(state.position_n3 + step, BOX) - energy(state.position_n3 - step, BOX)) / (2 * h)
        assert force[atom, axis] == pytest.approx(-slope, abs=tolerance * np.abs(force).max())
    for a, b in ((0, 0), (1, 1), (2, 2), (1, 0), (2, 0), (2, 1)):
        strain = np.zeros((3, 3))
        strain[a, b] = h
        grown, shrunk = np.eye(3) + strain, np.eye(3) - strain
        slope = (energy(state.position_n3 @ grown, BOX @ grown) - energy(state.position_n3 @ shrunk, BOX @ shrunk)) / (2 * h)
        assert found.virial_33[a, b] == pytest.approx(-slope, abs=tolerance * np.abs(found.virial_33).max())
    assert np.allclose(force.sum(axis=0), 0, atol=1e-11 * np.abs(force).max())


def test_the_double_sum_is_the_formula_over_explicit_images() -> None:
    n, settings, alpha = 12, SETTINGS["ewald"], 3.0
    state, topology = disorder(n), charged_mixture(n)
    shifts = np.array(list(itertools.product(range(-7, 8), repeat=3))) @ BOX  # images were up to 2 + 2 cells apart, and skewed
    excluded = {tuple(pair) for pair in topology.exclusions.tolist()}
    energy = np.zeros(2)
    for i, j in itertools.combinations(range(n), 2):
        if (i, j) in excluded:
            continue
        r = np.linalg.norm(state.position_n3[i] - state.position_n3[j] + shifts, axis=1)
        s, e = topology.sigma_tt[i % 2, j % 2], topology.epsilon_tt[i % 2, j % 2]
        for d in r[r < RC]:
            energy[0] += 4 * e * ((s / d) ** 12 - (s / d) ** 6 - (s / RC) ** 12 + (s / RC) ** 6)
            energy[1] += COULOMB * topology.charge_n[i] * topology.charge_n[j] * erfc(alpha * d) / d
    found, _ = brute_force(state, topology, settings)
    assert energy == pytest.approx([*found.energies.values()], rel=1e-12)


@pytest.mark.parametrize("name", ["field", "metal"])
def test_what_should_vanish_at_the_cutoff_does(name: str) -> None:
    topology = replace(charged_mixture(2), charge_n=np.array([1.0, -1.0]), exclusions=np.zeros((0, 2), np.int32))
    state = new_state(topology, [[0, 0, 0], [RC - 1e-9, 0, 0]], BOX)
    found, force = brute_force(state, topology, SETTINGS[name])
    slope = COULOMB / RC**2  # of the bare interaction; times 1e-9 nm it bounds the energies
    assert abs(found.energies["coulomb"]) < 2e-9 * slope
    if name == "field":  # e = 78 leaves 1 - 2 (e - 1)/(2 e + 1) = 3/157 of the force; LJ ends smoothly
        assert abs(found.energies["lennard_jones"]) < 1e-15
        assert force[0, 0] == pytest.approx(slope * 3 / 157, rel=1e-6)
    else:
        lennard_jones, rest = NonBonded(RC, "cut", "none"), force[0, 0]
        assert abs(rest - brute_force(state, topology, lennard_jones)[1][0, 0]) < 1e-7 * slope


def test_halves_of_the_atoms_add_up_to_the_whole() -> None:
    n, settings = 100, SETTINGS["field"]
    state, topology = disorder(n), charged_mixture(n)
    whole = PlainPairs(topology, settings, skin=0.1).compute(state, True)
    energy, virial = 0.0, np.zeros((3, 3))
    for owned in (np.arange(0, n, 3), np.setdiff1d(np.arange(n), np.arange(0, n, 3))):
        rows = np.concatenate([owned, np.setdiff1d(np.arange(n), owned)])
        arrays = {k: getattr(state, k)[rows] for k in ("position_n3", "charge_n", "type_n", "tag_n")}
        part = replace(state, **arrays, force_n3=np.zeros((n, 3)), owned=len(owned))
        local = replace(topology, exclusions=np.argsort(rows)[topology.exclusions])
        found = PlainPairs(local, settings, skin=0.1).compute(part, True)
        assert found is not None
        energy, virial = energy + found.potential, virial + found.virial_33
        assert np.allclose(part.force_n3[: len(owned)], state.force_n3[owned], rtol=0, atol=1e-10)  # another order of addends
    assert whole is not None and energy == pytest.approx(whole.potential, rel=1e-12)
    assert np.allclose(virial, whole.virial_33, rtol=0, atol=1e-12 * np.abs(whole.virial_33).max())


def test_along_a_cut_vector_ghosts_stand_for_images() -> None:
    n, settings, copies = 120, SETTINGS["field"], (0, 1, -1)
    state, topology = disorder(n), replace(charged_mixture(n), exclusions=np.zeros((0, 2), np.int32))
    state.position_n3[:] -= np.floor(state.position_n3 @ np.linalg.inv(BOX)) @ BOX
    expected, force = brute_force(state, topology, settings)
    arrays = {k: np.tile(getattr(state, k), 3) for k in ("charge_n", "type_n", "tag_n")}
    position = np.concatenate([state.position_n3 + k * BOX[1] for k in copies])
    local = replace(topology, mass_n=np.ones(3 * n), charge_n=arrays["charge_n"], type_n=arrays["type_n"])
    part = replace(state, **arrays, position_n3=position, force_n3=np.zeros((3 * n, 3)), owned=n)
    images = (True, False, True)
    for found, f in (
        (PlainPairs(local, settings, skin=0.05, images=images).compute(part, True), part.force_n3[:n]),
        brute_force(part, local, settings, images),
    ):
        assert found is not None and found.potential == pytest.approx(expected.potential, rel=1e-12)
        assert np.allclose(f, force, rtol=0, atol=1e-12 * np.abs(force).max())
        assert np.allclose(found.virial_33, expected.virial_33, rtol=0, atol=1e-12 * np.abs(expected.virial_33).max())


def test_the_list_holds_while_atoms_move_less_than_half_the_skin_and_grows_when_crowded() -> None:
    n, settings = 200, SETTINGS["metal"]
    topology = charged_mixture(n)
    pairs, rng = PlainPairs(topology, settings, skin=0.1), np.random.default_rng(4)
    state = disorder(n)
    pairs.rebuild(state)
    step = rng.normal(size=(n, 3))
    state.position_n3 += 0.049 * step / np.linalg.norm(step, axis=1)[:, None]
    pairs.compute(state, False)
    assert np.allclose(
        state.force_n3, brute_force(state, topology, settings)[1], rtol=0, atol=1e-10 * np.abs(state.force_n3).max()
    )
    state.position_n3[:] = rng.uniform(0, 0.5, size=(n, 3))  # all within reach of all: twice what the first list had room for
    state.force_n3[:] = 0
    pairs.rebuild(state)
    pairs.compute(state, False)
    expected = brute_force(state, topology, settings)[1]
    assert np.allclose(state.force_n3, expected, rtol=1e-10, atol=1e-12 * np.abs(expected).max())


def test_all_pairs_in_vacuum() -> None:
    topology, settings = charged_mixture(80), NonBonded(math.inf, "force-shift", "reaction-field")
    state = disorder(80, periodic=False)
    found = PlainPairs(topology, settings).compute(state, True)
    plain, force = brute_force(state, topology, NonBonded(100.0, "cut", "cut"))  # no truncation is left of any variant
    assert found is not None and found.potential == pytest.approx(plain.potential, rel=1e-12)
    assert np.allclose(state.force_n3, force, rtol=0, atol=1e-12 * np.abs(force).max())


@pytest.mark.parametrize("lj", ["cut", "shift", "force-shift"])
def test_dispersion_correction_is_the_integral_of_what_is_missing(lj: str) -> None:
    n, volume = 7, 11.0
    topology = charged_mixture(n)
    energy = virial = 0.0
    for i, j in itertools.combinations_with_replacement(range(n), 2):
        s, e = topology.sigma_tt[i % 2, j % 2], topology.epsilon_tt[i % 2, j % 2]

        def u(r: float, s: float = s, e: float = e) -> float:
            return float(4 * e * ((s / r) ** 12 - (s / r) ** 6))

        def du(r: float, s: float = s, e: float = e) -> float:
            return float(4 * e * (6 * (s / r) ** 6 - 12 * (s / r) ** 12) / r)

        at, slope = (0.0 if lj == "cut" else u(RC)), (du(RC) if lj == "force-shift" else 0.0)
        inner = quad(lambda r, at=at, slope=slope: r**2 * (at + (r - RC) * slope), 0, RC)[0]
        mean = 1 / (n * (n + 1) / 2)
        energy += 2 * math.pi * n**2 / volume * mean * (inner + quad(lambda r, u=u: r**2 * u(r), RC, math.inf)[0])
        missing = quad(lambda r, slope=slope: r**3 * slope, 0, RC)[0] + quad(lambda r, du=du: r**3 * du(r), RC, math.inf)[0]
        virial -= 2 * math.pi * n**2 / (3 * volume) * mean * missing
        if i == j:
            energy -= 0.5 * (at - RC * slope)
    found = dispersion_correction(topology, NonBonded(RC, lj), volume)
    assert found == pytest.approx((energy, virial), rel=1e-7)  # quad's accuracy
    state = disorder(n)
    shared = DispersionCorrection(topology, NonBonded(RC, lj)).compute(replace(state, owned=3), True)
    mine = np.array(dispersion_correction(topology, NonBonded(RC, lj), state.volume)) * 3 / 7
    assert shared is not None and shared.energies == {"dispersion_correction": pytest.approx(mine[0], rel=1e-14)}
    assert np.allclose(shared.virial_33, mine[1] * np.eye(3), rtol=1e-14)
    with pytest.raises(InputError, match="vacuum"):
        DispersionCorrection(topology, NonBonded(RC, lj)).compute(replace(state, periodic=False), True)
    if lj != "cut":  # of a continuous potential, the virial is the strain derivative: -V dE/dV
        wider = dispersion_correction(topology, NonBonded(RC, lj), volume * (1 + 1e-6))[0]
        assert -(wider - found[0]) / 1e-6 == pytest.approx(found[1], rel=1e-5)


def test_what_cannot_be_computed_is_refused() -> None:
    topology = charged_mixture(30)
    with pytest.raises(InputError, match=r"too small.*at least 2\.4"):
        PlainPairs(topology, NonBonded(1.15), skin=0.05).rebuild(disorder(30))
    with pytest.raises(InputError, match="force-shift"):
        PlainPairs(topology, NonBonded(RC, "switch"))
    with pytest.raises(InputError, match="alpha"):
        PlainPairs(topology, NonBonded(RC, "cut", "ewald"))
    with pytest.raises(InputError, match="double, mixed"):
        PlainPairs(topology, NonBonded(RC), precision="single")
    state = disorder(30)
    state.position_n3[6, 1] = math.nan
    with pytest.raises(ConvergenceError, match="atom 7"):
        PlainPairs(topology, NonBonded(RC)).rebuild(state)


if __name__ == "__main__":
    np.savez(sys.argv[1], **evaluate("cuda", int(sys.argv[2])))
