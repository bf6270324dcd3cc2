"""core.arrays: the Fourier convention, transforms against their definition, the eigenproblem, devices that are not there."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest
import scipy.linalg

from gewu.core.arrays import Arrays, arrays
from gewu.core.errors import InputError, ResourceError
from tests.dfttools import DEVICES, on_device
from tests.strictdevice import DeviceArray, strict_arrays

RNG = np.random.default_rng(2)
ROUNDING = 1e-13  # of sums of some ten terms of order one


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Arrays:
    """Return the namespace of each device at hand."""
    return on_device(request.param, monkeypatch)


def wave(n: int, g: int) -> np.ndarray:
    return np.exp(2j * np.pi * g * np.arange(n) / n)


@pytest.mark.parametrize("n", [8, 9, 30])
def test_ifft_of_one_coefficient_is_the_wave_and_fft_divides_by_the_length(device: Arrays, n: int) -> None:
    for g in (0, 1, 3):
        coefficients = np.zeros((2, n), complex)
        coefficients[1, g] = 1.0
        f = device.get(device.ifft(device.put(coefficients), 1))
        np.testing.assert_allclose(f[1], wave(n, g), atol=ROUNDING)
        np.testing.assert_allclose(f[0], 0.0, atol=0)
        np.testing.assert_allclose(device.get(device.fft(device.put(f), 1)), coefficients, atol=ROUNDING)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_ifft_pads_at_the_end_of_one_axis_and_fft_truncated_inverts_it(device: Arrays, axis: int) -> None:
    c = RNG.normal(size=(3, 4, 5)) + 1j * RNG.normal(size=(3, 4, 5))
    padded = np.zeros([12 if i == axis else m for i, m in enumerate(c.shape)], complex)
    padded[tuple(slice(m) for m in c.shape)] = c
    f = device.ifft(device.put(c), axis, 12)
    np.testing.assert_allclose(device.get(f), 12 * np.fft.ifft(padded, axis=axis), atol=ROUNDING)
    np.testing.assert_allclose(device.get(device.fft(f, axis)), padded, atol=ROUNDING)


@pytest.mark.parametrize("shape", [(4, 6, 8), (4, 6, 9), (5, 3, 7), (2, 5, 2)])
def test_real_transforms_go_there_and_back_on_odd_and_even_grids(device: Arrays, shape: tuple[int, int, int]) -> None:
    f = RNG.normal(size=shape)
    half = device.rfftn(device.put(f))
    assert half.shape == (*shape[:2], shape[2] // 2 + 1)
    np.testing.assert_allclose(device.get(half), (np.fft.fftn(f) / f.size)[..., : shape[2] // 2 + 1], atol=ROUNDING)
    np.testing.assert_allclose(device.get(device.irfftn(half, shape)), f, atol=ROUNDING)


def hermitian(n: int, *, positive: bool = False) -> np.ndarray:
    m = RNG.normal(size=(n, n)) + 1j * RNG.normal(size=(n, n))
    return m @ m.conj().T / n + np.eye(n) if positive else m + m.conj().T


def test_eigh_solves_the_generalised_problem_as_scipy_does(device: Arrays) -> None:
    a, b = hermitian(20), hermitian(20, positive=True)
    e, v = device.eigh(device.put(a), device.put(b), 7)
    assert isinstance(e, np.ndarray) and e.shape == (7,) and v.shape == (20, 7)
    vectors = device.get(v)
    np.testing.assert_allclose(e, scipy.linalg.eigh(a, b, eigvals_only=True)[:7], atol=1e-12)  # b is well conditioned
    np.testing.assert_allclose(a @ vectors, b @ vectors * e, atol=1e-12)
    np.testing.assert_allclose(vectors.conj().T @ b @ vectors, np.eye(7), atol=1e-12)


def test_eigh_refuses_a_basis_that_depends_on_itself(device: Arrays) -> None:
    v = RNG.normal(size=(5, 40))
    v /= np.linalg.norm(v, axis=1)[:, None]
    a = hermitian(5)
    device.eigh(device.put(a), device.put(v @ v.T + 0j), 5)
    for distance in (0.0, 1e-9, 1e-6):
        v[4] = v[0] + distance * v[1]
        with pytest.raises(np.linalg.LinAlgError):
            device.eigh(device.put(a), device.put(v @ v.T + 0j), 5)
    with pytest.raises(np.linalg.LinAlgError):
        device.eigh(device.put(a), device.put(-np.eye(5) + 0j), 5)


def test_put_and_get_are_inverse_and_get_is_in_host_memory(device: Arrays) -> None:
    f = RNG.normal(size=(3, 4))
    there = device.put(f)
    back = device.get(there)
    assert type(back) is np.ndarray
    np.testing.assert_array_equal(back, f)


def test_unknown_device_is_refused() -> None:
    with pytest.raises(InputError, match="cpu, cuda"):
        arrays("tpu")


def test_missing_cuda_is_a_resource_error_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_cupy(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.startswith("cupy"):
            raise ImportError("No module named 'cupy'")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_cupy)
    with pytest.raises(ResourceError, match="gewu\\[cuda\\]") as error:
        arrays("cuda")
    assert error.value.exit_code == 4


def test_pruned_transforms_are_those_of_the_padded_box(device: Arrays) -> None:
    c = RNG.normal(size=(1, 3, 4, 5)) + 1j * RNG.normal(size=(1, 3, 4, 5))
    padded = np.zeros((1, 8, 9, 10), complex)
    padded[:, :3, :4, :5] = c
    f = device.box_to_grid(device.put(c), (8, 9, 10))
    np.testing.assert_allclose(device.get(f), 720 * np.fft.ifftn(padded, axes=(1, 2, 3)), atol=ROUNDING)
    np.testing.assert_allclose(device.get(device.grid_to_box(f, (3, 4, 5))), c, atol=ROUNDING)
    other = RNG.normal(size=(1, 8, 9, 10)) + 0j  # a function that did not come from this thread's last transform
    expected = (np.fft.fftn(other, axes=(1, 2, 3)) / 720)[:, :3, :4, :5]
    np.testing.assert_allclose(device.get(device.grid_to_box(device.put(other), (3, 4, 5))), expected, atol=ROUNDING)
    assert device.batch((8, 9, 10)) >= 1


@pytest.mark.parametrize("case", ["not installed", "turned off"])
def test_without_fftw_scipy_transforms_and_there_are_no_plans(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    if case == "not installed":
        monkeypatch.setattr("gewu.core.arrays.find_spec", lambda name: None)
        monkeypatch.delenv("GEWU_FFT", raising=False)
    else:
        monkeypatch.setenv("GEWU_FFT", "scipy")
    chosen = arrays("cpu")
    assert type(chosen).__name__ == "ScipyArrays"
    assert chosen.plans() == []
    chosen.use_plans([b"kept by a process that had FFTW"])


def test_fftw_keeps_its_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyfftw")
    monkeypatch.delenv("GEWU_FFT", raising=False)
    chosen = arrays("cpu")
    assert type(chosen).__name__ == "FftwArrays"
    chosen.box_to_grid(np.ones((1, 2, 2, 2), complex), (4, 4, 4))
    kept = chosen.plans()
    assert kept and all(isinstance(part, bytes) for part in kept)
    chosen.use_plans(kept)


@pytest.mark.parametrize(
    "mixed",
    [
        lambda d, h: d + h,
        lambda d, h: h + d,
        lambda d, h: h @ d,
        lambda d, h: d @ h,
        lambda d, h: np.add(h, d),
        lambda d, h: np.asarray(d),
        lambda d, h: np.array(d),
        lambda d, h: np.concatenate([h, d]),
        lambda d, h: h[np.zeros(1, int)] * d,
        lambda d, h: d[np.array([0, 1])],
        lambda d, h: h.__setitem__(0, d[0]),
        lambda d, h: d.__setitem__(0, h[0]),
        lambda d, h: h.__iadd__(d),
        lambda d, h: d.__iadd__(h),
        lambda d, h: scipy.linalg.eigh(d),
    ],
)
def test_the_strict_device_refuses_to_meet_the_host(mixed: Any) -> None:
    with pytest.raises(TypeError):
        mixed(strict_arrays().put(np.eye(3)), np.eye(3))


def test_the_strict_device_computes_with_itself_and_with_numbers() -> None:
    device = strict_arrays()
    d = device.put(np.arange(6.0).reshape(2, 3))
    total = (2.0 * d + np.float64(1)).sum()
    assert isinstance(total, DeviceArray) and float(total) == 36.0
    assert device.get(device.xp.sqrt(d) @ d.T).shape == (2, 2)
    d += d
    assert float(d.max()) == 10.0
    assert isinstance(np.exp(d), DeviceArray)
