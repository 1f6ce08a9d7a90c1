"""A model run from disk, beside the disk and the memory that it reads: `python -m minidsv4.bench.disk FOLDER`.

Every pass takes one token in, with the file system's copies of the files given up before it, so that what the budget
does not keep comes from the disk.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from minidsv4 import options
from minidsv4.bench.limits import memory_rate
from minidsv4.bench.peak_memory import peak_bytes, reset_peak
from minidsv4.cost.disk import touched
from minidsv4.cost.report import aligned
from minidsv4.options import readable
from minidsv4.serve.disk import ModelOnDisk, load

CHUNK = 16 << 20  # bytes that the disk is asked for at once


def give_up_copies(folder: Path) -> None:
    """Tell the system that its copies of the weight files are not needed, where it can be told."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_rate(folder: Path, n_bytes: float = 1e9) -> float:
    """Bytes per second of reading the largest weight file in order, up to `n_bytes` of it."""
    give_up_copies(folder)
    place, n_read = bytearray(CHUNK), 0
    began = time.perf_counter()
    with max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size).open("rb", buffering=0) as file:
        while n_read < n_bytes and (n := file.readinto(place)):
            n_read += n
    return n_read / (time.perf_counter() - began)


def passes(model: ModelOnDisk, folder: Path, n_passes: int) -> Iterator[tuple[float, float, int, int]]:
    """Seconds, processor seconds, bytes touched and bytes read of each pass of one more token."""
    cache, traffic = model.new_cache(1), model.source.store.traffic
    ids = torch.randint(model.config.vocab_size, (n_passes, 1, 1), generator=torch.Generator().manual_seed(0))
    for ids_BT in ids:
        give_up_copies(folder)
        before = traffic.touched, traffic.read
        began = time.perf_counter(), time.process_time()
        model(ids_BT, cache=cache)
        seconds = time.perf_counter() - began[0], time.process_time() - began[1]
        yield *seconds, traffic.touched - before[0], traffic.read - before[1]


def report(folder: Path, memory: str | None, n_passes: int) -> str:
    """What one pass reads and takes, what the formula says, and what the machine can do."""
    model = load(folder, weights="disk", memory=memory)
    assert isinstance(model, ModelOnDisk)
    before = reset_peak()
    rows = list(passes(model, folder, n_passes))
    grown = peak_bytes() - before
    seconds, processor, _, read = (statistics.median(column) for column in zip(*rows))
    from_disk, from_memory = disk_rate(folder), memory_rate(256e6) / 2
    lines = [
        ("touched by the first token", f"{rows[0][2]:,} bytes"),
        ("by the formula", f"{touched(model.config).total:,} bytes"),
        ("read a token, median", readable(read)),
        ("seconds a token, median", f"{seconds:.3g}"),
        ("of processor time", f"{processor:.3g}"),
        ("at the disk's speed", f"{read / from_disk:.3g} ({readable(from_disk)}/s)"),
        ("at the memory's speed", f"{rows[0][2] / from_memory:.3g} ({readable(from_memory)}/s)"),
        ("most bytes of weights in memory", readable(model.source.store.rooms.peak)),
        ("most bytes that the process grew by", readable(grown)),
    ]
    return aligned((f"{folder.name} from disk, memory {memory or 'without limit'}", ""), lines)


def main(words: list[str] | None = None) -> int:
    """Print the report that the words ask for."""
    parser = argparse.ArgumentParser(prog="python -m minidsv4.bench.disk", description="a model run from disk")
    parser.add_argument("folder", type=options.folder, help="in the released layout, as `minidsv4 mint` writes it")
    parser.add_argument("--memory", help="budget, such as 8GB")
    parser.add_argument("--passes", type=options.count, default=5, help="tokens to take in")
    arguments = parser.parse_args(words)
    try:
        print(report(Path(arguments.folder), arguments.memory, arguments.passes))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
