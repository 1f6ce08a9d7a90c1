"""The chat model that the package ships, and the models that it came of."""

import pytest
import torch

import minidsv4 as v4
from minidsv4.__main__ import main
from minidsv4.posttrain.tasks import problems, verdict
from minidsv4.posttrain.writer import Writer
from minidsv4.train.ship import POST_TRAINED, SHIPPED_CHAT, SPECIALISTS

LIMIT = 6_000_000  # bytes of all four with their logs
NAMES = ("chat", *(f"chat-{own}" for own in SPECIALISTS))


@torch.no_grad()
def right(name, task):
    """Right answers of a shipped model to 24 problems in mode high, greedy."""
    model, tokenizer = v4.load_pretrained(name=name), v4.pretrained_tokenizer(name)
    given = problems("shipped", 24, [task], ["high"])
    prompts = [tokenizer.encode_marked(problem.prompt()) for problem in given]
    replies = Writer(fused=False)(model, prompts, 16, range(24), temperature=0.0)
    return sum(verdict(p, tokenizer.decode_marked(reply)).right for p, reply in zip(given, replies))


def test_the_four_take_at_most_six_megabytes():
    files = [path for folder in (SHIPPED_CHAT, POST_TRAINED) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("task", ["sum", "run"])
def test_the_specialist_and_the_chat_model_answer_more_than_the_base(task):
    base, specialist, student = (right(name, task) for name in ("chat-base", f"chat-{task}", "chat"))
    assert min(specialist, student) >= base + 4


def test_another_name_is_refused_and_the_known_ones_are_told():
    with pytest.raises(ValueError, match=r"name = 'gpt' is not known; it is one of mini, chat, chat-base"):
        v4.load_pretrained(name="gpt")
    assert len({v4.load_pretrained(name=name).embed.weight.sum().item() for name in NAMES}) == 4


def test_chat_talks_with_the_shipped_model_where_none_is_named(monkeypatch, capsys):
    typed = iter(["sum 31415926"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed, None) or (_ for _ in ()).throw(EOFError))
    assert main(["chat", "--mode", "high"]) == 0
    assert "thinking:\n34894351\nanswer:\n1\n" in capsys.readouterr().out
