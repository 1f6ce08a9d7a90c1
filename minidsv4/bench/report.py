"""The command `python -m minidsv4 bench`: its options, its refusals, its tables and its JSON."""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from minidsv4 import options
from minidsv4.bench import implementations, limits, peak_memory, phases
from minidsv4.bench.implementations import RECOMPUTED, SIZES, MiniDSV4, Transformers, reference_is_here
from minidsv4.bench.phases import Bench
from minidsv4.bench.rows import Point, Row
from minidsv4.config import Config
from minidsv4.cost import parameters
from minidsv4.cost.report import length
from minidsv4.fast.compiled.numba_loops import numba_is_here, told_of_compiling

PHASES = {  # lengths that are measured unless others are asked for
    "attend": (64, 256, 1024),
    "prefill": (64, 256, 1024, 4096, 8192, 32768),
    "decode": (1024, 8192, 32768),
    "train": (),
    "memory": (8192,),
    "cache": (8192,),
}
INSTALL = "bench: transformers is not installed, so minidsv4 runs alone; `pip install 'transformers>=5.23'` adds it."
NO_FUSED = "bench: numba is not installed, so no decoding step is fused; `pip install 'minidsv4[fast]'` adds it."
HEADING = ("", "minidsv4", "PLAIN/it", "FLOPs, bytes", "fresh", "calls", "transformers", "ratio")
WIDTHS = (57, 26, 8, 12, 8, 5, 26, 6, 14)
LEGEND = """FLOPs, bytes: those it needs, as shares of what a large product and a copy do in that time on this machine.
fresh: pages that the system hands out anew in one run. calls: share that calling its operations takes by itself.
"""
CURVE_HEADING = ("tokens", "prefill, us/token", "decode, ms/token", "cache, MB", "beside it, MB")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m minidsv4 bench`."""
    several = f"{', '.join(SIZES)}, several with commas, or a config.json"
    parser.add_argument("--size", type=words, default="tiny", help=several)
    parser.add_argument("--phases", type=words, default=",".join(PHASES), help=f"some of {','.join(PHASES)}")
    parser.add_argument("--lengths", type=lengths, help="tokens, such as 1K,8K,1M; each phase has its own otherwise")
    parser.add_argument("--threads", type=options.count, default=1, help="of both implementations")
    parser.add_argument("--repeats", type=options.count, default=5, help="rounds; medians are compared")
    parser.add_argument("--alone", action="store_true", help="without transformers")
    parser.add_argument("--curve", action="store_true", help="only what 1K to 1M tokens cost, minidsv4 alone: minutes")
    parser.add_argument("--fused", action="store_true", help="with --curve: pick and decode in compiled loops (numba)")
    parser.add_argument("--json", help="file for every measured value")
    parser.add_argument("--plot", help="with --curve: picture of the curves, .png, .svg or .pdf")


def words(text: str) -> list[str]:
    """Words between commas, none of them empty."""
    found = text.split(",")
    if not all(word.strip() for word in found):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name; give words between commas, such as tiny,mini")
    return found


def lengths(text: str) -> list[int]:
    """Lengths between commas, in rising order."""
    return sorted({length(word) for word in text.split(",")})


@dataclass
class Found:
    """Rows of the comparison, their shares of the machine's limits, cost curves, and how the reference ran.

    references  size: largest difference of logits, backends of the experts
    """

    rows: list[Row] = field(default_factory=list)
    shares: list[limits.Share | None] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    references: dict[str, dict] = field(default_factory=dict)


def run(arguments: argparse.Namespace) -> Found:
    """Everything asked for, printed while it is measured; the JSON grows with every size.

    raises  ValueError, before anything is allocated, for what cannot be run
    """
    configs = {Path(name).stem: implementations.load_size(name) for name in arguments.size}
    found = Found()
    alone = arguments.alone or arguments.curve or not reference_is_here()
    check(arguments, configs)
    if alone and not (arguments.alone or arguments.curve):
        print(INSTALL, file=sys.stderr)
    if "decode" in arguments.phases and not arguments.curve and not numba_is_here():
        print(NO_FUSED, file=sys.stderr)
    torch.set_num_threads(arguments.threads)
    print(machine(arguments, alone))
    print("" if arguments.curve else LEGEND, end="")
    for name, config in configs.items():
        print(f"\n{describe(name, config)}", flush=True)
        if arguments.curve:
            print("".join(f"{head:>18}" for head in CURVE_HEADING), flush=True)
            asked = (config, arguments.threads, lengths_of(arguments, "curve"), arguments.fused)
            found.points += peak_memory.run_alone(phases.curve, name, *asked)
        else:
            compare(name, config, arguments, alone, found)
        if arguments.json:
            Path(arguments.json).write_text(to_json(found, arguments), encoding="utf-8")
    return found


def check(arguments: argparse.Namespace, configs: dict[str, Config]) -> None:
    """Refuse what this machine cannot run, and files that cannot be written."""
    if wrong := [word for word in arguments.phases if word not in PHASES]:
        raise ValueError(f"bench: --phases {','.join(wrong)!r} names no phase; give some of {','.join(PHASES)}")
    if arguments.threads > (os.cpu_count() or 1):
        raise ValueError(f"bench: --threads {arguments.threads}: this machine has {os.cpu_count()}")
    if arguments.fused and not (arguments.curve and numba_is_here()):
        raise ValueError("bench: --fused goes with --curve, and needs numba (`pip install 'minidsv4[fast]'`)")
    if arguments.plot and not arguments.curve:
        raise ValueError("bench: --plot draws the curves; give --curve with it")
    for option, name in (("--json", arguments.json), ("--plot", arguments.plot)):
        if name and not os.access(Path(name).absolute().parent, os.W_OK):
            raise ValueError(f"bench: {option} {name}: cannot be written to; give a file in a folder that can")
    if arguments.plot and Path(arguments.plot).suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"bench: --plot {arguments.plot}: give a name that ends in .png, .svg or .pdf")
    for name, config in configs.items():
        asked = ["curve"] if arguments.curve else arguments.phases
        longest = max((n for phase in asked for n in lengths_of(arguments, phase)), default=1)
        peak_memory.check_memory(f"{name} at {longest:,} tokens", peak_memory.own_needs(config, longest))
        if "train" in asked:
            peak_memory.check_memory(f"training {name}", peak_memory.training_needs(config))


def lengths_of(arguments: argparse.Namespace, phase: str) -> tuple[int, ...]:
    """The lengths asked for, or the phase's own; none for a phase that has no length."""
    own = (PHASES | {"curve": phases.CURVE})[phase]
    return tuple(arguments.lengths or own) if own else ()


def compare(name: str, config: Config, arguments: argparse.Namespace, alone: bool, found: Found) -> None:
    """All rows of one size, printed as they come and added to what was found."""
    ours = MiniDSV4(config)
    reference = None if alone else Transformers(config, weights=ours.model)
    bench = Bench(name, config, ours, reference, arguments.repeats, arguments.threads)
    if reference is not None:
        difference = phases.agreement(bench)
        found.references[name] = {"difference": difference, "experts": reference.backends}
        print(f"the same weights: logits differ by {difference:.1g} at most")
    print(line(*HEADING[: 6 if alone else None]), flush=True)
    with told_of_compiling() if numba_is_here() else contextlib.nullcontext():
        for row in every_row(bench, arguments):
            found.rows.append(row)
            found.shares.append(limits.share(bench, row))
            print(row_line(row, found.shares[-1]), flush=True)
    if reference is not None:
        print("transformers' experts:", ", ".join(f"{kind} {backend}" for kind, backend in reference.backends.items()))


def every_row(bench: Bench, arguments: argparse.Namespace) -> Iterator[Row]:
    """The phases asked for, in their order, at every length."""
    for phase in arguments.phases:
        for n_tokens in lengths_of(arguments, phase):
            yield from getattr(phases, phase)(bench, n_tokens)
        if phase == "train":
            yield from phases.train(bench)
        if phase == "memory" and "train" in arguments.phases:
            yield from phases.training_memory(bench)


# --- words ---


def machine(arguments: argparse.Namespace, alone: bool) -> str:
    """What it runs on and how it is measured."""
    versions = f"torch {torch.__version__}"
    versions += "" if alone else f", transformers {importlib.metadata.version('transformers')} eager"
    ways = f"{arguments.threads} thread(s), medians of up to {arguments.repeats} rounds"
    return f"{platform.machine()}, {versions}; {ways}"


def describe(name: str, config: Config) -> str:
    """A size in a line."""
    n_parameters = parameters.total(parameters.parameters(parameters.weights(config))).total / 1e6
    shape = f"{config.hidden_size} wide, {config.num_hidden_layers} layers"
    return f"{name}: {n_parameters:.1f} million parameters, {shape}, float32"


def line(*cells: str) -> str:
    """Cells in the table's columns."""
    return "  ".join(f"{cell:{width}}" for cell, width in zip(cells, WIDTHS)).rstrip()


def label(row: Row) -> str:
    """'prefill at 8,192, whole, compiled'."""
    words = [f"{row.phase} at {row.n_tokens:,}", row.way]
    if "train" in (row.phase, row.way) or row.way == RECOMPUTED:
        step = " x ".join(map(str, implementations.TRAINED))
        recomputed = RECOMPUTED if row.way == RECOMPUTED else ""
        words = ["train" if row.phase == "train" else "memory of training", f"step of {step}", recomputed]
    return ", ".join([*filter(None, words), *["compiled"] * (row.table == "COMPILED")])


def amount(row: Row, values: list[float]) -> str:
    """A median with the range that it was taken from."""
    found = (statistics.median(values), min(values), max(values))
    if row.unit == "B":
        return peak_memory.readable(found[0])
    if row.phase == "decode":
        middle, fastest, slowest = (f"{1 / time:,.0f}" if time < 0.01 else f"{1 / time:.3g}" for time in found)
        return f"{middle} tokens/s ({slowest}-{fastest})"
    return "{:.3g} s ({:.3g}-{:.3g})".format(*found)


def row_line(row: Row, share: limits.Share | None) -> str:
    """A row of the table."""
    cells = [label(row), amount(row, row.ours), f"{row.plain_over_fast():.2g}" if row.plain else ""]
    cells.append(f"{share.of_products:.0%}, {share.of_copy:.0%}" if share else "")
    cells.append("" if row.fresh is None else peak_memory.readable(row.fresh))
    cells.append(f"{share.of_calls:.0%}" if share and share.of_calls else "")
    if not row.reference:
        return line(*cells, row.why)
    low, high = row.spread()
    spread = f"({low:.3g}-{high:.3g})" if len(row.reference) > 1 else ""
    return line(*cells, amount(row, row.reference), f"{row.ratio():.3g}x", spread)


def to_json(found: Found, arguments: argparse.Namespace) -> str:
    """Every measured value with what it was measured on."""
    settings = {name: getattr(arguments, name) for name in ("threads", "repeats")}
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {"transformers": importlib.metadata.version("transformers")} if found.references else {}
    shares = [share._asdict() if share else {} for share in found.shares]
    rows = [row.to_dict() | of_limits for row, of_limits in zip(found.rows, shares)]
    measured = {"rows": rows, "points": [asdict(point) for point in found.points], "references": found.references}
    return json.dumps({"settings": settings, "versions": versions} | measured, indent=2)
