"""Machine code does what PTX of the same source does, bit by bit, and what cannot be read is refused with a reason."""

from __future__ import annotations

import contextlib
import random
import shutil
import struct
import subprocess
import tracemalloc
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.core.errors import InputError, ResourceError
from gewu.ops import ir
from gewu.ops.clean import clean
from gewu.ops.cubin import read_container, read_cubin
from gewu.ops.disassemble import find_nvdisasm
from gewu.ops.interp import run
from gewu.ops.logic import spellings
from gewu.ops.ptx import read_ptx
from gewu.ops.sass import read_sass

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
needs_nvdisasm = pytest.mark.skipif(find_nvdisasm() is None, reason="nvdisasm is not installed")
SOURCE = Path(__file__).parent / "sass_kernels.cu"
BINARIES = Path(__file__).parent / "binaries"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sass")


@cache
def built(folder: Path, kind: str) -> Path:
    """Compile the kernels to `ptx`, or to a cubin for `80` or `90`."""
    path = folder / (f"{kind}.cubin" if kind.isdigit() else "kernels.ptx")
    what = ["-cubin", f"-arch=sm_{kind}"] if kind.isdigit() else ["-ptx", "-arch=sm_80"]
    # Without contraction both forms round at the same places.
    subprocess.run(["nvcc", *what, "-fmad=false", "-w", "-o", str(path), str(SOURCE)], check=True, capture_output=True)
    return path


@cache
def kernels(folder: Path, kind: str) -> dict[str, ir.Kernel]:
    if kind == "clean":
        return {name: clean(kernel) for name, kernel in kernels(folder, "ptx").items()}
    path = built(folder, kind)
    listing = read_cubin(path.read_bytes(), str(path)) if kind.isdigit() else read_ptx(path.read_text(), str(path))
    assert set(listing.refused) == {"host_variable", "host_constant", "counting"}
    assert "writes a module variable" in listing.refused.pop("counting")
    assert all("only the host sets" in reason for reason in listing.refused.values())
    assert any("filled_by_the_host" in name and size == 16 for name, (_, size) in listing.unset.items())
    return listing.kernels


def floats(*shape: int) -> np.ndarray:
    return (np.random.default_rng(1).standard_normal(shape) * 2).astype(np.float32)


