"""How the compiled loops are had: numba is optional, and compiling is announced."""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType

import torch

DTYPES = (torch.float32, torch.float64)  # that the loops know
COMPILING = "Compiling, once on a machine: 25 to 45 seconds, up to 150 where other work has the cores."


def numba_is_here() -> bool:
    """Whether the compiled loops can be had."""
    return importlib.util.find_spec("numba") is not None


def loops(name: str, option: str = "fused") -> ModuleType:
    """The compiled loops of the file `name`, which need numba; `option` is what asks for them."""
    try:
        return importlib.import_module(f"minidsv4.fast.compiled.{name}")
    except ModuleNotFoundError as error:
        missing = f"{option}: numba is not installed; `pip install 'minidsv4[fast]'` adds it"
        raise ValueError(missing) from error


@contextlib.contextmanager
def told_of_compiling() -> Iterator[None]:
    """Inside, a line on stderr says that loops are compiled, before the first is; none where all are kept on disk.

    raises  ValueError: numba is missing
    """
    loops("jit")
    from numba.core import event

    class Teller(event.Listener):
        told = False

        def on_start(self, _compiling: event.Event) -> None:
            if not self.told:
                with contextlib.suppress(OSError):
                    print(COMPILING, file=sys.stderr)
            self.told = True

        def on_end(self, _compiling: event.Event) -> None:
            pass

    with event.install_listener("numba:compile", Teller()):
        yield
