"""The chat format: `encode` makes the text of a conversation, `parse` the message of a reply; `StreamParser` streams.

    text = encode(messages, tools, mode="high")
    message = parse(reply, mode="high")  # {"role": "assistant", "content": ..., "reasoning": ..., "tool_calls": [...]}

The structure is the released one: roles, three ways of thinking, calls of tools in DSML, results in the user's turn,
quick instructions. The words of instructions are this package's own (`Texts`).
"""

from minidsv4.serve.checks import shown
from minidsv4.serve.conversation.markers import MARKERS
from minidsv4.serve.conversation.parsing import Delta, StreamParser, parse
from minidsv4.serve.conversation.rendering import encode
from minidsv4.serve.conversation.texts import PROFILES, TEXTS, TEXTS_FILE, Texts
from minidsv4.train.ship import pretrained_tokenizer
from minidsv4.train.tokenizer import Tokenizer

__all__ = [
    "MARKERS",
    "PROFILES",
    "TEXTS",
    "TEXTS_FILE",
    "Delta",
    "StreamParser",
    "Texts",
    "chat_tokenizer",
    "encode",
    "parse",
]


def chat_tokenizer(base: Tokenizer | None = None) -> Tokenizer:
    """A tokenizer whose special tokens are the markers of the chat format; all other ids are those of `base`.

    BOS and EOS keep their ids and take the names of the format, the other markers follow the vocabulary in the order
    of `MARKERS`. `encode_marked` reads the text of a conversation, `decode_marked` writes it.

    base    the shipped one where None
    raises  ValueError for what is no tokenizer
    """
    if base is not None and not isinstance(base, Tokenizer):
        raise ValueError(f"chat_tokenizer: base = {shown(base)} is no Tokenizer; give one, or None for the shipped one")
    return (pretrained_tokenizer() if base is None else base).with_markers(MARKERS)
