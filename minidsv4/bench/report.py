"""The command `python -m minidsv4 bench`: its options, its refusals, its tables and its JSON."""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from minidsv4.bench import measure, sizes
from minidsv4.bench.measure import Bench, Row
from minidsv4.bench.sides import Ours, Peer, peer_is_here
from minidsv4.cost.report import length

PHASES = {  # lengths that are measured unless others are asked for
    "prefill": (1024, 4096, 8192, 32768),
    "decode": (1024, 8192, 32768),
    "train": (),
    "memory": (8192,),
    "cache": (8192,),
}
INSTALL = "bench: transformers is not installed, so minidsv4 runs alone; `pip install 'transformers>=5.23'` adds it."


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m minidsv4 bench`."""
    parser.add_argument(
        "--size", type=words, default=["tiny"], help="tiny, mini, peer, several with commas, or a config.json"
    )
    parser.add_argument("--phases", type=phases, default=list(PHASES), help=f"some of {','.join(PHASES)}")
    parser.add_argument("--lengths", type=lengths, help="tokens, such as 1K,8K,1M; each phase has its own otherwise")
    parser.add_argument("--threads", type=threads, default=1, help="of both sides")
    parser.add_argument("--repeats", type=whole, default=5, help="rounds; medians are compared")
    parser.add_argument("--alone", action="store_true", help="without transformers")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: seconds of the processor")
    parser.add_argument("--json", help="file for every measured value")
    parser.add_argument("--plot", help="picture of the ratios: .png, .svg or .pdf")


def words(text: str) -> list[str]:
    """Words between commas."""
    return [word for word in text.split(",") if word]


def phases(text: str) -> list[str]:
    """Names of PHASES between commas."""
    wrong = [word for word in words(text) if word not in PHASES]
    if wrong or not words(text):
        raise argparse.ArgumentTypeError(f"{text!r} names no phases; give some of {','.join(PHASES)}")
    return words(text)


def lengths(text: str) -> list[int]:
    """Lengths between commas, in rising order."""
    return sorted({length(word) for word in text.split(",")})


def whole(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} counts nothing; give a whole number from 1")
    return int(text)


def threads(text: str) -> int:
    """A number of threads that the machine has."""
    most = os.cpu_count() or 1
    if whole(text) > most:
        raise argparse.ArgumentTypeError(f"{text} threads would wait for each other; this machine has {most}")
    return int(text)


def run(arguments: argparse.Namespace) -> list[Row]:
    """Everything asked for, told while it is measured.

    raises  ValueError, before anything is allocated, for what cannot be run
    """
    configs = {name: sizes.load_size(name) for name in arguments.size}
    check(arguments, configs)
    alone = arguments.alone or not peer_is_here()
    if alone and not arguments.alone:
        print(INSTALL, file=sys.stderr)
    torch.set_num_threads(arguments.threads)
    print(machine(arguments, alone))
    rows = []
    for name, config in configs.items():
        rows += compare(name, config, arguments, alone)
    if arguments.json:
        Path(arguments.json).write_text(to_json(rows, arguments))
    return rows


def check(arguments: argparse.Namespace, configs: dict) -> None:
    """Refuse what this machine cannot run, and files that cannot be written."""
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("bench: --device cuda: torch finds no CUDA device here; leave it out to run on the processor")
    if arguments.device == "cuda" and arguments.clock == "cpu":
        raise ValueError("bench: --clock cpu says nothing of a CUDA device's time; use --clock wall")
    for option, name in (("--json", arguments.json), ("--plot", arguments.plot)):
        if name and not os.access(Path(name).absolute().parent, os.W_OK):
            raise ValueError(f"bench: {option} {name}: cannot be written to; give a file in a folder that can")
    if arguments.plot and Path(arguments.plot).suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"bench: --plot {arguments.plot}: give a name that ends in .png, .svg or .pdf")
    for name, config in configs.items():
        longest = max((n for phase in arguments.phases for n in lengths_of(arguments, phase)), default=1)
        needed = sizes.ours_needs(config, longest)
        sizes.refuse_what_does_not_fit(f"{name} at {longest:,} tokens", needed, arguments.device)
        if "train" in arguments.phases:
            sizes.refuse_what_does_not_fit(f"training {name}", sizes.training_needs(config), arguments.device)


def lengths_of(arguments: argparse.Namespace, phase: str) -> Iterable[int]:
    """The lengths asked for, or the phase's own."""
    return (arguments.lengths or PHASES[phase]) if PHASES[phase] else ()


def compare(name: str, config, arguments: argparse.Namespace, alone: bool) -> list[Row]:
    """All rows of one size, printed as they come."""
    ours = Ours(config, arguments.device)
    peer = None if alone else Peer(config, arguments.device, weights=ours.model)
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    bench = Bench(name, config, ours, peer, arguments.repeats, clock, arguments.device, arguments.threads)
    n_parameters = sum(parameter.numel() for parameter in ours.model.parameters()) / 1e6
    shape = f"{config.hidden_size} wide, {config.num_hidden_layers} layers"
    print(f"\n{name}: {n_parameters:.1f} million parameters, {shape}, float32")
    if peer is not None:
        print(f"the same weights: logits differ by {measure.agreement(bench):.1g} at most")
    print(line("", "minidsv4", "" if alone else "transformers", "" if alone else "ratio", ""), flush=True)
    rows = []
    for row in every_row(bench, arguments):
        print(row_line(row), flush=True)
        rows.append(row)
    if peer is not None:
        print("transformers' experts:", ", ".join(f"{kind} {found}" for kind, found in peer.backends.items()))
    return rows


def every_row(bench: Bench, arguments: argparse.Namespace) -> Iterable[Row]:
    """The phases asked for, in their order, at every length."""
    for phase in arguments.phases:
        for n_tokens in lengths_of(arguments, phase):
            yield from getattr(measure, phase)(bench, n_tokens)
        if phase == "train":
            yield from measure.train(bench)
        if phase == "memory" and "train" in arguments.phases:
            yield from measure.training_memory(bench)


# --- words ---


def machine(arguments: argparse.Namespace, alone: bool) -> str:
    """What it runs on and how it is measured."""
    processor = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.machine()
    versions = [f"torch {torch.__version__}"]
    versions += [] if alone else [f"transformers {importlib.metadata.version('transformers')} eager"]
    ways = f"{arguments.threads} thread(s), medians of up to {arguments.repeats} rounds ({arguments.clock} clock)"
    return f"{processor}, {', '.join(versions)}; {ways}"


def line(*cells: str) -> str:
    """Cells in the table's columns."""
    return "  ".join(f"{cell:{width}}" for cell, width in zip(cells, (36, 26, 26, 8, 14))).rstrip()


def label(row: Row) -> str:
    """'prefill 8,192, whole'."""
    if row.way == "train" or row.phase == "train":
        return f"{row.phase}{' of training' if row.way else ''}, step of {' x '.join(map(str, sizes.TRAINED))}"
    return f"{row.phase} at {row.n_tokens:,}" + f", {row.way}" * bool(row.way)


def amount(row: Row, values: list[float]) -> str:
    """A median with the range that it was taken from."""
    middle, low, high = statistics.median(values), min(values), max(values)
    if row.unit == "B":
        return sizes.readable(middle)
    if row.phase == "decode":
        return f"{1 / middle:,.0f} tokens/s ({1 / high:,.0f}-{1 / low:,.0f})"
    return f"{middle:.3g} s ({low:.3g}-{high:.3g})"


def row_line(row: Row) -> str:
    """A row of the table."""
    peer = amount(row, row.peer) if row.peer else row.why
    ratio, spread = row.ratio(), row.spread()
    times = f"{ratio:.3g}x" if ratio else ""
    return line(
        label(row),
        amount(row, row.ours),
        peer,
        times,
        f"({spread[0]:.3g}-{spread[1]:.3g})" if ratio and len(row.peer) > 1 else "",
    )


def to_json(rows: list[Row], arguments: argparse.Namespace) -> str:
    """Every measured value with what it was measured on."""
    settings = {name: getattr(arguments, name) for name in ("threads", "repeats", "clock", "device")}
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return json.dumps({"settings": settings, "versions": versions, "rows": [row.to_dict() for row in rows]}, indent=2)
