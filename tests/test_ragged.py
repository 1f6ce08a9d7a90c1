"""Sequences of any lengths in one pass: each gives what it gives alone, and padding beside it is nothing."""

import functools
import os
import random

import pytest
import torch
from small import EXACT, TINY, off, small_model

import minidsv4 as v4
from minidsv4.course.mutants import mutant
from minidsv4.serve.ragged import forward_each

WINDOW, CSA, HCA = v4.LayerKind.WINDOW, v4.LayerKind.CSA, v4.LayerKind.HCA
BATCHES = int(os.environ.get("MINIDSV4_BATCHES", "5"))  # of unequal prompts; 300 take some minutes
# The released ratios, and a window whose border is none of theirs.
CONFIG = TINY.replace(
    **dict(num_hidden_layers=3, compress_ratios=(0, 4, 128, 0), layer_types=(WINDOW, CSA, HCA, WINDOW)),
    **dict(sliding_window=22, index_topk=3, n_routed_experts=6, index_n_heads=5, hc_sinkhorn_iters=3),
)
BORDERS = (4, 8, 22, 44, 124, 128, 132, 256)


@functools.cache
def model(config=CONFIG, dtype=torch.float64):
    return small_model(config, dtype=dtype).requires_grad_(False)


def prompts(seed, config=CONFIG):
    """Token ids of 2 to 6 texts: of 1 to 5 tokens, near a border of a window, or of any length up to 300."""
    draw = random.Random(seed)
    lengths = [draw.choice([draw.randint(1, 5), draw.choice(BORDERS) + draw.randint(-1, 1), draw.randint(1, 300)])]
    while len(lengths) < draw.randint(2, 6):
        lengths.append(draw.choice([draw.randint(1, 5), draw.choice(BORDERS) + draw.randint(-1, 1)]))
    draw.shuffle(lengths)
    numbers = torch.Generator().manual_seed(seed)
    return [torch.randint(config.vocab_size, (n,), generator=numbers) for n in lengths]


def padded(texts, side, seed=0):
    """The texts as one batch with a mask; padding holds random ids. Side: left, right, or both by lot."""
    draw = random.Random(seed)
    n_tokens = max(map(len, texts)) + 2 * (side == "both")
    ids_BT = torch.randint(CONFIG.vocab_size, (len(texts), n_tokens), generator=torch.Generator().manual_seed(seed))
    mask_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    for row, text_T in enumerate(texts):
        spare = n_tokens - len(text_T)
        first = {"left": spare, "right": 0, "both": draw.randint(0, spare)}[side]
        ids_BT[row, first : first + len(text_T)] = text_T
        mask_BT[row, first : first + len(text_T)] = True
    return ids_BT, mask_BT


def contents(cache):
    """What every series of a cache holds."""
    return [series.contents() for series in cache.series()]


def same_caches(one, other):
    """Equal tokens and bytes of every kind, and numbers up to rounding."""
    assert one.n_tokens == other.n_tokens and one.report() == other.report()
    for ours, expected in zip(contents(one), contents(other), strict=True):
        assert ours.shape == expected.shape and (not ours.numel() or (ours - expected).abs().max() < EXACT)


def chunks_of(texts, draw):
    """The texts cut at random places, as lists of (place of the text, ids): a step takes some of some texts in."""
    left = {place: text_T for place, text_T in enumerate(texts)}
    while left:
        step = []
        for place in draw.sample(sorted(left), draw.randint(1, len(left))):
            n = draw.choice([1, draw.randint(1, 9), len(left[place])])
            step.append((place, left[place][:n]))
            left[place] = left[place][n:]
        left = {place: text_T for place, text_T in left.items() if len(text_T)}
        yield step


