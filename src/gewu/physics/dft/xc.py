"""Exchange and correlation of an unpolarised density: LDA (Perdew-Wang 92), PBE, PBEsol.

    E_xc = int n eps(n, sigma) dr,   sigma = |grad n|^2,   v_xc = d(n eps)/dn - 2 div( d(n eps)/d sigma  grad n )

All derivatives are written out; `tests/physics` compares them with finite differences.

One constant of the correlation of the uniform gas differs between codes: A = (1 - ln 2)/pi^2 = 0.0310906908..., which the
table of Perdew and Wang prints as 0.031091. Quantum ESPRESSO and libxc's LDA use the printed value, libxc's PBE (so ABINIT,
DFTK) the exact one. The energy differs by 0.8 (Si) to 4.5 (Al, 11 electrons) microRy an atom. Here "lda", "pbe", "pbesol" use
the printed value and "pbe-libxc" the exact one.

References: Perdew and Wang, PRB 45, 13244 (1992); Perdew, Burke, Ernzerhof, PRL 77, 3865 (1996); Perdew et al., PRL 100, 136406
(2008), PBEsol.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import numpy as np

from gewu.core.arrays import Array
from gewu.physics.dft.basis import Basis

DENSITY_FLOOR = 1e-12  # electrons / bohr^3; below it a point has no exchange-correlation energy
GAMMA = (1 - np.log(2.0)) / np.pi**2
KAPPA = 0.804


class Functional(NamedTuple):
    """Constants of a functional: A of PW92, and mu and beta of the gradient corrections (0 for the LDA)."""

    a: float
    mu: float
    beta: float


A_PRINTED = 0.031091
BETA_PBE = 0.06672455060314922
FUNCTIONALS = {
    "lda": Functional(A_PRINTED, 0.0, 0.0),
    "pbe": Functional(A_PRINTED, BETA_PBE * np.pi**2 / 3, BETA_PBE),
    "pbesol": Functional(A_PRINTED, 10 / 81, 0.046),
    "pbe-libxc": Functional(GAMMA, BETA_PBE * np.pi**2 / 3, BETA_PBE),
}


def xc_energy_potential(basis: Basis, rho: Array, name: str) -> tuple[float, Array]:
    """Return E_xc in Ha and v_xc (n1, n2, n3) in Ha of a density on the grid (valence plus core).

    Args:
        basis: grid on which gradients are taken, in reciprocal space.
        rho: (n1, n2, n3) electrons / bohr^3.
        name: one of `FUNCTIONALS`.
    """
    xp = basis.arrays.xp
    constants = FUNCTIONALS[name]
    inside = rho > DENSITY_FLOOR
    n = xp.where(inside, rho, 1.0)
    if not constants.mu:
        energy, v = lda(xp, n, constants)
        return float((xp.where(inside, energy, 0.0)).sum()) * basis.dv, xp.where(inside, v, 0.0)
    gradient = _gradient(basis, rho)
    sigma = xp.where(inside, gradient[0] ** 2 + gradient[1] ** 2 + gradient[2] ** 2, 0.0)
    energy, v, v_sigma = gga(xp, n, sigma, constants)
    v_sigma = xp.where(inside, v_sigma, 0.0)
    v = xp.where(inside, v, 0.0) - 2 * _divergence(basis, [v_sigma * g for g in gradient])
    return float(xp.where(inside, energy, 0.0).sum()) * basis.dv, v


def lda(xp: ModuleType, n: Array, constants: Functional) -> tuple[Array, Array]:
    """Return n eps_xc and its derivative in n for a uniform gas of density n > 0."""
    ex = _exchange(n)
    ec, dec = _correlation(xp, n, constants.a)
    return n * (ex + ec), 4 / 3 * ex + ec + n * dec


def gga(xp: ModuleType, n: Array, sigma: Array, constants: Functional) -> tuple[Array, Array, Array]:
    """Return n eps_xc and its derivatives in n and in sigma = |grad n|^2 (n > 0)."""
    a, mu, beta = constants
    ex = _exchange(n)
    k_f = (3 * np.pi**2 * n) ** (1 / 3)
    p_sigma = 1 / (4 * k_f**2 * n**2)
    p = p_sigma * sigma
    denominator = 1 + mu * p / KAPPA
    f = 1 + KAPPA - KAPPA / denominator
    df = mu / denominator**2
    v = 4 / 3 * ex * f - 8 / 3 * ex * p * df
    v_sigma = n * ex * df * p_sigma

    ec, dec = _correlation(xp, n, a)
    y_sigma = np.pi / (16 * k_f * n**2)  # t^2 = sigma / (4 k_s^2 n^2),  k_s^2 = 4 k_f / pi
    y = y_sigma * sigma
    growth = xp.exp(-ec / GAMMA)
    slope = beta / GAMMA / (growth - 1)  # A of the paper's H
    ay = slope * y
    d = 1 + ay + ay * ay
    q = y * (1 + ay) / d
    inner = 1 + beta / GAMMA * q
    h = GAMMA * xp.log(inner)
    h_q = beta / inner
    h_y = h_q * (1 + 2 * ay) / d**2
    h_a = -h_q * slope * y**3 * (2 + ay) / d**2
    v = v + ec + h + n * dec * (1 + h_a * slope**2 * growth / beta) - 7 / 3 * h_y * y
    return n * (ex * f + ec + h), v, v_sigma + n * h_y * y_sigma


def _exchange(n: Array) -> Array:
    return -0.75 / np.pi * (3 * np.pi**2 * n) ** (1 / 3)


def _correlation(xp: ModuleType, n: Array, a: float) -> tuple[Array, Array]:
    """PW92 correlation energy per electron and its derivative in n."""
    a1, b1, b2, b3, b4 = 0.21370, 7.5957, 3.5876, 1.6382, 0.49294
    rs = (3 / (4 * np.pi * n)) ** (1 / 3)
    root = xp.sqrt(rs)
    series = 2 * a * (b1 * root + b2 * rs + b3 * rs * root + b4 * rs * rs)
    slope = a * (b1 / root + 2 * b2 + 3 * b3 * root + 4 * b4 * rs)
    log = xp.log1p(1 / series)
    ec = -2 * a * (1 + a1 * rs) * log
    dec_drs = -2 * a * a1 * log + 2 * a * (1 + a1 * rs) * slope / (series * (series + 1))
    return ec, -dec_drs * rs / (3 * n)


def _gradient(basis: Basis, f: Array) -> list[Array]:
    f_g = basis.to_sphere(f)
    cart = basis.device_g
    return [basis.to_grid(1j * cart[axis] * f_g) for axis in range(3)]


def _divergence(basis: Basis, field: list[Array]) -> Array:
    cart = basis.device_g
    return basis.to_grid(sum(1j * cart[axis] * basis.to_sphere(field[axis]) for axis in range(3)))
