"""What a kernel reports while it runs, and the module data and helper functions that its code calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gewu.ops import ir

if TYPE_CHECKING:
    from gewu.ops.spmd_region import Region


def report(region: Region, what: str, lane: str, address: str, where: str = "") -> None:
    """Note the first failure: kind, block, thread, address, place in the kernel."""
    b, program = region.b, region.program
    program.helpers["report"] = REPORT
    places = program.helpers.setdefault("places", "")
    known = places.split("\n")
    if where not in known:
        known.append(where)
        program.helpers["places"] = "\n".join(known)
    first = b.emit(f"mul i32 %vector, {b.lanes}")
    thread = b.emit(f"add i64 {b.emit(f'zext i32 {first} to i64')}, {lane}")
    arguments = f"ptr %ctx, i64 {what}, i64 {thread}, i64 {address}, i64 {known.index(where)}, i32 %cx, i32 %cy, i32 %cz"
    b.put(f"call void @gewu.report({arguments})")


def data_text(kernel: ir.Kernel) -> str:
    """Return module-level data as LLVM text."""
    data = kernel.data + bytes(-len(kernel.data) % 8 + 8)
    text = "".join(f"\\{byte:02X}" for byte in data)
    return f'@data = internal global [{len(data)} x i8] c"{text}", align 64'


REPORT = """
define internal void @gewu.report(
  ptr %ctx, i64 %what, i64 %thread, i64 %address, i64 %place, i32 %x, i32 %y, i32 %z) cold noinline {
  %pair = cmpxchg ptr %ctx, i64 0, i64 %what seq_cst seq_cst
  %mine = extractvalue { i64, i1 } %pair, 1
  br i1 %mine, label %write, label %done
write:
  %p1 = getelementptr i64, ptr %ctx, i64 1
  store i64 %thread, ptr %p1
  %p2 = getelementptr i64, ptr %ctx, i64 2
  store i64 %address, ptr %p2
  %p3 = getelementptr i64, ptr %ctx, i64 3
  store i64 %place, ptr %p3
  %p4 = getelementptr i64, ptr %ctx, i64 4
  store i32 %x, ptr %p4
  %p5 = getelementptr i32, ptr %p4, i64 1
  store i32 %y, ptr %p5
  %p6 = getelementptr i32, ptr %p4, i64 2
  store i32 %z, ptr %p6
  br label %done
done:
  ret void
}"""

CHECK = """
define internal i1 @gewu.within(ptr %ctx, i64 %address, i64 %size) {
  %pc = getelementptr i64, ptr %ctx, i64 8
  %count = load i64, ptr %pc
  br label %loop
loop:
  %i = phi i64 [ 0, %0 ], [ %next, %more ]
  %last = icmp uge i64 %i, %count
  br i1 %last, label %bad, label %look
look:
  %two = shl i64 %i, 1
  %at = add i64 %two, 9
  %pl = getelementptr i64, ptr %ctx, i64 %at
  %low = load i64, ptr %pl
  %ph = getelementptr i64, ptr %pl, i64 1
  %high = load i64, ptr %ph
  %end = add i64 %address, %size
  %a = icmp uge i64 %address, %low
  %b = icmp ule i64 %end, %high
  %both = and i1 %a, %b
  br i1 %both, label %good, label %more
more:
  %next = add i64 %i, 1
  br label %loop
good:
  ret i1 true
bad:
  ret i1 false
}"""
