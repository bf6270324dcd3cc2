"""datatrove's stages of the case `dedup-20k`, run with the peer's own Python (`bench.data.dedup` says how).

As its documentation composes them: reader, Gopher's quality filter, writer and MinHash signatures in one pipeline, then buckets,
clusters, and a filter that reads what the first wrote. Its local executor runs the tasks, without logs.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import GopherQualityFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter


def ids_of(path: Path) -> list[int]:
    """Return the ids in a file of JSON lines."""
    return [int(json.loads(line)["id"]) for line in path.read_bytes().splitlines()]


def run_stages(folder: Path, work: Path, workers: int, settings: dict[str, int]) -> dict[str, Any]:
    """Run the stages; return the seconds, the cluster of every text that passed the filter, and the texts kept."""
    config = MinhashConfig(n_grams=settings["ngram"], num_buckets=settings["bands"], hashes_per_bucket=settings["rows"])
    pieces, name = settings["pieces"], "${rank}.jsonl"
    step = {key: str(work / key) for key in ("filtered", "signatures", "buckets", "clusters", "out")}
    first = [
        JsonlReader(str(folder), glob_pattern="*.jsonl"),
        GopherQualityFilter(),
        JsonlWriter(step["filtered"], name, compression=None),
        MinhashDedupSignature(step["signatures"], config),
    ]
    cluster = MinhashDedupCluster(step["buckets"], step["clusters"], config, save_cluster_id=True)
    last = [
        JsonlReader(step["filtered"], glob_pattern="*.jsonl"),
        MinhashDedupFilter(step["clusters"]),
        JsonlWriter(step["out"], name, compression=None),
    ]
    buckets = [MinhashDedupBuckets(step["signatures"], step["buckets"], config=config)]
    start = time.perf_counter()
    for pipeline, tasks in ((first, pieces), (buckets, settings["bands"]), ([cluster], 1), (last, pieces)):
        LocalPipelineExecutor(pipeline, tasks, min(workers, tasks), logging_dir=str(work / "logs"), skip_completed=False).run()
    seconds = time.perf_counter() - start
    clusters: dict[int, int] = {}
    for rank in range(pieces):
        ids = ids_of(work / f"filtered/{rank:05d}.jsonl")
        found = {i: -1 - i for i in ids}  # a cluster of its own
        path = work / f"clusters/{rank:06d}.clusters"
        for row, cluster_id in np.fromfile(path, "<u4").reshape(-1, 2) if path.exists() else ():
            found[ids[row]] = int(cluster_id)
        clusters |= found
    kept = [i for path in sorted((work / "out").glob("*.jsonl")) for i in ids_of(path)]
    return {"seconds": seconds, "clusters": clusters, "kept": kept}


if __name__ == "__main__":
    print(json.dumps(run_stages(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))))
