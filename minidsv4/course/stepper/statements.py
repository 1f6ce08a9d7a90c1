"""The lines of a source text by statement and by loop, so that a trace can tell where it is."""

import ast
from dataclasses import dataclass


@dataclass(frozen=True)
class Lines:
    """A stretch of lines, counted from 1, the last one included."""

    first: int
    last: int

    def __contains__(self, line):
        return self.first <= line <= self.last


@dataclass(frozen=True)
class Layout:
    """Where statements, loops and functions of a source text stand.

    statements  line: Lines of the statement that it is a part of; of a loop or condition only its head counts
    loops       first line of a `for`: Lines of the whole loop
    functions   first line of a function: its node in the syntax tree
    """

    statements: dict
    loops: dict
    functions: dict


def layout(source):
    """The Layout of a source text."""
    statements, loops, functions = {}, {}, {}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.stmt):
            continue
        head = Lines(node.lineno, _last_line_of_head(node))
        statements |= dict.fromkeys(range(head.first, head.last + 1), head)
        if isinstance(node, ast.For):
            loops[node.lineno] = Lines(node.lineno, node.end_lineno)
        if isinstance(node, ast.FunctionDef):
            functions[node.lineno] = node
    return Layout(statements, loops, functions)


def _last_line_of_head(node):
    """The last line of a statement without the statements inside it."""
    if isinstance(node, ast.For):
        return node.iter.end_lineno
    if isinstance(node, ast.If):
        return node.test.end_lineno
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.lineno
    return node.end_lineno
