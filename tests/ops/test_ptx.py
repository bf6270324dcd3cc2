"""The reader of PTX: what instructions mean, what modules hold, what is refused and that nothing hostile gets further."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from gewu.core.errors import InputError
from gewu.ops.interp import run
from gewu.ops.ir import CONST_WINDOW, Listing
from gewu.ops.logic import lop3
from gewu.ops.ptx import read_ptx
from tests.ops.ptxtext import HALT, HISTOGRAM, SAXPY, TWICE, module

HEAD = ".version 9.0\n.target sm_90\n.address_size 64\n"
MASK = (1 << 32) - 1
N = 64


def signed(value: int, bits: int = 32) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def entry(body: str, name: str = "f", before: str = "", parameters: str = "", after: str = "") -> str:
    return f"{HEAD}{before}\n.visible .entry {name}({parameters})\n{after}{{\n{body}\n}}\n"


def three(body: str, before: str = "") -> str:
    """Return a kernel that computes d from the words a, b, c of each thread, and from the doubles of words A, B, C to D."""
    return entry(
        f"""
        .reg .pred p, q;  .reg .b16 h, k;  .reg .b32 i, a, b, c, d, e;  .reg .b64 at, x, A, B, C, D;
        mov.u32 i, %tid.x;
        ld.param.u64 x, [p0];  mad.wide.u32 at, i, 8, x;  ld.global.v2.b32 {{a, e}}, [at];  ld.global.b64 A, [at];
        ld.param.u64 x, [p1];  mad.wide.u32 at, i, 8, x;  ld.global.b32 b, [at+0];  ld.global.b64 B, [at];
        ld.param.u64 x, [p2];  mad.wide.u32 at, i, 8, x;  ld.global.b32 c, [at];  ld.global.b64 C, [at];
        mov.u32 d, 0;  mov.u64 D, 0;
        {body}
        cvt.u64.u32 x, d;  or.b64 D, D, x;
        ld.param.u64 x, [p3];  mad.wide.u32 at, i, 8, x;  st.global.u64 [at], D;
        ret;""",
        parameters=", ".join(f".param .u64 .ptr .global .align 8 p{k}" for k in range(4)),
        before=before,
    )


def words(seed: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 1 << 64, N, dtype=np.uint64)
    found[:6] = [0, MASK, (1 << 64) - 1, 1 << 31, 0x7FFFFFFF, 1]
    found[6:12] = [5, 17, 40, 0x1003, 0x3F800000, 0x7FC00001]
    return np.roll(found, 5 * seed)


def compute(body: str, before: str = "") -> tuple[list[tuple[int, int, int]], list[int]]:
    listing = read_ptx(three(body, before))
    assert not listing.refused, listing.refused
    a, b, c, d = words(0), words(1), words(2), np.zeros(N, np.uint64)
    run(listing.kernels["f"], (1, 1, 1), (N, 1, 1), [a, b, c, d])
    return [(int(x), int(y), int(z)) for x, y, z in zip(a, b, c, strict=True)], [int(x) for x in d]


def bfe(a: int, position: int, length: int, sign: bool) -> int:
    position, length = position & 255, length & 255
    top = min(position + length - 1, 31)
    fill = 0 if not sign or length == 0 else a >> top & 1
    return sum((a >> (position + k) & 1 if k < length and position + k < 32 else fill) << k for k in range(32))


def bfi(field: int, base: int, position: int, length: int) -> int:
    mask = ((1 << (length & 255)) - 1) << (position & 255) & MASK
    return base & ~mask | field << (position & 255) & mask


def highest(a: int, sign: bool) -> int:
    a = a ^ MASK if sign and a >> 31 else a
    return a.bit_length() - 1 if a else MASK


def permuted(a: int, b: int, selector: int) -> int:
    parts = a.to_bytes(4, "little") + b.to_bytes(4, "little")
    picks = [selector >> 4 * k & 15 for k in range(4)]
    return int.from_bytes(bytes((255 if parts[p & 7] & 128 else 0) if p & 8 else parts[p & 7] for p in picks), "little")


WORDS: Mapping[str, Callable[[int, int, int], int]] = {
    "add.s32 d, a, b;": lambda a, b, c: a + b,
    "sub.u32 d, a, -7;": lambda a, b, c: a + 7,
    "add.sat.s32 d, a, b;": lambda a, b, c: min(max(signed(a) + signed(b), -(1 << 31)), (1 << 31) - 1),
    "mul.lo.s32 d, a, 0x10001;": lambda a, b, c: a * 0x10001,
    "mul.hi.u32 d, a, b;": lambda a, b, c: a * b >> 32,
    "mad.hi.s32 d, a, b, c;": lambda a, b, c: (signed(a) * signed(b) >> 32) + c,
    "mad.lo.u32 d, a, b, 010;": lambda a, b, c: a * b + 8,
    "mul24.lo.s32 d, a, b;": lambda a, b, c: signed(a, 24) * signed(b, 24),
    "mul24.hi.u32 d, a, b;": lambda a, b, c: (a & 0xFFFFFF) * (b & 0xFFFFFF) >> 16,
    "mad24.lo.u32 d, a, b, c;": lambda a, b, c: (a & 0xFFFFFF) * (b & 0xFFFFFF) + c,
    "cvt.u16.u32 h, a; mul.hi.u16 h, h, 0xFFFF; cvt.u32.u16 d, h;": lambda a, b, c: (a & 0xFFFF) * 0xFFFF >> 16,
    "cvt.u16.u32 h, a; cvt.u16.u32 k, b; mul.wide.s16 d, h, k;": lambda a, b, c: signed(a, 16) * signed(b, 16),
    "or.b32 e, b, 1; div.u32 d, a, e;": lambda a, b, c: a // (b | 1),
    "or.b32 e, b, 3; rem.u32 d, a, e;": lambda a, b, c: a % (b | 3),
    "min.s32 d, a, b;": lambda a, b, c: min(signed(a), signed(b)),
    "max.u32 d, a, b, c;": lambda a, b, c: max(a, b, c),
    "neg.s32 d, a;": lambda a, b, c: -a,
    "abs.s32 d, a;": lambda a, b, c: abs(signed(a)),
    "and.b32 e, b, 63; shl.b32 d, a, e;": lambda a, b, c: a << (b & 63),
    "and.b32 e, b, 63; shr.b32 d, a, e;": lambda a, b, c: a >> (b & 63),
    "and.b32 e, b, 63; shr.s32 d, a, e;": lambda a, b, c: signed(a) >> (b & 63),
    "shf.l.wrap.b32 d, a, b, c;": lambda a, b, c: (b << 32 | a) << (c & 31) >> 32,
    "shf.l.clamp.b32 d, a, b, c;": lambda a, b, c: (b << 32 | a) << min(c, 32) >> 32,
    "shf.r.wrap.b32 d, a, b, c;": lambda a, b, c: (b << 32 | a) >> (c & 31),
    "shf.r.clamp.b32 d, a, b, 40;": lambda a, b, c: b,
    "lop3.b32 d, a, b, c, 0x96;": lambda a, b, c: a ^ b ^ c,
    "lop3.b32 d, a, b, c, 0xE8;": lambda a, b, c: a & b | a & c | b & c,
    "lop3.b32 d, a, -1, c, 0xCA;": lambda a, b, c: a & MASK | ~a & c,
    "bmsk.clamp.b32 d, 3, a;": lambda a, b, c: ((1 << min(a, 32)) - 1 << 3) & MASK,
    "bmsk.clamp.b32 d, b, 5;": lambda a, b, c: 31 << b & MASK if b < 32 else 0,
    "bmsk.wrap.b32 d, b, 5;": lambda a, b, c: 31 << (b & 31) & MASK,
    "bfe.u32 d, a, b, c;": lambda a, b, c: bfe(a, b, c, False),
    "bfe.s32 d, a, 3, 5;": lambda a, b, c: bfe(a, 3, 5, True),
    "bfi.b32 d, a, b, c, 9;": lambda a, b, c: bfi(a, b, c, 9),
    "bfind.u32 d, a;": lambda a, b, c: highest(a, False),
    "bfind.s32 d, a;": lambda a, b, c: highest(a, True),
    "bfind.shiftamt.u32 d, a;": lambda a, b, c: 31 - highest(a, False) if a else MASK,
    "brev.b32 d, a;": lambda a, b, c: int(f"{a:032b}"[::-1], 2),
    "popc.b32 d, a;": lambda a, b, c: a.bit_count(),
    "clz.b32 d, a;": lambda a, b, c: 32 - a.bit_length(),
    "prmt.b32 d, a, b, c;": permuted,
    "dp4a.s32.u32 d, a, b, c;": lambda a, b, c: c + sum(signed(a >> 8 * k, 8) * (b >> 8 * k & 255) for k in range(4)),
    "sad.s32 d, a, b, c;": lambda a, b, c: abs(signed(a) - signed(b)) + c,
    "slct.b32.s32 d, a, b, c;": lambda a, b, c: a if signed(c) >= 0 else b,
    "setp.lt.s32 p, a, b; selp.b32 d, a, b, p;": lambda a, b, c: min(signed(a), signed(b)),
    "setp.hi.u32 p, a, b; @!p mov.b32 d, 7;": lambda a, b, c: 0 if a > b else 7,
    "setp.lt.u32 p, c, 9; setp.gt.and.s32 p|q, a, b, p; selp.u32 d, 1, 0, p; selp.u32 e, 2, 0, q; add.u32 d, d, e;": (
        lambda a, b, c: (1 if signed(a) > signed(b) else 2) * (c < 9)
    ),
    "setp.lt.u32 p, c, 9; setp.eq.xor.u32 q, a, b, !p; selp.u32 d, 1, 0, q;": lambda a, b, c: int((a == b) != (c >= 9)),
    "set.ge.u32.s32 d, a, b;": lambda a, b, c: MASK if signed(a) >= signed(b) else 0,
    "set.lt.f32.u32 d, a, b;": lambda a, b, c: 0x3F800000 if a < b else 0,
    "testp.notanumber.f32 p, a; selp.u32 d, 1, 0, p;": lambda a, b, c: int(a & 0x7FFFFFFF > 0x7F800000),
    "testp.subnormal.f32 p, a; selp.u32 d, 1, 0, p;": lambda a, b, c: int(a & 0x7FFFFFFF < 0x800000),
    "testp.normal.f32 p, a; selp.u32 d, 1, 0, p;": lambda a, b, c: int(0 < a >> 23 & 255 < 255),
    "testp.finite.f32 p, a; selp.u32 d, 1, 0, p;": lambda a, b, c: int(a >> 23 & 255 < 255),
    "copysign.f32 d, a, b;": lambda a, b, c: a & 1 << 31 | b & MASK >> 1,
    "neg.f32 d, 0f3F800000;": lambda a, b, c: 0xBF800000,
    "mov.f32 d, 1.5;": lambda a, b, c: 0x3FC00000,
    "cvt.s32.s8 d, a;": lambda a, b, c: signed(a, 8),
    "cvt.u32.u8 d, a;": lambda a, b, c: a & 255,
    "cvt.s32.s16 d, a;": lambda a, b, c: signed(a, 16),
    "cvt.sat.u8.s32 d, a;": lambda a, b, c: min(max(signed(a), 0), 255),
    "cvt.sat.s8.s32 d, a;": lambda a, b, c: min(max(signed(a), -128), 127),
    "cvt.sat.u8.u32 d, a;": lambda a, b, c: min(a, 255),
    "cvt.sat.s16.s32 h, a; cvt.s32.s16 d, h;": lambda a, b, c: min(max(signed(a), -32768), 32767),
    "mov.b32 {h, k}, a; mov.b32 d, {k, h};": lambda a, b, c: a >> 16 | a << 16,
    "add.cc.u32 d, a, b; addc.u32 d, c, 0;": lambda a, b, c: c + (a + b >> 32),
    "sub.cc.u32 d, a, b; subc.u32 d, c, 5;": lambda a, b, c: c - 5 - (a < b),
    "mad.lo.cc.u32 d, a, b, c; madc.hi.u32 d, a, b, 1;": lambda a, b, c: (a * b + c >> 32) + 1,
    "isspacep.global p, x; selp.u32 d, 3, 4, p;": lambda a, b, c: 3,
    "mov.u32 d, a; { .reg .b32 d, t5; mov.u32 d, 9; mov.u32 t5, d; }": lambda a, b, c: a,
    "add.sat.s32 d, a, -5;": lambda a, b, c: max(signed(a) - 5, -(1 << 31)),
    "sub.sat.s32 d, a, -5;": lambda a, b, c: min(signed(a) + 5, (1 << 31) - 1),
    "{ .reg .b32 d; mov.u32 d, 9; bra L; L: add.u32 d, d, 1; } { bra L; L: mov.u32 d, b; }": lambda a, b, c: b,
    "bra.uni OVER; mov.u32 d, 1; OVER: add.u32 d, d, 2;": lambda a, b, c: 2,
    "LOOP: add.u32 d, d, 3; setp.lt.u32 p, d, 10; @p bra LOOP;": lambda a, b, c: 12,
    "setp.lt.u32 p, a, b; @p bra.uni X; mov.u32 d, 4; X:": lambda a, b, c: 0 if a < b else 4,
    ".loc 1 2 3, $L__info + 4, inlined_at 1 2 3\n mov.u32 d, /* 1; */ 0b101; // 7": lambda a, b, c: 5,
    '.pragma "nounroll"; mov.u32 d, WARP_SZ;': lambda a, b, c: 32,
}
DOUBLES: Mapping[str, Callable[[int, int, int], int]] = {
    "add.s64 D, A, B;": lambda a, b, c: a + b,
    "mul.hi.s64 D, A, B;": lambda a, b, c: signed(a, 64) * signed(b, 64) >> 64,
    "mul.wide.s32 D, a, b;": lambda a, b, c: signed(a) * signed(b),
    "mad.wide.u32 D, a, b, C;": lambda a, b, c: (a & MASK) * (b & MASK) + c,
    "add.cc.u64 D, A, B; addc.u64 D, C, 1;": lambda a, b, c: c + 1 + (a + b >> 64),
    "add.cc.u64 D, A, B; addc.cc.u64 D, C, B; addc.u64 D, D, 0;": (
        lambda a, b, c: (c + b + (a + b >> 64)) % (1 << 64) + (c + b + (a + b >> 64) >> 64)
    ),
    "mov.b64 {d, e}, A; mov.b64 D, {e, d}; mov.u32 d, 0;": lambda a, b, c: a >> 32 | a << 32,
    "{ .reg .b16 v<4>; mov.b64 {v0, v1, v2, v3}, A; mov.b64 D, {v3, v2, v1, v0}; }": (
        lambda a, b, c: sum((a >> 16 * k & 0xFFFF) << 16 * (3 - k) for k in range(4))
    ),
    "cvt.s64.s32 D, a;": lambda a, b, c: signed(a),
    "and.b32 e, b, 127; shr.s64 D, A, e;": lambda a, b, c: signed(a, 64) >> (b & 127),
    "clz.b64 d, A;": lambda a, b, c: 64 - a.bit_length(),
    "selp.f64 D, 0d3FF0000000000000, 2.0, 1;": lambda a, b, c: 0x3FF << 52,
    "bfi.b64 D, A, B, 20, 30;": lambda a, b, c: b & ~((1 << 50) - (1 << 20)) | (a & (1 << 30) - 1) << 20,
    "bfe.s64 D, A, 4, 16;": lambda a, b, c: signed(a >> 4, 16),
    "mov.f64 D, -0f3FC00000;": lambda a, b, c: 0xBFF8 << 48,
}


@pytest.mark.parametrize("body", list(WORDS))
def test_words(body: str) -> None:
    given, got = compute(body)
    want = [WORDS[body](*(x & MASK for x in row)) & MASK for row in given]
    assert got == want


@pytest.mark.parametrize("body", list(DOUBLES))
def test_double_words(body: str) -> None:
    given, got = compute(body)
    assert got == [DOUBLES[body](*row) & (1 << 64) - 1 for row in given]


COPY = """{ .shared .align 8 .b8 s[512]; .reg .b32 t, z; mov.u32 t, s; shl.b32 z, i, 3; add.u32 t, t, z;
    st.shared.b64 [t], B; and.b32 z, b, SIZES; cp.async.ca.shared.global [t], [at], 8, z;
    cp.async.commit_group; cp.async.wait_group 0; ld.shared.b64 D, [t]; }"""


def test_asynchronous_copies_fill_with_zeros() -> None:
    given, got = compute(COPY.replace("SIZES", "12"))
    assert got == [c & ((1 << 8 * min(b & 12, 8)) - 1) for _, b, c in given]
    assert len({b & 12 for _, b, _ in given}) == 4


def test_asynchronous_copies_of_part_of_a_word_stop() -> None:
    with pytest.raises(InputError, match="trap"):
        compute(COPY.replace("SIZES", "15"))


def test_all_tables_of_three_bits() -> None:
    def emit(op: str, *values: Any) -> str:
        a, *b = (int(v) for v in values)
        return str({"and": lambda: a & b[0], "or": lambda: a | b[0], "xor": lambda: a ^ b[0], "not": lambda: ~a & 255}[op]())

    for table in range(256):
        assert int(lop3(table, "240", "204", "170", emit, 255)) == table
        for a in (0, 255):
            bits = [table >> (4 * (a > 0) + k & 7) & 1 for k in range(4)]
            want = sum(bits[k >> 0 & 3] << k for k in (0, 1, 2, 3))
            assert int(lop3(table, a, "12", "10", emit, 255)) & 15 == want


CALLS = """
.func (.param .b32 r) twice(.param .b32 v) { .reg .b32 t; ld.param.b32 t, [v]; add.u32 t, t, t; st.param.b32 [r], t; ret; }
.func (.reg .b32 o) swap(.reg .b32 i) { .reg .b32 t; prmt.b32 t, i, 0, 0x0123; mov.b32 o, t; }
.func odd(.param .align 8 .b8 v[16]) { ret; }
.func again() { call again; ret; }
"""
CALL = "{ .param .b32 v; .param .b32 r; st.param.b32 [v], a; call.uni (r), twice, (v); ld.param.b32 d, [r]; }"


@pytest.mark.parametrize(
    ("body", "meaning"),
    [
        (CALL, lambda a, b, c: 2 * a),
        (CALL + CALL.replace("[v], a", "[v], d"), lambda a, b, c: 4 * a),
        ("call (d), swap, (a);", lambda a, b, c: int.from_bytes(a.to_bytes(4, "little"), "big")),
        ("setp.lt.u32 p, a, b; @p call (d), swap, (7);", lambda a, b, c: 7 << 24 if a < b else 0),
        ("{ .param .b64 v; st.param.v2.b32 [v], {a, b}; ld.param.b64 D, [v]; shr.u64 D, D, 32; }", lambda a, b, c: b),
        ("{ .param .b64 v; st.param.b64 [v+0], A; ld.param.b32 d, [v+4]; ld.param.b32 d, [v]; }", lambda a, b, c: a),
    ],
)
def test_calls(body: str, meaning: Callable[[int, int, int], int]) -> None:
    given, got = compute(body, CALLS)
    assert got == [meaning(*(x & MASK for x in row)) & MASK for row in given]


def test_a_failed_assertion_traps_and_printing_gives_zero() -> None:
    given, got = compute("{ .param .b32 r; mov.b32 d, 9; call.uni (r), vprintf, (A, B); ld.param.b32 e, [r]; add.u32 d, d, e; }")
    assert got == [9] * len(given)
    assertion = "setp.ne.u32 p, d, 0; @p call __assertfail, (A, B, c, C, D);"
    assert compute(assertion)[1] == [0] * len(given)
    with pytest.raises(InputError, match="trap"):
        compute("mov.b32 d, 1; " + assertion)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("call again;", "recursive"),
        ("call malloc, (a);", "malloc"),
        ("call (d), A, (a), proto;", "a call"),
        ("call odd, (v);", "parameter"),
        ("call (d), twice;", "number of parameters"),
        ("fns.b32 d, a, b, c;", "unknown instruction `fns.b32`"),
        ("tex.2d.v4.f32.s32 {a, b, c, d}, [tex, {a, b}];", "unknown instruction `tex.2d.v4.f32.s32`"),
        ("add.s32.frob d, a, b;", "unknown instruction `add.s32.frob`"),
        ("add.f32.f16 d, h, a;", "unknown instruction"),
        ("cvt.rn.satfinite.f16.f32 h, a;", "conversion"),
        ("mul.s32 d, a, b;", "without lo, hi or wide"),
        ("bar.sync 0, 32;", "some of the threads"),
        ("bar.arrive 0, 64;", "unknown instruction"),
        ("add.s32 d, A, b;", "b64 where b32 belongs"),
        ("add.s32 d, zz, b;", "not declared"),
        ("add.f32 d, a, 3;", "immediate"),
        ("add.s32 d, a;", "operands"),
        ("bra NOWHERE;", "label"),
        ("{ INNER: mov.u32 d, 1; } bra INNER;", "label"),
        ("addc.u32 d, a, b;", "carry"),
        ("ld.global.u64 d, [A];", "too narrow"),
        ("ld.param.u64 A, [p0+4];", "past a parameter"),
        ("st.param.u64 [p0], A;", "parameter"),
        ("prmt.b32.f4e d, a, b, c;", "unknown instruction"),
        ("atom.global.add.noftz.f16 h, [A], h;", "unknown instruction"),
        ("atom.global.add.s64 D, [A], B;", "atomic"),
        ("shfl.sync.bfly.b32 d, a, 1;", "operands"),
        ("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {d}, {a}, {b}, {c};", "unknown instruction"),
        ("mov.u32 d, %clock_hi;", "not declared"),
        ("@d mov.u32 d, 1;", "no predicate"),
        ("st.global.u32 [counter], a;", "writes a module variable"),
        ("mov.u64 A, counter; add.u64 A, A, B; red.global.add.u32 [A], 1;", "writes a module variable"),
        ("ld.global.u32 d, [unset];", "only the host sets"),
        ("ld.shared.u32 d, [counter];", "another space"),
        ("ld.global.u64 D, [methods];", "initial values"),
        ("ld.global.u8 d, [bytes];", "initial values"),
        (".reg .texref t;", "registers of a type"),
        (".reg .b32 r<100001>;", "size"),
        (".local .b8 big[2000000];", "local memory"),
        (".shared .b8 big[300000];", "shared memory"),
    ],
)
def test_what_is_refused_says_why_and_the_others_go_on(body: str, reason: str) -> None:
    before = CALLS + ".global .u32 counter = 1; .global .u32 unset;"
    before += ".global .u64 methods[2] = {0, twice}; .global .b8 bytes[8] = {0xFF(counter), 0xFF00(counter)};"
    other = three("add.s32 d, a, b;").removeprefix(HEAD).replace("entry f(", "entry good(")
    listing = read_ptx(three(body, before) + other)
    assert list(listing.kernels) == ["good"] and list(listing.refused) == ["f"]
    assert reason in listing.refused["f"]


def test_the_refusal_names_the_line() -> None:
    line = next(k for k, text in enumerate(HALT.decode().splitlines(), 1) if "frobnicate" in text)
    listing = read_ptx(module(HALT, SAXPY).decode())
    assert listing.refused == {"halt": f"unknown instruction `frobnicate.f32` at line {line}"}
    assert list(listing.kernels) == ["saxpy"]


def test_parameters_limits_and_target() -> None:
    text = entry(
        "ret;",
        parameters=".param .u8 a, .param .f64 b, .param .align 16 .b8 c[20], .param .u64 .ptr .global .align 4 d, .param .s16 e",
        after=".reqntid 32, 4\n.minnctapersm 2\n",
    )
    kernel = read_ptx(text).kernels["f"]
    assert [(p.name, p.offset, p.size, p.kind) for p in kernel.parameters] == [
        ("a", 0, 1, "u8"),
        ("b", 8, 8, "f64"),
        ("c", 16, 20, ""),
        ("d", 40, 8, "u64"),
        ("e", 48, 2, "s16"),
    ]
    assert (kernel.required, kernel.limit, kernel.source) == ((32, 4, 1), 128, "ptx sm_90")
    assert read_ptx(entry("ret;", after=".maxntid 64, 2\n")).kernels["f"].limit == 128


def test_shared_memory_is_laid_out_before_the_code_is_read() -> None:
    before = ".extern .shared .align 32 .b8 dynamic[]; .shared .align 4 .b8 unused[64]; .shared .align 8 .f64 one;"
    body = """.reg .b32 r<4>; mov.u32 r0, dynamic; mov.u32 r1, one; { .shared .align 4 .b8 late[12]; mov.u32 r2, late; }
        st.shared.u32 [r0], r1; st.shared.u32 [r2+4], r0; ret;"""
    kernel = read_ptx(entry(body, before=before)).kernels["f"]
    moved = {i.dst[0]: i.src[0] for b in kernel.blocks for i in b.code if i.op == "mov"}
    assert moved == {"r0": 32, "r1": 0, "r2": 8} and kernel.shared == 32


def test_module_data() -> None:
    before = """.const .align 4 .f32 half[2] = {0f3F000000, -0f3F800000}; .global .align 2 .u16 small[4] = {1, -1, 0x10};
        .global .align 8 .u64 where[2] = {generic(small)+2, half};"""
    body = ".reg .b64 x; .reg .b32 r; ld.const.f32 r, [half+4]; ld.global.u64 x, [where]; ret;"
    kernel = read_ptx(entry(body, before=before)).kernels["f"]
    assert np.frombuffer(kernel.data, np.float32, 2, 16).tolist() == [0.5, -1.0]
    assert np.frombuffer(kernel.data, np.uint16, 4, 24).tolist() == [1, 65535, 16, 0]
    assert np.frombuffer(kernel.data, np.uint64, 2, 32).tolist() == [CONST_WINDOW + 26, CONST_WINDOW + 16]


def test_a_variable_that_one_kernel_writes_is_read_by_none() -> None:
    before = ".global .u32 counter = 1; .global .u32 table = 2;"
    text = entry(".reg .b32 r; ld.global.u32 r, [counter]; ret;", "reads", before)
    for name, body in {"writes": "st.global.u32 [counter], 1;", "other": ".reg .b32 r; ld.global.u32 r, [table];"}.items():
        text += entry(body + " ret;", name).removeprefix(HEAD)
    listing = read_ptx(text)
    assert list(listing.kernels) == ["other"] and sorted(listing.refused) == ["reads", "writes"]


def test_the_number_two_is_no_address() -> None:
    before = ".global .u32 counter = 1;"
    text = entry(".reg .f64 r; mov.f64 r, 0d4000000000000000; ret;", "two", before)
    text += entry("st.global.u32 [counter], 1; ret;", "writes").removeprefix(HEAD)
    assert list(read_ptx(text).kernels) == ["two"]


def test_unreachable_blocks_go_and_guards_stay() -> None:
    body = ".reg .pred p; .reg .b32 r; setp.eq.u32 p, r, 0; @!p add.u32 r, r, 1; @p ret; bra A; mov.u32 r, 5; A: exit;"
    kernel = read_ptx(entry(body)).kernels["f"]
    code = [i for b in kernel.blocks for i in b.code]
    assert not any(i.op == "mov" and i.src == (5,) for i in code)
    assert next(i for i in code if i.op == "add").guard == ("p", False)
    assert [b.next for b in kernel.blocks if b.code[-1].op == "exit" and b.code[-1].guard] == [(1,)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        ".version 9.0\n.target sm_90\n.address_size 32\n",
        HEAD + "/* no end",
        HEAD + ".visible .entry f(",
        HEAD + ".visible .entry f() { ret;",
        HEAD + ".visible .entry f() { ret; } }",
        HEAD + ".visible .entry f() { \x00 }",
        HEAD + ".global .b8 a[99999999];",
        HEAD + ".global .align 3000000000 .b8 a[4];",
        HEAD + ".section .debug { .b8 1",
    ],
)
def test_what_is_no_module_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError):
        read_ptx(text, "name.ptx")


@pytest.mark.parametrize(
    "body",
    [
        "".join(f"{{ .reg .b32 a{k};" for k in range(5000)) + "}" * 5000 + "ret;",
        "mov.u32 a, " + "{" * 5000 + "a" + "}" * 5000 + ";",
        ".reg .b32 a<" + "9" * 5000 + ">;",
        "add.u32 " + "a," * 20000 + "a;",
        "mov.u32 a, " + "-" * 20000 + "1;",
        "mov.u32 " + "a" * 200000 + ", 1;",
    ],
)
def test_deep_and_long_input_ends(body: str) -> None:
    try:
        assert isinstance(read_ptx(entry(body)), Listing)
    except InputError:
        return


def test_inlining_does_not_explode() -> None:
    functions = [f".func f{k}() {{ call f{k + 1}; call f{k + 1}; ret; }}" for k in range(20)]
    before = "\n".join([*functions, ".func f20() { ret; }"])
    assert "more instructions" in read_ptx(entry("call f0; ret;", before=before)).refused["f"]


NUMBERS = (
    "0",
    "-1",
    "99999",
    "100001",
    "4294967295",
    "18446744073709551616",
    "0xffffffffffffffffffff",
    "1e400",
    "0f7FC00000",
    "018",
)
MARKS = (*'[](){},;:@!+|<>=-%."/*', "::", "//", "/*", "*/")


def mutated(text: str, rng: random.Random, texts: list[str]) -> str:
    """Return a module damaged in one to sixteen places."""
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        i = rng.randrange(len(text) + 1)
        j = min(len(text), i + rng.choice((1, 2, 8, 64, 2000)))
        word, other = re.compile(r"[%$.\w]+").search(text, i), rng.choice(texts)
        number = re.compile(r"\d+").search(text, i)
        at = rng.randrange(len(other))
        text = rng.choice(
            (
                text[:i] + chr(rng.randrange(1, 0x250)) + text[i + 1 :],
                text[:i] + text[j:],
                text[:i] + text[i:j] * rng.choice((2, 3, 40)) + text[j:],
                text[:i] if rng.random() < 0.2 else text,
                text[:i] + rng.choice(MARKS) + text[i:],
                text[: number.start()] + rng.choice(NUMBERS) + text[number.end() :] if number else text,
                text[:i] + other[at : at + rng.randrange(200)] + text[i:],
                text[: word.start()] + rng.choice(re.findall(r"[%$.\w]+", other)) + text[word.end() :] if word else text,
            )
        )
    return text


def survive(texts: list[str], seed: int, count: int) -> dict[str, int]:
    rng, found = random.Random(seed), {"read": 0, "refused": 0, "error": 0}
    for _ in range(count):
        try:
            listing = read_ptx(mutated(rng.choice(texts), rng, texts))
            found["refused" if listing.refused else "read"] += 1
        except InputError:
            found["error"] += 1
    return found


def small_modules() -> list[str]:
    bodies = [three(body, CALLS) for body in (CALL, "call (d), swap, (a);", *list(WORDS)[::6])]
    return [module(SAXPY, HISTOGRAM).decode(), module(TWICE, HALT).decode(), *bodies]


def test_mutations_are_refused_or_read() -> None:
    found = survive(small_modules(), 7, 600)
    assert min(found.values()) > 20, found  # the mutator reaches all three ends


@pytest.mark.slow
def test_many_mutations_are_refused_or_read() -> None:
    found = survive(small_modules(), 8, 10_000)
    assert min(found.values()) > 500, found
