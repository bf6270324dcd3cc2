"""Load kernels and launch them on NumPy arrays: `load("kernel.cubin")["name"][grid, block](*arrays)`.

    bytes -> Module -> Operator -> Launch -> bound call

The first launch of a kind decides the way: lifted and verified, else run as it is written (SPMD), else refused with a reason.
What was decided is kept for launches with the same grid, block, shapes and integers, whose later calls look it up and go.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from gewu.core.errors import InputError
from gewu.core.files import read_capped
from gewu.ops import direct
from gewu.ops.arguments import Shape, block_of, grid_of, pack
from gewu.ops.cache import Cache, cache_folder, key_of
from gewu.ops.ir import Kernel, Listing, Parameter, Unsupported
from gewu.ops.route import Bound, Router

USES: Final = ("auto", "lifted", "spmd", "reference")
KINDS: Final = ("cu", "ptx", "cubin")
_LIMIT: Final = 1 << 27
_REMEMBERED: Final = 512
_INCLUDE: Final = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Signature:
    """What a launch must know of a kernel."""

    name: str
    parameters: tuple[Parameter, ...]
    limit: int = 0
    required: tuple[int, ...] = ()


def load(
    source: str | Path | bytes,
    *,
    arch: str = "sm_90",
    kind: str | None = None,
    use: str = "auto",
    checked: bool = False,
    threads: int = 0,
    cache: bool = True,
    constants: Mapping[str, Any] | None = None,
) -> Module:
    """Read the kernels of a file.

    Args:
        source: path of CUDA source (.cu), PTX (.ptx) or machine code (.cubin), or the bytes themselves.
        arch: processor for which CUDA source is compiled.
        kind: "cu", "ptx" or "cubin"; None recognises it.
        use: "auto", or one way only: "lifted", "spmd" or "reference" (the slow interpreter).
        checked: run every kernel as it is written, with each access to memory checked.
        threads: of each launch; 0 takes all usable cores.
        cache: keep what was found out in `cache_folder()`.
        constants: arrays for module variables that only the host sets (`__constant__`), by their names in the file.

    Raises:
        InputError: the file cannot be read, or holds no kernel that can.
    """
    for key, value, allowed in (("use", use, USES), ("kind", kind, (*KINDS, None))):
        if value not in allowed:
            raise InputError("no such choice", key=key, value=value, allowed=", ".join(map(str, allowed)))
    if not isinstance(checked, bool):
        raise InputError("must be true or false", key="checked", value=checked)
    path = None if isinstance(source, bytes) else Path(source)
    data = source if isinstance(source, bytes) else read_capped(source, _LIMIT)
    found = kind or kind_of(data, path)
    values = {name: np.ascontiguousarray(value).tobytes() for name, value in (constants or {}).items()}
    return Module(data, path, found, arch, values, Options(use, checked, threads, Cache(cache_folder() if cache else None)))


def kind_of(data: bytes, path: Path | None = None) -> str:
    """Return what bytes are: "cubin", "ptx" or "cu", by content and then by the suffix of their file.

    Raises:
        InputError: none of these.
    """
    if data[:4] == b"\x7fELF":
        return "cubin"
    if data[:4] == b"\x50\xed\x55\xba":
        hint = "extract a cubin: cuobjdump -xelf all FILE"
        raise InputError("is a fat binary, which holds several kernels files", file=path, allowed=".cu, .ptx, .cubin", hint=hint)
    if re.search(rb"^\s*\.version\s+\d", data[:65536], re.MULTILINE):
        return "ptx"
    if b"__global__" in data or (path is not None and path.suffix == ".cu"):
        return "cu"
    raise InputError("is neither CUDA source, nor PTX, nor a cubin", file=path, allowed=".cu, .ptx, .cubin")


@dataclass(frozen=True, slots=True)
class Options:
    """How the operators of a module run; see `load`."""

    use: str
    checked: bool
    threads: int
    cache: Cache


class Module:
    """The kernels of a file, by name."""

    def __init__(
        self, data: bytes, path: Path | None, kind: str, arch: str, constants: Mapping[str, bytes], options: Options
    ) -> None:
        self._data, self._path, self._kind, self._arch, self._options = data, path, kind, arch, options
        self._constants = dict(constants)
        self._read: Listing | None = None
        self._operators: dict[str, Operator] = {}
        self._key = self._identity()
        stored = _stored(options.cache.read(self._key)) if self._key else None
        if stored is None:
            listing = self.listing
            signatures = {n: Signature(n, k.parameters, k.limit, tuple(k.required)) for n, k in listing.kernels.items()}
            stored = signatures, dict(listing.refused)
            if self._key:
                options.cache.write(self._key, _storable(*stored))
        self._signatures, self.refused = stored

    @property
    def names(self) -> list[str]:
        """The kernels that were read, by the names of the file."""
        return list(self._signatures)

    @property
    def listing(self) -> Listing:
        """The kernels in the common language; read when first needed."""
        if self._read is None:
            self._read = _listing(self._data, self._path, self._kind, self._arch, self._constants)
        return self._read

    def __iter__(self) -> Iterator[str]:
        return iter(self._signatures)

    def __len__(self) -> int:
        return len(self._signatures)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and len(self._matches(name)) == 1

    def __getitem__(self, name: str) -> Operator:
        """Return a kernel by its name; that of C++ source may be given plain when only one kernel has it.

        Raises:
            Unsupported: the kernel was refused; says why.
            InputError: no such kernel, or several.
        """
        found = self._matches(name)
        if len(found) > 1:
            raise InputError("several kernels have this name", key="kernel", value=name, allowed=", ".join(found))
        if not found:
            refused = [n for n in self.refused if name in (n, plain_name(n))]
            if refused:
                raise Unsupported(f"refused: {self.refused[refused[0]]}", file=self._path, key=refused[0])
            raise InputError(
                "no such kernel", file=self._path, value=name, allowed=", ".join(self._signatures) or "none was read"
            )
        if found[0] not in self._operators:
            self._operators[found[0]] = Operator(self, self._signatures[found[0]], self._options)
        return self._operators[found[0]]

    def key(self, name: str) -> str:
        """Return what the cache keeps about a kernel under; "" when it keeps nothing."""
        return key_of(self._key, name) if self._key else ""

    def _matches(self, name: str) -> list[str]:
        if name in self._signatures:
            return [name]
        return [full for full in self._signatures if plain_name(full) == name]

    def _identity(self) -> str:
        """Return a key of all that the kernels depend on, or "" when that cannot be told."""
        given = [part for name, value in sorted(self._constants.items()) for part in (name, value)]
        if self._kind != "cu":
            return key_of("module", self._kind, self._data, *given)
        parts = _included(self._data, self._path.parent if self._path else None)
        if parts is None:
            return ""
        from gewu.ops.cuda import toolchain

        return key_of("module", self._kind, self._arch, toolchain(), *parts, *given)


@dataclass(slots=True)
class Operator:
    """One kernel.

    Attributes:
        module: where it comes from.
        signature: its name and parameters.
        options: how it runs.
    """

    module: Module
    signature: Signature
    options: Options
    _launches: dict[Any, Launch] = field(default_factory=dict)
    _router: Router | None = None

    @property
    def name(self) -> str:
        """The name in the file."""
        return self.signature.name

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters in the order of a call."""
        return self.signature.parameters

    @property
    def kernel(self) -> Kernel:
        """The kernel in the common language."""
        return self.module.listing.kernels[self.name]

    @property
    def router(self) -> Router:
        """What decides how launches are computed."""
        if self._router is None:
            self._router = Router(self.name, lambda: self.kernel, self.options, self.module.key(self.name))
        return self._router

    @property
    def status(self) -> str:
        """How the last new launch is computed: "lifted", "spmd", "reference" or "refused"; "" before the first."""
        return self.router.status

    @property
    def reason(self) -> str:
        """Why the last new launch is not lifted, or refused; "" when it is lifted."""
        return self.router.reason

    @property
    def formula(self) -> str:
        """What the kernel computes, in readable notation; "" when it is not lifted."""
        return self.router.formula

    def explain(self) -> str:
        """Return in words how launches are computed, and what the kernel computes where that is known."""
        head = f"{self.name}({', '.join(p.name or f'argument {i}' for i, p in enumerate(self.parameters))})"
        return f"{head}\n{self.router.explain()}"

    def __getitem__(self, place: Any) -> Launch:
        """Return the operator with a grid and a block, and bytes of dynamic shared memory: `operator[grid, block, shared]`."""
        try:
            return self._launches[place]
        except (KeyError, TypeError):
            return self._launch(place)

    def prepare(self, grid: Any, block: Any, *args: Any, shared: int = 0) -> str:
        """Decide how such a launch is computed and compile it, without computing; return the status."""
        self[grid, block, shared].bind(args)
        return self.status

    def _launch(self, place: Any) -> Launch:
        if not isinstance(place, tuple) or len(place) not in (2, 3):
            raise InputError(
                "needs a grid and a block", key=self.name, value=place, allowed="[grid, block] or [grid, block, bytes]"
            )
        shared = place[2] if len(place) == 3 else 0
        if not isinstance(shared, int | np.integer) or not 0 <= shared <= 1 << 18:
            allowed = f"bytes, 0 to {1 << 18}"
            raise InputError("shared memory is out of bounds", key=self.name, value=shared, allowed=allowed)
        block = block_of(place[1], self.name, self.signature.limit, self.signature.required)
        made = Launch(self, grid_of(place[0], self.name), block, int(shared))
        if len(self._launches) >= _REMEMBERED:
            self._launches.clear()
        try:
            self._launches[place] = made
        except TypeError:  # grid or block given as a list
            return made
        return made


