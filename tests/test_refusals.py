"""What a model and its cache refuse with a sentence, and what they do where other code would fail in silence."""

import copy

import pytest
import torch
from small import EXACT, TINY, both_tables, off, small_model, token_ids

import minidsv4 as v4
from minidsv4 import paper
from minidsv4.model.cache import Cache
from minidsv4.model.layer import watch
from minidsv4.model.moe import LearnedRouter


@pytest.fixture(scope="module")
def model():
    return small_model()


# ---- numbers of tokens and of sequences ----


@pytest.mark.parametrize("last", [0, -1, 1.0, True, "2"])
def test_a_last_that_asks_for_no_logits_is_refused(last, model):
    """Kind: a count of nothing: `last=0` gave all logits, a negative one some others."""
    for cache in (None, model.new_cache(2)):
        with pytest.raises(ValueError, match=rf"last = {last!r} .* an integer from 1"):
            model(token_ids(2, 5), cache, last=last)
        assert cache is None or cache.n_tokens == 0


def test_the_last_logits_are_those_of_the_whole_also_when_more_are_asked_for_than_there_are(model):
    ids_BT = token_ids(2, 5)
    whole = model(ids_BT)
    assert off(model(ids_BT, last=2), whole[:, -2:]) < EXACT
    assert off(model(ids_BT, last=9), whole) < EXACT


@pytest.mark.parametrize("chunk", [0, -3, 2.5, True, None])
def test_a_chunk_that_takes_in_nothing_is_refused(chunk, model):
    """Kind: a count of nothing, refused in torch's words or not at all."""
    cache = model.new_cache(2)
    with pytest.raises(ValueError, match=rf"chunk = {chunk!r} .*from 1"):
        model.prefill(token_ids(2, 5), cache, chunk=chunk)
    assert cache.n_tokens == 0


def test_a_chunk_longer_than_the_prompt_takes_it_in_whole(model):
    ids_BT = token_ids(2, 5)
    assert off(model.prefill(ids_BT, model.new_cache(2), chunk=1 << 70), model(ids_BT)[:, -1].detach()) < EXACT


@pytest.mark.parametrize("batch_size", [0, -2, 1.5, None, True, "2", 1 << 70])
def test_a_batch_size_that_counts_no_sequences_is_refused(batch_size, model):
    for new in (model.new_cache, model.new_draft_cache):
        with pytest.raises(ValueError, match=rf"batch_size = {batch_size!r} .*an integer from 1"):
            new(batch_size)


# ---- caches ----


@pytest.mark.parametrize("cache", [{}, 3, "cache", [None], object()], ids=lambda cache: type(cache).__name__)
def test_what_is_no_cache_is_refused(cache, model):
    for call in (model, model.prefill, model.streams):
        with pytest.raises(ValueError, match=rf"cache: {type(cache).__name__} is no cache; .*new_cache\(\)"):
            call(token_ids(2, 5), cache)


def test_a_cache_for_drafts_or_of_other_layers_is_refused_by_the_model(model):
    for cache in (model.new_draft_cache(2), model.new_cache(2, kinds=[v4.LayerKind.HCA] * len(model.layers))):
        for call in (model, model.prefill, model.streams):
            with pytest.raises(ValueError, match="layers are of other kinds; .* new_cache"):
                call(token_ids(2, 5), cache)


def test_a_cache_that_is_none_of_the_models_for_drafts_is_refused_by_a_draft(model):
    """Kind: a check of a forward that a draft lacks; the main cache was taken, and one of another batch or type."""
    ids_BT = token_ids(2, 5)
    streams_BTND = model.streams(ids_BT, model.new_cache(2))
    wrong = [
        (model.new_cache(2), r"layers are of other kinds; .* new_draft_cache\(\)"),
        (model.new_draft_cache(3), "made for batch_size = 3, not 2"),
        (small_model(dtype=torch.float32).new_draft_cache(2), "another config, dtype or device"),
        (None, r"NoneType is no cache; .*new_draft_cache\(\)"),
    ]
    for cache, says in wrong:
        with pytest.raises(ValueError, match=f"cache: .*{says}"):
            model.draft(streams_BTND, ids_BT, cache)
        assert cache is None or cache.n_tokens == 0
    with pytest.raises(ValueError, match="ids: torch.float32 cannot name tokens"):
        model.draft(streams_BTND, ids_BT.float(), model.new_draft_cache(2))


