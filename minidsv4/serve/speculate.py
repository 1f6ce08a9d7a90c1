"""Speculative decoding: the MTP block drafts tokens, one pass of the model checks them, rejected ones leave no trace.

B batch, T tokens, N streams, D width, V vocabulary; here B = 1. Report section 2.1; the block is trained as in
DeepSeek-V3. Drafts after the first are chained: the block reads its own streams in place of the model's. The rule that
keeps or replaces a draft is that of speculative sampling (Leviathan et al., Chen et al., 2023), so what is written has
exactly the model's distribution.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minidsv4.serve.draw import draw, probabilities

CHUNK = 2048  # tokens of a prompt taken in at once
MOST_WAITING = 8  # certain tokens that a pass repeats after rejections, before they get a pass of their own


@dataclass
class Speculation:
    """How far to draft, and what it gained so far; the pass that takes in a prompt is not counted.

    depth      drafts a round, from 1; the first comes from the model's streams, each later one from the draft before
    rounds     passes of the model that checked drafts
    catch_ups  passes that only took in certain tokens, after rejections
    kept       kept[i]: rounds in which draft i + 1 was kept, and so all before it
    raises     ValueError for a depth below 1
    """

    depth: int = 1
    rounds: int = 0
    catch_ups: int = 0
    kept: list[int] = field(default_factory=list)

    def __post_init__(self):
        if not isinstance(self.depth, int) or self.depth < 1:
            raise ValueError(f"speculate: depth = {self.depth!r} drafts nothing; it counts drafted tokens, from 1")
        self.depth = int(self.depth)  # True is 1
        self.kept = self.kept or [0] * self.depth

    @property
    def drafted(self) -> int:
        """Tokens that were guessed."""
        return self.rounds * self.depth

    @property
    def accepted(self) -> int:
        """Guesses that were kept."""
        return sum(self.kept)

    @property
    def passes(self) -> int:
        """Passes of the model: what decoding one by one needs one of for each token."""
        return self.rounds + self.catch_ups

    @property
    def tokens_per_pass(self) -> float:
        """Every round writes its kept drafts and one token more."""
        return (self.accepted + self.rounds) / max(1, self.passes)

    def count(self, n_kept: int) -> None:
        """One more round, that kept so many drafts."""
        self.rounds += 1
        self.kept = [n + (place < n_kept) for place, n in enumerate(self.kept)]


class Text(NamedTuple):
    """Where a text stands between two rounds.

    waiting_BT      certain tokens that the cache has not taken in; the newest is one of them, always
    unread_BTND     the model's streams of positions that the MTP block has not read
    next_BT         the tokens one place after those positions; they end with the newest token
    """

    waiting_BT: Tensor
    unread_BTND: Tensor
    next_BT: Tensor


class Speculator:
    """A model that writes one text, several tokens a round.

    speculation  depth and counts
    chance       for draws; a round takes up to 2 numbers a draft and one more
    cache        the model's: a prefix of the text, all but what waits
    drafts       the MTP block's: of every position that it has read from the model's streams
    raises       ValueError where the model has no MTP block
    """

    def __init__(
        self, model: nn.Module, speculation: Speculation, temperature: float, top_p: float, chance: torch.Generator
    ):
        self.model, self.speculation, self.temperature, self.top_p = model, speculation, temperature, top_p
        self.chance, self.text = chance, None
        self.cache, self.drafts = model.new_cache(), model.new_draft_cache()

    def write(self, ids_T: Tensor) -> Iterator[int]:
        """Take in a prompt and go on from it without end."""
        yield self.begin(ids_T)
        while True:
            yield from self.round()

    @torch.inference_mode()
    def begin(self, ids_T: Tensor) -> int:
        """Take in a prompt; returns the first token after it."""
        with self.all_or_nothing():
            for start in range(0, len(ids_T), CHUNK):
                ids_BT, next_BT = ids_T[None, start : start + CHUNK], ids_T[None, start + 1 : start + CHUNK + 1]
                streams_BTND = self.model.streams(ids_BT, self.cache)
                if next_BT.shape[1]:
                    self.model.draft(streams_BTND[:, : next_BT.shape[1]], next_BT, self.drafts)
            token = draw(self.shares(self.model.logits(streams_BTND[:, -1:]))[0], self.chance)
            newest_BT = ids_T.new_tensor([[token]])
            self.text = Text(newest_BT, streams_BTND[:, -1:], newest_BT)
        return token

    @torch.inference_mode()
    def round(self) -> list[int]:
        """Draft, check in one pass, keep what is right; returns the tokens that are now certain, 1 to depth + 1."""
        with self.all_or_nothing():
            if self.text.waiting_BT.shape[1] > MOST_WAITING:
                self.catch_up()
            guesses, guessed_TV = self.draft()
            waiting_BT, before = self.text.waiting_BT, self.cache.mark()
            ids_BT = torch.cat([waiting_BT, waiting_BT.new_tensor([guesses])], dim=1)
            streams_BTND = self.model.streams(ids_BT, self.cache)[:, waiting_BT.shape[1] - 1 :]
            tokens = judge(self.shares(self.model.logits(streams_BTND)), guessed_TV, guesses, self.chance)
            next_BT = waiting_BT.new_tensor([tokens])
            if len(tokens) > len(guesses):
                waiting_BT = next_BT[:, -1:]  # every draft was right: the cache holds what it should
            else:
                self.cache.rewind(before)
                waiting_BT = torch.cat([waiting_BT, next_BT], dim=1)
            self.text = Text(waiting_BT, streams_BTND[:, : len(tokens)], next_BT)
            self.speculation.count(len(tokens) - 1)
        return tokens

    def draft(self) -> tuple[list[int], Tensor]:
        """`depth` guesses, and the probabilities [depth, V] that each was drawn from; the chain is then forgotten."""
        streams_BTND = self.model.draft(self.text.unread_BTND, self.text.next_BT, self.drafts)[:, -1:]
        guesses, shares, before = [], [], self.drafts.mark()
        for place in range(self.speculation.depth):
            if place:  # the block's own streams and guess take the places of the model's streams and the next token
                guess_BT = self.text.next_BT.new_tensor([guesses[-1:]])
                streams_BTND = self.model.draft(streams_BTND, guess_BT, self.drafts)
            shares.append(self.shares(self.model.logits(streams_BTND, of=self.model.mtp[0]))[0])
            guesses.append(draw(shares[-1], self.chance))
        self.drafts.rewind(before)
        return guesses, torch.stack(shares)

    @torch.inference_mode()
    def catch_up(self) -> None:
        """Take in all that is certain but the newest token: both caches are then as if nothing had been drafted."""
        text = self.text
        with self.all_or_nothing():
            if text.waiting_BT.shape[1] > 1:
                self.model.streams(text.waiting_BT[:, :-1], self.cache)
                self.speculation.catch_ups += 1
            if text.next_BT.shape[1] > 1:
                self.model.draft(text.unread_BTND[:, :-1], text.next_BT[:, :-1], self.drafts)
            self.text = Text(text.waiting_BT[:, -1:], text.unread_BTND[:, -1:], text.next_BT[:, -1:])

    def shares(self, logits_BTV: Tensor) -> Tensor:
        """What each next token is drawn from, [T, V] in float64."""
        return torch.stack([probabilities(logits_V, self.temperature, self.top_p) for logits_V in logits_BTV[0]])

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Whatever goes wrong inside, Ctrl-C included: caches, text, counts and random numbers are then as before."""
        text, counts, numbers = self.text, dict(vars(self.speculation)), self.chance.get_state()
        try:
            with self.cache.all_or_nothing(), self.drafts.all_or_nothing():
                yield
        except BaseException:
            self.text = text
            vars(self.speculation).update(counts)
            self.chance.set_state(numbers)
            raise


