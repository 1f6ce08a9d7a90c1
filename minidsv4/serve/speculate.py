"""Speculative decoding: the MTP block drafts tokens, one pass of the model verifies them, rejected ones leave no trace.

B batch, T tokens, N streams, D width, V vocabulary; here B = 1. Report section 2.1; the block is trained as in
DeepSeek-V3. Drafts after the first are chained: the block reads its own streams in place of the model's. A draft is
accepted or replaced by the rule of speculative sampling (Leviathan et al., Chen et al., 2023), so what is written has
exactly the model's distribution.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from minidsv4.model.model import Model
from minidsv4.serve.checks import shown
from minidsv4.serve.sampling import probabilities, sample

CHUNK = 2048  # tokens of a prompt taken in at once
MAX_DEPTH = 64  # no chain of drafts is accepted as far
MAX_PENDING = 8  # pending tokens that a pass of verification repeats; more get a pass of their own


@dataclass
class Speculation:
    """The number of drafts a round, and counts of what they gained; the pass of the prompt is not counted.

    depth      drafts a round, from 1; the first comes from the model's streams, each later one from the draft before
    rounds     passes of the model that verified drafts
    catch_ups  passes that only took in pending tokens
    kept       kept[i]: rounds in which draft i + 1 was accepted, and so all before it
    raises     ValueError for a depth that is no integer in 1 .. `MAX_DEPTH`
    """

    depth: int = 1
    rounds: int = 0
    catch_ups: int = 0
    kept: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not isinstance(self.depth, int) or self.depth < 1:
            raise ValueError(f"speculate: depth = {shown(self.depth)} drafts nothing; it counts drafted tokens, from 1")
        if self.depth > MAX_DEPTH:
            raise ValueError(f"speculate: depth = {shown(self.depth)} is too many drafts; give 1 .. {MAX_DEPTH}")
        self.depth = int(self.depth)  # True is 1
        self.kept = self.kept or [0] * self.depth

    @property
    def drafted(self) -> int:
        """Number of tokens that were drafted."""
        return self.rounds * self.depth

    @property
    def accepted(self) -> int:
        """Number of drafts that were accepted."""
        return sum(self.kept)

    @property
    def passes(self) -> int:
        """Number of passes of the model; decoding one by one needs one for each token."""
        return self.rounds + self.catch_ups

    @property
    def tokens_per_pass(self) -> float:
        """Mean number of tokens that a pass writes: a round writes its accepted drafts and one token more."""
        return (self.accepted + self.rounds) / max(1, self.passes)

    def count(self, n_kept: int) -> None:
        """Count one more round, which accepted `n_kept` drafts."""
        self.rounds += 1
        self.kept = [n + (number < n_kept) for number, n in enumerate(self.kept)]


class State(NamedTuple):
    """The state of a text between two rounds.

    pending_BT   tokens of the text that the model's cache does not hold; the newest token is always one of them
    unread_BTND  the model's streams of positions that the MTP block has not read
    next_BT      the tokens one position after those; they end with the newest token
    """

    pending_BT: Tensor
    unread_BTND: Tensor
    next_BT: Tensor


class Speculator:
    """Speculative decoding of one text, several tokens a round.

    speculation  depth and counts
    generator    random numbers; a round takes up to 2 a draft and one more
    cache        the model's: a prefix of the text, all but the pending tokens
    draft_cache  the MTP block's: every position that it has read from the model's streams
    cache_precision  of both, as in `generate`
    raises       ValueError where the model has no MTP block
    """

    def __init__(
        self,
        model: Model,
        speculation: Speculation,
        temperature: float,
        top_p: float,
        generator: torch.Generator,
        cache_precision: str = "model",
    ):
        self.model = model
        self.speculation = speculation
        self.temperature = temperature
        self.top_p = top_p
        self.generator = generator
        self.state: State | None = None
        self.cache = model.new_cache(precision=cache_precision)
        self.draft_cache = model.new_draft_cache(precision=cache_precision)

    def write(self, ids_T: Tensor) -> Iterator[int]:
        """Tokens after a prompt, without end."""
        yield self.begin(ids_T)
        while True:
            yield from self.round()

    @torch.inference_mode()
    def begin(self, ids_T: Tensor) -> int:
        """The first token after a prompt, which both caches take in."""
        with self.all_or_nothing():
            for start in range(0, len(ids_T), CHUNK):
                ids_BT = ids_T[None, start : start + CHUNK]
                next_BT = ids_T[None, start + 1 : start + CHUNK + 1]
                streams_BTND = self.model.streams(ids_BT, self.cache)
                if next_BT.shape[1]:
                    self.model.draft(streams_BTND[:, : next_BT.shape[1]], next_BT, self.draft_cache)
            token = sample(self.probabilities(self.model.logits(streams_BTND[:, -1:]))[0], self.generator)
            newest_BT = ids_T.new_tensor([[token]])
            self.state = State(newest_BT, streams_BTND[:, -1:], newest_BT)
        return token

    @torch.inference_mode()
    def round(self) -> list[int]:
        """The next 1 to depth + 1 tokens: draft, verify in one pass, roll back what is rejected."""
        with self.all_or_nothing():
            if self.begun().pending_BT.shape[1] > MAX_PENDING:
                self.catch_up()
            drafts, draft_TV = self.draft()
            pending_BT = self.begun().pending_BT
            before = self.cache.snapshot()
            ids_BT = torch.cat([pending_BT, pending_BT.new_tensor([drafts])], dim=1)
            streams_BTND = self.model.streams(ids_BT, self.cache)[:, pending_BT.shape[1] - 1 :]
            target_TV = self.probabilities(self.model.logits(streams_BTND))
            tokens = verify(target_TV, draft_TV, drafts, self.generator)
            next_BT = pending_BT.new_tensor([tokens])
            if len(tokens) > len(drafts):
                pending_BT = next_BT[:, -1:]  # every draft was accepted: the cache holds what it should
            else:
                self.cache.restore(before)
                pending_BT = torch.cat([pending_BT, next_BT], dim=1)
            self.state = State(pending_BT, streams_BTND[:, : len(tokens)], next_BT)
            self.speculation.count(len(tokens) - 1)
        return tokens

    def draft(self) -> tuple[list[int], Tensor]:
        """`depth` drafts, and the probabilities [depth, V] that each was sampled from; the chain is rolled back."""
        state = self.begun()
        streams_BTND = self.model.draft(state.unread_BTND, state.next_BT, self.draft_cache)[:, -1:]
        before = self.draft_cache.snapshot()
        drafts: list[int] = []
        probs: list[Tensor] = []
        for number in range(self.speculation.depth):
            if number > 0:  # the block's own streams and draft stand in for the model's streams and the next token
                draft_BT = state.next_BT.new_tensor([drafts[-1:]])
                streams_BTND = self.model.draft(streams_BTND, draft_BT, self.draft_cache)
            probs.append(self.probabilities(self.model.logits(streams_BTND, of=self.model.mtp_block))[0])
            drafts.append(sample(probs[-1], self.generator))
        self.draft_cache.restore(before)
        return drafts, torch.stack(probs)

    @torch.inference_mode()
    def catch_up(self) -> None:
        """Take in all pending tokens but the newest: both caches are then as if nothing had been drafted."""
        state = self.begun()
        with self.all_or_nothing():
            if state.pending_BT.shape[1] > 1:
                self.model.streams(state.pending_BT[:, :-1], self.cache)
                self.speculation.catch_ups += 1
            if state.next_BT.shape[1] > 1:
                self.model.draft(state.unread_BTND[:, :-1], state.next_BT[:, :-1], self.draft_cache)
            self.state = State(state.pending_BT[:, -1:], state.unread_BTND[:, -1:], state.next_BT[:, -1:])

    def begun(self) -> State:
        """The state; ValueError before `begin`."""
        if self.state is None:
            raise ValueError("Speculator: state = None, no prompt was taken in; call begin(ids_T) first")
        return self.state

    def probabilities(self, logits_BTV: Tensor) -> Tensor:
        """Probabilities of each next token [T, V], in float64."""
        return torch.stack([probabilities(logits_V, self.temperature, self.top_p) for logits_V in logits_BTV[0]])

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Restore caches, state, counts and random numbers when anything inside fails, Ctrl-C included."""
        state = self.state
        counts = dict(vars(self.speculation))
        numbers = self.generator.get_state()
        try:
            with self.cache.all_or_nothing(), self.draft_cache.all_or_nothing():
                yield
        except BaseException:
            self.state = state
            vars(self.speculation).update(counts)
            self.generator.set_state(numbers)
            raise


