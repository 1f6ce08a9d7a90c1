"""The text of a conversation, worked out by hand for each role, mode, tool and task, and what is refused."""

import json

import pytest

import minidsv4 as v4
from minidsv4.serve.chat_format import MARKERS, PROFILES, TEXTS, Texts, chat_tokenizer, encode, parse

B, E = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
U, A = "<｜User｜>", "<｜Assistant｜>"
SHORT = Texts(  # so that a whole request fits on a line
    exhaustive="EXHAUSTIVE",
    stronger="STRONGER",
    tools_usage="USAGE",
    tools_schemas="SCHEMAS",
    tools_closing="CLOSING",
    response_format="FORMAT",
)
ADD = {"name": "add", "description": "a + b", "parameters": {"type": "object"}}
NOW = {"name": "now"}
TOOLS = (
    '\n\n## Tools\n\nUSAGE\n\nSCHEMAS\n\n{"name": "add", "description": "a + b", "parameters": {"type": "object"}}\n'
    '{"name": "now"}\n\nCLOSING'
)
CALL = {"name": "add", "arguments": {"a": 1, "b": "two"}}
BLOCK = (
    '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="add">\n'
    '<｜DSML｜parameter name="a" string="false">1</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="b" string="true">two</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>'
)


def system(content):
    return {"role": "system", "content": content}


def user(content):
    return {"role": "user", "content": content}


def assistant(content, reasoning="", *calls):
    return {"role": "assistant", "content": content, "reasoning": reasoning, "tool_calls": [*calls]}


def result(content, call_id="call_0"):
    return {"role": "tool", "content": content, "tool_call_id": call_id}


TALK = [user("q"), assistant("a", "r"), user("p")]