# ---- each is what it is alone ----


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(BATCHES))
@torch.no_grad()
def test_every_text_of_a_padded_batch_has_the_logits_that_it_has_alone(seed):
    texts = prompts(seed)
    alone = [model()(text_T[None])[0] for text_T in texts]
    for side in ("left", "right", "both"):
        ids_BT, mask_BT = padded(texts, side, seed)
        logits_BTV = v4.padded_logits(model(), ids_BT, mask_BT)
        assert logits_BTV.shape == (*ids_BT.shape, CONFIG.vocab_size) and (logits_BTV[~mask_BT] == 0).all()
        for row, expected in enumerate(alone):
            assert off(logits_BTV[row, mask_BT[row]], expected) < EXACT


@pytest.mark.parametrize("seed", range(BATCHES))
def test_texts_cut_anyhow_and_taken_in_side_by_side_leave_the_logits_and_caches_of_each_alone(seed):
    texts, draw = prompts(seed), random.Random(seed)
    caches, seen = [model().new_cache() for _ in texts], [[] for _ in texts]
    for step in chunks_of(texts, draw):
        places, ids = zip(*step)
        logits = forward_each(model(), ids, [caches[place] for place in places], last=400)
        for place, logits_TV in zip(places, logits):
            seen[place].append(logits_TV)
    for text_T, cache, logits in zip(texts, caches, seen, strict=True):
        fresh = model().new_cache()
        assert off(torch.cat(logits), model()(text_T[None], fresh)[0]) < EXACT
        same_caches(cache, fresh)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(BATCHES))
