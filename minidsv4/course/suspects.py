"""Broken servers and broken models, for a learner to find out what is wrong with them.

B batch, T tokens. A server reads a prompt in chunks and loses something between two of them: what is lost is zeros from
then on; everything else is as it should be, and so is every byte count. A model has a trap of the bug museum.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from minidsv4.course.checkups import prepare
from minidsv4.course.checkups.subject import random_model
from minidsv4.course.mutants import mutant
from minidsv4.course.symptoms import in_chunks
from minidsv4.model.cache import Cache, LayerMemory, Series
from minidsv4.model.model import Model
from minidsv4.train.data import check_from

PIECES = ("window", "CSA entries", "indexer keys", "HCA entries")


def pieces_of(layer: LayerMemory) -> dict[str, Series]:
    """What a layer's attention reads of the past, by name."""
    held = {"window": layer.window}
    if layer.main is not None:
        held[f"{layer.kind.name} entries"] = layer.main.entries
    if layer.index is not None:
        held["indexer keys"] = layer.index.entries
    return held


def pieces(cache: Cache) -> dict[str, Tensor]:
    """All that attention reads of the past, [rows, width] by name, such as "layer 0 window"; lower layers first."""
    return {
        f"layer {number} {name}": series.contents()[0].clone()
        for number, layer in enumerate(cache.layers)
        for name, series in pieces_of(layer).items()
    }


@torch.no_grad()
def read(model: Model, ids_BT: Tensor, chunk: int, loses: str | None = None) -> Cache:
    """The cache of a text that was read so many tokens at a time.

    loses   one of PIECES, which every layer forgets before the next chunk; None for a sound server
    raises  ValueError for another piece, and for a chunk that is no number of tokens
    """
    check_from("read", "chunk", chunk, 1)
    if loses is not None and loses not in PIECES:
        raise ValueError(f"read: loses = {loses!r} is no piece of a cache; it is one of {', '.join(PIECES)}")
    cache = model.new_cache()
    for ids in ids_BT.split(chunk, dim=1):
        for layer in cache.layers:
            for name, series in pieces_of(layer).items():
                if name == loses:
                    series.replace(torch.zeros_like(series.contents()))
        model(ids, cache=cache)
    return cache


def of_the_case(model: Model, ids_BT: Tensor, chunk: int) -> Cache:
    """The cache of the server that users complain about; what it loses is for the learner to find."""
    return read(model, ids_BT, chunk, PIECES[2])


# --- cases: a broken model behind a number ---

LINEUPS = {  # kind of a case = the traps of which one is in the model
    "loud": (  # each is seen by other checks
        "output_not_turned_back",
        "overlap_lost_between_calls",
        "no_window_in_compressed_layers",
        "sinkhorn_rows_last",
        "route_scale_forgotten",
        "window_in_progress_visible",
        "window_not_carried_over",
        "halves_swapped",
    ),
    "twins": (  # all are seen by the same checks
        "carry_transposed",
        "packing_order_confused",
        "coefficients_without_the_token",
        "half_split_pairs",
        "entries_at_the_window_end",
        "sink_share_given_back",
        "window_0_has_zero_logits",
        "one_softmax_for_all_channels",
        "index_scores_without_relu",
        "biased_scores_as_weights",
        "gate_clamped_from_below",
        "shared_expert_not_clamped",
    ),
    "silent": (  # the logits of one pass are right
        "mtp_reads_one_stream",
        "indexer_never_taught",
        "indexer_teaches_the_trunk",
        "teacher_normed_in_each_head",
        "window_never_forgotten",
        "overlap_not_rolled_back",
        "raw_series_of_drafts_kept",
    ),
}


class Secret:
    """The name of a trap, which can be compared with a guess and is not shown."""

    def __init__(self, name: str, case: str):
        self._name, self._case = name, case

    def __eq__(self, guess: object) -> bool:
        return isinstance(guess, str) and guess == self._name

    def __hash__(self) -> int:
        return hash(self._name)

    def __repr__(self) -> str:
        return f"the trap of {self._case}"


