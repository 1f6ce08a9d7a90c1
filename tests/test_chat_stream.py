"""Replies read back: whole, in any cut, as text and as bytes; what is no reply is refused without leaking a marker.

CHAT_ROUND_TRIPS and CHAT_CUTS ask for more random conversations than a run of the suite needs.
"""

import itertools
import json
import os
import re

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from minidsv4.serve.chat_format import MARKERS, StreamParser, chat_tokenizer, encode, parse
from minidsv4.serve.conversation import parsing
from minidsv4.serve.conversation.grammar import AFTER, BEGINNINGS
from minidsv4.serve.conversation.markers import RESERVED, RESULT

ROUND_TRIPS = int(os.environ.get("CHAT_ROUND_TRIPS", 300))
CUT = int(os.environ.get("CHAT_CUTS", 20))
E = "<｜end▁of▁sentence｜>"
ENDS = {"none": "</think>", "low": "<think>"}
SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


# --- random conversations ---

NEAR = [
    "<",
    "｜",
    "</",
    "\n",
    "\n\n",
    "think>",
    "DSML",
    '"',
    ">",
    "<thin",
    '">',
    "\r\n",
    "é😀",
    " ",
    "a",
    "{",
    "string=",
]
IN_TURNS = (*RESERVED, RESULT, "</tool_result>")
pieces = st.one_of(st.sampled_from(NEAR), st.characters(codec="utf-8"))
texts = st.lists(pieces, max_size=6).map("".join).filter(lambda text: not any(marker in text for marker in IN_TURNS))
names = st.text(st.characters(codec="utf-8", exclude_characters='"<>\n\r｜|'), min_size=1, max_size=4)
numbers = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
simple = st.one_of(st.none(), st.booleans(), numbers, texts)
nested = st.one_of(st.lists(simple, max_size=2), st.dictionaries(texts, st.lists(simple, max_size=1), max_size=2))
arguments = st.dictionaries(names, st.one_of(simple, nested), max_size=3)
calls = st.lists(st.fixed_dictionaries({"name": names, "arguments": arguments}), max_size=2)


@st.composite
def conversations(draw):
    """Messages that end with a reply, the tools if any, and the mode."""
    messages = [{"role": "system", "content": draw(texts)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 2))):
        if draw(st.booleans()):
            messages.append({"role": "latest_reminder", "content": draw(texts)})
        messages.append({"role": draw(st.sampled_from(["user", "developer"])), "content": draw(texts)})
        reply = draw(replies())
        messages.append(reply)
        if reply["tool_calls"]:
            ids = draw(st.permutations([call["id"] for call in reply["tool_calls"]]))
            messages += [{"role": "tool", "content": draw(texts), "tool_call_id": call_id} for call_id in ids]
            messages.append({"role": "assistant", "content": draw(texts), "reasoning": draw(texts), "tool_calls": []})
    return messages, draw(st.sampled_from([None, [{"name": "f"}]])), draw(st.sampled_from(["none", "low"]))


@st.composite
def replies(draw):
    """An assistant's message as `parse` gives it."""
    made = [{"id": f"call_{place}", **call} for place, call in enumerate(draw(calls))]
    return {"role": "assistant", "content": draw(texts), "reasoning": draw(texts), "tool_calls": made}


def reply_text(messages, place, tools, mode):
    """What the model wrote as the message at this place: what it adds to the text of all before."""
    before, after = encode(messages[:place], tools, mode), encode(messages[: place + 1], tools, mode)
    assert after.startswith(before) and before.endswith(ENDS[mode])
    return after[len(before) :]


def without_reasoning(message, mode):
    """The message as a reply in this mode can be."""
    return message if mode != "none" else {**message, "reasoning": ""}


@pytest.mark.slow
@seed(18)
@settings(max_examples=ROUND_TRIPS, deadline=None, database=None, suppress_health_check=SLOW)
@given(conversations())
def test_every_reply_of_a_random_conversation_comes_back_from_its_text(case):
    messages, tools, mode = case
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            text = reply_text(messages, place, tools, mode)
            assert parse(text, mode) == without_reasoning(message, mode)
            assert parse(text.encode(), mode) == without_reasoning(message, mode)


