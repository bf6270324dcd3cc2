"""Lifting: from a kernel to what it computes.

    launches -> traces -> equal values merged -> one formula for all outputs -> index maps -> sizes -> Program

The kernel is run on a few blocks with small sizes (`plan`), integers as they are and floats as symbols (`interp.trace`).  Each
element written is then an expression of array elements, a tree of thousands of nodes in which tiles, shared memory, shuffles
and unrolled loops have left no mark but order.  `algebra` finds out which nodes are equal, `template` finds the formula that
all outputs share, `affine` the index maps, `symbolise` the sizes, by comparing three runs.

The result holds for the launches that `Lifted.covers` accepts, and is a conjecture until `verify` has compared it with the
interpreter at other sizes.  Not lifted: control flow, shared addresses and write addresses that depend on data; arrays that are
read at other places than they are written; formulas whose indices are not sums of digits.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gewu.core.errors import InputError
from gewu.ops import tensor
from gewu.ops.affine import Fit, Leaf, leaves_of
from gewu.ops.algebra import Arena, Ids
from gewu.ops.digits import boxes, coordinates, partial_digits_of
from gewu.ops.formula import formula
from gewu.ops.interp import trace
from gewu.ops.ir import WIDTH, Kernel
from gewu.ops.plan import AXES, Plan, integers, plans
from gewu.ops.recognise import recognise
from gewu.ops.rename import renamed
from gewu.ops.rescale import Rescaling
from gewu.ops.sizes import Size
from gewu.ops.symbolise import Sizes, merge
from gewu.ops.template import Lanes, NotLifted, Term, Unifier
from gewu.ops.tensor import Assign, Program
from gewu.ops.trace import DataDependent, SymbolicBuffer, Trace

__all__ = ["Lifted", "NotLifted", "lift", "readings"]

MOST_GROUPS = 16
MOST_BOXES = 8
STEPS = 20_000
BUDGET_S = 2.5
Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Lifted:
    """A kernel as a program over whole arrays, and the launches it stands for.

    Attributes:
        program: what it computes.
        pinned: integer arguments that must have these values.
        rule: how the grid follows from the sizes; a name `gx` alone means that any will do.
        block: the block it was found with.
        types: dtypes of the array arguments by number.
    """

    program: Program
    pinned: Mapping[int, int]
    rule: tuple[Size, Size, Size]
    block: Shape
    types: Mapping[int, str]

    @property
    def formula(self) -> str:
        """The program in readable notation."""
        return formula(self.program)

    def launch(self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any]) -> dict[str, int]:
        """Return the integers of a launch by name."""
        named = {f"p{i}": v for i, v in integers(args).items()}
        return (
            named | {f"g{a}": int(g) for a, g in zip(AXES, grid, strict=True)} | dict(zip(("bx", "by", "bz"), block, strict=True))
        )

    def grid(self, args: Sequence[Any], like: Sequence[int]) -> Shape:
        """Return the grid that the rule gives for arguments; where any will do, that of `like`."""
        launch = self.launch(like, self.block, args)
        x, y, z = (rule.value(launch) for rule in self.rule)
        return x, y, z

    def covers(self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any]) -> bool:
        """Tell whether a launch is one that the program stands for."""
        values = integers(args)
        if tuple(block) != self.block or any(values.get(i) != v for i, v in self.pinned.items()):
            return False
        if any(v <= 0 for i, v in values.items() if i not in self.pinned):
            return False
        if any(np.asarray(args[i]).dtype.name != name for i, name in self.types.items()):
            return False
        return self.grid(args, grid) == tuple(grid)


def lift(
    kernel: Kernel, grid: Shape, block: Shape, args: Sequence[Any], *, shared: int = 0, budget_s: float = BUDGET_S
) -> Lifted:
    """Find the program that a kernel computes: the first of `readings`.

    Raises:
        NotLifted: says why not.
    """
    return next(readings(kernel, grid, block, args, shared=shared, budget_s=budget_s))


def readings(
    kernel: Kernel, grid: Shape, block: Shape, args: Sequence[Any], *, shared: int = 0, budget_s: float = BUDGET_S
) -> Iterator[Lifted]:
    """Yield programs that a kernel may compute, likeliest first: ask for another one when one is refuted.

    Args:
        kernel: in the common language.
        grid, block: of a real launch.
        args: of that launch: arrays, and NumPy scalars of the size of their parameters.
        shared: bytes of dynamic shared memory.
        budget_s: give up after so many seconds of processor time spent here.

    Raises:
        NotLifted: there is none (any more); says why not.
    """
    left, reason = budget_s, None
    reads = any(i.op == "ld" and i.mods[0] in ("global", "generic") for b in kernel.blocks for i in b.code)
    types = {i: a.dtype.name for i, a in enumerate(args) if isinstance(a, np.ndarray)}
    for plan in plans(kernel, grid, block, args):
        begin = time.thread_time()
        try:
            program = _program(kernel, plan, block, args, shared, begin + left)
        except DataDependent as error:
            raise NotLifted(error.message, key=error.key, value=error.value) from error
        except InputError as error:
            reason, program = reason or error, None
        left -= time.thread_time() - begin
        if program is not None and (not reads or any(loads(a.value) for a in program.assigns)):  # else no loop was entered
            yield Lifted(program, plan.pinned, plan.grid, block, types)
        if left <= 0:
            break
    raise reason if isinstance(reason, NotLifted) else NotLifted(str(reason or "no other reading of the launch fits"))


def _program(kernel: Kernel, plan: Plan, block: Shape, args: Sequence[Any], shared: int, deadline: float) -> Program:
    programs = []
    for sizes in plan.sizes:
        run = [_argument(i, a, sizes) for i, a in enumerate(args)]
        x, y, z = (sizes[f"g{axis}"] for axis in AXES)
        begin = time.thread_time()
        found = trace(kernel, (x, y, z), block, run, shared=shared, limit=STEPS, deadline=deadline)
        programs.append(concrete(kernel, found, args, deadline))
        deadline += time.thread_time() - begin  # a run that shows a program is worth its time
    program = renamed(merge(programs, Sizes(plan.sizes, plan.names, plan.passes)))
    _check_in_place(program)
    return program


def _argument(number: int, value: Any, sizes: Mapping[str, int]) -> Any:
    if isinstance(value, np.ndarray):
        return SymbolicBuffer(value.dtype)
    if isinstance(value, np.integer):
        return value.dtype.type(sizes.get(f"p{number}", int(value)))
    return value


def concrete(kernel: Kernel, found: Trace, args: Sequence[Any], deadline: float = np.inf) -> Program:
    """Return the program that one trace shows, for its own sizes.

    Raises:
        NotLifted: the trace shows no program.
    """
    if found.hazards:
        raise NotLifted(found.hazards[0])
    if not found.stores:
        raise NotLifted("nothing is written")
    arena = Arena(found, [i for i, a in enumerate(args) if isinstance(a, np.ndarray)])
    arena.deadline = deadline
    arena.spread()
    recognise(arena)
    arena.evaluate()
    rescaling = Rescaling(arena)
    elements = {i: _element(a, a.dtype.itemsize) for i, a in enumerate(args) if isinstance(a, np.ndarray)}
    assigns: list[Assign] = []
    for (buffer, size), (offsets, nodes, _) in sorted(found.stores.items()):
        outputs = _Outputs(arena, rescaling, elements, buffer, _element(args[buffer], size), offsets, arena.moved[nodes])
        assigns += outputs.assigns(len(assigns))
    return Program(kernel.name, tuple(assigns))


@dataclass(frozen=True, slots=True)
class _Outputs:
    """What one array gets: byte offsets in order, and the node that each ended up with."""

    arena: Arena
    rescaling: Rescaling
    elements: Mapping[int, str]
    buffer: int
    type: str
    places: Ids
    nodes: Ids

    def assigns(self, start: int) -> list[Assign]:
        """Return one assignment, or several, each of outputs of one shape."""
        everything = np.arange(len(self.nodes))
        try:
            return [self._fit(everything, self._root(everything), start)]
        except NotLifted as error:
            try:
                return self._apart(start)
            except NotLifted:
                raise error from None

    def _root(self, group: Ids) -> Term:
        return Unifier(self.arena, self.rescaling, self.places[group]).unify(self.nodes[group], Lanes((len(group),)), self.type)

    def _fit(self, group: Ids, root: Term, number: int, box: Sequence[int] = ()) -> Assign:
        return Fit(number, self.buffer, self.type, self.places[group], root, self.elements, box).assign()

    def _apart(self, start: int) -> list[Assign]:
        """Return assignments by shape; one value around a picture, say, is no box, but four of them."""
        groups = _groups(self.arena, self.nodes)
        if not groups:
            raise NotLifted("all outputs are of one shape")
        roots = [self._root(group) for group in groups]
        leaves = [leaves_of(root) for root in roots]
        telling = max(range(len(groups)), key=lambda k: (bool(leaves[k]), len(groups[k])))
        found: list[Assign] = []
        for group, root, below in zip(groups, roots, leaves, strict=True):
            try:
                pieces = list(self._boxes(group, groups[telling], leaves[telling])) if leaves[telling] and not below else []
            except NotLifted:
                pieces = []
            for lanes, box in pieces or [(group, ())]:
                found.append(self._fit(lanes, root, start + len(found), box))
        return found

    def _boxes(self, group: Ids, telling: Ids, leaves: Sequence[Leaf]) -> Iterator[tuple[Ids, tuple[int, ...]]]:
        """Yield the boxes of a group, with their extents, in the digits of all outputs: those that another group tells."""
        count = len(self.nodes)
        columns, known = [self.places], [np.ones(count, np.bool_)]
        for leaf in leaves:
            if leaf.axes or not leaf.valid.all():
                raise NotLifted("sums in pieces")
            columns.append(np.zeros(count, np.int64))
            columns[-1][telling] = leaf.term.values
            known.append(np.isin(np.arange(count), telling))
        digits = partial_digits_of(np.stack(columns, axis=1), np.stack(known, axis=1))
        if digits is None:
            raise NotLifted("outputs of one shape that are no box")
        extents, _ = coordinates(digits, count)
        number = np.arange(count).reshape(extents)
        for made, box in enumerate(boxes(np.isin(number, group))):
            if made == MOST_BOXES:
                raise NotLifted("outputs in too many pieces")
            lanes = number[box]
            yield lanes.reshape(-1), lanes.shape


def _element(array: Any, size: int) -> str:
    names = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16"}
    name = names.get(array.dtype.name, "")
    return name if name and array.dtype.itemsize == size else f"b{8 * size}"


def _groups(arena: Arena, nodes: Any) -> list[Any]:
    """Return the outputs of one shape each, by their first one; none if all have one shape, or there are too many."""
    _, first, label = np.unique(arena.shape[arena.canonical[nodes]], return_index=True, return_inverse=True)
    label = np.reshape(label, -1)
    if len(first) > MOST_GROUPS or len(first) == 1:
        return []
    return [np.flatnonzero(label == number) for number in np.argsort(first)]


def _check_in_place(program: Program) -> None:
    """Refuse programs that read an array at other places than they write it."""
    written = {assign.buffer: assign for assign in program.assigns}
    for assign in program.assigns:
        for load in loads(assign.value):
            target = written.get(load.buffer)
            if target is None:
                continue
            same = isinstance(load, tensor.Load) and not load.where and WIDTH[load.type] == WIDTH[target.type]
            if not same or load.index != _renamed(target, assign):  # type: ignore[union-attr]
                raise NotLifted("an array is written and also read at other places", value=f"argument {load.buffer}")


def _renamed(target: Assign, assign: Assign) -> Any:
    """Return where `target` writes, in the loop variables of `assign`."""
    if [s for _, s in target.axes] != [s for _, s in assign.axes]:
        return None
    names = {a: b for (a, _), (b, _) in zip(target.axes, assign.axes, strict=True)}
    return type(target.index)(tuple((names[n], s) for n, s in target.index.terms), target.index.offset)


def loads(expression: tensor.Expression) -> list[tensor.Load | tensor.Gather]:
    """Return all array elements that an expression reads, each once."""
    found: list[tensor.Load | tensor.Gather] = []
    stack, seen = [expression], set()
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, tensor.Load | tensor.Gather):
            found.append(node)
        if isinstance(node, tensor.Gather):
            stack.append(node.place)
        stack.extend(getattr(node, "args", ()))
        if isinstance(node, tensor.Reduce):
            stack.append(node.body)
    return found