def test_a_prompt_without_a_cache_to_take_it_in_is_refused(model):
    for call in (model.prefill, model.streams):
        with pytest.raises(ValueError, match="NoneType is no cache"):
            call(token_ids(2, 5), None)


WRONG_IDS = {
    "text": "ids: str cannot name tokens",
    0.5: "ids: torch.float32 cannot name tokens",
    TINY.vocab_size: rf"ids: {TINY.vocab_size} is no token id; vocab_size allows 0 ..",
    -1: "ids: -1 is no token id",
}


@pytest.mark.parametrize("wrong", WRONG_IDS)
def test_token_ids_that_cannot_be_are_refused_wherever_a_model_takes_them(wrong, model):
    """Kind: an argument that only some calls check; `streams` ended in the embedding's own words."""
    cache = model.new_cache(2)
    ids_BT = wrong if isinstance(wrong, str) else torch.full((2, 5), wrong)
    for call in (
        lambda: model(ids_BT, cache),
        lambda: model.prefill(ids_BT, cache),
        lambda: model.streams(ids_BT, cache),
        lambda: model.loss(ids_BT),
    ):
        with pytest.raises(ValueError, match=WRONG_IDS[wrong]):
            call()
    assert cache.n_tokens == 0


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf"), "1", None, True, [0.3]])
def test_a_weight_of_the_mtp_loss_that_cannot_be_is_refused(weight, model):
    """Kind: a number that makes the total NaN, or reward what it should teach against."""
    with pytest.raises(ValueError, match=r"loss: mtp_weight = .* weighs no loss; it is a number from 0"):
        model.loss(token_ids(2, 5), mtp_weight=weight)


def test_the_logits_of_a_call_with_a_cache_ask_for_no_gradient(model):
    """Kind: a gradient that is asked for and would reach the last layers only."""
    ids_BT, cache = token_ids(2, 20), model.new_cache(2)
    assert model(ids_BT).requires_grad
    for ids in ids_BT.split(7, dim=1):
        assert not model(ids, cache).requires_grad
    assert not model.prefill(ids_BT, model.new_cache(2)).requires_grad
    assert not any(series.contents().requires_grad for series in cache.series())


# ---- devices and layouts ----


def test_ids_documents_and_caches_on_another_device_are_refused_by_name(model):
    """Kind: tensors that lie elsewhere; ids on the meta device picked experts by what memory held."""
    ids_BT, nowhere = token_ids(2, 5), torch.device("meta")
    for call in (model, model.loss, lambda ids_BT: model.prefill(ids_BT, model.new_cache(2))):
        with pytest.raises(ValueError, match=r"ids: on meta, .* move it with \.to\('cpu'\)"):
            call(ids_BT.to(nowhere))
    with pytest.raises(ValueError, match=r"document_BT: on meta, .*\.to\('cpu'\)"):
        model.loss(ids_BT, torch.zeros_like(ids_BT, device=nowhere))
    for call in (model, model.prefill):
        with pytest.raises(ValueError, match="cache: made for a model of another config, dtype or device"):
            call(ids_BT, Cache(TINY, 2, torch.float64, nowhere))


def test_a_sparse_tensor_names_no_tokens(model):
    with pytest.raises(ValueError, match=r"ids: a tensor of layout torch.sparse_coo cannot name tokens; x.to_dense"):
        model(token_ids(2, 5).to_sparse())


# ---- snapshots ----


def contents(cache):
    return [series.contents().clone() for series in cache.series()]