def ints(low: int, high: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(2).integers(low, high, shape).astype(np.int32)


def longs(seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(-(1 << 63), (1 << 63) - 1, 64) >> generator.integers(0, 60, 64)


NAN = np.where(np.arange(32) % 5 == 1, np.nan, floats(32).astype(np.float64))
LAUNCHES: dict[str, tuple[int, Any]] = {
    "constants": (64, lambda: (np.abs(floats(128)) * 3, floats(128), np.int32(100))),
    "local_array": (1, lambda: (ints(0, 50, 32), ints(0, 9, 32), np.int32(20))),
    "integer_division": (
        32,
        lambda: (ints(-99999, 99999, 32), ints(1, 99, 32), ints(0, 1, 32), longs(3)[:32], longs(4)[:32] | 1),
    ),
    "double_math": (32, lambda: (np.abs(floats(64)).astype(np.float64) + 0.1, np.zeros(32))),
    "half_pairs": (32, lambda: (floats(40, 2).astype(np.float16), floats(40, 2).astype(np.float16))),
    "generic_space": (64, lambda: (ints(0, 9, 64), np.int32(0))),
    "atomics": (
        64,
        lambda: (np.array([3, 4, 0xFFFFFFFF, 0, 5], np.uint32), ints(0, 1, 4), ints(1, 1000, 64), floats(64), floats(2)),
    ),
    "conversions": (
        32,
        lambda: (
            np.abs(floats(32)) * 20,
            ints(0, 1, 32),
            np.zeros(32, np.uint8),
            np.zeros(32, np.int64),
            floats(32) * 1e5,
            np.zeros(32),
        ),
    ),
    "warp": (32, lambda: (ints(0, 9, 32), floats(32), ints(0, 1, 32))),
    "jump_table": (32, lambda: (ints(-1, 9, 40), ints(0, 1, 32))),
    "not_inlined": (32, lambda: (floats(32) * np.float32(0.1), floats(32), np.int32(7))),
    "wide_integers": (
        32,
        lambda: (longs(3).view(np.uint64), longs(5), np.zeros(32, np.uint64), np.zeros(32, np.int64), np.uint32(5)),
    ),
    "single_math": (32, lambda: (floats(64), floats(32))),
    "logic": (32, lambda: (ints(-(1 << 31), (1 << 31) - 1, 64) >> np.arange(64, dtype=np.int32) % 29, ints(0, 1, 32))),
    "double_extremes": (32, lambda: (NAN, np.roll(NAN, 3), np.zeros(32), np.zeros(32))),
    "early_return": (
        32,
        lambda: (np.where(np.arange(900) % 13 == 5, -1, 1).astype(np.float32) * np.abs(floats(900)), floats(32), np.int32(900)),
    ),
    "division": (
        64,
        lambda: (floats(64) * np.float32(1e-38), np.where(np.arange(64) % 4 == 1, 0, floats(64)).astype(np.float32), floats(64)),
    ),
}


@needs_nvcc
@needs_nvdisasm
@pytest.mark.parametrize("kind", ["clean", "80", "90"])
@pytest.mark.parametrize("name", LAUNCHES)
def test_computes_the_bits_of_its_ptx(folder: Path, name: str, kind: str) -> None:
    threads, make = LAUNCHES[name]
    want, got = make(), make()
    run(kernels(folder, "ptx")[name], (1, 1, 1), (threads, 1, 1), want)
    run(kernels(folder, kind)[name], (1, 1, 1), (threads, 1, 1), got)
    before = make()
    assert any(isinstance(w, np.ndarray) and w.tobytes() != b.tobytes() for w, b in zip(want, before, strict=True)), (
        "nothing was written"
    )
    for expected, found in zip(want, got, strict=True):
        np.testing.assert_array_equal(found, expected)


@needs_nvcc
@needs_nvdisasm
@pytest.mark.parametrize("kind", ["80", "90"])
def test_arguments_of_a_structure(folder: Path, kind: str) -> None:
    options = np.void(struct.pack("<5fid", 1.5, 2.5, 3.5, 4.5, 5.5, 32, 0.25))
    y = np.zeros(64, np.float32)
    run(kernels(folder, kind)["structure"], (1, 1, 1), (64, 1, 1), [options, y])
    np.testing.assert_array_equal(y[:32], np.float32(2.5) * np.arange(32, dtype=np.float32) + np.float32(5.75))
    assert y[40] == 1.5
    assert kernels(folder, kind)["structure"].parameters[:2] == (ir.Parameter(0, 32), ir.Parameter(32, 8))


@needs_nvcc
@needs_nvdisasm
@pytest.mark.parametrize("kind", ["80", "90"])
@pytest.mark.parametrize(
    ("name", "op"), [("quotient", "div"), ("reciprocal", "div"), ("by_seven", "div"), ("root", "sqrt"), ("signs", "copysign")]
)
def test_finds_the_operation_that_was_spelled_out(folder: Path, name: str, op: str, kind: str) -> None:
    """The careful path for rare operands is gone, and with it every branch."""
    kernel = kernels(folder, kind)[name]
    assert len(kernel.blocks) == 1
    assert sum(i.op == op for i in kernel.blocks[0].code) == 1
    rare = np.array([0, -0.0, 1e-45, -1e-40, 1e38, -3e38, np.inf, np.nan, 3, -5, 1e-38, 2, 7, 1, -1, 0.3], np.float32)
    a, b, c = np.repeat(rare, 16), np.tile(rare, 16), np.zeros(256, np.float32)
    run(kernel, (1, 1, 1), (256, 1, 1), [a, b, c])
    with np.errstate(all="ignore"):
        want = {"quotient": a / b, "reciprocal": 1 / b, "by_seven": b / np.float32(7), "root": np.sqrt(b)}
        want["signs"] = np.copysign(a, b)
    np.testing.assert_array_equal(c, want[name])
    np.testing.assert_array_equal(np.signbit(c[c == c]), np.signbit(want[name][c == c]))


@needs_nvcc
@needs_nvdisasm
@pytest.mark.parametrize("kind", ["80", "90"])
def test_matrix_instructions(tmp_path: Path, kind: str) -> None:
    made = tmp_path / "matrix.cubin"
    source = Path(__file__).parent / "matrix_kernels.cu"
    subprocess.run(["nvcc", "-cubin", f"-arch=sm_{kind}", "-o", str(made), str(source)], check=True, capture_output=True)
    found = read_cubin(made.read_bytes())
    assert sorted(found.kernels) == ["bfloat_product", "half_product", "tiles"]
    a, b = ints(-4, 5, 16, 32).astype(np.float32), ints(-3, 4, 33, 16)[1:].astype(np.float32)
    upper = [(x.view(np.uint32) >> 16).astype(np.uint16) for x in (a, b)]
    for name, args, k in (
        ("half_product", [a.astype(np.float16), b.astype(np.float16)], 32),
        ("bfloat_product", upper, 32),
        ("tiles", [a[:, :16].astype(np.float16), b[:16].astype(np.float16)], 16),
    ):
        c = np.zeros((16, 16), np.float32)
        run(found.kernels[name], (1, 1, 1), (32, 1, 1), [*args, c, *([np.int32(k)] if name != "tiles" else [])])
        np.testing.assert_array_equal(c, a[:, :k] @ b[:k])


ALL = """extern "C" __global__ void agree(const int* x, const long long* z, unsigned* y) {
    int i = threadIdx.x, p = 0, q = 0;
    unsigned a = 0, b = 0;
    if (i % 32 > 2) a = __match_all_sync(~7u, x[i], &p);
    b = __match_all_sync(~0u, z[i], &q);
    y[2 * i] = a + p;
    y[2 * i + 1] = b ^ (q * 2);
}
"""


@needs_nvcc
@needs_nvdisasm
@pytest.mark.parametrize("kind", ["80", "90"])
def test_lanes_that_all_agree(tmp_path: Path, kind: str) -> None:
    """Three warps: one agrees on words, all but one on long words; lanes that took another way do not count."""
    (tmp_path / "agree.cu").write_text(ALL)
    made = tmp_path / "agree.cubin"
    subprocess.run(["nvcc", "-cubin", f"-arch=sm_{kind}", "-o", made, tmp_path / "agree.cu"], check=True, capture_output=True)
    x, z, y = np.arange(96, dtype=np.int32), np.full(96, 5 << 40), np.zeros((96, 2), np.uint32)
    x[35:64], z[70] = 4, 5
    run(read_cubin(made.read_bytes()).kernels["agree"], (1, 1, 1), (96, 1, 1), [x, z, y])
    want = np.zeros((3, 32, 2), np.uint32)
    want[1, 3:, 0] = 0xFFFFFFF8 + 1
    want[:2, :, 1] = 0xFFFFFFFF ^ 2
    np.testing.assert_array_equal(y.reshape(3, 32, 2), want)


@pytest.mark.parametrize("architecture", [80, 90])
def test_reads_a_prebuilt_cubin(architecture: int) -> None:
    found = small(architecture)
    assert sorted(found.kernels) == ["row_sum", "weigh"]
    weigh, row_sum = found.kernels["weigh"], found.kernels["row_sum"]
    assert [(p.offset, p.size) for p in weigh.parameters] == [(0, 8), (8, 8), (16, 4)]
    assert row_sum.shared == 128 + (1024 if architecture == 90 else 0)
    assert struct.unpack_from("<4f", weigh.data) == (1, 2, 3, 4)
    x, y = floats(100), np.zeros(100, np.float32)
    run(weigh, (4, 1, 1), (32, 1, 1), [x, y, np.int32(90)])
    np.testing.assert_array_equal(y[:90], (x * np.tile(np.float32([1, 2, 3, 4]), 25))[:90])
    assert not y[90:].any()
    x, y = floats(3, 200), np.zeros(3, np.float32)
    run(row_sum, (3, 1, 1), (64, 1, 1), [x, y, np.int32(200)])
    # 200 terms of size about 2, summed in another order.
    np.testing.assert_allclose(y, x.mean(axis=1), atol=1e-6)


def small(architecture: int, text: str = "") -> ir.Listing:
    """Read a committed cubin with its committed disassembly, or with another text."""
    text = text or (BINARIES / f"small_sm{architecture}.sass").read_text()
    data = (BINARIES / f"small_sm{architecture}.cubin").read_bytes()
    return read_cubin(data, "small.cubin", lambda code, file: text)


@needs_nvdisasm
@pytest.mark.parametrize("architecture", [80, 90])
def test_runs_the_disassembler(architecture: int) -> None:
    data = (BINARIES / f"small_sm{architecture}.cubin").read_bytes()
    assert read_cubin(data).kernels == small(architecture).kernels


@pytest.mark.parametrize("architecture", [80, 90])
def test_text_alone_gives_arguments(architecture: int) -> None:
    found = read_sass((BINARIES / f"small_sm{architecture}.sass").read_text())
    assert [(p.offset, p.size) for p in found.kernels["row_sum"].parameters] == [(0, 8), (8, 8), (16, 4)]
    assert "constant bank" in found.refused["weigh"]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("FMUL ", "FROB.X ", r"unknown opcode FROB\.X at 0x0"),
        ("FMUL ", "FMUL.ODD ", r"modifier that is not read at 0x0"),
        ("FMUL ", "FMUL R1, ", r"at 0x0"),
        ("SR_CTAID.X", "SR_ODD", r"special register at 0x0"),
    ],
)
def test_refuses_one_kernel_and_reads_the_others(old: str, new: str, reason: str) -> None:
    text = (BINARIES / "small_sm80.sass").read_text()
    start = text.index(".text.weigh:")
    end = text.find(".section", start) if text.find(".section", start) > 0 else len(text)
    found = small(80, text[:start] + text[start:end].replace(old, new) + text[end:])
    assert list(found.kernels) == ["row_sum"]
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(found.refused["weigh"])


