"""From the text that a model writes to a message, piece by piece: any cut of the text gives the same message.

The reader is a small machine: a state says which markers may come next and where they lead, and what becomes of the
text before them. What could still become a marker is held back until it is one, or cannot be one any more; so neither
half a marker nor half a character is ever passed on.
"""

import codecs
import json
from collections.abc import Callable, Mapping
from typing import NamedTuple

from minidsv4.serve.checks import kind, shown
from minidsv4.serve.conversation.grammar import AFTER, BEGINNINGS, begins_marker, described
from minidsv4.serve.conversation.markers import (
    END_CALLS,
    END_INVOKE,
    RESERVED,
    TASKS,
    as_json,
    check_name,
    check_text,
    check_value,
)
from minidsv4.serve.conversation.texts import PROFILES

MODES = sorted({mode for modes in PROFILES.values() for mode in modes})
LONGEST = 48  # characters: more than any marker has


class Delta(NamedTuple):
    """What a piece of the text adds to the message.

    kind       "reasoning", "content"; "call" begins a call of the tool `text`; "argument" adds to the value of
               `parameter`, a text or JSON; "called" ends a call, and `text` is its arguments in JSON
    text       characters
    call       the call's place in the message, from 0
    parameter  its name
    """

    kind: str
    text: str
    call: int = -1
    parameter: str = ""


