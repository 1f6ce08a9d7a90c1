"""Fused expert-parallel kernels as published, and a model of their times: what is overlap, what is less overhead?

D width, F expert width, E experts, A active experts. The report's 1.50 to 1.73x and 1.96x are rows of a public table
of NVIDIA hardware (DEEPGEMM below), measured with a kernel that was replaced twice since. For V4's inference on Ascend,
times are public (ASCEND_950DT) and speed-ups are not: whatever `projection` is true of comes from this model alone. For
the training of another model, speed-ups were measured on Ascend A3 (ASCEND_A3_TRAINING).

What the model does not reproduce: Pro at 512 tokens (1.36x for 1.54x: the serial baseline's products must be slower
there than memory and peak allow), and the times of one token (one fixed overhead cannot fit Flash and Pro at once).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from minidsv4.config import Config
from minidsv4.cost import schedule
from minidsv4.cost.hardware import DEVICES
from minidsv4.cost.parameters import stored_bytes, weights
from minidsv4.cost.schedule import BF16, FP8, Stages

RANKS = 8  # of every published row
FLASH, PRO = Config.flash(), Config.pro()


# --- the report's figure 5 and the published tables, as data ---

FIGURE_5 = Stages(dispatch=291, linear1=490, activation=78, linear2=246, combine=581)  # bars in pixels, +-1
FIGURE_5_LAGS = {"first": 19.5, "comet": 16.5, "waves": 13}  # pixels: first tile of tokens, last tile of each schedule
FIGURE_5_SPEEDUPS = {"comet": 1.42, "waves": 1.92}  # as the figure states them


class Row(NamedTuple):
    """One row of DeepGEMM's table. Tokens are those of one rank; `speedup` is that over the serial baseline."""

    model: str
    n_tokens: int
    microseconds: float
    tflops: float
    memory: float  # GB/s
    link: float  # GB/s
    speedup: float


# DeepGEMM, pull request 316 (2026-04-24), 8 ranks. The GPU is not named; the kernel is for SM100 only (B200 class).
# The kernel was replaced twice since: by pull request 377 (2026-07: another scheduler, the shared expert fused in, "20%
# faster") and by 432 (2026-09: 4 to 15% faster for V4.1). Since 432 deterministic kernels are a switch, off by default.
DEEPGEMM = [
    Row("flash", 1, 56.5, 5, 1311, 1, 1.96),
    Row("flash", 512, 146.5, 1056, 3192, 266, 1.73),
    Row("flash", 8192, 1283.1, 1928, 998, 499, 1.56),
    Row("flash", 32768, 4855.5, 2038, 794, 529, 1.62),
    Row("pro", 1, 108.1, 7, 1758, 1, 1.61),
    Row("pro", 512, 369.6, 1098, 4619, 182, 1.54),
    Row("pro", 8192, 2818.5, 2304, 1094, 393, 1.50),
    Row("pro", 32768, 10655.2, 2438, 692, 417, 1.54),
]
# DeepGEMM-Ascend, read on 2026-09-30, 8 ranks of Ascend 950DT: experts, width, expert width, tokens, microseconds.
ASCEND_950DT = [
    (96, 5120, 2304, 64, 138.7),
    (96, 5120, 2304, 256, 225.5),
    (96, 7168, 3072, 64, 222.2),
    (96, 7168, 3072, 256, 359.2),
    (384, 5120, 2304, 4096, 2567.7),
    (384, 5120, 2304, 16384, 9768.6),
    (384, 7168, 3072, 4096, 4600.7),
    (384, 7168, 3072, 16384, 17904.2),
]
# HyperParallel-MoE, arXiv 2605.23764 (2026-05-22): the least and the largest speed-up that it reports on Ascend A3, in
# training, for a DeepSeek-style model that is not V4. Its baseline runs operator after operator.
ASCEND_A3_TRAINING = {
    "dispatch to combine, balanced routing": (1.49, 1.58),
    "whole training step, natural routing": (1.08, 1.09),
}


