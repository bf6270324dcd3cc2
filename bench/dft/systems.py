"""The crystals of the comparison: each is a pw.x input and a gewu job from one description.

Lengths in bohr and cutoffs in rydberg, as pw.x states them; `job_toml` converts. All use the PBE functional that the
pseudopotential file names and the SG15 pseudopotentials (Schlipf and Gygi, Comput. Phys. Commun. 196, 36, 2015).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

BOHR_ANGSTROM = 0.529177210903  # CODATA 2018
CONV_THR_RY = 1e-10  # self-consistency of both programs


@dataclass(frozen=True)
class System:
    """One crystal with the settings that both programs are given.

    Args:
        name: case name of the benchmark.
        cell_bohr: (3, 3) lattice vectors as rows, bohr.
        symbols: one element symbol for each atom.
        frac_n3: (n, 3) positions in units of the lattice vectors.
        kpoints: Gamma-centred Monkhorst-Pack divisions.
        cutoff_ry: kinetic-energy cutoff of the wavefunctions, Ry.
        bands: number of bands computed.
        occupied: number of occupied bands (0 for a metal).
        smearing_width_ry: Marzari-Vanderbilt width, Ry; 0 means fixed occupations.
    """

    name: str
    cell_bohr: np.ndarray
    symbols: tuple[str, ...]
    frac_n3: np.ndarray
    kpoints: tuple[int, int, int]
    cutoff_ry: float
    bands: int
    occupied: int
    smearing_width_ry: float = 0.0

    @property
    def elements(self) -> tuple[str, ...]:
        """Return the elements in order of first appearance."""
        return tuple(dict.fromkeys(self.symbols))

    def poscar(self) -> str:
        """Return the crystal as a VASP 5 POSCAR (angstrom, direct coordinates); atoms of an element stand together."""
        lines = [self.name, "1.0"]
        lines += [" ".join(f"{x:.15f}" for x in row) for row in self.cell_bohr * BOHR_ANGSTROM]
        lines += [" ".join(self.elements), " ".join(str(self.symbols.count(e)) for e in self.elements), "Direct"]
        lines += [
            " ".join(f"{x:.15f}" for x in frac)
            for element in self.elements
            for frac in self.frac_n3[[symbol == element for symbol in self.symbols]]
        ]
        return "\n".join(lines) + "\n"

    def job_toml(self, structure: str, pseudo_dir: Path, fft_grid: tuple[int, int, int]) -> str:
        """Return the gewu job: pw.x's settings in hartree, one thread, the FFT grid that pw.x chose.

        Both programs measure self-consistency by the Coulomb energy of the density's residual, so `energy_tolerance_ha` is half
        of pw.x's `conv_thr`. The grid is given because the exchange-correlation integral depends on it by some microrydberg.
        """
        pseudo = ", ".join(f"{e} = '{pseudo_dir / (e + '.upf')}'" for e in self.elements)
        smearing = "marzari-vanderbilt" if self.smearing_width_ry else "none"
        width = f"smearing_width_ha = {self.smearing_width_ry / 2!r}\n" if self.smearing_width_ry else ""
        return (
            f'[job]\ntitle = "{self.name}"\nthreads = 1\n\n[dft]\nstructure = "{structure}"\nfunctional = "pbe"\n'
            f"pseudo = {{ {pseudo} }}\ncutoff_ha = {self.cutoff_ry / 2!r}\nkpoints = {list(self.kpoints)}\n"
            f'smearing = "{smearing}"\n{width}bands = {self.bands}\npath = "none"\nfft_grid = {list(fft_grid)}\n'
            f"energy_tolerance_ha = {CONV_THR_RY / 2!r}\n"
        )


def _fcc(a_bohr: float) -> np.ndarray:
    return a_bohr / 2 * np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])


_PAIR = np.array([[0.0, 0.0, 0.0], [0.25, 0.25, 0.25]])
_FACES = np.array([[0.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])
_DIAMOND8 = (_FACES[:, None, :] + _PAIR[None, :, :]).reshape(8, 3)
_DIAMOND64 = ((_DIAMOND8[None, :, :] + np.stack(np.indices((2, 2, 2)), -1).reshape(8, 1, 3)) / 2).reshape(64, 3)
_ROCK_SALT = np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])

SYSTEMS = {
    system.name: system
    for system in (
        System("si2-444", _fcc(10.26), ("Si",) * 2, _PAIR, (4, 4, 4), 30.0, 8, 4),
        System("si8-222", 10.26 * np.eye(3), ("Si",) * 8, _DIAMOND8, (2, 2, 2), 30.0, 20, 16),
        System("si64-gamma", 20.52 * np.eye(3), ("Si",) * 64, _DIAMOND64, (1, 1, 1), 20.0, 128, 128),
        System("al-smearing", _fcc(7.652), ("Al",), np.zeros((1, 3)), (8, 8, 8), 30.0, 10, 0, 0.02),
        System("mgo", _fcc(7.96), ("Mg", "O"), _ROCK_SALT, (4, 4, 4), 70.0, 12, 8),
        System("gaas", _fcc(10.683), ("Ga", "As"), _PAIR, (4, 4, 4), 60.0, 13, 9),
    )
}
