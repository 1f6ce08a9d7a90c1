"""Replies to many prompts, by the cached generator that serves; in a folder, each token is logged before it counts."""

from collections.abc import Sequence
from pathlib import Path

from minidsv4.fast.compiled.numba_loops import numba_is_here
from minidsv4.files import writable_folder
from minidsv4.model.model import Model
from minidsv4.serve.generation import generate
from minidsv4.serve.rollouts import rollouts
from minidsv4.train.tokenizer import Tokenizer


class Writer:
    """Writes a round of replies, each up to EOS; with a folder a killed round goes on behind its last token.

    folder  gets a log a round; None keeps nothing
    fused   compiled loops in which each sum has one order, so that a round that goes on is the same, bit for bit; None
            where numba is there
    """

    def __init__(self, folder: str | Path | None = None, fused: bool | None = None):
        self.folder = None if folder is None else writable_folder(folder)
        self.fused = numba_is_here() if fused is None else fused

    def __call__(
        self,
        model: Model,
        prompts: Sequence[Sequence[int]],
        n_tokens: int,
        seeds: Sequence[int],
        number: int = 0,
        temperature: float = 1.0,
    ) -> list[list[int]]:
        """The replies of round `number`, one a prompt, each with random numbers of its own seed."""
        stop = Tokenizer.eos_id
        loops = {"fused": self.fused, "invariant": self.fused}
        if self.folder is None:
            return generate(model, prompts, n_tokens, temperature, seed=[*seeds], stop=stop, **loops)
        log = self.folder / f"round-{number:05}.log"
        how = loops | {"texts": len(prompts), "chunk": 2048}
        return rollouts(model, prompts, n_tokens, log, temperature=temperature, seeds=seeds, stop=stop, **how)
