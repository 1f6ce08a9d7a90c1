"""How long one step takes at best: the slower of reading memory and of multiplying, at the peaks of a device.

E experts, A active experts. A bound, not a prediction: no kernel reaches either peak, nothing is charged for
communication, and the work divides evenly over the devices.
"""

import math
from dataclasses import dataclass

from minidsv4.config import Config
from minidsv4.cost import flops, memory
from minidsv4.cost.hardware import Device
from minidsv4.cost.parameters import Weight, stored_bytes, weights


@dataclass(frozen=True)
class Step:
    """One decoding step of a batch: a token for each sequence.

    n_devices       devices that hold weights and caches
    memory_seconds  reading the weights in use and the caches
    matmul_seconds  multiplying; None where the device's FLOP rate is not published
    """

    device: Device
    n_devices: int
    batch: int
    memory_seconds: float
    matmul_seconds: float | None

    @property
    def seconds(self) -> float:
        """Time of the step: the longer of the two, which go on at once; where one is unknown, the other."""
        return max(self.memory_seconds, self.matmul_seconds or 0.0)

    @property
    def bound(self) -> str:
        """What the step waits for: "memory" or "compute", or that it cannot be told."""
        if self.matmul_seconds is None:
            return "memory at least: no FLOP rate"
        return "memory" if self.memory_seconds >= self.matmul_seconds else "compute"

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all sequences together."""
        return self.batch / self.seconds


def decode_step(
    model, n_tokens: int, device: Device, batch: int = 1, bits: float | None = None, n_devices: int | None = None
) -> Step:
    """The bound on one decoding step, each of the sequences holding `n_tokens`.

    bits       average width of a weight; None is the released checkpoint's own formats
    n_devices  None is the fewest that hold the weights (without the MTP block) and the caches
    """
    rows = [row for row in weights(model) if row.part != "MTP block"]
    held = weight_bytes(rows, bits) + batch * sum(memory.cache(model, n_tokens).values())
    n_devices = n_devices or math.ceil(held / device.memory)
    moved = weight_bytes(rows, bits, batch) + batch * memory.read_bytes(model, n_tokens)
    matmul_seconds = batch * seconds(flops.decode(model, n_tokens), device) / n_devices if device.flops else None
    return Step(device, n_devices, batch, moved / (n_devices * device.bandwidth), matmul_seconds)


def seconds(amounts: dict[str, float], device: Device) -> float:
    """Time of FLOPs by kind on one device, each kind at the peak of its format; ValueError where that is unknown."""
    return sum(amount / device.peak(flops.BITS[kind]) for kind, amount in amounts.items())


def weight_bytes(rows: list[Weight], bits: float | None, batch: int | None = None) -> float:
    """Bytes of the weights; with a batch, of those that one step reads.

    Of E experts a batch of tokens that choose A each, evenly and independently, reads 1 - (1 - A / E)^batch. Of an
    embedding it reads a few rows: nothing here.
    """
    size = stored_bytes if bits is None else lambda row: memory.uniform_bytes(row.copies * row.size, bits)
    if batch is None:
        return sum(size(row) for row in rows)
    return sum(size(row) * (1 - (1 - row.active / row.copies) ** batch) for row in rows)


def fits(config: Config, n_tokens: int, bits: float, device: Device) -> bool:
    """Whether one device holds the weights of the main model at this width, the cache of one sequence and its tail."""
    rows = [row for row in weights(config) if row.part != "MTP block"]
    cache_bytes = sum(memory.cache(config, n_tokens).values()) + memory.tail_room(config)
    return weight_bytes(rows, bits) + cache_bytes <= device.memory
