"""Kernels of Triton, in a file of their own since Triton reads their source and is optional."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def matmul(A, B, C, M, N, K, T: tl.constexpr):
    """Multiply in tiles of T with ragged edges."""
    m, n, k = tl.program_id(0) * T + tl.arange(0, T), tl.program_id(1) * T + tl.arange(0, T), tl.arange(0, T)
    total = tl.zeros((T, T), tl.float32)
    for start in range(0, K, T):
        inside = (start + k) < K
        a = tl.load(A + m[:, None] * K + (start + k)[None, :], mask=(m[:, None] < M) & inside[None, :], other=0.0)
        b = tl.load(B + (start + k)[:, None] * N + n[None, :], mask=(n[None, :] < N) & inside[:, None], other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
    tl.store(C + m[:, None] * N + n[None, :], total, mask=(m[:, None] < M) & (n[None, :] < N))
