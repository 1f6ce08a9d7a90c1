"""Drafting changes how fast a text is written, never the text: token by token, in distribution, in the caches."""

import functools
import itertools

import numpy as np
import pytest
import torch
from small import EXACT, TINY, numpy_of, small_model

import minidsv4 as v4
from minidsv4 import paper
from minidsv4.course.mutants import mutant
from minidsv4.serve import speculate
from minidsv4.serve.sampling import sample
from minidsv4.serve.speculate import Speculation, Speculator, expected_tokens, verify
from minidsv4.serve.speedup import measure_speedup

WINDOW, CSA, HCA = v4.LayerKind.WINDOW, v4.LayerKind.CSA, v4.LayerKind.HCA
# All kinds of layers, and 2 of up to 25 entries to pick: the choice has to be right after every rewind.
QUICK = TINY.replace(
    **dict(num_hidden_layers=3, compress_ratios=(0, 3, 12, 0), layer_types=(WINDOW, CSA, HCA, WINDOW)),
    **dict(vocab_size=17, index_topk=2, n_routed_experts=5, index_n_heads=5, hc_sinkhorn_iters=3),
)
ONE_LAYER = QUICK.replace(num_hidden_layers=1, compress_ratios=(0, 0), layer_types=(WINDOW, WINDOW), vocab_size=5)
N_TOKENS = 50  # over four HCA windows
SIZES = {"tiny": TINY, "quick": QUICK, "one layer": ONE_LAYER}


@functools.cache
@torch.no_grad()
def model(size="quick", seed=0, loud=1.0):
    """A random model; the softer its layers, the more the embedding decides, and the MTP block often guesses right."""
    net = small_model(SIZES[size], seed).requires_grad_(False)
    for name, parameter in net.named_parameters():
        parameter.mul_(loud if name.endswith(("wo_b.weight", "w2", "w2.weight", "h_proj.weight")) else 1)
    block = net.mtp[0]
    block.e_proj.weight.copy_(torch.eye(net.config.hidden_size))
    block.norm.weight.copy_(net.norm.weight)
    block.hc_head.load_state_dict(net.hc_head.state_dict())
    return net


def prompt(n_tokens, seed=0, size="quick"):
    return torch.randint(SIZES[size].vocab_size, (n_tokens,), generator=torch.Generator().manual_seed(seed))


def speculator(net, depth, temperature=0.0, top_p=1.0, seed=0):
    return Speculator(net, Speculation(depth), temperature, top_p, torch.Generator().manual_seed(seed))


def contents(cache):
    return [part.contents().clone() for layer in cache.layers for part in layer.series()]


def same_bits(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other))


# ---- the same text ----


@functools.cache
def plain(loud, seed, n_prompt, n_tokens=N_TOKENS):
    return v4.generate(model(seed=seed, loud=loud), prompt(n_prompt, seed), n_tokens, temperature=0)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_greedy_drafting_writes_the_tokens_of_plain_decoding(depth):
    counts = Speculation(depth)
    for loud, seed, n_prompt in [(0.4, 0, 1), (0.6, 0, 14), (0.6, 1, 5), (1.0, 0, 37)]:
        net, wanted = model(seed=seed, loud=loud), plain(loud, seed, n_prompt)
        assert v4.generate(net, prompt(n_prompt, seed), N_TOKENS, temperature=0, speculate=counts) == wanted
    # drafts of every place are both kept and rejected, and certain tokens are caught up with: every path is gone
    assert all(0 < kept < counts.rounds for kept in counts.kept) and counts.catch_ups > 0
    assert counts.kept == sorted(counts.kept, reverse=True)


@pytest.mark.slow
def test_greedy_drafting_writes_the_tokens_of_plain_decoding_where_four_layers_choose_among_entries():
    net, ids = model("tiny"), prompt(11, size="tiny")
    wanted = v4.generate(net, ids, 40, temperature=0)  # 51 tokens: 17 entries, of which 6 are picked
    assert len(set(wanted)) > 12 and v4.generate(net, ids, 40, temperature=0, speculate=2) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("name", ["window_left_stale", "overlap_not_rolled_back"])
