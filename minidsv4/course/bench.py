"""The command `bench`: measure, and draw the curves where a picture is asked for."""

import argparse

from minidsv4.bench.report import add_options, run
from minidsv4.course import plots

__all__ = ["add_options", "main"]


def main(arguments: argparse.Namespace) -> int:
    """Measure and print; with `--plot` save a picture too."""
    found = run(arguments)
    if arguments.plot:
        plots.use_style()
        plots.bench_curves(found.points).savefig(arguments.plot)
    return 0