def test_a_deep_copy_of_a_cache_and_its_snapshot_restores_and_leaves_the_original_alone(model):
    """Kind: a state known by its owner's address, which a copy does not have."""
    ids_BT, cache = token_ids(2, 38), model.new_cache(2)
    model(ids_BT[:, :20], cache)
    snapshot, before = cache.snapshot(), contents(cache)
    model(ids_BT[:, 20:30], cache)
    later = contents(cache)
    other, other_snapshot = copy.deepcopy((cache, snapshot))
    other.restore(other_snapshot)
    assert other.n_tokens == 20 and all(torch.equal(*pair) for pair in zip(contents(other), before))
    assert cache.n_tokens == 30 and all(torch.equal(*pair) for pair in zip(contents(cache), later))
    assert off(model(ids_BT[:, 20:], other), model(ids_BT)[:, 20:].detach()) < EXACT
    with pytest.raises(ValueError, match="belongs to another cache"):
        other.restore(snapshot)
    with pytest.raises(ValueError, match="belongs to another cache"):
        cache.restore(other_snapshot)
    cache.restore(snapshot)
    assert cache.n_tokens == 20


def test_a_snapshot_of_a_cache_that_is_gone_is_refused_by_every_other_even_at_its_address(model):
    """Kind: a state known by its owner's address, which another may get."""
    cache = model.new_cache(2)
    snapshot, address = cache.snapshot(), id(cache)
    del cache
    tried = [model.new_cache(2) for _ in range(50)]
    for other in tried:  # one of them may lie where the first one lay
        with pytest.raises(ValueError, match="belongs to another cache"):
            other.restore(snapshot)
    assert address  # an address that is used again must not open the door


@pytest.mark.parametrize("thing", [None, 3, {}, object()], ids=lambda thing: type(thing).__name__)
def test_what_is_no_snapshot_is_refused(thing, model):
    with pytest.raises(ValueError, match="snapshot"):
        model.new_cache(2).restore(thing)


# ---- NaN ----


@both_tables
def test_nan_weights_end_in_nan_logits_and_losses_and_in_no_exception(table):
    """Kind: NaN that ended in an error about shapes out of a top-k."""
    sick = small_model().use(table)
    with torch.no_grad():
        sick.layers[0].attn.wkv.weight[0, 0] = torch.nan
    ids_BT = token_ids(2, 60)
    assert sick(ids_BT).isnan().all()
    assert sick(ids_BT, sick.new_cache(2)).isnan().all()
    assert sick.prefill(ids_BT, sick.new_cache(2), chunk=13).isnan().all()
    losses = sick.loss(ids_BT)
    losses.total.backward()
    assert losses.total.isnan()


@both_tables
def test_a_row_of_nan_leaves_the_logits_of_its_neighbour_alone(table):
    """Kind: NaN in one row that moves what its neighbours pick."""
    model, ids_BT = small_model().use(table), token_ids(2, 60)
    ids_BT[1] = ids_BT[1].clamp(max=TINY.vocab_size - 2)
    ids_BT[0, 5] = TINY.vocab_size - 1  # a token that row 1 does not hold
    healthy = model(ids_BT)[1].detach()
    with torch.no_grad():
        model.embed.weight[TINY.vocab_size - 1] = torch.nan
    logits = model(ids_BT)
    assert logits[0, 5:].isnan().all()
    assert off(logits[1].detach(), healthy) < EXACT


# ---- losses without anything to learn ----


@both_tables
def test_a_batch_without_any_target_has_main_loss_0_and_finite_gradients(table):
    """Kind: a mean over nothing; all padding has loss 0 by rule, not NaN."""
    model, ids_BT = small_model().use(table), token_ids(2, 20)
    alone_BT = torch.arange(20).expand(2, -1)  # each token a document of its own: nothing follows it
    losses = model.loss(ids_BT, alone_BT)
    assert losses.main == 0 and losses.mtp == 0 and losses.indexer == 0 and losses.total.isfinite()
    losses.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@both_tables
