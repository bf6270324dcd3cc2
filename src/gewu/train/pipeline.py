"""The pipeline: layers dealt over stages, micro-batches following each other through them, one program for all.

With `interleave` = v each of pp stages holds v groups of layers ("chunks"). Chunk j of stage s is place j · pp + s of the chain,
so a micro-batch goes around the ring of stages v times (interleaved 1F1B; v = 1: plain 1F1B). In every tick of the schedule a
stage does at most one chunk forward and one backward, then passes tokens on and gradients back. Micro-batches go in rounds of pp:

    forward   of micro-batch r of round g in chunk j    tick                 s + g pp v + j pp + r
    backward                                            tick   pp v + pp - 2 - s + g pp v + (v - 1 - j) pp + r

so everything is used in the tick after it was made, and nothing waits but a chunk's input, from its forward to its backward tick:
pp (v + 1) - 3 inputs on the busiest stage, however many micro-batches there are. The backward pass makes the chunk again from its
input. A stage is idle (pp - 1) / (v · micro) of the time it works (Narayanan et al., arXiv:2104.04473, section 2.2), longer where
v > 1 and micro is no multiple of pp. The first place also embeds (again in its backward pass: its input are the token numbers);
the last makes the loss and has no forward pass of its own.

Stages idle by `lax.cond`: devices that differ in other axes than pp are on the same stage, so the collectives inside agree. The
ring of cp is not of that kind (XLA's CPU backend has all devices meet in a collective-permute): with cp > 1 an idle stage works
on numbers that nobody uses, in the time in which it would wait.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gewu.train import model
from gewu.train.config import ModelConfig
from gewu.train.mesh import Layout, index, shift
from gewu.train.spec import Specs

NONE = -1


def order(layers: int, at: Layout) -> Any:
    """Return the model's layer that each row of a stored stack holds, int64 (L,): stage after stage, chunk after chunk."""
    return np.arange(layers).reshape(at.interleave, at.pp, -1).swapaxes(0, 1).reshape(-1)


class Schedule:
    """What each stage does in each tick.

    Args:
        pp, micro, interleave: stages, micro-batches, chunks of a stage.

    Attributes:
        forward, backward: int32 (ticks, pp, 2), micro-batch and chunk or -1. The last place's forward entry only says when its
            input comes.
    """

    def __init__(self, pp: int, micro: int, interleave: int = 1) -> None:
        self.pp, self.micro, self.interleave = pp, micro, interleave
        v = interleave
        m, j, s = (grid.reshape(-1) for grid in np.meshgrid(np.arange(micro), np.arange(v), np.arange(pp), indexing="ij"))
        begun = m // pp * pp * v + m % pp
        forward, backward = s + begun + j * pp, pp * v + pp - 2 - s + begun + (v - 1 - j) * pp
        self.ticks = int(backward.max()) + 1
        self.forward = np.full((self.ticks, pp, 2), NONE, np.int32)
        self.backward = np.full((self.ticks, pp, 2), NONE, np.int32)
        self.forward[forward, s] = np.stack([m, j], -1)
        self.backward[backward, s] = np.stack([m, j], -1)

    @cached_property
    def slots(self) -> tuple[Any, Any, int]:
        """Where a stage keeps the input that comes in a tick, and finds that of its backward pass: int32 (ticks, pp) twice (-1
        for none), and how many places that takes on the busiest stage.
        """
        write, read = (np.full((self.ticks, self.pp), NONE, np.int32) for _ in range(2))
        most = 0
        for stage in range(self.pp):
            free: list[int] = []
            held: dict[tuple[int, int], int] = {}
            for tick in range(self.ticks):
                micro, chunk = self.forward[tick, stage].tolist()
                if micro != NONE and (stage or chunk):  # the first place embeds again
                    slot = free.pop() if free else len(held)
                    write[tick, stage] = held[micro, chunk] = slot
                if (key := tuple(self.backward[tick, stage].tolist())) in held:
                    read[tick, stage] = slot = held.pop(key)
                    free.append(slot)
                most = max(most, len(held) + len(free))
        return write, read, most

    @property
    def bubble(self) -> float:
        """Idle time over working time of a stage, a backward pass and its forward pass of any cost."""
        busy = [(table[:, :, 0] != NONE).any(1).sum() for table in (self.forward, self.backward)]
        return float(sum(busy) / (2 * self.micro * self.interleave) - 1)


