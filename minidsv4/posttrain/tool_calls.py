"""Demonstrations of a tool: what is asked for is left to the calculator, and its result is the answer.

Spec of the chat format for calls and results. There is nothing to reason about, so the reasoning of these is empty.
"""

import random

from minidsv4.posttrain.tasks import MODES, TASKS, TEXTS, below, demonstration, problem
from minidsv4.serve.calculator import CALCULATE, calculate
from minidsv4.serve.chat_format import encode

TOOLS = [CALCULATE]
SIGNS = "*+-"


def expression(generator: random.Random) -> str:
    """Two whole numbers of one to three digits with a sign between them."""
    left, right = (below(generator, 10 ** (1 + below(generator, 3))) for _ in range(2))
    return f"{left}{SIGNS[below(generator, len(SIGNS))]}{right}"


def called(asked: str) -> list[dict]:
    """A user's question and the assistant's call of the calculator."""
    call = {"name": CALCULATE["name"], "arguments": {"expression": asked}}
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": "", "tool_calls": [call]}]


def answered(asked: str) -> list[dict]:
    """The same with the calculator's result, and the answer."""
    result = calculate(asked)
    given = {"role": "tool", "content": result, "tool_call_id": "call_0"}
    return [*called(asked), given, {"role": "assistant", "content": result}]


def text_of(messages: list[dict], mode: str) -> str:
    """A conversation in which the calculator is offered."""
    return encode(messages, TOOLS, mode, texts=TEXTS)


def tool_demonstration(generator: random.Random) -> tuple[str, str]:
    """A prompt with the calculator offered, and the reply: a call, an answer from a result, or a problem's reply."""
    mode, kind = MODES[below(generator, len(MODES))], below(generator, 4)
    if kind == 3:
        given = problem(generator, [*TASKS][below(generator, len(TASKS))], mode)
        prompt = text_of([{"role": "user", "content": given.question()}], mode)
        return prompt, demonstration(generator, given)
    asked = expression(generator)
    messages = answered(asked) if kind == 2 else called(asked)
    prompt = text_of(messages[:-1], mode)
    return prompt, text_of(messages, mode)[len(prompt) :]
