"""Rejected drafts leave no trace, wherever in a window they begin: every number kept of 1 to 4, at every phase."""

import functools
import os
import random

import pytest
import torch
from small import EXACT, TINY, small_model

import minidsv4 as v4
from minidsv4.course.mutants import mutant
from minidsv4.serve.speculate import Speculation, Speculator

WINDOW, CSA, HCA = v4.LayerKind.WINDOW, v4.LayerKind.CSA, v4.LayerKind.HCA
# The released ratios, and a window whose border is none of theirs.
CONFIG = TINY.replace(
    **dict(num_hidden_layers=3, compress_ratios=(0, 4, 128, 0), layer_types=(WINDOW, CSA, HCA, WINDOW)),
    **dict(sliding_window=10, index_topk=2, n_routed_experts=5, index_n_heads=5, hc_sinkhorn_iters=3, vocab_size=29),
)
CASES = [(depth, kept) for depth in (1, 2, 3, 4) for kept in range(depth + 1)]
PHASES = range(1, 133)  # tokens of the prompt: every phase of windows of 4 and of 128, and past both borders
ALL = os.environ.get("MINIDSV4_PHASES") == "all"  # some minutes
SHARE = [*PHASES] if ALL else [1, 2, 3, 4, 125, 126, 127, 128, random.Random(0).choice(PHASES)]


@functools.cache
def text():
    """Greedy text of the model after its first token, which any prefix of it goes on with."""
    ids = [7, *v4.generate(model(), [7], 170, temperature=0)]
    assert len(set(ids)) > 6
    return ids


@functools.cache
def model():
    return small_model(CONFIG).requires_grad_(False)


@torch.inference_mode()
def after(n_prompt, depth, kept):
    """A writer after a prompt and two rounds, in each of which so many of the drafts are right; and its text."""
    writer = Speculator(model(), Speculation(depth), 0.0, 1.0, torch.Generator())
    ids = text()[:n_prompt]
    written = [*ids, writer.begin(torch.tensor(ids))]
    real = writer.draft

    def draft():
        """The writer's own passes, but tokens that are known to be right and then wrong ones."""
        real()
        true = text()[len(written) :][:depth]
        drafts = [token if place < kept else (token + 1) % CONFIG.vocab_size for place, token in enumerate(true)]
        return drafts, torch.nn.functional.one_hot(torch.tensor(drafts), CONFIG.vocab_size).double()

    writer.draft = draft
    for _ in range(2):
        written += writer.round()
    return writer, written


@torch.inference_mode()
def trace(n_prompt, depth, kept):
    """How far text and caches are from those of a text that was never guessed: the largest difference, or infinity."""
    writer, written = after(n_prompt, depth, kept)
    if written != text()[: n_prompt + 1 + 2 * (kept + 1)] or writer.speculation.accepted != 2 * kept:
        return torch.inf
    as_it_is = distance(writer.cache, filled(written[: writer.cache.n_tokens]))
    writer.catch_up()
    fresh = Speculator(model(), Speculation(depth), 0.0, 1.0, torch.Generator())
    fresh.begin(torch.tensor(written[:-1]))
    caught_up = [distance(writer.cache, fresh.cache), distance(writer.draft_cache, fresh.draft_cache)]
    return max(as_it_is, *caught_up)


def filled(ids):
    cache = model().new_cache()
    model().prefill(torch.tensor([ids]), cache)
    return cache


def distance(one, other):
    """The largest difference of what two caches hold; infinity where they differ in tokens or in sizes."""
    if one.n_tokens != other.n_tokens or one.report() != other.report():
        return torch.inf
    pairs = [(a.contents(), b.contents()) for a, b in zip(one.series(), other.series(), strict=True)]
    return max(float((a - b).abs().max()) for a, b in pairs if a.numel())


@pytest.mark.slow
@pytest.mark.parametrize("n_prompt", SHARE)
def test_any_number_of_drafts_kept_leaves_the_text_and_the_caches_of_plain_decoding(n_prompt):
    for depth, kept in CASES if ALL else random.Random(n_prompt).sample(CASES, 5):
        assert trace(n_prompt, depth, kept) < EXACT, (depth, kept)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["raw_series_of_drafts_kept", "overlap_not_rolled_back", "window_left_stale"])
def test_what_is_not_rolled_back_is_seen(name):
    text()
    with mutant(name):
        assert trace(126, 3, 1) > 1e-6
