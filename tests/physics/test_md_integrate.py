"""Integrators against exact results: orders of convergence, distributions, reversibility, restarts; forces are toys."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import pytest

from gewu.core.errors import ConvergenceError, InputError
from gewu.core.ranks import SERIAL, Ranks
from gewu.physics.md import integrate, kinetics
from gewu.physics.md.barostat import CellRescaling, MartynaTobiasKlein, constraint_virial, pressure_tensor
from gewu.physics.md.integrate import Integrator, Langevin, NoseHoover, VelocityRescaling, VelocityVerlet
from gewu.physics.md.kinetics import kinetic_energy, kinetic_tensor, maxwell_boltzmann, temperature
from gewu.physics.md.state import Evaluation, State, Topology, new_state
from gewu.physics.md.units import BAR, BOLTZMANN

Forces = Callable[[np.ndarray, np.ndarray], tuple[float, np.ndarray, np.ndarray]]
ARGON, EPSILON, SIGMA = 39.948, 0.996, 0.34  # u, kJ/mol, nm


@dataclass
class Toy:
    """A model whose forces are a plain NumPy function of positions and box."""

    forces: Forces
    degrees_of_freedom: int
    constraints: Any = None
    ranks: Ranks = SERIAL

    def compute(self, state: State, want: bool) -> Evaluation | None:
        energy, state.force_n3[:], virial = self.forces(state.position_n3, state.box_33)
        return Evaluation({"toy": energy}, virial) if want else None


class Dimers:
    """Rigid bonds between atoms 0-1, 2-3, ... in closed form."""

    def __init__(self, mass_n: np.ndarray, length: float) -> None:
        self.length, self.mass = length, mass_n.reshape(-1, 2)
        self.reduced = self.mass.prod(axis=1) / self.mass.sum(axis=1)
        self.virial_33 = np.zeros((3, 3))
        self.count = len(self.mass)

    def _shift(self, along: np.ndarray) -> np.ndarray:
        impulse = self.reduced[:, None] * along
        return (np.stack([impulse, -impulse], axis=1) / self.mass[:, :, None]).reshape(-1, 3)

    def positions(self, state: State, before_n3: np.ndarray, dt: float | None) -> None:
        d, d0 = state.position_n3[0::2] - state.position_n3[1::2], before_n3[0::2] - before_n3[1::2]
        a, b, c = (d0 * d0).sum(1), (d * d0).sum(1), (d * d).sum(1) - self.length**2
        along = ((np.sqrt(b * b - a * c) - b) / a)[:, None] * d0
        shift = self._shift(along)
        state.position_n3 += shift
        if dt is not None:
            state.velocity_n3 += shift / dt
            self.virial_33 = np.einsum("p,pa,pb->ab", 2.0 * self.reduced / dt**2, d0, along)

    def velocities(self, state: State) -> None:
        d, v = state.position_n3[0::2] - state.position_n3[1::2], state.velocity_n3[0::2] - state.velocity_n3[1::2]
        state.velocity_n3 += self._shift(-((d * v).sum(1) / (d * d).sum(1))[:, None] * d)


def no_forces(x: np.ndarray, box: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    return 0.0, np.zeros_like(x), np.zeros((3, 3))


def springs(stiffness: float) -> Forces:
    """Every atom in a well of its own at the origin (the virial is of no use)."""
    return lambda x, box: (0.5 * stiffness * float((x * x).sum()), -stiffness * x, np.zeros((3, 3)))


def argon_forces(x: np.ndarray, box: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Lennard-Jones times (1 - (r/rc)^2)^3, which is smooth at rc, in an orthorhombic box."""
    i, j = np.triu_indices(len(x), 1)
    d = x[i] - x[j]
    side = np.diag(box)
    d -= side * np.round(d / side)
    cut2 = 0.56**2
    near = (d * d).sum(1) < cut2
    i, j, d = i[near], j[near], d[near]
    r2 = (d * d).sum(1)
    s6, fade = (SIGMA**2 / r2) ** 3, 1.0 - r2 / cut2
    u = 4.0 * EPSILON * (s6 * s6 - s6)
    slope = 4.0 * EPSILON * (-6.0 * s6 * s6 + 3.0 * s6) / r2 * fade**3 - 3.0 * u * fade**2 / cut2  # dU/d(r^2)
    pair = -2.0 * slope[:, None] * d
    force = np.zeros_like(x)
    np.add.at(force, i, pair)
    np.add.at(force, j, -pair)
    return float((u * fade**3).sum()), force, d.T @ pair


