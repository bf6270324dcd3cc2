r"""Force fields: from their files, or from a few numbers, to a `Topology`.

What it solves: every program writes a force field in its own way; here all become one description of who interacts with whom,
by which parameters, with the formulas in the text of `Topology`.

Units: nm, ps, u, kJ/mol, e, radians.

Order to read in:
    topology               `Topology`, `Terms`
    system                 `System`: a topology with the coordinates that came with it; mixing rules
    graph                  what follows from who is bonded to whom; boxes
    amber, gromacs, lammps what the readers of `gewu.formats` with these names have read, as a `System`
    pairs                  Lennard-Jones and charges by element
    water                  rigid water models, boxes of them, water around a solute
"""

from __future__ import annotations

from gewu.formats.forcefield.amber import from_amber as from_amber
from gewu.formats.forcefield.graph import reduced_box as reduced_box
from gewu.formats.forcefield.graph import rigid as rigid
from gewu.formats.forcefield.graph import whole as whole
from gewu.formats.forcefield.gromacs import from_gromacs as from_gromacs
from gewu.formats.forcefield.lammps import from_lammps as from_lammps
from gewu.formats.forcefield.pairs import lennard_jones as lennard_jones
from gewu.formats.forcefield.system import System as System
from gewu.formats.forcefield.system import mix as mix
from gewu.formats.forcefield.system import new_system as new_system
from gewu.formats.forcefield.topology import Terms as Terms
from gewu.formats.forcefield.topology import Topology as Topology
