"""Every trap of the bug museum is caught by the checks that its label names, and by no others.

A check is a function that raises AssertionError; all of them run on one small model in float64 whose schedule has
every mechanism: hash and learned routing, all kinds of layers, top-k that has to choose, a clamp that bites.
"""

import functools
import itertools
import tempfile

import pytest
import torch
from oracle import pair

import minidsv4 as v4
from minidsv4 import paper
from minidsv4.checkpoint import to_released
from minidsv4.course.mutants import MUTANTS, mutant
from minidsv4.course.record import record
from minidsv4.model.attention import WindowAttention
from minidsv4.model.hyper_connection import HyperConnection
from minidsv4.model.moe import Router
from minidsv4.posttrain import distill, grpo
from minidsv4.posttrain.tasks import Verdict
from minidsv4.serve.pool import Pool

EXACT = 1e-10  # float64, a few layers deep; the smallest trap, an eps of 1e-6, moves logits by more than 1e-8
CSA, HCA, WINDOW = v4.LayerKind.CSA, v4.LayerKind.HCA, v4.LayerKind.WINDOW
CONFIG = v4.Config.from_dict(
    dict(
        vocab_size=43,
        hidden_size=18,
        moe_intermediate_size=14,
        num_hidden_layers=3,
        num_attention_heads=6,
        head_dim=16,
        qk_rope_head_dim=6,
        q_lora_rank=12,
        o_groups=3,
        o_lora_rank=7,
        sliding_window=5,
        compress_ratios=(0, 9, 3, 0),
        layer_types=(WINDOW, HCA, CSA, WINDOW),
        index_n_heads=2,
        index_head_dim=8,
        index_topk=4,
        n_routed_experts=7,
        num_experts_per_tok=2,
        num_hash_layers=1,
        swiglu_limit=0.4,
        hc_mult=4,
        hc_sinkhorn_iters=5,
        routed_scaling_factor=2.5,
        rope_theta=100.0,
        compress_rope_theta=500.0,
        max_position_embeddings=512,
        rope_scaling=dict(factor=8, original_max_position_embeddings=64, beta_fast=32, beta_slow=1),
    )
)
N_TOKENS = 32  # 10 entries of 3 tokens and 2 over, 3 of 9 and 5 over


def same(ours: torch.Tensor, expected: torch.Tensor):
    """Equal up to rounding in float64; NaN is not."""
    error = ((ours - expected).abs().max() / expected.abs().max()).item()
    assert error < EXACT, f"off by {error:.1e} of the largest value"


@functools.cache
def museum() -> tuple[v4.Model, torch.Tensor, torch.Tensor]:
    """The model with its MTP block, two sequences, and what transformers makes of them."""
    trunk, reference = pair(CONFIG, seed=1, dtype=torch.float64)
    model = v4.Model(CONFIG).double()
    model.load_state_dict(trunk.state_dict(), strict=False)
    with torch.no_grad():
        for parameter in model.mtp.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        ids_BT = torch.randint(CONFIG.vocab_size, (2, N_TOKENS))
        return model, ids_BT, reference(ids_BT).logits