@pytest.mark.slow
@seed(19)
@settings(max_examples=ROUND_TRIPS, deadline=None, database=None, suppress_health_check=SLOW)
@given(conversations())
def test_with_tools_a_conversation_is_a_prefix_of_its_continuation(case):
    messages, tools, mode = case
    tools = tools or [{"name": "f"}]
    cuts = [place for place in range(1, len(messages) + 1) if turn_ends(messages, place)]
    encoded = [encode(messages[:place], tools, mode) for place in cuts]
    assert all(longer.startswith(shorter) for shorter, longer in itertools.pairwise(encoded))
    replies_at = [place for place in cuts if messages[place - 1]["role"] == "assistant"]
    titles = [encode(messages[:place], tools, mode, task="title") for place in replies_at]
    assert all(text.removesuffix("<｜title｜>") in encoded for text in titles)


def turn_ends(messages, place):
    """Whether a conversation can be cut here: it is the model's turn, or the model has had it."""
    role, after = messages[place - 1]["role"], messages[place]["role"] if place < len(messages) else None
    return role == "assistant" or after == "assistant"


def test_without_tools_a_thinking_conversation_is_no_prefix_of_its_continuation():
    first = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning": "r"}]
    longer = [*first, {"role": "user", "content": "p"}]
    assert not encode(longer, mode="low").startswith(encode(first, mode="low"))
    assert encode(longer).startswith(encode(first))
    assert encode(longer, [{"name": "f"}], "low").startswith(encode(first, [{"name": "f"}], "low"))


# --- cuts ---


def joined(deltas):
    """Deltas with neighbours of one kind and place joined."""
    found = []
    for key, group in itertools.groupby(deltas, key=lambda delta: (delta.kind, delta.call, delta.parameter)):
        pieces = [delta.text for delta in group]
        found += (
            [(*key, "".join(pieces))] if key[0] in ("reasoning", "content", "argument") else [(*key, p) for p in pieces]
        )
    return found


def read(pieces, mode):
    """The deltas of these pieces and the message."""
    reader = StreamParser(mode)
    deltas = [delta for piece in pieces for delta in reader.feed(piece)]
    return joined(deltas), reader.finish()


@pytest.mark.slow
@seed(20)
@settings(max_examples=CUT, deadline=None, database=None, suppress_health_check=SLOW)
@given(replies(), st.sampled_from(["none", "low"]), st.randoms())
def test_every_cut_of_a_stream_gives_the_same_deltas_and_message(message, mode, chance):
    """In two at every character and every byte, one by one, and in random pieces."""
    text = reply_text([{"role": "user", "content": "q"}, message], 1, None, mode)
    expected = read([text], mode)
    assert expected[1] == without_reasoning(message, mode)
    for whole in (text, text.encode()):
        for place in range(len(whole) + 1):
            assert read([whole[:place], whole[place:]], mode) == expected
        assert read([whole[place : place + 1] for place in range(len(whole))], mode) == expected
        places = sorted(chance.choices(range(len(whole) + 1), k=7))
        assert read([whole[a:b] for a, b in itertools.pairwise([0, *places, len(whole)])], mode) == expected


def test_deltas_tell_what_begins_and_ends():
    text = encode_calls({"name": "add", "arguments": {"a": 12, "b": "two"}}, {"name": "now", "arguments": {}})
    deltas, message = read(f"so</think>I add{text}{E}", "high")
    assert deltas == [
        ("reasoning", -1, "", "so"),
        ("content", -1, "", "I add"),
        ("call", 0, "", "add"),
        ("argument", 0, "a", "12"),
        ("argument", 0, "b", "two"),
        ("called", 0, "", '{"a": 12, "b": "two"}'),
        ("call", 1, "", "now"),
        ("called", 1, "", "{}"),
    ]
    assert [call["id"] for call in message["tool_calls"]] == ["call_0", "call_1"]


