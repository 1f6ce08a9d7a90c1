"""The whole model: equal to the loops, causal, float64 throughout, near float32 in bfloat16, strict about ids."""

import functools

import pytest
import torch
from small import EXACT, TINY, both_tables, numpy_of, off, small_model, token_ids
from torch.utils._python_dispatch import TorchDispatchMode

import minidsv4 as v4
from minidsv4 import paper
from minidsv4.model import model as model_module
from minidsv4.model.block import Block
from minidsv4.model.hyper_connection import HeadCollapse, HyperConnection
from minidsv4.model.indexer import Indexer
from minidsv4.model.moe import Experts, HashRouter, LearnedRouter, MoE
from minidsv4.model.mtp import MTP

N_TOKENS = 38  # 12 entries of 3 tokens and 2 over, of which a query picks 6; 3 entries of 12 and 2 over


@functools.cache
def model():
    return small_model().requires_grad_(False)


@functools.cache
def logits():
    return model()(token_ids(2, N_TOKENS))


def drafted(ids_BT, net=None):
    net = net or model()
    streams_BTND = net.streams(ids_BT, net.new_cache(len(ids_BT)))
    return net.mtp_logits(streams_BTND[:, :-1], ids_BT[:, 1:])


# ---- the definition ----


@pytest.mark.slow
@both_tables
@pytest.mark.parametrize("n_tokens", [1, 12, 26])
def test_logits_agree_with_the_loops_of_the_paper(n_tokens, table):
    net, ids_BT = small_model().use(table), token_ids(2, n_tokens)
    ours, params = net(ids_BT).detach(), numpy_of(net)
    for b in range(2):
        assert off(ours[b], paper.model_logits(params, TINY, ids_BT[b].tolist())) < EXACT


@pytest.mark.slow
@both_tables
@pytest.mark.parametrize("n_tokens", [2, 12, 19])
def test_mtp_logits_agree_with_the_loops_of_the_paper(n_tokens, table):
    net, ids_BT = small_model().use(table), token_ids(2, n_tokens)
    ours, params = drafted(ids_BT, net).detach(), numpy_of(net)
    for b in range(2):
        assert off(ours[b], paper.mtp_logits(params, TINY, ids_BT[b].tolist())) < EXACT


@pytest.mark.parametrize("chunk", [1, 5, 12, 37, 38, 1000])
def test_a_prompt_in_chunks_ends_with_the_logits_of_one_pass(chunk):
    cache = model().new_cache(2)
    last_BV = model().prefill(token_ids(2, N_TOKENS), cache, chunk=chunk)
    assert (last_BV - logits()[:, -1]).abs().max() < EXACT and cache.n_tokens == N_TOKENS


def test_a_prompt_longer_than_the_default_chunk_is_cut(monkeypatch):
    sizes = []
    hook = model().embed.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[1]))
    model().prefill(token_ids(1, model_module.PREFILL_CHUNK + 3), model().new_cache(1))
    hook.remove()
    assert sizes == [model_module.PREFILL_CHUNK, 3]


def test_the_same_call_twice_gives_the_same_bits():
    assert torch.equal(model()(token_ids(2, N_TOKENS)), logits())


def test_ids_of_32_bits_are_ids():
    assert torch.equal(model()(token_ids(2, N_TOKENS).int()), logits())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16])
def test_ids_of_few_bits_are_ids_too_or_are_refused_with_a_sentence(dtype):
    try:
        given = model()(token_ids(2, N_TOKENS).to(dtype))
    except ValueError as refusal:
        assert str(dtype) in str(refusal)
    else:
        assert torch.equal(given, logits())


# ---- causality ----


@pytest.mark.parametrize("place", [0, 2, 11, 12, 23, 24, 36, 37])
def test_a_changed_token_leaves_earlier_logits_alone_and_moves_its_own(place):
    ids_BT = token_ids(2, N_TOKENS)
    ids_BT[:, place] = (ids_BT[:, place] + 1) % TINY.vocab_size
    moved_BT = (model()(ids_BT) - logits()).abs().amax(-1)
    assert (moved_BT[:, :place] < EXACT).all() and (moved_BT[:, place] > 1e-3).all()


@pytest.mark.parametrize("place", [2, 14, 25])
def test_the_gradient_of_a_logit_reaches_back_and_never_forward(place):
    seen = []

    def keep(module, inputs, output):
        seen.append(output.detach().requires_grad_())
        return seen[0]

    hook = model().embed.register_forward_hook(keep)
    model()(token_ids(2, N_TOKENS))[:, place].square().sum().backward()
    hook.remove()
    reach_BT = seen[0].grad.abs().amax(-1)
    assert (reach_BT[:, place + 1 :] == 0).all() and (reach_BT[:, : place + 1] > 0).all()