def test_addresses_are_sums_of_64_bits() -> None:
    for architecture in (80, 90):
        kernel = small(architecture).kernels["row_sum"]
        code = [i for block in kernel.blocks for i in block.code]
        makers = {i.dst[0]: i for i in code if i.dst}
        loads = [i for i in code if i.op == "ld" and i.mods == ("global",)]
        assert loads
        for load in loads:
            made = makers[str(load.src[0])]
            assert (made.op, made.type) == ("add", "u64")
            assert {makers[str(s)].op for s in made.src} == {"shl", "param"}
        assert not any(i.op in ("pack", "unpack") for i in code)
        assert any(i.op == "div" for i in code)


def test_without_the_disassembler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gewu.ops.disassemble.find_nvdisasm", lambda: None)
    with pytest.raises(ResourceError, match="pip install nvidia-cuda-nvdisasm"):
        read_cubin((BINARIES / "small_sm80.cubin").read_bytes())


def test_refuses_other_architectures_and_files() -> None:
    data = bytearray((BINARIES / "small_sm80.cubin").read_bytes())
    data[49] = 120
    with pytest.raises(InputError, match="sm_120"):
        read_cubin(bytes(data))
    for other in (b"", b"\x7fELF", b"MZ" + bytes(100), Path("/bin/true").read_bytes()):
        with pytest.raises(InputError):
            read_cubin(other)


