"""The page of the shard format, checked: a short reader, written from `docs/data-format.md` alone, reads what `Shard` reads.

Whoever wrote `tests/data/gws_reader.py` saw the page and three example shards, and nothing of gewu.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.data import Schema, Shard
from gewu.data.shard import ShardWriter
from tests.data.gws_reader import read
from tests.data.test_shard import a_type, a_value


def plain(found: Any) -> Any:
    """Return a value without NumPy."""
    if isinstance(found, np.ndarray):
        return found.astype(np.float64).tolist() if found.dtype.name == "bfloat16" else found.tolist()
    return [plain(item) for item in found] if isinstance(found, list) else found


@pytest.mark.parametrize("seed", range(60))
def test_a_reader_written_from_the_page_reads_every_sample(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    schema = Schema.of({f"f{k}": a_type(rng) for k in range(rng.integers(1, 7))})
    samples = [{field.name: a_value(rng, field.type) for field in schema} for _ in range(rng.integers(0, 9))]
    compression = "none" if seed < 40 else str(rng.choice(["sample", "block"]))
    unzip = None
    if compression != "none":
        arrow = pytest.importorskip("pyarrow")
        unzip = lambda data, size: arrow.Codec("zstd").decompress(data, size, asbytes=True)  # noqa: E731
    with ShardWriter(tmp_path / "a.gws", schema, compression=compression, block_bytes=200) as writer:
        for one in samples:
            writer.add(one)
    shard = Shard(tmp_path / "a.gws")
    expected = [{name: plain(found) for name, found in shard[k].items()} for k in range(len(shard))]
    assert read(tmp_path / "a.gws", unzip) == expected
    assert len(expected) == len(samples)


@pytest.mark.parametrize("position", [3, 9, 70, 100, -100, -70, -30, -10, -1])
def test_it_refuses_what_is_damaged(tmp_path: Path, position: int) -> None:
    with ShardWriter(tmp_path / "a.gws", Schema.of({"text": "text"})) as writer:
        writer.add({"text": "x" * 50})
    data = bytearray((tmp_path / "a.gws").read_bytes())
    data[position] ^= 1
    (tmp_path / "b.gws").write_bytes(data)
    with pytest.raises(AssertionError):
        read(tmp_path / "b.gws")
