"""gewu's tokeniser against the package tokenizers, behind docs/decisions/0007: one vocabulary trained, all texts encoded by both.

    python bench/train/tokeniser.py FOLDER_OF_TEXT [--peer PYTHON_WITH_TOKENIZERS] [--megabytes 16] [--vocab 16384]

Each program runs in its own process with two threads; the best of two or three is printed as one JSON line each. The peer also
compares every token with ours, and the merges that it learns from the same texts. Files may be compressed by gzip.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PATTERN = "llama3"


def read(folder: str, megabytes: float) -> list[str]:
    """Return texts of a folder in a fixed random order, none above 300 kB."""
    found, size = [], 0
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    random.Random(1).shuffle(paths)
    for path in paths:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", "replace")
        if len(text) < 300_000:
            found.append(text)
            size += len(text.encode())
        if size > megabytes * 1e6:
            break
    return found


def best(function: Callable[[], Any], times: int) -> tuple[float, Any]:
    seconds, result = [], None
    for _ in range(times):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def ours(texts: list[str], vocab: int, work: Path) -> Iterator[tuple[str, float]]:
    from gewu.formats.tokenizer import Tokenizer

    Tokenizer.train(["a b a b"], 260)  # compiles
    seconds, tokenizer = best(lambda: Tokenizer.train(texts, vocab, ["<|endoftext|>"], PATTERN), 3)
    yield "train_s", seconds
    tokenizer.write(work / "tokenizer.json")
    tokenizer.encode_many(texts[:100], 2)
    yield "encode_s", best(lambda: [tokenizer.encode(text) for text in texts], 3)[0]
    seconds, tokens = best(lambda: tokenizer.encode_many(texts, 2), 3)
    yield "encode_two_threads_s", seconds
    yield "decode_s", best(lambda: [tokenizer.decode(one) for one in tokens], 3)[0]
    (work / "tokens.json").write_text(json.dumps([one.tolist() for one in tokens]))


def theirs(texts: list[str], vocab: int, work: Path) -> Iterator[tuple[str, float]]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))

    def train() -> Any:
        new = Tokenizer(models.BPE())
        new.pre_tokenizer = tokenizer.pre_tokenizer
        letters = pre_tokenizers.ByteLevel.alphabet()
        options = {"special_tokens": ["<|endoftext|>"], "initial_alphabet": letters, "show_progress": False}
        new.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab, min_frequency=2, **options))
        return new

    seconds, new = best(train, 2)
    yield "train_s", seconds
    yield "encode_s", best(lambda: [tokenizer.encode(text).ids for text in texts], 2)[0]
    seconds, tokens = best(lambda: [one.ids for one in tokenizer.encode_batch(texts)], 2)
    yield "encode_two_threads_s", seconds
    yield "decode_s", best(lambda: tokenizer.decode_batch(tokens), 2)[0]
    yield "tokens_equal", float(tokens == json.loads((work / "tokens.json").read_text()))
    merges = [json.loads(text)["model"]["merges"] for text in ((work / "tokenizer.json").read_text(), new.to_str())]
    yield "merges_equal", float(merges[0] == merges[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--peer", help="a Python that has the package tokenizers")
    parser.add_argument("--megabytes", type=float, default=16)
    parser.add_argument("--vocab", type=int, default=16384)
    parser.add_argument("--run", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        texts = read(args.folder, args.megabytes)
        found = dict((ours if args.run == "ours" else theirs)(texts, args.vocab, Path(args.work)))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        size = sum(len(text.encode()) for text in texts) / 1e6
        print(json.dumps({"program": args.run, "megabytes": size, "peak_mb": peak} | found))
        return
    with tempfile.TemporaryDirectory() as work:
        for program, python in (("ours", sys.executable), ("theirs", args.peer)):
            if python:
                command = [python, __file__, args.folder, "--run", program, "--work", work]
                command += ["--megabytes", str(args.megabytes), "--vocab", str(args.vocab)]
                subprocess.run(command, check=True, env=os.environ | {"RAYON_NUM_THREADS": "2"})


if __name__ == "__main__":
    main()