def sized(n_experts: int, width: int, inner: int) -> Config:
    """A V4 whose expert layers have these sizes; six active experts, as in every published row."""
    return PRO.replace(n_routed_experts=n_experts, hidden_size=width, moe_intermediate_size=inner)


# --- the model ---


@dataclass(frozen=True)
class Kernel:
    """A fused kernel on one chip, and the serial baseline that it replaces.

    flops          FLOP/s that the products sustain
    memory         bytes/s at which weights and activations come from memory
    dispatch_link  bytes/s of dispatch, one direction
    combine_link   bytes/s of combine, one direction
    fused_fixed    seconds that a call of the fused kernel costs whatever it does
    serial_fixed   seconds that a call of the serial baseline costs
    write          seconds for each number that a product writes
    reduce         bytes/s of the last sum over the A experts; infinite where it is not charged
    remote         share of the rows that crosses the link
    merged         whether a token that meets two experts of one rank is dispatched to it once
    n_shared       shared experts that the kernel computes as well
    n_waves        None is DeepGEMM's rule
    fitted         names of the numbers that were fitted to the very rows that they reproduce
    projection     whether its speed-ups are this model's alone
    """

    name: str
    flops: float
    memory: float
    dispatch_link: float
    combine_link: float
    fused_fixed: float
    serial_fixed: float
    write: float = 0.0
    reduce: float = math.inf
    remote: float = 1.0
    merged: bool = False
    n_shared: int = 0
    n_waves: int | None = None
    fitted: tuple[str, ...] = ()
    projection: bool = False


# Links: DeepEP V2's published 726 to 740 GB/s on eight SM100. `reduce`: the estimate of DeepGEMM's own test.
B200 = Kernel(
    name="B200 class",
    flops=3.5e15,
    memory=5.2e12,
    dispatch_link=733e9,
    combine_link=733e9,
    fused_fixed=50e-6,
    serial_fixed=109e-6,
    write=1.1e-12,
    reduce=6.5e12,
    merged=True,
    fitted=("flops", "memory", "write", "fused_fixed", "serial_fixed"),
)
# Links and 98% of the FP8 peak: DeepEP-Ascend and DeepGEMM-Ascend. The two rows of 64 tokens give the two fitted
# numbers, the other six are predictions. Waves and the serial baseline's overhead (110 to 200 us) are assumptions.
_950DT = DEVICES["Ascend 950DT"]
A950DT = Kernel(
    name="Ascend 950DT",
    flops=0.98 * _950DT.peak(8),
    memory=2.54e12,
    dispatch_link=_950DT.link,
    combine_link=346e9,
    fused_fixed=43e-6,
    serial_fixed=110e-6,
    remote=1 - 1 / RANKS,
    n_shared=1,
    n_waves=8,
    fitted=("memory", "fused_fixed"),
    projection=True,
)
# One die of two, INT8. Link: combine of 8 ranks in arXiv 2506.12708. 80% of the peak and no overhead are assumptions.
_910C = DEVICES["Ascend 910C"]
A910C = Kernel(
    name="Ascend 910C, one die",
    flops=0.8 * _910C.peak(8) / 2,
    memory=_910C.bandwidth / 2,
    dispatch_link=131e9,
    combine_link=131e9,
    fused_fixed=0.0,
    serial_fixed=0.0,
    remote=1 - 1 / RANKS,
    n_waves=32,
    projection=True,
)


def rank_stages(config: Config, n_tokens: int, kernel: Kernel, n_ranks: int = RANKS) -> Stages:
    """Seconds of each stage on one rank, all ranks having so many tokens and all experts equally many.

    The products take what multiplying and writing take, or what reading the weights of the experts in use takes.
    """
    n_pairs, n_rows = config.num_experts_per_tok * n_tokens, (config.num_experts_per_tok + kernel.n_shared) * n_tokens
    width, inner = config.hidden_size, config.moe_intermediate_size
    sent = n_tokens * ranks_met(config.num_experts_per_tok, n_ranks) if kernel.merged else n_pairs
    multiply = n_rows * (schedule.pair_flops(config) / kernel.flops + kernel.write * (2 * inner + width))
    products = max(multiply, weight_bytes(config, n_tokens, n_ranks, kernel.n_shared) / kernel.memory)
    return Stages(
        dispatch=FP8 * width * kernel.remote * sent / kernel.dispatch_link,
        linear1=2 / 3 * products,
        activation=(2 * BF16 + FP8) * inner * n_rows / kernel.memory,
        linear2=products / 3,
        combine=BF16 * width * kernel.remote * n_pairs / kernel.combine_link,
    )


