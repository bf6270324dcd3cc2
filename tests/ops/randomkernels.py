"""Random kernels with nested branches and loops, guards, barriers, atomics and local memory: whatever runs them must agree.

`random_kernel(seed, threads)` works on eight 32-bit registers. Its arguments: 256 words that are read, 16 words for each thread
that are written, 4 words and 1 word that atomics change (one kind for each word, so that order does not matter), one number.
Barriers stand only where all threads of a block come together; kernels without barriers have threads that leave early instead.
"""

import random

from gewu.ops import ir

REGISTERS = 8
EDGES = (0, 1, 2, 3, 7, 31, 255, 0xFFFFFFFF, 0x80000000)
ATOMS = ("add", "xor", "max", "or")


def random_kernel(seed: int, threads: int) -> ir.Kernel:
    """Return a kernel for blocks of so many threads; even seeds have barriers."""
    return _Writer(seed, threads).kernel()


class _Writer:
    def __init__(self, seed: int, threads: int) -> None:
        self.random = random.Random(seed)
        self.barriers = seed % 2 == 0
        self.slots = 1 << (threads.bit_length() - 1)
        self.shared = 4 * threads
        self.blocks: list[tuple[list[ir.Instruction], list[int]]] = []
        self.widths = {f"r{i}": "b32" for i in range(REGISTERS)}
        self.depth = self.predicates = 0
        self.exits: list[tuple[int, bool]] = []
        self.now = self.block()

    def block(self) -> int:
        self.blocks.append(([], []))
        return len(self.blocks) - 1

    def add(self, line: str, guard: tuple[str, bool] | None = None) -> None:
        """Append `op.type destinations = sources | modifiers`."""
        body, _, mods = line.partition("|")
        left, equals, right = body.partition("=")
        op, _, kind = left.split()[0].partition(".")
        names = left.split()[1:]
        dst, sources = (tuple(names), right.split()) if equals else ((), names)
        src = tuple(int(s, 0) if s[0].isdigit() else s for s in sources)
        for name in dst:
            self.widths.setdefault(name, {"p": "pred", "d": "b64", "r": "b32"}[name[0]])
        where = f"{self.now}:{len(self.blocks[self.now][0])}"
        self.blocks[self.now][0].append(ir.Instruction(op, kind, dst, src, tuple(mods.split()), guard, where))

    def go(self, *targets: int) -> None:
        self.blocks[self.now][1][:] = targets

    def register(self) -> str:
        return f"r{self.random.randrange(REGISTERS)}"

    def operand(self) -> str:
        return (
            self.register() if self.random.random() < 0.7 else str(self.random.choice((*EDGES, self.random.randrange(1 << 32))))
        )

    def predicate(self, uniform: bool = False) -> str:
        name = f"p{self.predicates % 6}"
        self.predicates += 1
        pair = f"{self.random.choice(('ru', 'rb', 'rl0', 'rl1'))} {self.random.randrange(5)}"
        pair = pair if uniform else f"{self.register()} {self.operand()}"
        test, sign = self.random.choice(("lt", "ge", "eq", "ne", "gt", "le")), self.random.choice("su")
        self.add(f"setp.{sign}32 {name} = {pair} | {test}")
        return name

    def guard(self) -> tuple[str, bool] | None:
        if self.random.random() < 0.8:
            return None
        return self.predicate(self.random.random() < 0.3), self.random.random() < 0.5

    def arithmetic(self) -> None:
        guard, d, sign = self.guard(), self.register(), self.random.choice("su")
        op = self.random.choice(("add", "sub", "mul", "and", "or", "xor", "min", "max", "shl", "shr", "mov", "select"))
        if op == "mov":
            line = f"mov.b32 {d} = {self.operand()}"
        elif op == "select":
            line = f"select.b32 {d} = {self.operand()} {self.operand()} {self.predicate()}"
        elif op in ("shl", "shr"):
            kind = "b32" if op == "shl" else f"{sign}32"
            line = f"{op}.{kind} {d} = {self.operand()} {self.random.choice(('1', '2', '5', '16', self.register()))}"
        else:
            kind = "b32" if op in ("and", "or", "xor") else f"{sign}32"
            line = f"{op}.{kind} {d} = {self.operand()} {self.operand()}"
        self.add(line, guard)

    def load(self) -> None:
        guard = self.guard()
        if self.random.random() < 0.6:
            self.add(f"and.b32 rt = {self.register()} 255")
            self.add(f"mulwide.{self.random.choice('su')}32 d1 = rt 4")
        else:  # consecutive words, for threads where the index did not wrap
            self.add(f"add.s32 rt = rtid {self.random.choice((0, 1, 5, 0xFFFFFFFE))}")
            self.add("setp.u32 p7 = rt 200 | lt")
            self.add("mulwide.u32 d1 = rt 4")
            guard = ("p7", True)
        self.add("add.s64 d2 = dx d1")
        self.add(f"ld.b32 {self.register()} = d2 0 | global", guard)

    def store(self) -> None:
        guard, kind = self.guard(), self.random.random()
        if kind < 0.5:
            self.add(f"st.b32 dy {4 * self.random.randrange(8)} {self.operand()} | global", guard)
        elif kind < 0.8:
            self.add(f"and.b32 rt = {self.register()} 7")
            self.add("shl.b32 rt = rt 2")
            reads = self.random.random() < 0.5
            self.add(f"ld.b32 {self.register()} = rt 0 | local" if reads else f"st.b32 rt 0 {self.operand()} | local", guard)
        elif kind < 0.9:
            place = self.random.randrange(4)
            self.add(f"atom.u32 dz {4 * place} {self.operand()} | global {ATOMS[place]}", guard)
        else:
            self.add(f"atom.u32 dw 0 {self.random.choice(('1', self.register()))} | global add", guard)

    def exchange(self) -> None:
        """Read what another thread of the block wrote."""
        self.add("shl.b32 rt = rtid 2")
        self.add("bar")
        self.add(f"st.b32 rt 0 {self.register()} | shared")
        self.add("bar")
        self.add(f"add.s32 rt = rt {self.random.choice((4, 8, 124))}")
        self.add(f"and.b32 rt = rt {4 * self.slots - 1}")
        self.add(f"ld.b32 {self.register()} = rt 0 | shared")
        self.add("bar")

    def branch(self, together: bool) -> None:
        uniform = self.random.random() < 0.4
        predicate, head = self.predicate(uniform), self.now
        self.add("bra.b32", (predicate, self.random.random() < 0.5))
        self.depth += 1
        yes = self.now = self.block()
        self.body(self.random.randrange(1, 4), together and uniform)
        end, no = self.now, self.block()
        join = no
        if self.random.random() < 0.6:
            self.now = no
            self.body(self.random.randrange(1, 4), together and uniform)
            join = self.block()
            self.go(join)
        self.blocks[head][1][:] = [yes, no]
        self.now = end
        self.go(join)
        self.now = join
        self.depth -= 1

    def loop(self, together: bool) -> None:
        uniform = self.random.random() < 0.5
        count = f"rl{self.depth}" if uniform and self.depth < 2 else f"rv{self.depth}"
        limit = f"rm{self.depth}"
        self.add(f"mov.b32 {count} = 0")
        self.add(f"mov.b32 {limit} = {self.random.randrange(1, 5)}" if uniform else f"and.b32 {limit} = {self.register()} 7")
        self.depth += 1
        head, out = self.block(), self.block()
        self.go(head)
        self.now = head
        if self.random.random() < 0.4:
            self.add(f"setp.s32 p6 = {count} {limit} | ge")
            self.leave(("p6", True), out)
        self.exits.append((out, uniform))
        self.body(self.random.randrange(1, 4), together and uniform)
        self.exits.pop()
        self.add(f"add.s32 {count} = {count} 1")
        self.add(f"setp.s32 p6 = {count} {limit} | lt")
        self.add("bra.b32", ("p6", True))
        self.go(head, out)
        self.now = out
        self.depth -= 1

    def leave(self, guard: tuple[str, bool], out: int) -> None:
        self.add("bra.b32", guard)
        stay = self.block()
        self.go(out, stay)
        self.now = stay

    def body(self, count: int, together: bool) -> None:
        """Write statements; `together`: all threads of the block come here."""
        for _ in range(count):
            kind = self.random.random()
            if self.depth > 3 or kind < 0.35:
                self.arithmetic()
            elif kind < 0.5:
                self.load()
            elif kind < 0.62:
                self.store()
            elif kind < 0.8:
                self.branch(together)
            elif kind < 0.93:
                self.loop(together)
            elif kind < 0.96 and self.barriers and together:
                self.exchange()
            elif kind < 0.975 and not self.barriers and self.depth:
                self.add("exit.b32", (self.predicate(), self.random.random() < 0.5))
                stay = self.block()
                self.go(stay)
                self.now = stay
            elif self.exits:
                out, uniform = self.exits[-1]
                self.leave((self.predicate(uniform and self.barriers), self.random.random() < 0.5), out)

    def kernel(self) -> ir.Kernel:
        for name, special in (("rtid", "tid.x"), ("rb", "ctaid.x"), ("rn", "ntid.x")):
            self.add(f"special.b32 {name} = | {special}")
        self.add("mul.s32 rg = rb rn")
        self.add("add.s32 rg = rg rtid")
        for name, offset in (("dx", 0), ("dy", 8), ("dz", 16), ("dw", 24)):
            self.add(f"param.b64 {name} = {offset}")
        self.add("param.b32 ru = 32")
        self.add("mulwide.s32 d1 = rg 64")
        self.add("add.s64 dy = dy d1")
        for name in ("rl0", "rl1"):
            self.add(f"mov.b32 {name} = 0")
        for i in range(REGISTERS):
            self.add(f"mov.b32 r{i} = {self.random.choice(('rg', 'rtid', 'rb', 'ru', '3', str(i)))}")
        self.load()
        for i in range(8):
            self.add(f"st.b32 {4 * i} 0 0 | local")
        self.body(self.random.randrange(4, 9), True)
        for i in range(REGISTERS):
            self.add(f"st.b32 dy {32 + 4 * i} r{i} | global")
        for i in range(2):
            self.add(f"ld.b32 rt = {4 * i} 0 | local")
            self.add(f"st.b32 dy {4 * i} rt | global")
        self.add("exit.b32")
        parameters = (*(ir.Parameter(8 * i, 8) for i in range(4)), ir.Parameter(32, 4))
        blocks = [ir.Block(code, tuple(following)) for code, following in self.blocks]
        kernel = ir.Kernel("random", parameters, blocks, self.widths, shared=self.shared, local=32)
        ir.check(kernel)
        return kernel
