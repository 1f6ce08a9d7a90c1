"""The decorator under which plain loops become machine code; it needs numba, and so does every file that uses it."""

import numba

# Sums may be taken in any order, which lets them fill the processor's lanes; infinities and NaN keep their meaning.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}


def compiled(function):
    """Compile on the first call, and keep the machine code for the next process where it can be written down."""
    options = dict(fastmath=FASTMATH, error_model="numpy", nogil=True)  # threads may run them side by side
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        return numba.njit(**options)(function)
