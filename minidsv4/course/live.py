"""Whether a reader sits in front of the notebook, or a checked run computes what is stored."""

import importlib.util
import os

from IPython import get_ipython

STATIC = "MINIDSV4_STATIC"  # set by the builder and by conftest.py; the kernels inherit it


def is_live():
    """True where widgets may be shown: in a kernel with ipywidgets, and not in a checked run."""
    checked = os.environ.get(STATIC, "") not in ("", "0")
    in_kernel = hasattr(get_ipython(), "kernel")
    return not checked and in_kernel and importlib.util.find_spec("ipywidgets") is not None
