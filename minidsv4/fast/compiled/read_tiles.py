"""Attention of all heads to the rows that one query reads, in the processor's registers; eqs. (19), (26), (27).

H heads, K head width, S rows that the query reads. The instructions are written out, as in `head_tiles`. The numbers
of heads, rows and columns are filled up to multiples of HEADS, LANES and WIDTH.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from minidsv4.fast.compiled.attention_tiles import HEADS, WIDTH, constant, exponential, reduced
from minidsv4.fast.compiled.head_tiles import (
    LANES,
    SUM_BYTES,
    aligned,
    broadcast,
    integer,
    load,
    multiply_add,
    opened,
    pointer,
    spread,
    vector_of,
)
from minidsv4.fast.compiled.row_tiles import lane_sums, row_of

TILE = 4 if SUM_BYTES > 256 else 2  # vectors on each side of a tile of dot products


@intrinsic
def put_dots(_context, query_HK, n_heads, read_SK, n_read, dot_HS):
    """Fill `dot_HS` with the dot products of the first `n_heads` vectors with the first `n_read` rows."""

    def generate(context, builder, signature, values):
        query, n_heads, read, n_read, dot = opened(context, builder, signature, values)
        width = builder.extract_value(query.shape, 1)
        start, step = integer(0), integer(TILE)
        with cgutils.for_range_slice(builder, start, n_read, step, start.type) as (s, _):
            rows = [row_of(builder, read, s, place) for place in range(TILE)]
            with cgutils.for_range_slice(builder, start, n_heads, step, start.type) as (h, _):
                heads = [row_of(builder, query, h, place) for place in range(TILE)]
                sums = lane_sums(builder, width, rows, heads)
                for place in range(TILE):
                    target = row_of(builder, dot, h, place, s)
                    for number, total in enumerate(sums[place * TILE : (place + 1) * TILE]):
                        builder.store(total, builder.gep(target, [integer(number)]))
        return context.get_dummy_value()

    return types.void(query_HK, types.intp, read_SK, types.intp, dot_HS), generate


@intrinsic
def weigh(_context, score_HS, h, n_read, sink, largest_TH, total_TH, t):
    """Turn the scores of head h into `exp(score - largest)`, and put down the largest and the sum; the sink counts too.

    NaN stays NaN, and makes the sum NaN.
    """

    def generate(context, builder, signature, values):
        score, h, n_read, sink, largest, total, t = opened(context, builder, signature, values)
        first = builder.mul(h, builder.extract_value(score.shape, 1))
        top = cgutils.alloca_once_value(builder, broadcast(builder, sink))
        with vectors(builder, first, n_read) as place:
            row, kept = load(builder, score.data, place), builder.load(top)
            builder.store(builder.select(builder.fcmp_ordered(">", row, kept), row, kept), top)
        highest = reduced(builder, "fmax", builder.load(top))
        shift, zero = broadcast(builder, highest), constant(vector_of(score.data), 0.0)
        of_sink = exponential(builder, builder.fsub(broadcast(builder, sink), shift))
        powers = cgutils.alloca_once_value(builder, zero)
        with vectors(builder, first, n_read) as place:
            power = exponential(builder, builder.fsub(load(builder, score.data, place), shift))
            builder.store(power, pointer(builder, score.data, place), align=aligned(score.data))
            builder.store(builder.fadd(builder.load(powers), power), powers)
        own = builder.add(builder.mul(t, builder.extract_value(largest.shape, 1)), h)
        builder.store(highest, builder.gep(largest.data, [own]))
        added = builder.fadd(
            reduced(builder, "fadd", builder.load(powers)), builder.extract_element(of_sink, integer(0))
        )
        builder.store(added, builder.gep(total.data, [own]))
        return context.get_dummy_value()

    number = score_HS.dtype
    return types.void(score_HS, types.intp, types.intp, number, largest_TH, total_TH, types.intp), generate


@contextmanager
def vectors(builder: ir.IRBuilder, first, n) -> Iterator[ir.Value]:
    """A loop over the vectors of n numbers that begin at `first`: `with vectors(builder, first, n) as place`."""
    with cgutils.for_range_slice(builder, integer(0), n, integer(LANES), integer(0).type) as (s, _):
        yield builder.add(first, s)


def mix(turned: bool) -> Callable:
    """The function `put(out, n_out, weight, weight_first, rows, rows_first, n_rows)` of compiled loops.

    It fills row i of `out` with the sum over j of `weight[weight_first + i, j] rows[rows_first + j]`; turned, of
    `weight[weight_first + j, i] rows[rows_first + j]`.
    """

    @intrinsic
    def put(_context, out, n_out, weight, weight_first, rows, rows_first, n_rows):
        def generate(context, builder, signature, values):
            out, n_out, weight, weight_first, rows, rows_first, n_rows = opened(context, builder, signature, values)
            n_columns = builder.extract_value(weight.shape, 1)
            begin = builder.gep(weight.data, [builder.mul(weight_first, n_columns)])
            steps = (integer(1), n_columns) if turned else (n_columns, integer(1))
            size = max(LANES, min(WIDTH, SUM_BYTES // (HEADS * aligned(out.data))))
            width, zero = builder.extract_value(out.shape, 1), integer(0)
            with cgutils.for_range_slice(builder, zero, n_out, integer(HEADS), zero.type) as (i, _):
                shares = builder.gep(begin, [builder.mul(i, steps[0])])
                with cgutils.for_range_slice(builder, zero, width, integer(size), zero.type) as (column, _):
                    targets = [row_of(builder, out, i, place, column) for place in range(HEADS)]
                    source = row_of(builder, rows, rows_first, 0, column)
                    put_columns(builder, targets, (shares, steps), (source, width, n_rows), size)
            return context.get_dummy_value()

        arguments = out, types.intp, weight, types.intp, rows, types.intp, types.intp
        return types.void(*arguments), generate

    return put


put_mixed, put_turned = mix(turned=False), mix(turned=True)


def put_columns(builder: ir.IRBuilder, targets: list, weights: tuple, rows: tuple, size: int) -> None:
    """`mix` of a few rows of the result and `size` of its columns, whose sums are vectors in registers."""
    (shares, (step, next_row)), (source, width, n_rows) = weights, rows
    zero, lanes = constant(vector_of(source), 0.0), range(0, size, LANES)
    sums = {(i, lane): cgutils.alloca_once_value(builder, zero) for i in range(len(targets)) for lane in lanes}
    with cgutils.for_range(builder, n_rows) as loop:
        row = builder.mul(loop.index, width)
        value = {lane: load(builder, source, builder.add(row, integer(lane))) for lane in lanes}
        for i in range(len(targets)):
            place = builder.add(builder.mul(loop.index, next_row), builder.mul(step, integer(i)))
            share = spread(builder, shares, place)
            for lane in lanes:
                builder.store(multiply_add(builder, share, value[lane], builder.load(sums[i, lane])), sums[i, lane])
    for (i, lane), total in sums.items():
        where = pointer(builder, targets[i], integer(lane))
        builder.store(builder.load(total), where, align=aligned(targets[i]))
