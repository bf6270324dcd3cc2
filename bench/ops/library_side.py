"""Each class as a user of `gewu.ops.library` writes it, with out= where there is one, on the arguments of the class's kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.ops.case import Launch
from gewu.ops import library


def ways(cls: str, launch: Launch) -> list[Callable[[], Any]]:
    """Return the operator of a class on the arguments of a launch, as a list of one; empty where there is none."""
    if cls not in library.OPERATORS:
        return []
    function, args = library.OPERATORS[cls].function, launch.args
    given, named = TABLE[cls](*args) if cls in TABLE else _plain(launch)
    return [lambda: function(*given, **named)]


Call = tuple[tuple[Any, ...], dict[str, Any]]


def _plain(launch: Launch) -> Call:
    """The arrays that are read in their order, the one that is written as `out`."""
    arrays = [a for i, a in enumerate(launch.args) if isinstance(a, np.ndarray) and i not in launch.outputs]
    return tuple(arrays), {"out": launch.args[launch.outputs[0]]}


def _normalised(x: Any, gain: Any, bias: Any, y: Any, eps: Any, *_: Any) -> Call:
    return (x, gain, bias), {"eps": float(eps), "out": y}


def _convolved(x: Any, w: Any, bias: Any, y: Any, *sizes: Any) -> Call:
    return (x, w, bias), {"padding": int(sizes[-1]), "out": y}


def _pooled(x: Any, y: Any, height: Any, width: Any, size: Any, stride: Any) -> Call:
    return (x, int(size), int(stride)), {"out": y}


def _attended(q: Any, k: Any, v: Any, y: Any, scale: Any, *_: Any) -> Call:
    return (q, k, v), {"scale": float(scale), "out": y}


TABLE: dict[str, Callable[..., Call]] = {
    "elementwise": lambda a, b, c, alpha, n: ((a, b), {"alpha": float(alpha), "out": c}),
    "cast": lambda x, y, n: ((x, y.dtype), {"out": y}),
    "clamp": lambda x, y, low, high, n: ((x, float(low), float(high)), {"out": y}),
    "dropout": lambda x, y, rate, low, high, n: ((x, float(rate), int(low) | int(high) << 32), {"out": y}),
    "layernorm": _normalised,
    "rmsnorm": lambda x, gain, y, eps, *_: ((x, gain), {"eps": float(eps), "out": y}),
    "batchnorm": _normalised,
    "groupnorm": lambda x, gain, bias, y, eps, b, c, p, width: ((x, gain, bias, int(c // width)), {"eps": float(eps), "out": y}),
    "conv1d": _convolved,
    "conv2d": _convolved,
    "depthwise": lambda x, w, y, *s: ((x, w), {"padding": int(s[-1]), "out": y}),
    "transposed_conv": lambda x, w, y, *s: ((x, w), {"stride": int(s[-2]), "padding": int(s[-1]), "out": y}),
    "maxpool": _pooled,
    "avgpool": _pooled,
    "pad": lambda x, y, value, h, w, rim: ((x, [(0, 0), (int(rim),) * 2, (int(rim),) * 2], float(value)), {"out": y}),
    "im2col": lambda x, y, c, h, w, taps, padding: ((x, int(taps), int(padding)), {"out": y}),
    "resize": lambda x, y, h, w, rows, columns: ((x, int(rows), int(columns)), {"out": y}),
    "histogram": lambda x, counts, bins, n: ((x, int(bins)), {"out": counts}),
    "topk": lambda x, values, places, rows, n, k: ((x, int(k)), {"out": (values, places)}),
    "scatter_add": lambda x, places, y, *_: ((x, places, y), {}),
    "attention": _attended,
    "attention_causal": _attended,
    "attention_gqa": _attended,
    "adamw": lambda p, g, m, v, rate, beta1, beta2, eps, decay, *_: (
        (p, g, m, v, 7, float(rate), float(beta1), float(beta2), float(eps), float(decay)),
        {},
    ),
    "quantise": lambda x, q, scale, *_: ((x,), {"out": (q, scale)}),
    "stencil3d": lambda x, y, c, *_: ((x, float(c)), {"out": y}),
    "nbody": lambda body, a, eps2, n: ((body, float(eps2)), {"out": a}),
    "fft_stage": lambda x, w, y, n, l: ((x, int(l)), {"out": y}),
    "tridiagonal": lambda lower, diagonal, upper, right, x, work, *_: ((lower, diagonal, upper, right), {"out": x}),
}
"""Where the call is more than the arrays in order; `_plain` covers the others."""
