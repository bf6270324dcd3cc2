"""Counting: products, loops, branches and collectives by hand; the trace against what XLA compiled for eight devices."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from gewu.core.errors import InputError
from gewu.ops.product import plain
from gewu.train import attention, hlo, walk
from gewu.train.config import ModelConfig
from gewu.train.mesh import DATA, Layout, copy_to, exchange, gather, scatter, shift, total
from gewu.train.optim import Optimiser
from gewu.train.precision import Precision
from gewu.train.spec import flat, specs
from gewu.train.step import Trainer

F32 = jnp.float32


def zeros(*shape, dtype=F32):
    return jax.ShapeDtypeStruct(shape, dtype)


def trace(function, *arguments):
    return jax.make_jaxpr(function)(*arguments)


def test_products_by_hand():
    found = walk.cost(trace(jnp.dot, zeros(4, 6), zeros(6, 10)))
    assert (found.flops, found.bytes) == (2 * 4 * 6 * 10, 4 * (24 + 60 + 40))
    batched = trace(lambda a, b: jnp.einsum("bik,bkj->bij", a, b), zeros(3, 4, 5), zeros(3, 5, 7))
    assert walk.cost(batched).flops == 2 * 3 * 4 * 5 * 7
    ragged = trace(lax.ragged_dot, zeros(12, 5), zeros(3, 5, 7), zeros(3, dtype=jnp.int32))
    assert walk.cost(ragged).flops == 2 * 12 * 5 * 7  # each row meets one of the three matrices
    backward = trace(
        jax.grad(lambda a, b, n: lax.ragged_dot(a, b, n).sum(), (0, 1)), zeros(12, 5), zeros(3, 5, 7), zeros(3, dtype=jnp.int32)
    )
    assert walk.cost(backward).flops == 3 * 2 * 12 * 5 * 7  # the trace keeps the forward product, of which nothing is used
    image = trace(lambda x, w: lax.conv(x, w, (1, 1), "VALID"), zeros(2, 3, 8, 8), zeros(5, 3, 3, 3))
    assert walk.cost(image).flops == 2 * (2 * 5 * 6 * 6) * 27


def test_a_product_of_our_own_counts_like_any_other():
    eqn = SimpleNamespace(
        primitive=SimpleNamespace(name="ffi_call"),
        params={"target_name": "gewu_product_bf16"},
        invars=[SimpleNamespace(aval=zeros(2, 6, 4)), SimpleNamespace(aval=zeros(2, 6, 10))],
        outvars=[SimpleNamespace(aval=zeros(2, 4, 10))],
    )
    assert walk._flops(eqn) == pytest.approx(2 * 2 * 4 * 6 * 10)


def test_loops_count_every_round():
    def loop(x, w):
        return lax.scan(lambda h, _: (h @ w, None), x, None, length=7)[0]

    one = 2 * 3 * 5 * 5
    assert walk.cost(trace(loop, zeros(3, 5), zeros(5, 5))).flops == 7 * one
    derivative = trace(jax.grad(lambda x, w: loop(x, w).sum()), zeros(3, 5), zeros(5, 5))
    assert walk.cost(derivative).flops == 14 * one  # forward, and the gradient of x; that of w is not asked for
    again = trace(jax.grad(jax.checkpoint(lambda x, w: jnp.sin(loop(x, w)).sum())), zeros(3, 5), zeros(5, 5))
    assert walk.cost(again).flops == 21 * one
    text = jax.jit(loop).lower(zeros(3, 5), zeros(5, 5)).compile()
    assert hlo.cost(text.as_text(), {}).flops == 7 * one


def test_a_loop_of_unknown_length_is_refused_where_it_matters():
    def until(x, w):
        return lax.while_loop(lambda h: h.sum() < 9, lambda h: h @ w, x)

    with pytest.raises(InputError, match="unknown length"):
        walk.cost(trace(until, zeros(3, 5), zeros(5, 5)))
    with pytest.raises(InputError, match="no known length"):
        hlo.cost(jax.jit(until).lower(zeros(3, 5), zeros(5, 5)).compile().as_text(), {})
    assert walk.cost(trace(lambda x: lax.while_loop(lambda h: h < 9, lambda h: h + 1, x), zeros())).flops == 0
    with pytest.raises(InputError, match="no compiled program"):
        hlo.cost("hello", {})


def test_the_dearest_branch_counts():
    def either(p, x, w):
        return lax.cond(p, lambda x: x @ w, lambda x: x @ w @ w, x)

    assert walk.cost(trace(either, zeros(dtype=bool), zeros(3, 5), zeros(5, 5))).flops == 2 * 2 * 3 * 5 * 5


def test_collectives_by_hand():
    at = Layout.of("dp=3 ep=5 cp=7 tp=4")

    def part(x):
        x = copy_to(total(x, at, "dp", "tp"), at, "tp")
        x = scatter(gather(x, at, "tp", 0), at, "tp", 0)
        x = exchange(x, at, "ep", 0, 0)
        return shift(x, at, "cp")

    function = jax.shard_map(part, mesh=at.abstract(), in_specs=P(), out_specs=P(), check_vma=False)
    size = 4 * 40 * 8
    assert dict(walk.cost(trace(function, zeros(40, 8))).collectives) == {
        ("all-reduce", ("dp", "tp"), 12): (1, pytest.approx(2 * 11 / 12 * size)),
        ("all-gather", ("tp",), 4): (1, 3 * size),
        ("reduce-scatter", ("tp",), 4): (1, 3 / 4 * 4 * size),
        ("all-to-all", ("ep",), 5): (1, pytest.approx(4 / 5 * size)),
        ("permute", ("cp",), 7): (1, size),
    }


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}, x", ("fsdp",)),
        ("replica_groups={{0,1,2,3},{4,5,6,7}}, x", ("tp",)),
        ("replica_groups=[2,4]<=[8], x", ("tp",)),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", ("fsdp",)),
        ("replica_groups=mesh['fsdp'=2,'tp'=4] {'tp'}, x", ("tp",)),
        ("replica_groups=[1,8]<=[8], x", ("fsdp", "tp")),
        ("replica_groups={}, x", ("fsdp", "tp")),
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}, x", ("?",)),
    ],
)
def test_groups_of_devices_in_all_their_spellings(text, axes):
    assert hlo.axes_of(hlo.groups(text), {"fsdp": 2, "tp": 4}) == axes


def test_groups_larger_than_any_machine():
    found = hlo.groups("replica_groups=[2048,32]<=[8,32,256]T(0,2,1), x")
    assert hlo.axes_of(found, {"dp": 8, "ep": 32, "tp": 256}) == ("ep",)


def by_hand(c: ModelConfig, rows: int, length: int) -> float:
    """Return the products of a dense step with nothing computed twice: three for each weight, six einsums of attention."""
    weights = sum(p.size for name, p in flat(specs(c)).items() if p.matrix) + c.vocab * c.width
    seen = sum(min(lo + attention.BLOCK, length) * min(attention.BLOCK, length - lo) for lo in range(0, length, attention.BLOCK))
    return 6.0 * rows * length * weights + 3 * 4.0 * c.layers * rows * seen * c.heads * c.C


def lowered(layout: str, c: ModelConfig, rows: int, length: int, precision: str = "fp32", devices=None):
    at = Layout.of(layout)
    trainer = Trainer(c, at, Optimiser(), Precision.of(precision), devices or at.abstract())
    with plain():
        return trainer.program(("targets", "tokens")).trace(trainer.abstract(), trainer.abstract_batch(rows, length)), at


def test_a_dense_step_by_hand():
    c = ModelConfig(vocab=96, width=32, layers=3, heads=4, kv_heads=2, length=256)
    found, _ = lowered("dp=2 scan", c, 4, 192)
    assert walk.cost(found.jaxpr).flops == pytest.approx(by_hand(c, 4, 192) / 2, rel=1e-12)
    remat, _ = lowered("dp=2 scan remat=layer", c, 4, 192)
    again = (by_hand(c, 4, 192) - 6.0 * 4 * 192 * 96 * 32) / 3  # the last product of a layer is not needed again
    down = c.layers * 2.0 * 4 * 192 * c.width * c.F
    assert walk.cost(remat.jaxpr).flops == pytest.approx((by_hand(c, 4, 192) + again - down) / 2, rel=1e-12)


def test_a_step_of_ten_million_devices_is_counted_without_any():
    c = ModelConfig(vocab=1024, width=64, layers=16, heads=8, length=64)
    found, at = lowered("dp=131072 fsdp=8 tp=8 scan", c, 131072 * 8, 64)
    cost = walk.cost(found.jaxpr)
    assert at.devices == 2**23
    assert cost.collectives["all-gather", ("fsdp",), 8].bytes > 0
    one, _ = lowered("dp=2 fsdp=8 tp=8 scan", c, 16, 64)
    assert cost.flops == walk.cost(one.jaxpr).flops


@pytest.mark.parametrize("layout", ["dp=2 fsdp=2 tp=2 scan", "fsdp=2 tp=2 cp=2 sp scan micro=2 remat=layer"])
def test_the_trace_agrees_with_what_was_compiled(eight, layout):
    c = ModelConfig(vocab=256, width=32, layers=4, heads=4, kv_heads=2, length=64)
    found, at = lowered(layout, c, 16, 64, devices=None)
    text = lowered_text(layout, c, eight)
    ours, theirs = (
        walk.cost(found.jaxpr),
        hlo.cost(text, {axis: at.size(axis) for axis in at.live("dp", "fsdp", "ep", "cp", "tp")}),
    )
    assert theirs.flops == pytest.approx(ours.flops, rel=0.03)  # XLA joins the projections that one remat does again
    for key, size in hlo.by_axes(ours).items():
        assert hlo.by_axes(theirs)[key] == pytest.approx(size, rel=0.06), key  # and drops a gather or two done twice
    assert set(hlo.by_axes(theirs)) == set(hlo.by_axes(ours))


def lowered_text(layout: str, c: ModelConfig, devices) -> str:
    trainer = Trainer(c, Layout.of(layout), Optimiser(), Precision.of("fp32"), devices)
    with plain():
        return trainer.lower(16, 64).compile().as_text()


def test_memory_of_known_programs():
    n = 4 * 64 * 64
    assert walk.memory(trace(lambda a, b: a @ b, zeros(64, 64), zeros(64, 64)), donated=False) == 3 * n
    chain = trace(lambda a: jnp.exp(jnp.sin(a) * 2).sum(), zeros(64, 64))
    assert walk.memory(chain) == pytest.approx(n, rel=0.01)  # fused: nothing but the argument

    def loop(x, w):
        return lax.scan(lambda h, _: (h @ w, h), x, None, length=5)[1].sum()

    assert walk.memory(trace(loop, zeros(64, 64), zeros(64, 64)), donated=False) == pytest.approx((2 + 5 + 2) * n, rel=0.15)


@pytest.mark.parametrize("layout", ["scan", "dp=4 scan", "fsdp=2 tp=2 scan remat=layer"])
def test_memory_is_near_the_compilers(eight, layout):
    c = ModelConfig(vocab=512, width=64, layers=4, heads=4, length=128)
    at = Layout.of(layout)
    trainer = Trainer(c, at, Optimiser(), Precision.of("fp32"), eight)
    with plain():
        step = trainer.program(("targets", "tokens")).trace(trainer.abstract(), trainer.abstract_batch(16, 128))
    analysis = step.lower().compile().memory_analysis()
    theirs = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    assert 0.5 < walk.memory(step.jaxpr) / theirs < 2  # a list of live arrays against a compiler's packing of buffers


def test_costs_add_up():
    a = walk.product(10, 4, "dot") + walk.sent("permute", ("cp",), 2, 8)
    twice = a + a
    assert twice == a.times(2)
    assert twice.sent == 16
    assert walk.sent("all-reduce", ("dp",), 1, 8) == walk.Cost()
    assert set(DATA) < set(Layout().abstract().axis_names)