def atoms(position: Any, box: Any = None, mass: Any = ARGON, *, periodic: bool = True) -> State:
    n = len(position)
    one, type_n = np.ones((1, 1)), np.zeros(n, np.int32)
    topology = Topology(np.full(n, mass) if np.isscalar(mass) else mass, np.zeros(n), type_n, ("A",), ("Ar",) * n, one, one)
    return new_state(topology, position, 10.0 * np.eye(3) if box is None else box, periodic=periodic)


def argon(temperature_k: float = 120.0, seed: int = 1, side: float = 1.14) -> tuple[State, Toy]:
    """32 atoms on an fcc lattice with velocities, and their model."""
    corner = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    cells = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    state = atoms((cells + corner).reshape(-1, 3) * side / 2, side * np.eye(3))
    model = Toy(argon_forces, 93)
    maxwell_boltzmann(state, temperature_k, seed, 93)
    model.compute(state, True)
    return state, model


def dimers(n: int, mass: tuple[float, float] = (16.0, 1.0), length: float = 0.1) -> tuple[State, Dimers]:
    """n rigid pairs, their directions and centres drawn at random."""
    random = np.random.default_rng(3)
    axis = random.standard_normal((n, 3))
    axis *= length / np.linalg.norm(axis, axis=1)[:, None]
    first = random.uniform(0.0, 3.0, (n, 3))
    mass_n = np.tile(np.array(mass), n)
    return atoms(np.stack([first, first - axis], 1).reshape(-1, 3), 3.0 * np.eye(3), mass_n), Dimers(mass_n, length)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """Tiny systems gain nothing from threads, and lose much on a busy machine."""
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(threads)


def blocks(sample: Any, count: int = 10) -> tuple[float, float]:
    """Return the mean and its error from block averages (blocks are longer than the correlation time)."""
    means = np.array([part.mean() for part in np.array_split(np.asarray(sample), count)])
    return float(means.mean()), float(means.std(ddof=1) / math.sqrt(count))


MAKERS: dict[str, Callable[[float], Integrator]] = {
    "verlet": VelocityVerlet,
    "langevin": lambda dt: Langevin(dt, 120.0, 0.5, 7),
    "nose-hoover": lambda dt: NoseHoover(dt, 120.0, 0.2),
    "rescaling": lambda dt: VelocityRescaling(dt, 120.0, 0.5, 7),
    "mtk": lambda dt: MartynaTobiasKlein(dt, 120.0, 0.2, 500 * BAR, 0.5),
    "mtk-semi": lambda dt: MartynaTobiasKlein(dt, 120.0, 0.2, 500 * BAR, 0.5, "semi"),
    "mtk-anisotropic": lambda dt: MartynaTobiasKlein(dt, 120.0, 0.2, 500 * BAR, 0.5, "anisotropic"),
    "cell": lambda dt: CellRescaling(VelocityRescaling(dt, 120.0, 0.5, 7), 120.0, 500 * BAR, 1.0, 0.02, 8, interval=2),
    "cell-langevin": lambda dt: CellRescaling(Langevin(dt, 120.0, 0.5, 7), 120.0, 500 * BAR, 1.0, 0.02, 8, "anisotropic", 2),
}
DETERMINISTIC = ("verlet", "nose-hoover", "mtk", "mtk-semi", "mtk-anisotropic")


def drift(integrator: Integrator, state: State, model: Toy, time: float) -> np.ndarray:
    """Return the conserved quantity after every step, less its first value."""
    steps = round(time / integrator.dt)
    values = []
    for _ in range(steps):
        evaluation = integrator.step(state, model, True)
        assert evaluation is not None
        values.append(integrator.conserved(state, evaluation))
    return np.array(values) - values[0]


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_conserved_quantity_is_of_second_order(name: str) -> None:
    coarse, fine = (np.abs(drift(MAKERS[name](dt), *argon(), 1.0)).max() for dt in (0.008, 0.004))
    # 8 fs is a fortieth of argon's fastest period: next order (1/4 of 1/40) and sampling of the maximum are below 20 %
    assert 3.2 < coarse / fine < 4.8
    assert fine < 0.02 * 93 / 2 * BOLTZMANN * 120  # and small against the kinetic energy


