"""What a model does that runs from disk, told on stderr: layer by layer on a terminal, else by token."""

import shutil
import sys
import time
from types import TracebackType

from minidsv4.options import readable
from minidsv4.serve.disk import ModelOnDisk
from minidsv4.serve.store import Store

# Makes a line below the cursor, clears it and what follows the cursor, and leaves the cursor in that line; then back.
BELOW, BACK = "\x1b[K\x1bD\x1bM\x1b7\r\x1bD\x1b[K", "\x1b8"


class Progress:
    """Inside, a line tells the layer, the bytes read, the share of bytes that were in memory, and tokens a minute."""

    def __init__(self, model: ModelOnDisk):
        self.store, self.n_layers = model.source.store, len(model.layers)
        self.on_terminal = sys.stderr.isatty()

    def __enter__(self) -> "Progress":
        self.began = time.monotonic()
        self.store.watch = self.show
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.store.watch = None
        if self.on_terminal:
            print(BELOW + BACK, end="", file=sys.stderr)
            print(self.line(), file=sys.stderr, flush=True)

    def show(self, store: Store) -> None:
        """Called at every layer's turn, and at the head's."""
        if self.on_terminal:
            line = f"layer {min(store.turn + 1, self.n_layers)} of {self.n_layers}: {self.line()}"
            print(BELOW + line[: shutil.get_terminal_size().columns - 1] + BACK, end="", file=sys.stderr, flush=True)
        elif store.turn == self.n_layers:
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """The counts so far, in words."""
        traffic = self.store.traffic
        pace = 60 * traffic.passes / max(1e-9, time.monotonic() - self.began)
        return (
            f"pass {traffic.passes}, {readable(traffic.read)} read, {traffic.hit_rate:.0%} of the bytes "
            f"touched were in memory, {pace:,.3g} tokens a minute"
        )
