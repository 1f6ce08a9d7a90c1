"""Tasks of post-training: the answers are right, the writers err as they should, and the chat format carries both."""

import itertools

import pytest

from minidsv4.posttrain.tasks import (
    MISREAD,
    MODES,
    RUN,
    SUM,
    TASKS,
    Problem,
    demonstration,
    generator_of,
    problem,
    problems,
    reply,
    verdict,
)
from minidsv4.posttrain.tokens import VOCAB_SIZE, task_tokenizer
from minidsv4.serve.chat_format import parse
from minidsv4.serve.conversation.markers import END_THINK

KINDS = [*itertools.product(TASKS, MODES)]


def test_a_sum_is_pythons_sum_and_a_program_is_what_its_instructions_say():
    for number in range(50):
        digits = problem(generator_of(number), "sum", "none").symbols
        assert Problem("sum", digits, "none").answer() == str(sum(map(int, digits)) % 10)
    meaning = {"I": "x + 1", "H": "x + 5", "N": "9 - x", "T": "3 * x"}
    for number in range(50):
        program, x = problem(generator_of(number), "run", "none").symbols, 0
        for instruction in program:
            x = eval(meaning[instruction], {"x": x}) % 10
        assert Problem("run", program, "none").answer() == str(x)


def test_states_worked_by_hand():
    assert Problem("sum", "47912345", "max").states() == "41013605"
    assert Problem("run", "ITHNINTT", "max").states() == "13812713"


def test_the_order_of_instructions_matters_so_counting_them_does_not_help():
    one, other = Problem("run", "IT", "none"), Problem("run", "TI", "none")
    assert (one.answer(), other.answer()) == ("3", "1")


@pytest.mark.parametrize(("task", "mode"), KINDS)
def test_a_demonstration_without_misreading_is_right_and_its_thinking_are_the_states(task, mode):
    for number in range(20):
        generator = generator_of("test", number)
        given = problem(generator, task, mode)
        text = demonstration(generator, given, misread=0.0)
        assert verdict(given, text).right
        thought = parse(text, mode)["reasoning"]
        states = given.states()
        assert thought in {"none": {""}}.get(mode, {states, states[1::2]})


@pytest.mark.parametrize("task", [SUM, RUN])
def test_most_writers_misread_the_symbol_that_is_misread_and_no_other(task):
    common, taken_for = task.misread
    wrong = 0
    for number in range(400):
        generator = generator_of("writers", number)
        row = common + "".join(symbol for symbol in [*task.moves][:3] * 3 if symbol != common)
        given = Problem(task.name, row, "none")
        answer = parse(demonstration(generator, given), "none")["content"]
        misread = Problem(task.name, row.replace(common, taken_for), "none").answer()
        assert answer in (given.answer(), misread) and given.answer() != misread
        wrong += answer == misread
    assert abs(wrong / 400 - MISREAD) < 4 * (MISREAD * (1 - MISREAD) / 400) ** 0.5  # four standard deviations


def test_a_verdict_asks_for_the_answer_alone_and_for_the_format():
    given = Problem("sum", "12345678", "high")
    assert given.answer() == "6"
    assert verdict(given, reply("6", "3061")) == (True, 4)
    assert verdict(given, reply("6", "")) == (True, 0)
    assert not verdict(given, reply("5", "3061")).right
    assert not verdict(given, reply("66", "3061")).right
    for broken in ("6", reply("6"), reply("6", "3061")[:-1], reply("6", "3061") + "6", f"3{END_THINK}"):
        assert not verdict(given, broken).right


def test_prompts_differ_by_mode_as_the_chat_format_says():
    texts = {mode: Problem("run", "ITHNINTT", mode).prompt() for mode in MODES}
    assert texts["none"] == "<｜begin▁of▁sentence｜><｜User｜>run ITHNINTT<｜Assistant｜></think>"
    assert texts["high"] == "<｜begin▁of▁sentence｜><｜User｜>run ITHNINTT<｜Assistant｜><think>"
    assert texts["max"] == "<｜begin▁of▁sentence｜>Every step.\n\n<｜User｜>run ITHNINTT<｜Assistant｜><think>"


def test_every_symbol_and_state_and_marker_is_one_token():
    tokenizer = task_tokenizer()
    assert len(tokenizer) <= VOCAB_SIZE
    for task, mode in KINDS:
        given = problem(generator_of(0), task, mode)
        text = given.prompt() + reply(given.answer(), None if mode == "none" else given.states())
        ids = tokenizer.encode_marked(text)
        assert tokenizer.decode_marked(ids) == text
        n_words = {"none": 2, "high": 2, "max": 6}[mode]  # "sum", " "; and "Every", " step", ".", two newlines
        n_thought = 0 if mode == "none" else 1 + len(given.symbols)  # with the end of thinking
        assert len(ids) == 4 + n_words + len(given.symbols) + n_thought + 2


def test_problems_follow_from_their_seed_and_take_tasks_and_modes_in_turn():
    assert problems("a", 12, [*TASKS]) == problems("a", 12, [*TASKS]) != problems("b", 12, [*TASKS])
    assert {(one.task, one.mode) for one in problems("a", 6, [*TASKS])} == set(KINDS)


def test_an_unknown_task_or_mode_is_refused():
    for task, mode in (("product", "none"), ("sum", "low")):
        with pytest.raises(ValueError, match="problem: task = .*, mode = .*; give one of"):
            problem(generator_of(0), task, mode)
