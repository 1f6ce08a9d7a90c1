"""The reader's file: loaded anew at every check, and what its exceptions mean, in a line or two."""

import linecache
import sys
import traceback
from pathlib import Path
from types import ModuleType

NAME = "my_v4"
MOST_LETTERS = 300  # of an exception's message


def load(path: str | Path = f"{NAME}.py") -> ModuleType:
    """The module that the file holds at this moment, also as `sys.modules["my_v4"]`, so that `import my_v4` finds it.

    raises  ValueError where there is no such file, or with the line and message of what stops it
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"file: there is no {path.name} here; start Python in its folder, or give its path")
    module = ModuleType(NAME)
    module.__file__ = str(path)
    linecache.checkcache(str(path))
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
    except SyntaxError as error:
        line = (error.text or "").strip()
        raise ValueError(f"{path.name}, line {error.lineno}: {error.msg}: {line}") from None
    except (Exception, SystemExit) as error:  # whatever stands outside of functions
        raise ValueError(told(error, path)) from None
    sys.modules[NAME] = module
    return module


def frames(error: BaseException, path: str | Path) -> list[traceback.FrameSummary]:
    """The lines of the reader's file that the exception passed, outermost first."""
    return [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]


def place_of(error: BaseException, path: str | Path) -> str | None:
    """The name of the reader's function that raised, such as `Compressor.forward`; None if another's did."""
    step, found = error.__traceback__, None
    while step is not None:
        code = step.tb_frame.f_code
        if code.co_filename == str(path):
            found = code.co_qualname
        step = step.tb_next
    return found


def told(error: BaseException, path: str | Path) -> str:
    """The exception with its line in the reader's file, in two lines."""
    message = " ".join(str(error).split())
    if len(message) > MOST_LETTERS:
        message = message[:MOST_LETTERS] + " ..."
    said = f"{type(error).__name__}: {message}" if message else type(error).__name__
    passed = frames(error, path)
    if not passed:
        return said
    last = passed[-1]
    where = f"in {last.name}" if last.name != "<module>" else "outside of functions"
    return f"{Path(path).name}, line {last.lineno}, {where}: {said}\n    {last.line}"