class Launch:
    """An operator with its grid and block; call it with the arguments of the kernel. Arrays are changed in place."""

    __slots__ = ("_bound", "_call", "_direct", "block", "grid", "operator", "shared")

    def __init__(self, operator: Operator, grid: Shape, block: Shape, shared: int) -> None:
        self.operator, self.grid, self.block, self.shared = operator, grid, block, shared
        self._bound: dict[tuple[Any, ...], Bound] = {}
        self._direct: dict[tuple[Any, ...], tuple[Any, Any] | None] = {}
        self._call: Any = self._checked

    def __call__(self, *args: Any) -> None:
        """Compute.

        Raises:
            InputError: an argument does not fit its parameter, or an array is too small for the launch.
            Unsupported: the kernel is refused.
        """
        self._call(*args)

    def _checked(self, *args: Any) -> None:
        """Compute, and let the next call with arguments like these go the short way where there is one."""
        key: list[Any] = []
        for arg in args:
            kind = type(arg)
            if kind is np.ndarray:
                key += arg.dtype, arg.shape, arg.flags.num
            elif kind is float or kind is np.float32 or kind is np.float64:
                key.append(kind)
            else:
                key += kind, arg
        try:
            bound = self._bound[tuple(key)]
        except (KeyError, TypeError):
            bound = self._bind(key, args)
        bound(args)
        self._shorten(key, bound, args)

    def _shorten(self, key: list[Any], bound: Bound, args: Sequence[Any]) -> None:
        try:
            known = tuple(key)
            if known not in self._direct:
                work = bound.direct(args) if hasattr(bound, "direct") else None
                if len(self._direct) >= _REMEMBERED:
                    self._direct.clear()
                self._direct[known] = direct.function(args, work, self._checked) if work else None
        except TypeError:  # an argument that cannot be compared
            return
        short = self._direct[known]
        self._call = short[0] if short else self._checked

    def bind(self, args: Sequence[Any]) -> Bound:
        """Return the function that computes this launch for arguments like these."""
        return self.operator.router.bind(self.grid, self.block, self.shared, pack(self.operator.signature, args))

    def _bind(self, key: list[Any], args: Sequence[Any]) -> Bound:
        bound = self.bind(args)
        if len(self._bound) >= _REMEMBERED:
            self._bound.clear()
        try:
            self._bound[tuple(key)] = bound
        except TypeError:  # an argument that cannot be compared, and was refused or packed
            return bound
        return bound


