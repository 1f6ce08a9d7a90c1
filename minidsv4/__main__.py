"""The commands: `tour` trains a small V4 on real code, `train` does so by a recipe, `generate` writes with it.

A command is a function that takes the parsed arguments and returns an exit code, and a line in `COMMANDS`. What a user
got wrong is told in one sentence on stderr, with exit code 2.
"""

import argparse
import gzip
import hashlib
import io
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure

from minidsv4.bench import report as bench_report
from minidsv4.checkpoint import load, save
from minidsv4.config import Config, LayerKind
from minidsv4.cost import ranks as cost_ranks
from minidsv4.cost import report as cost_report
from minidsv4.cost.baselines import at_own_widths
from minidsv4.course import plots
from minidsv4.files import atomic_folder, writable_folder
from minidsv4.model.cache import KINDS
from minidsv4.model.model import Model
from minidsv4.serve.generation import generate
from minidsv4.train import pretrain, ship
from minidsv4.train.data import Batches, SourceFile, Tokenizer, python_source
from minidsv4.train.loop import Recipe, Trainer, bits_per_byte, fastest_threads
from minidsv4.train.pretrain import STATE, read_state
from minidsv4.train.ship import load_pretrained, pretrained_tokenizer

TOUR = Config.mini().replace(  # found by measurement: it learns most in three minutes on two slow cores
    **dict(vocab_size=1024, hidden_size=128, moe_intermediate_size=64, num_hidden_layers=3, head_dim=32),
    **dict(num_attention_heads=12, qk_rope_head_dim=8, q_lora_rank=64, o_groups=4, o_lora_rank=32),
    **dict(compress_ratios=(0, 4, 32, 0), index_head_dim=16, n_routed_experts=8, mlp_layer_types=None),
    **dict(initializer_range=0.06, num_nextn_predict_layers=0),
)
BATCH_SIZE, LENGTH = 4, 128
RATE, WARM_UP = 7e-3, 15  # the peak, and steps to it
HELD_OUT_BYTES = 65536
# No line break at the end: the tokenizer joins it to what follows.
PROMPTS = ("def fib(n):", "import os\n\nclass File:\n    def __init__(self,", "for i in range(10):")
WRITTEN, TEMPERATURE = 60, 0.5  # tokens after each prompt
LENGTHS = tuple(1 << power for power in range(5, 15))  # tokens at which the cache is weighed
TOURED = "runs/tour"


# --- tour ---


@dataclass
class Run:
    """What a tour makes and a folder keeps."""

    model: Model
    tokenizer: Tokenizer
    trainer: Trainer
    seed: int
    before: float  # bits per byte of the untrained model


def tour(arguments: argparse.Namespace) -> int:
    """Corpus, tokenizer, model, training, held-out test, completions, cache, picture; one screen of report."""
    began, folder = time.perf_counter(), writable_folder(arguments.out)
    again = f"python -m minidsv4 tour --resume --out {folder}"
    saved = arguments.resume
    try:
        run, rows, held_out = begin(arguments, folder)
        finished = train(run)
        save_run(run, folder)
        saved = True
        if not finished:
            raise KeyboardInterrupt
        report(run, rows, held_out, folder)
    except KeyboardInterrupt:
        kept = f"{folder} keeps what was learned; go on with: {again}"
        print(f"\nStopped: {kept if saved else 'there was nothing to keep yet; the same command begins again'}.")
        return 130
    print(f"\nThe whole tour took {_minutes(time.perf_counter() - began)}. Now try:")
    print(f'  python -m minidsv4 generate --model {folder} "def fib(n):"')
    return 0


def say(name: str, *lines: str) -> None:
    """Lines of the report, with a name at the left of the first."""
    for number, line in enumerate(lines):
        print(f"{name if number == 0 else '':13} {line}".rstrip(" "), flush=True)


def begin(arguments: argparse.Namespace, folder: Path) -> tuple[Run, torch.Tensor, list[str]]:
    """Read and cut the corpus, and make the model or take up the one in the folder."""
    state = read_state(folder) if arguments.resume else None
    recipe = Recipe(seconds=60 * arguments.minutes, rate=RATE, warm_up=WARM_UP)
    print("minidsv4: a DeepSeek-V4 of your own, from the Python on this machine.\n")
    corpus = python_source()
    n_files, n_held = len(corpus.train) + len(corpus.held_out), len(corpus.held_out)
    where = f"the standard library of Python {platform.python_version()},"
    say("1. Corpus", f"{n_files} files, {corpus.n_bytes():,} bytes: {where}", f"{n_held} of these files held out.")
    texts, held_out = [file.text for file in corpus.train], sample(corpus.held_out)
    tokenizer = Tokenizer.load(folder / "tokenizer.json") if state else Tokenizer.train(texts, TOUR.vocab_size)
    documents = tokenizer.encode_all(texts)
    per_token = sum(len(text.encode()) for text in texts) / sum(map(len, documents))
    say("2. Tokenizer", f"{len(tokenizer):,} tokens, joined from pairs of bytes; one stands for {per_token:.2f} bytes.")
    seed = state["seed"] if state else arguments.seed
    batches = Batches(documents, BATCH_SIZE, LENGTH, seed)
    torch.manual_seed(seed)
    model = load(folder) if state else Model(TOUR)
    describe(model)
    trainer = Trainer(model, batches.at, recipe)
    if state:
        trainer.load_state_dict(state["trainer"])
    before = state["before"] if state else bits_per_byte(model, tokenizer, held_out, LENGTH)
    return Run(model, tokenizer, trainer, seed, before), batches.rows, held_out


