"""The markers of the chat format, and the check that keeps them out of plain text.

A marker is a string that the tokenizer of a chat model turns into one token. Whoever could write one into a message
could end a turn, or call a tool, in somebody else's name; so plain text that holds one is refused. What begins like a
marker and is none (`<｜` and what follows, or DSML between ASCII bars) is refused as well: tokenizers have more special
tokens than this format uses.
"""

import json
from collections.abc import Iterable

from minidsv4.serve.checks import check_characters, kind

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
LATEST_REMINDER = "<｜latest_reminder｜>"
THINK, END_THINK = "<think>", "</think>"
DSML = "｜DSML｜"
EXTRACTED_URL = "<｜extracted_url｜>"  # no request of this format writes it
TASKS = {name: f"<｜{name}｜>" for name in ("action", "query", "authority", "domain", "title", "read_url")}

# The first two take the ids of BOS and EOS, the others follow the vocabulary: their order is part of a checkpoint.
MARKERS = (BOS, EOS, USER, ASSISTANT, LATEST_REMINDER, THINK, END_THINK, DSML, *TASKS.values(), EXTRACTED_URL)

CALLS, END_CALLS = f"<{DSML}tool_calls>", f"</{DSML}tool_calls>"
INVOKE, END_INVOKE = f'<{DSML}invoke name="', f"</{DSML}invoke>"
PARAMETER, END_PARAMETER = f'<{DSML}parameter name="', f"</{DSML}parameter>"
RESULT, END_RESULT = "<tool_result>", "</tool_result>"  # plain text to the tokenizer, but they delimit a result

RESERVED = ("<｜", "</｜", DSML, THINK, END_THINK, "<|DSML|", "</|DSML|")
_NAME_ENDS = '"<>\n\r'


def check_text(where: str, text: object, reserved: Iterable[str] = RESERVED) -> str:
    """The text, once it is one that UTF-8 can hold and that has no marker in it.

    where     call and field, for the refusal
    reserved  strings that may not stand in it
    raises    ValueError, which names the place and what stands there
    """
    if not isinstance(text, str):
        raise ValueError(f"{where} is {kind(text)}; give a str")
    check_characters(where, text)
    places = {text.find(marker): marker for marker in reserved if marker in text}
    if places:
        place = min(places)
        raise ValueError(
            f"{where}: character {place} begins {text[place : place + 24]!r}, a marker of the chat format or like one; "
            "plain text cannot hold it: take it out or write it otherwise"
        )
    return text


def check_name(where: str, name: object) -> str:
    """The name of a tool or parameter, once it can stand between quotes in a tag.

    raises  ValueError for an empty one, or one with a quote, an angle bracket or a line break
    """
    check_text(where, name)
    if not isinstance(name, str) or not name or any(end in name for end in _NAME_ENDS):
        raise ValueError(f"{where} = {name!r} cannot stand in a tag; give a name without quotes, <, > and line breaks")
    return name


def as_json(where: str, value: object) -> str:
    """The value as JSON on one line, once JSON gives it back unchanged and it holds no marker.

    raises  ValueError for what is no plain JSON: tuples, other keys than strings, NaN, infinity
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        same = json.loads(text) == value
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise ValueError(f"{where} is no plain JSON; give dicts with str keys, lists, str, finite numbers, bool, None")
    return check_text(where, text)


def check_value(where: str, value: object) -> None:
    """Refuse an argument that its tag cannot hold: a text with a marker in it, or what is no plain JSON."""
    if isinstance(value, str):
        check_text(where, value)
    else:
        as_json(where, value)
