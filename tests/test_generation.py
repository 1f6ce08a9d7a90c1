"""Writing with a model: cached decoding equals passes over the whole text, and draws follow the probabilities."""

import copy
import re

import numpy as np
import pytest
import torch

from minidsv4 import Config, Model
from minidsv4.serve.generation import generate
from minidsv4.serve.sampling import probabilities, sample
from minidsv4.serve.speculate import verify

PROMPT = [0, 7, 3, 22, 7]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    model = Model(Config.tiny()).double()
    with torch.no_grad():
        model.head.weight *= 40  # far from even odds, so that temperature and top-p have something to bite on
    return model


def test_greedy_decoding_with_a_cache_equals_passes_over_the_whole_text(model):
    ids = list(PROMPT)
    with torch.no_grad():
        for _ in range(30):  # over the borders of the window (7) and of both kinds of compressed entries (3 and 12)
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert generate(model, PROMPT, 30, temperature=0) == ids[len(PROMPT) :]


@pytest.mark.slow
def test_the_same_seed_writes_the_same_and_another_seed_writes_otherwise(model):
    assert generate(model, PROMPT, 20, seed=3) == generate(model, PROMPT, 20, seed=3)
    assert generate(model, PROMPT, 20, seed=3) != generate(model, PROMPT, 20, seed=4)
    assert generate(model, PROMPT, 20, seed=3)[:8] == generate(model, PROMPT, 8, seed=3)


def test_stream_is_called_with_each_token_as_it_is_written(model):
    seen = []
    assert generate(model, PROMPT, 9, stream=seen.append) == seen and len(seen) == 9


def test_nothing_is_written_after_the_stop_token(model):
    whole = generate(model, PROMPT, 20, seed=3)
    stop = whole[7]
    assert generate(model, PROMPT, 20, seed=3, stop=stop) == whole[: whole.index(stop) + 1]


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset])
def test_several_stop_tokens_end_the_text_at_the_first_that_comes(model, kind):
    """Kind: several ids where one was taken."""
    whole = generate(model, PROMPT, 20, seed=3)
    stops = [whole[12], whole[7]]
    first = min(whole.index(stop) for stop in stops)
    assert generate(model, PROMPT, 20, seed=3, stop=kind(stops)) == whole[: first + 1]


def test_a_prompt_may_be_a_list_a_tensor_or_a_batch_of_one(model):
    wanted = generate(model, PROMPT, 6)
    for ids in (torch.tensor(PROMPT), torch.tensor([PROMPT]), np.array(PROMPT), tuple(PROMPT)):
        assert generate(model, ids, 6) == wanted


def test_numbers_may_be_those_of_numpy(model):
    numbers = dict(n_tokens=np.int64(6), temperature=np.float32(0.5), top_p=np.float64(0.5), seed=np.uint64(3))
    wanted = generate(model, PROMPT, 6, temperature=0.5, top_p=0.5, seed=3)
    assert generate(model, PROMPT, **numbers, stop=np.int32(60)) == wanted


def test_a_text_may_fill_all_positions_and_no_more(model):
    """Kind: a text beyond the positions that a model was made for, in silence."""
    short = Model(model.config.replace(max_position_embeddings=256))
    assert len(generate(short, [1] * 250, 6, temperature=0)) == 6
    with pytest.raises(ValueError, match="n_tokens = 7 after 250 tokens goes beyond .*; at most 6 can be written"):
        generate(short, [1] * 250, 7)


def test_writing_leaves_no_gradients_and_the_model_as_it_was(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generate(model, PROMPT, 5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_draws_come_as_often_as_their_probability_says():
    probs_V, generator = torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0], dtype=torch.float64), torch.Generator().manual_seed(0)
    counts = torch.bincount(torch.tensor([sample(probs_V, generator) for _ in range(4000)]), minlength=5)
    # four standard deviations of a share near 1/2 over 4000 draws are 0.032
    assert (counts / 4000 - probs_V).abs().max() < 0.032 and counts[1] == counts[4] == 0


def test_temperature_sharpens_flattens_and_at_0_takes_the_first_of_the_likeliest():
    logits_V = torch.tensor([1.0, 3.0, 3.0, 0.0])
    assert probabilities(logits_V, 0).tolist() == [0, 1, 0, 0]
    assert torch.equal(probabilities(logits_V, 1), logits_V.double().softmax(-1))
    assert probabilities(logits_V, 0.5).max() > probabilities(logits_V, 1).max() > probabilities(logits_V, 2).max()
    assert probabilities(1e30 * logits_V, 1e-3).sum() == 1  # no overflow


