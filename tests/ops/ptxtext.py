"""Small kernels as PTX, so that tests need no compiler."""

from __future__ import annotations

HEAD = b".version 8.0\n.target sm_80\n.address_size 64\n"


def _kernel(name: str, parameters: str, registers: str, body: str) -> bytes:
    listed = ",\n".join(f"  .param .{kind} p{k}" for k, kind in enumerate(parameters.split()))
    code = "\n".join(f"  {line}" for line in body.strip().splitlines())
    return HEAD + f".visible .entry {name}(\n{listed}\n)\n{{\n{registers}\n{code}\n}}\n".encode()


def module(*kernels: bytes) -> bytes:
    """Return one module of several."""
    return HEAD + b"".join(k.removeprefix(HEAD) for k in kernels)


_REGISTERS = "  .reg .pred %p<4>;\n  .reg .f32 %f<8>;\n  .reg .b32 %r<12>;\n  .reg .b64 %rd<12>;"
_INDEX = """
mov.u32 %r1, %ctaid.x;
mov.u32 %r2, %ntid.x;
mov.u32 %r3, %tid.x;
mad.lo.s32 %r4, %r1, %r2, %r3;
"""

WEIGHTED = _kernel(
    "weighted",
    "u64 u64",
    _REGISTERS,
    f"""
ld.param.u64 %rd1, [p0];
ld.param.u64 %rd2, [p1];{_INDEX}
mul.wide.s32 %rd3, %r4, 4;
add.s64 %rd1, %rd1, %rd3;
add.s64 %rd2, %rd2, %rd3;
ld.global.f32 %f1, [%rd1];
ld.const.f32 %f2, [weights+8];
mul.f32 %f1, %f1, %f2;
st.global.f32 [%rd2], %f1;
ret;""",
).replace(b".visible", b".const .align 4 .b8 weights[16];\n.visible", 1)
"""y = x * weights[2]; only the host sets the weights."""

SAXPY = _kernel("saxpy", "u64 u64 f32 u32", _REGISTERS, f"""
ld.param.u64 %rd1, [p0];
ld.param.u64 %rd2, [p1];
ld.param.f32 %f1, [p2];
ld.param.u32 %r5, [p3];{_INDEX}setp.ge.s32 %p1, %r4, %r5;
@%p1 bra END;
cvta.to.global.u64 %rd3, %rd1;
cvta.to.global.u64 %rd4, %rd2;
mul.wide.s32 %rd5, %r4, 4;
add.s64 %rd6, %rd3, %rd5;
add.s64 %rd7, %rd4, %rd5;
ld.global.f32 %f2, [%rd6];
ld.global.f32 %f3, [%rd7];
fma.rn.f32 %f4, %f1, %f2, %f3;
st.global.f32 [%rd7], %f4;
END:
ret;
""")  # fmt: skip

TWICE = _kernel("twice", "u64 u64 u32", _REGISTERS, """
ld.param.u64 %rd1, [p0];
ld.param.u64 %rd2, [p1];
ld.param.u32 %r5, [p2];
mov.u32 %r1, 0;
LOOP:
setp.ge.s32 %p1, %r1, %r5;
@%p1 bra END;
ld.global.f32 %f1, [%rd1];
add.f32 %f2, %f1, %f1;
st.global.f32 [%rd2], %f2;
add.s64 %rd1, %rd1, 4;
add.s64 %rd2, %rd2, 4;
add.s32 %r1, %r1, 1;
bra LOOP;
END:
ret;
""")  # fmt: skip

HISTOGRAM = _kernel("histogram", "u64 u64 u32", _REGISTERS, f"""
ld.param.u64 %rd1, [p0];
ld.param.u64 %rd2, [p1];
ld.param.u32 %r5, [p2];{_INDEX}setp.ge.s32 %p1, %r4, %r5;
@%p1 bra END;
mul.wide.s32 %rd5, %r4, 4;
add.s64 %rd6, %rd1, %rd5;
ld.global.u32 %r6, [%rd6];
mul.wide.u32 %rd7, %r6, 4;
add.s64 %rd8, %rd2, %rd7;
red.global.add.u32 [%rd8], 1;
END:
ret;
""")  # fmt: skip

BUMP = _kernel("bump", "u64 u32", _REGISTERS, f"""
ld.param.u64 %rd1, [p0];
ld.param.u32 %r5, [p1];{_INDEX}mul.wide.s32 %rd5, %r4, 4;
add.s64 %rd6, %rd1, %rd5;
ld.global.u32 %r6, [%rd6];
add.s32 %r7, %r6, %r5;
st.global.u32 [%rd6], %r7;
ret;
""")  # fmt: skip

LOOP = _kernel("forever", "u64", _REGISTERS, """
ld.param.u64 %rd1, [p0];
AGAIN:
ld.global.u32 %r1, [%rd1];
add.s32 %r2, %r2, %r1;
bra AGAIN;
""")  # fmt: skip

HALT = _kernel("halt", "u64", _REGISTERS, """
frobnicate.f32 %f1, %f2;
ret;
""")  # fmt: skip
