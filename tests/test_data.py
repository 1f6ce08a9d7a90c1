"""Corpus, generated programs, tokenizer and batches: each the same on every run, nothing lost on the way."""

import hashlib
import subprocess
import sys

import pytest
import torch

from minidsv4.train.data import Batches, Mixture, Packed, Tokenizer, counted, eval_rows, programs, python_source


def write_files(folder, texts):
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def many_files(folder, n=60):
    return write_files(folder, {f"module_{i:02}.py": f"x = {i}\n" for i in range(n)})


@pytest.fixture(scope="module")
def library():
    return python_source()


# --- corpus ---


def test_the_standard_library_is_large_and_a_few_percent_of_its_files_are_held_out(library):
    assert len(library.train) > 300 and library.n_bytes() > 5_000_000
    assert 0.02 < len(library.held_out) / len(library.train) < 0.1
    assert library.n_bytes() == sum(len(file.text.encode()) for part in library for file in part)


def test_no_text_is_in_both_parts_or_twice_in_one(library):
    texts = [file.text for part in library for file in part]
    assert len(set(texts)) == len(texts)


def test_tests_and_installed_packages_are_left_out(library):
    folders = {folder for part in library for file in part for folder in file.name.split("/")[:-1]}
    assert not folders & {"test", "tests", "site-packages", "encodings"} and "json" in folders


def test_the_corpus_comes_in_the_order_of_its_paths_and_each_file_with_its_own_text(tmp_path):
    corpus = python_source(many_files(tmp_path))
    for part in corpus:
        assert [file.name for file in part] == sorted(file.name for file in part)
        assert all((tmp_path / file.name).read_text() == file.text for file in part)
    assert len(corpus.train) + len(corpus.held_out) == 60


def test_whether_a_file_is_held_out_depends_on_its_text_alone(tmp_path):
    before = python_source(many_files(tmp_path / "a"))
    held = {file.text for file in before.held_out}
    moved = write_files(tmp_path / "b", {f"other/{i}.py": f"x = {i}\n" for i in range(59, -1, -1)})
    write_files(moved, {"more/1.py": "y = 1\n", "more/2.py": "y = 2\n"})
    after = python_source(moved)
    assert {file.text for file in after.held_out} - {"y = 1\n", "y = 2\n"} == held


def test_copies_empty_files_other_encodings_and_other_kinds_of_file_are_left_out(tmp_path):
    many_files(tmp_path)
    extra = {"z_copy.py": "x = 1\n", "z_empty.py": "", "z_latin.py": "# \xe9\n".encode("latin-1"), "z.txt": "text"}
    write_files(tmp_path, extra | {"tests/t.py": "t = 1\n", "test/t.py": "t = 2\n"})
    assert all(not file.name.startswith(("z", "test")) for part in python_source(tmp_path) for file in part)


def test_a_folder_with_too_little_source_is_refused_with_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="0 Python files below 'empty' are too few"):
        python_source(tmp_path / "empty")


# --- programs ---


def test_every_generated_program_prints_what_it_says():
    made = programs(seed=3, n=120)
    whole = "\n".join(f"{program.source}\nprint('=====')" for program in made)
    shown = subprocess.run([sys.executable, "-I", "-c", whole], capture_output=True, text=True, check=True).stdout
    assert shown.split("=====\n") == [*(program.output for program in made), ""]


def test_the_generated_programs_are_the_same_everywhere():
    digest = hashlib.sha256(repr(programs(seed=0, n=300)).encode()).hexdigest()
    assert digest == "85b7ce0e708c7ee9334bd451fb84bd92dd08e4b6a50e948d8256b751d6adc309"


def test_fewer_programs_of_a_seed_are_the_first_of_more_and_another_seed_gives_others():
    assert programs(5, 7) == programs(5, 20)[:7]
    assert programs(6, 20) != programs(5, 20)
    assert programs(5, 0) == []


def test_generated_programs_are_varied_and_small():
    made = programs(seed=0, n=300)
    assert len(set(made)) > 200
    assert all(0 < len(program.source) < 400 and 1 <= program.output.count("\n") <= 8 for program in made)


def test_a_negative_number_of_programs_is_refused():
    with pytest.raises(ValueError, match="n = -1"):
        programs(0, -1)


# --- tokenizer ---

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


# --- batches ---

DOCUMENTS = [list(range(10 * i, 10 * i + 3 + i)) for i in range(1, 12)]  # of pairwise different lengths and tokens


def test_rows_hold_every_document_whole_between_bos_and_eos_until_the_last_row_is_full():
    batches = Batches(DOCUMENTS, batch_size=2, length=6, seed=0)
    stream = batches.rows.flatten().tolist()
    n_tokens = sum(len(ids) + 2 for ids in DOCUMENTS)
    assert batches.rows.shape == (n_tokens // 7, 7)
    text = " ".join(map(str, [*stream, 0]))
    whole = [" ".join(map(str, [0, *ids, 1])) in text for ids in DOCUMENTS]
    assert whole.count(False) <= 1  # the last one is cut


def test_every_row_is_drawn_once_before_any_is_drawn_again():
    batches = Batches(DOCUMENTS, batch_size=3, length=4, seed=0)
    per_epoch = len(batches.rows) // 3
    first = torch.cat([batches.at(step) for step in range(per_epoch)])
    second = torch.cat([batches.at(step) for step in range(per_epoch, 2 * per_epoch)])
    assert len(set(map(tuple, first.tolist()))) == len(first) == 3 * per_epoch
    assert first.tolist() != second.tolist()


def test_a_step_has_the_same_batch_whenever_it_is_asked_for_and_the_seed_changes_it():
    one, two = (Batches(DOCUMENTS, batch_size=2, length=6, seed=4) for _ in range(2))
    later = [two.at(step) for step in range(20)]
    assert torch.equal(one.at(17), later[17]) and one.at(17).shape == (2, 7)
    assert any(not torch.equal(Batches(DOCUMENTS, 2, 6, seed=5).at(step), later[step]) for step in range(3))


def test_too_few_tokens_for_a_batch_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match="batch_size = 50 needs 350 tokens"):
        Batches(DOCUMENTS, batch_size=50, length=6, seed=0)