def test_a_cache_that_is_not_rolled_back_writes_another_text(name):
    with mutant(name):
        assert v4.generate(model(), prompt(37), N_TOKENS, temperature=0, speculate=3) != plain(1.0, 0, 37)


@pytest.mark.slow
def test_rejected_drafts_that_are_not_rolled_back_write_another_text(monkeypatch):
    monkeypatch.setattr(v4.model.cache.Cache, "go_back", lambda cache, n_tokens, ends: None)
    assert v4.generate(model(), prompt(37), N_TOKENS, temperature=0, speculate=2) != plain(1.0, 0, 37)


def test_a_prompt_longer_than_a_chunk_is_taken_in_by_chunks(monkeypatch):
    whole, cut = (speculator(model(), 2) for _ in range(2))
    whole.begin(prompt(23))
    monkeypatch.setattr(speculate, "CHUNK", 11)  # 11, 11, 1: the last chunk holds no next token
    assert cut.begin(prompt(23)) == int(whole.state.next_BT)
    for one, other in ((whole.cache, cut.cache), (whole.draft_cache, cut.draft_cache)):
        assert one.n_tokens == other.n_tokens and one.report() == other.report()
        assert all((a - b).abs().max() < EXACT for a, b in zip(contents(one), contents(other)) if a.numel())
    assert whole.draft_cache.n_tokens == 22  # position 22 waits for its next token


# ---- the drafts ----


def chained_shares(net, ids, drafts):
    """The probabilities of each draft in a chain by the loops of the paper, everything computed anew for each."""
    config, params, shares = net.config, numpy_of(net), []
    tensors, streams_TND = paper.parameters_under(params, "mtp.0."), paper.model_streams(params, config, ids[:-1])
    for draft in drafts:
        next_TD = np.array([params["embed.weight"][token] for token in ids[1:]])
        mixed = paper.mtp_input(streams_TND, next_TD, tensors, config.rms_norm_eps)
        out_TND = paper.block(tensors, mixed, ids[1:], "WINDOW", config)
        shares.append(
            np.exp(paper.log_softmax(paper.stream_logits(tensors, out_TND, params["head.weight"], config)[-1]))
        )
        ids = [*ids, draft]
        streams_TND = np.concatenate([streams_TND, out_TND[-1:]])  # its own streams, not collapsed
    return torch.tensor(np.array(shares))


def chain(seed, depth=3):
    """A writer after a prompt and three rounds, its drafts and their probabilities, and by the loops."""
    writer, ids = speculator(model(seed=seed), depth, temperature=1.0), prompt(9, seed).tolist()
    ids.append(writer.begin(torch.tensor(ids)))
    for _ in range(3):
        ids += writer.round()
    drafts, probs_TV = writer.draft()
    return probs_TV, chained_shares(writer.model, ids, drafts)


@pytest.mark.parametrize("seed", [0, 1])
def test_chained_drafts_are_those_of_a_plain_loop(seed):
    ours, expected = chain(seed)
    assert (ours - expected).abs().max() < EXACT


def test_a_chain_that_reads_collapsed_streams_is_not_that_of_the_loop(monkeypatch):
    whole = v4.Model.draft

    def collapsed(*arguments):
        streams_BTND = whole(*arguments)
        return streams_BTND.mean(dim=2, keepdim=True).expand_as(streams_BTND)

    monkeypatch.setattr(v4.Model, "draft", collapsed)
    ours, expected = chain(seed=0)
    assert (ours[1:] - expected[1:]).abs().max() > 1e-3


def test_drafting_twice_from_the_same_place_guesses_the_same():
    writer = speculator(model(), 3, temperature=1.0)
    writer.begin(prompt(9))
    before = contents(writer.draft_cache)

    class Undo(Exception):
        pass

    drafts = []
    for _ in range(2):
        with pytest.raises(Undo), writer.all_or_nothing():
            drafts.append(writer.draft()[0])
            raise Undo
    assert drafts[0] == drafts[1] and same_bits(contents(writer.draft_cache), before)


