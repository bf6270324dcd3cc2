"""Optimisers: what a gradient does to the parameters. Every function works on a device's pieces and gives what one device would.

    adamw      m, v = means of g, g²; u = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)   (Loshchilov, Hutter, arXiv:1711.05101)
    muon       of linear maps: m = mean of g, u = 0.2 sqrt(max(in, out)) · O, where O is the orthogonal factor of (1 - b) g + b m,
               by five steps of Newton and Schulz; all else is adamw
               (Jordan et al., kellerjordan.github.io/posts/muon, 2024; the factor: Liu et al., arXiv:2502.16982)
    adafactor  v of linear maps from its sums over rows and columns; u = g / sqrt(v), no longer than `threshold` in the root mean
               square; with `relative`, u is measured in the size of the parameter        (Shazeer, Stern, arXiv:1804.04235)

    p = p (1 - lr · weight_decay) - lr · u        decay where `Param.decay`

A linear map is what `Param.matrix` says: queries, keys and values of all heads are one map D → K (G + 2) C, gate and what it
gates are one D → 2 F; each layer and each expert has its own. Muon gathers what of a map is cut over devices and each of these
makes all of O: exact in every layout, at the price of that product. Adafactor factors also the embeddings.

Moments in bfloat16 and parameters that are kept so are rounded stochastically (`precision.stochastic`), by bits of the step, the
name and the place of the number: a run repeats itself, on any layout.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Final

import jax.numpy as jnp
from jax import lax

from gewu.core.errors import InputError, did_you_mean
from gewu.train.mesh import AXES, Layout, gather, index, total
from gewu.train.precision import MASTERS, bits, stochastic
from gewu.train.spec import Param, Specs, flat, unflat

SCHEDULES: Final = ("constant", "cosine", "linear", "wsd")
NEWTON_SCHULZ: Final = (3.4445, -4.7750, 2.0315)
TINY: Final = 1e-30


@dataclass(frozen=True)
class Optimiser:
    """How parameters follow their gradients.

    Args:
        name: "adamw", "muon" or "adafactor".
        learning_rate: at its height.
        schedule: of the learning rate, see `rate`.
        warmup: steps over which it grows linearly from 0.
        steps: of the whole run; schedules but "constant" end there.
        floor: last learning rate / learning_rate.
        cooldown: share of the steps at the end over which "wsd" falls.
        weight_decay: shrinks parameters by itself times the learning rate.
        clip: longest gradient, as a norm over all parameters; 0 for any.
        b1, b2, eps: of adamw; b2 is an exponent there.
        momentum: of muon.
        threshold: longest step of adafactor, as a root mean square.
        relative: adafactor's steps are measured in the root mean square of the parameter (at least 1e-3).
        moments: type in which moments are kept, "float32" or "bfloat16"; sums of adafactor stay float32.

    Raises:
        InputError: a value outside what is allowed.
    """

    name: str = "adamw"
    learning_rate: float = 3e-4
    schedule: str = "constant"
    warmup: int = 0
    steps: int = 0
    floor: float = 0.1
    cooldown: float = 0.2
    weight_decay: float = 0.1
    clip: float = 1.0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    momentum: float = 0.95
    threshold: float = 1.0
    relative: bool = True
    moments: str = "float32"

    def __post_init__(self) -> None:
        for key, allowed in (("name", tuple(RULES)), ("schedule", SCHEDULES), ("moments", MASTERS)):
            value = getattr(self, key)
            if value not in allowed:
                key = "optimiser" if key == "name" else key
                hint = did_you_mean(value, allowed)
                raise InputError("unknown", key=key, value=value, allowed=", ".join(allowed), hint=hint)
        for key in ("learning_rate", "warmup", "steps", "weight_decay", "clip", "eps", "threshold"):
            self._refuse(key, not 0 <= getattr(self, key) < float("inf"), "0 or more")
        for key in ("b1", "b2", "momentum"):
            self._refuse(key, not 0 <= getattr(self, key) < 1, "0 to below 1")
        for key in ("floor", "cooldown"):
            self._refuse(key, not 0 <= getattr(self, key) <= 1, "0 to 1")
        self._refuse("steps", self.schedule != "constant" and self.steps <= self.warmup, f"more than warmup = {self.warmup}")

    def _refuse(self, key: str, bad: bool, allowed: str) -> None:
        if bad:
            raise InputError("is outside what is allowed", key=key, value=getattr(self, key), allowed=allowed)

    def rate(self, step: Any) -> Any:
        """Return the learning rate of a step, float32 ().

        The first `warmup` steps climb to the height. Then "constant" stays, "cosine" and "linear" fall to `floor` of it at the
        last step, "wsd" stays and falls linearly over the last `cooldown` of the steps (arXiv:2404.06395).

        Args:
            step: number of the step, int32, from 0.
        """
        t = jnp.asarray(step, jnp.float32) + 1
        first = max(self.warmup, self.steps - round(self.cooldown * self.steps)) if self.schedule == "wsd" else self.warmup
        done = jnp.clip((t - first) / max(self.steps - first, 1), 0, 1)
        fall = {"constant": 0.0 * done, "cosine": (1 - jnp.cos(jnp.pi * done)) / 2}.get(self.schedule, done)
        return self.learning_rate * jnp.minimum(t / max(self.warmup, 1), 1.0) * (1 - (1 - self.floor) * fall)

    def state(self, specs: Specs) -> dict[str, Any]:
        """Return what the optimiser keeps, all zeros at step 0, as trees of `Param`: {"m": ..., "v": ...}."""
        slots: dict[str, dict[str, Param]] = {}
        for name, param in flat(specs).items():
            for slot, kept in RULES[self.name][0](param, self).items():
                slots.setdefault(slot, {})[name] = replace(kept, init="zeros")
        return {slot: unflat(leaves) for slot, leaves in slots.items()}

    def update(
        self,
        grads: Any,
        opt: Any,
        params: Any,
        step: Any,
        specs: Specs,
        at: Layout,
        norm: Any = None,
        finite: Any = None,
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Return parameters and state behind a step, and {"lr": learning rate}; manual, on this device's pieces.

        Args:
            grads: finished gradients, a tree like `params`.
            opt: arrays of `state`.
            step: number of the step, int32, from 0.
            norm: of `global_norm(grads)` where it is known.
            finite: bool (), whether parameters and state change at all; None for yes.
        """
        lr = self.rate(step)
        if self.clip:
            norm = global_norm(grads, specs, at) if norm is None else norm
            shorter = jnp.minimum(1.0, self.clip / jnp.maximum(norm, TINY))
        old, slopes, kept = flat(params), flat(grads), {slot: flat(tree) for slot, tree in opt.items()}
        new, moments = {}, {slot: dict(leaves) for slot, leaves in kept.items()}
        for name, param in flat(specs).items():
            slots = {slot: leaves[name].astype(jnp.float32) for slot, leaves in kept.items() if name in leaves}
            p, g = old[name].astype(jnp.float32), slopes[name].astype(jnp.float32)
            u, slots = RULES[self.name][1](g * shorter if self.clip else g, slots, p, step, finite, param, self, at)
            shrunk = p * (1 - lr * self.weight_decay) if param.decay and self.weight_decay else p
            new[name] = _rounded(_held(shrunk - lr * u, p, finite), old[name].dtype, param, at, step, name)
            for slot, leaf in slots.items():
                moments[slot][name] = _rounded(leaf, kept[slot][name].dtype, param, at, step, f"{slot}/{name}")
        return unflat(new), {slot: unflat(leaves) for slot, leaves in moments.items()}, {"lr": lr}


