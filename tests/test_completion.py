"""Text to text: whole characters only, piece by piece, at a cost that grows with the number of tokens alone."""

import functools

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import small_model

import minidsv4 as v4
from minidsv4.serve import completion
from minidsv4.serve.detokenize import IncrementalDecoder, byte_alphabet
from minidsv4.train.tokenizer import Tokenizer

HALVES = "é中\N{SNAKE}"  # characters of 2, 3 and 4 bytes


@functools.cache
def bytes_only():
    """A tokenizer of 256 bytes and 2 special tokens: every character beyond ASCII is several tokens."""
    return Tokenizer.train([""], 258)


@functools.cache
def untrained():
    return small_model(v4.Config.tiny().replace(vocab_size=258), dtype=torch.float32)


def write(monkeypatch, ids, **options):
    """What `complete` makes of these token ids, whichever model they come from, and its pieces."""

    def generate(model, prompt, n_tokens, temperature, top_p, seed, speculate, stream, stop, *others):
        for token in ids[:n_tokens]:
            stream(token)
            if token == stop:
                break

    monkeypatch.setattr(completion, "generate", generate)
    pieces = []
    text = v4.complete("x", model=untrained(), tokenizer=bytes_only(), stream=pieces.append, **options)
    return text, pieces


# --- text in, text out ---


@pytest.mark.slow
def test_without_a_model_the_shipped_one_completes_with_its_own_tokenizer():
    model, tokenizer = v4.load_pretrained(), v4.pretrained_tokenizer()
    ids = [tokenizer.bos_id, *tokenizer.encode("def fib(n):")]
    written = v4.generate(model, ids, 20, temperature=0, stop=tokenizer.eos_id)
    pieces = []
    text = v4.complete("def fib(n):", 20, temperature=0, stream=pieces.append)
    assert text == tokenizer.decode(written) == "".join(pieces) and len(pieces) > 5


def test_the_shipped_model_is_read_once(monkeypatch):
    v4.complete("a", 1)
    monkeypatch.setattr(completion, "load_pretrained", None)
    monkeypatch.setattr(completion, "pretrained_tokenizer", None)
    assert v4.complete("a", 1, seed=1) == v4.complete("a", 1, seed=1)


def test_a_model_and_tokenizer_of_ones_own_complete():
    options = dict(model=untrained(), tokenizer=bytes_only(), seed=3)
    assert v4.complete("é", 9, **options) == v4.complete("é", 9, **options) != v4.complete("e", 9, **options)
    assert v4.complete("", 0, **options) == ""


def test_eos_ends_the_text_and_is_no_part_of_it(monkeypatch):
    ids = bytes_only().encode("ab")
    assert write(monkeypatch, [*ids, Tokenizer.eos_id, *ids])[0] == "ab"


# --- whole characters ---


@pytest.mark.parametrize("character", HALVES)
def test_a_character_of_several_tokens_comes_as_one_piece(monkeypatch, character):
    ids = bytes_only().encode(f"a{character}b")
    assert len(ids) == 2 + len(character.encode())
    assert write(monkeypatch, ids) == (f"a{character}b", ["a", character, "b"])


@pytest.mark.parametrize("character", HALVES)
def test_a_text_that_is_cut_within_a_character_ends_before_it(monkeypatch, character):
    """Kind: half a character at the end; before, it came as a mark or cut the text."""
    ids = bytes_only().encode(f"a{character}")
    for n_tokens in range(1, len(ids)):
        assert write(monkeypatch, ids, n_tokens=n_tokens) == ("a", ["a"])


def test_half_a_character_in_the_middle_becomes_one_mark_and_cuts_nothing(monkeypatch):
    """Kind: half a character elsewhere; before, the text ended there."""
    half = bytes_only().encode("中")[:2]
    text, pieces = write(monkeypatch, [*half, *bytes_only().encode("bc")])
    assert text == "\ufffdbc" == "".join(pieces)


@pytest.mark.slow
@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 2050), max_size=40))
def test_all_pieces_together_are_the_decoded_text_but_for_an_unfinished_end(ids):
    tokenizer = v4.pretrained_tokenizer()
    decoder = IncrementalDecoder(tokenizer)
    text = "".join(decoder.step(token) for token in ids)
    assert text + decoder.utf8.decode(b"", final=True) == tokenizer.decode(ids)


def test_bytes_are_spelt_with_the_characters_that_the_library_uses():
    assert set(byte_alphabet()) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_alphabet().values()) == list(range(256))


def test_added_tokens_are_text_unless_they_are_special():
    tokenizer = Tokenizer.train([""], 258)
    tokenizer.inner.add_tokens(["<héllo>"])
    tokenizer.inner.add_special_tokens(["<end>"])
    decoder = IncrementalDecoder(tokenizer)
    assert [decoder.step(token) for token in (258, 259, 0, 1, 9999)] == ["<héllo>", "", "", "", ""]


def test_no_token_is_decoded_twice(monkeypatch):
    """Kind: a cost that grows with the square of the text; counted, not timed."""
    looked_up = []

    class Counted:
        def __init__(self, inner):
            self.decoder = inner.decoder
            self.inner = inner

        def __getattr__(self, name):
            looked_up.append(name)
            return getattr(self.inner, name)

    tokenizer = Tokenizer.train([""], 258)
    tokenizer.inner = Counted(tokenizer.inner)
    decoder = IncrementalDecoder(tokenizer)
    looked_up.clear()
    for token in [65] * 500:
        decoder.step(token)
    assert looked_up == ["id_to_token"] * 500


# --- refusals ---


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"prompt": None}, "prompt = None is a NoneType"),
        ({"prompt": [1, 2]}, "generate takes token ids"),
        ({"prompt": ["a", "b"]}, r"prompt = \['a', 'b'\] is a list, no text; give one str"),
        ({"prompt": b"def"}, "decode them first"),
        ({"prompt": "ab\ud800"}, "character 2 is '.ud800', half of a surrogate pair"),
        ({"n_tokens": -1}, "n_tokens = -1"),
        ({"n_tokens": "9"}, "n_tokens = '9'"),
        ({"n_tokens": 4095}, "at most 4,094 can be written"),
        ({"model": "runs/tour"}, "model = 'runs/tour' is a str"),
        ({"tokenizer": "tokenizer.json"}, "tokenizer = 'tokenizer.json' is not one over bytes"),
        ({"tokenizer": Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()))}, "is not one over bytes"),
        ({"stream": 3}, "stream = 3 cannot be called; give a function of the new piece of text"),
        ({"speculate": None}, "speculate = None is a NoneType; give False, True"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"seed": 1 << 64}, "at most 64 bits"),
    ],
)
def test_what_cannot_be_completed_is_refused_with_a_sentence(wrong, words):
    options = {"prompt": "a", "n_tokens": 3, "model": untrained(), "tokenizer": bytes_only()} | wrong
    with pytest.raises(ValueError, match=f"^complete: .*{words}"):
        v4.complete(**options)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused():
    with pytest.raises(ValueError, match="tokenizer has 2048 tokens and the model a vocab_size of 258"):
        v4.complete("a", 3, model=untrained())