def encode_calls(*made):
    """The block of these calls."""
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [*made]}]
    return reply_text(messages, 1, None, "none").removesuffix(E)


@pytest.mark.parametrize("marker", ["</think>", "\n\n<｜DSML｜tool_calls>", E])
def test_no_part_of_a_marker_is_ever_passed_on(marker):
    state = "reasoning" if marker == "</think>" else "content"
    for size in range(1, len(marker)):
        reader = StreamParser("low" if state == "reasoning" else "none")
        assert "".join(delta.text for delta in reader.feed("a" + marker[:size])) == "a"
        assert reader.message()[state] == "a"


def test_what_turns_out_to_be_no_marker_is_passed_on_in_the_end():
    reader = StreamParser()
    said = ["".join(delta.text for delta in reader.feed(piece)) for piece in ["a\n", "\n", "\n", "<", "thin", "gs"]]
    assert said == ["a", "", "\n", "", "\n\n", "<things"]


# --- what is no reply ---

CALL = '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n'
P = '<｜DSML｜parameter name="a" string="false">'
END_P, CLOSE = "</｜DSML｜parameter>\n", "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
BROKEN = {
    "no EOS": ("none", "hi", "character 2: the text ends in the content, which .* ends"),
    "half an EOS": ("none", "hi<｜end", "character 7: the text ends in the content"),
    "nothing": ("none", "", "character 0: the text ends in the content"),
    "thinking without an end": ("low", f"hi{E}", "character 2: '<｜end▁of▁sentence｜>' cannot stand in the reasoning"),
    "thinking that was cut": ("low", "hi", "character 2: the text ends in the reasoning, which '</think>' ends"),
    "thinking twice": ("low", f"a</think>b</think>c{E}", "character 10: '</think>c.*' cannot stand in the content"),
    "thinking where there is none": (
        "none",
        f"a</think>b{E}",
        "character 1: '</think>b.*' cannot stand in the content",
    ),
    "thinking within thinking": ("low", f"<think>a</think>b{E}", "character 0: '<think>a.*' cannot stand in the reas"),
    "text after EOS": ("none", f"hi{E}!", "character 21: '!' cannot stand in the place after EOS"),
    "half a marker after EOS": ("none", f"hi{E}<", "character 22: the text ends in the place after EOS"),
    "a second EOS": ("none", f"hi{E}{E}", "character 21: .* cannot stand in the place after EOS"),
    "another role": ("none", f"hi<｜User｜>you{E}", "character 2: '<｜User｜>you.*' cannot stand in the content"),
    "a task": ("none", f"hi<｜title｜>{E}", "character 2: '<｜title｜>.*' cannot stand"),
    "a token of another format": ("none", f"hi<｜fim▁hole｜>{E}", "character 2: '<｜fim▁hole｜>.*' cannot stand"),
    "ASCII bars": ("none", f"hi\n\n<|DSML|tool_calls>{E}", r"character 4: '<\|DSML\|tool_calls>.* cannot stand"),
    "a misspelt block": ("none", f"hi\n\n<｜DSML｜tool_call>{E}", "character 4: '<｜DSML｜tool_call>.*' cannot stand"),
    "a block after one line break": ("none", f"hi{CALL[1:]}{CLOSE}{E}", "character 3: '<｜DSML｜tool_calls>"),
    "a call while thinking": ("low", f"hi{CALL}{CLOSE}</think>{E}", "character 4: .* cannot stand in the reasoning"),
    "no calls": ("none", f"\n\n<｜DSML｜tool_calls>\n</｜DSML｜tool_calls>{E}", "character 21: the block .* has none"),
    "text between calls": ("none", f"{CALL}{CLOSE[:18]}and{CLOSE[18:]}{E}", "character 61: '</and.*' cannot stand in"),
    "text in a call": ("none", f"{CALL}and{CLOSE}{E}", "character 45: 'and' cannot stand in a tool call"),
    "text after calls": ("none", f"{CALL}{CLOSE}.{E}", "'.' cannot stand in the place after the tool calls"),
    "a line break after calls": (
        "none",
        f"{CALL}{CLOSE}\n{E}",
        r"'\\n' cannot stand in the place after the tool calls",
    ),
    "a line break after EOS": ("none", f"hi{E}\n", r"character 21: '\\n' cannot stand in the place after EOS"),
    "a call that does not end": ("none", f"{CALL}{E}", "character 45: '<｜end▁of▁sentence｜>' cannot stand in a tool"),
    "a nameless call": ("none", CALL.replace('"f"', '""') + CLOSE + E, "a tool's name = '' cannot stand in a tag"),
    "a nameless parameter": (
        "none",
        CALL + P.replace('"a"', '""') + "1" + END_P + CLOSE + E,
        "parameter's name = '' cannot",
    ),
    "a parameter twice": ("none", f"{CALL}{P}1{END_P}{P}2{END_P}{CLOSE}{E}", "parameter 'a' of 'f' is there already"),
    "a parameter of no type": (
        "none",
        f'{CALL}{P[:-6]}maybe">1{END_P}{CLOSE}{E}',
        "cannot stand in a parameter's name",
    ),
    "no JSON": ("none", f"{CALL}{P}one{END_P}{CLOSE}{E}", "character .*: parameter 'a' of 'f' = 'one' is no JSON"),
    "infinite JSON": ("none", f"{CALL}{P}1e999{END_P}{CLOSE}{E}", "parameter 'a' is no plain JSON"),
    "NaN": ("none", f"{CALL}{P}NaN{END_P}{CLOSE}{E}", "parameter 'a' is no plain JSON"),
    "deep JSON": ("none", f"{CALL}{P}{'[' * 100_000}{END_P}{CLOSE}{E}", "parameter 'a' of 'f' = .* is no JSON"),
    "a long number": ("none", f"{CALL}{P}{'9' * 5000}{END_P}{CLOSE}{E}", "parameter 'a' of 'f' = .* is no JSON"),
    "JSON with a name twice": ("none", f'{CALL}{P}{{"x": 1, "x": 2}}{END_P}{CLOSE}{E}', "a name stands twice"),
    "a marker written in escapes": ("none", f'{CALL}{P}"\\u003cthink>"{END_P}{CLOSE}{E}', "parameter 'a': character 0"),
    "half a character in escapes": ("none", f'{CALL}{P}["\\ud800"]{END_P}{CLOSE}{E}', "parameter 'a': character"),
}