def judge(wanted_TV: Tensor, guessed_TV: Tensor, guesses: Sequence[int], chance: torch.Generator) -> list[int]:
    """Keep guess after guess with probability `min(1, wanted / guessed)`; where one fails, draw what was missing.

    A token that the drafts say too often is kept as often as wanted; the rest comes from `max(0, wanted - guessed)`,
    the tokens that they say too rarely. So each token has exactly its wanted probability.

    wanted_TV   the model's probabilities at the place of each guess and of one token more [depth + 1, V]
    guessed_TV  what the guesses were drawn from [depth, V]
    returns     the guesses kept and one token drawn by the model: 1 to depth + 1
    """
    for place, (guess, wanted_V, guessed_V) in enumerate(zip(guesses, wanted_TV, guessed_TV)):
        if torch.rand((), generator=chance, dtype=torch.float64) * guessed_V[guess] >= wanted_V[guess]:
            missing_V = (wanted_V - guessed_V).clamp(min=0)
            return [*guesses[:place], draw(missing_V if missing_V.any() else wanted_V, chance)]
    return [*guesses, draw(wanted_TV[len(guesses)], chance)]


def expected_tokens(acceptance: float, depth: int) -> float:
    """Tokens a round, `1 + a + a^2 + ... + a^depth`, where every draft is kept with probability a, others aside."""
    return sum(acceptance**place for place in range(depth + 1))
