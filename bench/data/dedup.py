"""The case `dedup-20k`: quality filter and MinHash deduplication of 20,000 texts, beside datatrove, and both against brute force.

Both read JSON lines in four pieces, apply Gopher's quality rules, write what is left, sketch it, join the sketches and write the
texts that stay; n-grams, bands and rows are datatrove's defaults (14 × 8). Each runs in a process of its own, with one worker and
with two; datatrove once, since it takes minutes. Rates are texts read per second of wall time from the start of the first stage
(imports are not counted, the start of workers is); compiled code is warm. `gewu-20x6` is the accuracy with its own bands.

The truth is every pair of texts with a Jaccard similarity of 5-word shingles of at least 0.8, by counting the common shingles of
all pairs.
    recall      share of the true pairs (of texts that passed the quality filter) whose texts are in one cluster
    precision   share of the dropped texts that have a true partner
"""

from __future__ import annotations

import argparse
import itertools
import json
import lzma
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numba
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PEER = ("datatrove[io,processing]==0.10.1", "spacy")
NGRAM, BANDS, ROWS, PIECES = 5, 14, 8, 4
C4 = ROOT.parent / "shared/data/learn"


def install(folder: Path) -> None:
    """Make the peer's environment in `folder`, or add what it lacks."""
    python = folder / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    if subprocess.run([python, "-c", "import datatrove, orjson, spacy, xxhash"], capture_output=True, check=False).returncode:
        subprocess.run([python, "-m", "pip", "install", "-q", *PEER], check=True)


def real_texts() -> Iterator[str]:
    """Yield web pages of C4 where they are at hand, then the docstrings of the standard library and of installed packages."""
    for path in sorted(C4.glob("c4_*.jsonl.xz")):
        yield from (json.loads(line)["text"] for line in lzma.decompress(path.read_bytes()).splitlines())
    site, library = Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("stdlib"))
    for folder in (library, *(site / name for name in ("scipy", "numpy", "jax", "matplotlib", "dask", "h5py", "pyarrow"))):
        for path in sorted(p for p in folder.rglob("*.py") if "site-packages" not in p.relative_to(folder).parts):
            source = path.read_bytes().decode("utf-8", "replace")
            yield from (found[1] for found in re.finditer(r'"""((?:(?!""").){300,20000})"""', source, re.S))


def corpus(n: int, seed: int = 1) -> list[str]:
    """Return texts of which three in ten are copies of others with words replaced, dropped or put in, at J = 0.5 to 1."""
    random = np.random.default_rng(seed)
    texts: list[str] = []
    for text in real_texts():
        if len(text.split()) >= 60:
            texts.append(text)
        if len(texts) == n * 7 // 10:
            break
    words = sorted(set(" ".join(texts[:500]).split()))
    base = len(texts)
    for _ in range(n - base):
        copy = texts[random.integers(base)].split(" ")
        target = random.uniform(0.5, 1.0)
        # one change spoils NGRAM shingles on either side: J = (1 - q) / (1 + q) with q the share of spoilt shingles
        share = (1 - target) / (1 + target)
        for at in sorted(random.choice(len(copy), int(share * len(copy) / NGRAM + random.random()), replace=False))[::-1]:
            kind = random.integers(3)
            copy[at : at + (kind != 1)] = [] if kind == 0 else [words[random.integers(len(words))]]
        texts.append(" ".join(copy))
    order = random.permutation(n)
    return [texts[i] for i in order]


@numba.njit(cache=True)
def _common(shingles, starts, order, posting_starts, threshold):  # type: ignore[no-untyped-def]
    left, right = [0], [0]
    counts = np.zeros(len(starts), np.int32)
    for d in range(len(starts) - 1):
        counts[:d] = 0
        for j in range(starts[d], starts[d + 1]):
            k = posting_starts[shingles[j]]
            while order[k] < d:
                counts[order[k]] += 1
                k += 1
        size = starts[d + 1] - starts[d]
        for e in range(d):
            union = size + starts[e + 1] - starts[e] - counts[e]
            if counts[e] >= threshold * union - 1e-9 and counts[e] > 0:
                left.append(e)
                right.append(d)
    return np.array(left[1:]), np.array(right[1:])


def true_pairs(texts: list[str], threshold: float = 0.8, ngram: int = NGRAM) -> tuple[np.ndarray, np.ndarray]:
    """Return every pair of texts whose sets of shingles have a Jaccard similarity of at least `threshold`."""
    from gewu.core.minhash import shingles

    values, starts = shingles(texts, ngram)
    sets = [np.unique(values[a:b]) for a, b in itertools.pairwise(starts)]
    starts = np.concatenate([[0], np.cumsum([len(s) for s in sets])])
    owner = np.repeat(np.arange(len(sets)), np.diff(starts))
    _, numbers, counts = np.unique(np.concatenate(sets), return_inverse=True, return_counts=True)
    order = np.argsort(numbers, kind="stable")
    return _common(numbers, starts, owner[order], np.concatenate([[0], np.cumsum(counts)]), threshold)


def _ours_first(source: Path, folder: Path) -> dict[str, Any]:
    """Filter one piece, write what passes and return its sketch."""
    from gewu.data.minhash import Dedup
    from gewu.data.text import Quality

    off = dict.fromkeys(("lines", "line_characters", "paragraphs", "paragraph_characters"), 1.0)
    quality = Quality(ngrams=(), banned=(), **off)  # type: ignore[arg-type]
    kept = []
    with open(source) as lines, open(folder / f"filtered-{source.name}", "w") as out:
        for line in lines:
            if isinstance(sample := quality(json.loads(line)), dict):
                kept.append(sample)
                out.write(json.dumps(sample, ensure_ascii=False) + "\n")
    return Dedup(ngram=NGRAM, hashes=BANDS * ROWS, bands=BANDS).sketch(kept)


