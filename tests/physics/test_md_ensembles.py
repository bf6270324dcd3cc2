"""Ensembles with the pair kernel itself: temperatures are canonical, pressures agree with densities, energy is conserved."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import chi2, gamma

from gewu.physics.md.barostat import CellRescaling, MartynaTobiasKlein
from gewu.physics.md.config import Config
from gewu.physics.md.integrate import Integrator, Langevin, NoseHoover, VelocityRescaling, VelocityVerlet
from gewu.physics.md.kinetics import maxwell_boltzmann
from gewu.physics.md.minimise import fire
from gewu.physics.md.prepare import prepare
from gewu.physics.md.units import BOLTZMANN
from tests.ljtools import blocks, fcc, run, system

KT, DT = 1.5, 0.005
KELVIN = KT / BOLTZMANN
SMALL = {"lj": "force-shift", "cutoff": 2.2, "skin": 0.2}  # 108 atoms of density 0.8 have an edge of 5.13
THERMOSTATS: dict[str, Callable[[], Integrator]] = {
    "langevin": lambda: Langevin(DT, KELVIN, 5.0, 11),
    "velocity-rescaling": lambda: VelocityRescaling(DT, KELVIN, 0.1, 11),
    "nose-hoover": lambda: NoseHoover(DT, KELVIN, 0.1),
}


def temperatures(name: str, samples: int, apart: int) -> tuple[np.ndarray, int]:
    x, edge = fcc(3, 0.8)
    model, state = system(x, edge, "mixed", kt=KT, free=name == "langevin", **SMALL)  # type: ignore[arg-type]
    integrator = THERMOSTATS[name]()
    run(integrator, state, model, 1000, 1000)
    return run(integrator, state, model, samples * apart, apart)[:, 0], model.degrees_of_freedom


def canonical(name: str, samples: int, apart: int) -> None:
    """Kinetic energies follow the gamma distribution: chi squared over ten classes of equal probability."""
    values, dof = temperatures(name, samples, apart)
    x = values - values.mean()
    assert abs((x[1:] * x[:-1]).mean() / (x * x).mean()) < 4 / math.sqrt(samples)  # decorrelated: what chi squared presupposes
    classes = 10
    place = gamma.cdf(values * dof / 2 / KT, dof / 2)
    count = np.histogram(place, np.linspace(0, 1, classes + 1))[0]
    statistic = float(((count - samples / classes) ** 2).sum() / (samples / classes))
    assert statistic < chi2.ppf(0.999, classes - 1), (statistic, count)
    # BAOAB's and Verlet's kinetic temperature is off by (omega dt)^2/12, some 1e-3: a fiftieth of the spread of one sample
    error = math.sqrt(2 / dof / samples) * KT
    assert abs(values.mean() - KT) < 4 * error + 2e-3 * KT


@pytest.mark.parametrize("name", THERMOSTATS)
def test_temperature_distribution(name: str) -> None:
    canonical(name, 200, 60)


@pytest.mark.slow
@pytest.mark.parametrize("name", THERMOSTATS)
def test_temperature_distribution_of_long_runs(name: str) -> None:
    canonical(name, 1000, 300)  # Nose-Hoover's oscillation is still seen after 100 steps


def equation_of_state(steps: int, name: str) -> tuple[float, float, float, float, float]:
    """Return pressure and its error at constant density 0.8; density and its error at that pressure; slope dP/d(rho) used."""
    x, edge = fcc(3, 0.8)
    model, state = system(x, edge, "mixed", kt=KT, **SMALL)  # type: ignore[arg-type]
    bath = VelocityRescaling(DT, KELVIN, 0.2, 5)
    run(bath, state, model, 1000, 1000)
    pressure, pressure_error = blocks(run(bath, state, model, steps, 10)[:, 3])
    # compressibility of this fluid: d P/d rho = 25 or so at 0.8; a wrong one would change the time constant only
    barostat: Integrator
    if name == "cell-rescaling":
        barostat = CellRescaling(VelocityRescaling(DT, KELVIN, 0.2, 6), KELVIN, pressure, 0.5, 0.05, 7, interval=5)
    else:
        barostat = MartynaTobiasKlein(DT, KELVIN, 0.2, pressure, 1.0)
    run(barostat, state, model, 1000, 1000)
    density = []
    for _ in range(steps // 10):
        run(barostat, state, model, 10, 10)
        density.append(len(x) / state.volume)
    rho, rho_error = blocks(density)
    volumes = len(x) / np.array(density)
    modulus = KT * volumes.mean() / volumes.var()  # - V dP/dV from the fluctuation
    return pressure_error, rho, rho_error, modulus / rho, float(volumes.std() / volumes.mean())


def equal_pressures(steps: int, name: str) -> None:
    pressure_error, rho, rho_error, slope, spread = equation_of_state(steps, name)
    assert 10 < slope < 60  # the fluctuation of the volume is that of a liquid
    error = math.hypot(rho_error, pressure_error / slope)
    # <P> at fixed V differs from P at the mean V by V'' terms, half the relative variance of V times a number of order ten
    assert abs(rho - 0.8) < 4 * error + 5 * 0.8 * spread**2, (rho, error, spread)
    assert error < 0.01


@pytest.mark.parametrize("name", ["cell-rescaling", "mtk"])
def test_density_at_the_pressure_of_a_density(name: str) -> None:
    equal_pressures(6000, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cell-rescaling", "mtk"])
def test_density_at_the_pressure_of_a_density_in_long_runs(name: str) -> None:
    equal_pressures(100_000, name)


@pytest.mark.parametrize("precision", ["mixed", "double"])
def test_energy_of_a_liquid_stays(precision: str) -> None:
    x, edge = fcc(4, 0.8)
    spread = {}
    for dt in (0.004, 0.002):
        model, state = system(x, edge, precision, lj="force-shift", cutoff=2.5, skin=0.3, kt=2 * KT)
        run(VelocityRescaling(DT, KELVIN, 0.1, 2), state, model, 500, 500)
        total = run(VelocityVerlet(dt), state, model, round(12 / dt), 10)[:, 2]
        time = 10 * dt * np.arange(len(total))
        spread[dt] = float(total.std())
        # 12 tau: a line through noise of this size has a slope of spread sqrt(12/300)/12; six of them
        assert abs(np.polyfit(time, total, 1)[0]) < 6 * spread[dt] * math.sqrt(12 / 300) / 12
    assert spread[0.004] < 5e-4  # 3e-4 of kT; seen: 2.4e-4
    assert 3.0 < spread[0.004] / spread[0.002] < 5.5  # order two; the spread of 300 correlated samples is known to 10 %


def spce(dt: float, time: float, precision: str) -> np.ndarray:
    """Return the total energy of 216 molecules after every step, kJ/mol."""
    setup = prepare(
        Config(
            water="spce",
            molecules=216,
            cutoff_nm=0.85,
            skin_nm=0.07,
            lj="force-shift",
            ewald_tolerance=1e-6,
            pme_order=6,
            dispersion_correction=False,
            ensemble="nve",
            precision=precision,
        )
    )
    model, state = setup.model, setup.model.adopt(setup.state)
    fire(state, model, 500.0, 100)
    maxwell_boltzmann(state, 300.0, 4, model.degrees_of_freedom, model.constraints)
    model.compute(state, True)
    run(VelocityRescaling(0.001, 300.0, 0.05, 9), state, model, 300, 300)
    steps = round(time / dt)
    return run(VelocityVerlet(dt), state, model, steps, 1)[:, 2] * len(state.mass_n)


def water(time: float, precision: str) -> None:
    coarse, fine = spce(0.002, time, precision), spce(0.001, time, precision)
    assert len(coarse) * 2 == len(fine)
    # Verlet's energy error is a function of the positions times dt^2: the same trajectory at first, the same statistics later
    assert 2.8 < coarse.std() / fine.std() < 5.5, (coarse.std(), fine.std())
    assert coarse.std() < 0.02 * math.sqrt(1296 / 2) * BOLTZMANN * 300 * 10  # small against the spread of the kinetic energy


def test_energy_of_rigid_water_is_of_second_order() -> None:
    water(0.1, "double")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["mixed", "double"])
def test_energy_of_rigid_water_over_picoseconds(precision: str) -> None:
    water(4.0, precision)
