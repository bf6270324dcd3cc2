"""Sums that are rescaled as they grow: softmax in one pass over the scores.

A kernel that keeps the largest score m so far multiplies what it has summed whenever a larger one turns up:

    a' = a exp(m - m') + exp(s - m') v.

Taken apart, with the exponents of a product added up, each maximum but the last cancels: a is the sum of exp(s - m) v over all
scores, m the last maximum.  A node has the *scale* m when it is a sum of terms exp(s - m) v; only exact cancellation counts,
of equal nodes.  Whether m is a maximum is no matter here, since the identity holds for any m.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gewu.ops.algebra import NOT_A_NODE, Arena, Ids
from gewu.ops.ir import FLOATS

ONE = -2  # in place of a node: a term that is exp(s - m) alone


class Rescaling:
    """Finds sums that are rescaled and takes their terms apart.

    Scales and exponents are keys: twice the node, plus one where the base is 2.

    Attributes:
        scale: of every node, NOT_A_NODE where it has none.
        rescaled: whether one scale was changed to another below a node.
    """

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        count = len(arena.signature)
        self.scale, self.rescaled = np.full(count, NOT_A_NODE), np.zeros(count, np.bool_)
        self._plus = np.full(count, NOT_A_NODE)
        self._known: dict[tuple[int, int, str], int] = {}
        minus = self._exponents()
        self.active = bool(len(minus)) and bool(np.isin(self._plus[self._plus >= 0], minus).any())
        if self.active:
            for start, stop in arena.ranges:
                self._follow(start, stop)

    def _exponents(self) -> Ids:
        """Fill in what each exp(a - b) adds to and takes from an exponent; return the latter."""
        arena = self.arena
        base = np.array(
            [("exp", "ex2").index(s[0]) if s[0] in ("exp", "ex2") else NOT_A_NODE for s in arena.signatures], np.int64
        )
        nodes = np.flatnonzero((base >= 0)[arena.signature])
        inner = arena.args[nodes, 0]
        a, b = arena.args[inner, 0], arena.args[inner, 1]
        negated, less = self._is("neg", b), self._is("sub", inner)
        known = less | (self._is("add", inner) & negated)
        nodes, a, b = nodes[known], a[known], np.where(less, b, arena.args[b, 0])[known]
        key = base[arena.signature[nodes]]
        self._plus[nodes], self.scale[nodes] = 2 * a + key, 2 * b + key
        return self.scale[nodes]

    def _is(self, op: str, nodes: Ids) -> NDArray[np.bool_]:
        return np.array([s[0] == op and s[1] in FLOATS for s in self.arena.signatures])[self.arena.signature[nodes]] & (
            nodes >= 0
        )

    def _follow(self, start: int, stop: int) -> None:
        op, type_, _ = self.arena.signatures[self.arena.signature[start]]
        if op not in ("mul", "add", "sub", "neg") or type_ not in FLOATS:
            return
        scale, zero = self.scale, self.arena.zero
        a, b = self.arena.args[start:stop, 0], self.arena.args[start:stop, 1]
        if op == "mul":
            for factor, other in ((a, b), (b, a)):
                power = self._plus[factor] >= 0
                faded = power & (scale[other] == self._plus[factor])
                found = faded | (power & (scale[other] < 0))
                scale[start:stop] = np.where(found, scale[factor], scale[start:stop])
                self.rescaled[start:stop] |= faded
            return
        if op == "neg":
            b = a
        first, second = np.where(zero[a], scale[b], scale[a]), np.where(zero[b], scale[a], scale[b])
        scale[start:stop] = np.where(first == second, first, NOT_A_NODE)
        self.rescaled[start:stop] = (scale[start:stop] >= 0) & (self.rescaled[a] | self.rescaled[b])

    def start(self, item: Ids) -> Ids:
        """Return the scales of the terms of sums where some of them are rescaled, else nowhere any."""
        if not self.active or item.max(initial=0) >= len(self.scale) or not self.rescaled[item].any():
            return np.full(len(item), NOT_A_NODE)
        return self.scale[item]

    def peel(self, item: Ids, plus: Ids) -> tuple[NDArray[np.bool_], Ids, Ids]:
        """Take a factor exp(a - b) from terms whose exponent so far is `plus` - ...: where b cancels `plus`.

        Returns:
            Which have one, what is left of them (ONE: nothing), and their exponent then.
        """
        arena = self.arena
        has = (plus >= 0) & (self.scale[item] == plus)
        alone = has & (self._plus[item] >= 0)
        product = has & self._is("mul", item)
        rest, exponent = np.where(alone, ONE, item), np.where(alone, self._plus[item], plus)
        for factor, other in ((0, 1), (1, 0)):
            power = arena.args[item, factor]
            hit = product & (self._plus[power] >= 0) & (self.scale[power] == plus)
            rest, exponent = np.where(hit, arena.args[item, other], rest), np.where(hit, self._plus[power], exponent)
            product &= ~hit
        return rest != item, rest, exponent

    def build(self, item: Ids, plus: Ids, minus: Ids, type_: str) -> Ids:
        """Return terms exp(plus - minus) item."""
        pairs, place = np.unique(np.stack([plus, minus], axis=1), axis=0, return_inverse=True)
        powers = self._powers(pairs, type_)[np.reshape(place, -1)]
        made = powers.copy()
        some = np.flatnonzero(item != ONE)
        if len(some):
            unique, place = np.unique(np.stack([powers[some], item[some]], axis=1), axis=0, return_inverse=True)
            made[some] = self.arena.append("mul", type_, [unique[:, 0], unique[:, 1]])[np.reshape(place, -1)]
        return made

    def _powers(self, pairs: Ids, type_: str) -> Ids:
        keys = [(*pair, type_) for pair in pairs.tolist()]
        fresh = np.array([key not in self._known for key in keys])
        for base, op in enumerate(("exp", "ex2")):
            chosen = np.flatnonzero(fresh & (pairs[:, 0] % 2 == base))
            if len(chosen):
                exponent = self.arena.append("sub", type_, [pairs[chosen, 0] // 2, pairs[chosen, 1] // 2])
                for k, node in zip(chosen.tolist(), self.arena.append(op, type_, [exponent]).tolist(), strict=True):
                    self._known[keys[k]] = node
        return np.array([self._known[key] for key in keys], np.int64)
