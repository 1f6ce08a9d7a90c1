"""For whoever teaches with the course: copies for students, points for what they return, slides.

python -m minidsv4.course release FOLDER
python -m minidsv4.course grade FOLDER
python -m minidsv4.course slides 01
"""

import argparse
import secrets
import sys

from minidsv4.options import READER_GONE, above_0, check_memory, checked, close, folder, seed

REFUSED = 2
HOUR = 3600


def parser():
    """The commands and their options."""
    outer = argparse.ArgumentParser(prog="python -m minidsv4.course", description="Teach with the course.")
    commands = outer.add_subparsers(dest="command", required=True, metavar="release|grade|slides")
    release = commands.add_parser("release", help="write students' copies: stubs, no solutions")
    release.add_argument("folder", type=folder, help="a new or an empty folder")
    grade = commands.add_parser("grade", help="a table of points for a folder of returned notebooks")
    grade.add_argument(
        "folder", type=folder, help="one subfolder for each student, or files such as ada_01_attention.ipynb"
    )
    grade.add_argument(
        "--notebooks", nargs="+", metavar="NAME", help="such as 01 problems/1; all that somebody returned"
    )
    grade.add_argument("--format", choices=("markdown", "csv"), default="markdown")
    grade.add_argument("--seconds", type=above_0(HOUR), default=60.0, help="for each cell and each exercise (60)")
    grade.add_argument("--memory", type=checked(str, _memory), default="2 GB", help="beyond the libraries' (2 GB)")
    grade.add_argument("--seed", type=seed, help="of the inputs; drawn anew, and told, if not given")
    slides = commands.add_parser("slides", help="a notebook as slides, one HTML file that needs no network")
    slides.add_argument("name", help="such as 01 or 01_attention")
    slides.add_argument("--out", type=folder, help="the file; NAME.slides.html here if not given")
    return outer


def _memory(text):
    """The text of an amount of memory.

    raises  ValueError for what is no amount
    """
    check_memory(text, "--memory")
    return text


def run(choice):
    """Do what the words ask for, and print what is to be said."""
    if choice.command == "release":
        from minidsv4.course.kit.release import release

        names = release(choice.folder)
        print(f"{choice.folder}: {len(names)} files without solutions; README.txt in it tells students how to hand in")
    elif choice.command == "slides":
        from minidsv4.course.kit.slides import write_slides

        print(f"{write_slides(choice.name, choice.out)}: open it in a browser; arrow keys go on and back")
    else:
        grade(choice)


def grade(choice):
    """Print the table; what is done meanwhile goes to stderr."""
    from minidsv4.course.kit import table
    from minidsv4.course.kit.grade import grade_all
    from minidsv4.course.kit.pupil import Limits

    drawn = secrets.randbits(31) if choice.seed is None else choice.seed
    limits = Limits(choice.seconds, int(check_memory(choice.memory)))
    scores = grade_all(choice.folder, drawn, limits, choice.notebooks, lambda said: print(said, file=sys.stderr))
    print(table.as_csv(scores) if choice.format == "csv" else table.as_markdown(scores), end="")
    if choice.format != "csv":
        print()


def main(words=None):
    """Carry out a command.

    returns  0, 2 with a sentence on stderr where it cannot be done, 141 where the reader of the output has gone
    """
    try:
        run(parser().parse_args(words))
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        close(sys.stdout)
        return READER_GONE
    except (ValueError, OSError) as refused:
        print(" ".join(str(refused).split()), file=sys.stderr)
        return REFUSED


if __name__ == "__main__":
    sys.exit(main())