def sample(files: Sequence[SourceFile]) -> list[str]:
    """The first bytes of the held-out files, in the order of their hashes, which is no order of theirs."""
    texts, room = [], HELD_OUT_BYTES
    for text in sorted((file.text for file in files), key=lambda text: hashlib.sha256(text.encode()).digest()):
        if room > 0:
            texts.append(text.encode()[:room].decode(errors="ignore"))
            room -= len(texts[-1].encode())
    return texts


def describe(model: Model) -> None:
    """The model in three lines."""
    config, n = model.config, sum(parameter.numel() for parameter in model.parameters()) / 1e6
    kinds = [kind.name if kind is not LayerKind.WINDOW else "window" for kind in config.layer_types[:-1]]
    mtp = ", and an MTP block" if config.num_nextn_predict_layers else ""
    say(
        "3. Model",
        f"{n:.2f} million parameters, {config.hidden_size} wide, {config.hc_mult} residual streams;",
        f"layers {', '.join(kinds)}{mtp};",
        f"each token visits the shared expert and {config.num_experts_per_tok} of {config.n_routed_experts} others.",
    )


def train(run: Run) -> bool:
    """Train with as many threads as measure fastest; False where Ctrl-C came."""
    trainer = run.trainer
    n_threads, minutes = fastest_threads(trainer), trainer.recipe.seconds / 60
    threads = f"{n_threads} thread{'s' if n_threads > 1 else ''}"
    say("4. Training", f"{minutes:g} minutes, {BATCH_SIZE} x {LENGTH} tokens a step, {threads}.")
    torch.set_num_threads(n_threads)
    finished = trainer.train()
    torch.set_num_threads(1)  # the steps of decoding are too small to share
    n_tokens = trainer.step * BATCH_SIZE * LENGTH
    say("", f"{trainer.step} steps, {n_tokens:,} tokens, {n_tokens / max(trainer.seconds, 1e-9):,.0f} tokens/s.")
    return finished


def report(run: Run, rows: torch.Tensor, held_out: list[str], folder: Path) -> None:
    """What the model learned, what it writes, what it remembers."""
    n_bytes = sum(len(text.encode()) for text in held_out)
    zipped = 8 * sum(len(gzip.compress(text.encode())) for text in held_out) / n_bytes
    after = bits_per_byte(run.model, run.tokenizer, held_out, LENGTH)
    say(
        "5. Held out",
        f"{run.before:.2f} bits per byte before, {after:.2f} after, on {n_bytes:,} bytes it never saw",
        f"(gzip needs {zipped:.2f} on the same text, a uniform guess 8).",
    )
    say("6. Writing", f"with cached decoding, temperature {TEMPERATURE}; | marks what was given:\n")
    for prompt in PROMPTS:
        show_completion(run, prompt)
    growth, n_heads = weigh_cache(run.model, rows.flatten()), run.model.config.num_attention_heads
    say("7. Cache", f"bytes by kind (float32), and what other attentions of {n_heads} heads as wide would keep:\n")
    say("", *cache_table(run.model.config, growth))
    draw(run, growth, after, folder / "tour.png")
    print()
    say("8. Kept", f"in {folder}: model, tokenizer, state of the training, and a picture, tour.png.")


def show_completion(run: Run, prompt: str) -> None:
    """A prompt, marked at its left, and what the model makes of it."""
    ids = [Tokenizer.bos_id, *run.tokenizer.encode(prompt)]
    written = generate(run.model, ids, WRITTEN, temperature=TEMPERATURE, seed=run.seed, stop=Tokenizer.eos_id)
    lines = (prompt + run.tokenizer.decode(written)).rstrip().split("\n")
    n_prompt = prompt.count("\n") + (not prompt.endswith("\n"))
    say("", *(f"{'|' if number < n_prompt else ' '} {line}" for number, line in enumerate(lines)), "")


# --- the cache, weighed ---


@torch.inference_mode()
def weigh_cache(model: Model, ids: torch.Tensor) -> dict[int, dict[str, int]]:
    """Bytes by kind after each of `LENGTHS` tokens, read off one cache that really takes them in."""
    cache, growth = model.new_cache(), {}
    for length in LENGTHS:
        if length <= len(ids):
            model.prefill(ids[None, cache.n_tokens : length], cache)
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
    left.set_title(f"held out: {run.before:.2f} to {after:.2f} bits/byte")
    config, lengths = run.model.config, list(growth)
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


