"""`python -m minidsv4 vectors FOLDER`: write the test vectors, or compare another implementation's values with them."""

import argparse

from minidsv4 import options
from minidsv4.course.mutants import MUTANTS
from minidsv4.course.vectors.cases import CASES
from minidsv4.course.vectors.comparing import Result, compare
from minidsv4.course.vectors.writing import WORDS, write

DIFFERS = 1  # the exit code where a case differs


def add_options(parser: argparse.ArgumentParser) -> None:
    """Where the vectors are, and whose values are compared with them."""
    parser.add_argument("folder", type=options.folder, help="a new folder to write; with --check, one that was written")
    parser.add_argument(
        "--check", metavar="THEIRS", type=options.folder, help="a folder of your values: CASE.safetensors for each case"
    )


def main(arguments: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    if arguments.check is None:
        folder = write(arguments.folder)
        print(f"{len(CASES)} cases and the model are in {folder}; {WORDS} there says how to compare")
        return 0
    results = compare(arguments.folder, arguments.check)
    print("\n".join([*table(results), *lead(results)]))
    given = [result for result in results if result.n_given]
    return 0 if given and all(result.agrees for result in given) else DIFFERS


def table(results: list[Result]) -> list[str]:
    """A line for each case, and one that counts them."""
    width = max(len(result.case) for result in results)
    lines = [f"{result.case:{width}}  {verdict(result)}" for result in results]
    n_given = sum(result.n_given > 0 for result in results)
    n_agreeing = sum(result.agrees for result in results)
    return [*lines, f"{n_agreeing} of {n_given} cases given agree; there are {len(results)}"]


def lead(results: list[Result]) -> list[str]:
    """Where to look first: the earliest value that differs, and the mistakes that begin there; empty if all agree."""
    wrong = [result for result in results if result.first is not None]
    if not wrong:
        return []
    earliest = min(wrong, key=lambda result: result.place)
    n_cases = sum(result.first == earliest.first for result in wrong)
    said = f"Look first at {earliest.first}, the earliest value that differs (cases in which it does: {n_cases})."
    if earliest.first == "logits":
        return [
            said,
            "Write the values before the logits as well: the first that differs names the part that is wrong.",
        ]
    suspects = [
        f"  {result.case}: {MUTANTS[result.case].mistake}" for result in results if result.begins == earliest.first
    ]
    return [said, "Mistakes whose case begins to differ there:", *suspects] if suspects else [said]


def verdict(result: Result) -> str:
    """How a case stands, in words."""
    if not result.n_given:
        return "not given"
    said = f"{result.n_given} of {result.n_stored} values"
    return f"agrees ({said})" if result.first is None else f"DIFFERS first in {result.first}: {result.how} ({said})"