@pytest.mark.parametrize("name", ["langevin", "rescaling"])
def test_effective_energy_of_stochastic_thermostats_is_of_second_order(name: str) -> None:
    """The noise is another one for each time step, so only the size of the drift can be compared."""

    def size(dt: float) -> float:
        return math.sqrt(np.mean([drift(MAKERS[name](dt), *argon(60.0, seed), 0.5).var() for seed in range(4)]))

    coarse, fine = size(0.008), size(0.004)
    assert 2.8 < coarse / fine < 5.7  # 4; the variance of four trajectories has a spread of sqrt(2/4)
    assert fine < 0.005  # kJ/mol, while the bath has brought in some kJ/mol


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_trajectories_can_be_reversed(name: str) -> None:
    state, model = argon()
    start, box, integrator = state.position_n3.copy(), state.box_33.copy(), MAKERS[name](0.004)
    for turn in range(2):
        for _ in range(40):
            integrator.step(state, model, False)
        if turn == 0:
            assert np.abs(state.position_n3 - start).max() > 0.02
            assert name in ("verlet", "nose-hoover") or not np.array_equal(state.box_33, box)
        state.velocity_n3 *= -1.0
        saved = integrator.to_state()
        for chain in (saved, saved.get("particles", {}), saved.get("box", {})):
            for key in ("speed", "rate_3"):
                if key in chain:
                    chain[key] = -chain[key]
        if saved:
            integrator.restore(saved)
    # rounding 1e-16 grows by chaos, exp(2 ps^-1 * .3 ps), and by sums over 80 steps
    np.testing.assert_allclose(state.position_n3, start, atol=1e-12)
    np.testing.assert_allclose(state.box_33, box, atol=1e-12)


def test_langevin_samples_a_harmonic_well_exactly_at_a_large_step() -> None:
    n, stiffness, mass, t = 2000, 1000.0, 40.0, 300.0
    dt = 1.2 / math.sqrt(stiffness / mass)  # omega dt = 1.2; Verlet's limit is 2
    state, model = atoms(np.zeros((n, 3)), mass=mass), Toy(springs(stiffness), 3 * n)
    maxwell_boltzmann(state, t, 5, 3 * n)
    integrator, square, speed = Langevin(dt, t, 2.0 / dt, 11), [], []
    model.compute(state, False)
    for step in range(160):
        integrator.step(state, model, False)
        if step >= 20:  # exp(-20)
            square.append(float((state.position_n3**2).mean()))
            speed.append(temperature(kinetic_tensor(state), 3 * n))
    mean, error = blocks(square)
    exact = BOLTZMANN * t / stiffness
    assert abs(mean - exact) < 4 * error and error < 0.005 * exact
    # the scheme's velocities are those of kT (1 - (omega dt)^2/4) (Leimkuhler and Matthews 2013)
    mean, error = blocks(speed)
    assert abs(mean - t * (1 - 1.2**2 / 4)) < 4 * error


@pytest.mark.parametrize("name", ["nose-hoover", "langevin", "rescaling"])
def test_kinetic_energy_is_canonical(name: str) -> None:
    state, model = argon(seed=4)
    dof = 96 if name == "langevin" else 93  # friction and noise move the centre of mass, scaling does not
    model.degrees_of_freedom = dof
    integrator, sample = MAKERS[name](0.004), []
    for step in range(5000):
        integrator.step(state, model, False)
        if step >= 500:
            sample.append(temperature(kinetic_tensor(state), dof) / 120.0)
    mean, error = blocks(sample)
    assert abs(mean - 1.0) < 4 * error + 2e-3  # 2e-3: (omega dt)^2/4 of a harmonic solid with omega = 20/ps
    variance, spread = blocks((np.array(sample) - 1.0) ** 2)
    assert abs(variance - 2 / dof) < 4 * spread and spread < 0.2 * 2 / dof


def test_rescaling_of_few_atoms_follows_the_chi_square_distribution() -> None:
    """Free atoms: the kinetic energy is moved by the thermostat alone, whose walk is exact at any step."""
    state, model = atoms(np.zeros((2, 3))), Toy(no_forces, 6)
    state.velocity_n3[:] = 0.1
    integrator, sample = VelocityRescaling(0.5, 100.0, 0.25, 3), []
    for step in range(4000):
        integrator.step(state, model, False)
        if step >= 20:
            sample.append(2 * kinetic_energy(state) / (BOLTZMANN * 100.0))
    for power, exact in ((1, 6.0), (2, 48.0), (3, 480.0)):  # moments of chi-square: 6, 6 8, 6 8 10
        mean, error = blocks(np.array(sample) ** power)
        assert abs(mean - exact) < 4 * error and error < 0.1 * exact


