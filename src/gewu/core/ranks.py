"""Many processes that compute one thing: the face of MPI that gewu uses, and its twin for one process.

Sums over ranks are taken in the order of the ranks, element by element, so every rank gets the same bits and a second run with
the same number of ranks gets them again (MPI itself promises neither). Large arrays are cut into one piece per rank: each rank
receives its piece from all others, adds them in order, and the pieces are gathered; twice the array travels, whatever the
number of ranks. All calls except `send`, `recv` and `exchange` are collective: every rank makes them in the same order.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NoReturn, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from gewu.core.errors import GewuError, ResourceError

T = TypeVar("T")
Operation = Literal["sum", "max", "min"]
_SMALL_BYTES: Final = 4096  # below this the latency of a second message costs more than its bytes
_ARRAY: Final[dict[str, Callable[[Any, Any], Any]]] = {"sum": np.add, "max": np.maximum, "min": np.minimum}
_NUMBER: Final[dict[str, Callable[[Any, Any], Any]]] = {"sum": lambda a, b: a + b, "max": max, "min": min}


class Ranks(Protocol):
    """A group of processes, numbered from 0 to `size - 1`; number 0 is the root."""

    @property
    def rank(self) -> int:
        """Number of this process."""

    @property
    def size(self) -> int:
        """How many processes there are."""

    @property
    def is_root(self) -> bool:
        """True on rank 0, the one that writes and prints."""

    def allreduce(self, value: T, op: Operation = "sum") -> T:
        """Combine a number or an array (same shape and dtype everywhere) over the ranks, in rank order; same bits on all."""

    def gather(self, value: T) -> list[T] | None:
        """Collect one value per rank, in rank order, on the root; None elsewhere."""

    def allgather(self, value: T) -> list[T]:
        """Collect one value per rank, in rank order, on every rank."""

    def bcast(self, value: T) -> T:
        """Give the root's value to every rank."""

    def scatter(self, values: Sequence[T] | None) -> T:
        """Give each rank its entry of the root's list (None elsewhere)."""

    def split(self, color: int) -> Ranks:
        """Return the group of the ranks that pass the same `color` (>= 0), in the order they have here."""

    def send(self, array: NDArray[Any], to: int, tag: int = 0) -> None:
        """Send a copy of an array to another rank; returns without waiting for the receiver."""

    def recv(self, source: int, tag: int = 0) -> NDArray[Any]:
        """Wait for the next array that `source` sends here with this tag."""

    def exchange(self, array: NDArray[Any], to: int, source: int, into: NDArray[Any] | None = None) -> NDArray[Any]:
        """Send an array to one rank while receiving the one that `source` sends here; this rank itself is allowed.

        Args:
            array: what goes to `to`.
            to: rank that receives it, which names this rank as its `source`.
            source: rank that sends here.
            into: C-contiguous array that receives, of the shape and dtype that `source` sends: then all ranks of this
                exchange give one, nothing is allocated and no sizes travel.
        Returns:
            `into`, or a new array.
        """

    def barrier(self) -> None:
        """Wait until every rank is here."""

    def abort(self, code: int) -> NoReturn:
        """End all ranks of the run at once, with an exit code; for errors that one rank cannot tell the others."""


def _check_operation(op: str) -> None:
    if op not in _ARRAY:
        raise GewuError("unknown operation over ranks", value=op, allowed=", ".join(_ARRAY))


