"""Peak memory, as a run is expected to need it and as it is measured in a process of its own.

An estimate sums what the largest moment of a run in float32 holds; the estimates were checked against measured peaks.
"""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from minidsv4.bench import implementations
from minidsv4.bench.implementations import (
    BACKENDS,
    RECOMPUTED,
    TABLES,
    Implementation,
    MiniDSV4,
    Transformers,
    random_ids,
)
from minidsv4.config import Config, LayerKind
from minidsv4.cost import memory
from minidsv4.cost.flops import visible
from minidsv4.cost.parameters import weights
from minidsv4.fast.pages import peak_bytes, reset_peak
from minidsv4.model.model import PREFILL_CHUNK
from minidsv4.options import readable

FLOAT32 = memory.Precision("fp32", "fp32")
PAGE = 4096  # bytes: no smaller peak can be told from none


# --- expected ---


def weight_bytes(config: Config) -> int:
    """Bytes of all weights; the tables of the hash routers are integers of 8 bytes."""
    return sum(row.copies * row.size * (8 if row.stored == "int64" else 4) for row in weights(config))


def cache_bytes(config: Config, n_tokens: int) -> int:
    """Bytes that the cache of one sequence holds: finished entries, and the raw tail that waits for its window."""
    return int(sum(memory.cache(config, n_tokens, FLOAT32).values())) + memory.tail_state(config, n_tokens)


def token_bytes(config: Config) -> int:
    """Bytes of one token's activations within a block: streams, queries and experts, a few copies of each."""
    streams = 4 * config.hc_mult * config.hidden_size
    queries = 4 * config.num_attention_heads * config.head_dim
    experts = config.num_experts_per_tok * (4 * config.moe_intermediate_size + 2 * config.hidden_size)
    return 4 * (streams + queries + experts + config.index_n_heads * config.index_head_dim)


def own_needs(config: Config, n_tokens: int) -> int:
    """Bytes to take in a prompt: ids, weights, a cache whose buffers grow by half, and the activations of a chunk."""
    scores = 3 * 4 * 512 * config.num_attention_heads * visible(config, LayerKind.HCA, n_tokens)
    working = min(n_tokens, PREFILL_CHUNK) * token_bytes(config) + scores + (32 << 20)
    return 8 * n_tokens + weight_bytes(config) + 5 * cache_bytes(config, n_tokens) // 2 + working


def reference_needs(config: Config, n_tokens: int, chunk: int) -> int:
    """Bytes that transformers needs, `chunk` tokens at a time: eager attention has a masked score of each pair."""
    chunk = min(chunk, n_tokens)
    entries = max(visible(config, kind, n_tokens) for kind in LayerKind)
    reach = min(n_tokens, chunk + config.sliding_window) + entries
    scores = 13 * config.num_attention_heads * chunk * reach + 8 * config.index_n_heads * chunk * entries
    return weight_bytes(config) + 2 * cache_bytes(config, n_tokens) + scores + 4 * chunk * token_bytes(config)


def training_needs(config: Config) -> int:
    """Bytes of one training step: weights with gradients and two moments, and activations kept for backward."""
    n_sequences, length = implementations.TRAINED
    scores = 13 * config.num_attention_heads * (length + length // 4)
    a_token = config.num_hidden_layers * (3 * token_bytes(config) + scores) // 2 + 12 * config.vocab_size
    return 4 * weight_bytes(config) + n_sequences * length * a_token


def memory_left() -> int:
    """Bytes that a program may still take, within a container's limit: on Linux what the kernel calls available."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    group = Path("/sys/fs/cgroup")
    try:
        return min(
            free,
            int((group / "memory.max").read_text(encoding="utf-8"))
            - int((group / "memory.current").read_text(encoding="utf-8")),
        )
    except (OSError, ValueError):  # no such group, or "max": no limit
        return free


def check_memory(what: str, needed: int) -> None:
    """Raise ValueError, before anything is allocated, where `needed` bytes are more than there are."""
    left = memory_left()
    if needed > left:
        raise ValueError(f"bench: {what} needs about {readable(needed)} of memory and {readable(left)} are free")


# --- measured ---


def run_alone(work: Callable, *arguments):
    """`work(*arguments)` in a process of its own, whose peak nothing else has raised, and what it returns.

    raises  ValueError where the process died, which is what happens when memory runs out
    """
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(work, *arguments).result()
    except BrokenProcessPool as error:
        raise ValueError("bench: a measuring process was killed, most likely for want of memory") from error


def peak(config: Config, way: str, phase: str, n_tokens: int, chunk, n_threads: int) -> int:
    """Bytes above weights and cache that one phase needs at most, measured in a process that does nothing else.

    way    a table of this package, or the backend of transformers' experts
    phase  prefill, train or RECOMPUTED
    """
    torch.set_num_threads(n_threads)
    small = side_of(implementations.SIZES["tiny"], way)  # brings in libraries and compiled loops, and holds little
    small.prefill(random_ids(small.model.config, (1, 256)))
    small.train(random_ids(small.model.config, (1, 128)))
    side = side_of(config, way)
    ids_BT = random_ids(config, (1, n_tokens) if phase == "prefill" else implementations.TRAINED)
    before = reset_peak()
    if phase == "prefill":
        cache = side.prefill(ids_BT, chunk)
        return max(PAGE, peak_bytes() - before - side.cache_bytes(cache)[1])
    side.train(ids_BT, *[True] * (phase == RECOMPUTED))
    return max(PAGE, peak_bytes() - before)


def side_of(config: Config, way: str) -> Implementation:
    """This package with the table of this name, or transformers with this backend of its experts."""
    if way in BACKENDS:
        side = Transformers(config)
        side.use_backend(way)
        return side
    side = MiniDSV4(config)
    side.model.use(TABLES[way])
    return side
