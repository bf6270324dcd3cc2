"""Functions that compilers spell out, recognised by their values.

`expf` in a binary is a page of clamps, a magic rounding constant, a shift into the exponent; `tanhf`, `logf`, a division and a
square root with their slow paths are worse, and differ from compiler to compiler.  Instead of patterns, values: a piece of a
trace that depends on one node u (every way from it to the leaves passes u) is computed bit by bit for sample values of u and
compared with a table of functions; if it agrees to TOLERANCE where both are finite, it is that function.  Quotients and powers
are found in the same way with two nodes.

Only pieces that hold something which is no algebra (bits, directed rounding, selection, magic constants) are looked at.  What
is not recognised stays as it is, operation by operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import special

from gewu.ops.algebra import Arena, hashed, mix
from gewu.ops.ir import FLOATS
from gewu.ops.scalar import apply

TOLERANCE: Final = 3e-5
MOST_CLASSES: Final = 200
MOST_NODES: Final = 400
DEEP: Final = 24
"""Levels of plain algebra where fewer do not lead to an argument: the polynomial that stands for tanh near zero."""
LEVELS: Final = 4
Bits = NDArray[np.uint64]

_TRICKS: Final = frozenset(
    {"and", "or", "xor", "shl", "shr", "bfe", "bfi", "select", "copysign", "prmt", "not", "pack", "unpack"}
)
_LEAVES: Final = frozenset({"load", "scalar", "gather"})
_TRANSPARENT: Final = frozenset({"neg", "abs", "setp", "rcp", "rsqrt", "mul", "fma", "add", "ex2", "lg2", "max", "min"})
_ROUNDINGS: Final = frozenset({"rm", "rp", "rz"})

UNARY: Final[dict[str, Callable[[Any], Any]]] = {
    "exp": np.exp,
    "exp_of_minus": lambda x: np.exp(-x),
    "tanh": np.tanh,
    "sqrt": np.sqrt,
    "rcp": lambda x: 1.0 / x,
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "log": np.log,
    "sigmoid": special.expit,
    "sigmoid_of_minus": lambda x: special.expit(-x),
    "erf": special.erf,
    "sin": np.sin,
    "cos": np.cos,
    "expm1": np.expm1,
    "log1p": np.log1p,
    "ex2": np.exp2,
    "lg2": np.log2,
    "erfc": special.erfc,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "abs": np.abs,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.round,
    "trunc": np.trunc,
}
BINARY: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "div": np.divide,
    "pow": np.power,
    "copysign": lambda s, x: np.copysign(x, s),
}


def recognise(arena: Arena) -> None:
    """Replace pieces of a trace that compute known functions by these functions, in place."""
    batches = arena.batches()
    special_ = _suspicious(arena, batches)
    if not special_.any():
        return
    form = _forms(arena, special_, batches)
    own = np.array([_is_trick(*s) for s in arena.signatures])[arena.signature]
    floating = np.array([s[1] in ("f32", "f64", "b32", "b64") and s[0] not in ("const", *_LEAVES) for s in arena.signatures])
    wanted = np.flatnonzero(special_ & floating[arena.signature])
    _, first, label = np.unique(form[wanted], return_index=True, return_inverse=True)
    order = np.argsort(label, kind="stable")
    classes = np.split(wanted[order], np.cumsum(np.bincount(label))[:-1])
    search, tried = _Search(arena, special_), 0
    for number in np.argsort(first).tolist():
        nodes = classes[number]
        special_[nodes] = own[nodes] | (special_[arena.args[nodes]] & (arena.args[nodes] >= 0)).any(axis=1)
        if not special_[nodes].any():  # all that was no algebra below has been told
            continue
        arena.check_time()
        tried += 1
        if tried > MOST_CLASSES:
            break
        found = search.function_at(int(wanted[first[number]]))
        if found is not None:
            name, type_, paths = found
            _replace(arena, special_, nodes, name, type_, paths)


def _replace(arena: Arena, special_: Any, nodes: NDArray[np.int64], name: str, type_: str, paths: list[list[int]]) -> None:
    columns = []
    for path in paths:
        at = nodes
        for step in path:
            at = arena.args[at, step]
        columns.append(at)
    arena.signature[nodes] = arena.number(name, type_)
    arena.args[nodes] = -1
    for k, column in enumerate(columns):
        arena.args[nodes, k] = column
    special_[nodes] = False


def _suspicious(arena: Arena, batches: list[tuple[int, int]]) -> NDArray[np.bool_]:
    """Return which nodes are, or depend on, something that is no algebra of floats."""
    own = np.array([_is_trick(*signature) for signature in arena.signatures])[arena.signature]
    found = own.copy()
    for start, stop in batches:
        if arena.signatures[arena.signature[start]][0] in _LEAVES:
            continue
        for k in range(4):
            column = arena.args[start:stop, k]
            if column[0] >= 0:
                found[start:stop] |= found[column]
    return found


def _is_trick(op: str, type_: str, mods: tuple[str, ...]) -> bool:
    if type_ == "pred" or op == "setp":
        return False
    return op in _TRICKS or bool(_ROUNDINGS & set(mods) and type_ in FLOATS and op != "cvt")


def _forms(arena: Arena, special_: NDArray[np.bool_], batches: list[tuple[int, int]]) -> Bits:
    """Return a number per node that is equal for equal trees whose array elements may differ.

    Of what is plain algebra only the top LEVELS count: in which order a maximum was taken below an `exp` is no matter here.
    """
    words = np.array([int(mix(*signature) * 2**52) for signature in arena.signatures], np.uint64)
    constant = np.array([s[0] == "const" for s in arena.signatures])[arena.signature]
    values = np.where(constant, hashed(arena.data.view(np.uint64)), np.uint64(1))
    plain = _right_below(arena, special_ & ~constant, special_ | constant)
    order = np.argsort(arena.signature[plain], kind="stable")
    alike = np.split(plain[order], np.flatnonzero(np.diff(arena.signature[plain[order]])) + 1)

    def grow(nodes: Any) -> Bits:
        total = np.full(len(nodes), words[arena.signature[nodes[0]]])
        for k, column in enumerate(arena.args[nodes].T):
            if column[0] >= 0:
                total += hashed(values[column] + np.uint64(k))
        return hashed(total)

    for _ in range(LEVELS if len(plain) else 0):
        values[plain[order]] = np.concatenate([grow(nodes) for nodes in alike])
    for start, stop in batches:
        nodes = start + np.flatnonzero(special_[start:stop])
        if len(nodes):
            values[nodes] = grow(nodes)
    return values


def _right_below(arena: Arena, above: NDArray[np.bool_], others: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the nodes up to LEVELS below some, without others."""
    seen = others.copy()
    frontier = np.flatnonzero(above)
    for _ in range(LEVELS):
        hit = np.zeros(len(seen) + 1, np.bool_)  # the last one: no argument
        hit[arena.args[frontier]] = True
        frontier = np.flatnonzero(hit[:-1] & ~seen)
        seen[frontier] = True
    return np.flatnonzero(seen & ~others)


