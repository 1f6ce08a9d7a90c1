"""The tokenizer: any text comes back, special tokens are never spelt, a saved one is the same."""

import pytest

from minidsv4.train.programs import programs
from minidsv4.train.tokenizer import Tokenizer

SOURCES = [program.source for program in programs(seed=1, n=200)]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(SOURCES, vocab_size=400)


@pytest.mark.parametrize(
    "text", ["", "def f(x):\n\treturn x\r\n", "  é ∑ 😀\x00", "<bos> and <eos>", "\n\n    \n", "\ufeff"]
)
def test_any_text_comes_back_from_its_tokens(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_0_and_1_and_no_text_can_spell_them(tokenizer):
    assert (tokenizer.inner.token_to_id("<bos>"), tokenizer.inner.token_to_id("<eos>")) == (0, 1)
    assert not {0, 1} & set(tokenizer.encode("<bos><eos> <bos>"))
    assert not {0, 1} & set(tokenizer.encode_all(["<bos><eos> <bos>"])[0])
    assert tokenizer.decode([0, *tokenizer.encode("a = 1"), 1]) == "a = 1"


def test_the_vocabulary_has_the_size_asked_for_and_joins_what_is_frequent(tokenizer):
    assert len(tokenizer) == 400
    assert len(tokenizer.encode("print")) == 1


def test_training_twice_gives_the_same_tokenizer(tokenizer):
    assert Tokenizer.train(iter(SOURCES), 400).inner.to_str() == tokenizer.inner.to_str()


def test_encoding_many_texts_is_encoding_each(tokenizer):
    assert tokenizer.encode_all(SOURCES[:9]) == [tokenizer.encode(text) for text in SOURCES[:9]]


def test_a_saved_tokenizer_comes_back_the_same_and_still_spells_no_special_token(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.encode_all(SOURCES) == tokenizer.encode_all(SOURCES)
    assert again.decode(again.encode("<bos>")) == "<bos>"


def test_bad_tokenizers_are_refused_with_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="vocab_size = 257 is too small"):
        Tokenizer.train(SOURCES, 257)
    with pytest.raises(ValueError, match="there is no tokenizer.json"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "trunc')
    with pytest.raises(ValueError, match="may be cut off"):
        Tokenizer.load(tmp_path / "tokenizer.json")
