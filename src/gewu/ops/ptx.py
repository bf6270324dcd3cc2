"""Read PTX: every `.entry` of a module becomes an `ir.Kernel`, device functions inlined; what is not read is refused by name.

Reference: NVIDIA, Parallel Thread Execution ISA 9.0.  Modifiers are checked one by one: an instruction with one that is not known
is refused, never guessed.  Not read: textures, surfaces, indirect jumps and calls, clusters and bulk copies, warp-group matrix
operations, `malloc`, module variables that kernels write; those that only the host sets need a value.  `printf` prints nothing; a
failed assertion is a trap.

    ptx_syntax  text to statements                ptx_write   the kernel while it is written: names, operands
    ptx_module  variables, parameters, blocks     ptx_arith, ptx_memory, ptx_warp   what the instructions mean
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from gewu.core.errors import InputError
from gewu.ops import ir, ptx_arith, ptx_memory, ptx_warp
from gewu.ops.ir import WIDTH, Instruction, Kernel, Listing, Unsupported
from gewu.ops.ptx_arith import Rule
from gewu.ops.ptx_module import Module, Program, blocks_of, integer, limits_of, program_of
from gewu.ops.ptx_syntax import Function, Item, Parser, Statement, Token
from gewu.ops.ptx_write import MOST_REGISTERS, Line, Scope, Slot, Variable, Writer, width_of

MOST_DEPTH: Final = 24
MOST_TOTAL: Final = 2_000_000
_RULES: Final[dict[str, Rule]] = {**ptx_arith.RULES, **ptx_memory.RULES, **ptx_warp.RULES}
_IGNORED: Final = frozenset(
    {
        *("membar", "fence", "prefetch", "prefetchu", "discard", "applypriority", "createpolicy"),
        *("griddepcontrol", "nanosleep", "setmaxnreg", "pmevent"),
    }
)


def read_ptx(text: str, file: str = "", constants: Mapping[str, bytes] | None = None) -> Listing:
    """Read a PTX module.

    Args:
        text: the module.
        file: its name, for messages.
        constants: the bytes of module variables that have no initial value.

    Returns:
        The kernels by name, and the reasons for those that are refused.

    Raises:
        InputError: the text is not PTX, or has no such variables.
    """
    parser = Parser(text, file)
    parser.parse()
    module = Module(parser, constants or {})
    listing = Listing(unset=module.unset)
    left = MOST_TOTAL
    for function in parser.functions:
        if not function.entry or function.body is None:
            continue
        try:
            if left < 0:
                raise Unsupported("a module with more instructions than gewu reads", key=function.name)
            reader = _Reader(module, program_of(module, function))
            kernel = reader.kernel()
            ir.check(kernel)
            listing.kernels[function.name] = kernel
            left -= len(reader.w.code)
        except InputError as error:
            listing.refused[function.name] = error.message + (f" ({error.value})" if error.value is not None else "")
    for name in [name for name, kernel in listing.kernels.items() if module.reads_written(kernel)]:
        del listing.kernels[name]
        listing.refused[name] = "uses a module variable that another kernel writes"
    return listing


class _Reader:
    """Turn one entry into instructions of `ir`."""

    def __init__(self, module: Module, program: Program) -> None:
        self.module, self.program = module, program
        self.w = Writer(program.function.name, dict(program.names))
        self.w.parameter_copy = self._parameter_copy
        self.w.counter = program.counter
        self.local = 0
        self._copied: int | None = None
        self._leave: list[str] = []

    def kernel(self) -> Kernel:
        """Return the kernel."""
        function, w = self.program.function, self.w
        limit, required = limits_of(function)
        w.block = required[0] * required[1] * required[2] if required else 0
        self._body(function)
        w.emit("exit", "pred")
        code = self._copies() + w.code
        kernel = Kernel(function.name, self.program.parameters, blocks_of(code, function.name), w.widths)
        kernel.shared, kernel.local, kernel.data = self.program.shared, self.local, bytes(self.module.data)
        kernel.source, kernel.limit, kernel.required = f"ptx {self.module.target}".strip(), limit, required
        self.module.refuse_writes(kernel)
        return kernel

    def _parameter_copy(self) -> int:
        """Return where local memory holds a copy of the parameters, for kernels that take their addresses."""
        if self._copied is None:
            self._copied = self._allocate(self.program.size, 16)
        return self._copied

    def _copies(self) -> list[Instruction | str]:
        if self._copied is None:
            return []
        w, code = self.w, self.w.code
        w.code, w.guard, start = [], None, self._copied
        for parameter in self.program.parameters:
            place, end = parameter.offset, parameter.offset + parameter.size
            while place < end:
                size = next(s for s in (8, 4, 2, 1) if place % s == 0 and place + s <= end)
                value = w.make("param", f"b{8 * size}", place)
                w.emit("st", f"b{8 * size}", (), [start + place, 0, value], ["local"])
                place += size
        w.code, copies = code, w.code
        return copies

    def _allocate(self, size: int, align: int) -> int:
        place = -(-self.local // align) * align
        if place + size > 1 << 20:
            raise self.w.refuse("more local memory than gewu holds", place + size)
        self.local = place + size
        return place

    # statements

    def _body(self, function: Function) -> None:
        """Read the statements of a function in a new scope."""
        body = function.body or []
        w = self.w
        scopes = _labels(body, w)
        w.scopes.append(scopes.pop(0))
        depth = len(w.scopes)
        for statement in body:
            w.line, w.guard = statement.line, None
            if statement.label:
                w.code.append(w.scopes[-1].labels[statement.word])
            elif statement.word == "{":
                w.scopes.append(scopes.pop(0))
            elif statement.word == "}":
                w.scopes.pop()
            elif statement.word.startswith("."):
                self._declare(function, statement)
            else:
                self._instruction(statement)
        del w.scopes[depth - 1 :]

    def _declare(self, function: Function, statement: Statement) -> None:
        w, tokens = self.w, statement.tokens
        if statement.word == ".reg":
            self._registers(tokens)
        elif statement.word == ".param":
            w.scopes[-1].names[_last_name(tokens)] = Slot()
        elif statement.word in (".shared", ".local", ".const", ".global"):
            declared = self.module.declaration(tokens)
            if declared is None or statement.word in (".const", ".global"):
                raise w.refuse(f"a variable that is not read: `{' '.join(t.text for t in tokens[:4])}`")
            if declared.space == "local":
                w.scopes[-1].names[declared.name] = Variable("local", self._allocate(declared.size, declared.align))
            else:
                w.scopes[-1].names[declared.name] = self.program.statics[id(statement)]
        else:
            raise w.refuse(f"unknown directive `{statement.word}`")

    def _registers(self, tokens: Sequence[Token]) -> None:
        w = self.w
        type_ = next((t.text[1:] for t in tokens[1:2] if t.text[1:] in WIDTH), "")
        if not type_:
            raise w.refuse("registers of a type that is not read", " ".join(t.text for t in tokens[:3]))
        i = 2
        while i < len(tokens):
            name, count = tokens[i].text, None
            if i + 3 < len(tokens) and tokens[i + 1].text == "<" and tokens[i + 3].text == ">":
                count = integer(tokens[i + 2], MOST_REGISTERS)
                i += 3
            if tokens[i + 1 : i + 2] and tokens[i + 1].text != ",":
                raise w.refuse("a declaration of registers that is not read")
            w.declare(name, width_of(type_), count)
            i += 2

    def _instruction(self, statement: Statement) -> None:
        w = self.w
        op, *parts = statement.word.split(".")
        if op in _IGNORED:
            return
        rule = _RULES.get(op)
        jump = _JUMPS.get(op)
        if rule is None and jump is None:
            raise w.refuse(f"unknown instruction `{statement.word}`")
        if statement.guard is not None:
            guard = w.register(statement.guard[0])
            if w.widths[guard] != "pred":
                raise w.refuse("a guard that is no predicate", guard)
            w.guard = guard, statement.guard[1]
        if statement.items is None:
            raise w.refuse(f"operands of `{statement.word}` that are not read")
        if jump is not None:
            return jump(self, tuple(parts), statement.items)
        assert rule is not None
        line = _line(rule, statement.word, op, parts, statement.items)
        if line is None:
            raise w.refuse(f"unknown instruction `{statement.word}`")
        if not rule.items[0] <= len(line.items) <= rule.items[1]:
            raise w.refuse(f"operands of `{statement.word}` that are not read")
        rule.handler(w, line)

    # control

    def _goto(self, mods: tuple[str, ...], items: tuple[Item, ...]) -> None:
        w = self.w
        if len(items) != 1 or not isinstance(items[0], str) or mods not in ((), ("uni",)):
            raise w.refuse("a jump that is not read")
        for scope in reversed(w.scopes):
            if items[0] in scope.labels:
                return w.emit("bra", "pred", mods=(scope.labels[items[0]],))
        raise w.refuse("a jump to a label that is not there", items[0])

    def _return(self, mods: tuple[str, ...], items: tuple[Item, ...]) -> None:
        if self._leave:
            self.w.emit("bra", "pred", mods=(self._leave[-1],))
        else:
            self.w.emit("exit", "pred")

    def _exit(self, mods: tuple[str, ...], items: tuple[Item, ...]) -> None:
        self.w.emit("exit", "pred")

    def _trap(self, mods: tuple[str, ...], items: tuple[Item, ...]) -> None:
        w = self.w
        if w.guard is None:
            return w.emit("trap", "pred")
        skip = w.label()
        self._skip_unguarded(skip)
        w.emit("trap", "pred")
        w.code.append(skip)

    def _skip_unguarded(self, skip: str) -> None:
        """Jump where the guard does not hold, and drop the guard."""
        w = self.w
        assert w.guard is not None
        w.guard = w.guard[0], not w.guard[1]
        w.emit("bra", "pred", mods=(skip,))
        w.guard = None

    def _call(self, mods: tuple[str, ...], items: tuple[Item, ...]) -> None:
        w = self.w
        results = items[0] if items and isinstance(items[0], tuple) else ()
        rest = items[1:] if items and isinstance(items[0], tuple) else items
        name = rest[0] if rest else ""
        function = self.module.functions.get(name) if isinstance(name, str) else None
        if name == "__assertfail":
            return self._trap(mods, items)
        if name == "vprintf":
            return self._define_zero(results)
        if function is None or function.body is None:
            known = isinstance(name, str) and not name.startswith("%")
            raise w.refuse(f"a call of `{name}`, which is not in the module" if known else "a call through a pointer")
        if len(self._leave) >= MOST_DEPTH:
            raise w.refuse("a call that is too deep, or recursive", name)
        given = rest[1] if len(rest) > 1 and isinstance(rest[1], tuple) else ()
        skip = w.label()
        if w.guard is not None:
            self._skip_unguarded(skip)
        self._inline(function, results, given)
        w.code.append(skip)

    def _define_zero(self, results: tuple[Item, ...]) -> None:
        """Let a call give zero and do nothing."""
        slot = self.w.find(results[0]) if results and isinstance(results[0], str) else None
        if isinstance(slot, Slot):
            slot.pieces[0, 4] = self.w.make("mov", "b32", 0)

    def _inline(self, function: Function, results: tuple[Item, ...], given: tuple[Item, ...]) -> None:
        w = self.w
        if len(results) != len(function.results) or len(given) != len(function.parameters):
            raise w.refuse("a call with another number of parameters", function.name)
        formals = [*function.results, *function.parameters]
        own, line = Scope(), w.line
        after: list[tuple[str, str]] = []
        for tokens, item, comes_in in zip(formals, (*results, *given), [False] * len(results) + [True] * len(given), strict=True):
            if tokens[0].text == ".param":
                slot = w.find(item) if isinstance(item, str) else None
                if not isinstance(slot, Slot):
                    raise w.refuse("a parameter of a call that is not read", item)
                own.names[_last_name(tokens)] = slot
                continue
            type_ = next((t.text[1:] for t in tokens if t.text[1:] in WIDTH), "b32")
            register = w.temporary(width_of(type_))
            own.names[_last_name(tokens)] = register
            if comes_in:
                w.emit("mov", width_of(type_), [register], [w.source(item, type_)])
            else:
                after.append((w.target(item, type_), register))
        scopes, w.scopes = w.scopes, [w.module, own]
        self._leave.append(w.label())
        self._body(function)
        w.code.append(self._leave.pop())
        w.scopes, w.line, w.guard = scopes, line, None
        for target, register in after:
            w.emit("mov", w.widths[target], [target], [register])


_JUMPS: Final = {
    "bra": _Reader._goto,
    "ret": _Reader._return,
    "exit": _Reader._exit,
    "trap": _Reader._trap,
    "call": _Reader._call,
}


def _line(rule: Rule, word: str, op: str, parts: Sequence[str], items: tuple[Item, ...]) -> Line | None:
    """Sort the modifiers of an instruction; None when one is not known to its rule."""
    types = tuple(p for p in parts if p in WIDTH)
    mods = tuple(p for p in parts if p not in WIDTH)
    if not rule.count[0] <= len(types) <= rule.count[1] or not set(types) <= set(rule.types) or not set(mods) <= set(rule.mods):
        return None
    return Line(word, op, types, mods, items)


def _last_name(tokens: Sequence[Token]) -> str:
    return next((t.text for t in reversed(tokens) if t.kind == "word" and not t.text.startswith(".")), "")


def _labels(body: Sequence[Statement], w: Writer) -> list[Scope]:
    """Return the scopes of a body in the order in which they open, with their labels."""
    scopes = [Scope()]
    stack = [scopes[0]]
    for statement in body:
        if statement.word == "{":
            scopes.append(Scope())
            stack.append(scopes[-1])
        elif statement.word == "}":
            stack.pop()
        elif statement.label:
            if statement.word in stack[-1].labels:
                raise Unsupported("a label that stands twice", key=w.name, value=statement.word)
            stack[-1].labels[statement.word] = w.label()
    return scopes
