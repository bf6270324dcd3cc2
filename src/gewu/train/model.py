"""The model as a device sees it: embedding → blocks → losses, with the collectives of its layout.

Every function takes this device's pieces of the parameters and of the batch, and the model `c`, the layout `at` and the precision
`p`. Losses are contributions: summed over the axes of `DATA` they give the mean over all tokens, so gradients add up.

    x = embed(tokens) (+ inputs, positions)                   (b, t, D), with sp tokens are dealt over tp
    x = x + out(attention(norm1(x)));  x = x + mlp(norm2(x))  per layer
    loss = cross-entropy(norm(x) head^T) + balance of experts + losses of the row heads
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gewu.train.attention import Place, gather_heads, places, split
from gewu.train.config import ModelConfig
from gewu.train.layers import Weights, angles, biased, dense, enter, gathered, leave, mlp, norm, turn
from gewu.train.loss import cross_entropy
from gewu.train.mesh import DATA, Layout, index, reduce_from, scatter, total
from gewu.train.spec import Specs

Batch = dict[str, Any]
ROW_TARGETS = ("label", "value")


class Tokens(NamedTuple):
    """What blocks need to know of the tokens: where they stand, and their rotary angles."""

    place: Place
    cos: Any
    sin: Any


def place_tokens(batch: Batch, c: ModelConfig, at: Layout) -> tuple[Tokens, Any]:
    """Return where the tokens of a batch stand, and their positions, int32 (b or 1, t)."""
    t = c.prefix + (batch["tokens"].shape[1] if c.vocab else 0)
    index_ = places(t, at)
    positions, segments = batch.get("positions"), batch.get("segments")
    if segments is not None and c.prefix:  # what is put in front is seen by the first document of the row
        segments = jnp.concatenate([jnp.broadcast_to(segments[:, :1], (segments.shape[0], c.prefix)), segments], 1)
    if positions is None or c.prefix:
        positions = index_[None]
    cos, sin = angles(positions, c) if c.positions == "rope" else (None, None)
    return Tokens(Place(index_, segments), cos, sin), positions


def _mine(x: Any, at: Layout, dim: int) -> Any:
    """Return this device's tokens of what all of tp hold, with sp."""
    if not (at.sp and at.tp > 1):
        return x
    size = x.shape[dim] // at.tp
    return lax.dynamic_slice_in_dim(x, index(at, "tp") * size, size, dim)


def embed(params: Weights, batch: Batch, c: ModelConfig, at: Layout, p: Any) -> tuple[Any, Tokens]:
    """Return the tokens (b, t, D), or with sp this device's of them, and where they stand."""
    parts = []
    split = at.sp and at.tp > 1
    if c.inputs:
        from gewu.train.encoders import encode

        front = encode(params["inputs"], batch, c, p).astype(p.compute)
        parts.append(jnp.where(index(at, "tp") == 0, front, 0) if split else front)
    if c.vocab:
        table = params["embed"]
        local = batch["tokens"] - index(at, "tp") * table.shape[0]
        mine = (local >= 0) & (local < table.shape[0])
        rows = jnp.where(mine[..., None], table[jnp.where(mine, local, 0)], 0) if at.tp > 1 else table[batch["tokens"]]
        rows = rows.astype(p.compute)
        parts.append(rows if split else reduce_from(rows, at, "tp"))
    x = parts[0] if len(parts) == 1 else jnp.concatenate(parts, 1)
    x = scatter(x, at, "tp", 1) if split else x
    tokens, positions = place_tokens(batch, c, at)
    if c.positions == "learned":
        x = x + params["positions"][_mine(positions, at, 1)].astype(p.compute)
    return x, tokens


def project(w: Weights, x: Any, tokens: Tokens, c: ModelConfig, p: Any) -> tuple[Any, Any, Any]:
    """Return queries (b, t, K, G, C), keys and values (b, t, K, C) of normed tokens, turned by their positions."""
    return split(projected(w, x, tokens, c, p))


