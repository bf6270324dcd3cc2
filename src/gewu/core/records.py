"""Records of bytes in files that are mapped into memory, each with a CRC-32C in front: found, checked and read by compiled code.

A table says where they are. It is an array of words: number of files; addresses of first[], the number of the first record of
each file, of maps[], the address of each file's map or 0, of offsets[], the address of each file's offsets of records (and their
end), and of owners[], the address of the object that keeps each map in memory. Whoever makes a table keeps all of this. A place
is file << 40 | offset, or `CLOSED` (the file is not mapped) or `DAMAGED`.
"""

from __future__ import annotations

import mmap
from typing import Any, Final

import numpy as np

from gewu.core.crc32c import crc32c_at, load_32, prefetch
from gewu.core.device import load_numba
from gewu.core.objects import copy, fill, forget_error, new_dict, set_entry, word
from gewu.core.vector import stamped

numba = load_numba()

CLOSED, DAMAGED = -1, -2
FILE_BITS: Final = 40  # bits of an offset; those above are the number of the file
OFFSET: Final = (1 << FILE_BITS) - 1
LARGE: Final = 1 << 14  # bytes from which on a record that is not in memory is asked from the disk as a whole
_PAGE, _WILL_NEED = mmap.PAGESIZE, getattr(mmap, "MADV_WILLNEED", 3)
_MOST: Final = 1 << 22, 32  # bytes of a record and number of records that are asked from the disk at once
_mincore = numba.types.ExternalFunction("mincore", numba.types.int32(numba.int64, numba.int64, numba.int64))
_madvise = numba.types.ExternalFunction("madvise", numba.types.int32(numba.int64, numba.int64, numba.int32))
_AHEAD: Final = 4096  # bytes of a record that are asked for at once
_CACHE: Final = 1 << 18  # bytes that are checked and then turned into objects while they are in the cache


@numba.njit(inline="always")
def _find(table: Any, number: Any) -> Any:
    """Return (file, address or 0, offset, bytes) of a record."""
    low, high, first = np.int64(0), word(table), word(table + 8)
    while high - low > 1:
        middle = (low + high) >> 1
        if word(first + 8 * middle) <= number:
            low = middle
        else:
            high = middle
    base = word(word(table + 16) + 8 * low)
    if base == 0:
        return low, base, np.int64(0), np.int64(0)
    index = word(word(table + 24) + 8 * low) + 8 * (number - word(first + 8 * low))
    start, size = word(index), word(index + 8) - word(index)
    for line in range(base + start, base + start + min(size, _AHEAD), 64):
        prefetch(line)
    return low, base + start, start, size


@numba.njit
def _ask(address: Any, size: Any) -> None:
    """Have a record read from the disk if its last page is not in memory; a fault brings 64 kB at most, and waits for them."""
    begin, end = address // _PAGE * _PAGE, address + min(size, _MOST[0])
    there = np.zeros(1, np.uint8)
    if _mincore((end - 1) // _PAGE * _PAGE, 1, there.ctypes.data) == 0 and there[0] & 1 == 0:
        _madvise(begin, end - begin, _WILL_NEED)


@numba.njit(cache=True, nogil=True)
@stamped
def ask(table: Any, numbers: Any, begin: Any, asked: Any) -> Any:
    """Have the next records from `begin` on read from the disk, those before `asked` were; return what `asked` is now."""
    for k in range(max(begin, asked), min(begin + _MOST[1], len(numbers))):
        _, address, _, size = _find(table, numbers[k])
        if address != 0:
            _ask(address, size)
        asked = k + 1
    return asked


@numba.njit(cache=True)
@stamped
def read(table: Any, steps: Any, number: Any, into: Any) -> Any:
    """Read a record into the dict at `into` by steps (`objects.fill`) and return its place."""
    file, address, start, size = _find(table, number)
    if address == 0:
        return np.int64(CLOSED)
    if size >= LARGE:
        _ask(address, size)
    if crc32c_at(address + 4, size - 4) != load_32(address):
        return np.int64(DAMAGED)
    if fill(steps, address, size, word(word(table + 32) + 8 * file), into):
        forget_error()
        return np.int64(DAMAGED)
    return file << FILE_BITS | start


@numba.njit(cache=True, nogil=True)
@stamped
def check(table: Any, numbers: Any, places: Any, sizes: Any, begin: Any) -> Any:
    """Write places and bytes from `begin` on until half a cache is full, return where it stopped; ask for records early."""
    left, k = np.int64(_CACHE), begin
    file, address, start, size = _find(table, numbers[k])
    while k < len(numbers) and left > 0:
        last_file, last, last_start, last_size = file, address, start, size
        if k + 1 < len(numbers):
            file, address, start, size = _find(table, numbers[k + 1])
        places[k], sizes[k] = CLOSED, last_size
        if last != 0:
            good = crc32c_at(last + 4, last_size - 4) == load_32(last)
            places[k] = last_file << FILE_BITS | last_start if good else DAMAGED
        left, k = left - last_size, k + 1
    return k


@numba.njit(cache=True)
@stamped
def fill_all(table: Any, steps: Any, places: Any, sizes: Any, begin: Any, end: Any, blank: Any, records: Any) -> Any:
    """Put copies of the dict `blank`, filled, into the list `records`; return how many were not read."""
    missing = 0
    for k in range(begin, end):
        if places[k] >= 0:
            file, record = places[k] >> FILE_BITS, new_dict(blank)
            address, owner = word(word(table + 16) + 8 * file) + (places[k] & OFFSET), word(word(table + 32) + 8 * file)
            if record == 0 or fill(steps, address, sizes[k], owner, record):
                forget_error()
                places[k] = DAMAGED
            if record != 0:
                set_entry(records, k, record)  # the list holds it from here on
        missing += places[k] < 0
    return missing


@numba.njit(cache=True, nogil=True)
@stamped
def gather(bases: Any, places: Any, at: Any, size: Any, out: Any) -> None:
    """Copy `size` bytes at `at` of each record that was found right to its row at the address `out`."""
    for k in range(len(places)):
        if places[k] >= 0:
            copy(out + k * size, bases[places[k] >> FILE_BITS] + (places[k] & OFFSET) + at, size)
