"""Memory that a process keeps from step to step."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

STEPS = """
import json, resource, sys
from gewu.train import memory
if sys.argv[1] == "kept":
    memory.keep()
import numpy as np
from gewu.train.config import ModelConfig
from gewu.train.mesh import Layout
from gewu.train.optim import Optimiser
from gewu.train.precision import Precision
from gewu.train.step import Trainer
trainer = Trainer(ModelConfig(vocab=512, width=64, layers=4, heads=2, length=256), Layout(), Optimiser(), Precision.of("fp32"))
state, losses = trainer.init(0), []
tokens = np.random.default_rng(0).integers(0, 512, (16, 257))
for step in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    state, metrics = trainer.step(state, trainer.prepare({"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}))
    losses.append(float(metrics["loss"]))
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(json.dumps({"losses": losses, "faults": faults}))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library is told")
def test_a_kept_step_takes_no_new_pages_and_computes_the_same_bits():
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}

    def run(how: str) -> dict:
        made = subprocess.run([sys.executable, "-c", STEPS, how], env=env, capture_output=True, text=True, check=True)
        return json.loads(made.stdout)

    kept, free = run("kept"), run("free")
    assert kept["losses"] == free["losses"]
    assert kept["faults"] < free["faults"] / 4, (kept["faults"], free["faults"])
