"""A training run that is killed ends with the bits of one that was not; damaged checkpoints are passed over."""

import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from gewu.core.errors import StoreError
from gewu.formats import safetensors
from gewu.jobs.result import Result
from gewu.train.checkpoint import Checkpoints
from gewu.train.config import ModelConfig
from gewu.train.mesh import Layout
from gewu.train.optim import Optimiser
from gewu.train.precision import Precision
from gewu.train.step import Trainer

JOB = """[job]
checkpoint_interval_s = 0.0

[train]
data = ["t.csv"]
label = "kind"
validation = 0.3
width = 16
layers = 1
heads = 2
batch = 16
steps = {steps}
learning_rate = 1e-3
layout = "dp=1"
peak_tflops = 1.0
checkpoint_every = 5
"""


def job(folder, steps):
    rng = np.random.default_rng(1)
    (folder / "t.csv").write_text(
        "a,b,kind\n" + "".join(f"{a:.4f},{b:.4f},{'xy'[int(a > b)]}\n" for a, b in rng.normal(size=(99, 2)))
    )
    (folder / "job.toml").write_text(JOB.format(steps=steps))


def start(folder, name):
    command = [sys.executable, "-m", "gewu", "run", "job.toml", "--out", f"{name}.result", "--json"]
    return subprocess.Popen(command, cwd=folder, env=os.environ | {"XLA_FLAGS": ""}, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_killed_runs_end_with_the_bits_of_one_that_was_not(tmp_path):
    job(tmp_path, 400)
    whole = start(tmp_path, "whole")
    assert whole.wait(120) == 0
    kept = tmp_path / "killed.checkpoints"
    for after in (1, 60):
        run, before = start(tmp_path, "killed"), sorted(kept.glob("*.safetensors"))
        for _ in range(6000):
            names = sorted(kept.glob("*.safetensors"))
            if run.poll() is not None or (names != before and int(names[-1].stem[5:]) > after):
                break
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        run.wait()
    last = start(tmp_path, "killed")
    assert last.wait(120) == 0
    a, b = (Result.load(tmp_path / f"{name}.result") for name in ("whole", "killed"))
    assert b.manifest["sessions"] >= 2 or (tmp_path / "killed.result" / "run.txt").exists()
    for name in ("loss", "grad_norm", "step", "validation_loss", "score"):
        assert (np.array(a.arrays[name]) == np.array(b.arrays[name])).all(), name
    first, second = (safetensors.read(tmp_path / f"{name}.result" / "model.safetensors") for name in ("whole", "killed"))
    assert first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)


def small(layout="dp=1", **keys):
    config = ModelConfig(**({"vocab": 64, "width": 16, "layers": 2, "heads": 2, "length": 8} | keys))
    return Trainer(config, Layout.of(layout), Optimiser(), Precision.of("fp32"))


def test_a_state_is_read_on_another_layout_and_damage_is_passed_over(tmp_path, eight):
    one, many = small(), small("fsdp=2 tp=2")
    store = Checkpoints(tmp_path / "kept")
    states = [one.init(seed) for seed in (1, 2, 3)]
    for step, state in enumerate(states):
        store.save(state, {"step": step}, step)
    assert store.latest() == 2 and len(list((tmp_path / "kept").iterdir())) == 2
    for trainer in (one, many):
        state, extra = store.load(trainer.abstract())
        assert extra == {"step": 2}
        assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(*map(jax.tree.leaves, (state, states[2])), strict=True))
    path = tmp_path / "kept" / "step-00000002.safetensors"
    data = bytearray(path.read_bytes())
    for change in ("bit", "cut"):
        data[len(data) // 2] ^= 1
        path.write_bytes(data if change == "bit" else data[:-100])
        fresh = Checkpoints(tmp_path / "kept")
        assert fresh.load(one.abstract())[1] == {"step": 1}
        assert "step 2 is damaged" in fresh.messages[0]
    with pytest.raises(StoreError, match="another model"):
        store.load(small(width=32).abstract())
