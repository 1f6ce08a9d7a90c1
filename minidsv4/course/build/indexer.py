"""Steps of notebook 2: the indexer's scores, its choice, and the whole of it.

Letters: B batch, T tokens, D width, C compressed entries, P picks, Q query rank, U index heads, Z index width.
"""

from types import SimpleNamespace
from unittest.mock import patch

import torch
from einops import einsum, rearrange

from minidsv4 import ops
from minidsv4.config import LayerKind
from minidsv4.course.build.compare import close
from minidsv4.course.build.parts import (
    angles_of,
    filled,
    memory_of,
    positions_of,
    random_config,
    random_weights,
)
from minidsv4.course.build.seeing import entry_map
from minidsv4.course.build.steps import step
from minidsv4.model.indexer import Indexer

score = step("index_scores", "BTC")


@score.cases
def score_cases(draw):
    n_batch, n_queries, n_heads, width, n_entries = draw.sizes(5)
    query_BTUZ = draw.normal(n_batch, n_queries, n_heads, width)
    yield query_BTUZ, draw.normal(n_batch, n_queries, n_heads), draw.normal(n_batch, n_entries, width)


@score.answer
def scored(query_BTUZ, weight_BTU, keys_BCZ):
    return ops.index_scores(query_BTUZ, weight_BTU, keys_BCZ)


score.museum("index_scores_without_relu")


def dots(query_BTUZ, keys_BCZ):
    return einsum(query_BTUZ, keys_BCZ, "b t u z, b c z -> b t u c")


@score.mistake
def relu_after_the_weight(query, weight, keys):
    """The ReLU stands after the head weight, so no head can vote against an entry. It stands on q . k alone."""
    return (dots(query, keys) * rearrange(weight, "b t u -> b t u 1")).relu().sum(2)


@score.mistake
def relu_after_the_sum(query, weight, keys):
    """The ReLU stands after the sum over heads. It stands on each product q . k."""
    return einsum(query, weight, keys, "b t u z, b t u, b c z -> b t c").relu()


@score.mistake
def head_weights_left_out(query, weight, keys):
    """The head weights are missing. Each head's ReLU is multiplied by its weight, which may be negative."""
    return scored(query, torch.ones_like(weight), keys)


@score.mistake
def mean_over_heads(query, weight, keys):
    """Heads are averaged. They are summed."""
    return scored(query, weight / weight.shape[-1], keys)


@score.mistake
def scores_scaled(query, weight, keys):
    """The products are divided by the root of Z. All scaling is in the head weights already."""
    return scored(query, weight * query.shape[-1] ** -0.5, keys)


picks = step("pick", "BTC")


@picks.cases
def picks_cases(draw):
    ratio = draw.whole(2, 3)
    n_tokens = draw.whole(14, 20)
    n_entries = n_tokens // ratio
    sees_TC = entry_map(n_tokens, n_entries, ratio)
    score_BTC = draw.normal(2, n_tokens, n_entries)
    yield score_BTC, sees_TC, draw.whole(2, 3)
    yield (2 * score_BTC).round(), sees_TC, draw.whole(2, 3)  # many scores tie
    yield score_BTC, sees_TC, n_entries + 2


@picks.answer
def picked(score_BTC, sees_TC, n_picked):
    best_BTP = ops.stable_topk(score_BTC.masked_fill(~sees_TC, -torch.inf), n_picked)
    return torch.zeros_like(score_BTC, dtype=torch.bool).scatter(-1, best_BTP, True) & sees_TC


@picks.mistake
def hidden_are_picked(score, sees, n_picked):
    """Entries are picked that the query does not see. Their score becomes -inf before the choice."""
    return picked(score, torch.ones_like(sees), n_picked)


@picks.mistake
def picked_before_hidden(score, sees, n_picked):
    """Hidden entries take places in the choice. It is made among the entries that the query sees."""
    return picked(score, torch.ones_like(sees), n_picked) & sees


@picks.mistake
def hidden_by_zero(score, sees, n_picked):
    """Hidden entries are hidden by a score of 0, which beats every negative one. Their score becomes -inf."""
    return picked(score.masked_fill(~sees, 0.0), torch.ones_like(sees), n_picked) & sees


@picks.mistake
def hidden_by_zero_and_picked(score, sees, n_picked):
    """Hidden entries are hidden by a score of 0, which beats every negative one. Their score becomes -inf, and those
    that are picked for want of others are taken away again."""
    return picked(score.masked_fill(~sees, 0.0), torch.ones_like(sees), n_picked)


@picks.mistake
def hidden_fill_up(score, sees, n_picked):
    """Where a query sees fewer than k entries, hidden ones fill up the rest. They are not read."""
    best_BTP = ops.stable_topk(score.masked_fill(~sees, -torch.inf), n_picked)
    return torch.zeros_like(score, dtype=torch.bool).scatter(-1, best_BTP, True)


