"""Texts written side by side: each is the one that its prompt gives alone, whenever it comes, ends or is cancelled."""

import functools
import os
import random

import numpy as np
import pytest
import torch
from small import TINY, small_model

import minidsv4 as v4
from minidsv4.serve.pool import Pool, buffer_bytes

WINDOW, CSA, HCA = v4.LayerKind.WINDOW, v4.LayerKind.CSA, v4.LayerKind.HCA
ROUNDS = int(os.environ.get("MINIDSV4_ROUNDS", "2"))  # of texts that come and go by lot; 100 take some minutes
CONFIG = TINY.replace(
    **dict(num_hidden_layers=3, compress_ratios=(0, 4, 12, 0), layer_types=(WINDOW, CSA, HCA, WINDOW)),
    **dict(index_topk=2, n_routed_experts=6, index_n_heads=5, hc_sinkhorn_iters=3, vocab_size=31),
)
BLOCK = 12  # tokens


@functools.cache
def model(dtype=torch.float64):
    return small_model(CONFIG, dtype=dtype).requires_grad_(False)


def prompt(n_tokens, seed=0):
    return torch.randint(CONFIG.vocab_size, (n_tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


@functools.cache
def alone(n_prompt, seed, n_tokens, temperature, fused=False):
    return v4.generate(model(), prompt(n_prompt, seed), n_tokens, temperature, seed=seed, fused=fused)


def engine(n_blocks=30, texts=4, **options):
    """An engine whose pool has so many blocks."""
    sizes = Pool(model(), 1, 1).sizes
    return v4.Engine(model(), sizes.n_bytes(n_blocks, texts), texts, **options)


# ---- several prompts in one call ----

LENGTHS = (1, 2, 5, 12, 35)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("options", [{}, {"fused": True}, {"speculate": 2}], ids=["plain", "fused", "drafts"])
def test_several_prompts_write_what_each_writes_alone(temperature, options):
    prompts = [prompt(n, seed) for seed, n in enumerate(LENGTHS)]
    texts = v4.generate(model(), prompts, 14, temperature, seed=[*range(len(prompts))], **options)
    expected = [v4.generate(model(), ids, 14, temperature, seed=n, **options) for n, ids in enumerate(prompts)]
    assert texts == expected and len({tuple(text) for text in texts}) == len(prompts)


def test_one_seed_is_the_seed_of_every_prompt():
    prompts = [prompt(5), prompt(5), prompt(9)]
    texts = v4.generate(model(), prompts, 20, seed=3)
    assert texts == [v4.generate(model(), ids, 20, seed=3) for ids in prompts] and texts[0] == texts[1] != texts[2]


def test_a_list_of_one_prompt_gives_a_list_of_one_text():
    assert v4.generate(model(), [prompt(5)], 6) == [v4.generate(model(), prompt(5), 6)]


def test_prompts_may_be_tensors_and_lists():
    prompts = [torch.tensor(prompt(5)), tuple(prompt(3)), torch.tensor([prompt(2)])]
    assert v4.generate(model(), prompts, 6) == [v4.generate(model(), ids, 6) for ids in prompts]


@pytest.mark.parametrize("speculate", [False, 2])
def test_stream_is_called_with_the_number_of_the_prompt_and_the_token(speculate):
    seen = [[], []]
    show = lambda number, token: seen[number].append(token)  # noqa: E731
    assert v4.generate(model(), [prompt(5), prompt(9)], 7, stream=show, speculate=speculate) == seen


@pytest.mark.slow
def test_each_text_ends_at_its_own_stop_token():
    prompts = [prompt(n, n) for n in LENGTHS]
    whole = [v4.generate(model(), ids, 20, seed=1) for ids in prompts]
    stops = {whole[0][4], whole[3][9]}
    texts = v4.generate(model(), prompts, 20, seed=1, stop=stops)
    ends = [next((i + 1 for i, token in enumerate(text) if token in stops), 20) for text in whole]
    assert texts == [text[:end] for text, end in zip(whole, ends)] and len(set(ends)) > 2


@pytest.mark.slow
def test_texts_beside_each_other_in_a_packed_cache_are_those_of_each_alone():
    prompts = [prompt(n, n) for n in LENGTHS]
    packed = dict(cache_precision="released", temperature=0)
    expected = [v4.generate(model(), ids, 12, **packed) for ids in prompts]
    assert v4.generate(model(), prompts, 12, **packed) == expected


def test_prompts_longer_than_a_chunk_are_taken_in_by_chunks(monkeypatch):
    prompts = [prompt(40, 1), prompt(3, 2), prompt(50, 3)]
    expected = v4.generate(model(), prompts, 8)
    monkeypatch.setattr(v4.serve.generation, "PREFILL_CHUNK", 7)
    assert v4.generate(model(), prompts, 8) == expected


def test_no_tokens_asked_for_are_no_tokens_written():
    assert v4.generate(model(), [prompt(5), prompt(2)], 0) == [[], []]


def test_a_model_without_compressors_writes_several_texts():
    net = small_model(CONFIG.replace(num_hidden_layers=1, compress_ratios=(0, 0), layer_types=(WINDOW, WINDOW)))
    prompts = [prompt(5), prompt(9)]
    assert v4.generate(net, prompts, 9) == [v4.generate(net, ids, 9) for ids in prompts]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"ids": [[1], []]}, r"prompt 1: ids of shape \(0,\) are no prompt"),
        ({"ids": [[1], 2]}, "prompt 1: ids = 2 is an int"),
        ({"ids": [[1], [31]]}, "prompt 1: ids: 31 is no token id"),
        ({"ids": [[1], [[2], [3]]]}, r"prompt 1: ids of shape \(2, 1\) are no prompt"),
        ({"seed": [1]}, "seed = .1. for 2 prompts; give one for each, or one int"),
        ({"seed": [1, 2.5]}, "seed = 2.5 is no integer"),
        ({"n_tokens": 4096}, "n_tokens = 4096 after 5 tokens goes beyond"),
        ({"temperature": -1}, "temperature = -1"),
        ({"stop": 31}, "stop = 31 is no token id"),
        ({"stream": 3}, "stream = 3 cannot be called"),
        ({"fused": 1}, "fused = 1 is no switch"),
        ({"fused": True, "speculate": 2}, "fused = True takes one"),
        ({"cache_precision": "half"}, "precision = 'half' is not known"),
    ],
)
def test_what_cannot_be_written_of_several_prompts_is_refused_with_a_sentence(wrong, words):
    seen = []
    with pytest.raises(ValueError, match=words):
        usual = {
            "model": model(),
            "ids": [prompt(5), prompt(3)],
            "n_tokens": 3,
            "stream": lambda *told: seen.append(told),
        }
        v4.generate(**usual | wrong)
    assert seen == []


# ---- texts that come and go ----


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_texts_that_come_at_any_step_and_are_cancelled_at_any_are_those_of_each_alone(seed, fused):
    draw = random.Random(seed)
    served = engine(n_blocks=12, texts=3, chunk=draw.choice([1, 5, 64]), fused=fused)
    requests, cancelled = {}, {}
    for step in range(150):
        if len(requests) < 12 and draw.random() < 0.3:
            wanted = draw.randint(1, 60), step, draw.randint(0, 30), draw.choice([0, 1.0])
            request = served.add(prompt(wanted[0], step), wanted[2], wanted[3], seed=step)
            requests[request] = wanted
        if requests and draw.random() < 0.05:
            request = draw.choice([*requests])
            served.cancel(request)
            cancelled[request] = len(request.written)
        served.step()
    served.run()
    for request, wanted in requests.items():
        whole = alone(*wanted)
        stopped = request.state == "cancelled"
        assert request.state in ("finished", "cancelled") and request.cache is None
        assert request.written == (whole[: cancelled[request]] if stopped else whole)
    assert len(requests) == 12 and served.pool.n_free == 12 and not served.pool.lent


def test_a_step_gives_each_written_text_a_token_and_reads_a_piece_of_a_prompt():
    served = engine(chunk=8)
    first = served.add(prompt(3), 30)
    assert [request for request, _ in served.step()] == [first]
    second = served.add(prompt(40), 5)
    for _ in range(5):  # 7 tokens of the prompt beside one of the other text
        assert [request for request, _ in served.step()] == [first] and not second.written
    assert {request for request, _ in served.step()} == {first, second}
    assert served.busy and len(first.written) == 7 and len(second.written) == 1


