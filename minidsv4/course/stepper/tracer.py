"""`trace(function, ...)`: every statement of `paper.py` that a computation runs, and the values it finds there.

Python itself reports the lines (`sys.settrace`), so the trace is of the code that stands in the file. A comprehension
is a part of its statement: its own frame is passed over, and what it calls counts as called by the statement. Functions
whose name begins with `_` check arguments and are passed over as well.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from minidsv4 import paper
from minidsv4.course.stepper.statements import layout
from minidsv4.course.stepper.values import Values


@dataclass
class Visit:
    """A statement about to run.

    line    its first line
    names   variables that exist then: name = row of `Values`
    passes  pairs (number of the loop's start, pass from 0) of the loops around it, the outermost first
    calls   what the statement calls in this file
    """

    line: int
    names: dict
    passes: tuple
    calls: list = field(default_factory=list)


@dataclass
class Call:
    """One call of a function of the file.

    function  its name
    line      the line of its `def`
    site      where it was called from: the same for calls by the same piece of code
    visits    its statements in the order in which they ran
    heads     number of a loop's start: how often the loop's head was visited
    loop_lines  lines of the heads that were visited
    result    row of `Values` of what it returns
    """

    function: str
    line: int
    site: tuple
    visits: list = field(default_factory=list)
    heads: dict = field(default_factory=dict)
    result: int | None = None
    loop_lines: set = field(default_factory=set)
    open_loops: list = field(default_factory=list)

    def last_pass(self, loop):
        """The number of a loop's last pass; its head is visited once more, to find that nothing is left."""
        return self.heads[loop] - 2


class Tracer:
    """Collects the calls of one computation; `root` is the outermost."""

    def __init__(self, file):
        self.file = file
        self.layout = layout(Path(file).read_text(encoding="utf-8"))
        self.values = Values()
        self.root = None
        self._running = {}  # frame: its Call

    def start(self, frame, event, argument):
        """What Python calls for every new frame; returns what it is to call for the lines of this one."""
        if frame.f_code.co_filename != self.file or frame.f_code.co_name[0] in "<_":
            return None
        caller, site = self._caller(frame)
        call = Call(frame.f_code.co_name, frame.f_code.co_firstlineno, site)
        self._running[frame] = call
        if caller is None:
            self.root = call
        else:
            caller.visits[-1].calls.append(call)
        return self._follow

    def _caller(self, frame):
        """The Call that made this frame, None for the outermost, and the places in its code."""
        site = []
        while frame.f_back is not None and frame.f_back.f_code.co_filename == self.file:
            frame = frame.f_back
            site.append((frame.f_code.co_firstlineno, frame.f_lasti))
            if frame in self._running:
                return self._running[frame], tuple(site)
        return None, ()

    def _follow(self, frame, event, argument):
        """Note a line that is about to run, or what the function returns."""
        call = self._running[frame]
        if event == "line":
            self._visit(call, frame)
        if event == "return":
            call.result = self.values.add(argument)
            del self._running[frame]
        return self._follow

    def _visit(self, call, frame):
        """Note a statement, once: Python reports each line of one that is broken over several."""
        line = self.layout.statements[frame.f_lineno].first
        if call.visits and call.visits[-1].line == line:
            return
        passes = self._passes(call, line)
        names = {name: self.values.add(value) for name, value in frame.f_locals.items() if not name.startswith(".")}
        call.visits.append(Visit(line, names, passes))

    def _passes(self, call, line):
        """The loops around a line with their passes, counted on where the line is a loop's head."""
        loops = self.layout.loops
        call.open_loops = [(head, number) for head, number in call.open_loops if line in loops[head]]
        if line in loops:
            if line not in [head for head, _ in call.open_loops]:
                call.open_loops.append((line, len(call.heads)))
                call.heads[len(call.heads)] = 0
                call.loop_lines.add(line)
            call.heads[call.open_loops[-1][1]] += 1
        return tuple((number, call.heads[number] - 1) for _, number in call.open_loops)


def trace(function, *arguments):
    """What `function`, one of `paper.py`, does with these arguments, statement by statement.

    returns  (Call, Values, Layout)
    """
    tracer = Tracer(paper.__file__)
    before = sys.gettrace()
    sys.settrace(tracer.start)
    try:
        function(*arguments)
    finally:
        sys.settrace(before)
    return tracer.root, tracer.values, tracer.layout