GOLDEN = {
    "a user, not thinking": ([user("hi")], {}, f"{B}{U}hi{A}</think>"),
    "a user, thinking low": ([user("hi")], {"mode": "low"}, f"{B}{U}hi{A}<think>"),
    "a user, thinking high": ([user("hi")], {"mode": "high"}, f"{B}EXHAUSTIVE\n\n{U}hi{A}<think>"),
    "a user, thinking max": ([user("hi")], {"mode": "max"}, f"{B}STRONGER\n\n{U}hi{A}<think>"),
    "high in the preview": ([user("hi")], {"mode": "high", "profile": "preview"}, f"{B}{U}hi{A}<think>"),
    "max in the preview": (
        [system("S"), user("hi")],
        {"mode": "max", "profile": "preview"},
        f"{B}EXHAUSTIVE\n\nS{U}hi{A}<think>",
    ),
    "a system text has no marker": ([system("S"), user("hi")], {}, f"{B}S{U}hi{A}</think>"),
    "history, not thinking": (TALK, {}, f"{B}{U}q{A}</think>a{E}{U}p{A}</think>"),
    "history, thinking: reasoning before the last user is dropped": (
        TALK,
        {"mode": "low"},
        f"{B}{U}q{A}</think>a{E}{U}p{A}<think>",
    ),
    "a developer's turn is a user's": (
        [*TALK[:2], {"role": "developer", "content": "D"}],
        {"mode": "low"},
        f"{B}{U}q{A}</think>a{E}{U}D{A}<think>",
    ),
    "a tool's result is a user's turn": (
        [user("q"), assistant("a", "r", CALL), result("3")],
        {"mode": "low"},
        f"{B}{U}q{A}</think>a{BLOCK}{E}{U}<tool_result>3</tool_result>{A}<think>",
    ),
    "the last reply keeps its reasoning": (TALK[:2], {"mode": "low"}, f"{B}{U}q{A}<think>r</think>a{E}"),
    "the last reply without thinking has none": (TALK[:2], {}, f"{B}{U}q{A}</think>a{E}"),
    "with tools all reasoning is replayed": (
        [system("S"), *TALK],
        {"mode": "low", "tools": [ADD, NOW]},
        f"{B}S{TOOLS}{U}q{A}<think>r</think>a{E}{U}p{A}<think>",
    ),
    "tools without a system text": ([user("hi")], {"tools": [ADD, NOW]}, f"{B}{TOOLS}{U}hi{A}</think>"),
    "tools and a schema of the reply": (
        [system("S"), user("hi")],
        {"tools": [ADD, NOW], "response_format": {"type": "object"}},
        f'{B}S{TOOLS}\n\n## Response Format\n\nFORMAT\n{{"type": "object"}}{U}hi{A}</think>',
    ),
    "tool_choice none shows no tools, and replays the reasoning": (
        TALK,
        {"mode": "low", "tools": [ADD, NOW], "tool_choice": "none"},
        f"{B}{U}q{A}<think>r</think>a{E}{U}p{A}<think>",
    ),
    "a call and its result": (
        [user("q"), assistant("so", "r", CALL), result("3")],
        {"mode": "low", "tools": [ADD, NOW]},
        f"{B}{TOOLS}{U}q{A}<think>r</think>so{BLOCK}{E}{U}<tool_result>3</tool_result>{A}<think>",
    ),
    "a call without content, not thinking": (
        [user("q"), assistant("", "", CALL)],
        {},
        f"{B}{U}q{A}</think>{BLOCK}{E}",
    ),
    "a call without arguments": (
        [user("q"), assistant("", "", {"name": "now", "arguments": {}})],
        {},
        f'{B}{U}q{A}</think>\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="now">\n\n</｜DSML｜invoke>\n'
        f"</｜DSML｜tool_calls>{E}",
    ),
    "two calls, and results in the order of the calls around a text": (
        [
            user("q"),
            assistant("", "", {"name": "now", "arguments": {}, "id": "x"}, {"name": "now", "arguments": {}, "id": "y"}),
            result("second", "y"),
            user("and?"),
            result("first", "x"),
        ],
        {},
        f'{B}{U}q{A}</think>\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="now">\n\n</｜DSML｜invoke>\n'
        f'<｜DSML｜invoke name="now">\n\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>{E}{U}'
        f"<tool_result>first</tool_result>\n\nand?\n\n<tool_result>second</tool_result>{A}</think>",
    ),
    "two users in a row are one turn": ([user("a"), user("b")], {}, f"{B}{U}a\n\nb{A}</think>"),
    "a reminder": (
        [system("S"), {"role": "latest_reminder", "content": "Monday"}, user("q")],
        {},
        f"{B}S<｜latest_reminder｜>Monday{U}q{A}</think>",
    ),
    "a developer has the tools": (
        [{"role": "developer", "content": "D"}, user("q")],
        {"tools": [ADD, NOW]},
        f"{B}{U}D{TOOLS}{U}q{A}</think>",
    ),
    "query": ([user("q")], {"task": "query"}, f"{B}{U}q<｜query｜>"),
    "authority": ([user("q")], {"task": "authority"}, f"{B}{U}q<｜authority｜>"),
    "domain": ([user("q")], {"task": "domain"}, f"{B}{U}q<｜domain｜>"),
    "read_url": ([user("q")], {"task": "read_url"}, f"{B}{U}q<｜read_url｜>"),
    "action": ([user("q")], {"task": "action"}, f"{B}{U}q{A}</think><｜action｜>"),
    "action, thinking": ([user("q")], {"task": "action", "mode": "low"}, f"{B}{U}q{A}<think><｜action｜>"),
    "title": (TALK[:2], {"task": "title"}, f"{B}{U}q{A}</think>a{E}<｜title｜>"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_text_is_the_one_worked_out_by_hand(name):
    messages, options, text = GOLDEN[name]
    assert encode(messages, **{"texts": SHORT, **options}) == text


def test_values_of_every_kind_stand_as_text_or_json():
    arguments = {"s": 'a "b"\n<c>', "i": 3, "f": 0.5, "t": True, "n": None, "l": [1, "é"], "o": {"k": {}}, "e": ""}
    text = encode([user("q"), assistant("", "", {"name": "f", "arguments": arguments})])
    values = [
        line.split('">', 1)[1].removesuffix("</｜DSML｜parameter>") for line in text.split("<｜DSML｜parameter")[1:]
    ]
    assert [value.split("</｜DSML｜parameter>")[0] for value in values] == [
        *('a "b"\n<c>', "3", "0.5", "true", "null", '[1, "é"]', '{"k": {}}', ""),
    ]
    assert [f'{name}" string="true"' in text for name in arguments] == [True, *[False] * 6, True]


def test_in_the_preview_high_adds_nothing_to_what_none_says():
    """All but the last marker: thinking opens where not thinking closes."""
    none, high = (encode([system("S"), user("q")], [ADD], mode, "preview") for mode in ("none", "high"))
    assert none.removesuffix("</think>") == high.removesuffix("<think>")


def test_one_word_means_two_prompts_in_the_two_profiles():
    assert encode(TALK, mode="max", profile="preview") == encode(TALK, mode="high", profile="0731")
    assert encode(TALK, mode="high", profile="preview") == encode(TALK, mode="low", profile="0731")
    assert encode(TALK, mode="max", profile="0731") != encode(TALK, mode="max", profile="preview")
    assert encode(TALK, mode="none", profile="0731") == encode(TALK, mode="none", profile="preview")


def test_all_markers_are_different_and_all_texts_of_the_package_are_usable():
    assert len(MARKERS) == len(set(MARKERS)) == 15
    assert {text for modes in PROFILES.values() for text in modes.values()} == {"", "exhaustive", "stronger"}
    assert TEXTS == Texts() and len({*vars(TEXTS).values()}) == 7


# --- what is refused ---

REFUSED = {
    "no messages": ([], {}, r"messages = \[\] are none"),
    "a text": ("hi", {}, "messages = 'hi' are none"),
    "no role": ([{"content": "a"}], {}, r"messages\[0\] = .* whose role is one of system"),
    "an unknown role": ([{"role": "robot", "content": "a"}], {}, r"messages\[0\] .* is none"),
    "a role in a list": ([{"role": ["user"], "content": "a"}], {}, r"messages\[0\] .* whose role is one of system"),
    "no texts": ([user("a")], {"texts": None}, r"texts = None are none; give Texts\(\)"),
    "texts in a dict": ([user("a")], {"texts": {}}, r"texts = \{\} are none; give Texts\(\)"),
    "an unknown field": ([{**user("a"), "name": "x"}], {}, r"messages\[0\]: 'name' is no field of role user"),
    "no text": ([user(None)], {}, r"messages\[0\]: content is a NoneType"),
    "half a character": ([user("ab\ud800")], {}, r"messages\[0\]: content: character 2 is '\\ud800', half"),
    "ends with a system message": ([system("S")], {}, "messages end with role system"),
    "a late system message": ([user("a"), system("S"), user("b")], {}, r"messages\[1\]: .* can only be the first"),
    "an assistant first": ([assistant("a")], {}, r"messages\[0\]: an assistant's message follows nothing"),
    "two replies": ([user("a"), assistant("b"), assistant("c")], {}, r"messages\[2\]: .* follows assistant"),
    "a reminder before a reply": (
        [user("a"), {"role": "latest_reminder", "content": "m"}, assistant("b")],
        {},
        r"messages\[1\]: a latest_reminder is followed by assistant",
    ),
    "a result of nothing": ([user("a"), result("3")], {}, r"messages\[1\]: tool_call_id = 'call_0' answers nothing"),
    "a result first": ([result("3")], {}, r"messages\[0\]: tool_call_id = 'call_0' answers nothing.*has no call"),
    "a result of another call": (
        [user("a"), assistant("", "", CALL), result("3", "call_1")],
        {},
        r"messages\[2\]: tool_call_id = 'call_1' answers nothing; .* has call_0",
    ),
    "a result of an older turn": (
        [user("a"), assistant("", "", CALL), result("3"), assistant("b"), result("3")],
        {},
        r"messages\[4\]: tool_call_id = 'call_0' answers nothing",
    ),
    "two results of a call": (
        [user("a"), assistant("", "", CALL), result("3"), result("4")],
        {},
        r"messages\[3\]: tool_call_id = 'call_0' is answered already",
    ),
    "a marker in a tool's result": (
        [user("a"), assistant("", "", CALL), result("x</tool_result>now")],
        {},
        r"messages\[2\]: content: character 1 begins '</tool_result>now'",
    ),
    "calls of one id": (
        [user("a"), assistant("", "", {**CALL, "id": "x"}, {**CALL, "id": "x"})],
        {},
        r"messages\[1\]: two tool_calls have one id",
    ),
    "a call as OpenAI has it": (
        [user("a"), assistant("", "", {"type": "function", "function": CALL})],
        {},
        r"messages\[1\]: tool_calls\[0\] = .* give a dict of name and arguments",
    ),
    "arguments as text": (
        [user("a"), assistant("", "", {"name": "f", "arguments": "{}"})],
        {},
        r"tool_calls\[0\]: arguments = '\{\}' are no dict; json.loads",
    ),
    "a name with a quote": (
        [user("a"), assistant("", "", {"name": 'f"', "arguments": {}})],
        {},
        "cannot stand in a tag",
    ),
    "an empty parameter name": (
        [user("a"), assistant("", "", {"name": "f", "arguments": {"": 1}})],
        {},
        r"tool_calls\[0\]: a parameter's name = '' cannot stand in a tag",
    ),
    "NaN": ([user("a"), assistant("", "", {"name": "f", "arguments": {"x": float("nan")}})], {}, "x is no plain JSON"),
    "a tuple": ([user("a"), assistant("", "", {"name": "f", "arguments": {"x": (1, 2)}})], {}, "x is no plain JSON"),
    "a marker deep in JSON": (
        [user("a"), assistant("", "", {"name": "f", "arguments": {"x": [{"<think>": 1}]}})],
        {},
        r"tool_calls\[0\]: x: character 3 begins '<think>",
    ),
    "a tool's schema": ([user("a")], {"tools": [{"type": "function"}]}, r"tools\[0\] = .* is no function schema"),
    "one tool": ([user("a")], {"tools": "add"}, "tools = 'add' are no list"),
    "two tools of a name": ([user("a")], {"tools": [NOW, NOW]}, r"tools\[1\]: name = 'now' is there already"),
    "a marker in a schema": ([user("a")], {"tools": [{"name": "f", "description": E}]}, r"tools\[0\]: character"),
    "another tool_choice": ([user("a")], {"tool_choice": "required"}, "tool_choice = 'required' cannot be promised"),
    "another mode": ([user("a")], {"mode": "think"}, "mode = 'think' is none of profile 0731; give one of none, low"),
    "low in the preview": ([user("a")], {"mode": "low", "profile": "preview"}, "give one of none, high, max"),
    "another profile": ([user("a")], {"profile": "v5"}, "profile = 'v5' is not known; give one of preview, 0731"),
    "another task": ([user("a")], {"task": "extracted_url"}, "task = 'extracted_url' is none; give one of action"),
    "a title before a reply": ([user("a")], {"task": "title"}, "task = 'title' follows an assistant's message"),
    "a query after a reply": (TALK[:2], {"task": "query"}, "task = 'query' follows a user's message"),
    "a response format as text": (
        [user("a")],
        {"response_format": "json"},
        "response_format = 'json' is no JSON schema",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_encoded_is_refused_with_a_sentence(name):
    messages, options, says = REFUSED[name]
    with pytest.raises(ValueError, match=says):
        encode(messages, **options)


@pytest.mark.parametrize("marker", [*MARKERS, "<｜fim▁hole｜>", "</｜x", "<|DSML|tool_calls>", "</|DSML|invoke>"])
@pytest.mark.parametrize("place", ["system", "user", "content", "reasoning", "argument", "name", "reminder", "result"])
def test_a_marker_in_plain_text_is_never_let_through(marker, place):
    text = f"a{marker}b"
    messages = {
        "system": [system(text), user("q")],
        "user": [user(text)],
        "content": [user("q"), assistant(text)],
        "reasoning": [user("q"), assistant("", text)],
        "argument": [user("q"), assistant("", "", {"name": "f", "arguments": {"x": text}})],
        "name": [user("q"), assistant("", "", {"name": text, "arguments": {}})],
        "reminder": [{"role": "latest_reminder", "content": text}, user("q")],
        "result": [user("q"), assistant("", "", CALL), result(text)],
    }[place]
    with pytest.raises(ValueError, match=r"^encode: messages\[\d\].*character 1 begins"):
        encode(messages, mode="low")


@pytest.mark.parametrize(
    "text", ["5 < 6｜7", "<thinking>", "< think>", "a|b", "<|im_start|>", "｜", "<tool_calls>", "\n\n<"]
)
def test_what_is_no_marker_is_let_through(text):
    encoded = encode([system(text), user(text), assistant(text, text), user(text)], [NOW], "low")
    assert encoded.count(text) >= 5
    assert parse(f"{text}</think>{text}{E}", "low") == assistant(text, text)


# --- texts from a file ---


def test_a_checkpoint_brings_its_own_texts_and_the_others_stay(tmp_path):
    assert Texts.read(tmp_path) == TEXTS
    (tmp_path / "chat_texts.json").write_text(json.dumps({"exhaustive": "Besinne dich gut. é"}), encoding="utf-8")
    texts = Texts.read(tmp_path)
    assert texts == Texts(exhaustive="Besinne dich gut. é") == Texts.read(tmp_path / "chat_texts.json")
    assert encode([user("q")], mode="high", texts=texts) == f"{B}Besinne dich gut. é\n\n{U}q{A}<think>"
    (tmp_path / "chat_texts.json").write_text('{"profile": "preview"}', encoding="utf-8")
    assert encode([user("q")], mode="high", texts=Texts.read(tmp_path)) == f"{B}{U}q{A}<think>"


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("{", "chat_texts.json cannot be read"),
        ("[]", r"chat_texts.json: \[\] cannot be used; the names are exhaustive"),
        ('{"loud": "x"}', r"\['loud'\] cannot be used"),
        ('{"exhaustive": 3}', "exhaustive is an int; give a str"),
        ('{"exhaustive": " "}', "exhaustive is empty"),
        ('{"exhaustive": "a<think>"}', "exhaustive: character 1 begins '<think>'"),
        ('{"tools_usage": "<｜User｜>"}', "tools_usage: character 0 begins '<｜User｜>'"),
        ('{"profile": "v5"}', "profile = 'v5' is not known; give one of preview, 0731"),
        ('{"tools_usage": "<thi<think>nk>"}', None),
        ('{"tools_usage": "use <｜DSML｜tool_calls> after </think>"}', None),
    ],
)
def test_texts_that_cannot_be_used_are_refused(tmp_path, written, says):
    (tmp_path / "chat_texts.json").write_text(written, encoding="utf-8")
    if says is None:
        assert Texts.read(tmp_path).tools_usage
        return
    with pytest.raises(ValueError, match=says):
        Texts.read(tmp_path)


def test_what_is_no_path_and_no_tokenizer_is_refused():
    with pytest.raises(ValueError, match="chat texts: None names no file or folder"):
        Texts.read(None)
    with pytest.raises(ValueError, match="base = 'x' is no Tokenizer; give one, or None"):
        chat_tokenizer("x")


def test_a_file_that_is_named_has_to_be_there(tmp_path):
    with pytest.raises(ValueError, match="missing.json cannot be read"):
        Texts.read(tmp_path / "missing.json")


# --- tokens ---


def test_the_shipped_tokenizer_with_markers_keeps_every_id():
    base, tokenizer = v4.pretrained_tokenizer(), chat_tokenizer()
    assert [tokenizer.markers[marker] for marker in MARKERS] == [0, 1, *range(len(base), len(base) + 13)]
    plain = "def f(x):\n    return '<think> < 3 | é'\n"
    assert tokenizer.encode(plain) == base.encode(plain)
    assert chat_tokenizer(base).markers == tokenizer.markers


def test_a_conversation_is_one_id_a_marker_and_comes_back():
    tokenizer = chat_tokenizer()
    for messages, options, _ in GOLDEN.values():
        text = encode(messages, **options)
        ids = tokenizer.encode_marked(text)
        assert tokenizer.decode_marked(ids) == text
        n_markers = sum(text.count(marker) for marker in MARKERS)
        assert ids[0] == 0 and sum(id < 2 or id >= 2048 for id in ids) == n_markers


def test_the_public_name_is_the_module():
    assert v4.chat_format.encode is encode and v4.chat_format.__name__ == "minidsv4.serve.chat_format"
