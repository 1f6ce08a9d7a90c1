"""Messages as a user gives them, checked: dicts with a role, a content, and what the role may have besides.

    {"role": "assistant", "content": "", "reasoning": "...", "tool_calls": [{"name": "add", "arguments": {"a": 1}}]}
    {"role": "tool", "content": "3", "tool_call_id": "call_0"}

A call has an `id`; where it has none it is `call_` and its place in the message.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from minidsv4.serve.checks import shown
from minidsv4.serve.conversation.markers import (
    END_RESULT,
    RESERVED,
    RESULT,
    as_json,
    check_name,
    check_text,
    check_value,
)

FIELDS = {  # what a message of each role may hold besides role and content
    "system": (),
    "user": (),
    "assistant": ("reasoning", "tool_calls"),
    "tool": ("tool_call_id",),
    "latest_reminder": (),
    "developer": (),
}
USER_ROLES = ("user", "tool", "developer")  # what an assistant answers
MERGED = ("user", "tool")  # neighbours of these roles are one turn
_IN_USER_TURN = (*RESERVED, RESULT, END_RESULT)


class Call(NamedTuple):
    """A call of a tool: its name, its arguments, and the name that its result refers to."""

    name: str
    arguments: dict
    id: str

    def as_dict(self) -> dict:
        return {"id": self.id, "name": self.name, "arguments": self.arguments}


class Message(NamedTuple):
    """A checked message; fields that its role does not have are empty."""

    role: str
    content: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    call_id: str = ""


def checked(messages: object) -> list[Message]:
    """The messages, each checked alone and in its place, with tool results in the order of their calls.

    raises  ValueError, which names the message and the field, and says what would be right
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise ValueError(f"encode: messages = {shown(messages)} are none; give a list of dicts, at least one")
    found = [_message(f"encode: messages[{place}]", message) for place, message in enumerate(messages)]
    for place in range(len(found)):
        _check_place(found, place)
    if found[-1].role not in (*USER_ROLES, "assistant"):
        raise ValueError(f"encode: messages end with role {found[-1].role}; the last one is a user's or an assistant's")
    return _ordered(found)


def _message(where: str, given: object) -> Message:
    """One message, checked alone."""
    if not isinstance(given, Mapping) or given.get("role") not in [*FIELDS]:
        raise ValueError(f"{where} = {shown(given)} is none; give a dict whose role is one of {', '.join(FIELDS)}")
    role = given["role"]
    fields = ("role", "content", *FIELDS[role])
    strange = [key for key in given if key not in fields]
    if strange:
        raise ValueError(f"{where}: {strange[0]!r} is no field of role {role}; it has {', '.join(fields)}")
    reserved = _IN_USER_TURN if role in USER_ROLES else RESERVED
    content = check_text(f"{where}: content", given.get("content", ""), reserved)
    reasoning = check_text(f"{where}: reasoning", given.get("reasoning", ""))
    calls = given.get("tool_calls", [])
    if not isinstance(calls, Sequence) or isinstance(calls, str | bytes):
        raise ValueError(f"{where}: tool_calls = {shown(calls)} are none; give a list of dicts")
    made = tuple(_call(f"{where}: tool_calls[{place}]", call, place) for place, call in enumerate(calls))
    if len({call.id for call in made}) < len(made):
        raise ValueError(f"{where}: two tool_calls have one id; give each its own, or none to any")
    return Message(role, content, reasoning, made, check_text(f"{where}: tool_call_id", given.get("tool_call_id", "")))


def _call(where: str, given: object, place: int) -> Call:
    """One call of a tool, checked."""
    if not isinstance(given, Mapping) or not {"name", "arguments"} <= set(given) <= {"name", "arguments", "id"}:
        raise ValueError(f"{where} = {shown(given)} is no call; give a dict of name and arguments, and id if you like")
    arguments = given["arguments"]
    if not isinstance(arguments, dict):
        raise ValueError(f"{where}: arguments = {shown(arguments)} are no dict; json.loads makes one of JSON text")
    for name, value in arguments.items():
        check_name(f"{where}: a parameter's name", name)
        check_value(f"{where}: {name}", value)
    call_id = given.get("id", f"call_{place}")
    if not isinstance(call_id, str) or not call_id:
        raise ValueError(f"{where}: id = {shown(call_id)} names nothing; give a str that is not empty")
    return Call(check_name(f"{where}: name", given["name"]), arguments, call_id)