def global_norm(grads: Any, specs: Specs, at: Layout) -> Any:
    """Return the norm over all gradients of all devices, float32 (), every piece counted once; one collective of one number."""
    leaves, square = flat(grads), jnp.float32(0)
    for name, param in flat(specs).items():
        copies = at.devices // at.size(*_cuts(param, at, *range(len(param.shape))))
        square = square + (leaves[name].astype(jnp.float32) ** 2).sum() / copies
    return jnp.sqrt(total(square, at, *AXES))


def _cuts(param: Param, at: Layout, *axes: int) -> tuple[str, ...]:
    """Return the axes of the mesh over which these axes of a parameter are cut."""
    cuts = param.partition(at)
    return tuple(axis for number in axes for axis in ((cuts[number],) if isinstance(cuts[number], str) else cuts[number] or ()))


def _held(new: Any, old: Any, finite: Any) -> Any:
    """Return what is new, or what was before where the step is not finite."""
    return new if finite is None else jnp.where(finite, new, old)


def _mean(x: Any, param: Param, at: Layout, *axes: int) -> Any:
    """Return the mean over axes of the whole parameter of which x holds a piece; the axes stay, with size 1."""
    sums = total(x.sum(axes, keepdims=True), at, *_cuts(param, at, *axes))
    return sums / prod(param.shape[axis] for axis in axes)


def _rounded(x: Any, dtype: Any, param: Param, at: Layout, step: Any, name: str) -> Any:
    """Return float32 numbers in the type in which they are kept."""
    if dtype == jnp.float32:
        return x
    strides = tuple(prod(param.shape[axis + 1 :]) for axis in range(x.ndim))
    offset = jnp.uint32(0)
    for axis, stride in enumerate(strides):
        place = index(at, *_cuts(param, at, axis)) * x.shape[axis]
        offset = offset + jnp.asarray(place, jnp.uint32) * jnp.uint32(stride % 2**32)
    key = jnp.asarray(step, jnp.uint32) * jnp.uint32(0x9E3779B9) + jnp.uint32(zlib.crc32(name.encode()))
    return stochastic(x, bits(x.shape, key, strides, offset))


Slots = dict[str, Any]


def _adamw_slots(param: Param, o: Optimiser) -> dict[str, Param]:
    return {slot: replace(param, dtype=o.moments) for slot in ("m", "v")}


