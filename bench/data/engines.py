"""The stores that are compared, each behind the same five calls; every one runs in an environment of its own.

A read gives Python objects whatever the store: `image` bytes, `text` str, `features` float32 array, `label` int. Each store is
used at its default and as its users tune it:

- `gewu`: CRC-32C checked on every read.
- `mds` (MosaicML Streaming): `dataset[i]` of a local StreamingDataset, no shuffle; its reader opens the shard for each sample.
- `arrow-ipc`: an IPC file of one record batch, memory-mapped (`take` over many batches copies all of them); one sample by
  `column[j].as_py()`, 256 by `RecordBatch.take` and `to_pylist`, a scan by `to_pylist` of slices of 1,000 rows, or of their
  columns, the faster counts; the features as fixed-size binary viewed as float32 (a fixed-size list gives Python floats).
- `arrayrecord`: `group_size:1,uncompressed`, read by `ArrayRecordDataSource` with `max_parallelism:0`, which its documentation
  advises for random access; one by `source[i]`, 256 by `source.__getitems__`, a scan by `__getitems__` of 1,000 and by the
  plain reader with read-ahead, the faster counts. A record is header, image, text, features.
"""

from __future__ import annotations

import struct
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.data.samples import FEATURES, Sample, Samples

SHARD_BYTES = 256 << 20
SCHEMA = {"image": "image", "text": "text", "features": f"float32[{FEATURES}]", "label": "int64"}
_HEADER = struct.Struct("<III")


class Gewu:
    """The room that is measured."""

    packages = ("gewu", "numpy", "numba")

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def pack(self, samples: Samples) -> None:
        """Write all samples."""
        from gewu.data.fields import Schema
        from gewu.data.shard import write_shards

        write_shards(self.folder, "bench", samples, Schema.of(SCHEMA), shard_bytes=SHARD_BYTES)

    def open(self) -> None:
        """Open what `pack` wrote."""
        from gewu.data.store import Store

        self.store = Store(sorted(self.folder.glob("*.gws")))

    def one(self) -> Callable[[int], Sample]:
        """Return the function that reads one sample."""
        return self.store.__getitem__

    def many(self) -> dict[str, Callable[[Sequence[int]], Any]]:
        """Return the functions that read a batch, by name."""
        return {"read": self.store.read, "columns": self.store.batch}

    def scans(self) -> dict[str, Callable[[], Iterator[Sample]]]:
        """Return the ways to read all samples in order, by name."""
        return {"iterate": self.store.iterate}

    def close(self) -> None:
        """Close it, so that no page stays mapped."""
        self.store.close()


class Mds(Gewu):
    """MosaicML Streaming."""

    packages = ("mosaicml-streaming", "torch", "numpy")

    @staticmethod
    def _library() -> Any:
        import transformers.models.auto.tokenization_auto  # noqa: F401 (looks for torchvision, must not find ours)

        class Absent(types.ModuleType):
            def __getattr__(self, name: str) -> type:
                return type(name, (), {})

        for name in ("torchvision", "torchvision.datasets", "torchvision.transforms.functional"):
            sys.modules.setdefault(name, Absent(name))
        import streaming

        return streaming

    def pack(self, samples: Samples) -> None:
        columns = {"image": "bytes", "text": "str", "features": f"ndarray:float32:{FEATURES}", "label": "int"}
        with self._library().MDSWriter(out=str(self.folder), columns=columns, size_limit=SHARD_BYTES) as writer:
            for sample in samples:
                writer.write(sample)

    def open(self) -> None:
        self.store = self._library().StreamingDataset(local=str(self.folder), shuffle=False, batch_size=32)

    def one(self) -> Callable[[int], Sample]:
        return self.store.__getitem__

    def many(self) -> dict[str, Callable[[Sequence[int]], Any]]:
        return {"list": self.store.__getitem__}

    def scans(self) -> dict[str, Callable[[], Iterator[Sample]]]:
        return {"one": lambda: map(self.store.__getitem__, range(len(self.store)))}

    def close(self) -> None:
        """Nothing stays open between reads."""


