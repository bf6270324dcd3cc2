"""Observables of motions and arrangements whose answer is known; every accumulator goes on exactly after a restart.

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
from typing import Any

import numpy as np
import pytest

from gewu.core import kernel as kernel_module
from gewu.core.checkpoint import dump, load
from gewu.core.errors import InputError
from gewu.core.statistics import BlockAverages
from gewu.physics.md.observables import Dielectric, Rdf, TimeCorrelation, finite_size_diffusion
from gewu.physics.md.state import Array, State
from gewu.physics.md.units import BOLTZMANN, COULOMB


def sample(position: Any, box: Any = None, velocity: Any = None, charge: Any = None) -> State:
    """Return a state with these arrays, its rows in another order than the atoms."""
    x = np.asarray(position, float)
    n = len(x)
    rows = np.random.default_rng(n).permutation(n)
    return State(
        position_n3=x[rows],
        velocity_n3=np.zeros((n, 3)) if velocity is None else np.asarray(velocity, float)[rows],
        force_n3=np.zeros((n, 3)),
        mass_n=np.full(n, 2.0),
        charge_n=np.zeros(n) if charge is None else np.asarray(charge, float)[rows],
        type_n=np.zeros(n, np.int32),
        tag_n=rows.astype(np.int64),
        box_33=np.eye(3) * 3.0 if box is None else np.asarray(box, float),
        periodic=True,
        owned=n,
    )


def through_a_checkpoint(old: Any, new: Any) -> Any:
    """Return `new` restored from the bytes of a checkpoint of `old`."""
    new.restore(load(dump(old.to_state()), source="memory"))
    return new


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_rdf_of_an_ideal_gas_is_one(device: str) -> None:
    box, n = np.array([[2.0, 0, 0], [0.8, 1.9, 0], [-0.6, 0.5, 2.1]]), 60 if device == "reference" else 1500
    rng, kind, pairs = np.random.default_rng(3), np.arange(n) % 3, [(0, 0), (0, 1), (2, 1)]
    rdf = Rdf(kind, pairs, r_max=0.8, bins=10, device=device)
    frames = 2 if device == "reference" else 4
    for _ in range(frames):
        rdf.update(sample(rng.uniform(size=(n, 3)) @ box, box))
    shells = 4 * math.pi / 3 * np.diff(np.linspace(0, 0.8, 11) ** 3)
    number = (n // 3) ** 2 * frames * shells / abs(np.linalg.det(box))
    poisson = np.sqrt(np.array([2.0, 1.0, 1.0])[:, None] / number)  # like pairs are counted from both ends
    assert rdf.g().shape == (3, 10) and np.all(np.abs(rdf.g() - 1) < 4.5 * poisson)
    if device == "cpu":
        assert abs(float(((rdf.g() - 1) ** 2 / poisson**2).mean()) - 1) < 1  # 30 shells: 1 +- 0.26; a wrong shell volume gives 10


def test_rdf_of_a_crystal_has_its_shells() -> None:
    a, m = 0.4, 4
    basis = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    corners = np.array(list(itertools.product(range(m), repeat=3)))
    position = a * (corners[:, None] + basis).reshape(-1, 3)
    position += 1e-3 * a  # off the faces of the cells
    images = position + np.random.default_rng(1).integers(-3, 4, size=position.shape) * a * m
    corner = np.tile([0, 1, 1, 1], m**3)  # corners and face centres
    rdf = Rdf(corner, [(0, 0), (0, 1), (1, 1)], r_max=0.79, bins=79)
    rdf.update(sample(images, np.eye(3) * a * m))
    n_a, n_b, volume = m**3, 3 * m**3, (a * m) ** 3
    shells = 4 * math.pi / 3 * np.diff(np.linspace(0, 0.79, 80) ** 3)
    neighbours = rdf.g() * shells / volume * np.array([n_a - 1, n_b, n_b - 1])[:, None]
    expected = {  # distance^2 / (a^2/2): corners seen from a corner, faces from a corner, faces from a face
        1: (0, 12, 8),
        2: (6, 0, 6),
        3: (0, 24, 16),
        4: (12, 0, 12),
        5: (0, 24, 16),
        6: (8, 0, 8),
        7: (0, 48, 32),
    }
    for shell, numbers in expected.items():
        bin_of = int(a * math.sqrt(shell / 2) / 0.01)
        assert neighbours[:, bin_of - 1 : bin_of + 2].sum(axis=1) == pytest.approx(numbers, rel=1e-12)
    assert neighbours.sum() == pytest.approx(sum(sum(v) for v in expected.values()), rel=1e-12)
    assert rdf.r[0] == pytest.approx(0.005)


def histogram(device: str) -> Array:
    """Return g(r) of sixty atoms, counted on a device."""
    rdf = Rdf(np.arange(60) % 2, [(0, 1), (1, 1)], r_max=1.4, bins=30, device=device)
    rdf.update(sample(np.random.default_rng(11).uniform(0, 3, size=(60, 3))))
    return rdf.g()


@pytest.mark.parametrize("device", ["cpu", "cuda-simulator", "cuda"])
def test_every_device_counts_the_same(device: str) -> None:
    if device == "cuda" and not pytest.importorskip("numba.cuda").is_available():
        pytest.skip("no CUDA device")
    if device == "cuda-simulator":
        env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")} | {"NUMBA_ENABLE_CUDASIM": "1"}
        env |= {"PYTHONPATH": str(Path(kernel_module.__file__).resolve().parents[2])}
        done = subprocess.run([sys.executable, "-W", "error", __file__], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = np.array(done.stdout.split(), float).reshape(2, 30)
    else:
        found = histogram(device)
    assert np.array_equal(found, histogram("reference"))


def test_rdf_refuses_what_has_no_density() -> None:
    state = sample(np.zeros((4, 3)) + 0.1 * np.arange(4)[:, None])
    with pytest.raises(InputError, match="too small"):
        Rdf(np.zeros(4, int), [(0, 0)], r_max=1.6).update(state)
    with pytest.raises(InputError, match="periodic"):
        Rdf(np.zeros(4, int), [(0, 0)], r_max=1.0).update(replace(state, periodic=False))


def test_msd_of_ballistic_motion_and_of_walks() -> None:
    n, dt, rng = 400, 0.5, np.random.default_rng(5)
    v = rng.normal(size=(n, 3))
    kind = np.where(np.arange(n) < 100, 0, np.where(np.arange(n) < 300, 1, -1))
    msd = TimeCorrelation("msd", kind, dt, lags=12, origins=4)
    for step in range(30):
        msd.update(sample(1000.0 + v * step * dt))
    assert msd.t == pytest.approx(np.arange(12) * dt)
    for k in (0, 1):  # whatever the origin
        assert msd.values()[k] == pytest.approx((v[kind == k] ** 2).sum(axis=1).mean() * msd.t**2, rel=1e-9)

    # Steps of variance s^2 per axis: D = s^2 / (2 dt).  Over 400 atoms and 300 / 10 disjoint windows the slope's
    # relative error is about sqrt(2 / (3 * 400 * 30)) = 0.7 %, somewhat more as errors of long times are large.
    walk, s = TimeCorrelation("msd", np.zeros(n, int), dt, lags=20, origins=10), 0.1
    x = np.zeros((n, 3))
    for _ in range(300):
        x = x + s * rng.normal(size=(n, 3))
        walk.update(sample(x))
    (found, error), expected = walk.diffusion(dt, 10 * dt)[0], s**2 / (2 * dt)
    assert found == pytest.approx(expected, rel=0.03) and error < 0.05 * expected
    with pytest.raises(InputError, match="too few"):
        walk.diffusion(8.0, 9.0)


def test_origins_are_those_of_a_direct_double_loop() -> None:
    n, lags, origins, total = 5, 10, 4, 37
    path = np.random.default_rng(6).normal(size=(total, n, 3)).cumsum(axis=0)
    msd = TimeCorrelation("msd", np.zeros(n, int), 1.0, lags, origins)
    for x in path:
        msd.update(sample(x))
    spacing = 3  # ceil(10 / 4)
    for lag in range(lags):
        starts = [s for s in range(0, total - lag, spacing)]
        direct = np.mean([((path[s + lag] - path[s]) ** 2).sum(axis=-1).mean() for s in starts])
        assert msd.values()[0, lag] == pytest.approx(direct, rel=1e-12)
    assert msd.to_state()["ring"].shape[0] <= origins


def test_vacf_of_harmonic_motion_and_green_kubo() -> None:
    n, dt, omega, rng = 50, 0.01, 5.0, np.random.default_rng(7)
    x, p = rng.normal(size=(2, n, 3))
    vacf = TimeCorrelation("vacf", np.zeros(n, int), dt, lags=200, origins=50)
    for t in np.arange(1200) * dt:  # v = p cos - omega x sin; 1200 steps are about 9.5 periods
        vacf.update(sample(np.zeros((n, 3)), velocity=p * math.cos(omega * t) - omega * x * math.sin(omega * t)))
    amplitude = (p**2 + omega**2 * x**2).sum(axis=1).mean() / 2
    # averages over origins leave a sum of cos(2 omega t0 + ...) over an unfinished period: below 1/(omega T) = 1/60
    assert np.abs(vacf.values()[0] - amplitude * np.cos(omega * vacf.t)).max() < 0.03 * amplitude
    # exp(-g t) from the same velocities scaled: int_0^T = (1 - exp(-g T)) / g
    decay, g = TimeCorrelation("vacf", np.zeros(n, int), dt, lags=600, origins=1), 2.0
    for t in np.arange(600) * dt:
        decay.update(sample(np.zeros((n, 3)), velocity=p * math.exp(-g * t)))
    expected = (p**2).sum(axis=1).mean() / 3 / g
    found, spread = decay.diffusion(3.0)[0]
    assert found == pytest.approx(expected, rel=2e-4)  # trapezoids: (g dt)^2 / 12 = 3e-5; the rest, exp(-12), is 6e-6
    assert spread < 0.01 * expected  # exp(-6) / 2


def test_finite_size_correction() -> None:
    # SPC/E at 298 K, L = 1.86 nm, eta = 0.73 mPa s: 2.837 * 4.114e-21 J / (6 pi * 0.73e-3 * 1.86e-9) = 4.56e-10 m^2/s
    assert finite_size_diffusion(298.0, 0.73e-3, 1.86) == pytest.approx(4.56e-4, rel=2e-3)  # nm^2/ps = 1e-6 m^2/s


def test_dielectric_constant_of_independent_dipoles() -> None:
    n, frames, charge, length, rng, temperature = 100, 2000, 0.4, 0.05, np.random.default_rng(8), 300.0
    result = Dielectric(temperature)
    centre, q = rng.uniform(0, 3, size=(n, 3)), np.tile([charge, -charge], n)
    for _ in range(frames):
        u = rng.normal(size=(n, 3))
        u *= length / 2 / np.linalg.norm(u, axis=1)[:, None]
        result.update(sample(np.stack([centre + u, centre - u], axis=1).reshape(-1, 3), charge=q))
    susceptibility = 4 * math.pi * COULOMB * n * (charge * length) ** 2 / (3 * 27.0 * BOLTZMANN * temperature)
    epsilon, error = result.epsilon()
    expected = susceptibility * math.sqrt(2 / 3 / frames)  # M^2 is chi^2 with three degrees of freedom
    assert error == pytest.approx(expected, rel=0.3)  # the error's own: 1/sqrt(2 blocks), with at least some tens of blocks
    assert abs(epsilon - 1 - susceptibility) < 4 * expected


def correlated(phi: float, n: int, m: int) -> Array:
    """Return m columns of x_i = phi x_{i-1} + noise of variance 1."""
    rng = np.random.default_rng(9)
    x = np.empty((n, m))
    x[0] = rng.normal(size=m) / math.sqrt(1 - phi**2)
    noise = rng.normal(size=(n, m))
    for i in range(1, n):
        x[i] = phi * x[i - 1] + noise[i]
    return x


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_error_of_the_mean_of_an_autoregressive_series(phi: float) -> None:
    n, m = 5000, 24
    x = 1e6 + correlated(phi, n, m)
    series = BlockAverages([str(k) for k in range(m)])
    for row in x:
        series.add(row)
    exact = 1 / (1 - phi) / math.sqrt(n)  # of the mean, for n >> 1/(1 - phi)
    assert series.mean() == pytest.approx(x.mean(axis=0), rel=1e-13)
    found = series.error()
    # One column's error rests on about n (1 - phi) / 4 blocks: relative spread 1/sqrt(2 * 125) = 6 % at the worst, more where the
    # test stops a level early or late; the mean of 24 columns is five times better.
    assert np.all(np.abs(found / exact - 1) < 0.4)
    assert abs(float((found / exact).mean()) - 1) < 0.08


def test_error_of_short_and_constant_series() -> None:
    series = BlockAverages(["a", "b"])
    assert np.isnan(series.mean()).all() and np.isnan(series.error()).all()
    for k in range(200):
        series.add([k, 3.0])  # a trend has no error that can be told
    error = series.error()
    assert math.isnan(error[0]) and error[1] == 0.0 and series.mean().tolist() == [99.5, 3.0]


def test_every_accumulator_resumes_exactly() -> None:
    n, rng = 40, np.random.default_rng(10)
    charge = np.tile([0.5, -0.5], n // 2)
    frames = [sample(rng.uniform(0, 3, (n, 3)), velocity=rng.normal(size=(n, 3)), charge=charge) for _ in range(31)]

    def fresh() -> list[Any]:
        kind = np.arange(n) % 2
        return [
            Rdf(kind, [(0, 1), (1, 1)], 1.4, 20),
            TimeCorrelation("msd", kind, 0.1, 7, 3),
            TimeCorrelation("vacf", kind, 0.1, 9, 4),
            Dielectric(300.0),
        ]

    whole, halves = fresh(), fresh()
    for k, frame in enumerate(frames):
        if k in (5, 18):
            halves = [through_a_checkpoint(old, new) for old, new in zip(halves, fresh(), strict=True)]
        for one in (*whole, *halves):
            one.update(frame)
    for one, two in zip(whole, halves, strict=True):
        assert dump(one.to_state()) == dump(two.to_state())
    assert np.array_equal(whole[0].g(), halves[0].g()) and whole[3].epsilon() == halves[3].epsilon()
    assert np.array_equal(whole[1].values(), halves[1].values()) and np.array_equal(whole[2].values(), halves[2].values())


if __name__ == "__main__":
    print(*histogram("cuda").ravel().tolist())
