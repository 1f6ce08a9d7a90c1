"""Processes that begin where the slow imports end: forks of one that imported torch, matplotlib and the package.

A fresh interpreter takes about two seconds of the processor for these imports, a fork some hundredths. Otherwise a
fork is what a fresh interpreter is: no other one's modules, no shared state, its own environment, folder and streams.
What tests the start of Python itself (its streams, what an import loads) starts one.
"""

import atexit
import gc
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from jupyter_client.provisioning import local_provisioner

SERVER = multiprocessing.get_context("forkserver")
IMPORTED = """
    ipykernel.kernelapp tokenizers torch._dynamo
    minidsv4.course.show minidsv4.course.figures minidsv4.course.mutants
""".split()  # with them comes everything that is slow to import; an optimiser needs torch._dynamo
SERVER.set_forkserver_preload(IMPORTED)


class Fork:
    """Runs `function(*arguments)` of a module in a fork; `poll`, `wait` and signals are those of `subprocess.Popen`.

    environment   its variables, whole
    folder        where it runs
    streams       paths of the files that take its output and its errors
    """

    stdin = stdout = stderr = None  # nothing to close, says jupyter_client

    def __init__(self, function, arguments, environment, folder, streams):
        began, begin = SERVER.Pipe(duplex=False)
        settings = begin, dict(environment), str(folder), [str(stream) for stream in streams]
        self.process = SERVER.Process(target=_work, args=(settings, function, arguments))
        self.process.start()
        begin.close()
        began.recv()  # from here on it has a process group of its own, which may be killed whole
        self.pid = self.process.pid

    def poll(self):
        return self.process.exitcode

    def wait(self, timeout=None):
        self.process.join(timeout)
        return self.process.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)


def _work(settings, function, arguments):
    """In the fork: what a fresh process has, then the work, then what an interpreter does at its end."""
    begin, environment, folder, streams = settings
    gc.freeze()  # what was imported is no garbage, and need not be looked through
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # the system's own, for the processes that it starts itself
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    begin.send(None)
    begin.close()
    try:
        function(*arguments)
    finally:
        atexit._run_exitfuncs()


# --- scripts ---


def _interpret(source, words):
    """What `python -c SOURCE WORDS` does."""
    sys.argv = ["-c", *words]
    main = sys.modules["__main__"] = ModuleType("__main__")
    exec(compile(source, "<string>", "exec"), vars(main))


def python(source, *words, cwd=".", env=os.environ):
    """As `subprocess.run([sys.executable, "-c", source, *words], capture_output=True, text=True)`, in a fork."""
    with tempfile.TemporaryDirectory() as folder:
        streams = Path(folder, "output"), Path(folder, "errors")
        code = Fork(_interpret, (source, words), env, cwd, streams).wait()
        return subprocess.CompletedProcess(words, code, *[stream.read_text() for stream in streams])


def module(name, *words, before="", **where):
    """As `python -m NAME WORDS` in a fork, after a line of source that runs before it."""
    run = f"import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
    return python(f"{before}\n{run}", *words, **where)


# --- students' processes ---


class Worker(Fork):
    """In place of `subprocess.Popen` of minidsv4/course/kit/worker.py: a fork that runs it, with pipes to it."""

    def __init__(self, _words, *, cwd, env, **_streams):
        taken, messages = SERVER.Pipe(duplex=False)
        answers, given = SERVER.Pipe(duplex=False)
        super().__init__(_answer, (taken, given), env, cwd, [os.devnull, os.devnull])
        taken.close()
        given.close()
        self.stdin = os.fdopen(os.dup(messages.fileno()), "wb")
        self.stdout = os.fdopen(os.dup(answers.fileno()), "rb")


def _answer(taken, given):
    """What `python -m minidsv4.course.kit.worker` does."""
    from minidsv4.course.kit import worker

    os.dup2(taken.fileno(), 0)
    os.dup2(given.fileno(), 1)
    taken.close()
    given.close()
    os.closerange(3, 256)  # a program of its own holds no pipe of the server's, into which a student could write
    worker.main()


# --- kernels ---


def _serve(words):
    """A Jupyter kernel: what `python -m ipykernel_launcher WORDS` does."""
    import matplotlib
    from ipykernel.kernelapp import launch_new_instance

    matplotlib.rcParams["backend"] = "module://matplotlib_inline.backend_inline"  # as a kernel has it from its start
    os.environ["JPY_PARENT_PID"] = str(os.getppid())  # the kernel ends when the server of forks does
    launch_new_instance(words)


def _fork_kernel(command, cwd=None, env=None, **_streams):
    """In place of jupyter_client's start of a kernel's process."""
    words = command[command.index("-f") :]
    return Fork(_serve, (words,), env, cwd or os.getcwd(), [os.devnull, os.devnull])


def fork_kernels():
    """From now on, kernels that this process starts are forks."""
    local_provisioner.launch_kernel = _fork_kernel
