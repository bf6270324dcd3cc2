"""From a configuration to what the self-consistent cycle needs, checked before anything large exists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from gewu.core.arrays import arrays
from gewu.core.context import Context
from gewu.core.errors import InputError
from gewu.core.machine import require_memory
from gewu.formats import GthPseudo, RadialPseudo, builtin_gth, gth_variants, read_pseudo, read_structure
from gewu.physics.dft.bands import KPath, standard_path
from gewu.physics.dft.basis import Basis, grid_shape
from gewu.physics.dft.config import Config
from gewu.physics.dft.crystal import Crystal
from gewu.physics.dft.eigen import SPACE
from gewu.physics.dft.kparallel import threads
from gewu.physics.dft.occupation import check_insulator
from gewu.physics.dft.pseudo import Ion, make_ion
from gewu.physics.dft.scf import ScfOptions, default_bands
from gewu.physics.dft.symmetry import KMesh, SpaceGroup, primitive, reduce_mesh, space_group

K_SPACING = 0.27  # 1/bohr between k points of an automatic mesh: 4 x 4 x 4 for the primitive cell of silicon
GTH_REACH = 3.0  # automatic cutoff: q r = 3 for the shortest Gaussian; leaves 0.03 (Si) to 3 mHa (O) an atom in total energies
EASY_CUTOFF_HA = 100.0  # a first calculation takes a variant with fewer electrons where the recommended one needs more than this


class Setup(NamedTuple):
    """What the self-consistent cycle needs: `group` is the crystal's, `mesh_group` the part of it that the k mesh has too."""

    crystal: Crystal
    ions: dict[str, Ion]
    group: SpaceGroup
    basis: Basis
    mesh: KMesh
    mesh_group: SpaceGroup
    options: ScfOptions
    path: KPath | None
    citations: tuple[str, ...]


