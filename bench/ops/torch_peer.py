"""Each class as a user of PyTorch writes it for one CPU, with out= where there is one. Runs in the peer's own environment.

A class gives one or more ways; the fastest counts. Weights are packed and indices widened before the clock starts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from bench.ops.case import Launch

aten = torch.ops.aten
Way = Callable[[], Any]


def ways(cls: str, launch: Launch) -> list[Way]:
    """Return the ways to compute one class with the arguments of a launch; none when PyTorch has no operator for it."""
    args = [torch.from_numpy(a) if isinstance(a, np.ndarray) else a.item() for a in launch.args]
    return list(TABLE[cls](*args)) if cls in TABLE else []


def _unary(name: str) -> Callable[..., Sequence[Way]]:
    overload = getattr(aten, name).out
    return lambda x, y, n: [lambda: overload(x, out=y)]


def _dropout(x: Any, y: Any, rate: float, *_: Any) -> Sequence[Way]:
    mask = torch.empty(x.shape, dtype=torch.bool)
    return [lambda: F.dropout(x, rate), lambda: aten.native_dropout.out(x, rate, True, out0=y, out1=mask)[0]]


def _layernorm(x: Any, gain: Any, bias: Any, y: Any, eps: float, rows: int, n: int) -> Sequence[Way]:
    mean, rstd = torch.empty(rows, 1), torch.empty(rows, 1)
    overload = aten.native_layer_norm.out
    return [
        lambda: F.layer_norm(x, (n,), gain, bias, eps),
        lambda: overload(x, (n,), gain, bias, eps, out0=y, out1=mean, out2=rstd)[0],
    ]


def _int8(x: Any, w: Any, scale: Any, y: Any, *_: Any) -> Sequence[Way]:
    wide = torch.empty(w.shape)
    half = scale.to(torch.float32)

    def unpacked() -> Any:
        wide.copy_(w)
        return torch.mm(x, wide.T, out=y).mul_(scale)

    return [unpacked, lambda: aten._weight_int8pack_mm(x, w, half)]


def _int4(x: Any, w: Any, scale: Any, y: Any, m: int, n: int, k: int) -> Sequence[Way]:
    wide = torch.empty(n, k // 2, 2)

    def unpacked() -> Any:
        torch.sub(w & 15, 8.0, out=wide[..., 0])
        torch.sub(w >> 4, 8.0, out=wide[..., 1])
        return torch.mm(x, wide.view(n, k).T, out=y).mul_(scale)

    found = [unpacked]
    if k % 256 == 0:
        each = torch.stack((w & 15, w >> 4), dim=-1).view(n, k).to(torch.int32)
        packed = aten._convert_weight_to_int4pack_for_cpu(each, 1)
        groups = torch.stack((scale.expand(k // 256, n), torch.zeros(k // 256, n)), dim=-1).contiguous()
        found.append(lambda: aten._weight_int4pack_mm_for_cpu(x, packed, 256, groups))
    return found


def _pool(operator: Any) -> Callable[..., Sequence[Way]]:
    return lambda x, y, h, w, size, stride: [lambda: operator(x[None], size, stride)[0]]


def _spmv(start: Any, column: Any, value: Any, x: Any, y: Any, rows: int) -> Sequence[Way]:
    matrix = torch.sparse_csr_tensor(start, column, value, (rows, rows))
    return [lambda: torch.mv(matrix, x), lambda: torch.mv(matrix, x, out=y)]


def _attention(causal: bool) -> Callable[..., Sequence[Way]]:
    return lambda q, k, v, y, scale, *_: [
        lambda: F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=causal, scale=scale)[0]
    ]


def _grouped(q: Any, k: Any, v: Any, y: Any, scale: float, n: int, d: int, group: int) -> Sequence[Way]:
    attend = F.scaled_dot_product_attention
    return [
        lambda: attend(q[None], k[None], v[None], scale=scale, enable_gqa=True)[0],
        lambda: attend(q[None], k.repeat_interleave(group, 0)[None], v.repeat_interleave(group, 0)[None], scale=scale)[0],
    ]


def _rotary(x: Any, cosine: Any, sine: Any, y: Any, n: int, heads: int, d: int) -> Sequence[Way]:
    turn = torch.complex(cosine, sine)[:, None]
    shape = (n, heads, d // 2, 2)
    pairs, out = torch.view_as_complex(x.view(shape)), torch.view_as_complex(y.view(shape))
    return [lambda: (torch.mul(pairs, turn, out=out), y)[1]]


def _adamw(p: Any, g: Any, m: Any, v: Any, *rest: Any) -> Sequence[Way]:
    rate, beta1, beta2, eps, decay = rest[:5]
    step = torch.tensor(7.0)

    def fused() -> Any:
        aten._fused_adamw_(
            [p],
            [g],
            [m],
            [v],
            [],
            [step],
            lr=rate,
            beta1=beta1,
            beta2=beta2,
            weight_decay=decay,
            eps=eps,
            amsgrad=False,
            maximize=False,
        )

    return [fused]


def _quantise(x: Any, q: Any, scale: Any, rows: int, n: int) -> Sequence[Way]:
    work = torch.empty(x.shape)

    def composed() -> Any:
        torch.linalg.vector_norm(x, float("inf"), 1, out=scale)
        torch.mul(x, (127.0 / scale)[:, None], out=work)
        q.copy_(work.round_())
        scale.div_(127.0)
        return q, scale

    return [composed]


def _stencil(x: Any, y: Any, c: float, *_: Any) -> Sequence[Way]:
    kernel = torch.zeros(1, 1, 3, 3, 3)
    kernel[0, 0, 1, 1, 1] = 1 - 6 * c
    for place in ((0, 1, 1), (2, 1, 1), (1, 0, 1), (1, 2, 1), (1, 1, 0), (1, 1, 2)):
        kernel[(0, 0, *place)] = c

    def slices() -> Any:
        torch.mul(x, 1 - 6 * c, out=y)
        for axis, size in enumerate(x.shape):
            y.narrow(axis, 0, size - 1).add_(x.narrow(axis, 1, size - 1), alpha=c)
            y.narrow(axis, 1, size - 1).add_(x.narrow(axis, 0, size - 1), alpha=c)
        return y

    return [lambda: F.conv3d(x[None, None], kernel, padding=1)[0, 0], slices]


def _nbody(body: Any, a: Any, eps2: float, n: int) -> Sequence[Way]:
    place, mass = body[:, :3].contiguous(), body[:, 3]

    def products() -> Any:
        apart = place[None] - place[:, None]
        factor = ((apart * apart).sum(2) + eps2).pow_(-1.5).mul_(mass)
        a[:, 3] = 0
        a[:, :3] = torch.matmul(factor[:, None], apart)[:, 0]
        return a

    return [products] if n <= 2048 else []


def _fft_stage(x: Any, w: Any, y: Any, n: int, l: int) -> Sequence[Way]:
    half = n // 2
    z, turn, out = torch.view_as_complex(x), torch.view_as_complex(w), torch.view_as_complex(y)
    first, second = z[:, :half].view(len(z), half // l, l), z[:, half:].view(len(z), half // l, l)
    target = out.view(len(z), half // l, 2, l)
    work = torch.empty_like(first)

    def stage() -> Any:
        torch.mul(second, turn, out=work)
        torch.add(first, work, out=target[:, :, 0])
        torch.sub(first, work, out=target[:, :, 1])
        return y

    return [stage]


def _thomas(lower: Any, diagonal: Any, upper: Any, right: Any, x: Any, work: Any, n: int, systems: int) -> Sequence[Way]:
    def solve() -> Any:
        torch.div(upper[0], diagonal[0], out=work[0])
        torch.div(right[0], diagonal[0], out=x[0])
        for i in range(1, n):
            pivot = torch.addcmul(diagonal[i], lower[i], work[i - 1], value=-1)
            torch.div(upper[i], pivot, out=work[i])
            torch.div(torch.addcmul(right[i], lower[i], x[i - 1], value=-1), pivot, out=x[i])
        for i in range(n - 2, -1, -1):
            x[i].addcmul_(work[i], x[i + 1], value=-1)
        return x

    return [solve]


def _topk(x: Any, values: Any, places: Any, rows: int, n: int, k: int) -> Sequence[Way]:
    wide = torch.empty(rows, k, dtype=torch.int64)
    return [lambda: (torch.topk(x, k, 1, out=(values, wide))[0], None)[0]]


def _sort(x: Any, y: Any, *_: Any) -> Sequence[Way]:
    wide = torch.empty(x.shape, dtype=torch.int64)
    return [lambda: torch.sort(x, 1, out=(y, wide))[0]]


def _gather(x: Any, places: Any, y: Any, n: int) -> Sequence[Way]:
    wide = places.to(torch.int64)
    return [lambda: torch.index_select(x, 0, places, out=y), lambda: torch.take(x, wide, out=y)]


def _cross_entropy(x: Any, target: Any, *_: Any) -> Sequence[Way]:
    wide = target.to(torch.int64)
    return [lambda: F.cross_entropy(x, wide, reduction="none")]


TABLE: dict[str, Callable[..., Sequence[Way]]] = {
    "elementwise": lambda a, b, c, alpha, n: [lambda: torch.add(b, a, alpha=alpha, out=c)],
    "cast": lambda x, y, n: [lambda: y.copy_(x)],
    **{name: _unary(name) for name in ("relu", "gelu", "silu", "tanh", "sigmoid", "exp", "log")},
    "clamp": lambda x, y, low, high, n: [lambda: torch.clamp(x, low, high, out=y)],
    "select": lambda mask, a, b, y, n: [lambda: torch.where(mask.view(torch.bool), a, b, out=y)],
    "dropout": _dropout,
    "sum": lambda x, y, *_: [lambda: torch.sum(x, 1, out=y)],
    "max": lambda x, y, *_: [lambda: torch.amax(x, 1, out=y)],
    "argmax": lambda x, y, *_: [lambda: torch.argmax(x, 1).to(torch.int32)],
    "norm": lambda x, y, *_: [lambda: torch.linalg.vector_norm(x, dim=1, out=y)],
    "logsumexp": lambda x, y, *_: [lambda: torch.logsumexp(x, 1, out=y)],
    "scan": lambda x, y, *_: [lambda: torch.cumsum(x, 1, out=y)],
    "softmax": lambda x, y, *_: [lambda: torch.softmax(x, 1), lambda: aten._softmax.out(x, 1, False, out=y)],
    "layernorm": _layernorm,
    "rmsnorm": lambda x, gain, y, eps, rows, n: [lambda: F.rms_norm(x, (n,), gain, eps)],
    "batchnorm": lambda x, gain, bias, y, eps, *_: [lambda: F.batch_norm(x, None, None, gain, bias, True, eps=eps)],
    "groupnorm": lambda x, gain, bias, y, eps, b, c, p, width: [lambda: F.group_norm(x, c // width, gain, bias, eps)],
    "gemv": lambda a, x, y, *_: [lambda: torch.mv(a, x, out=y)],
    "gemm": lambda a, b, c, *_: [lambda: torch.mm(a, b, out=c)],
    "batched_gemm": lambda a, b, c, *_: [lambda: torch.bmm(a, b, out=c)],
    "int8_gemm": _int8,
    "int4_gemm": _int4,
    "outer": lambda a, b, c, *_: [lambda: torch.outer(a, b, out=c), lambda: torch.mul(a[:, None], b, out=c)],
    "conv1d": lambda x, w, bias, y, c, n, o, t, padding: [lambda: F.conv1d(x, w, bias, padding=padding)],
    "conv2d": lambda x, w, bias, y, *s: [lambda: F.conv2d(x, w, bias, padding=s[-1])],
    "depthwise": lambda x, w, y, *s: [lambda: F.conv2d(x, w[:, None], padding=s[-1], groups=len(w))],
    "transposed_conv": lambda x, w, y, *s: [lambda: F.conv_transpose2d(x, w, stride=s[-2], padding=s[-1])],
    "maxpool": _pool(F.max_pool2d),
    "avgpool": _pool(F.avg_pool2d),
    "transpose": lambda x, y, *_: [lambda: y.copy_(x.T)],
    "concat": lambda a, b, y, *_: [lambda: torch.cat((a, b), 1, out=y)],
    "pad": lambda x, y, value, h, w, rim: [lambda: F.pad(x, (rim,) * 4, value=value)],
    "im2col": lambda x, y, c, h, w, t, padding: [lambda: F.unfold(x[None], t, padding=padding).view(y.shape)],
    "resize": lambda x, y, h, w, rows, columns: [
        lambda: F.interpolate(x[None], (rows, columns), mode="bilinear", align_corners=False)[0]
    ],
    "histogram": lambda x, counts, bins, n: [lambda: torch.bincount(x, minlength=bins).to(torch.int32)],
    "topk": _topk,
    "sort": _sort,
    "gather": _gather,
    "scatter_add": lambda x, places, y, *_: [lambda: y.index_add_(0, places, x)],
    "embedding": lambda table, words, y, *_: [
        lambda: torch.index_select(table, 0, words, out=y),
        lambda: F.embedding(words, table),
    ],
    "spmv": _spmv,
    "attention": _attention(False),
    "attention_causal": _attention(True),
    "attention_gqa": _grouped,
    "rotary": _rotary,
    "cross_entropy": _cross_entropy,
    "adamw": _adamw,
    "quantise": _quantise,
    "stencil3d": _stencil,
    "nbody": _nbody,
    "fft_stage": _fft_stage,
    "tridiagonal": _thomas,
}
