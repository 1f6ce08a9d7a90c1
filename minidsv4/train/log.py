"""The log of a training run: a line a step, there at once, and fit to be taken up again after a kill."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minidsv4.files import atomic_file


class Log:
    """One JSON object a line, written at once: what a killed run had done is there, but for a half line at its end.

    path   of the file
    after  the last step that counts: lines of later ones are left out, since that part is done again
    raises OSError with a sentence where it cannot be written; its lines before are then whole
    """

    def __init__(self, path: Path, after: int):
        kept = _lines(path, after) if after else []
        self.path = path
        with self.explained(), atomic_file(path) as scratch:
            scratch.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.file = path.open("ab", buffering=0)

    def write(self, record: dict) -> None:
        """Add a line, all of it or nothing; numbers with 6 digits.

        raises  OSError with a sentence where it cannot be written
        """
        shown = {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in record.items()}
        line = f"{json.dumps(shown)}\n".encode()
        size = self.file.tell()
        with self.explained():
            try:
                if self.file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                self.file.truncate(size)
                raise

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Inside, an OSError is raised as a sentence."""
        try:
            yield
        except OSError as error:
            raise OSError(
                f"log: {self.path} cannot be written to ({error.strerror}); free some space, then --resume goes on "
                "from the last checkpoint"
            ) from error


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
