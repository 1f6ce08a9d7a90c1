"""The tokenizer: any text comes back, special tokens are never spelt, a saved one is the same."""

import pytest
import tokenizers

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


MARKERS = ("<｜begin｜>", "<｜end｜>", "<｜User｜>", "<think>", "</think>", "<think>ing")


@pytest.fixture(scope="module")
def marked(tokenizer):
    return tokenizer.with_markers(MARKERS)


def test_markers_are_one_id_each_and_the_other_ids_are_what_they_were(tokenizer, marked):
    assert [marked.inner.token_to_id(marker) for marker in MARKERS] == [0, 1, 400, 401, 402, 403]
    assert len(marked) == 404 and len(tokenizer) == 400
    assert marked.encode_all(SOURCES) == tokenizer.encode_all(SOURCES)
    assert marked.inner.token_to_id("<bos>") is None and tokenizer.inner.token_to_id("<bos>") == 0


@pytest.mark.parametrize(
    "text",
    [
        "<｜begin｜>a b<｜User｜> c<think>d</think>e<｜end｜>",
        "<think></think>",
        "<<think>>",
        "no 😀 markers",
        "",
        "<think>ing",
    ],
)
def test_a_marked_text_comes_back_from_its_ids(marked, text):
    ids = marked.encode_marked(text)
    assert marked.decode_marked(ids) == text
    oracle = tokenizers.Tokenizer.from_str(marked.inner.to_str())
    oracle.encode_special_tokens = False
    assert ids == oracle.encode(text).ids


def test_plain_encoding_spells_markers_out_and_plain_decoding_leaves_them_out(marked):
    assert max(marked.encode("<think>a<｜User｜>")) < 400
    assert marked.decode(marked.encode_marked("<｜begin｜>a<think>b")) == "ab"
    assert marked.decode_marked(marked.encode_marked("<think>ing")) == "<think>ing"


def test_markers_survive_a_file(marked, tmp_path):
    marked.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    text = "<｜begin｜>a<think>b</think><｜end｜>"
    assert again.encode_marked(text) == marked.encode_marked(text)
    assert again.markers == marked.markers


def test_markers_that_cannot_be_are_refused(tokenizer, marked):
    for markers in (["<a>"], ["<a>", "<b>", "<a>"], ["<a>", ""]):
        with pytest.raises(ValueError, match="all different"):
            tokenizer.with_markers(markers)
    with pytest.raises(ValueError, match="'<eos>'.* are tokens already"):
        tokenizer.with_markers(["<a>", "<eos>"])
    with pytest.raises(ValueError, match="are tokens already"):
        marked.with_markers(["<a>", "<b>"])