class StreamParser:
    """A reader of one reply: `feed` takes pieces and gives deltas, `finish` gives the message.

    mode    "none", or any mode that thinks: then the reply begins with reasoning, which `</think>` ends
    task    of a quick instruction: then the reply is content, whatever the mode
    raises  ValueError in `feed` and `finish`, which says what stands where; nothing is taken in after that
    """

    def __init__(self, mode: str = "none", task: str | None = None):
        if mode not in MODES:
            raise ValueError(f"parse: mode = {mode!r} is not known; give one of {', '.join(MODES)}")
        if task not in (None, *TASKS):
            raise ValueError(f"parse: task = {task!r} is none; give one of {', '.join(TASKS)}, or None")
        self.state = "content" if mode == "none" or task is not None else "reasoning"
        self._parts: dict[str, list[str]] = {"reasoning": [], "content": []}
        self.calls: list[dict] = []
        self.failed = ""
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._held, self._place = "", 0  # what is not yet read, and where it begins in the text
        self._value: list[str] = []  # of the name or argument that is being read
        self._parameter = ""
        self._deltas: list[Delta] = []

    # --- what a caller asks for ---

    def feed(self, piece: str | bytes) -> list[Delta]:
        """The deltas that a piece completes.

        piece   text, or bytes of UTF-8, cut anywhere
        raises  ValueError where the text is no reply; what came before is in `message()`
        """
        if self.failed:
            raise ValueError(self.failed)
        self._deltas = []
        try:
            self._held += self._characters(piece)
            while self._step():
                pass
        except ValueError as error:
            self.failed = str(error)
            raise
        return self._deltas

    def finish(self) -> dict:
        """The message, after the last piece.

        raises  ValueError where the reply is not whole: no EOS, no `</think>` while thinking, an open call
        """
        if self.failed:
            raise ValueError(self.failed)
        if self._utf8.getstate()[0]:
            raise ValueError(f"parse: character {self._end()}: the text ends within a character; give all of its bytes")
        if self.state != "end" or self._held:
            raise ValueError(f"parse: character {self._end()}: the text ends in {described(self.state)}")
        return self.message()

    def message(self) -> dict:
        """The message so far, with the calls that are whole; `encode` takes it."""
        whole = [call for call in self.calls if "id" in call]
        texts = {name: "".join(parts) for name, parts in self._parts.items()}
        return {"role": "assistant", "content": texts["content"], "reasoning": texts["reasoning"], "tool_calls": whole}

    # --- reading ---

    def _characters(self, piece: str | bytes) -> str:
        """The whole characters of a piece."""
        if isinstance(piece, bytes | bytearray):
            try:
                return self._utf8.decode(bytes(piece))
            except UnicodeDecodeError as error:
                raise ValueError(f"parse: character {self._end()}: {error.reason}; the bytes are no UTF-8") from None
        if not isinstance(piece, str):
            raise ValueError(f"parse: text = {shown(piece)} is {kind(piece)}; give a str or bytes")
        if self._utf8.getstate()[0]:
            raise ValueError(f"parse: character {self._end()}: text follows within a character; give all of its bytes")
        return check_text(f"parse: the piece at character {self._end()}", piece, ())

    def _step(self) -> bool:
        """Read up to the next marker; whether there was one."""
        ends = AFTER[self.state]
        for beginning in BEGINNINGS[self.state].finditer(self._held):
            place = beginning.start()
            marker = next((end for end in ends if self._held.startswith(end, place)), None)
            if marker is not None:
                self._take(place)
                self._follow(marker)
                return True
            if begins_marker(self.state, self._held[place : place + LONGEST]):
                self._take(place)
                return False
            self._refuse_reserved(place)
        self._take(len(self._held))
        return False

    def _refuse_reserved(self, place: int) -> None:
        """Refuse a marker that cannot stand here, and what begins like one."""
        if any(self._held.startswith(marker, place) for marker in RESERVED):
            self._take(place)
            raise ValueError(
                f"parse: character {self._place}: {self._held[:24]!r} cannot stand in {described(self.state)}"
            )

    def _take(self, n: int) -> None:
        """Pass on the first n characters that were held."""
        text, self._held = self._held[:n], self._held[n:]
        if text:
            self._text(text)
        self._place += n

    def _text(self, text: str) -> None:
        """Plain text, in the state that the reader is in."""
        if self.state in ("reasoning", "content"):
            self._parts[self.state].append(text)
            self._deltas.append(Delta(self.state, text))
        elif self.state in ("text", "json"):
            self._value.append(text)
            self._deltas.append(Delta("argument", text, len(self.calls) - 1, self._parameter))
        elif self.state in ("name", "parameter"):
            self._value.append(text)
        else:
            self._between(text)

    def _between(self, text: str) -> None:
        """Text between markers: line breaks within the block of calls, nothing after it."""
        wrong = text.lstrip("\n") if self.state in ("calls", "invoke") else text
        self._place += len(text) - len(wrong)
        if wrong:
            raise ValueError(self._misplaced(wrong))
        self._place -= len(text)

    def _follow(self, marker: str) -> None:
        """Do what a marker says, and go on to the state that it leads to."""
        handler = _ENDINGS.get((self.state, marker)) or _ENDINGS.get((self.state, ""))
        if handler is not None:
            handler(self, f"parse: character {self._place}")
        self.state = AFTER[self.state][marker]
        self._held = self._held[len(marker) :]
        self._place += len(marker)

    def _misplaced(self, text: str) -> str:
        """What is said of a text that cannot stand where it does."""
        return f"parse: character {self._place}: {text[:24]!r} cannot stand in {described(self.state)}"

    def _end(self) -> int:
        """Where the text ends that was read so far."""
        return self._place + len(self._held)

    # --- calls ---

    def _begin_call(self, where: str) -> None:
        """A tool's name is complete."""
        self.calls.append({"name": check_name(f"{where}: a tool's name", self._value_read()), "arguments": {}})
        self._deltas.append(Delta("call", self.calls[-1]["name"], len(self.calls) - 1))

    def _begin_parameter(self, where: str) -> None:
        """A parameter's name is complete."""
        self._parameter = check_name(f"{where}: a parameter's name", self._value_read())
        call = self.calls[-1]
        if self._parameter in call["arguments"]:
            raise ValueError(
                f"{where}: parameter {self._parameter!r} of {call['name']!r} is there already; one is allowed"
            )

    def _end_text(self, where: str) -> None:
        """A parameter's text is complete."""
        self.calls[-1]["arguments"][self._parameter] = self._value_read()

    def _end_json(self, where: str) -> None:
        """A parameter's JSON is complete."""
        text = self._value_read()
        try:
            value = json.loads(text, object_pairs_hook=_without_duplicates)
        except (ValueError, RecursionError) as error:
            name = self.calls[-1]["name"]
            raise ValueError(
                f"{where}: parameter {self._parameter!r} of {name!r} = {shown(text)} is no JSON ({error})"
            ) from None
        check_value(f"{where}: parameter {self._parameter!r}", value)
        self.calls[-1]["arguments"][self._parameter] = value

    def _end_call(self, where: str) -> None:
        """A call is complete: only now it has an id."""
        call = self.calls[-1]
        self.calls[-1] = {"id": f"call_{len(self.calls) - 1}", **call}
        arguments = as_json(f"{where}: arguments", call["arguments"])
        self._deltas.append(Delta("called", arguments, len(self.calls) - 1))

    def _end_calls(self, where: str) -> None:
        """A block of calls is complete."""
        if not self.calls:
            raise ValueError(f"{where}: the block of tool calls has none; leave it out")

    def _value_read(self) -> str:
        """The name or value that was read; the next one begins empty."""
        text = "".join(self._value)
        self._value = []
        return text


def _without_duplicates(pairs: list[tuple]) -> dict:
    """A JSON object, whose names are all different."""
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("a name stands twice in an object")
    return dict(pairs)


_ENDINGS: Mapping[tuple[str, str], Callable[[StreamParser, str], None]] = {  # of a state, by one marker or any
    ("name", ""): StreamParser._begin_call,
    ("parameter", ""): StreamParser._begin_parameter,
    ("text", ""): StreamParser._end_text,
    ("json", ""): StreamParser._end_json,
    ("invoke", END_INVOKE): StreamParser._end_call,
    ("calls", END_CALLS): StreamParser._end_calls,
}


def parse(text: str | bytes, mode: str = "none", task: str | None = None) -> dict:
    """The message that a reply is: `{"role", "content", "reasoning", "tool_calls"}`, which `encode` takes.

    text    what the model wrote after the end of `encode`'s text, up to EOS, which belongs to it
    mode    "none", or any mode that thinks: then `</think>` ends the reasoning, and is required
    task    the quick instruction that was asked for: its output has no reasoning
    raises  ValueError, which says what stands where: no EOS or text after it, a marker that cannot stand there, a
            parameter given twice, a value that is no JSON
    """
    reader = StreamParser(mode, task)
    reader.feed(text)
    return reader.finish()
