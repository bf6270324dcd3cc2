"""The units of this room, and how others become them.

Length nm, time ps, mass u, energy kJ/mol = u nm^2/ps^2, charge e, temperature K, so force = kJ/mol/nm and velocity = nm/ps
need no factor anywhere.  Pressure is kJ/mol/nm^3 inside and bar at the boundary.
"""

from __future__ import annotations

import math
from typing import Final

from gewu.core.units import AVOGADRO_PER_MOL, BOLTZMANN_J_PER_K, ELEMENTARY_CHARGE_C, VACUUM_PERMITTIVITY_F_PER_M
from gewu.formats.forcefield.topology import ANGSTROM as ANGSTROM
from gewu.formats.forcefield.topology import EV as EV

BOLTZMANN: Final = BOLTZMANN_J_PER_K * AVOGADRO_PER_MOL * 1e-3
"""kJ/mol/K."""
COULOMB: Final = ELEMENTARY_CHARGE_C**2 * AVOGADRO_PER_MOL / (4 * math.pi * VACUUM_PERMITTIVITY_F_PER_M) * 1e6
"""e^2 / (4 pi eps0) in kJ/mol nm: 138.935458."""
BAR: Final = 1e5 * 1e-27 * AVOGADRO_PER_MOL * 1e-3
"""One bar in kJ/mol/nm^3."""
