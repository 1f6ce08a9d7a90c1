"""The corpus: Python source that lies on this machine, split by file into text to learn from and text held out.

The released model's own data are not disclosed; this is this package's. Real source differs between patch releases of
Python, so whatever must come out the same everywhere uses generated programs (`programs.py`).
"""

import hashlib
import sysconfig
from pathlib import Path
from typing import NamedTuple

LEFT_OUT = {  # folders, by name: tests, what others installed, and what is tables rather than programs
    *("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data"),
}
HELD_OUT_SHARE = 1 / 20  # of the files


class SourceFile(NamedTuple):
    """One file of the corpus: its path below the corpus root and its text."""

    name: str
    text: str


class Corpus(NamedTuple):
    """Source to learn from and source that the model never sees, split by file."""

    train: list[SourceFile]
    held_out: list[SourceFile]

    def n_bytes(self) -> int:
        """Bytes of all files, both parts."""
        return sum(len(file.text.encode()) for file in (*self.train, *self.held_out))


def python_source(root: str | Path | None = None) -> Corpus:
    """Every distinct UTF-8 Python file below a folder, read where it lies, in the order of their paths.

    A file is held out where the hash of its text says so, so the split does not depend on names or on other files.

    root     folder; None is the standard library of the running interpreter
    returns  Corpus, without folders of tests and of installed packages
    raises   ValueError where the folder holds fewer than two files to use
    """
    root = Path(root or sysconfig.get_paths()["stdlib"])
    corpus, seen = Corpus([], []), set()
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).parts):
        text = _text(path) if not LEFT_OUT.intersection(path.relative_to(root).parts) else None
        digest = hashlib.sha256((text or "").encode()).digest()
        if not text or digest in seen:
            continue
        seen.add(digest)
        part = corpus.held_out if digest[0] < 256 * HELD_OUT_SHARE else corpus.train
        part.append(SourceFile(path.relative_to(root).as_posix(), text))
    if not corpus.train or not corpus.held_out:
        raise ValueError(f"corpus: {len(seen)} Python files below {root.name!r} are too few; give another folder")
    return corpus


def _text(path: Path) -> str | None:
    """The text of a file with its line ends as they are; None where it cannot be read or is not UTF-8."""
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return None
