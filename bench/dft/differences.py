"""Explain an energy difference to pw.x: evaluate single terms on pw.x's own converged density.

`python -m bench.dft.differences --pseudo FOLDER` runs pw.x on the five crystals and prints, in microrydberg per atom against the
terms that pw.x records: exchange-correlation with three values of the constant A of Perdew and Wang's correlation (Phys. Rev. B
45, 13244, 1992), an Ewald sum without truncation, and the energy of the local potential when its radial integrals take the
whole table instead of ending at 10 bohr. Nothing of gewu is used, so it can be held against gewu as well.
"""

from __future__ import annotations

import argparse
import re
import struct
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import BinaryIO

import numpy as np
from scipy.special import erf, erfc

from bench.dft import pwx
from bench.dft.systems import SYSTEMS, System

CONSTANTS = {"0.031091 (paper, pw.x)": 0.031091, "0.0310907": 0.0310907, "(1-ln 2)/pi^2 (libxc)": (1 - np.log(2)) / np.pi**2}
WORK = Path(__file__).parent / "work"


def pbe(rho: np.ndarray, grad2: np.ndarray, a: float) -> np.ndarray:
    """Return PBE's energy per volume in Ha/bohr^3 (Phys. Rev. Lett. 77, 3865, 1996) with the constant `a` in its PW92 part."""
    gamma, beta, kappa, mu = (1 - np.log(2)) / np.pi**2, 0.06672455060314922, 0.804, 0.2195149727645171
    k_f, rs = (3 * np.pi**2 * rho) ** (1 / 3), (3 / (4 * np.pi * rho)) ** (1 / 3)
    exchange = -3 * k_f / (4 * np.pi) * (1 + kappa - kappa / (1 + mu / kappa * grad2 / (4 * k_f**2 * rho**2)))
    root = np.sqrt(rs)
    series = 7.5957 * root + 3.5876 * rs + 1.6382 * rs * root + 0.49294 * rs**2
    local = -2 * a * (1 + 0.21370 * rs) * np.log1p(1 / (2 * a * series))
    t2 = grad2 * np.pi / (16 * k_f * rho**2)
    at2 = beta / gamma / np.expm1(-local / gamma) * t2
    return rho * (exchange + local + gamma * np.log1p(beta / gamma * t2 * (1 + at2) / (1 + at2 + at2**2)))


def ewald(system: System, charges: np.ndarray) -> float:
    """Return the Ewald energy in Ha; both sums run to terms below 1e-16."""
    cell, atoms = system.cell_bohr, len(charges)
    reciprocal, volume = 2 * np.pi * np.linalg.inv(cell).T, abs(np.linalg.det(cell))
    eta = np.sqrt(np.pi) * (atoms / volume**2) ** (1 / 6)
    shifts = _integers([7 / eta * np.linalg.norm(b) / (2 * np.pi) + 1 for b in reciprocal]) @ cell
    positions, energy = system.frac_n3 @ cell, 0.0
    for i, j in np.ndindex(atoms, atoms):
        distance = np.linalg.norm(positions[i] - positions[j] + shifts, axis=1)
        distance = distance[distance > 1e-8]  # leaves out the atom itself
        energy += 0.5 * charges[i] * charges[j] * (erfc(eta * distance) / distance).sum()
    indices = _integers([14 * eta * np.linalg.norm(a) / (2 * np.pi) + 1 for a in cell])
    indices = indices[np.any(indices != 0, axis=1)]
    g2 = ((indices @ reciprocal) ** 2).sum(axis=1)
    structure = np.exp(2j * np.pi * indices @ system.frac_n3.T) @ charges
    energy += 2 * np.pi / volume * (np.exp(-g2 / (4 * eta**2)) / g2 * np.abs(structure) ** 2).sum()
    return energy - (charges**2).sum() * eta / np.sqrt(np.pi) - np.pi * charges.sum() ** 2 / (2 * volume * eta**2)


