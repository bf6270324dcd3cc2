"""One training step: gradients of a model on its layout, summed, clipped and applied, as one compiled program.

    trainer = Trainer(config, layout, optimiser, precision)
    state = trainer.init(seed)
    state, metrics = trainer.step(state, trainer.prepare(batch))

The state is donated: memory holds it once. A step whose loss or gradients are not finite leaves the state as it was, but for the
step's number and the loss scale, and says so in `metrics["finite"]`; `diagnose` then finds the first bad layer.

Batches are dicts of whole arrays, rows first: `tokens`, `targets` int32 (B, T), optional `segments`, `positions`, the model's
inputs by name, `label` int32 (B,), `value` float32 (B, n).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from gewu.core.errors import InputError
from gewu.core.machine import check_jax
from gewu.train import model
from gewu.train.attention import zigzag
from gewu.train.config import ModelConfig
from gewu.train.memory import give_back, settle
from gewu.train.mesh import DATA, ROWS, Layout, total
from gewu.train.optim import global_norm
from gewu.train.spec import flat, initial, specs, tree_map, unflat, unstacked

TOKENS = ("tokens", "targets", "segments", "positions")
"""Arrays of a batch whose second axis counts tokens."""
LISTED = 12
"""Layers up to which a program holds them one after the other; more go in a loop, which compiles faster and runs slower."""


OPTIONS = {"xla_disable_hlo_passes": "tree_reduction_rewriter"}
"""For XLA on CPUs: this pass takes sums out of the loops that make what is summed; a step is a fifth slower with it."""


def compiled(function: Any, **options: Any) -> Any:
    """Return the function jitted, with the options that suit the processor."""
    return jax.jit(function, compiler_options=OPTIONS if jax.default_backend() == "cpu" else None, **options)


class State(NamedTuple):
    """What training changes: parameters (float32), the optimiser's arrays, number of the step, loss scale, seed."""

    params: Any
    opt: Any
    step: Any
    scale: Any
    seed: Any


