"""Accuracy, special values and vectorisation of the functions in gewu.ops.vmath."""

from __future__ import annotations

import ctypes
from decimal import Decimal, getcontext
from functools import lru_cache

import numpy as np
import pytest
from scipy import special

from gewu.ops import llvm, vmath
from tools import fit_vmath

N = 200_000
REFERENCE = {
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log2": np.log2,
    "log1p": np.log1p,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "erf": lambda x: special.erf(x.astype(np.float64)),
    "erfc": lambda x: special.erfc(x.astype(np.float64)),
    "pow": np.power,
}
KINDS = [("f32", np.float32), ("f64", np.float64)]


@lru_cache(maxsize=1)
def _library() -> llvm.Library:
    wanted = {(name, kind) for name in vmath.ULP for kind, _ in KINDS}
    text, declarations = vmath.definitions(wanted)
    parts = [text, *sorted(declarations)]
    for name, kind in sorted(wanted):
        t = "float" if kind == "f32" else "double"
        two = name == "pow"
        call = f"{t} %v" + (f", {t} %w" if two else "")
        second = f"%q = getelementptr {t}, ptr %y, i64 %i\n %w = load {t}, ptr %q" if two else ""
        parts.append(f"""
define void @{name}_{kind}(ptr noalias %x, ptr noalias %y, ptr noalias %z, i64 %n) #0 {{
entry:
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
  %p = getelementptr {t}, ptr %x, i64 %i
  %v = load {t}, ptr %p
  {second}
  %r = call {t} @{vmath.symbol(name, kind)}({call})
  %o = getelementptr {t}, ptr %z, i64 %i
  store {t} %r, ptr %o
  %next = add nsw i64 %i, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %loop, label %end
end:
  ret void
}}""")
    return llvm.jit("\n".join(parts))


