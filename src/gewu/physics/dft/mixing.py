"""Anderson (Pulay) mixing of the density, with Kerker's preconditioner for metals.

From the last m densities x and residuals F = out - in, the combination with the smallest residual in the Coulomb metric

    <f|g> = sum_G w(G) conj(f) g,   w(G) = 4 pi / max(G^2, q0^2) * Omega / 2

is taken, and a preconditioned fraction of its residual is added. With Kerker the step is alpha G^2/(G^2 + q0^2), which keeps long
waves of charge from sloshing in metals.

References: Anderson, J. ACM 12, 547 (1965); Pulay, CPL 73, 393 (1980); Kerker, PRB 23, 3082 (1981).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gewu.physics.dft.basis import Basis

HISTORY = 8
KERKER_Q0 = 0.8  # 1/bohr: about the Thomas-Fermi wave number of a simple metal, halved


class AndersonMixer:
    """Mixer of half-sphere density coefficients (ng,).

    Args:
        basis: density sphere.
        metal: use Kerker's preconditioner.
        alpha: fraction of the residual that is added.
    """

    def __init__(self, basis: Basis, *, metal: bool, alpha: float = 0.7) -> None:
        self.alpha = alpha
        g2 = basis.g2
        charge = g2 > 1e-12
        safe = np.where(charge, g2, 1.0)
        self.metric = np.where(charge, basis.weight * 2 * np.pi / safe * basis.crystal.volume, 0.0)
        self.step = np.where(charge, alpha * (g2 / (g2 + KERKER_Q0**2) if metal else np.ones_like(g2)), 0.0)
        self.inputs: list[np.ndarray] = []
        self.residuals: list[np.ndarray] = []

    def norm(self, residual: np.ndarray) -> float:
        """Return the Coulomb energy of a residual charge, Ha: the measure of self-consistency."""
        return float((self.metric * np.abs(residual) ** 2).sum())

    def __call__(self, rho_in: np.ndarray, residual: np.ndarray) -> np.ndarray:
        """Return the next input density."""
        self.inputs = [*self.inputs, rho_in][-HISTORY:]
        self.residuals = [*self.residuals, residual][-HISTORY:]
        x, f = rho_in, residual
        if len(self.inputs) > 1:
            df = np.array([residual - r for r in self.residuals[:-1]])
            dx = np.array([rho_in - r for r in self.inputs[:-1]])
            a = ((df.conj() * self.metric) @ df.T).real
            b = ((df.conj() * self.metric) @ residual).real
            c = np.linalg.lstsq(a, b, rcond=1e-14)[0]
            x, f = x - c @ dx, f - c @ df
        return x + self.step * f

    def state(self) -> dict[str, Any]:
        """Return the history for a checkpoint."""
        return {"inputs": list(self.inputs), "residuals": list(self.residuals)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the history of a checkpoint."""
        self.inputs, self.residuals = list(state["inputs"]), list(state["residuals"])
