"""Which way a launch is computed: a proven program, the kernel as it is written (SPMD), or not at all.

    proof that covers the launch  ->  its program
    none                          ->  lift, verify, keep the proof
    not lifted or refuted         ->  SPMD
    SPMD cannot                   ->  refused, with the reason

Proofs are kept in memory and in the cache by kernel, block, shared memory and types of the arguments; so are failures, so that
a kernel that does not lift is not tried for ever.  Arrays that overlap are computed as the kernel does.

At the sizes of a launch the program is compared once more with the SPMD code; programs with sums are also timed against it, on
copies of the arguments of a launch, and the faster way is kept with the proof: a launch gives the same bits every time, on
another machine or with another cache it may differ in the last ones.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from gewu.core.errors import GewuError, InputError
from gewu.ops.arguments import Shape
from gewu.ops.cache import key_of
from gewu.ops.ir import Kernel, Unsupported
from gewu.ops.kernelfile import kernel_from_json, kernel_to_json
from gewu.ops.lift import NotLifted, readings
from gewu.ops.rewrite import walk
from gewu.ops.serial import lifted_from_json, lifted_to_json
from gewu.ops.tensor import Reduce
from gewu.ops.verify import Oracle, Proof, Verifier

Bound = Callable[[Sequence[Any]], None]
STEP_LIMIT: Final = 20_000_000
_MOST_FAILURES: Final = 3
_MOST_PROOFS: Final = 16
_READINGS: Final = 3
_PIECE: Final = 1 << 18  # elements compared at once: more would not stay in a cache
_FAULTS: Final = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
_WORTH_TIMING, _TOO_LARGE = 1 << 17, 1 << 31  # bytes of all arrays between which the two ways are timed


@dataclass(slots=True)
class Class:
    """What is known of the launches with one block, shared memory and types of arguments."""

    key: str
    proofs: list[Proof] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    ways: dict[str, str] = field(default_factory=dict)


class Router:
    """Decides how the launches of one kernel are computed, and keeps what it needs for that.

    Args:
        name: of the kernel.
        kernel: returns it in the common language; called only when the cache does not know enough.
        options: `use`, `checked`, `threads`, `cache` of `load`.
        key: of the kernel in the cache, or "".
    """

    def __init__(self, name: str, kernel: Callable[[], Kernel], options: Any, key: str) -> None:
        self.name, self._kernel, self.options, self._key = name, kernel, options, key
        self.status = self.reason = self.formula = ""
        self.proof: Proof | None = None
        self.last: tuple[Shape, int] | None = None
        self.error = 0.0
        self._clean: Kernel | None = None
        self._classes: dict[Any, Class] = {}
        self._compiled: dict[Any, Any] = {}
        self._ahead: dict[tuple[Shape, int], threading.Thread] = {}
        self._programs: dict[int, Any] = {}

    @property
    def kernel(self) -> Kernel:
        """The kernel, without what has no effect."""
        if self._clean is None:
            self._clean = self._stored_kernel()
        if self._clean is None:
            from gewu.ops.clean import clean

            self._clean = clean(self._kernel())
            if self._key:
                self.options.cache.write(key_of(self._key, "kernel"), kernel_to_json(self._clean))
        return self._clean

    def _stored_kernel(self) -> Kernel | None:
        body = self.options.cache.read(key_of(self._key, "kernel")) if self._key else None
        try:
            return None if body is None else kernel_from_json(body)
        except InputError:
            return None

    def bind(self, grid: Shape, block: Shape, shared: int, args: Sequence[Any]) -> Bound:
        """Return the function that computes launches with arguments like these (packed) ones.

        Raises:
            InputError: an array is too small or cannot be written.
            Unsupported: this kernel is refused.
        """
        self.reason = self.formula = ""
        self.proof, self.last = None, (block, shared)
        if self.options.use == "reference":
            self.status, self.reason = "reference", "the interpreter was asked for"
            return self._interpreted(grid, block, shared, args)
        if self.options.checked or self.options.use == "spmd":
            self.reason = "checked mode runs kernels as they are written" if self.options.checked else "SPMD was asked for"
            return self._spmd(grid, block, shared, args)
        try:
            self.proof = self._prove(grid, block, shared, args)
            bound = self._program(self.proof, grid, block, shared, args)
        except NotLifted as error:
            self.proof, self.reason = None, str(error)
            if self.options.use == "lifted":
                self.status = "refused"
                raise
            return self._spmd(grid, block, shared, args)
        self.status, self.formula = "lifted", self.proof.lifted.formula
        return self._faster(bound, self.proof, grid, block, shared, args) if self.options.use == "auto" else bound

    def explain(self) -> str:
        """Return in words how the last new launch is computed."""
        if not self.status:
            return "not launched yet"
        if self.proof is None:
            return f"{self.status}: {self.reason}"
        rules = [f"p{i} = {v}" for i, v in self.proof.lifted.pinned.items()]
        for i, unit in self.proof.units.items():
            multiple = f", a multiple of {unit}" if unit > 1 else ""
            rules.append(f"{self.proof.smallest[i]} <= p{i} <= {self.proof.largest[i]}{multiple}")
        return f"lifted:\n{self.formula}\ncompared with the kernel for {'; '.join(rules) or 'all launches of this form'}"

    def fast(self, block: Shape, shared: int) -> Oracle | None:
        """Return the kernel as SPMD code for comparisons, or None when it cannot be had.

        It checks every access: arrays of a trial are as large as the program says, and the program may be wrong.
        """
        try:
            compiled = self.compiled(block, shared, checked=True)
        except (Unsupported, InputError):
            return None
        return lambda grid, args: compiled.launch(grid, args, threads=self.options.threads)

    def compiled(self, block: Shape, shared: int, *, checked: bool) -> Any:
        """Return the kernel as SPMD code for a block.

        Raises:
            Unsupported: it uses what SPMD code cannot do.
        """
        key = block, shared, checked
        ahead = None if checked else self._ahead.pop((block, shared), None)
        if ahead:
            ahead.join()
        if key not in self._compiled:
            from gewu.ops.spmd import compile_spmd

            self._compiled[key] = compile_spmd(
                self.kernel, block, shared=shared, checked=checked, cache=self.options.cache.objects
            )
        return self._compiled[key]

    def _compile_ahead(self, block: Shape, shared: int) -> None:
        """Begin to compile the kernel as it is written, most of which another process does, while it is lifted here."""
        if self.options.use != "auto" or (block, shared, False) in self._compiled or (block, shared) in self._ahead:
            return
        kernel, objects, place = self.kernel, self.options.cache.objects, (block, shared, False)

        def work() -> None:
            from gewu.ops.spmd import compile_spmd

            with suppress(GewuError, Unsupported):  # whoever asks for the code is told
                self._compiled[place] = compile_spmd(kernel, block, shared=shared, cache=objects)

        self._ahead[block, shared] = threading.Thread(target=work, daemon=True)
        self._ahead[block, shared].start()

    def reference(self, block: Shape, shared: int) -> Oracle:
        """Return the kernel as the interpreter runs it, with every access checked."""
        from gewu.ops.interp import run

        def oracle(grid: Shape, args: Sequence[Any]) -> None:
            with np.errstate(all="ignore"):  # overflow and NaN are results like others
                run(self.kernel, grid, block, args, shared=shared, limit=STEP_LIMIT)

        return oracle

    def executable(self, proof: Proof) -> Any:
        """Return the program of a proof as machine code.

        Raises:
            NotLifted: there is no code for it.
        """
        key = id(proof.lifted)
        if key not in self._programs:
            from gewu.ops.emit import compile_program

            try:
                made = compile_program(
                    proof.lifted.program, threads=self.options.threads or None, cache=self.options.cache.objects
                )
            except Unsupported as error:
                raise NotLifted(f"lifted, but has no code: {error}") from error
            except _FAULTS as error:
                raise NotLifted(f"an error while code was made for it: {type(error).__name__}: {error}") from error
            self._programs[key] = proof.lifted, made  # the program is kept so that its id stays its own
        return self._programs[key][1]

    def _prove(self, grid: Shape, block: Shape, shared: int, args: Sequence[Any]) -> Proof:
        """Return a proof that covers a launch: one known, one extended, or a new one."""
        known = self._class(block, shared, args)
        for place, proof in enumerate(known.proofs):
            if proof.covers(grid, block, args):
                return proof
            if proof.admits(grid, block, args):
                verdict = self._verifier(proof, grid, block, shared, args).extend(proof, grid, args)
                if verdict.proof is None:
                    raise NotLifted(f"not proven for these sizes: {verdict.where}")
                known.proofs[place] = verdict.proof
                self._keep(known)
                return verdict.proof
        launch = str((grid, [int(a) if isinstance(a, np.integer) else 0 for a in args]))
        if launch in known.failures or len(known.failures) >= _MOST_FAILURES or len(known.proofs) >= _MOST_PROOFS:
            raise NotLifted(known.failures.get(launch) or next(iter(known.failures.values()), "too many kinds of launches"))
        try:
            proof = self._new(grid, block, shared, args)
        except NotLifted as error:
            known.failures[launch] = str(error)
            self._keep(known)
            raise
        known.proofs.append(proof)
        self._keep(known)
        return proof

    def _new(self, grid: Shape, block: Shape, shared: int, args: Sequence[Any]) -> Proof:
        self._compile_ahead(block, shared)
        refuted, found = "", None
        for _ in range(_READINGS):
            try:
                with np.errstate(all="ignore"):
                    found = found or readings(self.kernel, grid, block, args, shared=shared)
                    lifted = next(found)
            except NotLifted as error:
                raise NotLifted(f"lifted, but refuted: {refuted}" if refuted else error.message, value=error.value) from error
            except _FAULTS as error:
                # a fault of the analysis must not take away the other way, which is always right
                raise NotLifted(f"an error inside of lifting: {type(error).__name__}: {error}") from error
            proof = Proof(lifted, {}, {}, {})
            try:
                verdict = self._verifier(proof, grid, block, shared, args).verify()
            except Unsupported as error:
                raise NotLifted(f"lifted, but cannot be compared: {error}") from error
            if verdict.proof is not None:
                self.error = verdict.worst
                return verdict.proof
            refuted = refuted or verdict.where
        raise NotLifted(f"lifted, but refuted: {refuted}")

    def _verifier(self, proof: Proof, grid: Shape, block: Shape, shared: int, args: Sequence[Any]) -> Verifier:
        executable = self.executable(proof)
        reference = self.reference(block, shared)
        return Verifier(
            proof.lifted, executable, reference, grid, block, args, fast=lambda: self.fast(block, shared), seed=len(self.name)
        )

    def _class(self, block: Shape, shared: int, args: Sequence[Any]) -> Class:
        types = tuple(a.dtype.name if isinstance(a, np.ndarray) else (type(a).__name__,) for a in args)
        place = block, shared, types
        if place not in self._classes:
            key = key_of(self._key, place) if self._key else ""
            self._classes[place] = _stored(key, self.options.cache.read(key)) if key else Class("")
        return self._classes[place]

    def _keep(self, known: Class) -> None:
        if known.key:
            self.options.cache.write(known.key, _storable(known))

    def _program(self, proof: Proof, grid: Shape, block: Shape, shared: int, args: Sequence[Any]) -> Bound:
        from gewu.ops.emit import Overlap

        launch = proof.lifted.launch(grid, block, args)
        executable, given = self.executable(proof), _given(args)
        aside: list[Bound] = []

        def run(call: Sequence[Any]) -> None:
            full = given(call)
            try:
                executable(full, launch)
            except Overlap:
                if not aside:
                    aside.append(self._spmd(grid, block, shared, args, quietly=True))
                aside[0](call)

        run.direct = lambda call: executable.direct(given(call), launch)  # type: ignore[attr-defined]
        return run

    def _faster(self, bound: Bound, proof: Proof, grid: Shape, block: Shape, shared: int, args: Sequence[Any]) -> Bound:
        """Compare a lifted program with the SPMD code at the real sizes, and return the faster: once, then remembered."""
        arrays = sum(a.nbytes for a in args if isinstance(a, np.ndarray))
        sums = any(isinstance(e, Reduce) for assign in proof.lifted.program.assigns for e in walk([assign.value]))
        if not _WORTH_TIMING < arrays < _TOO_LARGE:
            return bound
        known = self._class(block, shared, args)
        place = str((tuple(grid), [int(a) for a in args if isinstance(a, np.integer)]))
        try:
            other = self._spmd(grid, block, shared, args, quietly=True)
        except (Unsupported, InputError):
            return bound
        if place not in known.ways:
            known.ways[place] = _contest(bound, other, args, sums)
            self._keep(known)
        if known.ways[place] == "refuted":
            self.status, self.formula, self.proof = "spmd", "", None
            self.reason = "lifted, but refuted: the formula and the kernel differ at these sizes"
        elif known.ways[place] == "spmd":
            self.reason = "runs as it is written (SPMD), which was faster here than the formula's loops"
        return bound if known.ways[place] == "lifted" else other

    def _spmd(self, grid: Shape, block: Shape, shared: int, args: Sequence[Any], *, quietly: bool = False) -> Bound:
        try:
            compiled = self.compiled(block, shared, checked=self.options.checked)
        except Unsupported as error:
            if not quietly:
                self.status, self.reason = "refused", str(error)
            raise
        if not quietly:
            self.status = "spmd"
        threads, given = self.options.threads, _given(args)
        run = self._guarded(args, lambda full: compiled.launch(grid, full, threads=threads))
        if all(a.flags.writeable for a in args if isinstance(a, np.ndarray)):
            run.direct = lambda call: compiled.direct(grid, given(call), threads)  # type: ignore[attr-defined]
        return run

    def _interpreted(self, grid: Shape, block: Shape, shared: int, args: Sequence[Any]) -> Bound:
        oracle = self.reference(block, shared)
        return self._guarded(args, lambda full: oracle(grid, full))

    def _guarded(self, args: Sequence[Any], launch: Callable[[list[Any]], Any]) -> Bound:
        """Return a bound call that keeps read-only arrays as they are: the kernel gets copies, and must not change them."""
        given = _given(args)
        fixed = [i for i, a in enumerate(args) if isinstance(a, np.ndarray) and not a.flags.writeable]

        def run(call: Sequence[Any]) -> None:
            full = given(call)
            for i in fixed:
                full[i] = full[i].copy()
            launch(full)
            for i in fixed:
                if full[i].tobytes() != call[i].tobytes():
                    raise InputError("the kernel writes to this array, which is read-only", key=f"{self.name}, argument {i}")

        return run


def _contest(bound: Bound, other: Bound, args: Sequence[Any], sums: bool) -> str:
    """Return "refuted" when two ways to compute a launch differ, else the faster: "lifted" unless "spmd" is, by a tenth."""
    mine, theirs = ([a.copy() if isinstance(a, np.ndarray) else a for a in args] for _ in range(2))
    try:
        bound(mine)
    except GewuError:
        return "refuted"
    other(theirs)
    if not all(_alike(a, b) for a, b in zip(mine, theirs, strict=True) if isinstance(a, np.ndarray)):
        return "refuted"
    return "spmd" if sums and _seconds(other, args) < 0.9 * _seconds(bound, args) else "lifted"


def _alike(a: Any, b: Any) -> bool:
    """Tell whether two arrays are equal but for rounding: floats to 1e-3 of the largest, halves to 1e-2.

    Integers to one unit: they may be rounded floats, or the bits of one.  `verify` has been stricter at smaller sizes.
    """
    a, b = a.reshape(-1), b.reshape(-1)
    parts = [slice(start, start + _PIECE) for start in range(0, a.size, _PIECE)]
    differ = [part for part in parts if a[part].tobytes() != b[part].tobytes()]
    if not differ or a.dtype.kind != "f":
        return all(_alike_integers(a[part], b[part]) for part in differ)
    with np.errstate(all="ignore"):
        scale = max(float(np.abs(b[part], where=np.isfinite(b[part]), out=np.zeros_like(b[part])).max()) for part in parts)
        tolerance = (1e-2 if a.dtype.itemsize == 2 else 1e-3) * scale
        return all(_alike_floats(a[part], b[part], tolerance) for part in differ)


def _alike_integers(a: Any, b: Any) -> bool:
    if a.dtype.kind not in "iub":
        return False
    return bool((np.abs(a.astype(np.int64) - b.astype(np.int64)) <= 1).all())


def _alike_floats(a: Any, b: Any, tolerance: float) -> bool:
    finite = np.isfinite(b)
    near = np.abs(a.astype(np.float64) - b) <= tolerance
    return bool((finite == np.isfinite(a)).all() and near[finite].all())


def _seconds(bound: Bound, args: Sequence[Any]) -> float:
    """Return the time of a call on copies of the arguments, the better of two after one that does not count."""
    copies = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
    best = np.inf
    for number in range(3):
        start = time.perf_counter()
        bound(copies)
        best = min(best, time.perf_counter() - start) if number else best
    return float(best)


def _given(args: Sequence[Any]) -> Callable[[Sequence[Any]], list[Any]]:
    """Return a function that makes the full arguments of a call: arrays and floats of the call, all else as it was packed."""
    fixed = list(args)
    arrays = [i for i, a in enumerate(args) if isinstance(a, np.ndarray)]
    floats = [(i, type(a)) for i, a in enumerate(args) if isinstance(a, np.floating)]

    def full(call: Sequence[Any]) -> list[Any]:
        made = fixed.copy()
        for i in arrays:
            made[i] = call[i]
        for i, kind in floats:
            made[i] = kind(call[i])
        return made

    return full


def _storable(known: Class) -> dict[str, Any]:
    proofs = [
        {
            "lifted": lifted_to_json(p.lifted),
            "units": sorted(p.units.items()),
            "range": sorted((i, p.smallest[i], p.largest[i]) for i in p.units),
            "grid": list(p.grid),
        }
        for p in known.proofs
    ]
    return {"proofs": proofs, "failures": known.failures, "ways": known.ways}


def _stored(key: str, body: Any) -> Class:
    """Return what `_storable` was given; an empty class for anything else."""
    try:
        proofs = []
        for row in body["proofs"]:
            limits = {int(i): (int(low), int(high)) for i, low, high in row["range"]}
            smallest, largest = {i: low for i, (low, _) in limits.items()}, {i: high for i, (_, high) in limits.items()}
            units = {int(i): int(u) for i, u in row["units"]}
            if set(units) != set(limits) or min(units.values(), default=1) < 1:
                return Class(key)
            x, y, z = (int(g) for g in row["grid"])
            proofs.append(Proof(lifted_from_json(row["lifted"]), units, smallest, largest, (x, y, z)))
        ways = {str(k): v for k, v in body["ways"].items() if v in ("lifted", "spmd", "refuted")}
        return Class(key, proofs, {str(k): str(v) for k, v in body["failures"].items()}, ways)
    except (GewuError, KeyError, TypeError, ValueError, AttributeError):
        return Class(key)