def _call(name: str, x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
    kind = "f32" if x.dtype == np.float32 else "f64"
    x, out = np.ascontiguousarray(x), np.empty_like(x)
    y = x if y is None else np.ascontiguousarray(y)
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    function(_library().address(f"{name}_{kind}"))(x.ctypes.data, y.ctypes.data, out.ctypes.data, x.size)
    return out


def _samples(name: str, dtype: type, rng: np.random.Generator) -> np.ndarray:
    single = dtype is np.float32
    top = 88.0 if single else 709.0
    near = rng.uniform(-2, 2, N)
    tiny = rng.choice([-1, 1], N) * 10.0 ** rng.uniform(-30, 1, N)
    wide = {
        "exp": rng.uniform(-top + 1, top, N),
        "exp2": rng.uniform(-125, 127, N) * (1 if single else 8),
        "expm1": rng.uniform(-50, top, N),
        "log": 10.0 ** rng.uniform(-37, 38, N),
        "log2": 10.0 ** rng.uniform(-37, 38, N),
        "log1p": 10.0 ** rng.uniform(-30, 38, N) - 1e-9,
        "sin": rng.uniform(-1, 1, N) * 10 ** rng.uniform(0, 8.9, N),
        "cos": rng.uniform(-1, 1, N) * 10 ** rng.uniform(0, 8.9, N),
        "tanh": rng.uniform(-30, 30, N),
        "sinh": rng.uniform(-top - 0.6, top + 0.6, N),
        "cosh": rng.uniform(-top - 0.6, top + 0.6, N),
        "sigmoid": rng.uniform(-top + 2, 40, N),
        "erf": rng.uniform(-6, 6, N),
        "erfc": rng.uniform(-6, 9 if single else 26, N),
    }[name]
    x = np.concatenate([wide, near, tiny]).astype(dtype)
    if name in ("log", "log2"):
        return np.abs(x)
    return x[x > -1] if name == "log1p" else x


def _error(got: np.ndarray, exact: np.ndarray) -> float:
    """Return the largest error in units in the last place, where the exact result is a normal number of the type."""
    info = np.finfo(got.dtype)
    normal = (np.abs(exact) >= info.tiny) & (np.abs(exact) <= info.max)
    spacing = np.spacing(np.abs(exact[normal]).astype(got.dtype)).astype(np.longdouble)
    return float(np.max(np.abs(got[normal].astype(np.longdouble) - exact[normal]) / spacing))


def _exact(name: str, x: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray(REFERENCE[name](x.astype(np.float64 if x.dtype == np.float32 else np.longdouble)), np.longdouble)


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
@pytest.mark.parametrize("name", [n for n in vmath.ULP if n != "pow"])
def test_error_is_below_the_stated_ulp(name: str, kind: str, dtype: type) -> None:
    if name in ("erf", "erfc") and kind == "f64":
        pytest.skip("compared in more digits below")
    x = _samples(name, dtype, np.random.default_rng(1))
    error = _error(_call(name, x), _exact(name, x))
    assert error <= vmath.ULP[name][kind == "f64"]


@pytest.mark.parametrize("name", ["erf", "erfc"])
def test_error_functions_in_float64(name: str) -> None:
    """SciPy's are good to some units only: compare with the positive series of erf in 60 digits."""
    getcontext().prec = 60
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.uniform(0, 1, 150), rng.uniform(1, 6, 150)])
    root = fit_vmath.pi().sqrt()
    exact = []
    for v in map(Decimal, x.tolist()):
        series = fit_vmath.power_series(v, lambda n, v=v: 2 * v * v / (2 * n + 3))
        erf = 2 / root * (-v * v).exp() * series
        exact.append(erf if name == "erf" else 1 - erf)
    got = map(Decimal, _call(name, x).tolist())
    units = [abs(g - e) / Decimal(float(np.spacing(float(e)))) for g, e in zip(got, exact, strict=True)]
    assert max(units) <= vmath.ULP[name][1]


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
def test_pow(kind: str, dtype: type) -> None:
    rng = np.random.default_rng(2)
    x = (10.0 ** rng.uniform(-30, 30, N)).astype(dtype)
    y = (rng.uniform(-1, 1, N) * 10.0 ** rng.uniform(-2, 1.5 if kind == "f32" else 2.0, N)).astype(dtype)
    wide = np.float64 if kind == "f32" else np.longdouble
    with np.errstate(all="ignore"):
        exact = np.power(x.astype(wide), y.astype(wide)).astype(np.longdouble)
    assert _error(_call("pow", x, y), exact) <= vmath.ULP["pow"][kind == "f64"]
    bases = np.array([-3, -2, -1, -0.5, -0.0, 0, 0.5, 1, 2, np.inf, -np.inf, np.nan], dtype)
    powers = np.array([-np.inf, -3, -2, -1.5, -0.0, 0, 0.5, 1, 2, 3, np.inf, np.nan], dtype)
    grid = [v.ravel() for v in np.meshgrid(bases, powers)]
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(_call("pow", *grid), np.power(*grid), rtol=2 * np.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
@pytest.mark.parametrize("name", [n for n in vmath.ULP if n != "pow"])
def test_special_values(name: str, kind: str, dtype: type) -> None:
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -1e3, 1e3, -1.0, 1.0, np.finfo(dtype).tiny / 8], dtype)
    if name in ("sin", "cos"):
        x = np.append(x, dtype(2e15))
    got, exact = _call(name, x), _exact(name, x)
    if name in ("sin", "cos"):
        exact[-1] = np.nan
    with np.errstate(over="ignore"):
        rounded = exact.astype(dtype)
    np.testing.assert_allclose(got, rounded, rtol=1e-6 if kind == "f32" else 1e-14, atol=1e-44 if kind == "f32" else 0)
    if name in ("sin", "tanh", "sinh", "erf", "expm1", "log1p"):
        assert np.signbit(got[1]) and not np.signbit(got[0])


def test_loops_are_vectorised() -> None:
    text = _library().optimised
    bits = llvm.host_vector_bits()
    for name in vmath.ULP:
        body = text.split(f"define void @{name}_f32")[1].split("\n}")[0]
        assert f"<{bits // 64} x " in body or f"<{bits // 32} x float>" in body, name
