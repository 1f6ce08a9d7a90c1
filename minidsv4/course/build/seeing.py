"""Steps of notebook 2: who sees what, and core attention.

Letters: B batch, T tokens, S entries attended to, C compressed entries, H heads, K head width.
"""

from types import SimpleNamespace

import torch
from einops import einsum, rearrange

from minidsv4 import ops
from minidsv4.course.build.parts import (
    CPU,
)
from minidsv4.course.build.steps import step
from minidsv4.visibility import Visibility

near = step("window_map", "TS")


@near.cases
def near_cases(draw):
    n_tokens, window = draw.whole(8, 14), draw.whole(2, 6)
    yield n_tokens, window
    yield window - 1, window


def age_TS(n_tokens):
    position = torch.arange(n_tokens)
    return rearrange(position, "t -> t 1") - position


@near.answer
def window_map(n_tokens, window):
    return Visibility(0, n_tokens, window, n_tokens, CPU).token_map()[0]


@near.mistake
def one_token_too_many(n_tokens, window):
    """Each query sees one token too many. The window counts the query's own token: t - W + 1 to t."""
    return window_map(n_tokens, window + 1)


@near.mistake
def one_token_too_few(n_tokens, window):
    """Each query sees one token too few. It sees W tokens, its own included: t - W + 1 to t."""
    return window_map(n_tokens, window - 1)


@near.mistake
def own_token_unseen(n_tokens, window):
    """A query does not see its own token. It is the newest of its W tokens."""
    age = age_TS(n_tokens)
    return (age > 0) & (age <= window)


@near.mistake
def own_token_unseen_and_fewer(n_tokens, window):
    """A query does not see its own token. It is the newest of its W tokens."""
    age = age_TS(n_tokens)
    return (age > 0) & (age < window)


@near.mistake
def future_seen(n_tokens, window):
    """Queries see later tokens. Nothing after t is seen."""
    return age_TS(n_tokens) < window


@near.mistake
def window_without_an_end(n_tokens, window):
    """Queries see every earlier token. The window ends W - 1 tokens before the query."""
    return age_TS(n_tokens) >= 0


@near.mistake
def window_on_both_sides(n_tokens, window):
    """Queries see as many later tokens as earlier ones. Nothing after t is seen: 0 <= t - s < W."""
    return age_TS(n_tokens).abs() < window


@near.mistake
def map_transposed(n_tokens, window):
    """The map is transposed: its first axis is the query t, its second the token s that is seen."""
    return window_map(n_tokens, window).mT


@near.mistake
def map_inverted(n_tokens, window):
    """The map says what is hidden. True is for what is seen."""
    return ~window_map(n_tokens, window)


far = step("entry_map", "TC")


@far.cases
def far_cases(draw):
    n_tokens, ratio = draw.whole(16, 24), draw.whole(3, 5)
    yield n_tokens, n_tokens // ratio, ratio
    yield ratio - 1, 0, ratio


@far.answer
def entry_map(n_tokens, n_entries, ratio):
    sees = Visibility(0, n_tokens, 1, n_tokens, CPU, ratio=ratio, n_entries=n_entries)
    return sees.entry_map()[0]


far.museum("visible_as_in_the_report", "window_in_progress_visible")


@far.mistake
def future_entries_seen(n_tokens, n_entries, ratio):
    """Every query sees every entry, those of its future too. An entry is seen once the last of its M tokens is."""
    return torch.ones(n_tokens, n_entries, dtype=torch.bool)


@far.mistake
def one_entry_too_few(n_tokens, n_entries, ratio):
    """Entries are seen a whole window late. Entry c is seen from token M c + M - 1 on."""
    return entry_map(n_tokens, n_entries, ratio).roll(ratio, dims=0).tril(-ratio)


@far.mistake
def hidden_entries(n_tokens, n_entries, ratio):
    """The map says what is hidden. True is for what is seen."""
    return ~entry_map(n_tokens, n_entries, ratio)


# ---- core attention ----

core = step("attend", "BTHK")


@core.cases
def core_cases(draw):
    n_batch, n_queries, n_entries, n_heads, width = draw.sizes(5, 2, 9)
    for n_maps in (n_batch, 1):
        sees_BTS = draw.normal(n_maps, n_queries, n_entries) > 0
        sees_BTS[..., 0] = True
        query_BTHK = draw.normal(n_batch, n_queries, n_heads, width)
        yield query_BTHK, draw.normal(n_batch, n_entries, width), sees_BTS, draw.normal(n_heads)


@core.answer
def attended(query_BTHK, entries_BSK, sees_BTS, sinks_H):
    sees = SimpleNamespace(map=lambda: sees_BTS)
    return ops.attend(query_BTHK, entries_BSK, entries_BSK[:, :0], sees, sinks_H)


