"""What the compiled pass is handed: a model's weights and a sequence's cache, as tuples of arrays.

T tokens, H heads, K head width, R rotary part, M tokens per entry, C compressed entries, S slots or channels, U index
heads, Z index width, A active experts, V vocabulary. A part that a layer does not have is an empty array, so that one
compiled function serves all kinds.
"""

from typing import NamedTuple

from numpy import ndarray


class Sizes(NamedTuple):
    """The numbers of a config that the loops need."""

    window: int
    heads: int
    groups: int
    index_heads: int
    index_topk: int
    active: int
    sinkhorn_iters: int
    rms_eps: float
    hc_eps: float
    route_scale: float
    swiglu_limit: float


class Site(NamedTuple):
    """One hyper-connection, or the head's collapse: `fn`, `base` and `scale` as in `HyperConnection`."""

    fn: ndarray
    base: ndarray
    scale: ndarray


class Entering(NamedTuple):
    """What makes of a token's streams all that attention needs: one layer's weights."""

    site: Site
    norm: ndarray
    freqs_R: ndarray  # [R/2], radians per token
    wq_a: ndarray
    q_norm: ndarray
    wq_b: ndarray
    wkv: ndarray
    kv_norm: ndarray
    main_wkv: ndarray  # of the compressor of entries
    main_wgate: ndarray
    index_wq_b: ndarray
    index_weights_proj: ndarray
    index_signs: ndarray  # Hadamard
    keys_wkv: ndarray  # of the compressor of the indexer's keys
    keys_wgate: ndarray
    index_ratio: int  # tokens per key; 0 where there is no indexer


class Remembering(NamedTuple):
    """What attention and its compressors need beside that: one layer's weights. `ape` is [M, halves K]."""

    sinks_H: ndarray
    freqs_R: ndarray
    main_ape: ndarray
    main_norm: ndarray
    keys_ape: ndarray
    keys_norm: ndarray
    index_signs: ndarray


class Experts(NamedTuple):
    """Router and experts; of the router's `bias_E` and `table_VA` one is empty."""

    router: ndarray
    bias_E: ndarray
    table_VA: ndarray
    shared_w1: ndarray
    shared_w2: ndarray
    shared_w3: ndarray
    w13: ndarray  # [E, 2 F, D]
    w2: ndarray  # [E, D, F]


class Leaving(NamedTuple):
    """What writes attention's output and then the experts' to the streams: one layer's weights."""

    wo_a: ndarray
    wo_b: ndarray
    site: Site
    norm: ndarray
    experts: Experts


class Layer(NamedTuple):
    """All weights of one block, in the three parts that its three calls read."""

    enter: Entering
    attend: Remembering
    leave: Leaving


class CompressorCache(NamedTuple):
    """What one compressor has cached of a sequence, with room for what the new tokens add.

    open_SK     raw rows of the open window, those of the new tokens to be filled at its end
    before_MK   the previous window's half; empty before there is one, and in HCA
    after_MK    to be filled with the half of the last window that closes; empty where none does, and in HCA
    entries_CK  finished entries, those of the windows that close to be filled at its end
    """

    open_SK: ndarray
    before_MK: ndarray
    after_MK: ndarray
    entries_CK: ndarray


class LayerCache(NamedTuple):
    """What one layer has cached of a sequence: the window, the new tokens' entries to be filled at its end, and its
    compressors.
    """

    window_SK: ndarray
    main: CompressorCache
    index: CompressorCache


class Projected(NamedTuple):
    """What attention makes of each token before it looks at any other.

    main_TS, keys_TS  values, then gates, for the compressor of entries and for that of the indexer's keys
    """

    query_THK: ndarray
    entry_TK: ndarray
    main_TS: ndarray
    keys_TS: ndarray
    index_query_TUZ: ndarray
    index_weight_TU: ndarray
    cos_TR: ndarray
    sin_TR: ndarray
