"""Where the threads of a vector access memory: addresses of each state space as pointers, and what is known of their pattern."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gewu.ops import ir, spmd_ops
from gewu.ops.shape import VARYING, Shape
from gewu.ops.spmd_emit import BITS, Builder, Val, integer
from gewu.ops.spmd_flow import Op
from gewu.ops.spmd_report import CHECK, data_text, report

if TYPE_CHECKING:
    from gewu.ops.spmd_program import Program
    from gewu.ops.spmd_region import Region

LARGE = 1500
"""Instructions from which on a kernel is compiled without tests for contiguous addresses."""


def element(kind: str) -> str:
    """Return the LLVM type of an element in memory."""
    return "i16" if kind in ("f16", "bf16") else f"i{ir.WIDTH[kind]}" if kind not in ("f32", "f64") else spmd_ops.llvm_type(kind)


def exact(region: Region, operand: str, shape: Shape) -> Val:
    """Return a strided wide value with each lane as the narrow arithmetic gives it, wrapped or not."""
    base = region.value(operand)
    assert shape.origin and shape.stride is not None
    narrow = region.value(shape.origin[0])
    return Val("v", lanes_of(region.b, base, narrow, shape), base.type)


def lanes_of(b: Builder, base: Val, narrow: Val, shape: Shape) -> str:
    """Return base + factor * (extend(narrow lane) - extend(narrow base)) + the rest of the stride."""
    assert shape.origin and shape.stride is not None
    _, sign, factor = shape.origin
    extend, t = f"{sign.replace('u', 'z')}ext", b.vector("i64")
    lanes = b.emit(f"{extend} {b.vector('i32')} {b.vec(narrow)} to {t}")
    start = b.splat("i64", b.emit(f"{extend} i32 {narrow.name} to i64"))
    delta = b.emit(f"sub {t} {lanes}, {start}")
    if factor != 1:
        delta = b.emit(f"mul {t} {delta}, {b.splat('i64', str(factor))}")
    rest = shape.stride - factor * narrow.stride
    total = b.emit(f"add {t} {delta}, {b.splat('i64', base.name)}")
    return b.emit(f"add {t} {total}, {b.steps('i64', rest)}") if rest else total


class Linear(NamedTuple):
    """An address that varies, as factor * root + the sum of multiples of what is the same for all threads.

    `sign`: "s" or "u" where the root is a 32-bit value that is extended so, else "".
    """

    root: ir.Operand
    factor: int = 1
    sign: str = ""
    rest: tuple[tuple[ir.Operand, int], ...] = ()


def linear(program: Program, address: ir.Operand, number: int) -> Linear:
    """Return a varying address, as a node sees it, taken apart as far as sums and multiplications by numbers reach."""
    factor, rest = 1, list[tuple[ir.Operand, int]]()
    while isinstance(address, str) and (op := program.linear.get(address)):
        strides = [(program.shapes.at(s, number) or VARYING).stride for s in op.src]
        other = op.src[-1]
        if op.op == "add" and strides in ([None, 0], [0, None]):
            rest.append((op.src[strides.index(0)], factor))
            address = op.src[strides.index(None)]
        elif op.op in ("shl", "mul", "mulwide") and strides[0] is None and isinstance(other, int):
            wider = factor * (1 << other if op.op == "shl" else other)
            if not 0 < wider < 1 << 16:
                break
            factor, address = wider, op.src[0]
            if op.op == "mulwide":
                return Linear(address, factor, op.type[0], tuple(rest))
        elif op.op == "cvt" and strides[0] is None:
            return Linear(op.src[0], factor, op.mods[0][0], tuple(rest))
        else:
            break
    return Linear(address, factor, "", tuple(rest))


def is_linear(op: Op) -> bool:
    """Tell whether `linear` may look into an operation."""
    if op.guard or op.type in ir.FLOATS:
        return False
    if op.op == "cvt":
        return ir.WIDTH[op.type] == 64 and op.mods[0] in ("s32", "u32") and "sat" not in op.mods
    return (op.op in ("add", "shl", "mul") and ir.WIDTH[op.type] >= 32) or (op.op == "mulwide" and op.type in ("s32", "u32"))


class Access:
    """The addresses of one access.

    Args:
        region: the code being written.
        op: a load, store or atomic operation with address and offset first.
        space: state space.
        mask: lanes that take part.
    """

    def __init__(self, region: Region, op: Op, space: str, mask: str) -> None:
        self.region, self.b, self.op, self.mask = region, region.b, op, mask
        self.kernel = region.program.kernel
        self.sizes = len(op.dst) if op.op == "ld" else len(op.src) - 2
        self.space = space
        operand = op.src[0]
        self.shape = region.shapes.at(operand, region.number) or VARYING
        address = region.take(operand, "i32" if space in ("shared", "local") else "i64")
        self.narrow = region.value(self.shape.origin[0]) if self.shape.origin and address.kind == "s" else None
        offset = op.src[1] if len(op.src) > 1 and isinstance(op.src[1], int) else 0
        self.step = offset - (1 << 64) if offset >> 63 else offset - (1 << 32) if offset >> 31 == 1 else offset
        if space in ("shared", "local"):
            address = address if not self.step else self.b.op("add", address, integer("i32", self.step))
            verb = "zext" if space == "local" else "sext"  # lanes that do not run may lie below zero
            base = (
                self.b.convert(verb, address._replace(kind="u", stride=0), "i64")
                if address.kind != "v"
                else self.b.convert(verb, address, "i64")
            )
            self.address = Val(address.kind, base.name, "i64", address.stride)
        else:
            self.address = address if not self.step else self.b.op("add", address, integer("i64", self.step))
        if region.program.checked:
            size = BITS[element(op.type)] // 8 * max(self.sizes, 1)
            self.mask = self._within(size) if space in ("global", "generic") else self._within_window(size)
            self.restricted = True
        else:
            self.restricted = bool(op.guard)

    def exact(self) -> Val:
        """Return the address with exact lanes."""
        if self.narrow is None:
            return self.address if self.address.kind != "s" else Val("v", self.b.vec(self.address), "i64")
        return Val("v", lanes_of(self.b, self.address, self.narrow, self.shape), "i64")

    def fits(self) -> str | None:
        """Return the test that a strided address does not wrap, None when that is known."""
        if self.narrow is None:
            return None
        b, (_, sign, _) = self.b, self.shape.origin  # type: ignore[misc]
        reach = self.narrow.stride * (b.lanes - 1)
        last = b.emit(f"add i32 {self.narrow.name}, {reach}")
        extend = f"{sign.replace('u', 'z')}ext"
        want = b.emit(f"add i64 {b.emit(f'{extend} i32 {self.narrow.name} to i64')}, {reach}")
        return b.emit(f"icmp eq i64 {b.emit(f'{extend} i32 {last} to i64')}, {want}")

    def _holds(self, window: int) -> bool:
        """Tell whether the kernel makes addresses of a window at all."""
        return any(window <= number < window + (1 << 32) for number in self.region.program.literals)

    def pointers(self, address: Val) -> Val:
        """Return pointers (type ptr) to where addresses of the space lie."""
        b = self.b
        if self.space == "shared":
            return b.apply("ptr", lambda t, n: f"getelementptr i8, ptr %shm, {t} {n[0]}", address)
        if self.space == "const":
            return self._data(address)
        if self.space == "global" and self.kernel.data and self._holds(ir.CONST_WINDOW):
            inside = b.compare("icmp eq", b.op("lshr", address, integer("i64", 62)), integer("i64", 1))
            return b.choose(inside, self._data(address), self._plain(address))
        if self.space == "generic":
            return self._generic(address)
        return self._plain(address)

    def _plain(self, address: Val) -> Val:
        return self.b.apply("ptr", lambda t, n: f"inttoptr {t} {n[0]} to {t.replace('i64', 'ptr')}", address)

    def _data(self, address: Val) -> Val:
        self.region.program.helpers["data"] = data_text(self.kernel)
        low = self.b.op("sub", address, integer("i64", ir.CONST_WINDOW))
        return self.b.apply("ptr", lambda t, n: f"getelementptr i8, ptr @data, {t} {n[0]}", low)

    def _generic(self, address: Val) -> Val:
        b = self.b
        result = self._plain(address)
        tag = b.op("lshr", address, integer("i64", 60))
        low = b.op("and", address, integer("i64", (1 << 60) - 1))
        if self._holds(ir.SHARED_WINDOW):
            shared = b.apply("ptr", lambda t, n: f"getelementptr i8, ptr %shm, {t} {n[0]}", low)
            result = b.choose(b.compare("icmp eq", tag, integer("i64", 1)), shared, result)
        if self.kernel.local:
            lanes = b.apply("ptr", lambda t, n: f"getelementptr i8, ptr %local, {t} {n[0]}", self.interleaved(low))
            result = b.choose(b.compare("icmp eq", tag, integer("i64", 2)), lanes, result)
        if self.kernel.data:
            result = b.choose(b.compare("icmp eq", tag, integer("i64", 4)), self._data(address), result)
        return result

    def interleaved(self, address: Val) -> Val:
        """Return where in the local memory of a vector each thread's byte lies."""
        b = self.b
        words = b.op("and", address, integer("i64", -4))
        place = b.op("or", b.op("mul", words, integer("i64", b.lanes)), b.op("and", address, integer("i64", 3)))
        return b.op("add", Val("v", b.vec(place), "i64"), Val("v", b.steps("i64", 4), "i64"))

    @property
    def interleaves(self) -> bool:
        """Whether words of different threads alternate."""
        return self.space == "local" or (self.space == "generic" and self.kernel.local > 0)

    @property
    def flat(self) -> bool:
        """Whether addresses are pointers as they are."""
        return self.space == "global" and not (self.kernel.data and self._holds(ir.CONST_WINDOW))

    def packed(self, size: int) -> bool:
        """Tell whether lanes may lie `size` bytes apart, for sure or by a test at run time."""
        if self.address.kind == "s":
            return self.address.stride == size
        return self.address.kind == "v" and self.hopeful()

    def whole(self, size: int) -> tuple[str, Val]:
        """Return the test that all lanes run and lie `size` bytes apart, and the address of the first one."""
        b = self.b
        full = b.emit(f"icmp eq i{b.lanes} {b.bits(self.mask)}, -1")
        if self.address.kind == "s":
            fits = self.fits()
            return (b.emit(f"and i1 {full}, {fits}") if fits else full), self.address._replace(kind="u", stride=0)
        near, first = self.near(size)
        return b.emit(f"and i1 {full}, {near}"), first

    def moved(self, step: int) -> Val:
        """Return the address some bytes further."""
        return self.b.op("add", self.address, integer("i64", step)) if step else self.address

    def hopeful(self) -> bool:
        """Tell whether it is worth a test that varying addresses happen to be contiguous."""
        return self.space in ("global", "shared") and sum(len(n.code) for n in self.region.flow.nodes) < LARGE

    @property
    def linear(self) -> Linear:
        """The address taken apart."""
        return linear(self.region.program, self.op.src[0], self.region.number)

    def near(self, size: int) -> tuple[str, Val]:
        """Return the test that all lanes that run lie `size` bytes apart, and where lane 0 lies then.

        Only the part of the address that varies is looked at, once in a block, and where a loop does not change it with the
        lanes that entered the loop: that test moves out of it.
        """
        region, b, whole = self.region, self.b, self.linear
        if size % whole.factor:
            return "false", self._rest(whole, integer("i32" if self.space == "shared" else "i64", 0))
        before = region.mask_before(whole.root)
        mask = before or self.mask
        key = whole.root, mask, size // whole.factor
        if key not in region.near:
            value = region.flat(whole.root, "i32" if self.space == "shared" or whole.sign else "i64")
            region.near[key] = self._contiguous(value, mask, size // whole.factor, b.first(mask) if before else "0")
        test, first = region.near[key]
        if whole.sign:  # the 32-bit value must not wrap from lane to lane
            reach = size // whole.factor * (b.lanes - 1)
            last = (1 << (31 if whole.sign == "s" else 32)) - 1 - reach
            below = b.emit(f"icmp {whole.sign}le i32 {first.name}, {last}")
            test, first = b.emit(f"and i1 {test}, {below}"), b.convert(f"{whole.sign.replace('u', 'z')}ext", first, "i64")
        return test, self._rest(whole, spmd_ops.multiply(b, first, integer(first.type, whole.factor)))

    def _rest(self, whole: Linear, start: Val) -> Val:
        """Return a place, counted from what all threads add, as 64 bits."""
        b = self.b
        for other, factor in whole.rest:
            part = self.region.take(other, start.type)
            start = b.op("add", start, b.op("mul", part, integer(start.type, factor)) if factor > 1 else part)
        start = b.op("add", start, integer(start.type, self.step)) if self.step else start
        return b.convert("sext", b.convert("trunc", start, "i32") if self.space == "shared" else start, "i64")

    def scattered(self, step: int) -> Val:
        """Return pointers to varying places: a common one and 32-bit distances, where that is what the kernel computes."""
        b, whole = self.b, self.linear
        if not self.flat or whole.sign != "s" or whole.factor not in (1, 2, 4, 8):
            return self.pointers(self.moved(step))
        base = b.op("add", self._rest(whole, integer("i64", 0)), integer("i64", step))
        lanes = b.convert("sext", self.region.flat(whole.root, "i32"), "i64")
        pointer = self.pointers(base).name
        kind = f"i{8 * whole.factor}"
        return Val("v", b.emit(f"getelementptr {kind}, ptr {pointer}, {b.vector('i64')} {b.vec(lanes)}"), "ptr")

    def _contiguous(self, value: Val, mask: str, size: int, lane: str) -> tuple[str, Val]:
        """Return the test that a lane runs, and all that run lie `size` apart, and the value of lane 0."""
        b, kind = self.b, value.type
        t = b.vector(kind)
        start = b.lane_of(value._replace(name=b.vec(value), kind="v"), lane)
        if lane != "0":
            index = lane if kind == "i64" else b.emit(f"trunc i64 {lane} to {kind}")
            start = b.emit(f"sub {kind} {start}, {b.emit(f'mul {kind} {index}, {size}')}")
        want = b.emit(f"add {t} {b.splat(kind, start)}, {b.steps(kind, size)}")
        apart = b.emit(f"icmp ne {t} {b.vec(value)}, {want}")
        bits = b.bits(b.emit(f"and {b.vector('i1')} {apart}, {mask}"))
        test = b.emit(f"icmp eq i{b.lanes} {bits}, 0")
        if lane == "0":
            test = b.emit(f"and i1 {test}, {b.emit(f'trunc i{b.lanes} {b.bits(mask)} to i1')}")
        return test, Val("u", start, kind)

    def places(self, address: Val) -> Val:
        """Return pointers into interleaved local memory, or wherever generic addresses lead."""
        if self.space == "generic":
            return self._generic(address)
        return self.b.apply("ptr", lambda t, n: f"getelementptr i8, ptr %local, {t} {n[0]}", self.interleaved(address))

    # Bounds.

    def _within_window(self, size: int) -> str:
        """Return the lanes whose access lies inside of the one window of a space; the first that does not is reported."""
        b, region = self.b, self.region
        window, length = {
            "shared": (ir.SHARED_WINDOW, self.kernel.shared + region.program.dynamic),
            "local": (ir.LOCAL_WINDOW, self.kernel.local),
            "const": (ir.CONST_WINDOW, len(self.kernel.data)),
        }[self.space]
        start = 0 if self.space != "const" else window
        lanes, t = Val("v", b.vec(self.exact()), "i64"), b.vector("i64")
        offset = b.emit(f"sub {t} {lanes.name}, {b.splat('i64', str(start))}")
        last = b.splat("i64", str(length - size))
        beyond = b.emit(f"icmp ugt {t} {offset}, {last}") if length >= size else b.splat("i1", "true")
        bad = b.emit(f"and {b.vector('i1')} {self.mask}, {beyond}")

        def tell() -> None:
            first = b.first(bad)
            report(region, "2", first, b.emit(f"add i64 {b.lane_of(Val('v', offset, 'i64'), first)}, {window}"), self.op.where)

        b.when(b.any(bad), tell)
        within = b.emit(f"xor {b.vector('i1')} {beyond}, {b.splat('i1', 'true')}")
        return b.emit(f"and {b.vector('i1')} {self.mask}, {within}")

    def _within(self, size: int) -> str:
        """Return the lanes whose access lies inside one array; the first that does not is reported."""
        b, region = self.b, self.region
        region.program.helpers["check"] = CHECK
        lanes = self.exact()
        lanes = Val("v", b.vec(lanes), "i64")
        good = b.scratch(f"i{b.lanes}")
        b.store(f"i{b.lanes}", b.bits(self.mask), good)

        def look(lane: str) -> None:
            address = b.lane_of(lanes, lane)
            inside = b.emit(f"call i1 @gewu.within(ptr %ctx, i64 {address}, i64 {size})")

            def drop() -> None:
                change = "trunc" if b.lanes < 64 else "zext"
                small = lane if b.lanes == 64 else b.emit(f"{change} i64 {lane} to i{b.lanes}")
                bit = b.emit(f"xor i{b.lanes} {b.emit(f'shl i{b.lanes} 1, {small}')}, -1")
                b.store(f"i{b.lanes}", b.emit(f"and i{b.lanes} {b.load(f'i{b.lanes}', good)}, {bit}"), good)
                report(region, "2", lane, address, self.op.where)

            b.when(b.emit(f"xor i1 {inside}, true"), drop)

        b.each(self.mask, look)
        return b.emit(f"bitcast i{b.lanes} {b.load(f'i{b.lanes}', good)} to {b.vector('i1')}")
