"""Completion: text in, text out, with the small model that the package ships or any other; `generate` as a command."""

import argparse
import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from minidsv4 import options
from minidsv4.fast.compiled.numba_loops import told_of_compiling
from minidsv4.lowbit.released import PRECISIONS, in_precision
from minidsv4.model.model import Model
from minidsv4.ops import PLAIN
from minidsv4.serve.checks import (
    check_characters,
    check_model,
    check_seed,
    check_stream,
    check_temperature,
    check_top_p,
    kind,
    refusing,
    shown,
)
from minidsv4.serve.detokenize import IncrementalDecoder
from minidsv4.serve.disk import ModelOnDisk, load
from minidsv4.serve.generation import generate
from minidsv4.serve.progress import Progress
from minidsv4.serve.speculate import Speculation
from minidsv4.train.ship import TOKENIZER, load_pretrained, pretrained_tokenizer
from minidsv4.train.tokenizer import Tokenizer


@refusing("complete")
def complete(
    prompt: str,
    n_tokens: int = 100,
    *,
    model: Model | None = None,
    tokenizer: Tokenizer | None = None,
    stream: Callable[[str], object] | None = None,
    temperature: float = 0.8,
    top_p: float = 1.0,
    seed: int = 0,
    speculate: bool | int | Speculation = False,
    fused: bool = False,
    cache_precision: str = "model",
) -> str:
    """The text that the model writes after a prompt, up to EOS or `n_tokens`; the prompt is not part of it.

    prompt     text, which may be empty
    n_tokens   at most so many tokens, from 0
    model      the shipped one where None
    tokenizer  the model's; the shipped one where None
    stream     called with each piece of the text as it comes, at least one whole character
    others     as in `generate`
    returns    whole characters only: what `n_tokens` cuts through is left out
    raises     ValueError: an argument of a wrong kind or range, a tokenizer of another model, logits that are NaN
    """
    check_stream(stream, ("the new piece of text",))
    model = _shipped_model() if model is None else check_model(model)
    tokenizer = _shipped_tokenizer() if tokenizer is None else tokenizer
    decoder = IncrementalDecoder(tokenizer)
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"complete: tokenizer has {len(tokenizer)} tokens and the model a vocab_size of {model.config.vocab_size}; "
            "give the tokenizer that the model was trained with"
        )
    pieces: list[str] = []

    def take(token: int) -> None:
        piece = decoder.step(token)
        pieces.append(piece)
        if piece and stream is not None:
            stream(piece)

    ids = [tokenizer.bos_id, *tokenizer.encode(check_text(prompt))]
    generate(model, ids, n_tokens, temperature, top_p, seed, speculate, take, tokenizer.eos_id, fused, cache_precision)
    return "".join(pieces)


def check_text(prompt: object) -> str:
    """The prompt, once it is a text that UTF-8 can hold."""
    if not isinstance(prompt, str):
        right = "give one str; generate takes token ids, of several prompts too"
        if isinstance(prompt, bytes | bytearray):
            right = "decode them first"
        raise ValueError(f"complete: prompt = {shown(prompt)} is {kind(prompt)}, no text; {right}")
    return check_characters("complete: prompt", prompt)


@functools.cache
def _shipped_model() -> Model:
    """The shipped model, read once a process."""
    return load_pretrained()


@functools.cache
def _shipped_tokenizer() -> Tokenizer:
    """The shipped tokenizer, read once a process."""
    return pretrained_tokenizer()


# --- the command ---


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m minidsv4 generate`."""
    parser.add_argument("prompt", help="text to go on from")
    folder = "folder of a model with its tokenizer.json, such as runs/tour; the shipped model if not given"
    parser.add_argument("--model", type=options.folder, help=folder)
    parser.add_argument("--tokens", type=options.whole(0), default=100, help="at most so many")
    add_sampling_options(parser)
    says = "fp32, bf16, or released: FP4, FP8 and BF16, and a packed cache; as the files hold it if not given"
    parser.add_argument("--precision", choices=PRECISIONS, help=says)
    weights = "disk: leave the weights in --model's folder, and read what a token touches"
    parser.add_argument("--weights", choices=["disk"], help=weights)
    budget = "of weights on disk: most bytes in memory at once, such as 8GB; no limit if not given"
    parser.add_argument("--memory", type=options.checked(str, options.check_memory), help=budget)
    parser.add_argument("--fused", action="store_true", help="compiled decoding; needs numba, compiles the first time")


def add_sampling_options(parser: argparse.ArgumentParser, temperature: float = 0.8) -> None:
    """How a token is drawn: temperature, which is the given one where the user names none, top-p, seed."""
    says = f"0: always the likeliest token; {temperature} if not given"
    parser.add_argument("--temperature", type=options.checked(float, check_temperature), default=temperature, help=says)
    top_p = options.checked(float, check_top_p)
    parser.add_argument("--top-p", type=top_p, default=1.0, help="sample among the likeliest tokens of this share")
    seed = options.checked(int, check_seed)
    parser.add_argument("--seed", type=seed, default=0, help="the same seed writes the same")


def main(arguments: argparse.Namespace) -> int:
    """Print the prompt and go on from it, character by character."""
    if arguments.fused and arguments.ops is PLAIN:
        raise ValueError("generate: --fused runs compiled loops and --plain the operations to read; give one of them")
    if arguments.fused and arguments.precision == "released":
        raise ValueError("generate: --fused reads numbers and --precision released packs them; give one of them")
    if arguments.weights and (arguments.fused or arguments.precision):
        raise ValueError(
            "generate: --weights disk computes with what the files hold; leave out --fused and --precision"
        )
    torch.set_num_threads(1)
    model, tokenizer = with_tokenizer(arguments.model, arguments.weights, arguments.memory)
    model = in_precision(model.use(arguments.ops), arguments.precision)
    progress = Progress(model) if isinstance(model, ModelOnDisk) else contextlib.nullcontext()
    compiling = told_of_compiling() if arguments.fused else contextlib.nullcontext()
    with progress, compiling, typewriter(check_text(arguments.prompt)) as show:
        complete(
            arguments.prompt,
            arguments.tokens,
            model=model,
            tokenizer=tokenizer,
            stream=show,
            temperature=arguments.temperature,
            top_p=arguments.top_p,
            seed=arguments.seed,
            fused=arguments.fused,
            cache_precision="released" if arguments.precision == "released" else "model",
        )
    return 0


@contextlib.contextmanager
def typewriter(prompt: str) -> Iterator[Callable[[str], None]]:
    """A function that prints pieces of a text at once, the prompt before the first; nothing where there came none.

    The line is ended when the block is, also after an error.
    """
    opening = [prompt]

    def show(piece: str) -> None:
        print(*opening, piece, sep="", end="", flush=True)
        opening.clear()

    try:
        yield show
        show("")
    finally:
        if not opening:
            print()


def with_tokenizer(
    folder: str | None, weights: str | None = None, memory: float | None = None
) -> tuple[Model, Tokenizer]:
    """The model in a folder with its tokenizer; with None the shipped ones. `weights` and `memory` as in `load`."""
    if folder is None:
        if weights is not None or memory is not None:
            raise ValueError(
                "generate: --weights and --memory are for a folder of released weights; name it by --model"
            )
        return load_pretrained(), pretrained_tokenizer()
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(f"--model {path}: there is no such folder; `python -m minidsv4 tour` makes runs/tour")
    return load(path, weights=weights, memory=memory), Tokenizer.load(path / TOKENIZER)
