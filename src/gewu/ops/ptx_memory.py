"""Loads, stores and atomic operations of PTX, addresses of one space in another, and the parameters of kernels and calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gewu.ops import ir
from gewu.ops.ir import LOCAL_WINDOW, SHARED_WINDOW, WIDTH, Operand
from gewu.ops.ptx_arith import Rule
from gewu.ops.ptx_syntax import Address, Item, Number
from gewu.ops.ptx_write import Line, Slot, Writer, width_of

_SPACES: Final = {
    **{s: s for s in ("global", "shared", "local", "const", "param")},
    **{"shared::cta": "shared", "param::entry": "param", "param::func": "param"},
}
_ORDER: Final = ("volatile", "relaxed", "acquire", "release", "acq_rel", "weak", "mmio", "cta", "gpu", "sys")
_CACHE: Final = ("ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "unified", "L2::cache_hint", "L2::64B", "L2::128B", "L2::256B")
_POLICIES: Final = ("evict_first", "evict_last", "evict_normal", "evict_unchanged", "no_allocate")
_EVICT: Final = tuple(f"{cache}::{policy}" for cache in ("L1", "L2") for policy in _POLICIES)
_ATOMS: Final = ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")
_ALLOWED: Final = {
    **dict.fromkeys(("add",), ("u32", "s32", "u64", "f32", "f64")),
    **dict.fromkeys(("min", "max"), ("u32", "s32", "u64", "s64")),
    **dict.fromkeys(("and", "or", "xor", "exch", "cas"), ("b32", "b64")),
    **dict.fromkeys(("inc", "dec"), ("u32",)),
}


def _space(x: Line) -> str:
    return next((_SPACES[m] for m in x.mods if m in _SPACES), "generic")


def _parts(w: Writer, x: Line, item: Item) -> tuple[Item, ...]:
    """Return the elements of a load or store, as many as its modifier says."""
    parts, wanted = w.vector(item), int((x.one_of("v2", "v4") or "v1")[1:])
    if len(parts) != wanted:
        raise w.refuse("a vector of another length than it says")
    return parts


def _load(w: Writer, x: Line) -> None:
    space, type_ = _space(x), x.type
    if len(x.items) != 2 + ("L2::cache_hint" in x.mods):
        raise w.refuse(f"operands of `{x.word}` that are not read")
    dst = [w.target(part, type_, loose=True) for part in _parts(w, x, x.items[0])]
    if any(w.widths[d] == "pred" or WIDTH[w.widths[d]] < WIDTH[type_] for d in dst):
        raise w.refuse("a load into a register that is too narrow")
    if space == "param":
        item = x.items[1]
        found = w.find(item.base) if isinstance(item, Address) and isinstance(item.base, str) else None
        if isinstance(found, ir.Parameter):
            return _load_parameter(w, dst, type_, found, item.offset)  # type: ignore[union-attr]
        if isinstance(found, Slot):
            return _load_slot(w, dst, type_, found, item.offset)  # type: ignore[union-attr]
        space = "local"  # by address: from the copy that `parameter_copy` makes
    base, offset = w.address(x.items[1], space)
    w.emit("ld", type_, dst, [base, offset], [space])


def _store(w: Writer, x: Line) -> None:
    space, type_ = _space(x), x.type
    if len(x.items) != 2 + ("L2::cache_hint" in x.mods):
        raise w.refuse(f"operands of `{x.word}` that are not read")
    values = [w.source(part, type_, loose=True) for part in _parts(w, x, x.items[1])]
    if any(isinstance(v, str) and (w.widths[v] == "pred" or WIDTH[w.widths[v]] < WIDTH[type_]) for v in values):
        raise w.refuse("a store of a register that is too narrow")
    if space == "param":
        item = x.items[0]
        found = w.find(item.base) if isinstance(item, Address) and isinstance(item.base, str) else None
        if not isinstance(found, Slot):
            raise w.refuse("a store to a parameter")
        return _store_slot(w, values, type_, found, item.offset)  # type: ignore[union-attr]
    base, offset = w.address(x.items[0], space)
    w.emit("st", type_, (), [base, offset, *values], [space])


def _define(w: Writer, target: str, value: Operand, type_: str) -> None:
    """Write a value, of the register width of its type, to a register that may be wider."""
    have = w.widths[target]
    if have == width_of(type_):
        w.emit("mov", have, [target], [value])
    else:
        sign = type_[0] if type_[0] in "us" else "u"
        w.emit("cvt", f"{sign}{have[1:]}", [target], [value], [f"{sign}{width_of(type_)[1:]}"])


def _load_parameter(w: Writer, dst: Sequence[str], type_: str, parameter: ir.Parameter, offset: int) -> None:
    size = WIDTH[type_] // 8
    for place in range(offset, offset + size * len(dst), size):
        if place < 0 or place + size > parameter.size:
            raise w.refuse("reads past a parameter", parameter.name)
    for k, target in enumerate(dst):
        place = parameter.offset + offset + k * size
        if WIDTH[w.widths[target]] == 8 * size:
            w.emit("param", f"b{8 * size}", [target], [place])
            continue
        piece: Operand = w.make("param", f"b{8 * size}", place)
        if size == 1:
            sign = type_[0] if type_[0] in "us" else "u"
            piece, type_ = w.make("bfe", f"{sign}32", w.fit(piece, "b32"), 0, 8), f"{sign}32"
            if w.widths[target] == "b16":
                piece, type_ = w.fit(piece, "b16"), f"{sign}16"
        _define(w, target, piece, type_)


def _load_slot(w: Writer, dst: Sequence[str], type_: str, slot: Slot, offset: int) -> None:
    size = WIDTH[type_] // 8
    for k, target in enumerate(dst):
        _define(w, target, _piece(w, slot, offset + k * size, size), type_)


def _piece(w: Writer, slot: Slot, place: int, size: int) -> Operand:
    """Return bytes of a parameter of a call, whole or from pieces of other sizes."""
    if (place, size) in slot.pieces:
        return slot.pieces[place, size]
    if size in (2, 4) and (place - place % (2 * size), 2 * size) in slot.pieces:
        return w.halves(slot.pieces[place - place % (2 * size), 2 * size], f"b{16 * size}")[place % (2 * size) != 0]
    if size in (4, 8):
        half = size // 2
        if (place, half) in slot.pieces or (place, size // 4) in slot.pieces:
            return w.make("pack", f"b{8 * size}", _piece(w, slot, place, half), _piece(w, slot, place + half, half))
    raise w.refuse("a parameter of a call that is not set, or not in this size")


def _store_slot(w: Writer, values: Sequence[Operand], type_: str, slot: Slot, offset: int) -> None:
    size = WIDTH[type_] // 8
    if w.guard is not None:
        raise w.refuse("a guarded store to a parameter of a call")
    for k, value in enumerate(values):
        place = offset + k * size
        if any(at < place + size and place < at + other and (at, other) != (place, size) for at, other in slot.pieces):
            raise w.refuse("a parameter of a call that is set in pieces of several sizes")
        if (place, size) not in slot.pieces:
            if len(slot.pieces) > 4096:
                raise w.refuse("a parameter of a call that is too large")
            slot.pieces[place, size] = w.temporary(width_of(type_))
        w.emit("mov", width_of(type_), [slot.pieces[place, size]], [w.fit(value, width_of(type_))])


def _hinted(x: Line, items: Sequence[Item]) -> Sequence[Item]:
    """Return operands without the cache policy."""
    return items[:-1] if "L2::cache_hint" in x.mods else items


def _atom(w: Writer, x: Line) -> None:
    what, type_, space = x.one_of(*_ATOMS), x.type, _space(x)
    items = _hinted(x, x.items)
    names, rest = (w.vector(items[0]), items[1:]) if x.op == "atom" else ((), items)
    count = int((x.one_of("v2", "v4") or "v1")[1:])
    if type_ not in _ALLOWED.get(what, ()) or len(rest) != (3 if what == "cas" else 2) or (count > 1 and type_ != "f32"):
        raise w.refuse("an atomic operation that is not read", x.word)
    values = [[w.source(part, type_) for part in w.vector(item)] for item in rest[1:]]
    if any(len(v) != count for v in values) or len(names) not in (0, count) or space in ("local", "const", "param"):
        raise w.refuse("an atomic operation that is not read", x.word)
    base, offset = w.address(rest[0], space)
    for k in range(count):
        dst = [w.target(names[k], type_)] if names and names[k] != "_" else []
        w.emit("atom", type_, dst, [base, offset + k * WIDTH[type_] // 8, *(v[k] for v in values)], [space, what])


def _to_space(w: Writer, x: Line) -> None:
    """Convert an address between a space and the generic one."""
    space = _space(x)
    target, value = w.target(x.items[0], "u64"), w.source(x.items[1], "u64")
    window = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW, "param": LOCAL_WINDOW}.get(space, 0)
    if space == "generic":
        raise w.refuse("cvta without a space")
    if not window:
        w.emit("mov", "b64", [target], [value])
    elif "to" in x.mods:
        w.emit("and", "b64", [target], [value, SHARED_WINDOW - 1])
    else:
        w.emit("add", "u64", [target], [value, window])


def _is_in_space(w: Writer, x: Line) -> None:
    space = _space(x)
    window = w.make("shr", "u64", w.source(x.items[1], "u64"), 60)
    if space in ("shared", "local"):
        test = w.make("setp", "u64", window, 1 if space == "shared" else 2, mods=("eq",))
    elif space == "global":
        test = w.make("setp", "u64", w.make("and", "b64", window, 3), 0, mods=("eq",))
    else:
        raise w.refuse("isspacep of this space")
    w.emit("mov", "pred", [w.target(x.items[0], "pred")], [test])


def _copy(w: Writer, x: Line) -> None:
    """Copy 4, 8 or 16 bytes from global to shared memory, at once: waiting for them later does no harm."""
    if x.one_of("wait_all", "wait_group", "commit_group"):
        return
    items = _hinted(x, x.items)
    size = items[2].value if len(items) > 2 and isinstance(items[2], Number) else 0
    wanted = x.mods[0] == "async" and x.one_of("ca", "cg") and x.one_of("shared", "shared::cta") and "global" in x.mods
    if not wanted or size not in (4, 8, 16) or len(items) > 4:
        raise w.refuse(f"unknown instruction `{x.word}`")
    to, place = w.address(items[0], "shared")
    base, offset = w.address(items[1], "global")
    names = [w.temporary("b32") for _ in range(size // 4)]
    if len(items) == 3:
        w.emit("ld", "b32", names, [base, offset], ["global"])
    else:
        _load_some(w, names, base, offset, w.source(items[3], "u32"))
    w.emit("st", "b32", (), [to, place, *names], ["shared"])


def _load_some(w: Writer, names: Sequence[str], base: Operand, offset: int, length: Operand) -> None:
    """Load the first `length` bytes of consecutive words, and zeros after them."""
    outer = w.guard
    if not _whole_words(w, length):
        w.trap_where(w.make("setp", "u32", w.make("and", "b32", length, 3), 0, mods=("ne",)))
    for k, name in enumerate(names):
        w.emit("mov", "b32", [name], [0])
        inside = w.make("setp", "u32", length, 4 * k + 4, mods=("ge",))
        if outer is not None:
            inside = w.make("and", "pred", inside, outer[0] if outer[1] else w.make("not", "pred", outer[0]))
        w.guard = (inside, True)
        w.emit("ld", "b32", [name], [base, offset + 4 * k], ["global"])
        w.guard = outer


def _whole_words(w: Writer, length: Operand) -> bool:
    """Tell whether a length is a multiple of 4 by how it was made."""
    if isinstance(length, int):
        return length % 4 == 0
    made = [i for i in w.code if not isinstance(i, str) and length in i.dst]
    return bool(made) and all(
        i.op in ("select", "mov") and all(isinstance(s, int) and s % 4 == 0 for s in i.src[:2]) for i in made
    )


_ELEMENTS: Final = ("u8", "s8", "b8", "u16", "s16", "b16", "u32", "s32", "b32", "f32", "u64", "s64", "b64", "f64")
_ACCESS: Final = (*_SPACES, *_ORDER, *_CACHE, *_EVICT, "v2", "v4")
_ASYNC: Final = ("async", "shared", "shared::cta", "global", "wait_all", "wait_group", "commit_group", *_CACHE)

RULES: Final[dict[str, Rule]] = {
    "ld": Rule(_load, _ELEMENTS, _ACCESS, (2, 3)),
    "ldu": Rule(_load, _ELEMENTS, _ACCESS, (2, 2)),
    "st": Rule(_store, _ELEMENTS, _ACCESS, (2, 3)),
    "atom": Rule(_atom, _ELEMENTS, (*_ACCESS, *_ATOMS), (3, 5)),
    "red": Rule(_atom, _ELEMENTS, (*_ACCESS, *_ATOMS), (2, 4)),
    "cvta": Rule(_to_space, ("u64",), (*_SPACES, "to"), (2, 2)),
    "isspacep": Rule(_is_in_space, (), tuple(_SPACES), (2, 2), (0, 0)),
    "cp": Rule(_copy, (), _ASYNC, (0, 5), (0, 0)),
}