def gas(n: int, t: float, pressure: float) -> tuple[State, Toy]:
    """n atoms without forces."""
    state, model = atoms(np.random.default_rng(1).uniform(0, 1, (n, 3))), Toy(no_forces, 3 * n)
    state.box_33[:] = np.eye(3) * (n * BOLTZMANN * t / pressure) ** (1 / 3)
    maxwell_boltzmann(state, t, 2, 3 * n)
    return state, model


@pytest.mark.parametrize("name", ["cell", "cell-semi", "mtk", "mtk-semi"])
def test_volumes_of_an_ideal_gas(name: str) -> None:
    """p(V) = V^n exp(-P V/kT) has mean and variance n + 1 in units of kT/P, whatever the shape of the box."""
    n, t, pressure = 16, 300.0, 100 * BAR
    state, model = gas(n, t, pressure)
    coupling = "semi" if "semi" in name else "isotropic"
    integrator: Integrator = MartynaTobiasKlein(0.02, t, 0.2, pressure, 0.3, coupling)
    if "cell" in name:
        inner = VelocityRescaling(0.02, t, 0.02, 5)
        integrator = CellRescaling(inner, t, pressure, 0.8, 1.0 / pressure, 6, coupling, interval=1)
    sample = []
    for step in range(10000):
        integrator.step(state, model, False)
        if step >= 300:
            sample.append(state.volume * pressure / (BOLTZMANN * t))
    euler = 0.02 * n if "cell" in name else 0.0  # a step of dt/tau_p = .025
    mean, error = blocks(sample)
    assert abs(mean - (n + 1)) < 4 * error + euler and error < 0.05 * n
    variance, spread = blocks((np.array(sample) - (n + 1)) ** 2)
    assert abs(variance - (n + 1)) < 4 * spread + euler and spread < 0.3 * n
    assert np.isclose(state.box_33[0, 0], state.box_33[2, 2], rtol=1e-9) == (coupling == "isotropic")


@pytest.mark.parametrize("name", ["mtk", "cell"])
def test_pressure_of_a_liquid_is_the_one_asked_for(name: str) -> None:
    state, model = argon(seed=2, side=1.3)
    integrator, pressure, effective = MAKERS[name](0.005), [], []
    for step in range(4000):
        evaluation = integrator.step(state, model, True)
        assert evaluation is not None
        if step >= 400:
            pressure.append(np.trace(pressure_tensor(state, model, evaluation)) / 3 / BAR)
            effective.append(integrator.conserved(state, evaluation))
    mean, error = blocks(pressure)
    assert abs(mean - 500) < 4 * error and error < 0.1 * np.std(pressure)
    # MTK: the order is tested elsewhere.  Cell: detailed balance fails by the step of .01 tau_p, far below 93/2 kT = 46
    assert np.ptp(effective) < 1.0


def test_pressure_is_the_strain_derivative() -> None:
    state, model = argon()
    evaluation = model.compute(state, True)
    assert evaluation is not None
    virial = pressure_tensor(state, model, evaluation) * state.volume - kinetic_tensor(state)
    for k in range(3):
        energies = []
        for strain in (1e-5, -1e-5):
            factor = np.ones(3)
            factor[k] += strain
            energies.append(model.forces(state.position_n3 * factor, state.box_33 * factor)[0])
        slope = (energies[0] - energies[1]) / 2e-5
        assert abs(virial[k, k] + slope) < 1e-6 * abs(slope)  # error of the difference: 1e-10 curvature, 1e-11 rounding


@pytest.mark.parametrize("name", list(MAKERS))
def test_restart_continues_bit_for_bit(name: str) -> None:
    state, model = argon()
    integrator = MAKERS[name](0.004)
    for _ in range(5):
        integrator.step(state, model, False)
    arrays = {key: np.copy(value) for key, value in vars(state).items() if isinstance(value, np.ndarray)}
    again, saved = argon(seed=9)[0], integrator.to_state()
    again.__dict__.update(arrays, step=state.step, time_ps=state.time_ps)
    other = MAKERS[name](0.004)
    other.restore(saved)
    ends = []
    for who, where in ((integrator, state), (other, again)):
        for _ in range(5):
            evaluation = who.step(where, model, True)
        assert evaluation is not None
        ends.append((where.position_n3.tobytes(), where.velocity_n3.tobytes(), where.box_33.tobytes(), where.time_ps))
        ends.append(who.conserved(where, evaluation))
    assert ends[0] == ends[2] and ends[1] == ends[3]