def plain_name(name: str) -> str:
    """Return the plain name of a kernel of C++ source: `_Z4gemmIfEvPT_` is `gemm`, `_ZN3foo3barEPf` is `bar`; else the name."""
    if not name.startswith("_Z"):
        return name
    place, found = 2 + (name[2:3] == "N"), ""
    while digits := re.match(r"\d+", name[place:]):
        start = place + digits.end()
        found, place = name[start : start + int(digits[0])], start + int(digits[0])
        if name[2:3] != "N":
            break
    return found or name


def _listing(data: bytes, path: Path | None, kind: str, arch: str, constants: Mapping[str, bytes]) -> Listing:
    if kind == "cu":
        from gewu.ops.cuda import compile_cuda

        source = path if path is not None else _text(data, path)
        data, kind = compile_cuda(source, arch=arch, to="ptx"), "ptx"
    if kind == "ptx":
        from gewu.ops.ptx import read_ptx

        return read_ptx(_text(data, path), path or "<ptx>", constants)
    from gewu.ops.cubin import read_cubin

    return read_cubin(data, path or "<cubin>", constants=constants)


def _text(data: bytes, path: Path | None) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError("is not UTF-8 text", file=path, line=line) from None


def _included(data: bytes, folder: Path | None, depth: int = 0) -> list[bytes] | None:
    """Return a source and the files that it includes in quotes, or None when one is not beside it."""
    found = [data]
    for name in _INCLUDE.findall(data):
        path = None if folder is None or depth > 16 else folder / name.decode("utf-8", "replace")
        if path is None or not path.is_file():
            return None
        inner = _included(read_capped(path, _LIMIT), path.parent, depth + 1)
        if inner is None:
            return None
        found += inner
    return found


def _storable(signatures: dict[str, Signature], refused: dict[str, str]) -> dict[str, Any]:
    rows = [
        [s.name, [[p.offset, p.size, p.kind, p.name] for p in s.parameters], s.limit, list(s.required)]
        for s in signatures.values()
    ]
    return {"signatures": rows, "refused": sorted(refused.items())}


def _stored(body: Any) -> tuple[dict[str, Signature], dict[str, str]] | None:
    """Return what `_storable` was given, or None for anything else."""
    try:
        made = {}
        for name, parameters, limit, required in body["signatures"]:
            listed = tuple(Parameter(int(o), int(s), str(k), str(n)) for o, s, k, n in parameters)
            made[str(name)] = Signature(str(name), listed, int(limit), tuple(int(r) for r in required))
        return made, {str(name): str(reason) for name, reason in body["refused"]}
    except (KeyError, TypeError, ValueError):
        return None
