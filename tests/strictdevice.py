"""A make-believe GPU: arrays that compute as NumPy's do and refuse, as CuPy's do, to meet an array of host memory.

Any operation between a `DeviceArray` and a host array of one or more axes, and any silent copy to the host (`np.asarray`,
printing
into a NumPy function) raises TypeError. Scalars may mix. So a program that runs on it moves its data only through `put` and
`get`.
It is stricter than CuPy in one thing: host arrays are refused as indices too, which CuPy copies to the device at each use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import scipy.fft
from numpy.lib.mixins import NDArrayOperatorsMixin

from gewu.core.arrays import Arrays

_VALUES = ("shape", "dtype", "ndim", "size", "nbytes")
_METHODS = (
    *("reshape", "conj", "sum", "mean", "min", "max", "astype", "copy", "ravel", "transpose", "argmax", "argmin"),
    *("swapaxes", "prod", "any", "all", "dot", "fill", "squeeze"),
)


class DeviceArray(NDArrayOperatorsMixin):
    """An array in the make-believe memory. `get` is the only way back."""

    def __init__(self, host: Any) -> None:
        self._host = np.asarray(host)

    def get(self) -> np.ndarray:
        """Return a copy in host memory."""
        return self._host.copy()

    def __getattr__(self, name: str) -> Any:
        if name in _VALUES:
            return getattr(self._host, name)
        if name in _METHODS:
            return _on_device(getattr(self._host, name))
        raise AttributeError(f"the strict device has no array attribute {name!r}")

    @property
    def real(self) -> DeviceArray:
        return DeviceArray(self._host.real)

    @property
    def imag(self) -> DeviceArray:
        return DeviceArray(self._host.imag)

    @property
    def T(self) -> DeviceArray:
        return DeviceArray(self._host.T)

    def __getitem__(self, key: Any) -> DeviceArray:
        return DeviceArray(self._host[_inside(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._host[_inside(key)] = _inside(value)

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[DeviceArray]:
        return (DeviceArray(row) for row in self._host)

    def _scalar(self) -> Any:
        if self._host.size != 1:
            raise TypeError("only an array of one element can become a number")
        return self._host.item()

    def __float__(self) -> float:
        return float(self._scalar())

    def __int__(self) -> int:
        return int(self._scalar())

    def __bool__(self) -> bool:
        return bool(self._scalar())

    def __array__(self, *arguments: Any, **keywords: Any) -> np.ndarray:
        raise TypeError("implicit conversion of a device array to a host array is not allowed: use get")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **keywords: Any) -> Any:
        return _on_device(getattr(ufunc, method))(*inputs, **keywords)

    def __array_function__(self, function: Callable[..., Any], types: Any, arguments: Any, keywords: Any) -> Any:
        return _on_device(function)(*arguments, **keywords)


def _inside(value: Any) -> Any:
    """Unwrap device arrays; refuse host arrays (those without axes are numbers)."""
    if isinstance(value, DeviceArray):
        return value._host
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError(f"a host array of shape {value.shape} met the device: use put")
    if isinstance(value, (tuple, list)):
        return type(value)(_inside(item) for item in value)
    return value


def _outside(value: Any) -> Any:
    """Wrap what an operation returns: numbers become arrays without axes, as CuPy's do."""
    if isinstance(value, (np.ndarray, np.generic)):
        return DeviceArray(value)
    if isinstance(value, tuple):
        return tuple(_outside(item) for item in value)
    return value


def _on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **keywords: Any) -> Any:
        return _outside(function(*_inside(arguments), **{name: _inside(value) for name, value in keywords.items()}))

    return call


class _Namespace:
    """The functions of a module, computing on device arrays; its types and constants as they are."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if name == "linalg":
            return _Namespace(value)
        if isinstance(value, type) or not callable(value):
            return value
        return _on_device(value)

    def asarray(self, value: Any, dtype: Any = None) -> DeviceArray:
        """Copy to the device."""
        return DeviceArray(np.array(value._host if isinstance(value, DeviceArray) else value, dtype))


def _plain(name: str) -> Callable[..., Any]:
    transform = _on_device(getattr(scipy.fft, name))

    def call(array: DeviceArray, n: Any = None, **keywords: Any) -> DeviceArray:
        if not isinstance(array, DeviceArray):
            raise TypeError("transform of a host array on the device")
        if unknown := set(keywords) - {"axis", "norm"}:
            raise TypeError(f"the device's transforms have no keyword {sorted(unknown)}")
        result: DeviceArray = transform(array, n, **keywords)
        return result

    return call


def strict_arrays() -> Arrays:
    """Return the array namespace of the make-believe device."""
    fft = SimpleNamespace(**{name: _plain(name) for name in ("fft", "ifft", "rfftn", "irfftn")})
    return Arrays(_Namespace(np), fft, host=False)  # type: ignore[arg-type]
