"""The two implementations that are compared, this package's model and transformers' `deepseek_v4`, and their sizes.

B batch, T tokens. Both have the same methods and the same weights in float32: `prefill` takes in a prompt and returns
the cache, `step` decodes one token, `train` is one training step. transformers' attention is the eager one.
"""

import inspect
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from minidsv4.checkpoint import from_released
from minidsv4.config import Config
from minidsv4.config_json import for_transformers
from minidsv4.fast import FAST
from minidsv4.fast.compiled.table import COMPILED
from minidsv4.model.losses import text_loss
from minidsv4.model.model import Model
from minidsv4.ops import PLAIN
from minidsv4.train.recompute import recomputing

MINI = Config.flash().replace(
    vocab_size=8192,
    hidden_size=256,
    moe_intermediate_size=192,
    num_hidden_layers=8,
    num_attention_heads=8,
    head_dim=64,
    qk_rope_head_dim=16,
    q_lora_rank=128,
    o_groups=4,
    o_lora_rank=64,
    sliding_window=128,
    compress_ratios=(0, 0, 4, 128, 4, 128, 4, 128, 0),
    index_n_heads=8,
    index_head_dim=32,
    index_topk=128,
    n_routed_experts=16,
    num_experts_per_tok=4,
    num_hash_layers=3,
    num_nextn_predict_layers=0,  # transformers has no MTP block
)
SIZES = {
    "tiny": Config.flash().replace(
        vocab_size=2048,
        hidden_size=64,
        moe_intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        head_dim=32,
        qk_rope_head_dim=8,
        q_lora_rank=32,
        o_groups=2,
        o_lora_rank=32,
        sliding_window=16,
        compress_ratios=(0, 4, 16, 4, 0),
        index_n_heads=8,
        index_head_dim=16,
        index_topk=16,
        n_routed_experts=16,
        num_experts_per_tok=2,
        num_hash_layers=1,
        num_nextn_predict_layers=0,
    ),
    "mini": MINI,
    "mini-8e": MINI.replace(  # half as many experts, wider ones
        vocab_size=4096,
        moe_intermediate_size=256,
        index_n_heads=16,
        index_topk=64,
        n_routed_experts=8,
        num_experts_per_tok=2,
    ),
}
TRAINED = (4, 512)  # sequences and tokens of a training step
CHUNK = 512  # tokens at a time where transformers' prompt is cut by hand
FUSED = "fused"  # decoding in compiled loops
TABLES = {"FAST": FAST, "COMPILED": COMPILED, "PLAIN": PLAIN}
RECOMPUTED = "recomputed"  # a training step whose blocks are computed again for backward
BACKENDS = ("eager", "batched_mm", "grouped_mm")  # of transformers' experts; only the first can do every width


def load_size(name: str) -> Config:
    """The config of one of SIZES, or of a `config.json` or its folder; without an MTP block, which transformers lacks.

    raises  ValueError for any other name
    """
    if name in SIZES:
        return SIZES[name]
    if not name or not Path(name).exists():
        raise ValueError(f"bench: --size {name!r} is none of {', '.join(SIZES)}, nor a config.json or its folder")
    return Config.from_json(name).replace(num_nextn_predict_layers=0)


def random_ids(config: Config, shape: tuple[int, int]) -> Tensor:
    """Token ids of this shape, the same each time."""
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(1))


class Implementation:
    """A model with an optimizer of its own: AdamW at rate 0, so that every repeated step does the same."""

    def __init__(self, model: torch.nn.Module):
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def learn(self, loss: Tensor) -> float:
        """The loss, after backward from it and one step of the optimizer."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.item()


class MiniDSV4(Implementation):
    """This package's model."""

    def __init__(self, config: Config):
        torch.manual_seed(0)
        super().__init__(Model(config))

    @torch.inference_mode()
    def prefill(self, ids_BT: Tensor, chunk: int | None = None):
        """The cache after a prompt, which `Model.prefill` cuts by itself."""
        cache = self.model.new_cache()
        self.model.prefill(ids_BT, cache)
        return cache

    @torch.inference_mode()
    def step(self, ids_BT: Tensor, cache) -> Tensor:
        return self.model(ids_BT, cache=cache)

    def train(self, ids_BT: Tensor, recompute: bool = False) -> float:
        """The mean loss of the next tokens, computed without ever holding all logits."""
        with recomputing(self.model) if recompute else nullcontext():
            streams_BTND = self.model.streams(ids_BT, self.model.new_cache(len(ids_BT)))
        return self.learn(text_loss(self.model, streams_BTND, ids_BT[:, 1:]))

    def cache_bytes(self, cache) -> tuple[int, int]:
        """Bytes in use, and bytes of the buffers that hold them."""
        return cache.n_bytes(), cache.n_bytes() + cache.spare_bytes()


