"""What a program costs each device: counted in its trace, without a device and at any size.

A step is one program for all devices in which every collective is written with the names of its axes (`mesh`), so its trace
says all: shapes are those of one device's pieces, loops say how often they run. `cost` walks it.

    product        2 · results · terms of each sum
    all-reduce     2 (g - 1) / g of the array is sent by each of g devices        ring: g - 1 steps down, g - 1 up
    all-gather     g - 1 times the piece;  reduce-scatter  (g - 1) / g of the array
    all-to-all     (g - 1) / g of the array, pairwise;  permute  all of it, once

Counted is what the trace says: a compiler may remove work that is done twice or send in a wider type (`hlo` counts what is
left). Of branches the one with the most operations counts, so ticks in which a stage of a pipeline idles count as work: with pp a
trace gives the longest way, `plan.estimate` the work. A loop whose length is not known is refused when it holds work.
XLA's own cost analysis counts the body of a loop once, whatever its length.

`memory` goes through the same trace with the arrays that are alive: an estimate of the peak, as no compiler is asked. It takes
element-wise chains as fused, as XLA does, and frees what was donated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from gewu.core.errors import InputError

COLLECTIVES: Final = {
    "psum": "all-reduce",
    "pmax": "all-reduce",
    "pmin": "all-reduce",
    "psum_invariant": "all-reduce",
    "all_gather": "all-gather",
    "all_gather_invariant": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "all_to_all": "all-to-all",
    "ragged_all_to_all": "all-to-all",
    "ppermute": "permute",
}
_NAMES: Final = """
    abs add add_any and broadcast_in_dim ceil clamp convert_element_type copy cos cumsum div eq erf exp exp2 expand_dims floor ge
    gt integer_pow iota is_finite le log log1p logistic lt max min mul name ne neg not optimization_barrier or pad pow rem
    reshape rev round rsqrt select_n sign sin slice split sqrt square squeeze stop_gradient sub tanh transpose xor
