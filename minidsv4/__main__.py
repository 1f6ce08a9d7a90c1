"""The command line: `python -m minidsv4 tour`, `train`, `generate` and the others in `COMMANDS`.

A command is a function that takes the parsed arguments and returns an exit code. What a user got wrong is told in one
sentence on stderr, with exit code 2.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minidsv4.bench import report as bench_report
from minidsv4.cost import ranks as cost_ranks
from minidsv4.cost import report as cost_report
from minidsv4.course import plots, tour
from minidsv4.fast import FAST
from minidsv4.ops import PLAIN
from minidsv4.serve import completion
from minidsv4.train import pretrain, ship


def measure(arguments: argparse.Namespace) -> int:
    """Measure, and draw what was found where a picture is asked for."""
    found = bench_report.run(arguments)
    if arguments.plot:
        plots.use_style()
        plots.bench_curves(found.points).savefig(arguments.plot)
    return 0


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}; --help lists what there is.\n")


@dataclass(frozen=True)
class Command:
    """What it does, in a line; its options; its work; whether it runs a model, so that `--plain` is one of them."""

    says: str
    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    runs_model: bool = False


COMMANDS = {
    "tour": Command(
        "train a small V4 on this machine's Python, and see what it learns and remembers",
        tour.add_options,
        tour.main,
        runs_model=True,
    ),
    "train": Command(
        "train by a recipe, with a log and checkpoints", pretrain.add_options, pretrain.main, runs_model=True
    ),
    "ship": Command("make the small checkpoint of the package from a run", ship.add_options, ship.main),
    "generate": Command("write with a model", completion.add_options, completion.main, runs_model=True),
    "bench": Command("speed and memory, beside transformers on the same weights", bench_report.add_options, measure),
    "bill": Command(
        "what a model costs: parameters, FLOPs, bytes, time, dollars", cost_report.add_options, cost_report.main
    ),
    "ranks": Command(
        "experts over real ranks, and what waves gain at a chip's pace", cost_ranks.add_options, cost_ranks.main
    ),
}


def add_plain(parser: argparse.ArgumentParser) -> None:
    """`--plain`, as the table of operations that the model runs."""
    says = "run the operations of ops.py, to be read, in place of their fast exact replacements"
    parser.add_argument("--plain", action="store_const", dest="ops", const=PLAIN, default=FAST, help=says)


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parser = Parser(prog="python -m minidsv4", description="DeepSeek-V4, small enough to train on a laptop.")
    commands = parser.add_subparsers(metavar="command", required=True)
    for name, command in COMMANDS.items():
        options = commands.add_parser(name, help=command.says, description=command.says)
        command.options(options)
        options.set_defaults(run=command.run)
        if command.runs_model:
            add_plain(options)
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