def gradients(params: Any, batch: Any, tree: Any, scale: Any, c: ModelConfig, at: Layout, p: Any) -> tuple[Any, Any]:
    """Return metrics (summed over all devices) and gradients (summed over all axes that share the parameter), manual mode.

    Args:
        scale: the loss is multiplied by it before the backward pass, gradients divided after.
    """
    number = model.counts(batch, c, at)

    def f(params: Any, part: Any) -> Any:
        value, parts = model.loss(params, part, number, tree, c, at, p)
        return value * scale, parts

    parts_of = partial(jax.tree.map, lambda x: x.reshape(at.micro, x.shape[0] // at.micro, *x.shape[1:]))
    if at.pp > 1:
        from gewu.train.pipeline import train_gradients

        parts, grads = train_gradients(params, parts_of(batch), number, tree, scale, c, at, p)
    elif at.micro == 1:
        grads, parts = jax.grad(f, has_aux=True)(params, batch)
    else:

        def add(sums: Any, part: Any) -> Any:
            grads, parts = jax.grad(f, has_aux=True)(params, part)
            return jax.tree.map(jnp.add, sums, (grads, parts)), None

        shapes = jax.eval_shape(jax.grad(f, has_aux=True), params, jax.tree.map(lambda x: x[0], parts_of(batch)))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        grads, parts = lax.scan(add, zeros, parts_of(batch))[0]
    grads = summed(grads, tree, at)
    grads = grads if isinstance(scale, float) and scale == 1.0 else jax.tree.map(lambda g: g / scale, grads)
    return reported(parts, number, at), grads


def summed(grads: Any, tree: Any, at: Layout) -> Any:
    """Return gradients summed over the axes over which they still are parts; those of equal axes travel together."""
    leaves, groups = flat(grads), dict[tuple[str, ...], list[str]]()
    for name, param in flat(tree).items():
        if axes := param.summed(at):
            groups.setdefault(axes, []).append(name)
    for axes, names in groups.items():
        leaves |= dict(zip(names, lax.psum([leaves[name] for name in names], axes), strict=True))
    return unflat(leaves)


def reported(parts: Any, number: Any, at: Layout) -> Any:
    """Return the metrics of contributions: sums over the devices, and how many tokens counted."""
    names = sorted(parts)
    axes = [*DATA, "pp"]
    sums = dict(zip(names, total(jnp.stack([parts[name] for name in names]), at, *axes), strict=True))
    if at.sp and at.tp > 1:  # experts see this device's tokens of tp
        for name in ("aux", "dropped"):
            sums[name] = total(sums[name], at, "tp")
    value = sum((sums[name] for name in ("loss", "label", "value", "aux") if name in sums), jnp.float32(0))
    return sums | {"total": value, "tokens": number.get("text", jnp.float32(0))}


class Trainer:
    """A model on a layout, with its optimiser and precision.

    Args:
        config, layout, optimiser, precision: what, where, how.
        devices: JAX devices; None for those there are. An abstract mesh (`layout.abstract()`) makes a trainer that can only
            be traced and lowered.

    Attributes:
        specs: tree of `Param` as the state holds it: a stack or a list of layers.

    Raises:
        InputError: the layout does not fit the model or the devices.
    """

    def __init__(self, config: ModelConfig, layout: Layout, optimiser: Any, precision: Any, devices: Any = None) -> None:
        check_jax()
        self.config, self.layout, self.optimiser, self.precision = config, layout, optimiser, precision
        listed = layout.scan is False or (layout.scan is None and config.layers <= LISTED)
        tree = precision.kept(specs(config))
        self.specs = unstacked(tree) if listed and layout.pp == 1 else tree
        for name, param in flat(self.specs).items():
            try:
                param.local(layout)
            except InputError as error:
                error.hint = f"{name} {param.shape} cannot be cut by the layout {layout}"
                raise
        self._refuse(config, layout)
        abstract = isinstance(devices, jax.sharding.AbstractMesh)
        self.mesh = devices if abstract else layout.mesh(devices)
        self._steps = 0

    @staticmethod
    def _refuse(c: ModelConfig, at: Layout) -> None:
        if at.cp > 1 and (c.inputs or c.classes or c.targets):
            raise InputError(
                "inputs and row heads do not go with context parallelism", key="layout", value=str(at), allowed="cp=1"
            )
        if at.pp > 1 and (c.layers % (at.pp * at.interleave) or at.micro < at.pp):
            message = "the pipeline needs layers that divide by pp x interleave, and micro >= pp"
            raise InputError(message, key="layout", value=str(at), allowed=f"layers = {c.layers}")
        if at.ep > 1 and not c.experts:
            raise InputError("there are no experts to deal", key="layout", value=str(at), allowed="ep=1")

    def _manual(self, function: Any, inputs: Any, outputs: Any) -> Any:
        """Return the function as one program for all devices; on one device, as it is."""
        if self.layout.devices == 1:
            return function
        return jax.shard_map(function, mesh=self.mesh, in_specs=inputs, out_specs=outputs, check_vma=False)

    @cached_property
    def partitions(self) -> State:
        """Over which axes each array of the state is cut."""
        cut = partial(tree_map, lambda param: param.partition(self.layout))
        none = PartitionSpec()
        scale = jax.tree.map(lambda _: none, self.precision.scale())
        return State(cut(self.specs), cut(self.optimiser.state(self.specs)), none, scale, none)

    @cached_property
    def shardings(self) -> State:
        """The shardings of the state's arrays."""
        return jax.tree.map(lambda cut: NamedSharding(self.mesh, cut), self.partitions, is_leaf=_is_cut)

    def batch_partitions(self, batch: Mapping[str, Any]) -> dict[str, PartitionSpec]:
        """Return over which axes the arrays of a batch are cut."""
        rows, context = self.layout.live(*ROWS) or None, self.layout.live("cp") or None
        return {name: PartitionSpec(rows, context) if name in TOKENS else PartitionSpec(rows) for name in batch}

    def init(self, seed: int) -> State:
        """Return the state at step 0; parameters depend on the seed, not on the layout."""

        def make() -> State:
            params = self.stored(initial(self.specs, seed))
            zeros = tree_map(lambda param: jnp.zeros(param.shape, param.dtype), self.optimiser.state(self.specs))
            return State(params, zeros, jnp.int32(0), self.precision.scale(), jnp.uint32(seed))

        return jax.jit(make, out_shardings=self.shardings if self.layout.devices > 1 else None)()

    def stored(self, params: Any) -> Any:
        """Return whole parameters with the layers of a stack in the order in which the pipeline keeps them."""
        if self.layout.interleave == 1:
            return params
        from gewu.train.pipeline import order

        rows = order(self.config.layers, self.layout)
        return params | {"layers": {name: leaf[rows] for name, leaf in params["layers"].items()}}

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return a batch on the devices: checked, its tokens in the order of cp. Every process gives the whole batch.

        Raises:
            InputError: a shape that does not fit, a token outside the vocabulary, a value that is not finite.
        """
        c, at = self.config, self.layout
        arrays = {name: np.asarray(array) for name, array in batch.items()}
        for name, array in arrays.items():
            if array.shape[0] % (at.size(*ROWS) * at.micro):
                allowed = f"a multiple of {at.size(*ROWS) * at.micro}: rows of all devices x micro"
                raise InputError("rows do not divide", key=name, value=array.shape[0], allowed=allowed)
            highest = {"tokens": c.vocab, "targets": c.vocab, "label": c.classes}.get(name)
            lowest = -1 if name == "targets" else 0
            if highest and array.size and not (lowest <= array.min() and array.max() < highest):
                value = f"{array.min()} to {array.max()}"
                raise InputError("is outside the vocabulary", key=name, value=value, allowed=f"{lowest} to {highest - 1}")
        if "tokens" in arrays:
            t = c.prefix + arrays["tokens"].shape[1]
            if t > c.length:
                raise InputError("rows are longer than the model", key="tokens", value=t, allowed=f"at most length = {c.length}")
            if at.sp and t % at.tp:
                raise InputError("tokens do not divide over tp", key="tokens", value=t, allowed=f"a multiple of tp = {at.tp}")
            if at.cp > 1:
                order = np.array(zigzag(t, at.cp))
                arrays |= {name: arrays[name][:, order] for name in TOKENS if name in arrays}
        if at.devices == 1:
            return {name: jnp.asarray(array) for name, array in arrays.items()}
        cuts = {name: NamedSharding(self.mesh, cut) for name, cut in self.batch_partitions(arrays).items()}
        return {
            name: jax.make_array_from_callback(array.shape, cuts[name], lambda where, array=array: array[where])
            for name, array in arrays.items()
        }

    def _step(self, state: State, batch: Any) -> tuple[State, Any]:
        at, p = self.layout, self.precision
        scale = p.factor(state.scale)
        metrics, grads = gradients(state.params, batch, self.specs, scale, self.config, at, p)
        norm = global_norm(grads, self.specs, at)
        finite = jnp.isfinite(metrics["total"]) & jnp.isfinite(norm)
        params, opt, info = self.optimiser.update(
            grads, state.opt, state.params, state.step, self.specs, at, norm=norm, finite=finite
        )
        metrics = metrics | info | {"grad_norm": norm, "finite": finite.astype(jnp.float32)}
        return State(params, opt, state.step + 1, p.next_scale(state.scale, finite), state.seed), metrics

    def program(self, names: Sequence[str]) -> Any:
        """Return the step for batches with these arrays, jitted."""
        cuts = self.batch_partitions(dict.fromkeys(names))
        return compiled(self._manual(self._step, (self.partitions, cuts), (self.partitions, PartitionSpec())), donate_argnums=0)

    @cached_property
    def _programs(self) -> dict[Any, Any]:
        return {}

    def _program(self, kind: str, batch: Mapping[str, Any], make: Any) -> Any:
        key = (kind, *sorted(batch))
        if key not in self._programs:
            self._programs[key] = make()
        return self._programs[key]

    def step(self, state: State, batch: dict[str, Any]) -> tuple[State, dict[str, Any]]:
        """Return the state after one step on a batch of `prepare`, and metrics, float32 numbers: "loss" (nats a token), "tokens",
        "grad_norm", "lr", "aux", "dropped", "finite", "total" (what was minimised).
        """

        def make() -> Any:
            program = self.program(sorted(batch))
            program.lower(state, batch).compile()  # it is kept: the call finds it
            give_back()
            return program

        program = self._program("step", batch, make)
        if self._steps == 1:  # the first has made what stays
            settle()
        self._steps += 1
        return program(state, batch)

    def _evaluation(self, kind: str, function: Any, outputs: Any, batch: Mapping[str, Any]) -> Any:
        inputs = (self.partitions.params, self.batch_partitions(batch))
        return self._program(kind, batch, lambda: compiled(self._manual(function, inputs, outputs)))

    def loss(self, params: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return what would be minimised on a batch of `prepare`, and the metrics."""
        c, at, p = self.config, self.layout, self.precision

        def function(params: Any, batch: Any) -> Any:
            if at.pp > 1:
                return gradients(params, batch, self.specs, 1.0, c, at, p)[0]
            number = model.counts(batch, c, at)
            return reported(model.loss(params, batch, number, self.specs, c, at.with_(micro=1), p)[1], number, at)

        metrics = self._evaluation("loss", function, PartitionSpec(), batch)(params, batch)
        return metrics["total"], metrics

    def gradients(self, params: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
        """Return what is minimised on a batch of `prepare`, and its gradients."""

        def function(params: Any, batch: Any) -> Any:
            metrics, grads = gradients(params, batch, self.specs, 1.0, self.config, self.layout, self.precision)
            return metrics["total"], grads

        outputs = (PartitionSpec(), self.partitions.params)
        return self._evaluation("gradients", function, outputs, batch)(params, batch)

    def outputs(self, params: Any, batch: dict[str, Any]) -> dict[str, Any]:
        """Return what the model says to a batch of `prepare`: "logits" float32 (B, T, V), "label" (B, classes), "value" (B, n).

        Raises:
            InputError: the layout has a pipeline.
        """
        c, at = self.config, self.layout
        if at.pp > 1:
            raise InputError("a pipeline only trains", key="layout", value=str(at), allowed="pp=1")
        rows, context = at.live(*ROWS) or None, at.live("cp") or None
        cuts = {"logits": PartitionSpec(rows, context, at.live("tp") or None)} if c.vocab else {}
        cuts |= {name: PartitionSpec(rows) for name, width in (("label", c.classes), ("value", c.targets)) if width}

        def function(params: Any, batch: Any) -> Any:
            return model.outputs(params, batch, self.specs, c, at, self.precision)

        found = self._evaluation("outputs", function, cuts, batch)(params, batch)
        if at.cp > 1:
            order = np.argsort(zigzag(found["logits"].shape[1], at.cp))
            found["logits"] = found["logits"][:, order]
        return dict(found)

    def diagnose(self, params: Any, batch: dict[str, Any]) -> dict[str, Any]:
        """Return where numbers first stop being finite.

        Returns:
            {"layer": number or -1, "where": "embedding", "layer", "head", "gradient" or "nowhere", "name": of the parameter}.
        """
        at = self.layout
        if at.pp == 1:

            def function(params: Any, batch: Any) -> Any:
                return model.finite_layers(params, batch, self.specs, self.config, at, self.precision)

            good = np.asarray(self._evaluation("diagnose", function, PartitionSpec(), batch)(params, batch))
            if not good.all():
                layer = int(np.argmin(good)) - 1
                return {"layer": layer, "where": "embedding" if layer < 0 else "layer", "name": ""}
        value, grads = self.gradients(params, batch)
        if not np.isfinite(float(value)):
            return {"layer": -1, "where": "head", "name": ""}
        for name, leaf in reversed(flat(grads).items()):
            bad = jax.jit(lambda g: ~jnp.isfinite(g).reshape(g.shape[0], -1).all(1))(leaf)
            if np.asarray(bad).any():
                parts = [int(part) for part in name.split("/") if part.isdecimal()]
                layer = parts[0] if parts else int(np.argmax(bad)) if name.startswith("layers/") else -1
                return {"layer": layer, "where": "gradient", "name": name}
        return {"layer": -1, "where": "nowhere", "name": ""}

    def abstract(self) -> State:
        """Return the state's shapes, types and shardings, without memory."""

        def shape(param: Any, cut: Any) -> Any:
            return jax.ShapeDtypeStruct(param.shape, param.dtype, sharding=NamedSharding(self.mesh, cut))

        cuts = self.partitions
        scalar = partial(jax.ShapeDtypeStruct, (), sharding=NamedSharding(self.mesh, PartitionSpec()))
        scale = jax.tree.map(lambda leaf: scalar(jnp.asarray(leaf).dtype), self.precision.scale())
        return State(
            tree_map(shape, self.specs, cuts.params),
            tree_map(shape, self.optimiser.state(self.specs), cuts.opt),
            scalar(jnp.int32),
            scale,
            scalar(jnp.uint32),
        )

    def abstract_batch(self, rows: int, length: int) -> dict[str, Any]:
        """Return the shapes of a batch of text."""
        cuts = self.batch_partitions(dict.fromkeys(("tokens", "targets")))
        return {
            name: jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=NamedSharding(self.mesh, cut))
            for name, cut in cuts.items()
        }

    def lower(self, rows: int, length: int) -> Any:
        """Return the step on a batch of text, lowered but not compiled; the devices may be abstract."""
        return self.program(("targets", "tokens")).lower(self.abstract(), self.abstract_batch(rows, length))


def _is_cut(leaf: Any) -> bool:
    return isinstance(leaf, PartitionSpec)
