"""An engine that writes many texts at once: each is admitted, and ends, at any step.

T tokens, V vocabulary. A step gives every text that is being written one token more, and takes in a piece of a prompt
that is still to be read, so that a long prompt does not make the others wait. All of it is one pass over tokens that
lie end to end (`ragged.py`). Caches come from a pool (`pool.py`). A request waits, first come, first served, until the
pool has room for the longest text that it may become; so nothing that has begun is ever put off.
"""

import functools
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minidsv4.fast.compiled.step import FusedPass
from minidsv4.model.cache import Cache
from minidsv4.model.model import Model
from minidsv4.options import check_memory
from minidsv4.serve import checks
from minidsv4.serve.pool import Pool, Sizes
from minidsv4.serve.ragged import all_or_nothing, forward_each
from minidsv4.serve.sampling import probabilities, sample


@dataclass(eq=False)
class Request:
    """A text of an engine.

    ids_T    its prompt
    most     how many tokens are written at most
    engine   the mark of the engine whose it is
    written  those written so far
    state    "waiting" for room, "running", "finished" or "cancelled"
    """

    ids_T: Tensor = field(repr=False)
    most: int
    temperature: float
    top_p: float
    generator: torch.Generator = field(repr=False)
    stops: frozenset[int]
    stream: Callable[[int], object] | None = None
    engine: object = field(default=None, repr=False)
    written: list[int] = field(default_factory=list)
    state: str = "waiting"
    cache: Cache | None = field(default=None, repr=False)

    @property
    def n_tokens(self) -> int:
        """The length of the text, prompt included, if it becomes as long as it may."""
        return len(self.ids_T) + self.most

    @property
    def n_unread(self) -> int:
        """How many tokens of the prompt the cache has yet to take in."""
        return max(0, len(self.ids_T) - self.held().n_tokens)

    @property
    def ended(self) -> bool:
        """Whether nothing more is to be written."""
        return len(self.written) == self.most or not self.stops.isdisjoint(self.written[-1:])

    def held(self) -> Cache:
        """The cache of a text that runs."""
        assert self.cache is not None
        return self.cache

    def coming(self, most: int) -> Tensor:
        """What the cache takes in next [T]: at most so many tokens of the prompt, or else the newest token."""
        if self.n_unread:
            return self.ids_T[self.held().n_tokens :][:most]
        return self.ids_T.new_tensor(self.written[-1:])

    def draw(self, logits_V: Tensor) -> int:
        """The next token."""
        return sample(probabilities(logits_V, self.temperature, self.top_p), self.generator)


