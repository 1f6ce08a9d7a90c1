"""Random arguments of every operation in the table: shapes around blocks, odd widths, documents, pasts, in float64.

`CASES[name](draw)` gives the arguments of the operation `name`, drawn by a NumPy generator.
"""

import numpy as np
import torch
from small import CPU
from torch import Tensor

from minidsv4.ops import NO_TARGET
from minidsv4.visibility import Visibility, finished

LENGTHS = (1, 2, 5, 31, 63, 64, 65, 127, 128, 129, 150)  # of one call: blocks of queries are 64 long
PASTS = (0, 0, 1, 6, 62, 140)


def normal(draw: np.random.Generator, *shape: int) -> Tensor:
    """Normal numbers."""
    return torch.from_numpy(draw.standard_normal(shape))


def whole(draw: np.random.Generator, low: int, high: int) -> int:
    """A whole number from `low` to `high`."""
    return int(draw.integers(low, high + 1))


def documents(draw: np.random.Generator, n_batch: int, n_tokens: int, align: int) -> Tensor:
    """The position of the first token of each token's document [B, T]; other documents in each row."""
    rows = []
    for _ in range(n_batch):
        cuts = {0, *(int(cut) // align * align for cut in draw.integers(0, n_tokens, whole(draw, 0, 4)))}
        rows.append([max(cut for cut in cuts if cut <= position) for position in range(n_tokens)])
    return torch.tensor(rows)


def visibility(draw: np.random.Generator, n_batch: int) -> Visibility:
    """Who sees what in a call of some tokens after some others; a third of the rows hold several documents."""
    n_queries = int(draw.choice(LENGTHS))
    start = int(draw.choice(PASTS))
    window = int(draw.choice([1, 3, 20, 64, 70]))
    ratio = whole(draw, 1, 6)
    document_BT = None
    if draw.random() < 1 / 3:
        align = int(draw.choice([1, ratio, 2 * ratio]))
        document_BT = documents(draw, n_batch, start + n_queries, align)[:, start:]
    return Visibility(
        start=start,
        n_queries=n_queries,
        window=window,
        n_window=n_queries + min(start, window),
        device=CPU,
        ratio=ratio,
        n_entries=finished(start + n_queries - 1, ratio) if draw.random() < 0.9 else 0,
        document_BT=document_BT,
    )


def with_picks(draw: np.random.Generator, sees: Visibility, n_batch: int) -> Visibility:
    """The same where each query has a few entries of its own, or all, in order; half of the time without picks."""
    if draw.random() < 0.5 or sees.n_entries == 0:
        return sees
    n_picked = sees.n_entries if draw.random() < 0.2 else whole(draw, 1, sees.n_entries)
    order = normal(draw, n_batch, sees.n_queries, sees.n_entries).argsort(-1)
    return sees._replace(picks_BTP=order[..., :n_picked].sort(-1).values)


def index_case(draw: np.random.Generator, sees: Visibility, n_batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Index queries, weights of either sign, keys."""
    n_heads, width = whole(draw, 1, 5), whole(draw, 1, 9)
    query_BTUZ = normal(draw, n_batch, sees.n_queries, n_heads, width)
    weight_BTU = normal(draw, n_batch, sees.n_queries, n_heads)
    return query_BTUZ, weight_BTU, normal(draw, n_batch, sees.n_entries, width)


def attend_case(draw: np.random.Generator) -> tuple:
    n_batch, n_heads, width = whole(draw, 1, 3), whole(draw, 1, 4), whole(draw, 1, 9)
    sees = with_picks(draw, visibility(draw, n_batch), n_batch)
    return (
        normal(draw, n_batch, sees.n_queries, n_heads, width),
        normal(draw, n_batch, sees.n_window, width),
        normal(draw, n_batch, sees.n_entries, width),
        sees,
        normal(draw, n_heads),
    )


def index_loss_case(draw: np.random.Generator) -> tuple:
    attended = attend_case(draw)
    return attended, index_case(draw, attended[3], len(attended[0]))


def top_entries_case(draw: np.random.Generator) -> tuple:
    n_batch = whole(draw, 1, 3)
    sees = visibility(draw, n_batch)
    indexed = index_case(draw, sees, n_batch)
    if draw.random() < 0.3:
        indexed = tuple(part.round() for part in indexed)  # small whole numbers: many scores tie
    k = sees.n_entries if draw.random() < 0.2 else whole(draw, 1, 9)
    return *indexed, sees, max(k, 1)


def stable_topk_case(draw: np.random.Generator) -> tuple:
    n_entries = whole(draw, 1, 200)
    score = normal(draw, whole(draw, 1, 3), whole(draw, 1, 9), n_entries)
    if draw.random() < 0.5:
        score = score.round()
    return score, whole(draw, 1, int(draw.choice([4, 20, n_entries + 3])))


def pool_case(draw: np.random.Generator) -> tuple:
    shape = whole(draw, 1, 3), whole(draw, 1, 9), whole(draw, 1, 8), whole(draw, 1, 9)
    gates_BCSK = normal(draw, *shape)
    gates_BCSK[:, 0, : shape[2] // 2] = -torch.inf  # of a window that is not there
    return normal(draw, *shape), gates_BCSK, normal(draw, *shape[2:])


def rotate_case(draw: np.random.Generator) -> tuple:
    n_pairs, n_tokens = whole(draw, 1, 5), int(draw.choice(LENGTHS))
    angle_TR = normal(draw, n_tokens, n_pairs)
    turn_TR = torch.polar(torch.ones_like(angle_TR), angle_TR)
    x_BTHK = normal(draw, whole(draw, 1, 3), n_tokens, whole(draw, 1, 4), 2 * n_pairs + whole(draw, 0, 4))
    return x_BTHK, turn_TR[:, None]


def streams_case(draw: np.random.Generator) -> Tensor:
    return normal(draw, whole(draw, 1, 3), int(draw.choice(LENGTHS)), whole(draw, 1, 5), whole(draw, 1, 9))


def stream_logits_case(draw: np.random.Generator) -> tuple:
    streams_BTND = streams_case(draw)
    return streams_BTND, normal(draw, whole(draw, 1, 30), streams_BTND[0, 0].numel()), 10 ** -float(draw.integers(1, 8))


def sinkhorn_case(draw: np.random.Generator) -> tuple:
    n_streams = whole(draw, 1, 5)
    logits = float(draw.choice([0.1, 1.0, 5.0])) * normal(
        draw, whole(draw, 1, 3), int(draw.choice(LENGTHS)), n_streams, n_streams
    )
    return logits, whole(draw, 1, 20), float(draw.choice([1e-6, 1e-3]))


def collapse_case(draw: np.random.Generator) -> tuple:
    streams_BTND = streams_case(draw)
    return streams_BTND, normal(draw, *streams_BTND.shape[:3])


def write_case(draw: np.random.Generator) -> tuple:
    streams_BTND = streams_case(draw)
    n_batch, n_tokens, n_streams, width = streams_BTND.shape
    carry_BTij = normal(draw, n_batch, n_tokens, n_streams, n_streams)
    return streams_BTND, normal(draw, n_batch, n_tokens, width), normal(draw, *streams_BTND.shape[:3]), carry_BTij


def affinities_case(draw: np.random.Generator) -> tuple:
    width = whole(draw, 1, 9)
    scale = float(draw.choice([1.0, 30.0]))
    return scale * normal(draw, whole(draw, 1, 3), int(draw.choice(LENGTHS)), width), normal(
        draw, whole(draw, 1, 12), width
    )


def routing_weights_case(draw: np.random.Generator) -> tuple:
    score_BTE = normal(draw, whole(draw, 1, 3), int(draw.choice(LENGTHS)), whole(draw, 1, 12)).abs()
    n_active = whole(draw, 1, score_BTE.shape[-1])
    return score_BTE, normal(draw, *score_BTE.shape).argsort(-1)[..., :n_active], 2.5


def swiglu_case(draw: np.random.Generator) -> tuple:
    shape = whole(draw, 1, 3), int(draw.choice(LENGTHS)), whole(draw, 1, 9)
    return 3 * normal(draw, *shape), 3 * normal(draw, *shape), float(draw.choice([0.3, 2.0, 10.0]))


def experts_case(draw: np.random.Generator) -> tuple:
    n_tokens, n_experts, width, inner = (
        int(draw.choice(LENGTHS)),
        whole(draw, 1, 9),
        whole(draw, 1, 9),
        whole(draw, 1, 7),
    )
    n_active = whole(draw, 1, n_experts)
    picked_TA = normal(draw, n_tokens, n_experts).argsort(-1)[:, :n_active]
    if draw.random() < 0.2:
        picked_TA = picked_TA % max(1, n_experts // 2)  # some twice, some experts without a token
    return (
        normal(draw, n_tokens, width),
        picked_TA,
        normal(draw, n_tokens, n_active).abs(),
        normal(draw, n_experts, 2 * inner, width),
        normal(draw, n_experts, width, inner),
        float(draw.choice([0.3, 2.0, 10.0])),
    )


def rms_norm_case(draw: np.random.Generator) -> tuple:
    width = whole(draw, 1, 9)
    weight = normal(draw, width) if draw.random() < 0.5 else None
    return normal(draw, whole(draw, 1, 3), int(draw.choice(LENGTHS)), width), weight, 1e-6


def cross_entropy_case(draw: np.random.Generator) -> tuple:
    n_tokens, width, n_words = int(draw.choice([*LENGTHS, 255, 256, 257, 600])), whole(draw, 1, 9), whole(draw, 2, 30)
    target_T = torch.from_numpy(draw.integers(0, n_words, n_tokens))
    target_T[torch.from_numpy(draw.random(n_tokens) < draw.choice([0.0, 0.3, 1.0], p=[0.5, 0.4, 0.1]))] = NO_TARGET
    return normal(draw, n_tokens, width), normal(draw, n_words, width), target_T


CASES = {
    "rms_norm": rms_norm_case,
    "rotate": rotate_case,
    "pool": pool_case,
    "stable_topk": stable_topk_case,
    "top_entries": top_entries_case,
    "attend": attend_case,
    "index_loss": index_loss_case,
    "stream_logits": stream_logits_case,
    "sinkhorn": sinkhorn_case,
    "collapse": collapse_case,
    "write": write_case,
    "affinities": affinities_case,
    "routing_weights": routing_weights_case,
    "swiglu": swiglu_case,
    "experts": experts_case,
    "cross_entropy": cross_entropy_case,
}