"""
_FUSED: Final = frozenset(_NAMES.split())
_REDUCED: Final = frozenset({"reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "argmax"})
_VIEWS: Final = frozenset({"reshape", "squeeze", "expand_dims", "name", "stop_gradient", "transpose", "copy"})


class Traffic(NamedTuple):
    """How often a collective is called, and how many bytes each device sends in it."""

    calls: float = 0.0
    bytes: float = 0.0


Key = tuple[str, tuple[str, ...], int]
"""A kind of collective, the axes it goes over, and how many devices those are."""


@dataclass(frozen=True)
class Cost:
    """What a program costs one device.

    Attributes:
        flops: of products and convolutions.
        bytes: operands and results of these.
        collectives: by kind, axes and size of the group.
        by_op: flops by the name of the operation.
    """

    flops: float = 0.0
    bytes: float = 0.0
    collectives: Mapping[Key, Traffic] = field(default_factory=dict)
    by_op: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: Cost) -> Cost:
        traffic, ops = dict(self.collectives), dict(self.by_op)
        for key, (calls, size) in other.collectives.items():
            old = traffic.get(key, Traffic())
            traffic[key] = Traffic(old.calls + calls, old.bytes + size)
        for name, flops in other.by_op.items():
            ops[name] = ops.get(name, 0.0) + flops
        return Cost(self.flops + other.flops, self.bytes + other.bytes, traffic, ops)

    def times(self, count: float) -> Cost:
        """Return the cost of doing it `count` times."""
        traffic = {key: Traffic(count * calls, count * size) for key, (calls, size) in self.collectives.items()}
        return Cost(count * self.flops, count * self.bytes, traffic, {name: count * x for name, x in self.by_op.items()})

    @property
    def sent(self) -> float:
        """Bytes that a device sends, in all collectives."""
        return sum(traffic.bytes for traffic in self.collectives.values())


def product(flops: float, size: float, name: str) -> Cost:
    """Return the cost of a product that moves `size` bytes."""
    return Cost(float(flops), float(size), {}, {name: float(flops)})


def sent(kind: str, axes: tuple[str, ...], group: int, operand: float, calls: float = 1.0) -> Cost:
    """Return the cost of a collective whose operand has so many bytes on each device."""
    if group < 2:
        return Cost()
    share = {"all-reduce": 2 * (group - 1) / group, "all-gather": group - 1, "permute": 1}.get(kind, (group - 1) / group)
    return Cost(collectives={(kind, axes, group): Traffic(calls, calls * share * operand)})


def cost(program: Any) -> Cost:
    """Return what a traced program costs each device.

    Args:
        program: of `jax.make_jaxpr` or `jax.jit(...).trace(...).jaxpr`; `shard_map` inside may stand on an abstract mesh.

    Raises:
        InputError: a loop that holds products or collectives has no known length.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> cost(jax.make_jaxpr(jnp.dot)(jnp.ones((2, 3)), jnp.ones((3, 4)))).flops
        48.0
    """
    return _cost(_open(program), {})


def _open(program: Any) -> Any:
    return getattr(program, "jaxpr", program)


def _inside(eqn: Any) -> Iterator[Any]:
    """Yield the programs that stand in the parameters of an operation."""
    for name, value in eqn.params.items():
        if name != "update_jaxpr":
            yield from (_open(x) for x in (value if isinstance(value, tuple | list) else [value]) if hasattr(_open(x), "eqns"))


def size(var: Any) -> float:
    """Return the bytes of a variable of a program."""
    aval = var.aval
    if not hasattr(aval, "dtype"):
        return 0.0
    return float(math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 4))


def _cost(jaxpr: Any, sizes: Mapping[str, int]) -> Cost:
    total = Cost()
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "shard_map":
            total += _cost(_open(params["jaxpr"]), dict(params["mesh"].shape))
        elif name == "scan":
            total += _cost(_open(params["jaxpr"]), sizes).times(params["length"])
        elif name == "cond":
            total += max((_cost(_open(branch), sizes) for branch in params["branches"]), key=lambda c: (c.flops, c.sent))
        elif name == "while":
            body = _cost(_open(params["body_jaxpr"]), sizes) + _cost(_open(params["cond_jaxpr"]), sizes)
            if body.flops or body.collectives:
                message = "a loop of unknown length holds products or collectives; write it as a scan"
                raise InputError(message, key="while", value=f"{body.flops:.3g} flops in a round")
        elif name in COLLECTIVES:
            names = params.get("axes", params.get("axis_name"))
            names = names if isinstance(names, tuple | list) else (names,)
            axes = tuple(axis for axis in sizes if axis in names)
            operand = sum(size(var) for var in eqn.invars[: 1 if name == "ragged_all_to_all" else None])
            total += sent(COLLECTIVES[name], axes, math.prod(sizes[axis] for axis in axes), operand)
        elif flops := _flops(eqn):
            total += product(flops, sum(map(size, (*eqn.invars, *eqn.outvars))), name)
        else:
            for program in _inside(eqn):
                total += _cost(program, sizes)
    return total


def _flops(eqn: Any) -> float:
    """Return the operations of a product, 0 of anything else."""
    name, params = eqn.primitive.name, eqn.params
    if name not in ("dot_general", "ragged_dot", "ragged_dot_general", "conv_general_dilated", "ffi_call"):
        return 0.0
    a, b, out = (eqn.invars[0].aval.shape, eqn.invars[1].aval.shape if len(eqn.invars) > 1 else (), eqn.outvars[0].aval.shape)
    if name == "dot_general":
        return 2.0 * math.prod(out) * math.prod(a[axis] for axis in params["dimension_numbers"][0][0])
    if name == "conv_general_dilated":
        return 2.0 * math.prod(out) * math.prod(b) / b[params["dimension_numbers"].rhs_spec[0]]
    if name == "ffi_call":
        return called(str(params.get("target_name", "")), a, b, out)
    if name == "ragged_dot":  # each row meets one group
        return 2.0 * math.prod(out) * a[-1]
    ragged = params["ragged_dot_dimension_numbers"]
    contracting = ragged.dot_dimension_numbers[0][0]
    if set(ragged.lhs_ragged_dimensions) & set(contracting):  # (groups, k, n) from rows dealt to groups
        return 2.0 * math.prod(out[1:]) * math.prod(a[axis] for axis in contracting)
    return 2.0 * math.prod(out) * math.prod(a[axis] for axis in contracting)


def called(target: str, a: Sequence[int], b: Sequence[int], out: Sequence[int]) -> float:
    """Return the operations of a call into machine code: of the products of `gewu.ops`, whichever operands are turned."""
    if "product" not in target or min(len(a), len(b), len(out)) < 2 or not math.prod(out):
        return 0.0
    batch = math.prod(out[:-2])  # (m k)(k n)(m n) is the square of m k n
    return 2.0 * batch * math.sqrt(math.prod(a) * math.prod(b) * math.prod(out) / batch**3)


def memory(program: Any, donated: bool = True) -> float:
    """Estimate the most bytes that are alive on a device while the program runs, its arguments included.

    Args:
        program: as for `cost`.
        donated: arguments are freed after their last use.
    """
    jaxpr = _open(program)
    while len(jaxpr.eqns) == 1 and jaxpr.eqns[0].primitive.name in ("jit", "pjit", "shard_map"):
        jaxpr = _open(jaxpr.eqns[0].params["jaxpr"])
    inputs = sum(map(size, jaxpr.invars))
    return inputs + _alive(jaxpr, set(jaxpr.invars) if donated else set())


def _fusible(eqn: Any) -> bool:
    if eqn.primitive.name in ("jit", "pjit"):
        return all(_fusible(inner) for inner in _open(eqn.params["jaxpr"]).eqns)
    return eqn.primitive.name in _FUSED


def _roots(jaxpr: Any) -> tuple[dict[Any, set[Any]], dict[Any, int]]:
    """Return on which arrays in memory each variable stands (itself, or those from which it is made where it is used), and the
    last operation that needs each array.
    """
    users: dict[Any, list[Any]] = {}
    for eqn in jaxpr.eqns:
        for var in eqn.invars:
            if hasattr(var, "count"):
                users.setdefault(var, []).append(eqn)
    results = {var for var in jaxpr.outvars if hasattr(var, "count")}
    roots: dict[Any, set[Any]] = {var: {var} for var in (*jaxpr.invars, *jaxpr.constvars)}
    last: dict[Any, int] = {}
    for number, eqn in enumerate(jaxpr.eqns):
        below: set[Any] = set().union(*(roots[var] for var in eqn.invars if hasattr(var, "count")))
        last |= dict.fromkeys(below, number)
        view = eqn.primitive.name in _VIEWS
        for var in eqn.outvars:
            inside = all(_fusible(user) or user.primitive.name in _REDUCED for user in users.get(var, []))
            virtual = var not in results and (view or (_fusible(eqn) and inside))
            roots[var] = below if virtual else {var}
    last |= {root: len(jaxpr.eqns) for var in results for root in roots.get(var, ())}
    return roots, last


def _alive(jaxpr: Any, free: set[Any]) -> float:
    """Return the most bytes alive beside the arguments, results included; arguments in `free` end with their last use."""
    roots, last = _roots(jaxpr)
    ends: dict[int, float] = {}
    made = {var for eqn in jaxpr.eqns for var in eqn.outvars if roots[var] == {var}}
    for var in made | free:
        at = last.get(var, -1 if var in free else len(jaxpr.eqns))
        ends[at] = ends.get(at, 0.0) + size(var)
    now = peak = -ends.get(-1, 0.0)
    for number, eqn in enumerate(jaxpr.eqns):
        new = sum(size(var) for var in eqn.outvars if var in made)
        inner = max((_alive(program, set()) for program in _inside(eqn)), default=0.0)
        if eqn.primitive.name == "scan":
            carried = sum(size(var) for var in eqn.outvars[: eqn.params["num_carry"]])
            peak = max(peak, now + new + max(inner - carried, 0.0))
        elif not _fusible(eqn):
            peak = max(peak, now + max(new, inner))
        now += new - ends.get(number, 0.0)
        peak = max(peak, now)
    return float(peak)
