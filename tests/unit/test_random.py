"""Philox against its published vectors, and the scalar form against the NumPy form on every device."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gewu.core import kernel as kernel_module
from gewu.core.errors import InputError
from gewu.core.kernel import kernel
from gewu.core.random import (
    normal_pair,
    philox4x32,
    philox_normal_pair,
    philox_uniform,
    philox_uniform_pair,
    philox_words,
    uniform,
    uniform_pair,
)

Arrays = dict[str, NDArray[Any]]

# Random123 1.14, tests/kat_vectors, "philox4x32 10": counter, key, words
KNOWN = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
SEEDS = ((0, 0), (20260101, 3), (2**64 - 1, 2**63 + 5))
N = 300


@kernel
def draw(i: int, seed: int, stream: int, words: Any, u: Any, z: Any) -> None:
    """Draw everything that item i can draw."""
    words[i, 0], words[i, 1], words[i, 2], words[i, 3] = philox_words(seed, stream, i)
    u[i, 0], u[i, 1] = philox_uniform_pair(seed, stream, i)
    u[i, 2] = philox_uniform(seed, stream, i)
    z[i, 0], z[i, 1] = philox_normal_pair(seed, stream, i)


@kernel
def answer(i: int, seed: int, stream: int, index: Any, words: Any) -> None:
    """Return the words of one counter."""
    words[0], words[1], words[2], words[3] = philox_words(seed, stream, index[i])


def compute(where: str) -> Arrays:
    """Run the device functions on `where` for each of SEEDS and KNOWN."""
    out: Arrays = {}
    for case, (seed, stream) in enumerate(SEEDS):
        words, u, z = np.zeros((N, 4), np.uint64), np.zeros((N, 3)), np.zeros((N, 2))
        draw.launch(where, N, np.uint64(seed), np.uint64(stream), words, u, z)
        out |= {f"words{case}": words, f"u{case}": u, f"z{case}": z}
    for case, (counter, key, _) in enumerate(KNOWN):
        low_index, high_index, low_stream, high_stream = counter
        known, index = np.zeros(4, np.uint64), np.array([low_index | high_index << 32], np.uint64)
        answer.launch(where, 1, np.uint64(key[0] | key[1] << 32), np.uint64(low_stream | high_stream << 32), index, known)
        out[f"known{case}"] = known
    return out


@pytest.fixture(scope="module", params=["reference", "cpu", "cuda-simulator", "cuda"])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    """Return what the device functions give on one backend."""
    where = str(request.param)
    if where == "cuda-simulator":
        path = tmp_path_factory.mktemp("simulator") / "results.npz"
        env = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(Path(kernel_module.__file__).resolve().parents[2])}
        done = subprocess.run([sys.executable, "-W", "error", __file__, str(path)], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        with np.load(path) as stored:
            return dict(stored)
    if where == "cuda" and not pytest.importorskip("numba.cuda").is_available():
        pytest.skip("no CUDA device")
    return compute(where)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_numpy_form_gives_the_published_words(counter: Any, key: Any, words: Any) -> None:
    assert philox4x32(counter, key).tolist() == list(words)


def test_numpy_form_broadcasts() -> None:
    counters = np.array([k[0] for k in KNOWN])
    keys = np.array([k[1] for k in KNOWN])
    table = philox4x32(counters[:, None, :], keys[None, :, :])
    assert table.shape == (3, 3, 4) and table.dtype == np.uint32
    for case, (_, _, words) in enumerate(KNOWN):
        assert table[case, case].tolist() == list(words)


def test_device_form_gives_the_published_words(results: Arrays) -> None:
    for case, (_, _, words) in enumerate(KNOWN):
        assert results[f"known{case}"].tolist() == list(words)


@pytest.mark.parametrize("case", range(len(SEEDS)))
def test_uniforms_have_the_same_bits_everywhere(results: Arrays, case: int) -> None:
    seed, stream = SEEDS[case]
    u0, u1 = uniform_pair(seed, stream, np.arange(N))
    assert np.array_equal(results[f"u{case}"], np.stack([u0, u1, u0], axis=1))
    assert np.array_equal(uniform(seed, stream, np.arange(N)), u0)
    words = results[f"words{case}"]
    assert np.array_equal(u1, (words[:, 2] // 2**11 + words[:, 3] * 2**21) / 2**53)


@pytest.mark.parametrize("case", range(len(SEEDS)))
def test_normals_agree_to_the_accuracy_of_the_libraries(results: Arrays, case: int) -> None:
    want = np.stack(normal_pair(*SEEDS[case], np.arange(N)), axis=1)
    # ln, cos and sin to 4 units in the last place at worst (ln halved by the root), plus roundings
    assert np.allclose(results[f"z{case}"], want, rtol=8 * 2.0**-52, atol=0.0)


def test_moments_and_independence() -> None:
    n = 100_000
    u0, u1 = uniform_pair(7, 1, np.arange(n))
    z = np.concatenate(normal_pair(7, 2, np.arange(n)))
    assert min(u0.min(), u1.min()) >= 0.0 and max(u0.max(), u1.max()) < 1.0
    error = 1.0 / math.sqrt(n)  # standard error of a mean of unit variance; every bound below is five of them
    for u in (u0, u1):
        assert abs(u.mean() - 1 / 2) < 5 * error * math.sqrt(1 / 12)
        assert abs((u**2).mean() - 1 / 3) < 5 * error * math.sqrt(4 / 45)
    for other in (u1, np.roll(u0, 1), uniform(7, 2, np.arange(n)), uniform(8, 1, np.arange(n))):
        assert abs(12 * ((u0 - 0.5) * (other - 0.5)).mean()) < 5 * error  # neighbours, streams and seeds are uncorrelated
    assert abs(z.mean()) < 5 * error / math.sqrt(2)
    assert abs((z**2).mean() - 1) < 5 * error
    assert abs((z**4).mean() - 3) < 5 * error * math.sqrt(96 / 2)


def test_uniform_extremes_stay_inside() -> None:
    top = ((2**64 - 1) >> 11) * 2.0**-53
    assert top < 1.0 and math.isfinite(math.log(1.0 - top))


def test_any_shape_of_index() -> None:
    grid = uniform(3, 4, np.arange(12).reshape(3, 4))
    assert np.array_equal(grid.ravel(), uniform(3, 4, np.arange(12)))
    assert uniform(3, 4, 5).shape == () and uniform(3, 4, 5) == grid[1, 1]


@pytest.mark.parametrize("bad", [-1, 2**64, 1.5, True])
@pytest.mark.parametrize("name", ["seed", "stream", "index"])
def test_bad_integers_are_refused(name: str, bad: Any) -> None:
    with pytest.raises(InputError, match=f"^{name}: .*2\\^64"):
        uniform(**({"seed": 0, "stream": 0, "index": 0} | {name: bad}))


if __name__ == "__main__":
    np.savez(sys.argv[1], **compute("cuda"))  # type: ignore[arg-type]