class Parts(NamedTuple):
    """What the stages compute, on this device's pieces; `value` is a contribution to what is minimised, `sums` a dict of numbers.

    Attributes:
        first: (params outside layers, micro-batch) -> x.
        chunk: (stack of layers, x, micro-batch) -> (x, value), sums.
        last: (params outside layers, x, micro-batch) -> value, sums.
    """

    first: Callable[..., Any]
    chunk: Callable[..., Any]
    last: Callable[..., Any]


def gradients(params: Any, batch: Any, parts: Parts, at: Layout) -> tuple[Any, Any]:
    """Return sums and gradients over all micro-batches, manual mode.

    Args:
        params: {"layers": stacks (L / pp, ...), others}.
        batch: arrays (micro, ...).
        parts: functions of one micro-batch.

    Returns:
        Sums of this stage's chunks and (on the last stage) of the loss, 0 where it has none; gradients like params, of which
        others are contributions that are still to be summed over pp.
    """
    plan = Schedule(at.pp, at.micro, at.interleave)
    write, read, depth = plan.slots
    stage = index(at, "pp")
    layers = jax.tree.map(lambda leaf: leaf.reshape(at.interleave, -1, *leaf.shape[1:]), params["layers"])
    outside = {name: leaf for name, leaf in params.items() if name != "layers"}
    begin = partial(_start, parts, layers, outside, batch, at)
    x, sums = jax.eval_shape(begin)
    empty = jnp.zeros(x.shape, x.dtype)
    zeros = partial(jax.tree.map, lambda leaf: jnp.zeros(leaf.shape, leaf.dtype))
    mine = {"forward": plan.forward, "backward": plan.backward, "write": write, "read": read}
    mine = {name: lax.dynamic_index_in_dim(jnp.asarray(table), stage, 1, False) for name, table in mine.items()}

    def tick(carry: Any, now: Any) -> Any:
        done, kept, x, g = carry
        slot = jnp.where(now["write"] == NONE, depth, now["write"])  # row `depth` takes what nobody needs
        kept = lax.dynamic_update_index_in_dim(kept, x, slot, 0)
        (m, j), (mb, jb) = now["forward"], now["backward"]
        ahead = (m != NONE) & ~((stage == at.pp - 1) & (j == at.interleave - 1))
        go = partial(_forward, parts, layers, outside, batch, stage, m, j)
        y = lax.cond(ahead, go, lambda x: x, x) if at.cp == 1 else go(x)
        old = lax.dynamic_index_in_dim(kept, jnp.maximum(now["read"], 0), 0, False)
        back = partial(_backward, parts, layers, outside, batch, at, stage, mb, jb)
        done, g = lax.cond(mb != NONE, back, lambda done, x, g: (done, g), done, old, g) if at.cp == 1 else back(done, old, g)
        return (done, kept, shift(y, at, "pp"), shift(g, at, "pp", -1)), None

    done = {"layers": zeros(layers), "outside": zeros(outside), "sums": zeros(sums)}
    kept = jnp.zeros((depth + 1, *x.shape), x.dtype)
    done = lax.scan(tick, (done, kept, empty, empty), mine)[0][0]
    grads = jax.tree.map(lambda leaf, whole: leaf.reshape(whole.shape), done["layers"], params["layers"])
    return done["sums"], done["outside"] | {"layers": grads}


def _pick(tree: Any, number: Any) -> Any:
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, number, 0, False), tree)


def _add(sums: Any, more: Any) -> Any:
    return jax.tree.map(jnp.add, sums, more)