@pytest.mark.parametrize(("dtype", "logit"), [(torch.float32, -1200.0), (torch.float64, -8000.0)])
def test_a_router_logit_far_below_zero_leaves_every_gradient_finite(dtype, logit, table):
    """Where softplus underflows: below -104 in float32, -745 in float64."""
    model, ids_BT = small_model(dtype=dtype).use(table), token_ids(2, 40)
    with torch.no_grad():
        for block in model.layers:
            block.ffn.gate.weight[2] = -logit / 10  # times sums of some normed channels: some reach -|logit|
    with watch(model, "affinities") as calls:
        losses = model.loss(ids_BT)
    losses.total.backward()
    lowest = min((x_BTD @ weight_ED.T).min() for _, (x_BTD, weight_ED), _ in calls)
    assert losses.total.isfinite() and lowest < (-104 if dtype == torch.float32 else -745)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@both_tables
@pytest.mark.parametrize(("dtype", "weight"), [(torch.float32, -120.0), (torch.float64, -2000.0)])
def test_scores_that_are_all_0_leave_losses_and_gradients_finite_and_are_no_share(dtype, weight, table):
    """Kind: a division by a sum of zeros; balance and total were NaN beside a finite main loss, and 122 gradients."""
    torch.manual_seed(0)
    model, ids_BT = v4.Model(TINY, ops=table).to(dtype), token_ids(1, 50)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gate.weight"):
                parameter.fill_(weight)
    with watch(model, LearnedRouter) as calls:
        losses = model.loss(ids_BT)
    losses.total.backward()
    assert any((routed.score_BTE == 0).all(dim=-1).any() for _, _, routed in calls)
    expected = sum(paper.balance_loss(*pair) for pair in (_scores_and_picks(routed) for _, _, routed in calls))
    assert abs(losses.balance.item() - expected) < 1e-5 * expected  # scores of float32
    assert all(part.isfinite() for part in losses)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def _scores_and_picks(routed):
    """The first row's scores and picks as float64 and integers of NumPy, for the loops of the paper."""
    return routed.score_BTE[0].detach().double().numpy(), routed.picked_BTA[0].numpy()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: v4.Model("mini"), "config: 'mini' is no Config; give one, such as Config.mini()"),
        (lambda: v4.Model(v4.Config), "config: .* is no Config"),
        (lambda: v4.Model(v4.Config.tiny(), ops=None), "ops: NoneType has no operation rms_norm; give PLAIN"),
        (lambda: v4.Model(v4.Config.tiny()).use(v4.ops), "ops: module has no operation rms_norm"),
        (lambda: v4.Model(v4.Config.tiny()).use(v4.PLAIN[:3]), "ops: tuple has no operation"),
        (
            lambda: v4.Model(v4.Config.tiny()).use(v4.PLAIN._replace(attend=None)),
            "ops: Ops has no operation attend",
        ),
        (lambda: v4.Model(v4.Config.tiny()).new_cache(1, ["CSA"]), r"cache: kinds = \['CSA'\] cannot be; give a list"),
        (lambda: v4.Model(v4.Config.tiny()).new_cache(1, 3), "cache: kinds = 3 cannot be; give a list of LayerKinds"),
        (lambda: v4.Model(v4.Config.tiny())([[1, 2]]), "ids: list cannot name tokens; give a tensor of int64 or int32"),
        (
            lambda: v4.Model(v4.Config.tiny())(torch.zeros(1, 2, dtype=torch.int16)),
            "torch.int16 .* int64 or int32",
        ),
        (lambda: v4.Model(v4.Config.tiny())(torch.zeros(1, 2).long().numpy()), "ids: ndarray cannot name tokens"),
    ],
)
def test_what_is_no_config_table_kind_or_tensor_is_named_before_anything_runs(call, says):
    """The kind: an argument of another type that was taken, and failed later in somebody else's words."""
    with pytest.raises(ValueError, match=says):
        call()
