"""Python objects made by compiled code, which calls the stable interfaces of CPython and NumPy: dicts filled from bytes.

Interpreted, a value costs 0.2 to 0.6 µs; here bytes, text, numbers and arrays are made and put into a dict at the speed of the
copy (arrays are read-only views that hold their owner). `fill` follows steps that `Steps` writes; it runs with the interpreter's
lock held, makes nothing that the garbage collector follows, and trusts no number that it reads. `AVAILABLE` is False where this
interpreter is not CPython or nothing is compiled.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from typing import Any, Final

import numpy as np

from gewu.core.crc32c import load_32, load_64
from gewu.core.device import load_numba

numba = load_numba()

from llvmlite import binding  # noqa: E402
from numba import types  # noqa: E402

AVAILABLE: Final = sys.implementation.name == "cpython" and not numba.config.DISABLE_JIT
_NEW_ARRAY, _SET_BASE = 94, 282  # places of PyArray_NewFromDescr and PyArray_SetBaseObject in NumPy's table
_BLOB, _TEXT, _FREE, _ARRAY, _SIGNED, _UNSIGNED, _BOOL, _FLOAT32, _FLOAT64 = range(9)
_NUMBERS: Final = {
    **{f"{u}int{bits}": (_UNSIGNED if u else _SIGNED, bits) for u in ("", "u") for bits in (8, 16, 32, 64)},
    **{"bool": (_BOOL, 8), "float32": (_FLOAT32, 32), "float64": (_FLOAT64, 64)},
}
_ROW: Final = 40  # bytes of a step: what to make, its key, place of the value or of its end, of the end before, bits or array

# The C library gives freed memory back to the system, and gets it again as pages of zeros, unless a large block was freed before:
# its thresholds follow the largest. Without this, a batch of large values takes three times as long.
bytes(30 << 20)

_p = types.int64
new_dict = types.ExternalFunction("PyDict_Copy", _p(_p))
set_entry = types.ExternalFunction("PyList_SetItem", types.int32(_p, _p, _p))
forget_error = types.ExternalFunction("PyErr_Clear", types.void())
copy = types.ExternalFunction("memcpy", _p(_p, _p, _p))
_new_bytes = types.ExternalFunction("PyBytes_FromStringAndSize", _p(_p, _p))
_new_text = types.ExternalFunction("PyUnicode_DecodeUTF8", _p(_p, _p, _p))
_new_signed = types.ExternalFunction("PyLong_FromLongLong", _p(_p))
_new_unsigned = types.ExternalFunction("PyLong_FromUnsignedLongLong", _p(types.uint64))
_new_bool = types.ExternalFunction("PyBool_FromLong", _p(_p))
_new_float = types.ExternalFunction("PyFloat_FromDouble", _p(types.float64))
_new_array = types.ExternalFunction("gewu_new_array", _p(_p, _p, types.int32, _p, _p, _p, types.int32, _p))
_set_base = types.ExternalFunction("gewu_set_base", types.int32(_p, _p))
_set_item = types.ExternalFunction("PyDict_SetItem", types.int32(_p, _p, _p))
_hold = types.ExternalFunction("Py_IncRef", types.void(_p))
_release = types.ExternalFunction("Py_DecRef", types.void(_p))


if AVAILABLE:  # make two functions of NumPy known to the linker of compiled code
    _pointer = ctypes.pythonapi.PyCapsule_GetPointer
    _pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    _capsule = importlib.import_module("numpy._core._multiarray_umath")._ARRAY_API  # where extensions get it
    _table = ctypes.cast(_pointer(_capsule, None), ctypes.POINTER(ctypes.c_void_p))
    binding.add_symbol("gewu_new_array", _table[_NEW_ARRAY])
    binding.add_symbol("gewu_set_base", _table[_SET_BASE])


@numba.njit(inline="always")
def word(address: Any) -> Any:
    """Read 8 bytes as a signed number."""
    return np.int64(load_64(address))


@numba.njit
def _number(action: Any, bits: Any, address: Any) -> Any:
    shift, value = np.uint64(64 - bits), load_64(address)
    if action == _SIGNED:
        return _new_signed(np.int64(value << shift) >> np.int64(shift))
    if action == _UNSIGNED:
        return _new_unsigned(value << shift >> shift)
    if action == _BOOL:
        return _new_bool(np.int64(value & np.uint64(255)))
    if action == _FLOAT32:
        return _new_float(np.float64(np.uint32(value & np.uint64(0xFFFFFFFF)).view(np.float32)))
    return _new_float(np.uint64(value).view(np.float64))


@numba.njit
def _array(spec: Any, record: Any, at: Any, end: Any, owner: Any) -> Any:
    """Make a view of an array that lies between two places of a record; 0 when it does not fit there.

    `spec`: address of words: ndarray, dtype, bytes of a number, axes, their lengths (-1: a u32 in front), the same with room.
    """
    item, axes, count = word(spec + 16), word(spec + 24), np.int64(1)
    shape = spec + 32 + 8 * axes
    for k in range(0, 8 * axes, 8):
        length = word(spec + 32 + k)
        if length < 0:
            copy(shape + k, record + at, 4)
            length, at = np.int64(load_32(record + at)), at + 4
        if length > 0 and count > end // length:
            return np.int64(0)
        count *= length
    align = min(item, 8)
    at = (at + align - 1) // align * align
    if count * item > max(end - at, 0):
        return np.int64(0)
    _hold(word(spec + 8))
    array = _new_array(word(spec), word(spec + 8), axes, shape, 0, record + at, 0, 0)
    if array != 0:
        _hold(owner)
        _set_base(array, owner)  # fails only where there is one already
    return array


@numba.njit
def fill(steps: Any, record: Any, size: Any, owner: Any, into: Any) -> Any:
    """Read the fields of a record into a dict.

    Args:
        steps: address of what `Steps` wrote.
        record: address; 8 bytes may be read at each number, so that 7 must follow the last.
        size: its bytes.
        owner: address of the object that keeps the record in memory.
        into: address of the dict, which holds all keys.

    Returns:
        0; or -1, and Python's error is perhaps set, when something is said to lie outside of the record, a text is not UTF-8, or
        there is no memory.
    """
    for row in range(steps + 16, steps + 16 + _ROW * word(steps), _ROW):
        action, place, before, more = word(row), word(row + 16), word(row + 24), word(row + 32)
        if action > _ARRAY:
            value = _number(action, more, record + place)
        elif action == _ARRAY:
            value = _array(more, record, place, size, owner)
        else:
            begin, end = np.int64(load_32(record + before)) if before else word(steps + 8), np.int64(load_32(record + place))
            if not begin <= end <= size:
                return -1
            if action == _FREE:
                value = _array(more, record, (begin + 7) // 8 * 8, end, owner)
            elif action == _TEXT:
                value = _new_text(record + begin, end - begin, 0)
            else:
                value = _new_bytes(record + begin, end - begin)
        failed = value == 0 or _set_item(into, word(row + 8), value) != 0
        _release(value)  # nothing happens to 0
        if failed:
            return -1
    return 0


class Steps:
    """How `fill` reads a record of at most `most` fields; the variable ones begin at `head`, u32 numbers say where they end.

    Attributes:
        address: of the words: number of steps, `head`, steps.
    """

    def __init__(self, head: int, most: int) -> None:
        self._words, self._kept = np.zeros(2 + 5 * most, np.int64), list[Any]()
        self._words[1], self.address = head, int(self._words.ctypes.data)

    def blob(self, name: str, text: bool, end: int, before: int) -> None:
        """Add bytes or a UTF-8 text, whose end stands at `end`, and that of the field before at `before` (0: it is the first)."""
        self._add(_TEXT if text else _BLOB, name, end, before, 0)

    def number(self, name: str, dtype: str, place: int) -> bool:
        """Add a number; False: of a kind that is not made here."""
        if dtype in _NUMBERS:
            self._add(_NUMBERS[dtype][0], name, place, 0, _NUMBERS[dtype][1])
        return dtype in _NUMBERS

    def array(self, name: str, dtype: np.dtype[Any], shape: tuple[int | None, ...], place: int, before: int) -> None:
        """Add an array at `place`, or with free axes (None), whose lengths stand in front of it, as of `blob`."""
        axes = [*(-1 if axis is None else axis for axis in shape), *(axis or 0 for axis in shape)]
        spec = np.array([id(np.ndarray), id(dtype), dtype.itemsize, len(shape), *axes], np.int64)
        self._kept += [dtype, spec]
        self._add(_FREE if None in shape else _ARRAY, name, place, before, spec.ctypes.data)

    def _add(self, action: int, name: str, *numbers: int) -> None:
        at = 2 + 5 * self._words[0]
        self._words[at : at + 5] = action, id(name), *numbers
        self._words[0] += 1
        self._kept.append(name)