def fatbin(*entries: tuple[int, int, bytes]) -> bytes:
    """Wrap payloads (architecture, flags, bytes)."""
    body = b""
    for architecture, flags, payload in entries:
        body += (
            struct.pack("<HHIQIIHHIIIQQQ", 2, 0x101, 64, len(payload), 0, 0, 8, 1, architecture, 0, 0, 0x11 | flags, 0, 0)[:64]
            + payload
        )
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def test_takes_the_newest_code_of_a_fatbin() -> None:
    old, new = ((BINARIES / f"small_sm{n}.cubin").read_bytes() for n in (80, 90))
    text = (BINARIES / "small_sm90.sass").read_text()
    found = read_cubin(fatbin((80, 0, old), (90, 0, new), (120, 0, new)), "", lambda code, file: text)
    assert found.kernels["weigh"].source == "sass sm_90"
    with pytest.raises(InputError, match="cuobjdump"):
        read_cubin(fatbin((80, 0x2000, old)))
    with pytest.raises(InputError, match="cut short"):
        read_cubin(fatbin((80, 0, old))[:-1])


@needs_nvcc
@needs_nvdisasm
def test_reads_a_host_object(tmp_path: Path) -> None:
    made = tmp_path / "small.o"
    subprocess.run(
        ["nvcc", "-c", "-no-compress", "-arch=sm_80", "-o", str(made), str(BINARIES / "small.cu")],
        check=True,
        capture_output=True,
    )
    assert read_cubin(made.read_bytes()).kernels == small(80).kernels