class Case:
    """A model of its own random weights, in which one trap of a line-up is at work; the number decides which.

    kind    one of LINEUPS
    number  an integer from 1
    lineup  names of the traps that are under suspicion
    model   sound as it is; broken inside `with case.broken()`
    ids_BT  two texts of 32 tokens
    secret  equal to the name of the trap, and to nothing else, itself included
    raises  ValueError for another kind or number
    """

    def __init__(self, kind: str, number: int):
        check_kind(kind)
        if type(number) is not int or number < 1:
            raise ValueError(f"case: number = {number!r} is none; give an integer from 1")
        self.kind = kind
        self.number = number
        self.lineup = LINEUPS[kind]
        self.model, self.ids_BT = random_model(number)
        self._trap = computed(kind, number)

    def __repr__(self) -> str:
        return f"case {self.kind} {self.number}"

    @property
    def secret(self) -> Secret:
        """What is equal to the name of the trap."""
        return Secret(self._trap, repr(self))

    @contextmanager
    def broken(self) -> Iterator[Model]:
        """The model with its trap at work; every other model has it as well, that of the checkups too."""
        prepare()
        with mutant(self._trap):
            yield self.model

    def solved(self, guess: str) -> bool:
        """Whether the guess is the name of the trap.

        raises  ValueError for a name that is not in the line-up
        """
        if not isinstance(guess, str) or guess not in self.lineup:
            raise ValueError(f"{self}: {guess!r} is not under suspicion; the line-up is {', '.join(self.lineup)}")
        return self.secret == guess


def check_kind(kind: object) -> None:
    """Refuse what is no kind of a case."""
    if not isinstance(kind, str) or kind not in LINEUPS:
        raise ValueError(f"case: kind = {kind!r} is not known; it is one of {', '.join(LINEUPS)}")


def computed(kind: str, number: int) -> str:
    """The trap of the case of this number, the same on every machine."""
    drawn = int(hashlib.sha256(f"{kind} {number}".encode()).hexdigest(), 16)
    return LINEUPS[kind][drawn % len(LINEUPS[kind])]


class Exam(Case):
    """A case that does not say whether a guess is right, so that a check can pass it to a detective.

    trap    a name of the line-up; the number decides on the model alone
    raises  ValueError as `Case`, and for another trap
    """

    def __init__(self, kind: str, number: int, trap: str):
        super().__init__(kind, number)
        if trap not in self.lineup:
            raise ValueError(f"{self}: trap = {trap!r} is not in the line-up; give one of {', '.join(self.lineup)}")
        self._trap = trap

    def __repr__(self) -> str:
        return f"exam {self.kind} {self.number}"

    @property
    def secret(self) -> Secret:
        """Nothing: raises ValueError."""
        raise self._refusal()

    def solved(self, guess: str) -> bool:
        """Nothing: raises ValueError."""
        raise self._refusal()

    def _refusal(self) -> ValueError:
        return ValueError(f"{self}: the case of a check does not judge guesses; return the name of the trap")


def exam(kind: str, number: int, trap: str | None = None) -> tuple[tuple[Exam], Secret]:
    """The arguments of a detective, and what it should return: a case of `show.exercise`.

    trap  a name of the line-up; None for that of the case of this number
    """
    check_kind(kind)
    name = computed(kind, number) if trap is None else trap
    case = Exam(kind, number, name)
    return (case,), Secret(name, repr(case))


N_FRESH = 4  # fresh exams of a check: each takes a detective seconds


def exams(kind: str) -> Callable[[np.random.Generator], tuple[tuple[Exam], Secret]]:
    """What deals exams of a line-up: the `fresh` of `show.exercise`.

    The generator gives the number, and with it the model. Which trap comes is drawn by the operating system, anew in
    every run, so that nobody can compute it from what stands here; none comes twice before all have come. So the same
    answer to all is never right, and whoever guesses is right `N_FRESH` times with a probability of 1/840 in the
    shortest line-up, of 7.

    raises  ValueError for another kind
    """
    check_kind(kind)
    left: list[str] = []

    def deal(generator: np.random.Generator) -> tuple[tuple[Exam], Secret]:
        if not left:
            left.extend(secrets.SystemRandom().sample(LINEUPS[kind], k=len(LINEUPS[kind])))
        return exam(kind, int(generator.integers(2, 1000)), left.pop())

    return deal


def complaint(case: Case) -> str:
    """What users say of a case: from which token on the logits of its first text are wrong, at once and in chunks."""
    right_BTV = in_chunks(case.model, case.ids_BT, case.ids_BT.shape[1])
    with case.broken() as model:
        said = {"at once": in_chunks(model, case.ids_BT, case.ids_BT.shape[1])}
        said["in chunks of 7"] = in_chunks(model, case.ids_BT, 7)
    found = []
    for way, logits_BTV in said.items():
        wrong = ((logits_BTV - right_BTV)[0].abs().amax(-1) > 1e-9).nonzero()
        found.append(f"read {way}: {f'wrong from token {int(wrong[0])} on' if len(wrong) else 'all right'}")
    return f"{case}, {'; '.join(found)}"