@picks.mistake
def lowest_picked(score, sees, n_picked):
    """The entries with the lowest scores are picked. The best have the highest."""
    return picked(-score, sees, n_picked)


@picks.mistake
def hidden_the_wrong_way_round(score, sees, n_picked):
    """What the query sees is hidden from the choice. What it does not see is."""
    return picked(score, ~sees, n_picked) & sees


@picks.mistake
def unsorted_hidden_first(score, sees, n_picked):
    """The sort is ascending, so that hidden entries and low scores come first. The best come first."""
    best_BTP = score.masked_fill(~sees, -torch.inf).sort(dim=-1, stable=True).indices[..., :n_picked]
    return torch.zeros_like(score, dtype=torch.bool).scatter(-1, best_BTP, True) & sees


@picks.mistake
def higher_index_wins(score, sees, n_picked):
    """Of equal scores the higher index wins. The lower one must: sort by falling score, stably."""
    return picked(score.flip(-1), sees.flip(-1), n_picked).flip(-1)


@picks.mistake
def one_pick_too_many(score, sees, n_picked):
    """One entry too many is picked."""
    return picked(score, sees, n_picked + 1)


@picks.mistake
def last_query_decides(score, sees, n_picked):
    """All queries read what the last one picked. Each picks for itself."""
    return picked(score, sees, n_picked)[:, -1:].expand_as(score) & sees


@picks.explanation
def ties(arguments, given, due):
    """Picks of the same scores as they should be, but other ones; or another mistake, with ties broken anyhow."""
    score_BTC = arguments[0]
    if close(given, due):
        return None
    low = -1e9
    chosen = [torch.where(picks, score_BTC, low).sort(dim=-1).values for picks in (given, due)]
    if torch.equal(*chosen):
        return (
            "Equal scores are broken otherwise: the lower index wins. `topk` promises no order among equals; "
            "`sort(dim=-1, descending=True, stable=True)` does."
        )
    return next((mistake.told for mistake in picks.mistakes if close(given, mistake.answer(*arguments))), None)


index = step(
    "indexer",
    "BTC",
    target="Indexer.forward",
    needs="rotate index_scores overlap_compressor",
)


@index.cases
def index_cases(draw):
    config = random_config(draw)
    module = random_weights(Indexer(config), draw)
    n_tokens = draw.whole(12, 18)
    yield config, module, draw.normal(2, n_tokens, config.hidden_size), draw.normal(2, n_tokens, config.q_lora_rank)


@index.answer
def index_of(config, module, x_BTD, latent_BTQ):
    positions = positions_of(config, LayerKind.CSA, x_BTD.shape[1])
    keys_BCZ = module.compressor(x_BTD, positions, memory_of(config, LayerKind.CSA, len(x_BTD)).index)
    return ops.index_scores(*module.queries(x_BTD, latent_BTQ, positions), keys_BCZ)


@index.by
def run_index(reader, config, module, x_BTD, latent_BTQ):
    part = filled(reader.Indexer(config, config.ratio_of(LayerKind.CSA)), module)
    return part(x_BTD, latent_BTQ, angles_of(config, LayerKind.CSA, x_BTD.shape[1]))


index.museum("index_head_weights_through_a_sigmoid")


@index.mistake
def weights_not_scaled(config, module, x_BTD, latent_BTQ):
    """The head weights are not scaled: they are multiplied by (U Z)^-0.5."""
    with patch.object(module, "scale", 1.0):
        return index_of(config, module, x_BTD, latent_BTQ)


@index.mistake
def queries_not_turned(config, module, x_BTD, latent_BTQ):
    """Index queries are not turned. The keys are, so the queries must be as well."""
    standing = torch.ones(x_BTD.shape[1], config.qk_rope_head_dim // 2, dtype=torch.complex128)
    positions = positions_of(config, LayerKind.CSA, x_BTD.shape[1])
    keys_BCZ = module.compressor(x_BTD, positions, memory_of(config, LayerKind.CSA, len(x_BTD)).index)
    unturned = SimpleNamespace(turns=lambda: standing)
    return ops.index_scores(*module.queries(x_BTD, latent_BTQ, unturned), keys_BCZ)


@index.mistake
def heads_cut_channel_by_channel(config, module, x_BTD, latent_BTQ):
    """Heads are cut channel by channel. Each head's channels are neighbours: "b t (u z) -> b t u z"."""
    weight = rearrange(module.wq_b.weight, "(z u) q -> (u z) q", u=module.heads)
    with patch.object(module.wq_b, "weight", torch.nn.Parameter(weight)):
        return index_of(config, module, x_BTD, latent_BTQ)
