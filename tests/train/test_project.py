"""Projection: collectives on levels of a network by hand, time and band, and how far it is from published runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gewu.train import machines, plan, project, walk
from gewu.train.machines import Link, Machine
from gewu.train.mesh import Layout

TWO = Machine("two", 1e12, 1e9, 1e12, (Link(8, 100e9, 1e-6), Link(0, 10e9, 1e-5)))


def test_where_groups_lie():
    at = Layout.of("pp=2 dp=4 fsdp=4 tp=4")
    assert project.inside(("tp",), at, 8) == 4
    assert project.inside(("fsdp",), at, 8) == 2
    assert project.inside(("dp",), at, 8) == 1
    assert project.inside(("fsdp", "tp"), at, 8) == 8
    assert project.inside(("dp", "fsdp"), at, 0) == 16


def test_time_of_collectives_by_hand():
    at = Layout.of("fsdp=16")
    cost = walk.sent("all-reduce", ("fsdp",), 16, 1e9)
    seconds = project.communication(cost, at, TWO)["all-reduce", ("fsdp",)]
    inner, outer = 2e9 * (1 - 1 / 8) / 100e9, 2e9 * (1 / 8 - 1 / 16) / 10e9
    assert seconds == pytest.approx(max(inner, outer) + 3e-6 + 1e-5)
    swap = project.communication(walk.sent("all-to-all", ("fsdp",), 16, 1e9), at, TWO)["all-to-all", ("fsdp",)]
    assert swap == pytest.approx(1e9 * 8 / 16 / 10e9 + 3e-6 + 1e-5)  # half of it goes to the other node
    one = project.communication(walk.sent("permute", ("fsdp",), 16, 1e9), at, TWO)["permute", ("fsdp",)]
    assert one == pytest.approx(1e9 / 10e9 + 1.1e-5)


def test_time_of_a_step_by_hand():
    at = Layout.of("pp=4 micro=12")
    cost = walk.product(1e12, 0, "dot") + walk.sent("permute", ("pp",), 4, 1e9)
    found = project.time(cost, 1e9, at, TWO, gemm=0.5, overlap=0.25)
    sent = 1e9 / 100e9 + 1e-6  # four stages stand in one node
    assert found.products == 2
    assert found.exposed == pytest.approx(0.75 * sent)
    assert found.bubble == pytest.approx((2 + 0.75 * sent) * 3 / 12)
    assert found.update == pytest.approx(2e-3)
    assert found.total == pytest.approx(found.products + found.exposed + found.bubble + found.update)
    band = project.band(cost, 1e9, at, TWO)
    assert band.low < band.middle < band.high


def test_communication_beyond_the_products_cannot_hide():
    cost = walk.product(1e12, 0, "dot") + walk.sent("permute", ("dp",), 16, 1e12)
    found = project.time(cost, 0, Layout.of("dp=16"), TWO, gemm=1, overlap=1)
    assert found.total == pytest.approx(100 + 1.1e-5)


def test_gemm_is_found_again():
    case = plan.published()[0]
    assert case.mfu(case.gemm(0.5), 0.5) == pytest.approx(case.run.mfu, rel=1e-6)


def test_published_runs_are_what_their_sources_say():
    runs = machines.PUBLISHED
    assert sorted({run.series for run in runs})[-1] == "megatron-h100"
    assert len(runs) == 43
    sizes = {
        (series, layout): count
        for series, layout, count in (
            (run.series, run.layout, plan.count(plan.specs(plan.ModelConfig(**run.model)))) for run in runs
        )
    }
    billions = sorted({round(size / 1e9, 1) for (series, _), size in sizes.items() if series == "megatron-2021"})
    assert billions == pytest.approx([1.7, 3.6, 7.5, 18.4, 39.1, 76.1, 145.6, 310.1, 529.6, 1008.0], rel=0.005)
    for run in runs:
        assert run.rows % Layout.of(run.layout).size("dp", "fsdp") == 0
        assert 0.2 < run.mfu < 0.8


def test_held_out_errors_stand_beside_the_constant_predictor():
    """The figures of docs/scaling.md: where the projector is worse than a constant, the page says so."""
    cases = plan.published()
    blind, scaling = project.blind(cases, "megatron-2021"), project.scaling(cases)
    assert {name: trial.mean < trial.constant_mean for name, trial in blind.items()} == {
        "h100": False,
        "tpu-v5e": True,
        "tpu-v5p": True,
    }
    better = {name for name, trial in scaling.items() if trial.mean < trial.constant_mean}
    assert set(scaling) - better == {"megatron-2021"}  # whose models grow with the machine: products get faster, unforeseen
    same = [trial for name, trial in scaling.items() if name != "megatron-2021"]
    assert sum(t.mean * t.runs for t in same) / sum(t.runs for t in same) < 0.07
    lowest, highest = (sorted(case.gemm(0.45) for case in cases)[i] for i in (0, -1))
    assert project.GEMM[0] < lowest
    assert highest < project.GEMM[1]


def test_the_page_on_scaling_is_what_the_record_gives():
    root = Path(__file__).resolve().parents[2]
    found = subprocess.run(
        [sys.executable, "tools/make_scaling.py", "--check"], cwd=root, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr
