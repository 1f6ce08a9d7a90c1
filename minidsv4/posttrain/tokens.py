"""The tokenizer of the post-trained models: bytes, the words that every conversation repeats, and the chat markers."""

import functools
import re

from minidsv4.posttrain.tasks import MODES, TASKS
from minidsv4.posttrain.tool_calls import answered, text_of
from minidsv4.serve.chat_format import MARKERS, chat_tokenizer
from minidsv4.train.tokenizer import Tokenizer

VOCAB_SIZE = 424


@functools.cache
def task_tokenizer() -> Tokenizer:
    """The same on every machine; a digit, or a program's instruction, is always a token of its own."""
    marked = "|".join(map(re.escape, MARKERS))
    texts = [*TASKS, *(text_of(answered("1*1"), mode) for mode in MODES)]
    plain = [re.sub(r"\d", "", piece) for text in texts for piece in re.split(marked, text)]
    return chat_tokenizer(Tokenizer.train(plain * 9, VOCAB_SIZE - len(MARKERS) + 2))