def test_mtp_logits_read_the_next_token_and_not_the_one_they_predict():
    ids_BT = token_ids(2, 20)
    before = drafted(ids_BT)
    for i in (0, 6, 12):
        changed = ids_BT.clone()
        changed[:, i + 2] = (changed[:, i + 2] + 1) % TINY.vocab_size
        moved_BT = (drafted(changed) - before).abs().amax(-1)
        assert (moved_BT[:, : i + 1] < EXACT).all()  # the token after the next is what position i predicts
        assert (moved_BT[:, i + 1] > 1e-3).all()  # one place later it is the next token


def test_every_stream_reaches_the_mtp_block():
    ids_BT = token_ids(2, 9)
    streams_BTND = model().streams(ids_BT, model().new_cache(2))[:, :-1]
    before = model().mtp_logits(streams_BTND, ids_BT[:, 1:])
    for n in range(TINY.hc_mult):
        changed = streams_BTND.clone()
        changed[:, :, n] += 1
        assert (model().mtp_logits(changed, ids_BT[:, 1:]) - before).abs().max() > 1e-3


def test_asking_a_model_without_mtp_for_drafts_is_refused():
    with pytest.raises(ValueError, match="num_nextn_predict_layers = 0"):
        drafted(token_ids(2, 9), small_model(TINY.replace(num_nextn_predict_layers=0)))


# ---- streams ----


def test_streams_are_equal_after_the_embedding_and_differ_after_a_block():
    seen = []
    hook = model().layers[0].register_forward_hook(lambda module, inputs, output: seen.extend([inputs[0], output]))
    model()(token_ids(2, 5))
    hook.remove()
    assert torch.equal(seen[0], seen[0][:, :, :1].expand_as(seen[0]))
    assert (seen[1][:, :, 1:] - seen[1][:, :, :1]).abs().amax(dim=(0, 1, 3)).min() > 1e-3


def test_rescaling_the_last_streams_changes_no_logit():
    streams_BTND = model().streams(token_ids(2, 9), model().new_cache(2))
    # eps = 1e-6 of two norms, over mean squares of order 1
    assert off(model().logits(1000 * streams_BTND), model().logits(streams_BTND)) < 1e-5


# ---- precision ----