def verify(
    target_TV: Tensor,
    draft_TV: Tensor,
    drafts: Sequence[int],
    generator: torch.Generator,
) -> list[int]:
    """The accepted drafts and one token of the model.

    Draft after draft is accepted with `min(1, target / draft)`. A rejected draft is
    replaced by a sample of the residual distribution, `max(0, target - draft)`
    normalised, and no later draft counts. So each token has exactly its target
    probability.

    target_TV  the model's probabilities at the position of each draft and of one token
               more [depth + 1, V]
    draft_TV   what the drafts were sampled from [depth, V]
    returns    1 to depth + 1 token ids
    """
    device = generator.device
    rows = zip(drafts, target_TV, draft_TV)
    for number, (draft, target_V, draft_V) in enumerate(rows):
        point = torch.rand((), generator=generator, dtype=torch.float64, device=device)
        if point * draft_V[draft] >= target_V[draft]:
            residual_V = (target_V - draft_V).clamp(min=0)
            left_V = residual_V if residual_V.any() else target_V
            return [*drafts[:number], sample(left_V, generator)]
    return [*drafts, sample(target_TV[len(drafts)], generator)]


def expected_tokens(acceptance: float, depth: int) -> float:
    """Expected tokens a round, `1 + a + a^2 + ... + a^depth`, where every draft is accepted with probability a."""
    return sum(acceptance**number for number in range(depth + 1))
