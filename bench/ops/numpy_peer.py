"""Each class where NumPy has it, with out=; matrix products come from NumPy's OpenBLAS. A class gives one or more ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bench.ops.case import Launch

Way = Callable[[], Any]


def ways(cls: str, launch: Launch) -> list[Way]:
    """Return the ways to compute one class with the arguments of a launch; none where NumPy has nothing like it."""
    return list(TABLE[cls](*launch.args)) if cls in TABLE else []


def _axpy(a: Any, b: Any, c: Any, alpha: Any, n: Any) -> Sequence[Way]:
    def two_steps() -> Any:
        np.multiply(a, alpha, out=c)
        return np.add(c, b, out=c)

    return [two_steps]


def _select(mask: Any, a: Any, b: Any, y: Any, n: Any) -> Sequence[Way]:
    def two_copies() -> Any:
        np.copyto(y, b)
        np.copyto(y, a, where=mask.view(bool))
        return y

    return [two_copies, lambda: np.where(mask.view(bool), a, b)]


def _softmax(x: Any, y: Any, *_: Any) -> Sequence[Way]:
    def steps() -> Any:
        np.subtract(x, x.max(1, keepdims=True), out=y)
        np.exp(y, out=y)
        return np.divide(y, y.sum(1, keepdims=True), out=y)

    return [steps]


def _scaled_product(x: Any, w: Any, scale: Any, y: Any, *_: Any) -> Sequence[Way]:
    wide = np.empty(w.shape, np.float32)

    def unpacked() -> Any:
        np.copyto(wide, w)
        np.matmul(x, wide.T, out=y)
        return np.multiply(y, scale, out=y)

    return [unpacked]


def _conv2d(x: Any, w: Any, bias: Any, y: Any, *sizes: Any) -> Sequence[Way]:
    padding, taps = int(sizes[-1]), w.shape[2]
    padded = np.zeros((*x.shape[:2], x.shape[2] + 2 * padding, x.shape[3] + 2 * padding), np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (taps, taps), (2, 3)).transpose(0, 1, 4, 5, 2, 3)
    columns = np.empty(windows.shape[1:], np.float32)
    flat, kernel = columns.reshape(-1, columns.shape[3] * columns.shape[4]), w.reshape(len(w), -1)

    def im2col() -> Any:
        padded[:, :, padding : padding + x.shape[2], padding : padding + x.shape[3]] = x
        for b in range(len(x)):
            np.copyto(columns, windows[b])
            np.matmul(kernel, flat, out=y[b].reshape(len(w), -1))
        y.__iadd__(bias[:, None, None])
        return y

    return [im2col]


TABLE: dict[str, Callable[..., Sequence[Way]]] = {
    "elementwise": _axpy,
    "cast": lambda x, y, n: [lambda: (np.copyto(y, x), y)[1]],
    "relu": lambda x, y, n: [lambda: np.maximum(x, 0, out=y)],
    "tanh": lambda x, y, n: [lambda: np.tanh(x, out=y)],
    "exp": lambda x, y, n: [lambda: np.exp(x, out=y)],
    "log": lambda x, y, n: [lambda: np.log(x, out=y)],
    "clamp": lambda x, y, low, high, n: [lambda: np.clip(x, low, high, out=y)],
    "select": _select,
    "sum": lambda x, y, *_: [lambda: np.sum(x, axis=1, out=y), lambda: np.matmul(x, np.ones(x.shape[1], np.float32), out=y)],
    "max": lambda x, y, *_: [lambda: np.max(x, axis=1, out=y)],
    "argmax": lambda x, y, *_: [lambda: np.argmax(x, axis=1).astype(np.int32)],
    "norm": lambda x, y, *_: [lambda: np.sqrt(np.einsum("ij,ij->i", x, x, out=y), out=y)],
    "scan": lambda x, y, *_: [lambda: np.cumsum(x, axis=1, out=y)],
    "softmax": _softmax,
    "gemv": lambda a, x, y, *_: [lambda: np.matmul(a, x, out=y)],
    "gemm": lambda a, b, c, *_: [lambda: np.matmul(a, b, out=c)],
    "batched_gemm": lambda a, b, c, *_: [lambda: np.matmul(a, b, out=c)],
    "int8_gemm": _scaled_product,
    "outer": lambda a, b, c, *_: [lambda: np.multiply(a[:, None], b, out=c)],
    "conv2d": _conv2d,
    "transpose": lambda x, y, *_: [lambda: (np.copyto(y, x.T), y)[1]],
    "concat": lambda a, b, y, *_: [lambda: np.concatenate((a, b), axis=1, out=y)],
    "histogram": lambda x, counts, bins, n: [lambda: np.bincount(x, minlength=bins).astype(np.int32)],
    "sort": lambda x, y, *_: [lambda: np.sort(x, axis=1)],
    "gather": lambda x, places, y, n: [lambda: np.take(x, places, out=y, mode="clip"), lambda: np.take(x, places, out=y)],
    "embedding": lambda table, words, y, *_: [lambda: np.take(table, words, axis=0, out=y, mode="clip")],
}
