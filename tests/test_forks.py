"""A fork of tests/forks.py is what a fresh interpreter is, and sees nothing of the forks before it."""

import os
import signal
import subprocess
import sys

import forks
import nbformat
import pytest
from nbclient import NotebookClient

SCRIPT = """
import os, sys
print(sys.argv, sorted(os.environ) == ["A_WORD"], os.getcwd(), __name__)
print("an error", file=sys.stderr)
sys.exit(int(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_script_has_the_words_the_folder_the_environment_the_streams_and_the_exit_code_of_an_interpreter(tmp_path):
    settings = {"cwd": tmp_path, "env": {"A_WORD": "1"}}
    ours = forks.python(SCRIPT, "a", "3", **settings)
    due = subprocess.run([sys.executable, "-c", SCRIPT, "a", "3"], capture_output=True, text=True, **settings)
    due.stdout = due.stdout.replace("False", "True")  # LC_CTYPE, which an interpreter adds to an environment without
    assert (ours.returncode, ours.stdout, ours.stderr) == (due.returncode, due.stdout, due.stderr)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "code"),
    [("1 / 0", 1), ("raise SystemExit('no')", 1), ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL)],
)
def test_an_end_that_was_not_planned_has_the_exit_code_of_an_interpreter(source, code):
    assert forks.python(source).returncode == code


@pytest.mark.slow
def test_a_fork_leaves_nothing_to_the_next_one_and_comes_with_the_slow_imports():
    change = "import torch, minidsv4; torch.set_default_dtype(torch.float64); minidsv4.ops.pool = None"
    look = "import sys; n = len(sys.modules); import torch, minidsv4, matplotlib.pyplot; print(n == len(sys.modules))"
    assert forks.python(change).returncode == 0
    said = forks.python(f"{look}; print(torch.get_default_dtype(), minidsv4.ops.pool is not None)").stdout
    assert said == "True\ntorch.float32 True\n"


def test_what_is_to_be_done_at_the_end_of_an_interpreter_is_done():
    assert forks.python("import atexit; atexit.register(print, 'the end')").stdout == "the end\n"


@pytest.mark.slow
def test_a_kernel_is_a_fork_with_a_process_group_of_its_own_and_draws_as_kernels_do(tmp_path):
    source = "import os, matplotlib.pyplot as plt\nos.getpgrp() == os.getpid(), os.getppid(), plt.get_backend()"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    own, server, backend = eval(notebook.cells[0].outputs[0].data["text/plain"])
    assert own and server not in (os.getpid(), 1) and "inline" in backend
