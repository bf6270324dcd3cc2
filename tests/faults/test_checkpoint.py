"""Damaged, interrupted and foreign checkpoints: the state that was acknowledged, or a StoreError; never another state."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from gewu.core.checkpoint import CheckpointSet, dump, load
from gewu.core.errors import GewuError, InputError, ResourceError, StoreError
from gewu.core.ranks import SERIAL
from tests.faults.faultlib import Killer, failing_os, mutations

STATE = {
    "step": 7,
    "energy": -7.25,
    "name": "si",
    "rho": np.linspace(0.0, 1.0, 9).reshape(3, 3),
    "history": [{"x": np.arange(3)}, None],
}


def seal(body: bytes) -> bytes:
    """Give a damaged body a valid checksum, so that the checks behind the checksum are reached."""
    return body + hashlib.blake2b(body, digest_size=32).digest()


def test_every_changed_byte_and_every_truncation_is_refused() -> None:
    data = dump(STATE)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(StoreError, match=r"x\.ckpt"):
            load(bytes(damaged), source="x.ckpt")
        with pytest.raises(StoreError):
            load(data[:position], source="x.ckpt")


def test_a_crafted_file_with_a_valid_checksum_gives_a_state_or_a_store_error() -> None:
    outcomes: set[type] = set()
    for damaged in mutations(dump(STATE)[:-32], 2000, seed=3):
        try:
            outcomes.add(type(load(seal(damaged), source="x.ckpt")))
        except StoreError:
            outcomes.add(StoreError)
    assert outcomes == {dict, StoreError}  # array bytes may change unseen once the checksum is forged; nothing else escapes


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"shape":[3,3]', '"shape":[3,4611686018427387904]'),
        ('"shape":[3,3]', '"shape":[3,-3]'),
        ('"shape":[3,3]', '"shape":[3,true]'),
        ('"shape":[3,3]', '"shape":"33"'),
        ('"shape":[3,3]', '"shape":[0,4611686018427387904,4611686018427387904]'),
        ('"dtype":"<f8"', '"dtype":"|O"'),
        ('"order":"C"', '"order":"K"'),
        ('"offset":0', '"offset":1e300'),
        ('{"a":1}', '{"a":-1}'),
        ('{"a":1}', '{"a":99}'),
        ('{"a":1}', '{"a":1,"d":{}}'),
        ('{"a":1}', '{"q":1}'),
        ('{"a":1}', "1.5"),
        ('{"a":1}', "[" * 200 + "]" * 200),
        ('{"a":1}', "[" * 100_000 + "]" * 100_000),
        ('{"i":"0x7"}', '{"i":"seven"}'),
        ('{"i":"0x7"}', '{"f":"00"}'),
        ('{"tree":', '{"wood":'),
    ],
)
def test_a_crafted_header_is_refused(old: str, new: str) -> None:
    data = dump(STATE)
    length = int.from_bytes(data[12:20], "little")
    start = -(-(20 + length) // 64) * 64
    header = data[20 : 20 + length].decode()
    assert old in header
    header = header.replace(old, new, 1)
    body = data[:12] + len(header).to_bytes(8, "little") + header.encode()
    with pytest.raises(StoreError, match="not an intact checkpoint"):
        load(seal(body + bytes(-len(body) % 64) + data[start:-32]), source="x")


def test_another_version_is_refused_by_number() -> None:
    data = dump(STATE)
    with pytest.raises(StoreError, match="version 2"):
        load(seal(data[:8] + (2).to_bytes(4, "little") + data[12:-32]), source="x")


def test_a_full_disk_keeps_the_older_set_and_the_next_write_succeeds(tmp_path: Path) -> None:
    for n in range(1, 13):  # two files of six calls each
        directory = tmp_path / str(n)
        directory.mkdir()
        checkpoints = CheckpointSet(directory, SERIAL)
        checkpoints.write(1, {"step": 1})
        with failing_os(n), pytest.raises(ResourceError):
            checkpoints.write(2, {"step": 2})
        resumed = CheckpointSet(directory, SERIAL)
        # latest.json is renamed in the tenth call; the last two only make that rename durable.
        assert resumed.read() == {"step": 1 if n <= 10 else 2}
        resumed.write(3, {"step": 3})
        assert CheckpointSet(directory, SERIAL).read() == {"step": 3}
        assert sorted(path.name for path in directory.iterdir()) == ["latest.json", "step-00000003.rank-0000.ckpt"]
    with failing_os(0) as calls:
        checkpoints.write(9, {"step": 9})
    assert len(calls.names) == 12  # the loop above covered every call


def test_killed_runs_resume_from_the_last_acknowledged_set(tmp_path: Path) -> None:
    code = """if True:
        import sys
        import numpy as np
        from gewu.core.checkpoint import CheckpointSet
        from gewu.core.ranks import SERIAL
        checkpoints = CheckpointSet(sys.argv[1], SERIAL)
        state = checkpoints.read() or {"step": 0, "x": np.zeros(20_000)}
        print("ready", state["step"], flush=True)
        while True:
            state = {"step": state["step"] + 1, "x": state["x"] * 0.5 + state["step"]}
            checkpoints.write(state["step"], state)
            print(state["step"], flush=True)
        """
    killer, acknowledged = Killer(seed=2), 0
    for _ in range(8):
        killed = killer.strike([sys.executable, "-c", code, str(tmp_path)], "ready")
        assert killed.returncode == -9, killed.errors
        started = int(killed.lines[0].split()[1])
        assert started in (acknowledged, acknowledged + 1)  # one more may be complete and not yet announced
        acknowledged = int(killed.lines[-1].split()[-1])
    state = CheckpointSet(tmp_path, SERIAL).read() or {"step": 0, "x": np.zeros(20_000)}
    expected = np.zeros(20_000)
    for step in range(state["step"]):
        expected = expected * 0.5 + step
    assert state["step"] in (acknowledged, acknowledged + 1)
    assert np.array_equal(state["x"], expected)  # bit by bit: killing and resuming changed nothing


def test_damaged_sets_are_refused_or_intact(tmp_path: Path) -> None:
    CheckpointSet(tmp_path, SERIAL).write(4, {"x": 1.5})
    outcomes = set()
    for name in ("latest.json", "step-00000004.rank-0000.ckpt"):
        path = tmp_path / name
        data = path.read_bytes()
        for damaged in mutations(data, 200, seed=5):
            path.write_bytes(damaged)
            try:
                assert CheckpointSet(tmp_path, SERIAL).read() == {"x": 1.5}
                outcomes.add("intact")
            except (StoreError, InputError) as error:
                outcomes.add("refused" if "--fresh" in str(error) else str(error))
        path.unlink()
        if name == "latest.json":
            assert CheckpointSet(tmp_path, SERIAL).read() is None
        else:
            with pytest.raises(StoreError, match="no such file"):
                CheckpointSet(tmp_path, SERIAL).read()
        path.write_bytes(data)
    assert outcomes <= {"intact", "refused"}
    assert "refused" in outcomes


def test_an_intact_file_of_another_set_is_refused(tmp_path: Path) -> None:
    CheckpointSet(tmp_path, SERIAL).write(4, {"x": 1.5})
    (tmp_path / "step-00000004.rank-0000.ckpt").write_bytes(dump({"x": 2.5}))
    with pytest.raises(StoreError, match="does not match its checksum"):
        CheckpointSet(tmp_path, SERIAL).read()


def test_another_number_of_ranks_is_refused_with_what_to_do(tmp_path: Path) -> None:
    CheckpointSet(tmp_path, SERIAL).write(1, {"x": 1})
    latest = json.loads((tmp_path / "latest.json").read_text())
    latest |= {"ranks": 3, "files": latest["files"] * 3}
    (tmp_path / "latest.json").write_text(json.dumps(latest))
    with pytest.raises(InputError, match=r"mpirun -n 3.*--fresh"):
        CheckpointSet(tmp_path, SERIAL).read()


def test_files_of_the_valid_set_are_never_written_over(tmp_path: Path) -> None:
    checkpoints = CheckpointSet(tmp_path, SERIAL)
    checkpoints.write(5, {"x": 1})
    for step in (5, 4, -1):
        with pytest.raises(GewuError, match="must grow"):
            checkpoints.write(step, {"x": 2})
    with pytest.raises(GewuError, match="must be read"):
        CheckpointSet(tmp_path, SERIAL).write(5, {"x": 2})
    assert CheckpointSet(tmp_path, SERIAL).read() == {"x": 1}


def test_a_missing_directory_is_a_store_error(tmp_path: Path) -> None:
    directory = tmp_path / "gone"
    directory.mkdir()
    checkpoints = CheckpointSet(directory, SERIAL)
    shutil.rmtree(directory)
    with pytest.raises(StoreError, match="gone"):
        checkpoints.write(1, {"x": 1})
