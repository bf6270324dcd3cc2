"""The structure view of a report: what a small canvas program (`viewer.js`) needs to draw atoms, bonds and the cell.

The scene goes into a data attribute as JSON, so no text of the user's ever becomes script.
"""

from __future__ import annotations

import html
import json
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from gewu.formats import Structure
from gewu.formats.elements import ATOMIC_NUMBER, COVALENT_RADIUS_ANGSTROM

MAX_ATOMS = 4000
MAX_ATOMS_WITH_BONDS = 600
BOND_FACTOR = 1.2
ON_FACE = 1e-3

# Hues that chemists know (Corey, Pauling, Koltun), those of Jmol, H to Rn; heavier elements share the last.
_COLOURS = (
    "ffffff d9ffff cc80ff c2ff00 ffb5b5 909090 3050f8 ff0d0d 90e050 b3e3f5 ab5cf2 8aff00 bfa6a6 f0c8a0 ff8000 ffff30 1ff01f "
    "80d1e3 8f40d4 3dff00 e6e6e6 bfc2c7 a6a6ab 8a99c7 9c7ac7 e06633 f090a0 50d050 c88033 7d80b0 c28f8f 668f8f bd80e3 ffa100 "
    "a62929 5cb8d1 702eb0 00ff00 94ffff 94e0e0 73c2c9 54b5b5 3b9e9e 248f8f 0a7d8c 006985 c0c0c0 ffd98f a67573 668080 9e63b5 "
    "d47a00 940094 429eb0 57178f 00c900 70d4ff ffffc7 d9ffc7 c7ffc7 a3ffc7 8fffc7 61ffc7 45ffc7 30ffc7 1fffc7 00ff9c 00e675 "
    "00d452 00bf38 00ab24 4dc2ff 4da6ff 2194d6 267dab 266696 175487 d0d0e0 ffd123 b8b8d0 a6544d 575961 9e4fb5 ab5c00 754f45 "
    "428296 "
)

_NONMETALS = " H He B C N O F Ne Si P S Cl Ar Ge As Se Br Kr Sb Te I Xe At Rn "


def colour(symbol: str) -> str:
    """Return the colour of an element as `#rrggbb`."""
    at = 7 * (ATOMIC_NUMBER[symbol] - 1)
    return "#" + (_COLOURS[at : at + 6] or _COLOURS[-7:-1])


def scene(structure: Structure) -> dict[str, Any]:
    """Return what is drawn: atoms of the cell with their images on its far faces, bonds, cell edges, colours.

    Args:
        structure: the crystal; of more than 4000 atoms the first 4000 are drawn.

    Returns:
        `cell` (3, 3) angstrom, `xyz` (n, 3) angstrom from the centre of the cell, `kind` (n) indices into `kinds`
        (symbol, colour, radius in angstrom, count in the cell), `bonds` pairs of atoms.
    """
    cell = structure.cell_angstrom
    symbols, frac = list(structure.symbols[:MAX_ATOMS]), structure.frac_n3[:MAX_ATOMS] % 1.0
    frac[np.abs(frac - 1.0) < ON_FACE] = 0.0
    if len(symbols) <= MAX_ATOMS_WITH_BONDS:
        frac, symbols = _with_images(frac, symbols)
    xyz = (frac - 0.5) @ cell
    counts = Counter(structure.symbols)
    names = sorted(counts, key=lambda symbol: ATOMIC_NUMBER[symbol])
    return {
        "cell": np.round(cell, 5).tolist(),
        "xyz": np.round(xyz, 4).tolist(),
        "kind": [names.index(symbol) for symbol in symbols],
        "kinds": [[name, colour(name), COVALENT_RADIUS_ANGSTROM[name], counts[name]] for name in names],
        "bonds": _bonds(xyz, symbols) if len(symbols) <= MAX_ATOMS_WITH_BONDS else [],
    }


def _with_images(frac: Any, symbols: list[str]) -> tuple[Any, list[str]]:
    """Repeat the atoms on a face, edge or corner of the cell on the opposite ones, as crystal pictures do."""
    places, kinds = [], []
    for symbol, place in zip(symbols, frac, strict=True):
        for shift in product(*[(0, 1) if x < ON_FACE else (0,) for x in place]):
            places.append(place + shift)
            kinds.append(symbol)
    return np.array(places), kinds


def _bonds(xyz: Any, symbols: list[str]) -> list[list[int]]:
    radius = np.array([COVALENT_RADIUS_ANGSTROM[symbol] for symbol in symbols])
    distance = np.linalg.norm(xyz[:, None] - xyz[None], axis=-1)
    near = distance < BOND_FACTOR * (radius[:, None] + radius[None])
    metal = np.array([f" {symbol} " not in _NONMETALS for symbol in symbols])
    if not metal.all():  # the cations of a salt are close to each other, but not bonded
        near &= ~(metal[:, None] & metal[None])
    return [[int(i), int(j)] for i, j in np.argwhere(np.triu(near, 1))]


def render_structure(structure: Structure) -> str:
    """Return the HTML of the view: canvas with its scene, legend, and what to say without scripts."""
    data = scene(structure)
    lengths = np.linalg.norm(structure.cell_angstrom, axis=1)
    unit = structure.cell_angstrom / lengths[:, None]
    angles = [np.degrees(np.arccos(np.clip(unit[i] @ unit[j], -1, 1))) for i, j in ((1, 2), (0, 2), (0, 1))]
    legend = "".join(f'<li><i style="background:{c}"></i>{s} <small>× {n}</small></li>' for s, c, _, n in data["kinds"])
    cell = "a, b, c = " + ", ".join(f"{x:.4f}" for x in lengths) + " Å; α, β, γ = " + ", ".join(f"{x:.2f}°" for x in angles)
    return (
        f'<figure class="structure"><canvas tabindex="0" role="img" aria-label="{html.escape(structure.formula)}: {cell}" '
        f'data-scene="{html.escape(json.dumps(data))}"></canvas><ul class="legend">{legend}</ul>'
        f"<figcaption>{html.escape(structure.formula)}: {cell}; volume {structure.volume_angstrom3:.3f} Å³. "
        "Drag or use the arrow keys to turn, wheel or + and − to zoom, double-click to reset.</figcaption></figure>"
    )


def script() -> str:
    """Return the program that draws the view."""
    return Path(__file__).with_name("viewer.js").read_text(encoding="utf-8")
