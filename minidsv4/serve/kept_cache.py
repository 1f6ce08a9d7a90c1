"""The cache of a text that changes: what the new text shares with the old one is not computed again.

A conversation grows at its end, and sometimes changes before: a turn's reasoning is dropped, a mode adds a text. The
cache goes back to the last place that was marked before the first difference.

V vocabulary.
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minidsv4.model.cache import Snapshot
from minidsv4.model.model import Model

CHUNK = 256  # tokens read between two looks at whether to stop
MOST_MARKS = 16  # places to go back to; each holds a window of every layer


class KeptCache:
    """A cache, the token ids in it, and how many of those asked for were there already.

    n_asked, n_hit  tokens of all texts that were read, and those of them that the cache had
    last            the same of the last text
    """

    def __init__(self, model: Model):
        self.model = model
        self.n_asked, self.n_hit = 0, 0
        self.last = (0, 0)
        self.clear()

    def clear(self) -> None:
        """Forget every token; the counts stay."""
        self.cache = self.model.new_cache()
        self.ids: list[int] = []
        self.marks: list[Snapshot] = [self.cache.snapshot()]

    def read(self, ids: Sequence[int], stopped: Callable[[], bool] = lambda: False) -> Tensor | None:
        """The logits [V] after these tokens; None where `stopped()` said so before all were read.

        The end of each chunk is marked, and so is the place before the last token: there a reply opens, with thinking
        or without.
        """
        ids = list(ids)
        self._go_back(n_common(self.ids, ids[:-1]))
        self.last = (len(ids), len(self.ids))
        self.n_asked += len(ids)
        self.n_hit += len(self.ids)
        for start in range(len(self.ids), len(ids) - 1, CHUNK):
            if stopped():
                return None
            self.append(ids[start : min(start + CHUNK, len(ids) - 1)])
            self.marks.append(self.cache.snapshot())
        del self.marks[1:-MOST_MARKS]
        return self.append(ids[-1:])

    @torch.inference_mode()
    def append(self, ids: list[int]) -> Tensor:
        """Take tokens in; the logits [V] after the last one."""
        ids_BT = torch.tensor([ids], device=self.model.embed.weight.device)
        logits_V = self.model(ids_BT, cache=self.cache, last=1)[0, -1]
        self.ids += ids
        return logits_V

    def _go_back(self, n_tokens: int) -> None:
        """Return to the last mark at or before so many tokens, unless that is where the cache is."""
        if self.cache.n_tokens != len(self.ids):  # an interruption fell between the two
            self.clear()
        if n_tokens >= len(self.ids):
            return
        while self.marks[-1].n_tokens > n_tokens:
            self.marks.pop()
        self.cache.restore(self.marks[-1])
        del self.ids[self.marks[-1].n_tokens :]


def n_common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many items two sequences share from their beginning on."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second))
    return sum(1 for _ in pairs)