def ranks_met(n_active: int, n_ranks: int) -> float:
    """Expected number of different ranks among the experts of one token, each choosing a rank for itself."""
    return n_ranks * (1 - (1 - 1 / n_ranks) ** n_active)


def weight_bytes(config: Config, n_tokens: int, n_ranks: int = RANKS, n_shared: int = 0) -> float:
    """Expected bytes of the experts of one rank that any token of all ranks meets; a shared expert counts as one."""
    rows = [row for row in weights(config) if row.name.startswith("layers.0.ffn.experts.")]
    one = sum(stored_bytes(row) / row.copies for row in rows)
    missed = (1 - config.num_experts_per_tok / config.n_routed_experts) ** (n_tokens * n_ranks)
    return one * (config.n_routed_experts / n_ranks * (1 - missed) + n_shared)


def wave_count(config: Config, n_tokens: int, n_ranks: int = RANKS, n_units: int = 148) -> int:
    """How many waves DeepGEMM's rule makes of a rank's experts, the bounds of its buffers aside.

    A wave is the fewest experts whose blocks of linear 1 fill all units twice, or up to twice as many where that
    leaves the last wave fuller. Below one token for each expert, all are in one wave. (State of June 2026.)

    n_units  multiprocessors of the chip
    """
    held = config.n_routed_experts // n_ranks
    n_rows = n_tokens * config.num_experts_per_tok * n_ranks / config.n_routed_experts  # tokens of one expert
    if n_rows < 1:
        return 1
    sizes = ((8.5, 16), (16.5, 32), (32.5, 64), (64.5, 96), (96.5, 128))  # up to so many rows: rows of a block
    height = next((height for most, height in sizes if n_rows <= most), 192)
    blocks = math.ceil(n_rows / height) * 2 * config.moe_intermediate_size // 128
    fewest = min(held, math.ceil(2 * n_units / blocks))
    chosen = max(range(fewest, min(2 * fewest, held) + 1), key=lambda n: ((held % n or n) / n, -n))
    return math.ceil(held / chosen)


def serial_seconds(config: Config, n_tokens: int, kernel: Kernel) -> float:
    """Seconds of five kernels, one after the other."""
    return kernel.serial_fixed + rank_stages(config, n_tokens, kernel).serial


def fused_seconds(config: Config, n_tokens: int, kernel: Kernel) -> float:
    """Seconds of one kernel whose waves overlap, and of the sum over the A experts."""
    n_waves = kernel.n_waves or wave_count(config, n_tokens)
    summed = BF16 * config.hidden_size * n_tokens * (1 + config.num_experts_per_tok)  # bytes read and written
    overlapped = schedule.waves(rank_stages(config, n_tokens, kernel), n_waves).time
    return kernel.fused_fixed + overlapped + summed / kernel.reduce


class Gain(NamedTuple):
    """A speed-up as a product of two: what overlap gains, and what one launch in place of many gains."""

    overlap: float
    overhead: float

    @property
    def speedup(self) -> float:
        """Serial time over fused time."""
        return self.overlap * self.overhead


def gain(config: Config, n_tokens: int, kernel: Kernel) -> Gain:
    """The speed-up of the fused kernel; `overlap` is what is left of it when both have the fused kernel's overhead."""
    serial, fused = serial_seconds(config, n_tokens, kernel), fused_seconds(config, n_tokens, kernel)
    level = serial - kernel.serial_fixed + kernel.fused_fixed
    return Gain(overlap=level / fused, overhead=serial / level)