def test_a_request_waits_until_the_pool_has_room_and_then_has_the_blocks_of_another():
    served = engine(n_blocks=4, texts=4)
    first, second, third = (served.add(prompt(n), 12) for n in (20, 13, 10))  # 3, 3 and 2 blocks
    served.step()
    assert [each.state for each in (first, second, third)] == [
        "running",
        "waiting",
        "waiting",
    ]  # third is not preferred
    blocks = served.pool.lent[first.cache]
    served.cancel(first)
    served.step()
    assert second.state == "running" and served.pool.lent[second.cache] == blocks
    served.run()
    assert second.written == v4.generate(model(), prompt(13), 12) and third.state == "finished"


def test_no_more_texts_than_there_are_states_run_at_a_time():
    served = engine(n_blocks=30, texts=2)
    requests = [served.add(prompt(3), 4) for _ in range(5)]
    served.step()
    assert [each.state for each in requests] == ["running"] * 2 + ["waiting"] * 3
    served.run()
    assert all(each.state == "finished" for each in requests)


def poisoned(pool, cache, right=Pool.take_back):
    """Blocks that come back are filled with NaN: whatever reads what is left there shows it."""
    for part, arena in zip((p for layer in cache.layers for p in layer.compressors()), pool.arenas):
        pool.room(part, arena, pool.lent[cache]).fill_(float("nan"))
    right(pool, cache)


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_nothing_is_read_of_what_another_text_left_in_its_blocks(monkeypatch, fused):
    monkeypatch.setattr(Pool, "take_back", poisoned)
    served = engine(n_blocks=6, texts=2, fused=fused)
    for arena in served.pool.arenas:
        arena.fill_(float("nan"))
    requests = [served.add(prompt(n, n), 15, seed=n) for n in (20, 33, 5, 17, 40)]
    served.run()
    assert [each.written for each in requests] == [alone(n, n, 15, 1.0) for n in (20, 33, 5, 17, 40)]


def test_scattered_free_blocks_are_made_one_and_the_texts_that_move_go_on():
    served = engine(n_blocks=6, texts=6)
    requests = [served.add(prompt(10, n), 14, seed=n) for n in range(3)]  # 2 blocks each
    for _ in range(5):
        served.step()
    served.cancel(requests[0])
    last = served.add(prompt(14, 5), 34, seed=5)  # 4 blocks, where 2 and none are free side by side
    served.step()
    assert last.state == "waiting"
    served.cancel(requests[2])
    served.step()
    assert last.state == "running" and served.pool.lent[requests[1].cache] == range(0, 2)
    assert served.pool.lent[last.cache] == range(2, 6)
    served.run()
    assert requests[1].written == alone(10, 1, 14, 1.0) and last.written == alone(14, 5, 34, 1.0)


