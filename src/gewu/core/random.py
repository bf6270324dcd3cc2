"""Random numbers that depend only on (seed, stream, index): Philox4x32-10.

A counter-based generator is a bijection of a 128-bit counter under a 64-bit key: there is no state to carry, so item i of step t
draws the same number whichever thread, rank or device computes it, and after a restart.  Philox multiplies two of four 32-bit
words by constants, swaps high and low halves and xors a key that grows by a Weyl sequence, ten times.

    key     = (seed low, seed high)                                   seed   in [0, 2^64)
    counter = (index low, index high, stream low, stream high)        index  in [0, 2^63), stream in [0, 2^64)
    output  = four words w0..w3 of 32 bits

    uniform  u0 = floor((w0 + 2^32 w1) / 2^11) 2^-53,  u1 likewise from w2, w3:   53 bits, in [0, 1)
    normal   r = sqrt(-2 ln(1 - u0)),  (r cos 2 pi u1, r sin 2 pi u1)             Box-Muller, |z| <= 8.6

`philox_*` are scalar device functions for kernel bodies; `uniform`, `uniform_pair` and `normal_pair` are their NumPy twins over
arrays of indices.  Words and uniforms are the same bits everywhere.  Normals go through ln, cos and sin of the device's library
and agree to a relative error of 8 * 2^-52 (ln, cos, sin to 4 units in the last place at worst, plus roundings); on one device
they are reproducible.

Choose one stream per use (velocities, thermostat, step number ...), never one index for two draws.

Reference: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC11 (2011), doi:10.1145/2063384.2063405.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gewu.core.device import device
from gewu.core.errors import InputError

Words = tuple[np.uint64, np.uint64, np.uint64, np.uint64]

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _32, _11 = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(11)
_ULP = 2.0**-53
_WORD = 2.0**-32
_TWO_PI = 2.0 * math.pi


@device
def philox_words(seed: int, stream: int, index: int) -> Words:
    """Return the four 32-bit words, as uint64, of (seed, stream, index)."""
    c0, c1 = np.uint64(index) & _LOW, np.uint64(index) >> _32
    c2, c3 = np.uint64(stream) & _LOW, np.uint64(stream) >> _32
    k0, k1 = np.uint64(seed) & _LOW, np.uint64(seed) >> _32
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ k0, p1 & _LOW, (p0 >> _32) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@device
def philox_uniform_pair(seed: int, stream: int, index: int) -> tuple[float, float]:
    """Return two independent uniforms in [0, 1) of (seed, stream, index)."""
    w0, w1, w2, w3 = philox_words(seed, stream, index)
    return ((w1 << _32 | w0) >> _11) * _ULP, ((w3 << _32 | w2) >> _11) * _ULP


@device
def philox_uniform(seed: int, stream: int, index: int) -> float:
    """Return one uniform in [0, 1), the first of `philox_uniform_pair`."""
    u0, _ = philox_uniform_pair(seed, stream, index)
    return u0


@device
def philox_normal_pair(seed: int, stream: int, index: int) -> tuple[float, float]:
    """Return two independent standard normals of (seed, stream, index)."""
    u0, u1 = philox_uniform_pair(seed, stream, index)
    radius = math.sqrt(-2.0 * math.log(1.0 - u0))
    return radius * math.cos(_TWO_PI * u1), radius * math.sin(_TWO_PI * u1)


@device
def philox_three_normals(seed: int, stream: int, index: int) -> tuple[float, float, float]:
    """Return three independent standard normals of (seed, stream, index) from one block: 32 bits each, |z| <= 6.7."""
    w0, w1, w2, w3 = philox_words(seed, stream, index)
    r0, r1 = math.sqrt(-2.0 * math.log((w0 + 0.5) * _WORD)), math.sqrt(-2.0 * math.log((w2 + 0.5) * _WORD))
    phi0, phi1 = _TWO_PI * (w1 * _WORD), _TWO_PI * (w3 * _WORD)
    return r0 * math.cos(phi0), r0 * math.sin(phi0), r1 * math.cos(phi1)


def philox4x32(counter: ArrayLike, key: ArrayLike) -> NDArray[np.uint32]:
    """Apply Philox4x32-10.

    Args:
        counter: (..., 4) uint32 words, lowest first.
        key: (..., 2) uint32 words, lowest first; broadcast against the counter.
    Returns:
        (..., 4) uint32 words.
    Reference: Salmon et al. 2011, section 3.2.
    """
    c = np.moveaxis(np.asarray(counter, np.uint32).astype(np.uint64), -1, 0)
    k = np.moveaxis(np.asarray(key, np.uint32).astype(np.uint64), -1, 0)
    for turn in range(10):
        k0, k1 = (k[0] + np.uint64(turn) * _W0) & _LOW, (k[1] + np.uint64(turn) * _W1) & _LOW
        p0, p1 = c[0] * _M0, c[2] * _M1
        c = np.stack(np.broadcast_arrays((p1 >> _32) ^ c[1] ^ k0, p1 & _LOW, (p0 >> _32) ^ c[3] ^ k1, p0 & _LOW))
    return np.moveaxis(c, 0, -1).astype(np.uint32)


def _word_pair(name: str, value: Any) -> NDArray[np.uint32]:
    """Split non-negative integers below 2^64 into (..., 2) low and high words."""
    number = np.asarray(value)
    if number.dtype.kind not in "iu" or (number.dtype.kind == "i" and np.any(number < 0)):
        raise InputError("a random number needs integers", key=name, value=value, allowed="0 <= integer < 2^64")
    wide = number.astype(np.uint64)
    return np.stack([wide & _LOW, wide >> _32], axis=-1).astype(np.uint32)


def uniform_pair(seed: int, stream: int, index: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw two uniforms in [0, 1) for every index.

    Args:
        seed: key of the run, 0 <= seed < 2^64.
        stream: which use of the seed, 0 <= stream < 2^64.
        index: integers of any shape, 0 <= index < 2^63.
    Returns:
        Two float64 arrays of the shape of `index`, bit for bit those of `philox_uniform_pair`.
    Raises:
        InputError: an argument is negative, too large or no integer.

    >>> float(uniform_pair(0, 0, 0)[0])
    0.8805201978886142
    """
    low_high, stream_words = np.broadcast_arrays(_word_pair("index", index), _word_pair("stream", stream))
    words = philox4x32(np.concatenate([low_high, stream_words], axis=-1), _word_pair("seed", seed)).astype(np.uint64)
    u0 = (words[..., 1] << _32 | words[..., 0]) >> _11
    u1 = (words[..., 3] << _32 | words[..., 2]) >> _11
    return np.asarray(u0 * _ULP, np.float64), np.asarray(u1 * _ULP, np.float64)


def uniform(seed: int, stream: int, index: ArrayLike) -> NDArray[np.float64]:
    """Draw one uniform in [0, 1) for every index (arguments as for `uniform_pair`)."""
    return uniform_pair(seed, stream, index)[0]


def normal_pair(seed: int, stream: int, index: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draw two standard normals for every index (arguments as for `uniform_pair`)."""
    u0, u1 = uniform_pair(seed, stream, index)
    radius: NDArray[np.float64] = np.sqrt(-2.0 * np.log(1.0 - u0))
    return radius * np.cos(_TWO_PI * u1), radius * np.sin(_TWO_PI * u1)
