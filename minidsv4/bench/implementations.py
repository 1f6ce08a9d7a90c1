"""The two implementations that are compared: this package's model and transformers' `deepseek_v4`, eager attention.

B batch, T tokens. Both have the same methods and the same weights in float32: `prefill` takes in a prompt and returns
the cache, `step` decodes one token, `train` is one training step.
"""

import inspect
import os
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
from torch import Tensor

from minidsv4.checkpoint import from_released, hf_config
from minidsv4.config import Config
from minidsv4.fast.compiled.step import FusedStep
from minidsv4.fast.compiled.top_entries import compiled_ops
from minidsv4.model.losses import text_loss
from minidsv4.model.model import Model
from minidsv4.ops import PLAIN as PLAIN
from minidsv4.train.recompute import recomputing

RECOMPUTED = "recomputed"  # a training step whose blocks are computed again for backward


class MiniDSV4:
    """This package's model; `ops` is a table of operations other than the model's default."""

    def __init__(self, config: Config, device: str = "cpu", ops=None):
        torch.manual_seed(0)
        self.model = Model(config).to(device)
        if ops is not None:
            self.model.use(ops)
        self.optimizer = None

    @torch.inference_mode()
    def logits(self, ids_BT: Tensor) -> Tensor:
        return self.model(ids_BT)

    @torch.inference_mode()
    def prefill(self, ids_BT: Tensor, chunk: int | None = None):
        cache = self.model.new_cache()
        self.model.prefill(ids_BT, cache)
        return cache

    @torch.inference_mode()
    def step(self, ids_BT: Tensor, cache) -> Tensor:
        return self.model(ids_BT, cache=cache)

    def fused_step(self) -> Callable:
        """`step` in compiled loops, which need numba."""
        return torch.inference_mode()(FusedStep(self.model).__call__)

    def fuse_prompts(self) -> None:
        """From now on the indexers pick in compiled loops."""
        self.model.use(compiled_ops())

    def train(self, ids_BT: Tensor, recompute: bool = False) -> float:
        with recomputing(self.model) if recompute else nullcontext():
            streams_BTND = self.model.streams(ids_BT, self.model.new_cache(len(ids_BT)))
        return _train(self, text_loss(self.model, streams_BTND, ids_BT[:, 1:]))

    def cache_bytes(self, cache) -> tuple[int, int]:
        """Bytes remembered, and bytes of the buffers that hold them."""
        return cache.n_bytes(), cache.n_bytes() + cache.spare_bytes()


class Transformers:
    """The reference, with the fastest backend of its experts for each kind of work.

    weights  a Model to take the weights from; without one they stay as transformers draws them
    """

    def __init__(self, config: Config, device: str = "cpu", weights: Model | None = None):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from transformers import DeepseekV4Config, DeepseekV4ForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        torch.manual_seed(0)
        self.config = DeepseekV4Config(**hf_config(config, torch.float32), attn_implementation="eager")
        self.model = DeepseekV4ForCausalLM(self.config).to(device)
        if weights is not None:
            _copy_weights(self.model, weights)
        names = inspect.signature(DeepseekV4ForCausalLM.forward).parameters
        self.cache_name = "cache" if "cache" in names else "past_key_values"
        self.optimizer = None
        self.backends = {}
        self.use_backend("eager")  # the only one that can do every width

    @torch.inference_mode()
    def logits(self, ids_BT: Tensor) -> Tensor:
        return self.model.eval()(input_ids=ids_BT, use_cache=False).logits

    @torch.inference_mode()
    def prefill(self, ids_BT: Tensor, chunk: int | None = None):
        """In one call, as `generate` does it, or cut by hand into chunks."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.config)
        for part_BT in ids_BT.split(chunk or ids_BT.shape[1], dim=1):
            self.step(part_BT, cache)
        return cache

    @torch.inference_mode()
    def step(self, ids_BT: Tensor, cache) -> Tensor:
        remembered = {self.cache_name: cache}
        return self.model.eval()(input_ids=ids_BT, **remembered, use_cache=True, logits_to_keep=1).logits

    def train(self, ids_BT: Tensor) -> float:
        return _train(self, self.model.train()(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss)

    def cache_bytes(self, cache) -> tuple[int, int]:
        """Bytes remembered, and bytes of the buffers of which they are views."""
        found = {(t.data_ptr(), t.shape): t for layer in cache.layers for t in _tensors(vars(layer).values())}.values()
        buffers = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}
        return sum(t.nbytes for t in found), sum(buffers.values())

    def use_backend(self, name: str) -> None:
        """Let the experts run on this backend: eager, batched_mm or grouped_mm."""
        self.model.set_experts_implementation(name)

    def choose_backend(self, kind: str, work: Callable[[], object]) -> str:
        """Try every backend on a small `work` and keep the fastest that can do it; tried once for each kind."""
        if kind not in self.backends:
            tried = {name: self._trial(name, work) for name in ("eager", "batched_mm", "grouped_mm")}
            self.backends[kind] = min(tried, key=tried.get)
        self.use_backend(self.backends[kind])
        return self.backends[kind]

    def _trial(self, backend: str, work: Callable[[], object]) -> float:
        """Seconds of the shorter of two runs after a first; infinite where this backend cannot do the work."""
        clock = time.perf_counter if torch.cuda.is_available() else time.process_time
        times = []
        try:
            self.use_backend(backend)
            for _ in range(3):
                began = clock()
                work()
                times.append(clock() - began)
        except (RuntimeError, ValueError, ImportError, NotImplementedError):
            return float("inf")
        return min(times[1:])


@torch.no_grad()
def _copy_weights(reference: torch.nn.Module, model: Model) -> None:
    """Copy the weights of `model` into transformers' module, whose experts are stacked as here."""
    ours = model.state_dict()
    for name, tensor in from_released(reference.state_dict()).items():
        tensor.copy_(ours[name])


def _train(side: MiniDSV4 | Transformers, loss: Tensor) -> float:
    """Backward from the mean nats per next token, and one step of AdamW at rate 0, so that every repeat does the same.

    Each side has its own way to the loss: here `text_loss`, which never holds all logits, there `labels=`.
    """
    optimizer = optimizer_of(side)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item()


def optimizer_of(side: MiniDSV4 | Transformers) -> torch.optim.Optimizer:
    """The side's own AdamW, which has no moments before its first step."""
    side.optimizer = side.optimizer or torch.optim.AdamW(side.model.parameters(), lr=0.0)
    return side.optimizer


def _tensors(values: Iterable) -> list[Tensor]:
    """Tensors among values and in dictionaries of them."""
    flat = [inner for value in values for inner in (value.values() if isinstance(value, dict) else [value])]
    return [value for value in flat if isinstance(value, Tensor)]


def reference_is_here() -> bool:
    """Whether transformers is installed, in a release that knows DeepSeek-V4."""
    try:
        from transformers import DeepseekV4ForCausalLM  # noqa: F401
    except ImportError:
        return False
    return True