def projected(w: Weights, x: Any, tokens: Tokens, c: ModelConfig, p: Any) -> Any:
    """Return the same side by side, (b, t, K, G + 2, C)."""
    qkv = dense(x, w["qkv"], p)
    if "qkv_bias" in w:
        qkv = biased(qkv, w["qkv_bias"])
    if not c.qk_norm and tokens.cos is None:
        return qkv
    q, k, v = split(qkv)
    if c.qk_norm:
        rms = c.with_(norm="rms")
        q, k = norm(q, w, "q_norm", rms), norm(k, w, "k_norm", rms)
    if tokens.cos is not None:
        q, k = turn(q, tokens.cos, tokens.sin), turn(k, tokens.cos, tokens.sin)
    return jnp.concatenate([q, k[..., None, :], v[..., None, :]], -2)


def after_attention(w: Weights, x: Any, gathered_: Any, c: ModelConfig, at: Layout, p: Any) -> tuple[Any, Weights]:
    """Return the tokens behind a block, from those before it and what attention (b, t, K, G·C) gathered; and auxiliary sums."""
    y = leave(dense(gathered_, w["out"], p, dims=2), at)
    x = x + (biased(y, w["out_bias"]) if c.bias else y)
    h, aux = norm(x, w, "norm2", c), nothing()
    if c.experts:
        from gewu.train.moe import moe

        flat, aux = moe(h.reshape(-1, c.width), w, c, at, p)
        y = flat.reshape(h.shape)
        if c.shared_hidden:
            y = y + leave(mlp(enter(h, at), w, c, at, p, "shared_"), at)
            y = biased(y, w["shared_down_bias"]) if c.bias else y
    else:
        y = leave(mlp(enter(h, at), w, c, at, p), at)
        y = biased(y, w["down_bias"]) if c.bias else y
    return x + y, aux


def block(w: Weights, x: Any, tokens: Tokens, c: ModelConfig, at: Layout, p: Any) -> tuple[Any, Weights]:
    """Return the tokens behind one layer, and {"aux", "dropped"}: this device's balance loss and unserved tokens."""
    qkv = projected(w, enter(norm(x, w, "norm1", c), at), tokens, c, p)
    return after_attention(w, x, gather_heads(qkv, tokens.place, c, at), c, at, p)


def nothing() -> Weights:
    """Return the auxiliary sums of a block without experts."""
    return {"aux": jnp.float32(0), "dropped": jnp.float32(0)}


def _keep_products(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """Keep the results of products with weights for the backward pass; gathered weights and the rest are made again."""
    return primitive.name == "name" and parameters["name"] == "product"


def stack(layers: Any, tree: Any, x: Any, tokens: Tokens, c: ModelConfig, at: Layout, p: Any) -> tuple[Any, Weights]:
    """Return the tokens behind all of these layers (a stack or a list of them; `tree` holds their Params), and auxiliary sums."""

    def one(w: Weights, params: Any, x: Any) -> tuple[Any, Weights]:
        return block(gathered(w, dict(params), at, p), x, tokens, c, at, p)

    if at.remat == "layer":
        one = jax.checkpoint(one, static_argnums=1)
    elif at.fsdp * at.ep > 1:  # gathered weights are not kept
        one = jax.checkpoint(one, static_argnums=1, policy=_keep_products)
    if isinstance(layers, list):
        sums = nothing()
        for w, params in zip(layers, tree, strict=True):
            x, aux = one(w, _Static(params), x)
            sums = jax.tree.map(jnp.add, sums, aux)
        return x, sums
    single = _Static({name: param.one() for name, param in tree.items()})

    def body(carry: Any, w: Weights) -> Any:
        x, sums = carry
        x, aux = one(w, single, x)
        return (x, jax.tree.map(jnp.add, sums, aux)), None

    return lax.scan(body, (x, nothing()), layers)[0]


class _Static(dict[str, Any]):
    """Params as a static argument of a function: equal and hashed as the object it is."""

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__


def outside(params: Weights, tree: Specs, at: Layout, p: Any) -> Weights:
    """Return the parameters that are not in layers, ready for use."""
    names = [name for name in params if name != "layers"]
    return gathered({name: params[name] for name in names}, {name: tree[name] for name in names}, at, p)


def counts(batch: Batch, c: ModelConfig, at: Layout) -> Batch:
    """Return how many targets of each kind count, over all devices."""
    found = {}
    if "targets" in batch:
        found["text"] = jnp.maximum(total((batch["targets"] >= 0).sum(dtype=jnp.float32), at, *DATA), 1)
    for name in ROW_TARGETS:
        if name in batch:
            found[name] = total(jnp.float32(batch[name].shape[0]), at, *DATA)
    return found


def head_loss(params: Weights, x: Any, batch: Batch, number: Batch, c: ModelConfig, at: Layout, p: Any) -> tuple[Any, Weights]:
    """Return this device's contribution to the loss, and its parts {"loss": text, "label", "value"} as contributions."""
    h, parts = norm(x, params, "norm", c), {}
    if c.vocab and "targets" in batch:
        text = enter(h, at)[:, c.prefix :]
        table = params["embed" if c.tied else "head"]
        parts["loss"] = cross_entropy(text.reshape(-1, c.width), table, batch["targets"].reshape(-1), number["text"], at)
    for name, logits in row_heads(params, h, c, at, p).items():
        if name == "label" and name in batch:
            losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), batch["label"][:, None], 1)
            parts[name] = losses.sum() / number[name]
        elif name in batch:
            parts[name] = ((logits - batch["value"]) ** 2).mean(-1).sum() / number[name]
    return sum(parts.values(), jnp.float32(0)), parts


