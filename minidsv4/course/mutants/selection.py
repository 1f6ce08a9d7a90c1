"""Mistakes in masks, in the indexer's choice, and in what teaches it."""

from unittest.mock import patch

import torch
from einops import einsum
from torch import Tensor

from minidsv4 import ops, visibility
from minidsv4.course.mutants.museum import BOTH, SEES_AHEAD, trap
from minidsv4.model import losses
from minidsv4.model.indexer import Hadamard, Indexer, KeyCompressor
from minidsv4.visibility import Visibility


@trap(
    20,
    at=[(visibility, "finished")],
    symptom="A training loss too good to be true, and generation that does not match it.",
    found="transformers#45758, transformers#45820, mlx-lm#1189",
    killed_by=SEES_AHEAD,
)
def no_causal_mask_on_entries(right, position, ratio):
    """In a prefill every query sees every entry of the prompt, those of its future too."""
    visible_T = right(position, ratio)
    return visible_T[-1:].expand_as(visible_T)


@trap(
    20,
    at=[(visibility, "finished")],
    symptom="A query inside a window sees what follows in that window: a leak of up to m - 1 tokens.",
    found="tpu-inference#3536",
    killed_by=SEES_AHEAD,
)
def window_in_progress_visible(right, position, ratio):
    """One entry too many: `floor(t / M) + 1` counts the window that the query itself is still in."""
    return right(position - 1, ratio) + 1


@trap(
    20,
    at=[(visibility, "finished")],
    symptom="The last token of each window misses the entry that it completes: one query in m is off.",
)
def visible_as_in_the_report(right, position, ratio):
    """`floor(t / M)` entries are visible; the released code counts the query's own token, `floor((t + 1) / M)`."""
    return right(position - 1, ratio)


@trap(
    21,
    at=[(Visibility, "entry_map")],
    symptom="Only queries with fewer visible entries than k are wrong: they read the future, or garbage.",
    killed_by=(*SEES_AHEAD, "indexers_learn_what_their_layers_read"),
)
def picks_of_nothing_are_read(right, sees):
    """Where fewer than k entries are visible top-k fills up with hidden ones, and they are attended to."""
    if sees.picks_BTP is None:
        return right(sees)
    return right(sees._replace(start=sees.ratio * sees.n_entries))  # so late that every entry is finished


@trap(
    22,
    at=[(Hadamard, "forward")],
    symptom="Picks are random: fine while k covers everything, then retrieval dies (there, beyond 18K tokens).",
    found="ATOM#1507",
)
def hadamard_on_queries_only(right, layer, x):
    """The Hadamard matrix turns the index queries and not the keys, so their products mean nothing."""
    is_query = x.ndim == 4  # [B, T, U, Z]; keys have no head axis
    return right(layer, x) if is_query else x


@trap(
    23,
    at=[(ops, "index_scores")],
    symptom="A head that finds nothing votes all the same, with the other sign: other picks.",
    found="mlx-lm#1189, 1Cat#250",
)
def index_scores_without_relu(right, query_BTUZ, weight_BTU, keys_BSZ):
    """Index scores are a plain weighted sum of products, without the ReLU."""
    return einsum(query_BTUZ, weight_BTU, keys_BSZ, "b t u z, b t u, b s z -> b t s")


@trap(
    23,
    at=[(Indexer, "queries")],
    symptom="No head can vote against an entry any more: other picks.",
    found="mlx-lm#1189, 1Cat#250",
)
def index_head_weights_through_a_sigmoid(right, layer, x_BTD, latent_BTQ, positions):
    """Head weights pass a sigmoid; they are linear in x and may be negative."""
    query_BTUZ, weight_BTU = right(layer, x_BTD, latent_BTQ, positions)
    return query_BTUZ, weight_BTU.sigmoid()


@trap(
    at=[(KeyCompressor, "forward")],
    symptom="Right for prompts of one chunk; what lies in an earlier chunk is not found, and nothing else looks wrong.",
    killed_by=(
        "chunks_equal_one_pass",
        "a_prefix_hit_goes_on_with_its_own_text",
    ),
)
def keys_of_the_last_chunk_only(right, layer, x_BTD, positions, memory):
    """The indexer knows the keys that this call finished; those of earlier calls score 0."""
    n_before = len(memory.entries)
    keys_BCZ = right(layer, x_BTD, positions, memory)
    return torch.cat([torch.zeros_like(keys_BCZ[:, :n_before]), keys_BCZ[:, n_before:]], dim=1)


@trap(
    24,
    at=[(ops, "stable_topk")],
    symptom="With few index heads many scores are exactly 0; prefill and decoding break the ties differently.",
    found="transformers with 4 index heads: logits off by 4.2 on 4 of 6 seeds",
    killed_by=(*BOTH, "chunks_equal_one_pass"),
)
def ties_broken_anyhow(right, score, k):
    """`torch.topk` chooses among equal scores as it likes; the lower index must win."""
    return score.topk(min(k, score.shape[-1]), dim=-1).indices.sort(dim=-1).values


@trap(
    25,
    at=[(ops, "top_entries")],
    symptom="Cheaper, and wrong for all but one query; the choice depends on later tokens.",
    killed_by=SEES_AHEAD,
)
def one_choice_for_all_queries(right, *arguments):
    """All queries of a call read the entries that its last query picked."""
    picks_BTP = right(*arguments)
    return picks_BTP[:, -1:].expand_as(picks_BTP)


@trap(
    26,
    at=[(ops, "index_scores")],
    symptom="Not smaller digits but other entries: a small error in a score swaps whole picks.",
)
def indexer_rounded_to_fp8(right, query_BTUZ, weight_BTU, keys_BSZ):
    """Index queries and keys are rounded to 8 bits in a model that was not trained with that rounding."""
    query, keys = (x.to(torch.float8_e4m3fn).to(x.dtype) for x in (query_BTUZ, keys_BSZ))
    return right(query, weight_BTU, keys)


@trap(
    27,
    at=[(losses, "indexer_loss")],
    symptom="The loss falls as ever, since the trunk adapts to random picks; what lies far back is not found.",
    killed_by=("indexers_learn_what_their_layers_read",),
)
def indexer_never_taught(right, call):
    """The indexer has no loss of its own, and a top-k has no gradient: it stays as random as it began."""
    return right(call).detach()


@trap(
    27,
    at=[(ops, "teacher")],
    symptom="Heads that hardly read entries teach as loudly as those that do: picks for nobody.",
    found="Primus#992",
    killed_by=("indexers_learn_what_their_layers_read",),
)
def teacher_normed_in_each_head(right, weight_BTHC):
    """Each head's weights are divided by their sum over entries before heads are added, as if no window were there."""
    return right(weight_BTHC / weight_BTHC.sum(-1, keepdim=True).clamp_min(torch.finfo(weight_BTHC.dtype).tiny))


@trap(
    27,
    at=[(losses, "indexer_loss")],
    symptom="The trunk is bent towards what is easy to index; the text is predicted a little worse.",
    killed_by=("the_trunk_learns_from_the_text_alone",),
)
def indexer_teaches_the_trunk(right, call):
    """The indexer's inputs are not detached, so that its loss reaches the layers below."""
    with patch.object(Tensor, "detach", lambda x: x):
        return right(call)
