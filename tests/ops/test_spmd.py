"""SPMD code against NumPy: pure operations, control flow, memory, warps, barriers, failures; CUDA where nvcc is there."""

import math
from fractions import Fraction

import numpy as np
import pytest

from gewu.ops import ir
from gewu.ops.spmd import compile_spmd
from tests.ops.assembly import assemble

LETTER = {1: "p", 16: "h", 32: "r", 64: "d"}
INDEX = """
a:
  special.b32 rt = | tid.x
  special.b32 rc = | ctaid.x
  special.b32 rn = | ntid.x
  mul.s32 ri = rc rn
  add.s32 ri = ri rt
"""


def _elementwise(op: str, kind: str, mods: str, bits: list[int], out: int) -> ir.Kernel:
    """Return out[i] = op(source0[i], source1[i] ...) for i < n."""
    text = INDEX + f"  param.b32 rm = {8 * len(bits) + 8}\n  setp.s32 p9 = ri rm | ge\n  @p9 exit\n  -> b\nb:\n"
    names = []
    for i, width in enumerate(bits):
        size = max(width, 32) // 8 if width == 1 else width // 8
        text += f"  param.b64 da{i} = {8 * i}\n  mulwide.s32 do{i} = ri {size}\n  add.s64 da{i} = da{i} do{i}\n"
        if width == 1:
            text += f"  ld.b32 rs{i} = da{i} 0 | global\n  setp.b32 ps{i} = rs{i} 0 | ne\n"
        else:
            text += f"  ld.b{width} {LETTER[width]}s{i} = da{i} 0 | global\n"
        names.append(f"{LETTER[width]}s{i}")
    text += f"  {op}.{kind} {LETTER[out]}z = {' '.join(names)} | {mods}\n  param.b64 dr = {8 * len(bits)}\n"
    if out == 1:
        text += "  select.b32 rz = 1 0 pz\n"
    width = 32 if out == 1 else out
    text += f"  mulwide.s32 dy = ri {width // 8}\n  add.s64 dr = dr dy\n  st.b{width} dr 0 {LETTER[width]}z | global\n  exit\n"
    return assemble("k", [8] * (len(bits) + 1) + [4], text)


