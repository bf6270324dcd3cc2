"""A keeper holds the latest pieces of training states in the memory of its machine, for processes that come after a lost one.

A keeper outlives the processes that train: the supervisor of `gewu.train.elastic` is one. With one keeper on each machine a
process leaves its pieces at its own and at the next (a ring), so that any one machine may be lost. The last two states are kept,
for the newest may be lacking a process' pieces.

A request is a line of JSON and as many bytes as it says; so is the answer. Who does not know the group's token is not heard.
"""

from __future__ import annotations

import hmac
import json
import os
import socket
import socketserver
import threading
from collections.abc import Iterable, Sequence
from typing import Any, Final

from gewu.core.errors import ResourceError, StoreError

STATES: Final = 2
started: list[str] = []
"""Addresses of the keepers of the group that this process belongs to."""
TOKEN: Final = "GEWU_KEEPER_TOKEN"
_TIMEOUT_S: Final = 60.0
_Kept = dict[int, dict[int, tuple[dict[str, Any], bytearray]]]


class Keeper:
    """A context manager that serves from a thread.

    Args:
        host: address of this machine under which the others reach it.
        token: what processes must know.

    Attributes:
        address: "HOST:PORT".
    """

    def __init__(self, host: str = "127.0.0.1", token: str = "") -> None:
        kept: _Kept = {}

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                ask = json.loads(self.rfile.readline(1 << 28))
                if not hmac.compare_digest(str(ask.get("token")), token):
                    return
                answer, data = _answer(kept, ask, self.rfile)
                self.wfile.write(json.dumps(answer).encode() + b"\n")
                self.wfile.write(data)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads, request_queue_size = True, 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Forget who went away in the middle."""

        self._server = Server((host, 0), Handler)
        self.address = f"{host}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _answer(kept: _Kept, ask: dict[str, Any], stream: Any) -> tuple[Any, Any]:
    match ask["do"]:
        case "put":
            data = bytearray(ask["bytes"])
            view, place = memoryview(data), 0
            while place < len(data) and (got := stream.readinto(view[place:])):
                place += got
            if place == len(data):  # else the process was killed in the middle
                states = kept.setdefault(ask["owner"], {})
                states[ask["step"]] = ask["record"], data
                for step in sorted(states)[:-STATES]:
                    del states[step]
            return {}, b""
        case "list":
            states_of = kept.items()
            return [[owner, step, record] for owner, states in states_of for step, (record, _) in states.items()], b""
    data = kept.get(ask["owner"], {}).get(ask["step"], ({}, bytearray()))[1]
    part = memoryview(data)[ask["offset"] : ask["offset"] + ask["bytes"]]
    return {"bytes": len(part)}, part


def _asked(address: str, ask: dict[str, Any], parts: Iterable[Any] = ()) -> tuple[Any, bytes]:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), _TIMEOUT_S) as line, line.makefile("rb") as stream:
            line.sendall(json.dumps(ask | {"token": os.environ.get(TOKEN, "")}).encode() + b"\n")
            for part in parts:
                line.sendall(part)
            answer = json.loads(stream.readline())
            return answer, stream.read(answer.get("bytes", 0)) if isinstance(answer, dict) else b""
    except (OSError, ValueError) as error:
        raise StoreError(f"a keeper of states does not answer: {error}", value=address) from error


def put(addresses: Sequence[str], owner: int, step: int, record: dict[str, Any], parts: Sequence[Any]) -> None:
    """Leave a process' pieces at its keeper and at the next one; one that is gone is passed over while another takes them.

    Raises:
        ResourceError: none takes them.
    """
    size = sum(memoryview(part).nbytes for part in parts)
    ask = {"do": "put", "owner": owner, "step": step, "record": record, "bytes": size}
    places = {addresses[(owner + k) % len(addresses)] for k in range(2)}
    taken = 0
    for address in sorted(places):
        try:
            _asked(address, ask, parts)
            taken += 1
        except StoreError:
            continue
    if not taken:
        raise ResourceError("no keeper takes the state", value=sorted(places))


def get(address: str, owner: int, step: int, offset: int, size: int) -> bytes:
    """Return bytes of a process' pieces.

    Raises:
        StoreError: they are gone.
    """
    data = _asked(address, {"do": "get", "owner": owner, "step": step, "offset": offset, "bytes": size})[1]
    if len(data) != size:
        raise StoreError("a keeper has forgotten a state", value=address)
    return data


def found(addresses: Sequence[str]) -> list[tuple[int, list[dict[str, Any]], dict[str, tuple[str, int]]]]:
    """Return the complete states that the keepers hold together: step, record of each process, where each file is."""
    states: dict[tuple[int, int], dict[int, tuple[dict[str, Any], str]]] = {}
    for address in addresses:
        try:
            listed = _asked(address, {"do": "list"})[0]
        except StoreError:
            continue
        for owner, step, record in listed:
            states.setdefault((step, record["processes"]), {})[owner] = record, address
    complete = []
    for (step, count), owners in states.items():
        if sorted(owners) == list(range(count)):
            where = {name: (address, owner) for owner, (record, address) in owners.items() for name in record["files"]}
            complete.append((step, [owners[owner][0] for owner in range(count)], where))
    return complete