class _Search:
    """Look for the function that a node computes."""

    def __init__(self, arena: Arena, special_: NDArray[np.bool_]) -> None:
        self.arena, self.special = arena, special_
        size = np.exp(np.linspace(np.log(1e-3), np.log(80.0), 40))
        self.samples = {
            "f32": np.concatenate([size, -size, np.linspace(-9.5, 9.5, 39) + 0.013]).astype(np.float32),
            "f64": np.concatenate([size, -size, np.linspace(-9.5, 9.5, 39) + 0.013]),
        }
        rng = np.random.default_rng(5)
        self.pairs = np.exp(rng.uniform(-3, 3, (2, 64))) * np.where(rng.random((2, 64)) < 0.3, -1.0, 1.0)

    def function_at(self, top: int) -> tuple[str, str, list[list[int]]] | None:
        """Return name, type and the way to the arguments of the function that a node computes, if it is one that is known."""
        found = self._within(top, LEVELS)
        return found or self._within(top, DEEP)

    def _within(self, top: int, levels: int) -> tuple[str, str, list[list[int]]] | None:
        """Look for a function whose argument lies at most so many levels of plain algebra below its other parts."""
        cone = self._cone(top, levels)
        if cone is None:
            return None
        dominators = self._dominators(cone)
        chain = sorted(dominators[top] - {top}, reverse=True)
        type_ = self._type_of(cone)
        for inner in chain[:6]:
            region = self._region(top, {inner}, cone)
            if region is None or not any(self._own(node) for node in region):
                continue
            name = self._unary(top, inner, region, type_)
            if name:
                return name, type_, [self._path(top, inner, region)]
        if len(chain) == 0:
            return self._two_arguments(top, cone, type_)
        return None

    def _own(self, node: int) -> bool:
        return _is_trick(*self.arena.signatures[self.arena.signature[node]])

    def _children(self, node: int) -> list[int]:
        return [int(a) for a in self.arena.args[node] if a >= 0]

    def _op(self, node: int) -> str:
        return self.arena.signatures[self.arena.signature[node]][0]

    def _cone(self, top: int, levels: int) -> list[int] | None:
        """Return the nodes below, in order, without what lies below nodes that are plain algebra; None if there are too many."""
        seen, stack = {top}, [top]
        while stack:
            node = stack.pop()
            if self._op(node) in _LEAVES or (node != top and not self.special[node]):
                continue
            for child in self._children(node):
                if child not in seen:
                    seen.add(child)
                    stack.append(child)
            if len(seen) > MOST_NODES:
                return None
        return sorted(self._closed(seen, levels))

    def _closed(self, seen: set[int], levels: int) -> set[int]:
        """Add a few levels of algebra below, so that |x| and x*x are seen to depend on x."""
        frontier = [n for n in seen if not self.special[n]]
        for _ in range(levels):
            below = {c for n in frontier if self._op(n) not in _LEAVES for c in self._children(n)} - seen
            if len(seen) + len(below) > MOST_NODES:
                break
            seen |= below
            frontier = list(below)
        return seen

    def _dominators(self, cone: list[int]) -> dict[int, frozenset[int]]:
        inside, found = set(cone), {}
        for node in cone:
            children = [c for c in self._children(node) if self._op(c) != "const"]
            if self._op(node) in _LEAVES or not children or not inside.issuperset(children):
                found[node] = frozenset({node})
            else:
                found[node] = frozenset.intersection(*(found[c] for c in children)) | {node}
        return found

    def _type_of(self, cone: list[int]) -> str:
        types = {self.arena.signatures[self.arena.signature[n]][1] for n in cone}
        return "f64" if "f64" in types else "f32"

    def _region(self, top: int, stops: set[int], cone: list[int]) -> list[int] | None:
        """Return the nodes between `top` and `stops`, in order; None if something else lies below."""
        seen, stack = {top}, [top]
        inside = set(cone)
        while stack:
            node = stack.pop()
            if node in stops or self._op(node) == "const":
                continue
            if node not in inside or self._op(node) in _LEAVES or not self._children(node):
                return None
            for child in self._children(node):
                if child not in seen:
                    seen.add(child)
                    stack.append(child)
        return sorted(seen)

    def _compute(self, region: list[int], given: dict[int, Bits]) -> Bits:
        values: dict[int, Bits] = dict(given)
        count = len(next(iter(given.values())))
        for node in region:
            if node in values:
                continue
            op, type_, mods = self.arena.signatures[self.arena.signature[node]]
            if op == "const":
                values[node] = np.full(count, np.uint64(int(self.arena.data[node]) & (2**64 - 1)))
            else:
                values[node] = compute(op, type_, mods, [values[c] for c in self._children(node)])
        return values[region[-1]]

    def _unary(self, top: int, inner: int, region: list[int], type_: str) -> str | None:
        x = self.samples[type_]
        with np.errstate(all="ignore"):
            y = to_float(self._compute(region, {inner: to_bits(x)}), type_)
            wide = x.astype(np.float64)
            for name, function in UNARY.items():
                if self._agree(y, function(wide), type_):
                    return name
        return None

    def _agree(self, y: NDArray[Any], expected: NDArray[Any], type_: str) -> bool:
        limit = 1e37 if type_ == "f32" else 1e300
        tolerance = TOLERANCE if type_ == "f32" else 1e-9
        good = np.isfinite(expected) & (np.abs(expected) < limit) & (np.abs(expected) > 1.0 / limit)
        if good.sum() < 20:
            return False
        wrong = np.abs(y[good] - expected[good]) > tolerance * np.abs(expected[good])
        return not wrong.any() and not np.isnan(y[good]).any()

    def _two_arguments(self, top: int, cone: list[int], type_: str) -> tuple[str, str, list[list[int]]] | None:
        frontier = self._frontier(top)
        if len(frontier) != 2:
            return None
        region = self._region(top, set(frontier), cone)
        if region is None:
            return None
        for a, b in (frontier, frontier[::-1]):
            kind = np.float32 if type_ == "f32" else np.float64
            x, y = self.pairs.astype(kind)
            with np.errstate(all="ignore"):
                z = to_float(self._compute(region, {a: to_bits(x), b: to_bits(y)}), type_)
                for name, function in BINARY.items():
                    if self._agree(z, function(x.astype(np.float64), y.astype(np.float64)), type_):
                        return name, type_, [self._path(top, a, region), self._path(top, b, region)]
        return None

    def _frontier(self, top: int) -> list[int]:
        """Return the plain nodes right below a suspicious piece, seen through sign changes."""
        found, seen, stack = set(), {top}, [top]
        while stack:
            node = stack.pop()
            for child in self._children(node):
                if child in seen or self._op(child) == "const":
                    continue
                seen.add(child)
                op = self._op(child)
                if not self.special[child] and (op in _LEAVES or op not in _TRANSPARENT):
                    found.add(child)
                else:
                    stack.append(child)
            if len(found) > 2 or len(seen) > MOST_NODES:
                return []
        return sorted(found)

    def _path(self, top: int, inner: int, region: list[int]) -> list[int]:
        """Return the argument positions that lead from one node to another below it."""
        inside = set(region)
        stack: list[tuple[int, list[int]]] = [(top, [])]
        seen = {top}
        while stack:
            node, path = stack.pop()
            if node == inner:
                return path
            for k in range(4):
                child = int(self.arena.args[node, k])
                if child in inside and child not in seen:
                    seen.add(child)
                    stack.append((child, [*path, k]))
        raise AssertionError("a node of the region cannot be reached")


def to_bits(x: NDArray[Any]) -> Bits:
    """Return floats as raw bits in 64-bit words."""
    return x.view(f"u{x.dtype.itemsize}").astype(np.uint64)


def to_float(bits: Bits, type_: str) -> NDArray[np.float64]:
    """Return raw bits as numbers."""
    return (
        bits.astype(np.uint32).view(np.float32).astype(np.float64) if type_ == "f32" else bits.astype(np.uint64).view(np.float64)
    )


def compute(op: str, type_: str, mods: tuple[str, ...], args: list[Bits]) -> Bits:
    """Return an operation on bits: one of `ir`, or a function put in by `recognise`."""
    if op in UNARY and op not in ("tanh", "sqrt", "rcp", "rsqrt", "sin", "cos", "ex2", "lg2", "abs"):
        x = to_float(args[0], type_)
        return to_bits(UNARY[op](x).astype(np.float32 if type_ == "f32" else np.float64))
    if op == "pow":
        return to_bits(
            np.power(to_float(args[0], type_), to_float(args[1], type_)).astype(np.float32 if type_ == "f32" else np.float64)
        )
    return apply(op, type_, mods, args)
