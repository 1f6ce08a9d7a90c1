"""Attention of four heads to one strip of entries, in the processor's registers; eqs. (19), (26), (27).

H heads, K head width, S entries of one strip. The instructions are written out, as in `head_tiles`.
"""

import functools
import math

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from minidsv4.fast.compiled.head_tiles import (
    LANES,
    STRIP,
    SUM_BYTES,
    aligned,
    integer,
    load,
    multiply_add,
    opened,
    pointer,
    products,
    spread,
)

HEADS = 4  # that pass over a strip together
WIDTH = 2 * LANES  # numbers of each head's sum that stay in registers; a head's width is filled up to a multiple
LOWEST = -80.0  # below the largest score: exp(-80) counts for nothing, and a float32 still holds it
DEGREES = {4: 7, 8: 13}  # of exp's Taylor polynomial up to ln(2) / 2, to the last digit, by bytes of a number
FORMATS = {4: (32, 23, 127), 8: (64, 52, 1023)}  # bits, bits of the fraction, bias of the exponent


@intrinsic
def put_strip(_context, query_THK, t, h, keys_KS, score_HS):
    """Fill `score_HS` [HEADS, S] with the dot products of query t's heads from `h` on with a strip of keys."""

    def generate(context, builder, signature, values):
        query, t, first_head, keys, score = opened(context, builder, signature, values)
        width = builder.extract_value(query.shape, 2)
        heads = [place_of(builder, query, t, first_head, head) for head in range(HEADS)]
        size = max(LANES, SUM_BYTES // (HEADS * aligned(score.data)))
        for first in range(0, STRIP, size):
            places = range(first, min(first + size, STRIP), LANES)
            dots = products(builder, query.data, keys.data, width, heads, places)
            for (u, place), kept in dots.items():
                store(builder, builder.load(kept), score.data, heads.index(u) * STRIP + place)
        return context.get_dummy_value()

    return types.void(query_THK, types.intp, types.intp, keys_KS, score_HS), generate


@intrinsic
def any_higher(_context, score_HS, largest_TH, t, h):
    """Whether a score is above the largest so far of its head; NaN is not."""

    def generate(context, builder, signature, values):
        score, largest, t, h = opened(context, builder, signature, values)
        found = ir.Constant(ir.IntType(LANES), 0)
        for head in range(HEADS):
            edge = spread(builder, largest.data, place_of(builder, largest, t, h, head))
            higher = builder.fcmp_ordered(">", largest_of(builder, rows_of(builder, score, head)), edge)
            found = builder.or_(found, builder.bitcast(higher, found.type))
        return builder.icmp_unsigned("!=", found, found.type(0))

    return types.boolean(score_HS, largest_TH, types.intp, types.intp), generate


@intrinsic
def put_maxima(_context, score_HS, largest_H):
    """Fill `largest_H` with the largest score of each head; NaN is passed over."""

    def generate(context, builder, signature, values):
        score, largest = opened(context, builder, signature, values)
        for head in range(HEADS):
            top = reduced(builder, "fmax", largest_of(builder, rows_of(builder, score, head)))
            builder.store(top, builder.gep(largest.data, [integer(head)]))
        return context.get_dummy_value()

    return types.void(score_HS, largest_H), generate


@intrinsic
def exponentiate(_context, score_HS, largest_TH, t, h, total_TH):
    """Turn each score into `exp(score - largest)`, and add the sums over the strip to the totals."""

    def generate(context, builder, signature, values):
        score, largest, t, h, total = opened(context, builder, signature, values)
        for head in range(HEADS):
            place = place_of(builder, largest, t, h, head)
            shift, powers = spread(builder, largest.data, place), []
            for first, row in zip(range(head * STRIP, (head + 1) * STRIP, LANES), rows_of(builder, score, head)):
                powers.append(exponential(builder, builder.fsub(row, shift)))
                store(builder, powers[-1], score.data, first)
            kept = builder.gep(total.data, [place])
            added = reduced(builder, "fadd", functools.reduce(builder.fadd, powers))
            builder.store(builder.fadd(builder.load(kept), added), kept)
        return context.get_dummy_value()

    return types.void(score_HS, largest_TH, types.intp, types.intp, total_TH), generate


@intrinsic
def add_strip(_context, weight_HS, values_SK, first, stop, mixed_THK, t, h):
    """Add the entries `first .. stop - 1` of a strip, weighted, to the sums of query t's heads from `h` on.

    The width of entries and sums is a multiple of WIDTH.
    """

    def generate(context, builder, signature, values):
        weight, rows, first, stop, mixed, t, h = opened(context, builder, signature, values)
        width = builder.extract_value(rows.shape, 1)
        heads = [builder.mul(place_of(builder, mixed, t, h, head), width) for head in range(HEADS)]
        with cgutils.for_range(builder, builder.udiv(width, integer(WIDTH))) as part:
            column = builder.mul(part.index, integer(WIDTH))
            add_columns(builder, (weight, rows, mixed), (first, stop), (heads, column, width))
        return context.get_dummy_value()

    arguments = weight_HS, values_SK, types.intp, types.intp, mixed_THK, types.intp, types.intp
    return types.void(*arguments), generate


def place_of(builder: ir.IRBuilder, array, t, first_head, head: int):
    """Where head `first_head + head` of query t comes among all heads of an array [T, H, ...]."""
    n_heads = builder.extract_value(array.shape, 1)
    return builder.add(builder.mul(t, n_heads), builder.add(first_head, integer(head)))


def rows_of(builder: ir.IRBuilder, score, head: int) -> list:
    """The vectors of one head's scores."""
    return [load(builder, score.data, integer(head * STRIP + place)) for place in range(0, STRIP, LANES)]


def largest_of(builder: ir.IRBuilder, vectors: list):
    """The largest numbers of each lane; NaN is passed over."""
    top = vectors[0]
    for vector in vectors[1:]:
        top = builder.select(builder.fcmp_ordered(">", vector, top), vector, top)
    return top


def add_columns(builder: ir.IRBuilder, arrays: tuple, inside: tuple, where: tuple) -> None:
    """`add_strip` of WIDTH columns, whose sums are vectors in registers."""
    (weight, rows, mixed), (heads, column, width) = arrays, where
    places = {}
    for head, row in enumerate(heads):
        for lane in range(0, WIDTH, LANES):
            places[head, lane] = builder.add(builder.add(row, column), integer(lane))
    sums = {key: cgutils.alloca_once_value(builder, load(builder, mixed.data, at)) for key, at in places.items()}
    with cgutils.for_range_slice(builder, *inside, integer(1), integer(0).type) as (s, _):
        row = builder.add(builder.mul(s, width), column)
        value = {lane: load(builder, rows.data, builder.add(row, integer(lane))) for lane in range(0, WIDTH, LANES)}
        for head in range(HEADS):
            share = spread(builder, weight.data, builder.add(s, integer(head * STRIP)))
            for lane in value:
                total = builder.load(sums[head, lane])
                builder.store(multiply_add(builder, share, value[lane], total), sums[head, lane])
    for key, at in places.items():
        builder.store(builder.load(sums[key]), pointer(builder, mixed.data, at), align=aligned(mixed.data))


def exponential(builder: ir.IRBuilder, x):
    """exp of a vector of numbers up to 0: x = n ln(2) + r, exp(r) by Taylor, 2^n from its bits; NaN stays NaN."""
    kind, size = x.type, 8 if isinstance(x.type.element, ir.DoubleType) else 4
    n_bits, n_fraction, bias = FORMATS[size]
    whole = ir.VectorType(ir.IntType(n_bits), LANES)
    ln_2 = float(np.float32(math.log(2))) if size == 4 else math.log(2)
    lowest = constant(kind, LOWEST)
    x = builder.select(builder.fcmp_ordered("<", x, lowest), lowest, x)
    n = call(builder, "floor", kind, multiply_add(builder, x, constant(kind, 1 / math.log(2)), constant(kind, 0.5)))
    r = multiply_add(builder, n, constant(kind, -ln_2), x)
    r = multiply_add(builder, n, constant(kind, ln_2 - math.log(2)), r)  # what rounding ln(2) took away
    power = constant(kind, 1 / math.factorial(DEGREES[size]))
    for degree in reversed(range(DEGREES[size])):
        power = multiply_add(builder, power, r, constant(kind, 1 / math.factorial(degree)))
    exponent = builder.add(builder.fptosi(n, whole), constant(whole, bias))
    return builder.fmul(power, builder.bitcast(builder.shl(exponent, constant(whole, n_fraction)), kind))


def constant(kind: ir.VectorType, value: float) -> ir.Constant:
    """A vector of one number, LANES times."""
    return ir.Constant(kind, [value] * LANES)


def reduced(builder: ir.IRBuilder, how: str, vector):
    """The sum ("fadd") or the maximum ("fmax") of all numbers of a vector, which may be taken in any order."""
    start = [ir.Constant(vector.type.element, 0.0)] if how == "fadd" else []
    return call(builder, f"vector.reduce.{how}", vector.type.element, *start, vector)


def call(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments):
    """What LLVM's own function of this name gives for a vector; sums may be taken in any order."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    name = f"llvm.{name}.v{LANES}f{64 if isinstance(arguments[-1].type.element, ir.DoubleType) else 32}"
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, arguments, fastmath=("nsz", "reassoc"))


def store(builder: ir.IRBuilder, vector, data, place: int) -> None:
    """Write a vector at `place`."""
    builder.store(vector, pointer(builder, data, integer(place)), align=aligned(data))
