"""A store for torch: the methods that its DataLoader calls; with torch itself where it is installed."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.core.errors import InputError, ResourceError
from gewu.data import Schema, Store, open_shards
from gewu.data.loader import Loader
from gewu.data.order import Order
from gewu.data.shard import write_shards
from gewu.data.torchview import TorchDataset, torch_stream

N = 40


@pytest.fixture
def store(tmp_path: Path) -> Store:
    samples = ({"id": k, "x": np.full((2, 3), k, np.float32), "name": f"s{k}"} for k in range(N))
    schema = Schema.of({"id": "int64", "x": "float32[*,3]", "name": "text"})
    write_shards(tmp_path, "s", samples, schema, shard_bytes=1000)
    return open_shards(tmp_path)


def doubled(sample: dict[str, Any]) -> dict[str, Any]:
    return sample | {"id": 2 * sample["id"]}


def test_a_dataset_without_torch(store: Store) -> None:
    data = TorchDataset(store)
    assert len(data) == N and data[7]["id"] == 7 and data[np.int64(7)]["name"] == "s7"
    assert data[7]["x"].flags.writeable
    assert [sample["id"] for sample in data.__getitems__([5, 1, 30])] == [5, 1, 30]
    assert [sample["id"] for sample in TorchDataset(store, doubled).__getitems__([5, 1])] == [10, 2]
    with pytest.raises(InputError):
        data[N]


def test_without_torch_the_stream_says_so_and_the_package_never_imports_it(store: Store) -> None:
    if importlib.util.find_spec("torch") is None:
        with pytest.raises(ResourceError, match="needs the package torch"):
            torch_stream(Loader(store, 4))
    assert "torch" not in sys.modules or importlib.util.find_spec("torch") is not None


def test_with_torch(store: Store) -> None:
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for workers in (0, 2):
            options = {"num_workers": workers, "multiprocessing_context": "spawn"} if workers else {}
            batches = list(torch.utils.data.DataLoader(TorchDataset(store, doubled), batch_size=8, **options))
            assert torch.cat([batch["id"] for batch in batches]).tolist() == [2 * k for k in range(N)]
            assert batches[0]["x"].shape == (8, 2, 3) and batches[0]["name"][1] == "s1"
        stream = torch_stream(Loader(store, 8, seed=2))
        batches = list(torch.utils.data.DataLoader(stream, batch_size=None))
        assert torch.cat([batch["id"] for batch in batches]).tolist() == Order(N, 2).take(0, N).tolist()
        assert isinstance(batches[0]["_index"], torch.Tensor) and isinstance(batches[0]["name"], list)
    with pytest.raises(InputError, match="num_workers: must be 0"):
        list(torch.utils.data.DataLoader(torch_stream(Loader(store, 8)), batch_size=None, num_workers=1))
