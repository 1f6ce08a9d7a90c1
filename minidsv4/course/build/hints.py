"""Three hints a step, read from `hints.md`: the first points to the idea, the third nearly gives it away."""

import re
from pathlib import Path

TEXT = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")


def hints_of(text: str) -> dict[str, list[str]]:
    """The numbered sentences under each heading, in one line each."""
    sections = (section.partition("\n") for section in text.split("\n## ")[1:])
    return {name: [" ".join(item.split()) for item in re.split(r"(?m)^\d\. ", body)[1:]] for name, _, body in sections}


HINTS = hints_of(TEXT)
