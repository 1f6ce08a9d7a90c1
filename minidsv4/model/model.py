"""The model: embedding, N equal streams, L blocks, head collapse, logits; with its MTP block beside it.

B batch, T tokens, N streams, D width, V vocabulary. Report section 2. Released names: `embed`, `layers`, `norm`,
`head`, `hc_head_*`, `mtp.0`.
"""

import torch
from torch import Tensor, nn

from minidsv4.config import Config, LayerKind
from minidsv4.model.block import Block
from minidsv4.model.cache import Cache
from minidsv4.model.hyper_connection import HeadCollapse, expand
from minidsv4.model.losses import MTP_WEIGHT, Losses, model_losses
from minidsv4.model.mtp import MTP
from minidsv4.model.norm import RMSNorm
from minidsv4.model.rope import Angles, frequencies

_ID_TYPES = (torch.int64, torch.int32)
PREFILL_CHUNK = 2048  # tokens: long enough for full-speed products, short enough that a prompt of any length fits


class Model(nn.Module):
    """DeepSeek-V4 of any size. `model(ids_BT)` gives the logits of every position; float32 by default."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        schedule = zip(config.layer_types, config.mlp_layer_types)
        self.layers = nn.ModuleList(Block(config, kind, routing) for kind, routing in schedule)
        self.hc_head, self.norm = HeadCollapse(config), RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.mtp = nn.ModuleList(MTP(config) for _ in range(config.num_nextn_predict_layers))
        initialise(self)

    def forward(self, ids_BT: Tensor, cache: Cache | None = None, last: int | None = None) -> Tensor:
        """Logits for the token after each of `ids_BT`.

        ids_BT   integers in 0 .. V - 1
        cache    what came before; takes the new tokens in, and stays as it was if anything fails. No gradient then
        last     only the logits of the last so many tokens
        returns  [B, T or last, V], dtype of the model
        raises   ValueError: ids of a wrong type, shape or range, or a cache of another batch size or model
        """
        self.check(ids_BT, cache)
        if cache is None:
            streams_BTND = self.streams(ids_BT, self.new_cache(len(ids_BT)))
        else:
            with torch.no_grad(), cache.all_or_nothing():
                streams_BTND = self.streams(ids_BT, cache)
        return self.logits(streams_BTND if last is None else streams_BTND[:, -last:])

    @torch.no_grad()
    def prefill(self, ids_BT: Tensor, cache: Cache, chunk: int = PREFILL_CHUNK) -> Tensor:
        """Take in a prompt of any length chunk by chunk, in memory that does not grow; logits [B, V] of its end."""
        self.check(ids_BT, cache)
        with cache.all_or_nothing():
            for ids in ids_BT.split(chunk, dim=1):
                streams_BTND = self.streams(ids, cache)
        return self.logits(streams_BTND[:, -1:])[:, 0]

    def streams(self, ids_BT: Tensor, cache: Cache, first_BT: Tensor | None = None) -> Tensor:
        """The streams [B, T, N, D] after the last block, not collapsed: what the head and the MTP block read.

        first_BT  where each token's document begins, in the whole row, for rows of several documents
        """
        start, n_new = cache.n_tokens, ids_BT.shape[1]
        angles = self.angles(start, start + n_new, first_BT)
        streams_BTND = expand(self.embed(ids_BT), self.config.hc_mult)
        for block, memory in zip(self.layers, cache.layers):
            streams_BTND = block(streams_BTND, ids_BT, start, memory, angles[memory.kind])
        cache.n_tokens += n_new
        return streams_BTND

    def logits(self, streams_BTND: Tensor, of: nn.Module | None = None) -> Tensor:
        """`hidden`, then the vocabulary head: [B, T, V]."""
        return self.head(self.hidden(streams_BTND, of))

    def hidden(self, streams_BTND: Tensor, of: nn.Module | None = None) -> Tensor:
        """What the head reads [B, T, D]: collapse and norm, those of the model or those `of` the MTP block."""
        of = of or self
        return of.norm(of.hc_head(streams_BTND))

    def angles(self, start: int, stop: int, first_BT: Tensor | None = None) -> dict[LayerKind, Angles]:
        """The turns of positions up to `stop` for each kind of layer, from the start of the oldest open window."""
        weight = self.embed.weight
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        ratios = [self.config.ratio_of(kind) for kind in LayerKind]
        first = min([start, *(start // ratio * ratio for ratio in ratios if ratio)])
        bases = [frequencies(self.config, kind, dtype, weight.device) for kind in (LayerKind.WINDOW, LayerKind.CSA)]
        plain, slowed = (Angles(speed, first, stop, first_BT) for speed in bases)
        return {LayerKind.WINDOW: plain, LayerKind.CSA: slowed, LayerKind.HCA: slowed}

    def mtp_logits(self, streams_BTND: Tensor, ids_BT: Tensor, first_BT: Tensor | None = None) -> Tensor:
        """The MTP block's logits [B, T, V] for tokens i + 2, from the streams of positions i and the tokens i + 1."""
        drafted = self.draft(streams_BTND, ids_BT, self.new_draft_cache(len(ids_BT)), first_BT)
        return self.logits(drafted, of=self.mtp[0])

    def draft(self, streams_BTND: Tensor, ids_BT: Tensor, cache: Cache, first_BT: Tensor | None = None) -> Tensor:
        """The MTP block's own streams [B, T, N, D], which a chained draft reads in place of the model's."""
        start, cache.n_tokens = cache.n_tokens, cache.n_tokens + ids_BT.shape[1]
        angles = self.angles(start, cache.n_tokens, first_BT)[LayerKind.WINDOW]
        return self.mtp[0](streams_BTND, self.embed(ids_BT), ids_BT, start, cache.layers[0], angles)

    def loss(self, ids_BT: Tensor, first_BT: Tensor | None = None, mtp_weight: float = MTP_WEIGHT) -> Losses:
        """Training losses of rows of at least 3 tokens, which may hold several documents; see `losses.py`."""
        self.check(ids_BT, None)
        return model_losses(self, ids_BT, first_BT, mtp_weight)

    def new_cache(self, batch_size: int = 1, kinds: list[LayerKind] | None = None) -> Cache:
        """An empty memory for `batch_size` sequences, in the model's dtype and on its device; `kinds` as in `Cache`."""
        return Cache(self.config, batch_size, self.embed.weight.dtype, self.embed.weight.device, kinds)

    def new_draft_cache(self, batch_size: int = 1) -> Cache:
        """An empty memory of the MTP block's own, for `draft`."""
        if not self.mtp:
            raise ValueError("model: num_nextn_predict_layers = 0, so there is no MTP block; build the config with 1")
        return self.new_cache(batch_size, [LayerKind.WINDOW])

    def check(self, ids_BT: Tensor, cache: Cache | None) -> None:
        """Refuse, before anything is touched, what cannot be run."""
        dtype, shape = getattr(ids_BT, "dtype", type(ids_BT).__name__), tuple(getattr(ids_BT, "shape", ()))
        if dtype not in _ID_TYPES:
            raise ValueError(f"ids: {dtype} cannot name tokens; give a tensor of integers")
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"ids: shape {shape} is no batch of prompts; give [batch, tokens], at least one token")
        low, high = (int(end) for end in ids_BT.aminmax())
        if low < 0 or high >= self.config.vocab_size:
            wrong, right = low if low < 0 else high, self.config.vocab_size - 1
            raise ValueError(f"ids: {wrong} is no token id; vocab_size allows 0 .. {right}")
        if cache is not None and cache.batch_size != shape[0]:
            raise ValueError(
                f"cache: made for batch_size = {cache.batch_size}, not {shape[0]}; make one for these sequences"
            )
        if cache is not None and (cache.config, cache.dtype) != (self.config, self.embed.weight.dtype):
            raise ValueError("cache: made for a model of another config or dtype; use this model's new_cache()")


def initialise(model: Model) -> None:
    """Every matrix from N(0, initializer_range), those that write to the streams smaller by sqrt(2 L).

    Norms, sinks, position biases and mHC biases keep what their modules gave them. V4's own initialisation is
    disclosed only as "gating factors start small".
    """
    std = model.config.initializer_range
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or name.endswith("ape"):
            continue
        writes = name.endswith(("wo_b.weight", "w2", "w2.weight"))
        nn.init.normal_(parameter, std=std / (2 * model.config.num_hidden_layers) ** 0.5 if writes else std)
