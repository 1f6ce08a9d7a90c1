"""The reader's file made from the solution: everything that is to be written is left out, docstrings stay.

python -m minidsv4.course.build.stubs SOLUTION > STUBS
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from minidsv4.course.build.track import TARGETS

HEAD = '''"""Your DeepSeek-V4: every `raise NotImplementedError` is yours to write.

The notebooks beside this file say what, in which order. A docstring says what is to be
returned, in shapes; constructors are given, so that tensors have their released names.
`build.check("rotate")` in a notebook loads this file as it is saved, and says how that
step stands.

'''


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions and methods of a module with their qualified names, in order."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef):
                    yield f"{node.name}.{part.name}", part


def stubs(solution: str) -> str:
    """The solution with the body of each target replaced by `raise NotImplementedError`."""
    tree = ast.parse(solution)
    lines = solution.splitlines()
    for name, node in reversed(list(functions(tree))):
        if name in TARGETS:
            assert ast.get_docstring(node), f"{name} needs a docstring: it is the task"
            body = " " * node.body[0].col_offset + "raise NotImplementedError"
            lines[node.body[0].end_lineno : node.end_lineno] = [body]
    letters = (ast.get_docstring(tree) or "").partition("Letters:")
    rest = lines[tree.body[0].end_lineno :]
    return "\n".join([f'{HEAD}{"".join(letters[1:])}\n"""', *rest]) + "\n"


if __name__ == "__main__":
    print(stubs(Path(sys.argv[1]).read_text(encoding="utf-8")), end="")
