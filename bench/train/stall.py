"""What checkpoints keep training waiting for: `python -m bench.train.stall` trains 21 million parameters and prints the share.

40 steps with a checkpoint after every ten, written while training goes on; the bar is 5 % of the time.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import gewu
from bench.train.kills import text
from gewu.core.files import write_atomic

JOB = """
[train]
data = ["text.jsonl"]
tokenizer = "bytes"
width = 384
layers = 12
heads = 6
length = 256
batch = 8
steps = 40
checkpoint_every = 10
evaluate_every = 1000
"""


def main() -> int:
    """Train, print, and return 1 where the bar is missed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_atomic(folder / "text.jsonl", text(300, 400))
        write_atomic(folder / "stall.toml", JOB.encode())
        result = gewu.run(folder / "stall.toml", quiet=True)
        share = float(result["checkpoint_stall"])
        print(f"{int(result['parameters']):,} parameters: checkpoints take {100 * share:.2f} % of the time of steps")
    return int(share > 0.05)


if __name__ == "__main__":
    raise SystemExit(main())
