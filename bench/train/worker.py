"""One engine in a process of its own: `python -m bench.train.worker ENGINE SIZE PRECISION`, asked by lines of JSON.

`{"do": "train", "steps": n}` answers the losses and the seconds of the next n steps, each finished before the next begins.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from typing import Any

from bench.train import gpt


def main() -> int:
    """Answer the requests on standard input until it ends."""
    engine, size, precision = sys.argv[1:]
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    module = importlib.import_module(f"bench.train.{'ours' if engine == 'gewu' else 'torch_peer'}")
    model = module.Engine(gpt.SIZES[size], precision, engine)
    done = 0
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        losses, times = [], []
        for number in range(done, done + int(request["steps"])):
            tokens = gpt.batch(gpt.SIZES[size], number)
            started = time.perf_counter()
            losses.append(model.step(tokens))
            times.append(time.perf_counter() - started)
        done += len(losses)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        answer = {"losses": losses, "times": times, "peak_mb": peak, "versions": model.versions()}
        print(json.dumps(answer), file=answers, flush=True)
    answers.flush()
    os._exit(0)


if __name__ == "__main__":
    raise SystemExit(main())