class SerialRanks:
    """One process: the same answers as MPI with one rank, without MPI."""

    rank = 0
    size = 1
    is_root = True

    def allreduce(self, value: T, op: Operation = "sum") -> T:
        """Return the value (a copy of it when it is an array)."""
        _check_operation(op)
        return cast(T, value.copy()) if isinstance(value, np.ndarray) else value

    def gather(self, value: T) -> list[T] | None:
        """Return the value in a list."""
        return [value]

    def allgather(self, value: T) -> list[T]:
        """Return the value in a list."""
        return [value]

    def bcast(self, value: T) -> T:
        """Return the value."""
        return value

    def scatter(self, values: Sequence[T] | None) -> T:
        """Return the only entry."""
        return _one_per_rank(values, 1)[0]

    def split(self, color: int) -> Ranks:
        """Return this same group."""
        return self

    def send(self, array: NDArray[Any], to: int, tag: int = 0) -> None:
        """Refuse: there is no other rank."""
        _check_peer(self, to)

    def recv(self, source: int, tag: int = 0) -> NDArray[Any]:
        """Refuse: there is no other rank."""
        _check_peer(self, source)
        raise AssertionError("unreachable: one rank has no peer")

    def exchange(self, array: NDArray[Any], to: int, source: int, into: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a copy of the array."""
        _check_pair(self, to, source)
        if into is None:
            return array.copy()
        if (into.nbytes, into.dtype) != (array.nbytes, array.dtype):
            raise GewuError("an array of another size came", value=array.shape, allowed=str(into.shape))
        into[...] = array.reshape(into.shape)
        return into

    def barrier(self) -> None:
        """Return at once."""

    def abort(self, code: int) -> NoReturn:
        """Exit with the code."""
        raise SystemExit(code)


SERIAL: Final = SerialRanks()


class MpiRanks:
    """The ranks of an MPI communicator.

    Args:
        comm: an `mpi4py.MPI.Comm`.
    """

    def __init__(self, comm: Any) -> None:
        from mpi4py import MPI

        self._comm, self._status = comm, MPI.Status()
        self._pending: list[Any] = []
        self.rank = int(comm.Get_rank())
        self.size = int(comm.Get_size())
        self.is_root = self.rank == 0

    def allreduce(self, value: T, op: Operation = "sum") -> T:
        """Combine over the ranks in rank order."""
        _check_operation(op)
        if not isinstance(value, np.ndarray):
            return cast(T, functools.reduce(_NUMBER[op], self._comm.allgather(value)))
        small = value.nbytes <= _SMALL_BYTES
        parts = self._comm.allgather((value.shape, value.dtype.str, value if small else None))
        if len({part[:2] for part in parts}) != 1:
            raise GewuError("ranks disagree on the array to combine", value=[part[:2] for part in parts])
        if small:
            return cast(T, np.asarray(functools.reduce(_ARRAY[op], [part[2] for part in parts])).reshape(value.shape))
        return cast(T, self._combine_large(value, _ARRAY[op]))

    def _combine_large(self, array: NDArray[Any], combine: Callable[[Any, Any], Any]) -> NDArray[Any]:
        flat = np.ascontiguousarray(array).reshape(-1)
        bounds = [flat.size * rank // self.size for rank in range(self.size + 1)]
        counts = [high - low for low, high in itertools.pairwise(bounds)]
        mine = counts[self.rank]
        pieces = np.empty((self.size, mine), flat.dtype)
        self._comm.Alltoallv([flat, counts], [pieces, [mine] * self.size])
        result = np.empty_like(flat)
        self._comm.Allgatherv(np.ascontiguousarray(functools.reduce(combine, pieces)), [result, counts])
        return result.reshape(array.shape)

    def gather(self, value: T) -> list[T] | None:
        """Collect on the root."""
        return cast("list[T] | None", self._comm.gather(value))

    def allgather(self, value: T) -> list[T]:
        """Collect on every rank."""
        return cast("list[T]", self._comm.allgather(value))

    def bcast(self, value: T) -> T:
        """Give the root's value to every rank."""
        return cast(T, self._comm.bcast(value))

    def scatter(self, values: Sequence[T] | None) -> T:
        """Give each rank its entry of the root's list."""
        return cast(T, self._comm.scatter(_one_per_rank(values, self.size) if self.is_root else None))

    def split(self, color: int) -> Ranks:
        """Return the group of the ranks with the same color."""
        return MpiRanks(self._comm.Split(color, self.rank))

    def send(self, array: NDArray[Any], to: int, tag: int = 0) -> None:
        """Send a copy; two ranks may send to each other before either receives."""
        _check_peer(self, to)
        copy = np.array(array, order="C")
        self._pending = [entry for entry in self._pending if not entry[0].Test()]
        self._pending.append((self._comm.isend((copy.shape, copy.dtype.str), to, tag), None))
        self._pending.append((self._comm.Isend(copy, to, tag), copy))  # the copy must outlive the transfer

    def recv(self, source: int, tag: int = 0) -> NDArray[Any]:
        """Wait for an array."""
        _check_peer(self, source)
        shape, dtype = self._comm.recv(source=source, tag=tag)
        array: NDArray[Any] = np.empty(shape, dtype)
        self._comm.Recv(array, source, tag)
        return array

    def exchange(self, array: NDArray[Any], to: int, source: int, into: NDArray[Any] | None = None) -> NDArray[Any]:
        """Send to one rank and receive from another in one call."""
        _check_pair(self, to, source)
        array = np.ascontiguousarray(array)
        if into is None:
            shape, dtype = self._comm.sendrecv((array.shape, array.dtype.str), to, source=source)
            into = np.empty(shape, dtype)
        self._comm.Sendrecv(array, to, recvbuf=into, source=source, status=self._status)
        if self._status.count != into.nbytes:  # a longer one is MPI's own error
            message = f"rank {self.rank} received an array of another size from rank {source}"
            raise GewuError(message, value=self._status.count, allowed=f"{into.nbytes} bytes")
        return into

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self._comm.Barrier()

    def abort(self, code: int) -> NoReturn:
        """End all ranks of the run."""
        self._comm.Abort(code)
        raise SystemExit(code)


def _one_per_rank(values: Sequence[T] | None, size: int) -> Sequence[T]:
    if values is None or len(values) != size:
        raise GewuError("scatter needs one entry per rank", value=None if values is None else len(values), allowed=str(size))
    return values


def _check_peer(ranks: SerialRanks | MpiRanks, peer: int) -> None:
    if not 0 <= peer < ranks.size or peer == ranks.rank:
        raise GewuError(f"rank {ranks.rank} of {ranks.size} cannot exchange arrays with this rank", value=peer)


def _check_pair(ranks: SerialRanks | MpiRanks, to: int, source: int) -> None:
    for peer in (to, source):
        if not 0 <= peer < ranks.size:
            raise GewuError(f"there is no such rank among {ranks.size}", value=peer)


def _launched_ranks(environment: Mapping[str, str]) -> int:
    """Return how many ranks the launcher says it started (1 when there is no launcher)."""
    names = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"]
    if "PMIX_RANK" in environment or "PMI_RANK" in environment:  # else SLURM_NTASKS only describes the allocation
        names += ["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"]
    for name in names:
        if environment.get(name, "").isdecimal():
            return int(environment[name])
    return 1


def world() -> Ranks:
    """Return the ranks of this run: MPI when started by mpirun or srun with more than one rank, else `SERIAL`.

    Raises:
        ResourceError: started with several ranks, but mpi4py is missing or belongs to another MPI.
    """
    launched = _launched_ranks(os.environ)
    if launched == 1:
        return SERIAL
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py is here, the MPI library is not
        message = f"started as {launched} ranks, but mpi4py cannot be used: {error}"
        raise ResourceError(message, hint="pip install gewu[mpi], with an MPI library installed") from error
    ranks = MpiRanks(MPI.COMM_WORLD)
    if ranks.size != launched:
        message = f"the launcher started {launched} ranks, but mpi4py sees {ranks.size}"
        raise ResourceError(message, hint="use the mpirun of the MPI that mpi4py was built with")
    return ranks
