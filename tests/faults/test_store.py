"""Full disks, kills and second writers: a file is absent, old or complete, and the refusal names it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gewu.core.errors import GewuError, ResourceError, StoreError
from gewu.core.files import DirectoryLock, LineLog, sweep_temporaries, write_atomic
from tests.faults.faultlib import Killer, child_environment, failing_os, run_python

WRITE_CALLS = ["open", "write", "fsync", "replace", "open", "fsync"]  # file, then its directory


def test_write_atomic_makes_the_calls_that_make_it_durable(tmp_path: Path) -> None:
    with failing_os(0) as calls:
        write_atomic(tmp_path / "a", b"new")
    assert calls.names == WRITE_CALLS


@pytest.mark.parametrize("n", range(1, len(WRITE_CALLS) + 1))
@pytest.mark.parametrize("old", [None, b"old content"])
def test_a_full_disk_leaves_the_old_or_the_new_file_and_nothing_else(tmp_path: Path, n: int, old: bytes | None) -> None:
    path = tmp_path / "numbers.json"
    if old is not None:
        path.write_bytes(old)
    with failing_os(n), pytest.raises(ResourceError, match=r"numbers\.json") as caught:
        write_atomic(path, b"new content")
    assert caught.value.exit_code == 4
    renamed = n > WRITE_CALLS.index("replace") + 1
    assert (path.read_bytes() if path.exists() else None) == (b"new content" if renamed else old)
    assert [entry.name for entry in tmp_path.iterdir()] == ([path.name] if path.exists() else [])
    write_atomic(path, b"later")
    assert path.read_bytes() == b"later"


@pytest.mark.parametrize(("code", "kind"), [(errno.EDQUOT, ResourceError), (errno.EIO, StoreError), (errno.EACCES, StoreError)])
def test_the_reason_decides_the_error(tmp_path: Path, code: int, kind: type[GewuError]) -> None:
    with failing_os(2, code), pytest.raises(kind, match=os.strerror(code)):
        write_atomic(tmp_path / "a", b"x")


def test_a_file_size_limit_of_the_system_is_a_resource_error(tmp_path: Path) -> None:
    code = """if True:
        import resource, sys
        from gewu.core.errors import ResourceError
        from gewu.core.files import write_atomic
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            write_atomic(sys.argv[1], bytes(1_000_000))
        except ResourceError as error:
            print("refused", error)
        """
    done = run_python(code, str(tmp_path / "large"))
    assert done.stdout.startswith(f"refused {tmp_path / 'large'}: cannot be written"), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_while_writing_removes_the_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "a", b"x")
    assert list(tmp_path.iterdir()) == []


def test_killed_writers_never_leave_a_partial_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    code = """if True:
        import sys
        from gewu.core.files import write_atomic
        print("ready", flush=True)
        for step in range(1, 100_000):
            write_atomic(sys.argv[1], step.to_bytes(4, "little") * 50_000)
            print(step, flush=True)
        """
    killer = Killer(seed=1)
    for _ in range(8):
        killed = killer.strike([sys.executable, "-c", code, str(path)], "ready")
        assert killed.returncode == -9, killed.errors
        acknowledged = int(killed.lines[-1]) if killed.lines[-1] != "ready" else 0
        if path.exists():
            data = path.read_bytes()
            step = int.from_bytes(data[:4], "little")
            assert data == step.to_bytes(4, "little") * 50_000
            # The write that was under way when the kill hit may have been completed without having been acknowledged.
            assert step in (acknowledged, acknowledged + 1)
        else:
            assert acknowledged == 0
        sweep_temporaries(tmp_path)
        assert {entry.name for entry in tmp_path.iterdir()} <= {"state"}
        path.unlink(missing_ok=True)


HOLDER = """if True:
    import sys
    from gewu.core.files import DirectoryLock
    with DirectoryLock(sys.argv[1]):
        print("locked", flush=True)
        sys.stdin.read()
    """


def test_a_second_writer_is_refused_by_name_and_a_killed_one_frees_the_directory(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, env=child_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(ResourceError, match=f"process {holder.pid} on"), DirectoryLock(tmp_path):
            pass
        holder.kill()
        holder.wait()
    with DirectoryLock(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_taken_on_a_removed_lock_file_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder leaves (and removes the file) after a waiter opened it: the waiter must lock the file that is there now."""
    import fcntl

    real = fcntl.flock
    attempts: list[int] = []

    def flock(descriptor: int, operation: int) -> None:
        if not attempts:
            (tmp_path / ".lock").unlink()
        attempts.append(descriptor)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with DirectoryLock(tmp_path):
        assert len(attempts) == 2
        monkeypatch.setattr(fcntl, "flock", real)
        with pytest.raises(ResourceError), DirectoryLock(tmp_path):
            pass


@pytest.mark.parametrize("n", [1, 2])
def test_a_lock_on_a_full_disk_is_refused_and_freed(tmp_path: Path, n: int) -> None:
    with failing_os(n), pytest.raises(ResourceError, match=r"\.lock"), DirectoryLock(tmp_path):
        pass
    with DirectoryLock(tmp_path):
        pass


def test_a_log_line_is_appended_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = LineLog(tmp_path / "events.jsonl")
    log.write("one")
    with failing_os(1), pytest.raises(ResourceError, match=r"events\.jsonl"):
        log.write("two")
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:2]))
        with pytest.raises(ResourceError):
            log.write("three")
    log.write("four")
    log.close()
    assert (tmp_path / "events.jsonl").read_text() == "one\nfour\n"


@pytest.mark.parametrize("partial", ["", "x", "y" * 70_000])
@pytest.mark.parametrize("whole", ["", "a\nb\n"])
def test_a_log_line_cut_by_a_kill_is_removed_when_opened_again(tmp_path: Path, whole: str, partial: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(whole + partial)
    log = LineLog(path)
    log.write("next")
    log.close()
    assert path.read_text() == whole + "next\n"
