"""Inputs of the assignment problems/1_decoding."""

import numpy as np

from minidsv4 import paper
from minidsv4.course.tasks import Task

T, K = 11, 3


def drawn_window(generator):
    """The slots of a window, and their entry by the softmax of paper.py."""
    value_MK, gate_MK = generator.normal(size=(2, 4, K))
    return (value_MK, gate_MK), (paper.slot_softmax(gate_MK) * value_MK).sum(0)


def pooled():
    """An entry of one window."""
    by_hand = (np.array([[0.0, 4.0], [8.0, 0.0]]), np.log([[1.0, 1.0], [3.0, 1.0]]))
    return Task([(by_hand, np.array([6.0, 2.0]))], drawn_window)


def cache_after(n, entry_TK, value_TK, gate_TK, M, W):
    """The cache after n tokens, read off the whole text."""
    begun = n // M * M
    return {
        "window": list(entry_TK[max(0, n - W) : n]),
        "values": list(value_TK[begun:n]),
        "gates": list(gate_TK[begun:n]),
        "entries": entries_of(value_TK[:n], gate_TK[:n], M),
    }


def entries_of(value_TK, gate_TK, M):
    """The entries of all finished windows, a list."""
    found = []
    for start in range(0, len(value_TK) - M + 1, M):
        share_MK = paper.slot_softmax(gate_TK[start : start + M])
        found.append((share_MK * value_TK[start : start + M]).sum(0))
    return found


def drawn_token(generator):
    """A cache, the next token, and the cache after it."""
    entry_TK, value_TK, gate_TK = generator.normal(size=(3, T, K))
    n = int(generator.integers(0, T - 1))
    M, W = (int(size) for size in generator.integers(2, 6, size=2))
    text = entry_TK, value_TK, gate_TK, M, W
    token = entry_TK[n], value_TK[n], gate_TK[n]
    return (cache_after(n, *text), *token, M, W), cache_after(n + 1, *text)


def remembered():
    """The cache after one more token."""
    one, two = np.array([1.0]), np.array([2.0])
    empty = {"window": [], "values": [], "gates": [], "entries": []}
    first = {"window": [one], "values": [two], "gates": [one], "entries": []}
    second = {"window": [two], "values": [], "gates": [], "entries": [np.array([2.0])]}
    cases = [((empty, one, two, one, 2, 1), first), ((first, two, two, two, 2, 1), second)]
    return Task(cases, drawn_token)


def drawn_query(generator):
    """A query and a cache, and the answer by equation (27)."""
    text = generator.normal(size=(3, T, K))
    query_K = generator.normal(size=K)
    sink = float(generator.normal())
    cache = cache_after(int(generator.integers(1, T)), *text, 3, 4)
    seen_SK = np.array([*cache["window"], *cache["entries"]])
    return (query_K, cache, sink), paper.core_attention(query_K[None], seen_SK, [sink])[0]


def answered():
    """What one query reads from the cache."""
    cache = {"window": [np.array([1.0])], "values": [], "gates": [], "entries": [np.array([4.0])]}
    return Task([((np.zeros(1), cache, 0.0), np.array([5 / 3]))], drawn_query)


def one_pass(query_TK, entry_TK, entries, M, W, sink):
    """All answers in one pass over the whole text, [T, K]."""
    rows = []
    for t, query_K in enumerate(query_TK):
        near_SK = entry_TK[list(paper.window_tokens(t, W))]
        far = entries[: paper.visible_entries(t, M)]
        rows.append(paper.core_attention(query_K[None], np.array([*near_SK, *far]), [sink])[0])
    return np.array(rows)


def drawn_text(generator):
    """A text, and its answers in one pass."""
    query_TK, entry_TK, value_TK, gate_TK = generator.normal(size=(4, T, K))
    M, W = (int(size) for size in generator.integers(2, 6, size=2))
    sink = float(generator.normal())
    wanted = one_pass(query_TK, entry_TK, entries_of(value_TK, gate_TK, M), M, W, sink)
    return (query_TK, entry_TK, value_TK, gate_TK, M, W, sink), wanted


def decoded():
    """The answers of a whole text, token by token."""
    return Task([drawn_text(np.random.default_rng(7))], drawn_text)


def drawn_overlap(generator):
    """A text whose entries overlap, and its answers in one pass, by equations (11) and (12)."""
    query_TK, entry_TK = generator.normal(size=(2, T, K))
    own, ahead = generator.normal(size=(2, 2, T, K))
    M, W = (int(size) for size in generator.integers(2, 6, size=2))
    sink = float(generator.normal())
    flat = np.zeros((M, 2 * K))
    entries = []
    for window in range(T // M):
        weights = paper.csa_slot_weights(own[1], ahead[1], flat, window)
        entries.append(paper.csa_entry(weights, own[0], ahead[0], window))
    wanted = one_pass(query_TK, entry_TK, entries, M, W, sink)
    return (query_TK, entry_TK, tuple(own), tuple(ahead), M, W, sink), wanted


def decoded_overlapping():
    """The same where an entry also pools the window before its own."""
    return Task([drawn_overlap(np.random.default_rng(7))], drawn_overlap)
