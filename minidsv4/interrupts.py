"""Ctrl-C while a command is loaded: one sentence and the exit code of a shell, in place of a traceback.

Loaded by the first line of the package where `python -m minidsv4` runs it. Before that line Python itself is starting,
and a Ctrl-C then ends in Python's own words: nothing of this package can change that.
"""

import os
import signal

STOPPED = 130  # the exit code that a shell has for SIGINT


def leave(_number: int, _frame: object) -> None:
    """End the process at once: a library that is cut in two while it is imported raises errors of its own."""
    os.write(2, b"Stopped.\n")
    os._exit(STOPPED)


def leave_on_ctrl_c() -> None:
    """From now on Ctrl-C ends the process, unless someone else listens to it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)


def raise_on_ctrl_c() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt again, if it ended the process before."""
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
