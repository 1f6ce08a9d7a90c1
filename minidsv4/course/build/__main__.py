"""`python -m minidsv4.course.build`: the table of steps, and where the reader stands."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from minidsv4.course import build
from minidsv4.course.notebooks import FOLDER
from minidsv4.options import READER_GONE, close

REFUSED = 2
PLACES = (Path("build"), Path("work/build"), FOLDER.parent / "work" / "build", FOLDER / "build")


def find() -> Path:
    """The reader's file: here, else in his copy of the notebooks, else the stubs."""
    found = [folder / build.FILE for folder in (Path(), *PLACES) if (folder / build.FILE).is_file()]
    if not found:
        raise ValueError(f"--file: there is no {build.FILE} here; give its path")
    return found[0]


def main(words: Sequence[str] | None = None) -> int:
    """Print the table, or one step's verdict; a reader who has gone, as behind `| head`, hears no complaint.

    returns  0 where all is right, 1 where something is left, 2 if refused, 141 where the reader has gone
    """
    try:
        code = run(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        close(sys.stdout)
        return READER_GONE


def run(words: Sequence[str] | None) -> int:
    """Parse the words and print what they ask for. Returns the exit code."""
    says = "Where you stand in building a V4."
    parser = argparse.ArgumentParser(prog="python -m minidsv4.course.build", description=says)
    parser.add_argument("step", nargs="?", help="say what is wrong with this step; none means the table of all")
    parser.add_argument("--file", type=Path, help="your my_v4.py; the one here, or in work/build, if not given")
    choice = parser.parse_args(words)
    try:
        file = choice.file or find()
        names = list(build.TRACK) if choice.step is None else [build.known(choice.step).name]
        found = build.verdicts(file, names)
    except ValueError as refused:
        print(refused, file=sys.stderr)
        return REFUSED
    if choice.step is None:
        print(f"{file}:")
        build.print_table(found)
    else:
        print(found[0])
    return int(any(verdict.state != build.RIGHT for verdict in found))


if __name__ == "__main__":
    sys.exit(main())
