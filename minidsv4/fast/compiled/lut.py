"""FP4 and FP8 matrices as float32, through a table of what every byte holds, in plain loops that numba compiles.

The bits are those of `lowbit.mxfp4.dequantise` and `lowbit.fp8.dequantise`, which stand above this room: their tables
are handed in. A core fills 2.4 to 3.2 billion numbers a second, where torch's operations fill 0.07 to 0.12 billion.
Loops of fixed length are twice as fast as one loop for both formats. Summing a product in these loops would save a
fifth to a third of the time, and sum in another order than the model's own product does.

    out     float32 [rows, columns]; the rows from `first` to before `last` are filled
    stored  uint8 [rows, columns / 2] of FP4, the even column in the low half of a byte; [rows, columns] of FP8
    table   what a byte holds: [256], two numbers in one int64 for FP4, a float32 for FP8
    scales  uint8 [rows, columns / 32] for FP4, one for each 128 x 128 block of FP8
    powers  float32 [256], the numbers that scales stand for
"""

import numpy as np

from minidsv4.fast.compiled.jit import compiled


@compiled
def fill_fp4(out, stored, table, scales, powers, first, last):
    """Two numbers a byte, 32 of them with one scale."""
    pairs = out.view(np.int64)
    for row in range(first, last):
        for group in range(scales.shape[1]):
            for place in range(16 * group, 16 * group + 16):
                pairs[row, place] = table[stored[row, place]]
            scale = powers[scales[row, group]]
            for column in range(32 * group, 32 * group + 32):
                out[row, column] *= scale


@compiled
def fill_fp8(out, stored, table, scales, powers, first, last):
    """A number a byte, 128 of a row with one scale; the last may be fewer."""
    for row in range(first, last):
        for group in range(scales.shape[1]):
            scale = powers[scales[row // 128, group]]
            for column in range(128 * group, min(out.shape[1], 128 * group + 128)):
                out[row, column] = table[stored[row, column]] * scale
