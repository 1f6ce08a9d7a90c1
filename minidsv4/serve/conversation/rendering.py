"""From messages to the text that a model goes on from. Spec of the released encoding: structure, not words."""

from collections.abc import Mapping, Sequence

from minidsv4.serve.checks import shown
from minidsv4.serve.conversation.markers import (
    ASSISTANT,
    BOS,
    CALLS,
    END_CALLS,
    END_INVOKE,
    END_PARAMETER,
    END_RESULT,
    END_THINK,
    EOS,
    INVOKE,
    LATEST_REMINDER,
    PARAMETER,
    RESULT,
    TASKS,
    THINK,
    USER,
    as_json,
)
from minidsv4.serve.conversation.messages import MERGED, USER_ROLES, Call, Message, checked, checked_schemas
from minidsv4.serve.conversation.texts import TEXTS, Texts, added_text

BLANK_LINE = "\n\n"
TOOL_CHOICES = ("auto", "none")
AFTER_REPLY, AFTER_OPENING = "title", "action"  # tasks; the others stand after the user's text


def encode(
    messages: Sequence[Mapping],
    tools: Sequence[Mapping] | None = None,
    mode: str = "none",
    profile: str | None = None,
    *,
    tool_choice: str = "auto",
    response_format: Mapping | None = None,
    task: str | None = None,
    texts: Texts = TEXTS,
) -> str:
    """The text of a conversation; where it ends with a user's turn, the model writes the reply next.

    With tools the reasoning of every turn is replayed, so this text is a prefix of that of the conversation's
    continuation. Without, a model that thinks does not see its reasoning of before the last user's turn, so this text
    is no such prefix. In mode "none" no reasoning is replayed.

    messages         dicts as in `conversation.messages`
    tools            function schemas: dicts with name, description, parameters; they follow the system text
    mode             "none", or how hard to think: "high", "max", in profile "0731" also "low"
    profile          "0731" or "preview": which text a mode adds, right after BOS; that of `texts` where None
    tool_choice      "auto", or "none": the tools are not shown
    response_format  the JSON schema of the reply
    task             a quick instruction after the conversation: action, query, authority, domain, read_url, title
    texts            the free texts of instructions, `Texts.read(folder)` those of a checkpoint
    raises           ValueError, which names the message and the field, where anything cannot be encoded
    """
    if not isinstance(texts, Texts):
        raise ValueError(f"encode: texts = {shown(texts)} are none; give Texts(), or Texts.read(folder)")
    added = added_text(texts.profile if profile is None else profile, mode, texts)
    conversation = checked(messages)
    schemas = checked_schemas(tools)
    if tool_choice not in TOOL_CHOICES:
        raise ValueError(f"encode: tool_choice = {tool_choice!r} cannot be promised by a text; give auto or none")
    sections = _sections(schemas if tool_choice == "auto" else [], response_format, texts)
    conversation = _with_sections(conversation, sections)
    thinks = mode != "none"
    replay_from = _replay_from(conversation, bool(schemas)) if thinks else len(conversation)
    opening = BOS + (added + BLANK_LINE if added else "")
    ending = _ending(conversation[-1].role, THINK if thinks else END_THINK, task)
    return opening + _turns(conversation, replay_from) + ending


def _sections(schemas: list[str], response_format: Mapping | None, texts: Texts) -> str:
    """What follows the system text: the tools and the schema of the reply, each after a blank line."""
    found = ""
    if schemas:
        parts = ["## Tools", texts.tools_usage, texts.tools_schemas, "\n".join(schemas), texts.tools_closing]
        found += BLANK_LINE + BLANK_LINE.join(parts)
    if response_format is not None:
        if not isinstance(response_format, dict):
            raise ValueError(f"encode: response_format = {shown(response_format)} is no JSON schema; give a dict")
        schema = as_json("encode: response_format", response_format)
        found += BLANK_LINE + BLANK_LINE.join(["## Response Format", f"{texts.response_format}\n{schema}"])
    return found


def _with_sections(messages: list[Message], sections: str) -> list[Message]:
    """The messages, the first of which is a system or developer message that ends with the sections."""
    first = messages[0] if messages[0].role in ("system", "developer") else Message("system")
    rest = messages[1:] if first is messages[0] else messages
    return [first._replace(content=first.content + sections), *rest]


def _replay_from(messages: list[Message], has_tools: bool) -> int:
    """The first message whose reasoning is kept: with tools the first of all, else that after the last user's turn."""
    if has_tools:
        return 0
    return max((place for place, message in enumerate(messages) if message.role in USER_ROLES), default=0)


def _turns(messages: list[Message], replay_from: int) -> str:
    """Every turn, one after another, without anything between them."""
    parts = []
    before = ""
    for place, message in enumerate(messages):
        joined = message.role in MERGED and before in MERGED
        parts.append(_turn(message, joined, place >= replay_from))
        before = message.role
    return "".join(parts)


def _turn(message: Message, joined: bool, replay: bool) -> str:
    """One message with its marker; a blank line is in the marker's place where it is joined to the one before."""
    if message.role == "system":
        return message.content
    if message.role == "latest_reminder":
        return LATEST_REMINDER + message.content
    if message.role == "assistant":
        thought = THINK + message.reasoning if replay else ""
        return ASSISTANT + thought + END_THINK + message.content + calls_block(message.calls) + EOS
    content = RESULT + message.content + END_RESULT if message.role == "tool" else message.content
    return (BLANK_LINE if joined else USER) + content


def calls_block(calls: Sequence[Call]) -> str:
    """The calls of tools as they follow the content; nothing where there are none."""
    if not calls:
        return ""
    invokes = []
    for call in calls:
        parameters = "\n".join(_parameter(name, value) for name, value in call.arguments.items())
        invokes.append(f'{INVOKE}{call.name}">\n{parameters}\n{END_INVOKE}')
    return BLANK_LINE + "\n".join([CALLS, *invokes, END_CALLS])


def _parameter(name: str, value: object) -> str:
    """One argument: a str as it is, anything else as JSON."""
    is_text = isinstance(value, str)
    text = value if is_text else as_json(f"encode: {name}", value)
    return f'{PARAMETER}{name}" string="{"true" if is_text else "false"}">{text}{END_PARAMETER}'


def _ending(role: str, opener: str, task: str | None) -> str:
    """What follows the last message: the opening of the reply, or a task's token in its place."""
    if task not in (None, *TASKS):
        raise ValueError(f"encode: task = {task!r} is none; give one of {', '.join(TASKS)}, or None")
    if (task == AFTER_REPLY) != (role == "assistant") and task is not None:
        right = "an assistant's" if task == AFTER_REPLY else "a user's"
        raise ValueError(f"encode: task = {task!r} follows {right} message; the last one is of role {role}")
    if task is None:
        return "" if role == "assistant" else ASSISTANT + opener
    return ASSISTANT + opener + TASKS[task] if task == AFTER_OPENING else TASKS[task]
