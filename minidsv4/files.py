"""Atomic writes: a file takes its name once it is whole, and what stood there before stays until then.

Everything is written into a temporary folder beside its target, so that several processes may write at once: the last
one that finishes wins.
"""

import os
import reprlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SCRATCH = ".saving-"  # how the names of temporary folders begin


def given_path(call: str, path: object) -> Path:
    """The path that a call was given.

    raises  ValueError, which names the call, for what is no path; an empty one would be the folder one stands in
    """
    if not isinstance(path, str | Path) or path == "" or "\0" in str(path):
        raise ValueError(f"{call}: {reprlib.repr(path)} names no file or folder; give its path, or . for this one")
    return Path(path)


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary folder, whose files move into `folder` together when the block ends; after an error none does.

    Each is on the disk before the first is moved. They move in reverse order of their names, so the weights of a model
    are there before the `config.json` that tells how to read them. Files of other names stay as they are.

    folder  exists
    yields  the path of the temporary folder, which is gone afterwards
    raises  OSError where nothing can be written
    """
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder) as scratch:
        yield Path(scratch)
        written = sorted(Path(scratch).iterdir(), reverse=True)
        to_disk(written)
        for path in written:
            os.replace(path, Path(folder, path.name))


def to_disk(paths: Iterable[Path]) -> None:
    """Wait until the files are on the disk."""
    for path in paths:
        with path.open("r+b") as file:
            os.fsync(file.fileno())


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary folder, which takes the name `folder` as a whole when the block ends; after an error it is gone.

    folder  does not exist; those above it are made
    raises  OSError where nothing can be written, or where the folder exists in the end
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder.parent) as scratch:
        made = Path(scratch, folder.name)
        made.mkdir()
        yield made
        to_disk(path for path in made.rglob("*") if path.is_file())
        if folder.exists():
            raise FileExistsError(f"{folder} exists by now")
        os.rename(made, folder)


@contextmanager
def made_folder(folder: Path) -> Iterator[Path]:
    """The folder, made if need be with those above it; after an error those that were made are gone, if empty."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except BaseException:
        for path in made:
            with suppress(OSError):  # somebody else has put something into it
                path.rmdir()
        raise


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to, which takes the place of `path` when the block ends without an error.

    raises  OSError where nothing can be written
    """
    path = Path(path)
    with atomic_folder(path.parent) as scratch:
        yield scratch / path.name


@contextmanager
def whole_files(folder: Path) -> Iterator[Callable[[str, bytes], None]]:
    """A function that puts bytes into the folder under a name: each file is there whole at once, in the order of calls.

    For what can be made again: nothing waits for the disk, so a power cut may tear what was written last.

    raises  OSError where nothing can be written
    """
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder) as scratch:

        def put(name: str, data: bytes) -> None:
            Path(scratch, name).write_bytes(data)
            os.replace(Path(scratch, name), folder / name)

        yield put


@contextmanager
def locked(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """A lock on a folder, for this process and those that it forks; it ends with them, however they end.

    patience  seconds to wait for another one to let go of it
    raises    OSError where there is no such folder, or one that stays locked
    """
    import fcntl  # Windows has none

    handle = os.open(folder, os.O_RDONLY)
    try:
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise
                time.sleep(0.002)
        yield
    finally:
        os.close(handle)


def writable_folder(folder: str | Path) -> Path:
    """The folder, made if need be.

    raises  OSError with a sentence where nothing can be written into it
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise OSError(f"--out {folder}: cannot be written to ({error.strerror}); give another folder") from error