class Engine:
    """Texts that are written side by side, each as `generate` writes it alone.

        engine = Engine(model, memory="1 GB")
        request = engine.add(ids, 100)
        engine.run()  # or `engine.step()` while `engine.busy`
        request.written

    memory   of all caches, blocks and states: bytes, or such as "1 GB"
    texts    how many are read or written at a time; others wait
    chunk    tokens that a step takes in, one or more of them of a prompt if any is to be read. On `Config.mini` a step
             of 4 texts took 34 ms of one core, 170 ms at most while a prompt of 4,096 tokens was read by 256, 2.4 s in
             all, and 1.4 s where it was read at once
    fused    decode in compiled loops, as in `generate`
    invariant  a text's logits are bitwise the same whatever is written beside it, as in `generate`
    cache_precision  as in `generate`
    raises   ValueError: a value of a wrong kind or range, too little memory, no fused step, NaN in weights
    """

    @checks.refusing("engine")
    def __init__(
        self,
        model: Model,
        memory: float | str = "1 GB",
        texts: int = 16,
        chunk: int = 256,
        fused: bool = False,
        cache_precision: str = "model",
        invariant: bool = False,
    ):
        self.model = checks.check_model(model)
        self.mark = object()  # its requests carry it, and do not keep the engine alive
        self.texts = checks.check_positive("texts", texts, "it counts texts at a time, from 1")
        self.chunk = checks.check_positive("chunk", chunk, "it counts tokens of a step, from 1")
        self.forward: Callable[..., list[Tensor]] = functools.partial(forward_each, model)
        if checks.check_switch("fused", fused):
            self.forward = fused_each(model)
        if checks.check_switch("invariant", invariant):
            self.forward = FusedPass(model, "invariant").forward_each
        checks.check_weights(model)
        n_blocks = Sizes(model, cache_precision).blocks_in(check_memory(memory, "engine: memory"), self.texts)
        self.pool = Pool(model, n_blocks, self.texts, cache_precision)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    @property
    def busy(self) -> bool:
        """Whether any text waits or runs."""
        return bool(self.waiting or self.running)

    @checks.refusing("engine")
    def add(
        self,
        ids: Sequence[int] | Tensor,
        n_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: int | Collection[int] | None = None,
        stream: Callable[[int], object] | None = None,
    ) -> Request:
        """A new text, which begins with the next step that has room for it; arguments as in `generate`.

        raises  ValueError: an argument of a wrong kind or range, a text for which there is never room
        """
        ids_T = checks.check_prompt(ids, self.model)
        most = checks.check_n_tokens(n_tokens)
        checks.check_context(len(ids_T), most, self.model)
        checks.check_stream(stream)
        stops = checks.check_stop(stop, self.model.config.vocab_size)
        sampling = checks.check_temperature(temperature), checks.check_top_p(top_p)
        generator = torch.Generator().manual_seed(checks.check_seed(seed))
        request = Request(ids_T, most, *sampling, generator, stops, stream, self.mark)
        self.pool.check_size(request.n_tokens)
        self.waiting.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """End a text; what it held is there for others from the next step on. What has ended stays as it is.

        raises  ValueError for what is no text of this engine
        """
        if not isinstance(request, Request) or request.engine is not self.mark:
            found = f"engine: request = {checks.shown(request)} is none of this engine's"
            raise ValueError(f"{found}; give what its add returned")
        if request in self.waiting:
            self.waiting.remove(request)
            request.state = "cancelled"
        elif request in self.running:
            self.leave(request, "cancelled")

    def run(self) -> None:
        """Steps until every text has ended."""
        while self.busy:
            self.step()

    @checks.refusing("engine")
    @torch.inference_mode()
    def step(self) -> list[tuple[Request, int]]:
        """One pass: each text that got a token, and this token, for which its `stream` was called.

        A step that reads a part of a prompt alone gives nothing. If the pass fails, all texts are as they were before
        it. What a `stream` raises comes through when the tokens of the step are written.
        """
        self.admit()
        parts = self.plan()
        if not parts:
            return []
        with undone_on_failure([*parts]):
            logits = self.forward([*parts.values()], [request.held() for request in parts])
            due = [(request, logits_TV[-1]) for request, logits_TV in zip(parts, logits) if not request.n_unread]
            drawn = [(request, request.draw(logits_V)) for request, logits_V in due]
        for request, token in drawn:
            request.written.append(token)
            if request.ended:
                self.leave(request, "finished")
        for request, token in drawn:
            if request.stream is not None:
                request.stream(token)
        return drawn

    def admit(self) -> None:
        """Begin the texts that have waited longest, as far as the pool has room."""
        while self.waiting and self.pool.has_room(self.waiting[0].n_tokens):
            request = self.waiting.popleft()
            request.state = "running"
            request.cache = self.pool.lend(request.n_tokens)
            self.running.append(request)
            if request.ended:  # no token was asked for
                self.leave(request, "finished")

    def plan(self) -> dict[Request, Tensor]:
        """The ids that each text takes in now: the newest token of each that is written, then pieces of prompts."""
        writing = [request for request in self.running if not request.n_unread]
        parts = {request: request.coming(1) for request in writing}
        left = max(1, self.chunk - len(writing))
        for request in self.running:
            if request.n_unread and left:
                parts[request] = request.coming(left)
                left -= len(parts[request])
        return parts

    def leave(self, request: Request, state: str) -> None:
        """End a text that runs, and give back what it held."""
        self.running.remove(request)
        self.pool.take_back(request.held())
        request.state = state
        request.cache = None


@contextmanager
def undone_on_failure(requests: Sequence[Request]) -> Iterator[None]:
    """Put caches and random numbers back when anything inside fails, Ctrl-C included."""
    numbers = [request.generator.get_state() for request in requests]
    try:
        with all_or_nothing([request.held() for request in requests]):
            yield
    except BaseException:
        for request, state in zip(requests, numbers):
            request.generator.set_state(state)
        raise


def fused_each(model: Model) -> Callable[..., list[Tensor]]:
    """`forward_each` of the model, but that single tokens of sequences go through compiled loops."""
    compiled = FusedPass(model)

    def forward(ids: Sequence[Tensor], caches: Sequence[Cache], last: int = 1) -> list[Tensor]:
        logits: dict[int, Tensor] = {}
        with all_or_nothing(caches):
            for pass_each, single in ((compiled.forward_each, True), (functools.partial(forward_each, model), False)):
                places = [place for place, ids_T in enumerate(ids) if (len(ids_T) == 1) == single]
                if places:
                    parts = [ids[place] for place in places], [caches[place] for place in places]
                    logits.update(zip(places, pass_each(*parts, last)))
        return [logits[place] for place in range(len(ids))]

    return forward
