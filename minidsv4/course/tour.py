"""The tour: train a small V4 on this machine's Python, then show what it learned, writes and remembers.

Training is the recipe `assets/tour.json`, run as any other (`train/pretrain.py`); this file is the report. It is the
main job of the package: `python -m minidsv4 tour`.
"""

import argparse
import gzip
import platform
import time
from itertools import chain, islice
from pathlib import Path

import torch
from matplotlib.figure import Figure

from minidsv4 import options
from minidsv4.config import Config, LayerKind
from minidsv4.cost.baselines import at_own_widths
from minidsv4.course import plots
from minidsv4.model.cache import KINDS
from minidsv4.model.model import Model
from minidsv4.serve.completion import complete
from minidsv4.train.loop import fastest_threads
from minidsv4.train.plan import Plan
from minidsv4.train.pretrain import PICTURE, Run, add_folder_options, folder_of_run

# No line break at the end: the tokenizer joins it to what follows.
PROMPTS = ("def fib(n):", "import os\n\nclass File:\n    def __init__(self,", "for i in range(10):")
WRITTEN, TEMPERATURE = 60, 0.5  # tokens after each prompt
LENGTHS = tuple(1 << power for power in range(5, 15))  # tokens at which the cache is weighed
CHUNK = 512  # tokens that it takes in at once: the plain operations need memory for their square


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m minidsv4 tour`."""
    minutes = "of training, all parts of a resumed run together"
    parser.add_argument("--minutes", type=options.minutes, default=3.0, help=minutes)
    parser.add_argument("--seed", type=options.seed, default=0, help="of weights, batches and completions")
    add_folder_options(parser, "runs/tour")


def main(arguments: argparse.Namespace) -> int:
    """Corpus, tokenizer, model, training, held-out test, completions, cache, picture; one screen of report."""
    began = time.perf_counter()
    folder = folder_of_run(arguments, "tour")
    again = f"python -m minidsv4 tour --resume --out {options.pasted(folder)}"
    kept = arguments.resume
    try:
        run = begin(arguments, folder)
        finished = train(run)
        kept = True
        if not finished:
            raise KeyboardInterrupt
        report(run)
    except KeyboardInterrupt:
        whole = f"{folder} keeps what was learned; go on with: {again}"
        nothing = "there was nothing to keep yet; the same command with --overwrite begins again"
        print(f"\nStopped: {whole if kept else nothing}.")
        return 130
    print(f"\nThe whole tour took {_minutes(time.perf_counter() - began)}. Now try:")
    print(f'  python -m minidsv4 generate --model {options.pasted(folder)} "def fib(n):"')
    return 0


def say(name: str, *lines: str) -> None:
    """Lines of the report, with a name at the left of the first."""
    for number, line in enumerate(lines):
        print(f"{name if number == 0 else '':13} {line}".rstrip(" "), flush=True)


# --- training ---


def begin(arguments: argparse.Namespace, folder: Path) -> Run:
    """The run, new or taken up from the folder, with a word on what it learns from and what learns."""
    print("minidsv4: a DeepSeek-V4 of your own, from the Python on this machine.")
    print("To read it and to join its bytes to tokens takes up to half a minute.\n", flush=True)
    plan = Plan.read("tour").seeded(arguments.seed)
    run = Run(plan, folder, arguments.resume, 60 * arguments.minutes, arguments.ops)
    corpus = run.texts.corpus
    if corpus is None:
        raise ValueError(f"--resume: the run in {folder} has not learned from source; `train --resume` goes on with it")
    n_files = len(corpus.train) + len(corpus.held_out)
    where = f"the standard library of Python {platform.python_version()},"
    held_out = f"{len(corpus.held_out)} of these files held out."
    say("1. Corpus", f"{n_files} files, {corpus.n_bytes():,} bytes: {where}", held_out)
    n_bytes = sum(len(file.text.encode()) for file in corpus.train)
    per_token = n_bytes / sum(map(len, run.batches.documents["source"]))
    n_tokens = len(run.tokenizer)
    say("2. Tokenizer", f"{n_tokens:,} tokens, joined from pairs of bytes; one stands for {per_token:.2f} bytes.")
    describe(run.model)
    return run


def describe(model: Model) -> None:
    """The model in three lines."""
    config = model.config
    n = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    kinds = [kind.name if kind is not LayerKind.WINDOW else "window" for kind in config.layer_types[:-1]]
    mtp = ", and an MTP block" if config.num_nextn_predict_layers else ""
    say(
        "3. Model",
        f"{n:.2f} million parameters, {config.hidden_size} wide, {config.hc_mult} residual streams;",
        f"layers {', '.join(kinds)}{mtp};",
        f"each token visits the shared expert and {config.num_experts_per_tok} of {config.n_routed_experts} others.",
    )


def train(run: Run) -> bool:
    """Train and save, with as many threads as measure fastest; False where Ctrl-C came."""
    trainer = run.trainer
    stage = run.plan.stages[-1]
    n_threads = fastest_threads(trainer)
    minutes = run.plan.recipe.seconds / 60
    threads = f"{n_threads} thread{'s' if n_threads > 1 else ''}"
    say("4. Training", f"{minutes:g} minutes, {stage.batch_size} x {stage.length} tokens a step, {threads}.")
    torch.set_num_threads(n_threads)
    finished = run.train()
    torch.set_num_threads(1)  # the steps of decoding are too small to share
    pace = trainer.tokens / max(trainer.seconds, 1e-9)
    say("", f"{trainer.step} steps, {trainer.tokens:,} tokens, {pace:,.0f} tokens/s.")
    return finished


# --- the report ---


def report(run: Run) -> None:
    """What the model learned, what it writes, what it remembers."""
    texts = run.texts.held_out["source"]
    n_bytes = sum(len(text.encode()) for text in texts)
    zipped = 8 * sum(len(gzip.compress(text.encode())) for text in texts) / n_bytes
    after = run.held_out()["source"]
    say(
        "5. Held out",
        f"{run.before['source']:.2f} bits per byte before, {after:.2f} after, on {n_bytes:,} bytes it never saw",
        f"(gzip needs {zipped:.2f} on the same text, a uniform guess 8).",
    )
    say("6. Writing", f"with cached decoding, temperature {TEMPERATURE}; | marks what was given:\n")
    for prompt in PROMPTS:
        show_completion(run, prompt)
    ids = list(islice(chain.from_iterable(run.batches.documents["source"]), LENGTHS[-1]))
    growth = weigh_cache(run.model, torch.tensor(ids))
    n_heads = run.model.config.num_attention_heads
    say("7. Cache", f"bytes by kind (float32), and what other attentions of {n_heads} heads as wide would keep:\n")
    say("", *cache_table(run.model.config, growth))
    draw(run, growth, after, run.folder / PICTURE)
    print()
    say("8. Kept", f"in {run.folder}: model, tokenizer, state and log of the training, and a picture, {PICTURE}.")


def show_completion(run: Run, prompt: str) -> None:
    """A prompt, marked at its left, and what the model makes of it."""
    options = {"temperature": TEMPERATURE, "seed": run.plan.seed}
    written = complete(prompt, WRITTEN, model=run.model, tokenizer=run.tokenizer, **options)
    lines = (prompt + written).rstrip().split("\n")
    n_prompt = prompt.count("\n") + (not prompt.endswith("\n"))
    say("", *(f"{'|' if number < n_prompt else ' '} {line}" for number, line in enumerate(lines)), "")


# --- the cache, weighed ---


@torch.inference_mode()
def weigh_cache(model: Model, ids: torch.Tensor) -> dict[int, dict[str, int]]:
    """Bytes by kind after each of `LENGTHS` tokens, read off one cache that really takes them in."""
    cache = model.new_cache()
    growth = {}
    for length in LENGTHS:
        if length <= len(ids):
            model.prefill(ids[None, cache.n_tokens : length], cache, CHUNK)
            growth[length] = cache.report()
    return growth


def cache_table(config: Config, growth: dict[int, dict[str, int]]) -> list[str]:
    """Rows: kinds of entries, their sum, the other attentions with V4's share of each; columns: lengths."""
    columns = [length for length in growth if length in (32, 512, LENGTHS[-1])]
    totals = {length: sum(growth[length].values()) for length in columns}

    def line(name: str, cells: list[str]) -> str:
        return f"{name:12}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, (16, 18, 20)))

    lines = [line("tokens", [f"{length:,}" for length in columns])]
    lines += [line(kind, [f"{growth[length][kind]:,}" for length in columns]) for kind in KINDS]
    lines.append(line("V4 together", [f"{totals[length]:,}" for length in columns]))
    for attention in at_own_widths(config):
        sizes = {length: attention.cache_bytes(length, number_bytes=4) for length in columns}
        cells = [f"{size:,} ({totals[length] / size:.1%})" for length, size in sizes.items()]
        lines.append(line(attention.name, cells))
    return [*lines, "(in brackets: V4's share of it)"]


def draw(run: Run, growth: dict[int, dict[str, int]], after: float, path: Path) -> None:
    """One picture: what was learned over the steps, and what is remembered over the length."""
    plots.use_style()
    figure = Figure(figsize=(6, 3))
    left, right = figure.subplots(1, 2)
    left.plot(*smoothed(run.trainer.losses), color=plots.COLOURS["query"])
    left.set(xlabel="training step", ylabel="loss (nats per token)")
    left.set_title(f"held out: {run.before['source']:.2f} to {after:.2f} bits/byte")
    config = run.model.config
    lengths = list(growth)
    for attention, colour in zip(at_own_widths(config), ("key", "sink", "masked")):
        sizes = [attention.cache_bytes(length, number_bytes=4) / 1e6 for length in lengths]
        right.loglog(lengths, sizes, label=attention.name, color=plots.COLOURS[colour], linestyle="--")
    sizes = [sum(kinds.values()) / 1e6 for kinds in growth.values()]
    right.loglog(lengths, sizes, label="V4", color=plots.COLOURS["compressed"], linestyle="-")
    right.set(xlabel="tokens in the cache", ylabel="cache (MB)")
    right.set_title(f"V4: {lengths[-1]:,} tokens in {sizes[-1]:.1f} MB")
    right.legend()
    figure.savefig(path)


def smoothed(losses: list[float], n_points: int = 50) -> tuple[list[float], list[float]]:
    """Steps and mean losses of up to about so many stretches of equal length."""
    width = max(1, len(losses) // n_points)
    starts = range(0, len(losses) - width + 1, width)
    return [start + width / 2 for start in starts], [sum(losses[i : i + width]) / width for i in starts]


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"
