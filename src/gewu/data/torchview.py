"""A store for PyTorch, which need not be installed: `TorchDataset` for its DataLoader, `torch_stream` for ours.

`TorchDataset` is a plain class with the methods that `torch.utils.data.DataLoader` calls, so nothing of torch is imported. The
order, the workers and the resume are then DataLoader's. `torch_stream(loader)` keeps those of gewu and only turns arrays into
tensors; iterate it by itself, or through `DataLoader(stream, batch_size=None)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gewu.core.errors import InputError
from gewu.core.machine import extra


@dataclass(frozen=True)
class TorchDataset:
    """A map-style data set; workers of any start method open the shards for themselves.

    Args:
        store: a `Store` or a part of one, of policy "stop".
        transform: called with each sample.

    Raises:
        StoreError: a sample is damaged.
    """

    store: Any
    transform: Callable[[dict[str, Any]], Any] | None = None

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, number: int) -> Any:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[Any]:
        """Return several samples; DataLoader asks for a batch so."""
        read = (sample.items() for sample in self.store.read(numbers))
        # torch warns of arrays that must not be written, as those of the mapped shard
        samples = [{name: v.copy() if isinstance(v, np.ndarray) else v for name, v in items} for items in read]
        return samples if self.transform is None else [self.transform(sample) for sample in samples]


def torch_stream(loader: Any) -> Any:
    """Return a `torch.utils.data.IterableDataset` of the batches of a `Loader` or `PackedLoader`, with tensors for arrays.

    Raises:
        ResourceError: torch is not installed.
        InputError: (when iterated) by worker processes of DataLoader, each of which would give all batches.
    """
    torch: Any = extra("torch")
    data: Any = extra("torch.utils.data")

    def tensors(value: Any) -> Any:
        if isinstance(value, list):
            return [tensors(entry) for entry in value]
        return torch.from_numpy(np.require(value, requirements="W")) if isinstance(value, np.ndarray) else value

    class Stream(data.IterableDataset):  # type: ignore[misc]
        def __iter__(self) -> Iterator[dict[str, Any]]:
            if data.get_worker_info() is not None:
                raise InputError("must be 0: the loader has workers of its own", key="num_workers")
            for batch in loader:
                yield {name: tensors(value) for name, value in batch.items()}

    return Stream()
