"""CRC-32C (Castagnoli) of bytes in memory, by the processor's own instruction where it has one.

The checksum of iSCSI, ext4 and SCTP: reflected polynomial 0x82F63B78, start and end with all bits inverted (RFC 3720, appendix
B.4).  One instruction takes 8 bytes but has a latency of 3 cycles, so three parts of a block run side by side; a part that n zero
bytes follow is carried over them by a table (a CRC is linear over GF(2)).  Processors without the instruction look up 8 tables.
The next block is asked for while one is computed, so that memory is read as fast as by copying.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from gewu.core.device import load_numba

numba = load_numba()

from llvmlite import binding, ir  # noqa: E402
from numba import types  # noqa: E402
from numba.core import cgutils  # noqa: E402
from numba.extending import intrinsic  # noqa: E402

from gewu.core.vector import stamped  # noqa: E402

POLYNOMIAL: Final = 0x82F63B78
_PARTS: Final = (2048, 256)  # bytes of each of the three parts of a long and of a short block


def _instruction() -> tuple[str, int] | None:
    """Return LLVM's name of the instruction on 8 bytes and the bits of its checksum, or None."""
    if numba.config.CPU_NAME or numba.config.CPU_FEATURES:  # compiled for another processor than this one
        return None
    features, target = binding.get_host_cpu_features(), binding.get_process_triple()
    if target.startswith("x86_64") and features.get("sse4.2"):
        return "llvm.x86.sse42.crc32.64.64", 64
    if target.startswith("aarch64") and features.get("crc"):
        return "llvm.aarch64.crc32cx", 32
    return None


def _byte_tables() -> Any:
    """Return the tables of "slicing by 8": the checksum of a byte that 0 to 7 zero bytes follow."""
    table = np.zeros((8, 256), np.uint32)
    crc: Any = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        crc = (crc >> 1) ^ (np.uint32(POLYNOMIAL) * (crc & 1))
    table[0] = crc
    for k in range(1, 8):
        table[k] = (table[k - 1] >> 8) ^ crc[table[k - 1] & 0xFF]
    return table


_TABLES: Final = _byte_tables()


def _shift_table(zeros: int) -> Any:
    """Return 4 x 256 numbers: what byte k of a checksum becomes after `zeros` zero bytes."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    for _ in range(zeros):
        bits = (bits >> 8) ^ _TABLES[0][bits & 0xFF]
    table = np.zeros((4, 256), np.uint32)
    for bit in range(32):
        k, b = divmod(bit, 8)
        table[k] ^= np.where(np.arange(256) >> b & 1, bits[bit], np.uint32(0)).astype(np.uint32)
    return table


_SHIFT_LONG: Final = _shift_table(_PARTS[0])
_SHIFT_SHORT: Final = _shift_table(_PARTS[1])
_FOUND: Final = _instruction()


def _load(bits: int) -> Any:
    @intrinsic
    def load(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            place = builder.inttoptr(args[0], ir.IntType(bits).as_pointer())
            word = builder.load(place, align=1)
            return builder.zext(word, ir.IntType(64)) if bits < 64 else word

        return types.uint64(types.int64), generate

    return load


load_8, load_32, load_64 = _load(8), _load(32), _load(64)


@intrinsic
def _step(typing: Any, crc: Any, word: Any) -> Any:
    """Take 8 bytes by the instruction."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        assert _FOUND is not None
        name, bits = _FOUND
        kind = ir.FunctionType(ir.IntType(bits), [ir.IntType(bits), ir.IntType(64)])
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        old = args[0] if bits == 64 else builder.trunc(args[0], ir.IntType(32))
        new = builder.call(function, [old, args[1]])
        return new if bits == 64 else builder.zext(new, ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), generate


@intrinsic
def prefetch(typing: Any, address: Any) -> Any:
    """Ask for the cache line at an address; any address will do."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, flag, flag, flag])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [builder.inttoptr(args[0], pointer), flag(0), flag(3), flag(1)])  # read, keep, data
        return context.get_dummy_value()

    return types.void(types.int64), generate


@numba.njit(inline="always")
def _carry(table: Any, crc: Any) -> Any:
    return np.uint64(table[0, crc & 255] ^ table[1, crc >> 8 & 255] ^ table[2, crc >> 16 & 255] ^ table[3, crc >> 24 & 255])


@numba.njit(inline="always")
def _by_table(crc: Any, word: Any) -> Any:
    x = word ^ crc
    low = _TABLES[7, x & 255] ^ _TABLES[6, x >> 8 & 255] ^ _TABLES[5, x >> 16 & 255] ^ _TABLES[4, x >> 24 & 255]
    high = _TABLES[3, x >> 32 & 255] ^ _TABLES[2, x >> 40 & 255] ^ _TABLES[1, x >> 48 & 255] ^ _TABLES[0, x >> 56]
    return np.uint64(low ^ high)


_one = _step if _FOUND else _by_table


@numba.njit(inline="always")
def _blocks(part: Any, table: Any, address: Any, size: Any, crc: Any) -> Any:
    """Take as many blocks of three parts as there are; return the new address, size and checksum."""
    while size >= 3 * part:
        second = third = np.uint64(0)
        for line in range(0, part, 64):
            prefetch(address + 3 * part + line)
            prefetch(address + 4 * part + line)
            prefetch(address + 5 * part + line)
            for k in range(line, line + 64, 8):
                crc = _one(crc, load_64(address + k))
                second = _one(second, load_64(address + part + k))
                third = _one(third, load_64(address + 2 * part + k))
        crc = _carry(table, _carry(table, crc) ^ second) ^ third
        address, size = address + 3 * part, size - 3 * part
    return address, size, crc


@numba.njit(cache=True, nogil=True)
@stamped
def crc32c_at(address: Any, size: Any) -> Any:
    """Return the CRC-32C of `size` bytes at an address (int64, int64 → uint64); for callers inside Numba and out."""
    crc = np.uint64(0xFFFFFFFF)
    address, size, crc = _blocks(_PARTS[0], _SHIFT_LONG, address, size, crc)
    address, size, crc = _blocks(_PARTS[1], _SHIFT_SHORT, address, size, crc)
    while size >= 8:
        crc = _one(crc, load_64(address))
        address, size = address + 8, size - 8
    while size > 0:
        crc = np.uint64(_TABLES[0, (crc ^ load_8(address)) & 255]) ^ crc >> np.uint64(8)
        address, size = address + 1, size - 1
    return crc ^ np.uint64(0xFFFFFFFF)


def crc32c(data: Any) -> int:
    """Return the CRC-32C of anything that offers its bytes (bytes, bytearray, memoryview, a C-contiguous array).

    Example:
        >>> hex(crc32c(b"123456789"))
        '0xe3069283'
    """
    array = np.frombuffer(data, np.uint8)
    return int(crc32c_at(array.ctypes.data, array.size))