def mutated(data: bytes, generator: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 8))):
        what, place = generator.randrange(5), generator.randrange(len(changed))
        if what == 0:
            changed[place] = generator.randrange(256)
        elif what == 1:
            place &= ~3
            changed[place : place + 4] = struct.pack(
                "<I", generator.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, generator.randrange(1 << 20)))
            )
        elif what == 2:
            del changed[place:]
        elif what == 3:
            table = struct.unpack_from("<Q", data, 40)[0]
            if table + 8 < len(changed):
                place = generator.randrange(table, len(changed) - 7) & ~7
                changed[place : place + 8] = struct.pack(
                    "<Q", generator.choice((0, 1 << 63, len(data), generator.randrange(1 << 40)))
                )
        else:
            changed[generator.randrange(min(64, len(changed)))] = generator.randrange(256)
        if len(changed) < 64:
            break
    return bytes(changed)


def test_ten_thousand_damaged_files() -> None:
    """Each one is refused or read; nothing else happens, and no file makes the reader take much memory."""
    files = [(BINARIES / f"small_sm{n}.cubin").read_bytes() for n in (80, 90)]
    generator, outcomes = random.Random(20260406), {"read": 0, "refused": 0}
    tracemalloc.start()
    for number in range(10_000):
        if number == 1_000:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        try:
            read_container(mutated(files[number % 2], generator))
            outcomes["read"] += 1
        except InputError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 500
    assert peak < 300e6


def test_damaged_text() -> None:
    """Lines with parts exchanged, cut or doubled are read or refused by kernel."""
    generator, refused = random.Random(7), 0
    for architecture in (80, 90):
        lines = (BINARIES / f"small_sm{architecture}.sass").read_text().splitlines()
        for _ in range(12):
            changed = list(lines)
            for _ in range(3):
                place = generator.randrange(len(lines))
                words = changed[place].split(" ")
                generator.shuffle(words)
                changed[place] = generator.choice(
                    (" ".join(words), changed[place][: generator.randrange(90)], changed[place - 1])
                )
            try:
                refused += len(small(architecture, "\n".join(changed)).refused)
            except InputError:
                refused += 1
    assert refused > 2


@needs_nvdisasm
@pytest.mark.slow
def test_damaged_code_through_the_disassembler() -> None:
    data = (BINARIES / "small_sm80.cubin").read_bytes()
    generator = random.Random(5)
    for _ in range(120):
        with contextlib.suppress(InputError):
            read_cubin(mutated(data, generator))


def test_logic_tables_are_exact() -> None:
    bits = np.arange(8, dtype=np.uint32)
    a, b, c = bits >> 2 & 1, bits >> 1 & 1, bits & 1
    masks = [sum(int(v) << int(n) for n, v in zip(bits, x, strict=True)) for x in (a, b, c)]
    operations = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}

    def value(table: int) -> int:
        spelling = spellings()[table]
        if isinstance(spelling, int):
            return masks[spelling]
        op, x, y = spelling
        return 255 & ~value(x) if op == "not" else int(operations[op](value(x), value(y)))

    assert all(value(table) == table for table in range(1, 255))


def kernel_of(blocks: list[ir.Block], widths: dict[str, str]) -> ir.Kernel:
    return ir.Kernel("k", (ir.Parameter(0, 8),), blocks, widths, source="ptx")


def instruction(
    op: str, type_: str, dst: str = "", *src: ir.Operand, mods: tuple[str, ...] = (), guard: Any = None
) -> ir.Instruction:
    return ir.Instruction(op, type_, tuple(dst.split()), src, mods, guard)


