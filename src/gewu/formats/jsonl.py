"""JSON lines, read by ranges of bytes: a range holds the lines that begin in it, so many processes can share one file.

A line beyond the limit is passed over in small steps and never held. NaN and Infinity are read, as Python's json does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

from gewu.formats.packed import Record, opened

LINE_BYTES: Final = 64 << 20
_STEP: Final = 1 << 20


def _to_line_end(stream: BinaryIO, most: int) -> int:
    """Read to the end of a line, not much beyond `most` bytes; return how many were read."""
    count = 0
    while count < most and (part := stream.readline(_STEP)):
        count += len(part)
        if part.endswith(b"\n"):
            break
    return count


def records(path: str, start: int = 0, stop: int = 1 << 62, line_bytes: int = LINE_BYTES) -> Iterator[Record]:
    """Yield the object of each line that begins in [start, stop) and is not blank.

    Returns:
        (file:line, object), or the reason of a refusal: line-too-long, invalid-utf8, not-json, too-deep or not-an-object.
        Lines of a range that is not the first are counted from its first byte.
    """
    with opened(path) as stream:
        at, number = start, 0
        if at:
            stream.seek(at - 1)
            at += _to_line_end(stream, stop - at + 1) - 1
        while at < stop and (line := stream.readline(line_bytes + 1)):
            number, at = number + 1, at + len(line)
            where = f"{path}:{number}" + (f" (lines counted from byte {start})" if start else "")
            if len(line) > line_bytes:
                at += 0 if line.endswith(b"\n") else _to_line_end(stream, stop - at)
                yield f"{where}: more than {line_bytes} bytes", "line-too-long"
            elif line := line.strip():
                yield _parsed(line, where)


def text(value: Any) -> str:
    """Return a value as compact JSON, strings as they are."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _parsed(line: bytes, where: str) -> Record:
    try:
        value: Any = json.loads(line.decode("utf-8-sig"))
    except UnicodeError as error:
        return f"{where}: {error}", "invalid-utf8"
    except RecursionError:
        return where, "too-deep"
    except ValueError as error:
        return f"{where}: {error}", "not-json"
    return where, value if isinstance(value, dict) else "not-an-object"
