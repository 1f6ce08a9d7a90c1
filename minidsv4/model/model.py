"""The model: embedding, N equal streams, L blocks, head collapse, logits; an MTP block.

B batch, T tokens, N streams, D width, V vocabulary. Report section 2. Released names:
`embed`, `layers`, `norm`, `head`, `hc_head_*`, `mtp.0`.
"""

import torch
from einops import repeat
from torch import Tensor, nn

from minidsv4.config import Config, LayerKind
from minidsv4.fast import FAST
from minidsv4.model.autocast import linear
from minidsv4.model.block import Block
from minidsv4.model.cache import Cache, Kinds
from minidsv4.model.check import (
    check_cache,
    check_config,
    check_count,
    check_documents,
    check_ids,
    check_table,
)
from minidsv4.model.hyper_connection import HeadCollapse
from minidsv4.model.layer import Layer, RMSNorm
from minidsv4.model.losses import MTP_WEIGHT, Losses, model_losses
from minidsv4.model.moe import HashRouter
from minidsv4.model.mtp import MTP
from minidsv4.model.rope import Positions, frequencies
from minidsv4.ops import Ops

PREFILL_CHUNK = 2048  # tokens: enough for products at full speed, in bounded memory


class Model(Layer):
    """DeepSeek-V4 of any size: `model(ids_BT)` gives the logits of every position.

    ops  the table of operations it runs: `FAST`, or `PLAIN`, the ones to read
    """

    def __init__(self, config: Config, ops: Ops = FAST):
        super().__init__()
        check_config(config)
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        schedule = zip(config.layer_types, config.mlp_layer_types)
        blocks = [Block(config, kind, routing) for kind, routing in schedule]
        self.layers = nn.ModuleList(blocks)
        self.hc_head = HeadCollapse(config)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        n_mtp = config.num_nextn_predict_layers
        self.mtp = nn.ModuleList(MTP(config) for _ in range(n_mtp))
        initialise(self)
        self.use(ops)

    def use(self, ops: Ops) -> "Model":
        """The model itself, which from now on runs these operations.

        raises  ValueError: `ops` is no table of functions
        """
        check_table(ops)
        for module in self.modules():
            if isinstance(module, Layer):
                module.ops = ops
        return self

    def forward(
        self,
        ids_BT: Tensor,
        cache: Cache | None = None,
        last: int | None = None,
    ) -> Tensor:
        """Logits for the token after each of `ids_BT`.

        ids_BT   integers in 0 .. V - 1
        cache    what came before; takes the new tokens in, and stays as it was if
                 anything fails. No gradient then
        last     only the logits of the last so many tokens, from 1
        returns  [B, T or last, V], float32 at least
        raises   ValueError: ids of a wrong type, shape or range, or a cache of another
                 batch size or model
        """
        self.check(ids_BT, cache)
        n_logits = ids_BT.shape[1]
        if last is not None:
            n_logits = check_count("last", last, "asks for no logits")
        if cache is None:
            streams_BTND = self.streams(ids_BT, self.new_cache(len(ids_BT)))
            return self.logits(streams_BTND[:, -n_logits:])
        with torch.no_grad(), cache.all_or_nothing():
            return self.logits(self.streams(ids_BT, cache)[:, -n_logits:])

    @torch.no_grad()
    def prefill(
        self,
        ids_BT: Tensor,
        cache: Cache,
        chunk: int = PREFILL_CHUNK,
    ) -> Tensor:
        """Logits [B, V] at a prompt's end.

        It is taken in by chunks, so that memory does not grow.
        """
        check_cache(self, ids_BT, cache)
        check_count("prefill: chunk", chunk, "takes in nothing")
        with cache.all_or_nothing():
            for ids in ids_BT.split(min(chunk, ids_BT.shape[1]), dim=1):
                streams_BTND = self.streams(ids, cache)
        return self.logits(streams_BTND[:, -1:])[:, 0]

    def streams(
        self,
        ids_BT: Tensor,
        cache: Cache,
        document_BT: Tensor | None = None,
    ) -> Tensor:
        """The streams [B, T, N, D] after the last block, which head and MTP block read.

        document_BT  position of the first token of each token's document, for rows of
                     several documents
        raises       ValueError as `forward`, and for documents that begin after their
                     tokens or off the grid
        """
        check_cache(self, ids_BT, cache)
        check_documents(self.config, ids_BT, document_BT, cache.n_tokens)
        n_tokens = ids_BT.shape[1]
        positions = self.positions(cache.n_tokens, n_tokens, document_BT)
        n_streams = self.config.hc_mult
        streams_BTND = repeat(self.embed(ids_BT), "b t d -> b t n d", n=n_streams)
        for block, memory in zip(self.layers, cache.layers):
            streams_BTND = block(streams_BTND, ids_BT, positions[memory.kind], memory)
        cache.n_tokens += n_tokens
        return streams_BTND

    def logits(self, streams_BTND: Tensor, of: MTP | None = None) -> Tensor:
        """What the vocabulary head says on `hidden` [B, T, V], in float32 at least."""
        return linear(self.hidden(streams_BTND, of), self.head.weight)

    def hidden(self, streams_BTND: Tensor, of: MTP | None = None) -> Tensor:
        """What the head reads [B, T, D]: collapsed and normed.

        of  the module that does it: the MTP block, or None for the model
        """
        if of is None:
            return self.norm(self.hc_head(streams_BTND))
        return of.norm(of.hc_head(streams_BTND))

    def positions(
        self,
        start: int,
        n_tokens: int,
        document_BT: Tensor | None = None,
    ) -> dict[LayerKind, Positions]:
        """The positions `start, start + 1, ...` as each kind of layer turns them."""
        weight = self.embed.weight
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        ratios = {ratio for ratio in self.config.compress_ratios if ratio}
        # where the oldest open window begins
        oldest = min([start, *(start // ratio * ratio for ratio in ratios)])

        def turned(kind: LayerKind) -> Positions:
            speed_R = frequencies(self.config, kind, dtype, weight.device)
            return Positions(speed_R, start, n_tokens, oldest, document_BT)

        # all that compress turn alike
        by_kind = dict.fromkeys(LayerKind, turned(LayerKind.CSA))
        by_kind[LayerKind.WINDOW] = turned(LayerKind.WINDOW)
        return by_kind

    def mtp_logits(
        self,
        streams_BTND: Tensor,
        ids_BT: Tensor,
        document_BT: Tensor | None = None,
    ) -> Tensor:
        """The MTP block's logits [B, T, V] for tokens i + 2.

        streams_BTND  streams i, after the last block
        ids_BT        tokens i + 1
        """
        cache = self.new_draft_cache(len(ids_BT))
        drafted_BTND = self.draft(streams_BTND, ids_BT, cache, document_BT)
        return self.logits(drafted_BTND, of=self.mtp_block)

    def draft(
        self,
        streams_BTND: Tensor,
        ids_BT: Tensor,
        cache: Cache,
        document_BT: Tensor | None = None,
    ) -> Tensor:
        """The MTP block's streams [B, T, N, D], which a chained draft reads.

        cache   of the block's own, which `new_draft_cache` makes
        raises  ValueError as `streams`
        """
        check_cache(self, ids_BT, cache, drafts=True)
        check_documents(self.config, ids_BT, document_BT, cache.n_tokens)
        n_tokens = ids_BT.shape[1]
        positions = self.positions(cache.n_tokens, n_tokens, document_BT)
        cache.n_tokens += n_tokens
        memory = cache.layers[0]
        return self.mtp_block.draft(
            streams_BTND,
            self.embed(ids_BT),
            ids_BT,
            positions[memory.kind],
            memory,
        )

    @property
    def mtp_block(self) -> MTP:
        """The MTP block; released names have it as the only one of the list `mtp`."""
        block = self.mtp[0]
        assert isinstance(block, MTP)
        return block

    def loss(
        self,
        ids_BT: Tensor,
        document_BT: Tensor | None = None,
        mtp_weight: float = MTP_WEIGHT,
    ) -> Losses:
        """Training losses of rows of at least 3 tokens; see `losses.py`."""
        check_ids(self, ids_BT)
        return model_losses(self, ids_BT, document_BT, mtp_weight)

    def check(self, ids_BT: Tensor, cache: Cache | None = None) -> None:
        """Raise ValueError, before anything is touched, for what cannot be run."""
        if cache is None:
            check_ids(self, ids_BT)
        else:
            check_cache(self, ids_BT, cache)

    def new_cache(
        self,
        batch_size: int = 1,
        kinds: Kinds = None,
        precision: str = "model",
    ) -> Cache:
        """An empty cache in the model's dtype and on its device.

        kinds, precision  as in `Cache`
        """
        dtype = self.embed.weight.dtype
        device = self.embed.weight.device
        return Cache(self.config, batch_size, dtype, device, kinds, precision)

    def new_draft_cache(self, batch_size: int = 1, precision: str = "model") -> Cache:
        """An empty memory of the MTP block's own, for `draft`."""
        if not self.mtp:
            found = "model: num_nextn_predict_layers = 0, so there is no MTP block"
            raise ValueError(f"{found}; build the config with 1")
        return self.new_cache(batch_size, [LayerKind.WINDOW], precision)


def initialise(model: Model) -> None:
    """Draw matrices from N(0, initializer_range^2), and a table for each hash layer.

    The std of matrices that write to the streams is divided by sqrt(2 L). Norms, sinks,
    position biases and mHC biases keep what their modules gave them. V4's own
    initialisation is disclosed only as "gating factors start small".
    """
    std = model.config.initializer_range
    smaller = (2 * model.config.num_hidden_layers) ** -0.5
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or name.endswith("ape"):
            continue
        writes = name.endswith(("wo_b.weight", "w2", "w2.weight"))
        nn.init.normal_(parameter, std=std * smaller if writes else std)
    routers = [module for module in model.modules() if isinstance(module, HashRouter)]
    for seed, router in enumerate(routers):
        router.draw(seed)
