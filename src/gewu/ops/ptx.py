"""Read PTX: every `.entry` of a module becomes an `ir.Kernel`, device functions inlined; what is not read is refused by name.

Reference: NVIDIA, Parallel Thread Execution ISA 9.0.  Not read: textures, surfaces, indirect jumps and calls, clusters and
asynchronous copies, warp-group matrix operations, `wmma`, system calls (`printf`, `malloc`, `assert`).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Any, Final

from gewu.core.errors import InputError
from gewu.ops import ir
from gewu.ops.ir import CONST_WINDOW, LOCAL_WINDOW, SHARED_WINDOW, WIDTH, Instruction, Kernel, Listing, Operand, Parameter, Unsupported
from gewu.ops.ptx_syntax import Address, Function, Item, Negated, Number, Pair, Parser, Statement, Token, float_bits

MOST_REGISTERS: Final = 100_000
MOST_DATA: Final = 16 << 20
MOST_SHARED: Final = 256 << 10
MOST_INSTRUCTIONS: Final = 200_000
_SPACES: Final = ("global", "shared", "local", "const", "param")
_ROUND: Final = ("rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "sat", "ftz", "approx", "relu")
_IGNORED: Final = frozenset(
    "membar fence prefetch prefetchu discard applypriority griddepcontrol nanosleep setmaxnreg cp_async_wait_all pmevent isspacep".split()
)
_SPECIAL: Final = re.compile(r"%(n?tid|n?ctaid)\.[xyz]|%(laneid|warpid|nwarpid|smid|clock|clock64|lanemask_(lt|le|gt|ge|eq)|dynamic_smem_size)")
_COMPARE: Final = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


def read_ptx(text: str, file: str = "") -> Listing:
    """Read a PTX module.

    Args:
        text: the module.
        file: its name, for messages.

    Returns:
        The kernels by name, and the reasons for those that are refused.

    Raises:
        InputError: the text is not PTX.
    """
    parser = Parser(text, file)
    parser.parse()
    module = _Module(parser)
    listing = Listing()
    for function in parser.functions:
        if not function.entry or function.body is None:
            continue
        try:
            kernel = _Lowering(module, function).kernel()
            ir.check(kernel)
            listing.kernels[function.name] = kernel
        except Unsupported as error:
            listing.refused[function.name] = error.message + (f" ({error.value})" if error.value is not None else "")
    return listing


class _Module:
    """What all kernels of a module share: device functions, and variables at fixed places."""

    def __init__(self, parser: Parser) -> None:
        self.file = parser.file
        self.functions = {f.name: f for f in parser.functions if not f.entry}
        self.data = bytearray()
        self.symbols: dict[str, int] = {}
        self.shared: dict[str, tuple[int, int]] = {}
        for tokens in parser.variables:
            self._variable(tokens)

    def _variable(self, tokens: Sequence[Token]) -> None:
        declared = _declaration(tokens, self.file)
        if declared is None:
            return
        space, name, size, align, values, _ = declared
        if space == "shared":
            self.shared[name] = (size, align)
            return
        if space not in ("const", "global"):
            return
        place = -(-len(self.data) // align) * align
        if place + size > MOST_DATA:
            raise InputError("more module data than gewu holds", file=self.file or None, line=tokens[0].line, value=place + size)
        self.data.extend(bytes(place + size - len(self.data)))
        self.data[place : place + len(values)] = values
        self.symbols[name] = CONST_WINDOW + place


def _declaration(tokens: Sequence[Token], file: str) -> tuple[str, str, int, int, bytes, str] | None:
    """Return space, name, bytes, alignment, initial bytes and type of a variable; None for what is no variable."""
    words = [t.text for t in tokens]
    space = next((w[1:] for w in words if w[1:] in _SPACES and w[0] == "."), "")
    type_ = next((w[1:] for w in words if w[1:] in WIDTH and w[0] == "."), "")
    if not space or not type_:
        return None
    element = max(1, WIDTH[type_] // 8)
    align = element
    if ".align" in words:
        align = _integer(tokens[words.index(".align") + 1], file, 1, 1024)
    place = next((i for i, t in enumerate(tokens) if t.kind == "word" and not t.text.startswith(".")), None)
    if place is None:
        return None
    name, count, at = words[place], 1, place + 1
    while at < len(words) and words[at] == "[":
        if words[at + 1 : at + 2] == ["]"]:
            count, at = 0, at + 2
        elif at + 1 < len(words):
            count *= _integer(tokens[at + 1], file, 0, MOST_DATA)
            at += 3
        if count * element > MOST_DATA:
            raise InputError("a variable larger than gewu holds", file=file or None, line=tokens[0].line, value=name)
    values = bytearray()
    if "=" in words[at:]:
        for i in range(words.index("=", at) + 1, len(tokens)):
            values += _initial(tokens, i, type_, element, file)
    return space, name, count * element, align, bytes(values[: max(count * element, 0)]), type_


def _initial(tokens: Sequence[Token], i: int, type_: str, element: int, file: str) -> bytes:
    token = tokens[i]
    if token.kind == "integer":
        value = int(token.text.rstrip("U"), 0) if not token.text.rstrip("U").isdecimal() else int(token.text.rstrip("U"))
        value = -value if tokens[i - 1].text == "-" else value
        return (value & ((1 << (8 * element)) - 1)).to_bytes(element, "little")
    if token.kind == "float":
        bits = float_bits(Number(int(token.text[2:], 16), 32 if token.text[1] in "fF" else 64), type_)
        return (bits & ((1 << (8 * element)) - 1)).to_bytes(element, "little")
    if token.kind == "word":
        raise InputError("an initial value that is an address", file=file or None, line=token.line, value=token.text)
    return b""


def _integer(token: Token, file: str, low: int, high: int) -> int:
    if token.kind == "integer":
        text = token.text.rstrip("U")
        value = int(text) if text.isdecimal() else int(text, 0)
        if low <= value <= high:
            return value
    raise InputError("no size that gewu holds", file=file or None, line=token.line, value=token.text, allowed=f"{low} to {high}")


class _Lowering:
    """Turn one entry into instructions of `ir`."""

    def __init__(self, module: _Module, function: Function) -> None:
        self.module, self.function = module, function
        self.widths: dict[str, str] = {}
        self.scopes: list[dict[str, str]] = [{}]
        self.symbols = dict(module.symbols)
        self.shared = self.local = self.dynamic = 0
        self.code: list[Instruction | str] = []
        self.guard: tuple[str, bool] | None = None
        self.line = function.line
        self.depth = self.fresh = 0
        self.carry: str | None = None
        self.parameters: dict[str, Parameter] = {}
        self.slots: list[dict[str, str]] = [{}]
        self.leave: list[str] = []
        self.prefix = ""
        self.shared_names = {name: align for name, (_, align) in module.shared.items()}

    def kernel(self) -> Kernel:
        """Return the kernel."""
        self._parameters()
        self._place_shared()
        self._statements(self.function.body or [])
        self.code.append(Instruction("exit", "pred"))
        limit, required = self._limits()
        blocks = _blocks(self.code, self.function.name)
        kernel = Kernel(self.function.name, tuple(self.parameters.values()), blocks, self.widths)
        kernel.shared, kernel.local, kernel.data = self.shared, self.local, bytes(self.module.data)
        kernel.source, kernel.limit, kernel.required = "ptx", limit, required
        return kernel

    def _limits(self) -> tuple[int, tuple[int, ...]]:
        limit, required = 0, ()
        for attribute in self.function.attributes:
            numbers = tuple(int(t.text) for t in attribute if t.kind == "integer" and t.text.isdecimal())
            if attribute[0].text == ".maxntid" and numbers:
                limit = 1
                for n in numbers:
                    limit *= n
            if attribute[0].text == ".reqntid" and numbers:
                required = (*numbers, 1, 1)[:3]
        return limit, required

    def _parameters(self) -> None:
        offset = 0
        for tokens in self.function.parameters:
            words = [t.text for t in tokens]
            type_ = next((w[1:] for w in words if w[:1] == "." and w[1:] in WIDTH), "b32")
            size = WIDTH[type_] // 8
            align = _integer(tokens[words.index(".align") + 1], self.module.file, 1, 256) if ".align" in words and ".ptr" not in words else size
            name = next((t.text for t in reversed(tokens) if t.kind == "word" and not t.text.startswith(".")), "")
            if "[" in words:
                size *= _integer(tokens[words.index("[") + 1], self.module.file, 1, 4096)
                type_ = ""
            offset = -(-offset // max(align, 1)) * max(align, 1)
            self.parameters[name] = Parameter(offset, size, type_, name)
            offset += size

    def _place_shared(self) -> None:
        used = {t for s in self.function.body or [] for item in s.items for t in _names(item)}
        for name, (size, align) in self.module.shared.items():
            if size and (name in used or self.module.functions):
                self.shared = -(-self.shared // align) * align
                self.symbols[name] = self.shared
                self.shared += size
        for name, (size, _align) in self.module.shared.items():
            if not size:
                self.symbols[name] = -1  # dynamic: after all static ones

    def refuse(self, what: str, value: Any = None) -> Unsupported:
        """Return the refusal of the current instruction."""
        return Unsupported(f"{what} at line {self.line}", key=self.function.name, value=value)

    # statements
    def _statements(self, body: Sequence[Statement]) -> None:
        for statement in body:
            self.line = statement.line
            if statement.label:
                self.code.append(self.prefix + statement.word)
            elif statement.word == "{":
                self.scopes.append({})
            elif statement.word == "}":
                if len(self.scopes) > 1:
                    self.scopes.pop()
            elif statement.word.startswith("."):
                self._directive(statement)
            else:
                self._guarded(statement)
            if len(self.code) > MOST_INSTRUCTIONS:
                raise self.refuse("more instructions than gewu reads")

    def _directive(self, statement: Statement) -> None:
        words = [t.text for t in statement.tokens]
        if statement.word == ".reg":
            self._registers(statement.tokens)
        elif statement.word == ".param":
            pass  # becomes registers when it is written
        elif statement.word in (".shared", ".local"):
            declared = _declaration(statement.tokens, self.module.file)
            if declared is None:
                raise self.refuse("a variable without a type", " ".join(words))
            space, name, size, align, _, _ = declared
            used = self.shared if space == "shared" else self.local
            place = -(-used // align) * align
            if place + size > MOST_SHARED * 4:
                raise self.refuse("more memory than a block has", size)
            self.symbols[self.prefix + name] = place
            if space == "shared":
                self.shared = place + size
                if not size:
                    self.symbols[self.prefix + name] = -1
            else:
                self.local = place + size
        elif statement.word == ".branchtargets":
            raise self.refuse("an indirect jump")

    def _registers(self, tokens: Sequence[Token]) -> None:
        type_ = next((t.text[1:] for t in tokens if t.text[1:] in WIDTH), "")
        if not type_:
            raise self.refuse("registers of a type that is not read", " ".join(t.text for t in tokens[:3]))
        width = "pred" if type_ == "pred" else f"b{max(16, WIDTH[type_])}"
        i = 1
        while i < len(tokens):
            token = tokens[i]
            if token.kind == "word" and not token.text.startswith("."):
                names = [token.text]
                if i + 3 < len(tokens) and tokens[i + 1].text == "<":
                    count = _integer(tokens[i + 2], self.module.file, 0, MOST_REGISTERS)
                    names = [f"{token.text}{k}" for k in range(count)]
                    i += 3
                for name in names:
                    unique = name if name not in self.widths else f"{name}.{len(self.widths)}"
                    self.scopes[-1][name] = unique
                    self.widths[unique] = width
                if len(self.widths) > MOST_REGISTERS:
                    raise self.refuse("more registers than gewu holds")
            i += 1

    def _guarded(self, statement: Statement) -> None:
        self.guard = (self.register(statement.guard[0]), statement.guard[1]) if statement.guard else None
        parts = statement.word.split(".")
        op, mods = parts[0], [p for p in parts[1:] if p]
        types = [m for m in mods if m in WIDTH or m in ("tf32",)]
        handler = getattr(self, f"_op_{op}", None)
        if handler is None and op in _SIMPLE:
            self._simple(op, mods, types, statement.items)
        elif handler is None and op in _IGNORED:
            pass
        elif handler is None:
            raise self.refuse(f"unknown instruction `{statement.word}`")
        else:
            try:
                handler(mods, types, statement.items)
            except (IndexError, AttributeError, TypeError, ValueError) as error:
                raise self.refuse(f"operands of `{statement.word}` that are not read") from error
        self.guard = None

    # operands
    def register(self, name: str) -> str:
        """Return the unique name of a register."""
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        raise self.refuse("a register that is not declared", name)

    def temporary(self, width: str) -> str:
        """Return a new register."""
        self.fresh += 1
        name = f"t{self.fresh}"
        self.widths[name] = width
        return name

    def emit(self, op: str, type_: str, dst: Sequence[str] = (), src: Sequence[Operand] = (), mods: Sequence[str] = ()) -> None:
        """Append an instruction under the current guard; temporaries are written whatever the guard."""
        pure = op in ir.PURE or op in ("special", "param")
        guard = None if pure and dst and all(d[0] == "t" for d in dst) else self.guard
        self.code.append(Instruction(op, type_, tuple(dst), tuple(src), tuple(mods), guard, f"line {self.line}"))

    def make(self, op: str, type_: str, *src: Operand, mods: Sequence[str] = (), width: str | None = None) -> str:
        """Compute into a new register and return it."""
        made = self.temporary(width or ("pred" if op == "setp" or type_ == "pred" else f"b{max(16, WIDTH[type_])}"))
        self.emit(op, type_, [made], src, mods)
        return made

    def source(self, item: Item, type_: str) -> Operand:
        """Return an operand as a register or raw bits."""
        if isinstance(item, Number):
            bits = float_bits(item, type_) if item.width else item.value
            return bits & ((1 << max(WIDTH[type_], 1)) - 1)
        if isinstance(item, Negated):
            return self.make("not", "pred", self.register(item.name))
        if isinstance(item, Address):  # symbol + offset
            return self.address(item)[0] if not item.offset else self._plus(self.address(Address(item.base, 0))[0], item.offset, type_)
        if not isinstance(item, str):
            raise self.refuse("an operand that is not read")
        if item.startswith("%") and _SPECIAL.fullmatch(item):
            width = "b64" if item == "%clock64" else "b32"
            return self.make("special", width, mods=(item[1:].replace("clock64", "clock"),), width=width)
        if item == "WARP_SZ":
            return 32
        return self._symbol(item)

    def _plus(self, base: Operand, offset: int, type_: str) -> Operand:
        if isinstance(base, int):
            return base + offset
        width = WIDTH[self.widths[base]]
        return self.make("add", f"u{width}", base, offset & ((1 << width) - 1))

    def _symbol(self, name: str) -> Operand:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        for full in (self.prefix + name, name):
            if full in self.symbols:
                place = self.symbols[full]
                return self._dynamic() if place < 0 else place
        if name in self.parameters:
            raise self.refuse("the address of a parameter", name)
        raise self.refuse("a name that is not declared", name)

    def _dynamic(self) -> int:
        return -(-self.shared // 16) * 16

    def target(self, item: Item) -> str:
        """Return a destination register."""
        if isinstance(item, Pair):
            item = item.first
        if item == "_":
            return self.temporary("b64")
        if not isinstance(item, str):
            raise self.refuse("a destination that is not read")
        return self.register(item)

    def address(self, item: Item) -> tuple[Operand, int]:
        """Return base and offset of `[base + offset]`."""
        if not isinstance(item, Address):
            raise self.refuse("an address that is not read")
        base: Operand = item.base.value if isinstance(item.base, Number) else self._symbol(item.base)
        if isinstance(base, int):
            return base + item.offset, 0
        return base, item.offset

    # plain operations
    def _simple(self, op: str, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        name = _SIMPLE[op]
        type_ = types[-1]
        keep = [m for m in mods if m in _ROUND or (m == "NaN")]
        keep = ["nan" if m == "NaN" else m for m in keep]
        sources = [self.source(item, self._operand_type(name, type_, k)) for k, item in enumerate(items[1:])]
        if op in ("min", "max") and len(sources) == 3:
            sources = [self.make(op, type_, *sources[:2], mods=keep), sources[2]]
        self.emit(name, type_, [self.target(items[0])], sources, keep)

    def _operand_type(self, op: str, type_: str, place: int) -> str:
        if op in ("shl", "shr") and place == 1:
            return "u32"
        if op == "bfe" and place > 0:
            return "u32"
        if op == "bfi" and place > 1:
            return "u32"
        return type_

    def _op_mul(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        type_ = types[-1]
        a, b = (self.source(i, type_) for i in items[1:3])
        op = "mulwide" if "wide" in mods else "mulhi" if "hi" in mods else "mul"
        self.emit(op, type_, [self.target(items[0])], [a, b], [m for m in mods if m in _ROUND])

    def _op_mul24(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        raise self.refuse("unknown instruction `mul24`")

    def _op_mad(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        type_ = types[-1]
        if type_ in ir.FLOATS:
            return self._op_fma(mods, types, items)
        a, b = (self.source(i, type_) for i in items[1:3])
        op = "mulwide" if "wide" in mods else "mulhi" if "hi" in mods else "mul"
        out = f"{type_[0]}{2 * WIDTH[type_]}" if op == "mulwide" else type_
        product = self.make(op, type_, a, b, width=f"b{WIDTH[out]}")
        total = "u" + out[1:]
        if "cc" in mods or self._carries(mods):
            raise self.refuse("mad with carry")
        self.emit("add", total, [self.target(items[0])], [product, self.source(items[3], out)])

    @staticmethod
    def _carries(mods: Sequence[str]) -> bool:
        return "cc" in mods

    def _op_fma(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        type_ = types[-1]
        self.emit("fma", type_, [self.target(items[0])], [self.source(i, type_) for i in items[1:4]], [m for m in mods if m in _ROUND])

    def _op_add(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item], op: str = "add") -> None:
        type_ = types[-1]
        a, b = (self.source(i, type_) for i in items[1:3])
        if "cc" in mods:
            return self._carry(op, type_, items[0], a, b, None)
        self.emit(op, type_, [self.target(items[0])], [a, b], [m for m in mods if m in _ROUND])

    def _op_sub(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        self._op_add(mods, types, items, "sub")

    def _op_addc(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item], op: str = "add") -> None:
        a, b = (self.source(i, types[-1]) for i in items[1:3])
        if self.carry is None:
            raise self.refuse("a carry that is not set")
        self._carry(op, types[-1], items[0], a, b, self.carry)

    def _op_subc(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        self._op_addc(mods, types, items, "sub")

    def _carry(self, op: str, type_: str, item: Item, a: Operand, b: Operand, carry: str | None) -> None:
        if WIDTH[type_] != 32:
            raise self.refuse("a carry of 64 bits")
        wide = [self.make("cvt", "u64", x, mods=("u32",)) if isinstance(x, str) else x for x in (a, b)]
        total = self.make(op, "u64", *wide)
        if carry is not None:
            total = self.make(op, "u64", total, self.make("select", "b64", 1, 0, carry))
        low, high = self.temporary("b32"), self.temporary("b32")
        self.emit("unpack", "b64", [low, high], [total])
        self.carry = self.make("setp", "u32", high, 0, mods=("ne",))
        self.emit("mov", "b32", [self.target(item)], [low])

    def _op_mov(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        type_ = types[-1]
        target, source = items[0], items[1]
        if isinstance(target, tuple):
            self._spread(target, self.source(source, type_), WIDTH[type_])
        elif isinstance(source, tuple):
            self._gathered(self.target(target), source, WIDTH[type_])
        else:
            width = self.widths[self.target(target)]
            value = self.source(source, type_)
            if isinstance(value, str) and WIDTH[self.widths[value]] < WIDTH[width]:
                value = self.make("cvt", f"u{WIDTH[width]}", value, mods=(f"u{WIDTH[self.widths[value]]}",))
            elif isinstance(value, str) and WIDTH[self.widths[value]] > WIDTH[width]:
                value = self.make("cvt", f"u{WIDTH[width]}", value, mods=(f"u{WIDTH[self.widths[value]]}",))
            self.emit("mov", width, [self.target(target)], [value])

    def _spread(self, targets: tuple[Item, ...], value: Operand, width: int) -> None:
        half = width // len(targets)
        if len(targets) == 4:
            halves = [self.temporary(f"b{width // 2}") for _ in range(2)]
            self.emit("unpack", f"b{width}", halves, [value])
            self._spread(targets[:2], halves[0], width // 2)
            self._spread(targets[2:], halves[1], width // 2)
            return
        names = [self.temporary(f"b{half}") if t == "_" else self.target(t) for t in targets]
        self.emit("unpack", f"b{width}", names, [value])

    def _gathered(self, target: str, parts: tuple[Item, ...], width: int) -> None:
        half = f"b{width // len(parts)}"
        sources: list[Operand] = [self.source(p, half) for p in parts]
        if len(parts) == 4:
            sources = [self.make("pack", f"b{width // 2}", *sources[:2]), self.make("pack", f"b{width // 2}", *sources[2:])]
        self.emit("pack", f"b{width}", [target], sources)

    def _op_cvta(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        value = self.source(items[1], "u64")
        window = SHARED_WINDOW if "shared" in mods else LOCAL_WINDOW if "local" in mods else 0
        if window == 0:
            self.emit("mov", "b64", [self.target(items[0])], [value])
        elif "to" in mods:
            self.emit("and", "b64", [self.target(items[0])], [value, SHARED_WINDOW - 1])
        else:
            self.emit("add", "u64", [self.target(items[0])], [value, window])

    def _op_selp(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        type_ = f"b{WIDTH[types[-1]]}"
        a, b = (self.source(i, types[-1]) for i in items[1:3])
        self.emit("select", type_, [self.target(items[0])], [a, b, self.source(items[3], "pred")])

    def _op_slct(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        kind = types[-1]
        test = self.make("setp", kind, self.source(items[3], kind), 0, mods=("ge",))
        a, b = (self.source(i, types[0]) for i in items[1:3])
        self.emit("select", f"b{WIDTH[types[0]]}", [self.target(items[0])], [a, b, test])

    def _comparison(self, mods: Sequence[str], type_: str, a: Operand, b: Operand) -> str:
        how = mods[0]
        how = _COMPARE.get(how, how)
        if type_ not in ir.FLOATS and type_ != "pred":
            how = how.removesuffix("u") if how in ("equ", "neu", "ltu", "leu", "gtu", "geu") else how
        return self.make("setp", type_, a, b, mods=(how,))

    def _op_setp(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        type_ = types[-1]
        if type_ in ("f16x2", "bf16x2"):
            raise self.refuse("comparison of halves in pairs")
        test = self._comparison(mods, type_, *(self.source(i, type_) for i in items[1:3]))
        joins = [m for m in mods[1:] if m in ("and", "or", "xor")]
        first = items[0].first if isinstance(items[0], Pair) else items[0]
        both = [(first, test)]
        if isinstance(items[0], Pair):
            both.append((items[0].second, self.make("not", "pred", test)))
        for name, value in both:
            if name == "_":
                continue
            if joins:
                self.emit(joins[0], "pred", [self.target(name)], [value, self.source(items[3], "pred")])
            else:
                self.emit("mov", "pred", [self.target(name)], [value])

    def _op_set(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        out, type_ = types[-2], types[-1]
        test = self._comparison(mods, type_, *(self.source(i, type_) for i in items[1:3]))
        one = 0x3F800000 if out == "f32" else 0xFFFFFFFF
        self.emit("select", "b32", [self.target(items[0])], [one, 0, test])

    def _op_testp(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        type_ = types[-1]
        value = self.source(items[1], type_)
        size = self.make("abs", type_, value)
        infinity, least = (0x7F800000, 0x00800000) if type_ == "f32" else (0x7FF << 52, 1 << 52)
        how = {"finite": ("lt", infinity), "infinite": ("eq", infinity), "number": ("le", infinity), "notanumber": ("nan", infinity)}
        if mods[0] in how:
            test = self.make("setp", type_, size, how[mods[0]][1], mods=(how[mods[0]][0],))
        else:
            normal = self.make("setp", type_, size, least, mods=("ge",))
            finite = self.make("setp", type_, size, infinity, mods=("lt",))
            test = self.make("and", "pred", normal if mods[0] == "normal" else self.make("not", "pred", normal), finite)
        self.emit("mov", "pred", [self.target(items[0])], [test])

    def _op_lop3(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        from gewu.ops.sass_logic import spellings

        sources = [self.source(i, "b32") for i in items[1:4]]
        assert isinstance(items[4], Number)

        def spell(table: int) -> Operand:
            if table in (0, 255):
                return 0xFFFFFFFF if table else 0
            spelling = spellings()[table]
            if isinstance(spelling, int):
                return sources[spelling]
            op, a, b = spelling
            return self.make("not", "b32", spell(a)) if op == "not" else self.make(op, "b32", spell(a), spell(b))

        value = spell(items[4].value & 255)
        self.emit("mov", "b32", [self.target(items[0])], [value])

    def _op_shf(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        a, b, n = (self.source(i, "u32") for i in items[1:4])
        n = self.make("and", "b32", n, 31) if "wrap" in mods else self.make("min", "u32", n, 32)
        both = self.make("pack", "b64", a, b)
        low, high = self.temporary("b32"), self.temporary("b32")
        shifted = self.make("shl" if mods[0] == "l" else "shr", "b64" if mods[0] == "l" else "u64", both, n)
        self.emit("unpack", "b64", [low, high], [shifted])
        self.emit("mov", "b32", [self.target(items[0])], [high if mods[0] == "l" else low])

    def _op_bfind(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        keep = [m for m in mods if m == "shiftamt"]
        self.emit("flo", types[-1], [self.target(items[0])], [self.source(items[1], types[-1])], keep)

    def _op_prmt(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        if [m for m in mods if m != "b32"]:
            raise self.refuse("prmt with a mode", mods)
        self.emit("prmt", "b32", [self.target(items[0])], [self.source(i, "b32") for i in items[1:4]])

    def _op_dp4a(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        signs = [t[0] + "8" for t in types]
        out = "s32" if "s8" in signs else "u32"
        self.emit("dp4a", out, [self.target(items[0])], [self.source(i, "b32") for i in items[1:4]], signs)

    def _op_cvt(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        out, type_ = types[-2], types[-1]
        keep = [m for m in mods if m in _ROUND]
        if "rna" in mods or "tf32" in (out, type_):
            raise self.refuse("conversion to tf32")
        if out in ("f16x2", "bf16x2"):
            sources = [self.source(i, type_) for i in items[1:3]]
            return self.emit("cvt", out, [self.target(items[0])], sources, [type_, *keep])
        value = self.source(items[1], type_)
        if WIDTH[type_] == 8:
            value = self._byte(value, type_)
            type_ = type_[0] + "32"
        if WIDTH[out] == 8:
            return self._to_byte(self.target(items[0]), value, out, type_, keep)
        target = self.target(items[0])
        have = WIDTH[self.widths[target]]
        if out[0] in "us" and WIDTH[out] < have:
            value = self.make("cvt", out, value, mods=(type_, *keep), width=f"b{WIDTH[out]}")
            return self.emit("cvt", f"{out[0]}{have}", [target], [value], [out])
        self.emit("cvt", out, [target], [value], [type_, *keep])

    def _byte(self, value: Operand, type_: str) -> Operand:
        if isinstance(value, int):
            return value if type_[0] == "u" or value < 128 else value | 0xFFFFFF00
        if self.widths[value] != "b32":
            value = self.make("cvt", "u32", value, mods=("u" + self.widths[value][1:],))
        return self.make("bfe", type_[0] + "32", value, 0, 8)

    def _to_byte(self, target: str, value: Operand, out: str, type_: str, keep: Sequence[str]) -> None:
        if type_ in ir.FLOATS or "sat" in keep:
            wide = self.make("cvt", "s32", value, mods=(type_, *[k for k in keep if k != "sat"])) if type_ != "s32" else value
            low, high = (0xFFFFFF80, 127) if out == "s8" else (0, 255)
            value = self.make("max", "s32", self.make("min", "s32", wide, high), low)
        elif WIDTH[type_] != 32:
            value = self.make("cvt", "u32", value, mods=("u" + type_[1:],))
        byte = self.make("bfe", out[0] + "32", value, 0, 8)
        width = self.widths[target]
        self.emit("mov" if width == "b32" else "cvt", width if width == "b32" else f"{out[0]}{width[1:]}", [target], [byte], [] if width == "b32" else [out[0] + "32"])

    # memory
    def _space(self, mods: Sequence[str]) -> str:
        for m in mods:
            if m.split("::")[0] in _SPACES:
                if m.startswith("shared::cluster"):
                    raise self.refuse("shared memory of a cluster")
                return m.split("::")[0]
        return "generic"

    def _op_ld(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        space, type_ = self._space(mods), types[-1]
        targets = items[0] if isinstance(items[0], tuple) else (items[0],)
        names = [self.temporary(f"b{max(16, WIDTH[type_])}") if t == "_" else self.target(t) for t in targets]
        if space == "param":
            return self._load_parameter(names, type_, items[1])
        base, offset = self.address(items[1])
        self._memory("ld", type_, names, [base, offset], space)

    def _memory(self, op: str, type_: str, dst: Sequence[str], src: list[Operand], space: str) -> None:
        base, offset = src[0], src[1]
        assert isinstance(offset, int)
        if offset < 0:
            base = self._plus(base, offset, "u64")
            src = [base, 0, *src[2:]]
        if space == "const":
            space = "const"
        self.emit(op, type_, dst, src, [space])

    def _load_parameter(self, names: Sequence[str], type_: str, item: Item) -> None:
        assert isinstance(item, Address) and isinstance(item.base, str)
        size = WIDTH[type_] // 8
        for k, name in enumerate(names):
            place = item.offset + k * size
            slot = self.slots[-1].get(item.base)
            if slot is not None or item.base not in self.parameters or len(self.slots) > 1:
                register = f"{slot or self.prefix + item.base}+{place}"
                if register not in self.widths:
                    raise self.refuse("a parameter that is not set", item.base)
                self._copy(name, register)
                continue
            parameter = self.parameters[item.base]
            if place + size > parameter.size:
                raise self.refuse("reads past a parameter", item.base)
            width = self.widths[name]
            if WIDTH[width] > 8 * size:
                piece = self.make("param", f"b{8 * size}", parameter.offset + place, width=f"b{max(16, 8 * size)}")
                source = self._byte(piece, type_) if size == 1 else piece
                have = "u32" if size == 1 else f"u{8 * size}"
                self.emit("cvt", f"{type_[0] if type_[0] in 'us' else 'u'}{WIDTH[width]}", [name], [source], [type_ if type_[0] in "us" and size > 1 else have])
            else:
                self.emit("param", f"b{8 * size}", [name], [parameter.offset + place])

    def _copy(self, target: str, source: str) -> None:
        have, want = self.widths[source], self.widths[target]
        if have == want:
            self.emit("mov", want, [target], [source])
        else:
            self.emit("cvt", f"u{want[1:]}", [target], [source], [f"u{have[1:]}"])

    def _op_ldu(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        self._op_ld(mods, types, items)

    def _op_st(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        space, type_ = self._space(mods), types[-1]
        parts = items[1] if isinstance(items[1], tuple) else (items[1],)
        values = [self.source(p, type_) for p in parts]
        if space == "param":
            assert isinstance(items[0], Address) and isinstance(items[0].base, str)
            base = self.slots[-1].get(items[0].base, self.prefix + items[0].base)
            for k, value in enumerate(values):
                register = f"{base}+{items[0].offset + k * WIDTH[type_] // 8}"
                self.widths.setdefault(register, f"b{max(16, WIDTH[type_])}")
                self.emit("mov", self.widths[register], [register], [value])
            return
        base_, offset = self.address(items[0])
        self._memory("st", type_, (), [base_, offset, *values], space)

    def _op_atom(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item], result: bool = True) -> None:
        space, type_ = self._space(mods), types[-1]
        what = next((m for m in mods if m in ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")), None)
        if what is None or type_ in ("f16x2", "bf16x2", "f16", "bf16"):
            raise self.refuse("an atomic operation that is not read", ".".join(mods))
        rest = items[1:] if result else items
        base, offset = self.address(rest[0])
        values = [self.source(i, type_) for i in rest[1:3]]
        if offset < 0:
            base, offset = self._plus(base, offset, "u64"), 0
        dst = [self.target(items[0])] if result and items[0] != "_" else []
        self.emit("atom", type_, dst, [base, offset, *values], [space, what])

    def _op_red(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        self._op_atom(mods, types, items, False)

    # threads together
    def _op_shfl(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        mode = next(m for m in mods if m in ("up", "down", "bfly", "idx"))
        names = [items[0].first, items[0].second] if isinstance(items[0], Pair) else [items[0]]
        dst = [self.target(n) for n in names if n != "_"]
        self.emit("shfl", "b32", dst, [self.source(i, "b32") for i in items[1:4]], [mode])

    def _op_vote(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        mode = next(m for m in mods if m in ("all", "any", "uni", "ballot"))
        self.emit("vote", "pred", [self.target(items[0])], [self.source(items[1], "pred")], [mode])

    def _op_match(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        if "any" not in mods:
            raise self.refuse("match.all")
        self.emit("match", types[-1], [self.target(items[0])], [self.source(items[1], types[-1])], ["any"])

    def _op_redux(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        what = next(m for m in mods if m in ("add", "min", "max", "and", "or", "xor"))
        self.emit("redux", types[-1], [self.target(items[0])], [self.source(items[1], types[-1])], [what])

    def _op_activemask(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        self.emit("activemask", "b32", [self.target(items[0])])

    def _op_elect(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        raise self.refuse("unknown instruction `elect`")

    def _op_bar(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        if "warp" in mods:
            return
        plain = "sync" in mods and (not items or items == (Number(0),))
        if not plain and not ("cta" in mods and "sync" in mods and items == (Number(0),)):
            raise self.refuse("a barrier for some of the threads", ".".join(mods))
        self.emit("bar", "pred")

    def _op_barrier(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        self._op_bar(mods, types, items)

    def _op_mma(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        shape = next((m for m in mods if re.fullmatch(r"m\d+n\d+k\d+", m)), "")
        kinds = [m for m in mods if m in WIDTH or m == "tf32"]
        if shape not in ("m16n8k16", "m16n8k8") or kinds[0] != "f32" or "row" not in mods:
            raise self.refuse("a matrix operation that is not read", ".".join(mods))
        parts = [i if isinstance(i, tuple) else (i,) for i in items]
        sources = [self.source(p, "b32") for part in parts[1:] for p in part]
        self.emit("mma", "f32", [self.target(t) for t in parts[0]], sources, [shape, kinds[1], kinds[2]])

    # control
    def _op_bra(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        assert isinstance(items[0], str)
        self.emit("bra", "pred", mods=(self.prefix + items[0],))

    def _op_ret(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        if self.leave:
            self.emit("bra", "pred", mods=(self.leave[-1],))
        else:
            self.emit("exit", "pred")

    def _op_exit(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        self.emit("exit", "pred")

    def _op_trap(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        if self.guard is None:
            return self.emit("trap", "pred")
        skip = f"{self.prefix}$after{len(self.code)}"
        self.guard = (self.guard[0], not self.guard[1])
        self.emit("bra", "pred", mods=(skip,))
        self.guard = None
        self.emit("trap", "pred")
        self.code.append(skip)

    def _op_call(self, mods: Sequence[str], types: Sequence[str], items: Sequence[Item]) -> None:
        results = items[0] if isinstance(items[0], tuple) else ()
        rest = items[1:] if isinstance(items[0], tuple) else items
        name = rest[0]
        function = self.module.functions.get(name) if isinstance(name, str) else None
        if function is None or function.body is None:
            raise self.refuse("a call of a function that is not in the module", name if isinstance(name, str) else None)
        if self.guard is not None or self.depth > 16:
            raise self.refuse("a call that cannot be inlined", name)
        given = rest[1] if len(rest) > 1 and isinstance(rest[1], tuple) else ()
        outer = self.slots[-1]
        own: dict[str, str] = {}
        for tokens, item in zip([*function.results, *function.parameters], [*results, *given], strict=True):
            formal = next(t.text for t in reversed(tokens) if t.kind == "word" and not t.text.startswith("."))
            assert isinstance(item, str)
            own[formal] = outer.get(item, self.prefix + item)
        saved = self.prefix, self.line
        self.depth += 1
        self.prefix = f"{self.prefix}{name}.{len(self.code)}:"
        self.slots.append(own)
        self.scopes.append({})
        self.leave.append(self.prefix + "$end")
        self._statements(function.body)
        self.code.append(self.leave.pop())
        self.scopes.pop()
        self.slots.pop()
        self.prefix, self.line = saved
        self.depth -= 1


_SIMPLE: Final = {
    **{n: n for n in ("div", "rem", "min", "max", "neg", "abs", "sqrt", "rsqrt", "rcp", "ex2", "lg2", "sin", "cos", "tanh", "copysign")},
    **{n: n for n in ("and", "or", "xor", "not", "shl", "shr", "bfe", "bfi", "brev", "popc", "clz", "sad")},
}


def _names(item: Item) -> list[str]:
    if isinstance(item, str):
        return [item]
    if isinstance(item, Address):
        return [item.base] if isinstance(item.base, str) else []
    return [name for part in item for name in _names(part)] if isinstance(item, tuple) else []


def _blocks(code: Sequence[Instruction | str], name: str) -> list[ir.Block]:
    """Cut instructions at labels and jumps into basic blocks; drop what cannot be reached."""
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
        after = (number + 1,) if number + 1 < len(pieces) else ()
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
