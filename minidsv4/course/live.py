"""Whether a reader sits in front of the notebook, or a checked run computes what is stored; and how widgets appear.

A widget lives in the kernel. A notebook that is saved and opened again shows an error in its place, so each widget
stands below a text that says the same, and carries a style sheet that hides this text while the widget lives.
"""

import importlib.util
import os

from IPython import get_ipython

AGAIN = "*Stored without its kernel: choose Run, Run All Cells, and buttons and sliders work again.*"
STATIC = "MINIDSV4_STATIC"  # set by the builder and by conftest.py; the kernels inherit it


def is_live():
    """True where widgets may be shown: in a kernel with ipywidgets, and not in a checked run."""
    checked = os.environ.get(STATIC, "") not in ("", "0")
    in_kernel = hasattr(get_ipython(), "kernel")
    return not checked and in_kernel and importlib.util.find_spec("ipywidgets") is not None


def show_live(widget, stored):
    """Display a widget, and what a saved notebook shows in its place once the kernel is gone.

    widget  a widget of ipywidgets
    stored  Markdown that says without the widget what it says
    """
    import ipywidgets
    from IPython.display import Markdown, display

    name = f"minidsv4-stored-{widget.model_id}"
    display(Markdown(f'<div class="{name}">\n\n{stored}\n\n{AGAIN}\n\n</div>'))
    hides = ipywidgets.HTML(value=f"<style>.{name} {{ display: none; }}</style>")
    display(ipywidgets.VBox([hides, widget]))
