"""Pictures of notebook 17 draw the numbers that they are given; its conversation is told apart token by token."""

import numpy as np

from minidsv4.course import conversations, plots
from minidsv4.course.plots.chat import KINDS
from minidsv4.serve.chat_format import chat_tokenizer, encode


def test_a_conversation_is_a_strip_of_kinds_as_long_as_its_tokens():
    rows = {"short": ["marker", "user"], "long": ["marker", "reasoning", "answer"]}
    (axes,) = plots.conversation_strips(rows, "a title").axes
    cells = axes.collections[0].get_array().reshape(2, 3)
    assert [list(KINDS)[int(cell)] for cell in cells[1]] == rows["long"]
    assert cells.mask.tolist() == [[False, False, True], [False, False, False]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["marker", "user", "reasoning", "answer"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["short", "long"] and axes.yaxis_inverted()


def test_modes_stand_in_their_order_and_a_profile_has_only_its_own():
    added = {"preview": {"none": 0, "high": 0, "max": 5}, "0731": {"none": 0, "low": 0, "high": 5, "max": 9}}
    (axes,) = plots.added_by_mode(added, "a title").axes
    preview, later = axes.get_lines()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["none", "low", "high", "max"]
    assert list(preview.get_xdata()) == [0, 2, 3] and list(preview.get_ydata()) == [0, 0, 5]
    assert list(later.get_xdata()) == [0, 1, 2, 3] and list(later.get_ydata()) == [0, 0, 5, 9]


def test_a_turns_bar_is_what_was_reused_and_on_it_what_is_new():
    first, second = plots.reused_by_turn({"a": [(0, 4), (3, 9)], "b": [(0, 5), (5, 6)]}, "a title").axes
    assert [bar.get_height() for bar in first.patches] == [0, 3, 4, 6]
    assert [bar.get_y() for bar in second.patches] == [0, 0, 0, 5]
    assert (first.get_title(), second.get_title()) == ("a", "b")


def test_a_stream_is_drawn_character_by_character_with_its_markers_grey():
    (axes,) = plots.passed_on([1, 1, 1, 2], {"marker": (2, 3)}, "a title").axes
    fed, passed = axes.get_lines()
    assert list(fed.get_ydata()) == [1, 2, 3, 4] and list(passed.get_ydata()) == [1, 1, 1, 2]
    (span,) = axes.patches
    assert np.allclose([span.get_x(), span.get_width()], [2, 2])


def test_a_token_belongs_to_what_the_marker_before_it_says():
    tokenizer, talk = chat_tokenizer(), conversations.talk()
    found = conversations.kinds(tokenizer, encode(talk[:3], mode="low"))
    runs = [kind for place, kind in enumerate(found) if not place or found[place - 1] != kind]
    begun = ["marker", "instructions", "marker", "user", "marker", "reasoning", "marker", "answer", "marker"]
    assert runs == begun
    question, thought, answer = conversations.TURNS[0]
    for kind, text in (("user", question), ("reasoning", thought), ("answer", answer)):
        assert found.count(kind) == len(tokenizer.encode(text))
