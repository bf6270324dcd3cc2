"""Operators as JAX functions, through the foreign-function interface of XLA (version 0.x of its C interface).

XLA calls a handler with a call frame: pointers to the buffers of arguments and results.  The handler is made here without any C
compiler, as a C function pointer of ctypes: it answers the query for the interface's version, reads the frame and launches the
operator on NumPy views of the very buffers, nothing is copied.  A failure becomes an error of XLA with the message.

    f = as_jax(operator, grid, block, outputs={1: 0}, scalars={2: 2.0, 3: n})      # result 1 is like array argument 0
    f(x), jax.jit(f)(x), jax.vmap(f)(xs)

Where the launch is lifted, the derivative is that of its formula (`jaxform`).

Limits: on the CPU only; the handler takes the interpreter's lock, some ten microseconds a call; under `vmap` one launch after the
other.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Mapping, Sequence
from ctypes import POINTER, Structure, c_char_p, c_int, c_int64, c_size_t, c_void_p
from typing import Any, Final

import numpy as np

from gewu.core.errors import InputError
from gewu.core.machine import check_jax
from gewu.ops.arguments import grid_of, pack_one
from gewu.ops.launch import Launch, Operator

_MINOR: Final = 3
_EXECUTE: Final = 3
_METADATA: Final = 1
_INTERNAL: Final = 13
_ERROR_CREATE: Final = 6  # place of XLA_FFI_Error_Create among the words of XLA_FFI_Api
_counter = itertools.count()
_kept: list[Any] = []  # XLA holds bare pointers to handlers for the life of the process


class _Extension(Structure):
    pass


_Extension._fields_ = [("struct_size", c_size_t), ("type", c_int), ("next", POINTER(_Extension))]


class _Version(Structure):
    _fields_ = [("struct_size", c_size_t), ("extension", c_void_p), ("major", c_int), ("minor", c_int)]


class _Metadata(Structure):
    _fields_ = [("struct_size", c_size_t), ("api_version", _Version), ("traits", ctypes.c_uint32), ("state_type", c_int64)]


class _MetadataExtension(Structure):
    _fields_ = [("base", _Extension), ("metadata", POINTER(_Metadata))]


class _Buffer(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("extension", c_void_p),
        ("dtype", c_int),
        ("data", c_void_p),
        ("rank", c_int64),
        ("dims", POINTER(c_int64)),
    ]


class _Buffers(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("extension", c_void_p),
        ("size", c_int64),
        ("types", POINTER(c_int)),
        ("buffers", POINTER(POINTER(_Buffer))),
    ]


class _Frame(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("extension", POINTER(_Extension)),
        ("api", POINTER(c_void_p)),
        ("context", c_void_p),
        ("stage", c_int),
        ("args", _Buffers),
        ("rets", _Buffers),
    ]


class _ErrorArgs(Structure):
    _fields_ = [("struct_size", c_size_t), ("extension", c_void_p), ("message", c_char_p), ("code", c_int)]


_HANDLER: Final = ctypes.CFUNCTYPE(c_void_p, POINTER(_Frame))
_CREATE: Final = ctypes.CFUNCTYPE(c_void_p, POINTER(_ErrorArgs))


def as_jax(
    operator: Operator,
    grid: Any,
    block: Any,
    *,
    outputs: Mapping[int, Any],
    scalars: Mapping[int, Any] | None = None,
    updates: Sequence[int] = (),
    shared: int = 0,
) -> Callable[..., Any]:
    """Return an operator as a function of JAX arrays that works under `jit`, `grad` (where lifted) and `vmap`.

    Args:
        operator: of `load`.
        grid: blocks; or a function of the arrays that returns them, for grids that follow from shapes.
        block: threads.
        outputs: for each array argument that the kernel writes, its `jax.ShapeDtypeStruct`, or the number of the array argument
            that it is like.
        scalars: values of the other arguments that are not arrays.
        updates: outputs that the kernel also reads; they are arguments of the function too. All other outputs start as zeros.
        shared: bytes of dynamic shared memory.

    Returns:
        A function of the remaining array arguments, in the order of the kernel, that returns the outputs in that order: one
        array, or a tuple of several.

    Raises:
        InputError: the numbers of arguments do not add up.
    """
    check_jax()
    return _Jax(operator, grid, block, dict(outputs), dict(scalars or {}), tuple(updates), shared).function()


class _Jax:
    """What is fixed of a JAX function, and the handlers made for each set of shapes."""

    def __init__(
        self,
        operator: Operator,
        grid: Any,
        block: Any,
        outputs: dict[int, Any],
        scalars: dict[int, Any],
        updates: tuple[int, ...],
        shared: int,
    ) -> None:
        self.operator, self.grid, self.block, self.shared = operator, grid, block, shared
        self.outputs, self.scalars, self.updates = dict(sorted(outputs.items())), scalars, updates
        count = len(operator.parameters)
        for number in (*outputs, *scalars, *updates):
            if not 0 <= number < count:
                raise InputError("no such argument", key=operator.name, value=number, allowed=f"0 to {count - 1}")
        if not outputs or set(outputs) & set(scalars) or not set(updates) <= set(outputs):
            raise InputError("outputs, scalars and updates do not fit together", key=operator.name, value=sorted(outputs))
        self.packed = {i: pack_one(operator.name, i, operator.parameters[i], v) for i, v in scalars.items()}
        self.inputs = [i for i in range(count) if i not in scalars and (i not in outputs or i in updates)]
        self._targets: dict[Any, str] = {}

    def function(self) -> Callable[..., Any]:
        """Return the function, with its derivative."""
        import jax

        call = jax.custom_vjp(self._call)

        def forward(*arrays: Any) -> Any:
            return self._call(*arrays), arrays

        def backward(arrays: Any, cotangents: Any) -> Any:
            return jax.vjp(self._formula(arrays), *arrays)[1](cotangents)

        call.defvjp(forward, backward)

        def checked(*arrays: Any) -> Any:
            if len(arrays) != len(self.inputs):
                allowed = f"{len(self.inputs)}: arguments {', '.join(map(str, self.inputs))} of the kernel"
                raise InputError("wrong number of arrays", key=self.operator.name, value=len(arrays), allowed=allowed)
            return call(*(jax.numpy.asarray(a) for a in arrays))

        return checked

    def _call(self, *arrays: Any) -> Any:
        import jax

        shapes = self._shapes(arrays)
        launch = self._launch(arrays)
        target = self._target(launch, arrays, shapes)
        result = jax.ffi.ffi_call(target, tuple(shapes.values()), vmap_method="sequential")(*arrays)
        return result[0] if len(shapes) == 1 else tuple(result)

    def _shapes(self, arrays: Sequence[Any]) -> dict[int, Any]:
        import jax

        given = dict(zip(self.inputs, arrays, strict=True))
        shapes = {}
        for number, like in self.outputs.items():
            like = given[number] if number in self.updates else given.get(like, like) if isinstance(like, int) else like
            if isinstance(like, int):
                raise InputError("is like an argument that is no array", key=f"{self.operator.name}, output {number}", value=like)
            shapes[number] = jax.ShapeDtypeStruct(like.shape, like.dtype)
        return shapes

    def _launch(self, arrays: Sequence[Any]) -> Launch:
        grid = self.grid(*arrays) if callable(self.grid) else self.grid
        return self.operator[grid_of(grid, self.operator.name), self.block, self.shared]

    def _target(self, launch: Launch, arrays: Sequence[Any], shapes: Mapping[int, Any]) -> str:
        """Return the name under which XLA knows the handler for these shapes."""
        import jax

        forms = [(tuple(a.shape), np.dtype(a.dtype)) for a in (*arrays, *shapes.values())]
        key = launch.grid, launch.block, tuple((shape, str(dtype)) for shape, dtype in forms)
        if key not in self._targets:
            name = f"gewu_ops_{next(_counter)}_{self.operator.name}"
            handler = _HANDLER(self._handler(launch, [f for f in forms[: len(arrays)]], forms[len(arrays) :]))
            _kept.append(handler)
            pointer = ctypes.cast(handler, c_void_p)
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(pointer.value), platform="cpu")
            self._targets[key] = name
        return self._targets[key]

    def _handler(self, launch: Launch, ins: list[Any], outs: list[Any]) -> Callable[[Any], int | None]:
        """Return the function that XLA calls."""
        template: list[Any] = [self.packed.get(i) for i in range(len(self.operator.parameters))]

        def handle(pointer: Any) -> int | None:
            frame = pointer.contents
            try:
                if frame.extension and frame.extension.contents.type == _METADATA:
                    _answer(frame)
                elif frame.stage == _EXECUTE:
                    args = template.copy()
                    for k, number in enumerate(self.inputs):
                        args[number] = _view(frame.args.buffers[k], *ins[k], writeable=False)
                    for k, number in enumerate(self.outputs):
                        result = _view(frame.rets.buffers[k], *outs[k], writeable=True)
                        result[...] = args[number] if number in self.updates else 0
                        args[number] = result
                    launch(*args)
            except Exception as error:  # an exception must not leave a C function: XLA raises it with this text
                return _failure(frame, f"{self.operator.name}: {error}")
            return None

        return handle

    def _formula(self, arrays: Sequence[Any]) -> Callable[..., Any]:
        """Return the lifted formula as a JAX function of the same arrays."""
        import jax.numpy as jnp

        from gewu.ops.jaxform import to_jax

        launch, shapes = self._launch(arrays), self._shapes(arrays)
        example: list[Any] = [self.packed.get(i) for i in range(len(self.operator.parameters))]
        for number, like in (*shapes.items(), *zip(self.inputs, arrays, strict=True)):
            example[number] = np.zeros(like.shape, like.dtype)
        self.operator.prepare(launch.grid, launch.block, *example, shared=self.shared)
        proof = self.operator.router.proof
        if proof is None:
            raise InputError("has no derivative, because it is not lifted", key=self.operator.name, hint=self.operator.reason)
        formula = to_jax(proof.lifted.program)
        integers = proof.lifted.launch(launch.grid, launch.block, example)

        def function(*given: Any) -> Any:
            args: list[Any] = [self.packed.get(i) for i in range(len(example))]
            for number, like in shapes.items():
                args[number] = jnp.zeros(like.shape, like.dtype)
            for number, array in zip(self.inputs, given, strict=True):
                args[number] = array
            after = formula(args, integers)
            results = tuple(jnp.reshape(after[number], shapes[number].shape) for number in shapes)
            return results[0] if len(results) == 1 else results

        return function


def raw_target(name: str, work: Callable[[list[Any], list[Any]], None]) -> str:
    """Register a function of buffers under a name of its own, and return that name for `jax.ffi.ffi_call`.

    Args:
        name: a word that says what it does.
        work: called with the arguments and the results, each a list of (address, dimensions).
    """
    import jax

    def handle(pointer: Any) -> int | None:
        frame = pointer.contents
        try:
            if frame.extension and frame.extension.contents.type == _METADATA:
                _answer(frame)
            elif frame.stage == _EXECUTE:
                work(_buffers(frame.args), _buffers(frame.rets))
        except Exception as error:  # an exception must not leave a C function: XLA raises it with this text
            return _failure(frame, f"{name}: {error}")
        return None

    full, handler = f"gewu_{name}_{next(_counter)}", _HANDLER(handle)
    _kept.append(handler)
    jax.ffi.register_ffi_target(full, jax.ffi.pycapsule(ctypes.cast(handler, c_void_p).value), platform="cpu")
    return full


def _buffers(given: Any) -> list[tuple[int, tuple[int, ...]]]:
    found = []
    for number in range(given.size):
        buffer = given.buffers[number].contents
        found.append((buffer.data or 0, tuple(buffer.dims[: buffer.rank])))
    return found


def _answer(frame: Any) -> None:
    """Tell XLA which version of the interface this handler was written for."""
    extension = ctypes.cast(frame.extension, POINTER(_MetadataExtension)).contents
    metadata = extension.metadata.contents
    metadata.api_version.major, metadata.api_version.minor = 0, min(_MINOR, _api_minor(frame))
    metadata.traits = 0
    if metadata.struct_size >= ctypes.sizeof(_Metadata):
        metadata.state_type = 0


def _api_minor(frame: Any) -> int:
    """Return the minor version of the XLA at hand, which may be older than this handler."""
    if not frame.api:
        return _MINOR
    version = ctypes.cast(ctypes.addressof(frame.api.contents) + 16, POINTER(_Version)).contents
    return int(version.minor)


def _failure(frame: Any, text: str) -> int:
    create = _CREATE(frame.api[_ERROR_CREATE])
    args = _ErrorArgs(ctypes.sizeof(_ErrorArgs), None, text.encode("utf-8", "replace"), _INTERNAL)
    return int(create(ctypes.byref(args)) or 0)


def _view(buffer: Any, shape: tuple[int, ...], dtype: np.dtype[Any], *, writeable: bool) -> Any:
    """Return a buffer of XLA as an array, without copying."""
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if count == 0:
        return np.zeros(shape, dtype)
    raw = (ctypes.c_uint8 * count).from_address(buffer.contents.data)
    array = np.frombuffer(raw, np.uint8).view(dtype).reshape(shape)
    array.flags.writeable = writeable
    return array
