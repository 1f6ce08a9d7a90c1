"""The decorators under which plain loops become machine code; they need numba, as does every file that uses them."""

import functools
import hashlib
from pathlib import Path

import numba

# Sums may be taken in any order, which lets them fill the processor's lanes; infinities and NaN keep their meaning.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}


def compiled(function):
    """Compile on the first call, and keep the machine code for the next process where it can be written down."""
    return kept(function, fastmath=FASTMATH)


def as_written(function):
    """Compile so that every number is what the source says, rounded operation by operation, in its order.

    A compiler that may take sums in any order takes another one for the last rows of a matrix than for the first; so
    what stands beside a number would change its last bits. This one may not, whatever machine code it chooses.
    """
    return kept(function, fastmath=False)


def kept(function, **options):
    """The function, compiled on its first call or read from what an earlier process wrote down."""
    options |= dict(error_model="numpy", nogil=True)  # threads may run them side by side
    try:
        dispatcher = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        return numba.njit(**options)(function)
    know_the_folder(dispatcher, Path(function.__code__.co_filename).parent)
    forget_unreadable(dispatcher)
    return dispatcher


def know_the_folder(dispatcher, folder: Path) -> None:
    """Take kept machine code for old once any Python file of the folder, or of this one, has changed.

    It holds that of the functions that it calls, and numba looks at the age of the caller's file alone.
    """
    kept = dispatcher._cache._cache_file
    folders = {folder, Path(__file__).parent}
    files = [(path, path.stat()) for each in sorted(folders) for path in sorted(each.glob("*.py"))]
    contents = [(path.name, digest(path, stat.st_mtime_ns, stat.st_size)) for path, stat in files]
    kept._source_stamp = kept._source_stamp, contents


@functools.cache
def digest(path: Path, _changed: int, _size: int) -> str:
    """The SHA-256 of a file, read anew where time or size are other ones: each function asks for the whole folder."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def forget_unreadable(dispatcher) -> None:
    """Drop machine code that cannot be read back: damaged, or of types that had another name when it was kept.

    numba looks at the age of what it kept only after unpickling it, and lets the failure through.
    """
    kept = dispatcher._cache._cache_file
    try:
        for name in kept._load_index().values():
            kept._load_data(name)
    except FileNotFoundError:
        return  # numba compiles anew where a file is missing
    except Exception:  # an unpickler that reads nonsense may raise anything
        kept.flush()
