"""The command line: `python -m minidsv4 tour`, `train`, `generate` and the others in `COMMANDS`.

A command is a function that takes the parsed arguments and returns an exit code. What a user got wrong is told in one
sentence on stderr, with exit code 2.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from minidsv4.fast import FAST
from minidsv4.ops import PLAIN


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}; --help lists what there is.\n")


@dataclass(frozen=True)
class Command:
    """A line of help, the module with its `add_options` and `main`, whether it runs a model (and has `--plain`)."""

    says: str
    module: str
    runs_model: bool = False


COMMANDS = {
    "tour": Command("train a small V4 on this machine's Python, and see what it learns", "course.tour", True),
    "train": Command("train by a recipe, with a log and checkpoints", "train.pretrain", True),
    "ship": Command("make the small checkpoint of the package from a run", "train.ship"),
    "generate": Command("write with a model", "serve.completion", True),
    "bench": Command("speed and memory, beside transformers on the same weights", "course.bench"),
    "bill": Command("what a model costs: parameters, FLOPs, bytes, time, dollars", "cost.report"),
    "ranks": Command("experts over real ranks, and what waves gain at a chip's pace", "cost.ranks"),
}


def add_options(parser: argparse.ArgumentParser, command: Command) -> None:
    """The command's options; its module is loaded only now, for one command needs less than all of them."""
    try:
        module = importlib.import_module(f"minidsv4.{command.module}")
    except ModuleNotFoundError as error:
        parser.error(f"{error.name.split('.')[0]} is not installed; `pip install 'minidsv4[course]'` adds it")
    module.add_options(parser)
    parser.set_defaults(run=module.main)
    if command.runs_model:
        says = "run the operations of ops.py, to be read, in place of their fast exact replacements"
        parser.add_argument("--plain", action="store_const", dest="ops", const=PLAIN, default=FAST, help=says)


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = sys.argv[1:] if words is None else list(words)
    parser = Parser(prog="python -m minidsv4", description="DeepSeek-V4, small enough to train on a laptop.")
    commands = parser.add_subparsers(metavar="command", required=True)
    for name, command in COMMANDS.items():
        options = commands.add_parser(name, help=command.says, description=command.says)
        if words[:1] == [name]:
            add_options(options, command)
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