def local_energy(system: System, folder: Path, mill: np.ndarray, rho_g: np.ndarray, rcut_bohr: float) -> float:
    """Return the energy of the local potential in Ha; its radial Simpson integrals end at `rcut_bohr` or with the table."""
    g = mill @ (2 * np.pi * np.linalg.inv(system.cell_bohr).T)
    q, shell = np.unique(np.round(np.linalg.norm(g, axis=1), 9), return_inverse=True)
    energy = 0.0
    for element in system.elements:
        charge, r, rab, v = radial(folder / f"{element}.upf")
        n = 2 * ((min(int(np.searchsorted(r, rcut_bohr, side="right")), len(r) - 1) + 2) // 2) - 1  # odd, as pw.x counts
        r, rab, v = r[:n], rab[:n], v[:n]
        weights = np.ones(n)
        weights[1:-1:2], weights[2:-1:2] = 4, 2
        weights *= rab / 3
        short = np.array([(weights * r * (r * v + charge * erf(r)) * np.sinc(x * r / np.pi)).sum() for x in q])
        with np.errstate(divide="ignore"):
            form = np.where(q > 0, short - charge / q**2 * np.exp(-(q**2) / 4), (weights * r * (r * v + charge)).sum())
        positions = [x for x, symbol in zip(system.frac_n3, system.symbols, strict=True) if symbol == element]
        phase = sum(np.exp(-2j * np.pi * mill @ x) for x in positions)
        energy += 4 * np.pi * ((form[shell] * phase).conj() * rho_g).sum().real
    return energy


def radial(path: Path) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Return valence charge, r, dr and the local potential (Ha) of a UPF 2 file."""
    text = re.sub(r"<PP_INFO>.*?</PP_INFO>", "", path.read_text(), flags=re.DOTALL)
    root = ElementTree.fromstring(text[: text.index("</UPF>") + 6])
    arrays = [np.array((root.findtext(name) or "").split(), float) for name in ("PP_MESH/PP_R", "PP_MESH/PP_RAB", "PP_LOCAL")]
    header = root.find("PP_HEADER")
    assert header is not None, path
    return float(header.attrib["z_valence"]), arrays[0], arrays[1], arrays[2] / 2


def density(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the Miller indices (g, 3) and density components (g,) of pw.x's charge-density.dat (electrons/bohr^3)."""
    with path.open("rb") as file:
        count = struct.unpack("3i", _record(file))[1]
        _record(file)
        return np.frombuffer(_record(file), np.int32).reshape(count, 3), np.frombuffer(_record(file), np.complex128)


def _record(file: BinaryIO) -> bytes:
    size = struct.unpack("i", file.read(4))[0]
    data = file.read(size)
    file.read(4)
    return data


def _integers(limits: list[float]) -> np.ndarray:
    ranges = [np.arange(-int(np.ceil(x)), int(np.ceil(x)) + 1) for x in limits]
    return np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3)


def differences(system: System, pseudo: Path) -> dict[str, float]:
    """Run pw.x on `system` and return each difference in microrydberg per atom."""
    folder = WORK / system.name / "pwx"
    grid = pwx.run(system, pseudo, folder).fft_grid
    save = folder / "out" / "case.save"
    mill, rho_g = density(save / "charge-density.dat")
    terms = ElementTree.parse(save / "data-file-schema.xml").getroot().find("output/total_energy")
    assert terms is not None
    recorded = {term.tag: float(term.text or "nan") for term in terms}

    def on_grid(values: np.ndarray) -> np.ndarray:
        box = np.zeros(grid, complex)
        box[tuple((mill % grid).T)] = values
        return np.fft.ifftn(box).real * np.prod(grid)

    g = mill @ (2 * np.pi * np.linalg.inv(system.cell_bohr).T)
    rho, grad2 = np.abs(on_grid(rho_g)), sum(on_grid(1j * g[:, i] * rho_g) ** 2 for i in range(3))
    cell_volume = abs(np.linalg.det(system.cell_bohr)) / np.prod(grid)
    charges = np.array([radial(pseudo / f"{symbol}.upf")[0] for symbol in system.symbols])
    found = {f"xc, A = {name}": pbe(rho, grad2, a).sum() * cell_volume - recorded["etxc"] for name, a in CONSTANTS.items()}
    found["ewald"] = ewald(system, charges) - recorded["ewald"]
    ends = [local_energy(system, pseudo, mill, rho_g, rcut) for rcut in (10.0, np.inf)]
    found["local potential, whole table"] = ends[1] - ends[0]
    return {name: 2e6 / len(charges) * value for name, value in found.items()}


def main() -> int:
    """Print the differences of all crystals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pseudo", type=Path, required=True, help="folder with the SG15 UPF files, El.upf each")
    pseudo = parser.parse_args().pseudo.resolve()
    if pwx.executable() is None or not pseudo.is_dir():
        print("skipped: pw.x or the folder of pseudopotentials is missing", file=sys.stderr)
        return 0
    for name, system in SYSTEMS.items():
        print(name, *(f"{term}: {value:+.4f}" for term, value in differences(system, pseudo).items()), sep="\n  ")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
