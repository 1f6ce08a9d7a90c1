"""Quantisation-aware training (QAT): a forward pass reads FP4 numbers, and gradients pass the rounding unchanged.

Letters are those of `ops.py`. Report section 3.4: after pre-training, V4 learns with its routed experts, and with the
indexer's queries and keys, in MXFP4. The optimizer keeps full-precision masters: what a forward reads of them is
rounded anew each time, and the gradient of the rounded number is taken for the master's (the straight-through
estimator). Released training goes by way of FP8, which holds the same numbers (`mxfp4.to_fp8`).

    model.use(fp4_ops(FAST))  # from now on, training and inference alike; model.use(FAST) ends it

What `round_activations` and precision="released" do besides, `model.use(FAST)` does not end.
"""

from collections.abc import Callable

from torch import Tensor

from minidsv4.lowbit import mxfp4
from minidsv4.ops import Ops
from minidsv4.visibility import Visibility


def straight_through(rounded: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`rounded(x)`, to the bit, whose gradient is the gradient of `x`."""
    return rounded(x).detach() + (x - x.detach())


def as_fp4(x: Tensor) -> Tensor:
    """Numbers [..., width] rounded to MXFP4 along the last axis; gradients pass."""
    return straight_through(mxfp4.rounded, x)


def fp4_ops(table: Ops, rounded: Callable[[Tensor], Tensor] = mxfp4.rounded) -> Ops:
    """The table with routed experts, index queries and index keys in MXFP4.

    Shared experts are FP8 when released. Ranks that spread experts
    (`parallel/experts.py`) hold their own products, which read the masters.

    table    PLAIN, FAST, or what replaces either
    rounded  another rounding of the experts' matrices, such as
             `rounding.FORMATS[2.5].round`
    raises   ValueError for what is no table of operations; a step raises it where a
             model's experts lie on disk
    """

    def experts(
        x: Tensor,
        picked: Tensor,
        weight: Tensor,
        w13_EFD: Tensor,
        w2_EDF: Tensor,
        limit: float,
    ) -> Tensor:
        w13_EFD = straight_through(rounded, w13_EFD)
        w2_EDF = straight_through(rounded, w2_EDF)
        return table.experts(x, picked, weight, w13_EFD, w2_EDF, limit)

    return fp4_index_ops(table)._replace(experts=experts)


def fp4_index_ops(table: Ops) -> Ops:
    """The table with index queries and index keys in MXFP4, after the Hadamard matrix; weights as they are.

    raises  ValueError for what is no table of operations
    """
    if not isinstance(table, Ops):
        raise ValueError(
            f"ops: {type(table).__name__} is no table of operations; give PLAIN, FAST or what replaces either"
        )

    def top_entries(query_BTUZ: Tensor, weight_BTU: Tensor, keys_BCZ: Tensor, sees: Visibility, k: int) -> Tensor:
        return table.top_entries(as_fp4(query_BTUZ), weight_BTU, as_fp4(keys_BCZ), sees, k)

    def index_loss(attended: tuple, indexed: tuple) -> Tensor:
        query_BTUZ, weight_BTU, keys_BCZ = indexed
        return table.index_loss(attended, (as_fp4(query_BTUZ), weight_BTU, as_fp4(keys_BCZ)))

    return table._replace(top_entries=top_entries, index_loss=index_loss)
