"""The model that all checkups examine: random, in float64, with every mechanism of V4 at work.

B batch, T tokens, V vocabulary.
"""

import functools

import torch
from torch import Tensor

from minidsv4 import paper
from minidsv4.checkpoint import to_released
from minidsv4.config import Config, LayerKind
from minidsv4.model.model import Model

EXACT = 1e-10  # float64, a few layers deep; the smallest trap, an eps of 1e-6, moves logits by more than 1e-8
CSA, HCA, WINDOW = LayerKind.CSA, LayerKind.HCA, LayerKind.WINDOW
N_TOKENS = 32  # 10 entries of 3 tokens and 2 over, 3 of 9 and 5 over
CONFIG = Config.from_dict(
    dict(
        vocab_size=43,
        hidden_size=18,
        moe_intermediate_size=14,
        num_hidden_layers=3,
        num_attention_heads=6,
        head_dim=16,
        qk_rope_head_dim=6,
        q_lora_rank=12,
        o_groups=3,
        o_lora_rank=7,
        sliding_window=5,
        compress_ratios=(0, 9, 3, 0),
        layer_types=(WINDOW, HCA, CSA, WINDOW),
        index_n_heads=2,
        index_head_dim=8,
        index_topk=4,
        n_routed_experts=7,
        num_experts_per_tok=2,
        num_hash_layers=1,
        swiglu_limit=0.4,
        hc_mult=4,
        hc_sinkhorn_iters=5,
        routed_scaling_factor=2.5,
        rope_theta=100.0,
        compress_rope_theta=500.0,
        max_position_embeddings=512,
        rope_scaling=dict(factor=8, original_max_position_embeddings=64, beta_fast=32, beta_slow=1),
    )
)


def random_model(seed: int) -> tuple[Model, Tensor]:
    """A model of CONFIG with random numbers everywhere, and two sequences [B, T] of ids.

    Routing, clamps and attention are far from uniform in it. The same seed gives the same model, whatever torch's
    default type is.
    """
    generator = torch.Generator().manual_seed(seed)
    model = Model(CONFIG).double()
    with torch.no_grad():
        biases = [(name, bias) for name, bias in model.named_buffers() if name.endswith("gate.bias")]
        for name, tensor in [*model.named_parameters(), *biases]:
            numbers = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            is_matrix = tensor.ndim > 1 and not name.endswith("ape")
            tensor.copy_(0.2 * numbers if is_matrix else start(name, tensor) + 0.3 * numbers)
    return model, torch.randint(CONFIG.vocab_size, (2, N_TOKENS), generator=generator)


def start(name: str, tensor: Tensor) -> Tensor:
    """What a vector begins with: ones for the weights of norms and the scales of streams, zeros for biases."""
    begins_at_1 = name.endswith(("norm.weight", "scale"))
    return torch.full_like(tensor, float(begins_at_1))


@functools.cache
def subject() -> tuple[Model, Tensor]:
    """The model that is examined, and its two sequences [B, T]."""
    return random_model(1)


@functools.cache
def by_hand() -> tuple[Tensor, Tensor]:
    """Logits [T, V] of the first sequence by the loops of `paper.py`, of the main model and of its MTP block."""
    model, ids_BT = subject()
    params = {name: tensor.numpy() for name, tensor in to_released(model.state_dict()).items()}
    ids_T = ids_BT[0].tolist()
    main = torch.from_numpy(paper.model_logits(params, CONFIG, ids_T))
    return main, torch.from_numpy(paper.mtp_logits(params, CONFIG, ids_T))


def same(ours: Tensor, expected: Tensor) -> None:
    """Nothing where both are equal up to rounding in float64; NaN is not.

    raises  AssertionError, which says by how much they differ
    """
    error = ((ours - expected).abs().max() / expected.abs().max()).item()
    assert error < EXACT, f"off by {error:.1e} of the largest value"
