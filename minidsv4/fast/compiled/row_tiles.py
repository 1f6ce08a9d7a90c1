"""Products of many rows with a matrix, each sum in one fixed order, however many rows there are.

T tokens (rows), K numbers that are summed over, S rows of the matrix. A sum is taken in lanes: number k is added to
lane k modulo their number, each step rounded once, and the lanes are added in pairs, pairs of pairs, and so on. All
tiles below do just this for every row and every sum, so which tile takes a row changes no bit.
"""

from collections.abc import Callable

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from minidsv4.fast.compiled.head_tiles import aligned, integer, multiply_add, opened
from minidsv4.fast.compiled.jit import as_written

VECTOR_BYTES = 64  # a processor with shorter vectors takes several for one


def row_tile(n_sums: int, n_rows: int) -> Callable:
    """The function `put(out_TS, out_first, weight_SK, x_TK, x_first, s, t)` of compiled loops.

    It fills out[t', out_first + s'] with the sum over k of weight[s', k] x[t', x_first + k], for `n_sums` rows of the
    matrix from s on and `n_rows` rows of x from t on. All arrays are C-contiguous and of one type.
    """

    @intrinsic
    def put(_context, out_TS, out_first, weight_SK, x_TK, x_first, s, t):
        def generate(context, builder, signature, values):
            out, out_first, weight, x, x_first, s, t = opened(context, builder, signature, values)
            width = builder.extract_value(weight.shape, 1)
            weights = [row_of(builder, weight, s, place) for place in range(n_sums)]
            rows = [row_of(builder, x, t, place, x_first) for place in range(n_rows)]
            sums = lane_sums(builder, width, weights, rows)
            for row in range(n_rows):
                target = row_of(builder, out, t, row, builder.add(out_first, s))
                for place, total in enumerate(sums[row * n_sums : (row + 1) * n_sums]):
                    builder.store(total, builder.gep(target, [integer(place)]))
            return context.get_dummy_value()

        return types.void(out_TS, types.intp, weight_SK, x_TK, types.intp, types.intp, types.intp), generate

    return put


def row_of(builder: ir.IRBuilder, matrix, first, place: int, column=None):
    """Where row `first + place` of a matrix begins, or its given column."""
    start = builder.mul(builder.add(first, integer(place)), builder.extract_value(matrix.shape, 1))
    return builder.gep(matrix.data, [start if column is None else builder.add(start, column)])


def lane_sums(builder: ir.IRBuilder, width, weights: list, rows: list) -> list:
    """The sum of products of every row with every row of the matrix, row by row."""
    number = weights[0].type.pointee
    lanes = VECTOR_BYTES // aligned(weights[0])
    vector = ir.VectorType(number, lanes)
    zero = ir.Constant(vector, [0.0] * lanes)
    totals = [cgutils.alloca_once_value(builder, zero) for _ in rows for _ in weights]
    whole = builder.udiv(width, integer(lanes))
    with cgutils.for_range(builder, whole) as loop:
        place = builder.mul(loop.index, integer(lanes))
        if len(rows) == 1:
            fetch_next(builder, weights, width, place)
        loaded = [vector_at(builder, weight, place, vector) for weight in weights]
        for number_of_row, row in enumerate(rows):
            x = vector_at(builder, row, place, vector)
            for weight, total in zip(loaded, totals[number_of_row * len(weights) :]):
                builder.store(multiply_add(builder, weight, x, builder.load(total)), total)
    sums = added_lanes(builder, [builder.load(total) for total in totals])
    scalars = [cgutils.alloca_once_value(builder, total) for total in sums]
    with cgutils.for_range_slice(builder, builder.mul(whole, integer(lanes)), width, integer(1)) as (k, _):
        for number_of_row, row in enumerate(rows):
            x = builder.load(builder.gep(row, [k]))
            for weight, total in zip(weights, scalars[number_of_row * len(weights) :]):
                builder.store(
                    multiply_add(builder, builder.load(builder.gep(weight, [k])), x, builder.load(total)), total
                )
    return [builder.load(total) for total in scalars]


def fetch_next(builder: ir.IRBuilder, weights: list, width, place) -> None:
    """Fetch ahead the numbers at `place` of the rows that are taken next: with one token the loop waits for memory.

    A processor guesses what follows in a row, and not which row is next. An address beyond the matrix does no harm.
    """
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    to_read, to_all_caches, data = (ir.Constant(number, value) for value in (0, 3, 1))
    ahead = builder.add(place, builder.mul(width, integer(len(weights))))
    for weight in weights:
        where = builder.bitcast(builder.gep(weight, [ahead]), byte)
        builder.call(prefetch, [where, to_read, to_all_caches, data])


def vector_at(builder: ir.IRBuilder, data, place, vector: ir.VectorType):
    """The numbers from `place` on, as many as a vector has lanes."""
    where = builder.bitcast(builder.gep(data, [place]), vector.as_pointer())
    return builder.load(where, align=aligned(data))


def added_lanes(builder: ir.IRBuilder, vectors: list) -> list:
    """The sum of each vector's lanes: neighbours are added, then neighbouring pairs, and so on."""
    lanes = vectors[0].type.count
    sums = []
    for first in range(0, len(vectors), lanes):
        group = vectors[first : first + lanes]
        n_sums = len(group)
        for _ in range(lanes.bit_length() - 1):
            others = group[1::2] or group  # a vector that is alone is paired with itself
            group = [pairs_added(builder, one, two) for one, two in zip(group[::2], others)]
        sums += [builder.extract_element(group[0], integer(place)) for place in range(n_sums)]
    return sums


def pairs_added(builder: ir.IRBuilder, one, two):
    """The sums of neighbouring lanes of one vector, then those of another."""
    lanes, number = one.type.count, ir.IntType(32)
    even, odd = (
        builder.shuffle_vector(one, two, ir.Constant(ir.VectorType(number, lanes), list(range(first, 2 * lanes, 2))))
        for first in (0, 1)
    )
    return builder.fadd(even, odd)


four_by_four, eight_by_one, one_by_one = row_tile(4, 4), row_tile(8, 1), row_tile(1, 1)


@as_written
def put_product(out_TS, out_first, weight_SK, x_TK, x_first):
    """out[t, out_first + s] = sum_k weight[s, k] x[t, x_first + k]: rows of the matrix are read once for all tokens."""
    n_sums, n_rows = len(weight_SK), len(x_TK)
    n_eights, n_fours = n_sums - n_sums % 8, n_rows - n_rows % 4
    for s in range(0, n_eights, 8):
        for t in range(0, n_fours, 4):
            four_by_four(out_TS, out_first, weight_SK, x_TK, x_first, s, t)
            four_by_four(out_TS, out_first, weight_SK, x_TK, x_first, s + 4, t)
        for t in range(n_fours, n_rows):
            eight_by_one(out_TS, out_first, weight_SK, x_TK, x_first, s, t)
    for s in range(n_eights, n_sums):
        for t in range(n_rows):
            one_by_one(out_TS, out_first, weight_SK, x_TK, x_first, s, t)


@as_written
def product(weight_SK, x_TK):
    """`x @ weight.T` [T, S]."""
    out_TS = np.empty((len(x_TK), len(weight_SK)), x_TK.dtype)
    put_product(out_TS, 0, weight_SK, x_TK, 0)
    return out_TS
