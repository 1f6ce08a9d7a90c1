"""Any call of `generate` and `complete` writes or ends in a `ValueError` with a sentence, whatever it is given."""

import functools
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import small_model

import minidsv4 as v4
from minidsv4.train.tokenizer import Tokenizer

FIELDS = "ids n_tokens temperature top_p seed speculate stream stop fused model tokenizer prompt depth".split()
SENTENCE = re.compile(rf"^(?=.*\b({'|'.join(FIELDS)})\b)(generate|complete|speculate|ids): .+[;,] \w+", re.DOTALL)
CONFIG = v4.Config.tiny().replace(vocab_size=258, num_hidden_layers=1, compress_ratios=(0, 0), layer_types=None)
FUZZ = settings(max_examples=200, derandomize=True, deadline=None)

STRANGE = [
    *(None, True, False, "", "text", b"bytes", bytearray(b"b"), object(), int, len, ..., 1j, -1, 0, 1, 2.5, -0.1),
    *(float("nan"), float("inf"), -float("inf"), 1e308, 5e-324, 1 << 63, 1 << 64, -(1 << 63) - 1, 10**400, 10**5000),
    *([], (), {}, set(), {1}, {1: 2}, frozenset({3}), [None], [[]], [[1, 2], [3]], [[1], [2]], [1, "2"], ["a"]),
    *([1.5], [1 << 70], [-1], [258], [True], range(3), range(10**9), range(10**30), iter([1, 2]), memoryview(b"ab")),
    *(np.int64(3), np.float32(0.5), np.bool_(True), np.arange(4), np.array(2), np.array([1, None]), np.array("a")),
    *(np.array([1.0, np.nan]), np.zeros((2, 2), dtype=int), torch.tensor(3), torch.tensor(1.5), torch.tensor([1, 2])),
    *(torch.zeros(0), torch.zeros(2), torch.zeros(1, 2, dtype=torch.int32), torch.zeros(2, 2, 2), torch.ones(2) > 0),
    *(torch.empty(3, dtype=torch.long, device="meta"), torch.eye(2).long().to_sparse(), torch.zeros(2) * 1j),
    *(torch.nn.Linear(1, 1), v4.Config.tiny(), v4.Speculation(2), v4.Speculation(64)),
]


@functools.cache
def model():
    return small_model(CONFIG, dtype=torch.float32)


@functools.cache
def tokenizer():
    return Tokenizer.train([""], 258)


def arguments(**usual):
    """A strategy of calls: some arguments as they should be, one to three of them strange."""
    names = [*usual]
    wrong = st.dictionaries(st.sampled_from(names), st.sampled_from(range(len(STRANGE))), min_size=1, max_size=3)
    usual = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in usual.items()})
    return st.tuples(usual, wrong)


COMMON = dict(
    temperature=[0, 0.5, 1],
    top_p=[1, 0.3, 1e-9],
    seed=[0, -5, (1 << 64) - 1],
    speculate=[False, True, 3],
    stream=[None, str],
    fused=[False],
)


def outcome(call, usual, strange):
    """The result of a call with some arguments replaced by strange ones, or the words of its refusal."""
    chosen = usual | {name: STRANGE[place] for name, place in strange.items()}
    if chosen["fused"] is True:
        chosen["fused"] = "compiled"  # True compiles for seconds; it has tests of its own
    if isinstance(chosen["n_tokens"], int) and 3 < chosen["n_tokens"] < 4096:
        chosen["n_tokens"] = 3
    if callable(chosen["stream"]):
        chosen["stream"] = str  # a function that refuses tokens or text is the caller's
    try:
        return call(**chosen), None
    except ValueError as error:
        return None, str(error)


@FUZZ
@given(arguments(model=[0], ids=[[1], [0, 5, 9]], n_tokens=[0, 1, 3], stop=[None, 1, (2, 3)], **COMMON))
def test_any_call_of_generate_writes_or_ends_in_a_sentence(call):
    usual, strange = call
    written, refusal = outcome(v4.generate, usual | {"model": model()}, strange)
    if refusal is not None:
        assert SENTENCE.match(refusal), refusal
    else:
        texts = written if written and isinstance(written[0], list) else [written]
        assert all(type(token) is int and 0 <= token < 258 for text in texts for token in text)


@FUZZ
@given(arguments(prompt=["", "def", "é"], n_tokens=[0, 1, 3], model=[0], tokenizer=[0], **COMMON))
def test_any_call_of_complete_writes_or_ends_in_a_sentence(call):
    usual, strange = call
    whole = usual | {"model": model(), "tokenizer": tokenizer()}
    written, refusal = outcome(v4.complete, whole, strange)
    if refusal is not None:
        assert SENTENCE.match(refusal), refusal
    else:
        assert isinstance(written, str)


@pytest.mark.parametrize("refusal", ["shape '[1]' is invalid", "must be str, not NoneType", "generate: no", "ids"])
def test_words_of_others_are_no_sentence(refusal):
    assert not SENTENCE.match(refusal)
