"""Training in several processes: killed, hung and stopped ones; what goes on ends as if nothing had happened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gewu.core.errors import GewuError, InputError, ResourceError
from gewu.train import elastic
from gewu.train.elastic import Beat, culprits, fitting
from gewu.train.mesh import Layout
from tests.traintools import ROWS, Kills, children, history, work

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes find this package's tests."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))


def train(folder: Path, processes: int, steps: int = 40, **more: Any) -> tuple[dict[str, Any], list[str]]:
    """Train in some processes; return the result and what was said about lost ones."""
    folder.mkdir(exist_ok=True)
    said = list[str]()
    arguments = {"folder": str(folder), "layout": more.pop("layout", f"fsdp={processes}"), "steps": steps, "every": 5}
    arguments |= {"hang": more.pop("hang")} if "hang" in more else {}
    kills = more.pop("kills", None)

    resumed = list[int]()

    def event(table: dict[str, Any]) -> None:
        if said and not resumed and "step" in table:
            resumed.append(table["step"])
        if kills:
            kills.event(table)

    def warn(text: str) -> None:
        said.append(text)
        if kills:
            kills.lost(text)

    options = {"hang_timeout_s": 90.0, "event": event, "warn": warn} | more
    found = elastic.run("tests.traintools:work", arguments, processes, **options)
    return found | {"resumed": resumed[0] if resumed else -1}, said


def complete(folder: Path, steps: int) -> dict[int, float]:
    """Check that every sample was seen in exactly one step, and return the losses."""
    samples, losses = history(folder)
    assert sorted(samples) == list(range(steps))
    assert sorted(row for rows in samples.values() for row in rows) == list(range(steps * ROWS))
    return losses


def test_one_process_is_lost_and_the_other_goes_on_from_memory(tmp_path: Path) -> None:
    kills = Kills(1, seed=4, longest_s=0.3, whom=lambda: children(os.getpid()))
    found, said = train(tmp_path / "killed", 2, kills=kills, memory=True)
    assert len(said) == 1 and "SIGKILL" in said[0] and "1 process(es) go on" in said[0]
    for text in found["messages"]:  # killed while one was written, and not even memory had all of it
        assert text.startswith("the checkpoint of step ") and "is not complete, an older one is used" in text
        assert int(text.split()[4]) > found["resumed"], "what is said of an older one must be true"
    losses = complete(tmp_path / "killed", 40)
    (tmp_path / "whole").mkdir()
    work({"folder": str(tmp_path / "whole"), "layout": "", "steps": 40, "every": 40}, lambda event: False)
    expected = complete(tmp_path / "whole", 40)
    # sums of two halves in another order, float32, 40 steps
    assert np.allclose([losses[step] for step in range(40)], [expected[step] for step in range(40)], rtol=1e-5, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "times"), [(1, 4), (2, 4)])
def test_killed_processes_are_replaced_and_the_weights_are_the_same_bits(tmp_path: Path, processes: int, times: int) -> None:
    kills = Kills(times, seed=20261128, longest_s=0.5, whom=lambda: children(os.getpid()))
    found, said = train(tmp_path / "killed", processes, 200, kills=kills, replaced=100)
    whole, none = train(tmp_path / "whole", processes, 200)
    assert len(said) >= times - 1 and not none
    assert found["digest"] == whole["digest"]
    assert complete(tmp_path / "killed", 200) == complete(tmp_path / "whole", 200)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "asleep"])
def test_a_process_that_hangs_is_named_and_the_other_goes_on(tmp_path: Path, how: str) -> None:
    _, said = train(tmp_path, 2, hang=[1, 12, how], hang_timeout_s=12.0)
    assert len(said) == 1 and said[0].startswith("process 1 did not go on for 12 s")
    assert ("does not answer" if how == "stopped" else "traintools.py") in said[0]
    complete(tmp_path, 40)


def test_who_hangs_is_told_from_who_waits() -> None:
    waiting = Beat(100.0, "fit.py:1 (go)", True)
    asleep, silent = Beat(100.0, "samples.py:7 (read)"), Beat(60.0, "fit.py:1 (go)", True)
    assert culprits([waiting, silent, waiting], 101.0, 10.0) == ([1], "it does not answer")
    assert culprits([waiting, waiting, asleep], 101.0, 10.0) == ([2], "it stands at samples.py:7 (read), the others wait")
    elsewhere = Beat(100.0, "fit.py:9 (save)", True)
    assert culprits([waiting, elsewhere, waiting], 101.0, 10.0)[0] == [1]
    assert culprits([waiting, elsewhere], 101.0, 10.0)[0] == [0, 1]  # nothing tells them apart
    assert culprits([waiting, waiting], 101.0, 10.0)[0] == [0, 1]


def test_those_left_take_the_largest_layout_that_fits() -> None:
    def left(layout: str, devices: int, rows: int = 0) -> str:
        return str(fitting(Layout.of(layout), devices, rows))

    assert left("fsdp=4", 3) == "fsdp=2" and left("dp=3", 2) == "one device"
    assert left("fsdp=4 tp=2 sp", 7) == "fsdp=2 tp=2 sp" and left("dp=2 pp=2 micro=4", 3) == "pp=2 micro=4"
    assert left("fsdp=6", 5, rows=8) == "fsdp=2" and left("fsdp=4", 4, rows=8) == "fsdp=4"


PROGRAM = """
from gewu.core.errors import InputError
def refuse(arguments, report):
    raise InputError("is wrong", key=arguments["key"])
def crash(arguments, report):
    raise KeyError("a bug")
def leave(arguments, report):
    import os
    os._exit(3)
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "someprogram.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    return "someprogram"


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [("refuse", InputError, "width: is wrong"), ("crash", GewuError, "KeyError: 'a bug'"), ("leave", ResourceError, "code 3")],
)
def test_errors_of_a_process_come_up(program: str, name: str, kind: type[GewuError], text: str) -> None:
    with pytest.raises(kind, match=text) as caught:
        elastic.run(f"{program}:{name}", {"key": "width"}, 1, hang_timeout_s=60.0, event=lambda event: None)
    assert caught.type is kind