# ---- no trace ----


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "loud"), [(1, 0.6), (3, 0.6), (4, 1.0)])
def test_after_catching_up_both_caches_are_those_of_a_text_that_was_never_guessed(depth, loud):
    net, ids = model(loud=loud), prompt(8)
    writer = speculator(net, depth)
    text = [*ids.tolist(), writer.begin(ids)]
    for _ in range(25):
        text += writer.round()
    writer.catch_up()
    fresh, cache = speculator(net, depth), net.new_cache()
    assert fresh.begin(torch.tensor(text[:-1])) == text[-1] == int(writer.state.pending_BT)
    net.prefill(torch.tensor([text[:-1]]), cache)
    assert writer.speculation.accepted < writer.speculation.drafted
    for ours, other in ((writer.cache, fresh.cache), (writer.cache, cache), (writer.draft_cache, fresh.draft_cache)):
        assert ours.n_tokens == other.n_tokens and ours.report() == other.report()
        for one, two in zip(contents(ours), contents(other), strict=True):
            assert one.shape == two.shape and (not one.numel() or (one - two).abs().max() < EXACT)


def test_a_round_whose_drafts_are_all_rejected_leaves_the_cache_bit_for_bit():
    writer = speculator(model(), 3)
    writer.begin(prompt(14))
    before, report = contents(writer.cache), writer.cache.report()
    drafts_before = writer.draft_cache.n_tokens
    while len(writer.round()) > 1:
        before, report, drafts_before = contents(writer.cache), writer.cache.report(), writer.draft_cache.n_tokens
    assert same_bits(contents(writer.cache), before) and writer.cache.report() == report
    assert writer.draft_cache.n_tokens == drafts_before + writer.state.next_BT.shape[1]


def calls_of_a_round(writer, interrupt_at=None):
    """How many calls of layers one round makes; at the given one Ctrl-C comes, before or after the layer's work."""
    calls = []

    def count(*_):
        calls.append(0)
        if len(calls) - 1 == interrupt_at:
            raise KeyboardInterrupt

    parts = [*writer.model.layers, writer.model.mtp[0], writer.model.head]
    hooks = [part.register_forward_hook(count) for part in parts]
    hooks += [part.register_forward_pre_hook(count) for part in parts]
    try:
        writer.round()
    finally:
        [hook.remove() for hook in hooks]
    return len(calls)


@pytest.mark.slow
def test_ctrl_c_anywhere_in_a_round_leaves_everything_as_it_was():
    writer, twin = (speculator(model(loud=0.6), 2, temperature=1.0, seed=3) for _ in range(2))
    assert writer.begin(prompt(14)) == twin.begin(prompt(14))
    while twin.state.pending_BT.shape[1] <= speculate.MAX_PENDING:  # so that the round begins by catching up
        assert writer.round() == twin.round()
    n_calls = calls_of_a_round(twin)
    before, text, counts = (
        [contents(c) for c in (writer.cache, writer.draft_cache)],
        writer.state,
        str(writer.speculation),
    )
    assert n_calls == 2 * (3 + 1 + 2 + 3)  # layers and MTP catch up; MTP twice; layers
    for place in range(n_calls):
        with pytest.raises(KeyboardInterrupt):
            calls_of_a_round(writer, place)
        assert writer.state is text
        assert all(same_bits(contents(c), old) for c, old in zip((writer.cache, writer.draft_cache), before))
        assert str(writer.speculation) == counts
    writer.round()
    assert torch.equal(writer.state.pending_BT, twin.state.pending_BT) and writer.round() == twin.round()


# ---- the same distribution ----


def chi_square(counts, shares):
    """Pearson's statistic over its value at significance 0.001 (Wilson and Hilferty's form, good to a percent)."""
    wanted, freedom = counts.sum() * shares.flatten(), shares.numel() - 1
    statistic = ((counts.flatten() - wanted) ** 2 / wanted).sum()
    return (statistic / (freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3)).item()


def keep_all(target_TV, draft_TV, drafts, generator):
    return [*drafts, sample(target_TV[-1], generator)]


def keep_the_wanted(target_TV, draft_TV, drafts, generator):
    """Keeps a draft with its wanted probability, as if it had not been likely to be guessed."""
    return verify(target_TV, torch.ones_like(draft_TV) * (draft_TV > 0), drafts, generator)