@torch.inference_mode()
def test_a_lent_cache_holds_what_a_fresh_one_holds_and_restores_as_it():
    pool, fresh = Pool(model(), 5, 2), model().new_cache()
    other = pool.lend(20)
    model()(torch.tensor([prompt(20, 1)]), other)
    pool.take_back(other)
    cache = pool.lend(60)
    ids_BT = torch.tensor([prompt(60, 2)])
    for first, stop in [(0, 1), (1, 30), (30, 43)]:
        [model()(ids_BT[:, first:stop], each) for each in (cache, fresh)]
    snaps = [each.snapshot() for each in (cache, fresh)]
    [model()(ids_BT[:, :9], each) for each in (cache, fresh)]
    [each.restore(snap) for each, snap in zip((cache, fresh), snaps)]
    [model()(ids_BT[:, 43:], each) for each in (cache, fresh)]
    assert cache.n_tokens == fresh.n_tokens == 60 and cache.report() == fresh.report()
    assert all(torch.equal(a.contents(), b.contents()) for a, b in zip(cache.series(), fresh.series()))


@pytest.mark.parametrize("precision", ["model", "released"])
@torch.inference_mode()
def test_buffers_of_a_text_stay_within_the_bytes_that_are_counted_for_it(precision):
    pool, draw = Pool(model(), 60, 1, precision), random.Random(0)
    cache = pool.lend(700)
    state = [s for layer in cache.layers for s in layer.series() if s not in [p.entries for p in layer.compressors()]]
    n_new = 91  # a first chunk that the windows' buffers just hold
    while cache.n_tokens < 600:
        model()(torch.tensor([prompt(n_new)]), cache)
        n_new = draw.choice([1, 1, 1, 2, 7, 13, 100])
        assert sum(series.data.nbytes for series in state) <= pool.sizes.state_bytes
        for layer in cache.layers:
            assert layer.window.data.nbytes <= buffer_bytes(layer.window, CONFIG.sliding_window)
        entries = cache.report()
        used = sum(entries[kind] for kind in ("CSA entries", "indexer keys", "HCA entries"))
        assert used <= pool.sizes.blocks(cache.n_tokens) * pool.sizes.block_bytes
    assert sum(arena.nbytes for arena in pool.arenas) == 60 * pool.sizes.block_bytes
    assert used > 49 * pool.sizes.block_bytes


# ---- failures ----


def test_a_step_that_fails_leaves_all_texts_as_they_were_and_can_be_tried_again():
    served = engine(chunk=9)
    requests = [served.add(prompt(n, n), 12, seed=n) for n in (20, 4, 31)]
    for n_steps in range(40):
        place = n_steps % 7
        calls = []

        def fail(*_, place=place, calls=calls):
            calls.append(0)
            if len(calls) == place + 1:
                raise KeyboardInterrupt

        hooks = [part.register_forward_hook(fail) for part in (*model().layers, model().norm)]
        if place < 4 and served.busy:
            with pytest.raises(KeyboardInterrupt):
                served.step()
        [hook.remove() for hook in hooks]
        served.step()
    assert [each.written for each in requests] == [alone(n, n, 12, 1.0) for n in (20, 4, 31)]


def test_a_draw_that_fails_takes_no_random_number_and_no_token(monkeypatch):
    served = engine()
    requests = [served.add(prompt(n, n), 6, seed=n) for n in (5, 4)]
    served.step()
    draw = type(requests[0]).draw  # the first text draws, and then the second fails
    failing = lambda request, logits_V: 1 / 0 if request is requests[1] else draw(request, logits_V)  # noqa: E731
    monkeypatch.setattr(type(requests[1]), "draw", failing)
    with pytest.raises(ZeroDivisionError):
        served.step()
    monkeypatch.undo()
    served.run()
    assert [each.written for each in requests] == [alone(n, n, 6, 1.0) for n in (5, 4)]


def test_what_stream_raises_comes_through_and_the_tokens_of_the_step_are_written():
    served, seen = engine(), []

    def refuse(token):
        raise RuntimeError("full")

    requests = [served.add(prompt(4), 3, stream=refuse), served.add(prompt(4), 3, stream=seen.append)]
    with pytest.raises(RuntimeError, match="full"):
        served.step()
    assert [len(each.written) for each in requests] == [1, 1]
    served.cancel(requests[0])
    served.run()
    assert requests[1].written == v4.generate(model(), prompt(4), 3) and seen == requests[1].written[1:]


