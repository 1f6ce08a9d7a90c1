"""Memory that was used once is kept for the next tensor: a processor fills fresh pages ten times as slowly.

glibc gives a large block back to the system as soon as it is free, and the next block of that size is fresh again: a
prompt of 8,192 tokens of a small model takes some gigabytes anew. Told to keep what it has, it takes none after the
first chunk, and the process keeps what it needed at most. Where Linux has pages of 2 MB the heap's next 4 GiB are made
of them: a processor looks up 512 times fewer addresses, which saves a seventh of a training step. Both count for the
whole process, so a program asks for them (the commands do); the package does not by itself. What grows by copying, as
the cache of a long text does, leaves gaps in a heap that is kept: there memory is what one pays.
"""

import contextlib
import ctypes
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # numbers of <malloc.h>
MMAP_MAX_USUAL = 65536  # blocks of their own, as glibc starts
NEVER = -1  # the heap does not shrink, whatever is free at its end
GIB = 1 << 30
HEAPS = 4 * GIB, 2 * GIB, GIB  # address space at the heap's end for large pages, the first that there is room for
LARGE_PAGE = 2 << 20
MADV_HUGEPAGE = 14  # number of <sys/mman.h> on Linux
LARGE = 32 << 20  # bytes from which on a block is one of its own: the most that glibc lets itself learn


def glibc() -> ctypes.CDLL | None:
    """The C library of this process if it is glibc."""
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has no such handle
        return None
    return library if hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt") else None


def keep_pages() -> bool:
    """Let the whole process keep memory that is freed; True where the C library can be told so (glibc)."""
    library = glibc()
    kept = library is not None and bool(library.mallopt(MMAP_MAX, 0) and library.mallopt(TRIM_THRESHOLD, NEVER))
    if kept:
        ask_for_large_pages(library)
    return kept


def ask_for_large_pages(library: ctypes.CDLL) -> bool:
    """Have the kernel make the heap's next GiBs of large pages; False where it has none or gives no room for them.

    They are taken when used. One GiB would be full before the second of two models in a process begins to train.
    """
    library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    library.free.argtypes = [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for size in HEAPS:
        room = library.malloc(size)
        if room:
            library.free(room)  # stays a part of the heap, which does not shrink now
            begin = room + -room % LARGE_PAGE
            return library.madvise(begin, (room + size - begin) // LARGE_PAGE * LARGE_PAGE, MADV_HUGEPAGE) == 0
    return False


def give_back() -> bool:
    """Return what is free to the system, and let large blocks go as they are freed; True if there was any to return."""
    library = glibc()
    if library is None:
        return False
    library.mallopt(MMAP_MAX, MMAP_MAX_USUAL)
    library.mallopt(MMAP_THRESHOLD, LARGE)
    library.mallopt(TRIM_THRESHOLD, 2 * LARGE)
    return bool(library.malloc_trim(0))


class _Keepers:
    """How many `kept_pages` are running, in all threads."""

    running = 0
    lock = threading.Lock()


@contextlib.contextmanager
def kept_pages() -> Iterator[None]:
    """Inside, the whole process keeps its memory; what is free at the end goes back to the system.

    Of several, nested or in threads, the last to end gives it back.
    """
    with _Keepers.lock:
        _Keepers.running += 1
        keep_pages()
    try:
        yield
    finally:
        with _Keepers.lock:
            _Keepers.running -= 1
            if not _Keepers.running:
                give_back()


def peak_bytes() -> int:
    """The most bytes that this process has held so far.

    Linux hands `ru_maxrss` on from the parent to its child, so there the kernel's own record of the process is read;
    macOS, which does not, counts in bytes.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource  # not on every system

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak() -> int:
    """Lower the peak to what is held now, where the system lets one, and read it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        pass
    return peak_bytes()
