"""What is measured of the shipped model: how prompts are cut, what counts as whole, and what is kept."""

import json
from types import SimpleNamespace

import pytest
from small import TINY, small_model

from minidsv4.experiments import shipped
from minidsv4.train.programs import document, programs
from minidsv4.train.tokenizer import Tokenizer

MODULE = '''class Box:
    def fill(self, x):
        """Say it."""
        y = x + 1
        return y

    def empty(self):
        return 0


def loop(n):
    for i in range(n):
        print(i)
    print(n)
    return n
'''


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([document(program) for program in programs(seed=2, n=60)], 300)


def test_functions_are_cut_at_half_of_their_lines_and_moved_to_the_margin():
    loop, fill = "def loop(n):\n    for i in range(n):\n        print(i)\n", 'def fill(self, x):\n    """Say it."""\n'
    assert sorted(shipped.cut_functions([MODULE])) == [fill, loop]  # `empty` is too short
    assert len(shipped.cut_functions(["def f():\n    x = 1\n    x = 2\n    return x\n" * 9] * 2)) == 10


def test_a_text_counts_as_far_as_its_lines_are_whole_and_whole_where_the_model_ends_it(tokenizer, monkeypatch):
    written = tokenizer.encode("x = 1\ny = (")
    monkeypatch.setattr(shipped, "generate", lambda *inputs, **options: written)
    text = shipped.completed(None, tokenizer, "a = 0\n", seed=0)
    assert text == "a = 0\nx = 1\n" and shipped.parses(text)
    written.append(tokenizer.eos_id)
    text = shipped.completed(None, tokenizer, "a = 0\n", seed=0)
    assert text == "a = 0\nx = 1\ny = (" and not shipped.parses(text)


def test_all_is_measured_under_the_names_that_are_kept(tokenizer, monkeypatch):
    small = {"PROMPTS": 2, "WRITTEN": 3, "DRAFTED_TEXTS": 1, "DRAFTED": 4, "READ": 60, "LENGTH": 40}
    for name, number in small.items():
        monkeypatch.setattr(shipped, name, number)
    held = {"programs": [document(program) for program in programs(seed=3, n=3)], "source": [MODULE]}
    texts = SimpleNamespace(held_out=held, corpus=SimpleNamespace(held_out=[SimpleNamespace(text=MODULE)]))
    found = shipped.measured(small_model(TINY.replace(vocab_size=300)).float(), tokenizer, texts)
    assert found["drafts"]["source, depth 2"].startswith("4 tokens, ")
    assert all(0 < bits < 9 for bits in found["bits per byte, unseen"]["V4"].values())
    kept = json.loads(shipped.FILE.read_text())
    assert {name.replace("of 2", "of 100") for name in found} | {"GPT"} == kept.keys()
    assert found["drafts"].keys() == kept["drafts"].keys()
    for layer in found["attention caught by the picks, a CSA layer each"]:
        assert layer.keys() == kept["attention caught by the picks, a CSA layer each"][0].keys()
