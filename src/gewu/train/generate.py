"""Text from a model, token by token, with the keys and values of what was read kept.

Prompts of unequal length are read side by side in one pass, filled up at their ends; from then on every row stands at its own
place. A cache has room for S tokens of each row: slot s holds the last token whose place is s modulo S. With a sliding window S
is the window, so a new token takes the slot of the one that nobody sees any more. Shapes are static: two programs, one that
reads prompts and one that makes a token, serve everything of one size.

    p ~ softmax(penalised(logits) / temperature), cut to the top_k largest, then to the fewest that together reach top_p,
        then to those of at least min_p times the largest; temperature 0 takes the largest logit

The draw of token n of row r depends on (seed, r, n) only. Any layout without context parallelism and pipeline generates: rows lie
over dp, fsdp and ep, heads of the cache over tp. Experts drop nothing here, whatever their capacity in training.

Reference: Holtzman et al., arXiv:1904.09751 (top_p); Keskar et al., arXiv:1909.05858 (repetition).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from gewu.core.errors import ConvergenceError, InputError
from gewu.train import model
from gewu.train.attention import attention
from gewu.train.layers import gathered, norm
from gewu.train.mesh import ROWS, gather, index
from gewu.train.spec import tree_map

ROUND: Final = 32
"""Widths of prompts and caches are multiples of it, so that few programs are compiled."""


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen.

    Args:
        temperature: 0 takes the likeliest.
        top_k: only the k likeliest; 0 for all.
        top_p: only the fewest that together have this probability; 1 for all.
        min_p: only those of at least this share of the largest probability.
        repetition: > 1 makes tokens of the row less likely: logits are divided by it, negative ones multiplied.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition: float = 1.0

    def __post_init__(self) -> None:
        for key, good, allowed in (
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
            ("repetition", self.repetition > 0, "above 0"),
        ):
            if not good:
                raise InputError("is not possible", key=key, value=getattr(self, key), allowed=allowed)


class Cache(NamedTuple):
    """What a device keeps of its rows b.

    Attributes:
        keys, values: (b, S, K, C) of each layer, a stack or a list of them.
        place: int32 (b,): where the next token will stand.
        seen: bool (b, V): tokens of the row; (b, 0) where nobody asks.
    """

    keys: Any
    values: Any
    place: Any
    seen: Any


def candidates(logits: Any, how: Sampling) -> tuple[Any, Any]:
    """Return the tokens that may be drawn, with their log-probabilities: those cut off have -inf.

    Args:
        logits: float32 (b, V).

    Returns:
        log-probabilities float32 (b, n), tokens int32 (b, n).
    """
    V = logits.shape[-1]
    logits = logits / how.temperature
    if 0 < how.top_k < V or how.top_p < 1:
        logits, tokens = lax.top_k(logits, min(how.top_k or V, V))
    else:
        tokens = jnp.broadcast_to(jnp.arange(V, dtype=jnp.int32), logits.shape)
    p = jax.nn.softmax(logits)
    keep = p >= how.min_p * p.max(-1, keepdims=True)
    if how.top_p < 1:  # sorted: what stands before a token must not be enough already
        keep = keep & (jnp.cumsum(p, -1) - p < how.top_p)
    return jax.nn.log_softmax(jnp.where(keep, logits, -jnp.inf)), tokens


def choose(logits: Any, seen: Any, how: Sampling, seed: Any, rows: Any, number: Any) -> Any:
    """Return a token for each row, int32 (b,).

    Args:
        logits: float32 (b, V).
        seen: bool (b, V) tokens of the row, used with a repetition penalty.
        seed: uint32.
        rows: int32 (b,) numbers of the rows.
        number: int32, which token of the row it will be.
    """
    if how.repetition != 1:
        less = jnp.where(logits > 0, logits / how.repetition, logits * how.repetition)
        logits = jnp.where(seen, less, logits)
    if how.temperature == 0:
        return logits.argmax(-1).astype(jnp.int32)
    logp, tokens = candidates(logits, how)
    key = jax.random.fold_in(jax.random.key(seed), number)
    drawn = jax.vmap(lambda row, logp: jax.random.categorical(jax.random.fold_in(key, row), logp))(rows, logp)
    return jnp.take_along_axis(tokens, drawn[:, None], 1)[:, 0].astype(jnp.int32)


def _layers(params: Any, tree: Any, x: Any, kept: Any, one: Any) -> tuple[Any, Any]:
    """Run `one(weights, params, x, keys and values) -> (x, keys and values)` through a stack or a list of layers."""
    if isinstance(params, list):
        found = []
        for number, (w, spec) in enumerate(zip(params, tree, strict=True)):
            x, now = one(w, spec, x, None if kept is None else (kept[0][number], kept[1][number]))
            found.append(now)
        return x, tuple([pair[part] for pair in found] for part in (0, 1))
    single = {name: param.one() for name, param in tree.items()}
    return lax.scan(lambda x, layer: one(layer[0], single, x, layer[1]), x, (params, kept))


class _Program:
    """The two programs of a trainer, in manual mode: `first` reads prompts, `following` reads one token of each row."""

    def __init__(self, trainer: Any, how: Sampling) -> None:
        self.tree, self.p, self.how = trainer.specs, trainer.precision, how
        self.c, self.at = trainer.config.with_(capacity=0.0), trainer.layout.with_(sp=False, micro=1, remat="none")
        at, rows = self.at, self.at.live(*ROWS) or None
        heads = PartitionSpec(rows, None, at.live("tp") or None)
        listed = isinstance(self.tree["layers"], list)
        kept = [heads] * self.c.layers if listed else PartitionSpec(None, *heads)
        cache, row, whole = Cache(kept, kept, PartitionSpec(rows), PartitionSpec(rows)), PartitionSpec(rows), PartitionSpec()
        params = trainer.partitions.params
        self.rows = NamedSharding(trainer.mesh, row) if at.devices > 1 else None

        def manual(function: Any, inputs: Any) -> Any:
            outputs = (whole, row, cache)
            if at.devices == 1:
                return function
            return jax.shard_map(function, mesh=trainer.mesh, in_specs=inputs, out_specs=outputs, check_vma=False)

        def read(params: Any, tokens: Any, lengths: Any, seed: Any, *, room: int) -> Any:
            return manual(partial(self.first, room=room), (params_cut, row, row, whole))(params, tokens, lengths, seed)

        params_cut = params
        self.read = jax.jit(read, static_argnames="room")
        self.go_on = jax.jit(manual(self.following, (params, cache, row, whole, whole)), donate_argnums=1)
        self.cast = jax.jit(
            partial(tree_map, lambda param, leaf: leaf if param.exact else leaf.astype(self.p.compute), self.tree),
            out_shardings=trainer.shardings.params if at.devices > 1 else None,
        )

    def _choice(self, ready: Any, x: Any, cache: Cache, seed: Any, number: Any) -> tuple[Any, Any, Cache]:
        """Return tokens of all rows, logits of this device's rows, and the cache that knows of them."""
        c, at = self.c, self.at
        h, table = norm(x, ready, "norm", c), ready["embed" if c.tied else "head"]
        logits = lax.dot_general(h, table, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        logits = gather(logits, at, "tp", 1)
        b = logits.shape[0]
        tokens = choose(logits, cache.seen, self.how, seed, index(at, *ROWS) * b + jnp.arange(b), number)
        if self.how.repetition != 1:
            cache = cache._replace(seen=cache.seen.at[jnp.arange(b), tokens].set(True))
        return gather(tokens, at, ROWS, 0), logits, cache

    def first(self, params: Any, tokens: Any, lengths: Any, seed: Any, *, room: int) -> tuple[Any, Any, Cache]:
        """Read prompts, int32 (b, t) of which `lengths` count; return the next tokens, logits and a cache of `room` slots."""
        c, at, p = self.c, self.at, self.p
        ready = model.outside(params, self.tree, at, p)
        x, where = model.embed(ready, {"tokens": tokens}, c, at, p)
        slots, last = jnp.arange(room), lengths[:, None] - 1
        # the last place that falls on each slot; those before the row's first token are never looked at
        held = jnp.maximum(slots + room * ((last - slots) // room), 0)[:, :, None, None]

        def one(w: Any, spec: Any, x: Any, _: Any) -> Any:
            w = gathered(w, spec, at, p)
            q, k, v = model.project(w, model.enter(norm(x, w, "norm1", c), at), where, c, p)
            x, _ = model.after_attention(w, x, attention(q, k, v, where.place, c, at), c, at, p)
            return x, (jnp.take_along_axis(k, held, 1), jnp.take_along_axis(v, held, 1))

        x, (keys, values) = _layers(params["layers"], self.tree["layers"], x, None, one)
        rows = jnp.arange(len(lengths))
        counted = jnp.arange(tokens.shape[1]) <= last
        seen = jnp.zeros((len(lengths), c.vocab if self.how.repetition != 1 else 0), bool)
        if self.how.repetition != 1:
            seen = seen.at[rows[:, None], jnp.where(counted, tokens, c.vocab)].set(True, mode="drop")
        return self._choice(ready, x[rows, lengths - 1], Cache(keys, values, lengths, seen), seed, 0)

    def following(self, params: Any, cache: Cache, tokens: Any, seed: Any, number: Any) -> tuple[Any, Any, Cache]:
        """Read one token of each row, int32 (b,); return the next tokens, logits and the cache."""
        c, at, p = self.c, self.at, self.p
        ready = model.outside(params, self.tree, at, p)
        place, rows = cache.place, jnp.arange(len(tokens))
        x, where = model.embed(ready, {"tokens": tokens[:, None], "positions": place[:, None]}, c, at, p)

        def one(w: Any, spec: Any, x: Any, kept: Any) -> Any:
            w = gathered(w, spec, at, p)
            q, k, v = model.project(w, model.enter(norm(x, w, "norm1", c), at), where, c, p)
            room = kept[0].shape[1]
            keys, values = (old.at[rows, place % room].set(new[:, 0]) for old, new in zip(kept, (k, v), strict=True))
            full = jnp.arange(room) <= place[:, None]
            scores = jnp.einsum("bkgc,bskc->bkgs", q[:, 0], keys, preferred_element_type=jnp.float32) * c.C**-0.5
            weights = jax.nn.softmax(jnp.where(full[:, None, None], scores, -jnp.inf), -1).astype(values.dtype)
            out = jnp.einsum("bkgs,bskc->bkgc", weights, values, preferred_element_type=jnp.float32).astype(values.dtype)
            x, _ = model.after_attention(w, x, out.reshape(len(rows), 1, k.shape[2], -1), c, at, p)
            return x, (keys, values)

        x, (keys, values) = _layers(params["layers"], self.tree["layers"], x, (cache.keys, cache.values), one)
        return self._choice(ready, x[:, 0], Cache(keys, values, place + 1, cache.seen), seed, number)


@lru_cache(maxsize=4)
def program(trainer: Any, how: Sampling) -> _Program:
    """Return the programs of a trainer, which are compiled at first use of each size.

    Raises:
        InputError: a model that does not make text, or a layout that does not generate.
    """
    c, at = trainer.config, trainer.layout
    if not c.vocab or not c.causal or c.inputs:
        raise InputError("only a causal model of text alone makes text", key="vocab", value=c.vocab, allowed="no inputs")
    if at.cp * at.pp > 1:
        raise InputError("does not generate", key="layout", value=str(at), allowed="cp=1 pp=1", hint="load the model in another")
    return _Program(trainer, how)


def generate(
    trainer: Any,
    params: Any,
    prompts: Sequence[Sequence[int]],
    new: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition: float = 1.0,
    seed: int = 0,
    stop: Sequence[int] = (),
    heard: Callable[[list[int | None]], bool | None] | None = None,
) -> list[list[int]]:
    """Return what the model says after each prompt.

    Args:
        trainer: of the model, on its layout.
        params: of the trainer's state.
        prompts: tokens; of any lengths, none empty.
        new: most tokens for each.
        temperature, top_k, top_p, min_p, repetition: see `Sampling`.
        seed: of the draws.
        stop: tokens that end a row; they are not returned.
        heard: called with the new token of each row, None where it has ended; True ends all.

    Raises:
        InputError: a prompt that is empty, too long or not of the vocabulary.
        ConvergenceError: the model's numbers are not finite.

    Example:
        >>> generate(trainer, state.params, [tokenizer.encode("Once")], 100, temperature=0.8)  # doctest: +SKIP
    """
    c, at = trainer.config, trainer.layout
    run = program(trainer, Sampling(temperature, top_k, top_p, min_p, repetition))
    if not prompts or new < 1:
        return [[] for _ in prompts]
    tokens, lengths = _rows(prompts, new, c, at.size(*ROWS))
    room = _rounded(int(lengths.max()) + new, c.length)
    room = min(room, c.window) if c.window else room
    params = params if trainer.precision.compute == jnp.float32 else run.cast(params)
    put = lambda array: jnp.asarray(array) if run.rows is None else jax.device_put(array, run.rows)  # noqa: E731
    now, logits, cache = run.read(params, put(tokens), put(lengths), np.uint32(seed), room=room)
    made: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    for number in range(1, new + 1):
        if number == 1 and not bool(jnp.isfinite(logits).all()):
            raise ConvergenceError("the model's logits are not finite", key="prompts")
        said = np.asarray(now).tolist()[: len(prompts)]
        for row, token in enumerate(said):
            ended[row] = ended[row] or token in stop
            if not ended[row]:
                made[row].append(token)
        over = heard is not None and heard([None if end else token for end, token in zip(ended, said, strict=True)])
        if number == new or over or all(ended):
            break
        now, _, cache = run.go_on(params, cache, now, np.uint32(seed), np.int32(number))
    return made


def _rounded(n: int, most: int) -> int:
    return min(-(-n // ROUND) * ROUND, most)


def _rows(prompts: Sequence[Sequence[int]], new: int, c: Any, share: int) -> tuple[Any, Any]:
    """Return prompts filled up to one width, int32 (b, t), and their lengths, int32 (b,); b is a multiple of 2 `share`."""
    for row, prompt in enumerate(prompts):
        if not len(prompt) or len(prompt) + new > c.length:
            allowed = f"1 to {c.length - new} tokens: the model's length {c.length} less {new} new ones"
            raise InputError("is too long or empty", key=f"prompt {row}", value=len(prompt), allowed=allowed)
        low, high = min(prompt), max(prompt)
        if low < 0 or high >= c.vocab:
            raise InputError(
                "is outside the vocabulary", key=f"prompt {row}", value=f"{low} to {high}", allowed=f"0 to {c.vocab - 1}"
            )
    share *= 2  # no device has a single row: XLA's product of one row and a matrix takes three times as long as of two
    count = -(-len(prompts) // share) * share
    lengths = np.array([len(prompt) for prompt in prompts] + [1] * (count - len(prompts)), np.int32)
    tokens = np.zeros((count, _rounded(int(lengths.max()), c.length)), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    return tokens, lengths
