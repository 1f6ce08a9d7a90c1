"""Solution of the assignment problems/1_decoding.ipynb."""

import numpy as np


def pooled(value_MK, gate_MK):
    """A softmax over the slots, channel by channel."""
    weight_MK = np.exp(gate_MK - np.max(gate_MK, axis=0))
    share_MK = weight_MK / weight_MK.sum(axis=0)
    return (share_MK * value_MK).sum(axis=0)


def remembered(cache, entry_K, value_K, gate_K, M, W):
    """The token goes into the window and into the open window, which may close."""
    window = (cache["window"] + [entry_K])[-W:]
    values = cache["values"] + [value_K]
    gates = cache["gates"] + [gate_K]
    entries = cache["entries"]
    if len(values) == M:
        entries = entries + [pooled(np.array(values), np.array(gates))]
        values = []
        gates = []
    return {"window": window, "values": values, "gates": gates, "entries": entries}


def answered(query_K, cache, sink):
    """The window's entries and the compressed ones share a softmax with the sink."""
    seen_SK = np.array(cache["window"] + cache["entries"])
    exp_S = np.exp(seen_SK @ query_K / np.sqrt(len(query_K)))
    return exp_S @ seen_SK / (exp_S.sum() + np.exp(sink))


def decoded(query_TK, entry_TK, value_TK, gate_TK, M, W, sink):
    """Remember the token first, so that a query sees itself and the entry it closes."""
    cache = {"window": [], "values": [], "gates": [], "entries": []}
    answers = []
    for t in range(len(query_TK)):
        cache = remembered(cache, entry_TK[t], value_TK[t], gate_TK[t], M, W)
        answers.append(answered(query_TK[t], cache, sink))
    return np.array(answers)


def decoded_overlapping(query_TK, entry_TK, own, ahead, M, W, sink):
    """Beside the open window, the closed one before it stays for the next entry."""
    cache = {"window": [], "entries": []}
    closed = []
    waiting = []
    answers = []
    for t in range(len(query_TK)):
        cache["window"] = (cache["window"] + [entry_TK[t]])[-W:]
        waiting.append(t)
        if len(waiting) == M:
            values = np.concatenate([ahead[0][closed], own[0][waiting]])
            gates = np.concatenate([ahead[1][closed], own[1][waiting]])
            cache["entries"].append(pooled(values, gates))
            closed = waiting
            waiting = []
        answers.append(answered(query_TK[t], cache, sink))
    return np.array(answers)