def test_rows_for_measuring_predict_every_token_once_and_in_order():
    rows = list(eval_rows([[5, 6, 7, 8, 9], [], [4], [2, 3]], length=2))
    assert rows == [[0, 5, 6], [6, 7, 8], [8, 9], [0, 4], [0, 2, 3]]


# --- rows of several documents, and mixtures ---


@pytest.mark.parametrize("align", [1, 4, 12])
def test_packed_documents_begin_at_multiples_and_come_back_whole(align):
    packed = Packed(DOCUMENTS, length=24, seed=0, align=align)
    ids_BT, document_BT = packed.rows
    assert ids_BT.shape == document_BT.shape == (len(packed), 25)
    found = [[]]
    for ids, first in zip(ids_BT.tolist(), document_BT.tolist()):
        for place, token in enumerate(ids):
            if token == 0:
                assert first[place] == place and place % align == 0
                found.append([])
            found[-1].append(token)
    whole = [ids[1 : ids.index(1)] for ids in found if 1 in ids and ids[0] == 0]
    assert len(whole) >= len(DOCUMENTS) - 4 and all(ids in DOCUMENTS for ids in whole)


def test_padding_counts_for_nothing_and_every_token_of_a_document_but_its_first_does():
    packed = Packed(DOCUMENTS, length=24, seed=1, align=12)
    ids_BT, document_BT = packed.rows
    counts = counted(document_BT)
    for ids, first, count in zip(ids_BT.tolist(), document_BT.tolist(), counts.tolist()):
        inside = False
        for place, token in enumerate(ids):
            inside = token == 0 or (place == 0 and token != 0) or (inside and ids[place - 1] != 1)
            wanted = place > 0 and token != 0 and inside
            assert place == 0 or count[place - 1] == wanted, (ids, place)
            assert first[place] == place or inside
    assert 0 < int(counts.sum()) < counts.numel()


def test_without_gaps_packed_rows_are_those_of_plain_batches():
    packed, plain = Packed(DOCUMENTS, length=6, seed=0), Batches(DOCUMENTS, batch_size=2, length=6, seed=0)
    n_tokens = sum(len(ids) + 2 for ids in DOCUMENTS)
    assert n_tokens // 7 <= len(packed) and plain.rows.flatten().tolist()[:6] == packed.rows.ids_BT[0].tolist()[:6]


def test_rows_are_drawn_once_before_any_is_drawn_again():
    packed = Packed(DOCUMENTS, length=6, seed=3)
    n = len(packed)
    places = packed.places(range(3 * n))
    assert all(sorted(places[i * n : (i + 1) * n]) == list(range(n)) for i in range(3))
    assert places[:n] != places[n : 2 * n] and packed.places([n + 2]) == [places[n + 2]]


def sources():
    small, large = DOCUMENTS[:6], [[token + 500 for token in ids] for ids in DOCUMENTS]
    return [Packed(documents, length=6, seed=0) for documents in (small, large)]


def test_a_mixture_holds_its_shares_exactly_and_draws_every_row_before_any_again():
    mixture = Mixture(sources(), (3, 2), batch_size=4, seed=0)
    rows = [mixture.row(number).ids_BT.tolist() for number in range(50)]
    second = [max(row) > 500 for row in rows]
    assert all(sum(second[i : i + 5]) == 2 for i in range(0, 50, 5))
    assert len({tuple(second[i : i + 5]) for i in range(0, 50, 5)}) > 2  # in changing places
    n_small = len(mixture.sources[0])
    of_first = [tuple(row) for row, large in zip(rows, second) if not large]
    assert len(set(of_first[:n_small])) == n_small


def test_a_step_of_a_mixture_needs_no_earlier_call_and_holds_the_next_rows():
    one, two = (Mixture(sources(), (3, 2), batch_size=4, seed=0) for _ in range(2))
    later = [two.at(step) for step in range(9)]
    assert torch.equal(one.at(7).ids_BT, later[7].ids_BT) and torch.equal(one.at(7).document_BT, later[7].document_BT)
    assert torch.equal(later[7].ids_BT[1], one.row(29).ids_BT)
    other = Mixture(sources(), (3, 2), batch_size=4, seed=1)
    assert any(not torch.equal(other.at(step).ids_BT, later[step].ids_BT) for step in range(9))


def test_rows_and_mixtures_that_cannot_be_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match="do not fill a row of 5001"):
        Packed(DOCUMENTS, length=5000, seed=0)
    with pytest.raises(ValueError, match="align = 0"):
        Packed(DOCUMENTS, length=6, seed=0, align=0)
    for shares in ((1,), (0, 0), (2, -1)):
        with pytest.raises(ValueError, match="do not fit 2 sources"):
            Mixture(sources(), shares, batch_size=2, seed=0)
