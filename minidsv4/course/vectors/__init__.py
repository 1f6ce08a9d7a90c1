"""Test vectors for other implementations: a trained model, inputs, and what every part of it should give.

    python -m minidsv4 vectors FOLDER                 write them
    python -m minidsv4 vectors FOLDER --check THEIRS  say which case of another implementation differs, and where first

Each case has the name of the mistake in the bug museum (`minidsv4.course.mutants`) that its values catch.
"""

from minidsv4.course.vectors.cases import CASES, Case
from minidsv4.course.vectors.comparing import Result, compare
from minidsv4.course.vectors.writing import write

__all__ = ["CASES", "Case", "Result", "compare", "write"]
