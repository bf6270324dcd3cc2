"""The mesh of devices and the few collectives of a training step.

Six axes, outermost (slowest link) first:

    pp    stages of the pipeline: layers
    dp    replicas: rows of the batch
    fsdp  rows too, and every parameter is kept in pieces over it, gathered where it is used
    ep    rows too, and the experts; parameters that are not experts are kept in pieces over it like over fsdp
    cp    context: tokens of a row
    tp    tensors: heads, inner width of the MLP, vocabulary; with `sp` also the tokens between these (sequence parallel)

A step is one program for every device (`jax.shard_map` with every axis manual, `check_vma=False`), differentiated inside, so
what travels is written here and nowhere else. Its rules are those of Megatron-LM (arXiv:1909.08053, arXiv:2205.05198): `copy_to`
and `reduce_from` are each other's derivative, as are `gather` and `scatter`. Every function does nothing on an axis of size 1, so
on one device no collective stands in the program.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gewu.core.errors import InputError

AXES: Final = ("pp", "dp", "fsdp", "ep", "cp", "tp")
ROWS: Final = ("dp", "fsdp", "ep")
"""Axes over which the rows of a batch are dealt."""
DATA: Final = (*ROWS, "cp")
"""Axes over which tokens are dealt; losses and gradients are summed over them."""
SCHEDULES: Final = ("1f1b", "interleaved")


@dataclass(frozen=True)
class Layout:
    """How a model lies on devices.

    Args:
        pp, dp, fsdp, ep, cp, tp: sizes of the axes.
        sp: between the tensor-parallel parts of a layer tokens are dealt over tp.
        micro: parts into which a device's rows are cut, one after the other (gradients are added up); the pipeline needs >= pp.
        interleave: groups of layers on each stage of the pipeline; > 1 makes it interleaved.
        remat: what is computed again in the backward pass: "none", "layer" (all but the layer's input).
        scan: layers in one loop instead of one after the other in the program; None decides by their number.

    Raises:
        InputError: a size below 1, or a mode that is not known.
    """

    pp: int = 1
    dp: int = 1
    fsdp: int = 1
    ep: int = 1
    cp: int = 1
    tp: int = 1
    sp: bool = False
    micro: int = 1
    interleave: int = 1
    remat: str = "none"
    scan: bool | None = None

    def __post_init__(self) -> None:
        for key in (*AXES, "micro", "interleave"):
            if getattr(self, key) < 1:
                raise InputError("an axis has no size", key=key, value=getattr(self, key), allowed="1 or more")
        if self.remat not in ("none", "layer"):
            raise InputError("unknown", key="remat", value=self.remat, allowed="none, layer")
        if self.interleave > 1 and self.pp == 1:
            raise InputError("needs a pipeline", key="interleave", value=self.interleave, allowed="1 where pp = 1")

    @classmethod
    def of(cls, text: str) -> Layout:
        """Return the layout of a text such as "fsdp=4 tp=2 sp micro=4".

        Raises:
            InputError: a word that is none.
        """
        known = {field.name: field for field in fields(cls)}
        values: dict[str, Any] = {}
        for word in text.replace(",", " ").split():
            key, _, value = word.partition("=")
            if key not in known:
                raise InputError("no such word in a layout", key="layout", value=word, allowed=", ".join(known))
            if key in ("sp", "scan"):
                values[key] = value in ("", "1", "true")
            elif key == "remat":
                values[key] = value
            elif value.isdecimal():
                values[key] = int(value)
            else:
                raise InputError("is no size", key="layout", value=word, allowed=f"{key}=NUMBER")
        return cls(**values)

    def __str__(self) -> str:
        words = [f"{axis}={self.size(axis)}" for axis in AXES if self.size(axis) > 1] + ["sp"] * self.sp
        words += [f"{key}={getattr(self, key)}" for key in ("micro", "interleave") if getattr(self, key) > 1]
        return " ".join([*words, *(["remat=layer"] if self.remat == "layer" else [])]) or "one device"

    def size(self, *axes: str) -> int:
        """Return the product of the sizes of axes."""
        return math.prod(getattr(self, axis) for axis in axes)

    def with_(self, **changes: Any) -> Layout:
        """Return the layout with other values of some fields."""
        return replace(self, **changes)

    @property
    def devices(self) -> int:
        """How many devices it takes."""
        return self.size(*AXES)

    def mesh(self, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
        """Return the mesh on the first devices there are, or on those given.

        Raises:
            InputError: there are fewer.
        """
        devices = jax.devices() if devices is None else list(devices)
        if len(devices) < self.devices:
            raise InputError("needs more devices", key="layout", value=str(self), allowed=f"at most {len(devices)} devices")
        array = np.array(devices[: self.devices], dtype=object).reshape([self.size(axis) for axis in AXES])
        return jax.sharding.Mesh(array, AXES)

    def abstract(self) -> jax.sharding.AbstractMesh:
        """Return a mesh without devices, for tracing at any size."""
        return jax.sharding.AbstractMesh(tuple(self.size(axis) for axis in AXES), AXES)

    def live(self, *axes: str) -> tuple[str, ...]:
        """Return those of the axes that have more than one device."""
        return tuple(axis for axis in axes if self.size(axis) > 1)


def index(at: Layout, *axes: str) -> Any:
    """Return this device's number along axes (the first is the slowest); a constant 0 where they have size 1."""
    number: Any = 0
    for axis in at.live(*axes):
        number = number * at.size(axis) + lax.axis_index(axis)
    return number


def total(x: Any, at: Layout, *axes: str) -> Any:
    """Return the sum over axes, not to be differentiated: counts, finished losses, gradients."""
    live = at.live(*axes)
    return lax.psum(x, live) if live else x


def largest(x: Any, at: Layout, *axes: str) -> Any:
    """Return the maximum over axes; no derivative flows through."""
    live = at.live(*axes)
    return lax.pmax(lax.stop_gradient(x), live) if live else lax.stop_gradient(x)


def copy_to(x: Any, at: Layout, *axes: str) -> Any:
    """Return x, which is equal on all devices of the axes and is used by each in its own way: its gradients are summed."""
    live = at.live(*axes)
    return _copy(x, live) if live else x


def reduce_from(x: Any, at: Layout, *axes: str) -> Any:
    """Return the sum over axes, whose gradient (equal on all devices) goes back to each as it is."""
    live = at.live(*axes)
    return _reduce(x, live) if live else x


def gather(x: Any, at: Layout, axes: str | Sequence[str], dim: int) -> Any:
    """Return the pieces of all devices of the axes, joined along `dim`; gradients are summed and cut (reduce-scatter)."""
    live = at.live(*((axes,) if isinstance(axes, str) else axes))
    return lax.all_gather(x, live, axis=dim, tiled=True) if live else x


def scatter(x: Any, at: Layout, axes: str | Sequence[str], dim: int) -> Any:
    """Return this device's piece along `dim` of the sum over the axes (reduce-scatter); gradients are gathered."""
    live = at.live(*((axes,) if isinstance(axes, str) else axes))
    return lax.psum_scatter(x, live, scatter_dimension=dim, tiled=True) if live else x


def exchange(x: Any, at: Layout, axis: str, split: int, join: int) -> Any:
    """Return pieces of `split` from all devices of the axis, joined along `join` (all-to-all)."""
    return lax.all_to_all(x, axis, split, join, tiled=True) if at.size(axis) > 1 else x


def shift(x: Any, at: Layout, axis: str, by: int = 1) -> Any:
    """Return what the device `by` places before this one holds, around a ring."""
    n = at.size(axis)
    if n == 1:
        return x
    pairs = [(i, (i + by) % n) for i in range(n)]
    return jax.tree.map(lambda leaf: lax.ppermute(leaf, axis, pairs), x)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _copy(x: Any, axes: tuple[str, ...]) -> Any:
    return x


_copy.defvjp(lambda x, axes: (x, None), lambda axes, _, g: (lax.psum(g, axes),))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _reduce(x: Any, axes: tuple[str, ...]) -> Any:
    return lax.psum(x, axes)


_reduce.defvjp(lambda x, axes: (lax.psum(x, axes), None), lambda axes, _, g: (g,))


def like(x: Any, value: float = 0.0) -> Any:
    """Return an array of the shape and type of x filled with a value."""
    return jnp.full(x.shape, value, x.dtype)
