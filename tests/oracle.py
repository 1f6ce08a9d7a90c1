"""Hugging Face transformers' `deepseek_v4` as an oracle: its own code, with two changes that are made here in the open.

Its top-k is made stable (equal scores: lower index first), since `torch.topk` leaves ties open; and for float64 its
hidden casts to float32 are widened, since otherwise nothing can be compared beyond 1e-6.
"""

import functools
import importlib.util
import os
import sys
import unittest.mock

import numpy as np
import torch

os.environ["HF_HUB_OFFLINE"] = "1"

import transformers.models.deepseek_v4.modeling_deepseek_v4 as released_module
from transformers import DeepseekV4Config

import minidsv4 as v4
from minidsv4 import paper
from minidsv4.checkpoint import from_released
from minidsv4.config_json import for_transformers

TOPK = "index_scores.topk(top_k, dim=-1).indices"
STABLE = "index_scores.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]"
WIDER = [(".float()", ".double()"), ("torch.float32", "torch.float64"), ("dtype=torch.float)", "dtype=torch.float64)")]


@functools.cache
def _module(dtype: torch.dtype):
    """The released modelling module, executed from its changed source under another name."""
    source = importlib.util.find_spec(released_module.__name__).loader.get_source(released_module.__name__)
    assert source.count(TOPK) == 2, "transformers changed its indexer: look at it again"
    source = source.replace(TOPK, STABLE)
    for narrow, wide in WIDER if dtype == torch.float64 else []:
        assert narrow in source
        source = source.replace(narrow, wide)
    name = f"{released_module.__name__}_{str(dtype).removeprefix('torch.')}"
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader=None))
    module.__package__, module.__file__ = released_module.__package__, released_module.__file__
    sys.modules[name] = module
    exec(compile(source, released_module.__file__, "exec"), module.__dict__)
    return module


def pair(config: v4.Config, seed: int, dtype: torch.dtype = torch.float32, strength: float = 3.0):
    """The same random weights in this package's model and in transformers'; every parameter moved off its start.

    strength multiplies the initial matrices, so that routing, clamps and attention are far from uniform
    """
    torch.manual_seed(seed)
    config = config.replace(num_nextn_predict_layers=0)
    hf_configuration = DeepseekV4Config(
        **for_transformers(config.to_dict(), str(dtype).removeprefix("torch.")), attn_implementation="eager"
    )
    hf_configuration._experts_implementation = "eager"
    torch.set_default_dtype(dtype)
    reference = _module(dtype).DeepseekV4ForCausalLM(hf_configuration).to(dtype).eval()
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for name, tensor in [*reference.named_parameters(), *reference.named_buffers()]:
            if name.endswith("inv_freq"):
                if dtype == torch.float64:  # transformers rounds them to float32
                    kind = "CSA" if "compress" in name else "WINDOW"
                    tensor.copy_(torch.from_numpy(paper.layer_frequencies(kind, config)))
            elif name.endswith("tid2eid"):
                tensor.copy_(torch.rand(config.vocab_size, config.n_routed_experts).argsort(-1)[:, : tensor.shape[1]])
            elif tensor.ndim >= 2 and not name.endswith("position_bias"):
                tensor.mul_(strength)
            else:
                tensor.add_(0.3 * torch.randn_like(tensor))
    model = v4.Model(config).to(dtype)
    model.load_state_dict(from_released(reference.state_dict()))
    return model, reference


def narrow_pair(wide, dtype: torch.dtype, folder):
    """The weights of the folder `wide` in 16 bits here and in transformers, which chose what stays float32.

    What it keeps in float32 in float16 alone, the compressors' projections, is narrowed as in bfloat16: with them in
    float32 its own forward ends in an error about types.
    """
    module = _module(torch.float32)
    options = dict(dtype=dtype, attn_implementation="eager", experts_implementation="eager")
    with unittest.mock.patch.object(module.DeepseekV4PreTrainedModel, "_keep_in_fp32_modules", []):
        narrow = module.DeepseekV4ForCausalLM.from_pretrained(wide, **options).eval()
    narrow.save_pretrained(folder)
    return v4.load(folder), narrow


def gradients(reference) -> dict[str, torch.Tensor]:
    """The reference's gradients under this package's parameter names."""
    return from_released({name: p.grad for name, p in reference.named_parameters() if p.grad is not None})


def random_config(seed: int) -> tuple[v4.Config, int, int]:
    """A config with every mechanism at random sizes, a batch size, and a length near a border of its windows."""
    draw = np.random.default_rng(seed)
    kinds = [v4.LayerKind.WINDOW, v4.LayerKind.CSA, v4.LayerKind.HCA]
    n_layers = int(draw.integers(3, 6))
    layers = [kinds[i] for i in draw.permutation([0, 1, 2, *draw.integers(0, 3, n_layers - 3)])]
    m, width = int(draw.integers(2, 6)), int(draw.choice([16, 24, 40]))
    m_prime = int(m * draw.choice([2, 3, 4, 16]))
    ratio = {kinds[0]: 0, kinds[1]: m, kinds[2]: m_prime}
    groups, rotary = int(draw.integers(1, 4)), int(draw.choice([4, 6, 8]))

    def whole(low: int, high: int) -> int:
        return int(draw.integers(low, high))

    yarn = dict(factor=whole(2, 17), original_max_position_embeddings=int(draw.choice([32, 64, 256])))
    fields = dict(
        vocab_size=whole(40, 90),
        hidden_size=width,
        moe_intermediate_size=whole(8, 20),
        q_lora_rank=whole(8, 20),
        num_hidden_layers=n_layers,
        num_attention_heads=groups * whole(1, 4),
        o_groups=groups,
        head_dim=2 * whole(rotary // 2 + 1, 12),
        qk_rope_head_dim=rotary,
        o_lora_rank=whole(4, 12),
        sliding_window=whole(1, 2 * m_prime),
        layer_types=(*layers, kinds[0]),
        compress_ratios=tuple(ratio[kind] for kind in [*layers, kinds[0]]),
        index_n_heads=whole(3, 18),
        index_head_dim=int(draw.choice([8, 16, 32])),
        index_topk=int(draw.choice([1, 2, 3, 4, 20])),
        n_routed_experts=whole(4, 10),
        num_experts_per_tok=whole(1, 4),
        hc_mult=whole(2, 6),
        mlp_layer_types=tuple(draw.choice(["hash_moe", "moe"], n_layers)),
        routed_scaling_factor=float(draw.choice([1.5, 2.5])),
        swiglu_limit=float(draw.choice([0.3, 0.7, 10.0])),
        rope_theta=float(draw.choice([100.0, 1e4])),
        compress_rope_theta=float(draw.choice([300.0, 160000.0])),
        rope_scaling=yarn | dict(beta_fast=32, beta_slow=1),
    )
    config = v4.Config.from_dict(fields)
    border = int(draw.integers(1, 4)) * int(draw.choice([m_prime, m_prime, config.sliding_window]))
    n_tokens = max(3, border + int(draw.integers(-1, 2)))
    return config, int(draw.integers(1, 4)), n_tokens