class Transformers(Implementation):
    """The reference implementation, with the fastest backend of its experts for each kind of work.

    weights  a Model to take the weights from; without one they stay as transformers draws them
    """

    def __init__(self, config: Config, weights: Model | None = None):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from transformers import DeepseekV4Config, DeepseekV4ForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        torch.manual_seed(0)
        self.config = DeepseekV4Config(**for_transformers(config.to_dict(), "float32"), attn_implementation="eager")
        super().__init__(DeepseekV4ForCausalLM(self.config))
        if weights is not None:
            self.copy_weights(weights)
        names = inspect.signature(DeepseekV4ForCausalLM.forward).parameters
        self.cache_name = "cache" if "cache" in names else "past_key_values"
        self.backends = {}  # kind of work: the backend that was fastest
        self.use_backend("eager")

    @torch.inference_mode()
    def prefill(self, ids_BT: Tensor, chunk: int | None = None):
        """The cache after a prompt: in one call, as `generate` does it, or cut by hand into chunks."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.config)
        for part_BT in ids_BT.split(chunk or ids_BT.shape[1], dim=1):
            self.step(part_BT, cache)
        return cache

    @torch.inference_mode()
    def step(self, ids_BT: Tensor, cache) -> Tensor:
        known = {self.cache_name: cache}
        return self.model.eval()(input_ids=ids_BT, **known, use_cache=True, logits_to_keep=1).logits

    def train(self, ids_BT: Tensor) -> float:
        return self.learn(self.model.train()(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss)

    def cache_bytes(self, cache) -> tuple[int, int]:
        """Bytes in use, and bytes of the buffers of which they are views."""
        values = [value for layer in cache.layers for value in vars(layer).values()]
        values += [inner for value in values if isinstance(value, dict) for inner in value.values()]
        tensors = {(t.data_ptr(), t.shape): t for t in values if isinstance(t, Tensor)}.values()
        buffers = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(t.nbytes for t in tensors), sum(buffers.values())

    @torch.no_grad()
    def copy_weights(self, model: Model) -> None:
        """Copy the weights of this package's model into transformers', whose experts are stacked as here."""
        ours = model.state_dict()
        for name, tensor in from_released(self.model.state_dict()).items():
            tensor.copy_(ours[name])

    def use_backend(self, name: str) -> None:
        """Let the experts run on one of BACKENDS."""
        self.model.set_experts_implementation(name)

    def choose_backend(self, kind: str, work: Callable[[], object]) -> str:
        """The fastest backend that can do a small `work`, in use from now on; tried once for each kind."""
        if kind not in self.backends:
            tried = {name: self._trial(name, work) for name in BACKENDS}
            self.backends[kind] = min(tried, key=tried.get)
        self.use_backend(self.backends[kind])
        return self.backends[kind]

    def _trial(self, backend: str, work: Callable[[], object]) -> float:
        """Seconds of the shorter of two runs after a first; infinite where this backend cannot do the work."""
        times = []
        try:
            self.use_backend(backend)
            for _ in range(3):
                began = time.process_time()
                work()
                times.append(time.process_time() - began)
        except (RuntimeError, ValueError, ImportError, NotImplementedError):
            return float("inf")
        return min(times[1:])


def reference_is_here() -> bool:
    """Whether transformers is installed, in a release that knows DeepSeek-V4."""
    try:
        from transformers import DeepseekV4ForCausalLM  # noqa: F401
    except ImportError:
        return False
    return True