def _adamw(g: Any, s: Slots, p: Any, step: Any, finite: Any, param: Param, o: Optimiser, at: Layout) -> tuple[Any, Slots]:
    t = jnp.asarray(step, jnp.float32) + 1
    m = _held(o.b1 * s["m"] + (1 - o.b1) * g, s["m"], finite)
    v = _held(o.b2 * s["v"] + (1 - o.b2) * (g * g), s["v"], finite)
    m, v = lax.optimization_barrier((m, v))  # written over the old ones before they are read: else XLA copies all moments
    return m / (1 - o.b1**t) / (jnp.sqrt(v / (1 - o.b2**t)) + o.eps), {"m": m, "v": v}


def _muon_slots(param: Param, o: Optimiser) -> dict[str, Param]:
    return {"m": replace(param, dtype=o.moments)} if param.matrix else _adamw_slots(param, o)


def _muon(g: Any, s: Slots, p: Any, step: Any, finite: Any, param: Param, o: Optimiser, at: Layout) -> tuple[Any, Slots]:
    if param.matrix is None:
        return _adamw(g, s, p, step, finite, param, o, at)
    m = o.momentum * s["m"] + (1 - o.momentum) * g
    whole = (1 - o.momentum) * g + o.momentum * m
    first, middle = param.matrix
    for axis in range(first, g.ndim):
        whole = gather(whole, at, _cuts(param, at, axis), axis)
    shape = whole.shape
    maps = whole.reshape(-1, prod(shape[first:middle]), prod(shape[middle:]))
    u = (0.2 * max(maps.shape[1:]) ** 0.5 * orthogonal(maps)).reshape(shape)
    for axis in range(first, g.ndim):
        if cut := _cuts(param, at, axis):
            u = lax.dynamic_slice_in_dim(u, index(at, *cut) * g.shape[axis], g.shape[axis], axis)
    return u, {"m": _held(m, s["m"], finite)}


def orthogonal(x: Any) -> Any:
    """Return about U V^T of matrices x = U S V^T (n, a, b): singular values land between 0.7 and 1.2, whatever they were."""
    tall = x.shape[1] > x.shape[2]
    x = x.swapaxes(1, 2) if tall else x
    x = x / (jnp.sqrt((x * x).sum((1, 2), keepdims=True)) + 1e-8)
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        gram = x @ x.swapaxes(1, 2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.swapaxes(1, 2) if tall else x


def _factors(param: Param) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the axes of rows and of columns over which adafactor sums; None where it keeps every square."""
    matrix = param.matrix or ((0, 1) if len(param.shape) == 2 and not param.layered else None)
    return None if matrix is None else (tuple(range(*matrix)), tuple(range(matrix[1], len(param.shape))))


def _without(param: Param, axes: tuple[int, ...]) -> Param:
    """Return what is left of a parameter when axes are summed away."""
    left = [axis for axis in range(len(param.shape)) if axis not in axes]
    shape, names = tuple(param.shape[axis] for axis in left), tuple(param.axes[axis] for axis in left)
    fsdp = left.index(param.fsdp) if param.fsdp in left else -1
    return replace(param, shape=shape, axes=names, fsdp=fsdp, matrix=None, dtype="float32")


def _adafactor_slots(param: Param, o: Optimiser) -> dict[str, Param]:
    if (factors := _factors(param)) is None:
        return {"v": replace(param, dtype="float32")}
    return {"rows": _without(param, factors[1]), "columns": _without(param, factors[0])}


def _adafactor(g: Any, s: Slots, p: Any, step: Any, finite: Any, param: Param, o: Optimiser, at: Layout) -> tuple[Any, Slots]:
    b, before = 1 - (jnp.asarray(step, jnp.float32) + 1) ** -0.8, s
    square = g * g + TINY
    if (factors := _factors(param)) is None:
        v = b * s["v"] + (1 - b) * square
        u, s = g / jnp.sqrt(v), {"v": v}
        axes = tuple(range(int(param.stacked), g.ndim))
    else:
        rows, columns = factors
        axes = rows + columns
        r = b * jnp.expand_dims(s["rows"], columns) + (1 - b) * _mean(square, param, at, *columns)
        c = b * jnp.expand_dims(s["columns"], rows) + (1 - b) * _mean(square, param, at, *rows)
        u = g / jnp.sqrt(r / _mean(r, param, at, *rows)) / jnp.sqrt(c)
        s = {"rows": r.squeeze(columns), "columns": c.squeeze(rows)}
    s = {slot: _held(leaf, before[slot], finite) for slot, leaf in s.items()}
    u = u / jnp.maximum(1.0, jnp.sqrt(_mean(u * u, param, at, *axes)) / o.threshold)
    return u * (jnp.maximum(1e-3, jnp.sqrt(_mean(p * p, param, at, *axes))) if o.relative else 1.0), s


RULES: Final[dict[str, tuple[Callable[..., dict[str, Param]], Callable[..., tuple[Any, Slots]]]]] = {
    "adamw": (_adamw_slots, _adamw),
    "muon": (_muon_slots, _muon),
    "adafactor": (_adafactor_slots, _adafactor),
}
"""For each optimiser: what it keeps of a parameter, and what it makes of a gradient."""
