"""The log of a training run: a line a step, there at once, and fit to be taken up again after a kill."""

import json
from pathlib import Path

from minidsv4.files import atomic_file


class Log:
    """One JSON object a line, written at once: what a killed run had done is there, but for a half line at its end.

    path   of the file
    after  the last step that counts: lines of later ones are left out, since that part is done again
    """

    def __init__(self, path: Path, after: int):
        kept = _lines(path, after) if after else []
        with atomic_file(path) as scratch:
            scratch.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.file = path.open("a", buffering=1, encoding="utf-8")

    def write(self, record: dict) -> None:
        """Add a line; numbers with 6 digits."""
        shown = {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in record.items()}
        self.file.write(json.dumps(shown) + "\n")


def read_log(path: str | Path) -> list[dict]:
    """The objects of a log, in order; a line that a kill cut off is left out."""
    objects = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            objects.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return objects


def _lines(path: Path, after: int) -> list[str]:
    """The lines of a log up to a step."""
    return [json.dumps(record) for record in read_log(path) if record["step"] <= after] if path.is_file() else []
