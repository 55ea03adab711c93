"""The kernel of `fused_statistics`: imports triton, which is there with torch for CUDA on Linux."""

import triton
import triton.language as tl


@triton.jit
def kernel(x, parts, count, stride, BLOCK: tl.constexpr, TIMES: tl.constexpr):
    """x [rows, count] -> parts [rows, programs, 6]: least, largest, not zero, sum, sum of squares, NaN, of what each program reads."""
    part, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    start = part.to(tl.int64) * BLOCK * TIMES
    none = tl.zeros([BLOCK], tl.float64)
    low, high, filled, total, square, nan = none + float("inf"), none - float("inf"), none, none, none, none
    for i in range(TIMES):
        place = start + i * BLOCK + tl.arange(0, BLOCK)
        inside = place < count
        value = tl.load(x + row * stride + place, mask=inside, other=0.0).to(tl.float64)
        known = inside & (value == value)
        low = tl.minimum(low, tl.where(known, value, float("inf")))
        high = tl.maximum(high, tl.where(known, value, float("-inf")))
        filled += tl.where(inside & (value != 0.0), 1.0, 0.0)
        total += value
        square += value * value
        nan += tl.where(value != value, 1.0, 0.0)
    to = parts + (row * tl.num_programs(0) + part) * 6
    tl.store(to, tl.min(low, 0))
    tl.store(to + 1, tl.max(high, 0))
    tl.store(to + 2, tl.sum(filled, 0))
    tl.store(to + 3, tl.sum(total, 0))
    tl.store(to + 4, tl.sum(square, 0))
    tl.store(to + 5, tl.sum(nan, 0))
