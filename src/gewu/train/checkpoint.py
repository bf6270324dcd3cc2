"""Checkpoints of the weights: for each step that is kept one safetensors file of the whole state, with a checksum.

Arrays are whole and known by name ("params/layers/3/qkv"), so any layout and number of processes reads them. A file is absent
until it is complete; one that is damaged is passed over for the one before it. Process 0 writes, in the step: for states of a
few GB.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gewu.core.crc32c import crc32c
from gewu.core.errors import GewuError, ResourceError, StoreError
from gewu.formats import safetensors
from gewu.train.record import whole
from gewu.train.spec import flat
from gewu.train.step import State


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: made when needed.
        keep: how many; older ones are removed.

    Attributes:
        messages: what went wrong without ending the run: a full disk, a damaged file.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        self.folder, self.keep, self.messages = Path(folder), keep, list[str]()

    def save(self, state: State, extra: dict[str, Any], step: int) -> None:
        """Keep a state and what JSON can hold of the rest; every process calls it. A disk that is full is a message."""
        arrays = {name: whole(leaf) for name, leaf in flat(state._asdict()).items()}
        if jax.process_index():
            return
        arrays["extra"] = np.frombuffer(json.dumps(extra).encode(), np.uint8)
        arrays["checksum"] = np.array(_checksum(arrays), np.uint32)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            safetensors.write(self.folder / f"step-{step:08d}.safetensors", arrays)
            for old in self._steps()[: -self.keep]:
                self._path(old).unlink(missing_ok=True)
        except (ResourceError, OSError) as error:
            self.messages.append(f"the checkpoint of step {step} could not be written: {error}")

    def wait(self) -> None:
        """Return when all is written: it is already."""

    def latest(self) -> int | None:
        """Return the newest step that can be read, or None."""
        for step in reversed(self._steps()):
            try:
                self._read(step)
                return step
            except GewuError as error:
                text = f"the checkpoint of step {step} is damaged, the one before it is used: {error}"
                self.messages += [text] * (text not in self.messages)
        return None

    def load(self, abstract: State) -> tuple[State, dict[str, Any]]:
        """Return the newest state, laid out as `Trainer.abstract` says, and what was kept with it.

        Raises:
            StoreError: there is none, or it is of another model.
        """
        step = self.latest()
        if step is None:
            raise StoreError("holds no checkpoint", file=self.folder)
        arrays = self._read(step)

        def place(name: str, leaf: Any) -> Any:
            found = arrays.get(name)
            if found is None or found.shape != leaf.shape or found.dtype != leaf.dtype:
                value = None if found is None else f"{found.dtype}{found.shape}"
                raise StoreError(
                    "is of another model", file=self._path(step), key=name, value=value, allowed=f"{leaf.dtype}{leaf.shape}"
                )
            return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda where: found[where])

        parts = []
        for name, part in abstract._asdict().items():
            leaves = [place(*item) for item in flat(part, f"{name}/").items()]  # in the order of jax.tree: keys sorted
            parts.append(jax.tree.unflatten(jax.tree.structure(part), leaves))
        return State(*parts), json.loads(arrays["extra"].tobytes())

    def _steps(self) -> list[int]:
        return sorted(int(path.stem[5:]) for path in self.folder.glob("step-*.safetensors") if path.stem[5:].isdecimal())

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.safetensors"

    def _read(self, step: int) -> dict[str, Any]:
        arrays = safetensors.read(self._path(step))
        if "extra" not in arrays or int(arrays.pop("checksum", np.uint32(0))) != _checksum(arrays):
            raise StoreError("has another checksum than it says", file=self._path(step))
        return arrays


def _checksum(arrays: dict[str, Any]) -> int:
    parts = [crc32c(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data) for name in sorted(arrays)]
    return crc32c(np.array(parts, np.uint32).tobytes())
