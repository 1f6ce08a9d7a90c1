"""The process in which a student's cells run: it takes cells and arguments, and gives answers.

    python -m minidsv4.course.kit.worker

Messages come on standard input as pickles, each behind its length in 8 bytes, and answers leave on standard output as
JSON in the same form. Before any cell runs, both streams are put aside: what a cell prints or reads is nobody's.
"""

import os
import pickle
import re
import resource
import sys
from pathlib import Path

from minidsv4.course.kit import wire

MOST_FILE = 16_000_000  # bytes of a file that a cell may write


def receive(stream):
    """The next message, or None at the end."""
    size = stream.read(8)
    return pickle.loads(stream.read(int.from_bytes(size, "little"))) if len(size) == 8 else None


def send(stream, value):
    """Write a value that wire.dumps takes."""
    content = wire.dumps(value)
    stream.write(len(content).to_bytes(8, "little") + content)
    stream.flush()


def put_aside():
    """Streams for messages; standard input and output lead nowhere from now on."""
    messages = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    sys.stdin = open(os.devnull, encoding="utf-8")
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")
    return messages, answers


def limit(memory, seconds):
    """Hold this process to so many bytes beyond what it has now, and to seconds of the processor."""
    status = Path("/proc/self/status")
    if status.exists():  # elsewhere than on Linux the size of a process is told otherwise, and this limit is left out
        held = 1024 * int(re.search(r"VmSize:\s*(\d+)", status.read_text(encoding="utf-8"))[1])
        resource.setrlimit(resource.RLIMIT_AS, (held + memory, held + memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_FILE, MOST_FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def python_of(source):
    """A cell without lines for IPython's magic commands, which have no kernel here."""
    return "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines())


def attempt(function, *arguments):
    """(True, what it gives), or (False, what it raised in words): sys.exit and Ctrl-C are told as well."""
    try:
        return True, function(*arguments)
    except BaseException as error:  # a student's code may raise anything
        return False, f"{type(error).__name__}: {error}"[:300]


def run_cells(setup, cells, answers, names):
    """Run the set-up, then each cell; its number is sent before it, and after it None or what it raised."""
    exec(setup, names)
    send(answers, "ready")
    for number, source in cells:
        send(answers, number)
        went_well, said = attempt(lambda source=source: exec(compile(python_of(source), "cell", "exec"), names))
        send(answers, None if went_well else said)


def answer_of(names, name, arguments):
    """(state, answer): the state is "answer", "raised" or "missing"."""
    function = names.get(name)
    if not callable(function):
        return "missing", None
    went_well, given = attempt(function, *arguments)
    if not went_well:
        return "raised", given
    packs, said = attempt(wire.dumps, given)
    return ("answer", given) if packs else ("raised", said)


def main():
    """Run what the first message brings, then answer for each further one."""
    messages, answers = put_aside()
    first = receive(messages)
    names = {"__name__": "__main__"}
    exec(first["setup"], {})  # what it imports is there before the memory is counted
    limit(first["memory"], first["seconds"])
    run_cells(first["setup"], first["cells"], answers, names)
    while (call := receive(messages)) is not None:
        send(answers, answer_of(names, *call))


if __name__ == "__main__":
    main()
