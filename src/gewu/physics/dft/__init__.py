"""Plane-wave density-functional theory of crystals with norm-conserving pseudopotentials.

Solves the Kohn-Sham equations of a periodic cell,

    [ -1/2 nabla^2 + V_ion + V_H[rho] + v_xc[rho] ] psi_nk = eps_nk psi_nk,    rho = sum_nk w_k f_nk |psi_nk|^2,

in a basis of plane waves, |k+G|^2/2 <= E_cut. Internal units are Hartree atomic units (Ha, bohr); files use angstrom and eV.

Symbols: `psi` orbitals (bands, npw), `eps` energies, `f` electrons in a state (0..2), `rho` valence density, `v` local potential,
`k` fractional k point, `g` integer reciprocal vectors, `beta`, `d` projectors and their strengths, `_g` on the reciprocal half
sphere.

Read in this order: `crystal`, `pseudo` (form factors), `basis` (spheres and grids), `hamiltonian`, `gamma` (real orbitals),
`xc`, `ewald`, `potential`, `eigen`, `occupation`, `mixing`, `symmetry`, `scf` (the cycle), `kparallel`, `bands`, `dos`;
`config`, `prepare` and `engine` connect them to a job.

Limits: no spin polarisation, no spin-orbit coupling, no forces or stress, norm-conserving pseudopotentials only; see
`docs/tutorials/dft.md`.
"""

from gewu.physics.dft.basis import Basis as Basis
from gewu.physics.dft.basis import grid_shape as grid_shape
from gewu.physics.dft.crystal import Crystal as Crystal
from gewu.physics.dft.pseudo import Ion as Ion
from gewu.physics.dft.pseudo import make_ion as make_ion
from gewu.physics.dft.scf import GroundState as GroundState
from gewu.physics.dft.scf import ScfOptions as ScfOptions
from gewu.physics.dft.scf import ScfSolver as ScfSolver
from gewu.physics.dft.symmetry import reduce_mesh as reduce_mesh
from gewu.physics.dft.symmetry import space_group as space_group
