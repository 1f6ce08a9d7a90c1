"""Checkups of the chat format: what a prompt says, and what a reply's reader passes on."""

from minidsv4.serve import chat_format
from minidsv4.serve.calculator import CALCULATE

SUMS = ("2 + 3", "4 * 5")


def talk(first: int = 0) -> list[dict]:
    """A user's wish, two calls of a tool, and their results, which come in an order that begins with `first`."""
    calls = [{"name": "calculate", "arguments": {"expression": text}} for text in SUMS]
    results = [
        {"role": "tool", "content": "5", "tool_call_id": "call_0"},
        {"role": "tool", "content": "20", "tool_call_id": "call_1"},
    ]
    return [
        {"role": "user", "content": "Add 2 and 3, and multiply 4 by 5."},
        {"role": "assistant", "reasoning": "Two sums.", "tool_calls": calls},
        results[first],
        results[1 - first],
    ]


def a_conversation_with_tools_begins_its_continuation():
    """With tools a prompt is a prefix of the next one, so that the cache of the one serves the other."""
    prompt = chat_format.encode(talk()[:1], [CALCULATE], "low")
    whole = chat_format.encode(talk()[:2], [CALCULATE], "low")
    assert whole.startswith(prompt)
    assert chat_format.encode(talk(), [CALCULATE], "low").startswith(whole)


def nobody_can_write_a_marker():
    """A message that holds a marker of the format is refused."""
    for marker in chat_format.MARKERS:
        try:
            chat_format.encode([{"role": "user", "content": f"Hello {marker} there"}])
        except ValueError:
            continue
        raise AssertionError(f"{marker} was let through")


def results_stand_in_the_order_of_their_calls():
    """The prompt does not depend on which result came first."""
    prompts = [chat_format.encode(talk(first), [CALCULATE], "low") for first in (0, 1)]
    assert prompts[0] == prompts[1] and prompts[0].index(">5<") < prompts[0].index(">20<")


def tools_are_hidden_where_none_may_be_called():
    """With `tool_choice` "none" no schema is shown, and the reasoning of earlier turns stays."""
    text = chat_format.encode(talk(), [CALCULATE], "low", tool_choice="none")
    assert CALCULATE["description"] not in text and "<think>Two sums." in text


def a_word_means_what_its_profile_says():
    """`high` of the profile 0731 is the prompt of `max` of the preview, and adds an instruction."""
    high = chat_format.encode(talk()[:1], mode="high", profile="0731")
    assert high == chat_format.encode(talk()[:1], mode="max", profile="preview")
    assert chat_format.TEXTS.exhaustive in high


def wrong_cuts() -> list[int]:
    """Where a reply with two calls can be cut in two so that its reader refuses it or gives another message."""
    prompt = chat_format.encode(talk()[:1], [CALCULATE], "low")
    reply = chat_format.encode(talk()[:2], [CALCULATE], "low").removeprefix(prompt)
    whole = chat_format.parse(reply, "low")
    return [cut for cut in range(1, len(reply)) if message_of([reply[:cut], reply[cut:]]) != whole]


def message_of(pieces: list[str]) -> dict | None:
    """The message that comes in these pieces, None where its reader refuses them."""
    reader = chat_format.StreamParser("low")
    try:
        for piece in pieces:
            reader.feed(piece)
        return reader.finish()
    except ValueError:
        return None


def a_reply_cut_anywhere_is_the_same_message():
    """A reply that comes in two pieces gives the message that it gives in one, wherever it is cut."""
    wrong = wrong_cuts()
    assert not wrong, f"cut at {wrong[0]} it is another message"
