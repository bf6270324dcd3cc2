"""The parameters of a model: names, shapes, where each axis lies on the mesh, and how they begin.

A `Param` names its axes by meaning; `RULES` say which mesh axes an axis is cut over. Beside these, one axis (`fsdp`, by number)
is cut over fsdp and ep and gathered where the parameter is used. The tree of `specs(config)` is the truth for everything that
handles parameters: initial values, shardings, checkpoints, optimiser, import, memory and cost.

    embed (V, D); positions (length, D); inputs/NAME/{weight, bias, position}; head (V, D) unless tied; class/target heads
    layers/ norm1 (L, D), qkv (L, D, K, G + 2, C), out (L, K, G·C, D), norm2 (L, D), up (L, D, gates, F), down (L, F, D)
    layers/ router (L, D, E), experts_up (L, E, D, gates, F), experts_down (L, E, F, D), shared_up, shared_down

`qkv` holds for each key head its G queries, then key and value: cutting K cuts heads of all three alike. `up` holds the gate
first, then what is gated. Norms of kind "layer" and biases stand beside as NAME_bias.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gewu.core.errors import InputError
from gewu.train.config import ModelConfig
from gewu.train.mesh import Layout

RULES: Final = {"layers": ("pp",), "vocab": ("tp",), "heads": ("tp",), "hidden": ("tp",), "experts": ("ep",)}
"""Mesh axes over which an axis of this meaning is cut; others are whole."""


@dataclass(frozen=True)
class Param:
    """One parameter, as the whole of it.

    Args:
        shape: of all of it, over all devices and layers.
        axes: meaning of each axis, "" for none.
        fsdp: number of the axis that is kept in pieces over fsdp (and ep); -1 for a small parameter that every device holds.
        init: "normal", "zeros" or "ones".
        scale: standard deviation of "normal".
        matrix: (first axis of the input, first axis of the output) of a linear map, for Muon; axes before are a batch of maps.
        decay: whether weight decay acts on it.
        partial: its gradient on a device of tp is a part of it: "tokens" with sp (norms, biases behind a reduction, router),
            "heads" always (norms of queries and keys), "" never.
        layered: whether it belongs to a layer; the first axis of a stack of them counts layers.
        exact: used in float32 whatever the precision (norms, biases, router).
        dtype: in which it is kept.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    fsdp: int = -1
    init: str = "normal"
    scale: float = 0.02
    matrix: tuple[int, int] | None = None
    decay: bool = True
    partial: str = ""
    layered: bool = False
    exact: bool = False
    dtype: str = "float32"

    @property
    def size(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)

    @property
    def stacked(self) -> bool:
        """Whether the first axis counts layers."""
        return bool(self.axes) and self.axes[0] == "layers"

    def one(self) -> Param:
        """Return the parameter of one layer."""
        move = lambda axis: axis - 1 if axis >= 0 else axis  # noqa: E731
        matrix = None if self.matrix is None else (self.matrix[0] - 1, self.matrix[1] - 1)
        return replace(self, shape=self.shape[1:], axes=self.axes[1:], fsdp=move(self.fsdp), matrix=matrix)

    def pieces(self, at: Layout) -> tuple[str, ...]:
        """Return the axes over which it is kept in pieces until it is used."""
        if self.fsdp < 0:
            return ()
        return at.live("fsdp") if "experts" in self.axes else at.live("fsdp", "ep")

    def partition(self, at: Layout) -> PartitionSpec:
        """Return over which mesh axes each axis is cut."""
        cuts = [at.live(*RULES.get(axis, ())) for axis in self.axes]
        if self.fsdp >= 0:
            cuts[self.fsdp] += self.pieces(at)
        return PartitionSpec(*(cut if len(cut) > 1 else cut[0] if cut else None for cut in cuts))

    def local(self, at: Layout) -> tuple[int, ...]:
        """Return the shape of a device's piece.

        Raises:
            InputError: an axis does not divide.
        """
        shape = []
        for number, (size, axis) in enumerate(zip(self.shape, self.axes, strict=True)):
            parts = at.size(*RULES.get(axis, ())) * (at.size(*self.pieces(at)) if number == self.fsdp else 1)
            if size % parts:
                raise InputError(
                    "does not divide over the devices", key=axis or f"axis {number}", value=size, allowed=f"a multiple of {parts}"
                )
            shape.append(size // parts)
        return tuple(shape)

    def summed(self, at: Layout) -> tuple[str, ...]:
        """Return the axes over which its gradient is still to be summed after the backward pass."""
        done = set(self.pieces(at)) | {axis for name in self.axes for axis in RULES.get(name, ())}
        axes = [axis for axis in ("dp", "fsdp", "ep", "cp") if axis not in done]
        if not self.layered:
            axes.insert(0, "pp")  # every stage holds it, one or two use it
        if self.partial == "heads" or (self.partial == "tokens" and at.sp):
            axes.append("tp")
        return at.live(*axes)


Specs = dict[str, Any]


def specs(config: ModelConfig) -> Specs:
    """Return the parameters of a model as a tree of `Param`."""
    c = config
    D, V = c.width, c.vocab
    norm = {"init": "ones", "decay": False, "exact": True, "partial": "tokens"}
    tree: Specs = {"layers": _layer(c)}
    if V:
        tree["embed"] = Param((V, D), ("vocab", "embed"), fsdp=1)
    if c.positions == "learned":
        tree["positions"] = Param((c.length, D), ("", "embed"), fsdp=1, partial="tokens")
    if c.inputs:
        tree["inputs"] = {item.name: _input(item, D) for item in c.inputs}
    tree["norm"] = Param((D,), ("embed",), **norm)
    if c.norm == "layer":
        tree["norm_bias"] = Param((D,), ("embed",), **(norm | {"init": "zeros"}))
    if V and not c.tied:
        tree["head"] = Param((V, D), ("vocab", "embed"), fsdp=1)
    for name, width in (("classes", c.classes), ("targets", c.targets)):
        if width:
            tree[name] = Param((D, width), ("embed", ""), fsdp=0, matrix=(0, 1))
            tree[f"{name}_bias"] = Param((width,), ("",), init="zeros", decay=False, exact=True)
    return tree


def _input(item: Any, D: int) -> Specs:
    """Return the parameters of one encoder: a linear map of each patch (or column), a bias and a place of each token."""
    inside = {"table": 1, "patches": item.patch * item.patch * item.shape[-1], "series": item.patch * item.shape[-1]}[item.kind]
    lead = (item.tokens,) if item.kind == "table" else (inside,)  # each column of a table has a direction of its own
    plain = {"decay": False, "exact": True, "partial": "tokens"}
    return {
        "weight": Param((*lead, D), ("", "embed"), scale=0.02 if item.kind == "table" else inside**-0.5, partial="tokens"),
        "bias": Param((D,), ("embed",), init="zeros", **plain),
        "position": Param((item.tokens, D), ("", "embed"), **plain),
    }


def _layer(c: ModelConfig) -> Specs:
    L, D, K, G, C, F, E = c.layers, c.width, c.K, c.G, c.C, c.F, c.experts
    deep = 0.02 / math.sqrt(2 * L)  # what is added to the stream starts smaller in deep models (GPT-2)
    norm = {"init": "ones", "decay": False, "exact": True, "partial": "tokens"}
    zeros = {"init": "zeros", "decay": False, "exact": True}
    tree: Specs = {
        "norm1": Param((L, D), ("layers", "embed"), **norm),
        "qkv": Param((L, D, K, G + 2, C), ("layers", "embed", "heads", "", ""), fsdp=1, matrix=(1, 2)),
        "out": Param((L, K, G * C, D), ("layers", "heads", "", "embed"), fsdp=3, scale=deep, matrix=(1, 3)),
        "norm2": Param((L, D), ("layers", "embed"), **norm),
    }
    if c.norm == "layer":
        tree["norm1_bias"] = Param((L, D), ("layers", "embed"), **(norm | {"init": "zeros"}))
        tree["norm2_bias"] = Param((L, D), ("layers", "embed"), **(norm | {"init": "zeros"}))
    if c.bias or c.qkv_bias:
        tree["qkv_bias"] = Param((L, K, G + 2, C), ("layers", "heads", "", ""), **zeros)
    if c.bias:
        tree["out_bias"] = Param((L, D), ("layers", "embed"), partial="tokens", **zeros)
    if c.qk_norm:
        ones = {"init": "ones", "decay": False, "exact": True, "partial": "heads"}
        tree["q_norm"] = Param((L, C), ("layers", ""), **ones)
        tree["k_norm"] = Param((L, C), ("layers", ""), **ones)
    if E:
        Fe = c.expert_F
        tree["router"] = Param((L, D, E), ("layers", "embed", ""), fsdp=1, partial="tokens", exact=True)
        tree["experts_up"] = Param((L, E, D, c.gates, Fe), ("layers", "experts", "embed", "", "hidden"), fsdp=2, matrix=(2, 3))
        tree["experts_down"] = Param((L, E, Fe, D), ("layers", "experts", "hidden", "embed"), fsdp=3, scale=deep, matrix=(2, 3))
        F, names = c.shared_hidden, ("shared_up", "shared_down")
    else:
        names = ("up", "down")
    if F if not E else c.shared_hidden:
        tree[names[0]] = Param((L, D, c.gates, F), ("layers", "embed", "", "hidden"), fsdp=1, matrix=(1, 2))
        tree[names[1]] = Param((L, F, D), ("layers", "hidden", "embed"), fsdp=2, scale=deep, matrix=(1, 2))
        if c.bias:
            tree[f"{names[0]}_bias"] = Param((L, c.gates, F), ("layers", "", "hidden"), **zeros)
            tree[f"{names[1]}_bias"] = Param((L, D), ("layers", "embed"), partial="tokens", **zeros)
    return {name: replace(param, layered=True) for name, param in tree.items()}


def unstacked(tree: Specs) -> Specs:
    """Return the tree with a list of layers in place of the stack."""
    stack = tree["layers"]
    number = next(iter(stack.values())).shape[0]
    return tree | {"layers": [{name: param.one() for name, param in stack.items()} for _ in range(number)]}


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a tree of parameters by name: "layers/qkv" of a stack, "layers/3/qkv" in a list of layers."""
    if not isinstance(tree, dict | list):
        return {prefix[:-1]: tree}
    items = enumerate(tree) if isinstance(tree, list) else ((key, tree[key]) for key in sorted(tree))
    return {name: leaf for key, value in items for name, leaf in flat(value, f"{prefix}{key}/").items()}


def unflat(leaves: dict[str, Any]) -> dict[str, Any]:
    """Return the tree of leaves by name."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *path, last = name.split("/")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = leaf
    if "0" in tree.get("layers", {}):
        tree["layers"] = [tree["layers"][str(number)] for number in range(len(tree["layers"]))]
    return tree


def tree_map(function: Any, tree: Specs, *rest: Any) -> Any:
    """Apply a function to each `Param` and to what stands in its place in other trees."""
    return jax.tree.map(function, tree, *rest, is_leaf=lambda leaf: isinstance(leaf, Param))


def initial(tree: Specs, seed: int) -> Any:
    """Return the whole parameters, as they are kept; each depends on the seed, its name and its layer only.

    A stack of layers and a list of them begin with the same numbers.
    """

    def make(name: str, param: Param) -> Any:
        if param.init != "normal":
            return jnp.full(param.shape, float(param.init == "ones"), param.dtype)
        parts = name.split("/")
        layer = next((int(part) for part in parts if part.isdecimal()), None)
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32("/".join(p for p in parts if not p.isdecimal()).encode()))

        def draw(number: Any) -> Any:
            shape = param.shape[1:] if param.stacked else param.shape
            key_ = key if number is None else jax.random.fold_in(key, number)
            return (jax.random.normal(key_, shape, jnp.float32) * param.scale).astype(param.dtype)

        return jax.vmap(draw)(jnp.arange(param.shape[0])) if param.stacked else draw(layer)

    return unflat({name: make(name, param) for name, param in flat(tree).items()})


def count(tree: Specs) -> int:
    """Return the number of parameters."""
    return sum(param.size for param in flat(tree).values())


def active(config: ModelConfig) -> int:
    """Return the parameters that work on each token (all, without experts; the input embedding counts once as output)."""
    total = count(specs(config))
    if config.experts:
        share = 1 - config.top_k / config.experts
        total -= round(share * sum(p.size for p in flat(specs(config)).values() if "experts" in p.axes))
    return total
