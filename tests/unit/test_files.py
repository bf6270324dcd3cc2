"""Reading with a cap, writing whole files, log lines and locks, when nothing fails (failures: tests/faults/test_store.py)."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from gewu.core.errors import GewuError, InputError, StoreError
from gewu.core.files import DirectoryLock, LineLog, read_capped, read_text_capped, sha256_of, sweep_temporaries, write_atomic


def test_write_atomic_returns_the_checksum_of_what_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))  # the system may take less than offered
    data = bytes(range(100))
    for given in (data, bytearray(data), memoryview(data)):
        digest = write_atomic(tmp_path / "a", given)
        assert (tmp_path / "a").read_bytes() == data
        assert digest == sha256_of(tmp_path / "a") == hashlib.sha256(data).hexdigest()
    write_atomic(tmp_path / "a", b"")
    assert (tmp_path / "a").read_bytes() == b""
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_write_atomic_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a", b"x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["missing/a", "a\0b", "d", "x" * 300])
def test_write_atomic_refuses_impossible_places(tmp_path: Path, name: str) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(StoreError):
        write_atomic(tmp_path / name, b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_sweep_removes_only_temporaries(tmp_path: Path) -> None:
    for name in (".1-ab.gewu-tmp", "job.toml", ".hidden", "x.gewu-tmp"):
        (tmp_path / name).write_text("x")
    assert sweep_temporaries(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "job.toml", "x.gewu-tmp"]


def test_sha256_of_an_absent_file_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="absent: cannot be read"):
        sha256_of(tmp_path / "absent")


def test_read_capped_takes_files_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_capped(path, 5) == b"12345"
    with pytest.raises(InputError, match="too large; allowed: at most 4 bytes"):
        read_capped(path, 4)


def test_read_capped_refuses_what_is_not_a_readable_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # would wait for a writer for ever
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, message in [
        (tmp_path / "absent", "absent: there is no such file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "pipe", "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path / "loop", "cannot be opened"),
        (tmp_path / ("x" * 300), "cannot be opened"),
        (tmp_path / "a\0b", "not a usable file name"),
        (tmp_path / "\ud800", "not a usable file name"),
    ]:
        with pytest.raises(InputError, match=message):
            read_capped(path, 100)


def test_read_text_normalises_line_ends_and_names_the_line_of_bad_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffeins\r\nzwei\rdrei Å\n".encode())
    assert read_text_capped(path, 100) == "eins\nzwei\ndrei Å\n"
    path.write_bytes(b"one\ntwo\nth\xffree\n")
    with pytest.raises(InputError, match=r"a\.txt:3: is not UTF-8 text \(got b'\\xff'\)"):
        read_text_capped(path, 100)


def test_line_log_appends_over_several_openings(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for line in ("one", "zwei Å"):
        log = LineLog(path)
        log.write(line)
        assert path.read_text(encoding="utf-8").endswith(line + "\n")  # visible at once to a reader that follows the file
        log.close()
    assert path.read_text(encoding="utf-8") == "one\nzwei Å\n"
    log = LineLog(path)
    with pytest.raises(GewuError, match="must not contain a line end"):
        log.write("a\nb")
    log.close()
    with pytest.raises(StoreError):
        LineLog(tmp_path / "missing" / "events.jsonl")


def test_a_lock_can_be_taken_again_after_it_was_released(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path)
    for _ in range(2):
        with lock:
            assert (tmp_path / ".lock").exists()
        assert not (tmp_path / ".lock").exists()
    with pytest.raises(StoreError, match="cannot be locked"), DirectoryLock(tmp_path / "missing"):
        pass
