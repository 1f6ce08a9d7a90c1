"""Solutions of the exercises in 01_attention.ipynb."""

import numpy as np


def sink_for(share, scores_S):
    """share = exp(sink) / (exp(sink) + total), solved for the sink."""
    total = np.exp(scores_S).sum()
    return np.log(total * share / (1 - share))


def window_attention(query_TK, entry_TK, sink, W):
    """One query after the other, over the entries that it sees."""
    answers = []
    for t, query_K in enumerate(query_TK):
        seen_SK = entry_TK[max(0, t - W + 1) : t + 1]
        exp_S = np.exp(seen_SK @ query_K / np.sqrt(len(query_K)))
        weight_S = exp_S / (exp_S.sum() + np.exp(sink))
        answers.append(weight_S @ seen_SK)
    return np.array(answers)


def turned(x_K, place, R, base):
    """Each pair of the last R channels, turned by its own angle."""
    angles = place * base ** (-2 * np.arange(R // 2) / R)
    start = len(x_K) - R
    even = x_K[start::2]
    odd = x_K[start + 1 :: 2]
    result = x_K.copy()
    result[start::2] = even * np.cos(angles) - odd * np.sin(angles)
    result[start + 1 :: 2] = even * np.sin(angles) + odd * np.cos(angles)
    return result
