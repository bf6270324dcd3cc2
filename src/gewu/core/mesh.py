"""One particle and a patch of p x p x p mesh points around it, inside `numba.njit`: weights on, gradients off the mesh.

The weight of a point is a product of one factor per axis, and each factor a polynomial in the particle's place between two
points.  The p factors of an axis fill one vector (4 lanes for p = 4, 8 for 5 and 6; unused lanes have coefficients 0): Horner's
scheme gives them together, and a row of the mesh along its last axis is updated by one multiply-add.

    add_patch(mesh, at, stride_x, stride_y, q, u, v, w, table, width)    mesh[at + ...] += q A(u) B(v) C(w)
    patch_gradient(mesh, at, stride_x, stride_y, u, v, w, table, width)  the derivatives of sum A B C mesh along the axes

`mesh` is flat and may be read, and gets zeros added, up to `row_length(p)` numbers from the start of a row; `table` is flat too:
row m < p holds the coefficients of the power m of the p factors, row p + m those of their derivatives; `width` is a tuple of p
numbers whose length tells p to the compiler.
Indices are not checked.  Arithmetic carries LLVM's contract flag only: multiplications and additions fuse.
"""

from __future__ import annotations

from typing import Any

from gewu.core.device import load_numba

load_numba()

from llvmlite import ir  # noqa: E402
from numba import types  # noqa: E402
from numba.extending import intrinsic  # noqa: E402

from gewu.core.vector import FLOATS, INT64, data, lane, splat  # noqa: E402

_FUSED = ("contract",)


def row_length(order: int) -> int:
    """Return the vector length that holds `order` weights."""
    return 4 if order <= 4 else 8


def _multiply(builder: Any, a: Any, b: Any) -> Any:
    return builder.fmul(a, b, flags=_FUSED)


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.fadd(builder.fmul(a, b, flags=_FUSED), c, flags=_FUSED)


class _Code:
    """What both intrinsics share: vectors loaded from arrays, weights of one axis."""

    def __init__(self, context: Any, builder: Any, signature: Any, values: Any) -> None:
        mesh, table, width = signature.args[0], signature.args[-2], signature.args[-1]
        self.builder, self.order, self.count = builder, len(width), row_length(len(width))
        self.element, self.align = FLOATS[mesh.dtype], 4 if mesh.dtype == types.float32 else 8
        self.mesh = data(context, builder, mesh, values[0])
        self.table = data(context, builder, table, values[-2])
        self.at, self.stride_x, self.stride_y = values[1:4]

    def row_at(self, first: Any, index: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(first, [index]), ir.VectorType(self.element, self.count).as_pointer())

    def row(self, m: int) -> Any:
        return self.builder.load(self.row_at(self.table, ir.Constant(INT64, m * self.count)), align=self.align)

    def weights(self, u: Any, first: int, terms: int) -> Any:
        """Evaluate the polynomials in rows first .. first + terms - 1 at u."""
        spread_u, total = splat(self.builder, u, self.count), self.row(first + terms - 1)
        for m in range(first + terms - 2, first - 1, -1):
            total = _multiply_add(self.builder, total, spread_u, self.row(m))
        return total

    def mesh_row(self, a: int, b: int) -> Any:
        """Return the pointer to the mesh row at offset (a, b)."""
        step_x = self.builder.mul(self.stride_x, ir.Constant(INT64, a))
        step_y = self.builder.mul(self.stride_y, ir.Constant(INT64, b))
        return self.row_at(self.mesh, self.builder.add(self.at, self.builder.add(step_x, step_y)))


def _is_mesh(mesh: Any, table: Any) -> bool:
    return isinstance(mesh, types.Array) and mesh.dtype in FLOATS and mesh.ndim == table.ndim == 1 and table.dtype == mesh.dtype


@intrinsic
def add_patch(
    tc: Any, mesh: Any, at: Any, stride_x: Any, stride_y: Any, q: Any, x: Any, y: Any, z: Any, table: Any, width: Any
) -> Any:
    """Add one charge to order x order rows of the mesh, from flat index `at` on."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        code = _Code(context, builder, signature, values)
        wx, wy, wz = (code.weights(u, 0, code.order) for u in values[5:8])
        wz = _multiply(builder, wz, splat(builder, values[4], code.count))
        for a in range(code.order):
            plane = _multiply(builder, wy, splat(builder, lane(builder, wx, a), code.count))
            for b in range(code.order):
                row = code.mesh_row(a, b)
                new = _multiply_add(
                    builder, splat(builder, lane(builder, plane, b), code.count), wz, builder.load(row, align=code.align)
                )
                builder.store(new, row, align=code.align)
        return context.get_dummy_value()

    real, integer = mesh.dtype, types.int64
    return (
        (types.void(mesh, integer, integer, integer, real, real, real, real, table, width), generate)
        if _is_mesh(mesh, table)
        else None
    )


@intrinsic
def patch_gradient(
    tc: Any, mesh: Any, at: Any, stride_x: Any, stride_y: Any, x: Any, y: Any, z: Any, table: Any, width: Any
) -> Any:
    """Return the derivatives of the interpolated mesh along the three axes, per mesh step."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        code = _Code(context, builder, signature, values)
        weight = [code.weights(u, 0, code.order) for u in values[4:7]]
        slope = [code.weights(u, code.order, code.order - 1) for u in values[4:7]]
        wy, sy = ([splat(builder, lane(builder, v[1], b), code.count) for b in range(code.order)] for v in (weight, slope))
        total: list[Any] = [ir.Constant(ir.VectorType(code.element, code.count), [0.0] * code.count)] * 3
        for a in range(code.order):
            value = tilt = None
            for b in range(code.order):
                row = builder.load(code.mesh_row(a, b), align=code.align)
                value = _multiply(builder, row, wy[b]) if value is None else _multiply_add(builder, row, wy[b], value)
                tilt = _multiply(builder, row, sy[b]) if tilt is None else _multiply_add(builder, row, sy[b], tilt)
            wx, sx = (splat(builder, lane(builder, v[0], a), code.count) for v in (weight, slope))
            total = [
                _multiply_add(builder, *pair, old)
                for pair, old in zip(((value, sx), (tilt, wx), (value, wx)), total, strict=True)
            ]
        last = (weight[2], weight[2], slope[2])
        products = [_multiply(builder, t, w) for t, w in zip(total, last, strict=True)]
        sums = []
        for product in products:
            parts = [lane(builder, product, k) for k in range(code.order)]
            while len(parts) > 1:
                parts = [builder.fadd(*parts[k : k + 2]) if k + 1 < len(parts) else parts[k] for k in range(0, len(parts), 2)]
            sums.append(parts[0])
        return context.make_tuple(builder, signature.return_type, sums)

    real, integer = mesh.dtype, types.int64
    result = types.UniTuple(real, 3)
    return (result(mesh, integer, integer, integer, real, real, real, table, width), generate) if _is_mesh(mesh, table) else None