def test_top_p_keeps_the_fewest_tokens_that_reach_the_share_and_raises_them_evenly():
    logits_V = torch.tensor([0.15, 0.5, 0.05, 0.3], dtype=torch.float64).log()
    for top_p, kept in [(0.4, [1]), (0.6, [1, 3]), (0.9, [0, 1, 3]), (1e-9, [1])]:
        probs_V = probabilities(logits_V, top_p=top_p)
        target_V = torch.zeros(4, dtype=torch.float64).index_add_(0, torch.tensor(kept), logits_V.exp()[kept])
        assert torch.allclose(probs_V, target_V / target_V.sum(), rtol=0, atol=1e-12)
    assert torch.equal(probabilities(logits_V, top_p=1.0), logits_V.softmax(-1))


# --- devices ---


class Half(torch.Tensor):
    """A tensor on a device that refuses float64, as Apple's MPS does."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        wanted = any(value is torch.float64 for value in (*args, *(kwargs or {}).values()))
        if function is torch.Tensor.double or wanted:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        if function is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0}, {"temperature": 0.5, "top_p": 0.6}])
def test_probabilities_are_had_from_a_device_without_float64(sampling):
    logits_V = torch.tensor([1.0, 3.0, 2.5, 0.0])
    probs_V = probabilities(logits_V.as_subclass(Half), **sampling)
    assert type(probs_V) is torch.Tensor and probs_V.dtype == torch.float64
    assert torch.equal(probs_V, probabilities(logits_V, **sampling))


@pytest.mark.parametrize("speculate", [False, 2])
def test_tokens_are_the_same_under_another_default_device(model, speculate):
    probs_V, generator = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), torch.Generator()
    wanted = sample(probs_V, generator.manual_seed(5)), generate(model, PROMPT, 3, speculate=speculate)
    with torch.device("meta"):
        token = sample(probs_V, generator.manual_seed(5))
        assert verify(probs_V[None].expand(2, -1), probs_V[None], [1], generator)[0] == 1
        assert (token, generate(model, PROMPT, 3, speculate=speculate)) == wanted


# --- refusals ---


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_of_which_none_is_the_likeliest_are_refused(broken, temperature):
    """Kind: NaN or infinite logits, of which token 0 was written in silence."""
    logits_V = torch.full((4,), broken) if broken < 0 else torch.tensor([0.0, broken, 1.0, 0.0])
    with pytest.raises(ValueError, match=f"the largest logit = {broken}, so no next token can be chosen; weights"):
        probabilities(logits_V, temperature)


EVERY_WEIGHT = [name for name, weight in Model(Config.tiny()).state_dict().items() if weight.is_floating_point()]


@pytest.mark.slow
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("speculate", [False, 2])
def test_a_model_with_one_number_that_is_not_finite_writes_nothing_and_is_told_where(model, broken, speculate):
    """Kind: a NaN that no logit shows, as in a router bias, whose expert was just never picked."""
    assert any(name.endswith("gate.bias") for name in EVERY_WEIGHT)
    seen = []
    sick = copy.deepcopy(model)
    for name in EVERY_WEIGHT:
        place = sick.state_dict()[name].flatten()[-1:]  # the same memory
        before = place.clone()
        place.fill_(broken)
        with pytest.raises(ValueError, match=f"{re.escape(name)} holds NaN or infinity; give a model of finite"):
            generate(sick, PROMPT * 4, 3, temperature=0, speculate=speculate, stream=seen.append)
        place.copy_(before)
    assert seen == [] and generate(sick, PROMPT, 3, speculate=speculate) == generate(
        model, PROMPT, 3, speculate=speculate
    )


def test_finite_weights_whose_sum_overflows_are_no_reason_to_refuse(model):
    large = copy.deepcopy(model).float()
    large.layers[1].ffn.gate.bias.fill_(3e38)
    assert not large.layers[1].ffn.gate.bias.sum().isfinite()
    assert len(generate(large, PROMPT, 3)) == 3


def test_logits_that_overflow_from_finite_weights_end_the_text_with_a_sentence(model):
    broken = copy.deepcopy(model)
    broken.head.weight.data.sign_().mul_(1.7e308)  # the largest float64 is 1.8e308
    with pytest.raises(ValueError, match="the largest logit = (inf|nan), so no next token can be chosen"):
        generate(broken, PROMPT, 3, temperature=0)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"ids": []}, "not empty"),
        ({"ids": torch.zeros(0, dtype=torch.long)}, "not empty"),
        ({"ids": torch.tensor([[1, 2], [3, 4]])}, r"ids of shape \(2, 2\) are no prompt; .* one sequence"),
        ({"ids": [1, 61]}, "61 is no token id"),
        ({"ids": [1, -1]}, "-1 is no token id"),
        ({"ids": [1, 61], "n_tokens": 0}, "61 is no token id"),
        ({"ids": [1.0, 2.0]}, "integers"),
        ({"ids": "def"}, r"ids = 'def' is text; complete\(prompt, n_tokens\) takes text"),
        ({"ids": None}, "ids = None is a NoneType; give the token ids of one sequence"),
        ({"ids": {1, 2}}, "ids = {1, 2} is a set"),
        ({"ids": {1: 2}}, "ids = {1: 2} is a dict"),
        ({"ids": iter([1, 2])}, "is a list_iterator"),
        ({"ids": b"ab"}, "ids = b'ab' is a bytes"),
        ({"ids": [[1, 2], [[3], 4]]}, "prompt 1: ids = .* is ragged or holds no token ids"),
        ({"ids": [1 << 70]}, "ids = .* is ragged or holds no token ids"),
        ({"ids": range(10**30)}, "more than max_position_embeddings = 4,096 tokens"),
        ({"ids": torch.zeros(2, dtype=torch.long, device="meta")}, "holds no token ids"),
        ({"model": None}, "model = None is a NoneType; give a minidsv4 Model"),
        ({"model": torch.nn.Linear(1, 1)}, "is a Linear; give a minidsv4 Model"),
        ({"model": Model(Config.tiny()).to("meta")}, "on the meta device, which holds no numbers"),
        ({"stop": "a"}, "stop = 'a' is no token id; it is one token id or several, each in 0 .. 60"),
        ({"stop": 61}, "stop = 61 is no token id"),
        ({"stop": [3, -1]}, "stop = -1 is no token id"),
        ({"stop": 1.0}, "stop = 1.0 is no integer; it is one token id or several"),
        ({"stop": True}, "stop = True is no integer"),
        ({"stop": {1: 2}}, "stop = {1: 2} is no token id"),
        ({"stop": range(10**9)}, "stop = 61 is no token id"),
        ({"n_tokens": "3"}, "n_tokens = '3' is no integer; it counts tokens, from 0"),
        ({"n_tokens": True}, "n_tokens = True is no integer"),
        ({"n_tokens": None}, "n_tokens = None is no integer"),
        ({"n_tokens": 4092}, "n_tokens = 4092 after 5 tokens goes beyond .* = 4,096; at most 4,091 can be written"),
        ({"n_tokens": 10**5000}, "goes beyond max_position_embeddings"),
        ({"temperature": "1"}, "temperature = '1'"),
        ({"temperature": True}, "temperature = True"),
        ({"temperature": 10**400}, "temperature = .* is out of range"),
        ({"top_p": float("nan")}, "top_p = nan"),
        ({"top_p": None}, "top_p = None"),
        ({"seed": 1 << 64}, "seed = 18446744073709551616 is out of range; it is an integer of at most 64 bits"),
        ({"seed": -(1 << 63) - 1}, "at most 64 bits"),
        ({"seed": 1.5}, "seed = 1.5 is no integer"),
        ({"seed": None}, "seed = None is no integer"),
        ({"speculate": 65}, r"depth = 65 is too many drafts; give 1 \.\. 64"),
        ({"speculate": 10**9}, "depth = 1000000000 is too many"),
        ({"stream": "print"}, "stream = 'print' cannot be called"),
        ({"stream": lambda: 0}, "stream = .* cannot be called so: too many .*; give a function of the new token's id"),
        ({"ids": [[1], [2]], "stream": lambda token: token}, "too many .*; give a function of a prompt's number and"),
        ({"ids": [[1], [2]], "seed": {0, 1}}, "seed = {0, 1} is no integer"),
        ({"ids": [[1], [2]], "seed": range(10**30)}, "seed = range.* for 2 prompts; give one for each"),
        ({"ids": [[1], [2]], "stream": None, "temperature": -1}, "generate: temperature = -1"),
        ({"ids": [[1], [2]], "stream": None, "cache_precision": 8}, "precision = 8 is not known"),
        ({"fused": "yes"}, "fused = 'yes' is no switch"),
        ({"n_tokens": -1}, "n_tokens = -1"),
        ({"n_tokens": 2.5}, "n_tokens = 2.5"),
        ({"temperature": -0.1}, "temperature = -0.1"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"temperature": float("inf")}, "temperature = inf"),
        ({"top_p": 0.0}, "top_p = 0.0"),
        ({"top_p": 1.01}, "top_p = 1.01"),
    ],
)
def test_what_cannot_be_written_is_refused_with_a_sentence(model, wrong, words):
    """Kind: prompts, stop tokens, seeds, numbers and models of a wrong type or range, once torch's words or silence."""
    seen = []
    with pytest.raises(ValueError, match=words):
        generate(**{"model": model, "ids": PROMPT, "n_tokens": 3, "stream": seen.append} | wrong)
    assert seen == []


def test_no_tokens_asked_for_are_no_tokens_written(model):
    assert generate(model, PROMPT, 0) == []


def test_a_range_of_seeds_is_a_seed_for_each_prompt(model):
    assert generate(model, [[5], [7]], 4, seed=range(2)) == generate(model, [[5], [7]], 4, seed=[0, 1])


def test_what_stream_refuses_comes_through_as_it_is(model):
    def refuse(_token):
        raise ValueError("engine room: full")

    with pytest.raises(ValueError, match=r"^engine room: full$"):
        generate(model, PROMPT, 3, stream=refuse)
