"""What surrounds the instructions of PTX: module variables, parameters, shared memory, attributes; and basic blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from gewu.core.errors import InputError
from gewu.ops import ir
from gewu.ops.ir import CONST_WINDOW, WIDTH, Instruction, Kernel, Operand, Parameter, Unsupported
from gewu.ops.ptx_syntax import Address, Function, Item, Parser, Token, bits_of, number_of
from gewu.ops.ptx_write import Entry, Variable

MOST_DATA: Final = 16 << 20
MOST_SHARED: Final = 256 << 10
_MOST_PARAMETERS: Final = 32 << 10
_SPACES: Final = ("global", "shared", "local", "const", "param")
_POINTER_OPS: Final = frozenset({"mov", "add", "sub", "select", "or", "and"})
_ODD: Final = "a module variable with initial values that are not read"
_HOST: Final = "a module variable without an initial value, which only the host sets: give it as `constants` to `load`"


@dataclass(frozen=True, slots=True)
class Declared:
    """A variable: `values` are its initial bytes, or None; `pointers`: the (place, symbol, offset) of addresses among them.

    `why`: the reason not to read it, or "".
    """

    space: str
    name: str
    kind: str
    size: int
    align: int
    values: bytes | None = None
    pointers: tuple[tuple[int, str, int], ...] = ()
    why: str = _HOST


@dataclass(slots=True)
class Program:
    """One entry with all that is placed before its instructions are read."""

    function: Function
    parameters: tuple[Parameter, ...]
    size: int
    names: dict[str, Entry]
    shared: int = 0
    counter: int = 0
    statics: dict[int, Variable] = field(default_factory=dict)


class Module:
    """What all kernels of a module share: device functions, and variables at fixed places."""

    def __init__(self, parser: Parser, constants: Mapping[str, bytes]) -> None:
        self.file, self.target, self._given = parser.file, parser.target, constants
        self.unset: dict[str, tuple[str, int]] = {}
        self.functions: dict[str, Function] = {}
        for function in parser.functions:
            if not function.entry and (function.body is not None or function.name not in self.functions):
                self.functions[function.name] = function
        self.data = bytearray()
        self.variables: dict[str, Variable] = {}
        self.shared: dict[str, Declared] = {}
        self.written: set[tuple[int, int]] = set()
        self._writable: list[tuple[int, int]] = []
        pointers: list[tuple[str, int, str, int]] = []
        for tokens in parser.variables:
            pointers += self._place(tokens)
        ir.check_names(constants, self.unset, self.file)
        self.unset = {name: what for name, what in self.unset.items() if name not in constants}
        for owner, place, name, offset in pointers:
            found = self.variables.get(name)
            if found is None or found.why:  # a function, say
                self.variables[owner] = replace(self.variables[owner], why=_ODD)
            else:
                self.data[place : place + 8] = ((found.place + offset) % (1 << 64)).to_bytes(8, "little")

    def _place(self, tokens: Sequence[Token]) -> list[tuple[str, int, str, int]]:
        """Give a variable its place; return the addresses that it holds, each with its name."""
        declared = self.declaration(tokens)
        if declared is None:
            return []
        if declared.space == "shared":
            self.shared[declared.name] = declared
            return []
        if declared.space not in ("const", "global"):
            return []
        # nothing at offset 0: the bits of the double 2.0 are CONST_WINDOW
        place = -(-max(len(self.data), 16) // declared.align) * declared.align
        if place + declared.size > MOST_DATA:
            raise InputError("more module data than gewu holds", file=self.file or None, line=tokens[0].line, value=declared.name)
        self.data.extend(bytes(place + declared.size - len(self.data)))
        if declared.why == _HOST:
            declared = self._set(declared)
        if declared.values is not None:
            self.data[place : place + len(declared.values)] = declared.values
        self.variables[declared.name] = Variable(declared.space, CONST_WINDOW + place, declared.why)
        if declared.space == "global":
            self._writable.append((CONST_WINDOW + place, CONST_WINDOW + place + max(1, declared.size)))
        return [(declared.name, place + at, name, offset) for at, name, offset in declared.pointers if at + 8 <= declared.size]

    def _set(self, declared: Declared) -> Declared:
        """Return a variable without an initial value with the one that was given."""
        self.unset[declared.name] = declared.kind, declared.size
        given = self._given.get(declared.name)
        if given is None:
            return declared
        if len(given) != declared.size:
            raise InputError(
                "a module variable of another size", key=declared.name, value=len(given), allowed=f"{declared.size} bytes"
            )
        return replace(declared, values=given, why="")

    def declaration(self, tokens: Sequence[Token]) -> Declared | None:
        """Return what a declaration says, or None when it declares no variable with a type that gewu knows.

        Raises:
            InputError: more memory than gewu holds, or a number out of range.
        """
        words = [t.text for t in tokens]
        head = words[: words.index("=")] if "=" in words else words
        space = next((w[1:] for w in head if w[:1] == "." and w[1:] in _SPACES), "")
        type_ = next((w[1:] for w in head if w[:1] == "." and w[1:] in WIDTH), "")
        at = next((i for i, t in enumerate(tokens) if t.kind == "word" and t.text[0] != "." and words[i - 1] != "("), None)
        if not space or not type_ or type_ == "pred" or at is None:
            return None
        element = WIDTH[type_] // 8 * (4 if ".v4" in head else 2 if ".v2" in head else 1)
        place = words.index(".align") + 1 if ".align" in head else 0
        align = integer(tokens[place], 1 << 12, 1) if 0 < place < len(tokens) else element
        name, count, i = words[at], 1, at + 1
        while words[i : i + 1] == ["["]:
            if words[i + 1 : i + 2] == ["]"]:
                count, i = 0, i + 2
            else:
                count *= integer(tokens[i + 1], MOST_DATA) if i + 1 < len(tokens) else 0
                i += 3
        if count * element > MOST_DATA:
            raise InputError("a variable larger than gewu holds", file=self.file or None, line=tokens[0].line, value=name)
        if "=" not in words:
            return Declared(space, name, type_, count * element, align)
        initial = _initial(tokens[words.index("=") + 1 :], type_, count * element)
        if initial is None:
            return Declared(space, name, type_, count * element, align, why=_ODD)
        return Declared(space, name, type_, count * element, align, *initial, why="")

    def refuse_writes(self, kernel: Kernel) -> None:
        """Refuse a kernel that may write to module variables: they last from launch to launch, which gewu does not do.

        Raises:
            Unsupported: a store whose address comes from that of a variable.
        """
        code = [i for block in kernel.blocks for i in block.code]
        where = ""
        for span in self._touched(code):
            found = _written(code, kernel.widths, range(*span))
            if found:
                self.written.add(span)
                where = found
        if where:
            raise Unsupported(f"writes a module variable at {where}", key=kernel.name)

    def reads_written(self, kernel: Kernel) -> bool:
        """Tell whether a kernel uses a variable that another one writes; ask when all kernels have been read."""
        code = [i for block in kernel.blocks for i in block.code]
        return bool(self.written and self.written & set(self._touched(code)))

    def _touched(self, code: Sequence[Instruction]) -> list[tuple[int, int]]:
        places = {s for i in code for s in i.src if isinstance(s, int) and s >= CONST_WINDOW}
        return [span for span in self._writable if any(place in range(*span) for place in places)] if places else []


def _written(code: Sequence[Instruction], widths: dict[str, str], span: range) -> str:
    """Return where code stores to an address that comes from a place in a span, or ""."""
    derived: set[Operand] = set()
    before = -1

    def comes(value: Operand) -> bool:
        return value in span if isinstance(value, int) else value in derived

    while len(derived) != before:
        before = len(derived)
        for i in code:
            if i.op in _POINTER_OPS and widths[i.dst[0]] == "b64" and any(comes(s) for s in i.src):
                derived.add(i.dst[0])
    stores = (i for i in code if i.op in ("st", "atom") and i.mods[0] in ("global", "generic"))
    return next((i.where for i in stores if comes(i.src[0])), "")


def integer(token: Token, high: int, low: int = 0) -> int:
    """Return the integer that a token spells.

    Raises:
        InputError: none, or out of range.
    """
    number = number_of(token)
    if number is None or number.width or not low <= number.value <= high:
        raise InputError("no size that gewu holds", line=token.line, value=token.text, allowed=f"{low} to {high}")
    return number.value


def _initial(tokens: Sequence[Token], type_: str, size: int) -> tuple[bytes, tuple[tuple[int, str, int], ...]] | None:
    """Return initial bytes, and where addresses of other variables go; None for what is not read."""
    values, pointers, element = bytearray(), [], WIDTH[type_] // 8
    words = [t for t in tokens if t.text not in ("{", "}", ",", "(", ")", "generic")]
    i = 0
    while i < len(words) and len(values) < size:
        negative = words[i].text == "-"
        token = words[min(i + negative, len(words) - 1)]
        i += 1 + negative
        number = number_of(token)
        if number is not None:
            value = bits_of(number, type_)
            value = (value ^ (negative << (8 * element - 1))) if number.width else -value if negative else value
            values += (value & ((1 << (8 * element)) - 1)).to_bytes(element, "little")
        elif token.kind != "word" or element != 8 or negative:
            return None
        else:
            plus = number_of(words[i + 1]) if i + 1 < len(words) and words[i].text == "+" else None
            pointers.append((len(values), token.text, plus.value if plus else 0))
            values += bytes(8)
            i += 2 if plus else 0
    return bytes(values[:size]), tuple(pointers)


def program_of(module: Module, function: Function) -> Program:
    """Place parameters and shared memory of an entry.

    Raises:
        Unsupported: more than a block has.
    """
    parameters, size = _parameters(module, function)
    names: dict[str, Entry] = {**module.variables, **{p.name: p for p in parameters}}
    program = Program(function, parameters, size, names)
    reached = _reached(module, function)
    used = {name for f in reached for s in f.body or () for item in s.items or () for name in _names(item)}
    dynamic: list[tuple[str, int]] = []
    for name, declared in module.shared.items():
        if declared.size and name in used:
            names[name] = Variable("shared", _shared(program, declared))
        elif name in used:
            dynamic.append((name, declared.align))
    late: list[tuple[int, int]] = []
    for statement in (s for f in reached for s in f.body or () if s.word == ".shared"):
        local = module.declaration(statement.tokens)
        if local is not None and local.size:
            program.statics[id(statement)] = Variable("shared", _shared(program, local))
        elif local is not None:
            late.append((id(statement), local.align))
    if any(s.word.startswith(("bar.red", "barrier.red", "barrier.cta.red")) for f in reached for s in f.body or ()):
        program.counter = _shared(program, Declared("shared", "", "b32", 4, 4))
    align = max([16, *(a for _, a in dynamic), *(a for _, a in late)]) if dynamic or late else 1
    program.shared = -(-program.shared // align) * align
    names.update({name: Variable("shared", program.shared) for name, _ in dynamic})
    program.statics.update({key: Variable("shared", program.shared) for key, _ in late})
    return program


def _shared(program: Program, declared: Declared) -> int:
    place = -(-program.shared // declared.align) * declared.align
    if place + declared.size > MOST_SHARED:
        raise Unsupported("more shared memory than a block has", key=program.function.name, value=place + declared.size)
    program.shared = place + declared.size
    return place


def _parameters(module: Module, function: Function) -> tuple[tuple[Parameter, ...], int]:
    found, offset = [], 0
    for tokens in function.parameters:
        words = [t.text for t in tokens]
        pointer = ".ptr" in words
        if pointer:  # `.ptr .global .align 4` tell of the memory it points to
            keep = {".param", *(f".{t}" for t in WIDTH)}
            tokens = tuple(t for t in tokens if t.text in keep or (t.kind == "word" and t.text[0] != "."))
        declared = module.declaration(tokens)
        if declared is None or declared.space != "param":
            raise Unsupported("a parameter that is not read", key=function.name, value=" ".join(words[:6]))
        kind = next(t.text[1:] for t in tokens if t.text[1:] in WIDTH) if "[" not in words else ""
        offset = -(-offset // declared.align) * declared.align
        found.append(Parameter(offset, declared.size, kind, declared.name))
        offset += declared.size
        if offset > _MOST_PARAMETERS:
            raise Unsupported("more parameters than gewu holds", key=function.name)
    return tuple(found), offset


def _reached(module: Module, start: Function) -> list[Function]:
    """Return an entry and the functions that it calls, directly or not."""
    found, pending, seen = [], [start], {start.name}
    while pending:
        function = pending.pop()
        found.append(function)
        for statement in function.body or ():
            if statement.word.split(".")[0] == "call":
                for item in statement.items or ():
                    if isinstance(item, str) and item in module.functions and item not in seen:
                        seen.add(item)
                        pending.append(module.functions[item])
    return found


def _names(item: Item) -> Iterator[str]:
    if isinstance(item, str):
        yield item
    elif isinstance(item, Address) and isinstance(item.base, str):
        yield item.base
    elif isinstance(item, tuple):
        for part in item:
            yield from _names(part)


def limits_of(function: Function) -> tuple[int, tuple[int, ...]]:
    """Return the most threads of a block and the shape that the entry demands.

    Raises:
        Unsupported: clusters.
    """
    limit, required = 0, tuple[int, ...]()
    for attribute in function.attributes:
        numbers = [n.value for n in map(number_of, attribute[1:]) if n is not None and not n.width]
        if attribute[0].text in (".reqnctapercluster", ".explicitcluster"):
            raise Unsupported("clusters of blocks", key=function.name)
        if attribute[0].text in (".maxntid", ".reqntid") and numbers:
            shape = (*numbers[:3], 1, 1)[:3]
            limit = shape[0] * shape[1] * shape[2]
            required = shape if attribute[0].text == ".reqntid" else required
            if not 0 < limit <= 1024:
                raise Unsupported("a block of this size", key=function.name, value=shape)
    return limit, required


def blocks_of(code: Sequence[Instruction | str], name: str) -> list[ir.Block]:
    """Cut instructions at labels and jumps into basic blocks; drop what cannot be reached.

    Raises:
        Unsupported: a jump to a label that is not there.
    """
    starts: dict[str, int] = {}
    pieces: list[list[Instruction]] = [[]]
    for thing in code:
        if isinstance(thing, str):
            if pieces[-1]:
                pieces.append([])
            starts[thing] = len(pieces) - 1
            continue
        pieces[-1].append(thing)
        if thing.op in ("bra", "exit", "trap"):
            pieces.append([])
    blocks = []
    for number, piece in enumerate(pieces):
        after: tuple[int, ...] = (number + 1,) if number + 1 < len(pieces) else ()
        last = piece[-1] if piece else None
        if last is not None and last.op == "bra":
            if last.mods[0] not in starts:
                raise Unsupported("a jump to a label that is not there", key=name, value=last.mods[0])
            goal = (starts[last.mods[0]],)
            after = goal if last.guard is None else goal + after
            piece[-1] = Instruction("bra", "pred", guard=last.guard, where=last.where)
        elif last is not None and last.op in ("exit", "trap") and last.guard is None:
            after = ()
        blocks.append(ir.Block(piece, after))
    return _reachable(blocks)


def _reachable(blocks: list[ir.Block]) -> list[ir.Block]:
    seen, stack = {0}, [0]
    while stack:
        for target in blocks[stack.pop()].next:
            if target not in seen:
                seen.add(target)
                stack.append(target)
    order = sorted(seen)
    place = {old: new for new, old in enumerate(order)}
    return [ir.Block(blocks[old].code, tuple(place[t] for t in blocks[old].next)) for old in order]
