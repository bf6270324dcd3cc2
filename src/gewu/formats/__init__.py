r"""Hardened readers and writers of the files that scientists already have.

What it solves: a structure or a pseudopotential file, found somewhere, becomes checked numbers or an `InputError` that names file
and line. Never another exception, a hang, or a file read without a bound on its size.

Symbols: `cell_angstrom` (rows a, b, c), `frac_n3`; `r`, `rab` = dr/di, `vloc_ha`, `rbeta` = r beta(r), `d_ij_ha` = D_ij;
`r_loc`, `c_loc`, `r_l`, `h_ij` of Goedecker, Teter & Hutter.

Units: angstrom for structures; hartree and bohr for pseudopotentials and cube files; nm, u, e and kJ/mol for force fields.

Order to read in:
    numbers         strict numbers from text
    elements        symbols, masses, radii
    structure       `Structure`, and what it refuses
    cif, symmetry   crystallographic files and the operations that fill the cell;  poscar, extxyz
    pseudopotential `RadialPseudo`, `GthPseudo`
    radial          the checks of tabulated pseudopotentials;  upf, psp8
    gth             analytic pseudopotentials, and the table that comes with gewu (data/gth.txt)
    cube            volumetric data for viewers
    readers         which reader for which file
    pdb, amber, gromacs, gromacs_types, lammps   molecules and their force fields, as they stand in the files
    forcefield      what becomes of these: one description of who interacts with whom
    eam, zhou, potentials   metals and covalent crystals
    dcd, h5md       trajectories
"""

from __future__ import annotations

from gewu.formats.gth import builtin_gth as builtin_gth
from gewu.formats.gth import gth_variants as gth_variants
from gewu.formats.gth import read_gth as read_gth
from gewu.formats.pseudopotential import Channel as Channel
from gewu.formats.pseudopotential import GthPseudo as GthPseudo
from gewu.formats.pseudopotential import Projector as Projector
from gewu.formats.pseudopotential import RadialPseudo as RadialPseudo
from gewu.formats.psp8 import read_psp8 as read_psp8
from gewu.formats.readers import read_pseudo as read_pseudo
from gewu.formats.readers import read_structure as read_structure
from gewu.formats.structure import Structure as Structure
from gewu.formats.upf import read_upf as read_upf
