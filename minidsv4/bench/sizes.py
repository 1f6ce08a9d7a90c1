"""The sizes that are measured, and the memory that a run of them needs: sums of what its largest moment holds.

All in float32. The needs are estimates, checked against measured peaks.
"""

import os
from pathlib import Path

import torch

from minidsv4.config import Config, LayerKind
from minidsv4.cost import memory
from minidsv4.cost.flops import visible
from minidsv4.cost.parameters import weights
from minidsv4.model.model import PREFILL_CHUNK

SIZES = ("tiny", "mini", "peer")
FLOAT32 = memory.Precision("fp32", "fp32")
TRAINED = (4, 512)  # sequences and tokens of a training step
REFERENCE_CHUNK = 512  # tokens at a time where transformers' prompt is cut by hand


def load_size(name: str) -> Config:
    """The config of one of SIZES, or of a `config.json` or its folder; without an MTP block, which transformers lacks.

    raises  ValueError for any other name
    """
    file = Path(__file__).with_name(f"{name}.json") if name in SIZES else Path(name)
    if not name or not file.exists():
        raise ValueError(f"bench: --size {name!r} is none of {', '.join(SIZES)}, nor a config.json or its folder")
    return Config.from_json(file).replace(num_nextn_predict_layers=0)


def weight_bytes(config: Config) -> int:
    """Bytes of all weights; the tables of the hash routers are integers of 8 bytes."""
    return sum(row.copies * row.size * (8 if row.stored == "int64" else 4) for row in weights(config))


def cache_bytes(config: Config, n_tokens: int) -> int:
    """Bytes that the cache of one sequence remembers: the closed form and the raw tail."""
    return int(sum(memory.cache(config, n_tokens, FLOAT32).values())) + memory.tail_state(config, n_tokens)


def token_bytes(config: Config) -> int:
    """Bytes of what one token holds within a block: streams, queries, experts, in a few copies each."""
    streams = 4 * config.hc_mult * config.hidden_size
    queries = 4 * config.num_attention_heads * config.head_dim
    experts = config.num_experts_per_tok * (4 * config.moe_intermediate_size + 2 * config.hidden_size)
    return 4 * (streams + queries + experts + config.index_n_heads * config.index_head_dim)


def own_needs(config: Config, n_tokens: int) -> int:
    """Bytes to take in a prompt: ids, weights, a cache whose buffers grow by half, and one chunk's working set."""
    chunk = min(n_tokens, PREFILL_CHUNK)
    scores = 3 * 4 * 512 * config.num_attention_heads * visible(config, LayerKind.HCA, n_tokens)
    working = chunk * token_bytes(config) + scores + (32 << 20)
    return 8 * n_tokens + weight_bytes(config) + 5 * cache_bytes(config, n_tokens) // 2 + working


def reference_needs(config: Config, n_tokens: int, chunk: int) -> int:
    """Bytes that transformers' eager attention needs: scores of each query with the whole window, masked, and entries.

    chunk  tokens at a time; n_tokens for a prompt taken whole
    """
    chunk = min(chunk, n_tokens)
    entries = max(visible(config, kind, n_tokens) for kind in LayerKind)
    reach = min(n_tokens, chunk + config.sliding_window) + entries
    scores = 13 * config.num_attention_heads * chunk * reach + 8 * config.index_n_heads * chunk * entries
    return weight_bytes(config) + 2 * cache_bytes(config, n_tokens) + scores + 4 * chunk * token_bytes(config)


def training_needs(config: Config) -> int:
    """Bytes of one training step: weights with gradients and two moments, and activations kept for backward."""
    n_tokens = TRAINED[0] * TRAINED[1]
    scores = 13 * config.num_attention_heads * (TRAINED[1] + TRAINED[1] // 4)
    a_layer = (3 * token_bytes(config) + scores) // 2
    return 4 * weight_bytes(config) + n_tokens * (config.num_hidden_layers * a_layer + 12 * config.vocab_size)


def memory_left(device: str = "cpu") -> int:
    """Bytes that a program may still take, within a container's limit: on Linux what the kernel calls available."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    group = Path("/sys/fs/cgroup")
    try:
        return min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no such group, or "max": no limit
        return free


def check_memory(what: str, needed: int, device: str = "cpu") -> None:
    """Raise ValueError, before anything is allocated, where `needed` bytes are more than there are."""
    left = memory_left(device)
    if needed > left:
        raise ValueError(f"bench: {what} needs about {readable(needed)} of memory and {readable(left)} are free")


def readable(n_bytes: float) -> str:
    """'1.3 MB': three digits and the fitting unit, of 1000 each."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 999.5:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.3g} TB" if n_bytes < 999.5 else f"{n_bytes:,.0f} TB"
