"""Scores of a strip of keys by a few heads, summed in the processor's registers; eq. (16).

U index heads, Z index width, S keys of one strip. In loops that numba compiles every partial sum goes to
memory, since LLVM vectorises the innermost loop alone. Here the instructions are written out: the sums of
a few heads with many keys are vectors that stay in registers while the width is passed over.
"""

import llvmlite.binding
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

STRIP = 64  # keys that are scored together
LANES = 16  # numbers in one vector; a processor with shorter ones takes several for it
SUM_BYTES = 1024 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 256  # that registers hold


@intrinsic
def add_heads(_context, query_TUZ, gate_TU, t, first, stop, keys_NZS, n, score_S):
    """Add `sum_u gate[t, u] relu(query[t, u] . key[s])` over the heads `first .. stop - 1` to the scores of strip n.

    Their number is even. NaN stays NaN, and a key scores alike in any strip. All arrays are C-contiguous and of one
    type, float32 or float64. They are given whole, since references to what is cut out are counted (`attention_loops`).
    """

    def generate(context, builder, signature, values):
        query, gate, t, first, stop, keys, n, score = opened(context, builder, signature, values)
        _, n_heads, width = cgutils.unpack_tuple(builder, query.shape)
        heads = builder.mul(t, n_heads)
        query_UZ = builder.gep(query.data, [builder.mul(heads, width)])
        keys_ZS = builder.gep(keys.data, [builder.mul(builder.mul(n, width), integer(STRIP))])
        arrays = query_UZ, builder.gep(gate.data, [heads]), keys_ZS, score.data
        rest = builder.urem(builder.sub(stop, first), integer(4))
        with cgutils.for_range_slice(builder, first, builder.sub(stop, rest), integer(4), first.type) as (u, _):
            add_group(builder, arrays, width, u, 4)
        with builder.if_then(builder.icmp_unsigned("!=", rest, integer(0))):
            add_group(builder, arrays, width, builder.sub(stop, rest), 2)
        return context.get_dummy_value()

    arguments = query_TUZ, gate_TU, types.intp, types.intp, types.intp, keys_NZS, types.intp, score_S
    return types.void(*arguments), generate