@pytest.mark.parametrize("name", ["langevin", "mtk"])
def test_same_bits_whatever_the_threads_and_same_noise_whatever_the_rows(name: str) -> None:
    def run(threads: int, order: np.ndarray) -> tuple[np.ndarray, float]:
        numba.set_num_threads(threads)
        state = atoms(np.random.default_rng(0).uniform(-0.1, 0.1, (700, 3))[order])
        state.tag_n[:] = order
        model = Toy(springs(500.0), 2100)
        maxwell_boltzmann(state, 120.0, 1, 2100)
        model.compute(state, False)
        integrator = MAKERS[name](0.004)
        for _ in range(3):
            integrator.step(state, model, False)
        back = np.argsort(order)
        return np.hstack([state.position_n3, state.velocity_n3])[back], kinetic_energy(state)

    rows = np.arange(700)
    one, two, mixed = run(1, rows), run(min(2, numba.config.NUMBA_NUM_THREADS), rows), run(1, rows[::-1].copy())
    assert one[1] == two[1] and np.array_equal(one[0], two[0])
    np.testing.assert_allclose(mixed[0], one[0], rtol=1e-11, atol=1e-13)  # sums in another order: 700 roundings


@pytest.mark.parametrize("name", ["verlet", "langevin", "mtk"])
def test_kernels_agree_with_their_plain_loops(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for target in ("cpu", "reference"):
        for module in (integrate, kinetics):
            monkeypatch.setattr(module, "machine", lambda state, target=target: target)
        state, model = argon()
        integrator = MAKERS[name](0.004)
        for _ in range(3):
            integrator.step(state, model, False)
        ends.append(state)
    np.testing.assert_allclose(ends[0].velocity_n3, ends[1].velocity_n3, rtol=1e-11, atol=1e-13)  # logarithms differ by 1e-15
    np.testing.assert_allclose(ends[0].position_n3, ends[1].position_n3, rtol=1e-13)


def test_rows_without_mass_stay_and_the_first_bad_step_is_named() -> None:
    for maker in MAKERS.values():
        state = atoms(np.full((2, 3), 0.1), mass=np.array([20.0, 0.0]))
        state.velocity_n3[:] = 0.3
        model = Toy(springs(500.0), 3)
        model.compute(state, False)
        integrator = maker(0.002)
        for _ in range(2):
            integrator.step(state, model, False)
        np.testing.assert_allclose(state.position_n3[1], 0.01 * np.diag(state.box_33), rtol=1e-14)
        assert not np.allclose(state.position_n3[0], 0.1, atol=1e-5)
        state.velocity_n3[0, 0] = np.nan
        with pytest.raises(ConvergenceError, match=r"first non-finite step 3.*timestep_fs"):
            integrator.step(state, model, True)


def test_boxes_that_cannot_be_stretched_are_refused() -> None:
    state, model = argon()
    state.box_33[1, 0] = 0.1
    for name in ("mtk-anisotropic", "cell-langevin"):
        with pytest.raises(InputError, match="orthorhombic"):
            MAKERS[name](0.004).step(state, model, False)
    with pytest.raises(InputError, match="semi, anisotropic"):
        MartynaTobiasKlein(0.004, 120.0, 0.2, 1.0, 1.0, "cubic").step(state, model, False)
    state.periodic = False
    with pytest.raises(InputError, match="periodic"):
        MAKERS["mtk"](0.004).step(state, model, False)
    state.periodic = True
    shape = state.box_33 / state.box_33[0, 0]
    model.forces = no_forces
    integrator = MAKERS["mtk"](0.004)
    for _ in range(10):
        integrator.step(state, model, False)
    np.testing.assert_allclose(state.box_33 / state.box_33[0, 0], shape, rtol=1e-14)
    assert not np.isclose(state.box_33[0, 0], 1.14, rtol=1e-6)


def test_virial_of_rigid_bonds_is_the_centripetal_one() -> None:
    """Free dimers: the bond carries -mu u u along itself, exactly; the trial steps must leave no trace."""
    state, rigid = dimers(50)
    model = Toy(no_forces, 250, rigid)
    maxwell_boltzmann(state, 300.0, 1, 250, rigid)
    before = state.position_n3.tobytes(), state.velocity_n3.tobytes()
    virial = constraint_virial(state, model)
    assert before == (state.position_n3.tobytes(), state.velocity_n3.tobytes())
    axis, speed = (array[0::2] - array[1::2] for array in (state.position_n3, state.velocity_n3))
    turn = rigid.reduced * (speed**2).sum(1) / rigid.length**2
    # the trial step of .5 fs turns a dimer by .02 rad: an error of its square over 10
    np.testing.assert_allclose(virial, -np.einsum("p,pa,pb->ab", turn, axis, axis), atol=1e-3 * turn.sum() * rigid.length**2)


def field(strength: float) -> Forces:
    """Opposite forces along z on the two atoms of a dimer."""

    def forces(x: np.ndarray, box: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        force = np.zeros_like(x)
        force[0::2, 2], force[1::2, 2] = strength, -strength
        return -strength * float((x[0::2, 2] - x[1::2, 2]).sum()), force, x.T @ force

    return forces


@pytest.mark.parametrize("name", ["verlet", "nose-hoover", "langevin", "mtk"])
def test_rigid_dimers_conserve_to_second_order(name: str) -> None:
    sizes = []
    for dt in (0.002, 0.001):
        state, rigid = dimers(40)
        model = Toy(field(300.0), 200, rigid)
        maxwell_boltzmann(state, 120.0, 1, 200, rigid)
        model.compute(state, False)
        integrator = MAKERS[name](dt)
        sizes.append(np.abs(drift(integrator, state, model, 0.3)).max())
        bonds = np.linalg.norm(state.position_n3[0::2] - state.position_n3[1::2], axis=1)
        np.testing.assert_allclose(bonds, rigid.length, rtol=1e-12)
    assert sizes[1] < 0.02 * 100 * BOLTZMANN * 120.0
    assert 2.5 < sizes[0] / sizes[1] < 6.0  # 4; Langevin's noise is another one for each step


def test_rigid_dimers_in_a_field_align_as_langevin_says() -> None:
    n, t = 400, 300.0
    state, rigid = dimers(n)
    strength = 2.0 * BOLTZMANN * t / rigid.length  # a = 2
    model, align, heat = Toy(field(strength), 5 * n, rigid), [], []
    maxwell_boltzmann(state, t, 1, 5 * n, rigid)
    model.compute(state, False)
    integrator = Langevin(0.004, t, 20.0, 3)
    for step in range(600):
        integrator.step(state, model, False)
        if step >= 100:
            align.append(float((state.position_n3[0::2, 2] - state.position_n3[1::2, 2]).mean()) / rigid.length)
            heat.append(temperature(kinetic_tensor(state), 5 * n))
    mean, error = blocks(align)
    assert abs(mean - (1 / math.tanh(2.0) - 0.5)) < 4 * error and error < 0.01
    mean, error = blocks(heat)
    assert abs(mean - t) < 4 * error + 0.01 * t  # (omega dt)^2/4 of a dimer's swing at 40/ps: .6 %


def test_rigid_dimers_under_pressure() -> None:
    """A gas of n rigid dimers has the volumes of n free atoms: the bonds' virial cancels the rotation.

    Friction, much faster than the box, exchanges energy between translation and rotation; nothing else does in a gas.
    """
    n, t = 16, 120.0
    state, rigid = dimers(n, (20.0, 20.0))
    model, pressure = Toy(no_forces, 5 * n, rigid), 500 * BAR
    state.box_33[:] = np.eye(3) * (n * BOLTZMANN * t / pressure) ** (1 / 3)
    maxwell_boltzmann(state, t, 1, 5 * n, rigid)
    integrator = CellRescaling(Langevin(0.004, t, 50.0, 5), t, pressure, 0.4, 1.0 / pressure, 6, interval=3)
    sample = []
    for step in range(7500):
        integrator.step(state, model, False)
        if step >= 300:
            sample.append(state.volume * pressure / (BOLTZMANN * t))
    mean, error = blocks(sample)
    assert abs(mean - (n + 1)) < 4 * error + 0.05 * n and error < 0.08 * n  # a stretch of .03 tau_p and friction at .05 tau_p
