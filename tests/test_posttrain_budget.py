"""Thinking that is cut: what is left of it, what the answer follows, and which answers are right."""

import pytest

from minidsv4.posttrain.budget import cut_thought, right_by_budget
from minidsv4.posttrain.grpo import Sampling
from minidsv4.posttrain.tasks import MODES, Problem, reply
from minidsv4.posttrain.tokens import task_tokenizer

TOKENIZER = task_tokenizer()
GIVEN = [Problem("sum", "12345678", "high"), Problem("sum", "11111111", "high"), Problem("run", "IIIIIIII", "max")]


class Thinker:
    """Writes all states first; then answers with the last character that stands before its answer."""

    def __init__(self):
        self.asked = []

    def __call__(self, model, prompts, n_tokens, seeds, number=0, temperature=1.0):
        texts = [TOKENIZER.decode_marked(prompt) for prompt in prompts]
        self.asked.append((texts, n_tokens, len(seeds), temperature))
        if n_tokens == 16:
            return [TOKENIZER.encode_marked(reply(one.answer(), one.states())) for one in GIVEN]
        thoughts = [text.rpartition("<think>")[2].removesuffix("</think>") for text in texts]
        return [TOKENIZER.encode_marked(reply(thought[-1:] or "9")) for thought in thoughts]


def test_a_cut_thought_keeps_its_beginning_and_ends_with_the_marker():
    assert cut_thought("1360518</think>8<｜end▁of▁sentence｜>", 3) == "136</think>"
    assert cut_thought("1360518</think>8<｜end▁of▁sentence｜>", 30) == "1360518</think>"
    assert cut_thought("136051", 0) == "</think>"
    with pytest.raises(ValueError, match="budget = -1 characters of thinking cannot be; it is a whole number from 0"):
        cut_thought("136", -1)


def test_an_answer_is_judged_at_each_budget_by_what_stands_before_it():
    write = Thinker()
    # states 13605186, 12345678 and 12345678, answers 6, 8 and 8: after 4 characters 0, 4 and 4 are answered
    budgets = (0, 4, 5, 8, 9)
    assert right_by_budget(None, TOKENIZER, GIVEN, budgets, 16, write) == [0, 0, 0, 1, 1]


def test_the_cut_replies_follow_their_own_prompts_greedily():
    write = Thinker()
    right_by_budget(None, TOKENIZER, GIVEN, (1, 2), 16, write)
    (first, _, _, _), (second, n_tokens, n_seeds, temperature) = write.asked
    assert first == [one.prompt() for one in GIVEN]
    assert second == [one.prompt() + one.states()[:budget] + "</think>" for budget in (1, 2) for one in GIVEN]
    assert (n_tokens, n_seeds, temperature) == (2, 6, 0.0)


def test_a_round_has_problems_of_the_modes_that_are_asked_for_only():
    some = Sampling(("sum", "run"), n_problems=8, group=2, modes=("high", "max")).problems_of(0)
    kinds = [(one.task, one.mode) for one in some]
    assert all(kinds.count((task, mode)) == 4 for task in ("sum", "run") for mode in ("high", "max"))
    assert {one.mode for one in Sampling(("sum",)).problems_of(0)} == set(MODES)