def _ours_second(source: Path, folder: Path, keep: np.ndarray) -> None:
    with open(folder / f"filtered-{source.name}") as lines, open(folder / f"out-{source.name}", "w") as out:
        out.writelines(line for line, stays in zip(lines, keep, strict=True) if stays)


def ids_of(path: Path) -> list[int]:
    """Return the ids in a file of JSON lines."""
    return [int(json.loads(line)["id"]) for line in path.read_bytes().splitlines()]


def ours(folder: Path, work: Path, workers: int) -> dict[str, Any]:
    """Run gewu's stages; return the seconds and the cluster of every text that passed the filter."""
    from gewu.data.minhash import Dedup

    sources = sorted(folder.glob("*.jsonl"))
    warm = work / "warm.jsonl"
    warm.write_text(json.dumps({"text": "a b c d e f g"}) + "\n")
    dedup = Dedup(ngram=NGRAM, hashes=BANDS * ROWS, bands=BANDS)
    dedup.join([_ours_first(warm, work), dedup.sketch([{"text": "one two three four five six"}] * 2)])
    start = time.perf_counter()
    if workers == 1:
        sketches = [_ours_first(source, work) for source in sources]
        first = dedup.clusters(sketches)
        keep = dedup.join(sketches)
        for source, stays in zip(sources, keep, strict=True):
            _ours_second(source, work, stays)
    else:
        context = get_context("forkserver")
        context.set_forkserver_preload(["gewu.data.minhash", "gewu.data.text"])
        with ProcessPoolExecutor(workers, context) as pool:
            sketches = list(pool.map(_ours_first, sources, [work] * len(sources)))
            first = dedup.clusters(sketches)
            keep = dedup.join(sketches)
            list(pool.map(_ours_second, sources, [work] * len(sources), keep))
    seconds = time.perf_counter() - start
    ids, kept = ([i for source in sources for i in ids_of(work / (step + source.name))] for step in ("filtered-", "out-"))
    return {"seconds": seconds, "clusters": {ids[i]: int(c) for i, c in enumerate(first)}, "kept": kept}


def accuracy(found: dict[str, Any], left: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Return recall and precision as the module says."""
    clusters, kept = {int(i): c for i, c in found["clusters"].items()}, {int(i) for i in found["kept"]}
    pairs = [(i, j) for i, j in zip(left.tolist(), right.tolist(), strict=True) if i in clusters and j in clusters]
    partnered = {i for pair in pairs for i in pair}
    dropped = [i for i in clusters if i not in kept]
    recall = sum(clusters[i] == clusters[j] for i, j in pairs) / max(len(pairs), 1)
    precision = sum(i in partnered for i in dropped) / max(len(dropped), 1)
    return {"recall": round(recall, 4), "precision": round(precision, 4), "pairs": len(pairs), "dropped": len(dropped)}


def _in_own_process(python: Path, module: str, folder: Path, workers: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        settings = json.dumps({"ngram": NGRAM, "bands": BANDS, "rows": ROWS, "pieces": PIECES})
        command = [python, "-m", module, folder, work, str(workers), settings]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{module} failed:\n{done.stderr[-3000:]}")
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _with_own_bands(texts: list[str], left: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Return the accuracy of gewu's own numbers of bands and rows, of all texts."""
    from gewu.data.minhash import Dedup

    first = Dedup().clusters([Dedup().sketch([{"text": text} for text in texts])])
    kept = np.flatnonzero(first == np.arange(len(first))).tolist()
    return accuracy({"clusters": dict(enumerate(first.tolist())), "kept": kept}, left, right)


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the case; `options.texts` (20,000) and `options.repeats` make it smaller."""
    from bench.run import compare, versions

    peer, n = ROOT / "bench/data/work/peers/datatrove", getattr(options, "texts", 20_000)
    install(peer)
    texts = corpus(n)
    left, right = true_pairs(texts)
    own = _with_own_bands(texts, left, right)
    entries: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=ROOT / "bench/data/work") as top:
        folder = Path(top) / "in"
        folder.mkdir()
        for piece in range(PIECES):
            rows = [json.dumps({"text": texts[i], "id": str(i)}) for i in range(piece * n // PIECES, (piece + 1) * n // PIECES)]
            (folder / f"{piece:05d}.jsonl").write_text("\n".join(rows) + "\n")
        for workers in (1, 2):
            peer_found = _in_own_process(peer / "bin/python", "bench.data.dedup_peer", folder, workers)
            found = [_in_own_process(Path(sys.executable), "bench.data.dedup", folder, workers) for _ in range(options.repeats)]
            rates = [[n / result["seconds"] for result in results] for results in (found, [peer_found])]
            reached = {"gewu": accuracy(found[0], left, right), "datatrove": accuracy(peer_found, left, right), "gewu-20x6": own}
            entry = {"case": "dedup-20k", "peer": f"datatrove, {workers} process{'es' * (workers > 1)}"}
            entry |= compare(*rates, "texts/s") | {"accuracy": reached}
            entries.append(entry | {"versions": versions("numba", "numpy") | {"datatrove": PEER[0].partition("==")[2]}})
    return entries


if __name__ == "__main__":
    print(json.dumps(ours(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
