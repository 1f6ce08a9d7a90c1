"""`PrefixFiles`: a folder of small files that are whole or not there, at most so many bytes of them together.

A file belongs to a block of a text: `entries` follow those of the block before, `window` and `state` follow the entries
of their own block. What goes first is what was not used for longest and nothing follows: no chain ever has a hole.
Writers take turns by a lock that ends with its process; readers take none: a file is seen whole, or is missed.
"""

import heapq
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from shutil import rmtree
from typing import NamedTuple

from minidsv4.checksums import SEAL_BYTES, seal, unsealed
from minidsv4.files import SCRATCH, locked, whole_files

PATIENCE = 10.0  # seconds that a writer waits for another; then it does without
KINDS = ("entries", "window", "state")
_NAME = re.compile(rf"(?P<block>[0-9a-f]{{64}})-(?P<before>[0-9a-f]{{64}})\.(?P<kind>{'|'.join(KINDS)})")


class Block(NamedTuple):
    """A block of a text: hashes of the text up to its end, and up to the end of the block before."""

    own: str
    before: str

    def file(self, kind: str) -> str:
        """The name of its file of one of KINDS."""
        return f"{self.own}-{self.before}.{kind}"


class Found(NamedTuple):
    """A file in the folder: its bytes, and when it was last used, in nanoseconds."""

    n_bytes: int
    used: int


class PrefixFiles:
    """The files of blocks in one folder, which several processes may use at once.

    folder  is made if need be; files of other names in it are left alone
    limit   bytes of files at most
    raises  ValueError for a folder that cannot be made, and on a system without file locks
    """

    def __init__(self, folder: Path, limit: float):
        self.folder, self.limit = folder, limit
        self._warned = False
        if os.name == "nt":
            raise ValueError("PrefixStore: Windows has no lock that ends with its process; use Linux, macOS or WSL")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"PrefixStore: folder = {folder} cannot be made ({error.strerror}); give another"
            ) from error

    def read(self, name: str) -> memoryview | None:
        """What a file holds, which counts as a use of it; None where it is not there, or is damaged and now removed."""
        path = self.folder / name
        try:
            content = unsealed(name, path.read_bytes())
        except ValueError:
            with suppress(OSError):
                path.unlink()
            return None
        except OSError:
            return None
        with suppress(OSError):  # a folder that can only be read
            os.utime(path)
        return content

    def add(self, files: Iterable[tuple[str, Callable[[], bytes]]]) -> None:
        """Write those files that are not there yet, then remove what is beyond the limit.

        Where nothing can be written, it warns once and goes on.

        files  name, and what gives the content, of each; none before the one that it follows
        """
        files = list(files)
        try:
            if all((self.folder / name).exists() for name, _ in files):
                return
            with locked(self.folder, PATIENCE):
                self._sweep()
                with whole_files(self.folder) as put:
                    for name, content in files:
                        if not (self.folder / name).exists():
                            data = content()
                            put(name, seal(name, data) + data)
                self._evict()
        except OSError as error:
            self._warn(error)

    def found(self) -> dict[str, Found]:
        """Every file by its name; none where the folder is gone."""
        files: dict[str, Found] = {}
        with ExitStack() as stack:
            try:
                entries = stack.enter_context(os.scandir(self.folder))
            except FileNotFoundError:  # somebody removed the folder
                return files
            for entry in entries:
                with suppress(FileNotFoundError):  # gone since
                    if _NAME.fullmatch(entry.name):
                        files[entry.name] = Found(entry.stat().st_size, entry.stat().st_mtime_ns)
        return files

    def report(self) -> dict[str, int]:
        """Bytes of content by kind, and of checksums."""
        files = self.found()
        total = {kind: 0 for kind in KINDS}
        for name, file in files.items():
            total[name.rpartition(".")[2]] += file.n_bytes - SEAL_BYTES
        return total | {"checksums": SEAL_BYTES * len(files)}

    def _sweep(self) -> None:
        """Remove what a killed writer left; whoever holds the lock is the only writer."""
        for path in self.folder.glob(f"{SCRATCH}*"):
            rmtree(path, ignore_errors=True)

    def _evict(self) -> None:
        """Remove files that nothing follows, the least recently used first, until the rest is within the limit."""
        files = {} if math.isinf(self.limit) else self.found()
        excess = sum(file.n_bytes for file in files.values()) - self.limit
        followed = followed_file(files)
        n_followers = Counter(followed.values())
        last = [(file.used, name) for name, file in files.items() if not n_followers[name]]
        heapq.heapify(last)
        while excess > 0:
            _, name = heapq.heappop(last)
            with suppress(FileNotFoundError):  # a reader found it damaged
                (self.folder / name).unlink()
            excess -= files[name].n_bytes
            if name in followed:
                before = followed[name]
                n_followers[before] -= 1
                if not n_followers[before]:
                    heapq.heappush(last, (files[before].used, before))

    def _warn(self, error: OSError) -> None:
        """Say once that nothing more is stored."""
        if not self._warned:
            self._warned = True
            what = f"PrefixStore: {self.folder} takes in nothing more ({error.strerror or error})"
            how = "answers go on as before, without being stored. Make room there, or give a smaller limit"
            warnings.warn(f"{what}; {how}", RuntimeWarning, stacklevel=4)


def followed_file(names: Iterable[str]) -> dict[str, str]:
    """The file that each one follows, by name, where that is there: entries of the block before, or of the same one."""
    parts = {name: found for name in names if (found := _NAME.fullmatch(name))}
    entries = {found["block"]: name for name, found in parts.items() if found["kind"] == "entries"}
    followed = {}
    for name, found in parts.items():
        before = entries.get(found["before"] if found["kind"] == "entries" else found["block"])
        if before is not None:
            followed[name] = before
    return followed