def prepare(config: Config, ctx: Context) -> Setup:
    """Read and check all inputs of a job.

    Raises:
        InputError: structure, pseudopotentials or settings that cannot be computed.
        ResourceError: the memory needed is not there.
    """
    crystal = Crystal.from_structure(read_structure(config.structure))
    if config.cell == "primitive":
        crystal = primitive(crystal)
    pseudos = {symbol: _pseudopotential(config, symbol, ctx) for symbol in crystal.species}
    cutoff = config.cutoff_ha or automatic_cutoff(pseudos)
    electrons = sum(float(pseudos[s].z_valence) for s in crystal.symbols)
    if config.smearing == "none":
        check_insulator(electrons)
    group = space_group(crystal)
    path = None if config.path == "none" else standard_path(crystal, config.path, config.path_points)
    grid = config.fft_grid if max(config.fft_grid) else grid_shape(crystal, cutoff, group.translations)
    mesh, mesh_group = reduce_mesh(_mesh(config, crystal), config.kshift, group)
    options = ScfOptions(
        functional=config.functional,
        smearing=config.smearing,
        width_ha=config.smearing_width_ha,
        bands=config.bands or default_bands(electrons, config.smearing),
        tolerance_ha=config.energy_tolerance_ha,
        max_iterations=config.max_iterations,
        seed=config.seed,
    )
    projectors = {s: sum(2 * l + 1 for l in _momenta(p)) for s, p in pseudos.items()}
    rank_points = -(-len(mesh.k) // ctx.ranks.size)
    need = memory_estimate(
        crystal, cutoff, grid, rank_points, options.bands, sum(projectors[s] for s in crystal.symbols), threads()
    )
    require_memory(need, "this calculation", "lower cutoff_ha, kpoints or bands, or use more ranks (mpirun)")
    ions = {s: make_ion(p, 2 * np.sqrt(2 * cutoff) * 1.01) for s, p in pseudos.items()}
    basis = Basis(crystal, cutoff, grid, arrays(ctx.device, threads() if len(mesh.k) == 1 else 1))
    return Setup(crystal, ions, group, basis, mesh, mesh_group, options, path, _citations(config, pseudos))


def memory_estimate(
    crystal: Crystal, cutoff_ha: float, grid: tuple[int, ...], k_points: int, bands: int, projectors: int, workers: int
) -> int:
    """Return the peak memory in bytes of one process: orbitals and projectors of its k points, search spaces, and fields."""
    waves = crystal.volume * (2 * cutoff_ha) ** 1.5 / (6 * np.pi**2)
    stored = k_points * (bands + 2 * projectors) * waves
    search = min(workers, k_points) * (2 * SPACE + 6) * bands * waves
    fields = (30 + 4 * min(workers, k_points)) * float(np.prod([float(n) for n in grid]))
    density_sphere = 4 * waves * 60  # half of the 8 x larger sphere: index tables, mixing history
    return int(16 * (stored + search + density_sphere) + 8 * fields)


def easy_gth(symbol: str) -> GthPseudo:
    """Return the recommended PBE pseudopotential of an element, or a softer one where that needs a very high cutoff."""
    variants = gth_variants(symbol, "pbe")
    cutoffs = [automatic_cutoff({symbol: variant}) for variant in variants]
    return variants[0] if cutoffs[0] <= EASY_CUTOFF_HA else variants[cutoffs.index(min(cutoffs))]


def auto_mesh(crystal: Crystal) -> tuple[int, int, int]:
    """Return a Gamma-centred mesh with at most `K_SPACING` between points."""
    n = np.ceil(np.linalg.norm(crystal.reciprocal, axis=1) / K_SPACING - 1e-6).astype(int)
    return int(max(1, n[0])), int(max(1, n[1])), int(max(1, n[2]))


def _mesh(config: Config, crystal: Crystal) -> tuple[int, int, int]:
    return config.kpoints if max(config.kpoints) else auto_mesh(crystal)


def _momenta(pseudo: RadialPseudo | GthPseudo) -> list[int]:
    if isinstance(pseudo, GthPseudo):
        return [channel.l for channel in pseudo.channels for _ in channel.h_ij]
    return [projector.l for projector in pseudo.projectors]


def _pseudopotential(config: Config, symbol: str, ctx: Context) -> RadialPseudo | GthPseudo:
    choice = config.pseudo if isinstance(config.pseudo, str) else config.pseudo.get(symbol)
    if choice is None:
        raise InputError(
            f"no pseudopotential for {symbol}", key="dft.pseudo", value=sorted(config.pseudo), hint=f'add {symbol} = "FILE"'
        )
    family = config.functional.split("-")[0]
    pseudo: RadialPseudo | GthPseudo
    if choice == "gth":
        pseudo = builtin_gth(symbol, family)
    elif choice.startswith("gth-q") and choice[5:].isdigit():
        pseudo = builtin_gth(symbol, family, int(choice[5:]))
    elif choice.startswith("gth"):
        raise InputError(
            "no such GTH choice", key="dft.pseudo", value=choice, allowed="gth, gth-qN with N valence electrons, or a file"
        )
    else:
        pseudo = read_pseudo(choice, symbol)
    if max(_momenta(pseudo), default=0) > 3:
        raise InputError("projectors beyond f are not supported", key="dft.pseudo", value=choice, allowed="l <= 3")
    made_for = pseudo.functional.split("-")[0].lower()
    if made_for in ("pbe", "lda", "pbesol") and made_for != family and not (family == "pbesol" and made_for == "pbe"):
        ctx.warn(f"The pseudopotential of {symbol} was made for {made_for}, the calculation uses {config.functional}.")
    return pseudo


def automatic_cutoff(pseudos: Mapping[str, RadialPseudo | GthPseudo]) -> float:
    """Return the cutoff at which the shortest Gaussian of GTH pseudopotentials has decayed to exp(-4.5), Ha.

    Raises:
        InputError: a tabulated pseudopotential, whose file names no cutoff.
    """
    shortest = []
    for symbol, pseudo in pseudos.items():
        if not isinstance(pseudo, GthPseudo):
            raise InputError(
                f"the pseudopotential file of {symbol} names no cutoff", key="dft.cutoff_ha", value=0.0, hint="set cutoff_ha"
            )
        shortest += [pseudo.r_loc, *(c.r_l for c in pseudo.channels if len(c.h_ij))]
    return float(np.ceil(0.5 * (GTH_REACH / min(shortest)) ** 2))


def _citations(config: Config, pseudos: Mapping[str, RadialPseudo | GthPseudo]) -> tuple[str, ...]:
    keys = ["perdew-wang-92", "davidson", "anderson", "monkhorst-pack", "spglib", "ewald"]
    keys += [] if config.functional == "lda" else ["pbesol"] if config.functional == "pbesol" else ["pbe"]
    if any(isinstance(p, GthPseudo) for p in pseudos.values()):
        keys += ["gth-96", "hgh-98", "krack-05"]
    if config.smearing != "none":
        keys += ["kerker"]
        keys += {"marzari-vanderbilt": ["marzari-vanderbilt"], "methfessel-paxton": ["methfessel-paxton"]}.get(
            config.smearing, []
        )
    return tuple(keys)
