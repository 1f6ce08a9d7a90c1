"""Write-ahead log of rollouts: each token is in a file before it counts, so a killed run goes on where it was.

The report's rollout service has such a log. A run that is killed and begins its unfinished texts again, with new random
numbers, favours short texts: the long ones are killed more often. With the log nothing is drawn twice: a text goes on
behind its last logged token, with the random numbers that come next.

The file is text, one record a line: `request token checksum`. A checksum covers its line and the one before, so a
line that is damaged, missing or from another place is found. Only the last line can be torn by a kill; it is cut off.
"""

import errno
import json
import os
import zlib
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from types import TracebackType

from minidsv4.files import given_path

FORMAT = 1


class RolloutLog:
    """The log of one run, open for one process at a time.

    path     of the file, made if there is none
    run      what decides the tokens: names and values that JSON holds, such as digests of model and prompts, and seeds
    n_texts  how many texts the run writes
    written  token ids of every text so far
    raises   ValueError: the file is of another run, is damaged, or is written by another process;
             OSError: it cannot be written
    """

    def __init__(self, path: str | Path, run: dict, n_texts: int):
        self.path = given_path("rollout log", path)
        self.written: list[list[int]] = [[] for _ in range(n_texts)]
        self.file = open_alone(self.path)
        try:
            self._checksum = self._read(header(run, n_texts))
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> "RolloutLog":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.file.close()

    def append(self, tokens: Iterable[tuple[int, int]]) -> None:
        """Log what one step wrote, pairs of text and token id: handed to the system at once, in one piece.

        raises  OSError where the disk is full; the file then ends with the last whole line
        """
        tokens = list(tokens)
        lines, checksum = [], self._checksum
        for text, token in tokens:
            line, checksum = sealed(f"{text} {token}", checksum)
            lines.append(line)
        self._write(b"".join(lines))
        self._checksum = checksum
        for text, token in tokens:
            self.written[text].append(token)

    def _write(self, lines: bytes) -> None:
        """All of it, or nothing and an OSError."""
        end = self.file.tell()
        try:
            if self.file.write(lines) < len(lines):
                raise OSError(errno.ENOSPC, "no room for a whole line", str(self.path))
        except OSError:
            self.file.truncate(end)
            self.file.seek(end)
            raise

    def to_disk(self) -> None:
        """Wait until everything is on the disk: a kill loses nothing without, a power cut does."""
        os.fsync(self.file.fileno())

    def _read(self, first: str) -> int:
        """Take in what the file holds, cut off a torn last line, and stand behind the last whole one."""
        data = self.file.readall()
        begun, checksum = sealed(first, 0)
        if begun.startswith(data) and data != begun:  # nothing yet, or a header that a kill tore
            self.file.seek(0)
            self.file.write(begun)
            return checksum
        head, _, rest = data.partition(b"\n")
        if head + b"\n" != begun:
            raise ValueError(f"rollout log: {self.path} is of another run{difference(head, first)}; give another file")
        *lines, torn = rest.split(b"\n")
        for number, line in enumerate(lines, 2):
            checksum = self._take(number, line + b"\n", checksum)
        self.file.seek(len(data) - len(torn))
        self.file.truncate()
        return checksum

    def _take(self, number: int, line: bytes, before: int) -> int:
        """Take in one record; its checksum."""
        text, _, rest = line.decode("ascii", "replace").partition(" ")
        token = rest.partition(" ")[0]
        right, checksum = sealed(f"{text} {token}", before)
        if line != right or not (text.isdecimal() and token.isdecimal() and int(text) < len(self.written)):
            raise ValueError(
                f"rollout log: line {number} of {self.path} is damaged; remove it and those after it, which loses "
                "their tokens, or give another file"
            )
        self.written[int(text)].append(int(token))
        return checksum


def open_alone(path: Path) -> FileIO:
    """The file, for reading and writing, unbuffered and locked.

    raises  ValueError where another process has it; OSError where it cannot be opened
    """
    import fcntl  # Windows has none

    file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(
            f"rollout log: {path} is written by another process; wait for it, or give another file"
        ) from None
    return file


def header(run: dict, n_texts: int) -> str:
    """The first line: format, number of texts, and what decides their tokens."""
    return json.dumps({"format": FORMAT, "texts": n_texts} | run, sort_keys=True, separators=(",", ":"))


def sealed(text: str, before: int) -> tuple[bytes, int]:
    """A line with its checksum, and the checksum; it follows the line whose checksum was `before`."""
    checksum = zlib.crc32(text.encode(), before)
    return f"{text} {checksum:08x}\n".encode(), checksum


def difference(line: bytes, first: str) -> str:
    """Which names of the header differ, as a part of a sentence."""
    try:
        theirs, _ = json.JSONDecoder().raw_decode(line.decode())
        ours = json.loads(first)
        names = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    except (ValueError, AttributeError):
        return ""
    return f" ({', '.join(names)} differ)" if names else ""