def add_group(builder: ir.IRBuilder, arrays: tuple, width, first_head, n_heads: int) -> None:
    """`add_heads` of a few heads, from `first_head` on, for which the registers hold the sums of many keys."""
    query, gate, keys, score = arrays
    heads = [builder.add(first_head, integer(head)) for head in range(n_heads)]
    size = min(STRIP, max(LANES, SUM_BYTES // (n_heads * aligned(score))))
    for first in range(0, STRIP, size):
        places = range(first, first + size, LANES)
        add_gated(builder, gate, score, products(builder, query, keys, width, heads, places), places)


@intrinsic
def clear(_context, score_S):
    """Set the scores of a strip to 0, in vectors as long as those that read them."""

    def generate(context, builder, signature, values):
        (score,) = opened(context, builder, signature, values)
        for place in range(0, STRIP, LANES):
            zero = ir.Constant(vector_of(score.data), [0.0] * LANES)
            builder.store(zero, pointer(builder, score.data, integer(place)), align=aligned(score.data))
        return context.get_dummy_value()

    return types.void(score_S), generate


@intrinsic
def above(_context, score_S, edge):
    """A whole number whose bit s says that score s of the strip is above the edge, or NaN."""

    def generate(context, builder, signature, values):
        score, edge = opened(context, builder, signature, values)
        lowest, found = broadcast(builder, edge), ir.Constant(ir.IntType(64), 0)
        for place in range(0, STRIP, LANES):
            higher = builder.fcmp_unordered(">", load(builder, score.data, integer(place)), lowest)
            bits = builder.zext(builder.bitcast(higher, ir.IntType(LANES)), ir.IntType(64))
            found = builder.or_(found, builder.shl(bits, integer(place)))
        return found

    return types.uint64(score_S, score_S.dtype), generate


@intrinsic
def lowest_bit(_context, bits):
    """The place of the lowest bit that is set, of a number that is not 0."""

    def generate(_context, builder, _signature, values):
        return builder.cttz(values[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


def opened(context, builder: ir.IRBuilder, signature, values) -> list:
    """What a function is called with: each array with its `data` and `shape`, and each number as it is."""
    pairs = zip(signature.args, values)
    return [
        context.make_array(kind)(context, builder, value) if isinstance(kind, types.Array) else value
        for kind, value in pairs
    ]


def products(builder: ir.IRBuilder, query, keys, width, heads: list, places: range) -> dict:
    """Where the dot products lie of each head with the keys of each vector, which begin at `places`."""
    zero = ir.Constant(vector_of(keys), [0.0] * LANES)
    dots = {(u, place): cgutils.alloca_once_value(builder, zero) for u in heads for place in places}
    with cgutils.for_range(builder, width) as loop:
        row = builder.mul(loop.index, integer(STRIP))
        key = {place: load(builder, keys, builder.add(row, integer(place))) for place in places}
        for u in heads:
            weight = spread(builder, query, builder.add(builder.mul(u, width), loop.index))
            for place in places:
                dot = builder.load(dots[u, place])
                builder.store(multiply_add(builder, weight, key[place], dot), dots[u, place])
    return dots


def add_gated(builder: ir.IRBuilder, gate, score, dots: dict, places: range) -> None:
    """Add `gate relu(dot)` of every head to the scores."""
    for place in places:
        total = load(builder, score, integer(place))
        for u in (head for head, where in dots if where == place):
            dot = builder.load(dots[u, place])
            zero = ir.Constant(dot.type, [0.0] * LANES)
            positive = builder.select(builder.fcmp_ordered("<", dot, zero), zero, dot)
            total = multiply_add(builder, spread(builder, gate, u), positive, total)
        builder.store(total, pointer(builder, score, integer(place)), align=aligned(score))


def integer(value: int) -> ir.Constant:
    """A constant index."""
    return ir.Constant(ir.IntType(64), value)


def vector_of(data) -> ir.VectorType:
    """The vector of LANES numbers of an array's type."""
    return ir.VectorType(data.type.pointee, LANES)


def aligned(data) -> int:
    """Bytes that a vector's address is a multiple of: those of a single number."""
    return 8 if isinstance(data.type.pointee, ir.DoubleType) else 4


def pointer(builder: ir.IRBuilder, data, place):
    """Where the vector that begins at `place` lies."""
    return builder.bitcast(builder.gep(data, [place]), vector_of(data).as_pointer())


def load(builder: ir.IRBuilder, data, place):
    """The vector that begins at `place`."""
    return builder.load(pointer(builder, data, place), align=aligned(data))


def spread(builder: ir.IRBuilder, data, place):
    """A vector of the number at `place`, LANES times."""
    return broadcast(builder, builder.load(builder.gep(data, [place])))


def broadcast(builder: ir.IRBuilder, number):
    """A vector of one number, LANES times."""
    nothing, lane = ir.Constant(ir.VectorType(number.type, LANES), ir.Undefined), ir.IntType(32)
    first = builder.insert_element(nothing, number, ir.Constant(lane, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(lane, LANES), [0] * LANES))


def multiply_add(builder: ir.IRBuilder, one, two, total):
    """one * two + total, rounded once, of numbers or vectors."""
    kind = one.type
    number = kind.element if isinstance(kind, ir.VectorType) else kind
    bits = "f64" if isinstance(number, ir.DoubleType) else "f32"
    lanes = f"v{kind.count}" if isinstance(kind, ir.VectorType) else ""
    signature = ir.FunctionType(kind, [kind, kind, kind])
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.fma.{lanes}{bits}")
    return builder.call(function, [one, two, total])
