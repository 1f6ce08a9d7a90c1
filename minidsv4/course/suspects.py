"""Broken servers and broken models, for a learner to find out what is wrong with them.

B batch, T tokens. A server reads a prompt in chunks and loses something between two of them: what is lost is zeros from
then on; everything else is as it should be, and so is every byte count. A model has a trap of the bug museum.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from minidsv4.course.checkups import prepare
from minidsv4.course.checkups.subject import random_model
from minidsv4.course.mutants import mutant
from minidsv4.course.symptoms import in_chunks
from minidsv4.model.cache import Cache, LayerMemory, Series
from minidsv4.model.model import Model

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

    loses  one of PIECES, which every layer forgets before the next chunk; None for a sound server
    """
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
        if not isinstance(kind, str) or kind not in LINEUPS:
            raise ValueError(f"case: kind = {kind!r} is not known; it is one of {', '.join(LINEUPS)}")
        if type(number) is not int or number < 1:
            raise ValueError(f"case: number = {number!r} is none; give an integer from 1")
        self.kind = kind
        self.number = number
        self.lineup = LINEUPS[kind]
        self.model, self.ids_BT = random_model(number)
        drawn = int(hashlib.sha256(f"{kind} {number}".encode()).hexdigest(), 16) % len(self.lineup)
        self.secret = Secret(self.lineup[drawn], repr(self))

    def __repr__(self) -> str:
        return f"case {self.kind} {self.number}"

    @contextmanager
    def broken(self) -> Iterator[Model]:
        """The model with its trap at work; every other model has it as well, that of the checkups too."""
        prepare()
        with mutant(self.secret._name):
            yield self.model

    def solved(self, guess: str) -> bool:
        """Whether the guess is the name of the trap.

        raises  ValueError for a name that is not in the line-up
        """
        if not isinstance(guess, str) or guess not in self.lineup:
            raise ValueError(f"{self}: {guess!r} is not under suspicion; the line-up is {', '.join(self.lineup)}")
        return self.secret == guess


class Exam(Case):
    """A case that does not say whether a guess is right, so that a check can pass it to a detective."""

    def solved(self, guess: str) -> bool:
        """Nothing: raises ValueError."""
        raise ValueError(f"{self}: the case of a check does not judge guesses; return the name of the trap")


def exam(kind: str, number: int) -> tuple[tuple[Exam], Secret]:
    """The arguments of a detective, and what it should return: a case of `show.exercise`."""
    case = Exam(kind, number)
    return (case,), case.secret


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
