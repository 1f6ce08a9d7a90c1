"""A student's notebook at work in a process of its own, held to time and memory, and asked for answers."""

import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from minidsv4.course.kit import wire
from minidsv4.course.live import STATIC
from minidsv4.options import readable

START = 120.0  # seconds for the imports and the set-up cell, which are the course's own


class Gone(Exception):
    """The student's process ran out of time or ended; the message says which, and `at` is the number of its cell."""

    at = None


@dataclass(frozen=True)
class Limits:
    """What a student's process may use.

    seconds  for each cell, and for the answers of each exercise
    memory   bytes beyond what the libraries take
    """

    seconds: float = 60.0
    memory: int = 2_000_000_000


class Pupil:
    """A process that has run cells and answers calls; use it in a `with` statement.

    setup   source of the course's own set-up cell
    cells   pairs (number, source) of the student's cells, in order
    limits  Limits
    raises  Gone where a cell runs too long or ends the process
    """

    def __init__(self, setup, cells, limits):
        self.limits = limits
        self.faults = {}
        self.folder = tempfile.TemporaryDirectory(prefix="pupil-")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "minidsv4.course.kit.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self.folder.name,
            env=_environment(self.folder.name),
            start_new_session=True,
        )
        try:
            self._start(setup, cells)
        except BaseException:
            self.close()
            raise

    def _start(self, setup, cells):
        """Run the set-up and the cells; what a cell raises stands in `faults` under its number."""
        whole = int(self.limits.seconds * (len(cells) + 60) + START)
        self._send({"setup": setup, "cells": cells, "memory": int(self.limits.memory), "seconds": whole})
        self._receive(START)
        for number, _ in cells:
            try:
                self._receive(self.limits.seconds)
                fault = self._receive(self.limits.seconds)
            except Gone as gone:
                gone.at = number
                raise
            if fault:
                self.faults[number] = fault

    def ask(self, name, arguments, end):
        """(state, answer) of the student's function for these arguments: "answer", "raised" or "missing".

        end     when time is up, by time.monotonic
        raises  Gone where it takes longer, or ends the process
        """
        self._send((name, arguments))
        reply = self._receive(end - time.monotonic())
        if not (isinstance(reply, tuple) and len(reply) == 2):
            raise Gone("what came back is no answer")
        return reply

    def _send(self, message):
        """Send a pickle, with its length before it."""
        content = pickle.dumps(message)
        try:
            self.process.stdin.write(len(content).to_bytes(8, "little") + content)
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Gone(self._end()) from None

    def _receive(self, seconds):
        """The next value that came, within so many seconds."""
        end = time.monotonic() + seconds
        size = int.from_bytes(self._read(8, end), "little")
        if size > wire.LARGEST:
            raise Gone(f"an answer is larger than {readable(wire.LARGEST)}")
        try:
            return wire.loads(self._read(size, end))
        except ValueError as error:
            raise Gone(str(error)) from None

    def _read(self, size, end):
        """So many bytes from the process."""
        content = b""
        pipe = self.process.stdout.fileno()
        while len(content) < size:
            if not select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
                raise Gone(f"ran longer than {self.limits.seconds:g} s")
            more = os.read(pipe, min(size - len(content), 1 << 20))
            if not more:
                raise Gone(self._end())
            content += more
        return content

    def _end(self):
        """How the process ended, in words."""
        code = self.process.wait(timeout=10)
        return f"ended the process ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"

    def close(self):
        """End the process and all that it started in its session."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.folder.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def _environment(home):
    """A small environment: the package's place, one thread, a home of its own."""
    settings = {"PATH": os.environ.get("PATH", ""), "HOME": home, "TMPDIR": home, "MPLBACKEND": "agg"}
    settings |= {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", STATIC: "1"}
    return settings | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
