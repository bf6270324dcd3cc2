"""Make examples/forces.extxyz: clusters of copper, nickel, aluminium and a copper-nickel alloy, by gewu's molecular dynamics.

Pieces of the face-centred cubic crystal of 13 to 55 atoms in a wide box, embedded atoms after Zhou (2004), Langevin thermostat at
300 to 1500 K; frames every 0.4 ps after 1 ps, with energies in eV and forces in eV/angstrom. Takes three minutes.
Run: python tools/make_forces.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gewu.core.context import QuietContext
from gewu.formats.extxyz import extxyz_bytes
from gewu.formats.structure import Structure
from gewu.physics.md.config import Config
from gewu.physics.md.engine import Simulation
from gewu.physics.md.prepare import prepare
from gewu.physics.md.units import ANGSTROM, EV

TARGET = Path(__file__).parents[1] / "examples" / "forces.extxyz"
LATTICE = {("Cu",): 3.615, ("Ni",): 3.52, ("Al",): 4.05, ("Cu", "Ni"): 3.57}  # angstrom
SHELLS = {13: 0.75, 19: 1.05, 43: 1.24, 55: 1.45}  # atoms: radius in lattice constants
TEMPERATURES_K = (300.0, 900.0, 1500.0)
BOX_ANGSTROM, FRAMES, STEPS_BETWEEN, STEP_FS = 24.0, 4, 200, 2.0


def cluster(kinds: tuple[str, ...], atoms: int) -> Structure:
    """Return a ball of the crystal; layers of an alloy alternate."""
    grid = np.stack(np.meshgrid(*[np.arange(-4, 5)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    places = grid[grid.sum(axis=1) % 2 == 0] / 2
    places = places[np.linalg.norm(places, axis=1) < SHELLS[atoms]]
    assert len(places) == atoms
    symbols = tuple(kinds[round(2 * place[2]) % len(kinds)] for place in places)
    return Structure(np.eye(3) * BOX_ANGSTROM, symbols, places * LATTICE[kinds] / BOX_ANGSTROM + 0.5)


def frames(start: Structure, temperature_k: float, folder: Path) -> Iterator[bytes]:
    """Yield the frames of one run."""
    path = folder / "start.extxyz"
    path.write_bytes(extxyz_bytes([start]))
    config = Config(
        structure=str(path), eam="zhou", ensemble="nvt", thermostat="langevin", temperature_k=temperature_k, timestep_fs=STEP_FS,
        equilibration_ps=1.0, time_ps=FRAMES * STEPS_BETWEEN * STEP_FS * 1e-3, seed=int(temperature_k), precision="double",
    )  # fmt: skip
    ctx = QuietContext()
    simulation = Simulation(config, prepare(config, ctx.ranks, ctx.device), ctx)
    for end in range(simulation.first + STEPS_BETWEEN, simulation.steps + 1, STEPS_BETWEEN):
        simulation.steps = end
        simulation.resumed = end > simulation.first + STEPS_BETWEEN
        assert simulation.run()
        state, model = simulation.state, simulation.model
        position = np.round(state.position_n3[: state.owned] / ANGSTROM, 4)
        state.position_n3[: state.owned] = position * ANGSTROM  # energies and forces are those of what the file shows
        model.refresh(state)
        evaluation = model.compute(state, True)
        assert evaluation is not None
        force = state.force_n3[: state.owned] * (ANGSTROM / EV)
        lattice = " ".join(f"{x:g}" for x in (np.eye(3) * BOX_ANGSTROM).ravel())
        yield (
            f'{len(position)}\nLattice="{lattice}" Properties=species:S:1:pos:R:3:forces:R:3 pbc="T T T" '
            f"energy={evaluation.potential / EV:.6f} temperature_k={temperature_k:g}\n"
        ).encode()
        for symbol, place, push in zip(start.symbols, position, force, strict=True):
            yield f"{symbol} {' '.join(f'{x:.4f}' for x in place)} {' '.join(f'{x:.4f}' for x in push)}\n".encode()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs = [(kinds, atoms, kelvin) for kinds in LATTICE for atoms in SHELLS for kelvin in TEMPERATURES_K]
        data = b"".join(b"".join(frames(cluster(kinds, atoms), kelvin, Path(folder))) for kinds, atoms, kelvin in runs)
    TARGET.write_bytes(data)
    print(f"{TARGET}: {len(runs) * FRAMES} frames, {len(data)} bytes")


if __name__ == "__main__":
    main()