# --- the folder of a run ---


def save_run(run: Run, folder: Path) -> None:
    """Write model, tokenizer and state together: an old run stays whole until the new one is."""
    state = io.BytesIO()
    torch.save({"trainer": run.trainer.state_dict(), "seed": run.seed, "before": run.before}, state)
    try:
        with atomic_folder(folder) as scratch:
            save(run.model, scratch)
            run.tokenizer.save(scratch / "tokenizer.json")
            (scratch / STATE).write_bytes(state.getvalue())
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"tour: {folder} cannot be saved to ({reason}); free some space or give another --out") from error


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


# --- generate ---


def write(arguments: argparse.Namespace) -> int:
    """Print the prompt and go on from it, token by token."""
    torch.set_num_threads(1)
    model, tokenizer = writer(arguments.model)
    ids = [Tokenizer.bos_id, *tokenizer.encode(arguments.prompt)]
    typed = Typewriter(tokenizer)
    sampling = dict(temperature=arguments.temperature, top_p=arguments.top_p, seed=arguments.seed)
    sampling["fused"] = arguments.fused
    print(arguments.prompt, end="", flush=True)
    try:
        generate(model, ids, arguments.tokens, **sampling, stream=typed, stop=Tokenizer.eos_id)
    finally:
        typed.close()
    return 0


def writer(folder: str | None) -> tuple[Model, Tokenizer]:
    """The model in a folder with its tokenizer; with None the tour's, or the shipped one where there was no tour."""
    if folder is None and not Path(TOURED).is_dir():
        return load_pretrained(), pretrained_tokenizer()
    folder = Path(folder or TOURED)
    if not folder.is_dir():
        raise ValueError(f"--model {folder}: there is no such folder; `python -m minidsv4 tour` makes {TOURED}")
    return load(folder), Tokenizer.load(folder / "tokenizer.json")


class Typewriter:
    """Prints tokens as they come; half a character waits for its other half."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.ids, self.shown = tokenizer, [], 0

    def __call__(self, token: int) -> None:
        self.ids.append(token)
        self.show(self.tokenizer.decode(self.ids).rstrip("\ufffd"))

    def show(self, text: str) -> None:
        print(text[self.shown :], end="", flush=True)
        self.shown = max(self.shown, len(text))

    def close(self) -> None:
        self.show(self.tokenizer.decode(self.ids))
        print()


# --- bench ---


def measure(arguments: argparse.Namespace) -> int:
    """Measure, and draw what was found where a picture is asked for."""
    found = bench_report.run(arguments)
    if arguments.plot:
        plots.use_style()
        figure = plots.bench_curves(found.points) if arguments.curve else plots.bench_ratios(found.rows)
        figure.savefig(arguments.plot)
    return 0


# --- the command line ---


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}; --help lists what there is.\n")


def add_tour(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=3.0, help="of training, all parts of a resumed run together")
    parser.add_argument("--out", default=TOURED, help="folder that keeps the model")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and completions")
    parser.add_argument("--resume", action="store_true", help="go on from what --out keeps")


def add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="text to go on from")
    parser.add_argument(
        "--model", help=f"folder of a model with its tokenizer.json; {TOURED} if there is one, else the shipped model"
    )
    parser.add_argument("--tokens", type=int, default=100, help="at most so many")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest token")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw among the likeliest tokens of this share")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fused", action="store_true", help="compiled decoding; needs numba, 20 s the first time")


@dataclass(frozen=True)
class Command:
    """What it does, in a line; its options; its work."""

    says: str
    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


COMMANDS = {
    "tour": Command("train a small V4 on this machine's Python, and see what it learns and remembers", add_tour, tour),
    "train": Command("train by a recipe, with a log and checkpoints", pretrain.add_options, pretrain.main),
    "ship": Command("make the small checkpoint of the package from a run", ship.add_options, ship.main),
    "generate": Command("write with a model", add_generate, write),
    "bench": Command("speed and memory, beside transformers on the same weights", bench_report.add_options, measure),
    "bill": Command(
        "what a model costs: parameters, FLOPs, bytes, time, dollars", cost_report.add_options, cost_report.main
    ),
    "ranks": Command(
        "experts over real ranks, and what waves gain at a chip's pace", cost_ranks.add_options, cost_ranks.main
    ),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parser = Parser(prog="python -m minidsv4", description="DeepSeek-V4, small enough to train on a laptop.")
    commands = parser.add_subparsers(metavar="command", required=True)
    for name, command in COMMANDS.items():
        options = commands.add_parser(name, help=command.says, description=command.says)
        command.options(options)
        options.set_defaults(run=command.run)
    arguments = parser.parse_args(words)
    try:
        return arguments.run(arguments)
    except (ValueError, OSError) as error:
        print(f"{error}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
