"""Pipelines and ingest: killed at any instant, a disk that is full, two at once; what is left goes on to the same bytes."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gewu.core.errors import ResourceError, StoreError
from gewu.core.files import TEMPORARY_SUFFIX
from gewu.data.catalogue import Catalogue
from gewu.data.pipeline import Pipeline
from tests.faults.faultlib import Killer, child_environment, failing_os
from tests.pipelinetools import RUN, Residues, Words, files_of, numbers, pipeline

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the command that runs a pipeline in another process, and let that process find this one's modules."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), child_environment()["PYTHONPATH"]]))
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    (tmp_path / "program.py").write_text(RUN)
    return [sys.executable, str(tmp_path / "program.py")]


def test_killed_with_two_processes_it_ends_with_the_same_bytes(tmp_path: Path, program: list[str]) -> None:
    pipeline(tmp_path / "whole", 1009, 700).run()
    command = [*program, str(tmp_path / "killed"), "1009", "700", "go"]
    killer = Killer(seed=20261128, longest_s=0.3)
    hits = [killer.strike(command, line).returncode for line in ("done 2", "done 9", "done 17")]  # in each of the three steps
    assert -signal.SIGKILL in hits
    pipeline(tmp_path / "killed", 1009, 700).run()
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob(f".*{TEMPORARY_SUFFIX}"))


def test_workers_do_not_outlive_their_parent(tmp_path: Path, program: list[str]) -> None:
    command = [*program, str(tmp_path / "a"), "0", "60000", "go"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == "start\n"
        deadline, children = time.monotonic() + 60, []
        while len(children) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
            text = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text()
            children = [pid for pid in text.split() if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        parent.kill()
    while any(alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(children) == 2 and not any(alive(pid) for pid in children)


def alive(pid: str) -> bool:
    """Tell whether a process runs; one that ended may wait for its parent, as a zombie without a command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except OSError:
        return False


def test_ctrl_c_ends_after_the_pieces_under_way(tmp_path: Path, program: list[str]) -> None:
    command = [*program, str(tmp_path / "a"), "0", "6000", "interrupt"]
    ended = subprocess.run(command, capture_output=True, text=True, start_new_session=True, check=False)
    assert "KeyboardInterrupt" in ended.stderr and ended.stderr.count("Traceback") == 1  # none of the workers'
    receipts = {path.stem for path in (tmp_path / "a/receipts").iterdir()}
    assert 1 <= len(receipts) < 8
    assert not list((tmp_path / "a").rglob(f".*{TEMPORARY_SUFFIX}"))
    assert {path.name.rpartition("-")[0] for path in (tmp_path / "a/shards").iterdir()} == receipts


def small(root: Path, dedup: Any = None) -> Pipeline:
    return Pipeline(numbers(2), (Words(7),), root, columns=["k"], shard_bytes=3000, dedup=dedup)


def calls_of(root: Path, dedup: Any = None) -> int:
    with failing_os(0) as calls:
        small(root, dedup).run()
    return len(calls.names)


@pytest.mark.parametrize("dedup", [None, Residues(37)])
def test_a_full_disk_leaves_no_half_file_and_the_next_run_goes_on(tmp_path: Path, dedup: Any) -> None:
    total = calls_of(tmp_path / "whole", dedup)
    whole = files_of(tmp_path / "whole")
    assert total > 60
    for n in sorted(random.Random(5).sample(range(1, total + 1), 12)):
        root = tmp_path / f"full-{n}"
        with failing_os(n), pytest.raises((ResourceError, StoreError), match="No space left"):
            small(root, dedup).run()
        left = files_of(root)
        assert not any(name.endswith(TEMPORARY_SUFFIX) for name in left)
        assert {name: sha for name, sha in left.items() if name in whole and whole[name] != sha} == {}
        small(root, dedup).run()
        assert files_of(root) == whole


def test_an_input_output_error_names_the_file(tmp_path: Path) -> None:
    total = calls_of(tmp_path / "whole")
    for n in range(total // 2, total // 2 + 4):
        with failing_os(n, errno.EIO), pytest.raises(StoreError, match="Input/output error") as caught:
            small(tmp_path / f"a{n}").run()
        assert str(tmp_path) in str(caught.value)


def test_the_second_of_two_pipelines_is_refused_and_the_first_goes_on(tmp_path: Path, program: list[str]) -> None:
    command = [*program, str(tmp_path / "a"), "0", "70", "wait"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        while first.stdout.readline() != "done 1\n":
            pass
        with pytest.raises(ResourceError, match=f"a: is in use by process {first.pid}"):
            pipeline(tmp_path / "a", 0, 70).run()
        first.communicate("\n" * 9, timeout=120)
        assert first.returncode == 0
    pipeline(tmp_path / "b", 0, 70).run()
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_ingest_killed_in_a_folder_of_files(tmp_path: Path, program: list[str]) -> None:
    convert = pytest.importorskip("gewu.data.convert.folders")
    generator = random.Random(3)
    for k in range(6):
        (tmp_path / f"files/{k}").mkdir(parents=True)
        for j in range(150):
            (tmp_path / f"files/{k}/{j:03d}.txt").write_bytes(generator.randbytes(generator.randrange(2000)))
    (tmp_path / "program.py").write_text(INGEST)
    source = convert.folder_source(tmp_path / "files", content="bytes", group_files=150)
    assert len(source.pieces) == 6
    Pipeline(source, (), tmp_path / "whole", shard_bytes=50_000).run()
    killer = Killer(seed=7, longest_s=0.2)
    for line in ("start", "done 2"):
        killer.strike([*program, str(tmp_path / "files"), str(tmp_path / "killed")], line)
    Pipeline(source, (), tmp_path / "killed", shard_bytes=50_000).run()
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    store = Catalogue(tmp_path / "killed").open()
    assert len(store) == 900
    assert all((tmp_path / "files" / sample["path"]).read_bytes() == sample["data"] for sample in store)


INGEST = """
import sys
from pathlib import Path
from gewu.data.convert.folders import folder_source
from gewu.data.pipeline import Pipeline

if __name__ == "__main__":
    source = folder_source(Path(sys.argv[1]), content="bytes", group_files=150)
    print("start", flush=True)
    pipeline = Pipeline(source, (), Path(sys.argv[2]), shard_bytes=50_000)
    pipeline.run(2, "processes", progress=lambda done, *rest, **more: print("done", done, flush=True))
"""
