"""One token of one sequence, as decoding asks for it, in few calls: what a small call costs is calling it.

B = T = 1, D width, N streams, S tokens of the window, H heads, K head width, C compressed entries, A active experts, E
experts, F expert width. Each form stands before the one for many tokens, which takes whatever else comes: more tokens,
gradients, stand-ins, other devices than the CPU, where looking at a number would wait for it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from minidsv4 import ops
from minidsv4.fast import attention, streams
from minidsv4.fast.experts import experts as sorted_experts
from minidsv4.fast.function import only_numbers
from minidsv4.fast.rms_norm import rms_norm as rms_norm_of_many
from minidsv4.fast.top_entries import scores_in_parts
from minidsv4.fast.top_entries import stable_topk as topk_of_many
from minidsv4.fast.top_entries import top_entries as best_of_many
from minidsv4.ops import swiglu, upcast
from minidsv4.visibility import Visibility

SORTED = 512  # scores up to which sorting them is cheaper than a top-k that looks for ties


def alone(x: Tensor) -> bool:
    """Whether `x` [B, T, ...] is of one token, on the CPU, and no gradient is asked for."""
    return x.shape[:2] == (1, 1) and x.is_cpu and only_numbers(x)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """`ops.rms_norm` of one vector, whose mean square is a number: three fifths of the time."""
    if weight is None or x.ndim != 3 or not alone(x):
        return rms_norm_of_many(x, weight, eps)
    vector = upcast(x)
    return (vector * inverse_rms(vector, eps) * upcast(weight)).to(x.dtype)


def inverse_rms(vector: Tensor, eps: float) -> float:
    """`1 / sqrt(mean(x^2) + eps)` over all that a vector holds."""
    norm = torch.linalg.vector_norm(vector).item()
    return (norm * norm / vector.numel() + eps) ** -0.5


def stable_topk(score: Tensor, k: int) -> Tensor:
    """`ops.stable_topk`, by sorting where scores are few."""
    form = ops.stable_topk if score.numel() <= SORTED else topk_of_many
    return form(score, k)


def top_entries(query_BTUZ: Tensor, weight_BTU: Tensor, keys_BCZ: Tensor, sees: Visibility, k: int) -> Tensor:
    """`ops.top_entries` of a query that sees every entry: one stretch, of which nothing is hidden; half the time."""
    if not (alone(query_BTUZ) and sees_all(sees) and k < sees.n_entries):
        return best_of_many(query_BTUZ, weight_BTU, keys_BCZ, sees, k)
    return stable_topk(scores_in_parts(query_BTUZ, weight_BTU, keys_BCZ), k)


def attend(query_BTHK: Tensor, window_BSK: Tensor, entries_BCK: Tensor, sees: Visibility, sinks_H: Tensor) -> Tensor:
    """`ops.attend` of a query that sees all it is given, so that nothing is hidden: half the time."""
    if not (alone(query_BTHK) and sees_all(sees)):
        return attention.attend(query_BTHK, window_BSK, entries_BCK, sees, sinks_H)
    query_HK = upcast(query_BTHK[0, 0]) * query_BTHK.shape[-1] ** -0.5
    near_SK, far_CK = upcast(window_BSK[0, -sees.window :]), entries_BCK[0]
    if sees.picks_BTP is not None and sees.picks_BTP.shape[2] < len(far_CK):
        far_CK = far_CK.index_select(0, sees.picks_BTP[0, 0])
    far_CK = upcast(far_CK)
    score = torch.cat([query_HK @ near_SK.T, query_HK @ far_CK.T, upcast(sinks_H)[:, None]], dim=1)
    near, far, _ = score.softmax(dim=1).split((len(near_SK), len(far_CK), 1), dim=1)  # eq. (27)
    return torch.addmm(near @ near_SK, far, far_CK).to(query_BTHK.dtype).view_as(query_BTHK)


def sees_all(sees: Visibility) -> bool:
    """Whether the one query sees every entry, as it does when it is the newest token of a row of one document."""
    return sees.document_BT is None and sees.n_visible(0) == sees.n_entries


def stream_logits(streams_BTND: Tensor, fn: Tensor, eps: float) -> Tensor:
    """`ops.stream_logits` with the norm a number, applied after the product."""
    if not alone(streams_BTND):
        return streams.stream_logits(streams_BTND, fn, eps)
    flat = upcast(streams_BTND).reshape(-1)
    return (F.linear(flat, upcast(fn)) * inverse_rms(flat, eps)).view(1, 1, -1)


def collapse(streams_BTND: Tensor, pre_BTN: Tensor) -> Tensor:
    """`ops.collapse` as the one product that it is."""
    if not alone(streams_BTND):
        return streams.collapse(streams_BTND, pre_BTN)
    return torch.bmm(pre_BTN, upcast(streams_BTND)[0]).to(streams_BTND.dtype)


def write(streams_BTND: Tensor, y_BTD: Tensor, post_BTN: Tensor, carry_BTij: Tensor) -> Tensor:
    """`ops.write` as one product to which the rest is added; two thirds of the time."""
    if not alone(streams_BTND):
        return streams.write(streams_BTND, y_BTD, post_BTN, carry_BTij)
    written = post_BTN.mT * upcast(y_BTD)
    return torch.baddbmm(written, carry_BTij[0].mT, upcast(streams_BTND)[0]).to(streams_BTND.dtype)[None]


def sinkhorn(logits_BTij: Tensor, iterations: int, eps: float) -> Tensor:
    """`ops.sinkhorn` of V4's four streams on Python's numbers, whose products cost a fiftieth of a call: a fifth.

    Dividing columns and rows in turn leaves `row[i] share[i, j] column[j]`, so that only factors change.
    """
    if not alone(logits_BTij) or logits_BTij.shape[-1] != 4 or eps <= 0:
        return streams.sinkhorn(logits_BTij, iterations, eps)
    share = (logits_BTij[0, 0].softmax(dim=-1) + eps).tolist()
    rows, columns = factors(share, iterations, eps)
    mix = [[row * x * column for x, column in zip(xs, columns)] for xs, row in zip(share, rows)]
    return logits_BTij.new_tensor([[mix]])


def factors(share: list[list[float]], iterations: int, eps: float) -> tuple[list[float], list[float]]:
    """What the divisions multiply the rows and the columns of a matrix [4, 4] by.

    A column that is divided by `its sum + eps` changes its factor c to `1 / (its sum / c + eps / c)`; so do rows.
    """
    (x00, x01, x02, x03), (x10, x11, x12, x13), (x20, x21, x22, x23), (x30, x31, x32, x33) = share
    r0 = r1 = r2 = r3 = c0 = c1 = c2 = c3 = 1.0
    for step in range(iterations):
        if step:
            r0 = 1 / (x00 * c0 + x01 * c1 + x02 * c2 + x03 * c3 + eps / r0)
            r1 = 1 / (x10 * c0 + x11 * c1 + x12 * c2 + x13 * c3 + eps / r1)
            r2 = 1 / (x20 * c0 + x21 * c1 + x22 * c2 + x23 * c3 + eps / r2)
            r3 = 1 / (x30 * c0 + x31 * c1 + x32 * c2 + x33 * c3 + eps / r3)
        c0 = 1 / (x00 * r0 + x10 * r1 + x20 * r2 + x30 * r3 + eps / c0)
        c1 = 1 / (x01 * r0 + x11 * r1 + x21 * r2 + x31 * r3 + eps / c1)
        c2 = 1 / (x02 * r0 + x12 * r1 + x22 * r2 + x32 * r3 + eps / c2)
        c3 = 1 / (x03 * r0 + x13 * r1 + x23 * r2 + x33 * r3 + eps / c3)
    return [r0, r1, r2, r3], [c0, c1, c2, c3]


def experts(x: Tensor, picked: Tensor, weight: Tensor, w13_EFD: Tensor, w2_EDF: Tensor, limit: float) -> Tensor:
    """`ops.experts` in the order of the picks, with nothing to sort or gather: two thirds of the time."""
    if not alone(x):
        return sorted_experts(x, picked, weight, w13_EFD, w2_EDF, limit)
    x_D, visited = x.view(-1), picked.view(-1).tolist()
    raw_AF = torch.stack([torch.mv(w13_EFD[e], x_D) for e in visited])
    inner_AF = swiglu(*raw_AF.chunk(2, dim=-1), limit) * weight.view(-1, 1)
    inners = inner_AF.to(x.dtype).unbind()
    out_AD = torch.stack([torch.mv(w2_EDF[e], inner_F) for e, inner_F in zip(visited, inners)])
    return upcast(out_AD).sum(0).to(x.dtype).view(x.shape)