UNQUOTED = re.compile("'.*' (?=cannot stand)", re.DOTALL)  # of what stands there, a cut may have brought less


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_reply_is_refused_in_every_cut_and_leaks_nothing(name):
    mode, text, says = BROKEN[name]
    with pytest.raises(ValueError, match=f"^parse: .*{says}") as whole:
        parse(text, mode)
    for pieces in ([text[:9], text[9:]], text if len(text) < 1000 else [text], [text.encode()[:7], text.encode()[7:]]):
        reader, seen = StreamParser(mode), []
        with pytest.raises(ValueError) as cut:
            for piece in pieces:
                seen += reader.feed(piece)
            reader.finish()
        assert UNQUOTED.sub("", str(cut.value)) == UNQUOTED.sub("", str(whole.value))
        for shown in (
            *seen,
            *reader.message()["tool_calls"],
            reader.message()["content"],
            reader.message()["reasoning"],
        ):
            assert not any(marker in json.dumps(shown, ensure_ascii=False) for marker in RESERVED)


@pytest.mark.parametrize(
    ("pieces", "says"),
    [
        ([b"\xc3"], "character 0: the text ends within a character"),
        ([b"a\xff"], "character 0: invalid start byte; the bytes are no UTF-8"),
        ([b"ab", b"\xc3", b"("], "character 2: invalid continuation byte"),
        ([b"a\xc3", "b"], "character 1: text follows within a character"),
        ([3], "text = 3 is an int; give a str or bytes"),
        (["ab", "c\ud800"], r"the piece at character 2: character 1 is '\\ud800'"),
    ],
)
def test_bytes_that_are_no_text_are_refused(pieces, says):
    reader = StreamParser()
    with pytest.raises(ValueError, match=f"parse: .*{says}"):
        for piece in pieces:
            reader.feed(piece)
        reader.finish()


