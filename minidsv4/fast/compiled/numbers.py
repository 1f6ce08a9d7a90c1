"""Numbers in compiled loops that are rounded in one way only: fused multiply-add, and exp from it.

A library's exp may differ in its last bits between a lone number and one of a vector; and `a * b + c` may or may not be
rounded in between. Here both are spelled out, so that a loop gives the same bits whether or not it fills lanes.
"""

import math

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from minidsv4.fast.compiled.head_tiles import multiply_add
from minidsv4.fast.compiled.jit import as_written

LOWEST, HIGHEST = -87.0, 88.0  # exp of them is a normal float32; a sum that holds 1 does not notice what is below
LOG2_E = 1 / math.log(2)
LN_2_HIGH = 355 / 512  # ln(2) in two parts; a whole number times the first has no rounding error
LN_2_LOW = math.log(2) - LN_2_HIGH
C2, C3, C4, C5, C6, C7, C8, C9, C10, C11, C12, C13 = (1 / math.factorial(power) for power in range(2, 14))


@intrinsic
def fma(_context, one, two, total):
    """one * two + total in the type of `one`, rounded once."""

    def generate(context, builder, signature, values):
        cast = [context.cast(builder, value, kind, one) for value, kind in zip(values, signature.args)]
        return multiply_add(builder, *cast)

    return one(one, two, total), generate


@intrinsic
def as_of(_context, value, like):
    """The value in the type of `like`."""

    def generate(context, builder, signature, values):
        return context.cast(builder, values[0], signature.args[0], like)

    return like(value, like), generate


@intrinsic
def magic(_context, like):
    """1.5 * 2^52, or 2^23 in float32: added to a number, it leaves its nearest integer in the last bits."""

    def generate(context, _builder, _signature, _values):
        return context.get_constant(like, 1.5 * 2.0 ** fraction_bits(like))

    return like(like), generate


@intrinsic
def power_of_two(_context, shifted):
    """2^n, from `magic + n`."""

    def generate(_context, builder, _signature, values):
        n_bits = 64 if shifted == types.float64 else 32
        whole = ir.IntType(n_bits)
        fraction = fraction_bits(shifted)
        bias = (1 << (n_bits - fraction - 2)) - 1
        bits = builder.add(builder.bitcast(values[0], whole), ir.Constant(whole, bias))
        return builder.bitcast(builder.shl(bits, ir.Constant(whole, fraction)), values[0].type)

    return shifted(shifted), generate


def fraction_bits(kind: types.Float) -> int:
    """The bits of a fraction."""
    return 52 if kind == types.float64 else 23


@as_written
def exp(x):
    """exp(x) of one number, x first moved into LOWEST .. HIGHEST: x = n ln(2) + r, exp(r) by Taylor, times 2^n."""
    lowest, highest = as_of(LOWEST, x), as_of(HIGHEST, x)
    x = lowest if x < lowest else x
    x = highest if x > highest else x
    shifted = fma(x, LOG2_E, magic(x))
    n = shifted - magic(x)
    r = fma(n, -LN_2_LOW, fma(n, -LN_2_HIGH, x))
    rest = fma(r, fma(r, fma(r, fma(r, fma(r, as_of(C13, x), C12), C11), C10), C9), C8)
    rest = fma(r, fma(r, fma(r, fma(r, fma(r, fma(r, rest, C7), C6), C5), C4), C3), C2)
    return fma(r, fma(r, rest, 1.0), 1.0) * power_of_two(shifted)


@as_written
def sigmoid(x):
    """1 / (1 + exp(-x)) of one number."""
    one = as_of(1.0, x)
    return one / (one + exp(-x))
