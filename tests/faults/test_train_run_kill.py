"""A training run whose processes are killed ends with the weights, bit by bit, of one that was left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.train.kills import Harness


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    harness = Harness(tmp_path, processes=1, seed=1)
    whole = harness.undisturbed()
    assert harness.disturbed(kills=1) == whole


@pytest.mark.slow
def test_killed_processes_of_two_end_with_the_same_bits(tmp_path: Path) -> None:
    harness = Harness(tmp_path, processes=2, seed=2)
    whole = harness.undisturbed()
    assert harness.disturbed(kills=4) == whole


@pytest.mark.slow
def test_a_run_goes_on_with_those_left(tmp_path: Path) -> None:
    """With `restarts = 0` the loss of one process of two leaves one, which ends near the same loss (sums in another order)."""
    harness = Harness(tmp_path, processes=2, seed=3, restarts=0)
    whole = harness.undisturbed()
    left = harness.disturbed(kills=1, children=True)
    assert left["steps"] == whole["steps"]
    assert left["loss"] == pytest.approx(whole["loss"], rel=1e-4)
