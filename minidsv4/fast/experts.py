"""Experts on sorted tokens: one product an expert, over the tokens that picked it.

T tokens, D width, A active experts, E experts, F expert width.
"""

import torch
from torch import Tensor

from minidsv4.fast.function import FastFunction, first_derivative_only, need_numbers
from minidsv4.fast.products import linear, put_over_rows
from minidsv4.fast.swiglu import INNER, Inner
from minidsv4.ops import upcast


def experts(
    x: Tensor, picked: Tensor, weight: Tensor, w13_EFD: Tensor, w2_EDF: Tensor, limit: float, inner: Inner = INNER
) -> Tensor:
    """`ops.experts` in A of E of its products; each token's experts are summed in their order.

    inner  how SwiGLU is computed
    """
    need_numbers(x)
    expert, order = picked.flatten().sort(stable=True)
    visited, counts = expert.unique_consecutive(return_counts=True)
    visits = list(zip(visited.tolist(), counts.tolist()))
    x_TD = x.reshape(-1, x.shape[-1])
    weight_TA = weight.reshape(-1, weight.shape[-1]).to(upcast(x).dtype)
    rest = order, visits, limit, inner, torch.is_grad_enabled()
    out_TD = PickedExperts.run(x_TD, weight_TA, w13_EFD, w2_EDF, *rest)
    return out_TD.view(x.shape)


class PickedExperts(FastFunction):
    """`experts` on pairs of token and pick, `order` sorting them by expert; gates and ups are all that it keeps.

    Its backward gathers an expert's rows, uses them and forgets them while they are in the processor's cache.
    """

    @staticmethod
    def forward(ctx, x_TD, weight_TA, w13, w2, order, visits: list[tuple[int, int]], limit, inner: Inner, learning):
        out_TD, raws = torch.zeros_like(upcast(x_TD)), []
        pairs = order.split([count for _, count in visits])
        for (e, _), pair in zip(visits, pairs):
            token = pair // weight_TA.shape[1]
            raw = linear(x_TD.index_select(0, token), w13[e])
            gated = inner.rows(raw, weight_TA.flatten()[pair, None], limit)
            out_TD.index_add_(0, token, upcast(linear(gated.to(x_TD.dtype), w2[e])))
            if learning:
                raws.append(raw)
        ctx.save_for_backward(x_TD, weight_TA, w13, w2, order, *raws)
        ctx.visits, ctx.limit, ctx.inner = visits, limit, inner
        return out_TD.to(x_TD.dtype)

    @staticmethod
    @first_derivative_only
    def backward(ctx, grad_TD: Tensor):
        x_TD, weight_TA, w13, w2, order, *raws = ctx.saved_tensors
        d_x, d_weight = torch.zeros_like(upcast(x_TD)), torch.empty_like(weight_TA)
        new = torch.empty_like if len(ctx.visits) == len(w13) else torch.zeros_like  # unvisited experts learn nothing
        d_w13, d_w2 = new(w13), new(w2)
        pairs = order.split([count for _, count in ctx.visits])
        for (e, _), pair, raw in zip(ctx.visits, pairs, raws):
            token = pair // weight_TA.shape[1]
            weight = weight_TA.flatten()[pair, None]
            rows, grad = x_TD.index_select(0, token), grad_TD.index_select(0, token)
            pull = upcast(linear(grad, w2[e].T))
            gated, d_raw, d_weight.view(-1)[pair] = ctx.inner.back(raw, weight, ctx.limit, pull)
            put_over_rows(d_w2[e], grad, gated.to(grad.dtype))
            put_over_rows(d_w13[e], d_raw, rows)
            d_x.index_add_(0, token, upcast(linear(d_raw, w13[e].T)))
        return d_x.to(x_TD.dtype), d_weight, d_w13, d_w2, *[None] * 5
