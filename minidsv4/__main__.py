"""The command line: `python -m minidsv4 tour`, `train`, `generate` and the others in `COMMANDS`.

A command is a function that takes the parsed arguments and returns an exit code. What a user got wrong is told in one
sentence on stderr, with exit code 2. Nothing above imports torch, so that Ctrl-C is told in a sentence from the start.
"""

import argparse
import contextlib
import importlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import minidsv4
from minidsv4.interrupts import STOPPED, leave, raise_on_ctrl_c
from minidsv4.options import READER_GONE, close

REFUSED = 2  # the exit code of a command that cannot be carried out


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of every option that has one to type."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        typed = isinstance(action.default, str | int | float) and not isinstance(action.default, bool)
        return super()._get_help_string(action) if typed else action.help


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str):
        tell(f"{self.prog}: {message}; --help lists what there is")
        self.exit(REFUSED)


@dataclass(frozen=True)
class Command:
    """A line of help, the module with its `add_options` and `main`, whether it runs a model and has `--plain`."""

    says: str
    module: str
    runs_model: bool = False
    plain: bool = False


COMMANDS = {
    "tour": Command("train a small V4 on this machine's Python, and see what it learns", "course.tour", True, True),
    "train": Command("train by a recipe, with a log and checkpoints", "train.pretrain", True, True),
    "ship": Command("make the small checkpoint of the package from a run", "train.ship"),
    "mint": Command("write random weights in the exact layout of the released files", "train.mint"),
    "vectors": Command("write test vectors for other implementations, or compare with them", "course.vectors.command"),
    "generate": Command("write with a model", "serve.completion", True, True),
    "chat": Command(
        "talk with a model: it thinks, calls a tool, keeps its cache between turns", "serve.chat", True, True
    ),
    "needle": Command("facts in a text of a million tokens: which are found", "experiments.needle", True, True),
    "bench": Command("speed and memory, beside transformers on the same weights", "course.bench", True),
    "bill": Command("what a model costs: parameters, FLOPs, bytes, time, dollars", "cost.report"),
    "ranks": Command("experts over real ranks, and what waves gain at a chip's pace", "cost.ranks"),
}


def one_line(message: object) -> str:
    """A sentence with its point, and with the line breaks of what it quotes written out."""
    line = "\\n".join(str(message).splitlines())
    return line if line.endswith(".") else f"{line}."


@contextlib.contextmanager
def interrupt_that_exits() -> Iterator[None]:
    """Within, Ctrl-C ends the process at once."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        yield
        return

    try:
        signal.signal(signal.SIGINT, leave)
    except ValueError:  # only the main thread may
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def add_options(parser: argparse.ArgumentParser, command: Command) -> None:
    """The command's options; its module is loaded only now, for one command needs less than all of them."""
    try:
        with interrupt_that_exits():
            module = importlib.import_module(f"minidsv4.{command.module}")
    except ModuleNotFoundError as error:
        missing = (error.name or str(error)).split(".")[0]
        parser.error(f"{missing} is not installed; `pip install 'minidsv4[course]'` adds it")
    module.add_options(parser)
    parser.set_defaults(run=keeping_pages(module.main) if command.runs_model else module.main)
    if command.plain:
        says = "run the operations of ops.py, to be read, in place of their fast exact replacements"
        plain, fast = minidsv4.PLAIN, minidsv4.FAST
        parser.add_argument("--plain", action="store_const", dest="ops", const=plain, default=fast, help=says)


def keeping_pages(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """`run` in a process that keeps the memory it has used: tensors that come and go cost no fresh pages."""
    from minidsv4.fast.pages import kept_pages

    return kept_pages()(run)


def program() -> str:
    """What was typed to get here: the installed command, or the module."""
    return "minidsv4" if os.path.basename(sys.argv[0]) in ("minidsv4", "minidsv4.exe") else "python -m minidsv4"


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """The arguments of the command that the words name."""
    says = "DeepSeek-V4, small enough to train on a laptop."
    parser = Parser(prog=program(), description=says)
    parser.add_argument("--version", action="version", version=f"minidsv4 {minidsv4.__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    for name, command in COMMANDS.items():
        options = commands.add_parser(name, help=command.says, description=command.says, formatter_class=Help)
        if words[:1] == [name]:
            add_options(options, command)
    return parser.parse_args(words)


def open_streams() -> None:
    """Output that a terminal cannot show is replaced; where there is no terminal, it goes nowhere."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # open until the end
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace" if name == "stdout" else "backslashreplace")


def tell(message: object) -> None:
    """Say a sentence on stderr, if anyone can read it."""
    try:
        print(one_line(message), file=sys.stderr, flush=True)
    except OSError:
        close(sys.stderr)


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    open_streams()
    try:
        raise_on_ctrl_c()
        arguments = parsed(sys.argv[1:] if words is None else list(words))
        code = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        close(sys.stdout)
        return READER_GONE
    except (ValueError, OSError) as error:
        bare = isinstance(error, OSError) and error.errno and not error.filename  # the system's words, and no file
        if bare:
            close(sys.stdout)
        tell(f"the output cannot be written ({error.strerror}); send it to another place" if bare else error)
        return REFUSED
    except KeyboardInterrupt:
        tell("Stopped.")
        return STOPPED


if __name__ == "__main__":
    sys.exit(main())