def test_a_text_can_be_cancelled_by_its_own_stream():
    served = engine()
    request = served.add(prompt(4), 30, stream=lambda token: len(request.written) == 5 and served.cancel(request))
    served.run()
    assert request.state == "cancelled" and len(request.written) == 5
    served.cancel(request)  # nothing is left to cancel
    assert request.state == "cancelled"


# ---- refusals ----


def test_a_text_for_which_there_is_never_room_is_refused_with_a_sentence():
    served = engine(n_blocks=4)
    with pytest.raises(ValueError, match="a text of 49 tokens takes 5 blocks of 12, and memory has 4; give fewer"):
        served.add(prompt(20), 29)
    assert not served.busy
    served.add(prompt(20), 28)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"memory": 10}, "memory = 10 B is too little; 16 texts need .* at least, .* of state each"),
        ({"memory": "much"}, "engine: memory = 'much' is no amount"),
        ({"memory": None}, "engine: memory = None or inf has no end; give bytes"),
        ({"memory": float("inf")}, "engine: memory = None or inf has no end; give bytes"),
        ({"memory": 1e30}, "engine: memory for .* blocks of .* bytes cannot be had; give less"),
        ({"texts": 0}, "texts = 0 is out of range; it counts texts at a time, from 1"),
        ({"chunk": 1.5}, "chunk = 1.5 is no integer; it counts tokens of a step, from 1"),
        ({"fused": None}, "fused = None is no switch"),
        ({"model": None}, "model = None is a NoneType"),
        ({"cache_precision": "x"}, "precision = 'x' is not known"),
    ],
)
def test_engines_that_cannot_be_are_refused_with_a_sentence(wrong, words):
    with pytest.raises(ValueError, match=words) as refusal:
        v4.Engine(**{"model": model()} | wrong)
    assert str(refusal.value).startswith(("engine: ", "cache: "))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"ids": "text"}, "ids = 'text' is text"),
        ({"n_tokens": -1}, "n_tokens = -1"),
        ({"temperature": -1}, "temperature = -1"),
        ({"top_p": 2}, "top_p = 2"),
        ({"seed": "one"}, "seed = 'one' is no integer"),
        ({"stop": 1 << 40}, "stop = 1099511627776 is no token id"),
        ({"stream": 3}, "stream = 3 cannot be called"),
    ],
)
def test_a_text_that_cannot_be_is_refused_in_the_name_of_the_engine(wrong, words):
    served = engine()
    with pytest.raises(ValueError, match=f"^engine: {words}"):
        served.add(**{"ids": [1, 2], "n_tokens": 3} | wrong)
    assert not served.busy


def test_logits_that_are_nan_are_refused_in_the_name_of_the_engine(monkeypatch):
    served = engine()
    served.add([1, 2], 3)
    right = served.forward
    monkeypatch.setattr(served, "forward", lambda *parts: [logits_TV * float("nan") for logits_TV in right(*parts)])
    with pytest.raises(ValueError, match="^engine: the largest logit = nan"):
        served.step()


def test_a_text_of_another_engine_or_of_none_cannot_be_cancelled():
    served, other = engine(), engine()
    theirs = other.add([1, 2], 3)
    for request in (theirs, None, 3):
        with pytest.raises(ValueError, match="^engine: request = .* is none of this engine's; give what its add"):
            served.cancel(request)
    assert theirs.state == "waiting"


@pytest.mark.parametrize("memory", [np.int64(10**7), np.float32(10**7)])
def test_memory_may_be_a_number_of_numpy(memory):
    assert v4.Engine(model(), memory).pool.n_blocks == v4.Engine(model(), 10**7).pool.n_blocks


def test_weights_that_hold_nan_are_refused():
    net = small_model(CONFIG)
    with torch.no_grad():
        net.layers[1].attn.wkv.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="layers.1.attn.wkv.weight holds NaN"):
        v4.Engine(net)
