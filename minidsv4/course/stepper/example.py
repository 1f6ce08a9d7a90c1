"""The tiny model and text of the stepper: every mechanism of V4 at a size at which each number can be shown."""

import torch

from minidsv4.checkpoint import to_released
from minidsv4.config import Config, LayerKind, Routing, YaRN
from minidsv4.model.model import Model

WORDS = ("return", "x", ":", "def", "<bos>", "f", ")", "(")  # by id
TEXT = ("<bos>", "def", "f", "(", "x", ")", ":")
IDS = tuple(WORDS.index(word) for word in TEXT)  # none is its token's position, so neither is taken for the other
SEED = 4

CONFIG = Config(
    vocab_size=len(WORDS),
    hidden_size=6,
    moe_intermediate_size=5,
    num_hidden_layers=3,
    num_attention_heads=2,
    head_dim=4,
    qk_rope_head_dim=2,
    q_lora_rank=5,
    o_groups=2,
    o_lora_rank=3,
    sliding_window=3,
    compress_ratios=(0, 2, 3, 0),
    layer_types=(LayerKind.WINDOW, LayerKind.CSA, LayerKind.HCA, LayerKind.WINDOW),
    mlp_layer_types=(Routing.HASH, Routing.LEARNED, Routing.LEARNED),
    index_n_heads=2,
    index_head_dim=4,
    index_topk=2,
    n_routed_experts=4,
    num_experts_per_tok=2,
    hc_mult=2,
    rope_scaling=YaRN(factor=4, original_max_position_embeddings=64),
    num_nextn_predict_layers=0,
    max_position_embeddings=256,
)


@torch.no_grad()
def example_model():
    """A Model in float64 whose every weight is a random number of a fixed seed: it has learned nothing."""
    model = Model(CONFIG).double()
    generator = torch.Generator().manual_seed(SEED)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            scale = tensor.shape[-1] ** -0.5 if tensor.ndim > 1 and not name.startswith("embed") else 1.0
            tensor.copy_(1 + 0.3 * noise if "norm" in name else scale * noise)
    return model


def example_parameters():
    """The tensors of `example_model` as NumPy arrays under their released names, as `paper.py` reads them."""
    return {name: tensor.numpy() for name, tensor in to_released(example_model().state_dict()).items()}
