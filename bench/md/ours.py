"""gewu's side: `python -m bench.md.ours SYSTEM THREADS STEPS` runs one system in this process and prints one JSON object.

Steps are timed after a fifth as many, which compile and warm up. STEPS 0 writes the forces at the start to
`work/gewu-SYSTEM.npy`. SYSTEM is `lj`, `lj-double`, `eam` or `water` (`build` has more).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.md import systems as s


def build(system: str, start: s.Start, potential: Path | None = None) -> tuple[Any, Any, Any]:
    """Return model, state (this rank's share) and integrator. With `topology`, all that knows gewu's interface.

    Args:
        system: `lj`, `eam` or `water`, for Lennard-Jones and water with what is asked for after dashes: `double`; `shift` or
            `force-shift` (what becomes of the energy at the cutoff), which keeps lists until they are outdated; `nve`.
        start: all atoms.
        potential: EAM file.
    """
    from gewu.core.ranks import world
    from gewu.formats.eam import read_eam
    from gewu.physics.md.eam import Eam
    from gewu.physics.md.ewald import choose_alpha
    from gewu.physics.md.integrate import VelocityRescaling, VelocityVerlet
    from gewu.physics.md.model import Model
    from gewu.physics.md.pairs import NonBonded, Pairs
    from gewu.physics.md.pme import Pme, choose_grid
    from gewu.physics.md.state import new_state

    name, _, asked = system.partition("-")
    precision: Any = "double" if "double" in asked else "mixed"
    modifier = next((kind for kind in ("force-shift", "shift") if kind in asked), "cut")
    described, ranks = topology(name, len(start.position_n3)), world()
    state = new_state(described, start.position_n3, np.diag(np.broadcast_to(start.box_nm, 3)), velocity_n3=start.velocity_n3)
    every, integrator = None, VelocityVerlet({"lj": s.LJ_DT * s.TAU, "eam": s.CU_DT, "water": s.WATER_DT}[name])
    if name == "eam":
        assert potential is not None
        tables, cutoff, skin = read_eam(potential), s.CU_CUTOFF, s.CU_SKIN

        def terms(local: Any) -> list[Any]:
            return [Eam(tables, ("Cu",), skin_nm=skin, precision=precision, forward=local.forward)]

    elif name == "water":
        alpha, grid = choose_alpha(s.WATER_CUTOFF, s.WATER_RTOL), choose_grid(state.box_33, s.WATER_SPACING)
        cutoff, skin = s.WATER_CUTOFF, s.WATER_SKIN
        settings = NonBonded(cutoff, modifier, "ewald", alpha=alpha)
        if "nve" not in asked:
            integrator = VelocityRescaling(s.WATER_DT, s.WATER_TEMPERATURE, 1.0, 7)

        def terms(local: Any) -> list[Any]:
            pairs = Pairs(local.topology, settings, skin, precision, local.images, watch_all="nve" in asked)
            return [pairs, Pme(local.topology, alpha, grid, precision=precision, ranks=ranks)]

    else:
        cutoff, skin = s.LJ_CUTOFF * s.SIGMA, s.LJ_SKIN * s.SIGMA
        settings = NonBonded(cutoff, modifier)
        every = s.LJ_EVERY if modifier == "cut" else None

        def terms(local: Any) -> list[Any]:
            return [Pairs(local.topology, settings, skin, precision, local.images)]

    model = Model(described, terms, cutoff, skin, ranks=ranks, rebuild_every=every)
    return model, model.adopt(state), integrator


def topology(name: str, n: int) -> Any:
    """Return gewu's description of the force field on n atoms."""
    from gewu.physics.md.state import Terms, Topology

    if name != "water":
        element, mass, sigma, epsilon = ("Cu", s.CU_MASS, 0.0, 0.0) if name == "eam" else ("Ar", s.MASS, s.SIGMA, s.EPSILON)
        return Topology(
            mass_n=np.full(n, mass),
            charge_n=np.zeros(n),
            type_n=np.zeros(n, np.int32),
            type_names=(element,),
            element=(element,) * n,
            sigma_tt=np.array([[sigma]]),
            epsilon_tt=np.array([[epsilon]]),
        )
    first = 3 * np.arange(n // 3, dtype=np.int32)[:, None]
    return Topology(
        mass_n=s.water_masses(n // 3),
        charge_n=s.water_charges(n // 3),
        type_n=np.tile(np.array([0, 1, 1], np.int32), n // 3),
        type_names=("OW", "HW"),
        element=("O", "H", "H") * (n // 3),
        sigma_tt=np.array([[s.WATER_SIGMA, 0.0], [0.0, 0.0]]),
        epsilon_tt=np.array([[s.WATER_EPSILON, 0.0], [0.0, 0.0]]),
        molecule_n=np.repeat(np.arange(n // 3, dtype=np.int32), 3),
        exclusions=(first[:, None] + np.array([[0, 1], [0, 2], [1, 2]], np.int32)).reshape(-1, 2),
        settles=Terms(first + np.arange(3, dtype=np.int32), np.tile([s.WATER_OH, s.WATER_HH], (n // 3, 1))),
    )


def start_of(system: str) -> s.Start:
    """Return the start of a system of the comparison."""
    if system == "water":
        return s.stored("water24000", _absent)
    return s.copper() if system == "eam" else s.lennard_jones()


def _absent() -> s.Start:
    raise FileNotFoundError("the water box is made by GROMACS: run `python -m bench.run md` first")


def main(arguments: Sequence[str] | None = None) -> None:
    """Time the system, or write its forces."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system")
    parser.add_argument("threads", type=int)
    parser.add_argument("steps", type=int)
    parser.add_argument("--potential", type=Path)
    given = parser.parse_args(arguments)
    from gewu.core.machine import set_threads

    set_threads(given.threads)
    model, state, integrator = build(given.system, start_of(given.system), given.potential)
    model.compute(state, True)
    if given.steps == 0:
        np.save(s.WORK / f"gewu-{given.system}.npy", state.force_n3)
        return
    print(json.dumps({"steps_per_s": advance(model, state, integrator, given.steps)}))


def advance(model: Any, state: Any, integrator: Any, steps: int) -> float:
    """Return steps/s of `steps` steps after a fifth as many."""
    for _ in range(max(20, steps // 5)):
        integrator.step(state, model, False)
    begin = time.perf_counter()
    for k in range(steps):
        integrator.step(state, model, k % 100 == 99)
    return steps / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