def test_greedy_texts_of_unequal_prompts_are_those_of_each_alone(seed):
    texts = prompts(seed)
    expected = [v4.generate(model(), text_T, 6, temperature=0) for text_T in texts]
    assert v4.generate(model(), texts, 6, temperature=0) == expected


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(1, 142) if BATCHES > 100 else [1, 3, 4, 5, 127, 128, 129, 131])
def test_index_keys_and_entries_are_equal_in_number_at_every_chunk_size(chunk):
    texts = [prompts(3)[0].new_tensor(range(n)) % CONFIG.vocab_size for n in (1, 5, 128, 141)]
    caches = [model().new_cache() for _ in texts]
    for first in range(0, 141, chunk):
        ids = [text_T[first : first + chunk] for text_T in texts]
        going = [place for place, ids_T in enumerate(ids) if len(ids_T)]
        forward_each(model(), [ids[place] for place in going], [caches[place] for place in going])
        for cache in caches:
            for layer, ratio in zip(cache.layers, (0, 4, 128)):
                counts = {len(part.entries) for part in layer.compressors()}
                assert counts <= {cache.n_tokens // ratio if ratio else 0}
    fresh = model().new_cache()
    model()(texts[-1][None], fresh)
    same_caches(caches[-1], fresh)


@pytest.mark.parametrize("table", [v4.PLAIN, v4.FAST, v4.COMPILED], ids=["plain", "fast", "compiled"])
def test_every_table_of_operations_gives_each_what_it_gives_alone(table):
    net, texts = small_model(CONFIG).requires_grad_(False).use(table), prompts(7)
    ids_BT, mask_BT = padded(texts, "left")
    logits_BTV = v4.padded_logits(net, ids_BT, mask_BT)
    for row, text_T in enumerate(texts):
        assert off(logits_BTV[row, mask_BT[row]], net(text_T[None])[0]) < EXACT


def test_a_packed_cache_holds_the_same_bytes_beside_others():
    """float64, so that rounding does not move a number over the border of a code."""
    texts = prompts(11)
    caches = [model().new_cache(precision="released") for _ in texts]
    logits = forward_each(model(), texts, caches)
    for text_T, cache, logits_TV in zip(texts, caches, logits, strict=True):
        fresh = model().new_cache(precision="released")
        assert off(logits_TV, model()(text_T[None], fresh, last=1)[0]) < EXACT
        for one, two in zip(cache.series(), fresh.series(), strict=True):
            packed = one.held().dtype == torch.uint8
            assert torch.equal(one.held(), two.held()) if packed else torch.allclose(one.held(), two.held(), 0, EXACT)


def test_a_model_on_disk_gives_each_text_what_it_gives_alone(tmp_path):
    net = v4.load(v4.save(model(dtype=torch.float32), tmp_path), weights="disk", memory="1 MB")
    texts = prompts(5)
    for text_T, logits_TV in zip(texts, forward_each(net, texts, [net.new_cache() for _ in texts])):
        assert off(logits_TV, net(text_T[None], last=1)[0]) < 1e-5  # float32
    with torch.autocast("cpu"), pytest.raises(ValueError, match="on disk, and torch.autocast cannot round"):
        forward_each(net, texts, [net.new_cache() for _ in texts])


def test_hooks_of_the_models_own_parts_are_run_and_the_model_stays_as_it_is():
    parts, seen = [model().layers[1], model().layers[1].attn, model().layers[1].ffn], []
    before = [(name, id(part)) for name, part in model().named_modules()]
    hooks = [part.register_forward_hook(lambda part, *_: seen.append(part)) for part in parts]
    forward_each(model(), prompts(2)[:2], [model().new_cache() for _ in range(2)])
    [hook.remove() for hook in hooks]
    assert seen[:3] == [parts[1], parts[1], parts[2]]  # attention once a text, the rest once for all
    assert len(seen) == 4 and seen[3].ffn is parts[2]
    assert [(name, id(part)) for name, part in model().named_modules()] == before


def test_only_the_tokens_of_the_texts_are_routed():
    texts, seen = prompts(9), []
    hooks = [block.ffn.gate.register_forward_hook(lambda *args: seen.append(args[1][1])) for block in model().layers]
    v4.padded_logits(model(), *padded(texts, "both"))
    [hook.remove() for hook in hooks]
    assert len(seen) == 3 and all(torch.equal(ids_BT[0], torch.cat(texts)) for ids_BT in seen)


def test_gradients_of_a_padded_batch_are_those_of_its_texts():
    net, texts = small_model(CONFIG), prompts(4)[:3]
    logits_BTV = v4.padded_logits(net, *padded(texts, "left"))
    logits_BTV.square().sum().backward()
    ours = {name: parameter.grad for name, parameter in net.named_parameters() if parameter.grad is not None}
    net.zero_grad()
    sum(net(text_T[None]).square().sum() for text_T in texts).backward()
    assert len(ours) > 40
    assert all(off(ours[name], net.get_parameter(name).grad) < EXACT for name in ours if ours[name].abs().max())


# ---- what shows that the tests see ----


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_that_a_mask_hides_is_wrong_on_the_left_and_harmless_on_the_right(side):
    texts = [torch.arange(n) for n in (31, 60, 9)]
    ids_BT, mask_BT = padded(texts, side)
    with mutant("padding_hidden_by_a_mask"):
        logits_BTV = v4.padded_logits(model(), ids_BT, mask_BT)
    error = max(off(logits_BTV[row, mask_BT[row]], model()(text_T[None])[0]) for row, text_T in enumerate(texts))
    assert error > 1e-3 if side == "left" else error < EXACT


# ---- all or nothing, and refusals ----


@pytest.mark.parametrize("place", range(6))
def test_a_failure_anywhere_leaves_all_caches_as_they_were(place):
    texts, calls = prompts(6), []
    caches = [model().new_cache() for _ in texts]
    forward_each(model(), texts, caches)
    before, tokens = [contents(cache) for cache in caches], [cache.n_tokens for cache in caches]

    def fail(*_):
        calls.append(0)
        if len(calls) == place * len(texts) // 2 + 1:
            raise KeyboardInterrupt

    hooks = [block.attn.register_forward_hook(fail) for block in model().layers]
    with pytest.raises(KeyboardInterrupt):
        forward_each(model(), texts, caches)
    [hook.remove() for hook in hooks]
    assert [cache.n_tokens for cache in caches] == tokens
    for cache, held in zip(caches, before):
        assert all(torch.equal(one, two) for one, two in zip(contents(cache), held, strict=True))


def test_a_failure_of_the_head_leaves_all_caches_as_they_were():
    texts = prompts(6)
    caches = [model().new_cache() for _ in texts]
    hook = model().head.register_forward_pre_hook(lambda *_: 1 / 0)
    norm = model().norm.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        forward_each(model(), texts, caches)
    [each.remove() for each in (hook, norm)]
    assert all(cache.n_tokens == 0 and cache.n_bytes() == 0 for cache in caches)


def refused(words, ids, caches=None, **options):
    caches = [model().new_cache() for _ in ids] if caches is None else caches
    with pytest.raises(ValueError, match=words):
        forward_each(model(), ids, caches, **options)
    assert all(cache.n_tokens == 0 for cache in caches)


def test_what_is_no_set_of_sequences_is_refused_with_a_sentence():
    one, cache = torch.tensor([1, 2]), model().new_cache()
    refused("0 sequences and 0 caches; give one cache a sequence", [])
    refused("2 sequences and 1 caches", [one, one], [cache])
    refused("one of them is given twice", [one, one], [cache, cache])
    refused(r"shape \(1, 2\) is no single sequence", [one, one[None]])
    refused("61 is no token id", [one, torch.tensor([61])])
    refused(r"shape \(1, 0\) is no batch", [one, one[:0]])
    refused("float32 cannot name tokens", [one, one.float()])
    refused("list cannot name tokens", [one, [1, 2]])
    refused("made for batch_size = 2", [one], [model().new_cache(2)])
    refused("last = 0 asks for no logits", [one], last=0)


@pytest.mark.parametrize(
    ("ids", "mask", "words"),
    [
        ([[1, 2]], [[0, 0]], "row 0 is padding alone; a row holds one text"),
        ([[1, 2, 3], [4, 5, 6]], [[1, 1, 0], [1, 0, 1]], "row 1 has its text in 2 pieces; a row holds one text"),
        ([[1, 2]], [[1, 2]], "other numbers than 0 and 1"),
        ([[1, 2]], [[1, 1, 0]], r"ids of shape \(1, 2\) and a mask of shape \(1, 3\)"),
        ([1, 2], [1, 1], r"ids of shape \(2,\) and a mask"),
        ([[]], [[]], "are no padded batch; give both as"),
        ([[1, 2]], [[0.0, 1.0]], "mask: torch.float32 marks no tokens"),
        ([[1.0, 2.0]], [[0, 1]], "ids: torch.float32 cannot name tokens"),
        ([[61, 61]], [[0, 1]], "61 is no token id"),
    ],
)
def test_what_is_no_padded_batch_is_refused_with_a_sentence(ids, mask, words):
    ids_BT, mask_BT = torch.tensor(ids), torch.tensor(mask)
    ids_BT, mask_BT = (x.long() if not x.numel() else x for x in (ids_BT, mask_BT))
    with pytest.raises(ValueError, match=words):
        v4.padded_logits(model(), ids_BT, mask_BT)


def test_a_mask_of_another_kind_is_refused_with_a_sentence():
    ids_BT = torch.tensor([[1, 2]])
    for mask in (None, torch.ones(1, 2, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="mask: .* marks no tokens; give a tensor of bool, or"):
            v4.padded_logits(model(), ids_BT, mask)
    with pytest.raises(ValueError, match="model = None is a NoneType; give a minidsv4 Model"):
        v4.padded_logits(None, ids_BT, ids_BT)


def test_padding_may_hold_any_integer():
    ids_BT, mask_BT = torch.tensor([[-100, 10**9, 3, 4]]), torch.tensor([[0, 0, 1, 1]])
    assert off(v4.padded_logits(model(), ids_BT, mask_BT)[0, 2:], model()(ids_BT[:, 2:])[0]) < EXACT