@functools.cache
def by_hand() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the first sequence, of the main model and of its MTP block, by the loops of `paper.py`."""
    model, ids_BT, _ = museum()
    params = {name: tensor.numpy() for name, tensor in to_released(model.state_dict()).items()}
    ids_T = ids_BT[0].tolist()
    return tuple(torch.from_numpy(logits(params, CONFIG, ids_T)) for logits in (paper.model_logits, paper.mtp_logits))


# ---- the checks ----


@torch.no_grad()
def agrees_with_transformers():
    model, ids_BT, expected = museum()
    same(model(ids_BT), expected)


@torch.no_grad()
def agrees_with_paper():
    model, ids_BT, _ = museum()
    main, drafted = by_hand()
    streams = model.streams(ids_BT[:1], model.new_cache(1))
    same(model.logits(streams)[0], main)
    same(model.mtp_logits(streams[:, :-1], ids_BT[:1, 1:])[0], drafted)


@torch.no_grad()
def chunks_equal_one_pass():
    model, ids_BT, _ = museum()
    cache, sizes = model.new_cache(2), [10, 7, 1, 1, 1, 12]
    same(torch.cat([model(ids, cache) for ids in ids_BT.split(sizes, dim=1)], dim=1), model(ids_BT))


@torch.no_grad()
def later_tokens_change_nothing_before():
    model, ids_BT, _ = museum()
    before = model(ids_BT)
    for place in (4, 28):  # each inside a window of 3; at 4 fewer entries are visible than top-k takes
        changed = ids_BT.clone()
        changed[:, place:] = (changed[:, place:] + 1) % CONFIG.vocab_size
        same(model(changed)[:, :place], before[:, :place])


@torch.no_grad()
def restoring_forgets_what_was_rejected():
    model, ids_BT, _ = museum()
    cache = model.new_cache(2)
    model(ids_BT[:, :13], cache)
    snap = cache.snapshot()
    expected = model(ids_BT[:, 13:], cache)
    cache.restore(snap)
    model(ids_BT[:, :7], cache)  # drafts, which close two windows of 3 and one of 9
    cache.restore(snap)
    same(model(ids_BT[:, 13:], cache), expected)


@torch.no_grad()
def a_padded_row_is_what_it_is_alone():
    model, ids_BT, _ = museum()
    ids_BT = torch.cat([ids_BT.roll(7, dims=1), ids_BT])
    mask_BT = torch.arange(N_TOKENS).expand_as(ids_BT) >= torch.tensor([[7], [1], [0], [20]])
    logits_BTV = v4.padded_logits(model, ids_BT, mask_BT)
    for row, text in enumerate(mask_BT):
        same(logits_BTV[row, text], model(ids_BT[row : row + 1, text])[0])


@torch.no_grad()
def a_lent_cache_holds_its_own_text():
    model, ids_BT, _ = museum()
    pool, cache = Pool(model, n_blocks=8, n_texts=2), model.new_cache(2)
    expected = [model(ids, cache) for ids in ids_BT.split(16, dim=1)]
    for _ in range(2):
        caches = [pool.lend(N_TOKENS) for _ in ids_BT]
        for ids, logits_BTV in zip(ids_BT.split(16, dim=1), expected):
            for row, cache in enumerate(caches):
                same(model(ids[row : row + 1], cache)[0], logits_BTV[row])
        for cache in caches:
            pool.take_back(cache)


@torch.no_grad()
def a_prefix_hit_goes_on_with_its_own_text():
    model, ids_BT, _ = museum()
    for strategy, n_again in (("zero", 13), ("full", 3)):
        with tempfile.TemporaryDirectory() as folder:
            store = v4.PrefixStore(folder, model, strategy)
            for row in (0, 1):
                store.prefill(ids_BT[row : row + 1], model.new_cache())
            cache, n_held = store.longest(ids_BT[0])
            assert (n_held, store.counts.again) == (27, n_again)
            same(model(ids_BT[:1, n_held:], cache), model(ids_BT[:1])[:, n_held:])


@torch.no_grad()
def cache_bytes_equal_the_formula():
    model, ids_BT, _ = museum()
    cache = model.new_cache(2)
    for ids in ids_BT.split([4, 28], dim=1):
        model(ids, cache)
        n = cache.n_tokens
        window = CONFIG.num_hidden_layers * min(n, CONFIG.sliding_window) * CONFIG.head_dim
        entries = n // 9 * CONFIG.head_dim + n // 3 * (CONFIG.head_dim + CONFIG.index_head_dim)
        report = cache.report()
        assert cache.n_bytes() - report["tail state"] == 2 * 8 * (window + entries)  # two sequences, 8 bytes a number


@torch.no_grad()
def new_streams_are_means_of_old_ones():
    streams_BTND = museum()[0].embed.weight[:40].view(2, 5, 4, -1)
    for site in (module for module in museum()[0].modules() if isinstance(module, HyperConnection)):
        carry = site(streams_BTND).carry_BTij
        assert (carry.sum(dim=2) - 1).abs().max() < 3 * CONFIG.hc_eps  # eps in every divisor


@torch.no_grad()
def moving_the_text_changes_nothing():
    model = museum()[0]
    layer = next(module for module in model.modules() if type(module) is WindowAttention)
    x_BTD = model.embed.weight[:22].view(2, 11, -1)

    def at(start):
        memory = model.new_cache(2).layers[0]
        return layer(x_BTD, model.positions(start, 11)[WINDOW], memory)

    same(at(17), at(0))


@torch.no_grad()
def routing_weights_sum_to_the_scale():
    model, ids_BT, _ = museum()
    x_BTD = model.embed(ids_BT)
    for router in (module for module in model.modules() if isinstance(module, Router)):
        total = router(x_BTD, ids_BT).weight_BTA.sum(dim=-1)
        same(total, torch.full_like(total, CONFIG.routed_scaling_factor))


def indexers_learn_what_their_layers_read():
    model, ids_BT, _ = museum()
    loss = model.loss(ids_BT).indexer
    with record(model) as rec:
        model(ids_BT)
    (layer,) = (rec[i] for i, kind in enumerate(rec.kinds) if kind is CSA)
    share, score, nats = layer.weights()[1], layer.index_scores(), []
    for b, t in itertools.product(range(2), layer.visible_T.nonzero()[:, 0].tolist()):
        read = share[b, t].sum(0) > 0
        if not read.any():
            continue
        nats.append(paper.index_loss(score[b, t, read].numpy(), share[b, t][:, read].numpy()))
    same(loss.detach(), torch.tensor(sum(nats) / len(nats)))
    assert loss.requires_grad


def the_trunk_learns_from_the_text_alone():
    model, ids_BT, _ = museum()
    losses, of_indexer = model.loss(ids_BT), [*model.layers[2].attn.indexer.parameters()]
    trunk = [parameter for name, parameter in model.named_parameters() if ".indexer." not in name]
    ask = functools.partial(torch.autograd.grad, allow_unused=True, retain_graph=True)
    if losses.indexer.requires_grad:
        assert not any(grad is not None for grad in ask(losses.indexer, trunk))
    assert not any(grad is not None for grad in ask(losses.main + losses.mtp + losses.balance, of_indexer))


def gradients_are_finite_where_softplus_underflows():
    router = museum()[0].layers[2].ffn.gate
    x_BTD = museum()[0].embed.weight[:10].detach().view(2, 5, -1)
    weight_ED = router.weight.detach() - 1e6 * x_BTD[0, :1] * (torch.arange(7)[:, None] == 3)  # expert 3: z below -1e4
    weight_ED.requires_grad_()
    scores = router.ops.affinities(x_BTD[:1, :1], weight_ED)
    assert scores.isfinite().all()
    scores.sum().backward()
    assert weight_ED.grad.isfinite().all()


def a_reply_is_compared_with_its_own_group():
    easy, hard = [1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]
    advantage_B = grpo.advantages(torch.tensor([*easy, *hard]), 4)
    assert advantage_B[7] > advantage_B[0] > 0 and abs(advantage_B[:4].sum()) < 1e-5  # float32


def a_wrong_answer_is_worth_nothing_however_short():
    rewards = grpo.Rewards(price={"high": 0.1})
    assert rewards.of("high", Verdict(False, 0)) == rewards.of("high", Verdict(False, 9)) == 0.0
    assert rewards.of("high", Verdict(True, 4)) == 0.6


def distributions() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits [1, V] of a student, and the log-probabilities [1, V] of the student and of a teacher."""
    numbers = torch.randn(2, 1, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    logits_TV = numbers[0].requires_grad_()
    return logits_TV, logits_TV.log_softmax(-1), numbers[1].log_softmax(-1)


def the_divergence_weighs_by_the_student():
    _, student_TV, teacher_TV = distributions()
    by_hand = (student_TV.exp() * (student_TV - teacher_TV)).sum(-1)
    same(distill.full_kl(student_TV, teacher_TV), by_hand)


def the_sampled_gradient_is_the_full_one_in_the_mean():
    logits_TV, student_TV, teacher_TV = distributions()
    each = distill.sampled_kl(student_TV.expand(5, -1), teacher_TV.expand(5, -1), torch.arange(5))
    by_hand = (student_TV.exp() * (student_TV - teacher_TV)).sum()
    mean = (student_TV.detach().exp() * each).sum()
    expected = torch.autograd.grad(by_hand, logits_TV, retain_graph=True)
    same(*torch.autograd.grad(mean, logits_TV), *expected)


CHECKS = {
    check.__name__: check
    for check in (
        *(agrees_with_transformers, agrees_with_paper, chunks_equal_one_pass, later_tokens_change_nothing_before),
        *(restoring_forgets_what_was_rejected, a_padded_row_is_what_it_is_alone, a_lent_cache_holds_its_own_text),
        *(a_prefix_hit_goes_on_with_its_own_text, cache_bytes_equal_the_formula, new_streams_are_means_of_old_ones),
        *(moving_the_text_changes_nothing, routing_weights_sum_to_the_scale, indexers_learn_what_their_layers_read),
        *(the_trunk_learns_from_the_text_alone, gradients_are_finite_where_softplus_underflows),
        *(a_reply_is_compared_with_its_own_group, a_wrong_answer_is_worth_nothing_however_short),
        *(the_divergence_weighs_by_the_student, the_sampled_gradient_is_the_full_one_in_the_mean),
    )
}


def fails(check) -> bool:
    """Whether a check notices; any error but a failed assertion is the museum's own and goes through."""
    try:
        check()
    except AssertionError:
        return True
    return False


def in_place(name: str) -> list:
    """What a mutant may change: the functions at its places, set there or inherited, and the parts of the model."""
    model = museum()[0]
    functions = [(attribute in vars(owner), getattr(owner, attribute)) for owner, attribute in MUTANTS[name].places]
    parts = [(path, id(part)) for path, part in [*model.named_parameters(), *model.named_modules()]]
    return [*functions, *parts, *(vars(module).get(key) for module in model.modules() for key in ("window", "limit"))]


# ---- the tests ----


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_check_passes_on_the_model_as_it_is(check):
    check()


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught_by_the_checks_on_its_label_and_by_no_others(name):
    museum(), by_hand()  # the oracles are asked outside
    before = in_place(name)
    with mutant(name) as bug:
        caught_by = {check for check, run in CHECKS.items() if fails(run)}
    assert caught_by == set(bug.killed_by)
    assert in_place(name) == before


@pytest.mark.parametrize("name", MUTANTS)
def test_an_exception_inside_leaves_the_right_functions_behind(name):
    before = in_place(name)
    with pytest.raises(KeyError), mutant(name):
        assert in_place(name) != before
        raise KeyError
    assert in_place(name) == before


@torch.no_grad()
def test_a_model_built_inside_shows_the_bug_and_is_right_outside():
    _, ids_BT, expected = museum()
    with mutant("carry_transposed"):
        model = v4.Model(CONFIG).double()
        model.load_state_dict(museum()[0].state_dict())
        assert fails(lambda: same(model(ids_BT), expected))
    same(model(ids_BT), expected)


@torch.no_grad()
def test_two_opposite_mutants_nest_and_cancel():
    model, ids_BT, expected = museum()
    with mutant("carry_transposed"), mutant("carry_transposed"):
        same(model(ids_BT), expected)
    same(model(ids_BT), expected)


def test_an_unknown_name_is_refused_with_the_list_of_the_known_ones():
    with pytest.raises(ValueError, match="no_such_bug.*carry_transposed"), mutant("no_such_bug"):
        pass


def test_every_label_is_complete():
    for bug in MUTANTS.values():
        assert all(1 <= number <= 47 for number in bug.traps)
        assert bug.mistake.endswith(".") and bug.symptom.endswith(".")
        assert bug.killed_by and set(bug.killed_by) <= set(CHECKS)
    assert len({number for bug in MUTANTS.values() for number in bug.traps}) == 40


def test_every_check_is_needed_by_some_mutant():
    assert {check for bug in MUTANTS.values() for check in bug.killed_by} == set(CHECKS)