core.museum("sink_scaled", "sink_shared_by_heads")


@core.mistake
def no_sink(query, entries, sees, sinks):
    """The weights over what is seen sum to 1: the sink is missing, or what it takes is handed back. It only takes."""
    return attended(query, entries, sees, torch.full_like(sinks, -torch.inf))


@core.mistake
def scores_not_scaled(query, entries, sees, sinks):
    """The scores are not divided by the root of K."""
    return attended(query * query.shape[-1] ** 0.5, entries, sees, sinks)


@core.mistake
def scores_not_scaled_and_no_sink(query, entries, sees, sinks):
    """The scores are not divided by the root of K, and the sink is missing."""
    return no_sink(query * query.shape[-1] ** 0.5, entries, sees, sinks)


@core.mistake
def scores_multiplied(query, entries, sees, sinks):
    """The scores are multiplied by the root of K. They are divided by it."""
    return attended(query * query.shape[-1], entries, sees, sinks)


@core.mistake
def scores_divided_by_k(query, entries, sees, sinks):
    """The scores are divided by K. They are divided by its root."""
    return attended(query * query.shape[-1] ** -0.5, entries, sees, sinks)


@core.mistake
def scaled_by_entries(query, entries, sees, sinks):
    """The scores are divided by the root of the number of entries. They are divided by the root of the head width K."""
    return attended(query * (query.shape[-1] / entries.shape[1]) ** 0.5, entries, sees, sinks)


@core.mistake
def everything_seen(query, entries, sees, sinks):
    """The map is not used: hidden entries are read. Their scores become -inf before the softmax."""
    return attended(query, entries, torch.ones_like(sees), sinks)


@core.mistake
def hidden_read(query, entries, sees, sinks):
    """What is hidden is read, and what is seen is not: the map is used the wrong way round."""
    return attended(query, entries, ~sees, sinks)


def weighed(weight_BTHS, entries_BSK):
    return einsum(weight_BTHS, entries_BSK, "b t h s, b s k -> b t h k")


def scores(query_BTHK, entries_BSK):
    return einsum(query_BTHK, entries_BSK, "b t h k, b s k -> b t h s") * query_BTHK.shape[-1] ** -0.5


@core.mistake
def hidden_scores_zero(query, entries, sees, sinks):
    """Hidden entries get the score 0, which still takes weight exp(0) = 1. Their score is -inf."""
    return attended_with(scores(query, entries) * rearrange(sees, "b t s -> b t 1 s"), entries, sinks)


def attended_with(score_BTHS, entries_BSK, sinks_H):
    """Core attention from the scores on."""
    sink_BTHS = rearrange(sinks_H, "h -> 1 1 h 1").expand(*score_BTHS.shape[:3], 1)
    return weighed(torch.cat([score_BTHS, sink_BTHS], dim=-1).softmax(-1)[..., :-1], entries_BSK)


@core.mistake
def masked_after_the_softmax(query, entries, sees, sinks):
    """The map is used after the softmax, so hidden entries still take a share. Their scores become -inf before it."""
    sink = rearrange(sinks, "h -> 1 1 h 1").expand(*query.shape[:3], 1)
    weight = torch.cat([scores(query, entries), sink], dim=-1).softmax(-1)[..., :-1]
    return weighed(weight * rearrange(sees, "b t s -> b t 1 s"), entries)


@core.mistake
def sink_not_exponentiated(query, entries, sees, sinks):
    """The sink is added to the sum of exponentials as it stands. It is a logit: exp(sink) is added."""
    score = scores(query, entries).masked_fill(~rearrange(sees, "b t s -> b t 1 s"), -torch.inf).exp()
    return weighed(score / (score.sum(-1, keepdim=True) + rearrange(sinks, "h -> 1 1 h 1")), entries)


@core.mistake
def sink_negated(query, entries, sees, sinks):
    """The sink has the wrong sign."""
    return attended(query, entries, sees, -sinks)


@core.mistake
def softmax_over_heads(query, entries, sees, sinks):
    """The softmax runs over heads. It runs over the entries of one query and head, and the sink."""
    score = scores(query, entries).masked_fill(~rearrange(sees, "b t s -> b t 1 s"), -torch.inf)
    sink = rearrange(sinks, "h -> 1 1 h 1").expand(*query.shape[:3], 1)
    return weighed(torch.cat([score, sink], dim=-1).softmax(2)[..., :-1], entries)


@core.mistake
def softmax_over_queries(query, entries, sees, sinks):
    """The softmax runs over queries. It runs over the entries of one query and head, and the sink: the last axis."""
    score = scores(query, entries).masked_fill(~rearrange(sees, "b t s -> b t 1 s"), -torch.inf)
    return weighed(score.softmax(1), entries)