def tensors_in(value):
    """All tensors in nested tuples."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part)


class Watch(TorchDispatchMode):
    """Note every operation, in modules and between them, that gives numbers of 32 bits."""

    def __init__(self):
        super().__init__()
        self.narrow, self.n_calls = set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.n_calls += 1
        if any(part.dtype in (torch.float32, torch.complex64) for part in tensors_in(out)):
            self.narrow.add(str(func))
        return out


def test_nothing_in_a_forward_of_a_float64_model_is_float32():
    net = small_model()
    with Watch() as watch:
        net(token_ids(2, 9), net.new_cache(2))
        drafted(token_ids(2, N_TOKENS), net).sum().backward()
    assert watch.narrow == set() and watch.n_calls > 1000


def test_nothing_in_the_losses_of_a_float64_model_is_float32():
    net = small_model()
    with Watch() as watch:
        net.loss(token_ids(2, N_TOKENS)).total.backward()
    assert watch.narrow == set() and watch.n_calls > 1000
    assert {parameter.grad.dtype for parameter in net.parameters() if parameter.grad is not None} == {torch.float64}


def test_float32_is_near_float64():
    narrow = small_model(dtype=torch.float32)
    assert off(narrow(token_ids(2, N_TOKENS)).double(), logits()) < 5e-6  # measured 4e-7 to 6e-7 over six seeds


def test_a_bfloat16_model_stays_finite_and_near_float32():
    net = small_model(dtype=torch.bfloat16)
    rounded = net.state_dict()
    wide = v4.Model(TINY)
    wide.load_state_dict(
        {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in rounded.items()}
    )
    ids_BT = token_ids(2, N_TOKENS)
    ours, theirs = net(ids_BT), wide(ids_BT)
    assert ours.dtype == torch.float32 and ours.isfinite().all()
    error = (ours.float() - theirs).square().mean().sqrt() / theirs.square().mean().sqrt()
    assert error < 0.1  # 8 bits a number through 4 layers: measured 0.014 to 0.065 of the logits over six seeds
    cache = net.new_cache(2)
    chunks = torch.cat([net(ids, cache) for ids in ids_BT.split([20, 1, 1, 16], dim=1)], dim=1)
    assert chunks.isfinite().all()
    assert all(part.isfinite() for part in net.loss(ids_BT))


# ---- the start ----


def test_a_fresh_model_predicts_nearly_uniformly_and_is_finite():
    torch.manual_seed(0)
    fresh = v4.Model(v4.Config.mini())
    spread = fresh(token_ids(2, 20, config=v4.Config.mini())).log_softmax(-1)
    nats = torch.tensor(float(v4.Config.mini().vocab_size)).log()
    assert spread.isfinite().all() and (spread.mean() + nats).abs() < 0.1


def test_matrices_begin_with_the_configs_spread_and_those_that_write_to_the_streams_smaller():
    torch.manual_seed(0)
    parameters = dict(v4.Model(v4.Config.mini()).named_parameters())
    for name, std in [
        *(("embed.weight", 0.02), ("layers.1.attn.wq_b.weight", 0.02), ("layers.2.ffn.experts.w13", 0.02)),
        *((name, 0.02 / 12**0.5) for name in ("layers.1.attn.wo_b.weight", "layers.2.ffn.experts.w2")),
        ("layers.3.ffn.shared_experts.w2.weight", 0.02 / 12**0.5),
    ]:
        assert abs(parameters[name].std().item() / std - 1) < 0.03, name  # thousands of draws: 1% and less
    assert (parameters["layers.1.attn.attn_sink"] == 0).all() and (parameters["norm.weight"] == 1).all()


# ---- bad input ----


BAD_IDS = {
    "float": (torch.zeros(2, 5), "torch.float32 .* integers"),
    "bool": (torch.zeros(2, 5, dtype=torch.bool), "torch.bool .* integers"),
    "complex": (torch.zeros(2, 5, dtype=torch.complex128), "torch.complex128 .* integers"),
    "a list": ([[1, 2, 3]], "list .* integers"),
    "too large": (torch.tensor([[1, 61, 3]]), "61 is no token id; vocab_size allows 0 .. 60"),
    "negative": (torch.tensor([[1, -1, 3]]), "-1 is no token id; vocab_size allows 0 .. 60"),
    "no tokens": (torch.zeros(2, 0, dtype=torch.long), r"shape \(2, 0\) .* at least one token"),
    "no sequences": (torch.zeros(0, 5, dtype=torch.long), r"shape \(0, 5\)"),
    "one axis": (torch.tensor([1, 2, 3]), r"shape \(3,\) .* \[batch, tokens\]"),
    "three axes": (torch.zeros(2, 3, 1, dtype=torch.long), r"shape \(2, 3, 1\)"),
}


@pytest.mark.parametrize("name", BAD_IDS)
@pytest.mark.parametrize("call", ["forward", "prefill", "loss"])
def test_bad_ids_are_refused_with_a_sentence(call, name):
    ids, sentence = BAD_IDS[name]
    with pytest.raises(ValueError, match=sentence):
        if call == "prefill":
            model().prefill(ids, model().new_cache(2))
        else:
            getattr(model(), call)(ids)


def test_a_cache_of_another_batch_size_or_another_config_is_refused():
    with pytest.raises(ValueError, match="batch_size = 3.* 2.*"):
        model()(token_ids(2, 5), model().new_cache(3))
    other = small_model(TINY.replace(sliding_window=8))
    with pytest.raises(ValueError, match="another config"):
        model()(token_ids(2, 5), other.new_cache(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_of_another_dtype_is_refused(dtype):
    cache = small_model(dtype=dtype).new_cache(2)
    with pytest.raises(ValueError, match="cache"):
        model()(token_ids(2, 5), cache)


PARTS = {
    "a router": lambda: LearnedRouter(TINY),
    "a hash router": lambda: HashRouter(TINY),
    "experts": lambda: Experts(TINY),
    "a mixture": lambda: MoE(TINY, v4.Routing.LEARNED),
    "a site": lambda: HyperConnection(TINY),
    "a head's collapse": lambda: HeadCollapse(TINY),
    "an indexer": lambda: Indexer(TINY),
    "a draft block": lambda: MTP(TINY),
    **{f"a {kind.name} block": lambda kind=kind: Block(TINY, kind, v4.Routing.LEARNED) for kind in v4.LayerKind},
    "a model": lambda: v4.Model(TINY),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_built_alone_starts_from_numbers_whatever_memory_held(name, monkeypatch):
    """Kind: a parameter that nobody fills; a router's weight held what was freed before, now and then NaN."""
    empty = torch.empty

    def full_of_nan(*size, **options):
        made = empty(*size, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made.fill_(1 << 40)

    monkeypatch.setattr(torch, "empty", full_of_nan)
    for key, tensor in PARTS[name]().state_dict().items():
        assert tensor.isfinite().all() and tensor.abs().max() < 1e6, key