def row_heads(params: Weights, h: Any, c: ModelConfig, at: Layout, p: Any) -> Weights:
    """Return what is predicted for whole rows from the mean of their normed tokens: "label" logits, "value", float32 (b, n)."""
    if not (c.classes or c.targets):
        return {}
    size = h.shape[1] * (at.tp if at.sp else 1)
    mean = h.astype(jnp.float32).sum(1) / size
    mean = reduce_from(mean, at, "tp") if at.sp else mean
    return {
        name: mean @ params[key].astype(jnp.float32) + params[f"{key}_bias"]
        for name, key, width in (("label", "classes", c.classes), ("value", "targets", c.targets))
        if width
    }


def loss(params: Weights, batch: Batch, number: Batch, tree: Specs, c: ModelConfig, at: Layout, p: Any) -> tuple[Any, Weights]:
    """Return this device's contribution to the loss of a batch, and contributions to what is reported.

    Args:
        number: of `counts`, for the whole step.
    """
    ready = outside(params, tree, at, p)
    x, tokens = embed(ready, batch, c, at, p)
    x, aux = stack(params["layers"], tree["layers"], x, tokens, c, at, p)
    value, parts = head_loss(ready, x, batch, number, c, at, p)
    balance = aux["aux"] / (c.layers * at.micro)
    return value + balance, parts | {"aux": balance, "dropped": aux["dropped"]}


def outputs(params: Weights, batch: Batch, tree: Specs, c: ModelConfig, at: Layout, p: Any) -> Weights:
    """Return what the model says: "logits" float32 (b, t, V / tp) of the text's tokens, "label" and "value" of rows."""
    ready = outside(params, tree, at, p)
    x, tokens = embed(ready, batch, c, at, p)
    x, _ = stack(params["layers"], tree["layers"], x, tokens, c, at, p)
    h = norm(x, ready, "norm", c)
    found = row_heads(ready, h, c, at, p)
    if c.vocab:
        table = ready["embed" if c.tied else "head"].astype(h.dtype)
        found["logits"] = jnp.einsum("btd,vd->btv", enter(h, at)[:, c.prefix :], table, preferred_element_type=jnp.float32)
    return found


def finite_layers(params: Weights, batch: Batch, tree: Specs, c: ModelConfig, at: Layout, p: Any) -> Any:
    """Return whether the tokens are finite behind the embedding and behind each layer, bool (1 + L,), over all devices."""
    ready = outside(params, tree, at, p)
    x, tokens = embed(ready, batch, c, at, p)
    good = [jnp.isfinite(x).all()]
    layers, params_of = params["layers"], tree["layers"]
    for number in range(c.layers):
        one = layers[number] if isinstance(layers, list) else {name: leaf[number] for name, leaf in layers.items()}
        spec = params_of[number] if isinstance(layers, list) else {name: param.one() for name, param in params_of.items()}
        x, _ = stack([one], [spec], x, tokens, c, at, p)
        good.append(jnp.isfinite(x).all())
    bad = total(1.0 - jnp.stack(good).astype(jnp.float32), at, *DATA, "tp")
    return bad == 0