def _start(parts: Parts, layers: Any, outside: Any, batch: Any, at: Layout) -> tuple[Any, Any]:
    """Return a first input and sums of both kinds: only their shapes are asked for."""
    part = _pick(batch, 0)
    x = parts.first(outside, part)
    (y, _), sums = parts.chunk(_pick(layers, 0), x, part)
    return x, {"chunk": sums, "last": parts.last(outside, y, part)[1]}


def _forward(parts: Parts, layers: Any, outside: Any, batch: Any, stage: Any, m: Any, j: Any, x: Any) -> Any:
    part = _pick(batch, m)
    x = lax.cond((stage == 0) & (j == 0), lambda x: parts.first(outside, part), lambda x: x, x)
    return parts.chunk(_pick(layers, j), x, part)[0][0]


def _backward(
    parts: Parts, layers: Any, outside: Any, batch: Any, at: Layout, stage: Any, m: Any, j: Any, done: Any, x: Any, g: Any
) -> tuple[Any, Any]:
    """Return what is added up, with this chunk's share, and the gradient of its input from that of its output."""
    part, one = _pick(batch, m), jnp.float32(1)
    start, end = (stage == 0) & (j == 0), (stage == at.pp - 1) & (j == at.interleave - 1)
    x = lax.cond(start, lambda x: parts.first(outside, part), lambda x: x, x)
    (y, _), pull, sums = jax.vjp(lambda w, x: parts.chunk(w, x, part), _pick(layers, j), x, has_aux=True)

    def finish(out: Any, total: Any, g: Any) -> Any:
        _, pull, sums = jax.vjp(lambda w, y: parts.last(w, y, part), outside, y, has_aux=True)
        grads, g = pull(one)
        return _add(out, grads), _add(total, sums), g

    out, total, g = lax.cond(end, finish, lambda *same: same, done["outside"], done["sums"]["last"], g)
    grads, g = pull((g, one))
    if at.cp > 1:  # nothing of an idle stage counts
        grads, sums = jax.tree.map(lambda new: jnp.where(m == NONE, 0, new), (grads, sums))
    layers = jax.tree.map(lambda old, new: old.at[j].add(new), done["layers"], grads)
    embed = lambda out: _add(out, jax.vjp(lambda w: parts.first(w, part), outside)[1](g)[0])  # noqa: E731
    out = lax.cond(start, embed, lambda out: out, out)
    return {"layers": layers, "outside": out, "sums": {"chunk": _add(done["sums"]["chunk"], sums), "last": total}}, g


def train_gradients(
    params: Any, batch: Any, number: Any, tree: Specs, scale: Any, c: ModelConfig, at: Layout, p: Any
) -> tuple[Any, Any]:
    """Return contributions to what is reported, and gradients of loss · scale, of a model over its micro-batches.

    Args:
        params: this device's pieces.
        batch: arrays (micro, rows of a micro-batch, ...).
        number: of `model.counts`, for the whole step.
        tree: specs of params.
        scale: the loss is multiplied by it.
    """

    def ready(outside: Any, *names: str) -> Any:
        some = {name: outside[name] for name in names if name in outside}
        return model.outside(some, {name: tree[name] for name in some}, at, p)

    def first(outside: Any, part: Any) -> Any:
        return model.embed(ready(outside, "embed", "positions", "inputs"), part, c, at, p)[0]

    def chunk(layers: Any, x: Any, part: Any) -> Any:
        x, aux = model.stack(layers, tree["layers"], x, model.place_tokens(part, c, at)[0], c, at, p)
        balance = aux["aux"] / (c.layers * at.micro)
        return (x, balance * scale), {"aux": balance, "dropped": aux["dropped"]}

    def last(outside: Any, x: Any, part: Any) -> Any:
        names = [name for name in outside if name not in ("positions", "inputs") and not (name == "embed" and not c.tied)]
        value, sums = model.head_loss(ready(outside, *names), x, part, number, c, at, p)
        return value * scale, sums

    sums, grads = gradients(params, batch, Parts(first, chunk, last), at)
    return sums["chunk"] | sums["last"], grads