def test_clean_keeps_an_exchange_in_a_loop() -> None:
    """Two registers exchange their values on each turn: one name for both would lose one of them."""
    widths = {"a": "b32", "b": "b32", "t": "b32", "n": "b32", "p": "pred", "out": "b64"}
    start = [instruction("mov", "b32", "a", 1), instruction("mov", "b32", "b", 2), instruction("mov", "b32", "n", 5)]
    loop = [
        *(instruction("mov", "b32", "t", "a"), instruction("mov", "b32", "a", "b"), instruction("mov", "b32", "b", "t")),
        *(instruction("sub", "u32", "n", "n", 1), instruction("setp", "u32", "p", "n", 0, mods=("ne",))),
        instruction("bra", "pred", guard=("p", True)),
    ]
    end = [instruction("param", "b64", "out", 0), instruction("st", "b32", "", "out", 0, "a", "b", mods=("global",))]
    kernel = clean(kernel_of([ir.Block(start, (1,)), ir.Block(loop, (1, 2)), ir.Block(end, ())], widths))
    ir.check(kernel)
    values = np.zeros(2, np.int32)
    run(kernel, (1, 1, 1), (1, 1, 1), [values])
    assert values.tolist() == [2, 1]


def test_clean_keeps_the_old_value_where_a_guard_is_off() -> None:
    widths = {"i": "b32", "v": "b32", "p": "pred", "q": "pred", "out": "b64", "o": "b64"}
    code = [
        *(instruction("special", "b32", "i", mods=("tid.x",)), instruction("setp", "u32", "p", "i", 2, mods=("lt",))),
        *(instruction("mov", "b32", "v", 7), instruction("mov", "b32", "v", 9, guard=("p", True))),
        *(
            instruction("param", "b64", "out", 0),
            instruction("mulwide", "u32", "o", "i", 4),
            instruction("add", "u64", "o", "o", "out"),
        ),
        *(instruction("ld", "b32", "v", "o", 0, mods=("global",), guard=("p", False)), instruction("add", "u32", "v", "v", 1)),
        instruction("st", "b32", "", "o", 0, "v", mods=("global",)),
    ]
    kernel = clean(kernel_of([ir.Block(code, ())], widths))
    values = np.array([10, 20, 30, 40], np.int32)
    run(kernel, (1, 1, 1), (4, 1, 1), [values])
    assert values.tolist() == [10, 10, 31, 41]


def test_clean_drops_an_arm_that_no_combination_of_guards_asks_for() -> None:
    """A move under one guard, used under that guard inside the arm of another selection: the old value does not matter."""
    widths = {"x": "b32", "old": "b32", "v": "b32", "p": "pred", "q": "pred", "out": "b64"}
    code = [
        *(instruction("param", "b64", "out", 0), instruction("ld", "b32", "x old", "out", 0, mods=("global",))),
        *(instruction("setp", "u32", "p", "x", 9, mods=("gt",)), instruction("setp", "u32", "q", "x", 0, mods=("ne",))),
        *(instruction("mov", "b32", "v", "old"), instruction("mov", "b32", "v", 5, guard=("p", True))),
        *(instruction("mul", "u32", "x", "x", "v", guard=("p", True)), instruction("mov", "b32", "x", 7, guard=("q", False))),
        instruction("st", "b32", "", "out", 0, "x", mods=("global",)),
    ]
    kernel = clean(kernel_of([ir.Block(code, ())], widths))
    values = np.array([20, 1000], np.int32)
    run(kernel, (1, 1, 1), (1, 1, 1), [values])
    assert values.tolist() == [100, 1000]
    assert any(i.op == "mul" and 5 in i.src for b in kernel.blocks for i in b.code)


def test_clean_drops_what_nothing_needs() -> None:
    widths = {"x": "b32", "y": "b32", "p": "pred", "out": "b64"}
    code = [
        *(instruction("param", "b64", "out", 0), instruction("mov", "b32", "x", 3), instruction("add", "u32", "y", "x", 4)),
        *(instruction("setp", "u32", "p", "y", 7, mods=("eq",)), instruction("mul", "u32", "x", "y", "y")),
        instruction("st", "b32", "", "out", 0, "y", mods=("global",), guard=("p", True)),
    ]
    kernel = clean(kernel_of([ir.Block(code, ())], widths))
    assert [(i.op, i.src, i.guard) for b in kernel.blocks for i in b.code] == [
        ("param", (0,), None),
        ("st", (kernel.blocks[0].code[0].dst[0], 0, 7), None),
    ]