def draw_anew(target_TV, draft_TV, drafts, generator):
    """Replaces a rejected draft by a token of the whole distribution, not of what was missing."""
    tokens = verify(target_TV, draft_TV, drafts, generator)
    return [*tokens[:-1], sample(target_TV[len(tokens) - 1], generator)]


WRONG = [keep_all, keep_the_wanted, draw_anew]


def misfit(rule, n_draws=4000):
    """chi_square of the first two tokens that a rule makes of drafts from given tables, far from the wanted ones."""
    target_TV = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.2, 0.3]], dtype=torch.float64)
    draft_TV = torch.tensor([[0.2, 0.5, 0.2, 0.1], [0.3, 0.1, 0.2, 0.4]], dtype=torch.float64)
    generator, counts = torch.Generator().manual_seed(0), torch.zeros(4, 4, dtype=torch.float64)
    for _ in range(n_draws):
        tokens = rule(target_TV, draft_TV, [sample(row, generator) for row in draft_TV], generator)
        while len(tokens) < 2:  # the tables do not depend on the tokens before
            tokens.append(sample(target_TV[1], generator))
        counts[tokens[0], tokens[1]] += 1
    return chi_square(counts, target_TV[0][:, None] * target_TV[1])


def test_kept_and_replaced_guesses_have_the_wanted_probabilities():
    assert misfit(verify) < 1


@pytest.mark.slow
@pytest.mark.parametrize("rule", WRONG)
def test_a_wrong_rule_of_keeping_is_told_by_its_probabilities(rule):
    assert misfit(rule) > 1


def written_pairs(depth, n_draws, **sampling):
    """How often each pair of tokens follows a prompt, written with drafts and undone again."""
    net, counts = model("one layer"), torch.zeros(5, 5, dtype=torch.float64)
    writer = speculator(net, depth, **sampling)
    writer.begin(prompt(9, size="one layer"))
    start, caches = writer.state, [(cache, cache.snapshot()) for cache in (writer.cache, writer.draft_cache)]
    for _ in range(n_draws):
        tokens = writer.round()
        tokens += writer.round() if len(tokens) < 2 else []
        counts[tokens[0], tokens[1]] += 1
        writer.state = start
        [cache.restore(snapshot) for cache, snapshot in caches]
    return writer, counts


def pair_shares(writer):
    """The probability of each pair after the writer's text, from passes over the whole text."""
    ids = [*prompt(9, size="one layer").tolist(), int(writer.state.next_BT)]
    texts = torch.tensor([[*ids, token] for token in range(5)])
    logits_BTV = writer.model(texts)[:, -2:]
    first_V, second = (
        writer.probabilities(logits_BTV[:1])[0],
        [writer.probabilities(row[None])[1] for row in logits_BTV],
    )
    return first_V[:, None] * torch.stack(second)


@pytest.mark.slow
def test_tokens_written_with_drafts_have_the_distribution_of_the_model():
    writer, counts = written_pairs(depth=2, n_draws=400, temperature=0.8)
    assert chi_square(counts, pair_shares(writer)) < 1
    assert 0.1 < writer.speculation.kept[1] / writer.speculation.rounds < 0.9  # both ways are taken


@pytest.mark.slow
def test_top_p_is_kept_with_drafts():
    writer, counts = written_pairs(depth=2, n_draws=200, temperature=1.0, top_p=0.7)
    shares = pair_shares(writer)
    possible = shares > 0
    assert (~possible).sum() > 5 and counts[~possible].sum() == 0
    assert chi_square(counts[possible], shares[possible]) < 1


def test_keeping_every_guess_is_told_by_the_written_tokens(monkeypatch):
    monkeypatch.setattr(speculate, "verify", keep_all)
    writer, counts = written_pairs(depth=2, n_draws=100, temperature=0.8)
    assert chi_square(counts, pair_shares(writer)) > 1


def test_at_temperature_0_a_guess_is_kept_exactly_where_it_is_the_likeliest():
    one_hot, generator = torch.eye(4, dtype=torch.float64), torch.Generator().manual_seed(0)
    for wanted in itertools.product(range(4), repeat=3):
        kept = 0 if wanted[0] != 2 else 1 if wanted[1] != 1 else 2
        assert verify(one_hot[list(wanted)], one_hot[[2, 1]], [2, 1], generator) == list(wanted[: kept + 1])


