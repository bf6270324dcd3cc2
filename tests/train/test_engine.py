"""The engine train: each kind of data to a report, layouts that agree, losses that are no numbers, jobs that are refused."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gewu.core.context import QuietContext
from gewu.core.errors import ConvergenceError, InputError, ResourceError, StoreError
from gewu.jobs.job import Job
from gewu.jobs.result import Result
from gewu.jobs.run import run_job
from gewu.train.config import Input, ModelConfig
from gewu.train.engine import Config, run
from gewu.train.fit import COLUMNS, MOST_POINTS, Curve, Fit, Progress
from gewu.train.mesh import Layout
from gewu.train.optim import Optimiser
from gewu.train.precision import Precision
from gewu.train.step import Trainer

TINY = {"width": 16, "layers": 1, "heads": 2, "layout": "dp=1", "peak_tflops": 1.0, "learning_rate": 1e-2}


def trained(**keys):
    config, ctx = Config(**(TINY | keys)), QuietContext()
    config.check()
    run(config, ctx)
    return ctx


def value(ctx, name):
    return ctx.numbers[name][0]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "texts"
    path.mkdir()
    for k in range(40):
        (path / f"{k}.txt").write_text("abcdefgh" * 20 + "\n" + "01234567" * (k % 5 + 5))
    return str(path)


def text_job(folder, **keys):
    return {"data": (folder,), "length": 32, "batch": 8, "steps": 60, "validation": 0.2, "evaluate_every": 30} | keys


def test_a_model_of_text_learns_and_says_how_well(folder):
    ctx = trained(**text_job(folder, prompts=("abcd", "012"), new_tokens=12, temperature=0.0, schedule="constant", clip=0.0))
    rows = json.loads(ctx.files["samples.json"])
    assert [row["prompt"] for row in rows] == ["abcd", "012"] and rows[0]["continuation"].startswith("efgh")
    # 259 numbers of bytes, rounded up to 320; a new model knows nothing
    assert ctx.arrays["loss"][0] == pytest.approx(np.log(320), rel=0.05)
    assert value(ctx, "validation_loss") < 1.0
    assert value(ctx, "bits_per_byte") == pytest.approx(value(ctx, "validation_loss") / np.log(2))
    assert value(ctx, "baseline_bits_per_byte") > 0
    assert value(ctx, "parameters") == 320 * 16 + (2 * 16 + 16 * 48 + 16 * 16 + 3 * 16 * 64) + 16
    assert ctx.arrays["validation_step"].tolist() == [30, 60] and len(ctx.arrays["step"]) == 60


def test_devices_agree_with_one(folder, eight):
    one = trained(**text_job(folder, steps=6))
    many = trained(**text_job(folder, steps=6, layout="dp=2 fsdp=2 tp=2 sp"))
    # the same sums in another order, float32, six steps of a learning rate of 0.01
    assert np.allclose(one.arrays["loss"], many.arrays["loss"], rtol=2e-5)
    assert value(one, "validation_loss") == pytest.approx(value(many, "validation_loss"), rel=1e-4)


def test_classes_are_told_from_a_table_and_a_picture(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6))
    kind = np.where(x[:, 0] * x[:, 1] > 0, "same", "other")  # no linear law tells them
    path = tmp_path / "cases.csv"
    lines = [",".join([*(f"{v:.5f}" for v in row), name]) for row, name in zip(x, kind, strict=True)]
    path.write_text("a,b,c,d,e,f,kind\n" + "\n".join(lines) + "\n")
    ctx = trained(
        data=(str(path),), label="kind", columns=("a", "b"), picture=(2, 2, 1), picture_columns=("c", "d", "e", "f"),
        validation=0.3, batch=32, epochs=30,
    )  # fmt: skip
    assert value(ctx, "baseline_accuracy") < 0.65 and value(ctx, "accuracy") > 0.85
    assert ctx.arrays["confusion"].sum() == value(ctx, "held_out_samples") == len(ctx.arrays["truth"])
    assert value(ctx, "auc") > value(ctx, "baseline_auc")


def test_a_series_is_forecast_and_compared(tmp_path):
    t = np.arange(1500) * 0.1
    path = tmp_path / "wave.csv"
    path.write_text("t,x\n" + "\n".join(f"{a},{np.sin(a) + 0.3 * np.sin(3.1 * a):.6f}" for a in t) + "\n")
    ctx = trained(data=(str(path),), series=("x",), context=16, horizon=8, patch=4, validation=0.2, batch=32, steps=150)
    assert value(ctx, "baseline_linear_relative_error") < 1e-3  # a sum of sines obeys a linear law
    assert value(ctx, "relative_error") < 0.5 * value(ctx, "baseline_persistence_relative_error")


def test_a_loss_that_is_no_number_stops_the_run_and_says_where(folder):
    with pytest.raises(ConvergenceError, match=r"step \d+ is not finite, first in (layer \d|head|embedding|gradient)"):
        trained(**text_job(folder, learning_rate=1e30, clip=0.0))


def test_what_makes_no_sense_is_refused(folder, tmp_path):
    for keys, match in (
        ({}, "data"),
        ({"task": "generate"}, "init"),
        ({"task": "plan"}, "vocab"),
        ({"data": (folder,), "tokenizer": "train:many"}, "tokenizer"),
        ({"data": (folder,), "picture": (2, 2, 1), "picture_columns": ("a",)}, "picture"),
    ):
        with pytest.raises(InputError, match=match):
            Config(**keys).check()
    table = tmp_path / "t.csv"
    table.write_text("a,kind\n1,x\n2,y\n")
    with pytest.raises(InputError, match=r"diagnosis.*a, kind"):
        trained(data=(str(table),), label="diagnosis")
    with pytest.raises(InputError, match="no such word in a layout"):
        trained(**text_job(folder, layout="ddp=2"))


def test_a_long_curve_stays_short_and_keeps_its_means():
    curve, n = Curve(), 2 * MOST_POINTS + 3
    for step in range(n):
        curve.add([float(step)] * len(COLUMNS))
    assert len(curve.rows) < MOST_POINTS and curve.stride == 4
    assert np.mean([row[0] for row in curve.rows]) == pytest.approx((n - len(curve.open) - 1) / 2)
    progress = Progress(curve=curve, tokens=5.0, validation=[[1, 2.0]])
    assert Progress.of(progress.state()) == progress
    kept = progress.state()
    before = json.dumps(kept)
    curve.add([1.0] * len(COLUMNS))
    progress.validation.append([2, 1.0])
    assert json.dumps(kept) == before, "what a checkpoint writes while training goes on must not change"


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    from tests.unit.test_ranks import has_open_mpi

    if not has_open_mpi():
        pytest.skip("Open MPI's mpirun or mpi4py is absent")
    rng = np.random.default_rng(1)
    table = tmp_path / "t.csv"
    table.write_text("a,b,kind\n" + "".join(f"{a:.4f},{b:.4f},{'xy'[int(a > b)]}\n" for a, b in rng.normal(size=(200, 2))))
    job = tmp_path / "job.toml"
    job.write_text(
        '[train]\ndata = ["t.csv"]\nlabel = "kind"\nvalidation = 0.3\nwidth = 16\nlayers = 2\nheads = 2\nbatch = 16\nsteps = 12\n'
        "learning_rate = 1e-3\npeak_tflops = 1.0\n"
    )
    losses = []
    start = ["mpirun", "-n", "2", "--oversubscribe", "--allow-run-as-root", "--timeout", "110"]
    for name, before in (("one", []), ("two", start)):
        command = [*before, sys.executable, "-m", "gewu", "run", str(job), "--out", str(tmp_path / f"{name}.result"), "--json"]
        done = subprocess.run(
            command, env=os.environ | {"XLA_FLAGS": ""}, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        losses.append(np.array(Result.load(tmp_path / f"{name}.result").arrays["loss"]))
    assert np.allclose(*losses, rtol=1e-5)  # sums of two halves in another order, float32, 12 small steps


def make_store(tmp_path):
    from gewu.data.engine import Config as DataConfig
    from gewu.data.engine import run as ingest

    lines = tmp_path / "some.jsonl"
    lines.write_text("".join(json.dumps({"text": f"number {k} " * 20}) + "\n" for k in range(120)))
    store = tmp_path / "some.store"
    ingest(DataConfig(source=(str(lines),), store=str(store), validation=0.2, workers=1), QuietContext())
    return store


def test_damaged_samples_of_a_store_stop_the_run_or_are_counted(tmp_path):
    store = make_store(tmp_path)
    (shard,) = (store / "shards").glob("*.gws")
    data = bytearray(shard.read_bytes())
    at = data.index(b"number 50 ")
    data[at] ^= 1
    shard.write_bytes(data)
    job = text_job(str(store), validation=0.0, steps=12)
    with pytest.raises(StoreError, match="sample"):
        trained(**job)
    ctx = trained(**job, on_damage="skip")
    assert value(ctx, "damaged_samples") == 1
    assert any("1 damaged" in text for text in ctx.warnings)


class Memory:
    """Checkpoints in memory."""

    def __init__(self):
        self.kept, self.messages = [], []

    def save(self, state, extra, step):
        self.kept.append((jax.tree.map(np.array, state), json.dumps(extra), step))

    def latest(self):
        return self.kept[-1][2] if self.kept else None

    def load(self, abstract):
        state, extra, _ = self.kept[-1]
        return jax.tree.map(jnp.asarray, state), json.loads(extra)

    def wait(self):
        pass


class Numbered:
    """Batches of a series; the one of a number is no number."""

    def __init__(self, bad):
        self.number, self.bad, self.seen = 0, bad, []

    def __next__(self):
        rng = np.random.default_rng(self.number)
        x = rng.normal(size=(4, 8, 1)).astype(np.float32)
        value = np.full((4, 1), np.inf, np.float32) if self.number == self.bad else x[:, -1]
        self.seen.append(self.number)
        self.number += 1
        return {"x": x, "value": value}

    def state(self):
        return {"number": self.number}


def test_a_loss_that_is_no_number_can_be_left_behind():
    model = ModelConfig(width=16, layers=1, heads=2, length=4, inputs=(Input("x", "series", (8, 1), 2),), targets=1, causal=False)
    trainer = Trainer(model, Layout(), Optimiser(learning_rate=1e-2), Precision.of("fp32"))
    with pytest.raises(ConvergenceError, match="step 8 is not finite"):
        Fit(trainer, Numbered(bad=7), 12, QuietContext(), checkpoints=Memory(), save_every=5, rows=4).go(trainer.init(1))
    stream, ctx = Numbered(bad=7), QuietContext()
    fit = Fit(trainer, stream, 12, ctx, checkpoints=Memory(), save_every=5, on_nan="rewind", rows=4)
    state, stopped = fit.go(trainer.init(1))
    assert int(state.step) == 12 and not stopped
    # steps 1 to 5, checkpoint; 6, 7, the bad one; back to 5, and on with the batches behind it
    assert stream.seen == list(range(15)) and fit.progress.rewinds == 1 and fit.progress.skipped == 1
    assert [row[0] for row in fit.progress.curve.rows] == list(range(1, 13))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert "back to step 5" in ctx.warnings[0]


def test_a_result_is_a_model_that_can_be_evaluated_and_trained_on(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keys = text_job(folder, steps=30) | {key: TINY[key] for key in ("width", "heads", "layout", "peak_tflops", "learning_rate")}
    table = {"train": keys | {"data": list(keys["data"]), "layers": 1, "checkpoint_every": 0}}
    outcome = run_job(Job.from_table(table, name="small"), out="small.result")
    assert outcome.exit_code == 0, outcome.reason
    result = Result.load(outcome.path)
    assert {"config.json", "model.safetensors", "model.json"} <= set(result.manifest["files"])
    held = result.numbers["validation_loss"].value
    again = trained(**(keys | {"task": "evaluate", "init": str(outcome.path)}))
    assert value(again, "validation_loss") == pytest.approx(held, rel=1e-5)
    more = trained(**(keys | {"init": str(outcome.path), "steps": 3, "learning_rate": 1e-6}))
    assert more.arrays["loss"][0] < 1.5 * held + 0.5


def test_a_plan_counts_what_a_step_costs():
    config = Config(
        task="plan", vocab=512, width=64, layers=4, heads=4, length=64, batch=64, layout="dp=4 fsdp=4 tp=2", machine="a100",
        compile_devices=0,
    )  # fmt: skip
    ctx = QuietContext()
    run(config, ctx)
    assert value(ctx, "devices") == 32
    # parameters and two moments, float32, in pieces over fsdp (and tp, but for the norms: 9 of 64 numbers, whole everywhere)
    small = 9 * 64
    assert value(ctx, "state_gb") * 1e9 == pytest.approx(12 * ((value(ctx, "parameters") - small) / 8 + small))
    assert len(ctx.arrays["traffic"]) > 0 and (np.diff(ctx.arrays["traffic"]) <= 0).all()
    assert (np.diff(ctx.arrays["projected_mfu"], axis=1) >= 0).all()


def test_what_does_not_fit_is_refused_with_the_bytes_that_miss(folder):
    keys = text_job(folder, steps=1, validation=0.0) | {"width": 1 << 15, "layers": 40, "heads": 8}
    for layout in ("auto", "tp=8"):
        with pytest.raises(ResourceError, match=r"does not fit: \d{9,} bytes miss"):
            trained(**(keys | {"layout": layout}))


def test_what_a_process_of_several_records_is_what_a_run_alone_records(folder, tmp_path):
    from gewu.train.member import member, replay

    keys = TINY | text_job(folder, steps=4, validation=0.0)
    alone, above, told = trained(**keys), QuietContext(), []
    arguments = {"config": asdict(Config(**keys)), "place": [str(tmp_path), None], "run": "1"}
    found = member(json.loads(json.dumps(arguments)), told.append)
    replay(json.loads(json.dumps(found)), above)
    assert not found["stopped"] and [event["call"] for event in told].count("progress") == 4
    timed = {"tokens_per_s", "mfu"}
    assert {k: v for k, v in above.numbers.items() if k not in timed} == {
        k: v for k, v in alone.numbers.items() if k not in timed
    }
    assert set(above.arrays) == set(alone.arrays) and (above.arrays["loss"] == alone.arrays["loss"]).all()
    assert above.files == alone.files and (tmp_path / "model.safetensors").exists()