def apply(op: str, kind: str, mods: str, arrays: list[np.ndarray], dtype: str, out: int = 0, bits: list[int] | None = None):
    """Run one operation over arrays."""
    bits = bits or [a.dtype.itemsize * 8 for a in arrays]
    result = np.zeros(len(arrays[0]), dtype)
    kernel = _elementwise(op, kind, mods, bits, out or result.dtype.itemsize * 8)
    compiled = compile_spmd(kernel, (64, 1, 1))
    compiled.launch((-(-len(result) // 64), 1, 1), [*arrays, result, np.int32(len(result))])
    return result


def whole(dtype: str, seed: int, count: int = 331) -> np.ndarray:
    """Return integers: edges, small ones, all."""
    rng, info = np.random.default_rng(seed), np.iinfo(dtype)
    x = rng.integers(info.min, info.max, count, dtype=dtype, endpoint=True)
    edges = np.array([0, 1, 2, 3, info.max, info.min, info.max - 1, info.min + 1, 7, 31], dtype)
    x[:90], x[90:180] = rng.choice(edges, 90), rng.integers(0, 70, 90).astype(dtype)
    return x


def real(dtype: str, seed: int, count: int = 331) -> np.ndarray:
    """Return floats of all sizes with zeros, infinities, NaN and ties."""
    rng = np.random.default_rng(seed)
    with np.errstate(over="ignore"):
        x = (rng.standard_normal(count) * np.exp(rng.uniform(-20, 20, count))).astype(dtype)
    edges = [0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 0.5, 2.5, -2.5, 3.5, 1e-40]
    x[:12] = edges
    return np.roll(x, 5 * seed)


def same(got: np.ndarray, want: np.ndarray) -> None:
    """Assert equality, NaN equal to NaN."""
    np.testing.assert_array_equal(got, want)


def _quotient(x: int, y: int) -> int:
    if y == 0:
        return -1
    return abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)


def _field(x: int, position: int, length: int, width: int, signed: bool) -> int:
    position, length = position & 255, length & 255
    if length == 0:
        return 0
    field = (x >> position) & ((1 << length) - 1) if signed else ((x & ((1 << width) - 1)) >> position) & ((1 << length) - 1)
    return field - (1 << length) if signed and field >> (length - 1) & 1 else field


INTEGER = {
    "add": lambda x, y, w: x + y,
    "sub": lambda x, y, w: x - y,
    "mul": lambda x, y, w: x * y,
    "mulhi": lambda x, y, w: (x * y) >> w,
    "div": lambda x, y, w: _quotient(x, y),
    "rem": lambda x, y, w: x if y == 0 else x - y * _quotient(x, y),
    "min": lambda x, y, w: min(x, y),
    "max": lambda x, y, w: max(x, y),
}


def wrapped(values: list[int], dtype: str) -> np.ndarray:
    """Return numbers cut to a type."""
    bits = np.dtype(dtype).itemsize * 8
    return np.array([v & ((1 << bits) - 1) for v in values], f"u{bits // 8}").view(dtype)


@pytest.mark.parametrize(("kind", "dtype"), [("s32", "i4"), ("u32", "u4"), ("s64", "i8"), ("u64", "u8")])
def test_integer_operations_equal_exact_arithmetic(kind: str, dtype: str) -> None:
    x, y, n, length = whole(dtype, 1), whole(dtype, 2), whole("u4", 3), whole("u4", 4)
    width = x.dtype.itemsize * 8
    a, b = x.tolist(), y.tolist()
    for name, rule in INTEGER.items():
        want = wrapped([rule(p, q, width) for p, q in zip(a, b, strict=True)], dtype)
        np.testing.assert_array_equal(apply(name, kind, "", [x, y], dtype), want, err_msg=name)
    shifts = n.tolist()
    same(apply("shl", f"b{width}", "", [x, n], dtype), wrapped([p << min(q, 99) for p, q in zip(a, shifts, strict=True)], dtype))
    same(apply("shr", kind, "", [x, n], dtype), wrapped([p >> min(q, 99) for p, q in zip(a, shifts, strict=True)], dtype))
    fields = [_field(p, q, r, width, kind[0] == "s") for p, q, r in zip(a, shifts, length.tolist(), strict=True)]
    same(apply("bfe", kind, "", [x, n, length], dtype), wrapped(fields, dtype))
    raw = [p & ((1 << width) - 1) for p in a]
    flipped = [~p & ((1 << width) - 1) if p < 0 else p for p in a]
    same(apply("flo", kind, "", [x], "u4"), wrapped([p.bit_length() - 1 for p in flipped], "u4"))
    same(apply("popc", f"b{width}", "", [x], "u4"), wrapped([p.bit_count() for p in raw], "u4"))
    same(apply("brev", f"b{width}", "", [x], dtype), wrapped([int(f"{p:0{width}b}"[::-1], 2) for p in raw], dtype))
    with np.errstate(over="ignore"):
        same(apply("setp", kind, "lt", [x, y], "u4", out=1), (x < y).astype("u4"))


def test_bytes_are_picked_and_multiplied() -> None:
    x, y, z = whole("u4", 1), whole("u4", 2), whole("u4", 3)

    def bytes_of(v: int) -> list[int]:
        return list(v.to_bytes(4, "little"))

    def permuted(a: int, b: int, selector: int) -> int:
        source, result = bytes_of(a) + bytes_of(b), 0
        for place in range(4):
            nibble = selector >> 4 * place & 15
            byte = source[nibble & 7]
            result |= ((255 if byte & 128 else 0) if nibble & 8 else byte) << 8 * place
        return result

    triples = list(zip(x.tolist(), y.tolist(), z.tolist(), strict=True))
    same(apply("prmt", "b32", "", [x, y, z], "u4"), wrapped([permuted(*t) for t in triples], "u4"))
    for signs in ("s8 s8", "s8 u8", "u8 u8"):
        one, two = (s[0] == "s" for s in signs.split())

        def dot(a: int, b: int, c: int, one: bool = one, two: bool = two) -> int:
            pairs = zip(bytes_of(a), bytes_of(b), strict=True)
            return c + sum((p - 256 * (one and p > 127)) * (q - 256 * (two and q > 127)) for p, q in pairs)

        same(apply("dp4a", "s32", signs, [x, y, z], "u4"), wrapped([dot(*t) for t in triples], "u4"))


@pytest.mark.parametrize(("kind", "dtype"), [("f32", "f4"), ("f64", "f8")])
def test_floating_point_is_exact_to_its_rounding(kind: str, dtype: str) -> None:
    x, y = real(dtype, 1), real(dtype, 2)
    with np.errstate(all="ignore"):
        for name, want in {"add": x + y, "sub": x - y, "mul": x * y, "div": x / y}.items():
            np.testing.assert_array_equal(apply(name, kind, "rn", [x, y], dtype), want, err_msg=name)
        same(apply("sqrt", kind, "rn", [x], dtype), np.sqrt(x))
        same(apply("min", kind, "", [x, y], dtype), np.fmin(x, y))
        same(apply("max", kind, "nan", [x, y], dtype), np.maximum(x, y))
        same(apply("add", kind, "rn sat", [x, y], dtype), np.nan_to_num(np.clip(x + y, 0, 1)))
        same(apply("copysign", kind, "", [x, y], dtype), np.copysign(y, x))
        same(apply("setp", kind, "ltu", [x, y], "u4", out=1), (~(x >= y)).astype("u4"))
        same(apply("setp", kind, "ne", [x, y], "u4", out=1), ((x < y) | (x > y)).astype("u4"))


def _directed(exact: Fraction, dtype: type, mode: str) -> np.floating:
    x = dtype(float(exact))
    while Fraction(float(x)) > exact:
        x = np.nextafter(x, dtype(-np.inf))
    while Fraction(float(np.nextafter(x, dtype(np.inf)))) <= exact:
        x = np.nextafter(x, dtype(np.inf))
    down = mode == "rm" or (mode == "rz" and exact > 0)
    return x if down or Fraction(float(x)) == exact else np.nextafter(x, dtype(np.inf))


@pytest.mark.parametrize("mode", ["rm", "rp", "rz"])
@pytest.mark.parametrize(("kind", "dtype"), [("f32", np.float32), ("f64", np.float64)])
def test_directed_rounding_brackets_the_exact_result(kind: str, dtype: type, mode: str) -> None:
    rng = np.random.default_rng(5)
    x, y, z = (rng.standard_normal(99) * np.exp(rng.uniform(-9, 9, 99)) for _ in range(3))
    x, y, z = x.astype(dtype), y.astype(dtype), z.astype(dtype)
    exact = [[Fraction(float(v)) for v in a] for a in (x, y, z)]
    for name, rule in {"add": lambda p, q, r: p + q, "mul": lambda p, q, r: p * q, "fma": lambda p, q, r: p * q + r}.items():
        want = np.array([_directed(rule(*t), dtype, mode) for t in zip(*exact, strict=True)], dtype)
        sources = [x, y, z] if name == "fma" else [x, y]
        np.testing.assert_array_equal(apply(name, kind, mode, sources, np.dtype(dtype).str), want, err_msg=name)


def test_conversions_clamp_and_round() -> None:
    x = real("f4", 1)
    for kind, dtype in (("s32", "i4"), ("u32", "u4"), ("s64", "i8")):
        info = np.iinfo(dtype)
        for mode, rule in (("rzi", math.trunc), ("rni", round), ("rmi", math.floor), ("rpi", math.ceil)):
            want = [
                0 if math.isnan(v) else info.max if v == math.inf else info.min if v == -math.inf
                else min(max(rule(v), info.min), info.max)
                for v in x.tolist()
            ]  # fmt: skip
            same(apply("cvt", kind, f"f32 {mode}", [x], dtype), np.array(want, dtype))
    with np.errstate(over="ignore"):
        half = x.astype("f2")
    same(apply("cvt", "f16", "f32 rn", [x], "f2"), half)
    same(apply("cvt", "f32", "f16", [half], "f4"), half.astype("f4"))
    big = whole("u8", 2)
    up = apply("cvt", "f32", "u64 rp", [big], "f4")
    assert all(Fraction(float(f)) >= v for f, v in zip(up, big.tolist(), strict=True))
    assert all(Fraction(float(np.nextafter(f, np.float32(0)))) < v or v == 0 for f, v in zip(up, big.tolist(), strict=True))
    same(apply("cvt", "u8", "s32 sat", [whole("i4", 3)], "i4"), np.clip(whole("i4", 3), 0, 255))


@pytest.mark.parametrize(
    ("name", "rule", "bound"),
    [("ex2", np.exp2, 2e-7), ("lg2", np.log2, 2.5e-7), ("sin", np.sin, 3e-7), ("cos", np.cos, 3e-7), ("tanh", np.tanh, 1e-6)],
)
def test_special_functions_stay_within_those_of_a_device(name: str, rule: np.ufunc, bound: float) -> None:
    x = np.random.default_rng(1).uniform(-20, 20, 4000).astype("f4")
    x = np.abs(x) + np.float32(1e-30) if name == "lg2" else x
    got, want = apply(name, "f32", "approx", [x], "f4"), rule(x.astype("f8"))
    scale = 1 if name in ("sin", "cos") else np.maximum(np.abs(want), 1e-6)
    assert np.max(np.abs(got - want) / scale) < bound
    edges = np.array([0, np.inf, -np.inf, np.nan], "f4")
    with np.errstate(all="ignore"):
        same(apply(name, "f32", "approx", [edges], "f4"), rule(edges))


COLLATZ = (
    INDEX
    + """
  param.b64 dx = 0
  param.b64 dy = 8
  param.b32 rm = 16
  setp.s32 p0 = ri rm | ge
  @p0 exit
  -> b
b:
  mulwide.s32 do = ri 4
  add.s64 dx = dx do
  add.s64 dy = dy do
  ld.b32 rv = dx 0 | global
  mov.b32 rk = 0
  mov.b32 rj = 0
  -> test
test:
  add.s32 rj = rj 2          # uniform in the loop, varying after it
  setp.s32 p1 = rv 1 | eq
  @p1 bra
  -> done step
step:
  and.b32 ro = rv 1
  setp.b32 p2 = ro 0 | ne
  @p2 bra
  -> odd even
odd:
  mul.s32 rv = rv 3
  add.s32 rv = rv 1
  -> count
even:
  shr.u32 rv = rv 1
  -> count
count:
  add.s32 rk = rk 1
  setp.s32 p3 = rk 150 | lt
  @p3 bra
  -> test done
done:
  mul.s32 rk = rk 1000
  add.s32 rk = rk rj
  st.b32 dy 0 rk | global
  exit
"""
)


def test_threads_leave_a_loop_with_their_own_values() -> None:
    x = np.random.default_rng(1).integers(1, 5000, 500, dtype=np.int32)
    y = np.zeros_like(x)
    compile_spmd(assemble("collatz", [8, 8, 4], COLLATZ), (96, 1, 1)).launch((6, 1, 1), [x, y, np.int32(500)])
    want = []
    for v in x.tolist():
        steps, rounds = 0, 0
        while True:
            rounds += 2
            if v == 1:
                break
            v = 3 * v + 1 if v & 1 else v >> 1
            steps += 1
            if steps >= 150:
                break
        want.append(steps * 1000 + rounds)
    same(y, np.array(want, np.int32))


TREE = (
    INDEX
    + """
  param.b64 dx = 0
  param.b64 dy = 8
  mulwide.s32 do = ri 4
  add.s64 dx = dx do
  ld.f32 rv = dx 0 | global
  shl.b32 rs = rt 2
  st.f32 rs 0 rv | shared
  bar
  mov.b32 rk = 64
  -> tree
tree:
  setp.s32 p0 = rt rk | lt
  @p0 bra
  -> add next
add:
  add.s32 ra = rt rk
  shl.b32 ra = ra 2
  ld.f32 r1 = ra 0 | shared
  ld.f32 r2 = rs 0 | shared
  add.f32 r3 = r1 r2 | rn
  st.f32 rs 0 r3 | shared
  -> next
next:
  bar
  shr.u32 rk = rk 1
  setp.u32 p1 = rk 0 | ne
  @p1 bra
  -> tree end
end:
  setp.s32 p2 = rt 0 | ne
  @p2 exit
  -> last
last:
  ld.f32 r4 = 0 0 | shared
  mulwide.s32 dc = rc 4
  add.s64 dy = dy dc
  st.f32 dy 0 r4 | global
  exit
"""
)


def test_barriers_order_the_threads_of_a_block() -> None:
    x = np.arange(128 * 7, dtype=np.float32)
    y = np.zeros(7, np.float32)
    compile_spmd(assemble("tree", [8, 8], TREE, shared=512), (128, 1, 1)).launch((7, 1, 1), [x, y])
    same(y, x.reshape(7, 128).sum(1))


def test_an_unsigned_index_may_wrap() -> None:
    text = (
        INDEX
        + """
  param.b64 dx = 0
  param.b64 dy = 8
  param.b32 rk = 16
  param.b32 rm = 20
  sub.u32 rj = ri rk
  setp.u32 p0 = rj rm | ge
  mulwide.u32 do = rj 4
  add.s64 dx = dx do
  mov.b32 rv = f:-1
  @!p0 ld.f32 rv = dx 0 | global
  setp.u32 p1 = ri rm | ge
  @p1 exit
  -> b
b:
  mulwide.u32 dp = ri 4
  add.s64 dy = dy dp
  st.f32 dy 0 rv | global
  exit
"""
    )
    x = np.random.default_rng(0).random(300, np.float32)
    compiled = compile_spmd(assemble("shift", [8, 8, 4, 4], text), (64, 1, 1))
    for shift in (0, 1, 5, 40, 2**32 - 3):
        y = np.zeros(300, np.float32)
        compiled.launch((5, 1, 1), [x, y, np.uint32(shift), np.uint32(300)])
        j = np.arange(300, dtype=np.uint32) - np.uint32(shift)
        same(y, np.where(j < 300, x[np.minimum(j, 299)], np.float32(-1)))


@pytest.mark.parametrize("block", [(16, 4, 2), (8, 8, 1), (32, 2, 2), (5, 7, 2), (64, 1, 4), (3, 1, 1), (1, 1, 40)])
def test_threads_know_their_place_in_any_block(block: tuple[int, int, int]) -> None:
    text = """
a:
  special.b32 rx = | tid.x
  special.b32 ry = | tid.y
  special.b32 rz = | tid.z
  special.b32 ra = | ntid.x
  special.b32 rb = | ntid.y
  mul.s32 rp = rz rb
  add.s32 rp = rp ry
  mul.s32 rp = rp ra
  add.s32 rp = rp rx
  shl.b32 rv = rz 16
  shl.b32 rw = ry 8
  or.b32 rv = rv rw
  or.b32 rv = rv rx
  param.b64 dy = 0
  mulwide.s32 do = rp 4
  add.s64 dy = dy do
  st.b32 dy 0 rv | global
  exit
"""
    y = np.zeros(math.prod(block), np.uint32)
    compile_spmd(assemble("place", [8], text), block).launch((1, 1, 1), [y])
    z, r, x = np.mgrid[: block[2], : block[1], : block[0]]
    same(y, (z << 16 | r << 8 | x).ravel().astype(np.uint32))


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("width", [32, 8])
def test_shuffles_by_literal_and_by_register(mode: str, width: int) -> None:
    control = (32 - width) << 8 | (0 if mode == "up" else 31)
    text = """
a:
  special.b32 rt = | tid.x
  mulwide.s32 do = rt 4
  param.b64 dx = 0
  add.s64 dx = dx do
  ld.b32 rv = dx 0 | global
  param.b32 rk = 16
  shfl.b32 r1 p1 = rv 3 CONTROL | MODE
  shfl.b32 r2 p2 = rv rk CONTROL | MODE
  select.b32 r3 = 1000 0 p1
  select.b32 r4 = 5000 0 p2
  add.s32 r1 = r1 r3
  add.s32 r2 = r2 r4
  param.b64 dy = 8
  add.s64 dy = dy do
  st.b32 dy 0 r1 r2 | global
  exit
""".replace("CONTROL", str(control)).replace("MODE", mode)
    text = text.replace("  add.s64 dy = dy do", "  add.s64 dy = dy do\n  add.s64 dy = dy do")
    x, y = np.arange(100, 164, dtype=np.int32), np.zeros((64, 2), np.int32)
    compile_spmd(assemble("shuffle", [8, 8, 4], text), (64, 1, 1)).launch((1, 1, 1), [x, y, np.int32(3)])
    t = np.arange(64)
    start = t // width * width
    source = {"up": t - 3, "down": t + 3, "bfly": t ^ 3, "idx": start + 3}[mode]
    inside = source >= start if mode == "up" else source < start + width
    picked = x[np.where(inside, source, t)]
    same(y, np.stack([picked + 1000 * inside, picked + 5000 * inside], 1))


def test_votes_see_the_threads_that_run() -> None:
    text = (
        INDEX
        + """
  param.b64 dx = 0
  param.b64 dy = 8
  mulwide.s32 do = ri 4
  add.s64 dx = dx do
  add.s64 dy = dy do
  ld.b32 rv = dx 0 | global
  setp.s32 p0 = rv 10 | lt
  @p0 bra
  -> b end
b:
  activemask.b32 r1 =
  setp.s32 p1 = rv 5 | lt
  vote.pred r2 = p1 | ballot
  redux.s32 r3 = rv | max
  match.b32 r4 = rv | any
  add.s32 r5 = r1 r2
  add.s32 r5 = r5 r3
  add.s32 r5 = r5 r4
  st.b32 dy 0 r5 | global
  -> end
end:
  exit
"""
    )
    x = np.random.default_rng(0).integers(0, 14, 32).astype(np.int32)
    y = np.zeros(32, np.uint32)
    compile_spmd(assemble("vote", [8, 8], text), (32, 1, 1)).launch((1, 1, 1), [x, y])
    lanes = [i for i in range(32) if x[i] < 10]
    total = sum(1 << i for i in lanes) + sum(1 << i for i in lanes if x[i] < 5) + int(max(x[i] for i in lanes))
    want = [(total + sum(1 << j for j in lanes if x[j] == x[i])) % 2**32 if i in lanes else 0 for i in range(32)]
    same(y, np.array(want, np.uint32))