def test_guesses_from_the_wanted_probabilities_are_always_kept():
    probs_TV = torch.tensor([[0.3, 0.0, 0.7], [0.2, 0.5, 0.3]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        draft = sample(probs_TV[0], generator)
        assert verify(probs_TV, probs_TV[:1], [draft], generator)[0] == draft


# ---- the interface ----


def test_the_same_seed_writes_the_same_and_fewer_tokens_are_the_first_of_more():
    options = dict(seed=3, speculate=3)
    whole = v4.generate(model(), prompt(5), 20, **options)
    assert whole == v4.generate(model(), prompt(5), 20, **options) != v4.generate(model(), prompt(5), 20, speculate=3)
    assert v4.generate(model(), prompt(5), 8, **options) == whole[:8]


def test_true_drafts_one_token_and_a_speculation_is_counted_on():
    counts = Speculation(1)
    wanted = v4.generate(model(), prompt(5), 12, seed=1, speculate=True)
    assert v4.generate(model(), prompt(5), 12, seed=1, speculate=counts) == wanted
    first = counts.rounds
    v4.generate(model(), prompt(5), 12, seed=1, speculate=counts)
    assert counts.rounds == 2 * first == counts.drafted and counts.passes == counts.rounds + counts.catch_ups


def test_counts_add_up_to_the_tokens_written():
    writer, tokens = speculator(model(loud=0.6), 3), []
    writer.begin(prompt(14))
    for _ in range(20):
        tokens += writer.round()
    counts = writer.speculation
    assert counts.rounds == 20 and counts.drafted == 60 and counts.accepted + counts.rounds == len(tokens)
    assert counts.tokens_per_pass == len(tokens) / counts.passes


def test_tokens_are_streamed_one_by_one_and_nothing_follows_the_stop_token():
    seen, whole = [], plain(0.6, 0, 14)
    net = model(loud=0.6)
    written = v4.generate(net, prompt(14), N_TOKENS, temperature=0, speculate=4, stream=seen.append, stop=whole[9])
    assert written == seen == whole[: whole.index(whole[9]) + 1]


def test_no_tokens_asked_for_are_no_tokens_written():
    assert v4.generate(model(), prompt(5), 0, speculate=2) == []


@pytest.mark.parametrize("wrong", [2.0, "2", None])
def test_what_says_nothing_of_drafts_is_refused_with_a_sentence(wrong):
    with pytest.raises(ValueError, match=f"generate: speculate = {wrong!r} is a .*; give False, True, a number of"):
        v4.generate(model(), prompt(5), 3, speculate=wrong)


@pytest.mark.parametrize("wrong", [0, -1])
def test_depths_that_draft_nothing_are_refused_with_a_sentence(wrong):
    with pytest.raises(ValueError, match=f"depth = {wrong!r} .* from 1"):
        v4.generate(model(), prompt(5), 3, speculate=wrong)


def test_a_model_without_an_mtp_block_cannot_draft():
    net = small_model(QUICK.replace(num_nextn_predict_layers=0))
    with pytest.raises(ValueError, match="num_nextn_predict_layers = 0"):
        v4.generate(net, prompt(5), 3, speculate=True)


def test_bad_prompts_are_refused_as_without_drafts():
    with pytest.raises(ValueError, match="17 is no token id"):
        v4.generate(model(), [3, 17], 3, speculate=True)


def test_an_error_in_stream_comes_through():
    def refuse(_token):
        raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        v4.generate(model(), prompt(5), 3, speculate=True, stream=refuse)


def test_expected_tokens_are_one_more_than_the_kept_drafts():
    assert expected_tokens(0.0, 3) == 1 and expected_tokens(1.0, 3) == 4
    assert abs(expected_tokens(0.8, 2) - (1 - 0.8**3) / (1 - 0.8)) < 1e-12


def test_the_gain_is_measured_over_prompts():
    gain = measure_speedup(model(loud=0.4), [prompt(3), prompt(6, 1)], 20, depth=2)
    assert gain.written == 40 and gain.same == 2 and gain.seconds > 0 and gain.plain > 0
    assert gain.speculation.accepted > 0 and "40 tokens" in str(gain) and "times as fast" in str(gain)
