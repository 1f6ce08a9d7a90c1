"""What a prompt needs above weights and cache does not grow with its length."""

import threading
import time
from pathlib import Path

import pytest
import torch

import minidsv4 as v4
from minidsv4.bench import peak_memory
from minidsv4.bench.implementations import SIZES, MiniDSV4, random_ids

SHORT, LONG = 8192, 49152
CONFIG = SIZES["tiny"].replace(num_hidden_layers=3, compress_ratios=(0, 4, 16, 0))  # a layer of each kind
# glibc keeps up to 16 MB that were given back, and until C entries fill a stretch of 2^20 scores its arrays grow:
# 6 MB more than at 8K, four times over while they are joined. A score of every pair of a chunk would be 101 MB.
ALLOWED = 56 << 20


def anonymous_bytes() -> int:
    """Bytes of this process that belong to no file: pages of libraries come and go with what others need."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return peak_memory.peak_bytes()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def watch(found: list[int], done: threading.Event) -> None:
    """Keep the most bytes seen in `found[0]`."""
    while not done.is_set():
        found[0] = max(found[0], anonymous_bytes())
        time.sleep(0.001)


@torch.inference_mode()
def needs(table: str, n_tokens: int) -> int:
    """Bytes above weights and cache at the largest moment of a prompt."""
    torch.set_num_threads(1)
    side = MiniDSV4(CONFIG)
    side.model.use(getattr(v4, table))
    ids_BT = random_ids(CONFIG, (1, n_tokens))
    side.prefill(ids_BT[:, :2048])
    before, done = anonymous_bytes(), threading.Event()
    found = [before]
    watcher = threading.Thread(target=watch, args=(found, done))
    watcher.start()
    cache = side.prefill(ids_BT)
    done.set()
    watcher.join()
    return found[0] - before - side.cache_bytes(cache)[1]


@pytest.mark.slow
@pytest.mark.parametrize("table", ["FAST", "COMPILED"])
def test_memory_above_weights_and_cache_is_flat_from_8k_to_48k_tokens(table):
    short, long = (peak_memory.run_alone(needs, table, n_tokens) for n_tokens in (SHORT, LONG))
    assert long - short < ALLOWED, (short, long)