class ArrowIpc(Gewu):
    """An Arrow IPC file, memory-mapped."""

    packages = ("pyarrow", "numpy")

    def pack(self, samples: Samples) -> None:
        import pyarrow as pa

        types_of = (pa.binary(), pa.string(), pa.binary(4 * FEATURES), pa.int64())
        schema = pa.schema(list(zip(("image", "text", "features", "label"), types_of, strict=True)))
        columns: dict[str, list[Any]] = {name: [] for name in schema.names}
        for sample in samples:
            for name, value in sample.items():
                columns[name].append(value.tobytes() if name == "features" else value)
        with pa.OSFile(str(self.folder / "bench.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(pa.record_batch(columns, schema=schema))

    def open(self) -> None:
        import pyarrow as pa

        self.file = pa.memory_map(str(self.folder / "bench.arrow"))
        self.batch = pa.ipc.open_file(self.file).get_batch(0)

    def one(self) -> Callable[[int], Sample]:
        image, text, features, label = self.batch.columns

        def read(i: int) -> Sample:
            return {
                "image": image[i].as_py(),
                "text": text[i].as_py(),
                "features": np.frombuffer(features[i].as_buffer(), np.float32),
                "label": label[i].as_py(),
            }

        return read

    @staticmethod
    def _by_rows(batch: Any) -> Iterator[Sample]:
        for row in batch.to_pylist():
            row["features"] = np.frombuffer(row["features"], np.float32)
            yield row

    @staticmethod
    def _by_columns(batch: Any) -> Iterator[Sample]:
        images, texts, labels = (batch.column(name).to_pylist() for name in ("image", "text", "label"))
        features = batch.column("features")
        begin, count = features.offset * FEATURES * 4, len(features)
        rows = np.frombuffer(features.buffers()[1], np.float32, count * FEATURES, begin).reshape(count, FEATURES)
        for image, text, values, label in zip(images, texts, rows, labels, strict=True):
            yield {"image": image, "text": text, "features": values, "label": label}

    def many(self) -> dict[str, Callable[[Sequence[int]], Any]]:
        return {
            "take rows": lambda indices: list(self._by_rows(self.batch.take(indices))),
            "take": lambda indices: list(self._by_columns(self.batch.take(indices))),
        }

    def scans(self) -> dict[str, Callable[[], Iterator[Sample]]]:
        def scan(rows: Callable[[Any], Iterator[Sample]]) -> Iterator[Sample]:
            for start in range(0, self.batch.num_rows, 1000):
                yield from rows(self.batch.slice(start, 1000))

        return {"rows": lambda: scan(self._by_rows), "columns": lambda: scan(self._by_columns)}

    def close(self) -> None:
        del self.batch
        self.file.close()


class ArrayRecord(Gewu):
    """Google's ArrayRecord."""

    packages = ("array-record", "numpy")

    def pack(self, samples: Samples) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        writer, shard, written = None, 0, 0
        for sample in samples:
            if writer is None:
                writer = ArrayRecordWriter(str(self.folder / f"{shard:05d}.array_record"), "group_size:1,uncompressed")
            text = sample["text"].encode()
            head = _HEADER.pack(len(sample["image"]), len(text), sample["label"])
            record = b"".join((head, sample["image"], text, sample["features"].tobytes()))
            writer.write(record)
            written += len(record)
            if written > SHARD_BYTES:
                writer.close()
                writer, shard, written = None, shard + 1, 0
        if writer is not None:
            writer.close()

    def open(self) -> None:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.paths = [str(path) for path in sorted(self.folder.glob("*.array_record"))]
        self.store = ArrayRecordDataSource(self.paths, reader_options={"max_parallelism": "0"})

    @staticmethod
    def _decoded(record: bytes) -> Sample:
        image, text, label = _HEADER.unpack_from(record)
        middle, end = 12 + image, 12 + image + text
        features = np.frombuffer(record, np.float32, FEATURES, end)
        return {"image": record[12:middle], "text": record[middle:end].decode(), "features": features, "label": label}

    def one(self) -> Callable[[int], Sample]:
        return lambda i: self._decoded(self.store[i])

    def many(self) -> dict[str, Callable[[Sequence[int]], Any]]:
        return {"getitems": lambda indices: [self._decoded(record) for record in self.store.__getitems__(indices)]}

    def scans(self) -> dict[str, Callable[[], Iterator[Sample]]]:
        from array_record.python.array_record_module import ArrayRecordReader

        def by_batch() -> Iterator[Sample]:
            for start in range(0, len(self.store), 1000):
                yield from map(self._decoded, self.store.__getitems__(range(start, min(start + 1000, len(self.store)))))

        def by_reader() -> Iterator[Sample]:
            for path in self.paths:
                reader = ArrayRecordReader(path)
                for _ in range(reader.num_records()):
                    yield self._decoded(reader.read())
                reader.close()

        return {"getitems": by_batch, "reader": by_reader}

    def close(self) -> None:
        self.store.__exit__(None, None, None)


ENGINES: dict[str, type[Gewu]] = {"gewu": Gewu, "mds": Mds, "arrow-ipc": ArrowIpc, "arrayrecord": ArrayRecord}
