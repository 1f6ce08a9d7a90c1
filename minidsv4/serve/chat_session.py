"""A conversation with a model: messages, the mode, the tools that run, and the cache that is kept between turns."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from minidsv4.model.model import Model
from minidsv4.serve import checks
from minidsv4.serve.calculator import CALCULATE, calculate
from minidsv4.serve.chat_format import MARKERS, TEXTS, Delta, StreamParser, Texts, encode
from minidsv4.serve.conversation.texts import added_text
from minidsv4.serve.detokenize import IncrementalDecoder
from minidsv4.serve.kept_cache import KeptCache
from minidsv4.serve.sampling import probabilities, sample
from minidsv4.train.tokenizer import Tokenizer

TOOLS: dict[str, tuple[dict, Callable[..., str]]] = {"calculate": (CALCULATE, calculate)}  # schema, and what runs
MOST_ROUNDS = 5  # of calls and results within one turn


class Sampling(NamedTuple):
    """How a reply is drawn: at most so many tokens, temperature, top-p, seed."""

    n_tokens: int = 512
    temperature: float = 0.8
    top_p: float = 1.0
    seed: int = 0


SAMPLING = Sampling()


class Session:
    """A conversation: `say` adds a user's message and lets the model answer, with calls of tools in between.

    messages  dicts, as `chat_format.encode` takes them
    raises    ValueError for a tokenizer without the markers, or of another model
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        sampling: Sampling = SAMPLING,
        texts: Texts = TEXTS,
    ):
        self.model, self.tokenizer = checks.check_model(model), check_chat_tokenizer(tokenizer, model)
        checks.check_weights(model)
        self.sampling, self.texts = sampling, texts
        self.mode, self.with_tools = "none", False
        self.messages: list[dict] = []
        self.kept = KeptCache(model)
        self._generator = torch.Generator().manual_seed(sampling.seed)
        self._spelt: tuple[str, list[int]] = ("", [])  # the text that the model has seen and written, and its ids

    def say(self, text: str, show: Callable[[Delta], object], stopped: Callable[[], bool]) -> str:
        """Add a user's message and the model's answer to it.

        show     called with each piece of the reply, and with the result of a call (kind "result")
        stopped  asked before every token; what was written till then stays
        returns  why the reply is not whole, in a sentence; "" where it is
        raises   ValueError for a text that cannot be a message; the conversation is then as it was
        """
        before = list(self.messages)
        self.messages.append({"role": "user", "content": text})
        try:
            return self._turn(show, stopped)
        except ValueError:
            self.messages = before
            raise

    def _turn(self, show: Callable[[Delta], object], stopped: Callable[[], bool]) -> str:
        """Replies, with the results of the calls in each, until one has no calls."""
        for _ in range(MOST_ROUNDS):
            ending = self._reply(show, stopped)
            calls = self.messages[-1].get("tool_calls")
            if ending or not calls:
                return ending
            for call in calls:
                self._run(call, show)
        return f"The model called tools {MOST_ROUNDS} times and did not answer."

    def resume(self, messages: object, mode: str, with_tools: bool) -> None:
        """Go on from an earlier conversation.

        raises  ValueError where it is none; the session is then as it was
        """
        if not isinstance(with_tools, bool):
            raise ValueError(f"tools = {checks.shown(with_tools)} is no switch; it is true or false")
        before = self.mode, self.with_tools
        try:
            self.set_mode(mode)
            self.with_tools = with_tools
            if messages != []:
                self._text(messages)  # type: ignore[arg-type]  # it checks
        except ValueError:
            self.mode, self.with_tools = before
            raise
        self.messages = list(messages)  # type: ignore[call-overload]  # a list of messages by now

    def set_mode(self, mode: str) -> None:
        """Think in another way from the next reply on.

        raises  ValueError for a mode that the profile does not have
        """
        added_text(self.texts.profile, mode, self.texts)
        self.mode = mode

    def clear(self) -> None:
        """Forget the conversation and its cache."""
        self.messages = []
        self.kept.clear()

    def _text(self, messages: list[dict]) -> str:
        """The text of a conversation in the session's mode."""
        tools = [schema for schema, _ in TOOLS.values()] if self.with_tools else None
        return encode(messages, tools, self.mode, texts=self.texts)

    def _prompt_ids(self, text: str) -> list[int]:
        """Token ids of a text; as far as the model wrote it, those that it wrote."""
        spelt, ids = self._spelt
        if spelt and text.startswith(spelt):
            return ids + self.tokenizer.encode_marked(text[len(spelt) :])
        return self.tokenizer.encode_marked(text)

    def _reply(self, show: Callable[[Delta], object], stopped: Callable[[], bool]) -> str:
        """One reply of the model, added to the messages as far as it came; why it is not whole, or ""."""
        text = self._text(self.messages)
        ids = self._prompt_ids(text)
        checks.check_context(len(ids), self.sampling.n_tokens, self.model)
        reader, decoder = StreamParser(self.mode), IncrementalDecoder(self.tokenizer, markers=True)
        logits_V = self.kept.read(ids, stopped)
        ending = "Stopped."
        written: list[int] = []
        while logits_V is not None and not stopped():
            if len(written) == self.sampling.n_tokens:
                ending = f"Cut after {len(written)} tokens."
                break
            token = sample(probabilities(logits_V, self.sampling.temperature, self.sampling.top_p), self._generator)
            written.append(token)
            piece = decoder.step(token)
            text += piece
            ending = self._taken(reader, piece, show)
            if ending or token == self.tokenizer.eos_id:
                break
            ending = "Stopped."
            logits_V = self.kept.append([token])
        self._spelt = (text, ids + written) if not ending else ("", [])
        message = reader.message()
        if not ending or message["content"] or message["reasoning"]:
            self.messages.append(message)
        return ending

    @staticmethod
    def _taken(reader: StreamParser, piece: str, show: Callable[[Delta], object]) -> str:
        """Show what a piece of a reply says; what is wrong with it, or ""."""
        try:
            for delta in reader.feed(piece):
                show(delta)
        except ValueError as error:
            return f"The model wrote what is no reply ({error})."
        return ""

    def _run(self, call: dict, show: Callable[[Delta], object]) -> None:
        """Run a call, and add its result or what is wrong with it."""
        try:
            if call["name"] not in TOOLS or not self.with_tools:
                raise ValueError(f"there is no tool {call['name']!r}")
            result = TOOLS[call["name"]][1](**call["arguments"])
        except (ValueError, TypeError) as error:
            result = f"error: {error}"
        show(Delta("result", result))
        self.messages.append({"role": "tool", "content": result, "tool_call_id": call["id"]})


def check_chat_tokenizer(tokenizer: Tokenizer, model: Model) -> Tokenizer:
    """The tokenizer, once each marker is one of its tokens and the model has a row for every token."""
    missing = [marker for marker in MARKERS if marker not in tokenizer.markers]
    if missing:
        raise ValueError(
            f"chat: the tokenizer has no token {missing[0]!r}, so its model was not trained to chat; give the "
            "folder of one that was"
        )
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"chat: tokenizer has {len(tokenizer)} tokens and the model a vocab_size of {model.config.vocab_size}; "
            "give the tokenizer that the model was trained with"
        )
    return tokenizer
