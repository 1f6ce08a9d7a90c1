"""The grammar of a reply: which markers may follow in each state of its reader, and which states they lead to."""

import re

from minidsv4.serve.conversation.markers import (
    CALLS,
    END_CALLS,
    END_INVOKE,
    END_PARAMETER,
    END_THINK,
    EOS,
    INVOKE,
    PARAMETER,
    RESERVED,
)

AFTER = {  # state: the markers that may end it, and the state that follows
    "reasoning": {END_THINK: "content"},
    "content": {f"\n\n{CALLS}": "calls", EOS: "end"},
    "calls": {INVOKE: "name", END_CALLS: "called"},
    "name": {'">': "invoke"},
    "invoke": {PARAMETER: "parameter", END_INVOKE: "calls"},
    "parameter": {'" string="true">': "text", '" string="false">': "json"},
    "text": {END_PARAMETER: "invoke"},
    "json": {END_PARAMETER: "invoke"},
    "called": {EOS: "end"},
    "end": {},
}
BEGINNINGS = {
    state: re.compile("[" + "".join({marker[0] for marker in (*after, *RESERVED)}) + "]")
    for state, after in AFTER.items()
}
NAMES = {
    "reasoning": "the reasoning",
    "content": "the content",
    "calls": "the block of tool calls",
    "name": "a tool's name",
    "invoke": "a tool call",
    "parameter": "a parameter's name",
    "text": "a parameter's text",
    "json": "a parameter's JSON",
    "called": "the place after the tool calls",
    "end": "the place after EOS",
}


def described(state: str) -> str:
    """The state in words, with the markers that would end it."""
    follows = " or ".join(repr(marker) for marker in AFTER[state])
    return NAMES[state] + (f", which {follows} ends" if follows else "")


def begins_marker(state: str, tail: str) -> bool:
    """Whether this end of a text is part of a marker, which more text may complete."""
    markers = (*AFTER[state], *RESERVED)
    return any(marker.startswith(tail) and marker != tail for marker in markers)