def _check_place(messages: list[Message], place: int) -> None:
    """Refuse a message that cannot stand where it does."""
    message, where = messages[place], f"encode: messages[{place}]"
    before = messages[place - 1].role if place else "nothing"
    after = messages[place + 1].role if place + 1 < len(messages) else "user"
    if message.role == "system" and place:
        raise ValueError(f"{where}: a system message has no marker, so it can only be the first; use latest_reminder")
    if message.role == "assistant" and before not in USER_ROLES:
        raise ValueError(f"{where}: an assistant's message follows {before}; it answers a user, a tool or a developer")
    if message.role == "latest_reminder" and after not in (*USER_ROLES, "latest_reminder"):
        raise ValueError(f"{where}: a latest_reminder is followed by {after}; it stands before a user's turn")
    if message.role == "tool":
        _check_result(messages, place)


def _check_result(messages: list[Message], place: int) -> None:
    """Refuse a tool's result that answers no call of the assistant's message before, or one that has its answer."""
    where, call_id = f"encode: messages[{place}]: tool_call_id", messages[place].call_id
    asked = _asked(messages, place)
    if call_id not in asked:
        names = ", ".join(asked) or "no call"
        raise ValueError(f"{where} = {call_id!r} answers nothing; the assistant's message before it has {names}")
    first = turn_start(messages, place)
    if call_id in [message.call_id for message in messages[first:place] if message.role == "tool"]:
        raise ValueError(f"{where} = {call_id!r} is answered already; a call has one result")


def turn_start(messages: list[Message], place: int) -> int:
    """Where the user's turn begins that this message is a part of."""
    while place and messages[place - 1].role in MERGED:
        place -= 1
    return place


def _asked(messages: list[Message], place: int) -> list[str]:
    """Ids of the calls that a result at this place can answer, in their order."""
    first = turn_start(messages, place)
    return [call.id for call in messages[first - 1].calls] if first else []


def _ordered(messages: list[Message]) -> list[Message]:
    """The messages with the results within each turn in the order of the calls; texts stay where they are."""
    ordered = list(messages)
    turns: dict[int, list[int]] = {}
    for place, message in enumerate(messages):
        if message.role == "tool":
            turns.setdefault(turn_start(messages, place), []).append(place)
    for first, places in turns.items():
        asked = _asked(messages, first)
        in_order = sorted(places, key=lambda place: asked.index(messages[place].call_id))
        for to, of in zip(places, in_order):
            ordered[to] = messages[of]
    return ordered


def checked_schemas(tools: object) -> list[str]:
    """The JSON schema of each tool on one line.

    tools   a list of dicts with a `name`, and a `description` and `parameters` (a JSON schema) as a rule; None for none
    raises  ValueError for anything else, and for two tools of one name
    """
    if tools is None:
        return []
    if not isinstance(tools, Sequence) or isinstance(tools, str | bytes):
        raise ValueError(f"encode: tools = {shown(tools)} are no list; give function schemas, or None")
    names: list[str] = []
    lines = []
    for place, tool in enumerate(tools):
        where = f"encode: tools[{place}]"
        if not isinstance(tool, dict) or "name" not in tool:
            raise ValueError(f"{where} = {shown(tool)} is no function schema; give a dict with name and parameters")
        names.append(check_name(f"{where}: name", tool["name"]))
        if names.count(names[-1]) > 1:
            raise ValueError(f"{where}: name = {names[-1]!r} is there already; a call could mean either")
        lines.append(as_json(where, tool))
    return lines
