"""One block for the new tokens of one sequence in a single call: handing over arrays costs more than a small product.

T tokens, N streams, D width.
"""

import numpy as np

from minidsv4.fast.compiled.jit import as_written
from minidsv4.fast.compiled.row_loops import enter, leave
from minidsv4.fast.compiled.sequence_loops import attend_sequence


@as_written
def block(streams_TND, position_T, token_T, layer, cache, sizes):
    """One block in place: `streams -> read -> norm -> attention -> write -> read -> norm -> experts -> write`."""
    flat, post_TN, carry_Tij = enter(streams_TND, position_T, layer.enter, sizes)
    out_THK = np.empty_like(flat.query_THK)
    first = np.int64(0)  # a constant would be a type of its own, for which all of attention is compiled once more
    attend_sequence(out_THK, flat, first, len(position_T), position_T[0], layer.attend, cache, sizes)
    leave(streams_TND, out_THK, post_TN, carry_Tij, token_T, layer.leave, sizes)
