"""The serial twin, the choice of the world, and the MPI face under mpirun (skipped where MPI is absent)."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys

import numpy as np
import pytest

from gewu.core import ranks
from gewu.core.errors import GewuError, ResourceError
from gewu.core.ranks import SERIAL, Ranks, _launched_ranks, world
from tests.faults.faultlib import child_environment


def has_open_mpi() -> bool:
    if shutil.which("mpirun") is None or importlib.util.find_spec("mpi4py") is None:
        return False
    return "Open MPI" in subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=False).stdout


needs_mpi = pytest.mark.skipif(not has_open_mpi(), reason="Open MPI's mpirun or mpi4py is absent")


def mpirun(n: int, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["mpirun", "-n", str(n), "--oversubscribe", "--allow-run-as-root", sys.executable, "-c", code, *arguments]
    environment = child_environment(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_one_rank_gives_the_answers_of_mpi_with_one_rank() -> None:
    group: Ranks = SERIAL
    assert (group.rank, group.size, group.is_root) == (0, 1, True)
    array = np.arange(3.0)
    total = group.allreduce(array)
    assert np.array_equal(total, array)
    total[0] = 9.0
    assert array[0] == 0.0  # the caller's array is never aliased, as with MPI
    assert group.allreduce(2, "max") == 2
    assert group.gather("x") == group.allgather("x") == ["x"]
    assert group.bcast("x") == group.scatter(["x"]) == "x"
    assert group.split(3) is group
    group.barrier()
    with pytest.raises(SystemExit, match="4"):
        group.abort(4)


def test_one_rank_exchanges_with_itself() -> None:
    array, room = np.arange(6.0).reshape(3, 2), np.zeros((3, 2))
    came = SERIAL.exchange(array, 0, 0)
    assert np.array_equal(came, array) and not np.shares_memory(came, array)
    assert SERIAL.exchange(array, 0, 0, room) is room and np.array_equal(room, array)
    with pytest.raises(GewuError, match="another size"):
        SERIAL.exchange(array, 0, 0, np.zeros((2, 2)))
    for to, source in ((1, 0), (0, -1)):
        with pytest.raises(GewuError, match="no such rank"):
            SERIAL.exchange(array, to, source)


def test_one_rank_refuses_what_has_no_meaning() -> None:
    for peer in (0, 1, -1):
        with pytest.raises(GewuError, match="cannot exchange"):
            SERIAL.send(np.zeros(1), peer)
        with pytest.raises(GewuError, match="cannot exchange"):
            SERIAL.recv(peer)
    with pytest.raises(GewuError, match="one entry per rank"):
        SERIAL.scatter([1, 2])
    with pytest.raises(GewuError, match="unknown operation"):
        SERIAL.allreduce(1.0, "mean")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 1),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, 4),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, 2),
        ({"SLURM_NTASKS": "8"}, 1),  # inside an allocation, but not started by srun
        ({"SLURM_NTASKS": "8", "PMIX_RANK": "3"}, 8),
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "2", "PMI_RANK": "1"}, 2),
        ({"OMPI_COMM_WORLD_SIZE": ""}, 1),
    ],
)
def test_the_launcher_is_recognised_by_its_environment(environment: dict[str, str], expected: int) -> None:
    assert _launched_ranks(environment) == expected


def test_without_a_launcher_the_world_is_serial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_launched_ranks", lambda environment: 1)
    assert world() is SERIAL


def test_several_ranks_without_mpi4py_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setitem(sys.modules, "mpi4py", None)  # makes the import fail
    with pytest.raises(ResourceError, match=r"started as 4 ranks.*pip install gewu\[mpi\]"):
        world()


FACE = """if True:
    import numpy as np
    from gewu.core.errors import GewuError
    from gewu.core.ranks import world
    group = world()
    rank, size = group.rank, group.size
    assert group.is_root == (rank == 0)

    # Sums whose result depends on the order: every rank must get those of the order of the ranks, bit by bit.
    parts = [1.0, 1e16, -1e16]
    expected = parts[0]
    for part in parts[1:size]:
        expected += part
    assert group.allreduce(parts[rank]) == expected
    for shape in [(), (3,), (5, 7), (3000,), (1001, 3), (0,), (1,)]:
        generator = np.random.default_rng(5)
        scale = 10.0 ** generator.integers(-8, 8, (size, *shape))
        given = generator.normal(size=(size, *shape)) * scale
        for array in (given, given * 1j):
            ordered = array[0].copy()
            for part in array[1:]:
                ordered = ordered + part
            total = group.allreduce(array[rank])
            assert total.shape == shape and np.array_equal(total, ordered), shape
        assert np.array_equal(group.allreduce(given[rank], "max"), given.max(axis=0))
        assert np.array_equal(group.allreduce(given[rank], "min"), given.min(axis=0))
    strided = np.arange(12000.0).reshape(2000, 6)[:, ::2] * (rank + 1)
    assert np.array_equal(group.allreduce(strided), np.arange(12000.0).reshape(2000, 6)[:, ::2] * (size * (size + 1) // 2))
    counts = np.full(2000, rank + 1)
    assert np.array_equal(group.allreduce(counts), np.full(2000, size * (size + 1) // 2))
    assert group.allreduce(rank == 1, "max") is True and group.allreduce(rank, "min") == 0
    try:
        group.allreduce(np.zeros(rank + 1))
    except GewuError as error:
        assert "disagree" in str(error)
    else:
        raise AssertionError("different shapes were combined")

    assert group.gather(rank * 10) == ([10 * r for r in range(size)] if rank == 0 else None)
    assert group.allgather(str(rank)) == [str(r) for r in range(size)]
    assert group.bcast({"from": rank}) == {"from": 0}
    assert group.scatter([f"for {r}" for r in range(size)] if rank == 0 else None) == f"for {rank}"

    half = group.split(rank % 2)
    assert half.size == (size + 1 - rank % 2) // 2 and half.rank == rank // 2
    assert half.allreduce(rank) == sum(range(rank % 2, size, 2))

    # Everybody sends before anybody receives, large enough that MPI will not buffer it by itself.
    after, before = (rank + 1) % size, (rank - 1) % size
    field = np.full((700, 300), rank + 0.25, order="F")
    group.send(field, after, tag=1)
    group.send(np.array([rank], dtype="i4"), after, tag=2)
    field[:] = -1.0  # what was sent is a copy
    tag2, tag1 = group.recv(before, tag=2), group.recv(before, tag=1)
    assert tag1.shape == (700, 300) and (tag1 == before + 0.25).all()
    assert tag2.dtype == np.int32 and tag2[0] == before

    # Around the ring, in rows of different number, with and without an array that receives; then with itself.
    mine, theirs = (np.full((r + 1, 40_000), r + 0.5) for r in (rank, before))
    room = np.zeros((before + 3, 40_000))
    assert np.array_equal(group.exchange(mine, after, before), theirs)
    rows = room[1:-1]
    assert group.exchange(np.asfortranarray(mine), after, before, rows) is rows
    assert np.array_equal(room[1:-1], theirs) and not room[[0, -1]].any()
    assert np.array_equal(group.exchange(mine[:, ::2], rank, rank), mine[:, ::2])
    try:
        group.exchange(mine, after, before, np.zeros((size + 1, 40_000)))
    except GewuError as error:
        assert "another size" in str(error) and f"from rank {before}" in str(error)
    else:
        raise AssertionError("an array of another size was taken")
    try:
        group.exchange(mine, size, before)
    except GewuError as error:
        assert "no such rank" in str(error)
    else:
        raise AssertionError("an absent rank was accepted")
    group.barrier()
    done = group.gather(f"good {rank} {size}")
    if group.is_root:  # lines of several ranks could mix
        print(done)
    """


@needs_mpi
@pytest.mark.parametrize("n", [2, 3])
def test_the_mpi_face(n: int) -> None:
    done = mpirun(n, FACE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([f"good {rank} {n}" for rank in range(n)])


@needs_mpi
def test_abort_ends_all_ranks_with_the_code() -> None:
    code = """if True:
        from gewu.core.ranks import world
        group = world()
        if group.is_root:
            group.abort(4)
        group.barrier()  # would wait for ever
        """
    assert mpirun(2, code).returncode == 4


CHECKPOINTS = """if True:
    import os, sys
    import numpy as np
    from gewu.core.checkpoint import CheckpointSet
    from gewu.core.errors import GewuError, ResourceError, StoreError
    from gewu.core.ranks import world
    group = world()
    def refused(kind, action):
        try:
            action()
        except kind as error:
            return str(error)
        raise AssertionError("not refused")

    checkpoints = CheckpointSet(sys.argv[1], group)
    assert checkpoints.read() is None
    checkpoints.write(1, {"rank": group.rank, "x": np.full(10, group.rank)})
    assert CheckpointSet(sys.argv[1], group).read()["rank"] == group.rank

    # Rank 1 alone cannot write, or cannot read: no rank may wait for it, and each says why.
    real = os.replace
    def full(source, target):
        raise OSError(28, "No space left on device")
    os.replace = full if group.rank == 1 else real
    text = refused(ResourceError, lambda: checkpoints.write(2, {"rank": -1}))
    assert "No space left" in text and text.startswith("rank 1: ") == (group.rank != 1), text
    os.replace = real
    assert CheckpointSet(sys.argv[1], group).read()["rank"] == group.rank
    group.barrier()
    if group.is_root:
        os.unlink(os.path.join(sys.argv[1], "step-00000001.rank-0001.ckpt"))
    group.barrier()
    assert "rank-0001" in refused(StoreError, lambda: CheckpointSet(sys.argv[1], group).read())
    checkpoints.write(3, {"rank": group.rank})
    assert CheckpointSet(sys.argv[1], group).read() == {"rank": group.rank}
    group.barrier()
    if group.is_root:
        print(sorted(os.listdir(sys.argv[1])))
    """


@needs_mpi
def test_checkpoint_sets_of_two_ranks(tmp_path: object) -> None:
    done = mpirun(2, CHECKPOINTS, str(tmp_path))
    assert done.returncode == 0, done.stderr
    names = ["latest.json", "step-00000003.rank-0000.ckpt", "step-00000003.rank-0001.ckpt"]
    assert done.stdout.strip() == str(names)