def test_a_reader_that_failed_says_so_again_and_keeps_what_was_whole():
    reader = StreamParser()
    reader.feed("hi")
    for piece in ("<think>", "more", ""):
        with pytest.raises(ValueError, match="character 2: '<think>' cannot stand"):
            reader.feed(piece)
    with pytest.raises(ValueError, match="character 2: '<think>' cannot stand"):
        reader.finish()
    assert reader.message()["content"] == "hi"


def test_a_task_has_no_reasoning_in_any_mode():
    assert parse(f"A title{E}", "max", task="title")["content"] == "A title"
    with pytest.raises(ValueError, match="'</think>.* cannot stand in the content"):
        parse(f"A</think>title{E}", "max", task="title")
    with pytest.raises(ValueError, match="task = 'headline' is none"):
        parse(f"A{E}", task="headline")
    with pytest.raises(ValueError, match="mode = 'deep' is not known"):
        parse(f"A{E}", "deep")


def test_a_call_that_was_cut_is_no_part_of_the_message_so_far():
    reader = StreamParser()
    reader.feed(f"so{CALL}{P}1{END_P}")
    assert reader.message() == {"role": "assistant", "content": "so", "reasoning": "", "tool_calls": []}
    with pytest.raises(ValueError, match="the text ends in a tool call"):
        reader.finish()


@seed(21)
@settings(max_examples=ROUND_TRIPS, deadline=None, database=None)
@given(st.lists(st.sampled_from([*MARKERS, *NEAR, CALL, P, END_P, CLOSE, E, "1", "<|DSML|"]), max_size=9).map("".join))
def test_any_text_is_a_message_that_can_be_encoded_or_a_sentence(text):
    for mode in ("none", "low"):
        try:
            message = parse(text, mode)
        except ValueError as error:
            assert str(error).startswith("parse: ")
            continue
        messages = [{"role": "user", "content": "q"}, message]
        assert parse(reply_text(messages, 1, None, mode), mode) == message


@pytest.mark.slow
def test_reading_takes_time_that_grows_with_the_text_and_no_faster():
    """A reader that copied what it has read for each piece would take minutes for this."""
    reader = StreamParser("low")
    for _ in range(200_000):
        reader.feed("\n\n<")
    assert len(reader.message()["reasoning"]) == 3 * 200_000 - 1


# --- guards that a change could take away ---

TEXT = f"so</think>\nI{CALL}{P}1{END_P}{CLOSE}{E}"


def test_a_reader_that_holds_nothing_back_leaks_and_is_noticed(monkeypatch):
    monkeypatch.setattr(parsing, "begins_marker", lambda state, tail: False)
    with pytest.raises((ValueError, AssertionError)):
        assert read(list(TEXT), "low") == read([TEXT], "low")
    monkeypatch.undo()
    assert read(list(TEXT), "low") == read([TEXT], "low")


def test_the_states_lead_to_states_and_every_marker_begins_where_it_is_looked_for():
    for state, after in AFTER.items():
        assert set(after.values()) <= set(AFTER)
        assert all(BEGINNINGS[state].match(marker) for marker in (*after, *RESERVED))
        assert all(len(marker) < parsing.LONGEST for marker in after)


def test_a_reply_comes_back_from_the_tokens_of_a_chat_model():
    tokenizer = chat_tokenizer()
    ids = tokenizer.encode_marked(TEXT)
    assert tokenizer.decode_marked(ids) == TEXT
    assert ids[-1] == tokenizer.eos_id and tokenizer.markers["</think>"] in ids
