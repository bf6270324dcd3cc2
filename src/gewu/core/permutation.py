"""Shuffling without a table, and what goes with it: finding intervals, and taking turns by quota.  On integers alone.

A permutation of [0, n) is a Feistel network on the pairs (l, r) of [0, a) × [0, 2^k), x = 2^k l + r, with 2^k ≈ √n and
a = ceil(n / 2^k), so that the domain a 2^k exceeds n by less than 2^k.  Rounds i = 0 ... 9, in turn

    r <- r xor F_i(l)            F_i(x) = the top k bits of h(x + key + i G)
    l <- l + F_i(r) mod a        F_i(x) = floor(a h(x + key + i G) / 2^64)

with h the finaliser of SplitMix64 and G its increment.  Each round can be undone whatever F is, so the whole is a bijection of
the domain; an image outside [0, n) is mapped again until it falls inside (cycle walking), which leaves a bijection of [0, n) and
happens to one index in √n.  Both sides are at least 8 long, since smaller ones mix badly; below n = 64 that means more walking.

Why ten rounds: docs/data-order.md.  The key has 64 bits and nothing here resists an adversary: a shuffle, not a cipher.

References: Black & Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002, doi:10.1007/3-540-45760-7_9 (cycle walking,
Feistel on Z_a × Z_b); Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014,
doi:10.1145/2660193.2660195 (h and G).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gewu.core.device import load_numba

numba = load_numba()

Indices = NDArray[np.uint64]
Places = NDArray[np.int64]

ROUNDS, _NEAR = 10, 64
_G, _C1, _C2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_1, _3, _27, _30, _31, _32, _64, _LOW = (np.uint64(bits) for bits in (1, 3, 27, 30, 31, 32, 64, 2**32 - 1))

_inline = numba.njit(inline="always", error_model="numpy")
_kernel = numba.njit(cache=True, nogil=True, error_model="numpy")


@_inline
def _mix(z: Any) -> Any:
    z = (z ^ (z >> _30)) * _C1
    z = (z ^ (z >> _27)) * _C2
    return z ^ (z >> _31)


@_inline
def _below(z: Any, a: Any) -> Any:
    """Scale 64 bits to [0, a): floor(a z / 2^64) for a <= 2^32."""
    return ((z >> _32) * a + (((z & _LOW) * a) >> _32)) >> _32


@_inline
def _forward(x: Any, a: Any, k: Any, key: Any) -> Any:
    left, right = x >> k, x & ((_1 << k) - _1)
    for _ in range(ROUNDS // 2):
        right ^= _mix(left + key) >> (_64 - k)
        left += _below(_mix(right + key + _G), a)
        left = min(left, left - a)  # modulo a: the other of the two is too large, or has wrapped
        key += _G + _G
    return left << k | right


@_inline
def _backward(x: Any, a: Any, k: Any, key: Any) -> Any:
    left, right = x >> k, x & ((_1 << k) - _1)
    key += np.uint64(ROUNDS) * _G
    for _ in range(ROUNDS // 2):
        key -= _G + _G
        left -= _below(_mix(right + key + _G), a)
        left = min(left, left + a)
        right ^= _mix(left + key) >> (_64 - k)
    return left << k | right


@_inline
def _sides(n: Any) -> Any:
    k = _3
    while (n - _1) >> k >> k > _1:
        k += _1
    return max(_1 << _3, (n - _1 >> k) + _1), k


@_inline
def _find(cumulative: Any, x: Any, low: Any) -> Any:
    """Return the last j with cumulative[j] <= x: from a guess on by steps that double, then by halves.

    The guess is `low`, what was found before, if the answer is near it, else by proportion; that is made in floating point, but
    the answer does not depend on it.
    """
    last, step = cumulative.size - 1, 1
    if x < cumulative[max(0, low - _NEAR)] or x >= cumulative[min(last, low + _NEAR)]:
        low = min(np.int64(np.float64(x) / np.float64(cumulative[last]) * np.float64(last)), last - 1)
    while cumulative[low] > x:
        low, step = max(0, low - step), 2 * step
    high = min(last, low + step)
    while cumulative[high] <= x:
        high, step = min(last, high + step), 2 * step
    while high - low > 1:
        middle = (low + high) >> 1
        low, high = (middle, high) if cumulative[middle] <= x else (low, middle)
    return low


@_kernel
def find(cumulative: Indices, indices: Indices) -> tuple[Places, Places]:
    """Return the interval j of every index, cumulative[j] <= index < cumulative[j + 1], and its place in the interval."""
    interval = np.zeros(indices.size, np.int64)
    for i in range(indices.size):
        interval[i] = _find(cumulative, indices[i], interval[max(0, i - 1)])
    return interval, (indices - cumulative[interval]).astype(np.int64)


@_kernel
def shuffle(values: Indices, bound: Indices, key: np.uint64, back: bool) -> None:
    """Replace every value by its image in its window, bound[w] <= value < bound[w + 1]; `back` undoes that."""
    w = i = 0
    while i < values.size:
        w, stop = _find(bound, values[i], w), i
        base, n, mine = bound[w], bound[w + 1] - bound[w], _mix(key + _G * np.uint64(w))
        a, k = _sides(n)
        while stop < values.size and values[stop] - base < n:  # below the window the difference wraps
            values[stop] -= base
            stop += 1
        run = values[i:stop]
        for j in range(run.size):  # no branch but one that does not change: this becomes vector instructions
            run[j] = _backward(run[j], a, k, mine) if back else _forward(run[j], a, k, mine)
        for j in range(run.size):
            while run[j] >= n:
                run[j] = _backward(run[j], a, k, mine) if back else _forward(run[j], a, k, mine)
            run[j] += base
        i = stop


@_kernel
def schedule(quota: Places, key: np.uint64) -> tuple[Places, Places]:
    """Return the source of each of M = sum(quota) slots, source s quota[s] times, and which of its draws stands there.

    Draw t of a source may stand in slots floor(t M / quota) ... ceil((t + 1) M / quota) - 1, so that every prefix holds its share
    to less than one.  The earliest end goes first, which misses none since the shares add up to 1 (Baruah et al., "Proportionate
    progress", Algorithmica 15 (1996) 600, for one resource); `key` decides between equal ends.
    """
    drawn, ids = np.zeros_like(quota), np.arange(quota.size).astype(np.uint64)
    source, turn = np.empty(quota.sum(), np.int64), np.empty(quota.sum(), np.int64)
    for slot in range(source.size):
        end = ((drawn + 1) * source.size - 1) // quota << 31
        lot = (_mix(key + np.uint64(slot) + _G * (ids + _1)) >> (_32 + _1)).astype(np.int64)
        s = np.argmin(np.where(drawn * source.size // quota <= slot, end + lot, 2**62))
        source[slot], turn[slot] = s, drawn[s]
        drawn[s] += 1
    return source, turn
